"""VisionReasoner's reward: by hand, compared with the original where that is right, and the fixed bugs."""

import json
import time

import pytest

from visurf_ray.answers.boxes import ious
from visurf_ray.errors import UserError
from visurf_ray.rewards import load_reward

A = {"bbox_2d": [100, 100, 300, 300], "point_2d": [200, 200]}
B = {"bbox_2d": [400, 400, 600, 700], "point_2d": [500, 550]}
MANY = [{"bbox_2d": [5 * i, 3 * i, 5 * i + 40, 3 * i + 30], "point_2d": [5 * i + 20, 3 * i + 15]} for i in range(150)]
THOUGHT = "<think>reason</think>"


def answer(*items, think: str = THOUGHT) -> str:
    return f"{think}<answer>{json.dumps(items)}</answer>"


def box(*corners) -> dict:
    """An item with its point where the ground truth A has it."""
    return {"bbox_2d": list(corners), "point_2d": [200, 200]}


@pytest.fixture
def reward():
    return load_reward("vision_reasoner")


def score(reward, kind: str, response: str, truth: str) -> float:
    parts = reward(response, truth).parts
    assert list(parts) == ["thinking_format", "answer_format", "accuracy", "non_repeat"]
    match kind:
        case "format":
            return parts["thinking_format"] + parts["answer_format"]
        case "total":
            return reward(response, truth).total
        case _:
            return parts[kind]


# What dvlab-research/Seg-Zero @42a3345, verl/utils/reward_score/vision_reasoner.py, returns: kind, response, ground
# truth, value. `format` is its vision_reasoner_format_reward (thinking and answer together), `total` its compute_score.
ORIGINAL = {
    "perfect": ("format", answer(A), [A], 3.0),
    "text between think and answer": ("format", answer(A, think="<think>reason</think> so "), [A], 2.0),
    "nested think": ("format", answer(A, think="<think>a<think>b</think></think>"), [A], 3.0),
    "unclosed answer": ("format", answer(A).removesuffix("</answer>"), [A], 0.0),
    "empty answer": ("format", "<think>reason</think><answer></answer>", [A], 1.0),
    "markdown fence": ("format", f"{THOUGHT}<answer>```json\n{json.dumps([A])}\n```</answer>", [A], 1.0),
    "point only": ("format", answer({"point_2d": [1, 2]}), [A], 2.0),
    "one good and one bad item": (
        "format",
        answer({"bbox_2d": [1, 2, 3, 4], "point_2d": [1, 2]}, {"label": "x"}),
        [A],
        2.0,
    ),
    "unicode, and no-break spaces": (
        "format",
        f"<think>图中有一只狗。</think><answer>\u00a0{json.dumps([A])}\u00a0</answer>",
        [A],
        3.0,
    ),
    "upper-case tags": ("format", "<THINK>a</THINK><ANSWER>" + json.dumps([A]) + "</ANSWER>", [A], 0.0),
    "right": ("accuracy", answer(A), [A], 3.0),
    "near": ("accuracy", answer({"bbox_2d": [105, 95, 310, 305], "point_2d": [210, 205]}), [A], 3.0),
    "the same box twice": ("accuracy", answer(A, A), [A], 1.5),
    "box distance exactly 10": ("accuracy", answer(box(110, 110, 310, 310)), [A], 2.0),
    "point distance 29": ("accuracy", answer({"bbox_2d": A["bbox_2d"], "point_2d": [229, 200]}), [A], 3.0),
    "box of one pixel": (
        "accuracy",
        answer({"bbox_2d": [5, 5, 5, 5], "point_2d": [5, 5]}),
        [{"bbox_2d": [5, 5, 5, 5], "point_2d": [5, 5]}],
        3.0,
    ),
    "negative and fractional coordinates": (
        "accuracy",
        answer({"bbox_2d": [-3.5, -2.25, 40.75, 50.5], "point_2d": [12.5, 30.25]}),
        [{"bbox_2d": [0, 0, 40, 50], "point_2d": [12, 30]}],
        3.0,
    ),
    "a box where nothing is meant": ("accuracy", answer(A), [], 0.0),
    "booleans as coordinates": (
        "accuracy",
        answer({"bbox_2d": [True] * 4, "point_2d": [True] * 2}),
        [{"bbox_2d": [1, 1, 1, 1], "point_2d": [1, 1]}],
        0.0,
    ),
    "no answer tags": ("accuracy", json.dumps([A]), [A], 0.0),
    "150 right boxes": ("accuracy", answer(*MANY), MANY, 3.0),
    "nothing repeated": ("non_repeat", answer(A), [A], 1.0),
    "a sentence three times": ("non_repeat", "A b. A b. A b.", [A], 0.0),
    "white space differs": ("non_repeat", "Aa.  Aa .Aa", [A], 0.0),
    "distinct fractional coordinates": (
        "non_repeat",
        '<answer>[{"bbox_2d": [1.5, 2.25, 3.75, 4.125], "point_2d": [1, 1]}]</answer>',
        [A],
        1.0,
    ),
    "all right": ("total", answer(A), [A], 7.0),
    "all right in another order": ("total", answer(B, A), [A, B], 7.0),
    "all right but nothing is meant": ("total", answer(A), [], 4.0),
    "IoU alone": ("total", answer({"bbox_2d": [120, 120, 320, 300], "point_2d": [290, 290]}), [A], 5.0),
    "malformed JSON": ("total", '<think>reason</think><answer>[{"bbox_2d": [1</answer>', [A], 2.0),
    "text after the answer": ("total", answer(A) + " ok", [A], 6.0),
    "all of 150 right": ("total", answer(*MANY), MANY, 7.000000000000005),
}

