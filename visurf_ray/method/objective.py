"""The combined objective (ViSurf eq. 8) over the tokens of any number of groups.

The loss is a weighted sum over tokens, with weights that depend on the whole batch. So partitioning the groups over
ranks, micro-batches or packed rows changes neither the loss nor its gradient.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from visurf_ray.config.schema import Aggregation, LabelTerm
from visurf_ray.groups import Group, Response, Source


@dataclass(frozen=True)
class LossConfig:
    """The loss of an update: all that the learner knows about the method.

    Attributes:
        clip_low: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        clip_high: DAPO's clip-higher where it is greater than `clip_low` (arXiv 2503.14476).
        dual_clip: c > 1 bounds the loss of a token with A < 0 by -c A (Ye et al. 2020, arXiv 1912.09729); None does not
            bound it.
        aggregation: `sequence` is the mean over examples of the mean over responses of the mean over tokens (eq. 8).
            `token` is one mean over all tokens (DAPO). `constant` divides a response's sum over tokens by `longest`
            instead of its own length (Dr.GRPO, arXiv 2503.20783).
        longest: the longest response that can be sampled, in tokens.
        label_term: `ppo` treats label tokens like rollout tokens (eq. 8). `shaped` gives them the loss
            -A p / (p + shaping), p being their probability, without clipping (LUFFY, arXiv 2504.14945). `ce` gives them
            their cross-entropy, averaged over labels alone: rollouts and labels are then two losses.
        label_scale: factor of the label tokens' loss.
        shaping: see `label_term`.
        entropy_coef: this times the entropy is subtracted from the loss of rollout tokens.
        kl_coef: this times the divergence from a reference policy is added to the loss of rollout tokens (k3: Schulman
            2020, "Approximating KL divergence").
        importance_cap: the loss of rollout tokens is multiplied by min(π_old / π_sampler, importance_cap), π_old being
            the learner's old policy (truncated importance sampling: Yao et al. 2025, "Your efficient RL framework
            secretly brings you off-policy RL training"); None does not multiply it.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    aggregation: Aggregation = Aggregation.sequence
    longest: int = 1
    label_term: LabelTerm = LabelTerm.ppo
    label_scale: float = 1.0
    shaping: float = 0.1
    entropy_coef: float = 0.0
    kl_coef: float = 0.0
    importance_cap: float | None = None


def token_weights(groups: Sequence[Group], config: LossConfig) -> list[list[float]]:
    """Return, for each response of each group, the weight of each of its tokens.

    Args:
        groups: all groups of one optimiser step, over all ranks and micro-batches: the denominators are global.
    """
    two_losses = config.label_term == LabelTerm.ce

    def loss_of(response: Response) -> Source | None:
        return response.source if two_losses else None

    counts = [Counter(map(loss_of, group.responses)) for group in groups]
    groups_of = Counter(own for count in counts for own in count)
    tokens_of: Counter[Source | None] = Counter()
    for group in groups:
        for response in group.responses:
            tokens_of[loss_of(response)] += response.length

    def weight(responses_of: Counter[Source | None], response: Response) -> float:
        own = loss_of(response)
        scale = config.label_scale if response.source is Source.LABEL else 1.0
        if config.aggregation == Aggregation.token:
            return scale / tokens_of[own]
        length = response.length if config.aggregation == Aggregation.sequence else config.longest
        return scale / (groups_of[own] * responses_of[own] * length)

    return [
        [weight(count, response) for response in group.responses] for group, count in zip(groups, counts, strict=True)
    ]


def token_losses(
    logprobs_T: Float[Tensor, " T"],
    old_logprobs_T: Float[Tensor, " T"],
    advantages_T: Float[Tensor, " T"],
    is_label_T: Bool[Tensor, " T"],
    sampler_logprobs_T: Float[Tensor, " T"],
    entropies_T: Float[Tensor, " T"],
    reference_logprobs_T: Float[Tensor, " T"] | None,
    config: LossConfig,
) -> Float[Tensor, " T"]:
    """Return the loss of each token before weighting: -min(ρ A, clip(ρ) A), with ρ = exp(logprob - old logprob).

    Args:
        sampler_logprobs_T: needed for rollout tokens if `config.importance_cap` is set; NaN for tokens without any.
        entropies_T: entropy of the distribution that each token is drawn from, in nats.
        reference_logprobs_T: needed for rollout tokens if `config.kl_coef` is not 0.
    """
    ratio = torch.exp(logprobs_T - old_logprobs_T)
    clipped = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    losses = -torch.minimum(ratio * advantages_T, clipped * advantages_T)
    if config.dual_clip is not None:
        bound = torch.where(advantages_T < 0, -config.dual_clip * advantages_T, torch.inf)
        losses = torch.minimum(losses, bound)
    if config.label_term == LabelTerm.ce:
        losses = torch.where(is_label_T, -logprobs_T, losses)
    elif config.label_term == LabelTerm.shaped:
        # p / (p + γ) as a sigmoid, so that a p that underflows still has its gradient.
        shaped = torch.sigmoid(logprobs_T - math.log(config.shaping))
        losses = torch.where(is_label_T, -advantages_T * shaped, losses)
    if config.importance_cap is not None:
        losses = losses * importance_weights(old_logprobs_T, is_label_T, sampler_logprobs_T, config.importance_cap)
    if config.entropy_coef:
        losses = losses - config.entropy_coef * torch.where(is_label_T, 0.0, entropies_T)
    if config.kl_coef and not is_label_T.all():
        assert reference_logprobs_T is not None
        losses = losses + config.kl_coef * torch.where(is_label_T, 0.0, divergences(logprobs_T, reference_logprobs_T))
    return losses


def divergences(logprobs_T: Float[Tensor, " T"], reference_logprobs_T: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """Return the k3 estimate of KL(π || reference) at each token, in nats: q/p - 1 - log(q/p), never negative."""
    difference = reference_logprobs_T - logprobs_T
    return torch.expm1(difference) - difference


def importance_weights(
    old_logprobs_T: Float[Tensor, " T"],
    is_label_T: Bool[Tensor, " T"],
    sampler_logprobs_T: Float[Tensor, " T"],
    cap: float,
) -> Float[Tensor, " T"]:
    """Return min(π_old / π_sampler, cap) for rollout tokens and 1 for label tokens, without a gradient."""
    ratio = torch.exp(old_logprobs_T.detach() - sampler_logprobs_T).clamp(max=cap)
    return torch.where(is_label_T, 1.0, ratio)


def is_clipped(
    logprobs_T: Float[Tensor, " T"],
    old_logprobs_T: Float[Tensor, " T"],
    advantages_T: Float[Tensor, " T"],
    is_label_T: Bool[Tensor, " T"],
    config: LossConfig,
) -> Bool[Tensor, " T"]:
    """Return which tokens have no gradient from the policy loss because of clipping."""
    ratio = torch.exp(logprobs_T - old_logprobs_T)
    beyond = ((advantages_T > 0) & (ratio > 1 + config.clip_high)) | (
        (advantages_T < 0) & (ratio < 1 - config.clip_low)
    )
    if config.dual_clip is not None:
        beyond |= (advantages_T < 0) & (ratio > config.dual_clip)
    return beyond if config.label_term == LabelTerm.ppo else beyond & ~is_label_T
