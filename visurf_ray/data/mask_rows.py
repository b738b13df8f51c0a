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
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from visurf_ray.aliases import Table
from visurf_ray.answers.boxes import dump_truth, numbers
from visurf_ray.answers.rle import bounding_box, check_rle, decode, encode, objects_in
from visurf_ray.data.rows import Columns, Row, check_columns, root_of, rows_of
from visurf_ray.errors import DataError

COLUMNS: Columns = {
    "id": ("id",),
    "problem": ("text",),
    "solution": ("text",),  # a placeholder, replaced by what is made from the mask
    "image": ("image",),
    "image_id": ("image_id",),
    "ann_id": ("ann_id",),
    "bbox": ("bbox",),
}


def mask_rows(table: Table, source: str, image_root: str | None, *, one_object: bool) -> list[Row]:
    """Return the rows of a table of masks.

    Args:
        table: A `datasets.Dataset`.
        source: The table's name in error messages, and the file or folder it was read from.
        image_root: The folder that relative image paths start from. None: the folder of the data file.
        one_object: Whether a mask is one object; otherwise each connected part is one.

    Raises:
        DataError: A column is missing, or a row's mask or box is malformed.
    """
    check_columns(table, source, ("image", "text", "mask"))
    root = root_of(source, image_root)
    cells = table.data.column("mask")  # Arrow values: millions of Python booleans would be slow

    def read(entry: tuple[int, Row]) -> Row:
        number, row = entry
        keys = [str(row.extra[key]) for key in ("image_id", "ann_id") if row.extra[key] is not None]
        if keys and row.id == str(number):
            row = replace(row, id="-".join(keys), where=f"{row.where} (id {'-'.join(keys)})")
        mask = _mask(cells[number], root, row.where)
        box = row.extra["bbox"]
        if box is not None and numbers(box, 4) is None:
            raise DataError(f"{row.where}: the bbox must be [x1, y1, x2, y2], not {box}")
        if box is None and one_object and mask.any():
            box = bounding_box(mask)
        return replace(row, solution=dump_truth(objects_in(mask, box), mask=encode(mask)), extra={})

    with ThreadPoolExecutor() as threads:  # decoding and measuring release the GIL
        return list(threads.map(read, enumerate(rows_of(table, source, image_root, COLUMNS))))


def _mask(cell: pa.Scalar, root: Path, where: str) -> NDArray[np.bool_]:
    """Return the mask (H, W) in a cell. Raises DataError if it is malformed."""
    try:
        if isinstance(cell, pa.ListScalar | pa.LargeListScalar) and cell.values is not None:
            lines = cell.values
            return np.asarray(lines.flatten()).reshape(len(lines), -1) != 0
        value = cell.as_py()
        if isinstance(value, str):
            value = json.loads(value) if value.lstrip().startswith("{") else {"path": value}
        if isinstance(value, dict) and "counts" in value:
            return decode(check_rle(value))
        stored = value if isinstance(value, bytes) else value.get("bytes")
        return np.asarray(Image.open(BytesIO(stored) if stored else root / value["path"]).convert("L")) != 0
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise DataError(
            f"{where}: the mask must be nested booleans of one length, an image, or a COCO RLE ({error})"
        ) from error
