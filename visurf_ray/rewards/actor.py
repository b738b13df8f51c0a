"""The Ray actor that scores responses."""

from collections.abc import Iterator, Mapping, Sequence

import ray

from visurf_ray.aliases import ActorHandle, ActorOptions, Reference
from visurf_ray.rewards.spec import RewardSpec


def start_actor(specs: Mapping[str, RewardSpec], place: ActorOptions) -> ActorHandle:
    """Start a reward actor with Ray's options `place`."""
    return ray.remote(**place)(RewardActor).remote(specs)


class RewardActor:
    """Scores groups one after the other, without a time limit: the pool kills an actor that takes too long."""

    def __init__(self, specs: Mapping[str, RewardSpec]) -> None:
        self.rewards = {part: spec.load() for part, spec in specs.items()}

    def ready(self) -> None:
        """Return when the rewards are loaded."""

    def score(self, groups: Sequence[tuple[str, list[str], str, Reference]]) -> Iterator[list[dict[str, float]]]:
        """Yield, for each group, the parts of the reward of each response.

        Args:
            groups: For each group the part of its example, its responses, the ground truth, and a reference to the
                image or None.
        """
        for part, responses, ground_truth, reference in groups:
            reward = self.rewards[part]
            image = ray.get(reference) if isinstance(reference, ray.ObjectRef) else reference
            yield [reward(response, ground_truth, image).parts for response in responses]
