"""Tasks that draw their rows. The same seed draws the same rows, and no scan of a digit is in two splits."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from PIL import Image

from visurf_ray.data.rows import Row
from visurf_ray.errors import UserError
from visurf_ray.miniature.scenes import Split
from visurf_ray.tasks.task import Task

# The prompt of the drawn tasks whose answer is boxes and points. The base model has been trained on it.
FIND_PROMPT = "Find {query}. Reason in <think>, then answer in <answer> with a JSON list of bbox_2d and point_2d."

_HELD_OUT_ABSENT = 0.5  # share of the held-out questions that ask for something absent, unless absent_share is None


@dataclass(frozen=True)
class Drawing:
    """A picture, a question, the solution in the form that the task's base class reads, and optional reasoning."""

    image: Image.Image
    problem: str
    solution: str
    thinking: str | None = None


class DrawnTask(Task):
    """A task whose rows are drawn.

    Concrete tasks inherit from this class first, and second from the task whose answers they share. `task.train` and
    `task.held_out` are numbers of rows. `task.absent_share` is the share of the training rows that ask for something
    absent; if it is null, no row does, held-out ones neither.
    """

    @abstractmethod
    def draw(self, rng: np.random.Generator, split: Split, absent: bool) -> Drawing:
        """Draw one row.

        Args:
            rng: The random numbers.
            split: The split to take scans from.
            absent: Whether to ask for something that is not in the picture.
        """

    def train_rows(self) -> list[Row]:
        """Draw the training rows from the task's seed. Raises UserError for a setting that is out of range."""
        share = self.config.absent_share
        if share is not None and not 0 <= share <= 1:
            raise UserError(f"task.absent_share={share} must lie between 0 and 1")
        return self._rows("train", self._count("train"), share, self.seed)

    def held_out_rows(self) -> list[Row]:
        """Draw the held-out rows, the same for every seed.

        Half of them ask for something absent, also with an absent_share of 0; none does if it is null.

        Raises UserError for a setting that is out of range.
        """
        share = None if self.config.absent_share is None else _HELD_OUT_ABSENT
        return self._rows("test", self._count("held_out"), share, 0)

    def _count(self, key: str) -> int:
        value = str(getattr(self.config, key))
        if not value.isdecimal() or int(value) < 1:
            raise UserError(f"task.{key}={value} must be the number of pictures to draw, at least 1")
        return int(value)

    def _rows(self, split: Split, count: int, absent_share: float | None, seed: int) -> list[Row]:
        """Draw `count` rows. Exactly the share `absent_share` of them, rounded, asks for absent objects."""
        rng = np.random.default_rng((seed, {"train": 0, "validation": 1, "test": 2}[split]))
        absent = rng.permutation(count) < round((absent_share or 0.0) * count)
        rows = []
        for number in range(count):
            drawing = self.draw(rng, split, bool(absent[number]))
            name = f"{split}-{number}"
            where = f"{self.config.name}, scene {name}"
            rows.append(Row(name, drawing.problem, drawing.solution, (drawing.image,), where, drawing.thinking))
        return rows
