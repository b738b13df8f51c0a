"""Answers that are formulas, numbers, words or choices: finding them in a response, and comparing two of them.

They are marked as a careful person marks them: 2/4 equals `\\frac{1}{2}`, 5 km equals 5000 m but not 5 kg, and "B. 12"
answers both "B" and "12". Words are compared as text, because a parser of formulas reads "No" as a product.
"""

import json
import re
from dataclasses import asdict, dataclass

from sympy import Integer

from visurf_ray.answers import units
from visurf_ray.answers.responses import answer_text, has_thinking, one_thought, rest
from visurf_ray.answers.values import same_value, within_limit

_BOXED = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # the braces of \{ and \} are text
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathsf|operatorname|mbox)\{([^{}]*)\}")
_WORDS = re.compile(r"(?=.*[^\W\d_]{2})[^\W\d_]+([ '-][^\W\d_]+)*")  # words, at least one of two letters
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # "３" to "3"
_RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_LARGE = {
    name: f" \\cdot 10^{power}"
    for name, power in {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}.items()
}
_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_UNITS += " seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMERALS = {word: str(number) for number, word in enumerate(_UNITS.split())}
_NUMERALS |= {word: f"{number}0" for number, word in enumerate(_TENS.split(), start=2)}
_NUMERALS |= {"noon": "12:00 pm", "midnight": "12:00 am"}
_LONGEST = 500  # characters; parsing a longer formula takes seconds

