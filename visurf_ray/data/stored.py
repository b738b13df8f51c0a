"""Encoded images that stay in a memory-mapped table, so that a data set may be larger than the memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from visurf_ray.aliases import Json, Table


@dataclass(frozen=True)
class StoredImage:
    """The bytes of one cell of a memory-mapped table, not yet read.

    Attributes:
        cells: A binary array, backed by the memory map.
        index: The cell's place in it.
    """

    cells: pa.Array
    index: int

    def read(self) -> bytes:
        """Read the bytes from the memory map."""
        return self.cells[self.index].as_py()


def records(table: Table, column: str) -> Iterator[dict[str, Json]]:
    """Iterate over the rows of a `datasets.Dataset` as dictionaries, without reading the bytes in one column.

    Args:
        table: The table.
        column: The column in which a StoredImage replaces bytes. It may hold bytes, structs of bytes and path, as
            `datasets.Image(decode=False)` has them, lists of either, or paths.
    """
    chunks = table.select_columns(column).with_format("arrow")[:][column].chunks
    values = (value for chunk in chunks for value in _values(chunk))
    for record, value in zip(table.remove_columns(column), values, strict=True):
        yield record | {column: value}


def _values(array: pa.Array) -> list[Json]:
    """Return the array's values like `to_pylist`, with a StoredImage in place of bytes."""
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