# The rows where ours differs on purpose: kind, response, ground truth, the original's value, ours. Each key says why.
MENDED = {
    "a line break at the end is no fault": ("format", answer(A) + "\n", [A], 2.0, 3.0),
    "an item without a point loses its point's credit alone: (3 + 2) / 2": (
        "accuracy",
        answer(A, {"bbox_2d": B["bbox_2d"]}),
        [A, B],
        0.0,
        2.5,
    ),
    "every surplus box counts, not the first 120": ("accuracy", answer(A, *MANY[:149]), [A], 3 / 120, 3 / 150),
    "a Chinese full stop ends a sentence": ("non_repeat", "狗。狗。狗。狗。", [A], 1.0, 0.0),
}


@pytest.mark.parametrize("case", ORIGINAL)
def test_scores_as_the_original(reward, case):
    kind, response, truth, value = ORIGINAL[case]
    assert score(reward, kind, response, json.dumps(truth)) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("case", MENDED)
def test_differs_from_the_original_on_purpose(reward, case):
    kind, response, truth, original, ours = MENDED[case]
    assert original != ours
    assert score(reward, kind, response, json.dumps(truth)) == pytest.approx(ours, abs=1e-12)


# Thinking format


@pytest.mark.parametrize(
    ("response", "thinks"),
    [
        ("<think>a</think><answer>x</answer>", 1.0),
        ("\n <think>a\nb</think>\n\n<answer>\nx\n</answer> \n", 1.0),
        ("<think></think><answer></answer>", 1.0),
        ("<answer>x</answer>", 0.0),
        ("<think>a</think>", 0.0),
        ("<answer>x</answer><think>a</think>", 0.0),
        ("<think>a<answer>x</answer></think>", 0.0),
        ("<think>a</think><think>b</think><answer>x</answer>", 0.0),
        ("<think>a</think><answer>x</answer><answer>y</answer>", 0.0),
        ("<think>a</think> <answer>x</answer> or <answer>y</answer>", 0.0),
        ("<think>a<answer>x</answer></think><answer>y</answer>", 1.0),  # a draft is part of the thought
        ("<think>a</think><answer><answer>x</answer></answer>", 0.0),
        ("<think>a</think><answer>x</answer><think>b</think>", 0.0),
        ("<think>a</think>b</think><answer>x</answer>", 0.0),
        ("<think>a<think>b</think></think><answer>x</answer>", 1.0),  # one thought within another
        ("<think>The answer goes into <answer>.</think><answer>x</answer>", 1.0),  # a mention is no answer
        ("So: <think>a</think><answer>x</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_thinking_format(reward, response, thinks):
    assert reward(response, "[]").parts["thinking_format"] == thinks


# Answer format


@pytest.mark.parametrize(
    ("items", "value"),
    [
        ("[]", 0.0),  # the ground truth is not empty here
        ("{}", 0.0),
        ('{"bbox_2d": [1, 2, 3, 4], "point_2d": [1, 2]}', 0.0),
        ("[1, 2]", 0.0),
        ("null", 0.0),
        ('[{"bbox_2d": [1, 2, 3, 4]}]', 1.0),
        ('[{"bbox_2d": [1, 2, 3], "point_2d": [1, 2]}]', 1.0),
        ('[{"bbox_2d": [1, 2, 3, 4], "point_2d": [1, 2, 3]}]', 1.0),
        ('[{"bbox_2d": [1, 2, 3, null], "point_2d": "12"}]', 0.0),
        ('[{"bbox_2d": ["1", "2", "3", "4"], "point_2d": ["1", "2"]}]', 0.0),
        ('[{"bbox_2d": [1, 2, 3, NaN], "point_2d": [1, Infinity]}]', 0.0),
        ('[{"bbox_2d": [1, 2, 3, 4.5], "point_2d": [-1, 2e1]}]', 2.0),
        ('[{"bbox_2d": [1, 2, 3, 4], "point_2d": [1, 2]}, 7, {}]', 2 / 3),
    ],
)
def test_answer_format_is_a_mean_over_the_items(reward, items, value):
    assert reward(f"<answer>{items}</answer>", json.dumps([A])).parts["answer_format"] == pytest.approx(value)


# Accuracy


@pytest.mark.parametrize(
    ("item", "value"),
    [
        (box(100, 100, 300, 300), 3.0),
        (box(100, 100, 300, 339), 3.0),  # mean distance 39/4
        (box(100, 100, 300, 340), 2.0),  # mean distance exactly 10
        (box(100, 100, 300, 200), 2.0),  # IoU 101/201 by pixels, just above a half; point on the edge
        (box(100, 100, 300, 199), 0.0),  # IoU 100/201, and the point lies outside
        ({"bbox_2d": [100, 100, 300, 300], "point_2d": [230, 200]}, 2.0),  # distance exactly 30
        ({"bbox_2d": [100, 100, 300, 300], "point_2d": [218, 223]}, 3.0),  # 29.2
        ({"bbox_2d": [100, 100, 195, 300], "point_2d": [196, 200]}, 0.0),  # near, but outside its own box
        ({"bbox_2d": [100, 100, 200, 300], "point_2d": [200, 200]}, 2.0),  # inside, edges included
        ({"point_2d": [200, 200]}, 0.0),  # a point needs its box
        ({"bbox_2d": [300, 300, 100, 100], "point_2d": [200, 200]}, 0.0),  # corners swapped
    ],
)
def test_accuracy_of_one_box_by_hand(reward, item, value):
    assert reward(answer(item), json.dumps([A])).parts["accuracy"] == value


def test_an_iou_of_exactly_one_half_is_a_miss(reward):
    whole = {"bbox_2d": [0, 0, 199, 199], "point_2d": [100, 150]}
    half, more = ({"bbox_2d": [0, 0, 199, y], "point_2d": [0, 0]} for y in (99, 100))
    assert reward(answer(half), json.dumps([whole])).parts["accuracy"] == 0.0
    assert reward(answer(more), json.dumps([whole])).parts["accuracy"] == 1.0


def test_matching_is_the_best_one_not_the_first(reward):
    """The first box fits both targets, the other one target alone: whoever goes first to the best fit loses a match."""
    targets = [{"bbox_2d": [0, 0, 999, y], "point_2d": [500, 500]} for y in (999, 1499)]
    both = {"bbox_2d": [0, 0, 999, 1199], "point_2d": [999, 0]}  # IoU 1000/1200 and 1200/1500
    one = {"bbox_2d": [0, 0, 999, 600], "point_2d": [999, 0]}  # IoU 601/1000 and 601/1500
    for given in ((both, one), (one, both)):
        assert reward(answer(*given), json.dumps(targets)).parts["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("items", "truth", "value"),
    [
        ([A], [A, B], 1.5),
        ([A, B], [A], 1.5),
        ([A, 7], [A], 1.5),
        ([B], [A], 0.0),
        ([A, B], [B, A], 3.0),
        ([], [A], 0.0),
    ],
)
def test_missing_and_surplus_boxes_lower_the_mean(reward, items, truth, value):
    assert reward(answer(*items), json.dumps(truth)).parts["accuracy"] == value


def test_distances_are_settings():
    strict = load_reward("vision_reasoner", box_distance=3.0, point_distance=5.0)
    near = {"bbox_2d": [104, 104, 304, 304], "point_2d": [204, 204]}  # box distance 4, point distance 5.7
    assert strict(answer(near), json.dumps([A])).parts["accuracy"] == 1.0
    assert load_reward("vision_reasoner")(answer(near), json.dumps([A])).parts["accuracy"] == 3.0


def test_inclusive_pixels():
    others = [(0, 0, 9, 4), (9, 9, 20, 20), (10, 0, 19, 9), (30, 30, 12, 12)]
    assert ious([(0, 0, 9, 9)], others, edge=1)[0] == pytest.approx([0.5, 1 / (100 + 144 - 1), 0.0, 0.0])


# Nothing is meant


@pytest.mark.parametrize(
    ("credit_empty", "response", "truth", "total"),
    [
        (True, answer(), [], 7.0),
        (False, answer(), [], 2.0),  # the original's: thinking format and non-repeat
        (True, answer(think=""), [], 6.0),  # a label
        (True, answer(A), [], 4.0),  # the right answer is worth more than a made-up box
        (True, answer(), [A], 2.0),
        (True, "<think>a</think><answer>nothing</answer>", [], 2.0),
        (True, "<think>a</think><answer>{}</answer>", [], 2.0),
        (True, "<think>a</think>[]", [], 1.0),
    ],
)
def test_the_empty_answer(credit_empty, response, truth, total):
    reward = load_reward("vision_reasoner", credit_empty=credit_empty)
    assert reward(response, json.dumps(truth)).total == total


def test_of_several_answers_the_last_counts(reward):
    assert reward(answer(B) + f"<answer>{json.dumps([A])}</answer>", json.dumps([A])).parts["accuracy"] == 3.0
    assert reward(answer(A) + f"<answer>{json.dumps([B])}</answer>", json.dumps([A])).parts["accuracy"] == 0.0


def test_an_answer_inside_the_thinking_does_not_count(reward):
    thinking = f"<think>Perhaps {answer(B, think='')}?</think>"
    assert reward(answer(A, think=thinking), json.dumps([A])).total == 7.0
    assert reward(f"<think>{answer(A, think='')}</think>", json.dumps([A])).total == 1.0


# Repetition


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("One. Two. Three.", 1.0),
        ("One. Two. One.", 1.0),  # once is forgiven
        ("One. Two. One. Two.", 0.0),  # repetitions add up over sentences
        ("One. One. One.", 0.0),
        ("One\nOne\n One ", 0.0),
        ("... ... ...", 1.0),  # no sentences at all
        ("3.5. 3.5. 4", 1.0),
        ("3.5. 3.5. 3.5.", 0.0),
        ("<answer>[0.0, 0.0, 0.0, 0.0]</answer>", 1.0),  # a decimal point ends no sentence
        ("狗。狗。狗。", 0.0),
        ("", 1.0),
    ],
)
def test_repeated_sentences(reward, response, value):
    assert reward(response, "[]").parts["non_repeat"] == value


# What a policy may come up with


@pytest.mark.parametrize(
    "text",
    ["[" * 20000, '{"a":' * 20000, "9" * 5000, "[1e999]", '["\\ud800"]', "\x00"],
    ids=["nested lists", "nested objects", "many digits", "infinite", "surrogate", "control"],
)
def test_no_answer_breaks_the_reward(reward, text):
    parts = reward(f"<think>a</think><answer>{text}</answer>", json.dumps([A])).parts
    assert parts == {"thinking_format": 1.0, "answer_format": 0.0, "accuracy": 0.0, "non_repeat": 1.0}


@pytest.mark.parametrize(
    "text",
    ["<answer>" + " " * 1500, "<think>" + "</think> <answer>" * 300, "<answer>" * 300],
    ids=["white space", "tags", "answers"],
)
def test_scoring_takes_no_time_whatever_the_response(reward, text):
    begin = time.process_time()
    reward(text, json.dumps([A]))
    assert time.process_time() - begin < 0.3


@pytest.mark.parametrize("truth", ["nothing", "{}", '[{"bbox_2d": [1, 2, 3]}]', "[7]"])
def test_a_malformed_ground_truth_raises(reward, truth):
    with pytest.raises(ValueError):
        reward(answer(A), truth)


def test_an_unknown_reward_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown reward 'vision_reasonr'\. Did you mean 'vision_reasoner'\?"):
        load_reward("vision_reasonr")
