"""The data actor: reads a run's examples and puts their images into Ray's object store."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ray

from visurf_ray.aliases import ActorHandle
from visurf_ray.config.schema import ModelConfig, PartConfig, TaskConfig
from visurf_ray.feed.curriculum import Curriculum
from visurf_ray.feed.loader import Dropped, Strictness
from visurf_ray.feed.mixture import Mixture
from visurf_ray.groups import Example


def start_actor() -> ActorHandle:
    """Start a data actor, which reads nothing until `open` is called."""
    return ray.remote(num_cpus=0)(DataActor).remote()


class Opened(NamedTuple):
    """What `open` has found; see the attributes of DataFeed."""

    longest: int
    longest_labelled: int
    most_images: int
    dropped: list[Dropped]
    warning: str | None


class DataActor:
    """Reads, checks and serves the examples of a run (see Mixture)."""

    def open(
        self,
        parts: Mapping[str, PartConfig],
        sets: Mapping[str, TaskConfig],
        model: ModelConfig,
        seed: int,
        max_prompt_tokens: int,
        train: bool,
        strictness: Strictness,
        curriculum: int | None,
    ) -> "Opened":
        """Read and check all rows; returns what DataFeed tells of them.

        This is not done in the constructor, whose errors Ray reports only as a dead actor.

        For the arguments see Mixture and Curriculum. Raises DataError like it.
        """
        self.loader = Mixture(
            parts,
            sets,
            model,
            seed=seed,
            max_prompt_tokens=max_prompt_tokens,
            train=train,
            put=ray.put,
            strictness=strictness,
        )
        self.curriculum = Curriculum(curriculum)
        self.prepared: dict[int, Example] = {}  # training examples by their position
        loader = self.loader
        return Opened(
            loader.longest.get("train", 0), loader.longest_labelled, loader.most_images, loader.dropped, loader.warning
        )

    def first(self) -> Example:
        """Return the first training example."""
        return self.loader.train_batch(0, 1)[0]

    def restore(self, solved: dict[str, list[list[int]]]) -> None:
        """Leave out what a checkpoint tells (see Curriculum.restore)."""
        self.curriculum.restore(solved)

    def prepare(self, position: int, count: int) -> None:
        """Make training examples that `take` is likely to return."""
        for here in self._drawn(position, count):
            if here not in self.prepared:
                self.prepared[here] = self.loader.train_batch(here, 1)[0]

    def take(self, position: int, count: int, solved: Sequence[Example] = ()) -> tuple[list[Example], int]:
        """Return training examples from a position on (see Mixture.train_batch), and the position after them.

        Those that the curriculum leaves out are passed over; those at earlier positions are forgotten.

        Args:
            position: The position.
            count: The number of examples.
            solved: Examples that every rollout has solved since the last call.
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
        kept = (here for here in itertools.count(position) if not self.curriculum.leaves_out(*self.loader.place(here)))
        return list(itertools.islice(kept, count))

    def held_out_examples(self, limit: int | None) -> list[Example]:
        """Return held-out examples (see Mixture.held_out_examples)."""
        return self.loader.held_out_examples(limit)
