"""The combined objective (ViSurf eq. 8) over the tokens of any number of groups.

Each token carries a weight, so that the loss is one weighted sum, whatever part of the batch is at hand: partitioning
the groups over ranks, micro-batches or packing rows changes neither the loss nor its gradient.
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
    """What the learner needs to know about the method.

    clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]; unequal ones are DAPO's clip-higher
    (arXiv 2503.14476). dual_clip: c > 1 bounds the loss of a token with A < 0 by -c A (Ye et al. 2020, arXiv
    1912.09729); None: unbounded.
    aggregation: `sequence`, the mean over examples of the mean over responses of the mean over tokens (eq. 8);
    `token`, one mean over all tokens (DAPO); `constant`, sums of tokens over `longest`, the longest response that there
    can be, instead of their means (Dr.GRPO, arXiv 2503.20783).
    label_term: `ppo`, label tokens enter like rollout tokens (eq. 8); `shaped`, by -A p / (p + shaping) with p their
    probability, unclipped (LUFFY, arXiv 2504.14945); `ce`, by their plain cross-entropy, with a denominator of their
    own: rollouts and labels are then two losses. label_scale: factor of the label tokens' loss.
    importance_cap: the loss of rollout tokens counts min(π_old / π_sampler, cap) times, π_old being the learner's
    (truncated importance sampling: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"); None: it counts once. That of label tokens always counts once.
    entropy_coef: this times the entropy of rollout tokens is taken off that loss. kl_coef: this times the divergence
    of rollout tokens from a reference policy is added to it (k3: Schulman 2020, "Approximating KL divergence").
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
    """The weight of each token of each response, by `config.aggregation`.

    groups: all the groups of one optimiser step, over all ranks and micro-batches: denominators are global.
    """
    two_losses = config.label_term is LabelTerm.ce

    def together(response: Response) -> Source | None:
        return response.source if two_losses else None

    counts = [Counter(map(together, group.responses)) for group in groups]
    groups_of = Counter(own for count in counts for own in count)
    tokens_of: Counter[Source | None] = Counter()
    for group in groups:
        for response in group.responses:
            tokens_of[together(response)] += response.length

    def weight(responses_of: Counter[Source | None], response: Response) -> float:
        own = together(response)
        scale = config.label_scale if response.source is Source.LABEL else 1.0
        if config.aggregation is Aggregation.token:
            return scale / tokens_of[own]
        length = response.length if config.aggregation is Aggregation.sequence else config.longest
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
    """The loss of each token, before weighting: -min(ρ A, clip(ρ) A), with ρ = exp(logprob - old logprob).

    entropies_T: of what each token is drawn from, in nats. sampler_logprobs_T: NaN for label tokens.
    reference_logprobs_T: wanted for rollout tokens where `config.kl_coef` is not 0.
    """
    ratio = torch.exp(logprobs_T - old_logprobs_T)
    clipped = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    losses = -torch.minimum(ratio * advantages_T, clipped * advantages_T)
    if config.dual_clip is not None:
        bound = torch.where(advantages_T < 0, -config.dual_clip * advantages_T, torch.inf)
        losses = torch.minimum(losses, bound)
    if config.label_term is LabelTerm.ce:
        losses = torch.where(is_label_T, -logprobs_T, losses)
    elif config.label_term is LabelTerm.shaped:
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
    """The k3 estimate of KL(π || reference) at each sampled token, in nats: q/p - 1 - log(q/p), never negative."""
    difference = reference_logprobs_T - logprobs_T
    return torch.expm1(difference) - difference


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
    if config.dual_clip is not None:
        beyond |= (advantages_T < 0) & (ratio > config.dual_clip)
    return beyond if config.label_term is LabelTerm.ppo else beyond & ~is_label_T
