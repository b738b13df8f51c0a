"""Tasks whose answer is a list of boxes and points, or an empty list if the image holds no target object."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from visurf_ray.answers.boxes import (
    Box,
    Target,
    answered_boxes,
    are_shares,
    canonical,
    check_targets,
    dump_truth,
    ordered,
    parse_targets,
    render,
)
from visurf_ray.answers.responses import STYLES
from visurf_ray.answers.rle import Rle, parse_masks
from visurf_ray.data.mask_rows import mask_rows
from visurf_ray.data.rows import Row, rows_of
from visurf_ray.data.tables import Table, load_tables
from visurf_ray.errors import BoxError, DataError
from visurf_ray.groups import Example, Metrics, Prediction
from visurf_ray.scoring.metrics import all_found, score_boxes
from visurf_ray.tasks.task import Task

# Tells the form of the answer. Part of prompts that are formatted, so braces are doubled.
AS_LIST = (
    "Then answer between <answer> and </answer> with a JSON list of each object's box and a point on it, {unit}, "
    'such as [{{"bbox_2d": [12, 40, 96, 180], "point_2d": [50, 112]}}, '
    '{{"bbox_2d": [210, 35, 300, 170], "point_2d": [251, 99]}}].'
)


class BoxTask(Task):
    """The solution is a JSON list of `{"bbox_2d": [x1, y1, x2, y2], "point_2d": [x, y]}`, pixels of the stored image.

    Without a point the centre of the box is taken. The image is that which viewers show: its EXIF orientation counts.

    If the data have masks, it is `{"objects": [the list], "mask": RLE, "ignore": RLE}`, where `ignore` is optional: its
    pixels do not count when masks are compared. Masks have the size of the stored image and are not scaled with the
    objects.

    Attributes:
        one_object: Whether a mask is one object; otherwise each of its connected parts is one.
    """

    styles = tuple(STYLES)
    segments = True
    pooled = frozenset({"ciou"})
    one_object = False
    solutions: tuple[type, ...] = (str, list, dict)
    prompts: ClassVar[dict[str, str]] = {
        "detailed": (
            'Locate every object that "{query}" refers to. Reason first, between <think> and </think>: look for '
            f"candidates, tell them apart, keep those that fit best. {AS_LIST} Answer [] if the image shows no such "
            "object."
        ),
        "plain": "{query}",
    }

    def read(self, source: str) -> list[Row]:
        """Read a table of VisionReasoner's training data (see `rows_of`) or evaluation data (see `data.mask_rows`)."""
        tables = load_tables(source, outside=self.config.outside_paths)
        return [row for table in tables for row in self._of_table(table)]

    def _of_table(self, table: Table) -> list[Row]:
        outside = self.config.outside_paths
        if "mask" in table.columns and "solution" not in table.columns:
            return mask_rows(table, self.config.image_root, one_object=self.one_object, outside=outside)
        return rows_of(table, self.config.image_root, solutions=self.solutions, outside=outside)

    def check(self, row: Row) -> None:
        width, height = row.open_image().size
        try:
            targets = self.targets(row)
            if are_shares([value for target in targets for value in target.bbox_2d]):
                raise ValueError(f"has coordinates between 0 and 1, but they must be in {self.unit}")
            for name, value in self.masks(row).items():
                if value["size"] != [height, width]:
                    raise ValueError(f"has a {name} of [H, W] = {value['size']}, but the image is {width}×{height}")
        except ValueError as error:
            raise DataError(f"{row.where}: the solution {error}") from error
        try:
            check_targets(targets, width, height)
        except ValueError as error:
            raise BoxError(f"{row.where}: the solution {error}") from error

    def repaired(self, row: Row) -> Row:
        width, height = row.open_image().size
        targets = [
            Target(
                ordered(target.bbox_2d, width, height),
                (min(max(target.point_2d[0], 0), width), min(max(target.point_2d[1], 0), height)),
            )
            for target in self.targets(row)
        ]
        return replace(row, solution=dump_truth(targets, **self.masks(row)))

    def largest_coordinate(self, row: Row) -> float | None:
        if row.mask is not None:
            return None
        return max((value for target in self.targets(row) for value in target.bbox_2d), default=None)

    def targets(self, row: Row) -> list[Target]:
        """Return the row's objects, in pixels of the stored image. Raises ValueError if they are malformed."""
        return parse_targets(canonical(row.solution))

    def masks(self, row: Row) -> dict[str, Rle]:
        """Return the row's `mask` and `ignore` mask, if it has them. Raises ValueError if they are malformed."""
        return parse_masks(canonical(row.solution))

    def ground_truth(self, row: Row, scale_x: float, scale_y: float) -> str:
        targets = [_scale(target, scale_x, scale_y) for target in self.targets(row)]
        return dump_truth(targets, **self.masks(row))

    def render(self, example: Example, style: str) -> str:
        return render(parse_targets(example.ground_truth), style, example.thinking)

    def boxes(self, text: str, size: tuple[int, int]) -> list[Box]:
        return answered_boxes(text) or []

    def true_boxes(self, example: Example) -> list[Box] | None:
        return [target.bbox_2d for target in parse_targets(example.ground_truth)]

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        return score_boxes(predictions)

    def correct(self, prediction: Prediction) -> bool:
        """Return whether the answer has each true box once, at an IoU above 0.5, and no other.

        An empty ground truth has the right answer `[]`.
        """
        return all_found(prediction)


def _scale(target: Target, x: float, y: float) -> Target:
    """Return the scaled target in whole pixels, rounded half up as in VisionReasoner's data preparation."""
    x1, y1, x2, y2 = target.bbox_2d
    px, py = target.point_2d
    (left, right), (top, bottom) = _side(x1 * x, x2 * x), _side(y1 * y, y2 * y)
    return replace(
        target,
        bbox_2d=(left, top, right, bottom),
        point_2d=(int(px * x + 0.5), int(py * y + 0.5)),
    )


def _side(low: float, high: float) -> tuple[int, int]:
    """Return both ends of a box's side, rounded half up, at least one pixel apart, and within the image."""
    first, last = int(low + 0.5), int(high + 0.5)
    if first < last:
        return first, last
    return (first - 1, last) if first else (0, 1)
