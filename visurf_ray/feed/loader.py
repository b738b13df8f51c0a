"""Makes examples from rows: decodes, resizes and processes the images, and tokenizes the prompt."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from PIL import Image

from visurf_ray.aliases import Json, Processor
from visurf_ray.config.choices import OnBadBox, OnLong, Resize
from visurf_ray.config.schema import ModelConfig
from visurf_ray.data.conversations import MARK
from visurf_ray.data.rows import Row
from visurf_ray.errors import BoxError, DataError, LengthError
from visurf_ray.feed.check import Note, Report, check_rows
from visurf_ray.feed.order import Epochs
from visurf_ray.feed.prompts import Messages, PromptMaker, Put, Size
from visurf_ray.feed.remembered import Remembered
from visurf_ray.feed.strictness import Checked, Dropped, Strictness
from visurf_ray.feed.texts import TextCheck, check_tags
from visurf_ray.groups import Example, Prediction, Prompt
from visurf_ray.tasks.task import Task

OverBudget = Callable[[int, int], str | None]  # see `strictness.over_budget`


class ExampleLoader:
    """Makes examples of a task's training and held-out rows, for one model's processor.

    Attributes:
        rows: The rows by split. `held_out` is always read, `train` only by `load_train`: an evaluation needs no
            training rows. `check` leaves out those that it drops.
        checked: How many rows of each split are checked, the first ones; set by `check`.
        dropped: The rows that `check` has left out.
        most_images: The most images of a prompt; set by `check`.
        longest: The number of tokens of each split's longest prompt, among the checked rows; set by `check`.
        longest_labelled: The most tokens that a training prompt and its label have together; likewise.
        longest_label: The number of tokens of the longest training label; likewise.
        warning: Names the first training row whose label is longer than any response can be, and says how many there
            are; None without any. Set by `check`.
    """

    def __init__(
        self,
        task: Task,
        processor: Processor,
        *,
        seed: int,
        max_prompt_tokens: int,
        put: Put,
        model: ModelConfig | None = None,
        strictness: Strictness | None = None,
        part: str = "",
        rows: dict[str, list[Row]] | None = None,
        over_budget: OverBudget = lambda prompt, labelled: None,
    ) -> None:
        """Read the held-out rows.

        Args:
            task: The task.
            processor: The model's processor.
            seed: Shuffles the training rows.
            max_prompt_tokens: The longest prompt that is accepted, visual tokens included. Longer ones are refused,
                because truncating one would remove image tokens.
            put: Stores an image or its features and returns a reference to it; in a cluster, `ray.put`.
            model: How images are resized. None: as the processor does.
            strictness: Which rows are refused. None: those that no run can use.
            part: The part of a mixture, or the held-out set, to which the examples belong.
            rows: The rows by split, if they are read already; {}: examples are made of rows from elsewhere.
            over_budget: See `strictness.over_budget`. It is asked of training rows that are checked when they are used.

        Raises:
            DataError: The held-out data cannot be read.
        """
        self.task = task
        self.processor = processor
        self.seed = seed
        self.max_prompt_tokens = max_prompt_tokens
        self.put = put
        self.strictness = strictness or Strictness()
        self.part = part
        self.over_budget = over_budget
        self.texts = TextCheck(processor.tokenizer)
        self.dropped: list[Dropped] = []
        self._scored = False  # whether metrics were computed of a label
        self.warning: str | None = None
        square = model.square_side if model and model.resize is Resize.square else None
        self.prompts = PromptMaker(processor, model.max_pixels if model else None, put, square=square)
        self.checked: dict[str, int] = {}
        self.rows = {"held_out": task.held_out_rows()} if rows is None else rows

    def load_train(self) -> int:
        """Read the training rows and return their number."""
        self.rows = {"train": self.task.train_rows(), **self.rows}
        return len(self.rows["train"])

    def check(
        self, first: int | None = None, *, remembered: Remembered | None = None, note: Note = lambda count: None
    ) -> None:
        """Check rows, and decode their images. Rows are left out or repaired as `strictness` says.

        Args:
            first: How many rows of each split to check; None: all.
            remembered: Earlier checks, which are not repeated.
            note: See `check_rows`.

        Raises:
            DataError: A row cannot be used, or a split has no rows. The message names the first such row.
        """
        for key, rows in self.rows.items():
            if not rows:
                raise DataError(f"task.{key} has no examples")
        for key, text in (("task.prompt", self.task.template), ("task.system", self.task.system)):
            self.texts.encode([text.replace(MARK, " ")] if text else [], key)
        reports = {key: self._report(key, rows[:first], remembered, note) for key, rows in self.rows.items()}
        self.rows = {key: self._kept(key, report) for key, report in reports.items()}
        self.checked = {key: report.rows - len(report.dropped) for key, report in reports.items()}
        self.longest = {key: report.longest for key, report in reports.items()}
        self.most_images = max(len(row.images) for rows in self.rows.values() for row in rows)
        train = reports.get("train", Report(0))
        self.longest_labelled, self.longest_label = train.longest_labelled, train.longest_label
        if train.too_long:
            self.warning = (
                f"{train.too_long} training labels are longer than any response can be; feed.on_long=drop leaves them "
                f"out. The first: {train.first_too_long}"
            )

    def _report(self, split: str, rows: Sequence[Row], remembered: Remembered | None, note: Note) -> Report:
        """Return what the check of rows finds, or has found before."""
        key = remembered.key(split, self.task, rows) if remembered else ""
        found = remembered.recall(key) if remembered else None
        if found:
            note(len(rows))
            return found
        found = check_rows(rows, partial(self._check, split=split), note)
        if remembered and rows:
            remembered.keep(key, found)
        return found

    def _kept(self, split: str, report: Report) -> list[Row]:
        """Return the rows of a split without those that the check has dropped, their boxes repaired."""
        rows, reasons, repaired = self.rows[split], dict(report.dropped), dict(report.repaired)
        dropped = [Dropped(split, rows[number].where, rows[number].id, reason) for number, reason in reasons.items()]
        self.dropped += dropped
        if len(dropped) == len(rows):
            raise DataError(f"task.{split}: every row is dropped, the first for this reason: {dropped[0].reason}")
        if report.largest_coordinate is not None and report.largest_coordinate <= 1:
            raise DataError(
                f"task.{split}: all coordinates of boxes lie between 0 and 1, but they must be in {self.task.unit}"
            )
        return [
            replace(row, solution=repaired[number]) if number in repaired else row
            for number, row in enumerate(rows)
            if number not in reasons
        ]

    def _check(self, row: Row, *, split: str) -> Checked | Dropped:
        """Check a row of a split, `train` or `held_out`. Raises DataError if it can neither be used nor dropped."""
        try:
            return self.measured(row, trained=split == "train")
        except DataError as error:
            if not self.strictness.drops(error):
                raise
            return Dropped(split, row.where, row.id, str(error))

    def measured(self, row: Row, *, trained: bool) -> Checked:
        """Check a row, repair its boxes if `strictness` says so, and measure its prompt and its label.

        Args:
            row: The row.
            trained: Whether the run may train on the row's label; otherwise its length does not matter, and counts 0.
        """
        decoded = row.decoded()
        try:
            self.task.check(decoded)
        except BoxError:
            if self.strictness.on_bad_box != OnBadBox.fix:
                raise
            decoded = self.task.repaired(decoded)
            self.task.check(decoded)
        sizes = self._sizes(decoded)
        messages = self._messages(decoded)
        texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
        self.texts.encode([*texts, decoded.thinking or ""], row.where)
        try:
            prompt = self.prompts.length(messages, sizes)
        except ValueError as error:
            raise DataError(f"{row.where}: the prompt {error}") from error
        if prompt > self.max_prompt_tokens:
            raise LengthError(
                f"{row.where}: the prompt has {prompt} tokens, but may have at most {self.max_prompt_tokens}, one less "
                "than rollout.max_model_len: shorten the question, lower model.max_pixels, raise max_model_len, or set "
                "feed.on_long=drop"
            )
        found = self._label_tokens(decoded, sizes)  # checks the label of a held-out row as well
        lengths = found if trained else [0]
        limit, room = self.strictness.max_label_tokens, self.max_prompt_tokens + 1 - prompt
        too_long = None
        if limit is not None and min(lengths) > min(limit, room):
            key = f"rollout.max_tokens={limit}" if limit < min(lengths) else f"rollout.max_model_len={room + prompt}"
            too_long = (
                f"{row.where}: the label has {min(lengths)} tokens after a prompt of {prompt}, longer than a response "
                f"can be with {key}"
            )
            if self.strictness.on_long == OnLong.drop:
                raise LengthError(too_long)
        largest = self.task.largest_coordinate(decoded)
        return Checked(replace(row, solution=decoded.solution), prompt, max(lengths), largest, too_long)

    def _label_tokens(self, row: Row, sizes: Sequence[Size]) -> list[int]:
        """Check the row's label; returns its tokens in every style, the end-of-turn token included.

        The data's reasoning is counted only if the run trains on labels.

        Raises:
            DataError: The label has a special token of the tokenizer, or several thoughts or answers.
        """
        truth = self._ground_truth(row, sizes)
        example = Example(
            row.id,
            row.problem,
            truth,
            Prompt([], []),
            _first(sizes),
            thinking=row.thinking,
            answered=self.task.answered,
            compared=self.task.compared,
        )
        label = self.task.label(example, self.task.styles[0])
        check_tags(label, row.thinking, row.where)
        if not self._scored:  # an error in metrics shows now, and not after the first evaluation
            self._scored = True
            self.task.score([Prediction.of(example, label)])
        if not self.strictness.trains_on_labels:
            example = replace(example, thinking=None)
        labels = [self.task.label(example, style) for style in self.task.styles]
        return [1 + len(ids) for ids in self.texts.encode(labels, row.where)]

    def numbered(self, split: str, number: int) -> tuple[Row, bool]:
        """Return a row of a split by its number, and whether it is checked."""
        return self.rows[split][number], number < self.checked[split]

    def use(self, row: Row, *, split: str, checked: bool) -> Example | Dropped:
        """Make the example of a row, of a held-out one without features. A row that is not checked is checked first.

        Returns:
            The example; or Dropped if the row cannot be used and `strictness` drops it.

        Raises:
            DataError: It cannot be used, and is not dropped.
        """
        trained = split == "train"
        try:
            if not checked:
                row = row.decoded()
                found = self.measured(row, trained=trained)
                excess = self.over_budget(found.prompt, found.prompt + found.label) if trained else None
                if excess:
                    raise LengthError(f"{row.where}: {excess}")
                row = found.row
            return self.example(row, features=trained)
        except DataError as error:
            if not self.strictness.drops(error):
                raise
            return Dropped(split, row.where, row.id, str(error))

    def train_batch(self, position: int, size: int) -> list[Example]:
        """Return `size` training examples, beginning at a position in the endless sequence of the part's own epochs."""
        epochs = Epochs(len(self.rows["train"]), self.seed)
        places = [epochs.at(here) for here in range(position, position + size)]
        return [replace(self.example(self.rows["train"][row]), row=row, epoch=epoch) for row, epoch in places]

    def held_out_examples(self, limit: int | None) -> list[Example]:
        """Return the held-out examples that `chosen` names."""
        rows = self.rows["held_out"]
        return [self.example(rows[number], features=False) for number in chosen(len(rows), limit)]

    def example(self, row: Row, *, features: bool = True) -> Example:
        """Make the example of a row.

        Args:
            row: The row.
            features: Whether to make the learner's features, which are large.

        Raises:
            DataError: The image is missing or damaged, or the model does not accept its shape.
        """
        row = row.decoded()
        sizes = self._sizes(row)
        return Example(
            id=row.id,
            question=row.problem,
            ground_truth=self._ground_truth(row, sizes),
            prompt=self.prompts.make(self._messages(row), self.seen(row), features=features),
            size=_first(sizes),
            thinking=row.thinking,
            part=self.part,
            answered=self.task.answered,
            compared=self.task.compared,
        )

    def seen(self, row: Row) -> list[Image.Image]:
        """Return the images of a row as the model sees them. Raises DataError like `example`."""
        row = row.decoded()
        pairs = zip(row.open_images(), self._sizes(row), strict=True)
        return [image if image.size == size else image.resize(size) for image, size in pairs]

    def _ground_truth(self, row: Row, sizes: Sequence[Size]) -> str:
        """Return the ground truth; coordinates are scaled with the row's image if it has one alone."""
        if len(sizes) != 1:
            return self.task.ground_truth(row, 1.0, 1.0)
        original = row.open_image()
        return self.task.ground_truth(row, sizes[0][0] / original.width, sizes[0][1] / original.height)

    def _messages(self, row: Row) -> Messages:
        """Return the conversation, with images at their marks; without marks they come first."""
        texts = [(turn.role, turn.text) for turn in row.turns] + [("user", self.task.question(row))]
        messages: list[dict[str, Json]] = [{"role": role, "content": _parts(text)} for role, text in texts]
        if not any(MARK in text for _, text in texts):
            messages[0]["content"] = [{"type": "image"}] * len(row.images) + messages[0]["content"]
        text = row.system if self.task.system is None else self.task.system
        system = [{"role": "system", "content": [{"type": "text", "text": text}]}] if text else []
        return [*system, *messages]

    def _sizes(self, row: Row) -> list[Size]:
        """Return the sizes that the row's images are scaled to.

        Raises:
            DataError: The model does not accept the shape of one.
        """
        found = []
        for image in row.open_images():
            try:
                found.append(self.prompts.seen_size(image.size))
            except ValueError as error:
                raise DataError(
                    f"{row.where}: the model does not accept an image of {image.width}×{image.height} ({error})"
                ) from error
        return found


def _parts(text: str) -> list[dict[str, Json]]:
    """Return the typed parts of a message: its text, and an image at each mark."""
    first, *others = text.split(MARK)
    parts: list[dict[str, Json]] = [{"type": "text", "text": first}] if first or not others else []
    for other in others:
        parts.append({"type": "image"})
        if other:
            parts.append({"type": "text", "text": other})
    return parts


def _first(sizes: Sequence[Size]) -> Size:
    return sizes[0] if sizes else (0, 0)


def chosen(rows: int, limit: int | None) -> list[int]:
    """Draw the numbers of `limit` held-out rows at random, or all for None; return them in the data set's order.

    The choice is the same for every seed. It is random because many data sets are sorted, for example by class.
    """
    return sorted(np.random.default_rng(0).permutation(rows)[:limit].tolist())
