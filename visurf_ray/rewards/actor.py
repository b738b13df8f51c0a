"""The Ray actor that scores responses."""

from typing import Any

import ray

from visurf_ray.rewards import Reward, load_reward


@ray.remote(num_cpus=0)
class RewardActor:
    """Scores the responses of one example at a time; whoever calls enforces the time limit by killing it."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.reward = load_reward(name, **options)

    def score(self, responses: list[str], ground_truth: str) -> list[Reward]:
        return [self.reward(response, ground_truth) for response in responses]
