"""Metrics of answers that are lists of boxes and points, as the evaluations of VisionReasoner and gRefCOCO define them.

T_acc and Pr@X are those of gRefCOCO (Liu et al. 2023, arXiv 2306.00968; henghuiding/ReLA, refer_evaluation.py).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from visurf_ray.answers.boxes import Box, answered_boxes, ious, parse_items, parse_targets, well_formed
from visurf_ray.answers.responses import has_thinking
from visurf_ray.answers.rle import area, overlap, parse_masks
from visurf_ray.groups import Metrics, Prediction

_THRESHOLDS = (0.7, 0.8, 0.9)  # of Pr@X


def union_iou(given: Sequence[Box], true: Sequence[Box]) -> float:
    """Return the IoU of the areas that two sets of boxes cover, or 0 if neither covers anything."""
    intersection, union = covered(given, true)
    return intersection / union if union > 0 else 0.0


def covered(given: Sequence[Box], true: Sequence[Box]) -> tuple[float, float]:
    """Return the areas of intersection and union of what two sets of boxes cover.

    They are measured on the grid of all edges, which has at most (2N)² cells. The outline of N boxes can have N²
    corners, which takes a library of geometry seconds.
    """
    edges = np.array([*given, *true], np.float64).reshape(-1, 4)
    xs, ys = np.unique(edges[:, [0, 2]]), np.unique(edges[:, [1, 3]])
    if not len(edges):
        return 0.0, 0.0
    first, second = (_cells(boxes, xs, ys) for boxes in (given, true))
    widths, heights = np.diff(xs), np.diff(ys)
    return float(widths @ (first & second) @ heights), float(widths @ (first | second) @ heights)


def _cells(boxes: Sequence[Box], xs: NDArray[np.float64], ys: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which cells of a grid the boxes cover. The grid's lines `xs` and `ys` have all of the boxes' edges."""
    x1, y1, x2, y2 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    left, right, top, bottom = xs.searchsorted(x1), xs.searchsorted(x2), ys.searchsorted(y1), ys.searchsorted(y2)
    steps = np.zeros((len(xs), len(ys)), np.int16)  # how many boxes begin and end at a corner
    for x, y, step in ((left, top, 1), (right, bottom, 1), (left, bottom, -1), (right, top, -1)):
        np.add.at(steps, (x, y), step)
    covering = steps.cumsum(0, dtype=np.int16).cumsum(1, dtype=np.int16)
    return np.asarray(covering[:-1, :-1] > 0)


def score_boxes(predictions: Sequence[Prediction]) -> Metrics:
    """Return the metrics of answers that are lists of boxes and points. A metric without examples is left out.

    I and U are the areas of intersection and union of an example's answer and ground truth. They are measured on masks,
    in pixels of the stored image, if the answer has a mask and the ground truth has one or is empty; otherwise on what
    the boxes cover, in pixels of the image that the model sees.

    - giou: mean of I/U. For an empty ground truth it is 1 if the answer is `[]`, else 0. (gRefCOCO's gIoU, arXiv
      2306.00968; not the generalized IoU of boxes.)
    - ciou: sum of I over sum of U.
    - bbox_acc: of examples with objects, the mean of: number of answered and true boxes matched one to one at
      IoU > 0.5, over the larger of the two numbers of boxes.
    - n_acc: of examples with an empty ground truth, the share answered `[]`. An answer that cannot be parsed is not
      `[]`; in the original it is, and earns both n_acc and giou.
    - t_acc: of examples with objects, the share whose answer has a box with an area, or a mask that is not empty.
    - pr@0.7, pr@0.8, pr@0.9: of examples with objects, the share with an I/U of at least this.
    - empty_rate: of examples with objects, the share answered `[]`.
    - format_rate: share of well-formed answers.
    - thinking_rate: share of responses with reasoning before the answer.
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
            values.setdefault("t_acc", []).append(bool(given) or bool(prediction.mask and area(prediction.mask)))
            for threshold in _THRESHOLDS:
                values.setdefault(f"pr@{threshold}", []).append(score >= threshold)
        else:
            score = float(empty)
            values.setdefault("n_acc", []).append(empty)
        values.setdefault("giou", []).append(score)
        values.setdefault("format_rate", []).append(well_formed(response))
        values.setdefault("thinking_rate", []).append(has_thinking(response))
        intersections, unions = intersections + intersection, unions + union
    scores = {name: float(np.mean(each)) for name, each in values.items()}
    return scores | {"ciou": intersections / unions} if unions else scores


def all_found(prediction: Prediction) -> bool:
    """Return whether an answer counts fully in bbox_acc, or for an empty ground truth in n_acc (see `score_boxes`)."""
    true = [target.bbox_2d for target in parse_targets(prediction.ground_truth)]
    if not true:
        return parse_items(prediction.response) == []
    return _matched_share(answered_boxes(prediction.response) or [], true) == 1


def _areas(prediction: Prediction, given: Sequence[Box], true: Sequence[Box]) -> tuple[float, float]:
    """Return the areas of intersection and union of an answer and its ground truth (see `score_boxes`)."""
    masks = parse_masks(prediction.ground_truth) if prediction.mask else {}
    if prediction.mask and "mask" in masks:
        return overlap(prediction.mask, masks["mask"], masks.get("ignore"))
    if prediction.mask and not true:
        return 0.0, area(prediction.mask)
    return covered(given, true)


def _matched_share(given: Sequence[Box], true: Sequence[Box]) -> float:
    """Return the number of boxes matched at IoU > 0.5, over the number of given or of true boxes if they are more."""
    if not given:
        return 0.0
    hits = ious(given, true) > 0.5
    rows, columns = linear_sum_assignment(hits, maximize=True)
    return float(hits[rows, columns].sum()) / max(len(given), len(true))
