"""Verifiable rewards by name, usable without Ray: `load_reward("vision_reasoner")(response, ground_truth)`."""

from collections.abc import Callable
from typing import Any

from visurf_ray import names
from visurf_ray.rewards.reward import Reward

__all__ = ["REWARDS", "Reward", "load_reward"]

REWARDS = {"vision_reasoner": "visurf_ray.rewards.vision_reasoner:VisionReasonerReward"}


def load_reward(name: str, **options: Any) -> Callable[[str, str], Reward]:
    """The reward of that name; `options` are its settings, as in `conf/reward/`.

    Raises UserError for an unknown name, with the nearest known one.
    """
    return names.load("reward", name, REWARDS)(**options)
