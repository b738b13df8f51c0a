"""Files that are written in one piece, and JSON that any reader accepts."""

import json
import math
import os
from pathlib import Path

from visurf_ray.aliases import Json
from visurf_ray.errors import writing

Row = dict[str, Json]  # a line of metrics.jsonl: step, time, and numbers by metric, null for those that JSON lacks


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` in one step: after a crash it has either the old text or the new one.

    Raises:
        DiskFullError: there is no space.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path.name, path.parent):
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(value: Json, indent: int | None = None) -> str:
    """Return `value` as JSON; numbers that JSON does not have (NaN, infinities) become null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
