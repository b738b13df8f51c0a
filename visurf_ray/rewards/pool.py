"""The pool of reward actors."""

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import ray

from visurf_ray.config import RewardConfig
from visurf_ray.errors import UserError
from visurf_ray.groups import Group
from visurf_ray.rewards.actor import RewardActor


class RewardError(UserError):
    """A reward raised or hung; the message names the example."""


class RewardPool:
    """Scores groups on several actors at once, one group per call."""

    def __init__(self, config: RewardConfig, options: dict[str, Any]) -> None:
        self.timeout = config.timeout
        self.actors = [RewardActor.remote(config.name, options) for _ in range(config.workers)]  # type: ignore[attr-defined]

    def score(self, groups: Sequence[Group]) -> None:
        """Set the reward, in parts, of every response.

        Raises RewardError with the example's id when a reward raises, or takes longer than the limit for each of its
        responses: its process is then killed, and no response scores 0 in silence.
        """
        idle = deque(self.actors)
        waiting = deque(group for group in groups if group.responses)
        running: dict[ray.ObjectRef, tuple[Any, Group, float]] = {}
        while waiting or running:
            while waiting and idle:
                group, actor = waiting.popleft(), idle.popleft()
                texts = [response.text for response in group.responses]
                reference = actor.score.remote(texts, group.example.ground_truth)
                running[reference] = (actor, group, time.monotonic() + self.timeout * len(texts))
            earliest = min(deadline for *_, deadline in running.values())
            done, _ = ray.wait(list(running), timeout=max(0.0, earliest - time.monotonic()))
            for reference in done:
                actor, group, _ = running.pop(reference)
                self._take(reference, group)
                idle.append(actor)
            self._check_deadlines(running)

    def _take(self, reference: ray.ObjectRef, group: Group) -> None:
        try:
            rewards = ray.get(reference)
        except ray.exceptions.RayError as error:  # raised, or its process died
            cause = getattr(error, "cause", None) or error
            raise RewardError(f"the reward of example {group.example.id!r} raised: {cause!r}") from error
        for response, reward in zip(group.responses, rewards, strict=True):
            response.reward_parts = dict(reward.parts)
            response.reward = reward.total

    def _check_deadlines(self, running: dict[ray.ObjectRef, tuple[Any, Group, float]]) -> None:
        for actor, group, deadline in running.values():
            if time.monotonic() > deadline:
                ray.kill(actor)
                raise RewardError(
                    f"the reward of example {group.example.id!r} took longer than reward.timeout={self.timeout:g} s "
                    f"for each of its {len(group.responses)} responses"
                )
