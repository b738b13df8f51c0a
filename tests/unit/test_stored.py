"""Images stay in the table: memory does not grow with them, and their bytes are unchanged."""

import tracemalloc

import datasets
import pyarrow as pa
import pytest

from tests.unit.conftest import encoded, picture
from visurf_ray.data.rows import read_rows
from visurf_ray.data.stored import Stored
from visurf_ray.data.tables import ArrowTable
from visurf_ray.errors import DataError

ENCODED = encoded(picture(200, 200))  # 120 kB


def test_rows_of_a_large_file_hold_no_bytes(write_parquet):
    """48 MB of images; the rows take less than 1 MB in all, whether one counts Python's memory or Arrow's."""
    count = 400
    source = write_parquet(*[{"id": str(n), "image": {"bytes": ENCODED, "path": None}} for n in range(count)])
    read_rows(source)  # fills the cache of `datasets`, which is where the table is mapped from
    held_before = pa.total_allocated_bytes()
    tracemalloc.start()
    rows = read_rows(source)
    held, peak = tracemalloc.get_traced_memory()
    images = [row.open_image().size for row in rows]
    held_after, peak_after = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert images == [(200, 200)] * count
    assert max(held, held_after) < 1e6 < count * len(ENCODED) / 40
    assert max(peak, peak_after) < 20 * len(ENCODED), "one image at a time"
    assert pa.total_allocated_bytes() - held_before < 20 * len(ENCODED)
    assert not any(isinstance(value, bytes) for row in rows for value in vars(row).values())


def test_each_row_has_its_own_image(write_parquet):
    pictures = [picture(20 + n, 20, seed=n) for n in range(5)]
    source = write_parquet(*[{"image": {"bytes": encoded(image), "path": None}} for image in pictures])
    assert [row.open_image().tobytes() for row in read_rows(source)] == [image.tobytes() for image in pictures]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_every_type_of_image_column(kind):
    struct = pa.struct({"bytes": kind, "path": pa.string()})
    cells = [{"bytes": b"one", "path": None}, {"bytes": None, "path": "two.png"}, None, {"bytes": b"four", "path": "x"}]
    for column, stored in (
        (pa.array(cells, struct), cells),
        (pa.array([cell["bytes"] if cell else None for cell in cells], kind), [b"one", None, None, b"four"]),
        (pa.array([cells[:1], [], None, cells[2:]], pa.list_(struct)), [cells[:1], [], None, cells[2:]]),
        (pa.array(["a.png", None, "b.png", "c.png"]), ["a.png", None, "b.png", "c.png"]),
    ):
        table = datasets.Dataset(pa.table({"image": column, "id": [0, 1, 2, 3]}))
        assert images(table) == stored
        assert [record["id"] for record in ArrowTable("here", ".", table).records(["id"])] == [0, 1, 2, 3]
        assert images(table.select([3, 1])) == [stored[3], stored[1]]
        some = datasets.Dataset(pa.concat_tables([table.data.table.slice(2), table.data.table.slice(0, 1)]))
        assert images(some) == [stored[2], stored[3], stored[0]]


def test_empty_bytes_are_no_image(write_parquet, data_folder):
    picture().save(data_folder / "there.png")
    source = write_parquet({"image": {"bytes": b"", "path": str(data_folder / "there.png")}})
    assert read_rows(source)[0].open_image().size == (100, 60)
    with pytest.raises(DataError, match=r"row 0 .*the image is empty"):
        read_rows(write_parquet({"image": {"bytes": b"", "path": None}}, name="none.parquet"))


def images(table):
    return read([record["image"] for record in ArrowTable("here", ".", table).records(["image"])])


def read(value):
    if isinstance(value, Stored):
        return value.read()
    if isinstance(value, list):
        return [read(item) for item in value]
    return {key: read(item) for key, item in value.items()} if isinstance(value, dict) else value
