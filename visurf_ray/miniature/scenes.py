"""Scenes of real handwritten digits, and questions about them.

The digits are the 1,797 scans of 8×8 pixels that scikit-learn ships (Alpaydin and Kaynak, "Optical Recognition of
Handwritten Digits"). No scan is in two splits. A scene is a dark canvas with digits of different values, unless the
values are given. Each digit lies near one cell of a 3×3 grid; its place, size and shade vary.

Red light increases to the right and blue light downwards, so colour encodes position. Qwen2.5-VL has no absolute
positions: on a plain canvas a small model reads digits long before it locates them, because M-RoPE rotates the columns
of so small an image by thousandths of a radian only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from sklearn.datasets import load_digits

from visurf_ray.answers.boxes import IntBox

Split = Literal["train", "validation", "test"]

CELL = 28  # pixels; one merged visual token of Qwen2.5-VL (patch 14, merge 2)
GRID = 3
CANVAS = CELL * GRID
_SPLIT_SHARES = {"train": (0.0, 0.75), "validation": (0.75, 0.85), "test": (0.85, 1.0)}
_RAMP = np.linspace(-0.25, 0.25, CANVAS, dtype=np.float32)
_LIGHT = np.stack(np.broadcast_arrays(_RAMP[None, :], 0.0, _RAMP[:, None]), axis=-1)  # red to the right, blue downwards
_CLEARLY_LARGER = 1.2  # "the largest digit" must be this many times as large as the next


@dataclass(frozen=True)
class Digit:
    """One digit on the canvas; `box` is the square of its scan, in pixels."""

    value: int
    box: IntBox

    @property
    def size(self) -> int:
        return self.box[2] - self.box[0]


@dataclass(frozen=True)
class Scene:
    """A picture and its digits.

    Attributes:
        pixels: RGB, (CANVAS, CANVAS, 3).
        digits: In reading order: by rows of the grid, then by columns.
    """

    pixels: NDArray[np.uint8]
    digits: tuple[Digit, ...]

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(self.pixels)

    def values(self) -> set[int]:
        """Return the different values of the digits."""
        return {digit.value for digit in self.digits}


@dataclass(frozen=True)
class Query:
    """A referring expression and the digits that it refers to, which may be none."""

    text: str
    targets: tuple[Digit, ...]


@cache
def load_scans(split: Split) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the split's scans: their ink (N, 8, 8) in [0, 1], and their values (N,) in 0..9."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    begin, end = (int(share * len(order)) for share in _SPLIT_SHARES[split])
    chosen = order[begin:end]
    return (data.images[chosen] / 16.0).astype(np.float32), data.target[chosen].astype(int)


@cache
def _scans_by_value(split: Split) -> tuple[NDArray[np.float32], ...]:
    ink, values = load_scans(split)
    return tuple(ink[values == value] for value in range(10))


def draw_scene(
    rng: np.random.Generator,
    split: Split,
    *,
    digits: int,
    values: list[int] | None = None,
    jitter: int = 4,
    sizes: tuple[int, int] = (20, 28),
    max_rotation: float = 0.0,
) -> Scene:
    """Draw a scene.

    Args:
        rng: The random numbers.
        split: The split to take scans from.
        digits: The number of digits.
        values: Their values. None: random and all different.
        jitter: The largest distance, in pixels along each axis, of a digit's centre from its cell's centre.
        sizes: The smallest and largest side of a digit in pixels.
        max_rotation: The largest rotation of a digit in degrees, an augmentation for pretraining.
    """
    if values is None:
        values = [int(value) for value in rng.choice(10, size=digits, replace=False)]
    cells = rng.choice(GRID * GRID, size=digits, replace=False)
    canvas = lit_canvas(rng.uniform(0.25, 0.35))
    placed: dict[int, Digit] = {}
    for cell, value in zip(cells, values, strict=True):
        box = _place(rng, int(cell), jitter, sizes, [digit.box for digit in placed.values()])
        ink = scan_ink(rng, split, value, box[2] - box[0], max_rotation)
        paint_ink(rng, canvas, box, ink)
        placed[int(cell)] = Digit(value, box)
    return Scene(to_pixels(canvas), tuple(placed[cell] for cell in sorted(placed)))


def lit_canvas(shade: ArrayLike) -> NDArray[np.float32]:
    """Return an empty lit canvas (CANVAS, CANVAS, 3), in about [0, 1], of a grey shade or an RGB colour."""
    return np.asarray(shade, np.float32) + _LIGHT


def scan_ink(
    rng: np.random.Generator, split: Split, value: int, size: int, max_rotation: float = 0.0
) -> NDArray[np.float32]:
    """Return the ink of a random scan of a digit, (size, size) in [0, 1], rotated by up to `max_rotation` degrees."""
    scans = _scans_by_value(split)[value]
    return _enlarge(scans[rng.integers(len(scans))], size, rng.uniform(-max_rotation, max_rotation))


def paint_ink(rng: np.random.Generator, canvas: NDArray[np.float32], box: IntBox, ink: NDArray[np.float32]) -> None:
    """Draw ink of the box's size into the canvas, in a random bright shade."""
    region = canvas[box[1] : box[3], box[0] : box[2]]
    region += (rng.uniform(0.7, 1.0) - region) * ink[:, :, None]


