"""The pool of reward actors: order, and loud failures that name the example."""

import os
import signal
import time
from dataclasses import replace

import pytest
import ray

from visurf_ray.cluster.supervision import Supervisor
from visurf_ray.config.choices import OnError
from visurf_ray.groups import Example, Group, Prompt, Response, Source, TokenSpan
from visurf_ray.rewards import load_reward
from visurf_ray.rewards.pool import RewardError, RewardPool
from visurf_ray.rewards.spec import RewardSpec

pytestmark = pytest.mark.usefixtures("ray_cluster")

SPEC = RewardSpec("vision_reasoner")
_RIGHT = '<think>t</think><answer>[{"bbox_2d": [1, 1, 9, 9], "point_2d": [5, 5]}]</answer>'
_TRUTH = '[{"bbox_2d": [1, 1, 9, 9], "point_2d": [5, 5]}]'


def make_group(name: str, ground_truth: str, *texts: str) -> Group:
    example = Example(name, "the 7", ground_truth, Prompt([], [], (None,)), (84, 84))
    return Group(example, [Response(Source.ROLLOUT, text, TokenSpan.of([0])) for text in texts])


def score(pool: RewardPool, groups: list[Group]) -> list[Group]:
    """Returns the groups that were skipped."""
    pool.submit(groups)
    return pool.wait()


@pytest.fixture(scope="module")
def settings(config):
    return replace(config.reward, workers=2)


def test_every_response_gets_its_own_reward(settings):
    groups = [make_group(str(n), _TRUTH, *([_RIGHT] * n), "nothing", "[]") for n in range(6)]
    score(RewardPool(settings, {"": SPEC}, cluster_timeout=60), groups)
    reward = load_reward("vision_reasoner")
    for group in groups:
        for response in group.responses:
            expected = reward(response.text, _TRUTH)
            assert response.reward_parts == expected.parts and response.reward == expected.total
    assert groups[3].responses[0].reward == 7.0 and groups[3].responses[-1].reward == 1.0


def test_a_reward_that_raises_names_the_example(settings):
    groups = [make_group("good", _TRUTH, _RIGHT), make_group("example-17", "[{", _RIGHT)]
    with pytest.raises(RewardError, match=r"'example-17' raised: .*not JSON"):
        score(RewardPool(settings, {"": SPEC}, cluster_timeout=60), groups)


def test_a_reward_that_hangs_names_the_example_and_its_process_is_killed(settings):
    """SIGSTOP is what a process that hangs looks like from outside."""
    pool = RewardPool(replace(settings, timeout=1.0, workers=1), {"": SPEC}, cluster_timeout=60)
    ray.get(pool.actors[0].ready.remote())
    process = ray.get(pool.actors[0].__ray_call__.remote(lambda _: os.getpid()))
    os.kill(process, signal.SIGSTOP)
    with pytest.raises(RewardError, match=r"'slow' took longer than 2 s \(reward.timeout=1 s × 2 responses\)"):
        score(pool, [make_group("slow", _TRUTH, _RIGHT, _RIGHT)])
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{process}") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{process}")


def test_rewards_that_nobody_looked_at_in_time_are_not_late(settings):
    pool = RewardPool(replace(settings, timeout=1.0), {"": SPEC}, cluster_timeout=60)
    ray.get([actor.ready.remote() for actor in pool.actors])
    groups = [make_group(str(number), _TRUTH, _RIGHT) for number in range(8)]
    pool.submit(groups)
    time.sleep(2)  # as the driver does that waits for rollouts
    assert pool.wait() == []
    assert [group.responses[0].reward for group in groups] == [7.0] * 8


def test_groups_without_responses_are_passed_by(settings):
    score(RewardPool(settings, {"": SPEC}, cluster_timeout=60), [make_group("empty", _TRUTH)])


_OWN = """
import os, time

def score(response, ground_truth):
    if response == "raise":
        raise ValueError("no")
    if response == "exit" or response == "exit once" and not os.path.exists(__file__ + ".dead"):
        open(__file__ + ".dead", "w").close()
        os._exit(1)
    if response == "hang":
        time.sleep(600)
    return os.getpid() if ground_truth == "pid" else len(response)
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(_OWN)
    return RewardSpec(None, function=f"{tmp_path}/own.py:score")


def test_a_users_function_runs_in_the_actors(settings, own):
    groups = [make_group("a", "pid", "x"), make_group("b", "", "four")]
    assert score(RewardPool(settings, {"": own}, cluster_timeout=60), groups) == []
    assert groups[0].responses[0].reward_parts["score"] != os.getpid()
    assert groups[1].responses[0].reward == 4.0


@pytest.mark.parametrize("fault", ["raise", "exit", "hang"])
def test_with_skip_the_group_is_dropped_and_the_run_goes_on(settings, own, fault):
    supervisor = Supervisor(max_restarts=0, patience=1)
    pool = RewardPool(
        replace(settings, on_error=OnError.skip, timeout=2.0, workers=1),
        {"": own},
        cluster_timeout=60,
        supervisor=supervisor,
    )
    score(pool, [make_group("warm", "", "x")])
    groups = [make_group(f"good {n}", "", "four") for n in range(12)]
    groups[2] = make_group("bad", "", "x", fault)  # the first call takes six of them
    assert score(pool, groups) == [groups[2]]
    assert [group.responses[0].reward for group in groups if group is not groups[2]] == [4.0] * 11
    assert score(pool, [make_group("next", "", "x")]) == []
    # A process that dies is lost once with six groups, and once more with the one that was to blame.
    assert len(supervisor.faults) == {"raise": 0, "exit": 2, "hang": 1}[fault]
    assert all((lost.role, lost.replaced) == ("reward worker 0", True) for lost in supervisor.faults)


def test_a_process_that_dies_stops_the_run_by_default(settings, own):
    with pytest.raises(RewardError, match="the reward of example 'bad' raised"):
        score(RewardPool(settings, {"": own}, cluster_timeout=60), [make_group("bad", "", "exit")])


def test_a_process_that_is_lost_once_costs_no_group_and_is_noted(settings, own):
    supervisor = Supervisor(max_restarts=0, patience=60)
    pool = RewardPool(replace(settings, workers=1), {"": own}, cluster_timeout=60, supervisor=supervisor)
    group = make_group("a", "", "exit once")
    assert score(pool, [group]) == [] and group.responses[0].reward == len("exit once")
    assert [(fault.role, fault.replaced) for fault in supervisor.faults] == [("reward worker 0", True)]


def test_a_function_that_the_actors_do_not_find_stops_the_run(settings):
    spec = RewardSpec(None, function="/nowhere/own.py:score")
    with pytest.raises(RewardError, match=r"(?s)could not start: .*there is no file /nowhere/own\.py"):
        score(
            RewardPool(replace(settings, on_error=OnError.skip), {"": spec}, cluster_timeout=60),
            [make_group("a", "", "x")],
        )


def test_labels_alone_are_not_scored_and_need_no_actors(settings):
    """They are learnt by cross-entropy: nothing compares their rewards."""
    pool = RewardPool(settings, {}, cluster_timeout=60)
    label = make_group("a", _TRUTH, _RIGHT)
    label.responses[0].source = Source.LABEL
    assert pool.actors == [] == score(pool, [label])
    assert label.responses[0].reward == 0.0 and not label.responses[0].reward_parts
