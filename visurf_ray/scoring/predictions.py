"""Predictions as JSON lines, from which every metric can be computed again."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from visurf_ray.answers.rle import check_rle
from visurf_ray.errors import DataError
from visurf_ray.groups import Prediction


def write_predictions(predictions: Sequence[Prediction], path: Path) -> None:
    """Write one JSON object per line. Fields that are None, and an empty `part`, are left out."""
    lines = [
        {key: value for key, value in asdict(each).items() if value is not None and (key, value) != ("part", "")}
        for each in predictions
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_predictions(path: Path) -> list[Prediction]:
    """Read the file that `write_predictions` wrote.

    Raises:
        DataError: The file cannot be read or is empty, or a line is not a prediction.
    """
    try:
        lines = path.read_text("utf-8-sig").split("\n")  # splitlines would end a line at U+2028, too
    except OSError as error:
        raise DataError(f"predictions={path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"predictions={path} cannot be read: byte {error.start} is not UTF-8") from error
    found = [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"predictions={path} is empty")
    return found


def _parse(line: str, where: str) -> Prediction:
    names = [field.name for field in fields(Prediction)]
    try:
        values = json.loads(line)
        if (number := values.get("sample")) is not None and (type(number) is not int or number < 0):
            raise ValueError("sample must be a number of an answer")
        if not all(isinstance(values[key], str) for key in ("question", "ground_truth", "response")):
            raise TypeError("texts must be texts")
        if values.get("mask") is not None:
            values["mask"] = check_rle(values["mask"])
        return Prediction(**values | {"size": tuple(values["size"])})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{where} is not a prediction, an object with {', '.join(names)}: {line[:80]!r}") from error
