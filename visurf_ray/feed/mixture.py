"""The examples of a run: its parts' training examples in one sequence, and the held-out ones of parts and sets."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from visurf_ray.config.schema import Config, TaskConfig
from visurf_ray.errors import naming
from visurf_ray.feed.curriculum import Place
from visurf_ray.feed.loader import Dropped, ExampleLoader, Strictness, max_prompt_tokens
from visurf_ray.feed.prompts import Put
from visurf_ray.feed.sampler import PartSampler
from visurf_ray.groups import Example
from visurf_ray.models import load_processor
from visurf_ray.tasks import load_task


@dataclass(frozen=True)
class Findings:
    """What the check of all rows has found, over all parts and sets.

    Attributes:
        longest: The tokens of the longest prompt of each split, `train` and `held_out`.
        longest_labelled: The most tokens that a training prompt and its label have together; 0 without training rows.
        longest_label: The number of tokens of the longest training label; likewise.
        most_images: The most images of a prompt.
        dropped: The rows that are left out; the split of a named part is `PART/train` or `PART/held_out`.
        warning: The parts' warnings of labels that are too long; None without any.
    """

    longest: dict[str, int]
    longest_labelled: int
    longest_label: int
    most_images: int
    dropped: list[Dropped]
    warning: str | None


class Mixture:
    """The checked examples of a run's parts and held-out sets. A run of one task has one part, named ''.

    Attributes:
        parts: The loader of each part.
        sets: The loader of each held-out set.
        findings: What the check has found.
    """

    def __init__(self, config: Config, *, train: bool, put: Put) -> None:
        """Read and check every held-out row and, with `train`, every training row.

        Args:
            config: The run's configuration. Its seed draws the part of each training example, and shuffles each part's
                rows.
            train: Whether to read the training rows as well as the held-out ones.
            put: See ExampleLoader.

        Raises:
            DataError: A row cannot be used. The message names the first one.
        """
        processor = load_processor(config.model)

        def loaders(section: str, tasks: Mapping[str, TaskConfig], train: bool) -> Iterator[tuple[str, ExampleLoader]]:
            for name, task in tasks.items():
                with naming(section, name):
                    loader = ExampleLoader(
                        load_task(task, config.seed, strict=config.answers.strict, model=config.model),
                        processor,
                        seed=config.seed,
                        max_prompt_tokens=max_prompt_tokens(config),
                        put=put,
                        model=config.model,
                        strictness=Strictness.of(config),
                        part=name,
                    )
                    if train:
                        loader.load_train()
                    loader.check()
                yield name, loader

        self.parts = dict(loaders("task.parts", config.parts, train))
        self.sets = dict(loaders("eval.sets", config.eval.sets, False))
        self._sampler = PartSampler([part.weight for part in config.parts.values()], config.seed)
        self._in_order = list(self.parts.values())
        every = [*self.parts.values(), *self.sets.values()]
        splits = dict.fromkeys(split for loader in every for split in loader.longest)
        self.findings = Findings(
            longest={split: max(loader.longest.get(split, 0) for loader in every) for split in splits},
            longest_labelled=max(loader.longest_labelled for loader in every),
            longest_label=max(loader.longest_label for loader in every),
            most_images=max(loader.most_images for loader in every),
            dropped=[_named(row, loader.part) for loader in every for row in loader.dropped],
            warning="\n".join(loader.warning for loader in every if loader.warning) or None,
        )

    def train_batch(self, position: int, size: int) -> list[Example]:
        """Return `size` training examples, beginning at a position in the endless sequence of all parts' examples.

        `PartSampler` says from which part each is. A part's own examples come in shuffled epochs: every row once before
        any comes twice (see `ExampleLoader.train_batch`).
        """
        return [example for here in range(position, position + size) for example in self._at(here)]

    def _at(self, position: int) -> list[Example]:
        part, earlier = self._sampler.at(position)
        return self._in_order[part].train_batch(earlier, 1)

    def place(self, position: int) -> Place:
        """Return where the training example at a position of this sequence comes from."""
        part, earlier = self._sampler.at(position)
        loader = self._in_order[part]
        return loader.part, *loader.place(earlier)

    def specimen(self) -> Example:
        """Return a training example, one with images if a row has any."""
        rows = [(loader, row) for loader in self._in_order for row in loader.rows["train"]]
        loader, row = max(rows, key=lambda entry: bool(entry[1].images))
        return loader.example(row)

    def held_out_examples(self, limit: int | None) -> list[Example]:
        """Return up to `limit` held-out examples of each part, then of each set (see ExampleLoader)."""
        loaders = [*self.parts.values(), *self.sets.values()]
        return [example for loader in loaders for example in loader.held_out_examples(limit)]


def _named(row: Dropped, part: str) -> Dropped:
    return replace(row, split=f"{part}/{row.split}") if part else row
