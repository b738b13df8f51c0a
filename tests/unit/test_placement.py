"""The plan of a run: many shapes on many clusters, without Ray."""

from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import ray
from ray.util.placement_group import PlacementGroup

from visurf_ray.actors import start_rewards, start_segmentation
from visurf_ray.assembly import patience
from visurf_ray.checks import plan_run
from visurf_ray.cluster import reservation
from visurf_ray.cluster.placement import Demand, Plan, Sizes, plan
from visurf_ray.cluster.reservation import _bundles, _places, await_room
from visurf_ray.cluster.resources import Node
from visurf_ray.config.load import load_config
from visurf_ray.errors import ClusterError
from visurf_ray.rewards import pool
from visurf_ray.rewards.spec import RewardSpec
from visurf_ray.scoring import segmentation


def nodes(*gpus: float, cpus: float = 64) -> list[Node]:
    """Nodes with so many free GPUs each, of 8."""
    return [
        Node(f"node-{index}", {"GPU": 8.0, "CPU": cpus}, {"GPU": free, "CPU": cpus}, f"{index:056x}")
        for index, free in enumerate(gpus)
    ]


def sizes(ranks: int, workers: int, gpus: int = 1, *, colocated: bool = False, others=(), cpus: float = 0.5) -> Sizes:
    return Sizes(
        Demand("learner ranks", "learner.ranks", ranks, 1 if gpus else 0, cpus),
        Demand("rollout workers", "rollout.workers", workers, gpus, cpus),
        colocated,
        others,
    )


def colocated(workers: int, gpus: int = 1) -> Sizes:
    return sizes(workers * gpus, workers, gpus, colocated=True)


def where(seats) -> list[int]:
    return [seat.node for seat in seats]


def runs(numbers) -> int:
    """How many runs of equal numbers there are."""
    return 1 + sum(a != b for a, b in pairwise(numbers)) if numbers else 0


# What each rule means


@pytest.mark.parametrize(
    ("free", "asked", "ranks", "workers"),
    [
        ([1], colocated(1), [0], [0]),
        ([8], colocated(8), [0] * 8, [0] * 8),
        ([8], colocated(2, 4), [0] * 8, [0] * 2),
        ([8, 8], colocated(16), [0] * 8 + [1] * 8, [0] * 8 + [1] * 8),
        ([8, 8, 8, 8], colocated(4, 8), [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8, [0, 1, 2, 3]),
        ([4, 8], colocated(8), [1] * 8, [1] * 8),  # the emptiest node first: nothing crosses a node
        ([8, 3, 5], colocated(3, 4), [0] * 8 + [2] * 4, [0, 0, 2]),
        ([8, 8, 4], colocated(12), [0] * 8 + [2] * 4, [0] * 8 + [2] * 4),  # node 1 stays whole
        ([8], sizes(4, 4), [0] * 4, [0] * 4),
        ([8, 8], sizes(4, 4), [0] * 4, [0] * 4),  # on one node, though there are two
        ([8, 8], sizes(8, 8), [1] * 8, [0] * 8),
        ([8, 8], sizes(8, 2, 4), [1] * 8, [0] * 2),
        ([8, 3], sizes(6, 1, 4), [0] * 4 + [1] * 2, [0]),  # the worker needs the large gap, the ranks do not
        ([0, 8], sizes(4, 4), [1] * 4, [1] * 4),  # a head without GPUs
        ([8, 8, 8], sizes(0, 3, 8), [], [0, 1, 2]),  # an evaluation
    ],
)
def test_where_actors_go(free, asked, ranks, workers):
    found = plan(asked, nodes(*free))
    assert (where(found.ranks), where(found.workers)) == (ranks, workers)


def test_a_colocated_worker_stands_on_consecutive_ranks():
    found = plan(colocated(4, 4), nodes(8, 8))
    assert [seat.ranks for seat in found.workers] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15)]
    assert [seat.gpus for seat in found.workers] == [0] * 4


