"""The drawn task of grounding: box one digit, in the form of Visual-RFT's reasoning grounding."""

from typing import ClassVar

import numpy as np

from visurf_ray.miniature.detection import thousandths
from visurf_ray.miniature.drawn import Drawing, DrawnTask
from visurf_ray.miniature.scenes import Split, draw_scene
from visurf_ray.tasks.grounding import GroundingTask


class MiniatureGrounding(DrawnTask, GroundingTask):
    """Scenes have one to four digits. The base model has answered in this form for one or two digits only."""

    prompts: ClassVar[dict[str, str]] = {
        "detailed": "Find {query}. Reason in <think>, then answer in <answer> with (x1, y1), (x2, y2).",
        "plain": "{query}",
    }

    def draw(self, rng: np.random.Generator, split: Split, absent: bool) -> Drawing:
        scene = draw_scene(rng, split, digits=int(rng.integers(1, 5)))
        digit = scene.digits[rng.integers(len(scene.digits))]
        x1, y1, x2, y2 = thousandths(digit.box)
        return Drawing(scene.image, f"the {digit.value}", f"({x1}, {y1}), ({x2}, {y2})")
