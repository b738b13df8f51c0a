"""Addresses of files, such as https://…, s3://… and hf://…: fetched with fsspec into a cache on this machine."""

import os
import re
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

from visurf_ray.errors import DataError, lacks_memory, short

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_address(name: str) -> bool:
    """Return whether a name is an address, `protocol://…`, and not a path."""
    return _ADDRESS.match(name) is not None


def folder_or_address(name: str) -> Path | str:
    """Return the path of a folder, or its address as it is."""
    return name if is_address(name) else Path(name).expanduser()


def path_of(address: str) -> str:
    """Return the path in an address, without a query: it tells the kind of file."""
    return urlparse(address).path or address


def machine_of(address: str) -> tuple[str, str]:
    """Return the protocol and the machine, bucket or hub of an address."""
    parts = urlparse(address)
    return parts.scheme.lower(), parts.netloc.lower()


def local_path(address: str | Path) -> Path:
    """Return a file on this machine with the content at an address.

    It is fetched once, and again when its size, date or checksum at the address has changed. `file://…` is a path.

    Raises:
        DataError: The content cannot be fetched.
    """
    import fsspec  # slow to import, and seldom needed
    from datasets.config import HF_DATASETS_CACHE

    text = str(address)
    if text.lower().startswith("file://"):
        return Path(unquote(urlparse(text).path))
    try:
        system, path = fsspec.url_to_fs(text)
        found = Path(HF_DATASETS_CACHE).expanduser() / "addresses" / fsspec.utils.tokenize(text, system.info(path))
        if not found.exists():
            found.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=found.parent) as folder:  # another thread may fetch the same
                system.get_file(path, f"{folder}/file")
                os.replace(f"{folder}/file", found)
        return found
    except Exception as error:  # each protocol raises errors of its own library
        if lacks_memory(error):
            raise
        reason = short(f"{type(error).__name__}: {error}", 300)
        raise DataError(f"{short(text, 500)} cannot be fetched: {reason}") from error
