"""The named periodograms: what each evaluates, of one band or several, and how its value is scaled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tapetum.lightcurves.periods.folded import BetweenBins, Boxes, Entropy
from tapetum.lightcurves.periods.lomb_scargle import Classical, LombScargle
from tapetum.lightcurves.periods.significance import TINY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tapetum.lightcurves.periods.array_backend import Backend
    from tapetum.lightcurves.periods.grid import Grid, Values, Whole
    from tapetum.lightcurves.periods.points import Points

Algorithm = Literal["LS", "CE", "AOV", "ELS", "ECE", "EAOV", "BLS"]
CHUNK = 1 << 16  # frequencies evaluated at a time


class StatisticRules(BaseModel):
    """Shapes of the statistics; the defaults are those of the described search.

    Attributes
    ----------
    harmonics
        Of LS.
    aov_harmonics
        Of AOV: the multi-harmonic analysis of variance (Schwarzenberg-Czerny 1996, ApJ 460, L107) with 2 h + 1
        functions.
    phase_bins, magnitude_bins
        Of CE and ECE; EAOV uses the phase bins as well.
    box_bins, shortest_box, longest_box
        Of BLS: phase bins, and the durations tried as parts of the period.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    harmonics: int = Field(default=1, ge=1, le=20)
    aov_harmonics: int = Field(default=1, ge=1, le=20)
    phase_bins: int = Field(default=20, ge=2, le=200)
    magnitude_bins: int = Field(default=10, ge=2, le=100)
    box_bins: int = Field(default=50, ge=4, le=1000)
    shortest_box: float = Field(default=0.01, gt=0, lt=1)
    longest_box: float = Field(default=0.5, gt=0, lt=1)


class Statistic(Protocol):
    """One number per frequency of one band; `weight` is the weight of its band among others."""

    weight: float

    def fill(self, start: int, values: Values) -> None:
        """Values of the frequencies from number `start` on."""

    def at(self, numbers: Whole) -> Values:
        """Values of some frequencies."""


class Pooled:
    """The weighted mean of a statistic over bands that share the frequency and nothing else.

    For parts of sums of squares this is the part of their sum: the multi-band periodogram with coefficients of
    its own in each band (VanderPlas & Ivezic 2015, ApJ 812, 18, with N_base = 0).
    """

    def __init__(self, parts: list[Statistic]) -> None:
        self._parts = parts
        self.weight = sum(part.weight for part in parts)

    def fill(self, start: int, values: Values) -> None:
        """Values of the frequencies from number `start` on."""
        if len(self._parts) == 1:
            self._parts[0].fill(start, values)
            return
        room = np.empty_like(values)
        values[:] = 0.0
        for part in self._parts:
            part.fill(start, room)
            values += room * (part.weight / self.weight)

    def at(self, numbers: Whole) -> Values:
        """Values of some frequencies."""
        return np.asarray(sum(part.at(numbers) * (part.weight / self.weight) for part in self._parts))


@dataclass(frozen=True)
class Periodogram:
    """A named periodogram of some bands over a grid.

    Attributes
    ----------
    raw
        What is evaluated; several names may share it (LS and AOV of equal harmonics).
    scaled
        From raw values to those of this name; rises with them.
    largest
        Whether the largest value is the best.
    """

    name: str
    raw: Pooled
    scaled: Callable[[Values], Values]
    largest: bool

    def at(self, numbers: Whole) -> Values:
        """Values of some frequencies."""
        return self.scaled(self.raw.at(numbers))


def periodograms(
    names: tuple[Algorithm, ...],
    bands: list[Points],
    grid: Grid,
    rules: StatisticRules,
    backend: Backend | None = None,
) -> dict[Algorithm, Periodogram]:
    """The named periodograms of bands whose times count from one epoch; compiled loops, or arrays on a device."""
    shared: dict[Any, Pooled] = {}
    found: dict[Algorithm, Periodogram] = {}
    for name in names:
        key, make = _maker(name, rules)
        if backend is not None and backend.can(name, rules):
            make = partial(_on_device, backend, name, rules)
        if key not in shared:
            shared[key] = Pooled([make(points, grid) for points in bands])
        found[name] = Periodogram(
            name, shared[key], _scaling(name, bands, shared[key], rules), name not in ("CE", "ECE")
        )
    return found


def run(grams: dict[Algorithm, Periodogram], grid: Grid) -> Iterator[tuple[int, dict[Algorithm, Values]]]:
    """Values of all, chunk by chunk: number of the first frequency, and values by name. Do not keep the arrays."""
    room = {id(gram.raw): np.empty(min(CHUNK, grid.count)) for gram in grams.values()}
    sources = {id(gram.raw): gram.raw for gram in grams.values()}
    for start in range(0, grid.count, CHUNK):
        count = min(CHUNK, grid.count - start)
        for key, source in sources.items():
            source.fill(start, room[key][:count])
        yield start, {name: gram.scaled(room[id(gram.raw)][:count]) for name, gram in grams.items()}


def _on_device(
    backend: Backend, name: Algorithm, rules: StatisticRules, points: Points, grid: Grid
) -> Statistic:
    return backend.statistic(name, points, grid, rules)


def _maker(name: Algorithm, rules: StatisticRules) -> tuple[Any, Callable[[Points, Grid], Statistic]]:
    if name in ("LS", "AOV"):
        harmonics = rules.harmonics if name == "LS" else rules.aov_harmonics
        return ("series", harmonics), lambda points, grid: LombScargle(points, grid, harmonics)
    if name in ("CE", "ECE"):
        inside = name == "ECE"
        bins = rules.phase_bins, rules.magnitude_bins
        return name, lambda points, grid: Entropy(points, grid, *bins, inside=inside, absolute=not inside)
    if name == "EAOV":
        return name, lambda points, grid: BetweenBins(points, grid, rules.phase_bins)
    if name == "BLS":
        shape = rules.box_bins, rules.shortest_box, rules.longest_box
        return name, lambda points, grid: Boxes(points, grid, *shape)
    return name, Classical


def _scaling(
    name: Algorithm, bands: list[Points], raw: Pooled, rules: StatisticRules
) -> Callable[[Values], Values]:
    points = sum(band.time.size for band in bands)
    if name == "ELS":
        return lambda power: power * (0.5 * raw.weight)
    if name == "AOV":
        return _ratio(points, len(bands), 2 * rules.aov_harmonics)
    if name == "EAOV":
        return _ratio(points, len(bands), rules.phase_bins - 1)
    return lambda values: values


def _ratio(points: int, bands: int, functions: int) -> Callable[[Values], Values]:
    """Explained to unexplained variance, each by its degrees of freedom."""
    freedom = max(
        points - bands * (functions + 1), 1
    )  # with fewer points only the order of values has a meaning
    factor = freedom / (bands * functions)

    def scaled(part: Values) -> Values:
        clipped = np.minimum(part, 1.0 - TINY)
        return np.asarray(clipped / (1.0 - clipped) * factor)

    return scaled
