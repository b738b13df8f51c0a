"""Encoded images that stay in their file until they are used, so that a data set may be larger than the memory."""

import base64
import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.compute as pc

from visurf_ray.aliases import Json

# How base64 of PNG, JPEG, GIF and WebP begins. "/9j/" might also begin a path, but no path is that long.
_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
_SHORTEST = 200  # characters; no image is smaller
_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)


class Stored(ABC):
    """An encoded image in a file, not yet read."""

    @abstractmethod
    def read(self) -> bytes:
        """Read the encoded image. Raises ValueError if text is not base64."""


@dataclass(frozen=True)
class StoredImage(Stored):
    """One cell of a memory-mapped table.

    In another process it is a StoredValue: pickling it would else copy the whole array.

    Attributes:
        cells: An array of binary values or of base64 texts, backed by the memory map.
        index: The cell's place in it.
        table: The fingerprint of the table.
    """

    cells: pa.Array
    index: int
    table: str = ""

    def read(self) -> bytes:
        return self._value().read()

    def _value(self) -> "StoredValue":
        return StoredValue(self.cells[self.index].as_py())

    def __reduce__(self) -> tuple[type["StoredValue"], tuple[bytes | str]]:
        return StoredValue, (self._value().value,)


@dataclass(frozen=True)
class StoredValue(Stored):
    """A cell that was sent from another process: an encoded image, or its base64 text."""

    value: bytes | str

    def read(self) -> bytes:
        return decode_text(self.value) if isinstance(self.value, str) else self.value


@dataclass(frozen=True)
class StoredLine(Stored):
    """A base64 text in a file of JSON lines.

    Attributes:
        path: The file.
        offset: Where the line begins, in bytes.
        length: The line's length in bytes.
        keys: Leads from the line's value to the text.
    """

    path: Path
    offset: int
    length: int
    keys: tuple[str | int, ...]

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            value = json.loads(file.read(self.length).decode("utf-8-sig"))
        for key in self.keys:
            value = value[key]
        return decode_text(value)


def is_encoded(text: str) -> bool:
    """Return whether a text is a data URL, or the base64 of an image, rather than a path or an address."""
    return text[:5].lower() == "data:" or (len(text) > _SHORTEST and text.startswith(_BASE64))


def decode_text(text: str) -> bytes:
    """Return the bytes of a data URL or of plain base64, which may have line breaks and lack its padding.

    Raises:
        ValueError: The text is neither.
    """
    text = text.strip()
    if text[:5].lower() == "data:":
        head = _URL.match(text)
        if head is None:
            raise ValueError("a data URL must begin with data:image/…;base64,")
        if text[5:11].lower() == "video/":
            raise ValueError("a data URL of a video is not supported")
        text = text[head.end() :]
    data = b"".join(unquote_to_bytes(text).split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except ValueError as error:
        raise ValueError(f"the image is not base64 ({error})") from error


def stored_lines(value: Json, path: Path, offset: int, length: int, keys: tuple[str | int, ...] = ()) -> Json:
    """Return the value of a JSON line with a StoredLine in place of every encoded image."""
    if isinstance(value, str):
        return StoredLine(path, offset, length, keys) if len(value) > _SHORTEST and is_encoded(value) else value
    if isinstance(value, dict):
        return {key: stored_lines(item, path, offset, length, (*keys, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [stored_lines(item, path, offset, length, (*keys, index)) for index, item in enumerate(value)]
    return value


def stored_values(array: pa.Array, table: str = "") -> list[Json]:
    """Return an array's values like `to_pylist`, with a StoredImage in place of bytes and of encoded images.

    Empty bytes become None.

    Args:
        array: The array.
        table: The fingerprint of its table.
    """
    if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        lengths = pc.binary_length(array).to_pylist()  # 0 where `path` beside it has the image, say
        return [StoredImage(array, index, table) if length else None for index, length in enumerate(lengths)]
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return [
            StoredImage(array, index, table) if text and len(text) > _SHORTEST and is_encoded(text) else text
            for index, text in enumerate(cell.as_py() for cell in array)
        ]
    if pa.types.is_struct(array.type):
        fields = {field.name: stored_values(array.field(field.name), table) for field in array.type}
        return [
            {name: values[index] for name, values in fields.items()} if there else None
            for index, there in enumerate(_valid(array))
        ]
    if _holds_text(array.type) and (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        items, offsets = stored_values(array.values, table), array.offsets.to_pylist()
        return [
            items[offsets[index] : offsets[index + 1]] if there else None for index, there in enumerate(_valid(array))
        ]
    return array.to_pylist()


def _valid(array: pa.Array) -> list[bool]:
    return array.is_valid().to_pylist()


def _holds_text(kind: pa.DataType) -> bool:
    """Return whether values of this type may hold an encoded image."""
    if pa.types.is_nested(kind):
        return any(_holds_text(kind.field(index).type) for index in range(kind.num_fields))
    known = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)
    return any(is_kind(kind) for is_kind in known)
