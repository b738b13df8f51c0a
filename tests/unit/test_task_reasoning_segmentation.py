"""ReasonSeg's folders: masks by hand, wordings, labels, and errors that name a bad annotation."""

import json

import numpy as np
import pytest

from tests.unit.conftest import composed, encoded, picture
from tests.unit.groups import example
from visurf_ray.answers.boxes import Target, parse_targets
from visurf_ray.answers.rle import decode, encode, parse_masks
from visurf_ray.errors import DataError
from visurf_ray.feed.loader import ExampleLoader
from visurf_ray.groups import Prediction
from visurf_ray.tasks import load_task
from visurf_ray.tasks.reasoning_segmentation import paint


def rectangle(label: str, x1: float, y1: float, x2: float, y2: float) -> dict:
    """As labelme writes it. The edges belong to it."""
    points = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
    return {"label": label, "labels": [label], "shape_type": "polygon", "image_name": "a.jpg", "points": points}


CUP = rectangle("target", 20, 10, 40, 30)


@pytest.fixture
def write_folder(tmp_path):
    def write(**annotations) -> str:
        for name, annotation in annotations.items():
            whole = {"text": ["What holds the tea?"], "is_sentence": True, "shapes": [CUP]} | annotation
            picture().save(tmp_path / f"{name}.jpg")
            (tmp_path / f"{name}.json").write_text(json.dumps(whole))
        return str(tmp_path)

    return write


def make_task(folder: str, *overrides: str):
    files = [f"task.train='{folder}'", f"task.held_out='{folder}'"]
    return load_task(composed("task=reasoning_segmentation", *files, *overrides).task, 0)


def test_training_takes_every_wording_and_evaluation_the_first(write_folder):
    task = make_task(write_folder(b={"text": ["What holds the tea?", "the cup"]}, a={"text": ["the pot"]}))
    trained = [(row.id, row.problem) for row in task.train_rows()]
    assert trained == [("a", "the pot"), ("b", "What holds the tea?"), ("b-1", "the cup")]
    rows = task.held_out_rows()
    assert [(row.id, row.problem) for row in rows] == [("a", "the pot"), ("b", "What holds the tea?")]
    assert rows[0].where.endswith("a.json") and rows[0].open_image().size == (100, 60)
    for row in rows:
        task.check(row)


def test_images_of_every_ending_are_read(write_folder, data_folder):
    folder = write_folder(a={})
    for name in ("b.JPG", "c.jpeg", "d.png", "e.WEBP"):
        picture().save(data_folder / name)
        (data_folder / name).with_suffix(".json").write_text((data_folder / "a.json").read_text())
    assert [row.id for row in make_task(folder).held_out_rows()] == ["a", "b", "c", "d", "e"]
    (data_folder / "a.jpg").unlink()
    (data_folder / "a.json").unlink()
    assert [row.id for row in make_task(folder).held_out_rows()] == ["b", "c", "d", "e"], "without a .jpg as well"


def test_annotations_without_an_image_that_can_be_read_are_refused(write_folder, data_folder):
    folder = write_folder(a={}, b={})
    (data_folder / "notes.json").write_text('{"shape": "of a folder"}')
    assert len(make_task(folder).held_out_rows()) == 2, "other JSON is none"
    (data_folder / "b.jpg").rename(data_folder / "b.heic")
    with pytest.raises(DataError, match=r"task\.held_out: .*b\.json is the annotation of 0 images"):
        make_task(folder).held_out_rows()
    (data_folder / "b.heic").rename(data_folder / "b.png")
    picture().save(data_folder / "b.jpg")
    with pytest.raises(DataError, match=r"b\.json is the annotation of 2 images"):
        make_task(folder).held_out_rows()


def test_a_row_has_the_mask_and_boxes_and_points_made_from_it(write_folder):
    shapes = [CUP, rectangle("ignore", 60, 10, 70, 20), rectangle("flag", 0, 0, 99, 59)]
    (row,) = make_task(write_folder(a={"shapes": shapes})).held_out_rows()
    meant, ignored = np.zeros((2, 60, 100), bool)
    meant[10:31, 20:41] = ignored[10:21, 60:71] = True
    masks = parse_masks(row.solution)
    assert (decode(masks["mask"]) == meant).all() and (decode(masks["ignore"]) == ignored).all()
    assert parse_targets(row.solution) == [Target((20, 10, 41, 31), (30, 20))]


def test_polygons_are_painted_from_the_largest_to_the_smallest():
    """A hole that is ignored in a target, and in it a target again; told in any order."""
    shapes = [rectangle("target", 8, 8, 9, 9), rectangle("Ignored", 5, 5, 14, 14), rectangle("target", 0, 0, 19, 19)]
    for order in (shapes, shapes[::-1]):
        painted = paint(order, 20, 20)
        assert (painted[8:10, 8:10] == 1).all() and painted[6, 6] == 255 and painted[0, 0] == 1
        assert [(painted == value).sum() for value in (0, 1, 255)] == [0, 400 - 100 + 4, 100 - 4]


