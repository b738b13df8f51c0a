"""VisionReasoner's evaluation sets: masks in every form, with boxes, and malformed ones named by row."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.unit.conftest import encoded, picture
from visurf_ray.answers.boxes import Target, parse_targets
from visurf_ray.answers.rle import decode, encode, parse_masks
from visurf_ray.errors import DataError
from visurf_ray.groups import Prediction
from visurf_ray.scoring.metrics import score_boxes

MASK = np.zeros((60, 100), bool)
MASK[10:31, 20:41] = True
NOTHING = np.zeros((60, 100), bool)
FOUND = [Target((20, 10, 41, 31), (30, 20))]


@pytest.fixture
def write_masks(data_folder):
    """Writes rows to parquet, columns and types as in Ricky06662/ReasonSeg_val unless `types` has others."""
    import datasets

    def write(*rows: dict, **types) -> str:
        features = {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "mask": datasets.List(datasets.List(datasets.Value("bool"))),
            "image_id": datasets.Value("string"),
            "ann_id": datasets.Value("string"),
            "img_height": datasets.Value("int64"),
            "img_width": datasets.Value("int64"),
        } | types
        whole = [
            {
                "image": {"bytes": encoded(picture()), "path": None},
                "text": "the cup",
                "mask": MASK.tolist(),
                "image_id": f"{number}",
                "ann_id": "7",
                "img_height": 60,
                "img_width": 100,
            }
            | row
            for number, row in enumerate(rows)
        ]
        table = {name: [row[name] for row in whole] for name in features}
        path = data_folder / "test.parquet"
        datasets.Dataset.from_dict(table, features=datasets.Features(features)).to_parquet(str(path))
        return str(path)

    return write


def test_nested_booleans(write_masks, make_task):
    task = make_task(write_masks({}, {"text": "the dog", "mask": NOTHING.tolist()}))
    first, second = task.held_out_rows()
    assert (first.id, first.problem, first.where[-14:]) == ("0-7", "the cup", "row 0 (id 0-7)")
    assert parse_targets(first.solution) == FOUND and (decode(parse_masks(first.solution)["mask"]) == MASK).all()
    assert second.problem == "the dog" and parse_targets(second.solution) == []
    assert first.open_image().tobytes() == picture().tobytes()
    for row in (first, second):
        task.check(row)


def test_a_box_in_the_data_is_the_only_object(write_masks, make_task):
    import datasets

    two = MASK.copy()
    two[40:50, 70:80] = True
    rows = [{"bbox": [20, 10, 80, 50], "mask": two.tolist()}, {"bbox": None, "mask": two.tolist()}]
    first, second = make_task(write_masks(*rows, bbox=datasets.List(datasets.Value("int64")))).held_out_rows()
    assert parse_targets(first.solution) == [Target((20, 10, 80, 50), (30, 20))]
    assert [target.bbox_2d for target in parse_targets(second.solution)] == [(20, 10, 41, 31), (70, 40, 80, 50)]


def png(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def test_masks_that_are_images(write_masks, make_task, data_folder):
    import datasets

    stored = {"mask": {"bytes": encoded(png(MASK)), "path": None}}
    rows = make_task(write_masks(stored, mask=datasets.Image())).held_out_rows()
    rows += make_task(write_masks({"mask": encoded(png(MASK))}, mask=datasets.Value("binary"))).held_out_rows()
    png(MASK).save(data_folder / "mask.png")
    rows += make_task(write_masks({"mask": "mask.png"}, mask=datasets.Value("string"))).held_out_rows()
    for row in rows:
        assert (decode(parse_masks(row.solution)["mask"]) == MASK).all() and parse_targets(row.solution) == FOUND


def test_masks_that_are_run_lengths(write_masks, make_task):
    import datasets

    kind = {"size": datasets.List(datasets.Value("int64")), "counts": datasets.Value("string")}
    rows = make_task(write_masks({"mask": encode(MASK)}, mask=kind)).held_out_rows()
    rows += make_task(write_masks({"mask": json.dumps(encode(MASK))}, mask=datasets.Value("string"))).held_out_rows()
    for row in rows:
        assert parse_masks(row.solution) == {"mask": encode(MASK)} and parse_targets(row.solution) == FOUND


def test_training_columns_may_have_masks(write_parquet, make_loader):
    solution = json.dumps({"objects": [{"bbox_2d": [20, 10, 41, 31], "point_2d": [30, 20]}], "mask": encode(MASK)})
    loader = make_loader(write_parquet({"solution": solution}))
    loader.check()
    (held_out,) = loader.held_out_examples(None)
    assert parse_masks(held_out.ground_truth) == {"mask": encode(MASK)}
    width, height = held_out.size
    expected = [int(v * s + 0.5) for v, s in zip((20, 10, 41, 31), (width / 100, height / 60) * 2, strict=True)]
    assert list(parse_targets(held_out.ground_truth)[0].bbox_2d) == expected
    point = list(parse_targets(held_out.ground_truth)[0].point_2d)
    label = f'<answer>[{{"bbox_2d": {expected}, "point_2d": {point}}}]</answer>'
    assert loader.task.render(held_out, "spaced") == label


def test_a_mask_must_be_of_the_images_size(write_masks, make_task):
    task = make_task(write_masks({"mask": MASK.T.tolist()}))
    with pytest.raises(DataError, match=r"row 0 \(id 0-7\): .*mask of \[H, W\] = \[100, 60\], but the image is 100×60"):
        task.check(task.held_out_rows()[0])


@pytest.mark.parametrize("mask", [None, [], [[True], [True, False]]])
def test_a_malformed_mask_is_named_by_row(write_masks, make_task, mask):
    task = make_task(write_masks({}, {"mask": mask}))
    with pytest.raises(DataError, match=r"row 1 \(id 1-7\): the mask must be nested booleans"):
        [task.check(row) for row in task.held_out_rows()]


def test_a_missing_mask_image_is_named(write_masks, make_task):
    import datasets

    task = make_task(write_masks({"mask": "nowhere.png"}, mask=datasets.Value("string")))
    with pytest.raises(DataError, match=r"row 0 \(id 0-7\): the mask must be .*nowhere\.png"):
        task.held_out_rows()


def test_a_malformed_box_is_named(write_masks, make_task):
    import datasets

    task = make_task(write_masks({"bbox": [1, 2, 3]}, bbox=datasets.List(datasets.Value("int64"))))
    with pytest.raises(DataError, match=r"row 0 \(id 0-7\): the bbox must be \[x1, y1, x2, y2\], not \[1, 2, 3\]"):
        task.held_out_rows()


def test_ciou_counts_pixels_of_the_stored_image_if_there_are_masks():
    """A hit of 100 pixels, and 100 pixels where nothing is meant, in images that the model sees at a tenth."""
    shown = np.zeros((100, 100), dtype=bool)
    shown[:10, :10] = True
    rle = encode(shown)
    box = '[{"bbox_2d": [0, 0, 1, 1], "point_2d": [0, 0]}]'
    truths = [json.dumps({"objects": json.loads(box), "mask": rle}), "[]"]
    predictions = [Prediction("a", "q", truth, (10, 10), f"<answer>{box}</answer>", rle) for truth in truths]
    assert score_boxes(predictions)["ciou"] == 0.5


def test_a_mask_of_lines_that_differ_in_length_is_refused(write_masks, make_task):
    """Even if its pixels are as many as those of a whole mask."""
    lines = NOTHING.tolist()
    lines[0], lines[1] = lines[0][:-1], [*lines[1], True]
    holes = MASK.tolist()
    holes[3][4] = None
    for mask in (lines, holes):
        with pytest.raises(DataError, match=r"row 0 \(id 0-7\): the mask must be nested booleans of one length"):
            make_task(write_masks({"mask": mask})).held_out_rows()
