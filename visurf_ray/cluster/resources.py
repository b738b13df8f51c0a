"""The cluster: the connection to it, what it has, and waiting for actors to start."""

import gc
import logging
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import ray
from ray._common.utils import get_system_memory
from ray._private import ray_constants

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
        with _loopback_only() if address == "local" else nullcontext():
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


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Make a Ray that starts here use 127.0.0.1 as this machine's address, as it does on macOS.

    Otherwise it and the actors listen on the machine's address in its network, where others reach them.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        total: its resources by Ray's names: "CPU", "GPU", "memory" in bytes.
        free: how much of these is not in use.
        id: Ray's; empty for a machine that is no part of a cluster.
    """

    name: str
    total: dict[str, float]
    free: dict[str, float]
    id: str = ""


def cluster_nodes() -> list[Node]:
    """Return the nodes of the cluster that this process is connected to, its own first, then by name."""
    # A private function: the public ones tell the free resources of the whole cluster, not those of a node.
    free = ray._private.state.available_resources_per_node()
    here = ray.get_runtime_context().get_node_id()
    nodes = [
        Node(node["NodeManagerHostname"], node["Resources"], dict(free.get(node["NodeID"], {})), node["NodeID"])
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(nodes, key=lambda node: (node.id != here, node.name, node.id))


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
        *_, last = str(error).splitlines()  # the traceback leads through Ray and vLLM
        raise ClusterError(
            f"{what} died while starting, usually for lack of memory (rollout.memory): {last}"
        ) from error
    except ray.exceptions.GetTimeoutError as error:
        raise ClusterError(
            f"{what} did not start in {time.monotonic() - begin:.0f} s (cluster.start_timeout); "
            f"free resources: {ray.available_resources()}"
        ) from error


def computing_threads(cores: int) -> int:
    """Return how many threads the actor that calls this is to compute with: one for each of its Ray CPUs.

    An actor of less than one CPU has one thread; if it is pinned to cores, one on each.

    Args:
        cores: to how many this process is pinned, which are the most threads; 0: not pinned.
    """
    cpus = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 0))
    return min(cpus or cores, cores) if cores else max(1, cpus)
