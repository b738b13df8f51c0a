"""VisionReasoner's reward for lists of boxes and points (arXiv 2505.12081; dvlab-research/Seg-Zero).

Four parts, nominal maximum 7: thinking_format 1, answer_format 2, accuracy 3, non_repeat 1. Where the original has
bugs, this does the right thing:

- `[]` against an empty ground truth earns full answer format and accuracy (the original: 0 for both), unless
  `credit_empty` is False.
- White space around the response does not cost the thinking format.
- The answer is the last one after the thinking, not the first anywhere.
- An item without a point loses the point's credit alone, not the accuracy of every item.
- Coordinates must be numbers for the format to count.
- Every surplus item lowers the accuracy, not those among the first 120 alone.
- The repetition check reads what stands outside the answer; a decimal point does not end a sentence there, line breaks
  and "。" do.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from visurf_ray.answers.boxes import Target, numbers, parse_items, parse_targets
from visurf_ray.answers.responses import has_thinking
from visurf_ray.rewards.reward import Reward

_SENTENCE_END = re.compile(r"\.(?!\d)|[。\n]")
_ANSWER = re.compile(r"<answer>.*?</answer>", re.DOTALL)


@dataclass(frozen=True)
class VisionReasonerReward:
    """box_distance, point_distance: in pixels of the image that the model sees; the original's are for 840×840."""

    credit_empty: bool = True
    box_distance: float = 10.0
    point_distance: float = 30.0

    def __call__(self, response: str, ground_truth: str) -> Reward:
        """Score one response. Raises ValueError when the ground truth is not a JSON list of boxes and points."""
        truth = parse_targets(ground_truth)
        items = parse_items(response)
        empty = self.credit_empty and items == [] and not truth
        return Reward(
            {
                "thinking_format": float(has_thinking(response)),
                "answer_format": 2.0 if empty else answer_format(items),
                "accuracy": 3.0 if empty else self._accuracy(items, truth),
                "non_repeat": _non_repeat(response),
            }
        )

    def _accuracy(self, items: list[Any] | None, truth: Sequence[Target]) -> float:
        """Hungarian matching on IoU > 0.5, box distance and point distance; the sum over the longer list's length."""
        given = [
            (numbers(i.get("bbox_2d"), 4), numbers(i.get("point_2d"), 2)) for i in items or [] if isinstance(i, dict)
        ]
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


def pixel_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """IoU of two boxes (x1, y1, x2, y2) whose corners are pixels that belong to them, as in the original."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    intersection = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    union = sum(areas) - intersection
    return intersection / union if union > 0 else 0.0


def answer_format(items: list[Any] | None) -> float:
    """Mean over the items of 1 for a box of four numbers and 1 for a point of two."""
    if not items:
        return 0.0
    credits = [
        (numbers(item.get("bbox_2d"), 4) is not None) + (numbers(item.get("point_2d"), 2) is not None)
        for item in items
        if isinstance(item, dict)
    ]
    return sum(credits) / len(items)


def _non_repeat(response: str) -> float:
    """1, or 0 from the second sentence on that has been said before."""
    sentences = [text for part in _SENTENCE_END.split(_ANSWER.sub("", response)) if (text := part.strip())]
    return float(len(sentences) - len(set(sentences)) < 2)
