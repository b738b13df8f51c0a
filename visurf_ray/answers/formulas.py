"""Answers that are formulas, numbers, words or choices: how they are found in a response, and when two are the same.

math-verify decides what is equal, so that `\\frac{2}{4}` equals `\\frac{1}{2}` and 2.0 equals 2. Words are compared as
words: to a parser of formulas "No" is a product.
"""

import json
import re
import threading
from dataclasses import asdict, dataclass

from math_verify import parse, verify

from visurf_ray.answers.responses import answer_text, has_thinking, rest

_BOXED = "\\boxed{"
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_WORDS = re.compile(r"(?=.*[^\W\d_]{2})[^\W\d_]+([ '-][^\W\d_]+)*")  # one of them at least of two letters
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # "３" to "3"
_LONGEST = 500  # characters of a formula: parsing takes seconds from here on
_SECONDS = 5  # for each of math-verify's calls: comparing with 9^{9^9} has no end
_LETTER = re.compile(r"\(?([A-Z])(?:\)|[.:](?=\s)|$)", re.IGNORECASE)  # of "B", "(B)", "B. 12", "B) 12", "B: 12"


@dataclass(frozen=True)
class Truth:
    """What the right answer is.

    choices: the texts of A, B, …; `answer` is then one of them. precision: decimal places that numbers are compared to.
    """

    answer: str
    choices: tuple[str, ...] = ()
    precision: int | None = None

    @property
    def letter(self) -> str | None:
        """The right choice's letter; None where there are no choices."""
        return chr(ord("A") + self.choices.index(self.answer)) if self.choices else None

    def dump(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def parse(ground_truth: str) -> "Truth":
        """What `dump` wrote; any other text is the answer itself, in `\\boxed{}` or `<answer>` or bare.

        Raises ValueError when the answer is empty.
        """
        try:
            value = json.loads(ground_truth)
        except ValueError:
            value = None
        if isinstance(value, dict) and "answer" in value:
            truth = Truth(str(value["answer"]), tuple(value.get("choices") or ()), value.get("precision"))
        else:
            if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
                raise ValueError("is a list of answers, and must be one")
            answer, _ = find_answer(ground_truth)
            truth = Truth((ground_truth if answer is None else answer).strip())
        if not truth.answer:
            raise ValueError("is empty: it must be a formula, a number or a word")
        return truth

    def matches(self, given: str) -> bool:
        """Whether an answer is right: for a choice its letter, its letter and text, or its text; a letter goes first.

        A letter beyond the last choice is a text. Numbers that are equal after rounding to `precision` are equal.
        """
        if self.choices:
            letter = _LETTER.match(_plain(given))
            place = ord(letter[1].upper()) - ord("A") if letter else len(self.choices)
            if place < len(self.choices):
                return self.choices[place] == self.answer
            same = {choice for choice in self.choices if _plain(choice).lower() == _plain(given).lower()}
            alike = same or {choice for choice in self.choices if equal(given, choice)}
            return alike == {self.answer}  # what may be another choice as well is none
        rounded = self._rounded(self.answer)
        return equal(given, self.answer) or (rounded is not None and self._rounded(given) == rounded)

    def _rounded(self, text: str) -> float | None:
        try:
            return None if self.precision is None else round(float(_plain(text)), self.precision)
        except (ValueError, OverflowError):
            return None


def find_answer(response: str) -> tuple[str | None, bool]:
    """The answer, None when there is none, and whether it is boxed.

    It is the last box after the thinking, or what stands in `<answer>`, or else a box in the thinking.
    """
    boxed = last_boxed(rest(response))
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
    if not given or max(len(given), len(truth)) > _LONGEST or _WORDS.fullmatch(truth):
        return False
    limit = _SECONDS if threading.current_thread() is threading.main_thread() else None
    left, right = (parse(f"${text}$", parsing_timeout=limit) for text in (truth, given))  # type: ignore[arg-type]
    return verify(left, right, timeout_seconds=limit)


def _plain(text: str) -> str:
    """Without what changes nothing: wide digits, wrappers of text, dollars, escaped percent signs, spaces."""
    text = _WRAPPER.sub(r"\1", text.translate(_WIDE))
    text = text.replace("$", "").replace("\\%", "%").replace("\\!", "").replace("\\,", "")
    return " ".join(text.split()).rstrip(" .")


def thinks_first(response: str) -> bool:
    """Whether the response is `<think>…</think>`, then the answer in `<answer>` or in a box."""
    thought, end, answer = response.strip().rpartition("</think>")
    in_box = "<answer>" not in answer and last_boxed(answer) is not None
    return has_thinking(response) or (bool(end) and thought.startswith("<think>") and in_box)
