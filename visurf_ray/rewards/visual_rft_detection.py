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

import json
from collections.abc import Sequence
from dataclasses import dataclass

from visurf_ray.rewards.answers import answer_or_rest
from visurf_ray.rewards.reward import Reward
from visurf_ray.tasks.boxes import answer_text, has_thinking, numbers

Box = tuple[float, ...]
Detection = tuple[Box, float]  # and its confidence


@dataclass(frozen=True)
class VisualRftDetectionReward:
    """iou_threshold: a box hits when its IoU is above it."""

    credit_empty: bool = True
    iou_threshold: float = 0.5

    def __call__(self, response: str, ground_truth: str) -> Reward:
        """Score one response. Raises ValueError when the ground truth is no list of boxes and not "No Objects"."""
        truth = parse_truth(ground_truth)
        given = parse_detections(_answer(response))
        if self.credit_empty and given == [] and not truth:
            iou = confidence = 1.0
        else:
            hits = match(given or [], truth, self.iou_threshold)
            iou, confidence = iou_reward(hits, len(truth)), confidence_reward(hits)
        return Reward({"iou": iou, "confidence": confidence, "format": float(has_thinking(response))})


def parse_detections(text: str) -> list[Detection] | None:
    """The boxes of an answer, each once, or None when it is no list of boxes with confidences."""
    items = _parse_list(text)
    if items is None:
        return None
    found: dict[Box, float] = {}
    for item in items:
        box = numbers(item.get("Position"), 4) if isinstance(item, dict) else None
        confidence = numbers([item.get("Confidence")], 1) if isinstance(item, dict) else None
        if box is None or confidence is None:
            return None
        found.setdefault(box, confidence[0])
    return list(found.items())


def parse_truth(ground_truth: str) -> list[Box]:
    """The ground truth's boxes, with or without `<answer>` tags. Raises ValueError that says what is wrong."""
    items = _parse_list(answer_or_rest(ground_truth))
    if items is None:
        raise ValueError(f"must be a list of boxes or 'No Objects', not {ground_truth[:80]!r}")
    boxes = [numbers(item.get("Position"), 4) if isinstance(item, dict) else None for item in items]
    if None in boxes:
        raise ValueError(f"item {boxes.index(None)} needs Position with 4 numbers: {ground_truth[:80]!r}")
    return boxes  # type: ignore[return-value]


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


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """IoU of two boxes (x1, y1, x2, y2) on a continuous plane; a box whose corners are swapped covers nothing."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def _answer(response: str) -> str:
    """The answer; of one that was cut, what there is; without tags the whole response, as in the original."""
    answer = answer_text(response)
    if answer is None:
        _, tag, cut = response.rpartition("</think>")[2].rpartition("<answer>")
        answer = cut if tag else response
    return answer.strip()


def _parse_list(text: str) -> list | None:
    """A list in JSON or with single quotes, in one pair of brackets or two; None when there is none."""
    if text.lower() == "no objects":
        return []
    if text.startswith("[") and not text.endswith("]"):
        text = text[: text.rfind("}") + 1] + "]"  # up to the last complete item
    text = text.replace("'", '"').replace("[[", "[").replace("]]", "]")
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):  # the latter for "[[[[…"
        return None
    return items if isinstance(items, list) else None
