"""Visual-RFT's classification: files, questions, labels that earn the full reward, and metrics."""

import re

import pytest
from sklearn.metrics import accuracy_score

from tests.unit.groups import example
from visurf_ray.errors import DataError
from visurf_ray.groups import Prediction
from visurf_ray.rewards import load_reward
from visurf_ray.tasks.classification import score_names

PROBLEM = (
    "This is an image containing a plant. Please identify the species of the plant based on the image.\n"
    "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
    "The output answer format should be as follows:\n"
    "<think> ... </think> <answer>species name</answer>\nPlease strictly follow the format."
)
TRUTH = "<answer>pink primrose</answer>"


@pytest.fixture
def make(write_visual_rft, make_task):
    return lambda *rows, prompt="plain": make_task(
        write_visual_rft(*rows), f"task.prompt={prompt}", name="classification"
    )


def test_the_plain_prompt_is_the_problem_and_the_detailed_one_adds_the_form(make):
    task = make((PROBLEM, TRUTH))
    assert [task.question(row) for row in task.train_rows()] == [PROBLEM]
    task = make(("Which flower is this?", "pink primrose"), prompt="detailed")
    (row,) = task.train_rows()
    assert task.question(row).startswith("Which flower is this?\n") and "<answer>" in task.question(row)


def test_rows_pass_the_check_and_labels_earn_all_but_the_thinking(write_visual_rft, make_loader):
    loader = make_loader(write_visual_rft((PROBLEM, TRUTH), (PROBLEM, "pink primrose")), name="classification")
    loader.check()
    for held_out in loader.held_out_examples(None):
        (style,) = loader.task.styles
        label = loader.task.render(held_out, style)
        assert label == TRUTH
        parts = load_reward("visual_rft_classification")(label, held_out.ground_truth).parts
        assert parts == {"accuracy": 1.0, "format": 0.0}


@pytest.mark.parametrize("solution", ["<answer> </answer>", " ", "__"])
def test_a_solution_without_a_name_is_named_by_file_and_row(make, solution):
    task = make((PROBLEM, TRUTH), (PROBLEM, solution))
    with pytest.raises(DataError, match=rf"^{re.escape(task.config.train)}, row 1: the solution is empty"):
        task.check(task.train_rows()[1])


def predicted(response: str, truth: str = TRUTH) -> Prediction:
    return Prediction("a", PROBLEM, truth, (112, 56), response)


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("<think>a</think><answer>pink primrose</answer>", True),
        ("<answer>Pink_Primrose\n</answer>", True),
        ("pink primrose", True),
        ("<answer>primrose</answer>", False),  # enough for the reward
        ("<answer>a pink primrose, surely</answer>", False),
        ("<answer></answer>", False),
        ("", False),
        ("<think>pink primrose</think><answer>rose</answer>", False),
        ("<think><answer>rose</answer></think><answer>pink primrose</answer>", True),
        ("<answer>rose</answer><answer>pink primrose</answer>", True),
    ],
)
def test_the_whole_name_is_right(response, right):
    assert score_names([predicted(response)])["accuracy"] == right


def test_numbers_in_names_do_not_make_them_equal():
    assert score_names([predicted("<answer>Robin 172</answer>", "<answer>Cessna 172</answer>")])["accuracy"] == 0.0


def test_shares_over_all_answers():
    given, true = ["a b", "A_b", "b", "c", "", "c"], ["a b", "a b", "c", "c", "b", "b"]
    scores = score_names(
        [predicted(f"<think>?</think><answer>{a}</answer>", b) for a, b in zip(given, true, strict=True)]
    )
    as_labels = [name.replace("_", " ").lower() for name in given]
    assert scores == {
        "accuracy": pytest.approx(accuracy_score(true, as_labels)),
        "format_rate": pytest.approx(5 / 6),
        "thinking_rate": 1.0,
    }
    assert score_names([]) == {}


def test_a_classification_has_no_boxes(make):
    task = make((PROBLEM, TRUTH))
    assert task.boxes(TRUTH, (112, 56)) == [] and task.true_boxes(example(TRUTH)) is None
