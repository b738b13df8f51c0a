"""Where the learner ranks and rollout workers of a run go: a plan on the nodes of a cluster, and its reservation.

With GPUs:

- A worker's GPUs lie on one node.
- Ranks fill node after node, as many on each as it holds, so that ZeRO's collectives cross few nodes.
- Colocated, a worker of N GPUs stands on those of N consecutive ranks of one node.

A placement group of Ray reserves the plan: each bundle is bound to its node. Without GPUs nothing is reserved, and the
actors are spread over the nodes: each goes to the node with the fewest of its kind.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from visurf_ray.aliases import ActorOptions
from visurf_ray.cluster.resources import Node, cluster_nodes
from visurf_ray.errors import ClusterError


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
class Sizes:
    """What a run asks a cluster for.

    Attributes:
        ranks: the learner ranks; an evaluation has none.
        workers: the rollout workers.
        colocated: whether workers stand on the GPUs of the ranks; there are then as many ranks as GPUs of all workers.
        others: actors that Ray puts where there is room beside these.
    """

    ranks: Demand
    workers: Demand
    colocated: bool = False
    others: Sequence[Demand] = ()

    @property
    def gpus(self) -> float:
        """All GPUs of ranks and workers."""
        apart = self.workers.count * self.workers.gpus
        return self.ranks.count * self.ranks.gpus + (0 if self.colocated else apart)


@dataclass(frozen=True)
class Seat:
    """Where one actor goes.

    Attributes:
        node: its node, by the position in the list that was planned with.
        ranks: of a colocated worker, the ranks on whose GPUs it stands.
    """

    node: int
    gpus: float
    cpus: float
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The seats of ranks and workers, by their numbers, on `nodes`; and the nodes of others, by their names."""

    nodes: Sequence[Node]
    ranks: Sequence[Seat]
    workers: Sequence[Seat]
    others: Sequence[tuple[str, Seat]] = ()


def plan(sizes: Sizes, nodes: Sequence[Node]) -> Plan:
    """Return where each actor of a run goes on the nodes' free resources.

    Raises:
        ClusterError: they do not hold it. The message has what was asked for, and what each node has free.
    """
    rooms = [_Room(index, node.free.get("GPU", 0), node.free.get("CPU", 0)) for index, node in enumerate(nodes)]
    try:
        if not sizes.gpus:
            ranks, workers = _spread(sizes, rooms)
        elif sizes.colocated:
            ranks, workers = _together(sizes, rooms)
        else:
            ranks, workers = _apart(sizes, rooms)
        others = [
            (each.name, _fullest(rooms, each.gpus, each.cpus).seat(each.gpus, each.cpus))
            for each in sorted(sizes.others, key=lambda demand: -demand.gpus)
            for _ in range(each.count)
        ]
    except _NoRoomError as error:
        raise ClusterError(_refusal(sizes, nodes)) from error
    return Plan(nodes, ranks, workers, others)


class _NoRoomError(Exception):
    """No node has what an actor needs."""


