"""Explains steps from which nothing is learnt: in each group all rewards are equal, so all advantages are zero."""

from visurf_ray.groups import Metrics

SHARE = "train/instructive_share"  # of groups with an advantage other than 0
_SAME = 1e-6  # the difference up to which two mean rewards are equal


def why_nothing_teaches(metrics: Metrics) -> str:
    """Return why all rewards of each group may be equal, and what to look at.

    Args:
        metrics: those of a step without an advantage: mean rewards by source and part, share of truncated rollouts.
    """
    prefix = "reward/rollout/"
    parts = {name.removeprefix(prefix): mean for name, mean in metrics.items() if name.startswith(prefix)}
    parts = {name: mean for name, mean in parts.items() if "/" not in name}  # not those by a mixture's part
    total, label = parts.pop("total", 0.0), metrics.get("reward/label/total")
    forms = [name for name in parts if "format" in name]
    earned = ", ".join(f"{name} {mean:.3g}" for name, mean in parts.items())
    if metrics.get("train/truncated_share", 0.0) >= 1:
        why = "every rollout is cut at rollout.max_tokens, before its answer: raise it"
    elif forms and all(abs(parts[name]) < _SAME for name in forms):
        why = (
            "no rollout has the form that the reward asks for: compare responses with task.prompt and with the tags "
            "that the reward reads, or begin with SFT (method.sft_steps)"
        )
    elif label is not None and label < _SAME and total < _SAME:
        why = "labels earn nothing either, so the reward does not fit the data: check reward and task"
    elif label is not None and total > label - _SAME:
        why = "rollouts earn as much as the labels, so the task is solved: stop here, or choose harder data"
    elif all(abs(mean) < _SAME for name, mean in parts.items() if name not in forms):
        why = (
            "no answer is right: the task is too hard for the policy, or the reward's thresholds are too strict (such "
            "as reward.options.box_distance). Loosen them, choose easier data, or learn from labels (method=visurf)"
        )
    else:
        why = (
            "the rollouts of a prompt are all equally good, as on a task that is solved: see whether they differ at "
            "all, choose harder data, or raise rollout.n or rollout.temperature"
        )
    means = earned or f"total {total:.3g}"
    return f"Mean rewards of rollouts: {means}. Probably {why}. The tables of samples show responses"
