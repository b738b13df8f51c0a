"""Masks for predictions, made by SAM2 in a Ray actor."""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import ray
from PIL import Image

from visurf_ray.aliases import ActorHandle, ActorOptions, Reference
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


_AHEAD = 16  # answers whose masks are being made while further images are read


def _start_actor(place: ActorOptions) -> ActorHandle:
    return ray.remote(**place)(SegmenterActor).remote()


class Segmentation:
    """Adds masks to predictions."""

    def __init__(
        self,
        path: str,
        place: ActorOptions | None = None,
        *,
        timeout: float,
        parts: Collection[str] = ("",),
        strict: bool = True,
    ) -> None:
        """Start the actor and load the model.

        Args:
            path: SAM2's folder or hub id.
            place: Ray's options of the actor, see `cluster.reservation`; None: without GPUs, where there is room.
            timeout: Seconds that the actor may take to load the model, and for each mask: cluster.timeout.
            parts: The parts and held-out sets whose answers get masks.
            strict: The value of answers.strict.

        Raises:
            UserError: There is no SAM2 model at `path`.
        """
        self.timeout = timeout
        self.parts = parts
        self.strict = strict
        self.actor = _start_actor(place or {"num_cpus": 0})
        fetch(self.actor.open.remote(path), timeout)

    def segment(
        self,
        examples: Sequence[Example],
        predictions: Sequence[Prediction],
        stored: Callable[[Example], Reference],
    ) -> list[Prediction]:
        """Return each prediction, with the mask of its answer in the stored image of its example.

        Those of parts and sets without task.segmenter stay as they are. Few images are in memory at the same time.

        Args:
            examples: The examples.
            predictions: The same number of answers to each, those to the same example one after the other.
            stored: Returns a reference to an example's image at its stored size.
        """
        answers = len(predictions) // max(1, len(examples))
        found = list(predictions)
        waiting: deque[tuple[int, Reference]] = deque()  # masks that will come, and whose they are

        def collect(most: int) -> None:
            while len(waiting) > most:
                number, mask = waiting.popleft()
                found[number] = replace(found[number], mask=fetch(mask, self.timeout))

        for number, example in enumerate(examples):
            if example.part not in self.parts:
                continue
            image = stored(example)
            for index in range(number * answers, (number + 1) * answers):
                response = self._read_as_strict(predictions[index])
                waiting.append((index, self.actor.segment.remote(image, response, predictions[index].size)))
            collect(_AHEAD)
        collect(0)
        return found

    def _read_as_strict(self, prediction: Prediction) -> str:
        response = readable(prediction.response, prediction)
        return response if self.strict else as_strict(response)
