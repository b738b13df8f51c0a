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

from visurf_ray.answers.boxes import Target, box_in, ious, parse_click, parse_items, parse_targets, point_in
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
    most: ClassVar[dict[str, float]] = {
        "thinking_format": 1.0,
        "answer_format": 2.0,
        "accuracy": 3.0,
        "non_repeat": 1.0,
    }
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
        given = [(box, point_in(item) or (math.inf, math.inf)) for item in items or [] if (box := box_in(item))]
        if not given or not truth:
            return 0.0
        boxes_N14, points_N12 = (np.array(each, np.float64)[:, None] for each in zip(*given, strict=True))
        true_M4 = np.array([target.bbox_2d for target in truth], np.float64)
        true_points_M2 = np.array([target.point_2d for target in truth], np.float64)
        inside_N1 = ((boxes_N14[..., :2] <= points_N12) & (points_N12 <= boxes_N14[..., 2:])).all(-1)
        scores = (
            (ious(boxes_N14, true_M4, edge=1) > 0.5).astype(np.float64)
            + (np.abs(boxes_N14 - true_M4).mean(-1) < self.box_distance)
            + (inside_N1 & (np.hypot(*np.moveaxis(points_N12 - true_points_M2, -1, 0)) < self.point_distance))
        )
        rows, columns = linear_sum_assignment(-scores)
        return float(scores[rows, columns].sum()) / max(len(items or []), len(truth))


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
