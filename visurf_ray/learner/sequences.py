"""Sequences of different lengths, one after another in a row of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """`count` sequences of `length` tokens, one after another. As a batch they need no padding and no copy."""

    begin: int
    count: int
    length: int

    @property
    def span(self) -> slice:
        return slice(self.begin, self.begin + self.count * self.length)


@dataclass(frozen=True)
class Sequences:
    """The lengths of S sequences that fill a row.

    Attributes:
        lengths: on the host, so that a loop over sequences never waits for a GPU.
        cumulative: where each sequence begins, and where the last one ends, on the device of the row: what flash
            attention for variable lengths takes.
    """

    lengths: tuple[int, ...]
    cumulative: Int[Tensor, " S+1"]

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Sequences":
        return cls(tuple(lengths), torch.tensor([0, *accumulate(lengths)], dtype=torch.int32))

    def to(self, device: torch.device) -> "Sequences":
        return replace(self, cumulative=self.cumulative.to(device))

    @cached_property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Neighbours of equal length together."""
        counts = [(length, len(list(equal))) for length, equal in groupby(self.lengths)]
        begins = accumulate((length * count for length, count in counts), initial=0)
        return tuple(Run(begin, count, length) for begin, (length, count) in zip(begins, counts, strict=False))
