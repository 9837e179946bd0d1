"""Periodograms on whatever device an array library has: the same statistics, written for NumPy, torch or CuPy.

A library is imported only where it is asked for, by ``backend_of("cuda")``; ``Backend(torch, "cuda")`` takes the
caller's. A frequency is a row and a point a column; phases are float64 and evaluated directly, so results are those of
the compiled loops but for points on the edge of a bin.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import UsageError
from tapetum.lightcurves.periods.folded import counted_levels

if TYPE_CHECKING:
    from tapetum.lightcurves.periods.grid import Grid, Values, Whole
    from tapetum.lightcurves.periods.periodograms import Algorithm, Statistic, StatisticRules
    from tapetum.lightcurves.periods.points import Points

TWO_PI = 2 * np.pi
LIBRARIES = ("torch", "cupy", "numpy")


@dataclass(frozen=True)
class Backend:
    """An array library and the device to use.

    Attributes
    ----------
    xp
        Module with NumPy's names: numpy, torch, cupy.
    device
        As the library calls it; None: its default.
    block
        Phases evaluated at a time; 4 million take about 200 MB.
    """

    xp: Any
    device: Any = None
    block: int = 4_000_000

    def put(self, values: Any) -> Any:
        """Onto the device."""
        return self.xp.asarray(values, **({} if self.device is None else {"device": self.device}))

    def get(self, values: Any) -> Values:
        """Back as a NumPy array."""
        for name in ("cpu", "get"):  # torch, cupy
            if hasattr(values, name):
                values = getattr(values, name)()
                break
        return np.asarray(values, np.float64)

    def can(self, name: Algorithm, rules: StatisticRules) -> bool:
        """Whether this statistic is written for arrays."""
        harmonics = rules.harmonics if name == "LS" else rules.aov_harmonics if name == "AOV" else 1
        return name != "BLS" and harmonics == 1

    def statistic(self, name: Algorithm, points: Points, grid: Grid, rules: StatisticRules) -> Statistic:
        """One that `can` be, of one band."""
        if name in ("CE", "ECE"):
            return _ArrayEntropy(self, points, grid, rules, inside=name == "ECE")
        if name == "EAOV":
            return _ArrayBetweenBins(self, points, grid, rules)
        return _ArraySeries(self, points, grid, classical=name == "ELS")


@cache
def backend_of(device: str) -> Backend | None:
    """The arrays of a device.

    Parameters
    ----------
    device
        ``cpu``: no arrays but the compiled loops, which are faster there. ``cuda`` or ``cuda:1``: a GPU, by torch. Or
        the name of a library, on the device that it takes by itself: ``cupy``, ``torch`` and ``numpy``.

    Returns
    -------
    Backend or None
        None: the compiled loops.

    Raises
    ------
    UsageError
        There is no such device, or the library is not installed.
    """
    if device == "cpu":
        return None
    on_gpu = re.fullmatch(r"cuda(?::(\d+))?", device)
    library = "torch" if on_gpu else device
    if library not in LIBRARIES:
        raise UsageError(f"device {device!r}: give cpu, cuda, cuda:N, {', '.join(LIBRARIES)}")
    try:
        xp: Any = import_module(library)
    except ImportError as problem:
        raise UsageError(
            f"device {device}: needs {library}, which is not installed here ({problem})"
        ) from None
    if not on_gpu:
        return Backend(xp)
    count = int(xp.cuda.device_count()) if xp.cuda.is_available() else 0
    if int(on_gpu[1] or 0) >= count:
        raise UsageError(f"device {device}: torch sees {count} CUDA devices here; cpu always works")
    return Backend(xp, device)


class _ArrayStatistic(ABC):
    """Blocks of frequencies, their phases, and the way back."""

    def __init__(self, backend: Backend, time: Values, grid: Grid) -> None:
        self._backend = backend
        self._grid = grid
        self._time = backend.put(time)

    def fill(self, start: int, values: Values) -> None:
        """Values of the frequencies from number `start` on."""
        values[:] = self.at(np.arange(start, start + values.size))

    def at(self, numbers: Whole) -> Values:
        """Values of some frequencies."""
        rows = max(1, self._backend.block // max(1, self._time.shape[0]))
        parts = [
            self._backend.get(self._values(self._phases(numbers[i : i + rows])))
            for i in range(0, len(numbers), rows)
        ]
        return np.concatenate(parts) if parts else np.empty(0)

    def _phases(self, numbers: Whole) -> Any:
        cycles = self._backend.put(self._grid.at(numbers))[:, None] * self._time[None, :]
        return cycles - self._backend.xp.floor(cycles)

    @abstractmethod
    def _values(self, phase: Any) -> Any:
        """The statistic, from phases of shape (frequencies, points)."""

    def _binned(self, phase: Any, bins: int) -> Any:
        """Bin of each phase; a phase that rounds up to a whole turn is in the last."""
        xp = self._backend.xp
        return xp.clip(xp.floor(phase * bins), 0, bins - 1)

    def _table(self, cell: Any, cells: int, weights: Any = None) -> Any:
        """Number of points, or the sum of their weights, in every cell of every row."""
        xp = self._backend.xp
        rows = cell.shape[0]
        first = self._backend.put(np.arange(rows, dtype=np.float64) * cells)
        flat = xp.asarray(xp.reshape(cell + first[:, None], (-1,)), dtype=xp.int64)
        if weights is not None:
            weights = xp.reshape(xp.broadcast_to(weights[None, :], cell.shape), (-1,))
        return xp.reshape(xp.bincount(flat, weights, minlength=rows * cells), (rows, cells))


class _ArraySeries(_ArrayStatistic):
    """Lomb-Scargle of one harmonic: Zechmeister & Kuerster (2009), equations 5 to 15."""

    def __init__(self, backend: Backend, points: Points, grid: Grid, classical: bool) -> None:
        super().__init__(backend, points.time, grid)
        weight = np.ones_like(points.mag) if classical else points.weight
        centred = points.mag - np.average(points.mag, weights=weight)
        self.weight = float((weight * centred**2).sum())
        self._classical = classical
        weight = weight / weight.sum()
        self._total = float((weight * centred**2).sum())
        self._columns = backend.put(np.stack([weight, weight * centred], axis=1))

    def _values(self, phase: Any) -> Any:
        xp = self._backend.xp
        cosine, sine = xp.cos(TWO_PI * phase), xp.sin(TWO_PI * phase)
        c, yc = (cosine @ self._columns).T
        s, ys = (sine @ self._columns).T
        weight = self._columns[:, 0]
        cc, cs = (cosine * cosine) @ weight, (cosine * sine) @ weight
        ss = 1.0 - cc
        if not self._classical:
            cc, ss, cs = cc - c * c, ss - s * s, cs - c * s
        return (yc * yc * ss + ys * ys * cc - 2 * yc * ys * cs) / (self._total * (cc * ss - cs * cs))


class _ArrayEntropy(_ArrayStatistic):
    """Conditional entropy."""

    def __init__(
        self, backend: Backend, points: Points, grid: Grid, rules: StatisticRules, inside: bool
    ) -> None:
        time, level = counted_levels(points, rules.magnitude_bins, inside, absolute=not inside)
        super().__init__(backend, time, grid)
        self.weight = float(time.size)
        self._level = backend.put(level.astype(np.float64))
        self._bins, self._levels = rules.phase_bins, rules.magnitude_bins

    def _values(self, phase: Any) -> Any:
        xp = self._backend.xp
        cell = self._binned(phase, self._bins) * self._levels + self._level[None, :]
        counts = self._table(cell, self._bins * self._levels) + 0.0
        column = xp.sum(xp.reshape(counts, (-1, self._bins, self._levels)), -1)
        return (self._information(column) - self._information(counts)) / self.weight

    def _information(self, counts: Any) -> Any:
        xp = self._backend.xp
        return xp.sum(counts * xp.log(xp.clip(counts, 1, None)), -1)


class _ArrayBetweenBins(_ArrayStatistic):
    """Variance between phase bins."""

    def __init__(self, backend: Backend, points: Points, grid: Grid, rules: StatisticRules) -> None:
        super().__init__(backend, points.time, grid)
        centred = points.mag - points.mag.mean()
        self.weight = float((centred**2).sum())
        self._centred = backend.put(centred / np.sqrt(self.weight))
        self._bins = rules.phase_bins

    def _values(self, phase: Any) -> Any:
        xp = self._backend.xp
        cell = self._binned(phase, self._bins)
        counts = self._table(cell, self._bins)
        sums = self._table(cell, self._bins, self._centred)
        return xp.sum(sums * sums / xp.clip(counts, 1, None), -1)
