"""Masks as COCO run-length encodings (RLE): small, valid JSON, and measured without being decoded."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from scipy import ndimage

from visurf_ray.aliases import Json
from visurf_ray.answers.boxes import MOST_ITEMS, IntBox, Target, parse_truth

Rle = dict[str, Json]  # {"size": [H, W], "counts": "…"}, as pycocotools.mask reads and writes it

# A connected part smaller than this share of the largest one is left over from drawing or occlusion, not an object.
_SPECK = 0.01
_MOST_PIXELS = 178_956_970  # of a mask: Pillow opens no larger image


def encode(mask: NDArray[np.generic]) -> Rle:
    """Return the RLE of a mask (H, W), to which all non-zero pixels belong."""
    rle = coco.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def decode(rle: Rle) -> NDArray[np.bool_]:
    """Return the mask (H, W).

    Raises:
        ValueError: The runs do not fit the size.
    """
    return coco.decode(rle).astype(bool)


def check_rle(value: Json) -> Rle:
    """Return `value` as an RLE with compressed counts; its counts may be compressed or a list of run lengths.

    Raises:
        ValueError: `value` is not a COCO RLE, or its runs do not cover the image exactly.
    """
    try:
        height, width = (int(side) for side in value["size"])
        if min(height, width) < 0 or height * width > _MOST_PIXELS:  # pycocotools would write beyond its memory
            raise ValueError(f"a mask may have at most {_MOST_PIXELS:,} pixels")
        counts = value["counts"]
        if isinstance(counts, list):
            if min(counts, default=-1) < 0 or sum(counts) != height * width:
                raise ValueError("the runs must cover the image")
            return encode(coco.decode(coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)))
        rle = {"size": [height, width], "counts": counts.decode() if isinstance(counts, bytes) else counts}
        if int(decode(rle).sum()) != area(rle):  # pixels after the last run are undefined
            raise ValueError("the runs must cover the image")
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"is not a COCO RLE {{'size': [H, W], 'counts': …}} ({error}): {str(value)[:80]}") from error
    return rle


def parse_masks(ground_truth: str) -> dict[str, Rle]:
    """Return the `mask` and the `ignore` mask of a ground truth, each only if the ground truth has it.

    Raises:
        ValueError: One of them is not an RLE. The message continues "row N: the solution …".
    """
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
    """Return the numbers of pixels in the intersection and the union of two masks; pixels in `ignore` do not count.

    Raises:
        ValueError: The masks differ in size.
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
    """Return the mask's number of pixels."""
    return int(coco.area(rle))


def bounding_box(mask: NDArray[np.bool_]) -> IntBox:
    """Return the box around all pixels of a mask that is not empty; x2 and y2 are the first column and row outside."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def objects_in(mask: NDArray[np.bool_], box: Sequence[float] | None = None) -> list[Target]:
    """Return boxes and points of the objects in a mask.

    Args:
        mask: The mask (H, W).
        box: The box of the only object. None: each connected part is an object; pixels that touch at a corner are
            connected.

    Returns:
        One target for each object; none for an empty mask. The x2 and y2 of a box that is made here are the first
        column and row outside. The point is the pixel of the object that is farthest from any pixel outside it; the
        image counts as surrounded by such pixels.

    Raises:
        ValueError: The mask has more than MOST_ITEMS parts, specks included.
    """
    if not mask.any():
        return []
    if box is not None:
        x1, y1, x2, y2 = box
        return [Target((x1, y1, x2, y2), _innermost(mask))]
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    if count > MOST_ITEMS:
        raise ValueError(f"has a mask of {count} parts, but may have at most {MOST_ITEMS}")
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
    """Return x and y of the mask's pixel that is farthest from any pixel outside it."""
    distances = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(np.argmax(distances), distances.shape)
    return int(x), int(y)
