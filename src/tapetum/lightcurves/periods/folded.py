"""Statistics of folded curves: conditional entropy, variance between phase bins, boxes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from tapetum.lightcurves.periods import _aov_kernels, _bls_kernels, _entropy_kernels
from tapetum.lightcurves.periods._fold_kernels import LANES

if TYPE_CHECKING:
    from tapetum.lightcurves.periods.grid import Grid, Values, Whole
    from tapetum.lightcurves.periods.points import Points

ROW_END = 8  # rows of the histogram take a multiple of this many cells
FULL = (255, 65535)  # points that one byte and two can count
INSIDE = (0.999, 5e-4)  # scale and zero of magnitudes that are to lie inside of (0, 1)


def counted_levels(points: Points, levels: int, inside: bool, absolute: bool) -> tuple[Values, Whole]:
    """Times and magnitude bins of the points that count; for the arguments see `Entropy`."""
    scaled = (points.mag - points.mag.min()) / np.ptp(points.mag)
    if inside:
        scaled = INSIDE[0] * scaled + INSIDE[1]
    counted = scaled < 1
    time = points.time[counted] + (points.epoch if absolute else 0.0)
    return np.ascontiguousarray(time), (scaled[counted] * levels).astype(np.int64)


class _Folded(ABC):
    """What has to be evaluated frequency by frequency."""

    @abstractmethod
    def fill(self, start: int, values: Values) -> None:
        """Values of the frequencies from number `start` on."""

    def at(self, numbers: Whole) -> Values:
        """Values of some frequencies."""
        values = np.empty(len(numbers))
        for i, number in enumerate(numbers):
            self.fill(int(number), values[i : i + 1])
        return values


class Entropy(_Folded):
    """Conditional entropy of the magnitude given the phase (Graham et al. 2013) [nat].

    Parameters
    ----------
    bins, levels
        Bins of phase and of magnitude.
    inside
        Whether magnitudes are scaled to 0.999 x + 5e-4, so that all points count (the flavour for GPUs, ECE).
        Else the histogram is half open: x = 1, the faintest point, is outside of it (CE of the described system).
    absolute
        Whether phases count from time zero; else from the first epoch.
    """

    def __init__(
        self,
        points: Points,
        grid: Grid,
        bins: int = 20,
        levels: int = 10,
        inside: bool = False,
        absolute: bool = True,
    ) -> None:
        self._time, level = counted_levels(points, levels, inside, absolute)
        self.weight = float(self._time.size)
        self._width = math.ceil(bins / ROW_END) * ROW_END
        self._level = (level * self._width).astype(np.uint16)
        self._bins = bins
        self._grid = grid
        many = self._time.size
        kind = np.uint8 if many <= FULL[0] else np.uint16 if many <= FULL[1] else np.uint32
        self._counts = np.zeros((LANES, levels * self._width), kind)
        count = np.arange(many + 2.0)
        self._table = count * np.log(np.maximum(count, 1))
        self._growth = np.diff(self._table)

    def fill(self, start: int, values: Values) -> None:
        """Entropies of the frequencies from number `start` on."""
        _entropy_kernels.entropy(
            self._time,
            self._level,
            self._bins,
            self._width,
            self._counts,
            self._growth,
            self._table,
            self._grid.first,
            self._grid.step,
            start,
            values,
        )


class BetweenBins(_Folded):
    """Part of the sum of squares that lies between phase bins; unweighted, as in Schwarzenberg-Czerny (1989)."""

    def __init__(self, points: Points, grid: Grid, bins: int = 20) -> None:
        self._time = points.time
        self._grid = grid
        self._bins = bins
        centred = points.mag - points.mag.mean()
        self.weight = float((centred**2).sum())
        # no sum of quanta may leave the low bits: by Cauchy, the sum over any points is at most sqrt(n) here
        self._shift = 62 - int(points.time.size).bit_length()
        self._scale = 2.0 ** (self._shift - 2) / math.sqrt(points.time.size)
        quanta = np.rint(centred / math.sqrt(self.weight) * self._scale).astype(np.int64)
        self._packed = quanta + (1 << self._shift)

    def fill(self, start: int, values: Values) -> None:
        """Parts at the frequencies from number `start` on."""
        _aov_kernels.between_bins(
            self._time,
            self._packed,
            self._shift,
            self._scale,
            self._bins,
            self._grid.first,
            self._grid.step,
            start,
            values,
        )


class Boxes(_Folded):
    """Part of the weighted sum of squares that the best faint box explains (Kovacs, Zucker & Mazeh 2002).

    Parameters
    ----------
    bins
        Phase bins.
    shortest, longest
        Duration of the eclipse as a part of the period.
    """

    def __init__(
        self,
        points: Points,
        grid: Grid,
        bins: int = 50,
        shortest: float = 0.01,
        longest: float = 0.5,
    ) -> None:
        self.weight = points.chi2
        self._time = points.time
        self._grid = grid
        self._bins = bins
        self._widths = max(1, round(shortest * bins)), max(1, round(longest * bins))
        self._weight = points.weight / points.weight.sum()
        self._product = self._weight * points.centred
        self._product /= math.sqrt((self._weight * points.centred**2).sum())

    def fill(self, start: int, values: Values) -> None:
        """Parts at the frequencies from number `start` on."""
        _bls_kernels.boxes(
            self._time,
            self._weight,
            self._product,
            self._bins,
            *self._widths,
            self._grid.first,
            self._grid.step,
            start,
            values,
        )
