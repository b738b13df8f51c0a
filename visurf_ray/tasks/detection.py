"""Detection as in Visual-RFT (arXiv 2503.01785): the answer lists all objects of a category with confidences."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from visurf_ray.answers.boxes import Box, are_shares, ordered
from visurf_ray.answers.responses import STYLES, answer_text, has_thinking, respond
from visurf_ray.answers.visual_rft import SIDE, answered_detections, check_inside, in_pixels, parse_boxes
from visurf_ray.data.rows import Row
from visurf_ray.errors import BoxError, DataError
from visurf_ray.groups import Coordinates, Example, Metrics, Prediction
from visurf_ray.scoring.average_precision import average_precision
from visurf_ray.tasks.task import Task

# An apostrophe within a word is not a quotation mark.
_QUOTED = re.compile(r"""(?<!\w)(['"])(.+?)\1(?!\w)""")


class DetectionTask(Task):
    """The solution is `<answer>[{'Position': [x1, y1, x2, y2], 'Confidence': 1}, …]</answer>`, or "No Objects".

    The tags may be missing. Corners are in thousandths of the image's width and height.
    """

    solutions = (str, list)
    pooled = frozenset({"map", "map50", "ap50_agnostic"})
    unit = "thousandths of the image's width and height"
    compared = Coordinates.thousandths
    data_tell_unit = True  # Visual-RFT's do
    styles = (*STYLES, "quoted")  # "quoted": {'Position': …}, as Visual-RFT's prompts ask for it
    prompts: ClassVar[dict[str, str]] = {
        "detailed": (
            'Find all objects of the category "{category}" in the image. Reason first, between <think> and </think>. '
            "Then answer between <answer> and </answer> with a JSON list of each object's corners and of how sure you "
            "are of it, such as "
            '[{{"Position": [112, 40, 396, 980], "Confidence": 0.95}}, '
            '{{"Position": [510, 35, 700, 170], "Confidence": 0.40}}]. '
            "Position is [x1, y1, x2, y2] {unit}. "
            "Confidence lies between 0 and 1 and has two decimals. Answer No Objects if there is none."
        ),
        "plain": "{query}",
    }

    def question(self, row: Row) -> str:
        return self.asked(query=self.query(row), category=asked_category(row.problem))

    def check(self, row: Row) -> None:
        try:
            boxes = parse_boxes(row.solution)
            if are_shares([value for box in boxes for value in box]):
                raise ValueError(f"has coordinates between 0 and 1, but they must be in {self.unit}")
        except ValueError as error:
            raise DataError(f"{row.where}: the solution {error}") from error
        try:
            for number, box in enumerate(boxes):
                check_inside(box, f"item {number}")
        except ValueError as error:
            raise BoxError(f"{row.where}: the solution {error}") from error

    def repaired(self, row: Row) -> Row:
        boxes = [ordered(box, SIDE, SIDE) for box in parse_boxes(row.solution)]
        return replace(row, solution=json.dumps([{"Position": list(box), "Confidence": 1} for box in boxes]))

    def largest_coordinate(self, row: Row) -> float | None:
        return max((value for box in parse_boxes(row.solution) for value in box), default=None)

    def render(self, example: Example, style: str) -> str:
        """Return the label, with whole numbers, rounded half up, and confidence 1 for every box."""
        items = [
            {"Position": [int(value + 0.5) for value in box], "Confidence": 1.0}
            for box in parse_boxes(example.ground_truth)
        ]
        text = json.dumps(items, separators=STYLES["spaced" if style == "quoted" else style])
        if style == "quoted":
            text = text.replace('"', "'")
        return respond(text if items else "No Objects", example.thinking)

    def boxes(self, text: str, size: tuple[int, int]) -> list[Box]:
        return [in_pixels(box, size) for box, _ in answered_detections(text) or []]

    def true_boxes(self, example: Example) -> list[Box]:
        return [in_pixels(box, example.size) for box in parse_boxes(example.ground_truth)]

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        return score_detections(predictions)

    def values(self, prediction: Prediction) -> Metrics:
        return _shares(prediction)


def asked_category(question: str) -> str:
    """Return the text in the question's first pair of quotation marks, as in Visual-RFT's, or else the question."""
    quoted = _QUOTED.search(question)
    return quoted[2] if quoted else question.strip()


def score_detections(predictions: Sequence[Prediction]) -> Metrics:
    """Return the metrics of answers that are detections. A metric without examples is left out.

    - map, map50: COCO's AP over IoU 0.50 to 0.95, and at IoU 0.50; means over the categories that the questions ask for
      (see `asked_category`). Each prediction counts as one image in which only its category is annotated. As in COCO, a
      category without a true box has no AP, so boxes answered for it do not lower the mean.
    - ap50_agnostic: AP at IoU 0.50 with all boxes in one category. Here such boxes do lower it; prefer it if questions
      are free text, because then almost every question is a category.
    - n_acc: of images without objects, the share answered "No Objects" or `[]`.
    - empty_rate: of images with objects, the share answered so.
    - format_rate: share of responses with a list of boxes with confidences, or "No Objects", in `<answer>` tags.
    - thinking_rate: share of responses with reasoning before the answer.

    As in the reward visual_rft_detection, one item without a box or a confidence invalidates the whole answer, and the
    answer may lack its tags.
    """
    values: dict[str, list[float]] = defaultdict(list)
    images = []
    for prediction in predictions:
        true, given = parse_boxes(prediction.ground_truth), answered_detections(prediction.response)
        images.append((asked_category(prediction.question), given or [], true))
        for name, value in _shares(prediction).items():
            values[name].append(value)
    scores = {name: float(np.mean(shares)) for name, shares in values.items()}
    if by_category := average_precision(images):
        scores["map"], scores["map50"] = by_category
    if pooled := average_precision([("object", given, true) for _, given, true in images]):
        scores["ap50_agnostic"] = pooled[1]
    return scores


def _shares(prediction: Prediction) -> Metrics:
    """Return what an answer adds to the shares of `score_detections`."""
    given = answered_detections(prediction.response)
    return {
        "empty_rate" if parse_boxes(prediction.ground_truth) else "n_acc": float(given == []),
        "format_rate": float(given is not None and answer_text(prediction.response) is not None),
        "thinking_rate": float(has_thinking(prediction.response)),
    }
