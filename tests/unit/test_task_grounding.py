"""Visual-RFT's reasoning grounding: files, questions, labels that earn the full reward, and metrics."""

import re

import pytest

from tests.unit.groups import example
from visurf_ray.errors import DataError
from visurf_ray.groups import Prediction
from visurf_ray.rewards import load_reward
from visurf_ray.tasks.grounding import score_single_boxes

PROBLEM = (
    "Output the bounding box in the image corresponding to the instruction: the one that can fly. Output the thinking "
    'process in <think> </think> and your grouding box. Following "<think> thinking process </think>\n'
    '<answer>(x1,y1),(x2,y2)</answer>)" format.'
)
TRUTH = "<answer>(100,200),(500,1000)</answer>"


@pytest.fixture
def make(write_visual_rft, make_task):
    return lambda *rows, prompt="plain": make_task(write_visual_rft(*rows), f"task.prompt={prompt}", name="grounding")


def test_the_plain_prompt_is_the_problem_and_the_detailed_one_adds_the_form(make):
    task = make((PROBLEM, TRUTH))
    assert [task.question(row) for row in task.train_rows()] == [PROBLEM]
    task = make(("the one that can fly", TRUTH), prompt="detailed")
    (row,) = task.train_rows()
    assert task.question(row).startswith("the one that can fly\n") and "(112, 40), (396, 980)" in task.question(row)


def test_ground_truths_do_not_depend_on_the_images_size(write_visual_rft, make_loader):
    loader = make_loader(write_visual_rft((PROBLEM, TRUTH)), name="grounding")
    loader.check()
    (held_out,) = loader.held_out_examples(None)
    assert held_out.ground_truth == TRUTH and held_out.size == (112, 56)
    assert loader.task.true_boxes(held_out) == [pytest.approx((11.2, 11.2, 56, 56))]
    assert loader.task.boxes(TRUTH, (112, 56)) == loader.task.true_boxes(held_out)
    assert loader.task.boxes("garbage", (112, 56)) == []


def test_labels_in_both_styles_earn_all_but_the_thinking(make):
    task, reward = make((PROBLEM, TRUTH)), load_reward("visual_rft_grounding")
    assert task.render(example(TRUTH), "compact") == TRUTH
    assert task.render(example(TRUTH), "spaced") == "<answer>(100, 200), (500, 1000)</answer>"
    for style in task.styles:
        assert reward(task.render(example(TRUTH), style), TRUTH).parts == {"giou": 2.0, "format": 0.0}


@pytest.mark.parametrize(
    ("solution", "complaint"),
    [
        ("<answer>there</answer>", "must be one box"),
        ("<answer>(1,2),(3,4),(5,6),(7,8)</answer>", "must be one box"),
        ("<answer>(500,200),(100,1000)</answer>", "has the box"),
        ("<answer>(100,200),(500,1001)</answer>", "has the box .*1000"),
    ],
)
def test_a_bad_solution_is_named_by_file_and_row(make, solution, complaint):
    task = make((PROBLEM, TRUTH), (PROBLEM, solution))
    with pytest.raises(DataError, match=rf"^{re.escape(task.config.train)}, row 1: the solution {complaint}"):
        task.check(task.train_rows()[1])


def predicted(response: str) -> Prediction:
    return Prediction("a", PROBLEM, TRUTH, (112, 56), response)


@pytest.mark.parametrize(
    ("response", "iou", "acc50"),
    [
        ("<think>a</think>" + TRUTH, 1.0, 1.0),
        ("(100, 200), (500, 1000)", 1.0, 1.0),
        ("<answer>(100,200),(500,600)</answer>", 0.5, 0.0),  # exactly one half is no hit
        ("<answer>(100,200),(500,700)</answer>", 0.625, 1.0),
        ("<answer>(300,600),(700,1000)</answer>", 80 / 400, 0.0),
        ("<answer>(500,1000),(100,200)</answer>", 0.0, 0.0),  # swapped corners
        ("<answer>(100,200),(500,1000),(1,1),(2,2)</answer>", 0.0, 0.0),  # two boxes
        ("<think>(100,200),(500,1000)</think><answer>there</answer>", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_one_box_by_hand(response, iou, acc50):
    scores = score_single_boxes([predicted(response)])
    assert (scores["iou"], scores["acc50"]) == (pytest.approx(iou), acc50)


def test_means_over_all_answers():
    answers = ["<think>a</think>" + TRUTH, "<answer>(100,200),(500,600)</answer>", "(100,200),(500,1000)", "?"]
    scores = score_single_boxes([predicted(answer) for answer in answers])
    assert scores == {"iou": 2.5 / 4, "acc50": 0.5, "format_rate": 0.5, "thinking_rate": 0.25}
    assert score_single_boxes([]) == {}
