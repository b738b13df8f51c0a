"""A user's own reward: a Python function of a response and a ground truth, named in the configuration."""

import functools
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

from visurf_ray.errors import UserError
from visurf_ray.names import nearest
from visurf_ray.rewards.reward import Reward, RewardFunction, needs_image


def absolute(name: str) -> str:
    """`name`, a relative file in it made absolute: the processes that score stand in other folders."""
    place, colon, attribute = name.rpartition(":")
    return f"{Path(place).expanduser().resolve()}{colon}{attribute}" if place.endswith(".py") else name


def load_function(name: str) -> RewardFunction:
    """The function that `name` names as `module:function` or `path/to/file.py:function`.

    One whose attribute `needs_image` is true is called with `image=` besides, the PIL image as the model sees it.
    It returns a number, which becomes the part of the function's name, or a dict of named parts; anything else is
    refused when it is called. Raises UserError for what cannot be found, imported or called with these arguments.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UserError(f"reward.function={name} must be module:function or path/to/file.py:function")
    module = _load_file(name, Path(place)) if place.endswith(".py") else _load_module(name, place)
    function = getattr(module, attribute, None)
    if function is None:
        raise UserError(f"reward.function={name}: {place} has no {attribute!r}.{nearest(attribute, vars(module))}")
    if not callable(function):
        raise UserError(f"reward.function={name}: {attribute!r} is no function but a {type(function).__name__}")
    image = {"image": None} if needs_image(function) else {}
    try:
        inspect.signature(function).bind("response", "ground truth", **image)
    except (TypeError, ValueError) as error:
        arguments = ", ".join(["response", "ground_truth", *image])
        raise UserError(f"reward.function={name} must take ({arguments}), but {error}") from error

    @functools.wraps(function)  # with its attributes
    def score(*arguments: Any, **image: Any) -> Reward:
        return Reward(_parts(name, attribute, function(*arguments, **image)))

    score.needs_image = needs_image(function)  # type: ignore[attr-defined]  # wraps leaves a class's attributes out
    return score


def _load_file(name: str, path: Path) -> ModuleType:
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"reward.function={name}: there is no file {path.absolute()}")
    spec: Any = importlib.util.spec_from_file_location(f"visurf_ray_reward_function.{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses, for one, look for the module that they are in
    return _imported(name, lambda: spec.loader.exec_module(module) or module)


def _load_module(name: str, module: str) -> ModuleType:
    return _imported(name, lambda: importlib.import_module(module))


def _imported(name: str, load: Callable[[], ModuleType]) -> ModuleType:
    try:
        return load()
    except Exception as error:  # whatever the user's module does when it is imported
        raise UserError(
            f"reward.function={name} cannot be imported ({type(error).__name__}: {error}): name a module that is "
            "installed where the reward actors run, or a file that lies there"
        ) from error


def _parts(name: str, attribute: str, value: Any) -> dict[str, float]:
    parts = value if isinstance(value, Mapping) else {attribute: value}
    for part, number in parts.items():
        if not isinstance(part, str) or not isinstance(number, Real) or not math.isfinite(number):
            raise UserError(
                f"reward.function={name} must return a finite number or a dict of names to finite numbers, "
                f"not {value!r:.80}"
            )
    return {part: float(number) for part, number in parts.items()}
