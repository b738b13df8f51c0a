"""ISIC's files, the lesion's box, and box accuracy by hand."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.unit.conftest import picture, prediction
from visurf_ray.errors import DataError
from visurf_ray.rewards import load_reward


@pytest.fixture
def isic(tmp_path):
    """Writes two pictures and their masks; the second lesion consists of two parts."""

    def write(images="ISIC2018_Task1-2_Training_Input", masks="ISIC2018_Task1_Training_GroundTruth") -> str:
        for folder in (images, masks):
            (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / images / "LICENSE.txt").write_text("CC-0")
        for number, parts in enumerate([[(20, 10, 60, 40)], [(20, 10, 60, 40), (70, 50, 80, 55)]]):
            mask = np.zeros((60, 100), dtype=np.uint8)
            for x1, y1, x2, y2 in parts:
                mask[y1:y2, x1:x2] = 255
            picture().save(tmp_path / images / f"ISIC_000000{number}.jpg")
            Image.fromarray(mask).save(tmp_path / masks / f"ISIC_000000{number}_segmentation.png")
        return str(tmp_path / images)

    return write


@pytest.mark.parametrize("folders", [(), ("pictures", "pictures")])
def test_images_and_their_masks_beside_them_or_among_them(isic, open_task, open_loader, folders):
    source = isic(*folders)
    task = open_task("lesion", source)
    assert [row.id for row in task.train_rows()] == ["ISIC_0000000", "ISIC_0000001"]
    first, second = open_loader(task).held_out_examples(None)
    assert first.question == "Find the lesion on this picture of skin." and first.size == (112, 56)
    ((box, point),) = [(item["bbox_2d"], item["point_2d"]) for item in json.loads(first.ground_truth)["objects"]]
    assert box == [22, 9, 67, 37] and box[0] < point[0] < box[2] and box[1] < point[1] < box[3]
    assert json.loads(second.ground_truth)["objects"][0]["bbox_2d"] == [22, 9, 90, 51]  # around both parts
    label = f"<think>It is dark.</think>{task.render(first, 'spaced')}"
    assert load_reward("vision_reasoner")(label, first.ground_truth).total == 7.0
    assert task.metrics([prediction(first.ground_truth, label)])["bbox_acc_any"] == 1.0


def test_a_missing_mask_is_named_by_its_picture(isic, open_task, tmp_path):
    source = isic()
    missing = tmp_path / "ISIC2018_Task1_Training_GroundTruth" / "ISIC_0000001_segmentation.png"
    missing.unlink()
    with pytest.raises(DataError, match=rf"{re.escape(source)}, ISIC_0000001\.jpg: there is no mask .*0001_segment"):
        open_task("lesion", source).train_rows()


def test_a_folder_without_pictures_is_named(open_task, tmp_path):
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        open_task("lesion", tmp_path).train_rows()


def test_tables_are_read_as_well(write_jsonl, open_task, open_loader):
    assert len(open_loader(open_task("lesion", write_jsonl({}))).held_out_examples(None)) == 1


TRUE = (0, 0, 10, 10)


def targets(*boxes) -> str:
    return json.dumps([{"bbox_2d": list(box), "point_2d": list(box[:2])} for box in boxes])


@pytest.mark.parametrize(
    ("boxes", "any_hits", "matched"),
    [
        ([TRUE], 1, 1),
        ([(0, 0, 10, 5)], 0, 0),  # an IoU of one half is no hit
        ([(0, 0, 10, 6)], 1, 1),
        ([(50, 50, 60, 60), TRUE], 1, 0.5),  # any of them
        ([(0, 0, 4, 10), (6, 0, 10, 10)], 1, 0),  # the box around them
        ([(0, 0, 2, 2), (50, 50, 60, 60)], 0, 0),
        ([], 0, 0),
    ],
)
def test_bbox_accuracy_by_hand(open_task, boxes, any_hits, matched):
    response = f"<think>a</think><answer>{targets(*boxes)}</answer>"
    scores = open_task("lesion", "a.jsonl").metrics([prediction(targets(TRUE), response)])
    assert (scores["bbox_acc_any"], scores["bbox_acc"]) == (any_hits, matched)


@pytest.mark.parametrize(
    ("response", "right"),
    [("<answer>[]</answer>", 1), ("none", 0), (f"<answer>{targets(TRUE)}</answer>", 0), ("<answer>[7]</answer>", 0)],
)
def test_only_the_empty_list_is_right_for_an_empty_ground_truth(open_task, response, right):
    assert open_task("lesion", "a.jsonl").metrics([prediction("[]", response)])["bbox_acc_any"] == right


def test_no_examples_no_scores(open_task):
    assert open_task("lesion", "a.jsonl").metrics([]) == {}


def test_images_of_every_ending_are_read_but_not_what_lies_beside_them(tmp_path, make_task):
    for name in ("ISIC_1.jpg", "ISIC_2.JPG", "ISIC_3.png", "ISIC_1_superpixels.png"):
        Image.new("RGB", (60, 40)).save(tmp_path / name)
    for number in (1, 2, 3):
        Image.new("L", (60, 40), 255).save(tmp_path / f"ISIC_{number}_segmentation.png")
    task = make_task(str(tmp_path), name="lesion")
    assert [row.id for row in task.train_rows()] == ["ISIC_1", "ISIC_2", "ISIC_3"]