def test_shares_of_a_gpu_lie_on_gpus_that_nobody_has_whole():
    """Two shares of 0.6 need two GPUs, though both together are 1.2."""
    rewards, segmenter = Demand("rewards", "reward.workers", 2, 0.6, 0), Demand("segmenter", "key", 1, 0.4, 0)
    found = plan(sizes(3, 3, others=[segmenter, rewards]), nodes(8))
    assert [(name, seat.gpus) for name, seat in found.others] == [("rewards", 0.6)] * 2 + [("segmenter", 0.4)]
    assert plan(sizes(1, 1, others=[segmenter]), nodes(2.5)).others, "on the half GPU"
    for asked, free in (
        (sizes(4, 3, others=[rewards]), 8),
        (sizes(3, 3, others=[Demand("rewards", "reward.workers", 3, 0.6, 0)]), 8),
        (sizes(1, 1, others=[rewards]), 2.5),
    ):
        with pytest.raises(ClusterError, match=r"0\.6 GPU"):
            plan(asked, nodes(free))


def test_others_go_to_what_is_left():
    rewards = Demand("reward workers", "reward.workers", 2, 0.5, 0)
    found = plan(sizes(4, 3, others=[rewards]), nodes(8))
    assert [name for name, _ in found.others] == ["reward workers"] * 2
    with pytest.raises(ClusterError, match=r"2 reward workers \(reward\.workers=2\) with 0\.5 GPU"):
        plan(sizes(4, 4, others=[rewards]), nodes(8))


@pytest.mark.parametrize(
    ("free", "asked"),
    [
        ([1, 1], sizes(0, 1, 2)),  # as many GPUs as asked for, but not on one node
        ([4, 4], colocated(1, 8)),
        ([3, 5], colocated(2, 4)),
        ([6, 6, 4], colocated(4, 4)),
        ([7, 7], sizes(8, 2, 4)),
        ([8], colocated(9)),
        ([], colocated(1)),
        ([0], colocated(1)),
    ],
)
def test_what_does_not_fit_is_refused_with_what_each_node_has_free(free, asked):
    with pytest.raises(ClusterError) as error:
        plan(asked, nodes(*free))
    first, *lines = str(error.value).splitlines()
    assert f"rollout.workers={asked.workers.count}) with {asked.workers.gpus} GPU" in first
    assert [line.strip() for line in lines] == [
        f"node-{index}: 8 GPU ({gpus} free), 64 CPU (64 free)" for index, gpus in enumerate(free)
    ] or lines == ["  no nodes"]


def test_cpus_count_too():
    with pytest.raises(ClusterError, match=r"2 CPU \(2 free\)"):
        plan(colocated(8), nodes(8, cpus=2))
    found = plan(sizes(4, 4), nodes(8, 8, cpus=2))
    assert sorted(where([*found.ranks, *found.workers])) == [0] * 4 + [1] * 4


def test_the_message_of_a_huge_cluster_is_short():
    with pytest.raises(ClusterError) as error:
        plan(colocated(9000), nodes(*[8] * 200))
    assert len(str(error.value)) < 5000 and "and 136 more nodes" in str(error.value)


# Without GPUs


@pytest.mark.parametrize(
    ("machines", "workers", "ranks", "expected"),
    [
        (1, 1, 1, ([0], [0])),
        (1, 3, 2, ([0, 0, 0], [0, 0])),
        (2, 2, 2, ([0, 1], [0, 1])),
        (2, 1, 1, ([0], [1])),
        (2, 1, 2, ([0], [1, 0])),
        (3, 4, 2, ([0, 1, 2, 0], [1, 2])),
    ],
)
def test_actors_without_gpus_are_spread(machines, workers, ranks, expected):
    found = plan(sizes(ranks, workers, 0), nodes(*[0] * machines))
    assert (where(found.workers), where(found.ranks)) == expected


def test_larger_actors_without_gpus_go_first():
    asked = Sizes(Demand("ranks", "learner.ranks", 1, 0, 2), Demand("workers", "rollout.workers", 2, 0, 1))
    found = plan(asked, nodes(0, 0, cpus=2))
    assert (where(found.ranks), where(found.workers)) == ([0], [1, 1])


def test_actors_that_ask_for_nothing_fit_everywhere():
    found = plan(sizes(3, 2, 0, cpus=0), nodes(0, cpus=0))
    assert where(found.ranks) == [0] * 3


# What Ray and vLLM are told


