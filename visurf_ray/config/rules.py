"""What no run can have: values outside the bounds that the schema declares, and settings that contradict each other."""

import math
from collections.abc import Callable
from enum import Enum

from visurf_ray.config.fields import Bounds, Setting, nullable, settings
from visurf_ray.config.method_rules import METHOD_RULES
from visurf_ray.config.run_rules import RUN_RULES
from visurf_ray.config.schema import Config
from visurf_ray.config.task_rules import TASK_RULES
from visurf_ray.errors import ConfigError

RULES = (*METHOD_RULES, *RUN_RULES, *TASK_RULES)


def check(config: Config) -> None:
    """Raise ConfigError, naming the key, for the first setting that no run can have."""
    for setting in settings(config):
        _check_number(setting)
        _check_text(setting)
    for rule in RULES:
        if reason := rule(config):
            raise ConfigError(reason)


def _check_number(setting: Setting) -> None:
    key, value = setting.key, setting.value
    if not isinstance(value, int | float):
        return
    if not math.isfinite(value):
        raise ConfigError(f"{key}={value} must be a finite number")
    bounds: Bounds = setting.declared.metadata.get("bounds", Bounds())
    limits: list[tuple[float | None, str, Callable[[float], bool]]] = [
        (bounds.at_least, "at least", lambda limit: value >= limit),
        (bounds.above, "above", lambda limit: value > limit),
        (bounds.at_most, "at most", lambda limit: value <= limit),
        (bounds.below, "below", lambda limit: value < limit),
    ]
    given = [(limit, word, holds) for limit, word, holds in limits if limit is not None]
    if not all(holds(limit) for limit, _, holds in given):
        wanted = " and ".join(f"{word} {limit:.15g}" for limit, word, _ in given)
        null = ", or null" if nullable(setting.declared) else ""
        raise ConfigError(f"{key}={value:.15g} must be {wanted}{null}")


def _check_text(setting: Setting) -> None:
    """Refuse an empty text and the text `None`, which elsewhere mean that there is no value."""
    key, value = setting.key, setting.value
    if isinstance(value, str) and not isinstance(value, Enum) and value.strip().casefold() in ("", "none", "null"):
        cure = f"write {key}=null for no value" if nullable(setting.declared) else "it must have a value"
        raise ConfigError(f"{key}={value!r}: {cure}")
