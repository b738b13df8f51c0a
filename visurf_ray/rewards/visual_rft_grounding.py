"""Visual-RFT's reward for reasoning grounding on LISA (arXiv 2503.01785; Liuziyu77/Visual-RFT, grpo_lisa.py).

Two parts: giou, which is the boxes' generalized IoU + 1 and thus 0 to 2, and format, 0 or 1. The answer is one box
`(x1,y1),(x2,y2)` of integers in thousandths of the image's sides. Where the original has bugs, this does the right
thing:

- Swapped corners are no box and earn 0 (the original sorted them: full marks).
- An answer of two boxes earns 0 (the original made one box of corners of both).
- Boxes are compared, nothing else: the original gave 1 where math-verify found equal numbers.
- The answer is the last one after the thinking, not the first anywhere, and may hold line breaks.
- White space around the response does not cost the format.
"""

import re

from visurf_ray.rewards.answers import answer_or_rest
from visurf_ray.rewards.reward import Reward
from visurf_ray.tasks.boxes import has_thinking

_CORNER = r"\(\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\)"
_BOX = re.compile(rf"{_CORNER}\s*,\s*{_CORNER}")

Corners = tuple[int, int, int, int]


class VisualRftGroundingReward:
    """The ground truth is one box, with or without `<answer>` tags."""

    def __call__(self, response: str, ground_truth: str) -> Reward:
        """Score one response. Raises ValueError when the ground truth is not one box."""
        truth = parse_box(answer_or_rest(ground_truth))
        if truth is None:
            raise ValueError(f"must be one box (x1,y1),(x2,y2) of integers, not {ground_truth[:80]!r}")
        given = parse_box(answer_or_rest(response))
        score = 0.0 if given is None else giou(given, truth) + 1
        return Reward({"giou": score, "format": float(has_thinking(response))})


def parse_box(text: str) -> Corners | None:
    """The one box (x1, y1, x2, y2) in a text, or None when there is none, are several, or its corners are swapped."""
    boxes = _BOX.findall(text)
    if len(boxes) != 1 or len(re.findall(_CORNER, text)) != 2:
        return None
    x1, y1, x2, y2 = (int(number) for number in boxes[0])
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def giou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Generalized IoU (arXiv 1902.09630) of two boxes that have an area, -1 to 1."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(0, width) * max(0, height)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - intersection
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return intersection / union - (hull - union) / hull
