"""Metrics of box answers: by hand, and unions compared with a raster of pixels."""

import json

import numpy as np
import pytest

from tests.unit.groups import example
from visurf_ray.answers.rle import encode
from visurf_ray.answers.visual_rft import box_iou
from visurf_ray.groups import Prediction
from visurf_ray.scoring.metrics import answered_boxes, score_boxes, union_iou, well_formed

LEFT, RIGHT, HALF = (0, 0, 10, 10), (20, 0, 30, 10), (0, 0, 10, 5)
BELOW = (0, 20, 10, 30)


def targets(*boxes) -> str:
    return json.dumps([{"bbox_2d": list(box), "point_2d": [box[0], box[1]]} for box in boxes])


def answer(*boxes, think: str = "<think>a</think>") -> str:
    return f"{think}<answer>{targets(*boxes)}</answer>"


def score_pairs(pairs) -> dict[str, float]:
    """Of (response, ground truth)."""
    return score_boxes([Prediction("a", "the 7", truth, (84, 84), response) for response, truth in pairs])


def test_iou_by_hand():
    assert box_iou(LEFT, LEFT) == 1.0
    assert box_iou(LEFT, HALF) == 0.5
    assert box_iou(LEFT, RIGHT) == box_iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0.0
    assert box_iou((0, 0, 10, 10), (5, 5, 15, 15)) == pytest.approx(25 / 175)
    assert union_iou([], []) == union_iou([LEFT], []) == 0.0


@pytest.mark.parametrize("seed", range(6))
def test_unions_agree_with_a_raster(seed):
    """Boxes overlap one another, so that sums of areas would be wrong."""
    rng = np.random.default_rng(seed)

    def draw(count: int) -> tuple[list, np.ndarray]:
        boxes, raster = [], np.zeros((40, 40), dtype=bool)
        for _ in range(count):
            x1, x2 = sorted(rng.choice(41, 2, replace=False).tolist())
            y1, y2 = sorted(rng.choice(41, 2, replace=False).tolist())
            boxes.append((x1, y1, x2, y2))
            raster[y1:y2, x1:x2] = True
        return boxes, raster

    for count in range(1, 6):
        given, covered = draw(count)
        true, meant = draw(6 - count)
        assert union_iou(given, true) == pytest.approx((covered & meant).sum() / (covered | meant).sum(), abs=1e-12)


@pytest.mark.parametrize(
    ("given", "true", "giou", "bbox_acc"),
    [
        ([LEFT], [LEFT], 1.0, 1.0),
        ([RIGHT, LEFT], [LEFT, RIGHT], 1.0, 1.0),
        ([LEFT], [LEFT, RIGHT], 0.5, 0.5),  # one is missing
        ([LEFT, RIGHT], [LEFT], 0.5, 0.5),  # one too many
        ([LEFT, LEFT], [LEFT], 1.0, 0.5),  # the same twice hits once
        ([LEFT], [LEFT, RIGHT, BELOW], 1 / 3, 1 / 3),
        ([HALF], [LEFT], 0.5, 0.0),  # IoU of exactly one half is no hit
        ([(0, 0, 10, 6)], [LEFT], 0.6, 1.0),
        ([RIGHT], [LEFT], 0.0, 0.0),
        ([], [LEFT], 0.0, 0.0),
        ([(10, 10, 0, 0)], [LEFT], 0.0, 0.0),  # corners swapped
    ],
)
def test_bbox_acc_and_empty_rate_by_hand(given, true, giou, bbox_acc):
    scores = score_pairs([(answer(*given), targets(*true))])
    assert scores["giou"] == pytest.approx(giou) and scores["bbox_acc"] == pytest.approx(bbox_acc)
    assert scores["empty_rate"] == (given == [])
    assert "n_acc" not in scores


def test_each_box_is_matched_once_in_the_best_matching():
    """The first answer hits both targets, the second one target: both must count."""
    true = [(0, 0, 100, 100), (0, 0, 100, 150)]
    scores = score_pairs([(answer((0, 0, 100, 120), (0, 0, 100, 60)), targets(*true))])
    assert scores["bbox_acc"] == 1.0


