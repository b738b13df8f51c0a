"""The learning rate of each step, by the schedules of transformers."""

from collections.abc import Callable

import torch
from transformers.optimization import (
    get_constant_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
)

from visurf_ray.config.choices import Schedule


def learning_rates(
    schedule: Schedule, *, peak: float, steps: int, warmup_steps: int, floor: float
) -> Callable[[int], float]:
    """Return the function from a step to its learning rate; steps count from 0, in the stage that the schedule is for.

    The rate depends on nothing but the step, so a resumed run has the very rates of an uninterrupted one.

    Args:
        peak: the learning rate after the warm-up.
        steps: steps of the stage, the warm-up included.
        warmup_steps: over which the rate rises linearly from 0.
        floor: the share of `peak` that a falling rate would have at the step after the last one.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)  # transformers' schedules are attached to an optimizer
    if schedule == Schedule.linear:
        scheduler = get_polynomial_decay_schedule_with_warmup(optimizer, warmup_steps, steps, lr_end=floor, power=1.0)
    elif schedule == Schedule.cosine:
        scheduler = get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup_steps, steps, min_lr_rate=floor)
    else:
        scheduler = get_constant_schedule_with_warmup(optimizer, warmup_steps)
    share = scheduler.lr_lambdas[0]
    return lambda step: peak * share(step)
