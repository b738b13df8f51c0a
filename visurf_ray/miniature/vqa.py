"""The drawn task of visual question answering: count the digits of a scene, all or those of one parity."""

from typing import ClassVar

import numpy as np

from visurf_ray.data.rows import Row
from visurf_ray.miniature.drawn import Drawing, DrawnTask
from visurf_ray.miniature.scenes import Split, draw_scene
from visurf_ray.tasks.vqa import VqaTask

_PARITIES = {"": (0, 1), "even ": (0,), "odd ": (1,)}


class MiniatureVqa(DrawnTask, VqaTask):
    """Scenes have up to six digits. The base model has counted up to four, and never those of one parity."""

    prompts: ClassVar[dict[str, str]] = {
        "detailed": "{query} Reason in <think>, then answer in <answer>.",
        "plain": "{query}",
    }

    def ground_truth(self, row: Row, scale_x: float, scale_y: float) -> str:
        """Return the number alone, as the reward `math` reads it."""
        return row.solution

    def draw(self, rng: np.random.Generator, split: Split, absent: bool) -> Drawing:
        scene = draw_scene(rng, split, digits=int(rng.integers(1, 7)))
        word = str(rng.choice(list(_PARITIES)))
        count = sum(digit.value % 2 in _PARITIES[word] for digit in scene.digits)
        return Drawing(scene.image, f"How many {word}digits are there?", str(count))
