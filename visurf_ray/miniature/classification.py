"""The drawn task of classification: name a digit, in the form of Visual-RFT's classification."""

from typing import ClassVar

import numpy as np

from visurf_ray.miniature.drawn import Drawing, DrawnTask
from visurf_ray.miniature.scenes import Split, draw_scene, seen
from visurf_ray.tasks.classification import ClassificationTask

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class MiniatureClassification(DrawnTask, ClassificationTask):
    """The answer is the digit as a word. The base model reads all digits, but has spelt only those up to six.

    The data have reasoning in the base model's form, because the reward values thinking as much as the right name.
    """

    question_text = "Which digit is it?"
    prompts: ClassVar[dict[str, str]] = {
        "detailed": "{query} Reason in <think>, then name it in <answer>.",
        "plain": "{query}",
    }

    def draw(self, rng: np.random.Generator, split: Split, absent: bool) -> Drawing:
        scene = draw_scene(rng, split, digits=1)
        return Drawing(scene.image, self.question_text, NAMES[scene.digits[0].value], seen(scene))
