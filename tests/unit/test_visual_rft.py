"""Visual-RFT's rewards by hand, and the fixed bugs; the originals' values are in test_reward_vectors.py."""

import json
import time

import pytest

from visurf_ray.rewards import load_reward
from visurf_ray.rewards.visual_rft_grounding import giou

THOUGHT = "<think>reason</think>"


def answer(text: str, think: str = THOUGHT) -> str:
    return f"{think}<answer>{text}</answer>"


def boxes(*items: tuple[list, object]) -> str:
    return str([{"Position": position, "Confidence": confidence} for position, confidence in items])


# Detection

A, B = [0, 0, 100, 100], [500, 500, 600, 600]
TRUTH = boxes((A, 1), (B, 1))


@pytest.fixture
def detect():
    reward = load_reward("visual_rft_detection")

    def score(response: str, truth: str = TRUTH) -> tuple[float, float]:
        parts = reward(response, truth).parts
        assert list(parts) == ["iou", "confidence", "format"]
        return parts["iou"], parts["confidence"]

    return score


@pytest.mark.parametrize(
    ("items", "iou", "confidence"),
    [
        ([(A, 0.9), (B, 0.7)], 1.0, 0.8),
        ([(A, 0.9)], 0.5, 0.9),  # one of two: over the longer list
        ([(A, 0.9), (B, 0.7), ([900, 900, 910, 910], 0.4)], 2 / 3, (0.9 + 0.7 + 0.6) / 3),
        ([(A, 0.9), (A, 0.2), (B, 0.7)], 1.0, 0.8),  # a box twice counts once, the first time
        ([([0, 0, 100, 51], 0.5), (B, 1)], 1.51 / 2, 0.75),
        ([([0, 0, 100, 50], 0.5), (B, 1)], 0.5, 0.75),  # IoU exactly 0.5 is a miss
        ([([100, 100, 0, 0], 0.5)], 0.0, 0.5),  # swapped corners
        ([(A, 1), (B, 0)], 1.0, 0.5),
        ([(A, -0.5)], 0.5, 0.0),  # what is no confidence earns nothing: the original clips the mean, ...
        ([([900, 900, 910, 910], -0.5)], 0.0, 0.0),  # ... which gave 1 for this miss
        ([(A, 1.5), (B, 1)], 1.0, 0.5),
    ],
)
def test_iou_and_confidence_by_hand(detect, items, iou, confidence):
    assert detect(answer(boxes(*items))) == pytest.approx((iou, confidence))


def test_the_most_confident_box_chooses_first(detect):
    """Both fit A; the one of less confidence fits better, and finds it taken."""
    near, nearer = [0, 0, 100, 80], [0, 0, 100, 90]
    assert detect(answer(boxes((nearer, 0.6), (near, 0.8))), boxes((A, 1))) == pytest.approx((0.8 / 2, (0.8 + 0.4) / 2))


def test_equal_numbers_in_different_boxes_do_not_count(detect):
    assert detect(answer(boxes(([900, 110, 950, 115], 0.3))), boxes(([100, 110, 300, 310], 1))) == (0.0, 0.7)


@pytest.mark.parametrize("truth", ["No Objects", "<answer>No Objects</answer>", "[]", "<answer>[]</answer>"])
def test_an_empty_answer_is_right_if_there_are_no_objects(detect, truth):
    for right in ("No Objects", "[]", " no objects\n"):
        assert detect(answer(right), truth) == (1.0, 1.0)
        assert load_reward("visual_rft_detection", credit_empty=False)(answer(right), truth).total == 1.0
    assert detect(answer(boxes((A, 0.9))), truth) == pytest.approx((0.0, 0.1))
    for wrong in ("nothing", "", "{}", "[7]"):
        assert detect(answer(wrong), truth) == (0.0, 0.0)


def test_an_empty_answer_is_wrong_if_there_are_objects(detect):
    assert detect(answer("No Objects")) == detect(answer("[]")) == (0.0, 0.0)


WHOLE = boxes((A, 0.9), (B, 0.7))


@pytest.mark.parametrize(
    ("response", "value"),
    [
        (answer(f"\n{WHOLE}\n"), (1.0, 0.8)),
        (answer(f"[{WHOLE}]"), (1.0, 0.8)),  # brackets twice
        (answer(json.dumps([{"Position": A, "Confidence": 0.9}])), (0.5, 0.9)),  # JSON's quotes
        (WHOLE, (1.0, 0.8)),  # no tags at all
        (THOUGHT + WHOLE, (0.0, 0.0)),  # the tags of the answer are missing
        (f"<think>{answer(WHOLE, think='')}</think>", (0.0, 0.0)),
        (answer(boxes(([1, 1, 2, 2], 1))) + answer(WHOLE, think=""), (1.0, 0.8)),  # the last answer counts
        (f"{THOUGHT}<answer>{WHOLE[:-1]}, {{'Position': [1, 2", (1.0, 0.8)),  # cut: what is complete counts
        (answer(WHOLE[:-1]), (1.0, 0.8)),
        (answer(WHOLE[:-4]), (0.5, 0.9)),
        (answer(str([{"Position": A}])), (0.0, 0.0)),
        (answer(boxes((A, "0.9"))), (0.0, 0.0)),
        (answer(boxes((A, 0.9), ([1, 2, 3], 0.9))), (0.0, 0.0)),
        (answer("7"), (0.0, 0.0)),
        ("", (0.0, 0.0)),
    ],
)
def test_what_is_read_as_an_answer(detect, response, value):
    assert detect(response) == pytest.approx(value)


