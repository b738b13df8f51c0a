"""What happens at a row that cannot be read: reading stops, unless all such rows are to be listed."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from visurf_ray.errors import DataError

T = TypeVar("T")
U = TypeVar("U")


@dataclass
class Found:
    """The errors of the rows that `listing` has left out, and the most rows that it reads; None for all."""

    errors: list[DataError] = field(default_factory=list)
    limit: int | None = None


_listed: Found | None = None  # of the process, not of a thread: rows are read in threads too


@contextmanager
def listing(limit: int | None = None) -> Iterator[Found]:
    """Inside the context, rows that cannot be read are left out and their errors listed. For one thread alone.

    Args:
        limit: The most rows of each table that are read; None: all.

    Raises:
        DataError: Nothing can be read. If rows were left out, it is the error of the first.
    """
    global _listed
    _listed = Found(limit=limit)
    try:
        yield _listed
    except DataError as error:
        raise next(iter(_listed.errors), error) from error
    finally:
        _listed = None


def each(read: Callable[[T], U], items: Iterable[T]) -> list[U]:
    """Return what `read` makes of each item. Raises DataError at the first that cannot be read; see `listing`."""
    found = []
    for item in items if _listed is None else islice(items, _listed.limit):
        try:
            found.append(read(item))
        except DataError as error:
            if _listed is None:
                raise
            _listed.errors.append(error)
    return found


def is_listing() -> bool:
    """Return whether `listing` is in effect."""
    return _listed is not None
