"""The Ray actor that reads the data: examples leave it once, images as references into the object store."""

import ray

from visurf_ray.config.schema import ModelConfig, TaskConfig
from visurf_ray.feed.loader import open_loader
from visurf_ray.groups import Example


@ray.remote(num_cpus=0)
class DataActor:
    """Reads, checks and serves one task's examples. See ExampleLoader."""

    def open(self, task: TaskConfig, model: ModelConfig, seed: int, max_prompt_tokens: int, train: bool) -> None:
        """Read and check everything. Not the constructor: what that raises reaches nobody but as a dead actor."""
        self.loader = open_loader(task, model, seed=seed, max_prompt_tokens=max_prompt_tokens, train=train, put=ray.put)

    def train_batch(self, step: int, size: int) -> list[Example]:
        return self.loader.train_batch(step, size)

    def held_out_examples(self, limit: int | None) -> list[Example]:
        return self.loader.held_out_examples(limit)
