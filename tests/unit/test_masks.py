"""Mask images, and the box around a whole mask."""

import numpy as np
import pytest
from PIL import Image

from visurf_ray.answers.rle import bounding_box
from visurf_ray.data.pictures import load_mask
from visurf_ray.errors import DataError


def mask(*boxes, size=(60, 100)) -> np.ndarray:
    drawn = np.zeros(size, dtype=bool)
    for x1, y1, x2, y2 in boxes:
        drawn[y1:y2, x1:x2] = True
    return drawn


def test_the_box_around_all_of_a_mask():
    assert bounding_box(mask((10, 5, 21, 16), (40, 30, 43, 33))) == (10, 5, 43, 33)


def test_masks_are_read_from_files_of_any_mode(tmp_path):
    drawn = mask((10, 5, 21, 16))
    for mode, value in {"1": 1, "L": 255, "RGB": 1}.items():
        path = tmp_path / f"{mode}.png"
        Image.fromarray(drawn.astype(np.uint8) * (255 if mode == "1" else value)).convert(mode).save(path)
        assert (load_mask(path, "here") == drawn).all()


def test_bad_mask_files_are_named_with_their_row(tmp_path):
    with pytest.raises(DataError, match=r"^data, row 3: there is no image .*none\.png"):
        load_mask(tmp_path / "none.png", "data, row 3")
    noise = np.random.default_rng(0).integers(0, 256, (60, 100), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    with pytest.raises(DataError, match=r"^data, row 3: the image .*half\.png is damaged"):
        load_mask(tmp_path / "half.png", "data, row 3")
