"""Where actors come to lie, in a Ray cluster of a head and two nodes that say that they have eight GPUs each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def seen():
    command = [sys.executable, "-m", "tests.integration.placements"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1])


def nodes(actors) -> list[int]:
    return [actor["node"] for actor in actors]


def on(actors) -> list[tuple[int, str]]:
    """The GPUs of all actors, each with its node."""
    return [(actor["node"], gpu) for actor in actors for gpu in actor["gpus"]]


def test_the_cluster_is_what_it_should_be(seen):
    assert seen["totals"] == [0, 8, 8], "the driver's node first"


def test_a_colocated_pair_shares_a_gpu_and_no_two_pairs_do(seen):
    """Three GPUs are free on one node, two on the other: all pairs are on the first."""
    ranks, workers = seen["pairs"]["ranks"], seen["pairs"]["workers"]
    assert on(ranks) == on(workers) and len(set(on(ranks))) == 3
    assert nodes(ranks) == [1, 1, 1]


def test_a_colocated_worker_of_two_gpus_stands_on_those_of_two_ranks_of_one_node(seen):
    """Three GPUs are free on each node, so that the third of each cannot be used."""
    ranks, workers = seen["stacks"]["ranks"], seen["stacks"]["workers"]
    assert nodes(ranks) == [1, 1, 2, 2] and nodes(workers) == [1, 2]
    assert all(len(rank["gpus"]) == 1 for rank in ranks) and len(set(on(ranks))) == 4
    for number, worker in enumerate(workers):
        assert worker["gpus"] == [], "vLLM's actors have them"
        assert worker["vllm"] == [rank["gpus"] for rank in ranks[2 * number : 2 * number + 2]]


def test_apart_a_worker_has_its_gpus_on_one_node_and_ranks_fill_node_after_node(seen):
    """Three GPUs are free on one node, five on the other: the worker takes four of these, and ranks the others."""
    ranks, (worker,) = seen["apart"]["ranks"], seen["apart"]["workers"]
    assert worker["node"] == 2 and len(worker["gpus"]) == 4
    assert nodes(ranks) == [1, 1, 1, 2]
    assert len({*on(ranks), *on([worker])}) == 8, "no GPU has two actors"


def test_reward_workers_and_the_segmenter_have_reserved_gpus_of_their_own(seen):
    """Four GPUs are free on one node, none on the other: two for the pairs, one for the segmenter, one for rewards."""
    found = seen["others"]
    assert found["free"] == [0, pytest.approx(0.25), 0], "nothing else can take them while the actors start"
    rewards, (segmenter,) = found["reward workers"], found["segmenter"]
    assert [len(reward["gpus"]) for reward in rewards] == [1, 1, 1] and len(set(on(rewards))) == 1
    assert len({*on(found["ranks"]), *on([segmenter]), *on(rewards)}) == 4, "whole GPUs are nobody else's"


def test_reward_workers_and_the_segmenter_have_gpus_though_ranks_and_workers_have_none(seen):
    found = seen["only others"]
    assert len({*on(found["segmenter"]), *on(found["reward workers"])}) == 2
    assert on(found["ranks"]) == on(found["workers"]) == []


def test_gpus_that_are_too_few_for_reward_workers_are_refused_at_once(seen):
    found = seen["no room for others"]
    assert found["seconds"] < 1 and "3 reward workers (reward.workers=3) with 0.25 GPU" in found["error"]


def test_a_run_that_goes_on_waits_until_what_it_had_is_free(seen):
    assert 2 <= seen["waited"] < 10


def test_actors_without_gpus_are_spread(seen):
    found = seen["cpus"]
    assert nodes(found["workers"]) == [0, 1] and nodes(found["ranks"]) == [2, 0]


def test_fragmented_free_gpus_are_refused_and_not_waited_for(seen):
    found = seen["fragmented"]
    assert found["seconds"] < 1
    first, *lines = found["error"].splitlines()
    assert "rollout.workers=1) with 4 GPU of ranks on one node" in first
    has = [line.partition(": ")[2] for line in lines]
    assert has == ["1 CPU (1 free)"] + ["8 GPU (3 free), 1 CPU (1 free)"] * 2


def test_gpus_that_were_taken_since_the_plan_are_an_error_after_the_time_limit(seen):
    found = seen["late"]
    assert 1 <= found["seconds"] < 10
    assert "not free in 1 s (cluster.start_timeout)" in found["error"] and "8 GPU (3 free)" in found["error"]
