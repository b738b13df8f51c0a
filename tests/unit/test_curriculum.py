"""The curriculum: rows that every rollout has solved are left out for some epochs."""

import json

import pytest

from tests.unit.conftest import composed
from tests.unit.groups import example, group
from tests.unit.test_driver import Tokenizer
from visurf_ray.checks import load_rewards
from visurf_ray.config.load import load_config
from visurf_ray.errors import ConfigError
from visurf_ray.feed.actor import DataActor
from visurf_ray.feed.curriculum import Curriculum
from visurf_ray.groups import Example, Group
from visurf_ray.stages import build_stages
from visurf_ray.tasks.tasks import Tasks


def test_a_row_is_left_out_for_so_many_epochs_and_then_drawn_again():
    curriculum = Curriculum(2)
    curriculum.note([("a", 5, 3)])
    assert [epoch for epoch in range(8) if curriculum.leaves_out(("a", 5, epoch))] == [4, 5]
    assert not curriculum.leaves_out(("b", 5, 4)) and not curriculum.leaves_out(("a", 4, 4))
    again = Curriculum(2)
    again.restore(json.loads(json.dumps(curriculum.state())))
    assert again.solved == curriculum.solved
    off = Curriculum(None)
    off.note([("a", 5, 3)])
    assert not off.state()


def opened(*overrides: str) -> DataActor:
    actor = DataActor()
    actor.open(composed("task.held_out=2", *overrides), train=True, put=lambda value: value)
    return actor


def places(examples: list[Example]) -> list[tuple[str, int, int]]:
    return [(one.part, one.row, one.epoch) for one in examples]


def test_rows_that_are_left_out_are_passed_over():
    actor = opened("task.train=6", "feed.curriculum=1")
    first, after = actor.take(0, 6)
    assert sorted(one.row for one in first) == list(range(6)) and {one.epoch for one in first} == {0}
    second, after = actor.take(after, 2, [place for place in places(first) if place[1] < 4])
    assert sorted(one.row for one in second) == [4, 5] and {one.epoch for one in second} == {1}
    third, after = actor.take(after, 6)
    assert sorted(one.row for one in third) == list(range(6)) and {one.epoch for one in third} == {2}
    assert after == 18


def test_examples_that_were_prepared_before_their_rows_were_solved_are_not_taken():
    actor = opened("task.train=4", "feed.curriculum=1")
    first, after = actor.take(0, 4)
    actor.prepare(after, 4)
    second, _ = actor.take(after, 4, places(first[:2]))
    assert {one.row for one in second if one.epoch == 1} == {one.row for one in first[2:]}


def test_there_are_rows_to_take_although_all_are_solved():
    actor = opened("task.train=3", "feed.curriculum=2")
    first, after = actor.take(0, 3)
    second, _ = actor.take(after, 3, places(first))
    assert [one.epoch for one in second] == [3, 3, 3]


MIXED = [
    "task=mixture",
    "+task.parts.find={task: miniature, train: 6, held_out: 2, weight: 2}",
    "+task.parts.count={task: miniature_vqa, train: 4, held_out: 2}",
]
EARNED = ([4.0, 4.0], [4.0, 3.9], [1.0, 1.0])  # an accuracy of reward - 1, of at most 3


def test_only_examples_that_all_rollouts_solve_are_left_out():
    config = load_config([*MIXED, "method=rlvr"])
    (stage,) = build_stages(config, Tasks.of(config), Tokenizer(), load_rewards(config, Tasks.of(config)))
    groups = [Group(example(identity=str(n), part="find"), group(earned).responses) for n, earned in enumerate(EARNED)]
    assert [one.id for one in stage.method.solved(groups)] == ["0"]


def test_a_curriculum_needs_a_reward_that_says_what_is_right(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def score(response, truth):\n    return 1.0\n")
    config = load_config(["reward=none", f"reward.function={own}:score", "feed.curriculum=1"])
    with pytest.raises(ConfigError, match=r"^feed\.curriculum=1: the reward does not say which responses are right"):
        load_rewards(config, Tasks.of(config))
