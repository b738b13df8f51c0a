"""Reward for mathematical answers (ViSurf §5.4: format and accuracy; dvlab-research/Seg-Zero, math.py and r1v.py).

Two parts of at most 1 each. accuracy: 1 when the content of the last `\\boxed{}`, or else of `<answer>`, equals the
ground truth; another content of `\\boxed{}` earns `boxed_credit`. thinking_format: `<think>…</think>`, then the answer.
Where the originals have bugs, this does the right thing:

- The answer after the thinking counts, and of several the last one (r1v: the first). It may hold line breaks.
- It scores alike on every thread: math-verify's own time limit is a signal, and raises off the main thread. There it is
  off, and whoever calls sets the limit, as the pool of reward actors does.
- White space around the response does not cost the format.
- What is equal is decided by math-verify, not by mathruler; see answers/formulas.py.
"""

from dataclasses import dataclass

from visurf_ray.answers.formulas import Truth, find_answer, thinks_first
from visurf_ray.rewards.reward import Reward


@dataclass(frozen=True)
class MathReward:
    """boxed_credit: accuracy of a wrong answer in `\\boxed{}`, for its form.

    The ground truth is the answer; or JSON that gives it beside choices and a precision, as the task `math` writes it.
    """

    boxed_credit: float = 0.1

    def __call__(self, response: str, ground_truth: str) -> Reward:
        """Score one response. Raises ValueError when the ground truth is empty."""
        truth = Truth.parse(ground_truth)
        given, boxed = find_answer(response)
        right = given is not None and truth.matches(given)
        accuracy = 1.0 if right else self.boxed_credit if boxed else 0.0
        return Reward({"accuracy": accuracy, "thinking_format": float(thinks_first(response))})
