"""Finding defects: Real-IAD (Wang et al. 2024, arXiv 2403.12580).

The data set has a JSON file for each class, and folders of images in three sizes:

    realiad_jsons/realiad_jsons/audiojack.json
        {"meta": {"normal_class": "OK", "prefix": "audiojack/", …},
         "train": [{"category": "audiojack", "anomaly_class": "OK", "image_path": "OK/S0001/….jpg", "mask_path": null}],
         "test": [{…, "anomaly_class": "BX", "image_path": "NG/BX/S0003/….jpg", "mask_path": "NG/BX/S0003/….png"}]}
    realiad_1024/audiojack/NG/BX/S0003/….jpg

A file is at `task.image_root`/prefix/path, image_root being realiad_1024. Without image_root, the path starts from the
folder of the JSON file. If a defect is not visible from the camera angle of a picture, the picture has no mask, and its
ground truth is empty.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from sklearn.metrics import roc_auc_score

from visurf_ray.aliases import Json
from visurf_ray.answers.boxes import answered_boxes, parse_targets
from visurf_ray.answers.rle import area
from visurf_ray.data.bad_rows import each
from visurf_ray.data.pictures import inside
from visurf_ray.data.rows import Row, json_object
from visurf_ray.errors import DataError
from visurf_ray.groups import Metrics, Prediction
from visurf_ray.scoring.metrics import covered, score_boxes
from visurf_ray.tasks.box_task import AS_LIST
from visurf_ray.tasks.mask_task import MaskTask

_SPLITS = ("train", "test")


class AnomalyTask(MaskTask):
    """The solution is a list of the defects in a picture, empty for a picture without one.

    Rows of Real-IAD have a mask in place of the solution (see MaskTask), or none, which means an empty list.
    """

    pooled = frozenset({"ciou", "roc_auc", "roc_auc_binarised"})
    prompts: ClassVar[dict[str, str]] = {
        "detailed": (
            "{query} Reason first, between <think> and </think>: go over its surface, and weigh whether what stands "
            f"out is a defect or part of the object. {AS_LIST} Answer [] if it is flawless."
        ),
        "plain": "{query}",
    }

    def read(self, source: str) -> list[Row]:
        """Read a split of Real-IAD, or a table as BoxTask reads it.

        Args:
            source: `FILE.json:train` or `FILE.json:test` for one class; `FOLDER:train` or `FOLDER:test` for all classes
                in a folder; or a table.

        Raises:
            DataError: The data cannot be read or are malformed, or `source` names no split.
        """
        name, _, split = source.rpartition(":")
        path = Path(name if split in _SPLITS else source).expanduser()
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        classes = {file: content for file in files if (content := _read_class(file)) is not None}
        if not classes:
            return super().read(source)
        if others := [file.name for file in files if file not in classes]:
            raise DataError(f"{source}: {others[0]} is not a class file of Real-IAD, or is damaged")
        if split not in _SPLITS:
            raise DataError(f"{source} holds two splits: write {source}:train or {source}:test")
        root = Path(self.config.image_root).expanduser() if self.config.image_root else None
        entries = [
            (entry, content["meta"]["prefix"], root or file.parent, f"{file}:{split}, row {number}")
            for file, content in classes.items()
            for number, entry in enumerate(content[split])
        ]
        rows = each(lambda entry: _row(*entry, self.config.outside_paths), entries)
        if not rows:
            raise DataError(f"{source} has no rows")
        return rows

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Return the metrics of score_boxes, and the areas under two ROC curves of pictures with and without defects.

        - roc_auc: ranks pictures by the share of the image that the answer covers.
        - roc_auc_binarised: ranks them by whether the answer covers anything. This equals (TPR + TNR) / 2, which
          VisionReasoner's calculate_acc_auc.py reports.

        Both are left out if all pictures have a defect or none has. As in the original, an answer that cannot be parsed
        covers nothing; format_rate shows how many answers are well-formed.
        """
        scores = score_boxes(predictions)
        defects = np.array([bool(parse_targets(prediction.ground_truth)) for prediction in predictions])
        shares = np.array([covered_share(prediction) for prediction in predictions])
        if len(np.unique(defects)) == 2:
            scores["roc_auc"] = float(roc_auc_score(defects, shares))
            scores["roc_auc_binarised"] = float(roc_auc_score(defects, (shares > 0).astype(float)))
        return scores


def covered_share(prediction: Prediction) -> float:
    """Return the share of the image, 0 to 1, that the answer's mask covers, or its boxes if it has no mask.

    Parts of boxes outside the image do not count.
    """
    if prediction.mask:
        return area(prediction.mask) / math.prod(prediction.mask["size"])
    width, height = prediction.size
    inside, _ = covered(answered_boxes(prediction.response) or [], [(0, 0, width, height)])
    return inside / (width * height)


def _read_class(path: Path) -> dict[str, Json] | None:
    """Return the content of a Real-IAD class file, or None if the file is not one."""
    content = json_object(path)
    if content is None or not {"meta", *_SPLITS} <= content.keys():
        return None
    return content if "prefix" in (content["meta"] or {}) else None


def _row(entry: dict[str, Json], prefix: str, root: Path, where: str, outside: bool) -> Row:
    try:
        image, mask, category = (entry[key] for key in ("image_path", "mask_path", "category"))
        query = f"Find every defect of the {category.replace('_', ' ')} in this picture."
        mask = inside(root / prefix / mask, root, where, outside=outside) if mask else None
        path = inside(root / prefix / image, root, where, outside=outside)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: it must have category, image_path and mask_path as text") from error
    return Row(f"{prefix}{image}", query, "[]", (path,), where, mask=mask)
