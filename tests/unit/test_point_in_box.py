"""The reward for pointing at an element of a screen."""

import json

import pytest

from visurf_ray.rewards import load_reward

TRUTH = "[10, 10, 30, 20]"
POINT, BOX = {"point_2d": [15, 15]}, {"bbox_2d": [10, 10, 30, 20]}
OUTSIDE = {"point_2d": [31, 15]}


@pytest.mark.parametrize(
    ("items", "accuracy", "form"),
    [
        ([POINT], 1.0, 1.0),
        ([BOX], 1.0, 1.0),  # its centre
        ([POINT | BOX], 1.0, 1.0),
        ([OUTSIDE | BOX], 0.0, 1.0),  # the point counts where there is one
        ([{"point_2d": [30, 20]}], 1.0, 1.0),  # the corner is inside
        ([OUTSIDE], 0.0, 1.0),
        ([OUTSIDE, POINT], 1.0, 0.0),  # a shower of points loses what it gains
        ([POINT, {"bbox_2d": [0, 0, 1, 1]}], 1.0, 0.0),  # an item without a point costs the others nothing
        ([{"point_2d": ["15", "15"]}], 0.0, 0.0),
        ([POINT | {"bbox_2d": [1, 2, 3]}], 1.0, 0.0),
        ([{"label": "button"}], 0.0, 0.0),
        ([7], 0.0, 0.0),
        ([], 0.0, 0.0),
    ],
)
def test_accuracy_and_format(items, accuracy, form):
    parts = load_reward("point_in_box")(f"<think>a</think><answer>{json.dumps(items)}</answer>", TRUTH).parts
    assert parts == {"accuracy": accuracy, "answer_format": form, "thinking_format": 1.0}


def test_thinking_is_a_part_of_its_own():
    response = f"<answer>{json.dumps([POINT])}</answer>"
    assert load_reward("point_in_box")(response, TRUTH).parts == {
        "accuracy": 1.0,
        "answer_format": 1.0,
        "thinking_format": 0.0,
    }
    assert load_reward("point_in_box")(json.dumps([POINT]), TRUTH).total == 0.0


def test_the_truth_may_be_a_grounding_tasks():
    truth = json.dumps([BOX | POINT])
    assert load_reward("point_in_box")(f"<answer>{json.dumps([POINT])}</answer>", truth).parts["accuracy"] == 1.0


@pytest.mark.parametrize("truth", ["", "[]", "[1, 2, 3]", "{}", json.dumps([BOX, BOX]), json.dumps([POINT])])
def test_the_truth_must_be_one_box(truth):
    with pytest.raises(ValueError, match=r"is not JSON|must be one box"):
        load_reward("point_in_box")("", truth)