@dataclass
class _Room:
    """What is left of a node while a plan is made."""

    node: int
    gpus: float
    cpus: float
    seated: Counter[str] = field(default_factory=Counter)  # actors without GPUs, by the key of their kind

    def holds(self, gpus: float, cpus: float) -> bool:
        return self.gpus >= gpus - _ROUNDING and self.cpus >= cpus - _ROUNDING

    def times(self, gpus: float, cpus: float) -> int:
        """Return how many actors of this size fit."""
        counts = [int((free + _ROUNDING) // each) for free, each in ((self.gpus, gpus), (self.cpus, cpus)) if each]
        return max(0, min(counts))

    def seat(self, gpus: float, cpus: float, ranks: tuple[int, ...] = ()) -> Seat:
        self.gpus -= gpus
        self.cpus -= cpus
        return Seat(self.node, gpus, cpus, ranks)


_ROUNDING = 1e-6  # Ray counts in ten-thousandths


def _fullest(rooms: Sequence[_Room], gpus: float, cpus: float) -> _Room:
    """Return the room with the fewest GPUs that holds an actor: larger gaps stay for larger actors."""
    found = [room for room in rooms if room.holds(gpus, cpus)]
    if not found:
        raise _NoRoomError
    return min(found, key=lambda room: room.gpus)


def _fill(rooms: Sequence[_Room], count: int, gpus: float, cpus: float) -> Iterator[_Room]:
    """Yield the room of each of `count` equal actors, node after node.

    The next node is always the one that holds the most of those that are left; if several do, the fullest.
    """
    while count:
        fitting = [(min(count, room.times(gpus, cpus)), -room.gpus, -room.node) for room in rooms]
        here, _, node = max(fitting, default=(0, 0, 0))
        if not here:
            raise _NoRoomError
        yield from [rooms[-node]] * here
        count -= here


def _apart(sizes: Sizes, rooms: Sequence[_Room]) -> tuple[list[Seat], list[Seat]]:
    """Seat workers and ranks on GPUs of their own. Workers first: a rank fits wherever a GPU is left."""
    rank, worker = sizes.ranks, sizes.workers
    workers = [_fullest(rooms, worker.gpus, worker.cpus).seat(worker.gpus, worker.cpus) for _ in range(worker.count)]
    ranks = [room.seat(rank.gpus, rank.cpus) for room in _fill(rooms, rank.count, rank.gpus, rank.cpus)]
    return ranks, workers


def _together(sizes: Sizes, rooms: Sequence[_Room]) -> tuple[list[Seat], list[Seat]]:
    """Seat blocks of a worker and the ranks that it stands on."""
    rank, worker = sizes.ranks, sizes.workers
    width = rank.count // worker.count
    ranks: list[Seat] = []
    workers: list[Seat] = []
    for room in _fill(rooms, worker.count, width, width * rank.cpus + worker.cpus):
        under = tuple(range(len(ranks), len(ranks) + width))
        ranks += [room.seat(rank.gpus, rank.cpus) for _ in under]
        workers.append(room.seat(0, worker.cpus, under))
    return ranks, workers


def _spread(sizes: Sizes, rooms: Sequence[_Room]) -> tuple[list[Seat], list[Seat]]:
    """Seat actors without GPUs, the larger ones first."""
    seats: dict[str, list[Seat]] = {}
    for each in sorted((sizes.workers, sizes.ranks), key=lambda demand: -demand.cpus):
        seats[each.key] = []
        for _ in range(each.count):
            found = [room for room in rooms if room.holds(0, each.cpus)]
            if not found:
                raise _NoRoomError
            room = min(found, key=lambda room: (room.seated[each.key], room.seated.total()))
            room.seated[each.key] += 1
            seats[each.key].append(room.seat(0, each.cpus))
    return seats[sizes.ranks.key], seats[sizes.workers.key]


def _refusal(sizes: Sizes, nodes: Sequence[Node]) -> str:
    demands = [each for each in (sizes.workers, sizes.ranks, *sizes.others) if each.count and (each.gpus or each.cpus)]
    asked = " and ".join(
        f"{each.count} {each.name} ({each.key}={each.count}) with {each.gpus:g} GPU{_rule(sizes, each)}, "
        f"{each.cpus:g} CPU each"
        for each in demands
    )
    keys = " or ".join(each.key for each in demands)
    return (
        f"the run does not fit the cluster: it requests {asked}. Lower {keys}, or free or add resources. "
        f"The cluster has\n{free_of_each(nodes)}"
    )


def _rule(sizes: Sizes, demand: Demand) -> str:
    if demand is not sizes.workers or not sizes.gpus:
        return ""
    return " of ranks on one node" if sizes.colocated else " on one node" if demand.gpus > 1 else ""


_LINES = 64  # of a message: a cluster may have thousands of nodes


def free_of_each(nodes: Sequence[Node]) -> str:
    """Return what each node has free, a line for each."""
    lines = []
    for node in nodes:
        kinds = [kind for kind in ("GPU", "CPU") if kind in node.total]
        has = ", ".join(f"{node.total[kind]:g} {kind} ({node.free.get(kind, 0):g} free)" for kind in kinds)
        lines.append(f"  {node.name}: {has or 'no GPU and no CPU'}")
    more = [f"  and {len(lines) - _LINES} more nodes"] if len(lines) > _LINES else []
    return "\n".join(lines[:_LINES] + more) or "  no nodes"


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
