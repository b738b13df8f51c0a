"""The form of a response: reasoning in `<think>`, then the answer in `<answer>`."""

import re

# Styles in which a label's JSON can be written: the separators between items and after keys (ViSurf §4.2.4, "align").
STYLES: dict[str, tuple[str, str]] = {"spaced": (", ", ": "), "compact": (",", ":")}

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TAG = re.compile(r"<(/?)think>")


def respond(answer: str, thinking: str | None = None) -> str:
    """Return the response with this answer, preceded by `thinking` in its tags unless that is None."""
    return f"{thought(thinking)}<answer>{answer}</answer>"


def thought(thinking: str | None) -> str:
    """Return `thinking` in its tags, or an empty string for None."""
    return "" if thinking is None else f"<think>{thinking}</think>"


def answer_text(response: str) -> str | None:
    """Return the text of the last `<answer>` after the thinking, or None if there is none."""
    before, closing, _ = rest(response).rpartition("</answer>")
    found = _ANSWER.findall(before + closing)  # without what follows, where each <answer> would be searched to the end
    return found[-1].strip() if found else None


def answer_or_rest(response: str) -> str:
    """Return the text of the last `<answer>` after the thinking, or all text after the thinking if there is none."""
    answer = answer_text(response)
    return rest(response).strip() if answer is None else answer


def rest(response: str) -> str:
    """Return the text after the last `</think>`, or the whole response if it has none."""
    return response.rpartition("</think>")[2]


def one_thought(response: str) -> str | None:
    """Return the text after the response's one thought, or None if it does not begin with exactly one.

    The thought may be empty, and may hold anything, even drafts of answers and another thought in its own tags, but no
    second thought may follow it.
    """
    text = response.strip()
    tags = list(_TAG.finditer(text))
    if not tags or tags[0].start() or tags[0][1]:
        return None
    depth = 0
    for tag in tags:
        depth += -1 if tag[1] else 1
        if depth == 0:
            break
    if tag is not tags[-1] or depth:
        return None
    return text[tag.end() :]


def has_thinking(response: str) -> bool:
    """Return whether the response is one thought and then one answer, with or without white space around each.

    That is `<think>…</think><answer>…</answer>`. A second thought or answer makes it False. A draft of an answer within
    the thought does not: no reward reads it.
    """
    answer = (one_thought(response) or "").strip()
    return answer.startswith("<answer>") and answer.endswith("</answer>") and answer.count("answer>") == 2
