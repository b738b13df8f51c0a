"""Real-IAD's files, boxes made from its masks, and ROC-AUC compared with a computation from ranks."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from scipy.stats import mannwhitneyu

from tests.unit.conftest import picture, prediction
from visurf_ray.errors import DataError
from visurf_ray.rewards import load_reward
from visurf_ray.tasks.anomaly import covered_share


@pytest.fixture
def real_iad(tmp_path):
    """Writes two classes: a flawless picture to train on, and for the test another and one with two defects."""

    def write(mask_size=(60, 100)) -> str:
        (tmp_path / "realiad_jsons").mkdir()
        for category in ("audiojack", "bottle_cap"):
            folder = tmp_path / "realiad_1024" / category
            for name in ("OK/S0001/ok_C1.jpg", "NG/BX/S0003/bx_C1.jpg"):
                (folder / name).parent.mkdir(parents=True)
                picture().save(folder / name)
            mask = np.zeros(mask_size, dtype=np.uint8)
            mask[10:30, 20:30] = mask[40:50, 60:90] = 255
            Image.fromarray(mask).save(folder / "NG/BX/S0003/bx_C1.png")
            flawless = {
                "category": category,
                "anomaly_class": "OK",
                "image_path": "OK/S0001/ok_C1.jpg",
                "mask_path": None,
            }
            defect = {
                "category": category,
                "anomaly_class": "BX",
                "image_path": "NG/BX/S0003/bx_C1.jpg",
                "mask_path": "NG/BX/S0003/bx_C1.png",
            }
            content = {
                "meta": {"normal_class": "OK", "prefix": f"{category}/", "pre_transform": None},
                "train": [flawless],
                "test": [flawless, defect],
            }
            (tmp_path / "realiad_jsons" / f"{category}.json").write_text(json.dumps(content))
        return str(tmp_path / "realiad_jsons")

    return write


@pytest.fixture
def open_anomaly(open_task, tmp_path):
    return lambda source: open_task("anomaly", source, f"task.image_root='{tmp_path / 'realiad_1024'}'")


def test_a_class_and_a_split(real_iad, open_anomaly, open_loader):
    source = f"{real_iad()}/bottle_cap.json:test"
    task = open_anomaly(source)
    flawless, defect = task.held_out_rows()
    assert (flawless.id, defect.id) == ("bottle_cap/OK/S0001/ok_C1.jpg", "bottle_cap/NG/BX/S0003/bx_C1.jpg")
    assert defect.problem == "Find every defect of the bottle cap in this picture."
    assert defect.where == f"{source}, row 1"
    first, second = open_loader(task).held_out_examples(None)
    assert first.ground_truth == "[]" and second.size == (112, 56)  # 100×60 by 1.12 and 0.9333
    boxes = [item["bbox_2d"] for item in json.loads(second.ground_truth)["objects"]]
    assert boxes == [[22, 9, 34, 28], [67, 37, 101, 47]]
    for item in json.loads(second.ground_truth)["objects"]:
        (x1, y1, x2, y2), (x, y) = item["bbox_2d"], item["point_2d"]
        assert x1 < x < x2 and y1 < y < y2
    label = f"<think>It is scratched.</think>{task.render(second, 'spaced')}"
    assert load_reward("vision_reasoner")(label, second.ground_truth).total == 7.0


def test_all_classes_of_a_folder(real_iad, open_anomaly):
    folder = real_iad()
    assert [row.mask is None for row in open_anomaly(f"{folder}:test").train_rows()] == [True, False, True, False]
    assert [row.id.partition("/")[0] for row in open_anomaly(f"{folder}:train").train_rows()] == [
        "audiojack",
        "bottle_cap",
    ]


def test_a_source_without_a_split_is_refused(real_iad, open_anomaly):
    source = f"{real_iad()}/audiojack.json"
    with pytest.raises(DataError, match=rf"{re.escape(source)} holds two splits: write {re.escape(source)}:train or"):
        open_anomaly(source).train_rows()


def test_a_picture_without_a_mask_has_an_empty_ground_truth(real_iad, open_anomaly, open_loader, tmp_path):
    path = tmp_path / "realiad_jsons" / "audiojack.json"
    source = f"{real_iad()}/audiojack.json:test"
    content = json.loads(path.read_text())
    content["test"][1]["mask_path"] = None
    path.write_text(json.dumps(content))
    examples = open_loader(open_anomaly(source)).held_out_examples(None)
    assert [example.ground_truth for example in examples] == ["[]", "[]"]


def test_bad_entries_and_masks_are_named_by_row(real_iad, open_anomaly, open_loader, tmp_path):
    source = f"{real_iad(mask_size=(56, 112))}/audiojack.json:test"
    with pytest.raises(DataError, match=rf"{re.escape(source)}, row 1: .*\[56, 112\], but the image is 100×60"):
        open_loader(open_anomaly(source))
    path = tmp_path / "realiad_jsons" / "audiojack.json"
    content = json.loads(path.read_text())
    del content["test"][1]["image_path"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"{re.escape(source)}, row 1: it must have category, image_path and mask"):
        open_anomaly(source).train_rows()


def test_tables_are_read_as_well(write_jsonl, open_task, open_loader):
    examples = open_loader(open_task("anomaly", write_jsonl({}, {"solution": "[]"}))).held_out_examples(None)
    assert [example.ground_truth == "[]" for example in examples] == [False, True]


# ROC-AUC

DEFECT = json.dumps([{"bbox_2d": [0, 0, 10, 10], "point_2d": [5, 5]}])


def answer(*boxes) -> str:
    items = [{"bbox_2d": list(box), "point_2d": list(box[:2])} for box in boxes]
    return f"<think>a</think><answer>{json.dumps(items)}</answer>"


@pytest.fixture
def score(open_task):
    return open_task("anomaly", "a.jsonl").metrics


def test_roc_auc_by_hand(score):
    """Covered: 0.04, 0.01 and 0 with a defect, 0.02 and 0 without. Of six pairs three are won, one is tied."""
    scores = score(
        [
            prediction(DEFECT, answer((0, 0, 20, 20))),
            prediction(DEFECT, answer((0, 0, 10, 10))),
            prediction(DEFECT, "I see none"),
            prediction("[]", answer((0, 0, 20, 10))),
            prediction("[]", answer()),
        ]
    )
    assert scores["roc_auc"] == pytest.approx((1 + 1 + 0 + 1 + 0 + 0.5) / 6)
    assert scores["roc_auc_binarised"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert (scores["n_acc"], scores["format_rate"]) == (0.5, 0.8)


def test_roc_auc_against_the_rank_test(score):
    rng = np.random.default_rng(0)
    sides = rng.integers(0, 8, 60) * 10
    defects = rng.random(60) < 0.3 + sides / 200
    answers = [answer((0, 0, side, 10)) if side else answer() for side in sides.tolist()]
    found = score([prediction(DEFECT if bad else "[]", text) for bad, text in zip(defects, answers, strict=True)])
    statistic = mannwhitneyu(sides[defects], sides[~defects]).statistic
    assert found["roc_auc"] == pytest.approx(statistic / (defects.sum() * (~defects).sum()))
    rates = (np.mean(sides[defects] > 0) + np.mean(sides[~defects] == 0)) / 2
    assert found["roc_auc_binarised"] == pytest.approx(rates)


def test_overlapping_areas_count_once_and_areas_outside_the_image_do_not_count(score):
    twice, outside = answer((0, 0, 10, 20), (0, 0, 10, 20)), answer((90, 0, 500, 20))
    alike = score([prediction(DEFECT, twice), prediction("[]", outside)])
    assert alike["roc_auc"] == 0.5  # both cover 10×20


def test_the_covered_share_is_the_masks_if_there_is_one():
    drawn = np.zeros((60, 100), dtype=np.uint8, order="F")
    drawn[10:30, 20:30] = 1
    encoded = rle.encode(drawn)
    encoded["counts"] = encoded["counts"].decode()
    masked = replace(prediction(DEFECT, answer((0, 0, 10, 10))), mask=encoded)
    assert covered_share(masked) == pytest.approx(200 / 6000)
    assert covered_share(replace(masked, mask=None)) == pytest.approx(0.01)


@pytest.mark.parametrize("truth", [DEFECT, "[]"])
def test_roc_auc_is_left_out_if_all_pictures_are_of_one_kind(score, truth):
    scores = score([prediction(truth, answer()), prediction(truth, answer((0, 0, 10, 10)))])
    assert not {"roc_auc", "roc_auc_binarised"} & scores.keys() and "format_rate" in scores
    assert score([]) == {}
