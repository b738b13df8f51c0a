"""Answers that are text between tags: `<think>…</think><answer>…</answer>`, the answer alone, or no tags at all."""

from visurf_ray.tasks.boxes import answer_text


def answer_or_rest(text: str) -> str:
    """The last `<answer>` after the thinking; without one, all that stands after the thinking."""
    answer = answer_text(text)
    return text.rpartition("</think>")[2].strip() if answer is None else answer
