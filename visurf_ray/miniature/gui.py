"""The drawn task of GUI grounding: a keypad whose narrow and wide buttons show handwritten digits."""

from typing import ClassVar

import numpy as np
from PIL import Image

from visurf_ray.answers.boxes import IntBox, Target, dump_targets
from visurf_ray.miniature.drawn import Drawing, DrawnTask
from visurf_ray.miniature.scenes import CELL, GRID, Split, lit_canvas, paint_ink, scan_ink, to_pixels
from visurf_ray.tasks.gui_grounding import GuiGroundingTask

_MARGIN = 1  # pixels between a button and its cells' edges
_FACE, _EDGE = 0.08, 0.3  # how much lighter than the screen a button's face and its edge are
_EMPTY = 0.45  # share of cells without a button
_LAYOUTS = ((1, 1, 1), (1, 2), (2, 1), (3,))  # widths of a row's buttons, in cells


class MiniatureGui(DrawnTask, GuiGroundingTask):
    """The question is "Click 7."; the answer is the button's box and a point on it."""

    prompts: ClassVar[dict[str, str]] = {
        "detailed": "{query} Reason in <think>, then answer in <answer> with a JSON list of bbox_2d and point_2d.",
        "plain": "{query}",
    }

    def draw(self, rng: np.random.Generator, split: Split, absent: bool) -> Drawing:
        image, buttons = draw_screen(rng, split)
        value = int(rng.choice(sorted(buttons)))
        return Drawing(image, f"Click {value}.", dump_targets([Target.around(buttons[value])]))


def draw_screen(rng: np.random.Generator, split: Split) -> tuple[Image.Image, dict[int, IntBox]]:
    """Return a screen with at least one button, and the box of each button by its digit; all digits differ."""
    places = [place for place in _layout(rng) if rng.random() >= _EMPTY] or [(0, 0, CELL, CELL)]
    values = rng.choice(10, size=len(places), replace=False)
    canvas = lit_canvas(rng.uniform(0.25, 0.35))
    buttons: dict[int, IntBox] = {}
    for value, (x1, y1, x2, y2) in zip(values, places, strict=True):
        box = (x1 + _MARGIN, y1 + _MARGIN, x2 - _MARGIN, y2 - _MARGIN)
        canvas[box[1] : box[3], box[0] : box[2]] += _EDGE
        canvas[box[1] + 1 : box[3] - 1, box[0] + 1 : box[2] - 1] += _FACE - _EDGE
        size = int(rng.integers(20, 25))
        left, top = (x1 + x2 - size) // 2, (y1 + y2 - size) // 2
        digit = (left, top, left + size, top + size)
        paint_ink(rng, canvas, digit, scan_ink(rng, split, int(value), size))
        buttons[int(value)] = box
    return Image.fromarray(to_pixels(canvas)), buttons


def _layout(rng: np.random.Generator) -> list[IntBox]:
    """Return the places for buttons: the grid's cells, some of them joined to wider ones."""
    places = []
    for row in range(GRID):
        column = 0
        for width in _LAYOUTS[rng.integers(len(_LAYOUTS))]:
            places.append((column * CELL, row * CELL, (column + width) * CELL, (row + 1) * CELL))
            column += width
    return places
