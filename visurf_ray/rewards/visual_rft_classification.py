"""Visual-RFT's reward for classification (arXiv 2503.01785; Liuziyu77/Visual-RFT, grpo_classification.py).

Two parts of 1 each: accuracy and format. An answer is right if it contains the class's name or is contained in it;
case, white space and underscores do not matter. Unlike in the original, whose bugs are fixed here:

- An empty answer is wrong; in the original it is contained in every name.
- Answers are compared as text only. In the original, math-verify finds "Cessna 172" equal to "Robin 172", and accepts
  numbers that occur in the thinking only.
- The answer is the last one after the thinking, not the first anywhere; the thinking is not searched for the name.
- White space around the response does not cost the format.
- A second thought or a second answer costs the format.
"""

from typing import ClassVar

from visurf_ray.answers.responses import answer_or_rest, has_thinking
from visurf_ray.answers.visual_rft import parse_true_name, plain_name
from visurf_ray.rewards.reward import Reward


class VisualRftClassificationReward:
    """The ground truth is the class's name, with or without `<answer>` tags."""

    thinking_parts = ("format",)
    solved: ClassVar[dict[str, float]] = {"accuracy": 1.0}
    most: ClassVar[dict[str, float]] = {"accuracy": 1.0, "format": 1.0}

    def __call__(self, response: str, ground_truth: str) -> Reward:
        """Score one response. Raises ValueError if the ground truth is empty."""
        given, truth = plain_name(answer_or_rest(response)), parse_true_name(ground_truth)
        right = bool(given) and (given in truth or truth in given)
        return Reward({"accuracy": float(right), "format": float(has_thinking(response))})
