"""The usable points of one light curve, as the periodograms want them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tapetum.lightcurves.periods.grid import Values

LEAST_POINTS = 5  # fewer have no period


@dataclass(frozen=True)
class Points:
    """Time [d] since `epoch`, magnitude, error: finite, errors > 0, in order of time."""

    time: Values
    mag: Values
    magerr: Values
    epoch: float = 0.0

    @classmethod
    def of(cls, time: Values, mag: Values, magerr: Values) -> Points:
        """What can be used of raw points; times are counted from the first of them."""
        good = np.isfinite(time) & np.isfinite(mag) & np.isfinite(magerr) & (magerr > 0)
        order = np.flatnonzero(good)[np.argsort(time[good], kind="stable")]
        epoch = float(time[order[0]]) if order.size else 0.0
        return cls(time[order] - epoch, mag[order], magerr[order], epoch)

    @property
    def usable(self) -> bool:
        """Whether there are points enough, at different times, of different magnitudes."""
        return self.time.size >= LEAST_POINTS and self.time[-1] > 0 and bool(np.ptp(self.mag) > 0)

    @cached_property
    def weight(self) -> Values:
        """1 / magerr^2."""
        return np.asarray(self.magerr**-2.0)

    @cached_property
    def centred(self) -> Values:
        """Magnitudes less their weighted mean."""
        return np.asarray(self.mag - np.average(self.mag, weights=self.weight))

    @cached_property
    def chi2(self) -> float:
        """Weighted sum of squares about the weighted mean."""
        return float((self.weight * self.centred**2).sum())

    def since(self, epoch: float) -> Points:
        """The same with times counted from elsewhere."""
        return Points(self.time + (self.epoch - epoch), self.mag, self.magerr, epoch)
