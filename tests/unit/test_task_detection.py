"""Visual-RFT's detection: files, questions, labels that earn the full reward, and metrics."""

import re

import pytest

from tests.unit.groups import example
from visurf_ray.answers.visual_rft import parse_boxes
from visurf_ray.errors import DataError
from visurf_ray.groups import Prediction
from visurf_ray.rewards import load_reward
from visurf_ray.tasks.detection import asked_category, score_detections


def problem(category: str) -> str:
    """As Visual-RFT's data tell it."""
    return (
        f"Detect all objects belonging to the category '{category}' in the image, and provide the bounding boxes "
        "(between 0 and 1000, integer) and confidence (between 0 and 1, with two decimal places).\n"
        f"If no object belonging to the category '{category}' in the image, return 'No Objects'.\n"
        "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
        "The output answer format should be as follows:\n"
        "<think> ... </think> <answer>[{'Position': [x1, y1, x2, y2], 'Confidence': number}, ...]</answer>\n"
        "Please strictly follow the format."
    )


TRUTH = (
    "<answer>[{'Position': [64, 0, 950, 411], 'Confidence': 1}, "
    "{'Position': [0, 500, 20, 1000], 'Confidence': 1}]</answer>"
)
NONE = "<answer>No Objects</answer>"


@pytest.fixture
def make(write_visual_rft, make_task):
    return lambda *rows, prompt="plain": make_task(write_visual_rft(*rows), f"task.prompt={prompt}", name="detection")


def test_the_plain_prompt_is_the_problem(make):
    task = make((problem("umbrella"), TRUTH), (problem("hot dog"), NONE))
    assert [task.question(row) for row in task.train_rows()] == [problem("umbrella"), problem("hot dog")]


def test_the_detailed_prompt_names_the_category_and_the_form(make):
    task = make((problem("hot dog"), TRUTH), ("umbrella", NONE), prompt="detailed")
    first, second = (task.question(row) for row in task.train_rows())
    assert '"hot dog"' in first and "'hot dog'" not in first
    assert '"umbrella"' in second
    for word in ("<think>", "<answer>", "Position", "Confidence", "No Objects", "1000"):
        assert word in first


@pytest.mark.parametrize(
    ("question", "category"),
    [
        (problem("umbrella"), "umbrella"),
        (problem("pop (soda)"), "pop (soda)"),
        (problem("child's_toy"), "child's_toy"),
        ('Find each "hot dog".', "hot dog"),
        (" hot dog\n", "hot dog"),
        ("the dog's collar and the cat's bowl", "the dog's collar and the cat's bowl"),
    ],
)
def test_the_category_is_the_first_quoted_text_or_the_question(question, category):
    assert asked_category(question) == category


def test_ground_truths_do_not_depend_on_the_images_size(write_visual_rft, make_loader):
    """100x60 becomes 112x56; thousandths stay, and are drawn in the new size."""
    loader = make_loader(write_visual_rft((problem("umbrella"), TRUTH), (problem("cat"), NONE)), name="detection")
    loader.check()
    first, second = loader.held_out_examples(None)
    assert (first.ground_truth, second.ground_truth) == (TRUTH, NONE)
    assert first.size == (112, 56)
    assert loader.task.true_boxes(first) == [pytest.approx((7.168, 0, 106.4, 23.016)), (0, 28, 2.24, 56)]
    assert loader.task.boxes(TRUTH, (112, 56)) == loader.task.true_boxes(first)
    assert loader.task.boxes("garbage", (112, 56)) == loader.task.true_boxes(second) == []


def test_labels_in_every_style_earn_all_but_the_thinking(make):
    task, reward = make((problem("umbrella"), TRUTH)), load_reward("visual_rft_detection")
    for truth in (TRUTH, NONE):
        for style in task.styles:
            parts = reward(task.render(example(truth), style), truth).parts
            assert parts == {"iou": 1.0, "confidence": 1.0, "format": 0.0}
    assert task.render(example(TRUTH), "compact") == (
        '<answer>[{"Position":[64,0,950,411],"Confidence":1.0},{"Position":[0,500,20,1000],"Confidence":1.0}]</answer>'
    )
    assert task.render(example(TRUTH), "quoted") == (
        "<answer>[{'Position': [64, 0, 950, 411], 'Confidence': 1.0}, "
        "{'Position': [0, 500, 20, 1000], 'Confidence': 1.0}]</answer>"
    )
    assert {task.render(example(NONE), style) for style in task.styles} == {"<answer>No Objects</answer>"}


