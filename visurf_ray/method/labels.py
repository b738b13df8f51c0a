"""The loss of a label's token before weighting, by `label_term`. p is the token's probability, sg stops the gradient.

- `ppo`: as for a rollout (ViSurf eq. 8).
- `shaped`: -A p / (p + γ), without a bound (LUFFY, arXiv 2504.14945).
- `ce`: cross-entropy, -log p.
- `dft`: -sg(p) log p. Unlikely tokens do not dominate (Dynamic Fine-Tuning, arXiv 2508.05629, eq. 9).
- `chord`: -sg(p (1 - p)) log p. Tokens that the policy is sure of, either way, count less (CHORD-φ, arXiv 2508.11408).
- `srft`: shaped - 0.5 sg(exp(-H)) log p, H being the entropy at the token. It also weights rollouts, see
  `rollout_factors` (SRFT, arXiv 2506.19767, §4).

SRFT's paper does not say over what H is averaged; it is each token's own here, as in the authors' code. Their code has
exp(+H) where the paper argues for exp(-H); this follows the paper. Both take over LUFFY's term for the advantage of the
label.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from visurf_ray.config.choices import LabelTerm
from visurf_ray.method.loss import LossConfig, TokenValues

_SRFT_LABEL, _SRFT_ROLLOUT = 0.5, 0.1  # factors of the entropy weights, SRFT §4


def label_losses(tokens: TokenValues, surrogate_T: Float[Tensor, " T"], config: LossConfig) -> Float[Tensor, " T"]:
    """Return the losses with those of label tokens in place of theirs.

    Args:
        surrogate_T: the policy loss of each token, see `surrogate`.
    """
    if config.label_term == LabelTerm.ppo:
        return surrogate_T
    return torch.where(tokens.is_label_T, _LOSSES[config.label_term](tokens, config), surrogate_T)


def rollout_factors(tokens: TokenValues, config: LossConfig) -> Float[Tensor, " T"] | None:
    """Return factors of the tokens' policy loss: 0.1 exp(H) for rollouts with A > 0, if label_term=srft; else None."""
    if config.label_term != LabelTerm.srft:
        return None
    weighted = ~tokens.is_label_T & (tokens.advantage_T > 0)
    return torch.where(weighted, _SRFT_ROLLOUT * tokens.entropy_T.detach().exp(), 1.0)


def _shaped(tokens: TokenValues, config: LossConfig) -> Tensor:
    # p / (p + γ) as a sigmoid, so that a p that underflows still has its gradient.
    return -tokens.advantage_T * torch.sigmoid(tokens.logprob_T - math.log(config.shaping))


def _ce(tokens: TokenValues, config: LossConfig) -> Tensor:
    return -tokens.logprob_T


def _dft(tokens: TokenValues, config: LossConfig) -> Tensor:
    return -tokens.logprob_T.detach().exp() * tokens.logprob_T


def _chord(tokens: TokenValues, config: LossConfig) -> Tensor:
    p = tokens.logprob_T.detach().exp()
    return -p * (1.0 - p) * tokens.logprob_T


def _srft(tokens: TokenValues, config: LossConfig) -> Tensor:
    weight = _SRFT_LABEL * torch.exp(-tokens.entropy_T.detach())
    return _shaped(tokens, config) - weight * tokens.logprob_T


_LOSSES: dict[LabelTerm, Callable[[TokenValues, LossConfig], Tensor]] = {
    LabelTerm.shaped: _shaped,
    LabelTerm.ce: _ce,
    LabelTerm.dft: _dft,
    LabelTerm.chord: _chord,
    LabelTerm.srft: _srft,
}
