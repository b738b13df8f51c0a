"""Visual-RFT's reward for detection (arXiv 2503.01785; Liuziyu77/Visual-RFT, grpo.py).

Three parts of at most 1 each: iou, confidence, format. The answer lists `{'Position': [x1, y1, x2, y2], 'Confidence':
c}`, in thousandths of the image's sides; "No Objects" and `[]` say that there are none. As in the original, one item
that lacks a box or a confidence makes the whole answer worthless, and the confidence of a miss earns 1 - c, so that
surplus boxes of little confidence lower the part iou and not the part confidence. Where the original has bugs, this
does the right thing:

- Boxes are compared, nothing else: math-verify found equal numbers in answers and ground truths (for instance a box's
  y1), and the original then gave full marks for disjoint boxes.
- "No Objects" or `[]` earns full marks where there are none (the original: 0), unless `credit_empty` is False.
- The answer may hold line breaks.
- The answer is the last one after the thinking, not the first anywhere.
- A list that was cut keeps its complete items, after a thinking too and without a closing tag.
- A confidence below 0 or above 1 earns nothing; the original gave 1 for -0.5 on a miss.
- White space around the response does not cost the format.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from visurf_ray.answers.boxes import Box
from visurf_ray.answers.responses import has_thinking
from visurf_ray.answers.visual_rft import Detection, answered_detections, box_iou, parse_boxes
from visurf_ray.rewards.reward import Reward


@dataclass(frozen=True)
class VisualRftDetectionReward:
    """iou_threshold: a box hits when its IoU is above it."""

    credit_empty: bool = True
    iou_threshold: float = 0.5

    def __call__(self, response: str, ground_truth: str) -> Reward:
        """Score one response. Raises ValueError when the ground truth is no list of boxes and not "No Objects"."""
        truth = parse_boxes(ground_truth)
        given = answered_detections(response)
        if self.credit_empty and given == [] and not truth:
            iou = confidence = 1.0
        else:
            hits = match(given or [], truth, self.iou_threshold)
            iou, confidence = iou_reward(hits, len(truth)), confidence_reward(hits)
        return Reward({"iou": iou, "confidence": confidence, "format": float(has_thinking(response))})


def match(given: Sequence[Detection], truth: Sequence[Box], threshold: float = 0.5) -> list[tuple[float, float]]:
    """(IoU, confidence) of each box, the most confident first: each takes the free true box that fits it best.

    The IoU is 0 for a miss: no free box has an IoU above the threshold.
    """
    free = list(truth)
    hits = []
    for box, confidence in sorted(given, key=lambda detection: -detection[1]):
        ious = [box_iou(box, other) for other in free]
        best = max(ious, default=0.0)
        if best > threshold:
            free.pop(ious.index(best))
        hits.append((best if best > threshold else 0.0, confidence))
    return hits


def iou_reward(hits: Sequence[tuple[float, float]], true: int) -> float:
    """The sum of the IoUs over the number of given or of `true` boxes, whichever are more."""
    return sum(iou for iou, _ in hits) / max(len(hits), true, 1)


def confidence_reward(hits: Sequence[tuple[float, float]]) -> float:
    """Mean over the given boxes: c for a hit, 1 - c for a miss; nothing for what is no confidence."""
    earned = [confidence if iou else 1 - confidence for iou, confidence in hits if 0 <= confidence <= 1]
    return sum(earned) / max(len(hits), 1)
