"""Several answers to an example, and intervals: against plain loops, and against what is known of binomials."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom

from visurf_ray.answers.formulas import Truth
from visurf_ray.config.load import load_config
from visurf_ray.errors import DataError
from visurf_ray.groups import Prediction, without_bounds
from visurf_ray.scoring.sampled import by_example, interval, majority, pass_at
from visurf_ray.tasks import load_task


def the_task(name: str, **changes):
    config = load_config([f"task={name}"]).task
    return load_task(config, seed=0, **changes)


def answered(truth: str, *responses: str, identity: str = "a", question: str = "q") -> list[Prediction]:
    """All answers to one example."""
    numbers = range(len(responses)) if len(responses) > 1 else [None]
    return [
        Prediction(identity, question, truth, (100, 100), response, sample=number)
        for number, response in zip(numbers, responses, strict=True)
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_pass_at_k_is_the_share_of_all_choices_of_k_answers_with_a_right_one(n):
    for right in range(n + 1):
        answers = [True] * right + [False] * (n - right)
        for k in range(1, n + 1):
            chosen = list(combinations(answers, k))
            assert pass_at(k, n, right) == pytest.approx(sum(any(each) for each in chosen) / len(chosen))


@pytest.mark.parametrize(
    ("votes", "score"),
    [
        ([], 0.0),
        ([("4", True)], 1.0),
        ([("5", False), ("4", True), ("5", False)], 0.0),
        ([("5", False), ("4", True), ("4", True)], 1.0),
        ([("5", False), ("4", True)], 0.5),  # undecided
        ([("5", False), ("6", False), ("4", True)], 1 / 3),
    ],
)
def test_the_majority_is_the_answer_with_the_most_votes(votes, score):
    assert majority(votes, str.__eq__) == pytest.approx(score)


def test_math_scores_by_hand():
    """Three answers to each of two questions: 2 of 3 right in two notations, and 1 of 3 beside two equal wrong ones."""
    first = answered("1/2", "\\boxed{0.5}", "\\boxed{3}", "\\boxed{\\frac{1}{2}}")
    second = answered("7", "\\boxed{8}", "\\boxed{7}", "\\boxed{8.0}", identity="b")
    scores = without_bounds(the_task("math").score(first + second))
    assert scores == pytest.approx(
        {
            "accuracy": 0.5,
            "format_rate": 1.0,
            "thinking_rate": 0.0,
            "pass@1": 0.5,
            "pass@2": (1 + 2 / 3) / 2,
            "pass@3": 1.0,
            "majority@3": 0.5,
        }
    )


def test_an_answer_that_is_missing_has_no_vote():
    scores = the_task("math").score(answered("7", "no", "nothing", "\\boxed{7}", "?"))
    assert scores["majority@4"] == 1 and scores["pass@1"] == 0.25
    assert the_task("math").score(answered("7", "no", "nothing"))["majority@2"] == 0


@pytest.mark.parametrize(
    ("task", "truth", "right", "wrong", "votes"),
    [
        ("math", Truth("12", ("12", "30")).dump(), ["\\boxed{A}", "\\boxed{12}", "\\boxed{(A)}"], "\\boxed{B}", True),
        ("math", Truth("3.71", (), 2).dump(), ["\\boxed{3.712}", "\\boxed{3.71}"], "\\boxed{3.8}", True),
        ("vqa", '["14", "fourteen"]', ["14", "<answer>14.0</answer>", " 14 "], "20", True),
        ("vqa", '["Paris"]', ["paris", "PARIS"], "Rome", True),
        ("classification", "Boeing 737", ["<answer>boeing_737</answer>", "Boeing737"], "Airbus", True),
        ("grounding", "(0,0),(100,100)", ["(0,0),(100,100)", "(0,0),(90,100)"], "(0,0),(10,10)", False),
        ("non_object", "[]", ["<answer>[]</answer>", "<answer>[ ]</answer>"], "<answer>[{}]</answer>", False),
    ],
)
def test_what_tasks_take_for_right_and_for_the_same_answer(task, truth, right, wrong, votes):
    task = the_task(task)
    answers = answered(truth, *right, wrong)
    assert [task.correct(each) for each in answers] == [True] * len(right) + [False]
    keys = [task.answer_key(each) for each in answers]
    if not votes:
        assert keys == [None] * len(answers)
        return
    *same, other = keys
    assert all(task.same(same[0], each) for each in same) and not task.same(same[0], other)


BOX = {"bbox_2d": [0, 0, 10, 10], "point_2d": [5, 5]}
NEAR = {"bbox_2d": [0, 0, 10, 8], "point_2d": [5, 5]}
FAR = {"bbox_2d": [50, 50, 60, 60], "point_2d": [55, 55]}


def boxes(*items) -> str:
    return f"<answer>{json.dumps(items)}</answer>"


@pytest.mark.parametrize(
    ("given", "right"),
    [([BOX], False), ([BOX, FAR], True), ([FAR, NEAR], True), ([BOX, FAR, FAR], False), ([], False)],
)
def test_boxes_are_right_if_all_are_found_and_no_other(given, right):
    (prediction,) = answered(json.dumps([BOX, FAR]), boxes(*given))
    assert the_task("non_object").correct(prediction) is right


def test_pointing_is_right_with_one_item_alone():
    task = the_task("gui_grounding")
    assert [task.correct(each) for each in answered(json.dumps([BOX]), boxes(BOX), boxes(BOX, FAR), boxes(FAR))] == [
        True,
        False,
        False,
    ]


def test_graded_answers_have_neither_pass_nor_majority():
    truth = "[{'Position': [0, 0, 500, 500], 'Confidence': 1}]"
    given = '<answer>[{"Position": [0, 0, 500, 500], "Confidence": 1}]</answer>'
    scores = the_task("detection").score(answered(truth, given, "No Objects", question="the 'cat'"))
    assert not [name for name in scores if "@" in name]
    assert scores["map50"] == pytest.approx(0.5) and scores["empty_rate"] == 0.5, (
        "of the first answers, and of the second"
    )


def test_pooled_metrics_are_means_over_the_rounds_of_answers():
    task = the_task("non_object")
    answers = [
        answered(json.dumps([BOX]), boxes(BOX), boxes(FAR)),
        answered(json.dumps([BOX, FAR]), boxes(BOX), boxes(BOX, FAR), identity="b"),
    ]
    rounds = [[replace(each[number], sample=None) for each in answers] for number in range(2)]
    expected = np.mean([task.metrics(each)["ciou"] for each in rounds])
    scores = task.score([each for example in answers for each in example])
    assert scores["ciou"] == pytest.approx(expected) and "ciou_low" not in scores
    assert scores["bbox_acc"] == pytest.approx(np.mean([task.metrics(each)["bbox_acc"] for each in rounds]))


ONE = {
    "math": answered("7", "\\boxed{7}"),
    "vqa": answered('["7"]', "8"),
    "classification": answered("cat", "<answer>dog</answer>"),
    "grounding": answered("(0,0),(9,9)", "(0,0),(9,9)"),
    "detection": answered("No Objects", "<answer>No Objects</answer>"),
    "non_object": answered(json.dumps([BOX]), boxes(NEAR)),
    "gui_grounding": answered(json.dumps([BOX]), boxes(BOX)),
    "anomaly": answered("[]", boxes(BOX)),
    "lesion": answered(json.dumps([BOX]), boxes(BOX)),
    "reasoning_segmentation": answered(json.dumps([BOX]), boxes(FAR)),
}


@pytest.mark.parametrize("name", ONE)
def test_values_of_answers_average_to_the_metrics_except_the_pooled(name):
    task = the_task(name)
    others = [replace(each, response="no answer") for each in ONE[name]]
    predictions = [*ONE[name], *others, *ONE[name]]
    values = [task.values(each) for each in predictions]
    metrics = task.metrics(predictions)
    assert {name for each in values for name in each} == metrics.keys() - task.pooled
    for metric in values[0]:
        assert np.mean([each[metric] for each in values]) == pytest.approx(metrics[metric])
    scores = task.score(predictions)
    assert without_bounds(scores) == pytest.approx(metrics)
    assert scores.keys() - metrics.keys() == {f"{m}_{end}" for m in values[0] for end in ("low", "high")}


def test_without_predictions_there_are_no_scores():
    assert the_task("math").score([]) == {} and the_task("non_object").score([]) == {}


def test_the_interval_is_that_of_numpys_resamples():
    values = np.random.default_rng(3).gamma(2.0, size=80)
    rng = np.random.default_rng(7)
    means = [np.mean(rng.choice(values, len(values))) for _ in range(20_000)]
    assert interval(values.tolist()) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.06)
    assert interval(values.tolist()) == interval(values.tolist())


@pytest.mark.parametrize(("right", "total"), [(50, 100), (10, 100), (380, 400)])
def test_the_interval_of_a_share_has_the_quantiles_of_a_binomial(right, total):
    low, high = interval([1.0] * right + [0.0] * (total - right))
    expected = binom.ppf([0.025, 0.975], total, right / total) / total
    assert (low, high) == pytest.approx(expected, abs=1.5 / total + 0.005)


def test_one_value_has_no_interval_and_equal_ones_have_a_point():
    assert interval([0.5]) is None and interval([1.0, 1.0, 1.0]) == (1.0, 1.0)


def test_the_interval_is_over_examples_and_not_over_answers():
    """Ten answers that are all alike tell no more of the examples than one."""
    truths = ["1", "2", "3", "4"]
    right = [f"\\boxed{{{truth if truth in '12' else 0}}}" for truth in truths]
    pairs = list(zip(truths, right, strict=True))
    once = the_task("math").score([each for truth, given in pairs for each in answered(truth, given)])
    often = the_task("math").score([each for truth, given in pairs for each in answered(truth, *[given] * 10)])
    assert (once["accuracy_low"], once["accuracy_high"]) == (often["accuracy_low"], often["accuracy_high"])
    assert often["pass@10"] == 0.5 and (often["pass@8_low"], often["pass@8_high"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda each: each[:-1], "the example 'b' has 1 answer.s. and others have 2"),
        (lambda each: each[1:], "answer 1 to the example 'a' does not follow answer 0"),
        (lambda each: [each[0], each[2], each[1], each[3]], "answer 1 to the example 'a' does not follow answer 0"),
    ],
)
def test_answers_that_are_missing_or_mixed_up_are_named(change, message):
    predictions = answered("1", "a", "b") + answered("2", "c", "d", identity="b")
    assert [[each.response for each in answers] for answers in by_example(predictions)] == [["a", "b"], ["c", "d"]]
    with pytest.raises(DataError, match=message):
        by_example(change(predictions))


def test_the_vote_of_answers_that_take_long_to_compare_ends(monkeypatch):
    """64 hostile formulas are 2,016 pairs, each of which takes as long as `answers.values` allows."""
    now = 0.0
    compared = []

    def same(first: str, second: str) -> bool:
        nonlocal now
        now += 0.5
        compared.append((first, second))
        return False

    monkeypatch.setattr("visurf_ray.scoring.sampled.thread_time", lambda: now)
    votes = [(f"{number}!!", False) for number in range(64)]
    assert majority([*votes, ("1!!", True), ("1!!", True)], same) == 0.0, (
        "the same texts are equal without a comparison"
    )
    assert len(compared) <= 66