# Notation, and what is written for it. In this order.
_NOTATION = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:,|;|:| |quad\b|qquad\b|thinspace\b)|~|\u00a0|\u202f|\u2009", " "),
        (r"\\!|\{\}|\\left(?![a-z])|\\right(?![a-z])|\\(?:display|text)style\b", ""),
        (r"^\s*(?:=|≈|\\approx(?![a-z]))", ""),
        (r"\\%", "%"),
        (r"\^\s*\{?\s*\\(?:circ|degree)(?![a-z])\s*\}?|\\(?:degree|textdegree)(?![a-z])|º|˚", "°"),
        (r"°\s*([CF])\b", r"°\1"),
        (r"[−–—]", "-"),
        (r"÷", "/"),
        (r"⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: "^" + found[0].translate(_RAISED)),
        (r"½", r" \\frac{1}{2}"),
        (r"¼", r" \\frac{1}{4}"),
        (r"¾", r" \\frac{3}{4}"),
        (r"⅓", r" \\frac{1}{3}"),
        (r"⅔", r" \\frac{2}{3}"),
        (r"[tc]frac(?=\W|\d)", "frac"),
        (r"∞", r"\\infty "),
        (r"∅|\\varnothing\b", r"\\emptyset "),
        (r"(?<=\d)\s*[·⋅∙×]\s*(?=\d)", r" \\cdot "),
        (r"(?<=\d) ?(hundred|thousand|million|billion|trillion)\b", lambda found: _LARGE[found[1]]),
        (r"≤", r"\\le "),
        (r"≥", r"\\ge "),
        (r"≠", r"\\ne "),
        (r"\*\*|\s*\^\s*", "^"),
        (r"\^(-?\d+)", r"^{\1}"),  # "10^-3" and "10^12", which LaTeX would read as 10^{1}2
        (r"\\?√|(?<![A-Za-z\\])sqrt(?![A-Za-z])", r"\\sqrt"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}"),
        (r"π|(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (r"(?<![\d.,])(\d{1,3}(?: \d{3})+)(?![\d.]*\d)", lambda found: found[1].replace(" ", "")),
        (r"(\d)\s*[eE]\s*([+-]?)\s*(\d+)(?![\w.])", r"\1 \\cdot 10^{\2\3}"),
        (r"(?<![\d./])(\d+)(?: | ?- ?(?=\d+/\d+ [^\W\d]))(\d+)/(\d+)(?![\d/.])", r"(\1+\2/\3)"),  # "1 1/2"
        (r"\s+(?:and|or)\s+", ", "),
    )
]
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_CLOCK = re.compile(r"(\d{1,2})(?::(\d{2}))?(?::(\d{2}))?\s*(?:([ap])\.?\s?m\b\.?|o'?clock)?", re.IGNORECASE)
_OPTION = re.compile(  # "B", "(B)", "B. 12", "B) 12", "B: 12", "Option B"
    r"(?:(?:the )?(?:correct |final )?(?:answer|option|choice)(?: is)?:? )?"
    r"(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])(?:[.):]|(?= ?[-–—] )|$))\s*(?:[-–—] )?(?=[\w\\$-]|$)(.*)",
    re.IGNORECASE,
)
_LETTER_AFTER = re.compile(r"(.*\S)\s*\(([A-Z])\)", re.IGNORECASE)  # "12 (B)"


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
        except (ValueError, RecursionError):
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

        A choice may be given by its letter, its text, or both, as in "(B)", "B. 12", "B 12" or "12 (B)". A letter with
        the text of another choice is wrong; with any other text after it the letter alone decides. A letter beyond the
        last choice is read as text. Without choices, a number is also right if it equals the true one after both are
        rounded to `precision`.
        """
        if self.choices:
            return self._chosen(given) == {self.answer}  # an answer that equals several choices is wrong
        rounded = self._rounded(self.answer)
        return equal(given, self.answer) or (rounded is not None and self._rounded(given) == rounded)

    def named(self, given: str) -> str:
        """Return an answer in the form in which answers are compared: a choice by its letter, a number rounded."""
        chosen = self._chosen(given) if self.choices else set()
        if len(chosen) == 1:
            return chr(ord("A") + self.choices.index(chosen.pop()))
        rounded = None if self.choices else self._rounded(given)
        return _plain(given) if rounded is None else str(rounded)

    def _chosen(self, given: str) -> set[str]:
        """Return the choices that an answer names; none if it takes too long to tell."""
        return within_limit(lambda: self._told(given), set())

    def _told(self, given: str) -> set[str]:
        """Return the choices that an answer names. It may take hours."""
        text = _plain(given)
        after = _LETTER_AFTER.fullmatch(text)
        if after and (named := self._named(after[2])) is not None and equal(after[1], named):
            return {named}
        same = {choice for choice in self.choices if _plain(choice).lower() == text.lower()}
        letter, told = _option(text) or (None, text)
        named = self._named(letter)
        if named is None and text[1:2] == " " and (named := self._named(text[0])) is not None:
            told = text[2:]  # "B 12" names B if that is its text
            if _plain(named).lower() != told.strip().lower():
                named = None
        if named is not None and not told:
            return {named}
        if same or named is None:
            return same or {choice for choice in self.choices if _equal(given, choice)}
        others = {choice for choice in self.choices if choice != named and _equal(told, choice)}
        return {named} | (others if not _equal(told, named) else set())

    def _named(self, letter: str | None) -> str | None:
        place = ord(letter.upper()) - ord("A") if letter and letter.isascii() and letter.isalpha() else -1
        return self.choices[place] if 0 <= place < len(self.choices) else None

    def _rounded(self, text: str) -> float | None:
        try:
            if self.precision is None:
                return None
            number, _ = units.split(_plain(text))
            return round(float(number), self.precision)
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
    starts = [found.end() for found in _BOXED.finditer(text)]
    return _braced(text, starts[-1]) if starts else None


def all_boxed(text: str) -> set[str | None]:
    """Return the different contents of all outermost `\\boxed{}`; None for one that is not closed."""
    contents: set[str | None] = set()
    found = _BOXED.search(text)
    while found:
        content = _braced(text, found.end())
        contents.add(content)
        if content is None:
            break
        found = _BOXED.search(text, found.end() + len(content))
    return contents


def _braced(text: str, start: int) -> str | None:
    """Return the text from `start` to the brace that closes there, or None."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()]
    return None


def equal(given: str, truth: str) -> bool:
    """Return whether an answer, which is a formula, a number, a word or an option, equals the true one.

    It is False if that takes more than half a second of processor time to tell, on any thread (see `answers.values`).
    """
    return within_limit(lambda: _equal(given, truth), False)


def _equal(given: str, truth: str) -> bool:
    given, truth = _plain(given), _plain(truth)
    if not given or max(len(given), len(truth)) > _LONGEST:
        return given.lower() == truth.lower()
    chosen, right = _option(given), _option(truth)
    if chosen and right:
        texts = chosen[1], right[1]
        return chosen[0] == right[0] and (not all(texts) or _equal_text(*texts))
    return (
        _equal_text(given, truth)
        or bool(chosen and chosen[1] and _equal_text(chosen[1], truth))
        or bool(right and right[1] and _equal_text(given, right[1]))
    )


