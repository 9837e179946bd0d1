"""Contaminant masks to look at: which colour a class has, and which places of an image are worth a closer look."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tapetum.images.contaminants import Contaminant
from tapetum.report.overlay import Box, Layer, overlay_png, thinned_codes
from tapetum.report.page import Dot
from tapetum.report.stamps import thinned

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tapetum.images.frame import Image

    Codes = NDArray[np.uint16]

PREVIEW_SIDE = 1024  # of the longer side of the picture beside a mask [pixel]
ENOUGH = 40  # pixels of a class; more do not make a place more interesting
MARGIN = 1 / 6  # of a window, where what it shows would be cut off
SHOWN_BEFORE = 0.15  # what a class is worth that another place shows already

# name, colour, opacity; from below to above: wide ones first, single pixels last
_STYLES = (
    ("BBG", "#c9a227", 0.22),
    ("NEB", "#6fb1d6", 0.3),
    ("FR", "#7fb77e", 0.35),
    ("OV", "#8d99ae", 0.55),
    ("P", "#b26bff", 0.6),
    ("SP", "#22c7ff", 0.55),
    ("TRL", "#2ee66b", 0.55),
    ("SAT", "#ff5fc8", 0.6),
    ("DCL", "#3f6bff", 0.6),
    ("HCL", "#ff9a1f", 0.65),
    ("DP", "#00e0d0", 0.9),
    ("HP", "#ffe930", 0.9),
    ("CR", "#ff3b30", 0.8),
)
LAYERS = tuple(Layer(name, int(Contaminant[name]), colour, opacity) for name, colour, opacity in _STYLES)
WIDE = Contaminant.BBG | Contaminant.NEB | Contaminant.FR | Contaminant.OV  # nothing to see close by


def preview_png(image: Image, codes: Codes, side: int = PREVIEW_SIDE) -> bytes:
    """An image with the masks on it, at most `side` pixels wide and high, as PNG."""
    step = max(1, math.ceil(max(image.shape) / side))
    return overlay_png(thinned(image, step), thinned_codes(codes, step), LAYERS)


def legend(counts: Mapping[str, int]) -> list[str | Dot]:
    """Coloured dots with the names of classes and how many pixels have each, the most frequent first."""
    colours = {layer.name: layer.colour for layer in LAYERS}
    words: list[str | Dot] = []
    for name, n in sorted(counts.items(), key=lambda item: -item[1]):
        words += [Dot(colours[name]), f" {name} {n:,}. "]
    return words


def interesting(codes: Codes, n: int, side: int) -> list[Box]:
    """Up to `n` windows that show as many classes as possible between them, and do not overlap.

    Parameters
    ----------
    codes : ndarray of uint16, shape (n_y, n_x)
        Sums of `tapetum.images.contaminants.Contaminant`.
    side
        Of a window [pixel]; smaller images have one window, the image itself.
    """
    n_y, n_x = codes.shape
    side = min(side, n_y, n_x)
    step = max(1, side // 4)
    tops, lefts = (np.arange(0, length - side + 1, step) for length in (n_y, n_x))
    classes = [layer for layer in LAYERS if not layer.code & WIDE and (codes & np.uint16(layer.code)).any()]
    if not classes:
        return []
    worth = np.stack([_worth((codes & np.uint16(layer.code)) != 0, tops, lefts, side) for layer in classes])
    new = np.ones(len(classes))
    free = np.ones(worth.shape[1:], bool)
    boxes: list[Box] = []
    while len(boxes) < n and free.any():
        value = np.where(free, np.tensordot(new, worth, axes=1), -1.0)
        j, i = (int(index) for index in np.unravel_index(int(value.argmax()), value.shape))
        if value[j, i] <= 0:
            break
        boxes.append(Box(int(tops[j]), int(lefts[i]), side))
        new[worth[:, j, i] > 0] = SHOWN_BEFORE
        free &= (np.abs(tops - tops[j]) >= side)[:, None] | (np.abs(lefts - lefts[i]) >= side)[None, :]
    return boxes


def _worth(
    has: NDArray[np.bool_], tops: NDArray[np.int64], lefts: NDArray[np.int64], side: int
) -> NDArray[np.float64]:
    """How much each window shows of a class away from its margin, 0 to 1, shape (n_tops, n_lefts)."""
    total = np.zeros((has.shape[0] + 1, has.shape[1] + 1), np.int32)
    np.cumsum(np.cumsum(has, axis=0, dtype=np.int32), axis=1, out=total[1:, 1:])
    margin = int(side * MARGIN)
    low, high = tops[:, None] + margin, tops[:, None] + side - margin
    left, right = lefts[None, :] + margin, lefts[None, :] + side - margin
    counts = total[high, right] - total[low, right] - total[high, left] + total[low, left]
    return np.asarray(np.minimum(counts, ENOUGH) / ENOUGH)
