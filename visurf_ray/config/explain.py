"""Explains why a configuration cannot be composed: the override at fault, the reason, and the nearest valid name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import yaml
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from visurf_ray.names import nearest

# ValueError: method=null. YAMLError, RecursionError: a file of the user's.
COMPOSING_ERRORS = (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError, RecursionError)
_EXPERIMENT = "experiment"  # not in the defaults list, so it must be added: +experiment=NAME
_OTHER_NAMES = {"grpo": "rlvr"}  # other common names of options


@dataclass(frozen=True)
class CommandLine:
    """A primary configuration, overrides, and the folders to search for files: `conf/`, then the user's own."""

    config_name: str
    overrides: Sequence[str]
    folders: Sequence[Path]

    def missing_files(self) -> str | None:
        """Return why a folder or the primary configuration is missing; None if all exist."""
        for folder in self.folders:
            if not folder.is_dir():
                return f"--config-dir: there is no folder {folder}"
        names = sorted(file.stem for folder in self.folders for file in folder.glob("*.yaml"))
        if self.config_name.removesuffix(".yaml") not in names:
            return f"--config-name={self.config_name}: there is no such file.{nearest(self.config_name, names)}"
        return None

    def swept(self) -> set[str]:
        """Return the keys that have several values."""
        return {override.get_key_element() for override in _parsed(self.overrides) if override.is_sweep_override()}

    def groups(self) -> dict[str, list[str]]:
        """Return the options of each configuration group."""
        found: dict[str, set[str]] = {}
        for file in (file for folder in self.folders for file in folder.glob("*/*.yaml")):
            found.setdefault(file.parent.name, set()).add(file.stem)
        return {group: sorted(options) for group, options in sorted(found.items())}

    def keys(self) -> list[str]:
        """Return every dotted key of the composed configuration. Options that do not exist are ignored."""
        groups = self.groups()
        paths = [str(folder).replace("'", "\\'") for folder in self.folders[1:]]
        chosen = ["hydra.searchpath=[" + ",".join(f"'file://{path}'" for path in paths) + "]"]
        for override in _parsed(self.overrides):
            option = next(iter(_values(override)), None)
            if option in groups.get(override.key_or_group, []):
                plus = "+" if override.key_or_group == _EXPERIMENT else ""
                chosen.append(f"{plus}{override.key_or_group}={option}")
        return _dotted(compose(self.config_name, chosen))


def explain(error: Exception, line: CommandLine) -> str:
    """Return in one line which override is at fault, why, and what to write. Call it while Hydra is initialised."""
    groups = line.groups()
    for text in line.overrides:
        if reason := _unreadable(text) or _unknown_choice(text, groups):
            return reason
    try:
        keys = line.keys()
    except COMPOSING_ERRORS:  # the fault is in a file
        return _invalid_value(error, line)
    for text, (override,) in ((text, _parsed([text])) for text in line.overrides):
        key = override.key_or_group
        if key in groups or re.split("[./]", key)[0] == "hydra":
            continue
        if key not in keys:
            return unknown_key(key, keys)
        if not override.is_delete() and (inner := [other for other in keys if other.startswith(f"{key}.")]):
            return f"{text}: {key} is a section: set one of its keys, such as {inner[0]}"
    return _invalid_value(error, line)


def _unknown_choice(text: str, groups: dict[str, list[str]]) -> str | None:
    """Return why an override of a group is refused; None if it is not one, or its options exist."""
    (override,) = _parsed([text])
    key = override.key_or_group
    if key not in groups:
        return None
    for option in _values(override):
        if isinstance(option, list) or "/" in str(option):  # several options, or one of a subfolder: Hydra checks them
            continue
        if option not in groups[key]:
            return _unknown_option(key, option, groups[key])
    if key == _EXPERIMENT and not (override.is_add() or override.is_force_add()):
        return f"an experiment is added to the configuration: write +{text.lstrip('+')}"
    return None


def unknown_addition(line: CommandLine) -> str | None:
    """Return why the first `+key=…` with an unknown key is refused; None if there is no such override.

    Call it while Hydra is initialised.
    """
    added = [o.key_or_group for o in _parsed(line.overrides) if o.is_add() or o.is_force_add()]
    if not added:
        return None
    known = {*line.groups(), *(keys := line.keys())}
    return next((unknown_key(key, keys) for key in added if key not in known), None)


def unknown_key(key: str, keys: Sequence[str]) -> str:
    """Return the message for a key that does not exist, with the nearest of `keys`."""
    return f"there is no configuration key {key!r}.{nearest(key, keys)}"


def _unknown_option(group: str, option: object, options: Sequence[str]) -> str:
    known = ", ".join(options)
    name = _OTHER_NAMES.get(str(option), "")
    hint = f" Did you mean {name!r}?" if name in options else nearest(str(option), options)
    return f"unknown {group} {option!r}.{hint} Known: {known}"


def _unreadable(text: str) -> str | None:
    """Return why Hydra cannot parse the override; None if it can."""
    try:
        OverridesParser.create().parse_override(text)
    except HydraException as error:
        key, equals, value = text.partition("=")
        if not equals:
            return f"cannot read the override {text!r}: it must be key=value"
        at = re.search(r"(?:at:|input) '(.)", str(error))
        where = f" at {at[1]!r}" if at else ""
        quoted = value.replace("'", "\\'")
        return (
            f"cannot read the override {text!r}{where}: this value needs quotes, which the shell must leave in place: "
            f"\"{key}='{quoted}'\""
        )
    return None


def _invalid_value(error: Exception, line: CommandLine) -> str:
    """Return the reason that Hydra or OmegaConf gives, with the key, and with the nearest choice if any."""
    cause = error.__cause__ or error
    lines = [part.strip() for part in str(cause).splitlines() if part.strip() and "hydra.cc" not in part]
    details = dict(part.split(": ", 1) for part in lines[1:] if part.startswith("full_key: "))
    key = details.get("full_key")
    if key is None:
        whole = " ".join(part.strip() for part in str(error).splitlines() if "hydra.cc" not in part)
        return " ".join([whole, *lines[:1]]) if cause is not error and lines[0] not in whole else whole
    reason = " ".join(takewhile(lambda part: not part.startswith("full_key: "), lines)).rstrip(".")
    given = next((text for text in line.overrides if text.lstrip("+").startswith(f"{key}=")), key)
    if choices := re.search(r"Invalid value '(.*)', expected one of \[(.*)\]", reason):
        names = choices[2].split(", ")
        return f"{given}: it must be one of {', '.join(names)}.{nearest(choices[1], names)}"
    hint = ". Write null for no value" if given.partition("=")[2] == "None" else ""
    return f"{given}: {reason}{hint}"


def _values(override: Override) -> list[object]:
    """Return the values of an override; several if it is swept."""
    if override.value_type is ValueType.GLOB_CHOICE_SWEEP:  # chooses among options that exist
        return []
    return list(override.sweep_iterator()) if override.is_discrete_sweep() else [override.value()]


def _parsed(texts: Sequence[str]) -> list[Override]:
    """Return the overrides that can be parsed."""
    parser, found = OverridesParser.create(), []
    for text in texts:
        try:
            found.append(parser.parse_override(text))
        except HydraException:
            continue
    return found


def _dotted(section: DictConfig, prefix: str = "") -> list[str]:
    """Return all dotted keys, of sections and of settings."""
    found: list[str] = []
    for key, value in ((str(key), value) for key, value in section.items_ex(resolve=False)):
        found.append(f"{prefix}{key}")
        if isinstance(value, DictConfig):
            found += _dotted(value, f"{prefix}{key}.")
    return found
