"""Addresses of files, such as https://…, s3://… and hf://…: fetched with fsspec into a cache on this machine."""

import re
from pathlib import Path
from urllib.parse import unquote, urlparse

from visurf_ray.errors import DataError, short

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_address(name: str) -> bool:
    """Return whether a name is an address, `protocol://…`, and not a path."""
    return _ADDRESS.match(name) is not None


def path_of(address: str) -> str:
    """Return the path in an address, without a query: it tells the kind of file."""
    return urlparse(address).path or address


def local_path(address: str | Path) -> Path:
    """Return a file on this machine with the content at an address.

    It is fetched once, and again when the content at the address has changed. `file://…` is returned as a path.

    Raises:
        DataError: The content cannot be fetched.
    """
    import fsspec  # slow to import, and seldom needed
    from datasets.config import HF_DATASETS_CACHE

    text = str(address)
    if text.lower().startswith("file://"):
        return Path(unquote(urlparse(text).path))
    cache = {"cache_storage": str(Path(HF_DATASETS_CACHE).expanduser() / "addresses"), "check_files": True}
    try:
        found = fsspec.open_local(f"filecache::{text}", filecache=cache)
    except ImportError as error:  # fsspec names the package that its protocol needs
        raise DataError(f"{short(text, 500)} cannot be fetched: {short(error, 200)}") from error
    except Exception as error:  # each protocol raises errors of its own library
        reason = short(f"{type(error).__name__}: {error}", 300)
        raise DataError(f"{short(text, 500)} cannot be fetched: {reason}") from error
    return Path(found)
