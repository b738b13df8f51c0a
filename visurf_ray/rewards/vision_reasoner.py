"""VisionReasoner's reward for lists of boxes and points (arXiv 2505.12081; dvlab-research/Seg-Zero).

Four parts: thinking_format up to 1, answer_format up to 2, accuracy up to 3, non_repeat up to 1. Unlike in the
original, whose bugs are fixed here:

- `[]` for an empty ground truth earns full answer_format and accuracy (the original: 0 for both), unless `credit_empty`
  is False.
- White space around the response does not cost thinking_format.
- A second thought or a second answer costs thinking_format.
- The answer is the last one after the thinking, not the first anywhere.
- An item without a point loses the credit for its point only; in the original it makes every item lose its accuracy.
- Only coordinates that are numbers count for answer_format.
- Every surplus item lowers the accuracy, not only those among the first 120.
- A ground truth may be a point alone (see `answers.boxes.Click`). Then each item with a point earns full answer_format,
  and the accuracy is 3 if a point is close to the true one, over the number of items.
- The repetition check reads the text outside the answer. There, a decimal point does not end a sentence; line breaks
  and "。" do.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import linear_sum_assignment

from visurf_ray.answers.boxes import Box, Target, box_in, parse_click, parse_items, parse_targets, point_in
from visurf_ray.answers.responses import has_thinking
from visurf_ray.rewards.reward import Reward

_SENTENCE_END = re.compile(r"\.(?!\d)|[。\n]")
_ANSWER = re.compile(r"<answer>.*?</answer>", re.DOTALL)


@dataclass(frozen=True)
class VisionReasonerReward:
    """Scores a list of boxes and points.

    Attributes:
        credit_empty: Whether `[]` earns full answer_format and accuracy for an empty ground truth.
        box_distance: A matched box earns a point if the mean absolute difference of its coordinates from the true ones
            is below this, in pixels of the image that the model sees. The original's value is for images of 840×840.
        point_distance: A matched point earns a point if it lies in its own box and is closer than this to the true one,
            in the same pixels.
    """

    thinking_parts: ClassVar[tuple[str, ...]] = ("thinking_format",)
    solved: ClassVar[dict[str, float]] = {"accuracy": 3.0}
    credit_empty: bool = True
    box_distance: float = 10.0
    point_distance: float = 30.0

    def __call__(self, response: str, ground_truth: str) -> Reward:
        """Score one response. Raises ValueError if the ground truth is not a JSON list of boxes and points."""
        items = parse_items(response)
        if click := parse_click(ground_truth):
            points = [point for item in items or [] if (point := point_in(item))]
            count = max(1, len(items or []))
            return self._reward(response, 2.0 * len(points) / count, 3.0 * click.hit(points) / count)
        truth = parse_targets(ground_truth)
        empty = self.credit_empty and items == [] and not truth
        if empty:
            return self._reward(response, 2.0, 3.0)
        return self._reward(response, answer_format(items), self._accuracy(items, truth))

    @staticmethod
    def _reward(response: str, answer_format: float, accuracy: float) -> Reward:
        return Reward(
            {
                "thinking_format": float(has_thinking(response)),
                "answer_format": answer_format,
                "accuracy": accuracy,
                "non_repeat": _non_repeat(response),
            }
        )

    def _accuracy(self, items: list[object] | None, truth: Sequence[Target]) -> float:
        """Return the total score of the best matching of items to objects, over the length of the longer list.

        A pair scores 1 for an IoU above 0.5, 1 for a close box and 1 for a close point.
        """
        given = [(box_in(item), point_in(item)) for item in items or [] if isinstance(item, dict)]
        if not given or not truth:
            return 0.0
        scores = np.zeros((len(given), len(truth)))
        for row, (box, point) in enumerate(given):
            if box is None:
                continue
            inside = point is not None and box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]
            for column, target in enumerate(truth):
                near = inside and math.dist(point or (), target.point_2d) < self.point_distance
                scores[row, column] = (
                    (pixel_iou(box, target.bbox_2d) > 0.5)
                    + (float(np.abs(np.subtract(box, target.bbox_2d)).mean()) < self.box_distance)
                    + near
                )
        rows, columns = linear_sum_assignment(-scores)
        return float(scores[rows, columns].sum()) / max(len(items or []), len(truth))


def pixel_iou(a: Box, b: Box) -> float:
    """Return the IoU of two boxes (x1, y1, x2, y2) to which the corner pixels belong, as in the original."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    intersection = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    union = sum(areas) - intersection
    return intersection / union if union > 0 else 0.0


def answer_format(items: list[object] | None) -> float:
    """Return the mean over the items of 1 for a box of four numbers plus 1 for a point of two, or 0 without items."""
    if not items:
        return 0.0
    return sum((box_in(item) is not None) + (point_in(item) is not None) for item in items) / len(items)


def _non_repeat(response: str) -> float:
    """Return 1, or 0 if at least two sentences repeat earlier ones."""
    before, closing, after = response.rpartition("</answer>")  # `after` has no answer to search for
    sentences = [
        text for part in _SENTENCE_END.split(_ANSWER.sub("", before + closing) + after) if (text := part.strip())
    ]
    return float(len(sentences) - len(set(sentences)) < 2)
