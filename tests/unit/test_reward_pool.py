"""The pool of reward actors without Ray: what is dropped and what stops the run. `ray` is played by objects here."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions

from tests.unit.groups import example
from visurf_ray.config import load_config
from visurf_ray.driver import Driver
from visurf_ray.groups import Group, Response, Source
from visurf_ray.rewards import pool as module
from visurf_ray.rewards.pool import RewardError, RewardPool
from visurf_ray.rewards.reward import Reward
from visurf_ray.rewards.spec import RewardSpec


class Remote:
    """A method of an actor: its calls return what `ray.get` is to give, or to raise."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.remote = method


class Actor:
    """Scores a response by its length, and does what the ground truth tells it."""

    def __init__(self, spec: RewardSpec) -> None:
        self.score = Remote(self._score)
        self.ready = Remote(lambda: Result(None))
        self.killed = False

    def _score(self, texts: list[str], ground_truth: str) -> "Result":
        match ground_truth:
            case "raise":
                return Result(ray.exceptions.RayTaskError("score", "traceback", ValueError("not JSON")))
            case "die":
                return Result(ray.exceptions.ActorDiedError())
            case "no start":
                died = ray.exceptions.ActorDiedError()
                died._actor_init_failed = True
                return Result(died)
            case "hang":
                return Result(None, ready=False)
        return Result([Reward({"length": float(len(text))}) for text in texts])


class Result:
    def __init__(self, value: Any, ready: bool = True) -> None:
        self.value = value
        self.ready = ready


def get(result: Result) -> Any:
    if isinstance(result.value, Exception):
        raise result.value
    return result.value


def kill(actor: Actor) -> None:
    actor.killed = True


def wait(results: list[Result], num_returns: int, timeout: float) -> tuple[list[Result], list[Result]]:
    done = [result for result in results if result.ready][:num_returns]
    return done, [result for result in results if result not in done]


@pytest.fixture
def make_pool(monkeypatch):
    monkeypatch.setattr(module, "ray", SimpleNamespace(get=get, kill=kill, wait=wait, exceptions=ray.exceptions))
    monkeypatch.setattr(module, "RewardActor", Remote(Actor))
    return lambda *overrides: RewardPool(
        load_config(["reward.timeout=0.01", *overrides]).reward, RewardSpec("vision_reasoner")
    )


def groups_of(*truths: str) -> list[Group]:
    return [
        Group(
            example(truth, f"example-{number}"), [Response(Source.ROLLOUT, "abc", [0]), Response(Source.LABEL, "", [0])]
        )
        for number, truth in enumerate(truths)
    ]


def score(pool: RewardPool, groups: list[Group]) -> list[Group]:
    for group in groups:
        pool.submit(group)
    return pool.wait()


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("fault", ["raise", "die", "hang"])
def test_a_failing_group_is_dropped_and_the_others_are_scored(make_pool, capsys, fault, workers):
    pool = make_pool("reward.on_error=skip", f"reward.workers={workers}")
    groups = groups_of("[]", fault, "[]", fault, "[]")
    assert score(pool, groups) == [groups[1], groups[3]]
    assert [[response.reward for response in group.responses] for group in groups[::2]] == [[3.0, 0.0]] * 3
    assert all(not response.reward_parts for group in groups[1::2] for response in group.responses)
    told = capsys.readouterr().err
    assert told.count("skipped: the reward of example") == 2 and "'example-1'" in told and "'example-3'" in told
    assert score(pool, groups_of("[]")) == [], "each wait tells of its own groups alone"
    assert len(pool.idle) == len(pool.actors) == workers and not any(actor.killed for actor in pool.actors)


def test_an_actor_that_is_gone_is_replaced_and_one_that_raised_is_kept(make_pool):
    pool = make_pool("reward.on_error=skip")
    for fault, replaced in {"raise": False, "die": True, "hang": True}.items():
        before = pool.actors[0]
        score(pool, groups_of(fault))
        assert (pool.actors[0] is not before) is replaced
        assert before.killed is (fault == "hang")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise", r"'example-1' raised: ValueError\('not JSON'\)"),
        ("die", "'example-1' raised: ActorDiedError"),
        ("hang", "'example-1' took longer than reward.timeout=0.01 s for each of its 2 responses"),
    ],
)
def test_by_default_a_failure_stops_the_run(make_pool, fault, message):
    with pytest.raises(RewardError, match=message):
        score(make_pool(), groups_of("[]", fault, "[]"))


def test_a_reward_that_cannot_start_is_no_examples_fault(make_pool):
    with pytest.raises(RewardError, match="a reward actor could not start"):
        score(make_pool("reward.on_error=skip"), groups_of("no start"))


# What the driver makes of it


def make_driver(pool: RewardPool, groups: list[Group], *overrides: str) -> Driver:
    """A driver whose rollouts are these groups, the last one finished first."""
    config = load_config([f"train.batch_size={len(groups)}", *overrides])
    examples = [group.example for group in groups]
    data = SimpleNamespace(train_batch=lambda number, size: examples, held_out=lambda count: [])
    rollouts = SimpleNamespace(sample=lambda examples, size: reversed(list(enumerate(groups))))
    method = SimpleNamespace(samples=True, append_label=lambda group: None)
    others: dict[str, Any] = dict.fromkeys(("task", "learner", "checkpoints", "monitor"))
    return Driver(
        config,
        methods=lambda number: method,  # type: ignore[arg-type, return-value]
        data=data,  # type: ignore[arg-type]
        rollouts=rollouts,  # type: ignore[arg-type]
        rewards=pool,
        **others,
    )


def test_the_driver_goes_on_with_the_groups_that_are_left_in_order(make_pool):
    groups = groups_of("[]", "raise", "[]", "hang")
    assert make_driver(make_pool("reward.on_error=skip"), groups).collect(0) == [groups[0], groups[2]]


def test_a_batch_of_which_too_little_is_left_stops_the_run(make_pool):
    driver = make_driver(make_pool("reward.on_error=skip"), groups_of("[]", "raise"), "learner.minibatches=2")
    with pytest.raises(RewardError, match=r"left 1 of 2 groups, and learner\.ranks × learner\.minibatches needs 2"):
        driver.collect(0)