def _equal_text(given: str, truth: str) -> bool:
    """Return whether two answers without the letter of an option are equal."""
    given, truth = (_NUMERALS.get(text.lower(), text) for text in (given, truth))
    if (times := _same_time(given, truth)) is not None:
        return times
    (number, unit), (right, wanted) = units.split(given), units.split(truth)
    if unit and wanted:
        if unit.dimension != wanted.dimension:
            return False
        return (number == right and unit == wanted) or same_value(number, right, unit.factor / wanted.factor)
    if given.lower() == truth.lower():
        return True
    if _WORDS.fullmatch(truth):
        return False
    only = unit or wanted
    if only is None or (wanted and not wanted.sure):
        return same_value(given, truth)
    fraction = only.fraction or Integer(1)
    ratios = {Integer(1), fraction if unit else 1 / fraction}
    return number == right or any(same_value(number, right, ratio) for ratio in ratios)


def _same_time(given: str, truth: str) -> bool | None:
    """Return whether two times of day are equal, or None unless both are such.

    A time without am and pm is read on a clock of 24 hours. If the true one has neither, either will do.
    """
    first, second = _CLOCK.fullmatch(given), _CLOCK.fullmatch(truth)
    if not first or not second or not all(time[2] or time[4] or "clock" in time[0].lower() for time in (first, second)):
        return None
    if not second[4] and first[4]:
        return _seconds(first, half=False) == _seconds(second) or _seconds(first) == _seconds(second)
    return _seconds(first) == _seconds(second)


def _seconds(time: re.Match[str], *, half: bool = True) -> int:
    hour, minute, second = (int(time[place] or 0) for place in (1, 2, 3))
    if half and time[4]:
        hour = hour % 12 + 12 * (time[4].lower() == "p")
    return (hour * 60 + minute) * 60 + second


def _option(text: str) -> tuple[str, str] | None:
    """Return the letter, in upper case, and the text of an option such as "B. 12", or None if the text is not one."""
    found = _OPTION.fullmatch(text)
    if found is None:
        return None
    letter = found[1] or found[2] or found[3]
    return letter.upper(), found[4].strip()


def _plain(text: str) -> str:
    """Return the text without notation that does not change its value, and with one notation for the rest.

    Full-width digits become ASCII; text wrappers, the dollar signs around formulas, LaTeX spaces, separators of
    thousands and the final full stop are removed. An escaped dollar, or a single one, stays as the sign of money. Very
    long text, which is never compared as a formula, stays as it is.
    """
    if len(text) > 4 * _LONGEST:
        return text
    text = text.translate(_WIDE).replace("\u2019", "'")
    for _ in range(3):  # they may be nested
        text = _WRAPPER.sub(r" \1 ", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\1", text)
    text = re.sub(r"\\[()\[\]]", "", text)
    money = text.count("$") - text.count("\\$") == 1  # "$12"; formulas have two
    text = re.sub(r"(?<!\\)\$", "$" if money else "", text).replace("\\$", "$")
    for pattern, replacement in _NOTATION:
        text = pattern.sub(replacement, text)
    text = _join_thousands(text)
    return " ".join(text.split()).rstrip(" .")


def _join_thousands(text: str) -> str:
    """Return the text without separators of thousands.

    Within brackets "(100,200)" is a point. There only a group that no number begins with, such as the 000 in "(1,000)",
    makes it one number.
    """

    def join(found: re.Match[str]) -> str:
        before = text[: found.start()]
        inside = sum(before.count(sign) for sign in ("(", "[", "\\{")) > sum(
            before.count(sign) for sign in (")", "]", "\\}")
        )
        if inside and not any(group.startswith("0") for group in found[0].split(",")[1:]):
            return found[0]
        return found[0].replace(",", "")

    return _THOUSANDS.sub(join, text)


def thinks_first(response: str) -> bool:
    """Return whether the response is one `<think>…</think>` and then one answer, in `<answer>` or `\\boxed{}`.

    A `\\boxed{}` with the same content twice is one answer; drafts within the thought do not count.
    """
    answer = one_thought(response) or ""
    boxed = all_boxed(answer)
    if None in boxed or len(boxed) > 1:
        return False
    return has_thinking(response) or (bool(boxed) and "<answer>" not in answer)