@pytest.mark.parametrize(
    ("response", "right"),
    [
        (answer(), 1.0),
        ("<answer>\n[ ]\n</answer>", 1.0),
        (answer(LEFT), 0.0),
        ("<think>a</think><answer>nothing is there</answer>", 0.0),
        ("<think>a</think><answer></answer>", 0.0),
        ("<think>a</think><answer>null</answer>", 0.0),
        ("<think>a</think><answer>[</answer>", 0.0),
        ("[]", 0.0),
        ("", 0.0),
        ("<think><answer>[]</answer></think>", 0.0),
        ("<answer>[{}]</answer>", 0.0),
        ('<answer>[{"bbox_2d": "none"}]</answer>', 0.0),
        (answer((5, 5, 5, 5)), 0.0),  # a box without an area is a box
        (answer((10, 10, 0, 0)), 0.0),
    ],
)
def test_only_the_empty_list_is_right_for_an_empty_ground_truth(response, right):
    scores = score_pairs([(response, "[]")])
    assert scores["n_acc"] == scores["giou"] == right
    assert "bbox_acc" not in scores and "empty_rate" not in scores


def test_a_box_without_an_area_is_not_the_empty_answer():
    assert score_pairs([(answer((5, 5, 5, 5)), targets(LEFT))])["empty_rate"] == 0.0


def test_malformed_boxes_are_skipped():
    response = '<answer>[{"bbox_2d": [0, 0, 10, 10]}, {"bbox_2d": [1, 2]}, 7, {"bbox_2d": [9, 9, 9, 12]}]</answer>'
    assert answered_boxes(response) == [LEFT]
    assert answered_boxes("<answer>?</answer>") is None


@pytest.mark.parametrize(
    ("response", "formatted"),
    [
        (answer(LEFT, RIGHT), True),
        (answer(), True),
        ('<answer>[{"bbox_2d": [0, 0, 10, 10]}]</answer>', False),
        ('<answer>[{"bbox_2d": [0, 0, 10, 10], "point_2d": [1, "2"]}]</answer>', False),
        ('<answer>[{"bbox_2d": [0, 0, 10], "point_2d": [1, 2]}]</answer>', False),
        (answer(LEFT).replace("]</answer>", ", 7]</answer>"), False),
        ("<answer>{}</answer>", False),
        ("[]", False),
    ],
)
def test_well_formed_answers(response, formatted):
    assert well_formed(response) is formatted
    assert score_pairs([(response, "[]")])["format_rate"] == formatted


def test_scores_are_means_over_the_examples_that_they_are_about():
    scores = score_pairs(
        [
            (answer(LEFT), targets(LEFT)),
            (answer(LEFT, think=""), targets(LEFT, RIGHT)),
            (answer(), targets(RIGHT)),
            ("garbage", targets(RIGHT)),
            (answer(), "[]"),
            (answer(LEFT), "[]"),
            (" <think>a</think> <answer>none</answer>\n", "[]"),
        ]
    )
    assert scores == pytest.approx(
        {
            "giou": 2.5 / 7,
            "ciou": 200 / 600,  # the last but one example's box is a union without an intersection
            "bbox_acc": 1.5 / 4,
            "empty_rate": 1 / 4,
            "t_acc": 2 / 4,
            **dict.fromkeys(("pr@0.7", "pr@0.8", "pr@0.9"), 1 / 4),
            "n_acc": 1 / 3,
            "format_rate": 5 / 7,
            "thinking_rate": 5 / 7,
        }
    )


# Areas that are masks

FULL = np.ones((4, 4), bool)
CORNER, STRIPE, NOTHING = np.zeros((3, 4, 4), bool)
CORNER[:2, :2] = True
STRIPE[:, :2] = True
BOX = {"bbox_2d": [0, 0, 80, 80], "point_2d": [9, 9]}


def masked(given, true, ignore=None, response: str = answer(LEFT)) -> Prediction:
    """The boxes are all wrong, so that what is right must come from the masks."""
    truth = {"objects": [BOX] if true.any() else [], "mask": encode(true)}
    truth |= {} if ignore is None else {"ignore": encode(ignore)}
    return Prediction("a", "the 7", json.dumps(truth), (84, 84), response, encode(given))


def test_masks_by_hand():
    scores = score_boxes(
        [
            masked(CORNER, STRIPE),  # 4 of 8
            masked(FULL, FULL),  # 16 of 16
            masked(NOTHING, STRIPE, response="no answer"),  # 0 of 8
            masked(NOTHING, NOTHING, response=answer()),  # right, and 0 of 0
            masked(STRIPE, NOTHING),  # 0 of 8
            masked(NOTHING, NOTHING, response="no answer"),  # not the empty answer
        ]
    )
    assert scores["giou"] == pytest.approx((0.5 + 1 + 0 + 1 + 0 + 0) / 6)
    assert scores["ciou"] == pytest.approx(20 / 40)
    assert scores["n_acc"] == pytest.approx(1 / 3)


