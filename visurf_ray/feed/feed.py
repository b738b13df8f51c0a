"""The public face of the data actor."""

from typing import Any

import ray
from PIL import Image

from visurf_ray.config.schema import ModelConfig, TaskConfig
from visurf_ray.feed.actor import DataActor
from visurf_ray.groups import Example


class DataFeed:
    """Examples of a task, read and processed in an actor of their own."""

    def __init__(self, task: TaskConfig, model: ModelConfig, *, seed: int, max_prompt_tokens: int, train: bool) -> None:
        """Every row is checked first, the training split's if `train`.

        Raises DataError that names the first one that cannot be used.
        """
        self.actor: Any = DataActor.remote()  # type: ignore[attr-defined]
        self.ahead: Any = None
        self.ahead_of: tuple[int, int] | None = None  # step and size of the batch that is being made
        ray.get(self.actor.open.remote(task, model, seed, max_prompt_tokens, train))

    def train_batch(self, step: int, size: int) -> list[Example]:
        """The mini-batch of a step; steps count from 0. The next step's is made while the caller goes on."""
        batch = self.ahead if self.ahead_of == (step, size) else self.actor.train_batch.remote(step, size)
        self.ahead, self.ahead_of = self.actor.train_batch.remote(step + 1, size), (step + 1, size)
        return ray.get(batch)

    def held_out(self, limit: int | None) -> list[Example]:
        return ray.get(self.actor.held_out_examples.remote(limit))

    def image(self, example: Example) -> Image.Image:
        """The example's image as the model sees it, to be shown."""
        return ray.get([example.prompt.image])[0]
