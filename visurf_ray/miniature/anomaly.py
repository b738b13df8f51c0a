"""The drawn task of anomaly detection: in some scenes one digit has a blot or a scratch."""

from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw

from visurf_ray.answers.boxes import IntBox, Target, dump_targets
from visurf_ray.miniature.drawn import FIND_PROMPT, Drawing, DrawnTask
from visurf_ray.miniature.scenes import Split, draw_scene, seen
from visurf_ray.tasks.anomaly import AnomalyTask

_QUESTION = "the blemished digit"
_GREEN, _BLACK = (30, 230, 30), (0, 0, 0)  # of blots and of scratches; no light or ink has these colours


class MiniatureAnomaly(DrawnTask, AnomalyTask):
    """The answer is the box of the blemished digit, or `[]` if no digit has a blemish.

    The data have reasoning in the base model's form, which judges each digit. The base model has never judged digits by
    blemishes.
    """

    asks_for_absent = True
    prompts: ClassVar[dict[str, str]] = {"detailed": FIND_PROMPT, "plain": "{query}"}

    def draw(self, rng: np.random.Generator, split: Split, absent: bool) -> Drawing:
        scene = draw_scene(rng, split, digits=int(rng.integers(1, 5)))
        image = scene.image
        if absent:
            return Drawing(image, _QUESTION, dump_targets([]), seen(scene, []))
        digit = scene.digits[rng.integers(len(scene.digits))]
        (_blot if rng.random() < 0.5 else _scratch)(rng, image, digit.box)
        return Drawing(image, _QUESTION, dump_targets([Target.around(digit.box)]), seen(scene, [digit]))


def _blot(rng: np.random.Generator, image: Image.Image, box: IntBox) -> None:
    """Draw a filled ellipse inside the box, 7 to 11 pixels wide and high."""
    width, height = (int(side) for side in rng.integers(7, 12, size=2))
    x, y = (int(rng.integers(low, high)) for low, high in ((box[0], box[2] - width), (box[1], box[3] - height)))
    ImageDraw.Draw(image).ellipse((x, y, x + width - 1, y + height - 1), fill=_GREEN)


def _scratch(rng: np.random.Generator, image: Image.Image, box: IntBox) -> None:
    """Draw a line 3 pixels wide from the box's left edge to its right edge."""
    y1, y2 = (int(y) for y in rng.integers(box[1] + 4, box[3] - 4, size=2))
    ImageDraw.Draw(image).line((box[0] + 2, y1, box[2] - 3, y2), fill=_BLACK, width=3)
