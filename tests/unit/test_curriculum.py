"""The curriculum: rows that every rollout has solved are left out for some epochs."""

import json

import pytest

from tests.unit.groups import example, group
from tests.unit.test_driver import Tokenizer
from visurf_ray.checks import load_rewards
from visurf_ray.config.load import load_config
from visurf_ray.errors import ConfigError
from visurf_ray.feed.curriculum import Curriculum
from visurf_ray.groups import Group
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


def test_rows_that_are_left_out_are_passed_over(open_feed):
    feed = open_feed("task.held_out=2", "task.train=6", "feed.curriculum=1")
    first = feed.take(6)
    assert sorted(one.row for one in first) == list(range(6)) and {one.epoch for one in first} == {0}
    feed.note_solved([one for one in first if one.row < 4])
    second = feed.take(2)
    assert sorted(one.row for one in second) == [4, 5] and {one.epoch for one in second} == {1}
    third = feed.take(6)
    assert sorted(one.row for one in third) == list(range(6)) and {one.epoch for one in third} == {2}
    assert (feed.position, feed.left_out) == (18, 4)


def test_examples_that_were_prepared_before_their_rows_were_solved_are_not_taken(open_feed):
    feed = open_feed("task.held_out=2", "task.train=4", "feed.curriculum=1")
    first = feed.take(4)
    assert feed.ahead
    feed.note_solved(first[:2])
    assert {one.row for one in feed.take(4) if one.epoch == 1} == {one.row for one in first[2:]}


def test_there_are_rows_to_take_although_all_are_solved(open_feed):
    feed = open_feed("task.held_out=2", "task.train=3", "feed.curriculum=2")
    feed.note_solved(feed.take(3))
    assert [one.epoch for one in feed.take(3)] == [3, 3, 3]


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
