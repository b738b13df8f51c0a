"""Curves as inline SVG. Colours are CSS variables of the page, so that a figure follows its light or dark theme."""

import io
import re
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SIZE = (5.4, 2.5)  # inches of 72 units; one unit is about one CSS pixel on the page
# Matplotlib cannot draw in CSS variables: it draws in unique colours, which are replaced in its output.
_NAMES = ("ink", "grid", "blue", "orange", "teal", "pink", "purple", "grey")
_STAND_INS = {name: f"#0102{number:02x}" for number, name in enumerate(_NAMES, start=1)}


@dataclass(frozen=True)
class Curve:
    """Values over steps, both (N,), N ≥ 1; NaN is a gap. `colour` names a CSS variable of the page."""

    label: str
    steps: Floats
    values: Floats
    colour: str


def figure(curves: list[Curve], kind: str, *, last_step: float, low: float | None, high: float | None) -> str:
    """Return an `<svg>` of the curves over the steps 0 to `last_step`.

    Args:
        kind: `line` draws the values light and their moving average strong; `points` draws few values, joined; `log`
            has a logarithmic y axis, or a linear one if no value is positive; `stack` puts curves with the same steps
            on top of one another.
        low: lower end of the y axis unless a value is below; None fits the values.
        high: upper end, likewise.
    """
    with rc_context({"svg.fonttype": "none", "font.size": 11, "path.simplify_threshold": 0.3}):
        picture = Figure(figsize=_SIZE)
        axes = picture.add_axes((0.105, 0.12, 0.88, 0.83))
        _plot(axes, curves, kind)
        _dress(axes, last_step)
        _limit(axes, curves, kind, low, high)
        file = io.StringIO()
        picture.savefig(file, format="svg", transparent=True)
    return _inline(file.getvalue())


def smooth(values_N: Floats) -> Floats:
    """Return the centred moving average (N,) over about a tenth of the series; gaps stay gaps."""
    half = min(len(values_N) // 20, 25)
    known_N = np.isfinite(values_N)
    window = np.ones(2 * half + 1)
    sums_N = np.convolve(np.where(known_N, values_N, 0.0), window, mode="same")
    counts_N = np.convolve(known_N.astype(float), window, mode="same")
    return np.where(known_N, sums_N / np.maximum(counts_N, 1.0), np.nan)


def _plot(axes: Axes, curves: list[Curve], kind: str) -> None:
    colours = [_STAND_INS[curve.colour] for curve in curves]
    if kind == "stack":
        axes.stackplot(
            curves[0].steps, [np.nan_to_num(curve.values) for curve in curves], colors=colours, alpha=0.85, linewidth=0
        )
        return
    for curve, colour in zip(curves, colours, strict=True):
        few = kind == "points" or len(curve.steps) < 3
        marker = "o" if few else ""
        if kind == "line" and len(curve.steps) >= 20:
            axes.plot(curve.steps, curve.values, color=colour, linewidth=1, alpha=0.35)
            axes.plot(curve.steps, smooth(curve.values), color=colour, linewidth=2)
        else:
            axes.plot(curve.steps, curve.values, color=colour, linewidth=2, marker=marker, markersize=5, clip_on=False)


def _dress(axes: Axes, last_step: float) -> None:
    ink, grid = _STAND_INS["ink"], _STAND_INS["grid"]
    axes.set_xlim(0, max(last_step, 1))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color=grid, linewidth=1)
    axes.set_axisbelow(True)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(grid)
    axes.tick_params(length=0, labelcolor=ink, pad=5)


def _limit(axes: Axes, curves: list[Curve], kind: str, low: float | None, high: float | None) -> None:
    values = np.concatenate([curve.values for curve in curves])
    if kind == "log" and (values > 0).any():
        exponents = np.log10(values[values > 0])
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.minorticks_off()
        # The axis ends at powers of ten, so that at least two ticks have a label.
        axes.set_ylim(10.0 ** np.floor(exponents.min()), 10.0 ** (np.floor(exponents.max()) + 1))
        return
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.ticklabel_format(axis="y", useOffset=False)
    bottom, top = axes.get_ylim()
    # Draw a constant series as a line in the middle, instead of magnifying its rounding errors.
    least = 0.02 * max(abs(bottom), abs(top), 1e-3)
    if top - bottom < least:
        bottom, top = bottom - least / 2, top + least / 2
    if low is not None and np.nanmin(values) >= low:
        bottom = low
    if high is not None and np.nanmax(values) <= high:
        top = high
    axes.set_ylim(bottom, top)


def _inline(svg: str) -> str:
    """Return the `<svg>` element for a page that sets its size, without XML prologue, metadata and name spaces."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    svg = re.sub(r"<svg[^>]*>", f'<svg {view_box.group()} role="img">', svg, count=1)
    svg = svg.replace("xlink:href", "href")
    for name, stand_in in _STAND_INS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return svg
