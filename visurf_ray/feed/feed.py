"""The driver's interface to the data actor."""

import ray
from PIL import Image

from visurf_ray.aliases import ActorHandle, Reference
from visurf_ray.config.schema import ModelConfig, TaskConfig
from visurf_ray.feed.actor import start_actor
from visurf_ray.groups import Example


class DataFeed:
    """Examples of a task, read and processed in an actor."""

    def __init__(self, task: TaskConfig, model: ModelConfig, *, seed: int, max_prompt_tokens: int, train: bool) -> None:
        """Start the actor, and read and check every row.

        Args:
            task: The task and its data.
            model: The model whose processor makes the examples.
            seed: Shuffles the training rows, and draws those of a drawn task.
            max_prompt_tokens: The longest prompt that is accepted, visual tokens included.
            train: Whether to read the training rows as well as the held-out ones.

        Raises:
            DataError: A row cannot be used. The message names the first one.
        """
        self.actor: ActorHandle = start_actor()
        self.ahead: Reference = None
        self.ahead_of: tuple[int, int] | None = None  # step and size of the batch that `ahead` will hold
        ray.get(self.actor.open.remote(task, model, seed, max_prompt_tokens, train))

    def train_batch(self, step: int, size: int) -> list[Example]:
        """Return the batch of a step, counted from 0, and have the actor prepare the next step's meanwhile."""
        batch = self.ahead if self.ahead_of == (step, size) else self.actor.train_batch.remote(step, size)
        self.ahead, self.ahead_of = self.actor.train_batch.remote(step + 1, size), (step + 1, size)
        return ray.get(batch)

    def held_out(self, limit: int | None) -> list[Example]:
        """Return `limit` held-out examples, the same ones for every seed, or all of them for None."""
        return ray.get(self.actor.held_out_examples.remote(limit))

    def image(self, example: Example) -> Image.Image:
        """Return the example's image as the model sees it."""
        return ray.get([example.prompt.image])[0]
