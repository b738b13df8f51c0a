"""Reward for the whole name of a class. Two parts of 1 each, as in Visual-RFT's reward: accuracy and format.

Visual-RFT's reward accepts a part of the name. If the classes are single words, a policy can exploit that by answering
with a letter that occurs in most of them.
"""

from typing import ClassVar

from visurf_ray.answers.responses import answer_or_rest, has_thinking
from visurf_ray.answers.visual_rft import parse_true_name, plain_name
from visurf_ray.rewards.reward import Reward


class ClassNameReward:
    """The ground truth is the class's name, with or without `<answer>` tags."""

    thinking_parts = ("format",)
    solved: ClassVar[dict[str, float]] = {"accuracy": 1.0}
    most: ClassVar[dict[str, float]] = {"accuracy": 1.0, "format": 1.0}

    def __call__(self, response: str, ground_truth: str) -> Reward:
        """Score one response. Raises ValueError if the ground truth is empty."""
        right = plain_name(answer_or_rest(response)) == parse_true_name(ground_truth)
        return Reward({"accuracy": float(right), "format": float(has_thinking(response))})
