"""Errors that are the user's to mend: their message alone is shown, without a traceback."""


class UserError(Exception):
    """Names the file, row, key or flag, and what to do. Anything else that is raised is a defect of ours."""


class ConfigError(UserError):
    """A configuration that cannot be run; the message names the key and what to do."""


class DataError(UserError):
    """A data set that cannot be used; the message names the file, the row and what is wrong."""
