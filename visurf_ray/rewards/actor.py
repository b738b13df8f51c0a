"""The Ray actor that scores responses."""

import ray
from PIL import Image

from visurf_ray.rewards.reward import Reward
from visurf_ray.rewards.spec import RewardSpec


@ray.remote(num_cpus=0)
class RewardActor:
    """Scores the responses of one example at a time; whoever calls enforces the time limit by killing it."""

    def __init__(self, spec: RewardSpec) -> None:
        self.reward = spec.load()

    def ready(self) -> None:
        """Returns when the reward is loaded."""

    def score(self, responses: list[str], ground_truth: str, image: Image.Image | None = None) -> list[Reward]:
        return [self.reward(response, ground_truth, image) for response in responses]
