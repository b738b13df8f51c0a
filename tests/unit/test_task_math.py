"""MathVista's files, right answers to choices and numbers, and agreement of reward and metric."""

import json
import re

import pytest

from tests.unit.conftest import encoded, picture, prediction
from visurf_ray.answers.formulas import Truth
from visurf_ray.errors import DataError
from visurf_ray.rewards import load_reward

THOUGHT = "<think>reason</think>"
FREE = {
    "pid": "1",
    "question": "How long is it?",
    "image": "images/1.png",
    "choices": None,
    "unit": "cm",
    "precision": 1.0,
    "answer": "1.2",
    "question_type": "free_form",
    "answer_type": "float",
}
CHOICE = FREE | {
    "pid": "2",
    "question": "Which angle?",
    "choices": ["30°", "45°", "60°"],
    "unit": None,
    "precision": None,
    "answer": "45°",
    "question_type": "multi_choice",
    "answer_type": "text",
}


@pytest.fixture
def math_vista(tmp_path):
    """Writes questions in JSON lines, with their images as files."""

    def write(*rows: dict) -> str:
        (tmp_path / "images").mkdir(exist_ok=True)
        picture().save(tmp_path / "images" / "1.png")
        path = tmp_path / "testmini.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def test_questions_with_choices_units_and_precision(math_vista, open_task, open_loader):
    task = open_task("math", math_vista(FREE, CHOICE))
    first, second = open_loader(task).held_out_examples(None)
    assert (first.id, second.id) == ("1", "2")
    assert first.question == "How long is it? (Unit: cm) (Decimal places: 1)"
    assert second.question == "Which angle?\nA. 30°\nB. 45°\nC. 60°"
    assert Truth.parse(first.ground_truth) == Truth("1.2", (), 1)
    assert Truth.parse(second.ground_truth) == Truth("45°", ("30°", "45°", "60°"))
    assert [task.render(example, "spaced") for example in (first, second)] == [r"\boxed{1.2}", r"\boxed{B}"]
    for example in (first, second):
        label = THOUGHT + task.render(example, "spaced")
        assert load_reward("math")(label, example.ground_truth).total == 2.0
        assert task.metrics([prediction(example.ground_truth, label)])["accuracy"] == 1.0


def test_the_hubs_columns_with_embedded_images(tmp_path, open_task, open_loader):
    """`image` is there as a path that leads nowhere; `decoded_image` holds the picture."""
    import datasets

    features = datasets.Features(
        {
            "pid": datasets.Value("string"),
            "question": datasets.Value("string"),
            "image": datasets.Value("string"),
            "decoded_image": datasets.Image(),
            "choices": datasets.List(datasets.Value("string")),
            "unit": datasets.Value("string"),
            "precision": datasets.Value("float64"),
            "answer": datasets.Value("string"),
        }
    )
    rows = [row | {"decoded_image": {"bytes": encoded(picture()), "path": None}} for row in (FREE, CHOICE)]
    table = {name: [row[name] for row in rows] for name in features}
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / "testmini.parquet"))
    first, second = open_loader(open_task("math", tmp_path / "testmini.parquet")).held_out_examples(None)
    assert first.size == (112, 56) and Truth.parse(second.ground_truth).letter == "B"


def test_an_answer_may_be_a_letter_and_reasoning_may_come_with_it(math_vista, open_task, open_loader):
    rows = [CHOICE | {"answer": "C", "thinking": "They are alike."}]
    task = open_task("math", math_vista(*rows))
    (example,) = open_loader(task).held_out_examples(None)
    assert Truth.parse(example.ground_truth).answer == "60°"
    assert task.render(example, "spaced") == r"<think>They are alike.</think>\boxed{C}"


