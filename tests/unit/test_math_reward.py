"""The reward for mathematical answers: finding the answer, comparing it, and threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from visurf_ray.answers.formulas import equal
from visurf_ray.rewards import load_reward

THOUGHT = "<think>reason</think>"


@pytest.mark.parametrize(
    ("response", "accuracy", "thinking"),
    [
        (THOUGHT + r"so \boxed{2}", 1.0, 1.0),
        (THOUGHT + "<answer>2</answer>", 1.0, 1.0),
        (THOUGHT + "<answer>\n2\n</answer>\n", 1.0, 1.0),
        (THOUGHT + r"<answer>\boxed{2}</answer>", 1.0, 1.0),
        (r"so \boxed{2}", 1.0, 0.0),
        ("<answer>2</answer>", 1.0, 0.0),
        (THOUGHT + "2", 0.0, 0.0),  # no place for an answer
        (THOUGHT + r"\boxed{3}", 0.1, 1.0),  # for its form
        (THOUGHT + "<answer>3</answer>", 0.0, 1.0),
        (THOUGHT + r"\boxed{}", 0.1, 1.0),
        (THOUGHT + r"\boxed{2", 0.0, 0.0),
        (THOUGHT + r"\boxed{3} or \boxed{2}", 1.0, 1.0),  # the last counts
        (THOUGHT + r"\boxed{2} or \boxed{3}", 0.1, 1.0),
        (THOUGHT + "<answer>3</answer><answer>2</answer>", 1.0, 1.0),
        (r"<think>\boxed{3}</think><answer>2</answer>", 1.0, 1.0),  # what stands after the thinking counts
        (r"<think>\boxed{3}</think>\boxed{2}", 1.0, 1.0),
        (r"<think>\boxed{2}</think>", 1.0, 0.0),  # better than none
        (r"So <think>a</think>\boxed{2}", 1.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_the_answer_is_found_in_every_form(response, accuracy, thinking):
    parts = load_reward("math")(response, "2").parts
    assert parts == {"accuracy": accuracy, "thinking_format": thinking}


def test_the_credit_for_a_box_is_an_option():
    assert load_reward("math", boxed_credit=0.0)(r"\boxed{3}", "2").total == 0.0


@pytest.mark.parametrize("truth", ["2", r"\boxed{2}", "<answer>2</answer>", "$2$"])
def test_forms_of_the_truth(truth):
    assert load_reward("math")(r"\boxed{2.0}", truth).total == 1.0


@pytest.mark.parametrize("truth", ["", " ", r"\boxed{}", "<answer></answer>"])
def test_an_empty_ground_truth_is_refused(truth):
    with pytest.raises(ValueError, match="is empty"):
        load_reward("math")(r"\boxed{2}", truth)


PAIRS = [
    (r"\frac{1}{2}", "0.5", True),
    (r"\frac{2}{4}", "1/2", True),
    ("1,000", "1000", True),
    (".5", "0.5", True),
    (".5", "5", False),
    ("5.", "5", True),
    ("x=2", "2", True),
    ("2x+1", "1+2x", True),
    (r"\{1,2\}", r"\{2,1\}", True),
    ("(1,2)", "(1, 2)", True),
    ("(2,1)", "(1,2)", False),
    (r"x²", r"x^2", False),  # no digit is made of it
    (r"12\text{ cm}", "12", True),
    (r"30^\circ", "30", True),
    (r"50\%", "50%", True),
    ("３", "3", True),
    ("-1", "1", False),
    ("a", "A", True),
    ("(A)", "A", True),
    ("B", "A", False),
    (r"\text{Yes.}", "yes", True),
    ("on", "No", False),  # products are equal, words are not
    ("二", "二", True),
    ("", "2", False),
]


@pytest.mark.parametrize(("given", "truth", "same"), PAIRS)
def test_equal_and_unequal_answers(given, truth, same):
    assert equal(given, truth) is same


def test_every_thread_scores_alike():
    reward = load_reward("math")
    responses = [(THOUGHT + rf"\boxed{{{given}}}", truth) for given, truth, _ in PAIRS]
    here = [reward(*pair) for pair in responses]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda pair: reward(*pair), responses)) == here
    assert [earned.parts["accuracy"] == 1.0 for earned in here] == [same for *_, same in PAIRS]


def test_an_endless_comparison_is_stopped(monkeypatch):
    monkeypatch.setattr("visurf_ray.answers.formulas._SECONDS", 1)
    assert load_reward("math")(r"\boxed{9^{9^{9}}}", "2").parts["accuracy"] == 0.1
