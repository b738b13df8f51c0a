"""Makes examples from rows: decodes, resizes and processes the image, and tokenizes the prompt."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from visurf_ray.aliases import Processor, Reference
from visurf_ray.config.schema import ModelConfig, TaskConfig
from visurf_ray.data.rows import Row
from visurf_ray.errors import DataError
from visurf_ray.groups import Example, Prompt
from visurf_ray.models import load_processor
from visurf_ray.tasks import load_task
from visurf_ray.tasks.task import Task

_IMAGE_TOKEN = "<|image_pad|>"

Put = Callable[[object], Reference]  # stores a value and returns a reference to it


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
    loader = ExampleLoader(load_task(task, seed), processor, seed=seed, max_prompt_tokens=max_prompt_tokens, put=put)
    if train:
        loader.load_train()
    loader.check()
    return loader


class ExampleLoader:
    """Makes examples of a task's training and held-out rows, for one model's processor.

    Attributes:
        rows: The rows by split. `held_out` is always read, `train` only by `load_train`: an evaluation needs no
            training rows.
        longest: The number of tokens of each split's longest prompt; set by `check`.
        longest_labelled: The most tokens that a training prompt and its label have together; set by `check`.
    """

    def __init__(self, task: Task, processor: Processor, *, seed: int, max_prompt_tokens: int, put: Put) -> None:
        """Read the held-out rows.

        Args:
            task: The task.
            processor: The model's processor.
            seed: Shuffles the training rows.
            max_prompt_tokens: The longest prompt that is accepted, visual tokens included. Longer ones are refused,
                because truncating one would remove image tokens.
            put: Stores an image or its features and returns a reference to it; in a cluster, `ray.put`.

        Raises:
            DataError: The held-out data cannot be read.
        """
        self.task = task
        self.processor = processor
        self.seed = seed
        self.max_prompt_tokens = max_prompt_tokens
        self.put = put
        self.image_token_id = processor.tokenizer.convert_tokens_to_ids(_IMAGE_TOKEN)
        self.rows = {"held_out": task.held_out_rows()}

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
        width, height = self._size(row)
        token_ids = self._token_ids(row)
        if token_ids.count(self.image_token_id) != 1:
            raise DataError(f"{row.where}: the question must not contain {_IMAGE_TOKEN}")
        length = len(token_ids) + self._visual_tokens(width, height) - 1
        if length > self.max_prompt_tokens:
            raise DataError(
                f"{row.where}: the prompt has {length} tokens, but may have at most {self.max_prompt_tokens}, one less "
                "than rollout.max_model_len: shorten the question, lower model.max_pixels, or raise max_model_len"
            )
        return length, self._label_tokens(row, (width, height)) if labelled else 0

    def _label_tokens(self, row: Row, size: tuple[int, int]) -> int:
        """Return the tokens of the row's label in its longest style, the end-of-turn token included."""
        original = row.open_image()
        truth = self.task.ground_truth(row, size[0] / original.width, size[1] / original.height)
        without_pixels = Prompt([], [], None, None)
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
        token_ids = self._token_ids(row)
        position = token_ids.index(self.image_token_id)
        visual = [self.image_token_id] * self._visual_tokens(width, height)
        features = self.processor.image_processor(images=[image], return_tensors="pt")
        return Example(
            id=row.id,
            question=row.problem,
            ground_truth=self.task.ground_truth(row, *scale),
            prompt=Prompt(
                token_ids=token_ids,
                expanded_ids=token_ids[:position] + visual + token_ids[position + 1 :],
                image=self.put(image),
                features=self.put({name: features[name] for name in ("pixel_values", "image_grid_thw")}),
            ),
            size=(width, height),
            thinking=row.thinking,
            stored=self.put(original) if stored else None,
        )

    def _token_ids(self, row: Row) -> list[int]:
        content = [{"type": "image"}, {"type": "text", "text": self.task.question(row)}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return self.processor.tokenizer(text, add_special_tokens=False).input_ids

    def _size(self, row: Row) -> tuple[int, int]:
        """Return width and height of the image as the model sees it, in pixels."""
        processor = self.processor.image_processor
        width, height = row.open_image().size
        try:
            new_height, new_width = smart_resize(
                height,
                width,
                factor=processor.patch_size * processor.merge_size,
                min_pixels=processor.size["shortest_edge"],
                max_pixels=processor.size["longest_edge"],
            )
        except ValueError as error:
            raise DataError(f"{row.where}: the model does not accept an image of {width}×{height} ({error})") from error
        return new_width, new_height

    def _visual_tokens(self, width: int, height: int) -> int:
        """Return the number of merged visual tokens of an image of this size in pixels."""
        cell = self.processor.image_processor.patch_size * self.processor.image_processor.merge_size
        return (width // cell) * (height // cell)
