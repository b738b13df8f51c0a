"""Control of the label's reward (ViSurf §4.2.4): eliminate, gate, smooth. Aligning is the task's, by style."""

from visurf_ray.groups import Group

THINKING_PART = "thinking_format"
_TOLERANCE = 1e-6  # rewards are sums of means: 7.000000000000005 is 7


def eliminate_thinking(group: Group) -> None:
    """Set the thinking part of the label's reward to 0: a label carries no reasoning, so none is to be praised.

    A label whose data do carry reasoning keeps its reward.
    """
    label = group.label
    if label is not None and group.example.thinking is None and THINKING_PART in label.reward_parts:
        label.reward_parts[THINKING_PART] = 0.0
        label.reward = sum(label.reward_parts.values())


def label_is_active(group: Group) -> bool:
    """Whether the label still teaches something: its reward is more than every rollout's."""
    label = group.label
    if label is None:
        return False
    return not any(rollout.reward >= label.reward - _TOLERANCE for rollout in group.rollouts)


def gate(group: Group) -> None:
    """Where a rollout earns as much as the label, take the label out of the group: what is left is plain RLVR."""
    label = group.label
    if label is not None and group.rollouts and not label_is_active(group):
        group.responses.remove(label)


def smooth(group: Group) -> bool:
    """Where a rollout earns as much as the label, give the label the rollouts' mean reward; whether that was so.

    The group's mean is then the rollouts' own and the label's advantage 0: guidance that is not needed switches itself
    off.
    """
    label = group.label
    if label is None or not group.rollouts or label_is_active(group):
        return False
    label.reward = sum(rollout.reward for rollout in group.rollouts) / len(group.rollouts)
    return True
