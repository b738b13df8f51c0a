"""Objects of masks: components, boxes and points, against drawings by hand and scipy on the whole mask."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from visurf_ray.tasks.masks import objects_of, read_mask
from visurf_ray.tasks.rows import DataError


def mask(*boxes, size=(60, 100)) -> np.ndarray:
    drawn = np.zeros(size, dtype=bool)
    for x1, y1, x2, y2 in boxes:
        drawn[y1:y2, x1:x2] = True
    return drawn


def test_each_component_is_an_object_with_its_box_and_a_point_in_its_middle():
    first, second = objects_of(mask((10, 5, 21, 16), (40, 30, 49, 57)))
    assert first.bbox_2d == (10, 5, 21, 16) and first.point_2d == (15, 10)
    assert second.bbox_2d == (40, 30, 49, 57) and second.point_2d[0] == 44 and 34 <= second.point_2d[1] <= 52


def test_a_box_covers_as_many_pixels_as_the_object():
    (target,) = objects_of(mask((10, 5, 20, 45)))
    x1, y1, x2, y2 = target.bbox_2d
    assert (x2 - x1) * (y2 - y1) == 10 * 40


def test_the_point_lies_on_the_object_where_the_centre_does_not():
    ring = mask((10, 10, 50, 50)) & ~mask((18, 18, 48, 48))
    (target,) = objects_of(ring)
    x, y = target.point_2d
    assert ring[y, x] and not ring[30, 30]


def test_pixels_that_meet_at_a_corner_are_of_one_object():
    assert len(objects_of(mask((10, 10, 20, 20), (20, 20, 30, 30)))) == 1
    assert len(objects_of(mask((10, 10, 20, 20), (21, 21, 30, 30)))) == 2


def test_specks_are_left_out_but_the_largest_is_kept():
    assert len(objects_of(mask((10, 10, 20, 20), (50, 10, 54, 16)))) == 1  # 24 pixels
    assert len(objects_of(mask((10, 10, 20, 20), (50, 10, 55, 15)))) == 2  # 25
    (target,) = objects_of(mask((10, 10, 11, 11), (50, 10, 52, 12)))
    assert target.bbox_2d == (50, 10, 52, 12)


def test_nothing_is_found_in_an_empty_mask():
    assert objects_of(mask()) == objects_of(mask(), one=True) == []


def test_the_whole_mask_as_one_object():
    (target,) = objects_of(mask((10, 5, 21, 16), (40, 30, 43, 33)), one=True)
    assert target.bbox_2d == (10, 5, 43, 33) and target.point_2d == (15, 10)


@pytest.mark.parametrize("seed", range(4))
def test_boxes_and_points_agree_with_the_transform_of_the_whole_mask(seed):
    """Away from the image's border, where the two treat the outside alike."""
    noise = np.random.default_rng(seed).normal(size=(80, 120))
    drawn = ndimage.gaussian_filter(noise, 4) > 0.05
    drawn[[0, -1]] = drawn[:, [0, -1]] = False
    depth = ndimage.distance_transform_edt(drawn)
    labels, count = ndimage.label(drawn, structure=np.ones((3, 3)))
    found = objects_of(drawn, smallest=1)
    assert len(found) == count >= 3
    for target in found:
        x, y = target.point_2d
        ys, xs = np.nonzero(labels == labels[y, x])
        assert target.bbox_2d == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert depth[y, x] == depth[labels == labels[y, x]].max() > 0


def test_masks_are_read_from_files_of_any_mode(tmp_path):
    drawn = mask((10, 5, 21, 16))
    for mode, value in {"1": 1, "L": 255, "RGB": 1}.items():
        path = tmp_path / f"{mode}.png"
        Image.fromarray(drawn.astype(np.uint8) * (255 if mode == "1" else value)).convert(mode).save(path)
        assert (read_mask(path, "here") == drawn).all()


def test_bad_mask_files_are_named_with_their_row(tmp_path):
    with pytest.raises(DataError, match=r"^data, row 3: there is no image .*none\.png"):
        read_mask(tmp_path / "none.png", "data, row 3")
    noise = np.random.default_rng(0).integers(0, 256, (60, 100), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    with pytest.raises(DataError, match=r"^data, row 3: the mask .*half\.png is damaged"):
        read_mask(tmp_path / "half.png", "data, row 3")