def test_the_options_of_actors_on_shared_gpus():
    """The bundles of the placement group are those of the ranks, in their order."""
    places = _places(plan(colocated(2), nodes(8)), GROUP)
    for each in (places.ranks, places.workers):
        assert [options["scheduling_strategy"].placement_group_bundle_index for options in each] == [0, 1]
        assert [(options["num_gpus"], options["num_cpus"]) for options in each] == [(0.5, 0.5)] * 2
    assert "runtime_env" not in places.workers[0], "the engine computes in its actor's process"


def test_the_options_of_a_worker_on_the_gpus_of_several_ranks():
    places = _places(plan(colocated(2, 4), nodes(8)), GROUP)
    assert [options["num_gpus"] for options in places.ranks] == [0.5] * 8
    assert [options["num_gpus"] for options in places.workers] == [0, 0]
    assert [options["scheduling_strategy"].placement_group_bundle_index for options in places.workers] == [0, 4]
    assert places.workers[1]["runtime_env"]["env_vars"] == {
        "VLLM_RAY_BUNDLE_INDICES": "4,5,6,7",
        "VLLM_RAY_PER_WORKER_GPUS": "0.5",
    }


def test_the_options_of_actors_apart():
    places = _places(plan(sizes(3, 2, 2), nodes(8)), GROUP)
    assert [options["num_gpus"] for options in places.ranks] == [1] * 3
    assert [options["num_gpus"] for options in places.workers] == [2] * 2
    assert [options["scheduling_strategy"].placement_group_bundle_index for options in places.workers] == [3, 4]


@pytest.mark.parametrize(("asked", "first"), [(sizes(2, 2), 4), (colocated(2), 2), (sizes(2, 2, 0), 0)])
def test_others_have_bundles_of_their_own_after_those_of_ranks_and_workers(asked, first):
    rewards, segmenter = Demand("reward workers", "reward.workers", 2, 0.25, 0), Demand("segmenter", "key", 1, 1, 0)
    found = plan(Sizes(asked.ranks, asked.workers, asked.colocated, [rewards, segmenter]), nodes(8))
    assert [bundle["GPU"] for bundle in _bundles(found)[0]] == [1] * first + [1, 0.25, 0.25]
    places = _places(found, GROUP).others
    (segmenter_place,), reward_places = places["segmenter"], places["reward workers"]
    bundles = [each["scheduling_strategy"].placement_group_bundle_index for each in (segmenter_place, *reward_places)]
    assert bundles == [first, first + 1, first + 2]
    assert [each["num_gpus"] for each in (segmenter_place, *reward_places)] == [1, 0.25, 0.25]


