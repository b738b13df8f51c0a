"""Makes examples from rows: decodes, resizes and processes the images, and tokenizes the prompt."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from visurf_ray.aliases import Json, Processor
from visurf_ray.config.choices import OnBadBox, OnLong, Resize
from visurf_ray.config.schema import Config, ModelConfig
from visurf_ray.data.conversations import MARK
from visurf_ray.data.rows import Row
from visurf_ray.errors import BoxError, DataError, LengthError
from visurf_ray.feed.prompts import Messages, PromptMaker, Put, Size
from visurf_ray.feed.texts import TextCheck, check_tags
from visurf_ray.groups import Example, Prediction, Prompt
from visurf_ray.tasks.task import Task


@dataclass(frozen=True)
class Strictness:
    """Which rows are refused, and what happens to them.

    Attributes:
        on_bad_box: What to do with a row whose boxes have swapped corners or reach outside the image.
        on_long: What to do with a row whose prompt is too long, or whose label is longer than any response can be: stop
            refuses the prompt and only warns of the label.
        max_label_tokens: The longest response, the end-of-turn token included; None: labels may have any length.
        trains_on_labels: Whether the run trains on labels: then the data's reasoning counts for their length.
    """

    on_bad_box: OnBadBox = OnBadBox.stop
    on_long: OnLong = OnLong.stop
    max_label_tokens: int | None = None
    trains_on_labels: bool = True

    @staticmethod
    def of(config: Config) -> "Strictness":
        """Return what a run's configuration says."""
        trains = config.method.label or config.method.sft_steps > 0
        return Strictness(config.feed.on_bad_box, config.feed.on_long, config.rollout.max_tokens, trains)


def max_prompt_tokens(config: Config) -> int:
    """Return the length of the longest prompt in tokens: it leaves room for one token of a response."""
    return config.rollout.max_model_len - 1


@dataclass(frozen=True)
class Dropped:
    """A row that is left out: the split, where it is, its id, and why."""

    split: str
    where: str
    id: str
    reason: str


@dataclass(frozen=True)
class Checked:
    """A row that can be used: the tokens of its prompt and of its label, and the largest coordinate of its boxes.

    `too_long` says that no response can be as long as the label.
    """

    row: Row
    prompt: int
    label: int
    largest_coordinate: float | None
    too_long: str | None


