"""The pool of reward actors."""

import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import ray

from visurf_ray.aliases import ActorHandle, ActorOptions, Reference
from visurf_ray.answers.coordinates import readable
from visurf_ray.cluster.supervision import Supervisor
from visurf_ray.cluster.waiting import fetch
from visurf_ray.config.choices import OnError
from visurf_ray.config.schema import RewardConfig
from visurf_ray.errors import LostError, UserError
from visurf_ray.groups import Group
from visurf_ray.rewards.actor import start_actor
from visurf_ray.rewards.spec import RewardSpec


class RewardError(UserError):
    """Responses cannot be scored, or too few groups are left. The message names the example, if there is one."""


@dataclass
class _Call:
    """A running call to an actor.

    Attributes:
        actor: The actor.
        groups: The groups whose rewards it has not yet returned.
        deadline: The time (`time.monotonic()`, in seconds) by which it must return those of the first group.
    """

    actor: ActorHandle
    groups: deque[Group]
    deadline: float


class RewardPool:
    """Scores groups on several actors at once.

    A call costs the driver more time than a result, so each call carries many groups and streams the results back.

    An actor that dies is replaced, and its groups are scored again, each alone. A group whose actor then dies as well
    counts as failed.
    """

    def __init__(
        self,
        config: RewardConfig,
        specs: Mapping[str, RewardSpec],
        *,
        cluster_timeout: float,
        places: Sequence[ActorOptions] | None = None,
        supervisor: Supervisor | None = None,
    ) -> None:
        """Start the actors and wait until they have loaded the rewards. SAM2 is loaded later, with the first response.

        Args:
            config: The number of actors, the time limit, and what happens when a reward fails.
            specs: The reward of each part (see `Example.part`). Without any no actors start, for a run whose groups
                have no rollouts.
            cluster_timeout: Seconds that an actor may take to load the rewards: cluster.timeout.
            places: Ray's options of each actor, see `cluster.reservation`; None: without GPUs, where there is room.
            supervisor: Records the actors that are lost. Replacements are not limited by cluster.max_restarts.

        Raises:
            RewardError: An actor cannot load a reward.
        """
        self.supervisor = supervisor
        self.specs = dict(specs)
        self.places = places or [{"num_cpus": 0}] * config.workers
        self.timeout = config.timeout
        self.cluster_timeout = cluster_timeout
        self.skip = config.on_error == OnError.skip
        self.actors = [start_actor(self.specs, place) for place in (self.places if self.specs else ())]
        self._wait_ready(self.actors)
        self.idle = deque(self.actors)
        self.waiting: deque[Group] = deque()
        self.running: dict[ray.ObjectRefGenerator, _Call] = {}
        self.one_by_one = False
        self.interrupted: set[Group] = set()  # whose actor has died
        self.skipped: list[Group] = []

    def submit(self, groups: Iterable[Group]) -> None:
        """Start to score groups without waiting for the rewards; `wait` does. Raises RewardError like `wait`.

        Groups without rollouts are not scored: there is nothing that a label's reward would be compared with.
        """
        self.waiting.extend(group for group in groups if group.rollouts)
        while self._advance(block=False):
            pass

    def wait(self) -> list[Group]:
        """Wait until all submitted groups are scored: each response has its `reward` and `reward_parts`.

        Returns:
            The groups that could not be scored, which the caller drops. With reward.on_error=stop there are none; with
            skip, errors are printed and not raised.

        Raises:
            RewardError: A reward raised an error, or a group took longer than reward.timeout times its number of
                responses, in which case its actor was killed. No failed response silently scores 0.
        """
        while self.waiting or self.running:
            self._advance(block=True)
        self.one_by_one = False
        self.interrupted.clear()
        skipped, self.skipped = self.skipped, []
        return skipped

    def drop(self) -> None:
        """Score none of the submitted groups that are not being scored yet; returns when the others are scored."""
        self.waiting.clear()
        self.wait()

    def _advance(self, *, block: bool) -> bool:
        """Give waiting groups to idle actors, take a result if there is one, and enforce the deadlines.

        Args:
            block: Whether to wait for a result until the earliest deadline.

        Returns:
            Whether there was a result.
        """
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
            if time.monotonic() > call.deadline and not stream.next_ready():  # a ready result is not late
                ray.kill(call.actor)
                count = len(call.groups[0].responses)
                limit = f"{count * self.timeout:g} s (reward.timeout={self.timeout:g} s × {count} responses)"
                self._give_up(stream, f"took longer than {limit}")
                self._replace(call.actor, f"took longer than {limit}")
        return bool(done)

    def _call(self, actor: ActorHandle) -> None:
        """Give an actor 1 / (2 × actors) of the waiting groups; the rest is for the actors that are free first."""
        count = 1 if self.one_by_one else -(-len(self.waiting) // (2 * len(self.actors)))
        groups = deque(self.waiting.popleft() for _ in range(count))
        stream = actor.score.remote([self._inputs(group) for group in groups])
        self.running[stream] = _Call(actor, groups, self._deadline(groups[0]))

    def _inputs(self, group: Group) -> tuple[str, list[str], str, Reference]:
        example = group.example
        image = example.prompt.image if self.specs[example.part].needs_image else None
        responses = [readable(response.text, example) for response in group.responses]
        return example.part, responses, example.ground_truth, image

    def _deadline(self, group: Group) -> float:
        """Return the deadline of a group that an actor begins to score now."""
        return time.monotonic() + self.timeout * len(group.responses)

    def _take(self, stream: ray.ObjectRefGenerator) -> None:
        """Write the rewards of a call's first group into its responses, or handle its failure."""
        call = self.running[stream]
        try:
            parts_of = fetch(next(stream), self.cluster_timeout)
        except LostError:  # the image
            del self.running[stream]
            self.idle.append(call.actor)
            raise
        except ray.exceptions.RayTaskError as error:
            self._give_up(stream, f"raised: {error.cause!r}", error)
            self.idle.append(call.actor)
        except ray.exceptions.RayError as error:  # the actor died
            if call.groups[0] in self.interrupted and len(call.groups) == 1:
                self._give_up(stream, f"raised: {error!r}", error)
            else:  # unknown whether a group killed it, and which: score the groups one by one to find out
                self.one_by_one = True
                self.interrupted.update(call.groups)
                self.waiting.extend(self.running.pop(stream).groups)
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
        """End a call whose first group cannot be scored, and put its other groups back into the queue."""
        group, *others = self.running.pop(stream).groups
        self.waiting.extend(others)
        part = f" of part {group.example.part}" if group.example.part else ""
        failure = RewardError(f"the reward of example {group.example.id!r}{part} {reason}")
        if not self.skip:
            raise failure from cause
        print(f"skipped: {failure}", file=sys.stderr, flush=True)
        self.skipped.append(group)

    def _replace(self, actor: ActorHandle, why: str | None = None) -> None:
        """Start an actor in place of one that is lost; `why` is None if it has died."""
        number = self.actors.index(actor)
        role = f"reward worker {number}"
        if self.supervisor:
            self.supervisor.lost(role, actor, why)
        new = start_actor(self.specs, self.places[number])
        self._wait_ready([new])
        if self.supervisor:
            self.supervisor.settle(role, replaced=True)
        self.actors[number] = new
        self.idle.append(new)

    def _wait_ready(self, actors: list[ActorHandle]) -> None:
        """Wait until the actors have started: starting must not count towards a group's time limit."""
        try:
            fetch([actor.ready.remote() for actor in actors], self.cluster_timeout)
        except ray.exceptions.RayError as error:
            raise RewardError(f"a reward actor could not start: {error}") from error
