"""Answers that are lists of boxes and points: writing and parsing.

The paper's form is reasoning in `<think>`, then `<answer>` with a JSON list of `{"bbox_2d": [x1, y1, x2, y2],
"point_2d": [x, y]}`. An empty list means that the image holds no target object. A ground truth is such a list, or
`{"objects": [the list], "mask": RLE, "ignore": RLE}` if the data have masks (see `answers.rle`). If they have the
point to click and no box, it is `{"objects": [{"point_2d": [x, y]}], "within": pixels}` (see `Click`).

Neither may have more than MOST_ITEMS items, so that matching them takes milliseconds.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from visurf_ray.aliases import Json
from visurf_ray.answers.responses import STYLES, answer_or_rest, answer_text, respond

Box = tuple[float, float, float, float]  # x1, y1, x2, y2
IntBox = tuple[int, int, int, int]
Point = tuple[float, float]  # x, y

MOST_ITEMS = 1000  # of an answer or a ground truth


@dataclass(frozen=True)
class Target:
    """One object: its box and a point on it, in pixels.

    A row's targets are in pixels of the stored image, an example's in pixels of the image that the model sees.
    """

    bbox_2d: Box
    point_2d: Point

    @staticmethod
    def around(box: IntBox) -> "Target":
        """Return the target with this box and its centre, rounded down, as the point."""
        x1, y1, x2, y2 = box
        return Target((x1, y1, x2, y2), ((x1 + x2) // 2, (y1 + y2) // 2))


@dataclass(frozen=True)
class Click:
    """A point without a box, and how near an answer must be.

    Attributes:
        point_2d: In pixels of the image that the model sees.
        within: A distance in the same pixels; an answered point that is closer is right.
    """

    point_2d: Point
    within: float

    def hit(self, points: Sequence[Point]) -> bool:
        """Return whether any of these points is close enough."""
        return any(math.dist(point, self.point_2d) < self.within for point in points)

    def dump(self) -> str:
        """Return the ground truth that `parse_click` reads."""
        return json.dumps({"objects": [{"point_2d": list(self.point_2d)}], "within": self.within})

    def render(self, style: str = "spaced", thinking: str | None = None) -> str:
        """Return the response that answers with the point, preceded by `thinking` unless that is None."""
        return respond(json.dumps([{"point_2d": list(self.point_2d)}], separators=STYLES[style]), thinking)


def parse_click(ground_truth: str) -> Click | None:
    """Return the ground truth as a `Click`, or None if it is another.

    Raises:
        ValueError: It is not JSON.
    """
    truth = parse_truth(ground_truth)
    point, within = point_alone(truth["objects"]), truth.get("within")
    return Click(point, within) if point and isinstance(within, int | float) else None


def point_alone(items: Json) -> Point | None:
    """Return the point of a list of one item with a point and no box, else None."""
    alone = isinstance(items, list) and len(items) == 1 and isinstance(items[0], dict) and "bbox_2d" not in items[0]
    return point_in(items[0]) if alone else None


def dump_targets(targets: Sequence[Target], style: str = "spaced") -> str:
    """Return the JSON list of `targets`, with the separators of a style in `STYLES`."""
    return json.dumps(_items(targets), separators=STYLES[style])


def dump_truth(targets: Sequence[Target], **extra: object) -> str:
    """Return the ground truth of these objects as JSON.

    Args:
        targets: The objects.
        extra: `mask` and `ignore`, COCO RLEs. Values of None are left out.
    """
    given = {name: value for name, value in extra.items() if value is not None}
    return json.dumps({"objects": _items(targets)} | given) if given else dump_targets(targets)


def _items(targets: Sequence[Target]) -> list[dict[str, list[float]]]:
    return [{"bbox_2d": list(target.bbox_2d), "point_2d": list(target.point_2d)} for target in targets]


def render(targets: Sequence[Target], style: str = "spaced", thinking: str | None = None) -> str:
    """Return the response that answers with `targets`, preceded by `thinking` unless that is None."""
    return respond(dump_targets(targets, style), thinking)


def parse_items(response: str) -> list[object] | None:
    """Return the items of the JSON list in the answer, unchecked.

    It is None if the answer is not a JSON list, or has more than MOST_ITEMS items.
    """
    text = answer_text(response)
    if text is None:
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: "[[[[…"
        return None
    return items if isinstance(items, list) and len(items) <= MOST_ITEMS else None


def numbers(value: object, count: int) -> tuple[float, ...] | None:
    """Return `value` as a tuple if it is a list of `count` numbers of magnitude below 1e9, else None."""
    if not isinstance(value, list) or len(value) != count:
        return None
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in value):
        return None
    return tuple(value)


def box_in(item: object, key: str = "bbox_2d") -> Box | None:
    """Return the box under `key` of an answer's item, or None if no four numbers are there."""
    found = numbers(item.get(key), 4) if isinstance(item, dict) else None
    if found is None:
        return None
    x1, y1, x2, y2 = found
    return x1, y1, x2, y2


def point_in(item: object) -> Point | None:
    """Return the `point_2d` of an answer's item, or None if no two numbers are there."""
    found = numbers(item.get("point_2d"), 2) if isinstance(item, dict) else None
    if found is None:
        return None
    x, y = found
    return x, y


def answered_boxes(response: str) -> list[Box] | None:
    """Return the answer's boxes that have an area, or None if the answer is not a JSON list."""
    items = parse_items(response)
    if items is None:
        return None
    return [box for item in items if (box := box_in(item)) and box[0] < box[2] and box[1] < box[3]]


