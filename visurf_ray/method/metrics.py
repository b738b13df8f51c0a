"""What is logged of a step's groups."""

from collections.abc import Sequence

from visurf_ray.groups import Group, Metrics, Source
from visurf_ray.method.control import label_is_active


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def truncation_metrics(groups: Sequence[Group]) -> Metrics:
    """Return the share of rollouts that were cut at the length limit."""
    truncated = [float(rollout.truncated) for group in groups for rollout in group.rollouts]
    return {"train/truncated_share": mean(truncated)} if truncated else {}


def reward_metrics(groups: Sequence[Group]) -> Metrics:
    """Return mean rewards by source and part. Groups without rollouts have no rewards."""
    metrics: Metrics = {}
    scored = [group for group in groups if group.rollouts]
    for source in Source:
        responses = [response for group in scored for response in group.responses if response.source is source]
        if responses:
            metrics[f"reward/{source}/total"] = mean([response.reward for response in responses])
            for part in dict.fromkeys(part for response in responses for part in response.reward_parts):
                earned = [response.reward_parts.get(part, 0.0) for response in responses]
                metrics[f"reward/{source}/{part}"] = mean(earned)
    return metrics


def activity_metrics(groups: Sequence[Group]) -> Metrics:
    """Return, over groups of rollouts and a label, the share of active labels and the best rollout's mean lead."""
    found = [
        (float(label_is_active(group)), max(rollout.reward for rollout in group.rollouts) - group.label.reward)
        for group in groups
        if group.label is not None and group.rollouts
    ]
    if not found:
        return {}
    active, leads = zip(*found, strict=True)
    return {"train/label_active": mean(active), "reward/margin": mean(leads)}


def instructive_metrics(groups: Sequence[Group]) -> Metrics:
    """Return the share of groups with an advantage other than 0, over those with rollouts."""
    teach = [float(any(response.advantage for response in group.responses)) for group in groups if group.rollouts]
    return {"train/instructive_share": mean(teach)} if teach else {}


def advantage_metrics(active: Sequence[Group]) -> Metrics:
    """Return the mean advantage by source.

    Args:
        active: the groups whose label is active.
    """
    by_source = {
        source: [response.advantage for group in active for response in group.responses if response.source is source]
        for source in Source
    }
    return {f"advantage/{source}": mean(values) for source, values in by_source.items() if values}
