"""Supervision of a run's actors: what hangs is ended, restarts are bounded, and every fault is recorded."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import TypeVar

import ray

from visurf_ray.aliases import ActorHandle, Json, Reference
from visurf_ray.cluster.deaths import describe_death
from visurf_ray.errors import ClusterError, LostError, current_phase, short

WINDOW = 3600.0  # seconds in which a role may be restarted cluster.max_restarts times
_ATTEMPTS = 3
_TURNS = 10  # times that an actor is looked at while it may be silent

T = TypeVar("T")


@dataclass
class Fault:
    """A role that was lost, as summary.json has it.

    Attributes:
        role: such as `rollout worker 1`.
        cause: what happened to it first.
        phase: the phase of the run in which it was noticed.
        time: when it was noticed, in seconds since 1970.
        seconds: until it was replaced, or given up. None: neither has happened, or the run was stopped before and then
            resumed, which has replaced it.
        replaced: whether it was.
        step: the step that was logged next; the monitor notes it.
    """

    role: str
    cause: str
    phase: str | None
    time: float
    seconds: float | None = None
    replaced: bool = False
    step: int | None = None


class Supervisor:
    """Watches actors, and decides whether a lost one is started again.

    A caller learns of every loss by Ray's error for a dead actor: an actor that hangs is ended by a thread, which asks
    each for an answer.
    """

    def __init__(self, max_restarts: int, patience: float) -> None:
        """Begin with nothing to watch.

        Args:
            max_restarts: how often a role is restarted within `WINDOW`: `cluster.max_restarts`.
            patience: seconds that a watched actor may be silent: `cluster.health_timeout`.
        """
        self.faults: list[Fault] = []
        self.max_restarts = max_restarts
        self.patience = patience
        self._restarts: dict[str, list[float]] = defaultdict(list)  # the times of each role's restarts
        self._open: dict[str, Fault] = {}  # of roles that are not replaced yet
        self._lock = Lock()
        self._watched: dict[ActorHandle, tuple[Reference, int]] = {}  # a question, and the turns since it was asked
        self._silent: set[ActorHandle] = set()  # ended for their silence
        self._closed = Event()
        self._watching: Thread | None = None

    def watch(self, actor: ActorHandle) -> None:
        """End this actor if its method `ready` does not return in time. It must have started already."""
        with self._lock:
            self._watched[actor] = actor.ready.remote(), 0
            if self._watching is None:
                self._watching = Thread(target=self._watch, name="supervisor", daemon=True)
                self._watching.start()

    def forget(self, actor: ActorHandle) -> None:
        """Watch this actor no longer: it is to end."""
        with self._lock:
            self._watched.pop(actor, None)

    def close(self) -> None:
        """Watch no actor any longer."""
        self._closed.set()

    def lost(self, role: str, actor: ActorHandle, why: str | None = None) -> None:
        """Record that an actor is lost, and end what is left of it.

        Args:
            role: what it is called in messages, such as `rollout worker 1`.
            why: what happened; None: it has died, or was ended for its silence.
        """
        self.forget(actor)
        if why is None and actor in self._silent:
            why = f"has not answered for {self.patience:g} s (cluster.health_timeout)"
        phase = current_phase()
        self.record(role, why or describe_death(actor, phase), phase)
        ray.kill(actor)

    def record(self, role: str, cause: str, phase: str | None = None) -> None:
        """Record that a role is lost. While it is not replaced, its first cause is kept."""
        print(f"FAULT: {role}: {cause}", file=sys.stderr, flush=True)
        with self._lock:
            if role not in self._open:
                fault = Fault(role, short(cause.splitlines()[0], 200), phase or current_phase(), time.time())
                self._open[role] = fault
                self.faults.append(fault)

    def restart(self, role: str, start: Callable[[], T]) -> T:
        """Start a lost role again: call `start` until it succeeds, as often as allowed. Returns what it returns.

        Raises:
            ClusterError: the role has been restarted `max_restarts` times within `WINDOW`. The message has the first
                cause.
        """
        while self._may_restart(role):
            try:
                started = start()
            except (ClusterError, ray.exceptions.RayError) as error:
                self.record(role, f"did not start again: {short(error, 500)}")
                continue
            self.settle(role, replaced=True)
            return started
        cause = self._open[role].cause
        self.settle(role, replaced=False)
        raise ClusterError(
            f"the {role} was lost and is not started again, as cluster.max_restarts={self.max_restarts} allows no more "
            f"restarts within {WINDOW / 60:g} minutes. The first cause: {cause}"
        )

    def settle(self, role: str, *, replaced: bool) -> None:
        """Note that a lost role is replaced, or given up; `restart` does it itself."""
        with self._lock:
            if fault := self._open.pop(role, None):
                fault.seconds, fault.replaced = round(time.time() - fault.time, 1), replaced
        if fault and replaced:
            print(f"the {role} is replaced after {fault.seconds:g} s", file=sys.stderr, flush=True)

    def _may_restart(self, role: str) -> bool:
        """Return whether a role may be restarted, and count it; one without a fault always may."""
        now = time.monotonic()
        with self._lock:
            if role not in self._open:
                return True
            recent = [moment for moment in self._restarts[role] if now - moment < WINDOW]
            allowed = len(recent) < self.max_restarts
            self._restarts[role] = [*recent, now] if allowed else recent
        return allowed

    def recall(self, faults: Sequence[dict[str, Json]]) -> None:
        """Insert the faults of the run before it was resumed: dicts, from its checkpoint.

        A role that was lost and neither replaced nor given up then is replaced now: a resumed run starts all anew.
        """
        before = [Fault(**fault) for fault in faults]
        for fault in before:
            fault.replaced |= fault.seconds is None
        self.faults[:0] = before

    def _watch(self) -> None:
        """Look at all watched actors, turn after turn.

        Turns are counted, not seconds: if this process is suspended, no actor is to blame.
        """
        while not self._closed.wait(self.patience / _TURNS):
            with self._lock:
                for actor, (question, turns) in list(self._watched.items()):
                    if ray.wait([question], timeout=0, fetch_local=False)[0]:  # an error is an answer too
                        self._watched[actor] = actor.ready.remote(), 0
                    elif turns < _TURNS:
                        self._watched[actor] = question, turns + 1
                    else:
                        del self._watched[actor]
                        self._silent.add(actor)
                        ray.kill(actor)


def again_if_lost(call: Callable[[], T]) -> T:
    """Return what `call` returns; call it again, a few times, if it fails because objects are lost.

    Raises:
        ClusterError: they are lost at each attempt.
    """
    for _ in range(_ATTEMPTS):
        try:
            return call()
        except LostError as error:
            lost = error
    raise ClusterError(f"{lost}, at each of {_ATTEMPTS} attempts") from lost
