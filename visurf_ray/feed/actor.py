"""The data actor: reads a task's examples and puts their images into Ray's object store."""

import ray

from visurf_ray.aliases import ActorHandle
from visurf_ray.config.schema import ModelConfig, TaskConfig
from visurf_ray.feed.loader import open_loader
from visurf_ray.groups import Example


def start_actor() -> ActorHandle:
    """Start a data actor, which reads nothing until `open` is called."""
    return ray.remote(num_cpus=0)(DataActor).remote()


class DataActor:
    """Reads, checks and serves the examples of one task (see ExampleLoader)."""

    def open(self, task: TaskConfig, model: ModelConfig, seed: int, max_prompt_tokens: int, train: bool) -> None:
        """Read and check all rows. This is not done in the constructor, whose errors Ray reports only as a dead actor.

        For the arguments see `open_loader`. Raises DataError like it.
        """
        self.loader = open_loader(task, model, seed=seed, max_prompt_tokens=max_prompt_tokens, train=train, put=ray.put)

    def train_batch(self, step: int, size: int) -> list[Example]:
        """Return a step's batch (see ExampleLoader.train_batch)."""
        return self.loader.train_batch(step, size)

    def held_out_examples(self, limit: int | None) -> list[Example]:
        """Return held-out examples (see ExampleLoader.held_out_examples)."""
        return self.loader.held_out_examples(limit)
