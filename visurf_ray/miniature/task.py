"""The embedded task: find digits in scenes, and answer `[]` for digits that are absent."""

from typing import ClassVar

import numpy as np

from visurf_ray.answers.boxes import Target, dump_targets
from visurf_ray.miniature.drawn import FIND_PROMPT, Drawing, DrawnTask
from visurf_ray.miniature.scenes import Split, absent_query, draw_scene, present_query
from visurf_ray.tasks.box_task import BoxTask


class MiniatureTask(DrawnTask, BoxTask):
    """Grounding in generated scenes."""

    asks_for_absent = True
    prompts: ClassVar[dict[str, str]] = {"detailed": FIND_PROMPT, "plain": "{query}"}

    def draw(self, rng: np.random.Generator, split: Split, absent: bool) -> Drawing:
        scene = draw_scene(rng, split, digits=int(rng.integers(1, 5)))
        query = (absent_query if absent else present_query)(rng, scene)
        solution = dump_targets([Target.around(digit.box) for digit in query.targets])
        return Drawing(scene.image, query.text, solution)
