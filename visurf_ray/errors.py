"""Errors that are the user's to mend: their message alone is shown, without a traceback."""


class UserError(Exception):
    """Names the file, row, key or flag, and what to do. Anything else that is raised is a defect of ours."""


class ConfigError(UserError):
    """A configuration that cannot be run; the message names the key and what to do."""


class DataError(UserError):
    """A data set that cannot be used; the message names the file, the row and what is wrong."""


class BoxError(DataError):
    """A row whose boxes have swapped corners or reach outside the image; see `feed.on_bad_box`."""


class LengthError(DataError):
    """A row whose prompt or label is longer than the run can have; see `feed.on_long`."""


def short(value: object, limit: int = 120) -> str:
    """Return the value as text of at most `limit` characters, for messages: a cell may hold megabytes."""
    text = str(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
