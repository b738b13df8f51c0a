"""The words that all rooms share: an example, its responses, their group, and what an update reports.

Plain typed dataclasses; nothing here computes. Shape suffixes: G rollouts, G1 = G + 1 responses, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from visurf_ray.aliases import Fetch, Json, Reference


class Source(StrEnum):
    """Where a response comes from."""

    ROLLOUT = "rollout"
    LABEL = "label"


@dataclass(frozen=True)
class Prompt:
    """An example as the model sees it.

    `token_ids` carry one placeholder for the image, as vLLM takes them; `expanded_ids` carry one per merged visual
    token, as the learner takes them. `image` and `features` are references into Ray's object store (or the objects
    themselves, outside a cluster): a `PIL.Image` and the image processor's `pixel_values` and `image_grid_thw`. Pixels
    never pass through the driver.
    """

    token_ids: list[int]
    expanded_ids: list[int]
    image: Reference
    features: Reference


@dataclass(frozen=True)
class Example:
    """One image, one question, one structured ground truth `g` (JSON text), and reasoning where the data carry it."""

    id: str
    question: str
    ground_truth: str
    prompt: Prompt
    size: tuple[int, int]  # width and height of the image as the model sees it, in pixels
    thinking: str | None = None
    stored: Reference = None  # like `prompt.image`, the image at its stored size; where task.segmenter needs it


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids with the sampler's log-probabilities.

    Attributes:
        ids: (T,).
        sampler_logprobs: vLLM's log-probability of each token, (T,); None for a label, and where it was not asked for
            (`Sampling.logprobs_every`).
    """

    ids: NDArray[np.int32]
    sampler_logprobs: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class TokenSpan:
    """The tokens `begin` to `end` (exclusive) of a store.

    Attributes:
        store: a reference to the `Tokens` of all rollouts of a group in Ray's object store, or `Tokens` themselves.
            The driver holds the reference alone: tokens go from the sampler to the learner.
    """

    store: Reference
    begin: int
    end: int

    @staticmethod
    def of(ids: Sequence[int], sampler_logprobs: Sequence[float] | None = None) -> "TokenSpan":
        """A span over these tokens, held in memory."""
        logprobs = None if sampler_logprobs is None else np.asarray(sampler_logprobs, np.float32)
        return TokenSpan(Tokens(np.asarray(ids, np.int32), logprobs), 0, len(ids))

    @property
    def length(self) -> int:
        return self.end - self.begin

    def resolve(self, fetch: Fetch) -> Tokens:
        """The tokens; `fetch` is called unless the store is held in memory."""
        store = self.store if isinstance(self.store, Tokens) else fetch(self.store)
        span = slice(self.begin, self.end)
        return Tokens(store.ids[span], None if store.sampler_logprobs is None else store.sampler_logprobs[span])


@dataclass(eq=False)
class Response:
    """One response to an example, as the tokens that were sampled (or, for the label, encoded).

    Attributes:
        tokens: end with the end-of-turn token unless the response was cut at the length limit.
        reward_parts: the reward by parts, after reward control.
        reward: after reward control; the sum of the parts, unless a label's reward was smoothed.
        advantage: one number for all tokens.
    """

    source: Source
    text: str
    tokens: TokenSpan
    reward_parts: dict[str, float] = field(default_factory=dict)
    reward: float = 0.0
    advantage: float = 0.0

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return self.tokens.length


@dataclass(eq=False)
class Group:
    """An example and its responses: G rollouts, then the label where the method uses one."""

    example: Example
    responses: list[Response]

    @property
    def rollouts(self) -> list[Response]:
        return [response for response in self.responses if response.source is Source.ROLLOUT]

    @property
    def label(self) -> Response | None:
        return next((response for response in self.responses if response.source is Source.LABEL), None)


@dataclass(frozen=True)
class Prediction:
    """A greedy answer to a held-out example: a line of predictions.jsonl, and all that metrics are computed from."""

    id: str
    question: str
    ground_truth: str
    size: tuple[int, int]
    response: str
    mask: dict[str, Json] | None = None  # what the answer segments of the stored image, as COCO RLE

    @staticmethod
    def of(example: Example, response: str) -> "Prediction":
        return Prediction(example.id, example.question, example.ground_truth, example.size, response)


Metrics = dict[str, float]