@pytest.mark.parametrize(
    ("solution", "complaint"),
    [
        ("two umbrellas", "must be 'No Objects' or a list of at most 1000 boxes"),
        ("<answer>[{'Position': [1, 2, 3], 'Confidence': 1}]</answer>", "item 0 needs Position with 4 numbers"),
        ("<answer>[{'Position': [1, 2, 3, 1001], 'Confidence': 1}]</answer>", "item 0 .*1000"),
        ("<answer>[{'Position': [9, 2, 3, 4], 'Confidence': 1}]</answer>", "item 0 .*x1 ≤ x2"),
    ],
)
def test_a_bad_solution_is_named_by_file_and_row(make, solution, complaint):
    task = make((problem("umbrella"), TRUTH), (problem("umbrella"), solution))
    good, bad = task.train_rows()
    task.check(good)
    with pytest.raises(DataError, match=rf"^{re.escape(task.config.train)}, row 1: the solution .*{complaint}"):
        task.check(bad)


def test_a_box_without_area_after_rounding_is_accepted(make):
    task = make((problem("bird"), "<answer>[{'Position': [30, 40, 30, 42], 'Confidence': 1}]</answer>"))
    task.check(task.train_rows()[0])


def predicted(category: str, truth: str, response: str) -> Prediction:
    return Prediction("a", problem(category), truth, (112, 56), response)


def test_metrics_by_hand():
    """umbrella: both of two boxes found. cat: a miss that is surer than the hit, AP 1/2. dog: nowhere, so no AP."""
    box = "<answer>[{'Position': [0, 0, 500, 500], 'Confidence': 1}]</answer>"
    scores = score_detections(
        [
            predicted("umbrella", TRUTH, "<think>a</think>" + TRUTH),
            predicted("cat", box, box.replace("1}", "0.6}")),
            predicted("cat", NONE, box.replace("1}", "0.7}")),
            predicted("cat", NONE, "<answer>[]</answer>"),
            predicted("dog", NONE, box.replace("1}", "0.9}")),
            predicted("dog", NONE, "no objects"),
        ]
    )
    assert scores.pop("ap50_agnostic") == pytest.approx((67 * 1.0 + 34 * 3 / 5) / 101)  # 1, 1, miss, miss, hit
    assert scores == pytest.approx(
        {"map": 0.75, "map50": 0.75, "n_acc": 0.5, "empty_rate": 0.0, "format_rate": 5 / 6, "thinking_rate": 1 / 6}
    )


def test_answers_that_are_no_list_of_boxes():
    answers = ["", "<answer>an umbrella</answer>", "<answer>[{'Position': [64, 0, 950, 411]}]</answer>", NONE]
    scores = score_detections([predicted("umbrella", TRUTH, answer) for answer in answers])
    assert scores == {
        "map": 0.0,
        "map50": 0.0,
        "ap50_agnostic": 0.0,
        "empty_rate": 0.25,
        "format_rate": 0.25,
        "thinking_rate": 0.0,
    }


def test_a_metric_without_examples_is_left_out():
    assert score_detections([]) == {}
    assert score_detections([predicted("cat", NONE, NONE)]) == {"n_acc": 1.0, "format_rate": 1.0, "thinking_rate": 0.0}


@pytest.mark.parametrize("item", ['{"label": "dog\'s", "Position": [1, 2, 3, 4]}', "{'Position': [1, 2, 3, 4]}"])
@pytest.mark.parametrize("around", ["[%s]", "[[%s]]", "<answer>[%s]</answer>"])
def test_quotation_marks_are_single_or_double_and_texts_may_have_apostrophes(item, around):
    assert parse_boxes(around % item) == [(1, 2, 3, 4)]
