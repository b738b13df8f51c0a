"""Reasoning segmentation: a question that requires reasoning, and the mask of the objects that answer it.

ReasonSeg (dvlab-research/LISA, utils/data_processing.py) is a folder with NAME.jpg and NAME.json for each image; images
of other kinds are read as well. The JSON has `text`, a list of wordings of one question; `is_sentence`, whether these
are sentences or phrases; and `shapes`, polygons with `label` and `points` [[x, y], …] in pixels of the image as viewers
show it. The labels are `target` for objects, `ignore` for pixels that do not count, and `flag` for polygons to skip.
Smaller polygons are painted over larger ones.
"""

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from visurf_ray.aliases import Json
from visurf_ray.answers.boxes import are_shares, dump_truth
from visurf_ray.answers.rle import encode, objects_in
from visurf_ray.data.bad_rows import each
from visurf_ray.data.pictures import ENDINGS, picture_size, pictures_in
from visurf_ray.data.rows import Row
from visurf_ray.data.texts import check_encoding
from visurf_ray.errors import DataError
from visurf_ray.tasks.box_task import AS_LIST, BoxTask

_TARGET, _IGNORE = 1, 255


class ReasoningSegmentationTask(BoxTask):
    """`task.train` and `task.held_out` name ReasonSeg folders, or tables as BoxTask reads them."""

    prompts: ClassVar[dict[str, str]] = {
        "detailed": (
            'A question or description: "{query}" Work out which objects in the image it is about. Reason first, '
            f"between <think> and </think>: what is asked for, what the image shows, which objects fit. {AS_LIST} "
            "Answer [] if no object fits."
        ),
        "plain": "{query}",
    }

    def read_split(self, source: str, key: str) -> list[Row]:
        """Read a ReasonSeg folder as LISA does: all wordings of a question for training, the first for evaluation."""
        folder = Path(source).expanduser()
        if not folder.is_dir() or not any(image.with_suffix(".json").is_file() for image in pictures_in(folder)):
            return super().read_split(source, key)
        return read_reasonseg(folder, every_text=key == "train")


def read_reasonseg(folder: Path, *, every_text: bool) -> list[Row]:
    """Return the rows of a folder in ReasonSeg's layout, sorted by file name.

    Args:
        folder: The folder.
        every_text: Whether every wording of a question becomes a row; otherwise only the first does.

    Raises:
        DataError: An annotation is missing or malformed, or has no image or several; or an image cannot be read.
    """
    images = pictures_in(folder)
    counts = Counter(image.stem for image in images)
    for path in sorted(folder.glob("*.json")):
        if counts[path.stem] > 1 or (not counts[path.stem] and _is_annotation(path)):
            raise DataError(
                f"{path} is the annotation of {counts[path.stem]} images, but must be of one: an image has its name "
                f"and one of the endings {', '.join(sorted(ENDINGS))}"
            )
    with ThreadPoolExecutor() as threads:  # painting and measuring release the GIL
        found = list(threads.map(lambda image: each(_read, [image]), images))
    return [row for readable in found for rows in readable for row in rows[: None if every_text else 1]]


def _read(image: Path) -> list[Row]:
    path = image.with_suffix(".json")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{image}: its annotation {path.name} cannot be read: {error.strerror}") from error
    check_encoding(data[:4], str(path))
    try:
        annotation = json.loads(_text(data))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error})") from error
    width, height = picture_size(image, str(path))
    try:
        texts = annotation["text"]
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError("text must be a list of at least one question")
        painted = paint(annotation["shapes"], width, height)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise DataError(f"{path} is not a ReasonSeg annotation with text and shapes: {reason}") from error
    target, ignored = painted == _TARGET, painted == _IGNORE
    solution = dump_truth(objects_in(target), mask=encode(target), ignore=encode(ignored) if ignored.any() else None)
    return [
        Row(f"{image.stem}-{number}" if number else image.stem, text, solution, (image,), str(path))
        for number, text in enumerate(texts)
    ]


def _is_annotation(path: Path) -> bool:
    try:
        value = json.loads(_text(path.read_bytes()))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "shapes" in value


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252")  # the encoding of some of the original files


def paint(shapes: Sequence[dict[str, Json]], width: int, height: int) -> NDArray[np.uint8]:
    """Paint the polygons as LISA's evaluation does.

    Args:
        shapes: Polygons with `label` and `points`.
        width: Width of the image in pixels.
        height: Height of the image in pixels.

    Returns:
        Pixels (H, W): 1 for target, 255 for ignore, 0 for the rest.

    Raises:
        KeyError, TypeError, ValueError: A shape is malformed.
    """
    drawn = []
    for shape in shapes:
        label = shape["label"].lower()
        if label != "flag":
            value = _IGNORE if "ignore" in label else _TARGET
            points = np.array(shape["points"], np.float64)
            if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
                raise ValueError(f"points must be [[x, y], …], not {shape['points']!s:.80}")
            if are_shares(points.ravel().tolist()):
                raise ValueError(f"points must be in pixels, not between 0 and 1: {shape['points']!s:.80}")
            corners = points.astype(np.int32)  # truncated, as in the original
            drawn.append((corners, value, int(_draw(np.zeros((height, width), np.uint8), corners, 1).sum())))
    canvas = np.zeros((height, width), np.uint8)
    for corners, value, _ in sorted(drawn, key=lambda polygon: -polygon[2]):
        _draw(canvas, corners, value)
    return canvas


def _draw(canvas: NDArray[np.uint8], corners: NDArray[np.int32], value: int) -> NDArray[np.uint8]:
    cv2.polylines(canvas, [corners], True, value, 1)
    cv2.fillPoly(canvas, [corners], value)
    return canvas
