"""The Ray actor that scores responses."""

from collections.abc import Iterator, Sequence
from typing import Any

import ray

from visurf_ray.rewards.spec import RewardSpec


@ray.remote(num_cpus=0)
class RewardActor:
    """Scores groups one after the other; whoever calls enforces the time limit by killing it."""

    def __init__(self, spec: RewardSpec) -> None:
        self.reward = spec.load()

    def ready(self) -> None:
        """Returns when the reward is loaded."""

    def score(self, groups: Sequence[tuple[list[str], str, Any]]) -> Iterator[list[dict[str, float]]]:
        """The parts of the rewards of each group: of its responses, given their ground truth and image, if any."""
        for responses, ground_truth, reference in groups:
            image = ray.get(reference) if isinstance(reference, ray.ObjectRef) else reference
            yield [self.reward(response, ground_truth, image).parts for response in responses]
