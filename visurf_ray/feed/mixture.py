"""The examples of a run: its parts' training examples in one sequence, and the held-out ones of parts and sets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from visurf_ray.config.schema import Config, TaskConfig
from visurf_ray.data.rows import Row
from visurf_ray.errors import DataError, naming
from visurf_ray.feed.curriculum import Place
from visurf_ray.feed.fingerprint import Fingerprint
from visurf_ray.feed.loader import ExampleLoader, chosen
from visurf_ray.feed.order import Order
from visurf_ray.feed.prompts import Put
from visurf_ray.feed.remembered import Remembered, folder_of, settings_of
from visurf_ray.feed.strictness import Dropped, Strictness, max_prompt_tokens, over_budget
from visurf_ray.groups import Example
from visurf_ray.models import load_processor
from visurf_ray.tasks import load_task

Numbered = tuple[Row, bool]  # a row, and whether it is checked
Progress = Callable[[int, int], None]  # is told how many rows are checked, and how many there are as far as is known


@dataclass(frozen=True)
class Findings:
    """What the check of the rows has found, over all parts and sets. Tokens are those of the rows that were checked.

    Attributes:
        rows: How many rows each split of each part, then of each set, has, without those that are left out.
        longest: The tokens of the longest prompt of each split, `train` and `held_out`; 0 if no row was checked.
        longest_labelled: The most tokens that a training prompt and its label have together; 0 without training rows.
        longest_label: The number of tokens of the longest training label; likewise.
        most_images: The most images of a prompt, among all rows.
        dropped: The rows that are left out; the split of a named part is `PART/train` or `PART/held_out`.
        warning: The parts' warnings of labels that are too long; None without any.
        fingerprints: Of the training rows of each part.
    """

    rows: dict[str, dict[str, int]]
    longest: dict[str, int]
    longest_labelled: int
    longest_label: int
    most_images: int
    dropped: list[Dropped]
    warning: str | None
    fingerprints: dict[str, Fingerprint]


class Loaders:
    """Makes examples of the rows of a run's parts and held-out sets. A run of one task has one part, named ''.

    Attributes:
        parts: The loader of each part.
        sets: The loader of each held-out set.
    """

    def __init__(self, config: Config, *, put: Put, reads: bool = False) -> None:
        """Load the tasks and the processor.

        Args:
            config: The run's configuration.
            put: See ExampleLoader.
            reads: Whether to read the held-out rows; otherwise the loaders have no rows of their own.

        Raises:
            DataError: The held-out data cannot be read.
        """
        self.config = config
        self.processor = load_processor(config.model)

        def load(section: str, name: str, task: TaskConfig) -> ExampleLoader:
            with naming(section, name):
                return ExampleLoader(
                    load_task(task, config.seed, strict=config.answers.strict, model=config.model),
                    self.processor,
                    seed=config.seed,
                    max_prompt_tokens=max_prompt_tokens(config),
                    put=put,
                    model=config.model,
                    strictness=Strictness.of(config),
                    part=name,
                    rows=None if reads else {},
                    over_budget=partial(over_budget, config),
                )

        self.parts = {name: load("task.parts", name, task) for name, task in config.parts.items()}
        self.sets = {name: load("eval.sets", name, task) for name, task in config.eval.sets.items()}
        self.all = self.parts | self.sets

    def examples(self, split: str, places: Sequence[Place], rows: Sequence[Numbered]) -> list[Example | Dropped]:
        """Make the examples of rows that come from these places; see `ExampleLoader.use`."""
        found: list[Example | Dropped] = []
        for (part, number, epoch), (row, checked) in zip(places, rows, strict=True):
            with naming("task.parts" if part in self.parts else "eval.sets", part):
                made = self.all[part].use(row, split=split, checked=checked)
            found.append(made.of_part(part) if isinstance(made, Dropped) else replace(made, row=number, epoch=epoch))
        return found


class Mixture(Loaders):
    """The rows of a run's parts and held-out sets, and their examples.

    Attributes:
        findings: What the check of the rows has found.
    """

    def __init__(
        self, config: Config, *, train: bool, put: Put, progress: Progress = lambda checked, rows: None
    ) -> None:
        """Read all held-out rows and, with `train`, all training rows, and check those that `feed.check` names.

        Args:
            config: The run's configuration. Its seed draws the part of each training example, and shuffles each part's
                rows.
            train: Whether to read the training rows as well as the held-out ones.
            put: See ExampleLoader.
            progress: Is told how far the check is.

        Raises:
            DataError: A row cannot be used. The message names the first one.
        """
        super().__init__(config, put=put, reads=True)
        if train:
            for name, loader in self.parts.items():
                with naming("task.parts", name):
                    loader.load_train()
        first = config.feed.checked_rows
        remembered = Remembered(folder_of(config), settings_of(config, self.processor))
        total = sum(len(rows[:first]) for loader in self.all.values() for rows in loader.rows.values())
        done = 0

        def note(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        for section, loaders in (("task.parts", self.parts), ("eval.sets", self.sets)):
            for name, loader in loaders.items():
                with naming(section, name):
                    loader.check(first, remembered=remembered, note=note)
        every = self.all.values()
        splits = dict.fromkeys(split for loader in every for split in loader.longest)
        self.findings = Findings(
            rows={name: {split: len(rows) for split, rows in loader.rows.items()} for name, loader in self.all.items()},
            longest={split: max(loader.longest.get(split, 0) for loader in every) for split in splits},
            longest_labelled=max(loader.longest_labelled for loader in every),
            longest_label=max(loader.longest_label for loader in every),
            most_images=max(loader.most_images for loader in every),
            dropped=[row.of_part(loader.part) for loader in every for row in loader.dropped],
            warning="\n".join(loader.warning for loader in every if loader.warning) or None,
            fingerprints={
                name: Fingerprint.of(loader.rows["train"], loader.checked["train"])
                for name, loader in self.parts.items()
                if train
            },
        )

    def row(self, split: str, place: Place) -> Numbered:
        """Return the row at a place, and whether it is checked."""
        part, number, _ = place
        return self.all[part].numbered(split, number)

    def own_examples(self, split: str, places: Sequence[Place]) -> list[Example]:
        """Make the examples of rows by their places, without those that are dropped."""
        found = self.examples(split, places, [self.row(split, place) for place in places])
        return [example for example in found if isinstance(example, Example)]

    def train_batch(self, position: int, size: int) -> list[Example]:
        """Return the training examples at `size` positions from this one on, in the order of `order_of`."""
        order = order_of(self.config, self.findings)
        return self.own_examples("train", [order.at(here) for here in range(position, position + size)])

    def specimen(self) -> Example:
        """Return a training example that can be used, one with images if a row has any.

        Raises:
            DataError: No row can be used, or the first that is tried cannot, and is not dropped.
        """
        every = [(name, n, 0) for name, loader in self.parts.items() for n in range(len(loader.rows["train"]))]
        for place in sorted(every, key=lambda place: not self.row("train", place)[0].images):
            if found := self.own_examples("train", [place]):
                return found[0]
        raise DataError("task.train: every row is dropped")

    def held_out_examples(self, limit: int | None) -> list[Example]:
        """Return up to `limit` held-out examples of each part, then of each set (see `held_out_places`)."""
        return self.own_examples("held_out", held_out_places(self.findings, limit))


def order_of(config: Config, findings: Findings) -> Order:
    """Return the endless sequence of all parts' training examples.

    The sampler draws from which part each is. A part's own come in shuffled epochs: every row once before any comes
    twice.
    """
    rows = {name: findings.rows[name]["train"] for name in config.parts}
    return Order(rows, {name: part.weight for name, part in config.parts.items()}, config.seed)


def held_out_places(findings: Findings, limit: int | None) -> list[Place]:
    """Return where up to `limit` held-out examples of each part come from, then those of each set; see `chosen`."""
    return [(name, number, 0) for name, rows in findings.rows.items() for number in chosen(rows["held_out"], limit)]