def answered_points(items: Sequence[object]) -> list[Point]:
    """Return the points of an answer's items, or the centres of their boxes if no item has a point.

    Items without a well-formed point are skipped; the points of the other items still count.
    """
    points = [point for item in items if (point := point_in(item))]
    boxes = [box for item in items if (box := box_in(item))]
    return points or [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in boxes]


def well_formed(response: str) -> bool:
    """Return whether the answer is a JSON list in which each item has a box of four numbers and a point of two."""
    items = parse_items(response)
    return items is not None and all(box_in(item) is not None and point_in(item) is not None for item in items)


def parse_truth(ground_truth: str) -> dict[str, Json]:
    """Return the ground truth as an object whose `objects` are the unchecked list; a bare list becomes such an object.

    Raises:
        ValueError: The text is not JSON.
    """
    try:
        value = json.loads(ground_truth)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error}): {ground_truth[:80]!r}") from error
    return value if isinstance(value, dict) and "objects" in value else {"objects": value}


def parse_targets(ground_truth: str) -> list[Target]:
    """Return the ground truth's objects.

    Raises:
        ValueError: The text is not a ground truth. The message continues "row N: the solution …".
    """
    items = parse_truth(ground_truth)["objects"]
    if not isinstance(items, list):
        raise ValueError(f"must be a JSON list of objects with bbox_2d and point_2d, not {ground_truth[:80]!r}")
    if len(items) > MOST_ITEMS:
        raise ValueError(f"has {len(items)} objects, but may have at most {MOST_ITEMS}")
    targets = []
    for number, item in enumerate(items):
        box, point = box_in(item), point_in(item)
        if box is None:
            alone = " (only task=gui_grounding takes a point alone)" if point else ""
            raise ValueError(f"item {number} needs bbox_2d with 4 numbers{alone}: {json.dumps(item)[:80]}")
        if point is None:
            raise ValueError(f"item {number} needs point_2d with 2 numbers: {json.dumps(item)[:80]}")
        targets.append(Target(box, point))
    return targets


def canonical(solution: str) -> str:
    """Return a solution as users write it in the form of a ground truth, its objects unchecked.

    The solution may be in `<answer>` tags. It may be one item, box or point in place of a list, and an item may be a
    bare box or a bare point. An item without a point gets the centre of its box.

    Raises:
        ValueError: The text is not JSON.
    """
    truth = parse_truth(answer_or_rest(solution))
    items = truth["objects"]
    if isinstance(items, dict) or numbers(items, 4) is not None or numbers(items, 2) is not None:
        items = [items]
    if not isinstance(items, list):
        return solution
    bare = {True: "point_2d", False: "bbox_2d"}
    items = [{bare[len(item) == 2]: item} if isinstance(item, list) else item for item in items]
    for item in items:
        box = box_in(item)
        if box is not None and item.get("point_2d") is None:
            item["point_2d"] = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
    return json.dumps({**truth, "objects": items} if len(truth) > 1 else items)


def are_shares(coordinates: Sequence[float]) -> bool:
    """Return whether these coordinates must be shares of the image's sides: not all whole, and about from 0 to 1.

    Boxes of detectors may reach a little beyond the image.
    """
    return all(-0.5 <= value <= 1.5 for value in coordinates) and any(value != int(value) for value in coordinates)


def ious(given: ArrayLike, true: ArrayLike, edge: float = 0) -> NDArray[np.float64]:
    """Return the IoUs (N, M) of N boxes with M others; 0 where a box has swapped corners or none has an area.

    Args:
        given: N boxes (x1, y1, x2, y2).
        true: M boxes.
        edge: What is added to each width and height: 1 where the pixels at x2 and y2 belong to a box.
    """
    a_N14 = np.asarray(given, np.float64).reshape(-1, 1, 4)
    b_1M4 = np.asarray(true, np.float64).reshape(1, -1, 4)
    sides_NM2 = np.minimum(a_N14[..., 2:], b_1M4[..., 2:]) - np.maximum(a_N14[..., :2], b_1M4[..., :2]) + edge
    both_NM = sides_NM2.clip(0).prod(-1)
    area_N1, area_1M = ((box[..., 2:] - box[..., :2] + edge).prod(-1) for box in (a_N14, b_1M4))
    union_NM = area_N1 + area_1M - both_NM
    return np.divide(both_NM, union_NM, out=np.zeros_like(both_NM), where=union_NM > 0)


def ordered(box: Box, width: float, height: float) -> Box:
    """Return the box with its corners in order and within an image of this size."""
    (x1, x2), (y1, y2) = sorted((box[0], box[2])), sorted((box[1], box[3]))
    left, right = (min(max(x, 0), width) for x in (x1, x2))
    top, bottom = (min(max(y, 0), height) for y in (y1, y2))
    return left, top, right, bottom


def check_targets(targets: Sequence[Target], width: float, height: float) -> None:
    """Check that every box has an area, and that boxes and points lie within an image of this size in pixels.

    Raises:
        ValueError: A target does not fit. The message names its place in the list.
    """
    for number, target in enumerate(targets):
        x1, y1, x2, y2 = target.bbox_2d
        if x1 >= x2 or y1 >= y2:
            raise ValueError(f"item {number} has bbox_2d {list(target.bbox_2d)}, but x1 < x2 and y1 < y2 must hold")
        x, y = target.point_2d
        if min(x1, y1, x, y) < 0 or max(x2, x) > width or max(y2, y) > height:
            raise ValueError(
                f"item {number} reaches outside the image of {width:g}×{height:g}: {json.dumps(vars(target))}"
            )
