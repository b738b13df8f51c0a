"""Explains why a configuration cannot be composed: the override at fault, the reason, and the nearest valid name."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import Field, dataclass
from enum import Enum
from itertools import takewhile
from pathlib import Path
from typing import get_args

import yaml
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from visurf_ray.config.fields import nullable
from visurf_ray.config.schema import OPEN_SECTIONS, declared
from visurf_ray.names import nearest

# ValueError: method=null. YAMLError, RecursionError: a file of the user's.
COMPOSING_ERRORS = (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError, RecursionError)
_EXPERIMENT = "experiment"  # not in the defaults list, so it must be added: +experiment=NAME
_NOTHING = ("disabled", "off", "none")  # options that switch something off
# Common names that are none of ours, with ours for the same; a group or a choice has one of them at most.
_OTHER_NAMES = {"grpo": ("rlvr",), "none": _NOTHING, "null": _NOTHING, "false": _NOTHING, "no": _NOTHING}
# Names of settings in TRL, verl, EasyR1 and ms-swift, without their section; ours for the same.
_OTHER_KEYS = {
    **dict.fromkeys(("epochs", "total_epochs", "num_train_epochs", "max_steps", "total_training_steps"), "train.steps"),
    **dict.fromkeys(("train_batch_size", "per_device_train_batch_size", "rollout_batch_size"), "train.batch_size"),
    **dict.fromkeys(("save_steps", "save_freq", "save_interval"), "train.checkpoint_every"),
    **dict.fromkeys(("eval_steps", "test_freq", "val_freq"), "eval.every"),
    **dict.fromkeys(("num_generations", "group_size", "rollout_n"), "rollout.n"),
    **dict.fromkeys(("max_completion_length", "max_new_tokens", "max_response_length"), "rollout.max_tokens"),
    **dict.fromkeys(("tensor_parallel_size", "tensor_model_parallel_size"), "rollout.gpus"),
    **dict.fromkeys(("gpu_memory_utilization", "vllm_gpu_memory_utilization"), "rollout.memory"),
    **dict.fromkeys(("beta", "kl", "kl_coef", "kl_loss_coef"), "method.kl_coef"),
    **dict.fromkeys(("gradient_accumulation_steps", "micro_batch_size"), "learner.max_tokens_per_micro_batch"),
    **dict.fromkeys(("model_name_or_path", "pretrained"), "model.path"),
    **dict.fromkeys(("train_files", "train_dataset", "dataset"), "task.train"),
    **dict.fromkeys(("val_files", "val_dataset", "eval_dataset"), "task.held_out"),
}


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
        """Return the keys that have several values, with the `+` before them if any."""
        return {override.get_key_element() for override in _parsed(self.overrides) if override.is_sweep_override()}

    def groups(self) -> dict[str, list[str]]:
        """Return the options of each configuration group."""
        found: dict[str, set[str]] = {}
        for file in (file for folder in self.folders for file in folder.glob("*/*.yaml")):
            found.setdefault(file.parent.name, set()).add(file.stem)
        return {group: sorted(options) for group, options in sorted(found.items())}

    def search_path(self) -> list[str]:
        """Return the override with which Hydra finds the user's own files when it composes again."""
        paths = [str(folder).replace("'", "\\'") for folder in self.folders[1:]]
        return ["hydra.searchpath=[" + ",".join(f"'file://{path}'" for path in paths) + "]"]

    def keys(self) -> list[str]:
        """Return every dotted key of the composed configuration. Options that do not exist are ignored."""
        groups = self.groups()
        chosen = self.search_path()
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
        part = key in OPEN_SECTIONS or (_of_a_part(key) and key not in keys)
        if part and not (override.is_add() or override.is_force_add() or override.is_delete()):
            return f"parts are added to the configuration: write +{text}"
        if key not in keys and not _of_a_part(key):
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
            return unknown_option(key, option, groups[key])
    if key == _EXPERIMENT and not (override.is_add() or override.is_force_add()):
        return f"an experiment is added to the configuration: write +{text.lstrip('+')}"
    return None


def unknown_addition(line: CommandLine) -> str | None:
    """Return why the first `+key=…` with an unknown key is refused; None if there is no such override.

    Call it while Hydra is initialised.
    """
    added = [o.key_or_group for o in _parsed(line.overrides) if o.is_add() or o.is_force_add()]
    groups = line.groups()
    added = [key for key in added if key not in groups and not _of_a_part(key)]
    if not added:
        return None
    keys = line.keys()
    return next((unknown_key(key, keys) for key in added if key not in keys), None)


def _of_a_part(key: str) -> bool:
    """Return whether a key is of a part of a mixture or of a held-out set, which `config.parts` checks."""
    return key.startswith(tuple(f"{section}." for section in OPEN_SECTIONS))


