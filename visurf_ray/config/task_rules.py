"""Settings of tasks, parts of a mixture and held-out sets that contradict each other. Each rule is named after what it
forbids."""

from dataclasses import fields

from visurf_ray.config.schema import Config, Rule
from visurf_ray.config.task_schema import MIXTURE, TaskConfig


def module_beside_another_task(config: Config) -> str | None:
    for key, task in _tasks(config).items():
        if task.module is not None and task.name != "custom":
            name = key if key == "task" else f"{key}.task"
            return f"{key}.module={task.module} is a task of your own: choose {name}=custom, not {name}={task.name}"
    return None


def mixture_without_parts(config: Config) -> str | None:
    if config.task.name == MIXTURE and not config.task.parts:
        return (
            "task=mixture has no parts: add each with +task.parts.NAME.task=…, and its files with "
            "+task.parts.NAME.train=… +task.parts.NAME.held_out=…"
        )
    if config.task.name != MIXTURE and (parts := config.task.parts):
        return f"task.parts has {', '.join(parts)}, but task={config.task.name} is one task: choose task=mixture"
    return None


def sets_named_like_parts(config: Config) -> str | None:
    both = [name for name in config.eval.sets if name in config.task.parts]
    if both:
        return f"eval.sets.{both[0]}: a part of the mixture has this name, and is evaluated: choose another name"
    return None


def settings_of_one_task_in_a_mixture(config: Config) -> str | None:
    if config.task.name != MIXTURE:
        return None
    for item in fields(TaskConfig):
        value = getattr(config.task, item.name)
        if value not in (None, False) and item.name != "name":
            return f"task.{item.name}={value}: in a mixture each part has its own: set task.parts.NAME.{item.name}"
    reward = config.reward
    if (reward.name, reward.function, reward.weight, reward.function_weight) != (None, None, 1, 1):
        return "reward.name, reward.function and their weights: in a mixture set task.parts.NAME.reward, of each part"
    return None


def segmenters_that_differ(config: Config) -> str | None:
    found = {f"{key}.segmenter": each.segmenter for key, each in _tasks(config).items() if each.segmenter}
    if len(set(found.values())) > 1:
        named = ", ".join(f"{key}={value}" for key, value in found.items())
        return f"{named}: one model makes the masks of all parts and sets: name the same one"
    return None


def _tasks(config: Config) -> dict[str, TaskConfig]:
    """Return the tasks of all parts and held-out sets, by their dotted keys."""
    parts = {f"task.parts.{name}" if name else "task": part for name, part in config.parts.items()}
    return parts | {f"eval.sets.{name}": task for name, task in config.eval.sets.items()}


TASK_RULES: tuple[Rule, ...] = (
    module_beside_another_task,
    mixture_without_parts,
    sets_named_like_parts,
    settings_of_one_task_in_a_mixture,
    segmenters_that_differ,
)
