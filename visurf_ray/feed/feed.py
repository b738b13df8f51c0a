"""The driver's interface to the data actor."""

from collections.abc import Sequence

import ray
from PIL import Image

from visurf_ray.aliases import ActorHandle, Reference
from visurf_ray.cluster.waiting import fetch
from visurf_ray.config.schema import Config
from visurf_ray.feed.actor import start_actor
from visurf_ray.feed.curriculum import Curriculum, Place
from visurf_ray.feed.mixture import Findings
from visurf_ray.groups import Example


class DataFeed:
    """Examples of a run, read and processed in an actor.

    Attributes:
        findings: what the check of all rows has found.
        position: how many training examples have been taken or left out, a resumed run's before it included. They come
            in the order of `Mixture.train_batch`, each once, whatever the sizes of batches.
        curriculum: which rows are left out.
        left_out: how many training examples were left out since the start of this process.
    """

    def __init__(self, config: Config, *, train: bool) -> None:
        """Start the actor, and read and check every row; without `train` those of the held-out split only.

        Raises:
            DataError: A row cannot be used. The message names the first one.
        """
        self.actor: ActorHandle = start_actor()
        self.timeout = config.cluster.timeout
        self.position = 0
        self.curriculum = Curriculum(config.feed.curriculum)
        self.left_out = 0
        self._solved: list[Place] = []  # of which the actor is not told yet
        self.ahead: Reference = None  # is ready when the actor has prepared the examples that are likely to be next
        self.findings: Findings = ray.get(self.actor.open.remote(config, train))

    def seek(self, position: int, solved: dict[str, list[list[int]]]) -> None:
        """Continue from a position, with what `solved_state` has returned there."""
        self.position = position
        self._solved = []
        self.curriculum.restore(solved)
        self.actor.restore.remote(solved)

    def note_solved(self, examples: Sequence[Example]) -> None:
        """Leave out the rows of these examples, which every rollout has solved, for the epochs of the curriculum."""
        places = [(example.part, example.row, example.epoch) for example in examples]
        self.curriculum.note(places)
        self._solved += places

    def solved_state(self) -> dict[str, list[list[int]]]:
        """Return what the curriculum leaves out, for a checkpoint."""
        return self.curriculum.state()

    def take(self, count: int) -> list[Example]:
        """Return the next training examples, and have the actor prepare as many after them meanwhile."""
        solved, self._solved = self._solved, []
        batch, after = fetch(self.actor.take.remote(self.position, count, solved), self.timeout)
        self.left_out += after - self.position - count
        self.position = after
        self.ahead = self.actor.prepare.remote(after, count)
        return batch

    def specimen(self) -> Example:
        """Return a training example, one with images if a row has any; the position stays."""
        return fetch(self.actor.specimen.remote(), self.timeout)

    def held_out(self, limit: int | None) -> list[Example]:
        """Return `limit` held-out examples of each part and each set, the same for every seed, or all for None."""
        return ray.get(self.actor.held_out_examples.remote(limit))

    def images(self, example: Example) -> list[Image.Image]:
        """Return the example's images as the model sees them."""
        return fetch(list(example.prompt.images), self.timeout)
