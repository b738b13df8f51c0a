"""What the objective is computed from: the settings of a loss, and the values of response tokens."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from visurf_ray.config.choices import Aggregation, Clip, ImportanceLevel, LabelTerm, OnExcess, RatioLevel
from visurf_ray.config.schema import PipelineConfig


@dataclass(frozen=True)
class Importance:
    """Weights of rollout tokens for the difference between sampler and learner; see `importance_weights`.

    Attributes:
        level: `token` weights each token by its own ratio of probabilities; `sequence` weights all tokens of a response
            by the product of their ratios.
        low: lower bound of the weights.
        high: upper bound of the weights.
        on_excess: what weights outside [low, high] become. `clip`: the nearer bound. `mask`: 0.
    """

    level: ImportanceLevel
    low: float
    high: float
    on_excess: OnExcess

    @staticmethod
    def of(config: PipelineConfig) -> "Importance | None":
        """Return the weights that the configuration asks for; None if it asks for none."""
        if config.importance == ImportanceLevel.off:
            return None
        return Importance(config.importance, config.importance_low, config.importance_high, config.on_excess)


@dataclass(frozen=True)
class LossConfig:
    """The loss of an update: all that the learner knows about the method.

    Attributes:
        ratio: of probabilities under the policy and the old policy, by `token`, or by `sequence` (GSPO); see `ratios`.
        clip: what bounds the ratio: `ppo`, `cispo` or `sapo`; see `surrogate`.
        clip_low: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        clip_high: DAPO's clip-higher where it is greater than `clip_low` (arXiv 2503.14476).
        dual_clip: c > 1 bounds the loss of a token with A < 0 by -c A (Ye et al. 2020, arXiv 1912.09729); None does not
            bound it. For clip=ppo alone.
        tau_positive: SAPO's temperature for tokens with A > 0.
        tau_negative: SAPO's temperature for the others.
        aggregation: `sequence` is the mean over examples of the mean over responses of the mean over tokens (eq. 8).
            `token` is one mean over all tokens (DAPO). `constant` divides a response's sum over tokens by `longest`
            instead of its own length (Dr.GRPO, arXiv 2503.20783).
        longest: the longest response that can be sampled, in tokens.
        label_term: the loss of label tokens; see `labels`.
        labels_apart: whether rollouts and labels are two losses, each averaged over its own groups and tokens, or one.
        label_scale: factor of the label tokens' loss.
        rollout_scale: factor of the rollout tokens' loss.
        shaping: γ of label_term=shaped and srft.
        entropy_coef: this times the entropy is subtracted from the loss of rollout tokens.
        kl_coef: this times the divergence from a reference policy is added to the loss of rollout tokens (k3: Schulman
            2020, "Approximating KL divergence").
        importance: weights of rollout tokens for the difference between sampler and learner; None weights none.
    """

    ratio: RatioLevel = RatioLevel.token
    clip: Clip = Clip.ppo
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    tau_positive: float = 1.0
    tau_negative: float = 1.05
    aggregation: Aggregation = Aggregation.sequence
    longest: int = 1
    label_term: LabelTerm = LabelTerm.ppo
    labels_apart: bool = False
    label_scale: float = 1.0
    rollout_scale: float = 1.0
    shaping: float = 0.1
    entropy_coef: float = 0.0
    kl_coef: float = 0.0
    importance: Importance | None = None


@dataclass(frozen=True)
class TokenValues:
    """The T response tokens of a micro-batch, which holds every response whole.

    Attributes:
        logprob_T: under the policy, in nats; with a gradient.
        old_logprob_T: under the policy before the update.
        is_label_T: whether the token belongs to a label.
        sampler_logprob_T: under the sampler; NaN for labels, and for rollouts where it was not requested.
        entropy_T: of the distribution that the token is drawn from, in nats.
        response_T: the number of the token's response in the micro-batch, from 0, never decreasing.
        reference_logprob_T: under the reference policy; None where the loss has no such term.
    """

    logprob_T: Float[Tensor, " T"]
    old_logprob_T: Float[Tensor, " T"]
    advantage_T: Float[Tensor, " T"]
    is_label_T: Bool[Tensor, " T"]
    sampler_logprob_T: Float[Tensor, " T"]
    entropy_T: Float[Tensor, " T"]
    response_T: Int[Tensor, " T"]
    reference_logprob_T: Float[Tensor, " T"] | None = None

    def response_sums(self, value_T: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
        """Return, for each token, the sum of the values of its response's tokens."""
        sums = torch.zeros_like(value_T).index_add_(0, self.response_T, value_T)  # as many places as tokens: no sync
        return sums[self.response_T]

    def response_means(self, value_T: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
        """Return, for each token, the mean of the values of its response's tokens."""
        return self.response_sums(value_T) / self.response_sums(torch.ones_like(value_T))
