"""predictions.jsonl: written predictions can be scored again, and a malformed line is named."""

import json
from dataclasses import replace

import pytest

from visurf_ray.errors import DataError
from visurf_ray.groups import Prediction
from visurf_ray.scoring.predictions import read_predictions, write_predictions

PREDICTION = Prediction("a", "the 7", "[]", (84, 56), "<answer>[]</answer>\nsaid so, “twice”")


def test_predictions_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_predictions([PREDICTION, PREDICTION], path)
    assert read_predictions(path) == [PREDICTION, PREDICTION]


def test_a_mask_is_written_if_there_is_one(tmp_path):
    path = tmp_path / "predictions.jsonl"
    masked = replace(PREDICTION, mask={"size": [2, 3], "counts": "06"})
    write_predictions([PREDICTION, masked], path)
    assert read_predictions(path) == [PREDICTION, masked]
    first, second = map(json.loads, path.read_text().splitlines())
    assert "mask" not in first and second["mask"] == masked.mask


def test_each_answer_has_a_line_and_its_number(tmp_path):
    path = tmp_path / "predictions.jsonl"
    answers = [replace(PREDICTION, sample=number) for number in range(3)]
    write_predictions(answers, path)
    assert [json.loads(line)["sample"] for line in path.read_text().splitlines()] == [0, 1, 2]
    assert read_predictions(path) == answers
    write_predictions([PREDICTION], path)
    assert "sample" not in json.loads(path.read_text())


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "[]",
        '{"id": "a"}',
        json.dumps(vars(PREDICTION) | {"colour": "red"}),
        json.dumps(vars(PREDICTION) | {"sample": "1"}),
        "[" * 100_000,
        json.dumps(vars(PREDICTION) | {"response": None}),
        json.dumps(vars(PREDICTION) | {"ground_truth": []}),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line):
    path = tmp_path / "predictions.jsonl"
    write_predictions([PREDICTION], path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"predictions\.jsonl, line 2 is not a prediction"):
        read_predictions(path)


def test_a_response_may_hold_any_character(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(vars(PREDICTION) | {"response": "a\u2028b\x85c"}, ensure_ascii=False) + "\n", "utf-8")
    assert read_predictions(path)[0].response == "a\u2028b\x85c"


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(b'{"id": "\xff"}')
    with pytest.raises(DataError, match=r"predictions\.jsonl cannot be read: byte 8 is not UTF-8"):
        read_predictions(path)


def test_a_missing_and_an_empty_file_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl cannot be read: No such file"):
        read_predictions(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl is empty"):
        read_predictions(tmp_path / "empty.jsonl")


def test_lines_end_at_line_breaks_alone(tmp_path):
    """Other programs write U+2028, which is no line break in JSON lines, as it is. Empty lines are skipped."""
    path = tmp_path / "predictions.jsonl"
    found = replace(PREDICTION, response="one\u2028two\x85three")
    path.write_text(json.dumps(vars(found), ensure_ascii=False) + "\r\n\n", encoding="utf-8")
    assert read_predictions(path) == [found]
