"""Reward for mathematical answers (ViSurf §5.4: format and accuracy; dvlab-research/Seg-Zero, math.py and r1v.py).

Two parts of at most 1 each. accuracy: 1 when the content of the last `\\boxed{}`, or else of `<answer>`, equals the
ground truth; another content of `\\boxed{}` earns `boxed_credit`. thinking_format: `<think>…</think>`, then the answer.
Where the originals have bugs, this does the right thing:

- The answer after the thinking counts, and of several the last one (r1v: the first). It may hold line breaks.
- It scores alike on every thread: math-verify's own time limit is a signal, and raises off the main thread. There it is
  off, and whoever calls sets the limit, as the pool of reward actors does.
- White space around the response does not cost the format.

math-verify decides what is equal, so that `\\frac{2}{4}` equals `\\frac{1}{2}` and 2.0 equals 2, other than with the
original's mathruler. Words are compared as words: to a parser of formulas "No" is a product.
"""

import re
import threading
from dataclasses import dataclass

from math_verify import parse, verify

from visurf_ray.rewards.reward import Reward
from visurf_ray.tasks.boxes import answer_text, has_thinking

_BOXED = "\\boxed{"
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_WORD = re.compile(r"[^\W\d_]{2,}")
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # "３" to "3"
_LONGEST = 500  # characters of a formula: parsing takes seconds from here on
_SECONDS = 5  # for each of math-verify's calls: comparing with 9^{9^9} has no end


@dataclass(frozen=True)
class MathReward:
    """boxed_credit: accuracy of a wrong answer in `\\boxed{}`, for its form."""

    boxed_credit: float = 0.1

    def __call__(self, response: str, ground_truth: str) -> Reward:
        """Score one response. Raises ValueError when the ground truth is empty."""
        truth, _ = find_answer(ground_truth)
        truth = (ground_truth if truth is None else truth).strip()
        if not truth:
            raise ValueError("is empty: it must be a formula, a number or a word")
        given, boxed = find_answer(response)
        right = given is not None and equal(given, truth)
        accuracy = 1.0 if right else self.boxed_credit if boxed else 0.0
        return Reward({"accuracy": accuracy, "thinking_format": float(_thinks(response))})


def find_answer(response: str) -> tuple[str | None, bool]:
    """The answer, None when there is none, and whether it is boxed.

    It is the last box after the thinking, or what stands in `<answer>`, or else a box in the thinking.
    """
    boxed = last_boxed(response.rpartition("</think>")[2])
    if boxed is None:
        answer = answer_text(response)
        if answer is not None:
            return answer, False
        boxed = last_boxed(response)
    return boxed, boxed is not None


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{}`, or None when there is none or it is not closed."""
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    depth = 1
    for position in range(start + len(_BOXED), len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return text[start + len(_BOXED) : position]
    return None


def equal(given: str, truth: str) -> bool:
    """Whether two formulas, numbers or words are the same."""
    given, truth = _plain(given), _plain(truth)
    if given.lower() == truth.lower():
        return True
    if not given or max(len(given), len(truth)) > _LONGEST or _WORD.fullmatch(truth):
        return False
    limit = _SECONDS if threading.current_thread() is threading.main_thread() else None
    left, right = (parse(f"${text}$", parsing_timeout=limit) for text in (truth, given))  # type: ignore[arg-type]
    return verify(left, right, timeout_seconds=limit)


def _plain(text: str) -> str:
    """Without what changes nothing: wide digits, wrappers of text, dollars, escaped percent signs, spaces."""
    text = _WRAPPER.sub(r"\1", text.translate(_WIDE))
    text = text.replace("$", "").replace("\\%", "%").replace("\\!", "").replace("\\,", "")
    return " ".join(text.split()).strip(" .")


def _thinks(response: str) -> bool:
    thought, end, rest = response.strip().rpartition("</think>")
    in_box = "<answer>" not in rest and last_boxed(rest) is not None
    return has_thinking(response) or (bool(end) and thought.startswith("<think>") and in_box)
