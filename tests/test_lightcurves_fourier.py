"""Fourier series against numpy's least squares."""

from __future__ import annotations

import numpy as np
import pytest

from tapetum.lightcurves._fourier_kernels import _circle
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.fourier import FOURIER, fourier, series


def functions(t: np.ndarray, period: float, order: int = 5) -> np.ndarray:
    turns = (t - t[0]) / period + np.fmod(t[0], period) / period
    waves = [f(2 * np.pi * n * turns) for n in range(1, order + 1) for f in (np.cos, np.sin)]
    return np.stack([np.ones_like(t), t - t.min(), *waves], axis=1)


def slowly(t, m, e, period):
    """Power, BIC, order and fitted magnitudes."""
    scale = np.maximum(np.abs(functions(t, period)).max(axis=0), 1e-300)
    chi2, models = [], []
    for order in range(6):
        used = 2 + 2 * order
        basis = functions(t, period, order) / scale[:used]
        level = np.average(m, weights=e**-2.0)
        fit = np.linalg.lstsq(basis / e[:, None], (m - level) / e, rcond=1e-12)[0]
        models.append(basis @ fit + level)
        chi2.append((((m - models[-1]) / e) ** 2).sum())
    bic = np.array(chi2) + np.log(len(t)) * (2 + 2 * np.arange(6))
    best = int(np.argmin(bic))
    return (chi2[0] - chi2[best]) / chi2[0], bic[best], best, models[best]


def model(t: np.ndarray, row: np.ndarray, period: float) -> np.ndarray:
    return functions(t, period) @ row[2:]


def check(t, m, e, period, *, same_order: bool = True) -> None:
    curves = LightCurves.of_lists([t], [m], [e])
    (row,), (order,) = series(curves, np.array([period]))
    power, bic, best, fitted = slowly(t, m, e, period)
    assert row[0] == pytest.approx(power, abs=1e-9)
    assert row[1] == pytest.approx(bic, rel=1e-9)
    if same_order:
        assert order == best
        np.testing.assert_allclose(model(t, row, period), fitted, atol=1e-6)


def star(rng: np.random.Generator, n: int, period: float, start: float = 0.0, span: float = 400.0):
    t = start + np.sort(rng.uniform(0, span, n))
    e = rng.uniform(0.01, 0.05, n)
    phase = 2 * np.pi * t / period
    shape = 0.4 * np.cos(phase) + 0.2 * np.sin(2 * phase) - 0.1 * np.cos(3 * phase) + 0.05 * np.sin(4 * phase)
    return t, 17 + 1e-4 * (t - start) + shape + rng.normal(0, e), e


@pytest.mark.parametrize("n", [13, 14, 50, 51, 700])
@pytest.mark.parametrize("start", [0.0, 2458000.5])
def test_fits_are_those_of_least_squares(n: int, start: float, rng: np.random.Generator) -> None:
    check(*star(rng, n, 0.57, start), 0.57)


def test_as_many_harmonics_are_taken_as_there_are(rng: np.random.Generator) -> None:
    t, m, e = star(rng, 300, 0.57)
    noise = 17 + rng.normal(0, e)
    check(t, noise, e, 0.57)
    orders = series(LightCurves.of_lists([t, t], [m, noise], [e, e]), np.array([0.57, 0.57])).order
    assert orders.tolist() == [4, 0]


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 5.0])
def test_a_period_as_long_as_the_baseline_fits_as_well(factor: float, rng: np.random.Generator) -> None:
    t, m, e = star(rng, 150, 120.0)
    period = factor * (t[-1] - t[0])
    # harmonics of very long periods are polynomials to within the numbers' digits: compare what they explain
    curves = LightCurves.of_lists([t], [m], [e])
    power, bic, _, fitted = slowly(t, m, e, period)
    row = fourier(curves, np.array([period]))[0]
    assert row[0] == pytest.approx(power, abs=1e-6)
    assert row[1] == pytest.approx(bic, rel=1e-6)
    np.testing.assert_allclose(model(t, row, period), fitted, atol=1e-4)


def test_a_period_far_longer_than_the_baseline_is_no_accident(rng: np.random.Generator) -> None:
    t, m, e = star(rng, 150, 120.0)
    for factor in (30.0, 1e3, 1e6, 1e12):
        row = fourier(LightCurves.of_lists([t], [m], [e]), np.array([factor * 400]))[0]
        assert np.isfinite(row).all()
        assert 0 <= row[0] <= 1


