"""Tables of rows: parquet files and data sets, read with `datasets`, and JSON files.

JSON is not read with `datasets`, which guesses the types of columns from the first megabytes of a file, and which turns
all numbers of a column into floats if one is. Here every value has the type that is written.
"""

import glob
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from pyarrow.dataset import ParquetFragmentScanOptions

from visurf_ray.aliases import Dataset, Json
from visurf_ray.data.bad_rows import each
from visurf_ray.data.remote import is_address, local_path, path_of
from visurf_ray.data.row_groups import with_small_row_groups
from visurf_ray.data.stored import stored_lines, stored_values
from visurf_ray.data.texts import RECODE, read_lines, read_text
from visurf_ray.errors import DataError, lacks_memory, short

_KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}
_BATCH = 32  # rows of a parquet file that are in memory at the same time
_GLOB = frozenset("*?[")


@dataclass(frozen=True)
class Table(ABC):
    """The rows of one file or of one data set.

    Attributes:
        source: The table's name in messages: its file, its address, or its data set.
        root: The folder, or its address, that relative image paths start from.
    """

    source: str
    root: Path | str

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """The names of the columns."""

    @abstractmethod
    def records(self, columns: Sequence[str]) -> Iterator[dict[str, Json]]:
        """Yield each row as a dict of those of these columns that it has.

        Encoded images are not read: a `Stored` of `data.stored` stands for each.

        Raises:
            DataError: A text of a parquet file is not UTF-8.
        """

    def number(self, place: int) -> int:
        """Return the number of a row in its file, by its place in the table."""
        return place

    @abstractmethod
    def cells(self, column: str) -> Sequence[Json | pa.Scalar]:
        """Return the values of one column; those of a parquet file as Arrow's scalars."""


@dataclass(frozen=True)
class ArrowTable(Table):
    """A `datasets.Dataset`, which is memory-mapped."""

    data: Dataset

    @property
    def columns(self) -> list[str]:
        return list(self.data.column_names)

    def records(self, columns: Sequence[str]) -> Iterator[dict[str, Json]]:
        table = self.data.select_columns(list(columns)).with_format("arrow")[:]
        read = [self._values(name, table[name]) for name in columns]
        for values in zip(*read, strict=True):
            yield dict(zip(columns, values, strict=True))

    def _values(self, name: str, column: pa.ChunkedArray) -> list[Json]:
        """Return a column's values, with the names of classes in place of their numbers.

        Raises:
            DataError: A text is not UTF-8. The message names its row.
        """
        import datasets

        fingerprint = self.data._fingerprint  # changes with what was read, and with the time of change of the files
        try:
            values = [value for chunk in column.chunks for value in stored_values(chunk, fingerprint)]
        except UnicodeDecodeError as error:
            row = next(row for row, cell in enumerate(column) if not _is_unicode(cell))
            raise DataError(f"{self.source}, row {row}: the {name} is not UTF-8 ({error}); {RECODE}") from error
        feature = self.data.features[name]
        if not isinstance(feature, datasets.ClassLabel):
            return values
        return [None if value is None or value < 0 else feature.int2str(value) for value in values]

    def cells(self, column: str) -> Sequence[Json | pa.Scalar]:
        return self.data.data.column(column)


@dataclass(frozen=True)
class JsonTable(Table):
    """The objects in a JSON file."""

    rows: list[dict[str, Json]] = field(repr=False)
    numbers: Sequence[int] | None = None  # of the rows in their file, where others are left out

    def number(self, place: int) -> int:
        return place if self.numbers is None else self.numbers[place]

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(key for row in self.rows for key in row))

    def records(self, columns: Sequence[str]) -> Iterator[dict[str, Json]]:
        for row in self.rows:
            yield {column: row[column] for column in columns if column in row}

    def cells(self, column: str) -> Sequence[Json | pa.Scalar]:
        return [row.get(column) for row in self.rows]


def expand(source: str) -> list[str]:
    """Return the files that a pattern such as `data/*.parquet` matches, sorted. Any other source is returned as it is.

    A `:split` after the pattern is written after each file.

    Raises:
        DataError: No file matches.
    """
    if is_address(source) or not _GLOB & set(source) or Path(source).expanduser().exists():
        return [source]
    pattern, colon, split = source.rpartition(":")
    pattern, ending = (pattern, colon + split) if colon and "/" not in split else (source, "")
    if Path(pattern).expanduser().exists():
        return [source]
    found = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
    if not found:
        raise DataError(f"no file matches {source}")
    return [path + ending for path in found]


