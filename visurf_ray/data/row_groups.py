"""Parquet files whose row groups are too large to be read whole, as `datasets` reads them."""

import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_LARGEST = 2**28  # bytes of a row group that may be in memory
_ROWS = 32  # that are copied at a time; of pictures of 4 MB, 128 MB


def with_small_row_groups(path: Path) -> Path:
    """Return a parquet file of the same rows with small row groups: this one, or a copy in the cache of `datasets`.

    Writers such as pandas put up to a million rows, with their pictures, into one row group. The copy is made page by
    page, and kept. Raises OSError if it cannot be written.
    """
    from datasets.config import HF_DATASETS_CACHE
    from fsspec.utils import tokenize

    try:
        file = pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
    except pa.ArrowInvalid:  # `datasets` tells what is wrong
        return path
    with file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        if max((group.total_byte_size for group in groups), default=0) <= _LARGEST:
            return path
        found = path.stat()
        name = tokenize(str(path.resolve()), found.st_size, found.st_mtime_ns)
        copy = Path(HF_DATASETS_CACHE).expanduser() / "row_groups" / f"{name}.parquet"
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=copy.parent) as folder:  # another process may copy the same
                with pq.ParquetWriter(f"{folder}/file", file.schema_arrow) as writer:
                    for batch in file.iter_batches(batch_size=_ROWS):
                        writer.write_batch(batch)
                os.replace(f"{folder}/file", copy)
        return copy
