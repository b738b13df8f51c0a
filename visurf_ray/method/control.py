"""Control of what a group teaches, before its advantages.

- Of the label: eliminate and smooth, two of the three controls in ViSurf's §4.2.4 (the third is `Method.align`); and
  gate, which the paper lacks.
- Of responses that are cut at the length limit (DAPO, arXiv 2503.14476, §3.4): punish, filter.
- Of groups: route (HPT, arXiv 2509.04419).
"""

from collections.abc import Collection

from visurf_ray.groups import Group, Response

OVERLONG_PART = "overlong"
_TOLERANCE = 1e-6  # rewards are sums of means: 7.000000000000005 is 7


def eliminate_thinking(group: Group, parts: Collection[str]) -> None:
    """Set the thinking parts of the label's reward to 0, unless the data give the label reasoning.

    Otherwise a label would be rewarded for the form of a reasoning that it does not have.

    Args:
        parts: the names of the parts of the reward that reward thinking.
    """
    label = group.label
    earned = {} if label is None else label.reward_parts
    thinking = [part for part in parts if part in earned]
    if label is not None and group.example.thinking is None and thinking:
        label.reward_parts |= dict.fromkeys(thinking, 0.0)
        label.reward = sum(label.reward_parts.values())


def label_is_active(group: Group) -> bool:
    """Return whether the group has a label whose reward is greater than every rollout's."""
    label = group.label
    return label is not None and not any(_succeeds(rollout, label) for rollout in group.rollouts)


def _succeeds(rollout: Response, label: Response) -> bool:
    """Return whether a rollout earns at least as much as the label."""
    return rollout.reward >= label.reward - _TOLERANCE


def gate(group: Group) -> None:
    """Remove the label from the group if a rollout's reward is at least the label's; the rest is plain RLVR."""
    label = group.label
    if label is not None and group.rollouts and not label_is_active(group):
        group.responses.remove(label)


def route(group: Group, share: float) -> bool:
    """Keep the label alone if at most `share` of the rollouts succeed, otherwise the rollouts alone (HPT).

    The paper's verifier says whether a rollout succeeds; here it does if it earns at least the label's reward.

    Returns:
        Whether the label was kept.
    """
    label = group.label
    if label is None:
        return False
    rollouts = group.rollouts
    kept = sum(_succeeds(rollout, label) for rollout in rollouts) <= share * len(rollouts)
    group.responses[:] = [label] if kept else rollouts
    return kept


def smooth(group: Group) -> bool:
    """Give the label the rollouts' mean reward if a rollout's reward is at least the label's; returns whether it did.

    The group's mean is then that of the rollouts and the label's advantage 0: the label has no effect on the policy
    where it is not needed.
    """
    label = group.label
    if label is None or not group.rollouts or label_is_active(group):
        return False
    label.smoothed_from = label.reward
    label.reward = sum(rollout.reward for rollout in group.rollouts) / len(group.rollouts)
    return True


def punish_overlong(group: Group, *, longest: int, buffer: float, penalty: float) -> None:
    """Subtract from each rollout's reward what its length costs, as the part `overlong` (DAPO eq. 13).

    Nothing up to longest - buffer tokens; from there it grows linearly to `penalty` at `longest` tokens. A rollout that
    was cut, also where a long prompt leaves less room, costs `penalty`.

    Args:
        longest: the longest response that can be sampled, in tokens.
        buffer: likewise in tokens.
    """
    for rollout in group.rollouts:
        excess = 1.0 if rollout.truncated else (rollout.length - (longest - buffer)) / buffer
        rollout.reward_parts[OVERLONG_PART] = 0.0 - penalty * min(max(excess, 0.0), 1.0)
        rollout.reward = sum(rollout.reward_parts.values())


def filter_overlong(group: Group) -> None:
    """Remove the rollouts that were cut at the length limit; the group may be left without responses.

    They have then no part in advantages and denominators either. DAPO masks only their loss ("Overlong Filtering"):
    there, the reward of a response that was cut still counts in its group's mean.
    """
    group.responses[:] = [response for response in group.responses if not response.truncated]
