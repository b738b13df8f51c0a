"""Reward for mathematical answers (ViSurf §5.4: format and accuracy; dvlab-research/Seg-Zero, math.py and r1v.py).

Two parts of at most 1 each. accuracy is 1 if the answer equals the ground truth, else `boxed_credit` for an answer in
`\\boxed{}` and 0 for any other. thinking_format is 1 for `<think>…</think>` followed by the answer. Unlike in the
originals, whose bugs are fixed here:

- The answer is the last one after the thinking (r1v: the first anywhere). It may contain line breaks.
- The score does not depend on the thread, and takes half a second of processor time at most (see `answers.values`).
- A second thought or a second answer costs the format.
- White space around the response does not cost the format.
- Answers are compared by value and unit, not by mathruler (see `answers.formulas`).
"""

from dataclasses import dataclass
from typing import ClassVar

from visurf_ray.answers.formulas import Truth, find_answer, thinks_first
from visurf_ray.rewards.reward import Reward


@dataclass(frozen=True)
class MathReward:
    """Scores the answer in `\\boxed{}` or `<answer>` (see `answers.formulas.find_answer`).

    Attributes:
        boxed_credit: The accuracy of a wrong answer in `\\boxed{}`, which rewards its form.
    """

    thinking_parts: ClassVar[tuple[str, ...]] = ("thinking_format",)
    solved: ClassVar[dict[str, float]] = {"accuracy": 1.0}
    most: ClassVar[dict[str, float]] = {"accuracy": 1.0, "thinking_format": 1.0}
    boxed_credit: float = 0.1

    def __call__(self, response: str, ground_truth: str) -> Reward:
        """Score one response.

        Args:
            response: The response.
            ground_truth: The answer, or JSON with choices and precision as the task `math` writes it.

        Raises:
            ValueError: The ground truth is empty or a list of answers.
        """
        truth = Truth.parse(ground_truth)
        given, boxed = find_answer(response)
        right = given is not None and truth.matches(given)
        accuracy = 1.0 if right else self.boxed_credit if boxed else 0.0
        return Reward({"accuracy": accuracy, "thinking_format": float(thinks_first(response))})
