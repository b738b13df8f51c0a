"""Reserves a plan: one placement group of Ray for the whole run, in which each bundle is bound to its node.

For actors without GPUs nothing is reserved: they are sent to their nodes.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from visurf_ray.aliases import ActorOptions
from visurf_ray.cluster.placement import NoRoomError, Plan, Seat, free_of_each
from visurf_ray.cluster.resources import Node, cluster_nodes
from visurf_ray.errors import ClusterError


@dataclass(frozen=True)
class Places:
    """Ray's options of each rank, of each worker, and of others by their names."""

    ranks: Sequence[ActorOptions]
    workers: Sequence[ActorOptions]
    others: Mapping[str, Sequence[ActorOptions]]


def await_room(plan_on: Callable[[Sequence[Node]], Plan], seconds: float) -> None:
    """Wait until a run fits what is free on the cluster's nodes, and say so, if it does not fit at once.

    Args:
        plan_on: plans the run on nodes; raises NoRoomError if it does not fit.
        seconds: the longest wait. 0: none.

    Raises:
        NoRoomError: it does not fit in time.
    """
    deadline, told = time.monotonic() + seconds, False
    while True:
        try:
            plan_on(cluster_nodes())
            return
        except NoRoomError as error:
            if time.monotonic() >= deadline:
                raise
            request = error.request
        if not told:
            print(
                f"the run goes on from an earlier one, whose resources are not free yet: it requests {request}. "
                f"Waiting for them up to {seconds:g} s (cluster.start_timeout)",
                flush=True,
            )
            told = True
        time.sleep(1)


@contextmanager
def reserved(plan: Plan, timeout: float) -> Iterator[Places]:
    """Reserve the seats of a plan inside the context. At the end the actors on reserved GPUs end as well.

    Args:
        timeout: seconds to wait for the GPUs, which others may have taken since the plan was made.

    Raises:
        ClusterError: they are not free in time.
    """
    bundles, nodes = _bundles(plan)
    if not bundles:
        yield _places(plan, PlacementGroup.empty())
        return
    group = placement_group(bundles, bundle_label_selector=[{"ray.io/node-id": node.id} for node in nodes])
    try:
        if not ray.wait([group.ready()], timeout=timeout)[0]:
            raise ClusterError(
                f"the GPUs of the run were not free in {timeout:g} s (cluster.start_timeout): others have taken some "
                f"since the check. Wait for them, or free or add resources. The cluster has\n"
                f"{free_of_each(cluster_nodes())}"
            )
        yield _places(plan, group)
    finally:
        remove_placement_group(group)


def _bundles(plan: Plan) -> tuple[list[dict[str, float]], list[Node]]:
    """Return the bundles, and the node of each: of ranks, workers and others, of each that has GPUs of its own.

    A colocated worker's CPUs are in the bundle of its first rank.
    """
    cpus = [seat.cpus for seat in plan.ranks]
    for worker in plan.workers:
        if worker.ranks:
            cpus[worker.ranks[0]] += worker.cpus
    others = [*plan.workers, *(seat for _, seat in plan.others)]
    seats = [*zip(plan.ranks, cpus, strict=True), *((seat, seat.cpus) for seat in others)]
    seats = [(seat, each) for seat, each in seats if seat.gpus]
    bundles = [{"GPU": seat.gpus} | ({"CPU": each} if each else {}) for seat, each in seats]
    return bundles, [plan.nodes[seat.node] for seat, _ in seats]


def _places(plan: Plan, group: PlacementGroup) -> Places:
    """Return where to start the actors of a plan: in the bundles of `_bundles`, or on nodes."""
    bundles = count()

    def in_bundle(bundle: int, gpus: float, cpus: float) -> ActorOptions:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        return {"num_gpus": gpus, "num_cpus": cpus, "scheduling_strategy": strategy}

    def own(seat: Seat, gpus: float) -> ActorOptions:
        if seat.gpus:
            return in_bundle(next(bundles), gpus, seat.cpus)
        node = NodeAffinitySchedulingStrategy(plan.nodes[seat.node].id, soft=False)
        return {"num_gpus": 0, "num_cpus": seat.cpus, "scheduling_strategy": node}

    shared = any(worker.ranks for worker in plan.workers)
    ranks = [own(seat, _SHARE if shared else seat.gpus) for seat in plan.ranks]
    workers = []
    for seat in plan.workers:
        if not seat.ranks:
            workers.append(own(seat, seat.gpus))
        elif len(seat.ranks) == 1:
            workers.append(in_bundle(seat.ranks[0], _SHARE, seat.cpus))
        else:  # vLLM starts an actor in the bundle of each rank, which takes the share
            workers.append(in_bundle(seat.ranks[0], 0, seat.cpus) | {"runtime_env": {"env_vars": _bundles_of(seat)}})
    others = defaultdict(list)
    for name, seat in plan.others:
        others[name].append(own(seat, seat.gpus))
    return Places(ranks, workers, dict(others))


_SHARE = 0.5  # of a GPU that a rank and a worker share


def _bundles_of(seat: Seat) -> dict[str, str]:
    """Return the variables that tell vLLM's Ray executor where to compute, as in its examples/rl/rlhf_ipc.py."""
    return {
        "VLLM_RAY_BUNDLE_INDICES": ",".join(map(str, seat.ranks)),
        "VLLM_RAY_PER_WORKER_GPUS": str(_SHARE),
    }
