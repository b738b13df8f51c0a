"""Answers in slightly broken JSON, mended before they are read (answers.strict=false)."""

import json
import re

from visurf_ray.answers.responses import rest

_ANSWER = re.compile(r"(.*<answer>)(.*?)(</answer>.*|\Z)", re.DOTALL)  # the last answer
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n?\s*```", re.DOTALL | re.IGNORECASE)
_STRING = r'"(?:[^"\\]|\\.)*"'
_TRAILING = re.compile(rf"({_STRING})|(?<=[\w\]}}\"'.])(\s*),(?=\s*[\]}}])")


def as_strict(response: str) -> str:
    """Return the response with the JSON of its answer mended, for the parsers of boxes.

    A fence (```json … ```) and trailing commas are removed, and one bare object becomes a list of it. An answer that is
    still broken then, and everything outside the answer, stays as it is.
    """
    after = rest(response)
    before = response[: len(response) - len(after)]
    found = _ANSWER.fullmatch(after)
    start, answer, end = found.groups() if found else ("", after, "")
    mended = _mend(answer.strip())
    return response if mended is None else f"{before}{start}{mended}{end}"


def _mend(text: str) -> str | None:
    """Return the JSON list that the text means, or None if mending it makes no list."""
    fenced = _FENCED.fullmatch(text)
    if fenced:
        text = fenced[1].strip()
    text = _TRAILING.sub(lambda match: match[1] or match[2] or "", text)
    value = _load(text)
    if isinstance(value, dict):
        return f"[{text}]"
    return text if isinstance(value, list) else None


def _load(text: str) -> object:
    """Return the value of a JSON text, whose quotation marks may be single, or None if it is broken."""
    for each in (text, text.replace("'", '"')):  # single ones as Visual-RFT writes them
        try:
            return json.loads(each)
        except (ValueError, RecursionError):
            continue
    return None
