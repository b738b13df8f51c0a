"""Finding defects: Real-IAD (Wang et al. 2024, arXiv 2403.12580).

The layout of the data set: a JSON file for each class, and beside them the images in one of three sizes,

    realiad_jsons/realiad_jsons/audiojack.json
        {"meta": {"normal_class": "OK", "prefix": "audiojack/", …},
         "train": [{"category": "audiojack", "anomaly_class": "OK", "image_path": "OK/S0001/….jpg", "mask_path": null}],
         "test": [{…, "anomaly_class": "BX", "image_path": "NG/BX/S0003/….jpg", "mask_path": "NG/BX/S0003/….png"}]}
    realiad_1024/audiojack/NG/BX/S0003/….jpg

Paths start from `task.image_root` (realiad_1024) and the prefix. Where a defect does not show from a picture's side,
there is no mask, and so nothing to find.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from shapely import union_all
from shapely.geometry import box as polygon
from sklearn.metrics import roc_auc_score

from visurf_ray.answers.boxes import answered_boxes, parse_targets
from visurf_ray.answers.rle import area
from visurf_ray.data.rows import Row
from visurf_ray.errors import DataError
from visurf_ray.groups import Metrics, Prediction
from visurf_ray.scoring.metrics import score_boxes
from visurf_ray.tasks.box_task import AS_LIST
from visurf_ray.tasks.mask_task import MaskTask

_SPLITS = ("train", "test")


class AnomalyTask(MaskTask):
    """The solution is the defects of a picture, and the empty list for a flawless one."""

    prompts: ClassVar[dict[str, str]] = {
        "detailed": (
            "{query} Reason first, between <think> and </think>: go over its surface, and weigh whether what stands "
            f"out is a defect or belongs to it. {AS_LIST} Answer [] if it is flawless."
        ),
        "plain": "{query}",
    }

    def read(self, source: str) -> list[Row]:
        """`FILE.json:train` or `FILE.json:test` of a Real-IAD class, `FOLDER:train` or `FOLDER:test` of all classes in
        a folder; or any table that read_rows knows. Raises DataError.
        """
        name, _, split = source.rpartition(":")
        path = Path(name if split in _SPLITS else source).expanduser()
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        classes = {file: content for file in files if (content := _read_class(file)) is not None}
        if not classes:
            return super().read(source)
        if others := [file.name for file in files if file not in classes]:
            raise DataError(f"{source}: {others[0]} is no class of Real-IAD, or is damaged")
        if split not in _SPLITS:
            raise DataError(f"{source} holds two splits: write {source}:train or {source}:test")
        root = Path(self.config.image_root).expanduser() if self.config.image_root else None
        rows = [
            _row(entry, content["meta"]["prefix"], root or file.parent, f"{file}:{split}, row {number}")
            for file, content in classes.items()
            for number, entry in enumerate(content[split])
        ]
        if not rows:
            raise DataError(f"{source} has no rows")
        return rows

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """roc_auc: area under the ROC curve of the share of the image that the answer covers, over pictures with a
        defect against those without. roc_auc_binarised: of whether it covers anything, which is (TPR + TNR) / 2 and
        what VisionReasoner's calculate_acc_auc.py reports. Both are left out where all pictures are of one kind. Beside
        them stand the metrics of score_boxes.

        An answer that cannot be parsed covers nothing, as there; see format_rate for how many there are.
        """
        scores = score_boxes(predictions)
        defects = np.array([bool(parse_targets(prediction.ground_truth)) for prediction in predictions])
        covered = np.array([covered_share(prediction) for prediction in predictions])
        if len(np.unique(defects)) == 2:
            scores["roc_auc"] = float(roc_auc_score(defects, covered))
            scores["roc_auc_binarised"] = float(roc_auc_score(defects, (covered > 0).astype(float)))
        return scores


def covered_share(prediction: Prediction) -> float:
    """The share of the image that the answer covers, 0 to 1: its mask where there is one, otherwise its boxes.

    What reaches outside does not count.
    """
    if prediction.mask:
        return area(prediction.mask) / math.prod(prediction.mask["size"])
    width, height = prediction.size
    boxes = union_all([polygon(*box) for box in answered_boxes(prediction.response) or []])
    return float(boxes.intersection(polygon(0, 0, width, height)).area / (width * height))


def _read_class(path: Path) -> dict[str, Any] | None:
    """A class of Real-IAD, or None for a file that is none."""
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError:  # JSON lines, or no JSON: whoever reads tables knows better
        return None
    found = isinstance(content, dict) and {"meta", *_SPLITS} <= content.keys() and "prefix" in (content["meta"] or {})
    return content if found else None


def _row(entry: dict[str, Any], prefix: str, root: Path, where: str) -> Row:
    try:
        image, mask, category = (entry[key] for key in ("image_path", "mask_path", "category"))
    except (KeyError, TypeError) as error:
        raise DataError(f"{where}: it must have category, image_path and mask_path") from error
    query = f"Find every defect of the {category.replace('_', ' ')} in this picture."
    mask = root / prefix / mask if mask else None
    return Row(f"{prefix}{image}", query, "[]", root / prefix / image, where, mask=mask)
