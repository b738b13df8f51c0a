"""The Ray actor that scores responses."""

from collections.abc import Iterator, Sequence

import ray

from visurf_ray.rewards.spec import RewardSpec


@ray.remote(num_cpus=0)
class RewardActor:
    """Scores groups one after the other; whoever calls enforces the time limit by killing it."""

    def __init__(self, spec: RewardSpec) -> None:
        self.reward = spec.load()

    def ready(self) -> None:
        """Returns when the reward is loaded."""

    def score(self, groups: Sequence[tuple[list[str], str]]) -> Iterator[list[dict[str, float]]]:
        """The parts of the rewards of each group: of its responses, given their ground truth."""
        for responses, ground_truth in groups:
            yield [self.reward(response, ground_truth).parts for response in responses]
