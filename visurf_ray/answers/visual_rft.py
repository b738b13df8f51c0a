"""Answers of Visual-RFT's data sets (arXiv 2503.01785; Liuziyu77/Visual-RFT): detections, class names, single boxes.

A row has the columns image, problem and solution. The problem is the whole prompt, including how to write the answer;
the solution is the answer in its `<answer>` tags. Boxes are (x1, y1, x2, y2) in thousandths of the image's width and
height, so they stay valid when the image is resized.
"""

import json
import re
from collections.abc import Sequence

from visurf_ray.answers.boxes import MOST_ITEMS, Box, IntBox, box_in, ious, numbers
from visurf_ray.answers.responses import answer_or_rest, answer_text, rest

Detection = tuple[Box, float]  # a box and its confidence

SIDE = 1000  # width and height of every image in these coordinates
_CORNER = r"\(\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\)"
_BOX = re.compile(rf"{_CORNER}\s*,\s*{_CORNER}")


def answered_detections(response: str) -> list[Detection] | None:
    """Return the detections of a response, or None if its answer is not a list of boxes with confidences.

    If the closing tag is missing, the answer is the text after `<answer>`; if both tags are missing, it is the whole
    response. A truncated list keeps its complete items. Of detections with equal boxes only the first counts.
    """
    answer = answer_text(response)
    if answer is None:
        _, tag, cut = rest(response).rpartition("<answer>")
        answer = cut if tag else response
    return parse_detections(answer.strip())


def parse_detections(text: str) -> list[Detection] | None:
    """Return the detections of an answer, or None if it is not a list of boxes with confidences.

    Of detections with equal boxes only the first counts.
    """
    items = _parse_list(text)
    if items is None:
        return None
    found: dict[Box, float] = {}
    for item in items:
        box = box_in(item, "Position")
        confidence = numbers([item.get("Confidence")], 1) if isinstance(item, dict) else None
        if box is None or confidence is None:
            return None
        found.setdefault(box, confidence[0])
    return list(found.items())


def parse_boxes(ground_truth: str) -> list[Box]:
    """Return the boxes of a ground truth, which may be in `<answer>` tags.

    Raises:
        ValueError: It is not a list of boxes. The message continues "row N: the solution …".
    """
    items = _parse_list(answer_or_rest(ground_truth))
    if items is None:
        raise ValueError(f"must be 'No Objects' or a list of at most {MOST_ITEMS} boxes, not {ground_truth[:80]!r}")
    boxes = []
    for number, item in enumerate(items):
        box = box_in(item, "Position")
        if box is None:
            raise ValueError(f"item {number} needs Position with 4 numbers: {ground_truth[:80]!r}")
        boxes.append(box)
    return boxes


def parse_box(text: str) -> IntBox | None:
    """Return the box `(x1,y1),(x2,y2)` in a text, or None unless it has exactly one, with x1 < x2 and y1 < y2."""
    box = find_corners(text)
    return box if box and box[0] < box[2] and box[1] < box[3] else None


def find_corners(text: str) -> IntBox | None:
    """Return the numbers of `(x1,y1),(x2,y2)` in a text, in any order, or None unless it has them exactly once."""
    boxes = _BOX.findall(text)
    if len(boxes) != 1 or len(re.findall(_CORNER, text)) != 2:
        return None
    x1, y1, x2, y2 = (int(number) for number in boxes[0])
    return x1, y1, x2, y2


def parse_true_box(ground_truth: str) -> IntBox:
    """Return the box of a ground truth, which may be in `<answer>` tags.

    Raises:
        ValueError: It is not exactly one box. The message continues "row N: the solution …".
    """
    box = parse_box(answer_or_rest(ground_truth))
    if box is None:
        raise ValueError(f"must be one box (x1,y1),(x2,y2) of integers, not {ground_truth[:80]!r}")
    return box


def plain_name(name: str) -> str:
    """Return a class name in the form in which names are compared: lower case, no white space, no underscores."""
    return re.sub(r"[\s_]+", "", name).lower()


def parse_true_name(ground_truth: str) -> str:
    """Return the class name of a ground truth, which may be in `<answer>` tags, as `plain_name` writes it.

    Raises:
        ValueError: It is empty. The message continues "row N: the solution …".
    """
    name = plain_name(answer_or_rest(ground_truth))
    if not name:
        raise ValueError("is empty: it must be the name of a class")
    return name


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the IoU of two boxes (x1, y1, x2, y2) with real-valued corners, 0 if a box has swapped corners."""
    return float(ious([a], [b])[0, 0])


def check_inside(box: Sequence[float], name: str = "box") -> None:
    """Check that a box in thousandths has its corners in order and within the image.

    A box without an area passes, because rounding to thousandths leaves the smallest objects without one.

    Args:
        box: The box (x1, y1, x2, y2).
        name: What the message calls the box.

    Raises:
        ValueError: The check fails. The message continues "row N: the solution …".
    """
    x1, y1, x2, y2 = box
    if not (0 <= x1 <= x2 <= SIDE and 0 <= y1 <= y2 <= SIDE):
        raise ValueError(f"has the {name} {list(box)}, but 0 ≤ x1 ≤ x2 ≤ {SIDE} and 0 ≤ y1 ≤ y2 ≤ {SIDE} must hold")


def in_pixels(box: Sequence[float], size: tuple[int, int]) -> Box:
    """Convert a box from thousandths to pixels of an image of this width and height."""
    x1, y1, x2, y2 = box
    width, height = size
    return x1 * width / SIDE, y1 * height / SIDE, x2 * width / SIDE, y2 * height / SIDE


def _parse_list(text: str) -> list[object] | None:
    """Return the items of a list in JSON or with single quotes, in one or two pairs of brackets.

    It is None for anything else, and for more than MOST_ITEMS items.
    """
    if text.lower() == "no objects":
        return []
    if text.startswith("[") and not text.endswith("]"):
        text = text[: text.rfind("}") + 1] + "]"  # truncated: keep the complete items
    text = text.replace("[[", "[").replace("]]", "]")
    for written in (text, text.replace("'", '"')):  # JSON first: an apostrophe may be in a text
        try:
            items = json.loads(written)
        except (ValueError, RecursionError):  # RecursionError: "[[[[…"
            continue
        return items if isinstance(items, list) and len(items) <= MOST_ITEMS else None
    return None
