"""The driver's interface to the data actor."""

from collections.abc import Mapping

import ray
from PIL import Image

from visurf_ray.aliases import ActorHandle, Reference
from visurf_ray.config.schema import ModelConfig, PartConfig, TaskConfig
from visurf_ray.feed.actor import start_actor
from visurf_ray.feed.loader import Strictness
from visurf_ray.groups import Example


class DataFeed:
    """Examples of a run, read and processed in an actor.

    Attributes:
        position: how many training examples have been taken, a resumed run's before it included. They come in the
            order of `Mixture.train_batch`, each once, whatever the sizes of batches.
        longest: the tokens of the longest training prompt; 0 without training rows.
        most_images: the most images of a prompt.
        longest_labelled: the most tokens that a training prompt and its label have together; likewise.
        dropped: the rows that are left out.
        warning: of training labels that are longer than any response can be; None without any.
    """

    def __init__(
        self,
        parts: Mapping[str, PartConfig],
        sets: Mapping[str, TaskConfig],
        model: ModelConfig,
        *,
        seed: int,
        max_prompt_tokens: int,
        train: bool,
        strictness: Strictness,
    ) -> None:
        """Start the actor, and read and check every row.

        Args:
            parts: The tasks that the run trains on, and their data.
            sets: The tasks of further held-out sets, and their data.
            model: The model whose processor makes the examples.
            seed: Draws the part of each training example, shuffles the training rows, and draws those of a drawn task.
            max_prompt_tokens: The longest prompt that is accepted, visual tokens included.
            train: Whether to read the training rows as well as the held-out ones.
            strictness: Which rows are refused, and which are left out.

        Raises:
            DataError: A row cannot be used. The message names the first one.
        """
        self.actor: ActorHandle = start_actor()
        self.position = 0
        self.ahead: Reference = None  # is ready when the actor has prepared the examples that are likely to be next
        opened = ray.get(self.actor.open.remote(parts, sets, model, seed, max_prompt_tokens, train, strictness))
        self.longest = opened.longest
        self.longest_labelled = opened.longest_labelled
        self.most_images = opened.most_images
        self.dropped = opened.dropped
        self.warning = opened.warning

    def seek(self, position: int) -> None:
        """Continue from a position."""
        self.position = position

    def take(self, count: int) -> list[Example]:
        """Return the next training examples, and have the actor prepare as many after them meanwhile."""
        batch = self.actor.take.remote(self.position, count)
        self.position += count
        self.ahead = self.actor.prepare.remote(self.position, count)
        return ray.get(batch)

    def first(self) -> Example:
        """Return a training example; the position stays."""
        return ray.get(self.actor.first.remote())

    def held_out(self, limit: int | None) -> list[Example]:
        """Return `limit` held-out examples of each part and each set, the same for every seed, or all for None."""
        return ray.get(self.actor.held_out_examples.remote(limit))

    def images(self, example: Example) -> list[Image.Image]:
        """Return the example's images as the model sees them."""
        return ray.get(list(example.prompt.images))
