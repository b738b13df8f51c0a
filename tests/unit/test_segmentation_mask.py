"""The reward for masks, with a real SAM2 of random weights; the true masks are what it segments."""

import json

import numpy as np
import pytest

from tests.unit.conftest import picture
from visurf_ray.answers.boxes import Target, dump_truth, render
from visurf_ray.answers.rle import encode
from visurf_ray.errors import UserError
from visurf_ray.rewards import load_reward
from visurf_ray.rewards.reward import needs_image
from visurf_ray.rewards.spec import RewardSpec
from visurf_ray.scoring.segmenter import Segmenter

TARGET = Target((10, 10, 60, 50), (30, 20))
OTHER = Target((50, 5, 98, 58), (70, 30))
RIGHT = render([TARGET], thinking="a")


@pytest.fixture(scope="module")
def reward(sam2):
    return load_reward("segmentation_mask", model=sam2)


@pytest.fixture(scope="module")
def masks(sam2) -> list[np.ndarray]:
    segmenter = Segmenter(sam2, "model")
    return [segmenter.segment(picture(), [(t.bbox_2d, t.point_2d)]) for t in (TARGET, OTHER)]


def truth(mask: np.ndarray, **more) -> str:
    return json.dumps(json.loads(dump_truth([TARGET], mask=encode(mask))) | more)


def test_the_segmented_mask_is_compared_with_the_true_one(reward, masks):
    assert reward(RIGHT, truth(masks[0]), picture()).parts == {
        "mask_iou": 1.0,
        "answer_format": 1.0,
        "thinking_format": 1.0,
    }
    iou = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    assert 0 < iou < 1
    assert reward(RIGHT, truth(masks[1]), image=picture()).parts["mask_iou"] == pytest.approx(iou)
    assert reward(RIGHT, truth(~masks[0]), picture()).parts["mask_iou"] == 0.0
    ignored = truth(masks[1], ignore=encode(masks[1] ^ masks[0]))
    assert reward(RIGHT, ignored, picture()).parts["mask_iou"] == 1.0


def test_the_ground_truth_may_name_the_image(reward, masks, tmp_path):
    picture().save(tmp_path / "a.png")
    named = truth(masks[1], image=str(tmp_path / "a.png"))
    assert reward(RIGHT, named) == reward(RIGHT, truth(masks[1]), picture())


def test_the_image_may_be_smaller_than_the_mask(reward, sam2):
    """The model sees a resized image, the mask is of the stored size."""
    large = Segmenter(sam2, "model").segment(picture(), [(TARGET.bbox_2d, TARGET.point_2d)], (120, 200))
    assert reward(RIGHT, truth(large), picture()).parts["mask_iou"] == 1.0
    with pytest.raises(ValueError, match=r"has a mask that is not a COCO RLE"):
        reward(RIGHT, dump_truth([TARGET], mask=7), picture())


@pytest.mark.parametrize(
    ("response", "mask_iou", "answer_format", "thinking_format"),
    [
        ("", 0, 0, 0),
        ("<think>a</think><answer>[]</answer>", 0, 0, 1),
        ('<answer>[{"point_2d": [1, 2]}]</answer>', 0, 0.5, 0),
        ('<think>a</think><answer>[{"bbox_2d": [1, 2, 3]}, 7]</answer>', 0, 0, 1),
    ],
)
def test_answers_that_segment_nothing(reward, masks, response, mask_iou, answer_format, thinking_format):
    parts = reward(response, truth(masks[0]), picture()).parts
    assert (parts["mask_iou"], parts["answer_format"], parts["thinking_format"]) == (
        mask_iou,
        answer_format,
        thinking_format,
    )


def test_the_empty_answer_earns_everything_for_an_empty_ground_truth(sam2, reward):
    nothing = dump_truth([], mask=encode(np.zeros((60, 100), bool)))
    empty = render([], thinking="a")
    for ground_truth in ("[]", nothing):
        assert reward(empty, ground_truth).total == 3.0
        assert reward(RIGHT, ground_truth).parts == {"mask_iou": 0.0, "answer_format": 1.0, "thinking_format": 1.0}
        assert reward("<answer>?</answer>", ground_truth).total == 0.0
    strict = load_reward("segmentation_mask", model=sam2, credit_empty=False)
    assert strict(empty, nothing).parts == {"mask_iou": 0.0, "answer_format": 0.0, "thinking_format": 1.0}


def test_errors_name_what_is_missing(reward, masks):
    with pytest.raises(ValueError, match="has objects but no mask: reward=segmentation_mask needs data with masks"):
        reward(RIGHT, dump_truth([TARGET]), picture())
    with pytest.raises(ValueError, match="needs an image: pass image=, or name one in the ground truth"):
        reward(RIGHT, truth(masks[0]))
    with pytest.raises(UserError, match=r"reward\.options\.model=/nowhere: there is no such folder"):
        load_reward("segmentation_mask", model="/nowhere")


def test_only_rewards_that_need_the_image_get_it(reward, sam2, masks, tmp_path):
    assert needs_image(reward) and not needs_image(load_reward("vision_reasoner"))
    (tmp_path / "own.py").write_text(
        "def width(response, ground_truth, image):\n    return image.width\n\nwidth.needs_image = True\n"
        "def length(response, ground_truth):\n    return len(response)\n"
    )
    both = RewardSpec("segmentation_mask", {"model": sam2}, function=f"{tmp_path}/own.py:width").load()
    assert both(RIGHT, truth(masks[0]), picture()).parts["width"] == 100
    mixed = RewardSpec("segmentation_mask", {"model": sam2}, function=f"{tmp_path}/own.py:length").load()
    assert mixed(RIGHT, truth(masks[0]), picture()).parts["length"] == len(RIGHT)
    alone = RewardSpec("math", {}, function=f"{tmp_path}/own.py:width").load()
    assert alone("", "1", picture()).parts["width"] == 100


def test_the_specification_says_whether_the_image_is_needed(sam2, tmp_path):
    from visurf_ray.config.load import load_config

    def needs(*overrides: str) -> bool:
        return RewardSpec.of(load_config(list(overrides)).reward).needs_image

    (tmp_path / "own.py").write_text(
        "def see(response, ground_truth, image):\n    return 0\n\nsee.needs_image = True\n"
    )
    assert not needs()
    assert needs("reward=segmentation_mask", f"reward.options.model={sam2}")
    assert needs(f"reward.function={tmp_path}/own.py:see")


def test_a_function_that_needs_the_image_must_take_it(tmp_path):
    (tmp_path / "own.py").write_text("def see(response, ground_truth):\n    return 0\n\nsee.needs_image = True\n")
    with pytest.raises(UserError, match=r"must take \(response, ground_truth, image\), but"):
        RewardSpec(None, function=f"{tmp_path}/own.py:see").load()
