"""Coordinates in the unit that a model has learnt, and in the unit that rewards and metrics compare.

Qwen2.5-VL answers in pixels of the image that it sees, most other families in thousandths of its width and height.
Ground truths are in the task's unit. Answers are converted to it before a reward, a metric, the segmenter or a drawing
reads them; labels are converted from it.
"""

import re
from collections.abc import Callable, Sequence
from itertools import cycle

from visurf_ray.answers.responses import rest
from visurf_ray.groups import Coordinates, Example, Prediction

UNITS = {
    Coordinates.pixels: "in pixels",
    Coordinates.thousandths: "in whole thousandths of the image's width and height, from 0 to 1000",
}

_NUMBER = r"[-+]?\d{1,9}(?:\.\d{1,20})?(?:[eE][-+]?\d{1,2})?"
_LIST = re.compile(rf"""(["'](?:bbox_2d|point_2d|Position)["']\s*:\s*\[)(\s*{_NUMBER}(?:\s*,\s*{_NUMBER})*\s*)(?=\])""")
_CORNER = re.compile(rf"(\()(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*)(?=\))")
_EACH = re.compile(_NUMBER)


def readable(response: str, of: Example | Prediction) -> str:
    """Return the response with the coordinates of its answer in the unit of the ground truth."""
    return _converted(response, of.size, of.answered, of.compared, whole=False)


def as_answered(label: str, example: Example) -> str:
    """Return the label with the coordinates of its answer in the unit of the model, whole numbers."""
    return _converted(label, example.size, example.compared, example.answered, whole=True)


def _converted(text: str, size: tuple[int, int], given: Coordinates, wanted: Coordinates, *, whole: bool) -> str:
    """Convert lists under `bbox_2d`, `point_2d` and `Position`, and corners `(x, y)`, after the thinking.

    Thousandths are whole. Numbers that are not written in one of these forms stay.

    Args:
        size: width and height of the image that the model sees, in pixels.
        whole: whether pixels are whole as well; otherwise they have two decimals.
    """
    if given == wanted or 0 in size:
        return text
    to_pixels = wanted == Coordinates.pixels
    factors = [edge / 1000 if to_pixels else 1000 / edge for edge in size]
    digits = 2 if to_pixels and not whole else None
    after = rest(text)
    converted = after
    for pattern in (_LIST, _CORNER):
        converted = pattern.sub(_replacement(factors, digits), converted)
    return text[: len(text) - len(after)] + converted


def _replacement(factors: Sequence[float], digits: int | None) -> Callable[[re.Match[str]], str]:
    def replace(found: re.Match[str]) -> str:
        turns = cycle(factors)  # x and y take turns

        def scale(number: re.Match[str]) -> str:
            value = float(number[0]) * next(turns)
            return str(int(value + 0.5) if digits is None else round(value, digits))

        return found[1] + _EACH.sub(scale, found[2])

    return replace
