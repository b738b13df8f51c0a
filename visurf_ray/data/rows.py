"""Rows of a data set, read with `datasets`. Images stay undecoded until they are used."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

from PIL import Image

from visurf_ray.aliases import Json, Table
from visurf_ray.data.stored import StoredImage, records
from visurf_ray.errors import DataError

_READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
_REQUIRED = ("problem", "solution", "image")

# The columns that can hold each part of a row, by the part's name. The first column that the table has is read.
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
    """A question about an image, and its solution.

    Attributes:
        id: The data set's own id, or else the row's number.
        problem: The question as the data set has it.
        solution: The ground truth as text, usually JSON; its form depends on the task.
        image: A path, encoded bytes in a table, or a decoded image.
        where: File and row, for error messages.
        thinking: Reasoning that leads to the solution, if the data have it.
        mask: A mask image from which the objects are made, in place of `solution` (see `tasks.mask_task`).
        extra: The further columns that the task reads, by name; None for a column that the table lacks.
    """

    id: str
    problem: str
    solution: str
    image: str | Path | StoredImage | Image.Image
    where: str
    thinking: str | None = None
    mask: Path | None = None
    extra: dict[str, Json] = field(default_factory=dict)

    def open_image(self) -> Image.Image:
        """Return the image, its pixels not yet decoded.

        Raises:
            DataError: The image is missing, or its format is unknown.
        """
        if isinstance(self.image, Image.Image):
            return self.image
        return open_image(self.image, self.where)

    def load_image(self) -> Image.Image:
        """Return the decoded image in RGB.

        Raises:
            DataError: The image is missing or damaged, or its format is unknown.
        """
        image = self.open_image()
        try:
            return image.convert("RGB")
        except OSError as error:
            raise DataError(f"{self.where}: the image is damaged ({error})") from error

    def decoded(self) -> "Row":
        """Return the row with its image decoded, so that it is read once only. Raises DataError like `load_image`."""
        return replace(self, image=self.load_image())


def open_image(image: StoredImage | str | Path, where: str) -> Image.Image:
    """Return an image, its pixels not yet decoded.

    Args:
        image: A path, or encoded bytes in a table.
        where: File and row, for error messages.

    Raises:
        DataError: The image is missing, or its format is unknown.
    """
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
    """Read the rows of a table. For the arguments see `load_table` and `rows_of`. Raises DataError like them."""
    return rows_of(load_table(source, rows_in), source, image_root, columns)


def load_table(source: str, rows_in: str | None = None) -> Table:
    """Load a `datasets.Dataset`.

    Args:
        source: A .parquet, .jsonl or .json file; a folder of such files, or of images with a metadata.jsonl; or a
            Hugging Face data set, `owner/name` or `owner/name/configuration`. For a folder or a data set, `:split`
            may follow; without it the split is `train`.
        rows_in: The key of the rows in the object that a .json file holds. None: the file itself is the list of rows.

    Raises:
        DataError: The source cannot be read, or has no rows.
    """
    import datasets  # slow to import, and needed only to read data

    kind = _kind(source)
    if kind:
        path = Path(source).expanduser()
        if not path.is_file():
            raise DataError(f"there is no data file {path}")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty")
        split = "train"  # the name that `datasets` gives to the rows of a file
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


def rows_of(table: Table, source: str, image_root: str | None = None, columns: Columns = COLUMNS) -> list[Row]:
    """Return the rows of a table.

    With the default `columns` these schemas are read, each with an `id` and a `thinking` column if the table has them:

    - VisionReasoner's: problem, solution, image.
    - EasyR1's: problem, answer, images. The text `<image>`, which marks the image's place in the problem, is removed.
    - TRL's: prompt, which is text or a conversation with one user message; image or images; solution or answer. System
      messages are dropped, because task.prompt says how to answer.

    A solution that is not text is written as JSON. A list of images must have one item. Encoded images stay in the
    table.

    Args:
        table: A `datasets.Dataset`.
        source: The table's name in error messages, and the file or folder it was read from.
        image_root: The folder that relative image paths start from. None: the folder of the data file.
        columns: The columns to read for each part of a row. Parts other than those of COLUMNS go to `Row.extra`.

    Raises:
        DataError: A column is missing, a cell is empty, or a row does not have exactly one image.
    """
    held = {name: next((c for c in known if c in table.column_names), None) for name, known in columns.items()}
    missing = [" or ".join(columns[name]) for name in _REQUIRED if held[name] is None]
    check_columns(table, source, missing)
    table = table.select_columns(list(dict.fromkeys(column for column in held.values() if column)))
    image = held["image"]
    assert image is not None, "check_columns has refused a table without it"
    table = table.cast_column(image, _undecoded(table.features[image]))
    root = root_of(source, image_root)
    return [_row(record, held, source, number, root) for number, record in enumerate(records(table, image))]


def json_object(path: Path) -> dict[str, Json] | None:
    """Return the object in a .json file, or None if there is no such file or it holds anything else."""
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError:  # for example JSON lines
        return None
    return content if isinstance(content, dict) else None


def check_columns(table: Table, source: str, columns: Sequence[str]) -> None:
    """Check that a table has these columns; `source` is its name in the message.

    Raises:
        DataError: A column is missing.
    """
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(f"{source} has no column {', '.join(missing)}; it has {', '.join(table.column_names)}")


def root_of(source: str, image_root: str | None) -> Path:
    """Return the folder that relative image paths start from: `image_root`, or else the folder of the data."""
    if image_root:
        return Path(image_root).expanduser()
    return Path(source).expanduser().parent if _kind(source) else Path(source.partition(":")[0]).expanduser()


def _kind(source: str) -> str | None:
    """Return the name of the `datasets` reader for a file, or None if `source` does not name a data file."""
    return _READERS.get(Path(source).suffix)


def _unread(source: str, error: Exception) -> str:
    """Return why a source cannot be read. `datasets` looks on the hub for any name that is not a file or a folder."""
    reason = str(error.__cause__ or error)
    if _kind(source) or Path(source.partition(":")[0]).expanduser().is_dir():
        return f"{source} cannot be read: {reason}"
    return (
        f"{source} cannot be read: there is no such folder, and no such Hugging Face data set (owner/name) was found: "
        f"{reason}; a file must end in {', '.join(_READERS)}"
    )


def _undecoded(feature: object) -> object:
    """Return the column type with images, also those in lists, left encoded."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    return datasets.List(_undecoded(feature.feature)) if isinstance(feature, datasets.List) else feature


def _row(record: dict[str, Json], held: Mapping[str, str | None], source: str, number: int, root: Path) -> Row:
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


def _question(problem: Json, where: str) -> str:
    text = _user_message(problem, where) if isinstance(problem, list) else str(problem)
    return text.replace("<image>", "").strip()


def _user_message(conversation: list[Json], where: str) -> str:
    """Return the text of a conversation's only user message, whose content is text or a list of typed parts."""
    try:
        roles = [message["role"] for message in conversation if message["role"] != "system"]
        if roles != ["user"]:
            raise DataError(f"{where}: apart from system messages, the prompt must be one user message, not {roles}")
        (content,) = [message["content"] for message in conversation if message["role"] == "user"]
        return content if isinstance(content, str) else "\n".join(part.get("text") or "" for part in content)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: the prompt is not a conversation: {json.dumps(conversation)[:80]}") from error


def _one_image(image: Json, root: Path, where: str) -> Path | StoredImage:
    if isinstance(image, list):
        if len(image) != 1:
            raise DataError(f"{where}: it has {len(image)} images, but a row must have one")
        (image,) = image
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if not image:
        raise DataError(f"{where}: the image is empty")
    return root / image if isinstance(image, str) else image
