"""Makes examples from rows: decodes, resizes and processes the image, and tokenizes the prompt."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from visurf_ray.aliases import Processor
from visurf_ray.config.schema import ModelConfig, TaskConfig
from visurf_ray.data.rows import Row
from visurf_ray.errors import DataError
from visurf_ray.feed.prompts import Messages, PromptMaker, Put, Size
from visurf_ray.groups import Example, Prompt
from visurf_ray.models import load_processor
from visurf_ray.tasks import load_task
from visurf_ray.tasks.task import Task


def open_loader(
    task: TaskConfig, model: ModelConfig, *, seed: int, max_prompt_tokens: int, train: bool, put: Put
) -> "ExampleLoader":
    """Return a loader that has read and checked every held-out row and, with `train`, every training row.

    Args:
        task: The task and its data.
        model: The model whose processor makes the examples.
        seed: See ExampleLoader.
        max_prompt_tokens: See ExampleLoader.
        train: Whether to read the training rows as well as the held-out ones.
        put: See ExampleLoader.

    Raises:
        DataError: A row cannot be used. The message names the first one.
    """
    processor = load_processor(model)
    loader = ExampleLoader(
        load_task(task, seed),
        processor,
        seed=seed,
        max_prompt_tokens=max_prompt_tokens,
        put=put,
        max_pixels=model.max_pixels,
    )
    if train:
        loader.load_train()
    loader.check()
    return loader


class ExampleLoader:
    """Makes examples of a task's training and held-out rows, for one model's processor.

    Attributes:
        rows: The rows by split. `held_out` is always read, `train` only by `load_train`: an evaluation needs no
            training rows.
        most_images: The most images of a prompt.
        longest: The number of tokens of each split's longest prompt; set by `check`.
        longest_labelled: The most tokens that a training prompt and its label have together; set by `check`.
    """

    def __init__(
        self,
        task: Task,
        processor: Processor,
        *,
        seed: int,
        max_prompt_tokens: int,
        put: Put,
        max_pixels: int | None = None,
    ) -> None:
        """Read the held-out rows.

        Args:
            task: The task.
            processor: The model's processor.
            seed: Shuffles the training rows.
            max_prompt_tokens: The longest prompt that is accepted, visual tokens included. Longer ones are refused,
                because truncating one would remove image tokens.
            put: Stores an image or its features and returns a reference to it; in a cluster, `ray.put`.
            max_pixels: See `PromptMaker`.

        Raises:
            DataError: The held-out data cannot be read.
        """
        self.task = task
        self.processor = processor
        self.seed = seed
        self.max_prompt_tokens = max_prompt_tokens
        self.put = put
        self.prompts = PromptMaker(processor, max_pixels, put)
        self.rows = {"held_out": task.held_out_rows()}
        self.most_images = 1

    def load_train(self) -> int:
        """Read the training rows and return their number."""
        self.rows = {"train": self.task.train_rows(), **self.rows}
        return len(self.rows["train"])

    def check(self) -> None:
        """Check every row that was read, and decode its image.

        Raises:
            DataError: A row cannot be used, or a split has no rows. The message names the first such row.
        """
        for key, rows in self.rows.items():
            if not rows:
                raise DataError(f"task.{key} has no examples")
        with ThreadPoolExecutor() as threads:  # decoding releases the GIL
            lengths = {
                key: list(threads.map(partial(self._check, labelled=key == "train"), rows))
                for key, rows in self.rows.items()
            }
        self.longest = {key: max(prompt for prompt, _ in found) for key, found in lengths.items()}
        self.longest_labelled = max((prompt + label for prompt, label in lengths.get("train", [])), default=0)

    def _check(self, row: Row, *, labelled: bool) -> tuple[int, int]:
        """Check a row; returns the number of tokens of its prompt, visual tokens included, and of its longest label.

        Args:
            labelled: Whether the run may train on the row's label; otherwise 0 is returned for it.
        """
        row = row.decoded()
        self.task.check(row)
        size = self._size(row)
        try:
            length = self.prompts.length(self._messages(row), [size])
        except ValueError as error:
            raise DataError(f"{row.where}: the prompt {error}") from error
        if length > self.max_prompt_tokens:
            raise DataError(
                f"{row.where}: the prompt has {length} tokens, but may have at most {self.max_prompt_tokens}, one less "
                "than rollout.max_model_len: shorten the question, lower model.max_pixels, or raise max_model_len"
            )
        return length, self._label_tokens(row, size) if labelled else 0

    def _label_tokens(self, row: Row, size: Size) -> int:
        """Return the tokens of the row's label in its longest style, the end-of-turn token included."""
        original = row.open_image()
        truth = self.task.ground_truth(row, size[0] / original.width, size[1] / original.height)
        without_pixels = Prompt([], [])
        example = Example(row.id, row.problem, truth, without_pixels, size, thinking=row.thinking)
        labels = [self.task.render(example, style) for style in self.task.styles]
        return 1 + max(map(len, self.processor.tokenizer(labels, add_special_tokens=False).input_ids))

    def train_batch(self, position: int, size: int) -> list[Example]:
        """Return `size` training examples, beginning at a position in the endless sequence of shuffled epochs.

        Each epoch has every row once, in its own order; a batch may span epochs.
        """
        rows = self.rows["train"]
        count = len(rows)
        return [
            self.example(rows[self._order(here // count)[here % count]]) for here in range(position, position + size)
        ]

    def held_out_examples(self, limit: int | None) -> list[Example]:
        """Draw `limit` held-out examples at random, or take all for None; return them in the data set's order.

        The choice is the same for every seed. It is random because many data sets are sorted, for example by class.
        """
        stored = self.task.config.segmenter is not None
        rows = self.rows["held_out"]
        chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:limit])
        return [self.example(rows[index], stored=stored) for index in chosen]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.rows["train"]))

    def example(self, row: Row, *, stored: bool = False) -> Example:
        """Make the example of a row.

        Args:
            row: The row.
            stored: Whether to store the image at its original size as well, for segmentation.

        Raises:
            DataError: The image is missing or damaged, or the model does not accept its shape.
        """
        row = row.decoded()
        original = row.open_image()
        width, height = self._size(row)
        scale = (width / original.width, height / original.height)
        image = original if original.size == (width, height) else original.resize((width, height))
        return Example(
            id=row.id,
            question=row.problem,
            ground_truth=self.task.ground_truth(row, *scale),
            prompt=self.prompts.make(self._messages(row), [image]),
            size=(width, height),
            thinking=row.thinking,
            stored=self.put(original) if stored else None,
        )

    def _messages(self, row: Row) -> Messages:
        content = [{"type": "image"}, {"type": "text", "text": self.task.question(row)}]
        return [{"role": "user", "content": content}]

    def _size(self, row: Row) -> Size:
        """Return width and height of the image as the model sees it, in pixels."""
        width, height = row.open_image().size
        try:
            return self.prompts.seen_size((width, height))
        except ValueError as error:
            raise DataError(f"{row.where}: the model does not accept an image of {width}×{height} ({error})") from error
