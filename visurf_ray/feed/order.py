"""Which training row is at each position of a run: a function of the seed, the parts' weights and their rows alone."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from visurf_ray.feed.curriculum import Place
from visurf_ray.feed.sampler import PartSampler


class Epochs:
    """The endless sequence of a part's rows: each epoch has every row once, in an order of its own."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self.seed = seed
        self._shuffled: tuple[int, NDArray[np.int64]] | None = None  # the latest epoch and its order

    def at(self, position: int) -> tuple[int, int]:
        """Return the number of the row at a position of this sequence, and its epoch."""
        epoch, index = divmod(position, self.rows)
        if self._shuffled is None or self._shuffled[0] != epoch:
            self._shuffled = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.rows)
        return int(self._shuffled[1][index]), epoch


class Order:
    """The endless sequence of the training rows of all parts."""

    def __init__(self, rows: Mapping[str, int], weights: Mapping[str, float], seed: int) -> None:
        """Take how many rows each part has, and its weight. The seed draws parts, and shuffles each part's rows."""
        self._parts = [(name, Epochs(rows[name], seed)) for name in weights]
        self._sampler = PartSampler(list(weights.values()), seed)

    def at(self, position: int) -> Place:
        """Return where the training example at a position comes from."""
        part, earlier = self._sampler.at(position)
        name, epochs = self._parts[part]
        row, epoch = epochs.at(earlier)
        return name, row, epoch
