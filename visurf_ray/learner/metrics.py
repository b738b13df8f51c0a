"""What ranks report of an update, and the metrics that are logged from it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from visurf_ray.config.choices import ImportanceLevel
from visurf_ray.groups import Group, Metrics, Source
from visurf_ray.learner.mismatch import NO_MISMATCH, NO_WEIGHTS, ImportanceSums, Mismatch
from visurf_ray.learner.sums import NOTHING, Sums, Tally
from visurf_ray.method import LossConfig, TokenValues, divergences, is_clipped, ratios


@dataclass(frozen=True)
class SourceTallies(Sums):
    """Sums over the response tokens of one source; a field's name is the name of its metric.

    Attributes:
        entropy: of the distribution that each token is drawn from, in nats.
        logprob: in nats.
        ratio: probability under the policy over that under the old policy, by token or by response as in the loss.
        clip_share: 1 for a token on which a bound of the ratio acts, else 0.
        kl: divergence from the reference policy in nats; empty where the loss has no such term.
    """

    entropy: Tally = NOTHING
    logprob: Tally = NOTHING
    ratio: Tally = NOTHING
    clip_share: Tally = NOTHING
    kl: Tally = NOTHING


@dataclass(frozen=True)
class UpdateSums(Sums):
    """Sums over tokens; they add up over micro-batches, ranks and minibatches.

    Attributes:
        loss: sum of the weighted losses of the tokens.
    """

    loss: float = 0.0
    rollout: SourceTallies = SourceTallies()
    label: SourceTallies = SourceTallies()
    mismatch: Mismatch = NO_MISMATCH
    importance: ImportanceSums = NO_WEIGHTS


@torch.no_grad()
def update_sums(tokens: TokenValues, loss: Float[Tensor, ""], config: LossConfig) -> UpdateSums:
    """Return what is logged of a micro-batch, summed over its response tokens.

    Args:
        loss: the weighted sum of the tokens' losses.
    """
    values_T = {
        "entropy": tokens.entropy_T,
        "logprob": tokens.logprob_T,
        "ratio": ratios(tokens, config.ratio),
        "clip_share": is_clipped(tokens, config).float(),
    }
    reference_T = tokens.reference_logprob_T
    kl_T = {} if reference_T is None else {"kl": divergences(tokens.logprob_T, reference_T)}

    def tallies(chosen_T: Bool[Tensor, " T"], values_T: dict[str, Tensor]) -> SourceTallies:
        return SourceTallies(**{name: Tally.of(value_T[chosen_T]) for name, value_T in values_T.items()})

    return UpdateSums(
        loss=loss.item(),
        rollout=tallies(~tokens.is_label_T, values_T | kl_T),
        label=tallies(tokens.is_label_T, values_T),
        mismatch=Mismatch.of(tokens, config.importance.level if config.importance else ImportanceLevel.token),
        importance=ImportanceSums.of(tokens, config.importance),
    )


@dataclass(frozen=True)
class StepReport:
    """What a rank reports of one optimiser step.

    Attributes:
        sums: over this rank's tokens.
        grad_norm: of the whole gradient before clipping; the same on all ranks.
        learning_rate: that the step was taken with.
        skipped: whether it was not taken, because the loss or the gradient is not finite; see `train.on_nan`.
    """

    sums: UpdateSums
    grad_norm: float
    learning_rate: float
    skipped: bool = False


def summarise(reports: Sequence[Sequence[StepReport]]) -> Metrics:
    """The metrics of an update: means over all its response tokens, without those of skipped steps.

    Args:
        reports: for each rank, for each minibatch. The loss and the gradient norm are means over minibatches.
    """
    skipped = sum(report.skipped for report in reports[0])
    if skipped:
        taken = [[report for report in rank if not report.skipped] for rank in reports]
        return {"train/skipped_steps": float(skipped)} | (summarise(taken) if taken[0] else {})
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
    return metrics | sums.mismatch.metrics() | sums.importance.metrics()


def sizes(groups: Sequence[Group], seconds: float) -> Metrics:
    """How many groups were learnt from, the mean length of rollouts, and tokens (prompts counted once) per second."""
    prompts = sum(len(group.example.prompt.expanded_ids) for group in groups)
    responses = sum(response.length for group in groups for response in group.responses)
    metrics = {"train/groups": float(len(groups)), "train/tokens_per_second": (prompts + responses) / seconds}
    if lengths := [rollout.length for group in groups for rollout in group.rollouts]:
        metrics["train/response_length"] = _mean(lengths)
    return metrics


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
