"""Lomb-Scargle periodograms through the non-uniform FFT of nifty-ls.

Every function gives the part of the sum of squares about the mean that a series explains, in [0, 1]: the "standard"
normalisation of Zechmeister & Kuerster (2009), A&A 496, 577.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tapetum.lightcurves.periods import _fit_kernels as kernels

if TYPE_CHECKING:
    from tapetum.lightcurves.periods.grid import Grid, Values, Whole
    from tapetum.lightcurves.periods.points import Points

AT_LEAST = 2  # frequencies per call of nifty-ls


class LombScargle:
    """Weighted least squares of a series of `harmonics` terms with a free mean, for one band.

    Attributes
    ----------
    weight : float
        Sum of squares about the weighted mean, weights 1 / magerr^2; the weight of the band among others.
    """

    def __init__(self, points: Points, grid: Grid, harmonics: int = 1) -> None:
        self._points = points
        self._grid = grid
        self._harmonics = harmonics
        self.weight = points.chi2

    def fill(self, start: int, values: Values) -> None:
        """Powers of the frequencies from number `start` on."""
        powers = _nifty(self._grid, start, values.size, self._points, self._harmonics, classical=False)
        values[:] = powers[: values.size]

    def at(self, numbers: Whole) -> Values:
        """Powers of some frequencies, by direct fits."""
        points = self._points
        ends = np.array([0, points.time.size])
        gains = kernels.gains_at(
            points.time, points.centred, points.weight, ends, self._grid.at(numbers), self._harmonics
        )
        return np.asarray(gains / self.weight)


class Classical:
    """The unweighted periodogram of Lomb (1976) and Scargle (1982) of magnitudes less their plain mean."""

    def __init__(self, points: Points, grid: Grid) -> None:
        self._points = points
        self._grid = grid
        self.weight = float(((points.mag - points.mag.mean()) ** 2).sum())

    def fill(self, start: int, values: Values) -> None:
        """Powers of the frequencies from number `start` on."""
        powers = _nifty(self._grid, start, values.size, self._points, 1, classical=True)
        values[:] = powers[: values.size]

    def at(self, numbers: Whole) -> Values:
        """Powers of some frequencies."""
        powers = np.empty(len(numbers))
        for i, number in enumerate(numbers):
            self.fill(int(number), powers[i : i + 1])
        return powers


def _nifty(grid: Grid, start: int, count: int, points: Points, harmonics: int, classical: bool) -> Values:
    from nifty_ls import lombscargle

    count = max(count, AT_LEAST)
    first = grid.first + grid.step * start
    result = lombscargle(
        points.time,
        points.mag,
        None if classical else points.magerr,
        fmin=first,
        fmax=first + grid.step * (count - 1),
        Nf=count,
        fit_mean=not classical,
        nterms=harmonics,
        backend="finufft" if harmonics == 1 else "finufft_chi2",
        nthreads=1,
    )
    return np.asarray(result.power, np.float64)
