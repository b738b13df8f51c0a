"""The form of a response: reasoning in `<think>`, then the answer in `<answer>`."""

import re

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_THINKING = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)


def respond(answer: str, thinking: str | None = None) -> str:
    """The response that gives `answer`; without reasoning unless `thinking` is given."""
    return f"{thought(thinking)}<answer>{answer}</answer>"


def thought(thinking: str | None) -> str:
    return "" if thinking is None else f"<think>{thinking}</think>"


def answer_text(response: str) -> str | None:
    """The text of the last `<answer>` after the thinking, or None when there is none."""
    found = _ANSWER.findall(rest(response))
    return found[-1].strip() if found else None


def answer_or_rest(response: str) -> str:
    """The last `<answer>` after the thinking; without one, all that stands after the thinking."""
    answer = answer_text(response)
    return rest(response).strip() if answer is None else answer


def rest(response: str) -> str:
    """What stands after the thinking."""
    return response.rpartition("</think>")[2]


def has_thinking(response: str) -> bool:
    """Whether the response is `<think>…</think><answer>…</answer>`, up to white space around and between."""
    return _THINKING.fullmatch(response) is not None
