"""The pool of reward actors."""

import sys
import time
from collections import deque
from typing import Any

import ray

from visurf_ray.config import RewardConfig
from visurf_ray.errors import UserError
from visurf_ray.groups import Group
from visurf_ray.rewards.actor import RewardActor
from visurf_ray.rewards.spec import RewardSpec


class RewardError(UserError):
    """A reward raised or hung; the message names the example."""


class RewardPool:
    """Scores groups on several actors at once, one group per call."""

    def __init__(self, config: RewardConfig, spec: RewardSpec) -> None:
        self.spec = spec
        self.gpus = config.gpus
        self.timeout = config.timeout
        self.skip = config.on_error == "skip"
        self.actors = [self._start() for _ in range(config.workers)]
        self.idle = deque(self.actors)
        self.waiting: deque[Group] = deque()
        self.running: dict[ray.ObjectRef, tuple[Any, Group, float]] = {}
        self.skipped: list[Group] = []

    def submit(self, group: Group) -> None:
        """Have a group scored, while the caller goes on; `wait` says when all are. Raises RewardError like it."""
        if group.responses:
            self.waiting.append(group)
        self._advance(block=False)

    def wait(self) -> list[Group]:
        """Returns when every response of the submitted groups has its reward, in parts.

        Raises RewardError with the example's id when a reward raises, or takes longer than the limit for each of its
        responses: its process is then killed, and no response scores 0 in silence. With reward.on_error=skip that is
        printed instead, and the groups that have no rewards are returned.
        """
        while self.waiting or self.running:
            self._advance(block=True)
        skipped, self.skipped = self.skipped, []
        return skipped

    def _start(self) -> Any:
        return RewardActor.options(num_gpus=self.gpus).remote(self.spec)  # type: ignore[attr-defined]

    def _advance(self, *, block: bool) -> None:
        """Take what is done, give waiting groups to idle actors, and look at the deadlines."""
        if self.running:
            earliest = min(deadline for *_, deadline in self.running.values())
            timeout = max(0.0, earliest - time.monotonic()) if block else 0.0
            done, _ = ray.wait(list(self.running), num_returns=1 if block else len(self.running), timeout=timeout)
            for reference in done:
                actor, group, _ = self.running.pop(reference)
                self.idle.append(self._take(reference, group, actor))
        while self.waiting and self.idle:
            group, actor = self.waiting.popleft(), self.idle.popleft()
            texts = [response.text for response in group.responses]
            image = group.example.prompt.image if self.spec.needs_image else None
            reference = actor.score.remote(texts, group.example.ground_truth, image)
            self.running[reference] = (actor, group, time.monotonic() + self.timeout * len(texts))
        self._check_deadlines()

    def _take(self, reference: ray.ObjectRef, group: Group, actor: Any) -> Any:
        """Write the group's rewards; returns an actor that can take the next group."""
        try:
            rewards = ray.get(reference)
        except ray.exceptions.RayError as error:  # raised, or its process died
            if getattr(error, "actor_init_failed", False):  # no example's fault: every other would fail as well
                raise RewardError(f"a reward actor could not start: {error}") from error
            cause = getattr(error, "cause", None) or error
            failure = RewardError(f"the reward of example {group.example.id!r} raised: {cause!r}")
            self._give_up(group, failure, error)
            return actor if isinstance(error, ray.exceptions.RayTaskError) else self._replace(actor)
        for response, reward in zip(group.responses, rewards, strict=True):
            response.reward_parts = dict(reward.parts)
            response.reward = reward.total
        return actor

    def _check_deadlines(self) -> None:
        for reference, (actor, group, deadline) in list(self.running.items()):
            if time.monotonic() > deadline:
                ray.kill(actor)
                failure = RewardError(
                    f"the reward of example {group.example.id!r} took longer than reward.timeout={self.timeout:g} s "
                    f"for each of its {len(group.responses)} responses"
                )
                self._give_up(group, failure)
                del self.running[reference]
                self.idle.append(self._replace(actor))

    def _give_up(self, group: Group, failure: RewardError, cause: Exception | None = None) -> None:
        if not self.skip:
            raise failure from cause
        print(f"skipped: {failure}", file=sys.stderr, flush=True)
        self.skipped.append(group)

    def _replace(self, actor: Any) -> Any:
        """A new actor for one that died. Waits for it, so that its start does not count as the next group's time."""
        new = self._start()
        ray.get(new.ready.remote())
        self.actors[self.actors.index(actor)] = new
        return new
