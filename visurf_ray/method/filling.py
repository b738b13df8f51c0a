"""Dynamic sampling: how many further prompts a batch needs until it is full."""

import math
from collections.abc import Iterator

from visurf_ray.groups import Metrics


class Filling:
    """Says how many prompts to draw for one batch: once, and with dynamic sampling until the batch is full.

    Dynamic sampling leaves out groups without an advantage (DAPO, arXiv 2503.14476, §3.2). Iterate over the numbers of
    prompts to draw, and call `add` after each.
    """

    def __init__(self, size: int, *, first: int, max_refills: int, dynamic: bool) -> None:
        """Begin a batch.

        Args:
            size: groups of a full batch.
            first: prompts to draw at first, and at most at each refill.
            max_refills: how many times to draw again.
            dynamic: whether groups are left out, and the batch is refilled.
        """
        self.size = size
        self.first = first
        self.max_refills = max_refills
        self.dynamic = dynamic
        self._refills = 0
        self._drawn = 0
        self._kept = 0

    def __iter__(self) -> Iterator[int]:
        yield self.first
        while self.missing and self._refills < self.max_refills:
            self._refills += 1
            yield self._further()

    def add(self, *, drawn: int, kept: int) -> None:
        """Count the prompts that were drawn, and how many of their groups the batch keeps."""
        self._drawn += drawn
        self._kept += kept

    @property
    def enough(self) -> int:
        """How many groups of the prompts drawn to wait for: all, or without dynamic sampling those of the batch."""
        return self.first if self.dynamic else self.size

    @property
    def missing(self) -> int:
        """How many groups the batch lacks; 0 without dynamic sampling, which alone can refill it."""
        return max(0, self.size - self._kept) if self.dynamic else 0

    @property
    def shortfall(self) -> str | None:
        """A sentence about the groups that the batch lacks after all refills, if it lacks any."""
        if not self.missing:
            return None
        return (
            f"after method.max_refills={self.max_refills} refills the batch has {self.size - self.missing} groups with "
            f"an advantage, and train.batch_size is {self.size}. Training goes on with what there is: see "
            "train/kept_share. If that stays small, the rewards of most groups are all equal: choose other data or "
            "raise rollout.n"
        )

    @property
    def metrics(self) -> Metrics:
        """The number of refills and the share of groups that are kept, of all that were sampled."""
        if not self.dynamic:
            return {}
        return {"train/refills": float(self._refills), "train/kept_share": self._kept / self._drawn}

    def _further(self) -> int:
        """Return how many prompts are likely to give the missing groups, by the share that was kept so far."""
        likely = math.ceil(self.missing * self._drawn / self._kept) if self._kept else self.first
        return min(likely, self.first)
