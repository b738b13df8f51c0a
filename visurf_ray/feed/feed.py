"""The driver's interface to the data actors. It alone knows the position and what the curriculum leaves out."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

import ray
from PIL import Image
from ray.exceptions import RayActorError

from visurf_ray.aliases import ActorHandle, Reference
from visurf_ray.cluster.supervision import Supervisor
from visurf_ray.cluster.waiting import fetch
from visurf_ray.config.schema import Config
from visurf_ray.errors import DataError, LostError
from visurf_ray.feed.actor import start_actor
from visurf_ray.feed.curriculum import Curriculum, Place
from visurf_ray.feed.held_out import HeldOut
from visurf_ray.feed.mixture import Findings, held_out_places, order_of
from visurf_ray.feed.progress import CheckProgress
from visurf_ray.feed.strictness import Dropped
from visurf_ray.groups import Example

_POLL = 0.2  # seconds between two looks at how far the check is


class DataFeed:
    """Examples of a run, which `feed.workers` actors prepare. Their number changes neither examples nor order.

    The first actor has read the rows, and sends the others the rows that they shall make examples of.

    An actor that dies is replaced if there is a supervisor. The images that it has made are lost with it: whoever needs
    them gets a LostError, goes back with `seek`, and takes the same examples again.

    Attributes:
        findings: what the check of the rows has found.
        position: how many training examples have been taken or passed over, a resumed run's before it included. They
            come in the order of `order_of`, each once, whatever the sizes of batches.
        curriculum: which rows are left out.
        left_out: how many training examples the curriculum has left out since the start of this process.
        dropped: the rows that turned out to be bad, and were dropped, since the start of this process.
        on_drop: is told of each when it is found.
    """

    def __init__(self, config: Config, *, train: bool, supervisor: Supervisor | None = None) -> None:
        """Start the actors, and read and check the rows; without `train` those of the held-out split only.

        Args:
            supervisor: has actors that are lost replaced; None: their loss is an error.

        Raises:
            DataError: A row cannot be used. The message names the first one.
        """
        self._timeout = config.cluster.timeout
        self._config, self._train = config, train
        self._supervisor = supervisor
        self._workers: list[ActorHandle] = [start_actor() for _ in range(config.feed.workers)]
        first, *others = self._workers
        opened = first.open.remote(config, train)
        assisting = [worker.assist.remote(config) for worker in others]
        with CheckProgress() as progress:
            while not ray.wait([opened], timeout=_POLL)[0]:
                progress.show(*ray.get(first.progress.remote()))
        self.findings: Findings = ray.get(opened)
        ray.get(assisting)
        if supervisor:
            for worker in self._workers:
                supervisor.watch(worker)
        self._order = order_of(config, self.findings) if train else None
        self.position = 0
        self.curriculum = Curriculum(config.feed.curriculum)
        self.left_out = 0
        self.dropped: list[Dropped] = []
        self.on_drop: Callable[[Dropped], None] = lambda row: None
        self._bad: dict[str, dict[str, set[int]]] = {}  # by split, then by part: numbers of rows that were dropped
        # By position: a reference to several examples that are prepared or being prepared, and the place in it.
        self._ahead: dict[int, tuple[Reference, int]] = {}

    @property
    def ahead(self) -> list[Reference]:
        """What is ready when the examples that are likely to be next are prepared."""
        return list(dict.fromkeys(reference for reference, _ in self._ahead.values()))

    def seek(self, position: int, solved: dict[str, list[list[int]]], dropped: Mapping[str, Sequence[int]]) -> None:
        """Continue from a position, with what `solved_state` and `dropped_state` have returned there."""
        self.position = position
        self._ahead = {}
        self.curriculum.restore(solved)
        self._bad |= {"train": {part: set(rows) for part, rows in dropped.items()}}

    def note_solved(self, examples: Sequence[Example]) -> None:
        """Leave out the rows of these examples, which every rollout has solved, for the epochs of the curriculum."""
        self.curriculum.note([(example.part, example.row, example.epoch) for example in examples])

    def solved_state(self) -> dict[str, list[list[int]]]:
        """Return what the curriculum leaves out, for a checkpoint."""
        return self.curriculum.state()

    def dropped_state(self) -> dict[str, list[int]]:
        """Return the numbers of the training rows that were dropped when they were used, by part, for a checkpoint."""
        return {part: sorted(rows) for part, rows in self._bad.get("train", {}).items()}

    def take(self, size: int) -> list[Example]:
        """Return the next training examples, and have as many after them prepared meanwhile.

        A row that cannot be used is dropped, if `feed.on_bad` and the like say so, and passed over: the example after
        the batch takes its place. Where a run is resumed does not change what is taken.

        Raises:
            DataError: a row cannot be used and is not dropped, or every row of a part is dropped.
        """
        begin = here = self.position
        taken: list[Example] = []
        while len(taken) < size:
            drawn = self._drawn(here, size - len(taken))
            self._prepare(drawn)
            fetched = self._fetch(drawn)
            here = drawn[-1] + 1
            for position in drawn:
                found = fetched[position]
                if isinstance(found, Dropped):
                    self._drop("train", self._place(position), found)
                else:
                    taken.append(found)
        bad = sum(self._is_bad("train", self._place(position)) for position in range(begin, here)) if self._bad else 0
        self.left_out += here - begin - size - bad
        self.position = here
        self._ahead = {position: found for position, found in self._ahead.items() if position >= here}
        self._prepare(self._drawn(here, size))
        return taken

    def _place(self, position: int) -> Place:
        assert self._order is not None, "the feed was opened without training rows"
        return self._order.at(position)

    def _drawn(self, position: int, size: int) -> list[int]:
        """Return the first positions from this one on whose rows are neither dropped nor left out."""
        found: list[int] = []
        for here in count(position):
            if len(found) == size:
                return found
            place = self._place(here)
            if not self.curriculum.leaves_out(place) and not self._is_bad("train", place):
                found.append(here)
        raise AssertionError("count() ends")

    def _prepare(self, positions: Sequence[int]) -> None:
        """Have the training examples at these positions prepared, unless they are already; share them out."""
        missing = [position for position in positions if position not in self._ahead]
        for number in range(len(self._workers)):
            share = missing[number :: len(self._workers)]
            if share:
                reference = self._request("train", number, [self._place(position) for position in share])
                self._ahead |= {position: (reference, index) for index, position in enumerate(share)}

    def _request(self, split: str, number: int, places: Sequence[Place]) -> Reference:
        """Have the worker with this number, modulo how many there are, prepare examples."""
        number %= len(self._workers)
        rows = self._workers[0].rows.remote(split, places) if number else None
        return self._workers[number].examples.remote(split, places, rows)

    def _fetch(self, positions: Sequence[int]) -> dict[int, Example | Dropped]:
        wanted = {position: self._ahead[position] for position in positions}
        references = list(dict.fromkeys(reference for reference, _ in wanted.values()))
        fetched = dict(zip(references, self._get(references), strict=True))
        return {position: fetched[reference][index] for position, (reference, index) in wanted.items()}

    def _get(self, references: Reference | Sequence[Reference]) -> Any:
        """Return what references refer to.

        Raises:
            LostError: an actor has died. It is replaced; what was asked of it, and what it has made, is lost.
        """
        try:
            return fetch(references, self._timeout)
        except (RayActorError, LostError) as error:
            if not self._supervisor:
                raise
            self._replace_lost(self._supervisor)
            raise LostError("a data actor has died, and the examples that it has made are lost") from error

    def _replace_lost(self, supervisor: Supervisor) -> None:
        """Start the actors that have died again; the first reads the rows again."""
        for number, worker in enumerate(self._workers):
            try:
                fetch(worker.ready.remote(), self._timeout)
            except RayActorError:
                role = f"data worker {number}"
                supervisor.lost(role, worker)
                self._workers[number] = supervisor.restart(role, partial(self._start, number))
                supervisor.watch(self._workers[number])
        self._ahead = {}

    def _start(self, number: int) -> ActorHandle:
        worker = start_actor()
        if number:
            fetch(worker.assist.remote(self._config), self._timeout)
        elif fetch(worker.open.remote(self._config, self._train), self._timeout) != self.findings:
            raise DataError("the data have changed since the run has started: it cannot go on with them")
        return worker

    def _is_bad(self, split: str, place: Place) -> bool:
        return place[1] in self._bad.get(split, {}).get(place[0], ())

    def _drop(self, split: str, place: Place, found: Dropped) -> None:
        """Remember a row that cannot be used. Raises DataError if no row of its part is left."""
        if self._is_bad(split, place):  # it was drawn twice in one batch
            return
        bad = self._bad.setdefault(split, {}).setdefault(place[0], set())
        bad.add(place[1])
        self.dropped.append(found)
        self.on_drop(found)
        if len(bad) == self.findings.rows[place[0]][split]:
            raise DataError(f"{found.split}: every row is dropped, the last for this reason: {found.reason}")

    def specimen(self) -> Example:
        """Return a training example, one with images if a row has any; the position stays."""
        return fetch(self._workers[0].specimen.remote(), self._timeout)

    def held_out(self, limit: int | None) -> HeldOut:
        """Return `limit` held-out examples of each part and each set, the same for every seed, or all for None."""
        places = [place for place in held_out_places(self.findings, limit) if not self._is_bad("held_out", place)]
        return HeldOut(
            places,
            lambda number, chosen: self._request("held_out", number, chosen),
            self._get,
            lambda place, row: self._drop("held_out", place, row),
            ahead=len(self._workers),
        )

    def images(self, example: Example) -> list[Image.Image]:
        """Return an example's images as the model sees them. Those of a held-out example are read again."""
        place = example.part, example.row, example.epoch
        try:
            if example.prompt.token_ids:
                return self._get(list(example.prompt.images))
            return self._get(self._workers[0].seen.remote(place))
        except LostError:
            if example.prompt.token_ids:
                (example,) = self._get(self._workers[0].examples.remote("train", [place]))
                return self._get(list(example.prompt.images))
            return self._get(self._workers[0].seen.remote(place))

    def stored_image(self, example: Example) -> Reference:
        """Return a reference to the only image of a held-out example at its stored size, which is read again."""
        return self._workers[0].stored.remote((example.part, example.row, 0))
