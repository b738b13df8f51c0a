"""The part from which each training example of a mixture comes: a function of seed, weights and position alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BLOCK = 64  # positions that are drawn together


class PartSampler:
    """Draws the part of each position in the endless sequence of training examples.

    Positions are drawn in blocks of 64. In each, a part of share w (its weight over the sum of all weights) has 64 w
    examples, rounded down or up at random such that the mean is exact, in random order (systematic sampling). So the
    shares of a run come close to the weights much faster than with independent draws, and a run that is resumed goes on
    in the same way from the position alone. Other weights give another sequence.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self.ends = np.cumsum(weights) / np.sum(weights)
        self.ends[-1] = 1.0
        self.seed = seed
        self._latest: tuple[int, NDArray[np.int64]] | None = None  # a block and what is drawn for it
        self._before = [np.zeros(len(weights), np.int64)]  # how many of each part there are before each block

    def at(self, position: int) -> tuple[int, int]:
        """Return the part at a position, as its index, and how many earlier positions have the same part."""
        block, place = divmod(position, _BLOCK)
        if self._latest is None or self._latest[0] != block:
            self._latest = block, self._block(block)
        drawn = self._latest[1]
        part = int(drawn[place])
        return part, int(self._count_before(block)[part] + np.count_nonzero(drawn[:place] == part))

    def _block(self, block: int) -> NDArray[np.int64]:
        rng = np.random.default_rng((self.seed, block))
        return np.searchsorted(self.ends, (rng.permutation(_BLOCK) + rng.random()) / _BLOCK, side="right")

    def _count_before(self, block: int) -> NDArray[np.int64]:
        while len(self._before) <= block:
            drawn = self._block(len(self._before) - 1)
            self._before.append(self._before[-1] + np.bincount(drawn, minlength=len(self.ends)))
        return self._before[block]
