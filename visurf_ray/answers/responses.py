"""The form of a response: reasoning in `<think>`, then the answer in `<answer>`."""

import re

# Styles in which a label's JSON can be written: the separators between items and after keys (ViSurf §4.2.4, "align").
STYLES: dict[str, tuple[str, str]] = {"spaced": (", ", ": "), "compact": (",", ":")}

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_THINKING = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)


def respond(answer: str, thinking: str | None = None) -> str:
    """Return the response with this answer, preceded by `thinking` in its tags unless that is None."""
    return f"{thought(thinking)}<answer>{answer}</answer>"


def thought(thinking: str | None) -> str:
    """Return `thinking` in its tags, or an empty string for None."""
    return "" if thinking is None else f"<think>{thinking}</think>"


def answer_text(response: str) -> str | None:
    """Return the text of the last `<answer>` after the thinking, or None if there is none."""
    found = _ANSWER.findall(rest(response))
    return found[-1].strip() if found else None


def answer_or_rest(response: str) -> str:
    """Return the text of the last `<answer>` after the thinking, or all text after the thinking if there is none."""
    answer = answer_text(response)
    return rest(response).strip() if answer is None else answer


def rest(response: str) -> str:
    """Return the text after the last `</think>`, or the whole response if it has none."""
    return response.rpartition("</think>")[2]


def has_thinking(response: str) -> bool:
    """Return whether the response is `<think>…</think><answer>…</answer>`, with or without white space around each."""
    return _THINKING.fullmatch(response) is not None
