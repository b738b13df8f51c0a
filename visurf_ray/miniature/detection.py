"""The drawn task of detection: box all digits of a value, in the form of Visual-RFT's detection."""

import json
from typing import ClassVar

import numpy as np

from visurf_ray.answers.boxes import IntBox
from visurf_ray.miniature.drawn import Drawing, DrawnTask
from visurf_ray.miniature.scenes import CANVAS, Split, draw_scene, seen
from visurf_ray.tasks.detection import DetectionTask


class MiniatureDetection(DrawnTask, DetectionTask):
    """A scene has one or two digits of the value, or none ("No Objects"), among one or two digits of other values.

    The base model has been trained on answers with one box, but not with two boxes or with "No Objects". The data have
    reasoning in the base model's form, which judges each digit first.
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
        asked, *others = (int(value) for value in rng.permutation(10)[: 1 + rng.integers(1, 3)])
        values = others + [asked] * (0 if absent else int(rng.integers(1, 3)))
        scene = draw_scene(rng, split, digits=len(values), values=values)
        targets = [digit for digit in scene.digits if digit.value == asked]
        solution = json.dumps([{"Position": list(thousandths(digit.box))} for digit in targets])
        return Drawing(scene.image, f"{asked}s", solution, seen(scene, targets))


def thousandths(box: IntBox) -> IntBox:
    """Convert a box on the canvas from pixels to thousandths of the canvas."""
    x1, y1, x2, y2 = (round(1000 * side / CANVAS) for side in box)
    return x1, y1, x2, y2
