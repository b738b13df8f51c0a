"""Text and JSON files of users and of data sets' authors, which must be UTF-8. A byte-order mark is allowed."""

import json
from collections.abc import Iterator
from pathlib import Path

from visurf_ray.aliases import Json
from visurf_ray.data.bad_rows import is_listing
from visurf_ray.errors import DataError, short

_MARK = b"\xef\xbb\xbf"  # UTF-8's byte-order mark, which Notepad and PowerShell write
RECODE = "save the file as UTF-8"


def read_text(path: Path, where: str | None = None) -> str:
    """Return the text of a file, without its byte-order mark.

    Args:
        path: The file.
        where: The file's name in messages; None: its path.

    Raises:
        DataError: The file cannot be read, or is not UTF-8. The message names the encoding, or else the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{where or path} cannot be read: {error.strerror}") from error
    check_encoding(data[:4], where or str(path))
    return "\n".join(decoded(line, where or str(path), number) for number, line in enumerate(data.split(b"\n"), 1))


def read_json(path: Path, where: str | None = None) -> Json:
    """Return the content of a JSON file. Raises DataError like `read_text`, and if the file is not JSON."""
    try:
        return json.loads(read_text(path, where))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where or path} cannot be read: it is not JSON ({error})") from error


def read_lines(path: Path, where: str) -> Iterator[tuple[int, int, bytes, Json]]:
    """Read the values of a file of JSON lines. Empty lines are skipped.

    Returns:
        Each line's number, its offset in the file, its bytes and its value; inside of `bad_rows.listing` the error in
        place of a value that cannot be read.

    Raises:
        DataError: The file is not UTF-8, or a line is not JSON. The message names the line.
    """
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                check_encoding(line[:4], where)
            try:
                text = decoded(line, where, number)
                if text.strip():
                    yield number, offset, line, _value(text, where, number)
            except DataError as error:
                if not is_listing():
                    raise
                yield number, offset, line, error
            offset += len(line)


def _value(text: str, where: str, number: int) -> Json:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} cannot be read: line {number} is not JSON ({error})") from error


def decoded(line: bytes, where: str, number: int) -> str:
    """Return the text of a line. Raises DataError, which names the line, if it is not UTF-8."""
    try:
        return line.removeprefix(_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        before = line[max(0, error.start - 20) : error.start].decode("ascii", "replace")
        raise DataError(
            f"{where} cannot be read: line {number} is not UTF-8, but perhaps Latin-1 or Windows-1252: byte "
            f"0x{line[error.start]:02x} after {short(before)!r}; {RECODE}"
        ) from error


def check_encoding(head: bytes, where: str) -> None:
    """Raise DataError, which names the encoding, if a text that begins with these four bytes is UTF-16 or UTF-32."""
    encoding = json.detect_encoding(head.removeprefix(_MARK))
    if not encoding.startswith("utf-8"):
        raise DataError(f"{where} cannot be read: its encoding is {encoding.upper()}; {RECODE}")
