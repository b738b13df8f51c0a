"""Answers that are lists of boxes and points: prompt, rendering and parsing.

The paper's form: reasoning in `<think>`, then `<answer>` with a JSON list of `{"bbox_2d": [x1, y1, x2, y2],
"point_2d": [x, y]}`; the empty list says that nothing in the image is meant. A ground truth is such a list or, where
the data have masks, `{"objects": [the list], "mask": RLE, "ignore": RLE}`; see `answers.rle`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from visurf_ray.answers.responses import answer_text, respond

PROMPT = "Find {query}. Reason in <think>, then answer in <answer> with a JSON list of bbox_2d and point_2d."

# How a ground truth is written, by name: the separators between items and after keys (ViSurf §4.2.4, "align").
STYLES: dict[str, tuple[str, str]] = {"spaced": (", ", ": "), "compact": (",", ":")}


@dataclass(frozen=True)
class Target:
    """One object: box (x1, y1, x2, y2) and point (x, y), in pixels of the image that the model sees."""

    bbox_2d: tuple[float, float, float, float]
    point_2d: tuple[float, float]

    @staticmethod
    def around(box: Sequence[int]) -> "Target":
        """The box with its centre as the point."""
        x1, y1, x2, y2 = box
        return Target((x1, y1, x2, y2), ((x1 + x2) // 2, (y1 + y2) // 2))


def dump_targets(targets: Sequence[Target], style: str = "spaced") -> str:
    return json.dumps(_items(targets), separators=STYLES[style])


def dump_truth(targets: Sequence[Target], **masks: Any) -> str:
    """The ground truth of these objects; `masks` are `mask` and `ignore`, COCO RLEs, or None."""
    given = {name: rle for name, rle in masks.items() if rle is not None}
    return json.dumps({"objects": _items(targets)} | given) if given else dump_targets(targets)


def _items(targets: Sequence[Target]) -> list[dict[str, Any]]:
    return [{"bbox_2d": list(target.bbox_2d), "point_2d": list(target.point_2d)} for target in targets]


def render(targets: Sequence[Target], style: str = "spaced", thinking: str | None = None) -> str:
    """The response that gives `targets`; without reasoning unless `thinking` is given."""
    return respond(dump_targets(targets, style), thinking)


def parse_items(response: str) -> list[Any] | None:
    """The JSON list in the answer, items unchecked, or None when there is no such list."""
    text = answer_text(response)
    if text is None:
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):  # the latter for "[[[[…"
        return None
    return items if isinstance(items, list) else None


def numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """`value` as `count` finite numbers, or None when it is not a list of so many."""
    if not isinstance(value, list) or len(value) != count:
        return None
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in value):
        return None
    return tuple(value)


def answered_points(items: Sequence[Any]) -> list[tuple[float, ...]]:
    """The points of the answer's items; where no item has one, the centres of the boxes. Malformed ones are left out.

    An item that lacks its point does not cost the points of the others.
    """
    given = [item for item in items if isinstance(item, dict)]
    points = [point for item in given if (point := numbers(item.get("point_2d"), 2))]
    boxes = [box for item in given if (box := numbers(item.get("bbox_2d"), 4))]
    return points or [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in boxes]


def parse_truth(ground_truth: str) -> dict[str, Any]:
    """The ground truth's `objects`, unchecked, with the `mask` and what else it has. Raises ValueError for no JSON."""
    try:
        value = json.loads(ground_truth)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error}): {ground_truth[:80]!r}") from error
    return value if isinstance(value, dict) and "objects" in value else {"objects": value}


def parse_targets(ground_truth: str) -> list[Target]:
    """The ground truth's objects. Raises ValueError that says what is wrong with the text."""
    items = parse_truth(ground_truth)["objects"]
    if not isinstance(items, list):
        raise ValueError(f"must be a JSON list of objects with bbox_2d and point_2d, not {ground_truth[:80]!r}")
    targets = []
    for number, item in enumerate(items):
        box = numbers(item.get("bbox_2d"), 4) if isinstance(item, dict) else None
        point = numbers(item.get("point_2d"), 2) if isinstance(item, dict) else None
        if box is None or point is None:
            raise ValueError(f"item {number} needs bbox_2d with 4 numbers and point_2d with 2: {json.dumps(item)[:80]}")
        targets.append(Target(box, point))  # type: ignore[arg-type]
    return targets


def check_targets(targets: Sequence[Target], width: float, height: float) -> None:
    """Raise ValueError unless every box has an area and, with its point, lies within the image."""
    for number, target in enumerate(targets):
        x1, y1, x2, y2 = target.bbox_2d
        if x1 >= x2 or y1 >= y2:
            raise ValueError(f"item {number} has bbox_2d {list(target.bbox_2d)}, but x1 < x2 and y1 < y2 must hold")
        x, y = target.point_2d
        if min(x1, y1, x, y) < 0 or max(x2, x) > width or max(y2, y) > height:
            raise ValueError(
                f"item {number} reaches outside the image of {width:g}×{height:g}: {json.dumps(vars(target))}"
            )