def load_tables(source: str, rows_in: str | None = None, *, outside: bool = False) -> list[Table]:
    """Load the tables of a source.

    Args:
        source: A .parquet, .jsonl or .json file, or its address (https://…, s3://…, hf://…); a folder of such files, of
            images with a metadata.jsonl, or of `save_to_disk`; or a Hugging Face data set, `owner/name` or
            `owner/name/configuration`. For a folder or a data set, `:split` may follow; without it the split is
            `train`.
        rows_in: The key of the rows in the object that a .json file holds. None: the file itself is the list of rows.
        outside: Whether the card of a folder or a data set (README.md) may name files outside of it.

    Raises:
        DataError: The source cannot be read, or has no rows.
    """
    if is_address(source):
        if _kind(path_of(source)) is None:
            raise DataError(f"{source} cannot be read: the address of a file must end in {', '.join(_KINDS)}")
        local = local_path(source)
        root = local.parent if source.lower().startswith("file://") else source.partition("?")[0].rpartition("/")[0]
        return [_load_file(local, source, root, _kind(path_of(source)) or "", rows_in)]
    kind = _kind(source)
    if kind:
        path = Path(source).expanduser()
        if not path.is_file():
            raise DataError(f"there is no data file {path}")
        return [_load_file(path, source, path.parent, kind, rows_in)]
    name, _, split = source.partition(":")
    folder = Path(name).expanduser()
    if folder.is_file():
        raise DataError(f"{source} cannot be read: a file's name must end in {', '.join(_KINDS)}, without a :split")
    if folder.is_dir():
        if metadata := _metadata(folder, split):
            return [_of_images(_read_json(metadata, str(metadata), metadata.parent, None))]
        if files := _files_of(folder, split or "train"):
            return [_load_file(path, str(path), path.parent, _kind(path.name) or "", rows_in) for path in files]
    owner, *rest = name.split("/")
    if owner and len(rest) == 2 and not folder.is_dir():
        data = _load_dataset(source, f"{owner}/{rest[0]}", outside, name=rest[1], split=split or "train")
    else:
        data = _load_dataset(source, str(folder) if folder.is_dir() else name, outside, split=split or "train")
    return [ArrowTable(source, folder, data)]


def _kind(name: str) -> str | None:
    """Return `parquet` or `json`, or None if the name is not that of a data file."""
    return _KINDS.get(Path(name).suffix.lower())


def _metadata(folder: Path, split: str) -> Path | None:
    """Return the metadata.jsonl of a folder of images, or None if there is none or it has rows of several splits."""
    own = folder / (split or "train") / "metadata.jsonl"
    if own.is_file():
        return own
    alone = not split and not any(path.is_dir() for path in folder.iterdir())
    return folder / "metadata.jsonl" if alone and (folder / "metadata.jsonl").is_file() else None


def _files_of(folder: Path, split: str) -> list[Path]:
    """Return the files of a folder's split, as `datasets` finds them.

    The list is empty if the folder must be read by `datasets`: its card says which files belong to a split, or it has
    files of other kinds.
    """
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

    card = folder / "README.md"
    if card.is_file() and "data_files:" in card.read_text("utf-8", "replace"):
        return []
    try:
        found = DataFilesDict.from_patterns(get_data_patterns(str(folder)), str(folder)).get(split) or []
    except (EmptyDatasetError, FileNotFoundError):
        return []
    paths = [Path(path) for path in found]
    return paths if all(_kind(path.name) and path.name != "metadata.jsonl" for path in paths) else []


def _load_file(path: Path, source: str, root: Path | str, kind: str, rows_in: str | None) -> Table:
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{source} is empty")
        if kind == "json":
            return _read_json(path, source, root, rows_in)
        path = with_small_row_groups(path)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error
    scanning = ParquetFragmentScanOptions(use_buffered_stream=True, pre_buffer=False)  # not several row groups ahead
    parquet = {"batch_size": _BATCH, "fragment_scan_options": scanning}
    return ArrowTable(source, root, _load_dataset(source, kind, True, data_files=str(path), split="train", **parquet))


