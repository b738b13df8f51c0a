"""Masks as run lengths, compared with numpy; objects made from masks, by hand and by brute force."""

import numpy as np
import pytest

from visurf_ray.answers.boxes import Target, dump_truth, parse_targets, parse_truth
from visurf_ray.answers.rle import area, check_rle, decode, encode, objects_in, overlap, parse_masks


def drawn(*boxes, size=(20, 30)) -> np.ndarray:
    mask = np.zeros(size, bool)
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = True
    return mask


@pytest.fixture(params=range(5))
def rng(request):
    return np.random.default_rng(request.param)


def test_an_encoded_mask_decodes_to_itself_and_is_measured(rng):
    mask = rng.random((13, 8)) < 0.4
    rle = encode(mask)
    assert rle["size"] == [13, 8] and isinstance(rle["counts"], str)
    assert (decode(rle) == mask).all() and area(rle) == mask.sum()
    assert (decode(encode(mask * 255)) == mask).all()


def test_overlap_agrees_with_numpy(rng):
    first, second, ignore = (rng.random((13, 8)) < share for share in (0.4, 0.6, 0.3))
    assert overlap(encode(first), encode(second)) == ((first & second).sum(), (first | second).sum())
    expected = ((first & second & ~ignore).sum(), ((first | second) & ~ignore).sum())
    assert overlap(encode(first), encode(second), encode(ignore)) == expected


def test_masks_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"masks differ in size: \[20, 30\], \[30, 20\]"):
        overlap(encode(drawn()), encode(drawn(size=(30, 20))))


def test_coco_run_lengths_in_every_form():
    mask = drawn((1, 1, 3, 2), size=(4, 5))
    counts = [5, 1, 3, 1, 10]  # by columns
    assert check_rle({"size": [4, 5], "counts": counts}) == encode(mask)
    assert check_rle({"size": [4, 5], "counts": encode(mask)["counts"].encode()}) == encode(mask)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "x",
        {},
        {"size": [4, 5]},
        {"size": [4], "counts": "1"},
        {"size": [4, 5], "counts": "zzz"},
        {"counts": 1},
    ],
)
def test_a_malformed_rle_is_refused(value):
    with pytest.raises(ValueError, match="is not a COCO RLE"):
        check_rle(value)


def test_each_connected_part_is_an_object():
    mask = drawn((2, 3, 9, 10), (20, 1, 23, 4))
    assert objects_in(mask) == [Target((20, 1, 23, 4), (21, 2)), Target((2, 3, 9, 10), (5, 6))]


def test_parts_that_touch_at_a_corner_are_one():
    assert [found.bbox_2d for found in objects_in(drawn((2, 2, 5, 5), (5, 5, 8, 8)))] == [(2, 2, 8, 8)]


def test_specks_are_not_objects_but_the_largest_part_always_is():
    large = drawn((0, 0, 15, 15), (20, 3, 21, 4))
    assert [found.bbox_2d for found in objects_in(large)] == [(0, 0, 15, 15)]
    assert [found.bbox_2d for found in objects_in(drawn((20, 3, 21, 4)))] == [(20, 3, 21, 4)]


def test_a_given_box_is_kept_and_the_point_comes_from_the_mask():
    mask = drawn((2, 3, 9, 10), (20, 1, 25, 4))
    assert objects_in(mask, [0, 1, 26, 11]) == [Target((0, 1, 26, 11), (5, 6))]


def test_an_empty_mask_has_no_objects():
    assert objects_in(drawn()) == objects_in(drawn(), [0, 0, 5, 5]) == []


def test_the_frame_is_an_edge_and_a_full_mask_has_its_point_in_the_middle():
    (found,) = objects_in(np.ones((9, 9), bool))
    assert found == Target((0, 0, 9, 9), (4, 4))


def test_the_point_is_the_farthest_from_pixels_outside_the_object(rng):
    """By brute force over all pixels, those of a frame around the image included."""
    mask = drawn((3, 2, 20, 15)) & (rng.random((20, 30)) < 0.9)
    outside = np.argwhere(~np.pad(mask, 1)) - 1
    distances = {
        (x, y): min(np.hypot(x - column, y - row) for row, column in outside) for y, x in np.argwhere(mask).tolist()
    }
    (found,) = objects_in(mask, [0, 0, 30, 20])
    assert mask[found.point_2d[1], found.point_2d[0]]
    assert distances[found.point_2d] == pytest.approx(max(distances.values()))


# Ground truths with masks

ONE = [Target((1, 2, 3, 4), (2, 3))]


def test_a_ground_truth_has_only_the_given_masks():
    mask, ignore = encode(drawn((1, 2, 3, 4))), encode(drawn((5, 5, 6, 6)))
    assert parse_truth(dump_truth(ONE)) == {"objects": [{"bbox_2d": [1, 2, 3, 4], "point_2d": [2, 3]}]}
    text = dump_truth(ONE, mask=mask, ignore=ignore)
    assert parse_targets(text) == parse_targets(dump_truth(ONE)) == ONE
    assert parse_masks(text) == {"mask": mask, "ignore": ignore}
    assert parse_masks(dump_truth(ONE, mask=mask, ignore=None)) == {"mask": mask}
    assert parse_masks("[]") == {}


def test_rewards_take_both_forms():
    from visurf_ray.rewards import load_reward

    response = '<think>a</think><answer>[{"bbox_2d": [1, 2, 3, 4], "point_2d": [2, 3]}]</answer>'
    for name in ("vision_reasoner", "point_in_box"):
        reward = load_reward(name)
        with_mask = reward(response, dump_truth(ONE, mask=encode(drawn())))
        assert with_mask == reward(response, dump_truth(ONE)) and with_mask.parts["accuracy"] > 0


def test_a_malformed_mask_is_named():
    with pytest.raises(ValueError, match="has a mask that is not a COCO RLE"):
        parse_masks('{"objects": [], "mask": 7}')


@pytest.mark.parametrize("counts", [[], [1, 1], [-1, 5], [2, 9], ""])
def test_runs_that_do_not_cover_the_image_are_refused(counts):
    with pytest.raises(ValueError, match="is not a COCO RLE"):
        check_rle({"size": [2, 2], "counts": counts})
