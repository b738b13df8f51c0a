"""Errors that are the user's to mend: their message alone is shown, without a traceback."""

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path


class UserError(Exception):
    """Names the file, row, key or flag, and what to do. Anything else that is raised is a defect of ours."""


class ConfigError(UserError):
    """A configuration that cannot be run; the message names the key and what to do."""


class DataError(UserError):
    """A data set that cannot be used; the message names the file, the row and what is wrong."""


class WriteError(UserError):
    """A file that could not be written; the message names the folder and says why."""


class DiskFullError(WriteError):
    """A file that could not be written for lack of space; the message names the folder and its free space."""


class ClusterError(UserError):
    """A cluster that a run does not fit, or that failed it; the message says what was requested or what died."""


class StalledError(ClusterError):
    """Actors have not answered within cluster.timeout. The message names them; `deaths_explained` adds the phase."""


class LostError(ClusterError):
    """Objects in Ray's store are lost with the actor or the machine that has made them. They can be made again."""


class LearnerLostError(ClusterError):
    """The learner's ranks are lost: one has died or hangs, and the others wait for it. The message says which."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, its cause, the cause's cause, and so on."""
    while error is not None:
        yield error
        inner = getattr(error, "cause", None)  # Ray's, of an error that an actor has raised
        error = inner if isinstance(inner, BaseException) else error.__cause__


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, tells of a lack of memory: what was being read may be sound."""
    return any(
        isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
        for cause in causes(error)
    )


@contextmanager
def refused_as(message: str) -> Iterator[None]:
    """Turn an error inside the context into a DataError: the message, with the error's own in brackets.

    A DataError and a lack of memory stay what they are.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        if lacks_memory(error):
            raise
        raise DataError(f"{message} ({short(error, 200)})") from error


@contextmanager
def during(phase: str) -> Iterator[None]:
    """Note on an error that leaves the context in which phase of the run it arose; the innermost phase stays noted."""
    before = _CURRENT.set(phase)
    try:
        yield
    except Exception as error:
        if phase_of(error) is None:
            error.add_note(f"{_PHASE}{phase}")
        raise
    finally:
        _CURRENT.reset(before)


_CURRENT: ContextVar[str | None] = ContextVar("phase", default=None)


def current_phase() -> str | None:
    """Return the phase of the run that this thread is in; None in none."""
    return _CURRENT.get()


def phase_of(error: BaseException) -> str | None:
    """Return the phase of the run in which the error arose, or one of its causes; None if no phase is noted."""
    notes = getattr(error, "__notes__", [])
    found = next((note.removeprefix(_PHASE) for note in notes if note.startswith(_PHASE)), None)
    return phase_of(error.__cause__) if found is None and error.__cause__ else found


_PHASE = "phase of the run: "


@contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Turn an error of a file inside the context, maybe an actor's, into one that names the folder.

    A lack of space becomes a DiskFullError, anything else a WriteError. Other errors are left as they are.

    Args:
        what: what is written, for the message.
        folder: where.
    """
    try:
        yield
    except Exception as error:
        if (reason := _lack_of_space(error)) is None:
            cause = getattr(error, "cause", error)  # an actor's error carries the actor's traceback, its cause does not
            if not isinstance(cause, OSError) or isinstance(cause, ConnectionError) or cause.errno is None:
                raise
            raise WriteError(
                f"cannot write {what} to {folder}: {cause}. Make the folder writable on all machines of the run, or "
                "choose another output_dir. A run with a checkpoint continues with train.resume=auto"
            ) from error
        there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
        disk = shutil.disk_usage(there)
        raise DiskFullError(
            f"cannot write {what}: {reason}. {folder} has {disk.free / 1e6:,.1f} of {disk.total / 1e6:,.0f} MB free. "
            "Free space there, or choose another output_dir. A run with a checkpoint continues with train.resume=auto"
        ) from error


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _lack_of_space(error: BaseException) -> str | None:
    """Return the operating system's words if the error, maybe an actor's, tells of a lack of space; None if not.

    Torch reports a short write by the position in its file alone.
    """
    words = [os.strerror(number) for number in _NO_SPACE]
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return os.strerror(error.errno)
    text = str(error)
    found = [word for word in words if word.casefold() in text.casefold()]
    if not found and ("unexpected pos" in text or "PytorchStreamWriter failed writing" in text):
        return words[0]
    return found[0] if found else None


@contextmanager
def printing() -> Iterator[None]:
    """Flush standard output at the end of the context. Drop what is left if its reader, such as `head`, has ended."""
    try:
        with suppress(BrokenPipeError):
            yield
    finally:
        try:
            print(end="", flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again when it exits


@contextmanager
def naming(section: str, name: str) -> Iterator[None]:
    """Name a part's keys in the message of a UserError: `task.train: …` becomes `task.parts.charts.train: …`.

    Args:
        section: `task.parts` or `eval.sets`.
        name: the part's name in it; an empty one, of a run of one task, leaves messages as they are.
    """
    try:
        yield
    except UserError as error:
        if not name:
            raise
        part = f"{section}.{name}"
        message = str(error)
        own = message.removeprefix("task.") if message.startswith("task.") else message
        named = own != message or message.startswith("reward.")
        raise type(error)(f"{part}.{own}" if named else f"{part}: {message}") from error


class BoxError(DataError):
    """A row whose boxes have swapped corners or reach outside the image; see `feed.on_bad_box`."""


class LengthError(DataError):
    """A row whose prompt or label is longer than the run can have; see `feed.on_long`."""


def short(value: object, limit: int = 120) -> str:
    """Return the value as text of at most `limit` characters, for messages: a cell may hold megabytes."""
    text = str(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
