"""Where the actors of a run that need resources go: a plan on the free resources of a cluster's nodes.

With GPUs:

- A worker's GPUs lie on one node.
- Ranks fill node after node, as many on each as it holds, so that ZeRO's collectives cross few nodes.
- Colocated, a worker of N GPUs stands on those of N consecutive ranks of one node.
- Reward workers and the segmenter get what is left, the larger ones first. A share of a GPU is of one that has no rank
  and no worker.

Without GPUs the actors are spread over the nodes: each goes to the node with the fewest of its kind.

`cluster/reservation.py` reserves a plan.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from visurf_ray.cluster.resources import Node
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
        others: further actors with GPUs, each kind under a name of its own.
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
    """The seats of ranks and workers, by their numbers, on `nodes`; and those of others, with their names."""

    nodes: Sequence[Node]
    ranks: Sequence[Seat]
    workers: Sequence[Seat]
    others: Sequence[tuple[str, Seat]] = ()


class NoRoomError(ClusterError):
    """A cluster's nodes do not hold a run. The message has what was asked for, and what each node has free.

    Attributes:
        request: what was asked for.
    """

    def __init__(self, message: str, request: str) -> None:
        super().__init__(message)
        self.request = request


def plan(sizes: Sizes, nodes: Sequence[Node]) -> Plan:
    """Return where each actor of a run goes on the nodes' free resources.

    Raises:
        NoRoomError: they do not hold it.
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
    except _FullError as error:
        raise _refusal(sizes, nodes) from error
    return Plan(nodes, ranks, workers, others)


class _FullError(Exception):
    """No node has what an actor needs."""


@dataclass
class _Room:
    """What is left of a node while a plan is made.

    Attributes:
        gpus: whole ones.
        shares: what is left of each GPU that is taken in part.
        seated: the number of actors without GPUs, by the key of their kind.
    """

    node: int
    gpus: float
    cpus: float
    shares: list[float] = field(default_factory=list)
    seated: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        whole = (self.gpus + _ROUNDING) // 1
        self.shares, self.gpus = [self.gpus - whole], whole

    def holds(self, gpus: float, cpus: float) -> bool:
        in_part = gpus < 1 and max(self.shares) >= gpus - _ROUNDING
        return (in_part or self.gpus >= math.ceil(gpus)) and self.cpus >= cpus - _ROUNDING

    def times(self, gpus: float, cpus: float) -> int:
        """Return how many actors of this size fit."""
        counts = [int((free + _ROUNDING) // each) for free, each in ((self.gpus, gpus), (self.cpus, cpus)) if each]
        return max(0, min(counts))

    def seat(self, gpus: float, cpus: float, ranks: tuple[int, ...] = ()) -> Seat:
        if 0 < gpus < 1:
            share = min((share for share in self.shares if share >= gpus - _ROUNDING), default=1.0)  # as Ray chooses
            if share < 1:
                self.shares.remove(share)
            else:
                self.gpus -= 1
            self.shares.append(share - gpus)
        else:
            self.gpus -= gpus
        self.cpus -= cpus
        return Seat(self.node, gpus, cpus, ranks)


_ROUNDING = 1e-6  # Ray counts in ten-thousandths


def _fullest(rooms: Sequence[_Room], gpus: float, cpus: float) -> _Room:
    """Return the room with the fewest GPUs that holds an actor: larger gaps stay for larger actors."""
    found = [room for room in rooms if room.holds(gpus, cpus)]
    if not found:
        raise _FullError
    return min(found, key=lambda room: room.gpus)


def _fill(rooms: Sequence[_Room], count: int, gpus: float, cpus: float) -> Iterator[_Room]:
    """Yield the room of each of `count` equal actors, node after node.

    The next node is always the one that holds the most of those that are left; if several do, the fullest.
    """
    while count:
        fitting = [(min(count, room.times(gpus, cpus)), -room.gpus, -room.node) for room in rooms]
        here, _, node = max(fitting, default=(0, 0, 0))
        if not here:
            raise _FullError
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
                raise _FullError
            room = min(found, key=lambda room: (room.seated[each.key], room.seated.total()))
            room.seated[each.key] += 1
            seats[each.key].append(room.seat(0, each.cpus))
    return seats[sizes.ranks.key], seats[sizes.workers.key]


def _refusal(sizes: Sizes, nodes: Sequence[Node]) -> NoRoomError:
    demands = [each for each in (sizes.workers, sizes.ranks, *sizes.others) if each.count and (each.gpus or each.cpus)]
    request = " and ".join(
        f"{each.count} {each.name} ({each.key}={each.count}) with {each.gpus:g} GPU{_rule(sizes, each)}, "
        f"{each.cpus:g} CPU each"
        for each in demands
    )
    keys = " or ".join(each.key for each in demands)
    return NoRoomError(
        f"the run does not fit the cluster: it requests {request}. Lower {keys}, or free or add resources. "
        f"The cluster has\n{free_of_each(nodes)}",
        request,
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
