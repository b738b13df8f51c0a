"""The types that all packages share: an example, its responses, their group, and a prediction.

Plain typed dataclasses. Shape suffixes here and elsewhere: G rollouts, G1 = G + 1 responses, T tokens.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from visurf_ray.aliases import Fetch, Json, Reference


class Source(StrEnum):
    """Where a response comes from."""

    ROLLOUT = "rollout"
    LABEL = "label"


class Coordinates(StrEnum):
    """The unit of coordinates: pixels of the image that the model sees, or thousandths of its width and height."""

    pixels = "pixels"
    thousandths = "thousandths"


@dataclass(frozen=True)
class Prompt:
    """An example as the model sees it.

    The driver passes references to pixels on; it fetches only the images of the responses that a run shows.

    Attributes:
        token_ids: with one placeholder for each image, as vLLM takes them.
        expanded_ids: with all that the model's processor makes of each placeholder, as the learner takes them.
        images: references to `PIL.Image`s in Ray's object store, or the images themselves outside a cluster.
        features: likewise a reference to the processor's other outputs: tensors by the names of the model's arguments.
            None for a held-out example, which no learner sees.
        stand_in: for a prompt without images: one with a small blank image. Where ranks must all use the vision tower,
            it is computed beside the prompt, with weight 0.
    """

    token_ids: list[int]
    expanded_ids: list[int]
    images: tuple[Reference, ...] = ()
    features: Reference = None
    stand_in: "Prompt | None" = None

    @property
    def image(self) -> Reference:
        """The first image, or None."""
        return self.images[0] if self.images else None


@dataclass(frozen=True)
class Example:
    """A question about an image, with its ground truth.

    Attributes:
        ground_truth: the text that rewards and metrics compare a response with; see `Task.ground_truth`.
        size: width and height of the image as the model sees it, in pixels.
        thinking: the reasoning that the data give for the answer; None where they give none.
        answered: the unit of coordinates in responses.
        compared: the unit of coordinates in the ground truth.
        part: the part of a mixture, or the held-out set, that it belongs to; empty in a run of one task.
        row: the number of its row among the training or the held-out rows of its part.
        epoch: how many times its part has drawn every row before; 0 for a held-out example.
    """

    id: str
    question: str
    ground_truth: str
    prompt: Prompt
    size: tuple[int, int]
    thinking: str | None = None
    part: str = ""
    row: int = 0
    epoch: int = 0
    answered: Coordinates = Coordinates.pixels
    compared: Coordinates = Coordinates.pixels


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids and their log-probabilities under the sampler.

    Attributes:
        ids: (T,).
        sampler_logprobs: vLLM's log-probability of each token in nats, (T,). NaN in rollouts whose log-probabilities
            were not requested (`Sampling.logprobs_every`); None if there are no others, and for a label.
    """

    ids: NDArray[np.int32]
    sampler_logprobs: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class TokenSpan:
    """The tokens `begin` to `end` (exclusive) of a store.

    Attributes:
        store: a reference to the `Tokens` of several groups' rollouts in Ray's object store, or `Tokens` themselves.
            The driver holds the reference alone: tokens go from the sampler to the learner.
    """

    store: Reference
    begin: int
    end: int

    @staticmethod
    def of(ids: Sequence[int], sampler_logprobs: Sequence[float] | None = None) -> "TokenSpan":
        """Make a span of tokens that are held in memory."""
        logprobs = None if sampler_logprobs is None else np.asarray(sampler_logprobs, np.float32)
        return TokenSpan(Tokens(np.asarray(ids, np.int32), logprobs), 0, len(ids))

    @property
    def length(self) -> int:
        return self.end - self.begin

    def resolve(self, fetch: Fetch) -> Tokens:
        """Return the tokens. Calls `fetch` for the store unless it is held in memory."""
        store = self.store if isinstance(self.store, Tokens) else fetch(self.store)
        span = slice(self.begin, self.end)
        return Tokens(store.ids[span], None if store.sampler_logprobs is None else store.sampler_logprobs[span])


@dataclass(eq=False)
class Response:
    """A response to an example: a rollout, or the label.

    Attributes:
        tokens: as sampled, or for a label as encoded. The last is the end-of-turn token, unless the response was cut at
            the length limit.
        reward_parts: the parts of the reward by name, after reward control.
        reward: the reward after reward control: the sum of the parts, unless it was smoothed.
        smoothed_from: the label's reward before smoothing; None if it was not smoothed.
        advantage: of every token.
        truncated: whether sampling stopped at the length limit.
    """

    source: Source
    text: str
    tokens: TokenSpan
    reward_parts: dict[str, float] = field(default_factory=dict)
    reward: float = 0.0
    smoothed_from: float | None = None
    advantage: float = 0.0
    truncated: bool = False

    @property
    def length(self) -> int:
        """The number of tokens."""
        return self.tokens.length


@dataclass(eq=False)
class Group:
    """An example and its responses: G rollouts, then the label if the method uses one."""

    example: Example
    responses: list[Response]

    @property
    def rollouts(self) -> list[Response]:
        return [response for response in self.responses if response.source is Source.ROLLOUT]

    @property
    def label(self) -> Response | None:
        """The label; None if the method uses none, or reward control has removed it."""
        return next((response for response in self.responses if response.source is Source.LABEL), None)


@dataclass(frozen=True)
class Prediction:
    """An answer to a held-out example: a line of predictions.jsonl, from which metrics are computed.

    Attributes:
        size: width and height of the image as the model saw it, in pixels.
        answered: the unit of coordinates in the response.
        compared: the unit of coordinates in the ground truth.
        mask: what the answer segments of the stored image, as COCO RLE; None without a segmenter.
        part: like `Example.part`.
        sample: the number of the answer, from 0, where an example has several; None if it is the only one.
    """

    id: str
    question: str
    ground_truth: str
    size: tuple[int, int]
    response: str
    mask: dict[str, Json] | None = None
    part: str = ""
    answered: Coordinates = Coordinates.pixels
    compared: Coordinates = Coordinates.pixels
    sample: int | None = None

    @staticmethod
    def of(example: Example, response: str, sample: int | None = None) -> "Prediction":
        return Prediction(
            example.id,
            example.question,
            example.ground_truth,
            example.size,
            response,
            part=example.part,
            answered=example.answered,
            compared=example.compared,
            sample=sample,
        )


Metrics = dict[str, float]
LOW, HIGH = "_low", "_high"  # endings of the names of the bounds of a metric's interval


def bounds_of(name: str, metrics: Metrics) -> tuple[float, float] | None:
    """Return the bounds of a metric's interval; None if it has none."""
    low, high = name + LOW, name + HIGH
    return (metrics[low], metrics[high]) if low in metrics and high in metrics else None


def without_bounds(metrics: Metrics) -> Metrics:
    """Return the metrics without the bounds of their intervals."""
    bounds = {name + ending for name in metrics for ending in (LOW, HIGH)}
    return {name: value for name, value in metrics.items() if name not in bounds}


Phase = Callable[[str], AbstractContextManager[object]]  # a context of a phase of the run, by its name
