"""The data actor: reads a run's examples and puts their images into Ray's object store."""

import itertools
from collections.abc import Iterable

import ray

from visurf_ray.aliases import ActorHandle
from visurf_ray.config.schema import Config
from visurf_ray.feed.curriculum import Curriculum, Place
from visurf_ray.feed.mixture import Findings, Mixture
from visurf_ray.feed.prompts import Put
from visurf_ray.groups import Example


def start_actor() -> ActorHandle:
    """Start a data actor, which reads nothing until `open` is called."""
    return ray.remote(num_cpus=0)(DataActor).remote()


class DataActor:
    """Reads, checks and serves the examples of a run (see Mixture)."""

    def open(self, config: Config, train: bool, put: Put = ray.put) -> Findings:
        """Read and check all rows; returns what was found. For the arguments see Mixture. Raises DataError like it.

        This is not done in the constructor, whose errors Ray reports only as a dead actor.
        """
        self.mixture = Mixture(config, train=train, put=put)
        self.curriculum = Curriculum(config.feed.curriculum)
        self.prepared: dict[int, Example] = {}  # training examples by their position
        return self.mixture.findings

    def specimen(self) -> Example:
        """Return a training example (see Mixture.specimen)."""
        return self.mixture.specimen()

    def restore(self, solved: dict[str, list[list[int]]]) -> None:
        """Leave out what a checkpoint tells (see Curriculum.restore)."""
        self.curriculum.restore(solved)

    def prepare(self, position: int, count: int) -> None:
        """Make training examples that `take` is likely to return."""
        for here in self._drawn(position, count):
            if here not in self.prepared:
                self.prepared[here] = self.mixture.train_batch(here, 1)[0]

    def take(self, position: int, count: int, solved: Iterable[Place] = ()) -> tuple[list[Example], int]:
        """Return training examples from a position on (see Mixture.train_batch), and the position after them.

        Those that the curriculum leaves out are passed over; those at earlier positions are forgotten.

        Args:
            position: The position.
            count: The number of examples.
            solved: Where the examples come from that every rollout has solved since the last call.
        """
        self.curriculum.note(solved)
        drawn = self._drawn(position, count)
        self.prepare(position, count)
        taken = [self.prepared[here] for here in drawn]
        after = drawn[-1] + 1
        self.prepared = {here: example for here, example in self.prepared.items() if here >= after}
        return taken, after

    def _drawn(self, position: int, count: int) -> list[int]:
        """Return the first `count` positions from this one on whose rows the curriculum does not leave out."""
        if not self.curriculum.solved:
            return list(range(position, position + count))
        kept = (here for here in itertools.count(position) if not self.curriculum.leaves_out(self.mixture.place(here)))
        return list(itertools.islice(kept, count))

    def held_out_examples(self, limit: int | None) -> list[Example]:
        """Return held-out examples (see Mixture.held_out_examples)."""
        return self.mixture.held_out_examples(limit)
