"""Makes the files and folders that a configuration names absolute, because actors and jobs work in other folders."""

import glob
import os
from pathlib import Path

from visurf_ray.config.fields import PathRule, settings
from visurf_ray.config.schema import Config

FOLDER_VARIABLE = "VISURF_RAY_FOLDER"  # set by launch/job.sh, since a job runs in a copy of the code


def users_folder() -> Path:
    """Return the folder from which relative paths start: where the user has started the run."""
    return Path(os.environ.get(FOLDER_VARIABLE) or os.getcwd())


def make_absolute(config: Config) -> None:
    """Make all files and folders absolute that the settings of a configuration name; see `fields.PathRule`."""
    for setting in settings(config):
        if rule := setting.declared.metadata.get("path"):
            setattr(setting.section, setting.declared.name, absolute(setting.value, rule))


def absolute(value: object, rule: PathRule) -> object:
    """Return a value with its path absolute; a value that names no file or folder is returned as it is."""
    if isinstance(value, dict):
        return value | {key: absolute(value[key], rule) for key in rule.keys & value.keys()}
    if isinstance(value, list):
        return [absolute(item, rule) for item in value]
    if not isinstance(value, str) or value in rule.words or not value.endswith(rule.ending):
        return value
    if rule.address and "://" in value:
        return value
    path, rest = value, ""
    if rule.function:
        path, colon, attribute = value.rpartition(":")
        if not path.endswith(".py"):  # a module
            return value
        rest = colon + attribute
    elif rule.hub and not _exists(value):
        path, colon, split = value.partition(":")
        if not _exists(path):
            return value
        rest = colon + split
    return os.path.abspath(users_folder() / os.path.expanduser(path)) + rest


def _exists(path: str) -> bool:
    """Return whether the path exists, can only be a path, or is a pattern of paths."""
    explicit = path.startswith((".", "/", "~")) or (glob.has_magic(path) and "://" not in path)
    return explicit or os.path.exists(users_folder() / path)  # False too for a name that is too long for one
