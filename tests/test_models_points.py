"""Points of light curves as a network sees them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tapetum.lightcurves.curves import LightCurves
from tapetum.models.points import (
    CHANNELS,
    ERROR,
    MAGNITUDE,
    THERE,
    chosen_points,
    prepare_points,
    sine_powers,
    waves,
)

PERIOD = np.array([0.61, 2.3, np.nan])


@pytest.fixture
def curves() -> LightCurves:
    rng = np.random.default_rng(5)
    time = [np.sort(rng.uniform(0, 400, n)) for n in (30, 200, 12)]
    mag = [12 + 0.3 * np.sin(2 * np.pi * t / 0.61) + rng.normal(0, 0.02, t.size) for t in time]
    return LightCurves.of_lists(time, mag, [np.full(t.size, 0.02) for t in time])


def test_points_are_scaled_and_short_curves_are_filled_up(curves: LightCurves) -> None:
    points = prepare_points(curves, PERIOD, 64)
    assert points.shape == (3, 64, CHANNELS)
    assert points[..., THERE].sum(axis=1).tolist() == [30, 64, 12]
    assert not points[0, 30:].any()
    first = points[0, :30]
    assert first[:, MAGNITUDE].mean() == pytest.approx(0, abs=1e-5)
    assert first[:, MAGNITUDE].std() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(10 ** first[:, ERROR], 0.02 / curves.mag[:30].std(), rtol=1e-4)


def test_phase_zero_is_where_the_wave_is_faintest(curves: LightCurves) -> None:
    first = prepare_points(curves, PERIOD, 64)[0, :30]
    # the cosine of the first harmonic goes with the magnitude, the sine does not
    assert np.corrcoef(first[:, 2], first[:, MAGNITUDE])[0, 1] > 0.98
    assert abs(np.corrcoef(first[:, 3], first[:, MAGNITUDE])[0, 1]) < 0.3


def test_a_curve_without_a_period_has_no_phases(curves: LightCurves) -> None:
    assert not prepare_points(curves, PERIOD, 64)[2, :, 2:14].any()


def test_origins_of_time_and_magnitude_do_not_matter(curves: LightCurves) -> None:
    moved = replace(curves, time=curves.time + 1234.5, mag=curves.mag - 3.25)
    np.testing.assert_allclose(
        prepare_points(moved, PERIOD, 64), prepare_points(curves, PERIOD, 64), atol=1e-4
    )


def test_points_of_long_curves_are_spread_or_drawn() -> None:
    counts = np.array([10, 7, 3])
    spread = chosen_points(counts, 5)
    assert np.split(spread, [10, 17])[0].tolist() == [True, False] * 5
    assert [part.sum() for part in np.split(spread, [10, 17])] == [5, 5, 3]
    drawn = chosen_points(counts, 5, np.random.default_rng(1))
    assert [part.sum() for part in np.split(drawn, [10, 17])] == [5, 5, 3]
    assert (drawn != chosen_points(counts, 5, np.random.default_rng(2))).any()


def test_sine_powers_are_those_of_a_fit(curves: LightCurves) -> None:
    frequency = np.array([[1 / 0.61, 0.3], [1 / 0.61, 2.2], [0.7, np.nan]])
    found = sine_powers(curves, frequency)
    for row, (time, mag, err) in enumerate(curves):
        for column in range(2):
            if not np.isfinite(frequency[row, column]):
                assert np.isnan(found[row, column])
                continue
            angle = 2 * np.pi * frequency[row, column] * time
            terms = np.column_stack([np.ones(time.size), np.cos(angle), np.sin(angle)]) / err[:, None]
            fit, *_ = np.linalg.lstsq(terms, mag / err, rcond=None)
            left = ((mag / err - terms @ fit) ** 2).sum()
            mean = np.average(mag, weights=err**-2)
            assert found[row, column] == pytest.approx(1 - left / (((mag - mean) / err) ** 2).sum(), abs=1e-9)


def test_waves_are_those_that_were_put_in() -> None:
    rng = np.random.default_rng(8)
    time = np.sort(rng.uniform(0, 300, 400))
    turn = 2 * np.pi * (time - time[0]) / 0.8
    mag = 11 + 0.2 * np.cos(turn) - 0.1 * np.sin(2 * turn) + 0.05 * np.cos(5 * turn)
    curves = LightCurves.of_lists(
        [time, time, time[:3]], [mag, mag * np.nan, mag[:3]], [np.full(400, 0.01)] * 2 + [[0.0] * 3]
    )
    found, left = waves(curves, np.array([0.8, 0.8, 0.8]), 6)
    np.testing.assert_allclose(found[0], [0.2, -0.1j, 0, 0, 0.05, 0], atol=2e-3)
    assert left[0] < 1e-3
    assert np.isnan(found[1:]).all()
    assert np.isnan(left[1:]).all()
