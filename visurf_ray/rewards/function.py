"""A user's own reward: a Python function of a response and a ground truth, named in the configuration."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real

from PIL import Image

from visurf_ray import users_code
from visurf_ray.errors import UserError
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
        """Score one response.

        Raises:
            UserError: The function raises an error, of which the message names file and line; or it returns anything
                but finite numbers.
        """
        try:
            value = self.function(response, ground_truth, **image)
        except Exception as error:
            where = users_code.place_of(error, None)
            raise UserError(f"{users_code.described(error)} (reward.function={self.name}: {where})") from error
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
        name: `module:function` or `path/to/file.py:function`. A static method is named `Class.method`.

    Raises:
        UserError: The function cannot be found or imported, or does not take these arguments.
    """
    function = users_code.load("reward.function", name, "function")
    attribute = name.rpartition(":")[2].rpartition(".")[2]
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
