"""Tasks that are answered with a list of boxes and points; the empty list when nothing is meant."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from visurf_ray.groups import Example, Metrics, Prediction
from visurf_ray.tasks.boxes import Target, check_targets, dump_targets, parse_targets, render
from visurf_ray.tasks.metrics import answered_boxes, score_boxes
from visurf_ray.tasks.rows import DataError, Row
from visurf_ray.tasks.task import Box, Task


class BoxTask(Task):
    """The solution is a JSON list of `{"bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]}`.

    Pixels of the stored image.
    """

    prompts: ClassVar[dict[str, str]] = {
        "detailed": (
            'Locate every object that "{query}" refers to. Reason first, between <think> and </think>: look for '
            "candidates, tell them apart, keep those that fit best. Then answer between <answer> and </answer> with a "
            "JSON list of each object's box and a point on it, in pixels, such as "
            '[{{"bbox_2d": [12, 40, 96, 180], "point_2d": [50, 112]}}, '
            '{{"bbox_2d": [210, 35, 300, 170], "point_2d": [251, 99]}}]. Answer [] if the image shows no such object.'
        ),
        "plain": "{query}",
    }

    def check(self, row: Row) -> None:
        width, height = row.open_image().size
        try:
            check_targets(parse_targets(row.solution), width, height)
        except ValueError as error:
            raise DataError(f"{row.where}: the solution {error}") from error

    def ground_truth(self, row: Row, scale_x: float, scale_y: float) -> str:
        return dump_targets([_scale(target, scale_x, scale_y) for target in parse_targets(row.solution)])

    def render(self, example: Example, style: str) -> str:
        return render(parse_targets(example.ground_truth), style, example.thinking)

    def boxes(self, text: str, size: tuple[int, int]) -> list[Box]:
        return answered_boxes(text) or []

    def true_boxes(self, example: Example) -> list[Box]:
        return [target.bbox_2d for target in parse_targets(example.ground_truth)]

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        return score_boxes([(prediction.response, prediction.ground_truth) for prediction in predictions])


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
