"""Visual-RFT's reward for detection (arXiv 2503.01785; Liuziyu77/Visual-RFT, grpo.py).

Three parts of at most 1 each: iou, confidence, format. The answer lists `{'Position': [x1, y1, x2, y2], 'Confidence':
c}`, in thousandths of the image's width and height; "No Objects" and `[]` mean that there are none. As in the original,
one item without a box or a confidence invalidates the whole answer. In the part
confidence, a mean over the boxes, a miss with confidence c earns 1 - c. A surplus box thus lowers the part iou, but the
part confidence only if 1 - c is below its mean over the other boxes. Unlike in the original, whose bugs are fixed here:

- Only boxes are compared. In the original, math-verify finds equal numbers in answer and ground truth (for example the
  y1 of a box), and disjoint boxes then earn the maximum.
- If there are no objects, "No Objects" or `[]` earns full iou and confidence (the original: 0), unless `credit_empty`
  is False.
- The answer may contain line breaks.
- The answer is the last one after the thinking, not the first anywhere.
- A truncated list keeps its complete items, also after thinking and without a closing tag.
- A confidence below 0 or above 1 earns nothing; in the original, -0.5 on a miss earns 1.
- White space around the response does not cost the format.
- A second thought or a second answer costs the format.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from visurf_ray.answers.boxes import Box, ious
from visurf_ray.answers.responses import has_thinking
from visurf_ray.answers.visual_rft import Detection, answered_detections, parse_boxes
from visurf_ray.rewards.reward import Reward


@dataclass(frozen=True)
class VisualRftDetectionReward:
    """Scores a list of boxes with confidences.

    Attributes:
        credit_empty: Whether "No Objects" or `[]` earns full iou and confidence if there are no objects.
        iou_threshold: A box is a hit if its IoU with the true box that it is matched with is above this; see `match`.
    """

    thinking_parts: ClassVar[tuple[str, ...]] = ("format",)
    solved: ClassVar[dict[str, float]] = {"iou": 0.5}  # mean over boxes; a false or a missing box counts 0
    most: ClassVar[dict[str, float]] = {"iou": 1.0, "confidence": 1.0, "format": 1.0}
    credit_empty: bool = True
    iou_threshold: float = 0.5

    def __call__(self, response: str, ground_truth: str) -> Reward:
        """Score one response. Raises ValueError if the ground truth is neither a list of boxes nor "No Objects"."""
        truth = parse_boxes(ground_truth)
        given = answered_detections(response)
        if self.credit_empty and given == [] and not truth:
            iou = confidence = 1.0
        else:
            hits = match(given or [], truth, self.iou_threshold)
            iou, confidence = iou_reward(hits, len(truth)), confidence_reward(hits)
        return Reward({"iou": iou, "confidence": confidence, "format": float(has_thinking(response))})


def match(given: Sequence[Detection], truth: Sequence[Box], threshold: float = 0.5) -> list[tuple[float, float]]:
    """Match detections to true boxes.

    In order of falling confidence, each detection takes the true box with the highest IoU among those that are not yet
    taken, if that IoU is above the threshold.

    Returns:
        (IoU, confidence) of each detection in that order; the IoU of a miss is 0.
    """
    ranked = sorted(given, key=lambda detection: -detection[1])
    ious_NM = ious([box for box, _ in ranked], truth)
    hits = []
    for ious_M, (_, confidence) in zip(ious_NM, ranked, strict=True):
        best = float(ious_M.max(initial=0.0))
        if best > threshold:
            ious_NM[:, ious_M.argmax()] = 0  # taken
        hits.append((best if best > threshold else 0.0, confidence))
    return hits


def iou_reward(hits: Sequence[tuple[float, float]], true: int) -> float:
    """Return the sum of the IoUs over the larger of the numbers of detections and of true boxes, `true`."""
    return sum(iou for iou, _ in hits) / max(len(hits), true, 1)


def confidence_reward(hits: Sequence[tuple[float, float]]) -> float:
    """Return the mean over the detections of c for a hit, 1 - c for a miss, and 0 if c is not between 0 and 1."""
    earned = [confidence if iou else 1 - confidence for iou, confidence in hits if 0 <= confidence <= 1]
    return sum(earned) / max(len(hits), 1)
