"""Answers that are formulas, numbers, words or choices: finding them in a response, and comparing two of them.

math-verify compares formulas and numbers: `\\frac{2}{4}` equals `\\frac{1}{2}`, and 2.0 equals 2. Words are compared as
text, because a parser of formulas reads "No" as a product.
"""

import json
import re
import threading
from dataclasses import asdict, dataclass

from math_verify import parse, verify

from visurf_ray.answers.responses import answer_text, has_thinking, rest

_BOXED = "\\boxed{"
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_WORDS = re.compile(r"(?=.*[^\W\d_]{2})[^\W\d_]+([ '-][^\W\d_]+)*")  # words, at least one of two letters
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # "３" to "3"
_LONGEST = 500  # characters; parsing a longer formula takes seconds
_SECONDS = 5  # limit of each math-verify call: comparing with 9^{9^9} never ends
_LETTER = re.compile(r"\(?([A-Z])(?:\)|[.:](?=\s)|$)", re.IGNORECASE)  # in "B", "(B)", "B. 12", "B) 12", "B: 12"


@dataclass(frozen=True)
class Truth:
    """The right answer to a question.

    Attributes:
        answer: A formula, a number or a word, or one of `choices`.
        choices: The texts of the choices A, B, …; empty for a free answer.
        precision: Decimal places to which numbers are rounded before they are compared; None compares them exactly.
    """

    answer: str
    choices: tuple[str, ...] = ()
    precision: int | None = None

    @property
    def letter(self) -> str | None:
        """The letter of the right choice, or None if there are no choices."""
        return chr(ord("A") + self.choices.index(self.answer)) if self.choices else None

    def dump(self) -> str:
        """Return the JSON that `parse` reads."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def parse(ground_truth: str) -> "Truth":
        """Parse a ground truth: the JSON of `dump`, or else the answer itself, bare or in `\\boxed{}` or `<answer>`.

        Raises:
            ValueError: The answer is empty, or a list of several answers.
        """
        try:
            value = json.loads(ground_truth)
        except ValueError:
            value = None
        if isinstance(value, dict) and "answer" in value:
            truth = Truth(str(value["answer"]), tuple(value.get("choices") or ()), value.get("precision"))
        else:
            if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
                raise ValueError("is a list of answers, but must be one answer")
            answer, _ = find_answer(ground_truth)
            truth = Truth((ground_truth if answer is None else answer).strip())
        if not truth.answer:
            raise ValueError("is empty: it must be a formula, a number or a word")
        return truth

    def matches(self, given: str) -> bool:
        """Return whether an answer is right.

        A choice may be given by its letter, its letter and text, or its text. If the answer begins with a choice's
        letter, as in "(B)" or "B. 12", the letter alone decides; a letter beyond the last choice is read as text.
        Without choices, a number is also right if it equals the true one after both are rounded to `precision`.
        """
        if self.choices:
            letter = _LETTER.match(_plain(given))
            place = ord(letter[1].upper()) - ord("A") if letter else len(self.choices)
            if place < len(self.choices):
                return self.choices[place] == self.answer
            same = {choice for choice in self.choices if _plain(choice).lower() == _plain(given).lower()}
            alike = same or {choice for choice in self.choices if equal(given, choice)}
            return alike == {self.answer}  # an answer that equals several choices is wrong
        rounded = self._rounded(self.answer)
        return equal(given, self.answer) or (rounded is not None and self._rounded(given) == rounded)

    def _rounded(self, text: str) -> float | None:
        try:
            return None if self.precision is None else round(float(_plain(text)), self.precision)
        except (ValueError, OverflowError):
            return None


def find_answer(response: str) -> tuple[str | None, bool]:
    """Find the answer of a response.

    It is the last `\\boxed{}` after the thinking. Without one, it is the text of `<answer>`. Without either, it is the
    last `\\boxed{}` in the thinking.

    Returns:
        The answer, or None if there is none, and whether it was in `\\boxed{}`.
    """
    boxed = last_boxed(rest(response))
    if boxed is None:
        answer = answer_text(response)
        if answer is not None:
            return answer, False
        boxed = last_boxed(response)
    return boxed, boxed is not None


def last_boxed(text: str) -> str | None:
    """Return the content of the last `\\boxed{}`, or None if there is none or its brace is not closed."""
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
    """Return whether two formulas, numbers or words are equal.

    On the main thread math-verify stops after a few seconds and the result is False. On other threads it has no time
    limit, because it sets the limit by a signal.
    """
    given, truth = _plain(given), _plain(truth)
    if given.lower() == truth.lower():
        return True
    if not given or max(len(given), len(truth)) > _LONGEST or _WORDS.fullmatch(truth):
        return False
    limit = _SECONDS if threading.current_thread() is threading.main_thread() else 0  # 0: no limit
    left, right = (parse(f"${text}$", parsing_timeout=limit) for text in (truth, given))
    return verify(left, right, timeout_seconds=limit)


def _plain(text: str) -> str:
    """Return the text without notation that does not change its value.

    Full-width digits become ASCII; text wrappers, dollar signs, LaTeX spaces and the final full stop are removed.
    """
    text = _WRAPPER.sub(r"\1", text.translate(_WIDE))
    text = text.replace("$", "").replace("\\%", "%").replace("\\!", "").replace("\\,", "")
    return " ".join(text.split()).rstrip(" .")


def thinks_first(response: str) -> bool:
    """Return whether the response is `<think>…</think>` and then the answer in `<answer>` or `\\boxed{}`."""
    thought, end, answer = response.strip().rpartition("</think>")
    in_box = "<answer>" not in answer and last_boxed(answer) is not None
    return has_thinking(response) or (bool(end) and thought.startswith("<think>") and in_box)
