"""The policy loss of a token before weighting: the ratio to the old policy, times the advantage, within bounds."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from visurf_ray.config.choices import Clip, LabelTerm, RatioLevel
from visurf_ray.method.loss import LossConfig, TokenValues


def ratios(tokens: TokenValues, level: RatioLevel) -> Float[Tensor, " T"]:
    """Return the probability of each token under the policy over that under the old policy.

    By `sequence`, all tokens of a response have the value of its ratio, normalised by length: the geometric mean of the
    tokens' ratios. The gradient of each is by its own log-prob (GSPO-token, arXiv 2507.18071, eqs. 7, 13 and 14). Where
    all tokens of a response have one advantage, as here, that is GSPO's gradient.
    """
    log_ratio = tokens.logprob_T - tokens.old_logprob_T
    if level == RatioLevel.sequence:
        own = tokens.logprob_T - tokens.logprob_T.detach()  # 0, with the gradient of the token's log-prob
        log_ratio = tokens.response_means(log_ratio.detach()) + own
    return log_ratio.exp()


def surrogate(tokens: TokenValues, config: LossConfig) -> Float[Tensor, " T"]:
    """Return the policy loss of each token, with the ratio ρ and its bounds as `config` says.

    - `ppo`: -min(ρ A, clip(ρ) A); with `dual_clip` at most -c A where A < 0.
    - `cispo`: -sg(clip(ρ)) A log p. No token loses its gradient: the bound is on its weight (arXiv 2506.13585, eq. 4).
    - `sapo`: -4/τ σ(τ (ρ - 1)) A: instead of ending at a bound, the gradient fades with the distance from ρ = 1, where
      it equals that of ρ A (arXiv 2511.20347).
    """
    return _LOSSES[config.clip](ratios(tokens, config.ratio), tokens, config)


def _ppo(ratio_T: Tensor, tokens: TokenValues, config: LossConfig) -> Tensor:
    advantage_T = tokens.advantage_T
    losses = -torch.minimum(ratio_T * advantage_T, _clipped(ratio_T, config) * advantage_T)
    if config.dual_clip is None:
        return losses
    bound = torch.where(advantage_T < 0, -config.dual_clip * advantage_T, torch.inf)
    return torch.minimum(losses, bound)


def _cispo(ratio_T: Tensor, tokens: TokenValues, config: LossConfig) -> Tensor:
    return -_clipped(ratio_T, config).detach() * tokens.advantage_T * tokens.logprob_T


def _sapo(ratio_T: Tensor, tokens: TokenValues, config: LossConfig) -> Tensor:
    tau = torch.full_like(ratio_T, config.tau_negative).masked_fill_(tokens.advantage_T > 0, config.tau_positive)
    return -4.0 / tau * torch.sigmoid(tau * (ratio_T - 1.0)) * tokens.advantage_T


_LOSSES: dict[Clip, Callable[[Tensor, TokenValues, LossConfig], Tensor]] = {
    Clip.ppo: _ppo,
    Clip.cispo: _cispo,
    Clip.sapo: _sapo,
}


def _clipped(ratio_T: Tensor, config: LossConfig) -> Tensor:
    return ratio_T.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)


def is_clipped(tokens: TokenValues, config: LossConfig) -> Bool[Tensor, " T"]:
    """Return on which tokens a bound acts: with `ppo` they have no gradient from the policy loss, with `cispo` less.

    With `sapo` there are none.
    """
    ratio = ratios(tokens, config.ratio)
    above, below = ratio > 1 + config.clip_high, ratio < 1 - config.clip_low
    positive, negative = tokens.advantage_T > 0, tokens.advantage_T < 0
    if config.clip == Clip.sapo:
        return torch.zeros_like(above)
    if config.clip == Clip.cispo:
        bound = (above | below) & (positive | negative)
    else:
        bound = (positive & above) | (negative & below)
    if config.dual_clip is not None:
        bound |= negative & (ratio > config.dual_clip)
    return bound if config.label_term == LabelTerm.ppo else bound & ~tokens.is_label_T
