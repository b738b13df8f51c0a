"""The combined objective (ViSurf eq. 8) over the tokens of any number of groups.

Each token carries a weight, so that the loss is one weighted sum, whatever part of the batch is at hand: partitioning
the groups over ranks, micro-batches or packing rows changes neither the loss nor its gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from visurf_ray.groups import Group

LabelTerm = Literal["ppo", "ce"]


@dataclass(frozen=True)
class LossConfig:
    """What the learner needs to know about the method.

    clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]. label_term: `ppo`, label tokens enter
    like rollout tokens (eq. 8); `ce`, they enter by their plain cross-entropy. importance_cap: rollout tokens count
    min(π_old / π_sampler, cap) times, π_old being the learner's (truncated importance sampling: Yao et al. 2025,
    "Your efficient RL framework secretly brings you off-policy RL training"); None: they count once.
    Label tokens always count once.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    label_term: LabelTerm = "ppo"
    importance_cap: float | None = None


def token_weights(groups: Sequence[Group]) -> list[list[float]]:
    """The weight of each token of each response: 1 / (examples · responses of its group · tokens of its response).

    groups: all the groups of one optimiser step, over all ranks and micro-batches (eq. 8's means, nested).
    """
    return [
        [1.0 / (len(groups) * len(group.responses) * len(response.token_ids)) for response in group.responses]
        for group in groups
    ]


def token_losses(
    logprobs_T: Float[Tensor, " T"],
    old_logprobs_T: Float[Tensor, " T"],
    advantages_T: Float[Tensor, " T"],
    is_label_T: Bool[Tensor, " T"],
    sampler_logprobs_T: Float[Tensor, " T"],
    config: LossConfig,
) -> Float[Tensor, " T"]:
    """The loss of each token, before weighting: -min(ρ A, clip(ρ) A), with ρ = exp(logprob - old logprob).

    sampler_logprobs_T: NaN for label tokens.
    """
    ratio = torch.exp(logprobs_T - old_logprobs_T)
    clipped = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    losses = -torch.minimum(ratio * advantages_T, clipped * advantages_T)
    if config.label_term == "ce":
        losses = torch.where(is_label_T, -logprobs_T, losses)
    if config.importance_cap is not None:
        losses = losses * importance_weights(old_logprobs_T, is_label_T, sampler_logprobs_T, config.importance_cap)
    return losses


def importance_weights(
    old_logprobs_T: Float[Tensor, " T"],
    is_label_T: Bool[Tensor, " T"],
    sampler_logprobs_T: Float[Tensor, " T"],
    cap: float,
) -> Float[Tensor, " T"]:
    """min(π_old / π_sampler, cap) for rollout tokens, 1 for label tokens; no gradient flows through it."""
    ratio = torch.exp(old_logprobs_T.detach() - sampler_logprobs_T).clamp(max=cap)
    return torch.where(is_label_T, 1.0, ratio)


def is_clipped(
    logprobs_T: Float[Tensor, " T"],
    old_logprobs_T: Float[Tensor, " T"],
    advantages_T: Float[Tensor, " T"],
    is_label_T: Bool[Tensor, " T"],
    config: LossConfig,
) -> Bool[Tensor, " T"]:
    """Where clipping takes the token's gradient away."""
    ratio = torch.exp(logprobs_T - old_logprobs_T)
    beyond = ((advantages_T > 0) & (ratio > 1 + config.clip_high)) | (
        (advantages_T < 0) & (ratio < 1 - config.clip_low)
    )
    return beyond & ~is_label_T if config.label_term == "ce" else beyond
