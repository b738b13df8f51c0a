"""Ask Ray what is there before asking for it, and refuse in words what does not fit."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._common.utils import get_system_memory
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from visurf_ray.errors import UserError


class ClusterError(UserError):
    """The cluster cannot hold the run; the message says what was asked for and what there is."""


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to the Ray cluster, closed at the end. Raises ClusterError when there is none."""
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        raise ClusterError(
            f"no Ray cluster at cluster.address={address}: start one with `bash launch/local.sh`, "
            "or set cluster.address=local to run in this process"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Demand:
    """`count` actors, each with so many GPUs and Ray CPUs; `key` is the configuration key that sets the count."""

    name: str
    key: str
    count: int
    gpus: float
    cpus: float


@dataclass(frozen=True)
class Node:
    """A machine: what Ray has of it, and how much of that is free, by Ray's names ("CPU", "GPU", "memory" in bytes)."""

    name: str
    total: dict[str, float]
    free: dict[str, float]


def cluster_nodes() -> list[Node]:
    """The nodes of the cluster that this process is connected to."""
    # Private: Ray's public functions tell what is free of the whole cluster, not of a node.
    free = ray._private.state.available_resources_per_node()
    return [
        Node(node["NodeManagerHostname"], node["Resources"], dict(free.get(node["NodeID"], {})))
        for node in ray.nodes()
        if node["Alive"]
    ]


def this_machine() -> Node:
    """What a Ray cluster that is started on this machine would have."""
    import torch

    # Private: these two know the limits of a container, as `ray start` does; psutil knows those of the host.
    total = {
        "CPU": float(ray._private.utils.get_num_cpus()),
        "GPU": float(torch.cuda.device_count()),
        "memory": float(get_system_memory()),
    }
    return Node(platform.node(), total, total)


def check_demand(demands: list[Demand], nodes: list[Node]) -> None:
    """Raise ClusterError unless the nodes' free resources hold all demands, each actor on one node.

    Nodes are filled greedily, the largest actors first; Ray would otherwise wait for ever. A demand for nothing is not
    mentioned.
    """
    demands = [demand for demand in demands if demand.count and (demand.gpus or demand.cpus)]
    free = [dict(node.free) for node in nodes]
    for demand in sorted(demands, key=lambda demand: (-demand.gpus, -demand.cpus)):
        for _ in range(demand.count):
            node = next(
                (n for n in free if n.get("GPU", 0) >= demand.gpus and n.get("CPU", 0) >= demand.cpus - 1e-9), None
            )
            if node is None:
                raise ClusterError(_refusal(demands, nodes))
            node["GPU"] = node.get("GPU", 0) - demand.gpus
            node["CPU"] = node.get("CPU", 0) - demand.cpus


def shared_gpus(count: int, cpus: float, *, timeout: float) -> list[dict[str, Any]]:
    """Options for `count` pairs of actors, the two of a pair to be given the same ones: both then have the same GPU.

    cpus: Ray CPUs of the two together. Raises ClusterError after `timeout` seconds.
    """
    group = placement_group([{"GPU": 1, "CPU": cpus}] * count)
    wait_ready([group.ready()], "the shared GPUs", timeout)
    return [
        {
            "num_gpus": 0.5,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        }
        for index in range(count)
    ]


def check_one_node(reason: str, nodes: list[Node]) -> None:
    """Raise ClusterError when there is more than one machine that actors may be placed on."""
    names = [node.name for node in nodes if node.total.get("CPU")]
    if len(names) > 1:
        raise ClusterError(f"{reason}, so the cluster must be one machine, but it has {len(names)}: {', '.join(names)}")


def _refusal(demands: list[Demand], nodes: list[Node]) -> str:
    asked = " and ".join(
        f"{d.count} {d.name} ({d.key}={d.count}) with {d.gpus:g} GPU, {d.cpus:g} CPU each" for d in demands
    )
    parts = [
        f"{sum(node.total.get(kind, 0) for node in nodes):g} {kind} "
        f"({sum(node.free.get(kind, 0) for node in nodes):g} free)"
        for kind in ("GPU", "CPU")
    ]
    return (
        f"the run does not fit the cluster: it asks for {asked}; the cluster has {' and '.join(parts)} on "
        f"{len(nodes)} node(s). Lower {' or '.join(d.key for d in demands)}, or free or add resources"
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
