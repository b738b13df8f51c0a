"""The curriculum: rows that every rollout has solved are left out for some epochs, also after a resume."""

import json
from types import SimpleNamespace

import pytest

from tests.unit.groups import example, group
from tests.unit.test_driver import Learner, Monitor, Rollouts, Tokenizer
from visurf_ray.checkpoints import Checkpoints, State, read_state
from visurf_ray.checks import load_rewards
from visurf_ray.config.load import load_config
from visurf_ray.driver import Driver
from visurf_ray.errors import ConfigError
from visurf_ray.feed import actor, feed
from visurf_ray.feed.curriculum import Curriculum
from visurf_ray.feed.feed import DataFeed
from visurf_ray.feed.loader import Strictness
from visurf_ray.groups import Group
from visurf_ray.stages import build_stages
from visurf_ray.tasks.tasks import Tasks

MIXED = [
    "task=mixture",
    "+task.parts.find={task: miniature, train: 6, held_out: 2, weight: 2}",
    "+task.parts.count={task: miniature_vqa, train: 4, held_out: 2}",
]


def at(part: str, row: int, epoch: int):
    one = example(part=part)
    object.__setattr__(one, "row", row)
    object.__setattr__(one, "epoch", epoch)
    return one


def test_a_row_is_left_out_for_so_many_epochs_and_then_drawn_again():
    curriculum = Curriculum(2)
    curriculum.note([at("a", 5, 3)])
    assert [epoch for epoch in range(8) if curriculum.leaves_out("a", 5, epoch)] == [4, 5]
    assert not curriculum.leaves_out("b", 5, 4) and not curriculum.leaves_out("a", 4, 4)
    again = Curriculum(2)
    again.restore(json.loads(json.dumps(curriculum.state())))
    assert again.solved == curriculum.solved
    off = Curriculum(None)
    off.note([at("a", 5, 3)])
    assert not off.state()


@pytest.fixture
def make_feed(monkeypatch):
    """A feed whose actor is in this process."""

    class Here:
        def __init__(self, held) -> None:
            self.held = held

        def __getattr__(self, name):
            return SimpleNamespace(remote=getattr(self.held, name))

    ray = SimpleNamespace(get=lambda value: value, put=lambda value: value)
    monkeypatch.setattr(feed, "ray", ray)
    monkeypatch.setattr(actor, "ray", ray)
    monkeypatch.setattr(feed, "start_actor", lambda: Here(actor.DataActor()))

    def make(config) -> DataFeed:
        return DataFeed(
            config.parts,
            config.eval.sets,
            config.model,
            seed=config.seed,
            max_prompt_tokens=500,
            train=True,
            strictness=Strictness(),
            curriculum=config.feed.curriculum,
        )

    return make


def test_the_feed_passes_over_rows_that_are_left_out(make_feed):
    data = make_feed(load_config(["task.train=6", "task.held_out=2", "feed.curriculum=1"]))
    first = data.take(6)
    assert sorted(one.row for one in first) == list(range(6)) and {one.epoch for one in first} == {0}
    data.note_solved([one for one in first if one.row < 4])
    second = data.take(2)
    assert sorted(one.row for one in second) == [4, 5] and {one.epoch for one in second} == {1}
    third = data.take(6)
    assert sorted(one.row for one in third) == list(range(6)) and {one.epoch for one in third} == {2}
    assert (data.position, data.left_out) == (18, 4)


def test_a_feed_ends_up_with_rows_although_all_are_solved(make_feed):
    data = make_feed(load_config(["task.train=3", "task.held_out=2", "feed.curriculum=2"]))
    data.note_solved(data.take(3))
    assert [one.epoch for one in data.take(3)] == [3, 3, 3]


class Rewards:
    """Every rollout solves the rows with even numbers."""

    def submit(self, groups):
        for one in groups:
            for number, response in enumerate(one.rollouts):
                right = one.example.row % 2 == 0 or number == 0
                response.reward_parts = {"accuracy": (3.0 if one.example.part == "find" else 1.0) * right}
                response.reward = sum(response.reward_parts.values())

    def wait(self):
        return []


@pytest.mark.parametrize("ahead", [(), ("pipeline=one_step_off",)])
def test_a_run_that_is_resumed_leaves_out_the_same_rows(tmp_path, make_feed, ahead):
    def drive(folder, state: State):
        settings = ["train.batch_size=3", "train.steps=10", "eval.every=0", "train.checkpoint_every=1"]
        config = load_config([*MIXED, *settings, "method=rlvr", "feed.curriculum=1", *ahead])
        drawn = []
        learner = Learner()
        learner.update = lambda groups, loss, rate: drawn.append([(g.example.part, g.example.id) for g in groups]) or {}
        driver = Driver(
            config,
            stages=build_stages(config, Tasks.of(config), Tokenizer(), load_rewards(config, Tasks.of(config))),
            score=lambda predictions: {},
            data=make_feed(config),
            rollouts=Rollouts(0),
            rewards=Rewards(),
            learner=learner,
            checkpoints=Checkpoints(folder, 99),
            monitor=Monitor(),
        )
        driver.run(state)
        return drawn, driver.monitor.rows

    whole, logged = drive(tmp_path / "whole", State())
    assert sum(row["train/left_out"] for row in logged.values()) > 4
    for checkpoint in sorted((tmp_path / "whole").iterdir())[:-1]:
        state = read_state(checkpoint)
        rest, again = drive(tmp_path / checkpoint.name, state)
        assert rest == whole[state.step :]
        assert {step: row["train/left_out"] for step, row in again.items()} == {
            step: row["train/left_out"] for step, row in logged.items() if step > state.step
        }


def test_only_examples_that_all_rollouts_solve_are_left_out():
    config = load_config([*MIXED, "method=rlvr"])
    (stage,) = build_stages(config, Tasks.of(config), Tokenizer(), load_rewards(config, Tasks.of(config)))
    groups = [Group(example(identity=str(n), part="find"), group(earned).responses) for n, earned in enumerate(EARNED)]
    assert [one.id for one in stage.method.solved(groups)] == ["0"]


EARNED = ([4.0, 4.0], [4.0, 3.9], [1.0, 1.0])  # an accuracy of reward - 1, of at most 3


def test_a_curriculum_needs_a_reward_that_says_what_is_right(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def score(response, truth):\n    return 1.0\n")
    config = load_config(["reward=none", f"reward.function={own}:score", "feed.curriculum=1"])
    with pytest.raises(ConfigError, match=r"^feed\.curriculum=1: the reward does not say which responses are right"):
        load_rewards(config, Tasks.of(config))