def test_the_authors_json_has_a_row_for_each_pid(math_vista, open_task, open_loader, tmp_path):
    """MathVista's testmini.json; what rows hold beside is as ragged there."""
    rows = {"1": FREE | {"metadata": {"split": "testmini"}}, "2": CHOICE | {"metadata": {"grade": 3}}}
    (tmp_path / "testmini.json").write_text(json.dumps(rows))
    lines = open_loader(open_task("math", math_vista(FREE, CHOICE))).held_out_examples(None)
    found = open_loader(open_task("math", str(tmp_path / "testmini.json"))).held_out_examples(None)
    assert [(e.id, e.question, e.ground_truth) for e in found] == [(e.id, e.question, e.ground_truth) for e in lines]


@pytest.mark.parametrize("answer", ["2", r"\boxed{2}", "<think>a</think><answer>2</answer>"])
def test_the_general_schemas_are_read_as_well(write_jsonl, open_task, open_loader, answer):
    rows = {"problem": "<image>1 + 1 = ?", "solution": None, "answer": answer, "image": None, "images": ["picture.png"]}
    (example,) = open_loader(open_task("math", write_jsonl(rows))).held_out_examples(None)
    assert (example.question, Truth.parse(example.ground_truth)) == ("1 + 1 = ?", Truth("2"))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (CHOICE | {"answer": "90°"}, "the answer '90°' is neither a choice nor the letter of one"),
        (CHOICE | {"answer": "D"}, "the answer 'D' is neither a choice"),
        (FREE | {"answer": " "}, "the answer is empty"),
        (FREE | {"answer": "{2"}, r"the answer cannot be written in .boxed\{\}: '\{2'"),
        (FREE | {"answer": None}, "the answer is empty"),
        (FREE | {"image": "images/2.png"}, r"there is no image .*2\.png"),
    ],
)
def test_bad_rows_are_named(math_vista, open_task, open_loader, row, complaint):
    source = math_vista(FREE, row | {"pid": "bad"})
    with pytest.raises(DataError, match=rf"{re.escape(source)}, row 1 \(id bad\): {complaint}"):
        open_loader(open_task("math", source))


CASES = [
    (Truth("45°", ("30°", "45°", "60°")), "B", True),
    (Truth("45°", ("30°", "45°", "60°")), "b", True),
    (Truth("45°", ("30°", "45°", "60°")), "(B)", True),
    (Truth("45°", ("30°", "45°", "60°")), "B. 45°", True),
    (Truth("45°", ("30°", "45°", "60°")), r"\text{B}", True),
    (Truth("45°", ("30°", "45°", "60°")), "45°", True),
    (Truth("45°", ("30°", "45°", "60°")), r"45^\circ", True),
    (Truth("45°", ("30°", "45°", "60°")), "A", False),
    (Truth("45°", ("30°", "45°", "60°")), "A. 45°", False),  # the letter and the text do not agree
    (Truth("45°", ("30°", "45°", "60°")), "44°", False),  # the most similar choice does not
    (Truth("45°", ("30°", "45°", "60°")), "B. 30°", False),  # neither do the letter of one and the text of another
    (Truth("45°", ("30°", "45°", "60°")), "B. because it is isosceles", True),
    (Truth("45°", ("30°", "45°", "60°")), "(B) 45°", True),
    (Truth("45°", ("30°", "45°", "60°")), "B: 45", True),
    (Truth("45°", ("30°", "45°", "60°")), "B 45°", True),
    (Truth("45°", ("30°", "45°", "60°")), "Option B", True),
    (Truth("45°", ("30°", "45°", "60°")), "E. 45°", True),  # there is no choice E
    (Truth("45°", ("30°", "45°", "60°")), "45° (B)", True),
    (Truth("45°", ("30°", "45°", "60°")), "45° (A)", False),
    (Truth("f(A)", ("f(x)", "f(A)")), "f(A)", True),  # a text that only looks like one with a letter
    (Truth("12 cm", ("12 m", "12 cm")), "B: 12 cm", True),
    (Truth("12 cm", ("12 m", "12 cm")), "B: 12 m", False),
    (Truth("12 cm", ("12 m", "12 cm")), "12 m", False),
    (Truth("12 cm", ("12 m", "12 cm")), "12", False),  # it fits both
    (Truth("B", ("C", "B", "A")), "B", True),
    (Truth("A", ("C", "B", "A")), "A", False),  # it means the first choice
    (Truth("a dog", ("a cat", "a dog")), "a dog", True),
    (Truth("a dog", ("a cat", "a dog")), "A dog", True),
    (Truth("Yes", ("Yes", "No")), "yes", True),
    (Truth("x", ("w", "x")), "x", True),  # no letter of two choices
    (Truth("1.2", (), 1), "1.2", True),
    (Truth("1.2", (), 1), "1.23", True),
    (Truth("1.2", (), 1), "1.26", False),
    (Truth("1.20", (), 2), "1.2", True),
    (Truth("24.03", (), 2), r"\$24.03", True),
    (Truth("24.03", (), 2), "24.034 cm", True),
    (Truth("0.33", (), 2), "0.3333", True),
    (Truth("1.2"), "1.23", False),
    (Truth("3"), "3.7", False),
    (Truth("3"), "3.0", True),
    (Truth("3"), "Three", True),
    (Truth("forty"), "40", True),
    (Truth("three dogs"), "3", False),
    (Truth("1/2", (), 1), "0.5", True),
    (Truth("1.2", (), 1), "nan", False),
    (Truth("1.2", (), 1), "inf", False),
]


