"""Visual-RFT's reward for reasoning grounding on LISA (arXiv 2503.01785; Liuziyu77/Visual-RFT, grpo_lisa.py).

Two parts: giou, which is the boxes' generalized IoU plus 1, so 0 to 2, and format, 0 or 1. The answer is one box
`(x1,y1),(x2,y2)` of integers in thousandths of the image's width and height. Unlike in the original, whose bugs are
fixed here:

- A box with swapped corners earns giou 0 (the original sorts the corners, and the box can earn the maximum).
- An answer with two boxes earns giou 0 (the original makes one box of corners of both).
- Only boxes are compared (the original gives 1 if math-verify finds equal numbers).
- The answer is the last one after the thinking, not the first anywhere, and may contain line breaks.
- White space around the response does not cost the format.
- A second thought or a second answer costs the format.
"""

from typing import ClassVar

from visurf_ray.answers.boxes import Box
from visurf_ray.answers.responses import answer_or_rest, has_thinking
from visurf_ray.answers.visual_rft import parse_box, parse_true_box
from visurf_ray.rewards.reward import Reward


class VisualRftGroundingReward:
    """The ground truth is one box, with or without `<answer>` tags."""

    thinking_parts = ("format",)
    solved: ClassVar[dict[str, float]] = {"giou": 1.5}  # a generalized IoU of 0.5
    most: ClassVar[dict[str, float]] = {"giou": 2.0, "format": 1.0}

    def __call__(self, response: str, ground_truth: str) -> Reward:
        """Score one response. Raises ValueError if the ground truth is not one box."""
        truth = parse_true_box(ground_truth)
        given = parse_box(answer_or_rest(response))
        score = 0.0 if given is None else giou(given, truth) + 1
        return Reward({"giou": score, "format": float(has_thinking(response))})


def giou(a: Box, b: Box) -> float:
    """Return the generalized IoU (arXiv 1902.09630), -1 to 1, of two boxes with an area."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(0, width) * max(0, height)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - intersection
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return intersection / union - (hull - union) / hull
