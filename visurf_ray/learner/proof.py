"""Proof before the first step: the learner computes what the sampler does, and packing changes nothing."""

import numpy as np

from visurf_ray.config.choices import Packing
from visurf_ray.errors import ConfigError
from visurf_ray.groups import Group
from visurf_ray.learner.group import LearnerGroup

# The largest mean difference of log-probs in nats that rounding explains, by the dtype of the coarser side.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


def prove_packing(learner: LearnerGroup, group: Group, wanted: Packing, tolerance: float) -> str:
    """Compare the log-probs of a group's responses, and choose how the learner packs; returns a line that says so.

    Compares separate rows with the packing that the learner has now, and with the sampler's log-probs if the responses
    have them. With `Packing.auto` the learner changes to rows if its packing differs from them.

    Args:
        wanted: `learner.packing`.
        tolerance: see TOLERANCE.

    Raises:
        ConfigError: even with rows the learner's log-probs are not the sampler's; or `wanted` names a packing that
            differs from rows.
    """
    now = learner.cost.packing
    rows, sampled = learner.logprobs(group, Packing.rows)
    if not np.isnan(sampled).all():
        off = float(np.abs(rows - sampled).mean())
        if not off <= tolerance:  # also if it is not a number
            raise ConfigError(
                f"the learner does not compute the sampler's policy: their log-probs differ by {off:.1e} nats on "
                f"average, more than rounding explains ({tolerance:g}). transformers and vLLM disagree about this "
                "model: install another version of one of them, or train another model"
            )
    if now is Packing.rows:
        return f"learner.packing={now}"
    packed, _ = learner.logprobs(group, now)
    off = float(np.abs(packed - rows).mean())
    found = f"log-probs differ by {off:.1e} nats on average from those of separate rows"
    if off <= tolerance:
        return f"learner.packing={now}: {found}"
    if wanted is not Packing.auto:
        raise ConfigError(
            f"learner.packing={now}: {found}, more than rounding explains ({tolerance:g}): set it to rows"
        )
    learner.set_packing(Packing.rows)
    return f"learner.packing={Packing.rows}, because with {now} {found}, more than rounding explains ({tolerance:g})"
