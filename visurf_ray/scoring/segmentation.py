"""Masks of answers: SAM2 in an actor of its own, and its public face."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from PIL import Image

from visurf_ray.answers.rle import Rle, encode
from visurf_ray.groups import Example, Prediction
from visurf_ray.scoring.segmenter import Segmenter, prompts_of


@ray.remote(num_cpus=0)
class SegmenterActor:
    """Segments stored images, which come by reference."""

    def open(self, path: str) -> None:
        """Load the model. Not the constructor: what that raises reaches nobody but as a dead actor."""
        self.segmenter = Segmenter(path, "task.segmenter")

    def segment(self, image: Image.Image, response: str, size: tuple[int, int]) -> Rle:
        prompts = prompts_of(response, image.width / size[0], image.height / size[1])
        return encode(self.segmenter.segment(image, prompts))


class Segmentation:
    """Gives predictions their masks."""

    def __init__(self, path: str, gpus: float) -> None:
        """Raises UserError for what is no SAM2 model."""
        self.actor: Any = SegmenterActor.options(num_gpus=gpus).remote()  # type: ignore[attr-defined]
        ray.get(self.actor.open.remote(path))

    def segment(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Prediction]:
        """The predictions with what each answer segments of its example's stored image; in the examples' order."""
        masks = [
            self.actor.segment.remote(example.stored, prediction.response, prediction.size)
            for example, prediction in zip(examples, predictions, strict=True)
        ]
        return [replace(prediction, mask=mask) for prediction, mask in zip(predictions, ray.get(masks), strict=True)]
