"""The pool of reward actors."""

import time
from collections import deque
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
        self.idle = deque(self.actors)
        self.waiting: deque[Group] = deque()
        self.running: dict[ray.ObjectRef, tuple[Any, Group, float]] = {}

    def submit(self, group: Group) -> None:
        """Have a group scored, while the caller goes on; `wait` says when all are. Raises RewardError like it."""
        if group.responses:
            self.waiting.append(group)
        self._advance(block=False)

    def wait(self) -> None:
        """Returns when every response of the submitted groups has its reward, in parts.

        Raises RewardError with the example's id when a reward raises, or takes longer than the limit for each of its
        responses: its process is then killed, and no response scores 0 in silence.
        """
        while self.waiting or self.running:
            self._advance(block=True)

    def _advance(self, *, block: bool) -> None:
        """Take what is done, give waiting groups to idle actors, and look at the deadlines."""
        if self.running:
            earliest = min(deadline for *_, deadline in self.running.values())
            timeout = max(0.0, earliest - time.monotonic()) if block else 0.0
            done, _ = ray.wait(list(self.running), num_returns=1 if block else len(self.running), timeout=timeout)
            for reference in done:
                actor, group, _ = self.running.pop(reference)
                self._take(reference, group)
                self.idle.append(actor)
        while self.waiting and self.idle:
            group, actor = self.waiting.popleft(), self.idle.popleft()
            texts = [response.text for response in group.responses]
            reference = actor.score.remote(texts, group.example.ground_truth)
            self.running[reference] = (actor, group, time.monotonic() + self.timeout * len(texts))
        self._check_deadlines()

    def _take(self, reference: ray.ObjectRef, group: Group) -> None:
        try:
            rewards = ray.get(reference)
        except ray.exceptions.RayError as error:  # raised, or its process died
            cause = getattr(error, "cause", None) or error
            raise RewardError(f"the reward of example {group.example.id!r} raised: {cause!r}") from error
        for response, reward in zip(group.responses, rewards, strict=True):
            response.reward_parts = dict(reward.parts)
            response.reward = reward.total

    def _check_deadlines(self) -> None:
        for actor, group, deadline in self.running.values():
            if time.monotonic() > deadline:
                ray.kill(actor)
                raise RewardError(
                    f"the reward of example {group.example.id!r} took longer than reward.timeout={self.timeout:g} s "
                    f"for each of its {len(group.responses)} responses"
                )
