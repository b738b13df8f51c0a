"""Tasks whose ground truth is a mask image, from which boxes and points are made (see `answers.rle.objects_in`)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visurf_ray.answers.boxes import Target
from visurf_ray.answers.rle import Rle, bounding_box, encode, objects_in
from visurf_ray.data.rows import Row, open_image
from visurf_ray.errors import DataError
from visurf_ray.tasks.box_task import BoxTask


class MaskTask(BoxTask):
    """A box task whose rows may have a mask image, `Row.mask`, in place of a solution."""

    def targets(self, row: Row) -> list[Target]:
        if row.mask is None:
            return super().targets(row)
        mask = read_mask(row.mask, row.where)
        return objects_in(mask, bounding_box(mask) if self.one_object and mask.any() else None)

    def masks(self, row: Row) -> dict[str, Rle]:
        if row.mask is None:
            return super().masks(row)
        return {"mask": encode(read_mask(row.mask, row.where))}


def read_mask(path: Path, where: str) -> NDArray[np.bool_]:
    """Return the mask (H, W) in an image: all pixels that are not black.

    Args:
        path: The image.
        where: File and row, for error messages.

    Raises:
        DataError: The image is missing or damaged.
    """
    try:
        return np.asarray(open_image(path, where).convert("L")) > 0
    except OSError as error:
        raise DataError(f"{where}: the mask {path} is damaged ({error})") from error
