"""Parquet files that are larger than the memory: never read whole, whatever their row groups are."""

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.conftest import encoded, picture
from visurf_ray.data import row_groups
from visurf_ray.data.rows import read_rows

# Run in a process of its own. Prints by how many MiB reading raises its memory at most, without pages of files.
READ = """
import sys, threading, time
from visurf_ray.data.rows import read_rows

def memory():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

def watch():
    while True:
        seen.append(memory())
        time.sleep(0.02)

read_rows(sys.argv[1])
seen = [memory()]
threading.Thread(target=watch, daemon=True).start()
rows = read_rows(sys.argv[2])
assert [rows[number].open_image().size for number in (0, 5000, -1)] == [(20, 20)] * 3
print(max(seen) - seen[0])
"""
WRITE = """
import os, sys
import pyarrow as pa, pyarrow.parquet as pq
pixels = open(sys.argv[1], "rb").read()
images = [pixels + os.urandom(20_000) for _ in range(16_000)]
columns = {"problem": ["it"] * 16_000, "solution": ["[]"] * 16_000, "image": images}
pq.write_table(pa.table(columns), sys.argv[2])
"""


def run(code: str, *arguments: object, cache: object) -> str:
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def table(rows: int) -> pa.Table:
    images = [encoded(picture(20 + number, 20, seed=number)) for number in range(rows)]
    return pa.table({"problem": [f"{n}" for n in range(rows)], "solution": ["[]"] * rows, "image": images})


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only Linux tells a process's memory there")
def test_reading_takes_less_memory_than_the_file(tmp_path):
    """300 MiB in one row group, which `datasets` alone reads whole. Arrow keeps up to 200 MiB of batches."""
    pq.write_table(table(1), tmp_path / "small.parquet")
    (tmp_path / "small.jpg").write_bytes(encoded(picture(20, 20), "JPEG"))
    run(WRITE, tmp_path / "small.jpg", tmp_path / "large.parquet", cache=tmp_path)
    assert pq.read_metadata(tmp_path / "large.parquet").num_row_groups == 1
    size = (tmp_path / "large.parquet").stat().st_size / 2**20
    grown = float(run(READ, tmp_path / "small.parquet", tmp_path / "large.parquet", cache=tmp_path).split()[-1])
    assert grown < 0.9 * size


def test_a_copy_has_the_same_rows_and_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(row_groups, "_LARGEST", 100)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = tmp_path / "rows.parquet"
    pq.write_table(table(70), source)
    rows = read_rows(str(source))
    assert [(row.problem, row.open_image().size) for row in rows] == [(f"{n}", (20 + n, 20)) for n in range(70)]
    assert rows[3].where == f"{source}, row 3"
    copy = row_groups.with_small_row_groups(source)
    assert pq.read_metadata(copy).num_row_groups > 1 and len(list(copy.parent.iterdir())) == 1
    written = copy.stat().st_mtime_ns
    assert row_groups.with_small_row_groups(source) == copy and copy.stat().st_mtime_ns == written
    pq.write_table(table(3), source)
    assert len(read_rows(str(source))) == 3, "another file at the same place"


def test_small_row_groups_are_read_in_place(tmp_path):
    pq.write_table(table(4), tmp_path / "rows.parquet")
    assert row_groups.with_small_row_groups(tmp_path / "rows.parquet") == tmp_path / "rows.parquet"
