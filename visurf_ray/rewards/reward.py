"""What a reward function is, and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reward:
    """A verifiable reward in named parts; `total` is their sum."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


# Of a response and a ground truth, both text. One whose attribute `needs_image` is true takes `image=` as well, the PIL
# image as the model sees it.
RewardFunction = Callable[..., Reward]


def needs_image(reward: Callable[..., Any]) -> bool:
    return getattr(reward, "needs_image", False)
