"""Rows of a data set: read with `datasets`, images left undecoded until they are asked for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from visurf_ray.data.stored import StoredImage, records
from visurf_ray.errors import DataError

_READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
_REQUIRED = ("problem", "solution", "image")

# What a row consists of, and the columns that hold it: of several the first that the table has.
Columns = Mapping[str, Sequence[str]]
COLUMNS: Columns = {
    "id": ("id",),
    "problem": ("problem", "prompt"),
    "solution": ("solution", "answer"),
    "image": ("image", "images"),
    "thinking": ("thinking",),
}


@dataclass(frozen=True)
class Row:
    """A question about an image, and its ground truth as JSON text. `where` names file and row in error messages."""

    id: str
    problem: str
    solution: str
    image: Any  # a path, a StoredImage, or a PIL image
    where: str
    thinking: str | None = None  # reasoning that leads to the solution, where the data have it
    mask: Path | None = None  # an image of the objects, in place of `solution`; see `tasks.mask_task`
    extra: dict[str, Any] = field(default_factory=dict)  # what else the task reads, None where the table lacks it

    def open_image(self) -> Image.Image:
        """The image, its pixels not decoded yet. Raises DataError when it is missing or no image."""
        if isinstance(self.image, Image.Image):
            return self.image
        return open_image(self.image, self.where)

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


def open_image(image: StoredImage | str | Path, where: str) -> Image.Image:
    """An image, its pixels not decoded yet. Raises DataError when it is missing or no image."""
    try:
        return Image.open(BytesIO(image.read()) if isinstance(image, StoredImage) else image)
    except FileNotFoundError as error:
        raise DataError(f"{where}: there is no image {image!s}") from error
    except (OSError, Image.DecompressionBombError) as error:  # PIL's UnidentifiedImageError is an OSError
        name = "the embedded bytes" if isinstance(image, StoredImage) else str(image)
        raise DataError(f"{where}: {name} cannot be read as an image ({error})") from error


def read_rows(
    source: str, image_root: str | None = None, columns: Columns = COLUMNS, *, rows_in: str | None = None
) -> list[Row]:
    """Rows of a table; see `load_table` for where it may lie, and `rows_of` for its columns. Raises DataError."""
    return rows_of(load_table(source, rows_in), source, image_root, columns)


def load_table(source: str, rows_in: str | None = None) -> Any:
    """A `datasets.Dataset`: a .parquet, .jsonl or .json file; a folder of such, or of images beside a metadata.jsonl;
    or a Hugging Face data set, `owner/name` or `owner/name/configuration`. Another split than `train` stands behind a
    folder or a data set: `owner/name:split`.

    rows_in: the key of a .json file's object that holds the rows. Raises DataError for what cannot be read or is empty.
    """
    import datasets  # slow to import, and only needed where data are read

    kind = _kind(source)
    if kind:
        path = Path(source).expanduser()
        if not path.is_file():
            raise DataError(f"there is no data file {path}")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty")
        split = "train"  # as `datasets` calls what it reads from a file
        chosen = {"path": kind, "data_files": str(path)} | ({"field": rows_in} if rows_in else {})
    else:
        name, _, split = source.partition(":")
        folder = Path(name).expanduser()
        owner, *rest = name.split("/")
        if owner and len(rest) == 2 and not folder.is_dir():
            chosen = {"path": f"{owner}/{rest[0]}", "name": rest[1]}
        else:
            chosen = {"path": str(folder) if folder.is_dir() else name}
    try:
        table = datasets.load_dataset(**chosen, split=split or "train")
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError, RuntimeError) as error:
        raise DataError(_unread(source, error)) from error
    if len(table) == 0:
        raise DataError(f"{source} has no rows")
    return table


def rows_of(table: Any, source: str, image_root: str | None = None, columns: Columns = COLUMNS) -> list[Row]:
    """Rows of a table, which `source` names in messages.

    Three schemas are known by their columns, and an `id` and a `thinking` are read where a table has them:

    - VisionReasoner's: problem, solution, image.
    - EasyR1's: problem, answer, images; the text `<image>` marks the image's place in the problem, and is removed.
    - TRL's: prompt, a conversation of one user message, or a text; image or images; solution or answer. A system
      message is left out: how to answer is told by task.prompt.

    columns: a task's own names for them. What it names beside these comes as `Row.extra`. A solution that is no text is
    kept as JSON. Images are encoded, and stay in the table; or paths, relative ones from `image_root` or else the
    file's folder. A list of images must hold one.
    Raises DataError for a missing column, an empty cell, and more images than one.
    """
    held = {name: next((c for c in known if c in table.column_names), None) for name, known in columns.items()}
    missing = [" or ".join(columns[name]) for name in _REQUIRED if held[name] is None]
    check_columns(table, source, missing)
    table = table.select_columns(list(dict.fromkeys(column for column in held.values() if column)))
    image = held["image"]
    assert image is not None, "it is required"
    table = table.cast_column(image, _undecoded(table.features[image]))
    root = root_of(source, image_root)
    return [_row(record, held, source, number, root) for number, record in enumerate(records(table, image))]


def json_object(path: Path) -> dict[str, Any] | None:
    """The object that a .json file holds; None for what is no such file, a table of JSON lines too."""
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def check_columns(table: Any, source: str, columns: Sequence[str]) -> None:
    """Raise DataError for the columns that a table lacks."""
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(f"{source} has no column {', '.join(missing)}; it has {', '.join(table.column_names)}")


def root_of(source: str, image_root: str | None) -> Path:
    """The folder that relative image paths start from."""
    if image_root:
        return Path(image_root).expanduser()
    return Path(source).expanduser().parent if _kind(source) else Path(source.partition(":")[0]).expanduser()


def _kind(source: str) -> str | None:
    """How `datasets` calls a file of that name; None for what is no file."""
    return _READERS.get(Path(source).suffix)


def _unread(source: str, error: Exception) -> str:
    """Why a source cannot be read. What is no file and no folder was looked for on the hub, a misspelt path too."""
    reason = str(error.__cause__ or error)
    if _kind(source) or Path(source.partition(":")[0]).expanduser().is_dir():
        return f"{source} cannot be read: {reason}"
    return (
        f"{source} cannot be read: there is no such folder, and no such Hugging Face data set (owner/name) can be had: "
        f"{reason}; a file must end in {', '.join(_READERS)}"
    )


def _undecoded(feature: Any) -> Any:
    """The feature with its images, or those of its list, left as they are stored."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    return datasets.List(_undecoded(feature.feature)) if isinstance(feature, datasets.List) else feature