@pytest.mark.parametrize(("truth", "given", "right"), CASES)
def test_reward_and_metric_agree_on_what_is_right(open_task, truth, given, right):
    response = rf"{THOUGHT}\boxed{{{given}}}"
    assert Truth.parse(truth.dump()) == truth
    assert load_reward("math")(response, truth.dump()).parts["accuracy"] == (1.0 if right else 0.1)
    assert open_task("math", "a.jsonl").metrics([prediction(truth.dump(), response)])["accuracy"] == right


def test_scores_are_means_and_without_examples_there_are_none(open_task):
    task = open_task("math", "a.jsonl")
    responses = [THOUGHT + r"\boxed{2}", THOUGHT + "<answer>2</answer>", r"\boxed{3}", "2"]
    assert task.metrics([prediction("2", response) for response in responses]) == {
        "accuracy": 0.5,
        "format_rate": 0.75,
        "thinking_rate": 0.5,
    }
    assert task.metrics([]) == {}


def test_only_the_detailed_prompt_asks_for_the_form(math_vista, open_task):
    source = math_vista(CHOICE)
    (row,) = open_task("math", source).train_rows()
    assert r"\boxed{}" in open_task("math", source).question(row)
    assert open_task("math", source, "task.prompt=plain").question(row) == row.problem


@pytest.mark.parametrize(
    ("right", "other"),
    [("25 cm", "25 m"), ("Triangle ABC", "Triangle BCA"), ("3", "300%"), ("1,2", "2,1"), ("left side", "side left")],
)
def test_the_text_of_another_choice_is_wrong(right, other):
    truth = Truth(right, (right, other))
    assert truth.matches(right) and not truth.matches(other)
    assert truth.matches("A") and not truth.matches("B")


def test_words_are_compared_as_words():
    assert Truth("house dog").matches("House  dog") and not Truth("house dog").matches("dog house")
    assert Truth("x y").matches("y x"), "single letters are factors"


def test_a_list_of_answers_is_refused():
    with pytest.raises(ValueError, match="is a list of answers"):
        Truth.parse('["12", "twelve"]')
    assert Truth.parse("[1, 2]").answer == "[1, 2]", "an interval"


@pytest.mark.parametrize("setting", ["task.absent_share=0.5", "task.segmenter=some/sam2"])
def test_a_setting_that_the_task_does_not_support_is_refused(math_vista, open_task, setting):
    with pytest.raises(DataError, match=rf"{setting}: math .* set it to null"):
        open_task("math", math_vista(FREE), setting)
