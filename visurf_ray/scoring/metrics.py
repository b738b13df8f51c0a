"""Metrics of answers that are lists of boxes, as VisionReasoner's evaluation defines them."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from shapely import union_all
from shapely.geometry import box as polygon

from visurf_ray.answers.boxes import Box, answered_boxes, parse_items, parse_targets, parse_truth, well_formed
from visurf_ray.answers.responses import has_thinking
from visurf_ray.answers.rle import area, overlap
from visurf_ray.groups import Metrics, Prediction


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    return union_iou([a], [b])


def union_iou(given: Sequence[Box], true: Sequence[Box]) -> float:
    """Intersection over union of the areas that two sets of boxes cover; 0 where nothing is covered."""
    intersection, union = covered(given, true)
    return intersection / union if union > 0 else 0.0


def covered(given: Sequence[Box], true: Sequence[Box]) -> tuple[float, float]:
    """Intersection and union of the areas that two sets of boxes cover."""
    first, second = (union_all([polygon(*b) for b in boxes]) for boxes in (given, true))
    return float(first.intersection(second).area), float(first.union(second).area)


def score_boxes(predictions: Sequence[Prediction]) -> Metrics:
    """Metrics of answers that are lists of boxes.

    An answer and its truth are areas: masks, in pixels of the stored image, where the answer has one, and the truth has
    one or means nothing; else what their boxes cover, in pixels of the image that the model sees. I and U are an
    example's intersection and union.

    giou: mean over examples of I/U; 1 where nothing is meant and `[]` is answered, and 0 where U = 0 otherwise
    (gRefCOCO's gIoU, arXiv 2306.00968; not box-GIoU). ciou: sum of I over sum of U. bbox_acc: over examples that mean
    something, pairs matched at IoU > 0.5 over answered or true boxes, whichever are more. n_acc: share of examples that
    mean nothing and are answered `[]`; an answer that cannot be parsed is not `[]` (in the original it is, and earns
    both n_acc and giou). format_rate: well-formed answers. thinking_rate: responses with reasoning before the answer.
    empty_rate: `[]` for examples that do mean something. A metric without examples is left out.
    """
    values: dict[str, list[float]] = {}
    intersections, unions = 0.0, 0.0
    for prediction in predictions:
        response = prediction.response
        true = [target.bbox_2d for target in parse_targets(prediction.ground_truth)]
        given = answered_boxes(response) or []
        empty = parse_items(response) == []
        intersection, union = _areas(prediction, given, true)
        score = intersection / union if union else 0.0
        if true:
            values.setdefault("bbox_acc", []).append(_matched_share(given, true))
            values.setdefault("empty_rate", []).append(empty)
        else:
            score = float(empty)
            values.setdefault("n_acc", []).append(empty)
        values.setdefault("giou", []).append(score)
        values.setdefault("format_rate", []).append(well_formed(response))
        values.setdefault("thinking_rate", []).append(has_thinking(response))
        intersections, unions = intersections + intersection, unions + union
    scores = {name: float(np.mean(each)) for name, each in values.items()}
    return scores | {"ciou": intersections / unions} if unions else scores


def _areas(prediction: Prediction, given: Sequence[Box], true: Sequence[Box]) -> tuple[float, float]:
    """Intersection and union of an answer and its truth: of masks, or of the areas that boxes cover."""
    truth = parse_truth(prediction.ground_truth)
    if prediction.mask and "mask" in truth:
        return overlap(prediction.mask, truth["mask"], truth.get("ignore"))
    if prediction.mask and not true:
        return 0.0, area(prediction.mask)
    return covered(given, true)


def _matched_share(given: Sequence[Box], true: Sequence[Box]) -> float:
    if not given:
        return 0.0
    hits = np.array([[iou(a, b) > 0.5 for b in true] for a in given])
    rows, columns = linear_sum_assignment(hits, maximize=True)
    return float(hits[rows, columns].sum()) / max(len(given), len(true))
