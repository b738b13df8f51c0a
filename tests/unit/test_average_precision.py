"""COCO's average precision: by hand, and compared with 101-point interpolation."""

import numpy as np
import pytest

from visurf_ray.answers.visual_rft import box_iou
from visurf_ray.scoring.average_precision import average_precision

A, B, C = (0, 0, 100, 100), (200, 200, 300, 300), (500, 500, 600, 600)
NOWHERE = (900, 900, 950, 950)


def ap50(*images) -> float:
    return average_precision([("cat", found, true) for found, true in images])[1]


def test_perfect_answers_have_ap_1():
    images = [("cat", [(A, 0.9), (B, 0.2)], [A, B]), ("dog", [(C, 0.1)], [C]), ("cat", [], [])]
    assert average_precision(images) == pytest.approx((1.0, 1.0))


def test_without_answers_ap_is_0():
    assert average_precision([("cat", [], [A])]) == (0.0, 0.0)


def test_without_true_boxes_there_is_no_ap():
    assert average_precision([]) is None
    assert average_precision([("cat", [(A, 0.9)], [])]) is None


def test_a_curve_by_hand():
    """Hit, miss, hit of two: precision 1 to recall 1/2 (recalls 0, …, 0.50: 51 points), then 2/3 (50 points)."""
    assert ap50(([(A, 0.9), (NOWHERE, 0.8), (B, 0.7)], [A, B])) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert ap50(([(A, 0.9), (NOWHERE, 0.8)], [A, B])) == pytest.approx(51 / 101), "B is never found"
    assert ap50(([(A, 0.9), (B, 0.7), (NOWHERE, 0.1)], [A, B])) == pytest.approx(1.0), (
        "a surplus box of little confidence"
    )


def test_boxes_are_ranked_by_confidence_over_all_images():
    """A miss in one image that is surer than the hit in another halves the precision."""
    assert ap50(([(A, 0.5)], [A]), ([(A, 0.9)], [])) == pytest.approx(0.5)
    assert ap50(([(A, 0.9)], [A]), ([(A, 0.5)], [])) == pytest.approx(1.0)


def test_a_true_box_is_found_once():
    assert ap50(([(A, 0.9), ((0, 0, 100, 99), 0.8), (B, 0.7)], [A, B])) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_thresholds_are_0_50_to_0_95():
    """An IoU of 0.7 hits at 0.50, 0.55, 0.60, 0.65 and 0.70."""
    whole, half = average_precision([("cat", [((0, 0, 100, 70), 0.9)], [A])])
    assert (whole, half) == pytest.approx((0.5, 1.0))


def test_categories_weigh_equally_and_one_without_true_boxes_is_left_out():
    images = [("cat", [(A, 0.9)], [A])] * 3 + [("dog", [(NOWHERE, 0.9)], [A]), ("bird", [(A, 0.9)], [])]
    assert average_precision(images) == pytest.approx((0.5, 0.5))


def test_swapped_corners_hit_nothing():
    assert ap50(([((100, 100, 0, 0), 0.9)], [A])) == 0.0


def test_it_prints_nothing(capfd):
    average_precision([("cat", [(A, 0.9)], [A])])
    assert capfd.readouterr() == ("", "")


def test_errors_are_raised():
    with pytest.raises(ValueError, match="unpack"):
        average_precision([("cat", [(A, 0.9)], [(1, 2, 3)])])


@pytest.mark.parametrize("seed", range(5))
def test_against_interpolation_written_out(seed):
    images = draw(np.random.default_rng(seed))
    names = {name for name, _, true in images if true}
    curves = [
        [interpolated([image[1:] for image in images if image[0] == name], threshold / 100) for name in names]
        for threshold in range(50, 100, 5)
    ]
    assert 0.02 < np.mean(curves) < 0.98, "the case is neither empty nor perfect"
    assert average_precision(images) == pytest.approx((np.mean(curves), np.mean(curves[0])), abs=1e-9)


def draw(rng) -> list:
    """Thirty images of four categories; found boxes are true ones moved a little, or anything; one may be missing."""

    def box():
        x, y = rng.integers(0, 600, 2)
        return (int(x), int(y), int(x + rng.integers(50, 400)), int(y + rng.integers(50, 400)))

    images = []
    for _ in range(30):
        true = [box() for _ in range(rng.integers(0, 5))]
        near = [tuple(edge + int(rng.integers(-15, 16)) for edge in other) for other in true if rng.random() < 0.8]
        found = [*near, *[box() for _ in range(rng.integers(0, 3))]]
        images.append((f"category {rng.integers(4)}", [(other, rng.random()) for other in found], true))
    return images


def interpolated(images: list, threshold: float) -> float:
    """Mean over recalls 0, 0.01, …, 1 of the best precision at that recall or beyond (COCO, AP of one category)."""
    hits = []
    for found, true in images:
        free = list(true)
        for box, confidence in sorted(found, key=lambda detection: -detection[1]):
            best = max(free, key=lambda other, box=box: box_iou(box, other), default=None)
            hit = best is not None and box_iou(box, best) >= threshold
            if hit:
                free.remove(best)
            hits.append((confidence, hit))
    total = sum(len(true) for _, true in images)
    right = np.cumsum([hit for _, hit in sorted(hits, key=lambda pair: -pair[0])])
    precision, recall = right / np.arange(1, len(right) + 1), right / total
    return float(np.mean([max(precision[recall >= level], default=0.0) for level in np.linspace(0, 1, 101)]))
