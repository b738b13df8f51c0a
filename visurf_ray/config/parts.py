"""Parts of a mixture, and held-out sets of other tasks: each takes the defaults of its task and reward in `conf/`."""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TypeVar

from hydra import compose
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from visurf_ray.aliases import Json
from visurf_ray.config.explain import CommandLine, cure, unknown_option
from visurf_ray.config.schema import Config
from visurf_ray.config.task_schema import MIXTURE, PartConfig, RewardConfig, RunTaskConfig, ScoringConfig, TaskConfig
from visurf_ray.errors import ConfigError, short
from visurf_ray.names import nearest

T = TypeVar("T")

_NAME = re.compile(r"\w[\w-]*")
_TASK_KEYS = [item.name for item in fields(TaskConfig) if item.name != "name"]
_REWARD_KEYS = [item.name for item in fields(ScoringConfig)]


def resolve(config: Config, line: CommandLine) -> None:
    """Replace what the user has written in `task.parts` and `eval.sets` by a PartConfig or TaskConfig each.

    Call it while Hydra is initialised.

    Raises:
        ConfigError: a name cannot be one, `task` is missing, or a key, a task, a reward or a value does not exist.
    """
    config.task.parts = _each("task.parts", config.task.parts, line, _part)
    config.eval.sets = _each("eval.sets", config.eval.sets, line, _held_out_set)


def _each(
    section: str,
    given: Mapping[str, Json],
    line: CommandLine,
    make: Callable[[str, dict[str, Json], CommandLine], T],
) -> dict[str, T]:
    made = {}
    for name, settings in given.items():
        key = f"{section}.{name}"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{key}: a name has letters, digits, _ and -, because it becomes a part of metrics' names"
            )
        if not isinstance(settings, dict):
            raise ConfigError(f"{key}={short(settings)} must be a section with `task` and settings of that task")
        made[name] = make(key, settings, line)
    return made


def _part(key: str, given: dict[str, Json], line: CommandLine) -> PartConfig:
    """Return a part. `given` may also be one of a run's config.yaml, where the task is called `name`."""
    composed = _composed(key, given, line, ["weight", "reward"])
    weight = given.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ConfigError(f"{key}.weight={short(weight)} must be a number above 0")
    reward = _filled(f"{key}.reward", composed, "reward", RewardConfig)
    scoring = ScoringConfig(**{name: getattr(reward, name) for name in _REWARD_KEYS})
    return PartConfig(**vars(_task(key, composed)), weight=float(weight), reward=scoring)


def _held_out_set(key: str, given: dict[str, Json], line: CommandLine) -> TaskConfig:
    """Return a held-out set; `given` may be one of a run's config.yaml as well."""
    for name in ("train", "weight", "reward"):
        if given.get(name) is not None:
            raise ConfigError(f"{key}.{name}: a held-out set is not trained on: remove this key")
    return _task(key, _composed(key, {**given, "train": None}, line, ["weight", "reward"]))


def _task(key: str, composed: DictConfig) -> TaskConfig:
    task = _filled(key, composed, "task", RunTaskConfig)
    return TaskConfig(**{name: getattr(task, name) for name in ("name", *_TASK_KEYS)})


def _composed(key: str, given: dict[str, Json], line: CommandLine, others: list[str]) -> DictConfig:
    """Return a configuration whose sections `task` and `reward` have the defaults and what is given.

    Args:
        others: keys that a part may have beside those of its task.
    """
    groups = line.groups()
    known = ["task", *_TASK_KEYS, *others]
    unknown = [name for name in given if name not in (*known, "name")]
    if unknown:
        wanted = nearest(f"{key}.{unknown[0]}", [f"{key}.{name}" for name in known])
        raise ConfigError(f"there is no configuration key '{key}.{unknown[0]}'.{wanted}")
    task = given.get("task", given.get("name"))
    options = [option for option in groups["task"] if option != MIXTURE]
    if task is None:
        raise ConfigError(f"{key}.task is not set: name its task, one of {', '.join(options)}")
    if task not in options:
        raise ConfigError(f"{key}.task: {unknown_option('task', task, options)}")
    reward = given.get("reward", {})
    if not isinstance(reward, dict):
        reward = {"name": reward}
    choices = [f"task={task}"]
    if "name" in reward:
        named = "none" if reward["name"] is None else reward["name"]
        if named not in groups["reward"]:
            raise ConfigError(f"{key}.reward: {unknown_option('reward', named, groups['reward'])}")
        choices.append(f"reward={named}")
    composed = compose("config", [*line.search_path(), *choices])
    if composed.task.name == MIXTURE:
        raise ConfigError(f"{key}.task={task}: a part cannot itself be a mixture")
    for name in (name for name in _TASK_KEYS if name in given):
        _set(composed, f"task.{name}", given[name], f"{key}.{name}")
    for name, value in reward.items():
        if name in ("workers", "gpus", "timeout", "on_error"):
            raise ConfigError(f"{key}.reward.{name}: the reward actors serve all parts: set reward.{name}")
        if name not in _REWARD_KEYS:
            wanted = nearest(f"{key}.reward.{name}", [f"{key}.reward.{other}" for other in _REWARD_KEYS])
            raise ConfigError(f"there is no configuration key '{key}.reward.{name}'.{wanted}")
        if name != "name":
            _set(composed, f"reward.{name}", value, f"{key}.reward.{name}")
    return composed


def _set(composed: DictConfig, place: str, value: Json, key: str) -> None:
    try:
        OmegaConf.update(composed, place, value, merge=True, force_add=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{key}={short(value)}: {reason}. {cure(key, str(value))}".rstrip(". ")) from error


def _filled(key: str, composed: DictConfig, section: str, kind: type[T]) -> T:
    """Return a section as a dataclass of its kind; what is mandatory and not set is None, and its task reports it."""
    for missing in OmegaConf.missing_keys(composed):
        if missing.startswith(f"{section}."):
            _set(composed, missing, None, missing.replace(section, key, 1))
    found = OmegaConf.to_object(composed[section])
    assert isinstance(found, kind)
    return found
