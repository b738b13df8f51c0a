"""Metrics of answers that are lists of boxes, as VisionReasoner's evaluation defines them, over boxes."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from shapely import union_all
from shapely.geometry import box as polygon

from visurf_ray.groups import Metrics
from visurf_ray.tasks.boxes import has_thinking, numbers, parse_items, parse_targets

Box = tuple[float, ...]


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    return union_iou([tuple(a)], [tuple(b)])


def union_iou(given: Sequence[Box], true: Sequence[Box]) -> float:
    """Intersection over union of the areas that two sets of boxes cover; 0 where nothing is covered."""
    first, second = (union_all([polygon(*b) for b in boxes]) for boxes in (given, true))
    union = first.union(second).area
    return float(first.intersection(second).area / union) if union > 0 else 0.0


def union_area(boxes: Sequence[Box]) -> float:
    """The area that boxes cover, in square pixels."""
    return float(union_all([polygon(*b) for b in boxes]).area)


def answered_boxes(response: str) -> list[Box] | None:
    """The answer's well-formed boxes, or None when the response holds no JSON list."""
    items = parse_items(response)
    if items is None:
        return None
    boxes = [numbers(item.get("bbox_2d"), 4) for item in items if isinstance(item, dict)]
    return [b for b in boxes if b is not None and b[0] < b[2] and b[1] < b[3]]


def well_formed(response: str) -> bool:
    """Whether the answer is a JSON list, each item with a box of four numbers and a point of two."""
    items = parse_items(response)
    return items is not None and all(
        isinstance(item, dict)
        and numbers(item.get("bbox_2d"), 4) is not None
        and numbers(item.get("point_2d"), 2) is not None
        for item in items
    )


def score_boxes(answers: Sequence[tuple[str, str]]) -> Metrics:
    """Metrics of (response, ground truth) pairs.

    giou: mean over examples of the IoU of the covered areas; 1 where nothing is meant and `[]` is answered, 0 where
    only one of the two is empty (gRefCOCO's gIoU; not box-GIoU). bbox_acc: over examples that mean something, pairs
    matched at IoU > 0.5 over answered or true boxes, whichever are more. n_acc: share of examples that mean nothing
    and are answered `[]`; an answer that cannot be parsed is not `[]`. format_rate: well-formed answers. thinking_rate:
    responses with reasoning before the answer. empty_rate: `[]` for examples that do mean something. A metric without
    examples is left out.
    """
    values: dict[str, list[float]] = {}
    for response, ground_truth in answers:
        true = [target.bbox_2d for target in parse_targets(ground_truth)]
        given = answered_boxes(response)
        empty = parse_items(response) == []
        if true:
            score = union_iou(given, true) if given else 0.0
            values.setdefault("bbox_acc", []).append(_matched_share(given or [], true))
            values.setdefault("empty_rate", []).append(empty)
        else:
            score = float(empty)
            values.setdefault("n_acc", []).append(empty)
        values.setdefault("giou", []).append(score)
        values.setdefault("format_rate", []).append(well_formed(response))
        values.setdefault("thinking_rate", []).append(has_thinking(response))
    return {name: float(np.mean(scores)) for name, scores in values.items()}


def _matched_share(given: Sequence[Box], true: Sequence[Box]) -> float:
    if not given:
        return 0.0
    hits = np.array([[iou(a, b) > 0.5 for b in true] for a in given])
    rows, columns = linear_sum_assignment(hits, maximize=True)
    return float(hits[rows, columns].sum()) / max(len(given), len(true))
