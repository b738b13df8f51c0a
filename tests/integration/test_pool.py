"""The order of a pool's calls to its engines, recorded: on a CPU no engine can sleep."""

import threading
from contextlib import closing

import pytest
import ray

from tests.unit.groups import example
from visurf_ray.groups import Response, Source, TokenSpan
from visurf_ray.rollout.actor import Sampled, Sampling
from visurf_ray.rollout.pool import RolloutPool, without_rollouts

pytestmark = pytest.mark.usefixtures("ray_cluster")


@ray.remote(num_cpus=0)
class Recorder:
    """Has the methods of `RolloutActor` that a pool calls, and records the calls."""

    def __init__(self) -> None:
        self.calls = []

    def record(self, call):
        self.calls.append(call)

    def recorded(self):
        return self.calls

    def sample(self, examples, sampling):
        self.calls.append("sample")
        token = TokenSpan.of([1])
        return [Sampled(number, [Response(Source.ROLLOUT, "text", token)]) for number, _ in examples]

    def abort(self):
        self.calls.append("abort")

    def sleep(self, level):
        self.calls.append(f"sleep {level}")

    def wake_up(self, tag):
        self.calls.append(f"wake {tag}")


def make_pool(sleep_level: int | None) -> RolloutPool:
    actor = Recorder.remote()
    pool = RolloutPool([actor], sampling=Sampling(1, 1.0, 8), max_in_flight=1, oversample=2, sleep_level=sleep_level)
    pool.connect(lambda: ray.get(actor.record.remote("weights")))
    return pool


def calls(pool: RolloutPool) -> list[str]:
    return ray.get(pool.actors[0].recorded.remote())


WAKING = ["wake weights", "weights", "wake kv_cache"]


def test_sleeping_engines_take_weights_before_the_kv_cache_is_allocated():
    pool = make_pool(sleep_level=2)
    pool.sleep()
    pool.sleep()
    pool.sync()
    pool.sync()
    assert calls(pool) == ["sleep 2", *WAKING, "weights"]


def test_sleeping_engines_take_weights_before_they_sample():
    pool = make_pool(sleep_level=1)
    pool.sleep()
    assert [len(groups) for groups in pool.sample([example()], 1)] == [1]
    pool.sleep()
    assert [answer.response for answer in pool.answer([example()], max_tokens=8)] == ["text"]
    assert calls(pool) == 2 * ["sleep 1", *WAKING, "sample"]


def test_engines_with_gpus_of_their_own_never_sleep():
    pool = make_pool(sleep_level=None)
    pool.sleep()
    pool.sync()
    assert calls(pool) == ["weights"]


def test_weights_wait_for_the_batch_that_is_sampled():
    pool = make_pool(sleep_level=None)
    with closing(pool.sample([example(), example()], 2)) as sampled:
        next(sampled)
        sync = threading.Thread(target=pool.sync)
        sync.start()
        sync.join(timeout=0.5)
        assert sync.is_alive() and "weights" not in calls(pool)
    sync.join(timeout=10)
    assert not sync.is_alive() and calls(pool)[-2:] == ["abort", "weights"]


def test_prompts_beyond_the_batch_are_drawn_and_left_out():
    pool = make_pool(sleep_level=None)
    assert pool.prompts(3) == 5
    examples = [example(identity=str(number)) for number in range(5)]
    assert sum(len(groups) for groups in pool.sample(examples, 3)) == 3
    assert "abort" in calls(pool)


def test_groups_without_rollouts_come_in_the_same_form():
    examples = [example(identity="a"), example(identity="b")]
    (groups,) = without_rollouts(examples)
    assert [groups[index].example for index in range(2)] == examples
    assert not groups[0].responses
