"""A digit to name, as Visual-RFT's classification does."""

from typing import ClassVar

import numpy as np

from visurf_ray.miniature.drawn import Drawing, DrawnTask
from visurf_ray.miniature.scenes import Split, draw_scene, seen
from visurf_ray.tasks.classification import ClassificationTask

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class MiniatureClassification(DrawnTask, ClassificationTask):
    """The class is a word: the base model reads all digits, but has spelt those up to six alone.

    The data carry reasoning, in the base model's words: the reward values thinking as much as the right name.
    """

    question_text = "Which digit is it?"
    prompts: ClassVar[dict[str, str]] = {
        "detailed": "{query} Reason in <think>, then name it in <answer>.",
        "plain": "{query}",
    }

    def draw(self, rng: np.random.Generator, split: Split, absent: bool) -> Drawing:
        scene = draw_scene(rng, split, digits=1)
        return Drawing(scene.image, self.question_text, NAMES[scene.digits[0].value], seen(scene))
