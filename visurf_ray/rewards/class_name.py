"""The name of a class, whole: two parts of 1 each, accuracy and format, as Visual-RFT's reward for classification has.

There a part of the name is enough. Where classes are single words, a policy can learn from that to answer with a letter
that most of them hold.
"""

from visurf_ray.answers.responses import answer_or_rest, has_thinking
from visurf_ray.answers.visual_rft import parse_true_name, plain_name
from visurf_ray.rewards.reward import Reward


class ClassNameReward:
    """The ground truth is the class's name, with or without `<answer>` tags."""

    def __call__(self, response: str, ground_truth: str) -> Reward:
        """Score one response. Raises ValueError when the ground truth is empty."""
        right = plain_name(answer_or_rest(response)) == parse_true_name(ground_truth)
        return Reward({"accuracy": float(right), "format": float(has_thinking(response))})
