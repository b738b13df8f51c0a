"""Answers of Visual-RFT's data sets (arXiv 2503.01785; Liuziyu77/Visual-RFT): detections, class names, one box.

A row has the columns image, problem and solution. The problem is the whole prompt, the form of the answer included; the
solution is the answer in its `<answer>` tags. Boxes are (x1, y1, x2, y2) in thousandths of the image's sides: they hold
for the image in every size, and nothing is scaled when it is resized.
"""

import json
import re
from collections.abc import Sequence

from visurf_ray.answers.boxes import numbers
from visurf_ray.answers.responses import answer_or_rest, answer_text, rest

Box = tuple[float, ...]
Detection = tuple[Box, float]  # and its confidence
Corners = tuple[int, int, int, int]

SIDE = 1000  # of every image, in its own thousandths
_CORNER = r"\(\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\)"
_BOX = re.compile(rf"{_CORNER}\s*,\s*{_CORNER}")


def answered_detections(response: str) -> list[Detection] | None:
    """The boxes of a response, each once, or None when it gives no list of boxes with confidences.

    An answer that was cut keeps its complete items; without tags the whole response is the answer.
    """
    answer = answer_text(response)
    if answer is None:
        _, tag, cut = rest(response).rpartition("<answer>")
        answer = cut if tag else response
    return parse_detections(answer.strip())


def parse_detections(text: str) -> list[Detection] | None:
    """The boxes of an answer, each once, or None when it is no list of boxes with confidences."""
    items = _parse_list(text)
    if items is None:
        return None
    found: dict[Box, float] = {}
    for item in items:
        box = numbers(item.get("Position"), 4) if isinstance(item, dict) else None
        confidence = numbers([item.get("Confidence")], 1) if isinstance(item, dict) else None
        if box is None or confidence is None:
            return None
        found.setdefault(box, confidence[0])
    return list(found.items())


def parse_boxes(ground_truth: str) -> list[Box]:
    """The ground truth's boxes, with or without `<answer>` tags. Raises ValueError that says what is wrong."""
    items = _parse_list(answer_or_rest(ground_truth))
    if items is None:
        raise ValueError(f"must be a list of boxes or 'No Objects', not {ground_truth[:80]!r}")
    boxes = [numbers(item.get("Position"), 4) if isinstance(item, dict) else None for item in items]
    if None in boxes:
        raise ValueError(f"item {boxes.index(None)} needs Position with 4 numbers: {ground_truth[:80]!r}")
    return boxes  # type: ignore[return-value]


def parse_box(text: str) -> Corners | None:
    """The one box (x1, y1, x2, y2) in a text, or None when there is none, are several, or its corners are swapped."""
    boxes = _BOX.findall(text)
    if len(boxes) != 1 or len(re.findall(_CORNER, text)) != 2:
        return None
    x1, y1, x2, y2 = (int(number) for number in boxes[0])
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def parse_true_box(ground_truth: str) -> Corners:
    """The ground truth's box, with or without `<answer>` tags. Raises ValueError when it is not one box."""
    box = parse_box(answer_or_rest(ground_truth))
    if box is None:
        raise ValueError(f"must be one box (x1,y1),(x2,y2) of integers, not {ground_truth[:80]!r}")
    return box


def plain_name(name: str) -> str:
    """A class's name for comparison: case, white space and underscores do not matter."""
    return re.sub(r"[\s_]+", "", name).lower()


def parse_true_name(ground_truth: str) -> str:
    """The ground truth's class as `plain_name` writes it. Raises ValueError when it is empty."""
    name = plain_name(answer_or_rest(ground_truth))
    if not name:
        raise ValueError("is empty: it must be the name of a class")
    return name


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """IoU of two boxes (x1, y1, x2, y2) on a continuous plane; a box whose corners are swapped covers nothing."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def check_inside(box: Sequence[float], name: str = "box") -> None:
    """Raise ValueError, with the box's `name`, unless the corners are in order and within the image.

    Equal ones pass: in thousandths, the smallest objects are rounded to nothing.
    """
    x1, y1, x2, y2 = box
    if not (0 <= x1 <= x2 <= SIDE and 0 <= y1 <= y2 <= SIDE):
        raise ValueError(f"has the {name} {list(box)}, but 0 ≤ x1 ≤ x2 ≤ {SIDE} and 0 ≤ y1 ≤ y2 ≤ {SIDE} must hold")


def in_pixels(box: Sequence[float], size: tuple[int, int]) -> Box:
    """A box in pixels of an image of that width and height."""
    return tuple(edge * side / SIDE for edge, side in zip(box, (*size, *size), strict=True))


def _parse_list(text: str) -> list | None:
    """A list in JSON or with single quotes, in one pair of brackets or two; None when there is none."""
    if text.lower() == "no objects":
        return []
    if text.startswith("[") and not text.endswith("]"):
        text = text[: text.rfind("}") + 1] + "]"  # up to the last complete item
    text = text.replace("'", '"').replace("[[", "[").replace("]]", "]")
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):  # the latter for "[[[[…"
        return None
    return items if isinstance(items, list) else None
