"""The pool of reward actors."""

import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray

from visurf_ray.config.schema import OnError, RewardConfig
from visurf_ray.errors import UserError
from visurf_ray.groups import Group
from visurf_ray.rewards.actor import RewardActor
from visurf_ray.rewards.spec import RewardSpec


class RewardError(UserError):
    """A reward raised or hung; the message names the example."""


@dataclass
class _Call:
    """An actor at work. `groups` are those that it has not returned yet; the first must be by `deadline`."""

    actor: Any
    groups: deque[Group]
    deadline: float


class RewardPool:
    """Scores groups on several actors at once.

    An actor takes many groups in a call and returns one after the other: calls cost the driver more than results.
    """

    def __init__(self, config: RewardConfig, spec: RewardSpec) -> None:
        self.spec = spec
        self.gpus = config.gpus
        self.timeout = config.timeout
        self.skip = config.on_error is OnError.skip
        self.actors = [self._start() for _ in range(config.workers)]
        _wait_ready(self.actors)
        self.idle = deque(self.actors)
        self.waiting: deque[Group] = deque()
        self.running: dict[ray.ObjectRefGenerator, _Call] = {}
        self.one_by_one = False
        self.skipped: list[Group] = []

    def submit(self, groups: Iterable[Group]) -> None:
        """Have groups scored, while the caller goes on; `wait` says when all are. Raises RewardError like it."""
        self.waiting.extend(group for group in groups if group.responses)
        while self._advance(block=False):
            pass

    def wait(self) -> list[Group]:
        """Returns when every response of the submitted groups has its reward, in parts.

        Raises RewardError with the example's id when a reward raises, or takes longer than the limit for each of its
        responses: its process is then killed, and no response scores 0 in silence. With reward.on_error=skip that is
        printed instead, and the groups that have no rewards are returned.
        """
        while self.waiting or self.running:
            self._advance(block=True)
        self.one_by_one = False
        skipped, self.skipped = self.skipped, []
        return skipped

    def _start(self) -> Any:
        return RewardActor.options(num_gpus=self.gpus).remote(self.spec)  # type: ignore[attr-defined]

    def _advance(self, *, block: bool) -> bool:
        """Give waiting groups to idle actors, take a result, and look at the deadlines; whether there was a result."""
        while self.waiting and self.idle:
            self._call(self.idle.popleft())
        if not self.running:
            return False
        earliest = min(call.deadline for call in self.running.values())
        timeout = max(0.0, earliest - time.monotonic()) if block else 0.0
        done, _ = ray.wait(list(self.running), num_returns=1, timeout=timeout)
        for stream in done:
            self._take(stream)
        for stream, call in list(self.running.items()):
            if time.monotonic() > call.deadline and not stream.next_ready():  # nobody looked at what is ready
                ray.kill(call.actor)
                limit = f"took longer than reward.timeout={self.timeout:g} s for each of its"
                self._give_up(stream, f"{limit} {len(call.groups[0].responses)} responses")
                self._replace(call.actor)
        return bool(done)

    def _call(self, actor: Any) -> None:
        """Have an actor score its share of half of what waits: the other half is for those that are done first."""
        count = 1 if self.one_by_one else -(-len(self.waiting) // (2 * len(self.actors)))
        groups = deque(self.waiting.popleft() for _ in range(count))
        stream = actor.score.remote([self._inputs(group) for group in groups])
        self.running[stream] = _Call(actor, groups, self._deadline(groups[0]))

    def _inputs(self, group: Group) -> tuple[list[str], str, Any]:
        image = group.example.prompt.image if self.spec.needs_image else None
        return [response.text for response in group.responses], group.example.ground_truth, image

    def _deadline(self, group: Group) -> float:
        """Of a group whose turn comes now."""
        return time.monotonic() + self.timeout * len(group.responses)

    def _take(self, stream: ray.ObjectRefGenerator) -> None:
        """Write the rewards of a call's first group."""
        call = self.running[stream]
        try:
            parts_of = ray.get(next(stream))
        except ray.exceptions.RayTaskError as error:
            self._give_up(stream, f"raised: {error.cause!r}", error)
            self.idle.append(call.actor)
        except ray.exceptions.RayError as error:  # its process died
            if len(call.groups) > 1:  # its last results may have died with it: whose fault was it?
                self.one_by_one = True
                self.waiting.extend(self.running.pop(stream).groups)
            else:
                self._give_up(stream, f"raised: {error!r}", error)
            self._replace(call.actor)
        else:
            group = call.groups.popleft()
            for response, parts in zip(group.responses, parts_of, strict=True):
                response.reward_parts = parts
                response.reward = sum(parts.values())
            if call.groups:
                call.deadline = self._deadline(call.groups[0])
            else:
                del self.running[stream]
                self.idle.append(call.actor)

    def _give_up(self, stream: ray.ObjectRefGenerator, reason: str, cause: Exception | None = None) -> None:
        """End a call whose first group cannot be scored; the others wait for the next."""
        group, *others = self.running.pop(stream).groups
        self.waiting.extend(others)
        failure = RewardError(f"the reward of example {group.example.id!r} {reason}")
        if not self.skip:
            raise failure from cause
        print(f"skipped: {failure}", file=sys.stderr, flush=True)
        self.skipped.append(group)

    def _replace(self, actor: Any) -> None:
        """Start another actor for one that died."""
        new = self._start()
        _wait_ready([new])
        self.actors[self.actors.index(actor)] = new
        self.idle.append(new)


def _wait_ready(actors: list[Any]) -> None:
    """Returns when the actors have started, so that their start does not count as a group's time."""
    try:
        ray.get([actor.ready.remote() for actor in actors])
    except ray.exceptions.RayError as error:
        raise RewardError(f"a reward actor could not start: {error}") from error