def test_points_that_share_a_phase_fit_as_well(rng: np.random.Generator) -> None:
    t = np.arange(80.0)
    m, e = 15 + rng.normal(0, 0.1, 80), np.full(80, 0.1)
    check(t, m, e, 1.0)
    check(t, m, e, 2.0)


def test_a_series_without_noise_is_found_to_the_last_digits() -> None:
    t = np.sort(np.random.default_rng(1).uniform(0, 300, 100))
    want = np.array([0.3, -0.2, 0.1, 0.05, 0.02, -0.03, 0.01, 0.015, -0.005, 0.004])
    m = functions(t, 3.3) @ np.concatenate([[16.0, 0.001], want])
    row = fourier(LightCurves.of_lists([t], [m], [np.full(100, 0.01)]), np.array([3.3]))[0]
    assert row[0] == pytest.approx(1.0, abs=1e-15)
    assert row[2:4] == pytest.approx([16.0, 0.001], rel=1e-10)
    np.testing.assert_allclose(row[4:], want, atol=1e-12)


@pytest.mark.parametrize(("n", "most"), [(3, 0), (4, 0), (5, 1), (12, 4), (13, 5)])
def test_few_points_have_few_harmonics(n: int, most: int, rng: np.random.Generator) -> None:
    t, m, e = star(rng, n, 3.0)
    values, order = series(LightCurves.of_lists([t], [m], [e / 1e3]), np.array([3.0]))
    assert 0 <= order[0] <= most
    assert np.isfinite(values[0, 1:]).all()
    assert (values[0, 4 + 2 * order[0] :] == 0).all()


def test_one_and_two_points_have_no_series(rng: np.random.Generator) -> None:
    curves = LightCurves.of_lists([[1.0], [1.0, 2.0]], [[15.0], [15.0, 16.0]], [[0.1], [0.1, 0.1]])
    values, order = series(curves, np.array([1.0, 1.0]))
    assert np.isnan(values).all()
    assert order.tolist() == [-1, -1]


@pytest.mark.parametrize("period", [0.0, -1.0, np.nan, np.inf])
def test_a_period_that_is_none_has_no_series(period: float, rng: np.random.Generator) -> None:
    curves = LightCurves.of_lists(*[[values] * 2 for values in star(rng, 30, 1.0)])
    values, order = series(curves, np.array([1.0, period]))
    assert np.isfinite(values[0]).all()
    assert np.isnan(values[1]).all()
    assert order[1] == -1


def test_a_constant_curve_has_a_level_and_no_power() -> None:
    row = fourier(
        LightCurves.of_lists([np.arange(30.0)], [np.full(30, 17.3)], [np.full(30, 0.1)]), np.array([2.2])
    )[0]
    assert np.isnan(row[0])
    assert row[1:4] == pytest.approx([2 * np.log(30), 17.3, 0.0])
    assert (row[4:] == 0).all()


def test_points_of_one_time_only_have_no_slope() -> None:
    mags = np.linspace(15, 16, 20)
    row = fourier(LightCurves.of_lists([np.full(20, 5.0)], [mags], [np.full(20, 0.1)]), np.array([1.0]))[0]
    assert row[2:4] == pytest.approx([mags.mean(), 0.0])
    assert row[0] == pytest.approx(0.0, abs=1e-12)


def test_unusable_curves_are_missing() -> None:
    curves = LightCurves.of_lists([[2.0, 1.0, 3.0, 4.0]], [[1.0, 2.0, 1.0, 2.0]], [[0.1] * 4])
    assert np.isnan(fourier(curves, np.array([1.0]))).all()
    assert fourier(LightCurves.of_lists([], [], []), np.empty(0)).shape == (0, len(FOURIER))


def test_one_period_per_curve_is_needed() -> None:
    with pytest.raises(ValueError, match="one period for each of 1 curves"):
        fourier(LightCurves.of_lists([[1.0]], [[1.0]], [[1.0]]), np.array([1.0, 2.0]))


def test_sines_and_cosines_are_right_to_the_last_digits(rng: np.random.Generator) -> None:
    x = np.concatenate([np.arange(-40, 41) / 8, rng.uniform(-3, 3, 1000), [0.25 - 1e-17, 0.5, -0.5]])
    cosine, sine = np.empty_like(x), np.empty_like(x)
    _circle(x, 0.0, 1.0, 0.0, cosine, sine)
    turns = x - np.round(x)
    np.testing.assert_allclose(cosine, np.cos(2 * np.pi * turns), atol=1e-15)
    np.testing.assert_allclose(sine, np.sin(2 * np.pi * turns), atol=1e-15)
