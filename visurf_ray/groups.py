"""The words that all rooms share: an example, its responses, their group, and what an update reports.

Plain typed dataclasses; nothing here computes. Shape suffixes: G rollouts, G1 = G + 1 responses, T tokens.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
    image: Any
    features: Any


@dataclass(frozen=True)
class Example:
    """One image, one question, one structured ground truth `g` (JSON text), and reasoning where the data carry it."""

    id: str
    question: str
    ground_truth: str
    prompt: Prompt
    size: tuple[int, int]  # width and height of the image as the model sees it, in pixels
    thinking: str | None = None
    stored: Any = None  # like `prompt.image`, the image at its stored size; where task.segmenter needs it


@dataclass(eq=False)
class Response:
    """One response to an example, as the token ids that were sampled (or, for the label, encoded).

    `token_ids` (int32, length T) end with the end-of-turn token unless the response was cut at the length limit.
    `sampler_logprobs` holds vLLM's log-probability of each token (float32, length T); None for a label, and where it
    was not asked for (`Sampling.logprobs_every`). Both may be given as lists. Both are None where the group's `tokens`
    hold them, and then `length` is to be given, which is T.
    `reward_parts` and `reward` are after reward control: `reward` is their sum, but for a label that was smoothed;
    `advantage` is one number for all tokens.
    """

    source: Source
    text: str
    token_ids: NDArray[np.int32] | list[int] | None = None
    sampler_logprobs: NDArray[np.float32] | list[float] | None = None
    reward_parts: dict[str, float] = field(default_factory=dict)
    reward: float = 0.0
    advantage: float = 0.0
    length: int = 0

    def __post_init__(self) -> None:
        if self.token_ids is not None:
            self.token_ids = np.asarray(self.token_ids, np.int32)
            self.length = len(self.token_ids)
        if self.sampler_logprobs is not None:
            self.sampler_logprobs = np.asarray(self.sampler_logprobs, np.float32)


@dataclass(eq=False)
class Group:
    """An example and its responses: G rollouts, then the label where the method uses one.

    `tokens` is a reference into Ray's object store: the `token_ids` of all rollouts, one after the other, and their
    `sampler_logprobs` or None. They go from the sampler to the learner and never pass through the driver. None where
    the responses hold their own.
    """

    example: Example
    responses: list[Response]
    tokens: Any = None

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
    mask: dict[str, Any] | None = None  # what the answer segments of the stored image, as COCO RLE

    @staticmethod
    def of(example: Example, response: str) -> "Prediction":
        return Prediction(example.id, example.question, example.ground_truth, example.size, response)


Metrics = dict[str, float]
