"""SAM2: prompts made from answers, and masks that equal those of direct transformers calls."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests.unit.conftest import picture
from tests.unit.groups import example
from visurf_ray.errors import UserError
from visurf_ray.groups import Prediction
from visurf_ray.scoring import segmentation
from visurf_ray.scoring.segmenter import Segmenter, prompts_of

BOX, POINT = (10, 10, 60, 50), (30, 20)
OTHER = (55, 5, 95, 55)


@pytest.fixture(scope="module")
def segmenter(sam2):
    return Segmenter(sam2, "task.segmenter")


@pytest.fixture(scope="module")
def direct(sam2):
    """One object, by transformers alone: the mask with the best score, at the image's size."""
    import torch
    from transformers import Sam2Model, Sam2Processor

    model, processor = Sam2Model.from_pretrained(sam2).eval(), Sam2Processor.from_pretrained(sam2)

    def segment(image, box, point=None) -> np.ndarray:
        points = {} if point is None else {"input_points": [[[list(point)]]], "input_labels": [[[1]]]}
        inputs = processor(images=image, input_boxes=[[list(box)]], return_tensors="pt", **points)
        with torch.no_grad():
            output = model(**inputs)
        masks = processor.post_process_masks(output.pred_masks, inputs["original_sizes"])[0]
        return masks[0, output.iou_scores[0, 0].argmax()].numpy()

    return segment


@pytest.mark.parametrize("point", [POINT, None])
def test_one_object_is_transformers_own_answer(segmenter, direct, point):
    image = picture()
    mask = segmenter.segment(image, [(BOX, point)])
    assert mask.shape == (60, 100) and mask.dtype == bool
    assert 0 < mask.sum() < mask.size
    assert (mask == direct(image, BOX, point)).all()


def test_several_objects_are_the_union_with_points_and_without(segmenter, direct):
    image = picture()
    prompts = [(BOX, POINT), (OTHER, None), ((0, 30, 40, 60), (20, 45)), ((1, 1, 9, 9), None)]
    alone = [direct(image, *prompt) for prompt in prompts]
    union = np.logical_or.reduce(alone)
    assert (segmenter.segment(image, prompts) == union).all()
    assert all((mask != union).any() for mask in alone)


def test_more_objects_than_are_segmented_at_once(segmenter, direct):
    image = picture(40, 30)
    prompts = [((x, 2, x + 6, 20), None) for x in range(20)]
    assert (segmenter.segment(image, prompts) == np.logical_or.reduce([direct(image, *p) for p in prompts])).all()


def test_each_image_is_encoded_anew(segmenter, direct):
    first, second = picture(seed=0), picture(70, 90, seed=1)
    for image in (first, second, first):
        assert (segmenter.segment(image, [(BOX, POINT)]) == direct(image, BOX, POINT)).all()


def test_no_object_gives_an_empty_mask(segmenter):
    mask = segmenter.segment(picture(), [])
    assert mask.shape == (60, 100) and not mask.any()


def test_the_mask_may_have_another_size_than_the_image(segmenter):
    mask = segmenter.segment(picture(), [(BOX, POINT)], (120, 200))
    assert mask.shape == (120, 200)
    small = segmenter.segment(picture(), [(BOX, POINT)])
    assert (mask[::2, ::2] == small).mean() > 0.9


def answer(*items) -> str:
    return f"<think>a</think><answer>{json.dumps(items)}</answer>"


def test_prompts_are_scaled_and_rounded_as_the_original_does():
    """`int(v * W / w + 0.5)`; the recorded values of its extract_bbox_points_think."""
    item = {"bbox_2d": [100, 100, 300, 300], "point_2d": [200, 200]}
    assert prompts_of(answer(item), 2.0, 0.5) == [((200, 50, 600, 150), (400, 100))]
    item = {"bbox_2d": [0.4, 0.5, 7.49, 9.5], "point_2d": [1.5, 2.5]}
    assert prompts_of(answer(item)) == [((0, 1, 7, 10), (2, 3))]


def test_an_item_without_a_point_keeps_its_box_and_does_not_affect_the_others():
    items = [{"bbox_2d": BOX, "point_2d": POINT}, {"bbox_2d": OTHER}, {"bbox_2d": OTHER, "point_2d": ["1", 2]}]
    assert prompts_of(answer(*items)) == [(BOX, POINT), (OTHER, None), (OTHER, None)]


@pytest.mark.parametrize(
    "response",
    [
        "",
        "[]",
        answer(),
        answer({"point_2d": POINT}),
        answer({"bbox_2d": [5, 5, 5, 9]}),
        answer(7),
        "<answer>[</answer>",
    ],
)
def test_answers_without_a_box_give_no_prompts(response):
    assert prompts_of(response) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/sam2", "there is no such folder"),
        ("sam2", "there is no such folder"),
        (".", r"the folder has no config\.json"),
        ("nobody/no-such-model", "cannot be loaded as a SAM2 model"),
    ],
)
def test_a_path_without_a_model_is_refused(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"task\.segmenter={path}:? {message}"):
        Segmenter(path, "task.segmenter")


def test_each_of_several_answers_gets_the_mask_in_the_image_of_its_example(monkeypatch):
    found = segmentation.Segmentation.__new__(segmentation.Segmentation)
    found.strict, found.parts, found.timeout = True, ("",), 60.0
    remote = SimpleNamespace(remote=lambda image, response, size: f"{image}, {response}")
    found.actor = SimpleNamespace(segment=remote)
    monkeypatch.setattr(segmentation, "fetch", lambda mask, timeout: {"of": mask})
    monkeypatch.setattr(segmentation, "_AHEAD", 1)
    examples = [example(identity=name) for name in "ab"]
    answers = [Prediction.of(each, f"{each.id}{number}", number) for each in examples for number in range(2)]

    def stored(of):
        return f"image {of.id}"

    masks = [each.mask["of"] for each in found.segment(examples, answers, stored)]
    assert masks == ["image a, a0", "image a, a1", "image b, b0", "image b, b1"]
    assert found.segment([], [], stored) == []
    other = example(identity="c", part="count")
    predictions = [Prediction.of(other, "3"), answers[0]]
    masks = [each.mask for each in found.segment([other, examples[0]], predictions, stored)]
    assert masks == [None, {"of": "image a, a0"}], "parts without masks stay as they are"
