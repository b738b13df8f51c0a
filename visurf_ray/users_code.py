"""Code of the user's own: found by the name that a setting gives, in a file or in a module."""

import importlib
import importlib.util
import sys
import traceback
import zlib
from pathlib import Path
from types import ModuleType

from visurf_ray.errors import UserError, short
from visurf_ray.names import nearest


def load(key: str, name: str, kind: str) -> object:
    """Import and return what a setting names.

    Args:
        key: The setting, for messages: reward.function.
        name: Its value, `module:attribute` or `path/to/file.py:attribute`; an attribute may be one of a class, `A.b`.
        kind: What the attribute is, for messages: function.

    Raises:
        UserError: It cannot be found or imported. For an error in the user's code the message names file and line.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UserError(f"{key}={name} must be module:{kind} or path/to/file.py:{kind}")
    found: object = _module(key, name, place)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UserError(f"{key}={name}: {place} has no {attribute!r}.{nearest(part, dir(found))}")
        found = getattr(found, part)
    return found


def place_of(error: BaseException, file: str | None) -> str:
    """Return where an error was raised, as `FILE, line 12, in check`: the innermost line of a file.

    Args:
        error: The error.
        file: The user's file. None, or a file that the error's traceback does not pass: the innermost line of all.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    frame = ([frame for frame in frames if frame.filename == file] or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}, in {frame.name}"


def described(error: BaseException) -> str:
    """Return an error's type and text in one line, for messages."""
    return f"{type(error).__name__}: {short(' '.join(str(error).split()), 300)}"


def _module(key: str, name: str, place: str) -> ModuleType:
    path = Path(place).expanduser().absolute() if place.endswith(".py") else None
    if path and not path.is_file():
        raise UserError(f"{key}={name}: there is no file {path}")
    try:
        return _of_file(path) if path else importlib.import_module(place)
    except Exception as error:  # a user's module may raise anything when it is imported
        where = f" at {place_of(error, str(path))}" if path else ""
        raise UserError(
            f"{key}={name} cannot be imported ({described(error)}{where}): name a module that is installed where "
            "Ray's actors run, or a file that exists there"
        ) from error


def _of_file(path: Path) -> ModuleType:
    """Run a file as a module, whose name is the same in every process."""
    spec = importlib.util.spec_from_file_location(f"visurf_ray_{path.stem}_{zlib.crc32(bytes(path)):08x}", path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses, for example, look up their module there
    spec.loader.exec_module(module)
    return module
