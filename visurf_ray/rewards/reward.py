"""The interface of a reward function, and its result."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Reward:
    """A verifiable reward in named parts."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return sum(self.parts.values())


# Takes a response and a ground truth, both text. A function whose attribute `needs_image` is true also takes `image=`,
# the PIL image as the model sees it. Its attribute `thinking_parts` names the parts that reward thinking, if any do;
# `solved` gives the least value of parts with which a response is right. Named rewards tell in `most` the largest value
# of each part; the least is 0, whatever the response is.
RewardFunction = Callable[..., Reward]


def needs_image(reward: Callable[..., object]) -> bool:
    """Return whether a reward function must be called with `image=`."""
    return getattr(reward, "needs_image", False)


def solved_at(reward: Callable[..., object]) -> dict[str, float]:
    """Return the parts that tell whether a response is right, each with the least value of a right one.

    It is empty for a reward that does not declare it in its attribute `solved`.
    """
    return dict(getattr(reward, "solved", {}))


def thinking_parts(reward: Callable[..., object]) -> tuple[str, ...]:
    """Return the names of the parts that reward thinking: a label without reasoning earns nothing for them."""
    return tuple(getattr(reward, "thinking_parts", ()))
