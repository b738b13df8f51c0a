"""The combined objective (ViSurf eq. 8) over the tokens of any number of groups.

The loss is a weighted sum over tokens, with weights that depend on the whole batch. So partitioning the groups over
ranks, micro-batches or packed rows changes neither the loss nor its gradient.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from visurf_ray.config.choices import Aggregation
from visurf_ray.groups import Group, Response, Source
from visurf_ray.method.importance import importance_weights
from visurf_ray.method.labels import label_losses, rollout_factors
from visurf_ray.method.loss import LossConfig, TokenValues
from visurf_ray.method.surrogate import surrogate


def token_weights(groups: Sequence[Group], config: LossConfig) -> list[list[float]]:
    """Return, for each response of each group, the weight of each of its tokens.

    Args:
        groups: all groups of one optimiser step, over all ranks and micro-batches: the denominators are global.
    """

    def loss_of(response: Response) -> Source | None:
        return response.source if config.labels_apart else None

    counts = [Counter(map(loss_of, group.responses)) for group in groups]
    groups_of = Counter(own for count in counts for own in count)
    tokens_of: Counter[Source | None] = Counter()
    for group in groups:
        for response in group.responses:
            tokens_of[loss_of(response)] += response.length

    def weight(responses_of: Counter[Source | None], response: Response) -> float:
        own = loss_of(response)
        scale = config.label_scale if response.source is Source.LABEL else config.rollout_scale
        if config.aggregation == Aggregation.token:
            return scale / tokens_of[own]
        length = response.length if config.aggregation == Aggregation.sequence else config.longest
        return scale / (groups_of[own] * responses_of[own] * length)

    return [
        [weight(count, response) for response in group.responses] for group, count in zip(groups, counts, strict=True)
    ]


def token_losses(tokens: TokenValues, config: LossConfig) -> Float[Tensor, " T"]:
    """Return the loss of each token before weighting.

    Args:
        tokens: with the sampler's log-prob of each rollout token if `config.importance` is set, and with that of the
            reference policy if `config.kl_coef` is not 0 and there are rollouts.
    """
    losses = surrogate(tokens, config)
    if (factor_T := rollout_factors(tokens, config)) is not None:
        losses = factor_T * losses
    losses = label_losses(tokens, losses, config)
    if config.importance is not None:
        losses = losses * importance_weights(tokens, config.importance)
    if config.entropy_coef:
        losses = losses - config.entropy_coef * torch.where(tokens.is_label_T, 0.0, tokens.entropy_T)
    if config.kl_coef and not tokens.is_label_T.all():
        assert tokens.reference_logprob_T is not None
        kl_T = divergences(tokens.logprob_T, tokens.reference_logprob_T)
        losses = losses + config.kl_coef * torch.where(tokens.is_label_T, 0.0, kl_T)
    return losses


def scaled(loss: Float[Tensor, ""], factor: float) -> Float[Tensor, ""]:
    """Return the loss times a factor. If the loss is not finite its gradient is NaN, even where it would be finite."""
    return loss * (factor + 0 * loss.detach())


def divergences(logprobs_T: Float[Tensor, " T"], reference_logprobs_T: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """Return the k3 estimate of KL(π || reference) at each token, in nats: q/p - 1 - log(q/p), never negative.

    The tokens must be drawn from π.
    """
    difference = reference_logprobs_T - logprobs_T
    return torch.expm1(difference) - difference