@pytest.fixture
def cluster(monkeypatch):
    """What the cluster has at each look, and a clock that sleeping moves on."""
    states, now = [], [0.0]
    monkeypatch.setattr(reservation, "cluster_nodes", lambda: states.pop(0) if len(states) > 1 else states[0])
    monkeypatch.setattr(reservation.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(reservation.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return states, now


def test_a_run_that_goes_on_waits_for_what_it_had_and_says_so_once(cluster, capsys):
    states, now = cluster
    states += [nodes(0), nodes(1), nodes(2)]
    await_room(partial(plan, colocated(2)), 300)
    (line,) = capsys.readouterr().out.splitlines()
    assert now == [2] and line == (
        "the run goes on from an earlier one, whose resources are not free yet: it requests 2 rollout workers "
        "(rollout.workers=2) with 1 GPU of ranks on one node, 0.5 CPU each and 2 learner ranks (learner.ranks=2) with "
        "1 GPU, 0.5 CPU each. Waiting for them up to 300 s (cluster.start_timeout)"
    )


@pytest.mark.parametrize("seconds", [0, 3])
def test_it_waits_so_long_and_no_longer_and_a_new_run_not_at_all(cluster, capsys, seconds):
    states, now = cluster
    states += [nodes(1)]
    with pytest.raises(ClusterError, match=r"does not fit the cluster.*\n.*8 GPU \(1 free\)"):
        await_room(partial(plan, colocated(2)), seconds)
    assert now == [seconds] and len(capsys.readouterr().out.splitlines()) == (seconds > 0)


def test_only_a_run_that_goes_on_waits(tmp_path):
    resumed = load_config(["train.resume=auto", "cluster.start_timeout=77"])
    assert patience(resumed, tmp_path) == 0
    (tmp_path / "config.yaml").touch()
    assert patience(resumed, tmp_path) == 77 and patience(load_config([]), tmp_path) == 0


def test_reward_workers_and_the_segmenter_start_in_their_bundles(monkeypatch):
    overrides = ["rollout.gpus=1", "learner.gpus=1", "reward.gpus=0.5", "reward.workers=2"]
    config = load_config([*overrides, "task.segmenter=a/b", "eval.segmenter_gpus=1"])
    started: list[tuple[int, float]] = []

    def remote(**place):
        started.append((place["scheduling_strategy"].placement_group_bundle_index, place["num_gpus"]))
        return lambda kind: SimpleNamespace(remote=lambda *_: MagicMock())

    monkeypatch.setattr(ray, "remote", remote)
    for room in (pool, segmentation):
        monkeypatch.setattr(room, "fetch", lambda *_: None)
    places = _places(plan_run(config, nodes(8)), GROUP)
    start_segmentation(config, places)
    start_rewards(config, {"": RewardSpec("math")}, places, None)
    assert started == [(2, 1), (3, 0.5), (4, 0.5)]


GROUP = PlacementGroup.empty()


# All shapes: 1 to 64 GPUs


def planned(asked: Sizes, free: list[int]) -> Plan | None:
    try:
        return plan(asked, nodes(*free))
    except ClusterError:
        return None


def used(found: Plan, node: int) -> float:
    return sum(seat.gpus for seat in (*found.ranks, *found.workers) if seat.node == node)


def shapes(count: int):
    """So many random clusters and runs: free GPUs of up to eight nodes, ranks, workers, GPUs of a worker."""
    random = np.random.default_rng(0)
    for _ in range(count):
        free = [int(each) for each in random.integers(0, 9, random.integers(1, 9))]
        if random.random() < 0.3:
            free = [8] * len(free)
        largest = max(2, sum(free))
        yield free, int(random.integers(1, largest)), int(random.integers(1, largest)), int(random.choice([1, 2, 4, 8]))


def test_every_run_that_fits_is_planned_and_no_other():
    fitted = 0
    for free, ranks, workers, gpus in shapes(3000):
        workers = max(1, workers // (2 * gpus))
        found = planned(sizes(ranks, workers, gpus), free)
        fits = sum(each // gpus for each in free) >= workers and sum(free) >= workers * gpus + ranks
        assert (found is not None) == fits, (free, ranks, workers, gpus)
        if found:
            fitted += 1
            assert all(used(found, node) <= each for node, each in enumerate(free))
            assert (len(found.ranks), len(found.workers)) == (ranks, workers)
            assert runs(where(found.ranks)) == len(set(where(found.ranks))), "node after node"
            check_bundles(found)
    assert 600 < fitted < 2400


def test_every_colocated_run_that_fits_is_planned_and_no_other():
    fitted = 0
    for free, _, workers, gpus in shapes(3000):
        workers = max(1, workers // gpus)
        found = planned(colocated(workers, gpus), free)
        assert (found is not None) == (sum(each // gpus for each in free) >= workers)
        if found:
            fitted += 1
            assert all(used(found, node) <= each for node, each in enumerate(free))
            assert runs(where(found.ranks)) == len(set(where(found.ranks)))
            assert [rank for seat in found.workers for rank in seat.ranks] == list(range(workers * gpus))
            for seat in found.workers:
                assert {found.ranks[rank].node for rank in seat.ranks} == {seat.node}
            most = np.cumsum(sorted((each // gpus for each in free), reverse=True))
            assert len(set(where(found.ranks))) == 1 + np.searchsorted(most, workers), "no fewer nodes would do"
            check_bundles(found)
            assert all(bundle["GPU"] == 1 for bundle in _bundles(found)[0]), "vLLM's Ray executor requires it"
    assert 600 < fitted < 2900


def check_bundles(found: Plan) -> None:
    """They hold what the plan asks of each node."""
    bundles, homes = _bundles(found)
    assert sum(bundle["CPU"] for bundle in bundles) == 0.5 * (len(found.ranks) + len(found.workers))
    for index, node in enumerate(found.nodes):
        reserved = sum(bundle["GPU"] for bundle, home in zip(bundles, homes, strict=True) if home is node)
        assert reserved == used(found, index)
