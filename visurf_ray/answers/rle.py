"""Masks as COCO's run lengths (RLE): small, JSON, and counted without being unpacked.

An `Rle` is `{"size": [H, W], "counts": "…"}`, as `pycocotools.mask` reads and writes it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from scipy import ndimage

from visurf_ray.answers.boxes import Target, parse_truth

Rle = dict[str, Any]

# Connected parts below this share of the largest are specks that drawing and occlusion leave, and no objects.
_SPECK = 0.01


def encode(mask: NDArray[Any]) -> Rle:
    """The run lengths of a mask (H, W): what is not 0 belongs to it."""
    rle = coco.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def decode(rle: Rle) -> NDArray[np.bool_]:
    """The mask (H, W). Raises ValueError for run lengths that do not fit the size."""
    return coco.decode(rle).astype(bool)


def check_rle(value: Any) -> Rle:
    """`value` with its run lengths compressed, if they were a list. Raises ValueError for what is no COCO RLE."""
    try:
        height, width = (int(side) for side in value["size"])
        counts = value["counts"]
        if isinstance(counts, list):
            if min(counts, default=-1) < 0 or sum(counts) != height * width:
                raise ValueError("the runs must cover the image")
            return encode(coco.decode(coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)))
        rle = {"size": [height, width], "counts": counts.decode() if isinstance(counts, bytes) else counts}
        if int(decode(rle).sum()) != area(rle):  # runs that end early leave the rest undefined
            raise ValueError("the runs must cover the image")
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"is no COCO RLE, {{'size': [H, W], 'counts': …}} ({error}): {str(value)[:80]}") from error
    return rle


def parse_masks(ground_truth: str) -> dict[str, Rle]:
    """The `mask` and the `ignore` of a ground truth, as far as it has them. Raises ValueError for what is no RLE."""
    truth = parse_truth(ground_truth)
    found: dict[str, Rle] = {}
    for name in ("mask", "ignore"):
        if name in truth:
            try:
                found[name] = check_rle(truth[name])
            except ValueError as error:
                raise ValueError(f"has a {name} that {error}") from error
    return found


def overlap(first: Rle, second: Rle, ignore: Rle | None = None) -> tuple[int, int]:
    """Pixels of the intersection and of the union of two masks, those of `ignore` not counted.

    Raises ValueError for masks of different sizes.
    """
    sizes = [rle["size"] for rle in (first, second, ignore) if rle]
    if any(size != sizes[0] for size in sizes):
        raise ValueError(f"masks differ in size: {', '.join(map(str, sizes))}")
    both, either = coco.merge([first, second], intersect=True), coco.merge([first, second])
    found = [int(coco.area(rle)) for rle in (both, either)]
    if ignore:
        found = [
            count - int(coco.area(coco.merge([rle, ignore], intersect=True)))
            for count, rle in zip(found, (both, either), strict=True)
        ]
    return found[0], found[1]


def area(rle: Rle) -> int:
    return int(coco.area(rle))


def bounding_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The box (x1, y1, x2, y2) of a mask's pixels, x2 and y2 behind the last ones. Some pixel must be set."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def objects_in(mask: NDArray[np.bool_], box: Sequence[float] | None = None) -> list[Target]:
    """Boxes and points of what a mask (H, W) shows: one object in `box`, if given, or one for each connected part.

    Pixels that touch at a corner are connected. A box's far edges are the first pixels outside. The point is where the
    distance to what is not the object, the image's frame included, is largest.
    """
    if not mask.any():
        return []
    if box is not None:
        return [Target(tuple(box), _innermost(mask))]  # type: ignore[arg-type]
    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(parts), 1):
        if sizes[number - 1] < _SPECK * sizes.max():
            continue
        x, y = _innermost(parts[rows, columns] == number)
        corners = (columns.start, rows.start, columns.stop, rows.stop)
        found.append(Target(corners, (x + columns.start, y + rows.start)))
    return found


def _innermost(mask: NDArray[np.bool_]) -> tuple[int, int]:
    distances = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(np.argmax(distances), distances.shape)
    return int(x), int(y)
