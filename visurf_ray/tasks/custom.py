"""A task of the user's own: a subclass of Task that task.module names. README.md here has an example."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from visurf_ray import users_code
from visurf_ray.config.schema import TaskConfig
from visurf_ray.data.rows import Row
from visurf_ray.errors import ConfigError, DataError, UserError, lacks_memory, short
from visurf_ray.groups import Example
from visurf_ray.tasks.task import Task

CUSTOM = "custom"  # the task's name

# The methods that a subclass may have, with what each must return.
_METHODS = {
    "train_rows": "a list of Row",
    "held_out_rows": "a list of Row",
    "read_split": "a list of Row",
    "read": "a list of Row",
    "question": "text",
    "check": "",
    "repaired": "",
    "largest_coordinate": "",
    "ground_truth": "text",
    "render": "text",
    "boxes": "a list of (x1, y1, x2, y2)",
    "true_boxes": "a list of (x1, y1, x2, y2), or None",
    "metrics": "a dict of names to finite numbers",
    "values": "a dict of names to finite numbers",
    "correct": "",
    "answer_key": "",
    "same": "",
}


def load_custom(config: TaskConfig, seed: int) -> Task:
    """Return the user's task. An error that its code raises later becomes a UserError, which names file and line.

    Args:
        config: The task's settings; `module` is `module:Class` or `path/to/file.py:Class`.
        seed: As for Task.

    Raises:
        UserError: There is no such class, it is not a usable subclass of Task, or it does not support a setting.
    """
    key = f"task.module={config.module}"
    if config.module is None:
        raise ConfigError("task.module is not set: name your own task, task.module=path/to/my_task.py:MyTask")
    kind = users_code.load("task.module", config.module, "Class")
    if not isinstance(kind, type) or not issubclass(kind, Task):
        raise UserError(f"{key} must be a class, and a subclass of visurf_ray.tasks.Task, but is {short(kind)}")
    if missing := ", ".join(sorted(kind.__abstractmethods__)):
        raise UserError(f"{key} lacks the method {missing}, which a task must have; see visurf_ray/tasks/README.md")
    _check_attributes(key, kind)
    task: Task = (kind if _owner(kind, "__init__") is Task else _guarded(key, "__init__", kind))(config, seed)
    for name in _METHODS:
        if not _owner(kind, name).__module__.startswith("visurf_ray."):
            setattr(task, name, _guarded(key, name, getattr(task, name)))
    return task


def _check_attributes(key: str, kind: type[Task]) -> None:
    """Check the attributes of a user's class. Raises UserError for one that cannot be used."""
    prompts = kind.prompts
    if not isinstance(prompts, dict) or not prompts or not all(isinstance(text, str) for text in prompts.values()):
        raise UserError(f"{key}: prompts must be a dict of names to texts, not {short(prompts)}")
    for name, text in prompts.items():
        if _owner(kind, "question") is not Task:  # it may know other fields
            break
        try:
            text.format(query="", unit="")
        except (ValueError, LookupError, AttributeError) as error:
            raise UserError(
                f"{key}: the prompt {name!r} cannot be filled in ({users_code.described(error)}): "
                "{query} stands for the row's problem, {unit} for the unit of coordinates, and other braces must be "
                "doubled, {{ and }}"
            ) from error
    for name in ("styles", "solutions"):
        value = getattr(kind, name)
        if isinstance(value, str) or not isinstance(value, tuple | list) or not value:
            raise UserError(f"{key}: {name} must be a tuple, such as {getattr(Task, name)}, not {short(value)}")
    if inspect.isfunction(inspect.getattr_static(kind, "reward")):
        raise UserError(f"{key}: write @staticmethod above its reward, which takes (response, ground_truth) alone")


def _owner(kind: type, name: str) -> type:
    """Return the class in which a class's attribute is written."""
    return next(base for base in kind.__mro__ if name in vars(base))


def _guarded(key: str, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that raises UserErrors alone, and whose result is checked."""
    file = inspect.getsourcefile(method)

    @functools.wraps(method, updated=())
    def call(*arguments: object, **named: object) -> Any:
        about = next((_named(each) for each in (*arguments, *named.values()) if isinstance(each, Row | Example)), "")
        try:
            value = method(*arguments, **named)
        except UserError:
            raise
        except Exception as error:  # whatever the user's code raises
            if lacks_memory(error):  # the row may be sound
                raise
            place = users_code.place_of(error, file)
            raise DataError(f"{about or key}: {users_code.described(error)} ({place})") from error
        wanted = _METHODS.get(name, "")
        if not _fits(wanted, value):
            raise UserError(f"{key}: {name} must return {wanted}, not {short(repr(value))}")
        return {part: float(number) for part, number in value.items()} if wanted.startswith("a dict") else value

    return call


def _named(about: Row | Example) -> str:
    return about.where if isinstance(about, Row) else f"example {about.id!r}"


def _fits(wanted: str, value: object) -> bool:
    if wanted.startswith("text"):
        return isinstance(value, str)
    if wanted.startswith("a dict"):
        return isinstance(value, Mapping) and all(isinstance(k, str) and _is_number(v) for k, v in value.items())
    if wanted.startswith("a list of Row"):
        return isinstance(value, list) and all(isinstance(row, Row) for row in value)
    if wanted.startswith("a list"):
        none = value is None and wanted.endswith("None")
        return none or (isinstance(value, list | tuple) and all(_is_box(box) for box in value))
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _is_box(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 4 and all(map(_is_number, value))
