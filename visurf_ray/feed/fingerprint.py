"""Tells whether the training rows are still those with which a run has begun.

A position in the data means something for the same rows alone. Of pictures in files their names and sizes count, not
when they were changed: rows that were copied are the same.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

from PIL import Image

from visurf_ray.aliases import Json
from visurf_ray.data.pictures import Picture
from visurf_ray.data.rows import Row
from visurf_ray.data.stored import StoredImage, StoredLine
from visurf_ray.errors import DataError

_BLOCKS = 64  # the most hashes of a part, so that a message can say where rows have changed


@dataclass(frozen=True)
class Fingerprint:
    """What tells the training rows of a part from others.

    Attributes:
        rows: how many there are.
        blocks: a hash of each of up to 64 blocks of rows, nearly equally long.
    """

    rows: int
    blocks: list[str]

    @staticmethod
    def of(rows: Sequence[Row], checked: int) -> "Fingerprint":
        """Return the fingerprint of rows.

        Args:
            rows: The rows.
            checked: How many rows, from the first on, have picture files that are looked at. Later ones may lack them.
        """
        numbers = range(len(rows))
        hashes = [
            _hash(part for number in numbers[begin:end] for part in _row(rows[number], number < checked))
            for begin, end in pairwise(_bounds(len(rows)))
        ]
        return Fingerprint(len(rows), hashes)


def check_rows(
    before: Mapping[str, Mapping[str, Json]], now: Mapping[str, Fingerprint], checkpoint: Path, *, override: bool
) -> str | None:
    """Compare the training rows of each part with those that a run had when it wrote a checkpoint.

    Args:
        before: The earlier fingerprints, as JSON holds them.
        now: Those of the rows that there are.
        checkpoint: Its folder.
        override: The value of train.resume_override.

    Returns:
        A line that says what has changed; None if nothing has.

    Raises:
        DataError: Rows have changed, and may not.
    """
    changes = [
        f"{f'task.parts.{part}.train' if part else 'task.train'}: {change}"
        for part, found in now.items()
        if (change := _change(Fingerprint(**before[part]) if part in before else None, found))
    ]
    if changes and not override:
        raise DataError(
            f"{checkpoint} was written with other training rows: {'; '.join(changes)}. Continue with the earlier ones, "
            "or set train.resume_override=true: then rows may be drawn twice in an epoch, or not at all"
        )
    return f"resumed with other training rows: {'; '.join(changes)}" if changes else None


def _change(before: Fingerprint | None, now: Fingerprint) -> str | None:
    if before is None:
        return f"it has {now.rows:,} rows, and there was no such part"
    if before.rows != now.rows:
        return f"it has {now.rows:,} rows (before: {before.rows:,})"
    bounds = pairwise(_bounds(now.rows))
    changed = [place for place, was, new in zip(bounds, before.blocks, now.blocks, strict=True) if was != new]
    if not changed:
        return None
    (begin, end), others = changed[0], len(changed) - 1
    where = f"row {begin} has" if end == begin + 1 else f"rows {begin} to {end - 1} have"
    further = f", and {others} further block{'s' if others > 1 else ''} of rows" if others else ""
    return f"of {now.rows:,} rows, {where} changed{further}"


def _bounds(rows: int) -> list[int]:
    """Return where blocks begin, and the end of the last."""
    blocks = min(rows, _BLOCKS)
    return [rows * block // blocks for block in range(blocks + 1)] if blocks else [0]


def _hash(parts: Iterator[bytes]) -> str:
    found = blake2b(digest_size=8)
    for part in parts:
        found.update(part)
    return found.hexdigest()


def _row(row: Row, checked: bool) -> Iterator[bytes]:
    texts = [row.id, row.problem, row.solution, row.thinking, row.system, row.turns, row.extra]
    yield json.dumps(texts, default=str).encode("utf-8", "surrogatepass")
    for picture in row.images if row.mask is None else (*row.images, row.mask):
        yield from _picture(picture, checked)


def _picture(picture: Picture, checked: bool) -> Iterator[bytes]:
    """Yield what tells a picture from others. Of a picture at an address only the address counts."""
    if isinstance(picture, StoredImage):
        yield str(picture.cells[picture.index].as_buffer().size).encode()
    elif isinstance(picture, StoredLine):
        yield str(picture.length).encode()
    elif isinstance(picture, Image.Image):
        yield f"{picture.mode} {picture.size}".encode() + picture.tobytes()
    elif isinstance(picture, bytes):
        yield picture
    elif isinstance(picture, Path):
        size = picture.stat().st_size if checked and picture.is_file() else None
        yield f"{picture.name} {size}".encode()
    else:
        yield repr(picture).encode()
