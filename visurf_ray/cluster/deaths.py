"""Deaths of actors: the error tells which actor died, where, in which phase of the run, and how its log ends."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext  # type: ignore[attr-defined] # made when it is imported
from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from visurf_ray.aliases import ActorHandle
from visurf_ray.errors import ClusterError, StalledError, UserError, causes, phase_of, short

_LINES = 20  # of a log
_READ = 2**16  # bytes at the end of a log that are read
_START_FAILED = "Exception raised in creation task:"
_PATIENCE = 2.0  # seconds until Ray knows of all deaths
_RECENT = 10.0  # seconds
_UNEXPECTED = (ActorDiedErrorContext.WORKER_DIED, ActorDiedErrorContext.NODE_DIED)


@contextmanager
def deaths_explained() -> Iterator[None]:
    """Add to an error that leaves the context what is known of the actor whose death has caused it.

    An actor that has not answered in time gets the phase of the run added.

    Raises:
        ClusterError: in place of an error that was not a UserError.
    """
    try:
        yield
    except StalledError as error:
        phase, stalled = phase_of(error), getattr(error, "cause", error)
        raise ClusterError(f"in the phase '{phase}': {stalled}" if phase else str(stalled)) from error
    except Exception as error:
        if not ray.is_initialized() or (death := _death_behind(error)) is None:
            raise
        description = _describe(death, phase_of(error))
        if isinstance(error, UserError):
            raise type(error)(f"{error}\n{description}") from error
        if not _dead_actors(error):
            description += f"\nAnother actor then failed: {short(getattr(error, 'cause', error), 300)}"
        raise ClusterError(description) from error


def describe_death(actor: ActorHandle, phase: str | None) -> str:
    """Return what is known of the death of an actor: a line, and then the end of its log."""
    return death_among([actor], phase) or "does not answer; its machine may be lost"


def death_among(actors: Sequence[ActorHandle], phase: str | None) -> str | None:
    """Describe the latest death among some actors; None if all of them are alive after a short wait."""
    ids = {actor._actor_id.binary() for actor in actors}
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if death := next((death for death in _deaths() if death.actor_id in ids), None):
            return _describe(death, phase)
        time.sleep(0.05)
    return None


def _death_behind(error: BaseException) -> ActorTableData | None:
    """Return Ray's entry of the dead actor that the error names or comes from; None if there is none.

    When an actor dies, others that wait for it fail as well, and their errors may arrive first: a rank in a collective
    operation, or whoever wants an object of the dead one. So an actor's error is taken to come from the last death that
    nobody intended, if it was a few seconds ago.
    """
    found = list(causes(error))
    if not any(isinstance(cause, ray.exceptions.RayError) for cause in found):
        return None
    ids = _dead_actors(error)
    if not ids and any(isinstance(cause, UserError) for cause in found):
        return None
    time.sleep(_PATIENCE)
    deaths = (death for death in _deaths() if (death.actor_id.hex() in ids if ids else _unexpected(death)))
    return next(deaths, None)


def _dead_actors(error: BaseException) -> list[str]:
    """Return the ids of the actors that the error and its causes name as dead."""
    found = (cause for cause in causes(error) if isinstance(cause, ray.exceptions.RayActorError))
    return [cause.actor_id for cause in found if cause.actor_id]


def _deaths() -> list[ActorTableData]:
    """Return Ray's entries of the dead actors of this run, the last death first."""
    # Private, but the public list of actors comes from the dashboard, which not every cluster runs.
    accessor = ray._private.state.state._connect_and_get_accessor()
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    deaths = [ActorTableData.FromString(entry) for entry in accessor.get_actor_table(job, "DEAD")]
    return sorted(deaths, key=lambda death: -death.end_time)


def _unexpected(death: ActorTableData) -> bool:
    recent = time.time() - death.end_time / 1000 < _RECENT
    return recent and death.death_cause.actor_died_error_context.reason in _UNEXPECTED


def _describe(death: ActorTableData, phase: str | None) -> str:
    node, worker = death.address.node_id.hex(), death.address.worker_id.hex()
    names = {known["NodeID"]: known["NodeManagerHostname"] for known in ray.nodes()}
    when = f" in the phase '{phase}'" if phase else ""
    where = f"{names.get(node, 'unknown')} ({death.address.ip_address})"
    reason = short(death.death_cause.actor_died_error_context.error_message, 700)
    why = f": {reason}" if reason else ""
    return f"{death.class_name} (process {death.pid}) died{when} on the node {where}{why}\n{_log(node, worker)}"


def _log(node: str, worker: str) -> str:
    """Return the end of the log of an actor's process, or why it cannot be had. It lies on the process's node."""
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    try:
        lines = ray.get(_read_log.options(scheduling_strategy=place).remote(worker), timeout=30)
    except ray.exceptions.RayError as error:
        return f"Its log cannot be read: {short(error, 300)}"
    if not lines:
        return "Its log is empty"
    return "\n".join([f"The last {len(lines)} lines of its log:", *(f"  {line}" for line in lines)])


@ray.remote(num_cpus=0, max_retries=0)
def _read_log(worker: str) -> list[str]:
    """Return the last lines that a worker process of this node wrote to stderr; if they are few, to stdout as well."""
    context = ray.get_runtime_context()
    logs = Path(context.get_temp_dir(), context.get_session_name(), "logs")
    lines = [
        line for ending in ("out", "err") for file in logs.glob(f"worker-{worker}-*.{ending}") for line in _end(file)
    ]
    return lines[-_LINES:]


def _end(file: Path) -> list[str]:
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - _READ))
        text = opened.read().decode(errors="replace")
    # Ray marks actors, jobs and tasks in the logs by lines such as ":actor_name:LearnerActor".
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(":")]
    # Where the start of an actor fails, Ray writes the traceback. Its last line leaves room for what comes before, such
    # as the reason that an engine's own process has written.
    traceback = next((at for at, line in enumerate(lines) if line.startswith(_START_FAILED)), len(lines))
    return [short(line, 300) for line in [*lines[:traceback], *lines[traceback:][-1:]]]
