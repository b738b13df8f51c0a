"""Rows of a data set: read with `datasets`, images left undecoded until they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from visurf_ray.errors import UserError

_READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
_COLUMNS = ("problem", "solution", "image")


class DataError(UserError):
    """A data set that cannot be used; the message names the file, the row and what is wrong."""


@dataclass(frozen=True)
class Row:
    """A question about an image, and its ground truth as JSON text. `where` names file and row in error messages."""

    id: str
    problem: str
    solution: str
    image: Any  # a path, encoded bytes, or a PIL image
    where: str
    thinking: str | None = None  # reasoning that leads to the solution, where the data have it

    def open_image(self) -> Image.Image:
        """The image, its pixels not decoded yet. Raises DataError when it is missing or no image."""
        if isinstance(self.image, Image.Image):
            return self.image
        source = BytesIO(self.image) if isinstance(self.image, bytes) else self.image
        try:
            return Image.open(source)
        except FileNotFoundError as error:
            raise DataError(f"{self.where}: there is no image {self.image}") from error
        except (OSError, Image.DecompressionBombError) as error:  # PIL's UnidentifiedImageError is an OSError
            name = "the embedded bytes" if isinstance(self.image, bytes) else str(self.image)
            raise DataError(f"{self.where}: {name} cannot be read as an image ({error})") from error

    def load_image(self) -> Image.Image:
        """The decoded image in RGB. Raises DataError when its data are damaged."""
        image = self.open_image()
        try:
            return image.convert("RGB")
        except OSError as error:
            raise DataError(f"{self.where}: the image is damaged ({error})") from error


def read_rows(source: str, image_root: str | None = None) -> list[Row]:
    """Rows of a table (see `load_table`) with the columns problem, solution, image and, if given, id and thinking.

    image: an encoded image, or a path, relative ones from `image_root` or else the file's folder.
    Raises DataError for a missing file, a missing column or an empty data set.
    """
    return rows_of(load_table(source), source, image_root)


def rows_of(table: Any, source: str, image_root: str | None) -> list[Row]:
    """The rows of a table that is loaded; `source` is its name in messages. See `read_rows`."""
    check_columns(table, source, _COLUMNS)
    root = root_of(source, image_root)
    return [make_row(record, source, number, root) for number, record in enumerate(table)]


def load_table(source: str) -> Any:
    """A .parquet, .jsonl or .json file; or a Hugging Face data set: `owner/name`, or `owner/name:split` for another
    split than `train`. A `datasets.Dataset` whose column `image` is not decoded.

    Raises DataError for a missing file or an empty data set.
    """
    import datasets  # slow to import, and only needed where data are read

    path = Path(source).expanduser()
    kind = _READERS.get(path.suffix)
    if kind:
        if not path.is_file():
            raise DataError(f"there is no data file {path}")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty")
    try:
        name, _, split = ("", "", "") if kind else source.partition(":")
        chosen = {"path": kind, "data_files": str(path)} if kind else {"path": name}
        table = datasets.load_dataset(**chosen, split=split or "train")
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        hint = "" if kind else f"; a file must end in {', '.join(_READERS)}, anything else is a Hugging Face data set"
        raise DataError(f"{source} cannot be read: {error.__cause__ or error}{hint}") from error
    if len(table) == 0:
        raise DataError(f"{source} has no rows")
    if isinstance(table.features.get("image"), datasets.Image):
        table = table.cast_column("image", datasets.Image(decode=False))
    return table


def check_columns(table: Any, source: str, columns: Sequence[str]) -> None:
    """Raise DataError for the columns that a table lacks."""
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(f"{source} has no column {', '.join(missing)}; it has {', '.join(table.column_names)}")


def root_of(source: str, image_root: str | None) -> Path:
    """The folder that relative image paths start from."""
    return Path(image_root).expanduser() if image_root else Path(source).expanduser().parent


def make_row(record: dict[str, Any], source: str, number: int, root: Path) -> Row:
    """The row of a table's record. Raises DataError for an empty cell."""
    identity = record.get("id")
    where = f"{source}, row {number}" + (f" (id {identity})" if identity is not None else "")
    for column in _COLUMNS:
        if record[column] is None:
            raise DataError(f"{where}: the {column} is empty")
    image = record["image"]
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str):
        image = root / image
    if image is None:
        raise DataError(f"{where}: the image is empty")
    return Row(
        str(identity) if identity is not None else str(number),
        str(record["problem"]),
        str(record["solution"]),
        image,
        where,
        str(record["thinking"]) if record.get("thinking") else None,
    )
