"""Reserves a plan: one placement group of Ray for the whole run, in which each bundle is bound to its node.

Without GPUs nothing is reserved: actors are sent to their nodes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from visurf_ray.aliases import ActorOptions
from visurf_ray.cluster.placement import Plan, Seat, free_of_each
from visurf_ray.cluster.resources import Node, cluster_nodes
from visurf_ray.errors import ClusterError


@dataclass(frozen=True)
class Places:
    """Ray's options of each rank and of each worker."""

    ranks: Sequence[ActorOptions]
    workers: Sequence[ActorOptions]


@contextmanager
def reserved(plan: Plan, timeout: float) -> Iterator[Places]:
    """Reserve the seats of ranks and workers inside the context. At the end the actors on reserved GPUs end as well.

    Args:
        timeout: seconds to wait for the GPUs, which others may have taken since the plan was made.

    Raises:
        ClusterError: they are not free in time.
    """
    if not any(seat.gpus for seat in (*plan.ranks, *plan.workers)):
        yield Places(_on_nodes(plan.nodes, plan.ranks), _on_nodes(plan.nodes, plan.workers))
        return
    bundles, nodes = _bundles(plan)
    group = placement_group(bundles, bundle_label_selector=[{"ray.io/node-id": node.id} for node in nodes])
    try:
        if not ray.wait([group.ready()], timeout=timeout)[0]:
            raise ClusterError(
                f"the GPUs of the run were not free in {timeout:g} s (cluster.start_timeout): others have taken some "
                f"since the check. Wait for them, or free or add resources. The cluster has\n"
                f"{free_of_each(cluster_nodes())}"
            )
        yield _in_bundles(plan, group)
    finally:
        remove_placement_group(group)


def _on_nodes(nodes: Sequence[Node], seats: Sequence[Seat]) -> list[ActorOptions]:
    return [
        {
            "num_cpus": seat.cpus,
            "num_gpus": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(nodes[seat.node].id, soft=False),
        }
        for seat in seats
    ]


def _bundles(plan: Plan) -> tuple[list[dict[str, float]], list[Node]]:
    """Return the bundles, and the node of each: of every rank, then of every worker with GPUs of its own.

    A colocated worker's CPUs are in the bundle of its first rank.
    """
    cpus = [seat.cpus for seat in plan.ranks]
    for worker in plan.workers:
        if worker.ranks:
            cpus[worker.ranks[0]] += worker.cpus
    own = [seat for seat in plan.workers if not seat.ranks]
    seats = [*zip(plan.ranks, cpus, strict=True), *((seat, seat.cpus) for seat in own)]
    bundles = [{"GPU": seat.gpus} | ({"CPU": each} if each else {}) for seat, each in seats]
    return bundles, [plan.nodes[seat.node] for seat, _ in seats]


def _in_bundles(plan: Plan, group: PlacementGroup) -> Places:
    def options(bundle: int, gpus: float, cpus: float) -> ActorOptions:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        return {"num_gpus": gpus, "num_cpus": cpus, "scheduling_strategy": strategy}

    shared = any(worker.ranks for worker in plan.workers)
    ranks = [options(rank, _SHARE if shared else seat.gpus, seat.cpus) for rank, seat in enumerate(plan.ranks)]
    workers = []
    for number, seat in enumerate(plan.workers):
        if not seat.ranks:
            workers.append(options(len(plan.ranks) + number, seat.gpus, seat.cpus))
        elif len(seat.ranks) == 1:
            workers.append(options(seat.ranks[0], _SHARE, seat.cpus))
        else:  # vLLM starts an actor in the bundle of each rank, which takes the share
            workers.append(options(seat.ranks[0], 0, seat.cpus) | {"runtime_env": {"env_vars": _bundles_of(seat)}})
    return Places(ranks, workers)


_SHARE = 0.5  # of a GPU that a rank and a worker share


def _bundles_of(seat: Seat) -> dict[str, str]:
    """Return the variables that tell vLLM's Ray executor where to compute, as in its examples/rl/rlhf_ipc.py."""
    return {
        "VLLM_RAY_BUNDLE_INDICES": ",".join(map(str, seat.ranks)),
        "VLLM_RAY_PER_WORKER_GPUS": str(_SHARE),
    }
