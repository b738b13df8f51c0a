"""The drawn task of lesion segmentation: one dark blob with an irregular border on skin-coloured ground."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from visurf_ray.answers.boxes import dump_truth
from visurf_ray.answers.rle import bounding_box, encode, objects_in
from visurf_ray.miniature.drawn import FIND_PROMPT, Drawing, DrawnTask
from visurf_ray.miniature.scenes import CANVAS, Split, lit_canvas, to_pixels
from visurf_ray.tasks.lesion import LesionTask

_SKIN = (0.70, 0.55, 0.45)
_LESION = (0.30, 0.18, 0.14)
_WAVES = 4  # sine waves that make up the border, with one to four periods around it


class MiniatureLesion(DrawnTask, LesionTask):
    """The answer is the blob's box. There are no digits; random numbers that differ by split determine the blob."""

    prompts: ClassVar[dict[str, str]] = {"detailed": FIND_PROMPT, "plain": "{query}"}

    def draw(self, rng: np.random.Generator, split: Split, absent: bool) -> Drawing:
        image, mask = draw_lesion(rng)
        return Drawing(image, "the lesion", dump_truth(objects_in(mask, bounding_box(mask)), mask=encode(mask)))


def draw_lesion(rng: np.random.Generator) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Return a picture and the lesion's mask (CANVAS, CANVAS)."""
    mask = _blob(rng)
    skin = lit_canvas(np.array(_SKIN) * rng.uniform(0.85, 1.15))
    lesion = np.array(_LESION) * rng.uniform(0.7, 1.3)
    cover = gaussian_filter(mask.astype(float), 0.7)[:, :, None]
    grain = rng.normal(0, 0.02, (CANVAS, CANVAS, 1))
    return Image.fromarray(to_pixels(skin * (1 - cover) + lesion * cover + grain)), mask


def _blob(rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return the mask of a region on the canvas whose radius, as a function of the angle, is a sum of sine waves."""
    radius = rng.uniform(9, 18)
    x, y = rng.uniform(1.5 * radius, CANVAS - 1.5 * radius, size=2)
    waves = np.arange(1, _WAVES + 1)
    heights, phases = rng.uniform(0, 0.2, _WAVES) / np.sqrt(waves), rng.uniform(0, 2 * np.pi, _WAVES)
    rows, columns = np.mgrid[:CANVAS, :CANVAS] + 0.5
    angle = np.arctan2(rows - y, columns - x)[:, :, None]
    border = radius * (1 + (heights * np.sin(waves * angle + phases)).sum(axis=-1))
    return np.hypot(rows - y, columns - x) < border
