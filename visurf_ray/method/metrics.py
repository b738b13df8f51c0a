"""What is logged of a step's groups."""

from collections.abc import Mapping, Sequence

from visurf_ray.groups import Group, Metrics, Source
from visurf_ray.method.control import label_is_active
from visurf_ray.method.part import Part


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def truncation_metrics(groups: Sequence[Group]) -> Metrics:
    """Return the share of rollouts that were cut at the length limit."""
    truncated = [float(rollout.truncated) for group in groups for rollout in group.rollouts]
    return {"train/truncated_share": mean(truncated)} if truncated else {}


def by_part(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Return the groups with rollouts by the part of the training data."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        if group.rollouts:
            found.setdefault(group.example.part, []).append(group)
    return found


def reward_metrics(groups: Sequence[Group]) -> Metrics:
    """Return mean rewards by source and part of the reward; of a mixture over all groups, then of each part of it.

    A part of a reward counts in those parts of a mixture that have it. Groups without rollouts have no rewards.
    """
    metrics: Metrics = {}
    for source in Source:
        earned: dict[str, dict[str, list[float]]] = {}  # by the reward's part, then by the mixture's
        for part, scored in by_part(groups).items():
            responses = [response for group in scored for response in group.responses if response.source is source]
            if responses:
                earned.setdefault("total", {})[part] = [response.reward for response in responses]
            for name in dict.fromkeys(name for response in responses for name in response.reward_parts):
                values = [response.reward_parts.get(name, 0.0) for response in responses]
                earned.setdefault(name, {})[part] = values
        for name, found in earned.items():
            metrics[f"reward/{source}/{name}"] = mean([value for values in found.values() for value in values])
            metrics |= {f"reward/{source}/{name}/{part}": mean(values) for part, values in found.items() if part}
    return metrics


def solved_metrics(groups: Sequence[Group], parts: Mapping[str, Part]) -> Metrics:
    """Return the shares of groups that every rollout solves, and that none does; likewise of each part of a mixture.

    Groups of a part whose reward does not tell what solves them do not count.
    """
    found = {
        part: [solve(group, parts[part].solved) for group in scored]
        for part, scored in by_part(groups).items()
        if parts[part].solved
    }
    whole = [solved for each in found.values() for solved in each]
    shares = {"": whole} | {f"/{part}": each for part, each in found.items() if part} if whole else {}
    metrics: Metrics = {}
    for end, each in shares.items():
        metrics[f"train/all_solved_share{end}"] = mean([float(all(solved)) for solved in each])
        metrics[f"train/none_solved_share{end}"] = mean([float(not any(solved)) for solved in each])
    return metrics


def solve(group: Group, solved: Mapping[str, float]) -> list[bool]:
    """Return whether each rollout solves the example.

    Args:
        solved: the least value of parts of the reward with which it does.
    """
    return [
        all(rollout.reward_parts.get(part, 0.0) >= least - 1e-6 for part, least in solved.items())
        for rollout in group.rollouts
    ]


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
