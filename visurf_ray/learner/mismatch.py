"""How far the sampler's policy is from the learner's: what ranks add up over tokens, and the metrics of it."""

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from visurf_ray.config.choices import ImportanceLevel
from visurf_ray.groups import Metrics
from visurf_ray.learner.sums import NOTHING, Sums, Tally
from visurf_ray.method import Importance, TokenValues, divergences, importance_ratios, importance_weights, is_excess

FAR = 0.1  # nats; the share of tokens that differ by more is logged
_EDGES = np.logspace(-8, 2, 1001)  # upper edges of the histogram's bins: each is 2.3 % above the one before


@dataclass(frozen=True)
class Weights(Sums):
    """Sums over importance weights w.

    Attributes:
        total: Σ w.
        squares: Σ w².
        count: how many there are.
    """

    total: float = 0.0
    squares: float = 0.0
    count: int = 0

    @staticmethod
    def of(weights: Tensor) -> "Weights":
        weights = weights.double()
        return Weights(weights.sum().item(), weights.square().sum().item(), len(weights))

    @property
    def effective(self) -> float:
        """The effective sample size as a share of the number of weights, (Σ w)² / (n Σ w²) (Kish 1965): 1 if equal."""
        return self.total**2 / (self.count * self.squares) if self.squares else 0.0


@dataclass(frozen=True)
class Mismatch(Sums):
    """Sums over the tokens that have the log-probs of both the sampler and the learner's old policy.

    Attributes:
        difference: absolute differences of the log-probs in nats, |Δ|.
        far: 1 for a token with |Δ| > FAR, else 0.
        kl: k3 estimates of the divergence of the sampler from the learner in nats.
        ratios: importance ratios, neither clipped nor masked: of tokens, or of responses if the loss weighs responses.
        histogram: how many |Δ| are in each bin of `_EDGES`, those above the last edge after it.
        largest: the largest |Δ|.
    """

    difference: Tally = NOTHING
    far: Tally = NOTHING
    kl: Tally = NOTHING
    ratios: Weights = Weights()
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(_EDGES) + 1, np.int64))
    largest: float = 0.0

    @staticmethod
    def of(tokens: TokenValues, level: ImportanceLevel = ImportanceLevel.token) -> "Mismatch":
        """Return the sums over a micro-batch.

        Args:
            level: of the importance ratios.
        """
        both_T = ~tokens.sampler_logprob_T.isnan()
        old, sampler = tokens.old_logprob_T[both_T], tokens.sampler_logprob_T[both_T]
        if not len(old):
            return NO_MISMATCH
        differences = (old - sampler).abs()
        bins = np.searchsorted(_EDGES, differences.double().cpu().numpy())
        return Mismatch(
            difference=Tally.of(differences),
            far=Tally.of((differences > FAR).float()),
            kl=Tally.of(divergences(sampler, old)),
            ratios=Weights.of(importance_ratios(tokens, level)[both_T & _one_each(tokens, level)]),
            histogram=np.bincount(bins, minlength=len(_EDGES) + 1),
            largest=differences.max().item(),
        )

    def __add__(self, other: Self) -> Self:
        return replace(super().__add__(other), largest=max(self.largest, other.largest))

    def quantile(self, share: float) -> float:
        """Return the |Δ| that `share` of the tokens do not exceed.

        It is read off a histogram of fixed bins, so that ranks report sums: at most 2.3 % too large, and 1e-8 at least
        unless all differences are smaller.
        """
        cumulative = np.cumsum(self.histogram)
        index = int(np.searchsorted(cumulative, share * cumulative[-1]))
        return min(float(_EDGES[index]), self.largest) if index < len(_EDGES) else self.largest

    def metrics(self) -> Metrics:
        """Return what is logged; nothing if no token was compared."""
        if not self.difference.tokens:
            return {}
        return {
            "train/rollout_logprob_diff": self.difference.mean,
            "train/rollout_logprob_diff_p99": self.quantile(0.99),
            "train/rollout_logprob_diff_max": self.largest,
            f"train/rollout_logprob_diff_over_{FAR:g}": self.far.mean,
            "train/rollout_kl": self.kl.mean,
            "train/rollout_ess": self.ratios.effective,
        }


@dataclass(frozen=True)
class ImportanceSums(Sums):
    """Sums over the importance weights of rollout tokens, or of rollouts; empty where the loss has none.

    Attributes:
        weight: as applied, 0 where masked.
        excess: 1 for a weight that was masked or clipped, else 0.
    """

    weight: Tally = NOTHING
    excess: Tally = NOTHING

    @staticmethod
    def of(tokens: TokenValues, importance: Importance | None) -> "ImportanceSums":
        if importance is None:
            return NO_WEIGHTS
        chosen_T = ~tokens.is_label_T & _one_each(tokens, importance.level)
        ratio_T = importance_ratios(tokens, importance.level)
        return ImportanceSums(
            weight=Tally.of(importance_weights(tokens, importance)[chosen_T]),
            excess=Tally.of(is_excess(ratio_T, importance)[chosen_T].float()),
        )

    def metrics(self) -> Metrics:
        """Return what is logged; nothing without weights."""
        if not self.weight.tokens:
            return {}
        return {"train/importance_weight": self.weight.mean, "train/importance_excess": self.excess.mean}


NO_MISMATCH, NO_WEIGHTS = Mismatch(), ImportanceSums()


def _one_each(tokens: TokenValues, level: ImportanceLevel) -> Bool[Tensor, " T"]:
    """Return which tokens stand for one weight each: all, or the first of each response."""
    response_T = tokens.response_T
    first_T = torch.ones_like(response_T, dtype=torch.bool)
    if level == ImportanceLevel.sequence:
        first_T[1:] = response_T[1:] != response_T[:-1]
    return first_T
