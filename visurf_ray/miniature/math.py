"""Sums to compute: all digits of a scene added up."""

from typing import ClassVar

import numpy as np

from visurf_ray.miniature.drawn import Drawing, DrawnTask
from visurf_ray.miniature.scenes import Split, draw_scene, seen
from visurf_ray.tasks.math import MathTask


class MiniatureMath(DrawnTask, MathTask):
    """One or two digits: 55 sums to know. The base model has added up to nine.

    The data carry reasoning, in the base model's words: the reward values thinking as much as the right number, and a
    label without either of them could not win against a rollout that thinks and is wrong.
    """

    question_text = "Add all digits."
    prompts: ClassVar[dict[str, str]] = {
        "detailed": "{query} Reason in <think>, then give the sum in \\boxed{{}}.",
        "plain": "{query}",
    }

    def draw(self, rng: np.random.Generator, split: Split, absent: bool) -> Drawing:
        scene = draw_scene(rng, split, digits=int(rng.integers(1, 3)))
        total = sum(digit.value for digit in scene.digits)
        return Drawing(scene.image, self.question_text, str(total), seen(scene))
