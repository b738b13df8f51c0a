"""Group-relative advantages (ViSurf eqs. 6 and 7; GRPO, arXiv 2402.03300)."""

import torch
from jaxtyping import Float
from torch import Tensor

_EQUAL = 1e-9  # rewards are sums of means: 7.000000000000005 is 7


def group_advantages(
    rewards_G1: Float[Tensor, " G1"],
    *,
    compared_with: int | None = None,
    divide_by_std: bool = True,
    ddof: int = 1,
    eps: float = 1e-6,
) -> Float[Tensor, " G1"]:
    """Return the advantages of one group's responses: (r - mean) / (std + eps).

    Equal rewards give exact zeros, and so does a group of one.

    Args:
        rewards_G1: rewards of the G rollouts, then of the label if there is one.
        compared_with: how many of the first rewards mean and deviation are computed from; G leaves the label out, None
            takes the whole group. If these rewards are all equal, the deviation is that of the whole group.
        divide_by_std: False gives r - mean (Dr.GRPO, arXiv 2503.20783).
        ddof: 1 for the sample's standard deviation, 0 for the population's.

    Raises:
        ValueError: a reward is not finite.
    """
    if not torch.isfinite(rewards_G1).all():
        raise ValueError(f"rewards must be finite, got {rewards_G1.tolist()}")
    rewards = rewards_G1.double()
    if rewards.max() - rewards.min() < _EQUAL:
        return torch.zeros_like(rewards_G1)
    chosen = rewards[:compared_with]
    advantages = rewards - chosen.mean()
    if divide_by_std:
        varied = rewards if chosen.max() - chosen.min() < _EQUAL else chosen
        advantages = advantages / (varied.std(correction=ddof) + eps)
    return advantages.to(rewards_G1.dtype)
