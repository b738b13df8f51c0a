"""ChartQA's and DocVQA's files, relaxed accuracy and ANLS by hand, and training without a named reward."""

import json
import re
from functools import cache

import numpy as np
import pytest

from tests.unit.conftest import encoded, picture, prediction
from visurf_ray.config.load import load_config
from visurf_ray.errors import ConfigError, DataError
from visurf_ray.rewards.spec import RewardSpec
from visurf_ray.tasks.vqa import relaxed_equal, similarity


def test_chart_qas_columns_in_parquet(tmp_path, open_task, open_loader):
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "query": datasets.Value("string"),
            "label": datasets.List(datasets.Value("string")),
            "human_or_machine": datasets.ClassLabel(names=["human", "machine"]),
        }
    )
    table = {
        "image": [{"bytes": encoded(picture()), "path": None}],
        "query": ["How many bars?"],
        "label": [["14"]],
        "human_or_machine": [0],
    }
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / "test.parquet"))
    task = open_task("vqa", tmp_path / "test.parquet")
    (example,) = open_loader(task).held_out_examples(None)
    assert (example.question, example.ground_truth) == ("How many bars?", '["14"]')
    assert task.render(example, "spaced") == "<answer>14</answer>"


def test_chart_qas_own_json_with_its_folder_of_images(tmp_path, open_task, open_loader):
    (tmp_path / "test" / "png").mkdir(parents=True)
    picture(28, 28).save(tmp_path / "test" / "png" / "41.png")
    rows = [{"imgname": "41.png", "query": "Which is it?", "label": label} for label in ("Inspired", "[12, 14]")]
    (tmp_path / "test" / "test_human.json").write_text(json.dumps(rows, indent=1))
    task = open_task("vqa", tmp_path / "test" / "test_human.json")
    example, listed = open_loader(task).held_out_examples(None)
    assert (example.question, example.ground_truth, example.size) == ("Which is it?", '["Inspired"]', (28, 28))
    assert json.loads(listed.ground_truth) == ["[12, 14]"], "one answer, no two to choose from"


def test_doc_vqas_own_json_with_its_rows_under_data(tmp_path, open_task, open_loader):
    (tmp_path / "documents").mkdir()
    picture().save(tmp_path / "documents" / "xnbl0037_1.png")
    row = {
        "questionId": 337,
        "question": "what is the date mentioned in this letter?",
        "question_types": ["handwritten", "form"],
        "image": "documents/xnbl0037_1.png",
        "docId": 279,
        "ucsf_document_id": "xnbl0037",
        "ucsf_document_page_no": "1",
        "answers": ["1/8/93", "1/8/1993"],
        "data_split": "val",
    }
    content = {"dataset_name": "SP-DocVQA", "dataset_split": "val", "dataset_version": "1.0", "data": [row]}
    (tmp_path / "val_v1.0.json").write_text(json.dumps(content))
    (example,) = open_loader(open_task("vqa", tmp_path / "val_v1.0.json")).held_out_examples(None)
    assert (example.id, example.ground_truth) == ("337", '["1/8/93", "1/8/1993"]')


def test_the_general_schemas_are_read_as_well(write_jsonl, open_task, open_loader):
    (example,) = open_loader(open_task("vqa", write_jsonl({"solution": "12"}))).held_out_examples(None)
    assert example.ground_truth == '["12"]'


@pytest.mark.parametrize("answers", [[], [""], ["12", " "]])
def test_a_row_without_an_answer_is_named(write_jsonl, open_task, open_loader, answers):
    source = write_jsonl({"solution": ["12"]}, {"solution": answers})
    with pytest.raises(DataError, match=rf"^{re.escape(source)}, row 1: an answer is empty"):
        open_loader(open_task("vqa", source))


@pytest.mark.parametrize(
    ("given", "true", "right"),
    [
        ("105", "100", True),  # five percent
        ("95", "100", True),
        ("105.1", "100", False),
        ("94.9", "100", False),
        ("-105", "-100", True),
        ("105", "-100", False),
        ("0.14", "14%", True),  # percent are hundredths
        ("14%", "14%", True),
        ("14", "14%", False),
        ("0", "0", True),
        ("0.0", "0", True),
        ("0.01", "0", False),
        ("Inspired", "inspired", True),
        ("inspire", "inspired", False),
        ("yes", "1", False),
        ("12", "twelve", False),
        (" 12 ", "12", True),
        ("nan", "nan", True),
        ("inf", "inf", True),
        ("inf", "3", False),
        ("", "3", False),
    ],
)
def test_relaxed_accuracy_by_hand(given, true, right):
    assert relaxed_equal(given, true) == right


@pytest.mark.parametrize(
    ("given", "true", "score"),
    [
        ("kitten", "sitting", 1 - 3 / 7),
        ("1/8/93", "1/8/93", 1.0),
        ("1/8/94", "1/8/93", 1 - 1 / 6),
        ("ITC  Limited", "itc limited", 1.0),
        ("ab", "ax", 0.0),  # a distance of one half is too far
        ("abc", "abx", 1 - 1 / 3),
        ("abcd", "wxyz", 0.0),
        ("", "abc", 0.0),
    ],
)
def test_similarity_by_hand(given, true, score):
    assert similarity(given, true) == pytest.approx(score)


@pytest.mark.parametrize("seed", range(20))
def test_similarity_against_the_recursive_definition(seed):
    rng = np.random.default_rng(seed)
    a, b = ("".join(rng.choice(list("abc"), rng.integers(1, 9))) for _ in range(2))

    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        changed = distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, changed)

    normalized = distance(len(a), len(b)) / max(len(a), len(b))
    assert similarity(a, b) == pytest.approx(1 - normalized if normalized < 0.5 else 0.0)


@pytest.mark.parametrize(
    ("response", "relaxed", "anls"),
    [
        ("12", 1.0, 1.0),
        ("<think>It is 13.</think><answer>12</answer>", 1.0, 1.0),
        ("<think>It is 13.</think> 12\n", 1.0, 1.0),
        (r"<think>a</think>So it is \boxed{12}", 1.0, 1.0),
        ("twelves", 0.0, 1 - 1 / 7),
        ("It is 12", 0.0, 0.0),
    ],
)
def test_the_best_match_counts_in_every_form_of_answer(open_task, response, relaxed, anls):
    scores = open_task("vqa", "a.jsonl").metrics([prediction('["twelve", "12"]', response)])
    assert scores == pytest.approx({"relaxed_accuracy": relaxed, "anls": anls})


def test_scores_are_means_and_without_examples_there_are_none(open_task):
    task = open_task("vqa", "a.jsonl")
    predictions = [prediction('["100"]', "104"), prediction('["kitten"]', "kittens")]
    assert task.metrics(predictions) == pytest.approx({"relaxed_accuracy": 0.5, "anls": (2 / 3 + 6 / 7) / 2})
    assert task.metrics([]) == {}


def test_training_with_rollouts_needs_the_users_own_reward(tmp_path):
    data = ["task=vqa", "task.train=a.jsonl", "task.held_out=a.jsonl"]
    with pytest.raises(ConfigError, match=r"both null: there is nothing to score.*reward\.function=module"):
        RewardSpec.of(load_config(data).reward)
    path = tmp_path / "mine.py"
    path.write_text("def score(response, ground_truth):\n    return float(response in ground_truth)\n")
    spec = RewardSpec.of(load_config([*data, f"reward.function={path}:score"]).reward)
    assert spec.load()("12", '["12"]').total == 1.0
