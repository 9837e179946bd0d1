"""Points with error bars, curves through them, and images with marks, as SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tapetum.report import svg
from tapetum.report.stamps import data_uri, stamp_png

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tapetum.report.stamps import Stretch

ACCENT, ACCENT_2 = "var(--accent, #1d6f8c)", "var(--accent-2, #d08a2e)"
MARK_WIDTH = 1.3


@dataclass(frozen=True)
class Points:
    """One series of a plot.

    Attributes
    ----------
    name
        For the legend; empty is not listed.
    x, y
        Data; what is not finite is not drawn.
    low, high
        Ends of error bars in y, or None.
    colour
        As CSS.
    line
        Join the points instead of drawing dots.
    radius
        Of the dots [px].
    """

    name: str
    x: NDArray[np.floating]
    y: NDArray[np.floating]
    low: NDArray[np.floating] | None = None
    high: NDArray[np.floating] | None = None
    colour: str = ACCENT
    line: bool = False
    radius: float = 2.6


def points_svg(
    series: Sequence[Points],
    *,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    width: float = 560.0,
    height: float = 260.0,
    zero_line: bool = False,
    x_log: bool = False,
) -> str:
    """Several series in one frame; points beyond the ranges are left out.

    Parameters
    ----------
    x_range, y_range
        Of the axes; None: as the data need.
    zero_line
        Draw y = 0.
    x_log
        Positions in x are log10 of what the axis shows.

    Returns
    -------
    str
        SVG text.
    """
    x_ends = x_range or _range([values.x for values in series])
    y_ends = y_range or _range([values.y for values in series])
    shown = any((np.isfinite(values.x) & np.isfinite(values.y)).any() for values in series)
    if x_ends is None or y_ends is None or not shown:
        return svg.picture(
            width, height, [svg.text(width / 2, height / 2, "nothing to show")], "nothing to show"
        )
    frame = svg.Frame(width, height, x_ends, y_ends, left=60.0)
    x_ticks = (
        svg.log_ticks(*x_ends)
        if x_log
        else [(value, svg.tick_label(value)) for value in svg.nice_ticks(*x_ends, 8)]
    )
    y_ticks = [(value, svg.tick_label(value)) for value in svg.nice_ticks(*y_ends, 6)]
    marks = frame.axes(x_label, y_label, x_ticks, y_ticks)
    if zero_line and y_ends[0] < 0 < y_ends[1]:
        marks.append(svg.line(frame.left, frame.at_y(0.0), width - frame.right, frame.at_y(0.0), svg.INK))
    for values in series:
        marks += _curve(frame, values) if values.line else _dots(frame, values)
    marks += _legend(frame, [values for values in series if values.name])
    return svg.picture(width, height, marks, f"{y_label} against {x_label}")


def _range(columns: Sequence[NDArray[np.floating]]) -> tuple[float, float] | None:
    values = np.concatenate([np.asarray(column, np.float64).ravel() for column in columns] or [np.empty(0)])
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _inside(value: float, ends: tuple[float, float]) -> bool:
    return math.isfinite(value) and ends[0] <= value <= ends[1]


def _dots(frame: svg.Frame, values: Points) -> list[str]:
    marks = []
    bottom, top = frame.y
    for row, (x, y) in enumerate(zip(values.x.tolist(), values.y.tolist(), strict=True)):
        if not (_inside(x, frame.x) and _inside(y, frame.y)):
            continue
        if values.low is not None and values.high is not None:
            ends = [min(max(float(end[row]), bottom), top) for end in (values.low, values.high)]
            if all(map(math.isfinite, ends)):
                marks.append(
                    svg.line(
                        frame.at_x(x), frame.at_y(ends[0]), frame.at_x(x), frame.at_y(ends[1]), values.colour
                    )
                )
        marks.append(svg.circle(frame.at_x(x), frame.at_y(y), values.radius, values.colour))
    return marks


def _curve(frame: svg.Frame, values: Points) -> list[str]:
    corners = [
        f"{frame.at_x(x):.1f},{frame.at_y(y):.1f}"
        for x, y in zip(values.x.tolist(), values.y.tolist(), strict=True)
        if _inside(x, frame.x) and _inside(y, frame.y)
    ]
    return [
        f'<polyline points="{" ".join(corners)}" style="fill:none;stroke:{values.colour};stroke-width:1.5"/>'
    ]


def _legend(frame: svg.Frame, series: Sequence[Points]) -> list[str]:
    marks, x = [], frame.left
    for values in series:
        marks.append(svg.bar(x, 5, x + 8, 13, values.colour))
        marks.append(svg.text(x + 12, 12.5, values.name, anchor="start"))
        x += 26 + 6.2 * len(values.name)
    return marks


@dataclass(frozen=True)
class Rings:
    """Places on an image, each with a ring: data coordinates, 0-based pixels."""

    x: NDArray[np.floating]
    y: NDArray[np.floating]
    colour: str = ACCENT_2
    radius: float = 7.0
    name: str = ""


def image_svg(
    image: NDArray[np.floating],
    rings: Sequence[Rings] = (),
    *,
    step: int = 1,
    title: str = "image",
    stretch: Stretch = "asinh",
    width: float = 560.0,
    canvas: float | None = None,
) -> str:
    """An image with rings on it, its first row at the bottom; everything inside one SVG.

    Parameters
    ----------
    image : ndarray, shape (n_y, n_x)
        As many pixels as shall be seen: thin out a large one first.
    rings
        Positions are those of the image before it was thinned out by `step`.
    step
        Pixels of the original per pixel of `image`.
    canvas
        Width of the whole picture where the image shall fill only `width` of it [px].
    """
    n_y, n_x = image.shape
    scale = width / n_x
    height = n_y * scale
    address = data_uri(stamp_png(image, stretch=stretch))
    place = f'x="0" y="0" width="{width:g}" height="{height:.1f}" preserveAspectRatio="none"'
    marks = [f'<image href="{address}" {place} style="image-rendering:pixelated"/>']
    for places in rings:
        for x, y in zip(places.x.tolist(), places.y.tolist(), strict=True):
            column, row = (x + 0.5) / step * scale, height - (y + 0.5) / step * scale
            marks.append(
                f'<circle cx="{column:.1f}" cy="{row:.1f}" r="{places.radius:g}" '
                f'style="fill:none;stroke:{places.colour};stroke-width:{MARK_WIDTH:g}"/>'
            )
    return svg.picture(canvas or width, height, marks, title)
