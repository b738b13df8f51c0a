"""Sums over tokens that add up over micro-batches, ranks and minibatches."""

from dataclasses import dataclass, fields, replace
from typing import Self

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Sums:
    """Adds up field by field."""

    def __add__(self, other: Self) -> Self:
        return replace(self, **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True)
class Tally(Sums):
    """A sum over tokens, and over how many tokens it was taken."""

    total: float = 0.0
    tokens: int = 0

    @staticmethod
    def of(values_T: Float[Tensor, " T"]) -> "Tally":
        return Tally(values_T.sum().item(), len(values_T))

    @property
    def mean(self) -> float:
        return self.total / self.tokens


NOTHING = Tally()
