"""What every task is: rows of a data set, a question, a ground truth, how it is written as a response, the metrics."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from visurf_ray.answers.boxes import Box
from visurf_ray.answers.responses import STYLES
from visurf_ray.config.schema import TaskConfig
from visurf_ray.data.rows import Row, read_rows
from visurf_ray.errors import DataError
from visurf_ray.groups import Example, Metrics, Prediction
from visurf_ray.names import nearest


class Task(ABC):
    """Tasks differ in how their data lie on the disk (`read`), what is asked, and what an answer is."""

    styles: Sequence[str] = tuple(STYLES)  # in which `render` can write
    segments = False  # whether an answer can be made a mask
    asks_for_absent = False  # whether task.absent_share says how many questions are for what is not there
    prompts: ClassVar[dict[str, str]]  # by the names of task.prompt; {query} is the row's problem

    def __init__(self, config: TaskConfig, seed: int) -> None:
        """Raises DataError for a task.prompt that the task does not have."""
        self.config = config
        self.seed = seed
        if config.prompt not in self.prompts:
            names = ", ".join(self.prompts)
            hint = nearest(config.prompt, self.prompts)
            raise DataError(f"task.prompt={config.prompt}: {config.name} has {names}.{hint}")
        if config.segmenter and not self.segments:
            raise DataError(f"task.segmenter={config.segmenter}: {config.name} has no masks, set it to null")
        if config.absent_share is not None and not self.asks_for_absent:
            raise DataError(f"task.absent_share={config.absent_share}: {config.name} cannot choose, set it to null")

    def train_rows(self) -> list[Row]:
        """Raises DataError for data that cannot be read."""
        return self._read("train")

    def held_out_rows(self) -> list[Row]:
        """Raises DataError for data that cannot be read."""
        return self._read("held_out")

    def _read(self, key: str) -> list[Row]:
        source = self.source(key)
        try:
            return self.read(source)
        except DataError as error:
            raise DataError(f"task.{key}: {error}") from error

    def source(self, key: str) -> str:
        """What task.train or task.held_out names. Raises DataError where it is not set."""
        source = getattr(self.config, key)
        if source is None:
            raise DataError(f"task.{key} is not set: name a data file or a Hugging Face data set")
        if not isinstance(source, str) or not source:
            raise DataError(f"task.{key}={source}: name a data file, a folder or a Hugging Face data set")
        return source

    def read(self, source: str) -> list[Row]:
        """The rows of a data set in the task's layout. Raises DataError."""
        return read_rows(source, self.config.image_root)

    def question(self, row: Row) -> str:
        return self.prompts[self.config.prompt].format(query=row.problem)

    @abstractmethod
    def check(self, row: Row) -> None:
        """Raise DataError that names the row when its image or ground truth is unusable."""

    def ground_truth(self, row: Row, scale_x: float, scale_y: float) -> str:
        """The row's solution, in pixels of the image that the model sees: the stored one's times the scales."""
        return row.solution

    @abstractmethod
    def render(self, example: Example, style: str) -> str:
        """The ground truth as a response in a named style, with the reasoning that the data carry, if any."""

    def boxes(self, text: str, size: tuple[int, int]) -> list[Box]:
        """The boxes that a response gives, to be drawn in an image of that width and height."""
        return []

    def true_boxes(self, example: Example) -> list[Box] | None:
        """None where no answer is about boxes."""
        return None

    @abstractmethod
    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Scores of greedy answers to the held-out examples; a metric without examples is left out."""
