"""Grounding: find what a text refers to, as a list of boxes and points; the empty list when nothing is meant."""

from collections.abc import Sequence
from dataclasses import replace

from omegaconf import OmegaConf

from visurf_ray.config import TaskConfig
from visurf_ray.groups import Example, Metrics, Prediction
from visurf_ray.tasks.boxes import PROMPT, STYLES, Target, check_targets, dump_targets, parse_targets, render
from visurf_ray.tasks.metrics import answered_boxes, score_boxes
from visurf_ray.tasks.rows import DataError, Row, read_rows


class GroundingTask:
    """Data in the columns problem, solution and image; boxes in pixels of the stored image."""

    styles = tuple(STYLES)

    def __init__(self, config: TaskConfig, seed: int) -> None:
        self.config = config
        self.seed = seed

    def train_rows(self) -> list[Row]:
        """Raises DataError for data that cannot be read."""
        return self._read("train")

    def held_out_rows(self) -> list[Row]:
        """Raises DataError for data that cannot be read."""
        return self._read("held_out")

    def _read(self, key: str) -> list[Row]:
        if OmegaConf.is_missing(self.config, key):
            raise DataError(f"task.{key} is not set: name a data file or a Hugging Face data set")
        try:
            return read_rows(getattr(self.config, key), self.config.image_root)
        except DataError as error:
            raise DataError(f"task.{key}: {error}") from error

    def question(self, row: Row) -> str:
        return PROMPT.format(query=row.problem)

    def check(self, row: Row) -> None:
        """Raise DataError that names the row when its image or ground truth is unusable."""
        width, height = row.open_image().size
        try:
            check_targets(parse_targets(row.solution), width, height)
        except ValueError as error:
            raise DataError(f"{row.where}: the solution {error}") from error

    def ground_truth(self, row: Row, scale_x: float, scale_y: float) -> str:
        """The row's solution in pixels of the resized image that the model sees."""
        return dump_targets([_scale(target, scale_x, scale_y) for target in parse_targets(row.solution)])

    def render(self, example: Example, style: str) -> str:
        """The ground truth as a response in a named style, with the reasoning that the data carry, if any."""
        return render(parse_targets(example.ground_truth), style, example.thinking)

    def boxes(self, text: str) -> list[tuple[float, ...]]:
        """The boxes that a response gives, to be drawn."""
        return answered_boxes(text) or []

    def true_boxes(self, example: Example) -> list[tuple[float, ...]]:
        return [target.bbox_2d for target in parse_targets(example.ground_truth)]

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        return score_boxes([(prediction.response, prediction.example.ground_truth) for prediction in predictions])


def _scale(target: Target, x: float, y: float) -> Target:
    """Rounded half up, as VisionReasoner's data preparation does."""
    if x == y == 1.0:
        return target
    x1, y1, x2, y2 = target.bbox_2d
    px, py = target.point_2d
    return replace(
        target,
        bbox_2d=(int(x1 * x + 0.5), int(y1 * y + 0.5), int(x2 * x + 0.5), int(y2 * y + 0.5)),
        point_2d=(int(px * x + 0.5), int(py * y + 0.5)),
    )
