"""What a run that is resumed may change of its configuration."""

from collections.abc import Iterator
from pathlib import Path

from visurf_ray.aliases import Json
from visurf_ray.config.choices import Schedule
from visurf_ray.config.schema import Config, is_free, to_dict
from visurf_ray.errors import ConfigError, short

_LENGTH = 80  # of a value in a message


def check_changes(before: dict[str, Json], config: Config, checkpoint: Path) -> str | None:
    """Compare a configuration with the one that the run had when it wrote a checkpoint.

    Args:
        before: the earlier configuration, as `to_dict` returns it.
        checkpoint: its folder.

    Returns:
        A line that names the changed settings; None if none has changed.

    Raises:
        ConfigError: a setting has changed that alters what is learnt, and train.resume_override is false.
    """
    was, now = dict(_flat(before)), dict(_flat(to_dict(config)))
    # The learning rates of another schedule depend on the run's length.
    harmless = {"train.steps"} if config.learner.schedule == Schedule.constant else set()
    keys = [key for key in was | now if was.get(key) != now.get(key)]
    changes = {key: f"{key}={_text(now, key)} (before: {_text(was, key)})" for key in keys if key not in _OF_A_RESUME}
    altering = [change for key, change in changes.items() if key not in harmless and not is_free(key)]
    if altering and not config.train.resume_override:
        raise ConfigError(
            f"{checkpoint} was written with other settings, which alter what is learnt: {', '.join(altering)}. "
            "Continue with the earlier values, or set train.resume_override=true"
        )
    return f"resumed with other settings: {', '.join(changes.values())}" if changes else None


_OF_A_RESUME = ("train.resume", "train.resume_override", "train.dry_run")


def _flat(section: dict[str, Json], prefix: str = "") -> Iterator[tuple[str, Json]]:
    """Yield each value by its dotted key; an empty section counts as a value."""
    for name, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(values: dict[str, Json], key: str) -> str:
    if key not in values:
        return "not there"
    return "null" if values[key] is None else short(values[key], _LENGTH)
