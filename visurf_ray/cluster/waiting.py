"""Remote waits with a time limit: no run hangs for ever because a process or a machine does."""

from collections.abc import Sequence
from typing import Any

import ray
from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]  # made when it is imported

from visurf_ray.aliases import Reference
from visurf_ray.errors import LostError, StalledError, causes, short

_SHOWN = 4  # actors that a message names


def fetch(references: Reference | Sequence[Reference], timeout: float) -> Any:
    """Return what a reference, or each of a sequence, refers to: `ray.get` with a time limit.

    Args:
        timeout: seconds: `cluster.timeout`.

    Raises:
        StalledError: not all are there in time. An error of an actor is raised as `ray.get` does, at once.
        LostError: what is referred to is lost, or what an actor needed to make it.
    """
    try:
        return ray.get(references, timeout=timeout)
    except ray.exceptions.RayError as error:
        of_an_actor = isinstance(error, ray.exceptions.RayTaskError)  # which may have waited in vain itself
        if isinstance(error, ray.exceptions.GetTimeoutError) and not of_an_actor:
            listed = [references] if isinstance(references, ray.ObjectRef) else list(references)
            raise _stalled(listed, timeout) from error
        if _is_loss(error):
            raise LostError(f"an object in Ray's store is lost: {short(error, 300)}") from error
        raise


def _is_loss(error: BaseException) -> bool:
    return any(isinstance(cause, LostError | ray.exceptions.ObjectLostError) for cause in causes(error))


def wait_for(references: Sequence[Reference], timeout: float, count: int | None = None) -> list[Reference]:
    """Wait until `count` of the references are ready, all by default; returns these. Errors of actors are not raised.

    Args:
        timeout: seconds: `cluster.timeout`.

    Raises:
        StalledError: fewer are ready in time.
    """
    count = len(references) if count is None else count
    ready, _ = ray.wait(list(references), num_returns=count, timeout=timeout)
    if len(ready) < count:
        raise _stalled(references, timeout)
    return ready


def _stalled(references: Sequence[ray.ObjectRef], timeout: float) -> StalledError:
    _, left = ray.wait(list(references), num_returns=len(references), timeout=0, fetch_local=False)
    names = list(dict.fromkeys(_actor_of(reference) for reference in left or references))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return StalledError(
        f"no answer within cluster.timeout={timeout:g} seconds from {', '.join(names[:_SHOWN])}{more}: a process, "
        "its machine or the network between them hangs, or what it waits for does. If the work takes so long, raise "
        "cluster.timeout"
    )


def _actor_of(reference: ray.ObjectRef) -> str:
    """Return what is known of the actor that makes an object: its class, process and node."""
    # Private, but the public list of actors comes from the dashboard, which not every cluster runs.
    accessor = ray._private.state.state._connect_and_get_accessor()
    entry = accessor.get_actor_info(reference.task_id().actor_id())
    if entry is None:
        return "a stored object, which does not arrive"
    actor = ActorTableData.FromString(entry)
    names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    node = names.get(actor.address.node_id.hex(), "unknown")
    return f"{actor.class_name} (process {actor.pid}, node {node}, {actor.address.ip_address})"
