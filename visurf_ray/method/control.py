"""Control of the label's reward (ViSurf §4.2.4): eliminate, gate, smooth. `Method.align` is the section's fourth."""

from visurf_ray.groups import Group

THINKING_PART = "thinking_format"
_TOLERANCE = 1e-6  # rewards are sums of means: 7.000000000000005 is 7


def eliminate_thinking(group: Group) -> None:
    """Set the thinking part of the label's reward to 0, unless the data give the label reasoning.

    Otherwise a label would be rewarded for the form of a reasoning that it does not have.
    """
    label = group.label
    if label is not None and group.example.thinking is None and THINKING_PART in label.reward_parts:
        label.reward_parts[THINKING_PART] = 0.0
        label.reward = sum(label.reward_parts.values())


def label_is_active(group: Group) -> bool:
    """Return whether the group has a label whose reward is greater than every rollout's."""
    label = group.label
    if label is None:
        return False
    return not any(rollout.reward >= label.reward - _TOLERANCE for rollout in group.rollouts)


def gate(group: Group) -> None:
    """Remove the label from the group if a rollout's reward is at least the label's; the rest is plain RLVR."""
    label = group.label
    if label is not None and group.rollouts and not label_is_active(group):
        group.responses.remove(label)


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
