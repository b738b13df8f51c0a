"""Finding the lesion on a picture of skin: ISIC 2018, task 1 (Codella et al. 2019, arXiv 1902.03368).

The data set has two folders for each split, one of images and one of their masks:

    ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg
    ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from visurf_ray.answers.boxes import Box, answered_boxes, ious, parse_items, parse_targets
from visurf_ray.data.bad_rows import each
from visurf_ray.data.pictures import pictures_in
from visurf_ray.data.rows import Row
from visurf_ray.errors import DataError
from visurf_ray.groups import Metrics, Prediction
from visurf_ray.scoring.metrics import score_boxes
from visurf_ray.tasks.box_task import AS_LIST
from visurf_ray.tasks.mask_task import MaskTask

_BESIDE = ("_segmentation", "_superpixels")  # endings of ISIC's files that are no pictures of skin
_QUERY = "Find the lesion on this picture of skin."


class LesionTask(MaskTask):
    """The solution is one lesion, whose box surrounds the whole mask."""

    one_object = True
    prompts: ClassVar[dict[str, str]] = {
        "detailed": (
            "{query} Reason first, between <think> and </think>: look at colours and borders, and tell the lesion from "
            f"hairs, bubbles and marks. {AS_LIST}"
        ),
        "plain": "{query}",
    }

    def read(self, source: str) -> list[Row]:
        """Read a folder of ISIC images, or a table as BoxTask reads it.

        The masks are in ISIC's folder of masks next to that of the images, or in the folder of the images itself.

        Raises:
            DataError: A mask is missing, or the table cannot be read.
        """
        images = Path(source).expanduser()
        found = [path for path in pictures_in(images) if path.name.startswith("ISIC_")] if images.is_dir() else []
        pictures = [path for path in found if not path.stem.endswith(_BESIDE)]
        if not pictures:
            return super().read(source)
        beside = images.with_name(images.name.replace("_Task1-2_", "_Task1_").replace("_Input", "_GroundTruth"))
        masks = beside if beside.is_dir() else images
        return each(lambda image: _row(image, masks / f"{image.stem}_segmentation.png", source), pictures)

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Return the metrics of score_boxes, and bbox_acc_any.

        bbox_acc_any is the share of right answers. An answer is right if any of its boxes, or the box around all of
        them, has an IoU above 0.5 with the true box; for an empty ground truth, if it is `[]`. This is VisionReasoner's
        bbox_AP, except that an answer that cannot be parsed is not `[]`, and that boxes are not rounded. Answering with
        many boxes raises it, but not bbox_acc of score_boxes.
        """
        scores = score_boxes(predictions)
        if predictions:
            scores["bbox_acc_any"] = float(np.mean([_any_hits(prediction) for prediction in predictions]))
        return scores


def _any_hits(prediction: Prediction) -> bool:
    true = [target.bbox_2d for target in parse_targets(prediction.ground_truth)]
    given = answered_boxes(prediction.response)
    if not given or not true:
        return not true and parse_items(prediction.response) == []
    return bool((ious([*given, _around(given)], [_around(true)]) > 0.5).any())


def _around(boxes: Sequence[Box]) -> Box:
    """Return the box around all boxes."""
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def _row(image: Path, mask: Path, source: str) -> Row:
    where = f"{source}, {image.name}"
    if not mask.is_file():
        raise DataError(f"{where}: there is no mask {mask}")
    return Row(image.stem, _QUERY, "[]", (image,), where, mask=mask)
