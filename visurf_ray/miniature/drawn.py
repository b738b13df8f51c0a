"""Tasks whose rows are drawn: a seed always draws the same rows, and no scan is in two splits."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from PIL import Image

from visurf_ray.data.rows import Row
from visurf_ray.errors import UserError
from visurf_ray.miniature.scenes import Split
from visurf_ray.tasks.task import Task

# The question of the drawn tasks that are answered with boxes and points, as the base model has learnt it.
FIND_PROMPT = "Find {query}. Reason in <think>, then answer in <answer> with a JSON list of bbox_2d and point_2d."

_HELD_OUT_ABSENT = 0.5  # share of the held-out questions that ask for something absent


@dataclass(frozen=True)
class Drawing:
    """A picture, a question about it, the solution in the form of the task's family, and reasoning that leads to it."""

    image: Image.Image
    problem: str
    solution: str
    thinking: str | None = None


class DrawnTask(Task):
    """`train` and `held_out` are numbers of rows. `absent_share` is null where every question has something to find.

    The first base of a task; the second says how answers of its family are written and scored.
    """

    @abstractmethod
    def draw(self, rng: np.random.Generator, split: Split, absent: bool) -> Drawing:
        """One row. absent: nothing in the picture is what the question asks for."""

    def train_rows(self) -> list[Row]:
        share = self.config.absent_share
        if share is not None and not 0 <= share <= 1:
            raise UserError(f"task.absent_share={share} must lie between 0 and 1")
        return self._rows("train", self._count("train"), share, self.seed)

    def held_out_rows(self) -> list[Row]:
        """The same for every seed, to be compared; half of the questions for what is absent, if any are."""
        share = None if self.config.absent_share is None else _HELD_OUT_ABSENT
        return self._rows("test", self._count("held_out"), share, 0)

    def _count(self, key: str) -> int:
        value = str(getattr(self.config, key))
        if not value.isdecimal() or int(value) < 1:
            raise UserError(f"task.{key}={value} must be a number of pictures to draw, 1 at least")
        return int(value)

    def _rows(self, split: Split, count: int, absent_share: float | None, seed: int) -> list[Row]:
        """Exactly `absent_share` of the rows ask for what is absent."""
        rng = np.random.default_rng((seed, {"train": 0, "validation": 1, "test": 2}[split]))
        absent = rng.permutation(count) < round((absent_share or 0.0) * count)
        rows = []
        for number in range(count):
            drawing = self.draw(rng, split, bool(absent[number]))
            name = f"{split}-{number}"
            where = f"{self.config.name}, scene {name}"
            rows.append(Row(name, drawing.problem, drawing.solution, drawing.image, where, drawing.thinking))
        return rows
