"""The embedded task: find digits in scenes, and say `[]` for digits that are not there."""

from typing import ClassVar

import numpy as np

from visurf_ray.errors import UserError
from visurf_ray.miniature.scenes import Split, absent_query, draw_scene, present_query
from visurf_ray.tasks.box_task import BoxTask
from visurf_ray.tasks.boxes import PROMPT, Target, dump_targets
from visurf_ray.tasks.rows import Row


class MiniatureTask(BoxTask):
    """Grounding in generated scenes; `train` and `held_out` are numbers of scenes."""

    prompts: ClassVar[dict[str, str]] = {"detailed": PROMPT, "plain": "{query}"}

    def train_rows(self) -> list[Row]:
        share = self.config.absent_share
        if share is None or not 0 <= share <= 1:
            raise UserError(f"task.absent_share={share} must lie between 0 and 1")
        return draw_rows("train", int(self.config.train), share, self.seed)

    def held_out_rows(self) -> list[Row]:
        """Half of the questions are for absent digits. The scenes are the same for every seed, to be compared."""
        return draw_rows("test", int(self.config.held_out), 0.5, 0)


def draw_rows(split: Split, count: int, absent_share: float, seed: int) -> list[Row]:
    """Draw `count` scenes with a question each; exactly `absent_share` of them ask for digits that are not there."""
    rng = np.random.default_rng((seed, {"train": 0, "validation": 1, "test": 2}[split]))
    absent = rng.permutation(count) < round(absent_share * count)
    rows = []
    for number in range(count):
        scene = draw_scene(rng, split, digits=int(rng.integers(1, 5)))
        query = (absent_query if absent[number] else present_query)(rng, scene)
        solution = dump_targets([Target.around(digit.box) for digit in query.targets])
        name = f"{split}-{number}"
        rows.append(Row(name, query.text, solution, scene.image, f"miniature scene {name}"))
    return rows
