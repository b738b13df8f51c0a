"""Ground truths that are masks: boxes and points of the objects that a mask shows."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from visurf_ray.tasks.box_task import BoxTask
from visurf_ray.tasks.boxes import Target
from visurf_ray.tasks.rows import DataError, Row, open_image

_SMALLEST = 25  # pixels of an object; what is smaller is a speck of the annotation
_TOUCHING = np.ones((3, 3))  # pixels that meet at a corner are of one object


class MaskTask(BoxTask):
    """A box task whose rows may give their solution as `Row.mask`."""

    one_object = False  # the whole mask is one object, whatever it consists of

    def targets(self, row: Row) -> list[Target]:
        if row.mask is None:
            return super().targets(row)
        mask = read_mask(row.mask, row.where)
        width, height = row.open_image().size
        if mask.shape != (height, width):
            raise DataError(
                f"{row.where}: the mask {row.mask} is {mask.shape[1]}×{mask.shape[0]}, the image {width}×{height}"
            )
        return objects_of(mask, one=self.one_object)


def read_mask(path: Path, where: str) -> NDArray[np.bool_]:
    """A mask image, height × width: whatever is not black. Raises DataError when it is missing or damaged."""
    try:
        return np.asarray(open_image(path, where).convert("L")) > 0
    except OSError as error:
        raise DataError(f"{where}: the mask {path} is damaged ({error})") from error


def objects_of(mask: NDArray[np.bool_], *, one: bool = False, smallest: int = _SMALLEST) -> list[Target]:
    """The objects that a mask of height × width shows, in the order of their top rows; none for an empty mask.

    An object is a connected component (8 neighbours) of `smallest` pixels at least, or with `one` the whole mask; where
    all are smaller, the largest is kept. Its box is that of its pixels, the far edges exclusive, so that a box's area
    is that of the pixels it covers. Its point is the pixel farthest from its edge, which lies on it as a centre may not
    (the maximum of the distance transform, as in VisionReasoner's data preparation).
    """
    labels = mask.astype(int) if one else ndimage.label(mask, structure=_TOUCHING)[0]
    areas = np.bincount(labels.ravel())[1:]
    least = min(smallest, areas.max(initial=0))
    return [
        _target(labels[place] == number, place)
        for number, place in enumerate(ndimage.find_objects(labels), 1)
        if areas[number - 1] >= least
    ]


def _target(pixels: NDArray[np.bool_], place: tuple[slice, slice]) -> Target:
    rows, columns = place
    depth = ndimage.distance_transform_edt(np.pad(pixels, 1))[1:-1, 1:-1]  # padded: the image's border is an edge
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    box = (columns.start, rows.start, columns.stop, rows.stop)
    return Target(box, (columns.start + int(x), rows.start + int(y)))
