"""Errors that are the user's to mend: their message alone is shown, without a traceback."""


class UserError(Exception):
    """Names the file, row, key or flag, and what to do. Anything else that is raised is a defect of ours."""