def unknown_key(key: str, keys: Sequence[str]) -> str:
    """Return the message for a key that does not exist, with the nearest of `keys`."""
    other = _OTHER_KEYS.get(re.split("[./]", key)[-1])
    hint = f" Did you mean {other!r}?" if other in keys else nearest(key, keys)
    return f"there is no configuration key {key!r}.{hint}"


def unknown_option(group: str, option: object, options: Sequence[str]) -> str:
    known = ", ".join(options)
    return f"unknown {group} {option!r}.{_nearest_option(str(option), options)} Known: {known}"


def _nearest_option(name: str, options: Sequence[str]) -> str:
    """Return `nearest`, which also knows other common names of options."""
    others = [other for other in _OTHER_NAMES.get(name.casefold(), ()) if other in options]
    return f" Did you mean {others[0]!r}?" if others else nearest(name, options)


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
        return (
            f"cannot read the override {text!r}{where}: this value needs quotes, which the shell must leave in place: "
            f"{_quoted(key, value)}"
        )
    return None


def _invalid_value(error: Exception, line: CommandLine) -> str:
    """Return the reason that Hydra or OmegaConf gives, with the key, and with the nearest choice if any."""
    cause = error.__cause__ or error
    lines = [part.strip() for part in str(cause).splitlines() if part.strip() and "hydra.cc" not in part]
    details = dict(part.split(": ", 1) for part in lines[1:] if part.startswith("full_key: "))
    key = details.get("full_key")
    if f"Key {_EXPERIMENT!r} not in" in str(error):  # its settings would be below a key of this name
        given = next((text for text in line.overrides if text.lstrip("+").startswith(f"{_EXPERIMENT}=")), _EXPERIMENT)
        return f"{given}: begin the file with the line `# @package _global_`, so that its keys are those of a run"
    if key is None:
        whole = " ".join(part.strip() for part in str(error).splitlines() if "hydra.cc" not in part)
        return " ".join([whole, *lines[:1]]) if cause is not error and lines[0] not in whole else whole
    reason = " ".join(takewhile(lambda part: not part.startswith("full_key: "), lines)).rstrip(".")
    given = next((text for text in reversed(line.overrides) if text.lstrip("+").startswith(f"{key}=")), key)
    if choices := re.search(r"Invalid value '(.*)', expected one of \[(.*)\]", reason):
        names = choices[2].split(", ")
        return f"{given}: it must be one of {', '.join(names)}.{_nearest_option(choices[1], names)}"
    if "Interpolation key" in reason:
        return f"{given}: {reason}. Write ${{oc.env:NAME}} for a variable of the environment"
    return f"{given}: {reason}. {cure(key, given.partition('=')[2])}".rstrip(". ")


def cure(key: str, written: str) -> str:
    """Return what to write for a key in place of a value of the wrong type; an empty string if the key is unknown."""
    field = declared(re.sub(r"\[\d+\]$", "", key))
    if field is None:
        return ""
    if nullable(field) and written.casefold() in ("none", ""):
        return "Write null for no value"
    kinds = get_args(field.type) or (field.type,)
    if int in kinds and re.fullmatch(r"\d+\.?\d*(e\+?\d+)?", written, re.IGNORECASE):
        number = float(written)
        if number.is_integer() and number < 1e12:
            return f"Write {key}={int(number)}"
    return f"Write {_wanted(field, kinds[0])}{', or null' if nullable(field) else ''}"


def _wanted(field: Field[object], kind: type) -> str:
    """Return in words what a field of this type takes."""
    if "example" in field.metadata:
        return f"a list, such as {field.metadata['example']}"
    if issubclass(kind, Enum):
        return ", ".join(kind.__members__)
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(kind, "another value")


def misread(line: CommandLine) -> str | None:
    """Return why the first value that would be taken for another is refused; None if there is none.

    OmegaConf takes 2 for true, and turns true, 1e3 and 2026.10 into the texts True, 1000.0 and 2026.1.
    """
    for text, override in ((given, found) for given in line.overrides for found in _parsed([given])):
        key = override.key_or_group
        field = declared(key)
        if field is None or override.is_sweep_override() or override.is_delete():
            continue
        kinds = get_args(field.type) or (field.type,)
        value, written = override.value(), text.partition("=")[2].strip()
        if bool in kinds and isinstance(value, int) and value not in (0, 1):
            return f"{text}: this is a number. Write true or false"
        if str in kinds and (isinstance(value, bool) or (isinstance(value, int | float) and str(value) != written)):
            kind = "true or false" if isinstance(value, bool) else "a number"
            null = ", or null for no value" if nullable(field) else ""
            return f"{text}: this is {kind}. Write a text, in quotes: {_quoted(key, written)}{null}"
    return None


def _quoted(key: str, value: str) -> str:
    """Return the override as a shell takes it, with the quotes that Hydra needs."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    value = value.replace("'", "\\'")
    override = f"{key}='{value}'"
    return shlex.quote(override) if re.search(r'["$`!]', override) else f'"{override}"'


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
