"""Encoded images that stay in the table: a data set larger than the memory is read like a small one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class StoredImage:
    """A cell of a memory-mapped table: its bytes are read when they are asked for."""

    cells: Any  # a binary array, the memory map behind it
    index: int

    def read(self) -> bytes:
        return self.cells[self.index].as_py()


def records(table: Any, column: str) -> Iterator[dict[str, Any]]:
    """The records of a `datasets.Dataset`, in whose `column` a StoredImage stands for every cell's bytes.

    The column may hold bytes, the structs of bytes and path that `datasets.Image(decode=False)` has, lists of either,
    and paths. None of the bytes is read.
    """
    chunks = table.select_columns(column).with_format("arrow")[:][column].chunks
    values = (value for chunk in chunks for value in _values(chunk))
    for record, value in zip(table.remove_columns(column), values, strict=True):
        yield record | {column: value}


def _values(array: Any) -> list[Any]:
    """As `to_pylist`, but for bytes."""
    valid = array.is_valid().to_pylist()
    if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        return [StoredImage(array, index) if there else None for index, there in enumerate(valid)]
    if pa.types.is_struct(array.type):
        fields = {field.name: _values(array.field(field.name)) for field in array.type}
        return [
            {name: values[index] for name, values in fields.items()} if there else None
            for index, there in enumerate(valid)
        ]
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        items, offsets = _values(array.values), array.offsets.to_pylist()
        return [items[offsets[index] : offsets[index + 1]] if there else None for index, there in enumerate(valid)]
    return array.to_pylist()
