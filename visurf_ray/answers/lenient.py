"""Answers in slightly broken JSON, mended before they are read (answers.strict=false)."""

import json
import re

from visurf_ray.answers.responses import rest

_ANSWER = re.compile(r"(.*<answer>)(.*?)(</answer>.*|\Z)", re.DOTALL)  # the last answer
_FENCE = re.compile(r"```\w*")
_STRING = r'"(?:[^"\\]|\\[\s\S]?)*+"?'  # to the end of the text if it is not closed, so that no part is read twice
_TRAILING = re.compile(rf"({_STRING})|(?<=[\w\]}}\"'.])(\s*),(?=\s*[\]}}])")


def as_strict(response: str) -> str:
    """Return the response with the JSON of its answer mended, for the parsers of boxes.

    A fence (```json … ```) and trailing commas are removed, single quotation marks become double ones, and one bare
    object becomes a list of it. An answer that is still broken then, and everything outside the answer, stays as it is.
    """
    after = rest(response)
    before = response[: len(response) - len(after)]
    found = _ANSWER.fullmatch(after)
    start, answer, end = found.groups() if found else ("", after, "")
    mended = _mend(answer.strip())
    return response if mended is None else f"{before}{start}{mended}{end}"


def _mend(text: str) -> str | None:
    """Return the JSON list that the text means, or None if mending it makes no list."""
    if (fence := _FENCE.match(text)) and text.endswith("```"):
        text = text[fence.end() : -3].strip()
    text = _TRAILING.sub(lambda match: match[1] or match[2] or "", text)
    for json_text in (text, text.replace("'", '"')):
        try:
            value = json.loads(json_text)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return f"[{json_text}]"
        return json_text if isinstance(value, list) else None
    return None
