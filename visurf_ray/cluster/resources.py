"""Resources of the cluster: what it has, whether a run fits, and where actors go."""

import gc
import logging
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray._common.utils import get_system_memory
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from visurf_ray.aliases import ActorOptions
from visurf_ray.cluster.deaths import deaths_explained
from visurf_ray.errors import ClusterError


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to the Ray cluster at `address`, and disconnect at the end.

    A process that is connected already, such as a notebook, keeps its connection and its cluster.

    Raises:
        ClusterError: there is no cluster at the address, or an actor died; see `deaths_explained`.
    """
    if ray.is_initialized():
        with deaths_explained():
            yield
        return
    # Ray logs a warning that token authentication is on, its default. It is on purpose.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        raise ClusterError(
            f"no Ray cluster at cluster.address={address}: start one with `bash launch/local.sh`, "
            "or set cluster.address=local to run in this process"
        ) from error
    if callable(on_sigterm):  # Ray has replaced the program's handler
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        with deaths_explained():
            yield
    finally:
        # Ray has a thread that collects garbage. If it frees one of Ray's references while Ray shuts down, the process
        # ends at once with status 1, so leave it none.
        gc.collect()
        ray.shutdown()


@dataclass(frozen=True)
class Demand:
    """A number of equal actors.

    Attributes:
        name: what they are called in messages.
        key: the configuration key that sets `count`.
        gpus: of each actor.
        cpus: Ray CPUs of each actor.
    """

    name: str
    key: str
    count: int
    gpus: float
    cpus: float


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        total: its resources by Ray's names: "CPU", "GPU", "memory" in bytes.
        free: how much of these is not in use.
    """

    name: str
    total: dict[str, float]
    free: dict[str, float]


def cluster_nodes() -> list[Node]:
    """Return the nodes of the cluster that this process is connected to."""
    # A private function: the public ones tell the free resources of the whole cluster, not those of a node.
    free = ray._private.state.available_resources_per_node()
    return [
        Node(node["NodeManagerHostname"], node["Resources"], dict(free.get(node["NodeID"], {})))
        for node in ray.nodes()
        if node["Alive"]
    ]


def this_machine() -> Node:
    """Return the resources that a Ray cluster would have if it were started on this machine."""
    import torch

    # Private functions, which `ray start` uses: they know a container's limits, where psutil knows the host's.
    total = {
        "CPU": float(ray._private.utils.get_num_cpus()),
        "GPU": float(torch.cuda.device_count()),
        "memory": float(get_system_memory()),
    }
    return Node(platform.node(), total, total)


def check_demand(demands: list[Demand], nodes: list[Node]) -> None:
    """Check that the nodes' free resources hold all demands, each actor on one node.

    Ray would wait for ever for what does not fit. The check fills nodes greedily, the largest actors first.

    Raises:
        ClusterError: the demands do not fit.
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


@contextmanager
def shared_gpus(count: int, cpus: float, *, timeout: float) -> Iterator[list[ActorOptions]]:
    """Reserve a GPU for each of `count` pairs of actors inside the context, and give Ray's options for each pair.

    Pass the same options to both actors of a pair: they then share the GPU. At the end the actors are ended as well.

    Args:
        cpus: Ray CPUs of both actors together.
        timeout: seconds to wait for the GPUs.

    Raises:
        ClusterError: the GPUs are not free in time.
    """
    group = placement_group([{"GPU": 1, "CPU": cpus}] * count)
    try:
        wait_ready([group.ready()], "the shared GPUs", timeout)
        yield [
            {
                "num_gpus": 0.5,
                "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            }
            for index in range(count)
        ]
    finally:
        remove_placement_group(group)


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
        f"the run does not fit the cluster: it requests {asked}; the cluster has {' and '.join(parts)} on "
        f"{len(nodes)} node(s). Lower {' or '.join(d.key for d in demands)}, or free or add resources"
    )


def wait_ready(references: list[ray.ObjectRef], what: str, timeout: float) -> None:
    """Wait for actors to start.

    Args:
        references: results of a call to each actor.
        what: what the actors are called in messages.
        timeout: seconds to wait.

    Raises:
        ClusterError: an actor died, or did not start in time.
    """
    begin = time.monotonic()
    try:
        ray.get(references, timeout=timeout)
    except ray.exceptions.RayActorError as error:
        raise ClusterError(
            f"{what} died while starting, usually for lack of memory (rollout.memory): {error}"
        ) from error
    except ray.exceptions.GetTimeoutError as error:
        raise ClusterError(
            f"{what} did not start in {time.monotonic() - begin:.0f} s (cluster.start_timeout); "
            f"free resources: {ray.available_resources()}"
        ) from error