def _row(record: dict[str, Any], held: Mapping[str, str | None], source: str, number: int, root: Path) -> Row:
    values = {name: record[column] if column else None for name, column in held.items()}
    identity = values.pop("id", None)
    where = f"{source}, row {number}" + (f" (id {identity})" if identity is not None else "")
    for name in _REQUIRED:
        if values[name] is None:
            raise DataError(f"{where}: the {held[name]} is empty")
    problem, solution, image = (values.pop(name) for name in _REQUIRED)
    thinking = values.pop("thinking", None)
    return Row(
        str(identity) if identity is not None else str(number),
        _question(problem, where),
        solution if isinstance(solution, str) else json.dumps(solution, ensure_ascii=False),
        _one_image(image, root, where),
        where,
        str(thinking) if thinking else None,
        extra=values,
    )


def _question(problem: Any, where: str) -> str:
    text = _user_message(problem, where) if isinstance(problem, list) else str(problem)
    return text.replace("<image>", "").strip()


def _user_message(conversation: list[Any], where: str) -> str:
    """The text of a conversation's one user message, whose content is a text or a list of typed parts."""
    try:
        roles = [message["role"] for message in conversation if message["role"] != "system"]
        if roles != ["user"]:
            raise DataError(f"{where}: the prompt must have one message of the user and no answer, it has {roles}")
        (content,) = [message["content"] for message in conversation if message["role"] == "user"]
        return content if isinstance(content, str) else "\n".join(part.get("text") or "" for part in content)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: the prompt is no conversation: {json.dumps(conversation)[:80]}") from error


def _one_image(image: Any, root: Path, where: str) -> Any:
    if isinstance(image, list):
        if len(image) != 1:
            raise DataError(f"{where}: it has {len(image)} images, but a row must have one")
        (image,) = image
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if not image:
        raise DataError(f"{where}: the image is empty")
    return root / image if isinstance(image, str) else image
