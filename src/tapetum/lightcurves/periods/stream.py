"""What is kept of a periodogram, which itself is never held as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tapetum.lightcurves.periods import _stream_kernels as kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.lightcurves.periods.grid import Grid, Values, Whole

SPARE = 4  # blocks kept per peak that is wanted, as the slopes of a high peak fill several


class Digest:
    """Mean, scatter, best values and best peaks of one statistic over a grid.

    Parameters
    ----------
    grid
        The frequencies that values will come for, in order.
    largest
        Whether the largest value is the best one (else the smallest).
    top
        Number of best values to keep.
    peaks
        Number of best peaks to keep, at least one peak width (1 / baseline) apart.
    """

    def __init__(self, grid: Grid, largest: bool, top: int, peaks: int) -> None:
        self.largest = largest
        self._sign = 1.0 if largest else -1.0
        self._gaps = grid.gaps()
        self._moments = np.zeros(3)
        self._top = np.full(top, -np.inf), np.full(top, -1)
        self._n_peaks = peaks
        self._peaks = np.full(peaks * SPARE, -np.inf), np.full(peaks * SPARE, -1)
        self._width = max(1, round(grid.samples_per_peak))
        self._best = np.array([-np.inf, -1.0, -1.0])

    def absorb(self, start: int, values: Values) -> None:
        """Take in the values of the frequencies from number `start` on."""
        kernels.absorb(
            values,
            start,
            self._gaps,
            self._sign,
            self._moments,
            *self._top,
            *self._peaks,
            self._width,
            self._best,
        )

    @property
    def mean(self) -> float:
        """Mean of all values that counted."""
        return float(self._moments[1]) if self._moments[0] else np.nan

    @property
    def scatter(self) -> float:
        """Their standard deviation (of the population)."""
        return float(np.sqrt(self._moments[2] / self._moments[0])) if self._moments[0] else np.nan

    def top(self) -> tuple[Whole, Values]:
        """Numbers and values of the best frequencies, best first; of equal ones the lowest frequency first."""
        return self._sorted(*self._top)

    def peaks(self) -> tuple[Whole, Values]:
        """Numbers and values of the best peaks, best first."""
        kernels.flush(*self._peaks, self._best)
        numbers, values = self._sorted(*self._peaks)
        chosen: list[int] = []
        for i, number in enumerate(numbers):
            if len(chosen) < self._n_peaks and (np.abs(numbers[chosen] - number) > self._width).all():
                chosen.append(i)
        return numbers[chosen], values[chosen]

    def _sorted(self, values: Values, numbers: NDArray[np.int64]) -> tuple[Whole, Values]:
        there = numbers >= 0
        values, numbers = values[there], numbers[there]
        order = np.lexsort((numbers, -values))
        return numbers[order], values[order] * self._sign
