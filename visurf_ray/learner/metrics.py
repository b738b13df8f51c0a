"""From the ranks' sums to the means that are logged."""

from collections.abc import Sequence

from visurf_ray.groups import Metrics

DIFF_MAX = "rollout_logprob_diff_max"  # the one sum of `Rank.update` that is a maximum


def summarise(results: Sequence[Sequence[Metrics]]) -> Metrics:
    """Means over all response tokens of an update.

    results: for each rank, for each minibatch, the sums that `Rank.update` returns. The loss is the minibatches' mean,
    and so is the gradient norm, which all ranks know.
    """
    minibatches = len(results[0])
    totals: Metrics = {}
    for sums in (sums for rank in results for sums in rank):
        for name, value in sums.items():
            totals[name] = max(totals.get(name, 0.0), value) if name == DIFF_MAX else totals.get(name, 0.0) + value
    metrics = {
        "train/loss": totals["loss"] / minibatches,
        "train/grad_norm": sum(sums["grad_norm"] for sums in results[0]) / minibatches,
    }
    for source in ("rollout", "label"):
        if tokens := totals.get(f"tokens/{source}"):
            for name in ("entropy", "logprob", "ratio", "clip_share"):
                metrics[f"train/{name}/{source}"] = totals[f"{name}/{source}"] / tokens
    if "kl/rollout" in totals:
        metrics["train/kl/rollout"] = totals["kl/rollout"] / totals["tokens/rollout"]
    if DIFF_MAX in totals:
        metrics["train/rollout_logprob_diff"] = totals["rollout_logprob_diff"] / totals["tokens/compared"]
        metrics[f"train/{DIFF_MAX}"] = totals[DIFF_MAX]
    return metrics
