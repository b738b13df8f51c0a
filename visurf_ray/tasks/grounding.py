"""Reasoning grounding as in Visual-RFT (arXiv 2503.01785), on LISA's images: the answer is one box."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from visurf_ray.answers.boxes import Box, ordered
from visurf_ray.answers.responses import STYLES, answer_or_rest, answer_text, has_thinking, respond
from visurf_ray.answers.visual_rft import (
    SIDE,
    box_iou,
    check_inside,
    find_corners,
    in_pixels,
    parse_box,
    parse_true_box,
)
from visurf_ray.data.rows import Row
from visurf_ray.errors import BoxError, DataError
from visurf_ray.groups import Coordinates, Example, Metrics, Prediction
from visurf_ray.tasks.task import Task, check_plain


class GroundingTask(Task):
    """The solution is `<answer>(x1,y1),(x2,y2)</answer>`: integers, in thousandths of the image's width and height.

    The tags may be missing.
    """

    unit = "thousandths of the image's width and height"
    compared = Coordinates.thousandths
    data_tell_unit = True  # Visual-RFT's do
    styles = tuple(STYLES)
    prompts: ClassVar[dict[str, str]] = {
        "detailed": (
            "{query}\nReason first, between <think> and </think>: work out which one object is meant. Then answer "
            "between <answer> and </answer> with the upper left and the lower right corner of its box, such as "
            "(112, 40), (396, 980), {unit}."
        ),
        "plain": "{query}",
    }

    def check(self, row: Row) -> None:
        check_plain(row, dict, list)
        corners = find_corners(answer_or_rest(row.solution))
        try:
            if corners:
                check_inside(corners)
        except ValueError as error:
            raise BoxError(f"{row.where}: the solution {error}") from error
        try:
            parse_true_box(row.solution)
        except ValueError as error:
            raise DataError(f"{row.where}: the solution {error}") from error

    def repaired(self, row: Row) -> Row:
        corners = find_corners(answer_or_rest(row.solution))
        if corners is None:
            return row
        x1, y1, x2, y2 = ordered(corners, SIDE, SIDE)
        return replace(row, solution=f"({x1},{y1}),({x2},{y2})")

    def largest_coordinate(self, row: Row) -> float | None:
        return max(parse_true_box(row.solution))

    def render(self, example: Example, style: str) -> str:
        x1, y1, x2, y2 = parse_true_box(example.ground_truth)
        separator, _ = STYLES[style]
        return respond(f"({x1}{separator}{y1}){separator}({x2}{separator}{y2})", example.thinking)

    def boxes(self, text: str, size: tuple[int, int]) -> list[Box]:
        box = parse_box(answer_or_rest(text))
        return [] if box is None else [in_pixels(box, size)]

    def true_boxes(self, example: Example) -> list[Box]:
        return [in_pixels(parse_true_box(example.ground_truth), example.size)]

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        return score_single_boxes(predictions)

    def correct(self, prediction: Prediction) -> bool:
        """Return whether the answer counts in acc50."""
        return score_single_boxes([prediction])["acc50"] == 1


def score_single_boxes(predictions: Sequence[Prediction]) -> Metrics:
    """Return the metrics of answers that are one box, or none without predictions.

    - iou: mean IoU; an answer that is not exactly one box has IoU 0. As in the reward visual_rft_grounding, the answer
      may lack its tags.
    - acc50: share of answers with an IoU above 0.5.
    - format_rate: share of responses with exactly one box in `<answer>` tags.
    - thinking_rate: share of responses with reasoning before the answer.
    """
    rows = []
    for prediction in predictions:
        true, given = parse_true_box(prediction.ground_truth), parse_box(answer_or_rest(prediction.response))
        iou = 0.0 if given is None else box_iou(given, true)
        formatted = given is not None and answer_text(prediction.response) is not None
        rows.append((iou, iou > 0.5, formatted, has_thinking(prediction.response)))
    names = ("iou", "acc50", "format_rate", "thinking_rate")
    return {name: float(np.mean(values)) for name, values in zip(names, zip(*rows, strict=True), strict=False)}
