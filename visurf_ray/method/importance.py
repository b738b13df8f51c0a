"""Importance weights of rollout tokens: the probability under the learner's old policy over that under the sampler."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from visurf_ray.config.choices import ImportanceLevel, OnExcess
from visurf_ray.method.loss import Importance, TokenValues

_LOG_BOUND = 20.0  # bounds ratios to exp(±20), so that products over long responses stay finite (as verl does)


def importance_ratios(tokens: TokenValues, level: ImportanceLevel) -> Float[Tensor, " T"]:
    """Return π_old / π_sampler without a gradient: of each token, or of each token's whole response.

    A response's ratio is the product over its tokens, which is what an unbiased estimate weighs the response by; so do
    verl (`rollout_is=sequence`) and TRL (`sequence_truncate`, `sequence_mask`). GSPO's geometric mean belongs to the
    ratio of the update, see `ratios`.

    Args:
        level: `sequence` for responses; otherwise tokens.

    Returns:
        NaN for tokens without the sampler's log-prob.
    """
    log_ratio = tokens.old_logprob_T.detach() - tokens.sampler_logprob_T
    if level == ImportanceLevel.sequence:
        log_ratio = tokens.response_sums(log_ratio)
    return log_ratio.clamp(-_LOG_BOUND, _LOG_BOUND).exp()


def importance_weights(tokens: TokenValues, importance: Importance) -> Float[Tensor, " T"]:
    """Return the factor of each token's loss: the ratio, clipped or masked, for rollout tokens, and 1 for label tokens.

    Masked tokens still count in the loss's denominators, which are known before any log-prob is. Sources: truncated
    importance sampling (clip): Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training". Masks: Liu et al. 2025, "When Speed Kills Stability" (sequence), and IcePop, arXiv 2510.18855 (token).
    """
    ratio = importance_ratios(tokens, importance.level)
    if importance.on_excess == OnExcess.clip:
        weight = ratio.clamp(importance.low, importance.high)
    else:
        weight = torch.where(is_excess(ratio, importance), 0.0, ratio)
    return torch.where(tokens.is_label_T, 1.0, weight)


def is_excess(ratio_T: Float[Tensor, " T"], importance: Importance) -> Bool[Tensor, " T"]:
    """Return which ratios are outside the bounds."""
    return (ratio_T < importance.low) | (ratio_T > importance.high)
