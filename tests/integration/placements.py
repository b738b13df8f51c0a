"""Reserves plans on a Ray cluster whose nodes say that they have GPUs, and starts stub actors on them.

    python -m tests.integration.placements

Prints a line of JSON: what the actors of each case report, and the errors of those that do not fit.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Timer
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from visurf_ray.cluster.placement import Demand, Plan, Sizes, plan
from visurf_ray.cluster.reservation import await_room, reserved
from visurf_ray.cluster.resources import cluster_nodes
from visurf_ray.errors import ClusterError

CPUS = 0.1  # of each actor


@ray.remote
class Stub:
    """In place of a rank or a worker. It knows where it is."""

    def seen(self) -> dict[str, Any]:
        """Return the node, the GPUs that Ray has given to this actor, and those of the actors that vLLM would start."""
        found = {"node": ray.get_runtime_context().get_node_id(), "gpus": self.gpus(), "vllm": []}
        if indices := os.environ.get("VLLM_RAY_BUNDLE_INDICES"):  # as vLLM's RayExecutorV2 does
            group = ray.util.get_current_placement_group()
            children = [
                Stub.options(  # type: ignore[attr-defined]
                    num_cpus=0,
                    num_gpus=float(os.environ["VLLM_RAY_PER_WORKER_GPUS"]),
                    scheduling_strategy=PlacementGroupSchedulingStrategy(
                        group, placement_group_bundle_index=int(index)
                    ),
                ).remote()
                for index in indices.split(",")
            ]
            found["vllm"] = ray.get([child.gpus.remote() for child in children])
        return found

    def gpus(self) -> list[str]:
        """Return the GPUs that this process sees."""
        assigned = ray.get_runtime_context().get_accelerator_ids()["GPU"]
        assert not assigned or os.environ["CUDA_VISIBLE_DEVICES"].split(",") == assigned
        return assigned


OTHERS = (
    Demand("reward workers", "reward.workers", 3, 0.25, 0),
    Demand("segmenter", "eval.segmenter_gpus", 1, 1, 0),
)


def sizes(ranks: int, workers: int, gpus: int, *, colocated: bool, others: Sequence[Demand] = ()) -> Sizes:
    return Sizes(
        Demand("learner ranks", "learner.ranks", ranks, min(gpus, 1), CPUS),
        Demand("rollout workers", "rollout.workers", workers, gpus, CPUS),
        colocated,
        others,
    )


def report(found: Plan) -> dict[str, Any]:
    """Reserve the plan, and return what actors on it see; the nodes by their positions in the list."""
    position = {node.id: index for index, node in enumerate(found.nodes)}
    with reserved(found, timeout=30) as places:
        free = [node.free.get("GPU", 0) for node in cluster_nodes()]  # before any actor has started
        options = {"ranks": places.ranks, "workers": places.workers, **places.others}
        actors = {
            name: [Stub.options(**place).remote() for place in each]  # type: ignore[attr-defined]
            for name, each in options.items()
        }
        seen = {name: ray.get([actor.seen.remote() for actor in each], timeout=60) for name, each in actors.items()}
    for each in seen.values():
        for actor in each:
            actor["node"] = position[actor["node"]]
    return {**seen, "free": free}


@contextmanager
def taken(*gpus: int) -> Iterator[PlacementGroup | None]:
    """Take so many GPUs of each node, with the group that is yielded; returns to all free."""
    wait_until_free()
    named = [node for node in cluster_nodes() if node.total.get("GPU")]
    bundles = [({"GPU": count}, {"ray.io/node-id": node.id}) for count, node in zip(gpus, named, strict=True) if count]
    if not bundles:
        yield None
        return
    group = placement_group([bundle for bundle, _ in bundles], bundle_label_selector=[label for _, label in bundles])
    ray.get(group.ready(), timeout=30)
    yield group
    remove_placement_group(group)


def wait_until_free() -> None:
    deadline = time.monotonic() + 30
    while any(node.free.get(kind) != node.total.get(kind) for node in cluster_nodes() for kind in ("GPU", "CPU")):
        assert time.monotonic() < deadline, cluster_nodes()
        time.sleep(0.1)


def refused(found: Sequence[Any], timeout: float) -> dict[str, Any]:
    """Return the error of a plan or of its reservation, and the seconds that it took."""
    make, *arguments = found
    begin = time.monotonic()
    try:
        result = make(*arguments)
        with reserved(result, timeout):
            return {"error": "", "seconds": time.monotonic() - begin}
    except ClusterError as error:
        return {"error": str(error), "seconds": time.monotonic() - begin}


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False})
    found: dict[str, Any] = {}
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, num_gpus=8)
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        found["totals"] = [node.total.get("GPU", 0) for node in cluster_nodes()]
        for name, others, asked in (
            ("pairs", (5, 6), sizes(3, 3, 1, colocated=True)),
            ("stacks", (5, 5), sizes(4, 2, 2, colocated=True)),
            ("apart", (5, 3), sizes(4, 1, 4, colocated=False)),
            ("cpus", (0, 0), sizes(2, 2, 0, colocated=False)),
            ("others", (4, 8), sizes(2, 2, 1, colocated=True, others=OTHERS)),
            ("only others", (0, 0), sizes(1, 1, 0, colocated=False, others=OTHERS)),
        ):
            with taken(*others):
                found[name] = report(plan(asked, cluster_nodes()))
        one_of_four = sizes(4, 1, 4, colocated=True)
        wait_until_free()
        early = plan(one_of_four, cluster_nodes())
        with taken(5, 5):  # six are free, three on each
            found["fragmented"] = refused((plan, one_of_four, cluster_nodes()), timeout=30)
            found["late"] = refused((lambda: early,), timeout=1)
        with taken(8, 8) as group:
            begin = time.monotonic()
            Timer(2, remove_placement_group, [group]).start()
            await_room(partial(plan, sizes(2, 2, 1, colocated=True)), 30)
            found["waited"] = time.monotonic() - begin
        with taken(6, 8):
            found["no room for others"] = refused(
                (plan, sizes(1, 1, 1, colocated=False, others=OTHERS), cluster_nodes()), timeout=30
            )
        wait_until_free()  # also what was asked for in vain
    finally:
        ray.shutdown()
        cluster.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