def to_pixels(canvas: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Convert a canvas to pixels."""
    return np.clip(canvas * 255, 0, 255).astype(np.uint8)


def _place(rng: np.random.Generator, cell: int, jitter: int, sizes: tuple[int, int], taken: list[IntBox]) -> IntBox:
    row, column = divmod(cell, GRID)
    while True:
        size = int(rng.integers(sizes[0], sizes[1] + 1))
        x, y = (
            int(np.clip(CELL * (index + 0.5) + rng.integers(-jitter, jitter + 1) - size / 2, 0, CANVAS - size))
            for index in (column, row)
        )
        box = (x, y, x + size, y + size)
        if not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
            return box


def _enlarge(scan: NDArray[np.float32], size: int, rotation: float) -> NDArray[np.float32]:
    image = Image.fromarray((scan * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    if rotation:
        image = image.rotate(rotation, Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def present_query(rng: np.random.Generator, scene: Scene) -> Query:
    """Ask for digits that are in the scene: by value (70 % or more), the largest, all even, or all odd ones."""
    kind = rng.random()
    if kind >= 0.7:
        if kind < 0.8:
            by_size = sorted(scene.digits, key=lambda digit: -digit.size)
            if len(by_size) == 1 or by_size[0].size >= _CLEARLY_LARGER * by_size[1].size:
                return Query("the largest digit", (by_size[0],))
        else:
            parity = int(kind >= 0.9)
            if targets := _of_parity(scene, parity):
                return Query(_PARITY_TEXT[parity], targets)
    digit = scene.digits[rng.integers(len(scene.digits))]
    return Query(f"the {digit.value}", (digit,))


def absent_query(rng: np.random.Generator, scene: Scene) -> Query:
    """Ask for digits that are not in the scene: by value (80 % or more), or by a parity that no digit has."""
    if rng.random() >= 0.8:
        for parity in rng.permutation(2):
            if not _of_parity(scene, int(parity)):
                return Query(_PARITY_TEXT[int(parity)], ())
    missing = sorted(set(range(10)) - scene.values())
    return Query(f"the {missing[rng.integers(len(missing))]}", ())


def parity_query(rng: np.random.Generator, scene: Scene) -> Query:
    """Ask for all even or all odd digits, whether there are any or not."""
    parity = int(rng.integers(2))
    return Query(_PARITY_TEXT[parity], _of_parity(scene, parity))


_PARITY_TEXT = ("all even digits", "all odd digits")


def _of_parity(scene: Scene, parity: int) -> tuple[Digit, ...]:
    return tuple(digit for digit in scene.digits if digit.value % 2 == parity)


def seen(scene: Scene, targets: Sequence[Digit] | None = None) -> str:
    """Return the digits and their boxes in the base model's form: `a 7 [12, 40, 36, 66], a 3 [60, 33, 80, 57]`.

    With `targets`, each digit is judged: `a 7 yes [12, 40, 36, 66], a 3 no [60, 33, 80, 57]`.
    """
    verdict = {None: "", True: "yes ", False: "no "}
    return ", ".join(
        f"a {digit.value} {verdict[None if targets is None else digit in targets]}{list(digit.box)}"
        for digit in scene.digits
    )