def _load_dataset(source: str, path: str, outside: bool, **chosen: Json) -> Dataset:
    import datasets  # slow to import, and needed only here

    try:
        saved = (Path(path) / "state.json").is_file() and ":" not in source  # by save_to_disk
        if not saved and not outside:
            files = datasets.load_dataset_builder(path, name=chosen.get("name")).config.data_files or {}
            _check_files(source, path, [str(file) for names in files.values() for file in names])
        data = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, **chosen)
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError, RuntimeError) as error:
        if lacks_memory(error):
            raise
        reason = short(error.__cause__ or error, 1000)
        if "data_files" in chosen or Path(path).is_dir():
            raise DataError(f"{source} cannot be read: {reason}") from error
        raise DataError(
            f"{source} cannot be read: there is no such folder, and no such Hugging Face data set (owner/name) was "
            f"found: {reason}; a file must end in {', '.join(_KINDS)}"
        ) from error
    if len(data) == 0:
        raise DataError(f"{source} has no rows")
    return data


def _check_files(source: str, path: str, files: Sequence[str]) -> None:
    """Raise DataError if a file that a card names lies outside of its folder, or of its repository on the hub."""
    folder = Path(path).absolute()
    repository = (f"hf://datasets/{path}/", f"hf://datasets/{path}@")  # a revision follows the @
    for file in files:
        inside = Path(os.path.abspath(file)).is_relative_to(folder) if folder.is_dir() else file.startswith(repository)
        if not inside:
            raise DataError(
                f"{source}: its README.md names the file {short(file, 500)}, which lies outside of it; set "
                "task.outside_paths=true if you trust the data"
            )


def _read_json(path: Path, source: str, root: Path | str, rows_in: str | None) -> JsonTable:
    """Read JSON lines, a list of rows, or an object that holds this list under the key `rows_in`."""
    if path.suffix.lower() == ".jsonl" and not _begins_with_list(path):

        def read(entry: tuple[int, tuple[int, int, bytes, Json]]) -> tuple[int, dict[str, Json]]:
            place, (number, offset, text, value) = entry
            return place, stored_lines(_row(value, source, f"line {number}"), path, offset, len(text))

        rows = each(read, enumerate(read_lines(path, source)))
    else:
        rows = _of_document(path, source, rows_in)
    if not rows:
        raise DataError(f"{source} has no rows")
    return JsonTable(source, root, [row for _, row in rows], [place for place, _ in rows])


def _of_document(path: Path, source: str, rows_in: str | None) -> list[tuple[int, dict[str, Json]]]:
    """Return the rows and their numbers."""
    text = read_text(path, source)
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise DataError(f"{source} cannot be read: it is nested too deeply") from error
    except ValueError as error:
        if not text.lstrip().startswith("{") or "Extra data" not in str(error):
            raise DataError(f"{source} cannot be read: it is not JSON ({error})") from error
        lines = enumerate(read_lines(path, source))
        return each(lambda entry: (entry[0], _row(entry[1][3], source, f"line {entry[1][0]}")), lines)
    if rows_in and isinstance(value, dict):
        value = value.get(rows_in)
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list):
        raise DataError(f"{source} cannot be read: it must hold a list of objects, one for each row")
    return each(lambda entry: (entry[0], _row(entry[1], source, f"row {entry[0]}")), enumerate(value))


def _begins_with_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _row(value: Json, source: str, place: str) -> dict[str, Json]:
    if isinstance(value, DataError):
        raise value
    if not isinstance(value, dict):
        raise DataError(f"{source} cannot be read: {place} must be an object, not {short(json.dumps(value), 80)}")
    return value


def _is_unicode(cell: pa.Scalar) -> bool:
    try:
        cell.as_py()
    except UnicodeDecodeError:
        return False
    return True


def _of_images(table: JsonTable) -> JsonTable:
    """Return the table of a folder of images, whose column `file_name` names them."""
    rows = [{"image" if key == "file_name" else key: value for key, value in row.items()} for row in table.rows]
    return JsonTable(table.source, table.root, rows, table.numbers)
