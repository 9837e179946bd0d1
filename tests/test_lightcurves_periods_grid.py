"""Grids of frequencies, masked intervals, and the digest of a periodogram."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tapetum.core.errors import InputError
from tapetum.lightcurves.periods.grid import TERRESTRIAL, Grid, GridRules
from tapetum.lightcurves.periods.stream import Digest


def test_the_default_is_the_described_grid() -> None:
    grid = GridRules().grid(1000.0)
    assert grid.first == pytest.approx(2 / 1000)
    assert grid.step == pytest.approx(1 / 10_000)
    assert grid.last < 48 <= grid.last + grid.step
    assert grid.gaps().size == 0


def test_options_of_the_grid() -> None:
    assert GridRules(scale_minimum_period=True).grid(1000.0).last == pytest.approx(24, abs=1e-3)
    assert GridRules(maximum=480).grid(30.0).last == pytest.approx(480, abs=0.01)
    assert GridRules(baseline=2000.0).grid(1.0) == GridRules(baseline=2000.0).grid(900.0)
    assert GridRules(lowest=0.5).grid(900.0).first == 0.5


@pytest.mark.parametrize("baseline", [0.0, -1.0, np.nan, np.inf])
def test_data_need_a_length(baseline: float) -> None:
    with pytest.raises(InputError, match="different times"):
        GridRules().grid(baseline)


def test_grids_have_an_end() -> None:
    with pytest.raises(InputError, match="more than most_frequencies"):
        GridRules().grid(1e9)
    with pytest.raises(InputError, match="raise `maximum`"):
        GridRules(maximum=0.001).grid(1000.0)
    with pytest.raises(ValidationError, match="lower end"):
        GridRules(intervals=((2.0, 1.0),))


@pytest.mark.parametrize("baseline", [100.0, 870.667, 2705.0])
def test_masked_frequencies_are_those_of_the_comparison(baseline: float) -> None:
    grid = GridRules(maximum=10.0, remove_terrestrial=True).grid(baseline)
    frequency = grid.at(np.arange(grid.count))
    inside = np.zeros(grid.count, bool)
    for low, high in TERRESTRIAL:
        inside |= (frequency >= low) & (frequency < high)
    assert (grid.kept() == ~inside).all()
    assert (grid.masked(frequency) == inside).all()
    assert inside.any()


def test_overlapping_intervals_are_one() -> None:
    grid = Grid(0.0, 0.1, 100, ((1.0, 2.0), (1.5, 3.0), (3.0, 4.0), (20.0, 30.0)))
    assert grid.gaps().tolist() == [[10, 40]]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 400),
    top=st.integers(1, 60),
    largest=st.booleans(),
    chunk=st.integers(1, 120),
)
def test_a_digest_is_what_sorting_gives(seed: int, count: int, top: int, largest: bool, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    grid = Grid(0.0, 0.01, count, ((0.5, 0.75), (1.1, 1.2)), samples_per_peak=5)
    values = rng.normal(size=count)
    values[rng.random(count) < 0.05] = np.nan
    digest = Digest(grid, largest, top, 4)
    for start in range(0, count, chunk):
        digest.absorb(start, values[start : start + chunk])
    there = np.flatnonzero(grid.kept() & ~np.isnan(values))
    if not there.size:
        assert np.isnan(digest.mean)
        assert digest.top()[0].size == 0
        return
    assert digest.mean == pytest.approx(values[there].mean(), abs=1e-12)
    assert digest.scatter == pytest.approx(values[there].std(), abs=1e-12)
    order = there[np.argsort(-values[there] if largest else values[there], kind="stable")]
    numbers, best = digest.top()
    assert numbers.tolist() == order[:top].tolist()
    assert (best == values[order[:top]]).all()
    peaks, height = digest.peaks()
    assert peaks[0] == order[0]
    assert (np.abs(np.subtract.outer(peaks, peaks)) + 99 * np.eye(peaks.size) > 5).all()
    assert (height == values[peaks]).all()
