"""All digits of a value to detect, as Visual-RFT's detection does: boxes in thousandths, each with a confidence."""

import json
from typing import ClassVar

import numpy as np

from visurf_ray.answers.boxes import IntBox
from visurf_ray.miniature.drawn import Drawing, DrawnTask
from visurf_ray.miniature.scenes import CANVAS, Split, draw_scene, seen
from visurf_ray.tasks.detection import DetectionTask


class MiniatureDetection(DrawnTask, DetectionTask):
    """One or two digits of the value, or none ("No Objects"), among one or two of other values.

    The base model has seen the answer with one box, never with two, and never "No Objects".

    The data carry reasoning, in the base model's words: it judges each digit first.
    """

    asks_for_absent = True
    prompts: ClassVar[dict[str, str]] = {
        "detailed": (
            "Find all {query}. Reason in <think>, then answer in <answer> with a list of "
            '{{"Position": [x1, y1, x2, y2], "Confidence": c}}, or No Objects.'
        ),
        "plain": "{query}",
    }

    def draw(self, rng: np.random.Generator, split: Split, absent: bool) -> Drawing:
        wanted, *others = (int(value) for value in rng.permutation(10)[: 1 + rng.integers(1, 3)])
        values = others + [wanted] * (0 if absent else int(rng.integers(1, 3)))
        scene = draw_scene(rng, split, digits=len(values), values=values)
        targets = [digit for digit in scene.digits if digit.value == wanted]
        solution = json.dumps([{"Position": list(thousandths(digit.box))} for digit in targets])
        return Drawing(scene.image, f"{wanted}s", solution, seen(scene, targets))


def thousandths(box: IntBox) -> IntBox:
    """A box on the canvas, from pixels to thousandths of its sides."""
    x1, y1, x2, y2 = (round(1000 * side / CANVAS) for side in box)
    return x1, y1, x2, y2
