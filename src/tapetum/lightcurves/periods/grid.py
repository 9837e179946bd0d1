"""Regular grids of trial frequencies, and the intervals of frequency that belong to the Earth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tapetum.core.errors import InputError

Values = NDArray[np.float64]
Whole = NDArray[np.int64]

CADENCE_MINUTES = 30.0  # points of a cleaned curve are at least this far apart
TERRESTRIAL = (
    (0.0005, 0.0006),
    (0.000625, 0.00075),
    (0.000833, 0.001),
    (0.00125, 0.0015),
    (0.0025, 0.003),
    (0.005, 0.006),
    (0.03, 0.04),
    (0.32, 0.34),
    (0.48, 0.52),
    (0.95, 1.05),
    (1.95, 2.05),
    (2.95, 3.05),
    (3.95, 4.05),
)  # fractions and multiples of the day, the month and the year [1/d], closed below and open above


class GridRules(BaseModel):
    """How the trial frequencies of a light curve are chosen; the defaults are those of the described search.

    Attributes
    ----------
    cycles
        The lowest frequency is this many cycles per baseline.
    maximum
        The highest frequency is below this [1/d]; up to 480 is of use for data of minutes.
    samples_per_peak
        Frequencies per 1 / baseline.
    baseline
        Length of the data that grids are made for [d]; None: every curve has its own grid, of its own length. A
        period then does not depend on which curves happen to share its file.
    lowest
        A fixed lowest frequency [1/d] instead of that by `cycles`.
    scale_minimum_period
        Stop at the Nyquist frequency of the cleaning cadence of 30 minutes, 24/d.
    remove_terrestrial
        Leave out `intervals` after all frequencies were evaluated: the grid stays regular, as fast transforms need.
    intervals
        [1/d], closed below and open above.
    most_frequencies
        Of one curve; a longer grid (centuries of data) is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cycles: float = Field(default=2.0, gt=0)
    maximum: float = Field(default=48.0, gt=0, le=10_000)
    samples_per_peak: float = Field(default=10.0, ge=1, le=100)
    baseline: float | None = Field(default=None, gt=0)
    lowest: float | None = Field(default=None, gt=0)
    scale_minimum_period: bool = False
    remove_terrestrial: bool = False
    intervals: tuple[tuple[float, float], ...] = TERRESTRIAL
    most_frequencies: int = Field(default=100_000_000, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> GridRules:
        if any(low >= high for low, high in self.intervals):
            raise ValueError(f"each interval needs a lower end below its upper one: {self.intervals}")
        return self

    @property
    def highest(self) -> float:
        """The frequency that grids end below [1/d]."""
        return 24 * 60 / (2 * CADENCE_MINUTES) if self.scale_minimum_period else self.maximum

    def grid(self, baseline: float) -> Grid:
        """The grid for data of this length [d].

        Raises
        ------
        InputError
            The data have no length, are too short for a single frequency, or so long that the grid passes
            `most_frequencies`.
        """
        span = baseline if self.baseline is None else self.baseline
        if not (math.isfinite(span) and span > 0):
            raise InputError(f"times span {span} d: a period needs points at different times")
        first = self.cycles / span if self.lowest is None else self.lowest
        step = 1 / (self.samples_per_peak * span)
        count = math.ceil((self.highest - first) / step)
        if count < 1:
            raise InputError(f"no frequency from {first:g} to {self.highest:g} 1/d: raise `maximum`")
        if count > self.most_frequencies:
            raise InputError(
                f"{count} frequencies for {span:g} d of data are more than most_frequencies "
                f"({self.most_frequencies}): lower `maximum` or `samples_per_peak`, or split the data"
            )
        intervals = self.intervals if self.remove_terrestrial else ()
        return Grid(first, step, count, intervals, self.samples_per_peak)


@dataclass(frozen=True)
class Grid:
    """The frequencies ``first + k step``, k from 0 to count - 1 [1/d], less those in `intervals`.

    There are `samples_per_peak` of them to the width of a peak, 1 / baseline.
    """

    first: float
    step: float
    count: int
    intervals: tuple[tuple[float, float], ...] = ()
    samples_per_peak: float = 10.0

    def at(self, numbers: Whole) -> Values:
        """Frequencies by number [1/d]."""
        return self.first + self.step * np.asarray(numbers, np.float64)

    @property
    def last(self) -> float:
        """The highest frequency [1/d]."""
        return self.first + self.step * (self.count - 1)

    def gaps(self) -> Whole:
        """First number inside and first one after each interval, in order and apart, shape (n, 2)."""
        edges = np.array(sorted(self.intervals), np.float64).reshape(-1, 2)
        low, high = (self._number(column) for column in edges.T)
        merged: list[list[int]] = []
        for begin, end in zip(low.tolist(), high.tolist(), strict=True):
            if merged and begin <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            elif end > begin:
                merged.append([begin, end])
        return np.array(merged, np.int64).reshape(-1, 2)

    def kept(self) -> NDArray[np.bool_]:
        """Which numbers are outside of all intervals, shape (count,)."""
        keep = np.ones(self.count, np.bool_)
        for begin, end in self.gaps():
            keep[begin:end] = False
        return keep

    def masked(self, frequencies: Values) -> NDArray[np.bool_]:
        """Which of any frequencies lie in an interval."""
        inside = np.zeros(np.shape(frequencies), np.bool_)
        for low, high in self.intervals:
            inside |= (frequencies >= low) & (frequencies < high)
        return inside

    def _number(self, frequency: Values) -> Whole:
        """The first number whose frequency, as `at` rounds it, is not below."""
        number = np.ceil((frequency - self.first) / self.step).astype(np.int64)
        number -= self.at(number - 1) >= frequency
        number += self.at(number) < frequency
        return np.clip(number, 0, self.count)