def test_the_originals_own_example():
    """calculate_iou_with_bbox_nonobj.py on 5 of 10, a true negative, a false alarm: gIoU 0.5, cIoU 5/18, N-Acc 0.5."""
    ten, five, eight = np.zeros((3, 4, 4), bool)
    ten.flat[:10] = five.flat[:5] = eight.flat[:8] = True
    scores = score_boxes([masked(five, ten), masked(NOTHING, NOTHING, response=answer()), masked(eight, NOTHING)])
    assert (scores["giou"], scores["ciou"], scores["n_acc"]) == pytest.approx((0.5, 5 / 18, 0.5))


def test_ignored_pixels_do_not_count():
    scores = score_boxes([masked(FULL, CORNER, ignore=STRIPE & ~CORNER)])
    assert scores["giou"] == scores["ciou"] == pytest.approx(4 / 12)


def test_random_masks_against_numpy():
    rng = np.random.default_rng(0)
    pairs = [(rng.random((9, 7)) < 0.5, rng.random((9, 7)) < 0.3) for _ in range(20)]
    inter = np.array([(a & b).sum() for a, b in pairs])
    union = np.array([(a | b).sum() for a, b in pairs])
    scores = score_boxes([masked(a, b) for a, b in pairs])
    assert scores["giou"] == pytest.approx((inter / union).mean())
    assert scores["ciou"] == pytest.approx(inter.sum() / union.sum())


def test_without_a_mask_on_either_side_areas_are_boxes():
    truth = json.dumps({"objects": [{"bbox_2d": LEFT, "point_2d": [1, 1]}], "mask": encode(FULL)})
    assert score_pairs([(answer(HALF), truth)])["giou"] == 0.5
    prediction = Prediction("a", "the 7", targets(LEFT), (84, 84), answer(HALF), encode(FULL))
    assert score_boxes([prediction])["ciou"] == 0.5


def test_pr_and_t_acc_as_in_grefcocos_evaluation():
    """A loop over masks of known overlap, as refer_evaluation.py counts; a share of exactly 0.7 counts."""
    true, nothing = np.ones((10, 10), bool), np.zeros((10, 10), bool)
    rows = [np.arange(10) < covered for covered in range(11)]
    given = [np.repeat(each[:, None], 10, axis=1) for each in rows]
    predictions = [masked(mask, true, response=answer(LEFT) if mask.any() else answer()) for mask in given]
    scores = score_boxes([*predictions, masked(nothing, nothing, response=answer())])
    overlaps = [float((mask & true).sum() / (mask | true).sum()) for mask in given]
    for threshold in (0.7, 0.8, 0.9):
        assert scores[f"pr@{threshold}"] == sum(overlap >= threshold for overlap in overlaps) / 11
    assert scores["t_acc"] == 10 / 11 and scores["n_acc"] == 1


def test_without_targets_there_is_neither_t_acc_nor_pr():
    assert not {"t_acc", "pr@0.7"} & score_pairs([(answer(), "[]")]).keys()


def test_no_examples_no_scores():
    assert score_pairs([]) == {}


@pytest.fixture
def task():
    from visurf_ray.config.load import load_config
    from visurf_ray.tasks import load_task

    return load_task(load_config(["task=non_object", "task.train=a.jsonl", "task.held_out=b.jsonl"]).task, seed=0)


def test_a_task_scores_predictions_and_shows_boxes(task):
    held_out = example(targets(LEFT))
    assert task.metrics([Prediction.of(held_out, answer(LEFT)), Prediction.of(held_out, "")])["bbox_acc"] == 0.5
    assert task.true_boxes(held_out) == [LEFT]
    assert task.boxes(answer(LEFT, RIGHT), (84, 84)) == [LEFT, RIGHT]
    assert task.boxes("garbage", (84, 84)) == []
    assert task.render(held_out, "compact") == f"<answer>{targets(LEFT).replace(' ', '')}</answer>"


def test_an_unknown_task_is_answered_with_the_nearest():
    from visurf_ray.config.load import load_config
    from visurf_ray.errors import UserError
    from visurf_ray.tasks import load_task

    config = load_config(["task.name=non_objec"]).task
    with pytest.raises(UserError, match=r"unknown task 'non_objec'\. Did you mean 'non_object'\?"):
        load_task(config, seed=0)