@pytest.mark.parametrize("truth", ["", "[{}]", "[{'Position': [1, 2, 3]}]", "seven", "{}"])
def test_a_malformed_ground_truth_raises(detect, truth):
    with pytest.raises(ValueError):
        detect(answer(WHOLE), truth)


# Classification


@pytest.mark.parametrize(
    ("response", "truth", "accuracy"),
    [
        (answer("Boeing 737-200"), "Boeing 737-200", 1.0),
        (answer("boeing_737-200"), "<answer>Boeing 737-200</answer>", 1.0),
        (answer("It is a Boeing 737-200 jet"), "Boeing 737-200", 1.0),
        (answer("737-200"), "Boeing 737-200", 1.0),
        (answer("Boeing 747"), "Boeing 737-200", 0.0),
        (answer("Cessna 172"), "Robin 172", 0.0),  # numbers that agree are no names that agree
        (answer(""), "rose", 0.0),
        (answer(" _ "), "rose", 0.0),
        ("", "rose", 0.0),
        ("rose", "rose", 1.0),
        (f"{THOUGHT} rose", "rose", 1.0),
        ("<think>Perhaps a rose?</think> tulip", "rose", 0.0),
        ("<think>Perhaps a rose?</think><answer>tulip</answer>", "rose", 0.0),
        (answer("\nrose\n"), "rose", 1.0),
        (answer("tulip") + answer("rose", think=""), "rose", 1.0),
    ],
)
def test_classification(response, truth, accuracy):
    parts = load_reward("visual_rft_classification")(response, truth).parts
    assert parts == {"accuracy": accuracy, "format": parts["format"]}


@pytest.mark.parametrize(
    ("given", "right"),
    [("Boeing_737-200", True), ("737-200", False), ("o", False), ("a Boeing 737-200", False), ("", False)],
)
def test_class_name_requires_the_whole_name(given, right):
    reward = load_reward("class_name")
    for truth in ("Boeing 737-200", "<answer>boeing 737-200</answer>"):
        assert reward(answer(given), truth).parts == {"accuracy": float(right), "format": 1.0}
        assert reward(given, truth).parts == {"accuracy": float(right), "format": 0.0}


@pytest.mark.parametrize("truth", ["", "<answer> </answer>", "_"])
@pytest.mark.parametrize("name", ["visual_rft_classification", "class_name"])
def test_a_class_needs_a_name(name, truth):
    with pytest.raises(ValueError, match="is empty"):
        load_reward(name)(answer("rose"), truth)


# Grounding


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(100,100),(300,300)", 2.0),
        ("( 100 , 100 ) ,\n( 300 , 300 )", 2.0),
        ("(100,100),(300,200)", 1.5),  # half of it, and the hull is the box
        ("(300,100),(500,300)", 1.0),  # beside it: IoU 0, and the hull is full
        ("(600,600),(800,800)", 0.16326530612244894),
        ("(300,300),(100,100)", 0.0),
        ("(100,300),(300,100)", 0.0),
        ("(100,100),(100,300)", 0.0),  # no area
        ("(100,100),(300,300),(100,100),(300,300)", 0.0),  # two boxes
        ("(100,100),(300,300),(5,5)", 0.0),
        ("(100,100) (300,300)", 0.0),
        ("(-5,100),(300,300)", 0.0),
        ("(100.5,100),(300,300)", 0.0),
        ("[100, 100, 300, 300]", 0.0),
        ("", 0.0),
    ],
)
def test_grounding(text, value):
    parts = load_reward("visual_rft_grounding")(answer(text), "<answer> (100,100),(300,300) </answer>").parts
    assert parts == {"giou": pytest.approx(value, abs=1e-12), "format": 1.0}


def test_giou_falls_with_the_distance():
    near, far = (giou((0, 0, 10, 10), (x, 0, x + 10, 10)) for x in (20, 1000))
    assert -1 < far < near == -1 / 3 < giou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)


@pytest.mark.parametrize("truth", ["", "(1,1)", "(3,3),(1,1)", "(1,1),(2,2),(3,3),(4,4)", "[1, 1, 2, 2]"])
def test_the_true_box_must_be_one(truth):
    with pytest.raises(ValueError, match="must be one box"):
        load_reward("visual_rft_grounding")(answer("(1,1),(2,2)"), truth)


# All


@pytest.mark.parametrize(
    ("response", "value"),
    [("<think>a</think><answer>b</answer>\n", 1.0), ("<answer>b</answer>", 0.0), ("<think>a</think> b", 0.0)],
)
@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("visual_rft_detection", "[]"),
        ("visual_rft_classification", "rose"),
        ("visual_rft_grounding", "(1,1),(2,2)"),
    ],
)
def test_format(name, truth, response, value):
    assert load_reward(name)(response, truth).parts["format"] == value


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("visual_rft_detection", "[]"),
        ("visual_rft_classification", "rose"),
        ("visual_rft_grounding", "(1,1),(2,2)"),
        ("point_in_box", "[1, 1, 2, 2]"),
        ("vision_reasoner", "[]"),
        ("math", "2"),
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        "[" * 20000,
        '{"Position":' * 20000,
        "9" * 5000,
        "(" * 20000,
        "(1,1)," * 5000,
        "(1," + " " * 5000,
        "\\boxed{" * 5000,
        "\ud800",
        "\x00",
        "<answer>" * 20000,
        "</think><answer>" * 1500,
    ],
    ids=lambda text: repr(text[:16]),
)
def test_no_answer_breaks_a_reward_or_takes_long(name, truth, text):
    reward = load_reward(name)
    begin = time.process_time()
    for response in (answer(text), text, f"{THOUGHT}<answer>{text}"):
        assert all(0 <= value <= 1 for value in reward(response, truth).parts.values())
    assert time.process_time() - begin < 1
