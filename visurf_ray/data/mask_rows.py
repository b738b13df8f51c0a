"""VisionReasoner's evaluation sets: an image, a question, and the mask of the objects that answer it.

Columns (`Ricky06662/ReasonSeg_test`, `Ricky06662/grefcoco_val_all`; JIA-Lab-research/VisionReasoner,
evaluation_segmentation.py):

- `image`: an encoded image, or a path.
- `text`: the question.
- `mask`, of the image's size: nested booleans (H, W); or an image, encoded or by its path, whose non-zero pixels belong
  to the objects; or a COCO RLE.
- `bbox`, optional: `[x1, y1, x2, y2]` of the only object.
- `id`, or `image_id` and `ann_id`, optional: name the row in messages.

Training and the box metrics need boxes and points; these are made from the masks.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visurf_ray.aliases import Json
from visurf_ray.answers.boxes import dump_truth, numbers
from visurf_ray.answers.rle import bounding_box, check_rle, decode, encode, objects_in
from visurf_ray.data.bad_rows import each
from visurf_ray.data.pictures import find_pictures, load_mask
from visurf_ray.data.remote import folder_or_address
from visurf_ray.data.rows import Columns, Row, check_columns, rows_of
from visurf_ray.data.tables import Table
from visurf_ray.errors import DataError, short

COLUMNS: Columns = {
    "id": ("id",),
    "problem": ("text",),
    "solution": ("text",),  # a placeholder, replaced by what is made from the mask
    "image": ("image",),
    "image_id": ("image_id",),
    "ann_id": ("ann_id",),
    "bbox": ("bbox",),
}


def mask_rows(table: Table, image_root: str | None, *, one_object: bool, outside: bool = False) -> list[Row]:
    """Return the rows of a table of masks.

    Args:
        table: The table.
        image_root: The folder, or its address, that relative image paths start from. None: that of the data file.
        one_object: Whether a mask is one object; otherwise each connected part is one.
        outside: See `find_pictures`.

    Raises:
        DataError: A column is missing, or a row's mask or box is malformed.
    """
    check_columns(table, ("image", "text", "mask"))
    root = folder_or_address(image_root) if image_root else table.root
    cells = table.cells("mask")  # Arrow values: millions of Python booleans would be slow

    def read(row: Row) -> Row:
        keys = [str(row.extra[key]) for key in ("image_id", "ann_id") if row.extra[key] is not None]
        if keys and row.id == str(table.number(row.place)):
            row = replace(row, id="-".join(keys), where=f"{row.where} (id {'-'.join(keys)})")
        mask = _mask(cells[row.place], root, row.where, outside)
        box = row.extra["bbox"]
        if box is not None and numbers(box, 4) is None:
            raise DataError(f"{row.where}: the bbox must be [x1, y1, x2, y2], not {short(box)}")
        if box is None and one_object and mask.any():
            box = bounding_box(mask)
        return replace(row, solution=dump_truth(objects_in(mask, box), mask=encode(mask)), extra={})

    with ThreadPoolExecutor() as threads:  # decoding and measuring release the GIL
        found = threads.map(lambda row: each(read, [row]), rows_of(table, image_root, COLUMNS, outside=outside))
        return [row for rows in found for row in rows]


def _mask(cell: Json | pa.Scalar, root: Path | str, where: str, outside: bool) -> NDArray[np.bool_]:
    """Return the mask (H, W) in a cell. Raises DataError if it is malformed."""
    try:
        if isinstance(cell, pa.ListScalar | pa.LargeListScalar) and cell.values is not None:
            lines = cell.values
            pixels = lines.flatten()
            if len(pc.unique(pc.list_value_length(lines))) > 1 or pixels.null_count:
                raise ValueError("its lines differ in length, or lack pixels")
            return np.asarray(pixels).reshape(len(lines), -1) != 0
        value = cell.as_py() if isinstance(cell, pa.Scalar) else cell
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = json.loads(value)
        if isinstance(value, dict) and "counts" in value:
            return decode(check_rle(value))
        if isinstance(value, list) and all(isinstance(line, list) for line in value):
            return np.asarray(value, np.float64).reshape(len(value), -1) != 0
        (picture,) = find_pictures(value, root, "the mask", outside=outside)
        return load_mask(picture, "the mask")
    except (ValueError, TypeError, KeyError, AttributeError, DataError) as error:
        raise DataError(
            f"{where}: the mask must be nested booleans of one length, an image, or a COCO RLE ({short(error, 300)})"
        ) from error
