"""The driver's interface to the data actor."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import ray
from PIL import Image

from visurf_ray.aliases import ActorHandle, Reference
from visurf_ray.config.schema import ModelConfig, PartConfig, TaskConfig
from visurf_ray.feed.actor import start_actor
from visurf_ray.feed.curriculum import Curriculum
from visurf_ray.feed.loader import Strictness
from visurf_ray.groups import Example, Prompt


class DataFeed:
    """Examples of a run, read and processed in an actor.

    Attributes:
        position: how many training examples have been taken or left out, a resumed run's before it included. They come
            in the order of `Mixture.train_batch`, each once, whatever the sizes of batches.
        curriculum: which rows are left out.
        left_out: how many training examples were left out since the start of this process.
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
        curriculum: int | None = None,
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
            curriculum: For how many epochs a row is left out after every rollout has solved it; None: none is.

        Raises:
            DataError: A row cannot be used. The message names the first one.
        """
        self.actor: ActorHandle = start_actor()
        self.position = 0
        self.curriculum = Curriculum(curriculum)
        self.left_out = 0
        self._solved: list[Example] = []  # of which the actor is not told yet
        self.ahead: Reference = None  # is ready when the actor has prepared the examples that are likely to be next
        opened = ray.get(
            self.actor.open.remote(parts, sets, model, seed, max_prompt_tokens, train, strictness, curriculum)
        )
        self.longest = opened.longest
        self.longest_labelled = opened.longest_labelled
        self.most_images = opened.most_images
        self.dropped = opened.dropped
        self.warning = opened.warning

    def seek(self, position: int, solved: dict[str, list[list[int]]]) -> None:
        """Continue from a position, with what `solved_state` has returned there."""
        self.position = position
        self.curriculum.restore(solved)
        self.actor.restore.remote(solved)

    def note_solved(self, examples: Sequence[Example]) -> None:
        """Leave out the rows of these examples, which every rollout has solved, for the epochs of the curriculum."""
        self.curriculum.note(examples)
        if self.curriculum.epochs:
            self._solved += [replace(example, prompt=Prompt([], []), stored=None) for example in examples]

    def solved_state(self) -> dict[str, list[list[int]]]:
        """Return what the curriculum leaves out, for a checkpoint."""
        return self.curriculum.state()

    def take(self, count: int) -> list[Example]:
        """Return the next training examples, and have the actor prepare as many after them meanwhile."""
        solved, self._solved = self._solved, []
        batch, after = ray.get(self.actor.take.remote(self.position, count, solved))
        self.left_out += after - self.position - count
        self.position = after
        self.ahead = self.actor.prepare.remote(after, count)
        return batch

    def first(self) -> Example:
        """Return a training example; the position stays."""
        return ray.get(self.actor.first.remote())

    def held_out(self, limit: int | None) -> list[Example]:
        """Return `limit` held-out examples of each part and each set, the same for every seed, or all for None."""
        return ray.get(self.actor.held_out_examples.remote(limit))

    def images(self, example: Example) -> list[Image.Image]:
        """Return the example's images as the model sees them."""
        return ray.get(list(example.prompt.images))
