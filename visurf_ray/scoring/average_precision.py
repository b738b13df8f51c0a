"""COCO's average precision (https://cocodataset.org/#detection-eval), as pycocotools computes it."""

from collections.abc import Hashable, Sequence
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from visurf_ray.answers.boxes import Box
from visurf_ray.answers.visual_rft import Detection

Image = tuple[Hashable, Sequence[Detection], Sequence[Box]]  # the category asked for, the detections, the true boxes


def average_precision(images: Sequence[Image]) -> tuple[float, float] | None:
    """Return AP and AP50, means over the categories between 0 and 1, or None if there is no true box.

    AP is the mean over the IoU thresholds 0.50, 0.55, … 0.95 of the precision at 101 recalls; a box is a hit if its IoU
    reaches the threshold. Boxes are ranked by confidence over all images of their category; of each image the 100 most
    confident boxes count. A category without true boxes has no AP and is left out.

    Args:
        images: For each image the category asked for, the detections and the true boxes. Boxes may be in any unit that
            is the same for all boxes of an image.
    """
    if not any(true for _, _, true in images):
        return None
    ids = {name: number for number, name in enumerate(dict.fromkeys(name for name, _, _ in images), 1)}
    true: list[dict[str, object]] = []
    found: list[dict[str, object]] = []
    for image, (name, detections, boxes) in enumerate(images, 1):
        where = {"image_id": image, "category_id": ids[name]}
        true += [where | _annotation(box) for box in boxes]
        found += [where | _annotation(box) | {"score": confidence} for box, confidence in detections]
    with redirect_stdout(StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(*(_index(len(images), list(ids.values()), boxes) for boxes in (true, found)), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, float("inf")]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    precision_TK = evaluation.eval["precision"][:, :, :, 0, 0].mean(1)  # mean of 101 recalls; -1: no true box
    ap_T = precision_TK[:, precision_TK[0] > -1].mean(1)
    return float(np.mean(ap_T)), float(ap_T[0])


def _annotation(box: Box) -> dict[str, object]:
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1
    return {"bbox": [x1, y1, width, height], "area": width * height, "iscrowd": 0}


def _index(images: int, categories: Sequence[int], annotations: Sequence[dict[str, object]]) -> COCO:
    """Return the annotations as pycocotools takes them.

    Annotation ids start from 1, because COCOeval reads a match with annotation 0 as no match.
    """
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(1, images + 1)],
        "categories": [{"id": number} for number in categories],
        "annotations": [annotation | {"id": number} for number, annotation in enumerate(annotations, 1)],
    }
    coco.createIndex()
    return coco
