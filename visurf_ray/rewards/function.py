"""A user's own reward: a Python function of a response and a ground truth, named in the configuration."""

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import ModuleType

from PIL import Image

from visurf_ray.errors import UserError
from visurf_ray.names import nearest
from visurf_ray.rewards.reward import Reward, RewardFunction, needs_image, solved_at, thinking_parts


@dataclass(frozen=True)
class UserReward:
    """Calls a user's function and checks what it returns.

    Attributes:
        name: The value of reward.function, for error messages.
        part: The name of the part when the function returns a single number.
        function: The user's function.
        needs_image: Whether the function takes `image=`.
        thinking_parts: The parts of its result that reward thinking.
        solved: The least value of parts of its result with which a response is right.
    """

    name: str
    part: str
    function: Callable[..., object]
    needs_image: bool
    thinking_parts: tuple[str, ...]
    solved: dict[str, float]

    def __call__(self, response: str, ground_truth: str, **image: Image.Image | None) -> Reward:
        """Score one response. Raises UserError if the function returns anything but finite numbers."""
        value = self.function(response, ground_truth, **image)
        parts = {}
        for part, number in (value if isinstance(value, Mapping) else {self.part: value}).items():
            if not isinstance(part, str) or not isinstance(number, Real) or not math.isfinite(number):
                raise UserError(
                    f"reward.function={self.name} must return a finite number or a dict of names to finite numbers, "
                    f"not {value!r:.80}"
                )
            parts[part] = float(number)
        return Reward(parts)


def load_function(name: str) -> RewardFunction:
    """Load a user's reward function.

    The function takes a response and a ground truth. If its attribute `needs_image` is true, it also takes `image=`,
    the PIL image as the model sees it. It returns a number, which becomes a part with the function's name, or a dict of
    named parts; any other result raises UserError when the function is called. Its attribute `thinking_parts`, a tuple
    of names, says which parts reward thinking. Its attribute `solved`, a dict, gives the least value of parts with
    which a response is right.

    Args:
        name: `module:function` or `path/to/file.py:function`.

    Raises:
        UserError: The function cannot be found or imported, or does not take these arguments.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UserError(f"reward.function={name} must be module:function or path/to/file.py:function")
    module = _load_file(name, Path(place)) if place.endswith(".py") else _load_module(name, place)
    function = getattr(module, attribute, None)
    if function is None:
        raise UserError(f"reward.function={name}: {place} has no {attribute!r}.{nearest(attribute, vars(module))}")
    if not callable(function):
        raise UserError(f"reward.function={name}: {attribute!r} is not a function but {type(function).__name__}")
    image = {"image": None} if needs_image(function) else {}
    try:
        inspect.signature(function).bind("response", "ground truth", **image)
    except (TypeError, ValueError) as error:
        arguments = ", ".join(["response", "ground_truth", *image])
        raise UserError(f"reward.function={name} must take ({arguments}), but {error}") from error
    parts = getattr(function, "thinking_parts", ())
    if not isinstance(parts, tuple | list) or not all(isinstance(part, str) for part in parts):
        raise UserError(f"reward.function={name}: thinking_parts={parts!r} must be a tuple of names of parts")
    solved = getattr(function, "solved", {})
    if not isinstance(solved, dict) or not all(
        isinstance(part, str) and isinstance(least, Real) for part, least in solved.items()
    ):
        raise UserError(f"reward.function={name}: solved={solved!r} must be a dict of parts to their least values")
    return UserReward(name, attribute, function, needs_image(function), thinking_parts(function), solved_at(function))


def _load_file(name: str, path: Path) -> ModuleType:
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"reward.function={name}: there is no file {path.absolute()}")
    spec = importlib.util.spec_from_file_location(f"visurf_ray_reward_function.{path.stem}", path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module, execute = importlib.util.module_from_spec(spec), spec.loader.exec_module
    sys.modules[spec.name] = module  # dataclasses, for example, look up their module there

    def load() -> ModuleType:
        execute(module)
        return module

    return _imported(name, load)


def _load_module(name: str, module: str) -> ModuleType:
    return _imported(name, lambda: importlib.import_module(module))


def _imported(name: str, load: Callable[[], ModuleType]) -> ModuleType:
    try:
        return load()
    except Exception as error:  # a user's module may raise anything when it is imported
        raise UserError(
            f"reward.function={name} cannot be imported ({type(error).__name__}: {error}): name a module that is "
            "installed where the reward actors run, or a file that exists there"
        ) from error
