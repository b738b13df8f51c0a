"""Ask Ray what is there before asking for it, and refuse in words what does not fit."""

import time
from dataclasses import dataclass

import ray

from visurf_ray.errors import UserError


class ClusterError(UserError):
    """The cluster cannot hold the run; the message says what was asked for and what there is."""


@dataclass(frozen=True)
class Demand:
    """`count` actors, each with so many GPUs and Ray CPUs; `key` is the configuration key that sets the count."""

    name: str
    key: str
    count: int
    gpus: float
    cpus: float


def check_demand(demands: list[Demand]) -> None:
    """Raise ClusterError unless the cluster's free resources hold all demands, each actor on one node.

    Nodes are filled greedily, the largest actors first; Ray would otherwise wait for ever. A demand for nothing is not
    mentioned.
    """
    demands = [demand for demand in demands if demand.count and (demand.gpus or demand.cpus)]
    free = [dict(resources) for resources in ray._private.state.available_resources_per_node().values()]
    for demand in sorted(demands, key=lambda demand: (-demand.gpus, -demand.cpus)):
        for _ in range(demand.count):
            node = next(
                (n for n in free if n.get("GPU", 0) >= demand.gpus and n.get("CPU", 0) >= demand.cpus - 1e-9), None
            )
            if node is None:
                raise ClusterError(_refusal(demands))
            node["GPU"] = node.get("GPU", 0) - demand.gpus
            node["CPU"] = node.get("CPU", 0) - demand.cpus


def check_one_node(reason: str) -> None:
    """Raise ClusterError when the cluster has more than one machine that actors may be placed on."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if len(nodes) > 1:
        names = ", ".join(node["NodeManagerHostname"] for node in nodes)
        raise ClusterError(f"{reason}, so the cluster must be one machine, but it has {len(nodes)}: {names}")


def _refusal(demands: list[Demand]) -> str:
    asked = " and ".join(
        f"{d.count} {d.name} ({d.key}={d.count}) with {d.gpus:g} GPU, {d.cpus:g} CPU each" for d in demands
    )
    cluster, free = ray.cluster_resources(), ray.available_resources()
    parts = [f"{cluster.get(kind, 0):g} {kind} ({free.get(kind, 0):g} free)" for kind in ("GPU", "CPU")]
    return (
        f"the run does not fit the cluster: it asks for {asked}; the cluster has {' and '.join(parts)} on "
        f"{len(ray.nodes())} node(s). Lower {' or '.join(d.key for d in demands)}, or free or add resources"
    )


def wait_ready(references: list[ray.ObjectRef], what: str, timeout: float) -> None:
    """Wait for actors to start. Raises ClusterError after `timeout` seconds, with what the cluster has free."""
    begin = time.monotonic()
    try:
        ray.get(references, timeout=timeout)
    except ray.exceptions.RayActorError as error:
        raise ClusterError(
            f"{what} died while starting; why stands at the end of the newest worker-*.err in Ray's logs/ folder "
            f"(`ray logs`), too little memory (rollout.memory) being the usual cause. {error}"
        ) from error
    except ray.exceptions.GetTimeoutError as error:
        raise ClusterError(
            f"{what} did not start in {time.monotonic() - begin:.0f} s (cluster.start_timeout); "
            f"free resources: {ray.available_resources()}"
        ) from error
