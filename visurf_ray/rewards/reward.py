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
# the PIL image as the model sees it. Its attribute `thinking_parts` names the parts that reward thinking, if any do.
RewardFunction = Callable[..., Reward]


def needs_image(reward: Callable[..., object]) -> bool:
    """Return whether a reward function must be called with `image=`."""
    return getattr(reward, "needs_image", False)


def thinking_parts(reward: Callable[..., object]) -> tuple[str, ...]:
    """Return the names of the parts that reward thinking: a label without reasoning earns nothing for them."""
    return tuple(getattr(reward, "thinking_parts", ()))
