"""Light curves and score distributions as SVG."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tapetum.report import svg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# by the last letter of a sncosmo name; a page may redefine the variables for a dark ground
BAND_COLOURS = {
    "u": "var(--band-u, #7b3fa0)",
    "b": "var(--band-b, #1f5fb5)",
    "g": "var(--band-g, #1e8a43)",
    "r": "var(--band-r, #cc3333)",
    "i": "var(--band-i, #3d2b1f)",
    "z": "var(--band-z, #a0522d)",
    "y": "var(--band-y, #b8860b)",
    "j": "var(--band-j, #1f6fb2)",
    "h": "var(--band-h, #167a7a)",
}
OTHER_COLOUR = "var(--ink-soft, #555)"
LEAST_MAG_SPAN = 0.5  # a steady source shall not look like a wild one
LEAST_DAY_SPAN = 1.0
MOST_FOLDED, MOST_WITH_ERRORS = 500, 150  # points of a folded curve; each is drawn twice
PHASE_BINS = 20
OUTLYING_PERCENT = 0.3  # of the points of a band, at either end
CLOUDED_PERCENT = 10.0  # so many of the brightest upper limits do not stretch the axis


def band_colour(band: str) -> str:
    """Colour of a band, as CSS."""
    return BAND_COLOURS.get(band[-1:].lower(), OTHER_COLOUR)


def light_curve_svg(
    mjd: NDArray[np.floating],
    band: Sequence[str],
    mag: NDArray[np.floating],
    mag_err: NDArray[np.floating],
    mag_limit: NDArray[np.floating],
    *,
    positive: NDArray[np.bool_] | None = None,
    mark_mjd: float | None = None,
    width: float = 380.0,
    height: float = 210.0,
) -> str:
    """A light curve: dots with error bars, upper limits as open triangles, bright up.

    Parameters
    ----------
    mjd : ndarray, shape (n,)
        Time [day].
    band : sequence of str, length n
        sncosmo names.
    mag, mag_err, mag_limit : ndarray, shape (n,)
        [mag]; where `mag` is NaN the row is an upper limit at `mag_limit`, and nothing where that is NaN too.
    positive : ndarray of bool, shape (n,), optional
        False where the source is fainter than in the reference; such dots are open.
    mark_mjd
        Time of a vertical mark, for instance of the alert shown beside the curve.

    Returns
    -------
    str
        SVG text.
    """
    detected = np.isfinite(mjd) & np.isfinite(mag)
    limited = np.isfinite(mjd) & ~detected & np.isfinite(mag_limit)
    shown = detected | limited
    if not shown.any():
        return svg.picture(width, height, [svg.text(width / 2, height / 2, "no photometry")], "no photometry")
    floor, ceiling = _magnitudes(mag[detected], mag_limit[limited])
    limited &= mag_limit >= ceiling
    frame = svg.Frame(width, height, _range(mjd[shown], LEAST_DAY_SPAN), (floor, ceiling))
    marks = _mjd_axes(frame)
    if mark_mjd is not None and frame.x[0] <= mark_mjd <= frame.x[1]:
        x = frame.at_x(mark_mjd)
        marks.append(svg.line(x, frame.top, x, height - frame.bottom, "var(--accent, #2f6f8f)"))
    for row in np.flatnonzero(limited).tolist():
        colour = band_colour(band[row])
        marks.append(svg.triangle_down(frame.at_x(mjd[row]), frame.at_y(mag_limit[row]), 2.6, colour))
    for row in np.flatnonzero(detected).tolist():
        filled = positive is None or bool(positive[row])
        marks += _dot(frame, mjd[row], mag[row], mag_err[row], band_colour(band[row]), filled)
    marks += _legend(frame, sorted({band[row] for row in np.flatnonzero(shown).tolist()}))
    title = f"light curve: {int(detected.sum())} detections, {int(limited.sum())} upper limits"
    return svg.picture(width, height, marks, title)


def folded_svg(
    time: NDArray[np.floating],
    period: float,
    band: Sequence[str],
    mag: NDArray[np.floating],
    mag_err: NDArray[np.floating],
    *,
    width: float = 380.0,
    height: float = 210.0,
) -> str:
    """A light curve folded with a period, two cycles of it, bright up and brightest at phase 0.

    Of a curve with many points `MOST_FOLDED` are shown, evenly spread over its time, without error bars where these
    would cover everything.

    Parameters
    ----------
    time : ndarray, shape (n,)
        [day].
    period
        [day], above 0.
    band : sequence of str, length n
        sncosmo names.
    mag, mag_err : ndarray, shape (n,)
        [mag]; points that are not finite are left out.

    Returns
    -------
    str
        SVG text.
    """
    good = np.flatnonzero(np.isfinite(time) & np.isfinite(mag))
    if not good.size or not period > 0:
        return svg.picture(width, height, [svg.text(width / 2, height / 2, "no photometry")], "no photometry")
    shown = good[np.linspace(0, good.size - 1, min(good.size, MOST_FOLDED)).round().astype(int)]
    names = np.asarray(band)[shown]
    magnitudes = mag[shown].astype(np.float64)
    phase = time[shown] / period % 1
    phase = (phase - _brightest_phase(phase, magnitudes, names)) % 1
    bright, faint = _range(_without_outliers(magnitudes, names), LEAST_MAG_SPAN)
    frame = svg.Frame(width, height, (0.0, 2.0), (faint, bright))
    ticks = [(value, svg.tick_label(value)) for value in svg.nice_ticks(bright, faint, 5)]
    marks = frame.axes("phase", "mag", [(k / 2, f"{k / 2:g}") for k in range(5)], ticks)
    with_errors = shown.size <= MOST_WITH_ERRORS
    for row, (where, value, name) in enumerate(zip(phase.tolist(), magnitudes.tolist(), names, strict=True)):
        if bright <= value <= faint:
            error = float(mag_err[shown[row]]) if with_errors else math.nan
            for cycle in (0, 1):
                marks += _dot(frame, where + cycle, value, error, band_colour(name), True)
    marks += _legend(frame, sorted(set(names.tolist())))
    return svg.picture(
        width, height, marks, f"{shown.size} of {good.size} points, folded with {period:.7g} d"
    )


def _brightest_phase(phase: NDArray[np.float64], mag: NDArray[np.float64], band: NDArray[np.str_]) -> float:
    """Where the mean of all bands, each about its own median, is brightest."""
    level = np.zeros_like(mag)
    for name in np.unique(band):
        level[band == name] = np.median(mag[band == name])
    place = np.minimum((phase * PHASE_BINS).astype(int), PHASE_BINS - 1)
    count = np.bincount(place, minlength=PHASE_BINS)
    total = np.bincount(place, mag - level, PHASE_BINS)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.inf)
    return (int(mean.argmin()) + 0.5) / PHASE_BINS


def _without_outliers(mag: NDArray[np.float64], band: NDArray[np.str_]) -> NDArray[np.float64]:
    """Ends of each band without the few points that would flatten all others."""
    return np.concatenate(
        [
            np.percentile(mag[band == name], [OUTLYING_PERCENT, 100 - OUTLYING_PERCENT])
            for name in np.unique(band)
        ]
    )


def histogram_svg(
    edges: NDArray[np.floating],
    series: Sequence[tuple[str, NDArray[np.integer], str]],
    *,
    x_label: str,
    y_label: str = "alerts",
    width: float = 560.0,
    height: float = 240.0,
    x_log: bool = False,
) -> str:
    """Counts per bin on a logarithmic axis; several series stand side by side within a bin.

    Parameters
    ----------
    edges : ndarray, shape (n_bins + 1,)
    series
        Of each its name, its counts of shape (n_bins,), and its colour as CSS.
    x_log
        The edges are log10 of what the axis shows.

    Returns
    -------
    str
        SVG text.
    """
    highest = max(1, *(int(counts.max(initial=0)) for _, counts, _ in series))
    decades = math.ceil(math.log10(highest) + 0.05)
    floor = -0.3  # log10 of half a count, so that one is a bar and none is not
    frame = svg.Frame(width, height, (float(edges[0]), float(edges[-1])), (floor, max(decades, 1)))
    plain = [(value, svg.tick_label(value)) for value in svg.nice_ticks(*frame.x, 10)]
    x_ticks = svg.log_ticks(*frame.x) if x_log else plain
    y_ticks = [(float(power), f"{10**power:,}") for power in range(max(decades, 1) + 1)]
    marks = frame.axes(x_label, y_label, x_ticks, y_ticks)
    for number, (_, counts, colour) in enumerate(series):
        for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
            if count > 0:
                x1, x2 = frame.at_x(left) + 0.5, frame.at_x(right) - 0.5
                step = (x2 - x1) / len(series)
                top = frame.at_y(math.log10(count))
                marks.append(
                    svg.bar(x1 + number * step, frame.at_y(floor), x1 + (number + 1) * step, top, colour)
                )
    names = [(name, colour) for name, _, colour in series]
    marks += _swatches(frame, names) if len(series) > 1 else []
    return svg.picture(width, height, marks, f"distribution of {x_label}")


def _magnitudes(mag: NDArray[np.floating], limits: NDArray[np.floating]) -> tuple[float, float]:
    """Faint and bright end: all detections, and the limits but for the few of clouded visits."""
    usual = limits[limits >= np.percentile(limits, CLOUDED_PERCENT)] if limits.size else limits
    bright, faint = _range(np.concatenate([mag, usual]), LEAST_MAG_SPAN)
    return faint, bright


def _range(values: NDArray[np.floating], least: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = max(0.06 * (high - low), (least - (high - low)) / 2)
    return low - margin, high + margin


def _mjd_axes(frame: svg.Frame) -> list[str]:
    days = [(value, svg.tick_label(value)) for value in svg.nice_ticks(*frame.x, 5)]
    bottom, top = frame.y
    magnitudes = [(value, svg.tick_label(value)) for value in svg.nice_ticks(top, bottom, 5)]
    return frame.axes("MJD", "mag", days, magnitudes)


def _dot(frame: svg.Frame, mjd: float, mag: float, mag_err: float, colour: str, filled: bool) -> list[str]:
    x, marks = frame.at_x(mjd), []
    if math.isfinite(mag_err):
        faint, bright = (min(max(mag + sign * mag_err, frame.y[1]), frame.y[0]) for sign in (1, -1))
        marks.append(svg.line(x, frame.at_y(faint), x, frame.at_y(bright), colour))
    marks.append(svg.circle(x, frame.at_y(mag), 2.4, colour, filled=filled))
    return marks


def _legend(frame: svg.Frame, bands: Sequence[str]) -> list[str]:
    return _swatches(frame, [(band, band_colour(band)) for band in bands])


def _swatches(frame: svg.Frame, names: Sequence[tuple[str, str]]) -> list[str]:
    marks, x = [], frame.left
    for name, colour in names:
        marks.append(svg.bar(x, 5, x + 8, 13, colour))
        marks.append(svg.text(x + 12, 12.5, name, anchor="start"))
        x += 24 + 6.2 * len(name)
    return marks
