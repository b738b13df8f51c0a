"""Rows of a data set: read with `datasets`, images left undecoded until they are asked for."""

from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from visurf_ray.errors import UserError
from visurf_ray.tasks.stored import StoredImage, records

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
    image: Any  # a path, a StoredImage, or a PIL image
    where: str
    thinking: str | None = None  # reasoning that leads to the solution, where the data have it

    def open_image(self) -> Image.Image:
        """The image, its pixels not decoded yet. Raises DataError when it is missing or no image."""
        if isinstance(self.image, Image.Image):
            return self.image
        embedded = isinstance(self.image, StoredImage)
        try:
            return Image.open(BytesIO(self.image.read()) if embedded else self.image)
        except FileNotFoundError as error:
            raise DataError(f"{self.where}: there is no image {self.image}") from error
        except (OSError, Image.DecompressionBombError) as error:  # PIL's UnidentifiedImageError is an OSError
            name = "the embedded bytes" if embedded else str(self.image)
            raise DataError(f"{self.where}: {name} cannot be read as an image ({error})") from error

    def load_image(self) -> Image.Image:
        """The decoded image in RGB. Raises DataError when its data are damaged."""
        image = self.open_image()
        try:
            return image.convert("RGB")
        except OSError as error:
            raise DataError(f"{self.where}: the image is damaged ({error})") from error

    def decoded(self) -> "Row":
        """The row with its image decoded, not to be opened again. Raises DataError like `load_image`."""
        return replace(self, image=self.load_image())


def read_rows(source: str, image_root: str | None = None) -> list[Row]:
    """Rows of a .parquet, .jsonl or .json file with the columns problem, solution, image and, if given, id and
    thinking; of a folder of such files, or of images beside a metadata.jsonl; or of a Hugging Face data set,
    `owner/name`. Another split than `train` stands behind a folder or a data set: `owner/name:split`.

    image: an encoded image, which stays in the file, or a path, relative ones from `image_root` or else the file's
    folder. Raises DataError for a missing file, a missing column or an empty data set.
    """
    import datasets  # slow to import, and only needed where data are read

    path = Path(source).expanduser()
    kind = _READERS.get(path.suffix)
    if kind:
        if not path.is_file():
            raise DataError(f"there is no data file {path}")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty")
    name, _, split = ("", "", "") if kind else source.partition(":")
    folder = path.parent if kind else Path(name).expanduser()
    try:
        chosen = {"path": kind, "data_files": str(path)} if kind else {"path": str(folder) if folder.is_dir() else name}
        table = datasets.load_dataset(**chosen, split=split or "train")
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        raise DataError(_unread(source, bool(kind), folder, error)) from error
    missing = [column for column in _COLUMNS if column not in table.column_names]
    if missing:
        raise DataError(f"{source} has no column {', '.join(missing)}; it has {', '.join(table.column_names)}")
    if len(table) == 0:
        raise DataError(f"{source} has no rows")
    if isinstance(table.features["image"], datasets.Image):
        table = table.cast_column("image", datasets.Image(decode=False))
    root = Path(image_root).expanduser() if image_root else folder
    return [_row(record, source, number, root) for number, record in enumerate(records(table, "image"))]


def _unread(source: str, is_file: bool, folder: Path, error: Exception) -> str:
    """Why a source cannot be read. What is no file and no folder was looked for on the hub, a misspelt path too."""
    reason = str(error.__cause__ or error)
    if is_file or folder.is_dir():
        return f"{source} cannot be read: {reason}"
    return (
        f"{source} cannot be read: there is no such folder, and no such Hugging Face data set (owner/name) can be had: "
        f"{reason}; a file must end in {', '.join(_READERS)}"
    )


def _row(record: dict[str, Any], source: str, number: int, root: Path) -> Row:
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
