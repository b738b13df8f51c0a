"""From rows to examples: the image is decoded, resized and processed once, and the prompt tokenized once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from visurf_ray.config.schema import ModelConfig, TaskConfig
from visurf_ray.data.rows import Row
from visurf_ray.errors import DataError
from visurf_ray.groups import Example, Prompt
from visurf_ray.models import load_processor
from visurf_ray.tasks import load_task
from visurf_ray.tasks.task import Task

_IMAGE_TOKEN = "<|image_pad|>"


def open_loader(
    task: TaskConfig, model: ModelConfig, *, seed: int, max_prompt_tokens: int, train: bool, put: Callable[[Any], Any]
) -> "ExampleLoader":
    """A loader whose every row has been read and checked, the training split's if `train`. Raises DataError."""
    processor = load_processor(model)
    loader = ExampleLoader(load_task(task, seed), processor, seed=seed, max_prompt_tokens=max_prompt_tokens, put=put)
    if train:
        loader.load_train()
    loader.check()
    return loader


class ExampleLoader:
    """Examples of a task's train and held-out rows, for one model's processor.

    max_prompt_tokens: longer prompts, visual tokens included, are refused by name; a truncated prompt breaks the model.
    put: what becomes of the image and its features (in a cluster, `ray.put`).
    """

    def __init__(
        self, task: Task, processor: Any, *, seed: int, max_prompt_tokens: int, put: Callable[[Any], Any]
    ) -> None:
        self.task = task
        self.processor = processor
        self.seed = seed
        self.max_prompt_tokens = max_prompt_tokens
        self.put = put
        self.image_token_id = processor.tokenizer.convert_tokens_to_ids(_IMAGE_TOKEN)
        self.rows = {"held_out": task.held_out_rows()}  # and "train", once it is read: an evaluation needs none

    def load_train(self) -> int:
        """Read the training rows; returns how many there are."""
        self.rows = {"train": self.task.train_rows(), **self.rows}
        return len(self.rows["train"])

    def check(self) -> None:
        """Check every row that was read, its image decoded. Raises DataError that names the first bad one.

        `longest` then has the tokens of each split's longest prompt.
        """
        for key, rows in self.rows.items():
            if not rows:
                raise DataError(f"task.{key} has no examples")
        with ThreadPoolExecutor() as threads:  # decoding leaves Python's lock
            self.longest = {key: max(threads.map(self._check, rows)) for key, rows in self.rows.items()}

    def _check(self, row: Row) -> int:
        """The prompt's length in tokens, visual ones included."""
        row = row.decoded()
        self.task.check(row)
        width, height = self._size(row)
        token_ids = self._token_ids(row)
        if token_ids.count(self.image_token_id) != 1:
            raise DataError(f"{row.where}: the question must not hold {_IMAGE_TOKEN}")
        length = len(token_ids) + self._visual_tokens(width, height) - 1
        if length > self.max_prompt_tokens:
            raise DataError(
                f"{row.where}: the prompt has {length} tokens, but rollout.max_model_len less one is "
                f"{self.max_prompt_tokens}: shorten the question, or lower model.max_pixels, or raise max_model_len"
            )
        return length

    def train_batch(self, step: int, size: int) -> list[Example]:
        """The step's mini-batch (steps count from 0): epochs are shuffled by seed, and a batch may span two."""
        rows = self.rows["train"]
        count = len(rows)
        return [
            self.example(rows[self._order(position // count)[position % count]])
            for position in range(step * size, (step + 1) * size)
        ]

    def held_out_examples(self, limit: int | None) -> list[Example]:
        """All of them, or `limit` at random: data sets are sorted, by class for instance. The same for every seed."""
        stored = self.task.config.segmenter is not None
        rows = self.rows["held_out"]
        chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:limit])
        return [self.example(rows[index], stored=stored) for index in chosen]

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.rows["train"]))

    def example(self, row: Row, *, stored: bool = False) -> Example:
        """stored: with the image at its stored size as well. Raises DataError when the image is damaged."""
        row = row.decoded()
        original = row.image
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
        """Width and height of the image as the model sees it, in pixels."""
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
            raise DataError(f"{row.where}: the model does not take an image of {width}×{height} ({error})") from error
        return new_width, new_height

    def _visual_tokens(self, width: int, height: int) -> int:
        cell = self.processor.image_processor.patch_size * self.processor.image_processor.merge_size
        return (width // cell) * (height // cell)
