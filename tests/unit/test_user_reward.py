"""A user's own reward function: by module or file, weighted with a named reward, with clear errors."""

import sys

import pytest

from visurf_ray.config.load import load_config
from visurf_ray.errors import UserError
from visurf_ray.rewards import REWARDS, Reward, load_reward
from visurf_ray.rewards.function import load_function
from visurf_ray.rewards.spec import RewardSpec

RIGHT = '<think>t</think><answer>[{"bbox_2d": [1, 1, 9, 9], "point_2d": [5, 5]}]</answer>'
TRUTH = '[{"bbox_2d": [1, 1, 9, 9], "point_2d": [5, 5]}]'

CODE = """
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

number = 3

def score(response, ground_truth):
    return len(response) + len(ground_truth)

def brevity(response, ground_truth, *, most=100):
    return {"short": len(response) < most, "exact": np.float32(response == ground_truth)}

@dataclass
class Scorer:
    weight: float = 1.0

    def __call__(self, response, ground_truth):
        return self.weight

scorer = Scorer()

def accuracy(response, ground_truth):
    return 0.5

def one(response):
    return 1

def nothing(response, ground_truth):
    return None

def text(response, ground_truth):
    return "1"

def infinite(response, ground_truth):
    return {"a": float("inf")}

async def later(response, ground_truth):
    return 1
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_rewards.py"
    path.write_text(CODE)
    return str(path)


@pytest.fixture
def module(file, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_rewards"
    sys.modules.pop("my_rewards", None)


def test_a_function_of_a_file_and_of_a_module(file, module):
    for place in (file, module):
        assert load_function(f"{place}:score")("abc", "de") == Reward({"score": 5.0})
        assert load_function(f"{place}:scorer")("abc", "de") == Reward({"scorer": 1.0})


def test_a_dict_gives_named_parts(file):
    assert load_function(f"{file}:brevity")("abc", "abc").parts == {"short": 1.0, "exact": 1.0}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FILE:scor", r"has no 'scor'\. Did you mean 'score'\?"),
        ("FILE:number", "'number' is not a function but int"),
        ("FILE:one", r"must take \(response, ground_truth\), but too many positional arguments"),
        ("/nowhere/a.py:score", "there is no file /nowhere/a.py"),
        ("no_such_module:score", "cannot be imported .*No module named 'no_such_module'"),
        ("math.nothing:score", "cannot be imported .*No module named 'math.nothing'"),
        ("math", "must be module:function or path/to/file.py:function"),
        (":score", "must be module:function or path/to/file.py:function"),
        ("math:", "must be module:function or path/to/file.py:function"),
        ("FILE", "must be module:function or path/to/file.py:function"),
    ],
)
def test_an_unusable_function_is_refused_with_its_key(file, name, message):
    with pytest.raises(UserError, match=f"reward.function=.*{message}"):
        load_function(name.replace("FILE", file))


def test_an_attribute_of_what_has_none_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("number = 3\n")
    with pytest.raises(UserError, match=r"mine\.py has no 'number\.score'"):
        load_function(f"{tmp_path}/mine.py:number.score")


def test_a_file_that_breaks_is_refused(tmp_path):
    (tmp_path / "broken.py").write_text("def score(:")
    (tmp_path / "fails.py").write_text("1 / 0")
    with pytest.raises(UserError, match=r"broken.py:score cannot be imported \(SyntaxError"):
        load_function(f"{tmp_path}/broken.py:score")
    with pytest.raises(UserError, match=r"fails.py:score cannot be imported \(ZeroDivisionError"):
        load_function(f"{tmp_path}/fails.py:score")


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("name", ["nothing", "text", "infinite", "later"])
def test_an_invalid_return_value_is_refused(file, name):
    with pytest.raises(UserError, match=f"reward.function=.*:{name} must return a finite number or a dict"):
        load_function(f"{file}:{name}")("a", "b")


@pytest.mark.parametrize("declared", ['"format"', '["format", 3]', "None"])
def test_thinking_parts_that_are_no_names_are_refused(file, declared):
    with open(file, "a") as code:
        code.write(f"\nscore.thinking_parts = {declared}\n")
    with pytest.raises(UserError, match=r"reward\.function=.*:score: thinking_parts=.* must be a tuple of names"):
        load_function(f"{file}:score")


def test_parts_that_are_finite_but_not_their_sum_are_refused(file):
    with open(file, "a") as code:
        code.write("\ndef huge(response, ground_truth):\n    return {'a': 1e308, 'b': 1e308}\n")
    for weight in (1.0, 10.0, -10.0):
        reward = RewardSpec(function=f"{file}:huge", function_weight=weight).load()
        with pytest.raises(UserError, match=r"the reward is not finite: {'a': "):
            reward("a", "b")


# With a named reward


def spec(*overrides: str) -> RewardSpec:
    return RewardSpec.of(load_config(list(overrides)).reward)


def test_parts_are_weighted_and_added(file):
    reward = spec(f"reward.function='{file}:score'", "reward.weight=0.5", "reward.function_weight=-2").load()
    earned = reward(RIGHT, TRUTH)
    assert earned.parts == {
        "thinking_format": 0.5,
        "answer_format": 1.0,
        "accuracy": 1.5,
        "non_repeat": 0.5,
        "score": -2.0 * (len(RIGHT) + len(TRUTH)),
    }
    assert earned.total == sum(earned.parts.values())


def test_rewards_declare_which_parts_reward_thinking(file):
    with open(file, "a") as code:
        code.write("\nbrevity.thinking_parts = ('short',)\n")
    assert spec(f"reward.function='{file}:brevity'").thinking_parts == ("thinking_format", "short")
    assert spec(f"reward.function='{file}:brevity'", "reward.name=null").thinking_parts == ("short",)
    assert spec(f"reward.function='{file}:score'", "reward=class_name").thinking_parts == ("format",)


def test_every_reward_declares_the_part_that_thinking_alone_changes():
    """Each named reward gives this part, and no other, for a response with thinking tags and nothing else."""
    truths = {"math": "5", "class_name": "cat", "visual_rft_classification": "cat", "point_in_box": "[1, 1, 9, 9]"}
    truths |= {"visual_rft_grounding": "(1,1),(9,9)"}
    for name in REWARDS:
        reward = load_reward(name)
        thoughtful, bare = (
            reward(f"{thinking}<answer>none</answer>", truths.get(name, "[]")).parts
            for thinking in ("<think>It is far away.</think>", "")
        )
        changed = tuple(part for part in bare if thoughtful[part] != bare[part])
        assert changed == reward.thinking_parts, name


def test_the_function_alone(file):
    assert spec(f"reward.function='{file}:score'", "reward.name=null").load()("a", "b").parts == {"score": 2.0}


def test_the_named_reward_alone_with_its_options():
    reward = spec("reward=math", "reward.options.boxed_credit=0").load()
    assert reward("\\boxed{3}", "2").parts == {"accuracy": 0.0, "thinking_format": 0.0}


def test_a_part_name_in_both_rewards_is_refused(file):
    with pytest.raises(UserError, match=r"has a part 'accuracy', as reward\.name=vision_reasoner has: give it another"):
        spec(f"reward.function='{file}:accuracy'").load()(RIGHT, TRUTH)


def test_options_of_the_wrong_type_are_refused():
    with pytest.raises(UserError, match=r"reward\.options\.credit_empty='perhaps' must be a bool"):
        spec("reward.options.credit_empty=perhaps").load()
    with pytest.raises(UserError, match=r"reward\.options\.boxed_credit=None must be a float"):
        spec("reward=math", "reward.options.boxed_credit=null").load()
    with pytest.raises(
        UserError, match=r"the reward 'math' has no option 'boxed_credi'\. Did you mean 'boxed_credit'\?"
    ):
        RewardSpec("math", {"boxed_credi": 1.0}).load()


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_an_option_that_no_reward_can_have_is_refused(value):
    with pytest.raises(UserError, match=r"reward\.options\.box_distance=.* must be a finite number, at least 0"):
        load_reward("vision_reasoner", box_distance=value)
