"""The data actor: makes examples, and puts their images into Ray's object store."""

from collections.abc import Sequence

import ray
from PIL import Image

from visurf_ray.aliases import ActorHandle, ActorOptions
from visurf_ray.config.schema import Config
from visurf_ray.feed.curriculum import Place
from visurf_ray.feed.mixture import Findings, Loaders, Mixture, Numbered
from visurf_ray.feed.prompts import Put
from visurf_ray.feed.strictness import Dropped
from visurf_ray.groups import Example


def start_actor() -> ActorHandle:
    """Start a data actor, which reads nothing until `open` or `assist` is called."""
    options: ActorOptions = {"num_cpus": 0, "concurrency_groups": {"progress": 1}}
    return ray.remote(**options)(DataActor).remote()


class DataActor:
    """Makes examples of rows: of its own after `open`, or after `assist` of those that it is given."""

    def __init__(self) -> None:
        self.checked = 0, 0

    def open(self, config: Config, train: bool, put: Put = ray.put) -> Findings:
        """Read and check the rows; returns what was found. For the arguments see Mixture. Raises DataError like it.

        This is not done in the constructor, whose errors Ray reports only as a dead actor.
        """
        self.loaders: Loaders = Mixture(config, train=train, put=put, progress=self._note)
        return self.mixture.findings

    def assist(self, config: Config, put: Put = ray.put) -> None:
        """Prepare to make examples of rows that another actor has read. Raises UserError like Loaders."""
        self.loaders = Loaders(config, put=put)

    @property
    def mixture(self) -> Mixture:
        """The rows. Only an actor that `open` was called of has them."""
        assert isinstance(self.loaders, Mixture), "call open before"
        return self.loaders

    def _note(self, checked: int, rows: int) -> None:
        self.checked = checked, rows

    @ray.method(concurrency_group="progress")
    def ready(self) -> None:
        """Return when the actor answers, also while it works."""

    @ray.method(concurrency_group="progress")
    def progress(self) -> tuple[int, int]:
        """Return how many rows are checked, and how many there are to check; also while `open` runs."""
        return self.checked

    def rows(self, split: str, places: Sequence[Place]) -> list[Numbered]:
        """Return rows by their places, for another actor."""
        return [self.mixture.row(split, place) for place in places]

    def examples(
        self, split: str, places: Sequence[Place], rows: Sequence[Numbered] | None = None
    ) -> list[Example | Dropped]:
        """Make the examples of rows, of held-out ones without the learner's features.

        Args:
            split: `train` or `held_out`.
            places: Where the rows come from.
            rows: The rows; None: this actor's own.

        Returns:
            An example for each place, or what is wrong with its row where that is dropped (see ExampleLoader.use).
        """
        return self.loaders.examples(split, places, self.rows(split, places) if rows is None else rows)

    def specimen(self) -> Example:
        """Return a training example (see Mixture.specimen)."""
        return self.mixture.specimen()

    def seen(self, place: Place) -> list[Image.Image]:
        """Return the images of a held-out row as the model sees them."""
        row, _ = self.mixture.row("held_out", place)
        return self.mixture.all[place[0]].seen(row)

    def stored(self, place: Place) -> Image.Image:
        """Return the only image of a held-out row at its stored size."""
        row, _ = self.mixture.row("held_out", place)
        return row.open_image()
