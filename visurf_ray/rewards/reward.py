"""What a reward function is, and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Reward:
    """A verifiable reward in named parts; `total` is their sum."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


# Of a response and a ground truth, both text.
RewardFunction = Callable[[str, str], Reward]
