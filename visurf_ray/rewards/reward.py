"""What a reward function returns."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reward:
    """A verifiable reward in named parts; `total` is their sum."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())