class ExampleLoader:
    """Makes examples of a task's training and held-out rows, for one model's processor.

    Attributes:
        rows: The rows by split. `held_out` is always read, `train` only by `load_train`: an evaluation needs no
            training rows.
        dropped: The rows that `check` has left out.
        most_images: The most images of a prompt; set by `check`.
        longest: The number of tokens of each split's longest prompt; set by `check`.
        longest_labelled: The most tokens that a training prompt and its label have together; set by `check`.
        longest_label: The number of tokens of the longest training label; set by `check`.
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
            rows: The rows by split, if they are read already.

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
        self.texts = TextCheck(processor.tokenizer)
        self.dropped: list[Dropped] = []
        self._scored = False  # whether metrics were computed of a label
        self.warning: str | None = None
        square = model.square_side if model and model.resize is Resize.square else None
        self.prompts = PromptMaker(processor, model.max_pixels if model else None, put, square=square)
        self._shuffled: tuple[int, NDArray[np.int64]] | None = None  # the latest epoch and its order
        self.rows = {"held_out": task.held_out_rows()} if rows is None else rows

    def load_train(self) -> int:
        """Read the training rows and return their number."""
        self.rows = {"train": self.task.train_rows(), **self.rows}
        return len(self.rows["train"])

    def check(self) -> None:
        """Check every row that was read, and decode its image. Rows are left out or repaired as `strictness` says.

        Raises:
            DataError: A row cannot be used, or a split has no rows. The message names the first such row.
        """
        for key, rows in self.rows.items():
            if not rows:
                raise DataError(f"task.{key} has no examples")
        for key, text in (("task.prompt", self.task.template), ("task.system", self.task.system)):
            self.texts.encode([text.replace(MARK, " ")] if text else [], key)
        with ThreadPoolExecutor() as threads:  # decoding releases the GIL
            checked = {key: list(threads.map(partial(self._check, split=key), rows)) for key, rows in self.rows.items()}
        found = {}
        for key, each in checked.items():
            found[key] = [row for row in each if isinstance(row, Checked)]
            self.dropped += [row for row in each if isinstance(row, Dropped)]
            if not found[key]:
                reason = next(row.reason for row in self.dropped if row.split == key)
                raise DataError(f"task.{key}: every row is dropped, the first for this reason: {reason}")
            coordinates = [row.largest_coordinate for row in found[key] if row.largest_coordinate is not None]
            if coordinates and max(coordinates) <= 1:
                raise DataError(
                    f"task.{key}: all coordinates of boxes lie between 0 and 1, but they must be in {self.task.unit}"
                )
        self.rows = {key: [each.row for each in kept] for key, kept in found.items()}
        self.longest = {key: max(each.prompt for each in kept) for key, kept in found.items()}
        self.most_images = max(len(each.row.images) for kept in found.values() for each in kept)
        self.longest_labelled = max((each.prompt + each.label for each in found.get("train", [])), default=0)
        self.longest_label = max((each.label for each in found.get("train", [])), default=0)
        too_long = [each.too_long for each in found.get("train", []) if each.too_long]
        if too_long:
            self.warning = (
                f"{len(too_long)} training labels are longer than any response can be; feed.on_long=drop leaves them "
                f"out. The first: {too_long[0]}"
            )

    def _check(self, row: Row, *, split: str) -> Checked | Dropped:
        """Check a row of a split, `train` or `held_out`. Raises DataError if it can neither be used nor dropped."""
        try:
            return self.measured(row, trained=split == "train")
        except BoxError as error:
            if self.strictness.on_bad_box != OnBadBox.drop:
                raise
            return Dropped(split, row.where, row.id, str(error))
        except LengthError as error:
            if self.strictness.on_long != OnLong.drop:
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

    def train_batch(self, position: int, size: int) -> list[Example]:
        """Return `size` training examples, beginning at a position in the endless sequence of shuffled epochs.

        Each epoch has every row once, in its own order; a batch may span epochs.
        """
        examples = []
        for here in range(position, position + size):
            row, epoch = self.place(here)
            examples.append(replace(self.example(self.rows["train"][row]), row=row, epoch=epoch))
        return examples

    def place(self, position: int) -> tuple[int, int]:
        """Return the number of the row at a position of this sequence, and its epoch."""
        epoch, index = divmod(position, len(self.rows["train"]))
        if self._shuffled is None or self._shuffled[0] != epoch:
            self._shuffled = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.rows["train"]))
        return int(self._shuffled[1][index]), epoch

    def held_out_examples(self, limit: int | None) -> list[Example]:
        """Draw `limit` held-out examples at random, or take all for None; return them in the data set's order.

        The choice is the same for every seed. It is random because many data sets are sorted, for example by class.
        """
        stored = self.task.config.segmenter is not None
        rows = self.rows["held_out"]
        chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:limit])
        return [self.example(rows[index], stored=stored) for index in chosen]

    def example(self, row: Row, *, stored: bool = False) -> Example:
        """Make the example of a row.

        Args:
            row: The row.
            stored: Whether to store the image at its original size as well, for segmentation.

        Raises:
            DataError: The image is missing or damaged, or the model does not accept its shape.
        """
        row = row.decoded()
        originals, sizes = row.open_images(), self._sizes(row)
        images = [
            original if original.size == size else original.resize(size)
            for original, size in zip(originals, sizes, strict=True)
        ]
        return Example(
            id=row.id,
            question=row.problem,
            ground_truth=self._ground_truth(row, sizes),
            prompt=self.prompts.make(self._messages(row), images),
            size=_first(sizes),
            thinking=row.thinking,
            stored=self.put(row.open_image()) if stored else None,
            part=self.part,
            answered=self.task.answered,
            compared=self.task.compared,
        )

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
