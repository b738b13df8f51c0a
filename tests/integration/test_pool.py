"""The order of a pool's calls to its engines, recorded: on a CPU no engine can sleep."""

import os
import signal
import threading
import time
from contextlib import closing

import pytest
import ray

from tests.unit.groups import example
from visurf_ray.cluster.supervision import Supervisor
from visurf_ray.errors import ClusterError
from visurf_ray.groups import Response, Source, TokenSpan
from visurf_ray.rollout.actor import Sampled, Sampling, in_one_store
from visurf_ray.rollout.engines import Replacing
from visurf_ray.rollout.pool import RolloutPool, WeightLink, without_rollouts

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

    @ray.method(num_returns=2)
    def sample(self, examples, sampling):
        self.calls.append("sample")
        return in_one_store(
            [Sampled(number, [Response(Source.ROLLOUT, "text", TokenSpan.of([1]))]) for number, _ in examples]
        )

    def abort(self):
        self.calls.append("abort")

    def sleep(self, level):
        self.calls.append(f"sleep {level}")

    def wake_up(self, tag):
        self.calls.append(f"wake {tag}")

    def shut_down(self):
        self.calls.append("shut down")

    def ready(self):
        pass


def make_pool(sleep_level: int | None, launched: list | None = None) -> RolloutPool:
    """A pool that tells an engine's calls and the learner's in one record; it has taken the first weights already.

    launched: receives the engines that the pool starts, and the pool has started none.
    """

    def launch():
        actor = Recorder.remote()
        if launched is not None:
            launched.append(actor)
        return [actor]

    def record(call: str, engines=None) -> None:
        (actor,) = engines or pool.actors
        ray.get(actor.record.remote(call))

    pool = RolloutPool(
        launch, sampling=Sampling(1, 1.0, 8), max_in_flight=1, timeout=600, oversample=2, sleep_level=sleep_level
    )
    link = WeightLink(lambda engines: record("open", engines), lambda: record("weights"), lambda: record("close"))
    pool.connect(link)
    if launched is None:
        pool.start()
    return pool


def calls(pool: RolloutPool) -> list[str]:
    return ray.get(pool.actors[0].recorded.remote())


START = ["open", "weights"]
WAKING = ["wake weights", "weights", "wake kv_cache"]


def test_sleeping_engines_take_weights_before_the_kv_cache_is_allocated():
    pool = make_pool(sleep_level=2)
    pool.sleep()
    pool.sleep()
    pool.sync()
    pool.sync()
    assert calls(pool) == ["sleep 2", "open", *WAKING, "sleep 2", *WAKING, "weights"]


def test_sleeping_engines_take_weights_before_they_sample():
    pool = make_pool(sleep_level=1)
    pool.sleep()
    assert [len(groups) for groups in pool.sample([example()], 1)] == [1]
    pool.sleep()
    assert [answer.response for answer in pool.answer([example()], max_tokens=8)] == ["text"]
    first = ["sleep 1", "open", *WAKING]
    assert calls(pool) == first + 2 * ["sleep 1", *WAKING, "sample"]


