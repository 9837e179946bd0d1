"""Rows and columns at the border that the detector gets wrong: dim, bright, or overscan, and in no mask.

Such a line is found by its median, which no star moves, against the lines further in.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tapetum.core.robust import MAD_TO_SIGMA
from tapetum.images.frame import Bad

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.images.frame import Frame, Image, MaskPlane

DEPTH = 16  # lines from the border that can be bad; if all are, it is the sky and not the detector
STRIP = 64  # lines of which those beyond `DEPTH` say what the level is, and how much it varies
LEAST_SIDE = 2 * STRIP  # a smaller image is a stamp, whose objects may fill it
LINE_SIGMA = 5.0  # departure of a bad line, in units of the scatter of the medians of good lines,
SKY_SIGMA = 1.0  # and of the sky noise of a pixel: less does no harm
GAP = 2  # good lines between bad ones that go with them
LEAST_GOOD = 0.5  # part of a line's pixels that have a value
SIDES = {"left": (1, False), "right": (1, True), "bottom": (0, False), "top": (0, True)}


def bad_edges(data: Image, mask: MaskPlane) -> dict[str, int]:
    """How many lines are bad at each border that has any.

    Parameters
    ----------
    data : ndarray of float32, shape (n_y, n_x)
        [DN]; NaN where there is no value.
    mask : ndarray of uint8, shape (n_y, n_x)
        Nonzero pixels do not count.

    Returns
    -------
    dict
        ``left right bottom top`` -> number of columns or rows, counted from the border.

    Notes
    -----
    The level is a straight line through the medians of lines 16 to 64, so that a gradient of the sky is none of the
    detector's faults. A line is bad when it departs by 5 times the scatter of these medians and by one sigma of a
    pixel's noise. Lines without data at the border (nothing observed) are passed over.
    """
    if min(data.shape) < LEAST_SIDE:
        return {}
    found = {}
    for side, (axis, last) in SIDES.items():
        lines, flags = (np.moveaxis(plane, axis, 0) for plane in (data, mask))
        chosen = slice(-1, -STRIP - 1 - DEPTH, -1) if last else slice(0, STRIP + DEPTH)
        n = _bad_lines(np.where(flags[chosen] == 0, lines[chosen], np.nan))
        if n:
            found[side] = n
    return found


def _bad_lines(strip: NDArray[np.floating]) -> int:
    """Bad lines at the beginning of a strip of lines, the outermost first."""
    whole = np.isfinite(strip).mean(axis=1) >= LEAST_GOOD
    first = int(whole.argmax())
    if not whole.any() or first >= DEPTH:
        return 0
    strip, whole = strip[first : first + STRIP], whole[first : first + STRIP]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a line without any value has no median
        medians = np.nanmedian(strip, axis=1)
    number = np.arange(len(strip))
    inner = whole & (number >= DEPTH)
    if inner.sum() < STRIP // 4:
        return 0
    departs = medians - np.polyval(np.polyfit(number[inner], medians[inner], 1), number)
    scatter = MAD_TO_SIGMA * np.median(np.abs(departs[inner]))
    noise = MAD_TO_SIGMA * np.nanmedian(np.abs(strip[inner] - medians[inner, None]))
    bad = whole & (np.abs(departs) > max(LINE_SIGMA * scatter, SKY_SIGMA * noise))
    n = 0
    for line in np.flatnonzero(bad).tolist():
        if line > n + GAP:
            break
        n = line + 1
    return first + n if 0 < n < DEPTH else 0


def without_bad_edges(frame: Frame) -> tuple[Frame, str]:
    """The frame with its bad edges masked as `Bad.DEFECT`, and what was masked, in words; empty where nothing was."""
    found = bad_edges(frame.data, frame.mask)
    if not found:
        return frame, ""
    mask = frame.mask.copy()
    for side, n in found.items():
        axis, last = SIDES[side]
        np.moveaxis(mask, axis, 0)[slice(-n, None) if last else slice(0, n)] |= np.uint8(Bad.DEFECT)
    words = ", ".join(
        f"{n} {'column' if SIDES[side][0] else 'row'}{'s' if n > 1 else ''} {side}"
        for side, n in found.items()
    )
    return replace(frame, mask=mask), f"edge far from the level of the sky masked: {words}"
