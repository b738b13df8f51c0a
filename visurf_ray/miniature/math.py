"""The drawn task of mathematics: add all digits of a scene."""

from typing import ClassVar

import numpy as np

from visurf_ray.miniature.drawn import Drawing, DrawnTask
from visurf_ray.miniature.scenes import Split, draw_scene, seen
from visurf_ray.tasks.math import MathTask


class MiniatureMath(DrawnTask, MathTask):
    """Scenes have one or two digits, which makes 55 sums. The base model has been trained on sums up to nine.

    The data have reasoning in the base model's form, because the reward values thinking as much as the right number: a
    label without thinking would not score higher than a rollout that thinks and is wrong.
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
