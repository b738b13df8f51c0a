"""Verifiable rewards by name, usable without Ray: `load_reward("vision_reasoner")(response, ground_truth)`."""

import inspect
from math import inf

from visurf_ray import names
from visurf_ray.errors import UserError
from visurf_ray.rewards.reward import Reward, RewardFunction

__all__ = ["REWARDS", "Reward", "RewardFunction", "load_reward"]

REWARDS = {
    "class_name": "visurf_ray.rewards.class_name:ClassNameReward",
    "math": "visurf_ray.rewards.math:MathReward",
    "point_in_box": "visurf_ray.rewards.point_in_box:PointInBoxReward",
    "segmentation_mask": "visurf_ray.rewards.segmentation_mask:SegmentationMaskReward",
    "vision_reasoner": "visurf_ray.rewards.vision_reasoner:VisionReasonerReward",
    "visual_rft_classification": "visurf_ray.rewards.visual_rft_classification:VisualRftClassificationReward",
    "visual_rft_detection": "visurf_ray.rewards.visual_rft_detection:VisualRftDetectionReward",
    "visual_rft_grounding": "visurf_ray.rewards.visual_rft_grounding:VisualRftGroundingReward",
}


def load_reward(name: str, **options: object) -> RewardFunction:
    """Return the reward of this name.

    Args:
        name: A key of REWARDS.
        options: The reward's settings, as in `conf/reward/`.

    Raises:
        UserError: The name or an option is unknown, or an option has the wrong type or is a negative number.
    """
    reward = names.load("reward", name, REWARDS)
    known = inspect.signature(reward).parameters
    for key, value in options.items():
        if key not in known:
            raise UserError(f"the reward {name!r} has no option {key!r}.{names.nearest(key, known)}")
        kind = known[key].annotation
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(f"reward.options.{key}={value!r} must be a {kind.__name__}")
        if isinstance(value, float | int) and not 0 <= value < inf:
            raise UserError(f"reward.options.{key}={value!r} must be a finite number, at least 0")
    return reward(**options)