@ray.remote(num_cpus=0)
class Slow:
    """An engine that answers after some time, and tells which prompts it got at each call."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.got = []

    def asked(self):
        return self.got

    @ray.method(num_returns=2)
    def sample(self, examples, sampling):
        time.sleep(self.seconds)
        self.got.append(([number for number, _ in examples], sampling.seed))
        return in_one_store(
            [Sampled(number, [Response(Source.ROLLOUT, "text", TokenSpan.of([1]))]) for number, _ in examples]
        )

    def shut_down(self):
        pass

    def ready(self):
        pass


def test_in_rounds_the_speed_of_engines_does_not_decide_what_they_are_asked():
    engines = [Slow.remote(0.1), Slow.remote(0.0)]
    pool = RolloutPool(
        lambda: engines, sampling=Sampling(1, 1.0, 8, seed=7), max_in_flight=2, timeout=60, deterministic=True
    )
    assert len(pool.answer([example(identity=str(number)) for number in range(7)], max_tokens=8)) == 7
    asked = ray.get([engine.asked.remote() for engine in engines])
    pool.shut_down()
    assert [[prompts for prompts, _ in each] for each in asked] == [[[0, 1], [4, 5]], [[2, 3], [6]]]
    assert len({seed for each in asked for _, seed in each}) == 1 and asked[0][0][1] != 7


def test_engines_that_sleep_before_the_learner_has_started_take_weights_first():
    """They share its GPU: they start before it, and are connected when it is there."""
    pool = make_pool(sleep_level=1, launched=[])
    pool.launch()
    pool.wait()
    pool.sleep()
    pool.start()
    assert calls(pool) == ["sleep 1", "open", *WAKING]


def test_engines_with_gpus_of_their_own_never_sleep():
    pool = make_pool(sleep_level=None)
    pool.sleep()
    pool.sync()
    assert calls(pool) == [*START, "weights"]


# Engines that start and end


def is_alive(actor) -> bool:
    try:
        ray.get(actor.ready.remote())
    except ray.exceptions.RayActorError:
        return False
    return True


def test_no_engine_runs_before_something_is_sampled_nor_after_the_last_evaluation():
    """An evaluation starts engines that take the weights, disconnects the learner, and ends them."""
    launched: list = []
    pool = make_pool(sleep_level=1, launched=launched)
    pool.sync()
    pool.sleep()
    pool.wake()
    assert launched == [] == pool.actors
    for number in (1, 2):
        answers = pool.answer([example()], max_tokens=8, stay=False)
        assert [answer.response for answer in answers] == ["text"] and len(launched) == number and pool.actors == []
        assert not is_alive(launched[-1])
    pool.sync()
    pool.sleep()
    assert len(launched) == 2


def test_an_engine_is_disconnected_before_it_ends_and_sampling_starts_another():
    launched: list = []
    pool = make_pool(sleep_level=None, launched=launched)
    pool.answer([example()], max_tokens=8)
    before = calls(pool)
    told: list = []
    shut_down, pool.shut_down = pool.shut_down, lambda: told.extend(calls(pool)) or shut_down()
    pool.answer([example()], max_tokens=8, stay=False)
    assert before == [*START, "sample"] and told == [*before, "sample", "close"]
    assert [len(groups) for groups in pool.sample([example()], 1)] == [1]
    pool.sync()
    assert len(launched) == 2 and calls(pool) == [*START, "sample", "weights"]


def test_a_failed_run_ends_its_engines_without_the_learner():
    pool = make_pool(sleep_level=None, launched=(launched := []))
    pool.launch()
    pool.shut_down()
    pool.shut_down()
    assert not is_alive(launched[0]) and pool.actors == []


def test_without_a_learner_engines_sample_with_their_own_weights():
    pool = RolloutPool(lambda: [Recorder.remote()], sampling=Sampling(1, 1.0, 8), max_in_flight=1, timeout=600)
    pool.answer([example()], max_tokens=8)
    assert calls(pool) == ["sample"]


def test_weights_wait_for_the_batch_that_is_sampled():
    pool = make_pool(sleep_level=None)
    with closing(pool.sample([example(), example()], 2)) as sampled:
        next(sampled)
        sync = threading.Thread(target=pool.sync)
        sync.start()
        sync.join(timeout=0.5)
        assert sync.is_alive() and calls(pool).count("weights") == 1
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


# Engines that are lost


@ray.remote(num_cpus=0)
class Mortal(Recorder.__ray_metadata__.modified_class):
    """Dies when it is to sample for the second time."""

    @ray.method(num_returns=2)
    def sample(self, examples, sampling):
        if "sample" in self.calls:
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls.append("sample")
        number, _ = examples[0]  # the others are never answered
        return in_one_store([Sampled(number, [Response(Source.ROLLOUT, "first", TokenSpan.of([1]))])])


@pytest.mark.parametrize(("engines", "restarts"), [(2, 1), (1, 1), (2, 0)])
def test_what_an_engine_has_not_answered_is_sampled_by_others(engines, restarts):
    """By the other engine, or by a new one if there is no other."""
    supervisor = Supervisor(max_restarts=restarts, patience=60)
    launched: list[int] = []

    def launch(number):
        launched.append(number)
        return Recorder.remote()

    pool = RolloutPool(
        lambda: [Mortal.remote(), *(Recorder.remote() for _ in range(engines - 1))],
        sampling=Sampling(1, 1.0, 8),
        max_in_flight=4,
        timeout=60,
        replacing=Replacing(launch, supervisor, at_once=True),
    )
    answers = pool.answer([example(identity=str(number)) for number in range(6)], max_tokens=8)
    assert [answer.id for answer in answers] == [str(number) for number in range(6)]
    assert [answer.response for answer in answers].count("first") == 1
    pool.answer([example()], max_tokens=8)
    (fault,) = supervisor.faults
    assert fault.role == "rollout worker 0" and fault.replaced == bool(restarts)
    assert launched == [0] * restarts and len(pool.actors) == engines - 1 + restarts
    pool.shut_down()


def test_without_an_engine_a_run_ends_with_the_first_cause():
    supervisor = Supervisor(max_restarts=0, patience=60)
    pool = RolloutPool(
        lambda: [Mortal.remote()],
        sampling=Sampling(1, 1.0, 8),
        max_in_flight=4,
        timeout=60,
        replacing=Replacing(lambda number: Recorder.remote(), supervisor, at_once=True),
    )
    with pytest.raises(ClusterError, match=r"no rollout worker is left: .* cause: Recorder \(process \d+\) died"):
        pool.answer([example(), example()], max_tokens=8)
    pool.shut_down()
