"""Masks for predictions, made by SAM2 in a Ray actor."""

from collections.abc import Sequence
from dataclasses import replace

import ray
from PIL import Image

from visurf_ray.aliases import ActorHandle
from visurf_ray.answers.coordinates import readable
from visurf_ray.answers.lenient import as_strict
from visurf_ray.answers.rle import Rle, encode
from visurf_ray.cluster.waiting import fetch
from visurf_ray.groups import Example, Prediction
from visurf_ray.scoring.segmenter import Segmenter, prompts_of


class SegmenterActor:
    """Holds SAM2 in a process of its own."""

    def open(self, path: str) -> None:
        """Load the model. This is not done in the constructor, because Ray reports its errors only as a dead actor.

        Raises:
            UserError: There is no SAM2 model at `path`.
        """
        self.segmenter = Segmenter(path, "task.segmenter")

    def segment(self, image: Image.Image, response: str, size: tuple[int, int]) -> Rle:
        """Return the mask of the objects in a response.

        Args:
            image: The stored image, passed as a Ray reference.
            response: The response.
            size: Width and height of the image that the model saw; the response's boxes are in its pixels.
        """
        prompts = prompts_of(response, image.width / size[0], image.height / size[1])
        return encode(self.segmenter.segment(image, prompts))


def _start_actor(gpus: float) -> ActorHandle:
    return ray.remote(num_cpus=0, num_gpus=gpus)(SegmenterActor).remote()


class Segmentation:
    """Adds masks to predictions."""

    def __init__(self, path: str, gpus: float, *, timeout: float, strict: bool = True) -> None:
        """Start the actor and load the model.

        Args:
            path: SAM2's folder or hub id.
            gpus: The number of GPUs, possibly fractional, that the actor reserves.
            timeout: Seconds that the actor may take to load the model, and for each mask: cluster.timeout.
            strict: The value of answers.strict.

        Raises:
            UserError: There is no SAM2 model at `path`.
        """
        self.timeout = timeout
        self.strict = strict
        self.actor: ActorHandle = _start_actor(gpus)
        fetch(self.actor.open.remote(path), timeout)

    def segment(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Prediction]:
        """Return each prediction, with the mask of its answer in the stored image of its example if that has one.

        Args:
            examples: The examples.
            predictions: The same number of answers to each, those to the same example one after the other.
        """
        answers = len(predictions) // max(1, len(examples))
        images = [example.stored for example in examples for _ in range(answers)]
        masks = {
            index: self.actor.segment.remote(image, self._read_as_strict(prediction), prediction.size)
            for index, (image, prediction) in enumerate(zip(images, predictions, strict=True))
            if image is not None
        }
        found = {index: fetch(mask, self.timeout) for index, mask in masks.items()}
        return [replace(each, mask=found[index]) if index in found else each for index, each in enumerate(predictions)]

    def _read_as_strict(self, prediction: Prediction) -> str:
        response = readable(prediction.response, prediction)
        return response if self.strict else as_strict(response)
