"""What ranks report of an update, and the metrics that are logged from it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

from jaxtyping import Float
from torch import Tensor

from visurf_ray.groups import Group, Metrics, Source
from visurf_ray.learner.balance import cost


@dataclass(frozen=True)
class _Sums:
    """Adds up field by field."""

    def __add__(self, other: Self) -> Self:
        return replace(self, **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True)
class Tally(_Sums):
    """A sum over tokens, and over how many tokens it was taken."""

    total: float = 0.0
    tokens: int = 0

    @staticmethod
    def of(values_T: Float[Tensor, " T"]) -> "Tally":
        return Tally(values_T.sum().item(), len(values_T))

    @property
    def mean(self) -> float:
        return self.total / self.tokens


@dataclass(frozen=True)
class SourceTallies(_Sums):
    """Sums over the response tokens of one source; a field's name is the name of its metric.

    Attributes:
        entropy: of the distribution that each token is drawn from, in nats.
        logprob: in nats.
        ratio: probability under the policy over that under the old policy.
        clip_share: 1 for a token whose gradient is clipped away, else 0.
        kl: divergence from the reference policy in nats; empty where the loss has no such term.
    """

    entropy: Tally = Tally()
    logprob: Tally = Tally()
    ratio: Tally = Tally()
    clip_share: Tally = Tally()
    kl: Tally = Tally()


@dataclass(frozen=True)
class SamplerDifference:
    """Absolute differences between the sampler's log-probs and the learner's, over the tokens that have both."""

    difference: Tally = Tally()
    largest: float = 0.0

    @staticmethod
    def of(old_logprobs_T: Float[Tensor, " T"], sampler_logprobs_T: Float[Tensor, " T"]) -> "SamplerDifference":
        """sampler_logprobs_T: NaN for the tokens that have none."""
        differences = (old_logprobs_T - sampler_logprobs_T)[~sampler_logprobs_T.isnan()].abs()
        return SamplerDifference(Tally.of(differences), differences.max().item()) if len(differences) else NO_DIFFERENCE

    def __add__(self, other: "SamplerDifference") -> "SamplerDifference":
        return SamplerDifference(self.difference + other.difference, max(self.largest, other.largest))


NO_DIFFERENCE = SamplerDifference()


@dataclass(frozen=True)
class UpdateSums(_Sums):
    """Sums over tokens; they add up over micro-batches, ranks and minibatches.

    Attributes:
        loss: sum of the weighted losses of the tokens.
    """

    loss: float = 0.0
    rollout: SourceTallies = SourceTallies()
    label: SourceTallies = SourceTallies()
    sampler: SamplerDifference = NO_DIFFERENCE


@dataclass(frozen=True)
class StepReport:
    """What a rank reports of one optimiser step.

    Attributes:
        sums: over this rank's tokens.
        grad_norm: of the whole gradient before clipping; the same on all ranks.
        learning_rate: that the step was taken with.
    """

    sums: UpdateSums
    grad_norm: float
    learning_rate: float


def summarise(reports: Sequence[Sequence[StepReport]]) -> Metrics:
    """The metrics of an update: means over all its response tokens.

    Args:
        reports: for each rank, for each minibatch. The loss and the gradient norm are means over minibatches.
    """
    first = reports[0]
    sums = sum((report.sums for rank in reports for report in rank), start=UpdateSums())
    metrics = {
        "train/loss": sums.loss / len(first),
        "train/grad_norm": _mean(report.grad_norm for report in first),
        "train/learning_rate": first[-1].learning_rate,
    }
    for source, tallies in ((Source.ROLLOUT, sums.rollout), (Source.LABEL, sums.label)):
        for field in fields(tallies):
            tally: Tally = getattr(tallies, field.name)
            if tally.tokens:
                metrics[f"train/{field.name}/{source}"] = tally.mean
    if sums.sampler.difference.tokens:
        metrics["train/rollout_logprob_diff"] = sums.sampler.difference.mean
        metrics["train/rollout_logprob_diff_max"] = sums.sampler.largest
    return metrics


def sizes(groups: Sequence[Group], seconds: float) -> Metrics:
    """How many groups were learnt from, the mean length of rollouts, and tokens (prompts counted once) per second."""
    metrics = {"train/groups": float(len(groups)), "train/tokens_per_second": sum(map(cost, groups)) / seconds}
    if lengths := [rollout.length for group in groups for rollout in group.rollouts]:
        metrics["train/response_length"] = _mean(lengths)
    return metrics


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
