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
# the PIL image as the model sees it.
RewardFunction = Callable[..., Reward]


def needs_image(reward: Callable[..., object]) -> bool:
    """Return whether a reward function must be called with `image=`."""
    return getattr(reward, "needs_image", False)