def test_points_are_cut_off_to_whole_pixels_and_lines_belong_to_the_polygon():
    assert (
        paint([rectangle("target", 2.9, 3.9, 5.9, 4.9)], 9, 9) == paint([rectangle("target", 2, 3, 5, 4)], 9, 9)
    ).all()
    triangle = CUP | {"points": [[0, 0], [8, 0], [0, 8]]}
    rows, columns = np.mgrid[:9, :9]
    assert (paint([triangle], 9, 9) == (rows + columns <= 8)).all()


def test_an_image_without_targets_has_an_empty_ground_truth(write_folder):
    task = make_task(write_folder(a={"shapes": []}))
    (row,) = task.held_out_rows()
    assert parse_targets(row.solution) == [] and not decode(parse_masks(row.solution)["mask"]).any()
    task.check(row)


def test_texts_may_be_in_an_old_encoding(write_folder, data_folder):
    folder = write_folder(a={})
    text = json.dumps({"text": ["the café’s cup"], "is_sentence": False, "shapes": [CUP]}, ensure_ascii=False)
    (data_folder / "a.json").write_bytes(text.encode("cp1252"))
    assert make_task(folder).held_out_rows()[0].problem == "the café’s cup"


def test_examples_scale_the_objects_and_keep_the_mask(write_folder, processor):
    """The round trip: boxes come back to within half a pixel of the image that the model sees."""
    folder = write_folder(a={"shapes": [CUP, rectangle("target", 60, 5, 90, 50)]})
    task = make_task(folder, "task.segmenter=some/sam2")
    loader = ExampleLoader(task, processor, seed=0, max_prompt_tokens=500, put=lambda value: value)
    loader.check()
    (held_out,) = loader.held_out_examples(None)
    (row,) = task.held_out_rows()
    width, height = held_out.size
    assert (width, height) != (100, 60) and row.open_image().size == (100, 60)
    assert held_out.prompt.images[0].size == held_out.size
    assert parse_masks(held_out.ground_truth) == parse_masks(row.solution)
    for seen, stored in zip(parse_targets(held_out.ground_truth), parse_targets(row.solution), strict=True):
        back = np.array(seen.bbox_2d) * np.tile([100 / width, 60 / height], 2)
        assert np.abs(back - stored.bbox_2d).max() <= 0.5 * max(100 / width, 60 / height) + 1e-9
    assert "What holds the tea?" in task.question(row) and task.question(row).count("<answer>") == 1


def test_the_plain_prompt_is_the_question(write_folder):
    task = make_task(write_folder(a={}), "task.prompt=plain")
    assert task.question(task.held_out_rows()[0]) == "What holds the tea?"


def test_metrics_are_of_masks(write_folder):
    task = make_task(write_folder(a={"shapes": [CUP, rectangle("ignore", 60, 10, 70, 20)]}))
    (row,) = task.held_out_rows()
    given = np.zeros((60, 100), bool)
    given[10:31, 20:41] = given[10:21, 60:71] = given[40:50, 40:50] = True
    response = '<answer>[{"bbox_2d": [20, 10, 41, 31], "point_2d": [30, 20]}]</answer>'
    prediction = Prediction.of(example(row.solution), response)
    scored = Prediction(**vars(prediction) | {"mask": encode(given)})
    assert task.metrics([scored])["giou"] == pytest.approx(441 / 541)
    assert task.metrics([prediction])["giou"] == 1.0, "without a segmenter: of boxes"


def test_a_table_is_read_as_well(write_parquet):
    (row,) = make_task(write_parquet({})).train_rows()
    assert row.id == "row-0" and parse_masks(row.solution) == {}


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"text": []}, "text must be a list of at least one question"),
        ({"text": "the cup"}, "text must be a list"),
        ({"shapes": [{"label": "target"}]}, "'points' is missing"),
        ({"shapes": [{"points": []}]}, "'label' is missing"),
        ({"shapes": [CUP | {"points": [["a", 1]]}]}, "could not convert"),
        ({"shapes": [CUP | {"points": [1, 2, 3]}]}, "points must be"),
        ({"shapes": [CUP | {"points": []}]}, "points must be"),
        ({"shapes": [CUP | {"points": [[0.2, 0.1], [0.4, 0.1], [0.4, 1.01]]}]}, "points must be in pixels"),
        ({"shapes": [CUP | {"points": [[1, 1], [float("nan"), 3], [4, 4]]}]}, "points must be"),
        ({"shapes": 7}, "not iterable"),
    ],
)
def test_a_bad_annotation_is_named(write_folder, annotation, message):
    task = make_task(write_folder(good={}, poor=annotation))
    with pytest.raises(DataError, match=rf"(?s)poor\.json is not a ReasonSeg annotation.*{message}"):
        task.held_out_rows()


def test_files_that_are_missing_or_broken_are_named(write_folder, data_folder):
    task = make_task(write_folder(a={}, b={}))
    (data_folder / "b.json").write_text("{")
    with pytest.raises(DataError, match=r"b\.json is not JSON"):
        task.train_rows()
    (data_folder / "b.json").unlink()
    with pytest.raises(DataError, match=r"b\.jpg: its annotation b\.json cannot be read: No such file"):
        task.train_rows()
    (data_folder / "a.jpg").write_bytes(encoded(picture())[:20])
    (data_folder / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"a\.jpg cannot be read as an image"):
        task.train_rows()
