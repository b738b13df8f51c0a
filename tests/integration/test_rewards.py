"""The pool of reward actors: order, and loud failures that name the example."""

import os
import signal
import time

import pytest
import ray

from visurf_ray.groups import Example, Group, Prompt, Response, Source
from visurf_ray.rewards import load_reward
from visurf_ray.rewards.pool import RewardError, RewardPool
from visurf_ray.rewards.spec import RewardSpec

pytestmark = pytest.mark.usefixtures("ray_cluster")

SPEC = RewardSpec("vision_reasoner")
_RIGHT = '<think>t</think><answer>[{"bbox_2d": [1, 1, 9, 9], "point_2d": [5, 5]}]</answer>'
_TRUTH = '[{"bbox_2d": [1, 1, 9, 9], "point_2d": [5, 5]}]'


def make_group(name: str, ground_truth: str, *texts: str) -> Group:
    example = Example(name, "the 7", ground_truth, Prompt([], [], None, None))
    return Group(example, [Response(Source.ROLLOUT, text, [0]) for text in texts])


def score(pool: RewardPool, groups: list[Group]) -> None:
    for group in groups:
        pool.submit(group)
    pool.wait()


@pytest.fixture(scope="module")
def settings(config):
    from omegaconf import OmegaConf

    return OmegaConf.merge(config.reward, {"workers": 2})


def test_every_response_gets_its_own_reward(settings):
    groups = [make_group(str(n), _TRUTH, *([_RIGHT] * n), "nothing", "[]") for n in range(6)]
    score(RewardPool(settings, SPEC), groups)
    reward = load_reward("vision_reasoner")
    for group in groups:
        for response in group.responses:
            expected = reward(response.text, _TRUTH)
            assert response.reward_parts == expected.parts and response.reward == expected.total
    assert groups[3].responses[0].reward == 7.0 and groups[3].responses[-1].reward == 1.0


def test_a_reward_that_raises_names_the_example(settings):
    groups = [make_group("good", _TRUTH, _RIGHT), make_group("example-17", "[{", _RIGHT)]
    with pytest.raises(RewardError, match=r"'example-17' raised: .*not JSON"):
        score(RewardPool(settings, SPEC), groups)


def test_a_reward_that_hangs_names_the_example_and_its_process_is_killed(settings):
    """SIGSTOP is what a process that hangs looks like from outside."""
    from omegaconf import OmegaConf

    pool = RewardPool(OmegaConf.merge(settings, {"timeout": 1.0, "workers": 1}), SPEC)
    score(pool, [make_group("warm", _TRUTH, _RIGHT)])
    process = ray.get(pool.actors[0].__ray_call__.remote(lambda _: os.getpid()))
    os.kill(process, signal.SIGSTOP)
    with pytest.raises(RewardError, match=r"'slow' took longer than reward.timeout=1 s for each of its 2 responses"):
        score(pool, [make_group("slow", _TRUTH, _RIGHT, _RIGHT)])
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{process}") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{process}")


def test_groups_without_responses_are_passed_by(settings):
    score(RewardPool(settings, SPEC), [make_group("empty", _TRUTH)])
