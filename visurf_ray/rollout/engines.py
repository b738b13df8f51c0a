"""The engines of a pool: their start, the replacement of those that are lost, and their end."""

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import ray

from visurf_ray.aliases import ActorHandle
from visurf_ray.cluster.supervision import Supervisor
from visurf_ray.cluster.waiting import wait_for
from visurf_ray.errors import ClusterError


@dataclass(frozen=True)
class Replacing:
    """How engines that are lost are replaced.

    Attributes:
        launch: begins to start the engine with this number again, and returns its handle.
        supervisor: watches the engines, and decides whether one is started again.
        at_once: whether a new engine may start while the others sample and the learner computes. It may not where it
            shares a GPU with the learner.
    """

    launch: Callable[[int], ActorHandle]
    supervisor: Supervisor
    at_once: bool


class Engines:
    """Starts, replaces and ends vLLM engines.

    Attributes:
        actors: handles of the engines that can be used; empty before `launch` and after `shut_down`.
    """

    def __init__(
        self,
        launch: Callable[[], Sequence[ActorHandle]],
        wait: Callable[[Sequence[ActorHandle]], None],
        replacing: Replacing | None,
        timeout: float,
    ) -> None:
        """Take what starts engines; none is started yet.

        Args:
            launch: begins to start all engines, and returns their handles.
            wait: returns when they have started, or raises.
            replacing: how engines are replaced; None: the loss of one is an error.
            timeout: seconds that an engine may take to answer.
        """
        self.actors: list[ActorHandle] = []
        self._launch = launch
        self._wait = wait
        self._replacing = replacing
        self._timeout = timeout
        self._numbers: dict[ActorHandle, int] = {}
        self._lost: list[tuple[int, ActorHandle]] = []  # to be started again
        self._starting: dict[int, Future[ActorHandle]] = {}
        self._unused: set[ActorHandle] = set()  # the engines of `_starting`
        self._ended = False
        self._threads = ThreadPoolExecutor(thread_name_prefix="engines")

    @property
    def exist(self) -> bool:
        """Whether there are engines, or will be."""
        return bool(self.actors or self.incomplete)

    @property
    def incomplete(self) -> bool:
        """Whether engines are lost that `replace` has not replaced yet."""
        return bool(self._lost or self._starting)

    @property
    def _replaced(self) -> Replacing:
        assert self._replacing, "the loss of an engine is an error"
        return self._replacing

    def launch(self) -> None:
        """Begin to start all engines, if there are none."""
        if not self.exist:
            self._ended = False
            self.actors = list(self._launch())
            self._numbers = {actor: number for number, actor in enumerate(self.actors)}

    def wait(self) -> None:
        """Wait until the engines that `launch` has begun to start have started."""
        self._wait(self.actors)
        for actor in self.actors if self._replacing else ():
            self._replaced.supervisor.watch(actor)

    def ask(self, method: str, *arguments: object) -> None:
        """Call a method of all engines, and wait for it. Engines that have died are lost; see `lose`."""
        calls = {getattr(actor, method).remote(*arguments): actor for actor in self.actors}
        wait_for(list(calls), self._timeout)
        for call, actor in calls.items():
            try:
                ray.get(call)
            except ray.exceptions.RayActorError as error:
                self.lose(actor, error)

    def check(self) -> bool:
        """Look for engines that have died; returns whether any has."""
        if not self._replacing:
            return False
        before = len(self.actors)
        self.ask("ready")
        return len(self.actors) < before

    def lose(self, actor: ActorHandle, error: Exception) -> None:
        """Use an engine no more, end what is left of it, and have another started; see `replace`.

        Args:
            error: tells of the loss. It is raised if engines are not replaced.
        """
        if not self._replacing or actor not in self._numbers:  # the latter after `shut_down`
            raise error
        number = self._numbers[actor]
        why = None if isinstance(error, ray.exceptions.RayActorError) else str(error)
        self._replaced.supervisor.lost(_role(number), actor, why)
        self._remove(actor)

    def lose_all(self) -> None:
        """Have all engines replaced, if any are, because a weight transfer has failed: they may have a part of it."""
        for actor in list(self.actors) if self._replacing else ():
            self._replaced.supervisor.forget(actor)
            ray.kill(actor)
            self._remove(actor)

    def replace(self) -> bool:
        """Wait for the engines that replace lost ones; returns whether engines have changed.

        Raises:
            ClusterError: no engine is left.
        """
        self._begin()
        starting, self._starting = self._starting, {}
        for number, future in starting.items():
            try:
                actor = future.result()
            except ClusterError as error:
                failure = error
                print(f"{error}. The other rollout workers go on", file=sys.stderr, flush=True)
                continue
            self._unused.discard(actor)
            self._numbers[actor] = number
            self.actors = sorted([*self.actors, actor], key=self._numbers.__getitem__)
            self._replaced.supervisor.watch(actor)
        if starting and not self.actors:
            raise ClusterError(f"no rollout worker is left: {failure}") from failure
        return bool(starting)

    def shut_down(self) -> None:
        """End the engines and their processes, within 30 s, whatever they do. Engines that have died are skipped."""
        self._ended = True
        starting, self._starting, self._lost = list(self._starting.values()), {}, []
        actors, self.actors, self._numbers = self.actors, [], {}
        for actor in actors if self._replacing else ():
            self._replaced.supervisor.forget(actor)
        if actors:
            ray.wait([actor.shut_down.remote() for actor in actors], num_returns=len(actors), timeout=30)
        for actor in (*actors, *self._unused):
            ray.kill(actor)
        wait(starting)  # their engines are killed, and they start no others
        self._unused = set()
        for actor in actors:
            _wait_until_dead(actor)

    def _remove(self, actor: ActorHandle) -> None:
        self.actors.remove(actor)
        self._lost.append((self._numbers.pop(actor), actor))
        if self._replaced.at_once:
            self._begin()

    def _begin(self) -> None:
        """Begin to start engines in place of all that are lost."""
        lost, self._lost = self._lost, []
        for number, before in lost:
            start = partial(self._start, number, before)
            self._starting[number] = self._threads.submit(self._replaced.supervisor.restart, _role(number), start)

    def _start(self, number: int, before: ActorHandle) -> ActorHandle:
        """Start the engine with this number again, when the one before has ended and left its memory."""
        _wait_until_dead(before)
        if self._ended:
            raise RuntimeError("the engines are shut down")
        actor = self._replaced.launch(number)
        self._unused.add(actor)
        try:
            self._wait([actor])
        except Exception:
            self._unused.discard(actor)
            ray.kill(actor)
            raise
        return actor


def _role(number: int) -> str:
    return f"rollout worker {number}"


def _wait_until_dead(actor: ActorHandle) -> None:
    """Return when the actor has ended, or after 30 s: `ray.kill` does not wait for that."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            ray.get(actor.__ray_ready__.remote(), timeout=30)  # Ray's own method: it does not ask the engine
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return
        time.sleep(0.01)
