"""The statistics on array libraries against the compiled loops."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.periods.array_backend import Backend
from tapetum.lightcurves.periods.grid import Grid, GridRules
from tapetum.lightcurves.periods.periodograms import StatisticRules, periodograms
from tapetum.lightcurves.periods.points import Points
from tapetum.lightcurves.periods.search import PeriodRules, find_periods

NAMES = ("LS", "CE", "AOV", "ELS", "ECE", "EAOV")
NUMBERS = np.arange(700)


@pytest.fixture(params=["numpy", "torch"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "torch":
        pytest.importorskip("torch", reason="torch is in the extra `train`")
    return Backend(import_module(request.param), "cpu", block=10_000)


@pytest.fixture
def curve(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    time = np.sort(rng.uniform(58000, 58100, 130))
    mag = 17 + 0.3 * np.sin(2 * np.pi * 0.731 * time) + rng.normal(0, 0.1, 130)
    return time, mag, rng.uniform(0.05, 0.2, 130)


@pytest.mark.parametrize("name", NAMES)
def test_devices_agree_with_compiled_loops(
    name: str, backend: Backend, curve: tuple[np.ndarray, ...]
) -> None:
    grid = Grid(0.0173, 0.0021, 700)
    points = Points.of(*curve)
    assert backend.can(name, StatisticRules())
    ours, device = (periodograms((name,), [points], grid, StatisticRules(), b)[name] for b in (None, backend))
    assert type(device.raw._parts[0]) is not type(ours.raw._parts[0])
    assert device.raw.weight == pytest.approx(ours.raw.weight)
    assert np.isclose(device.at(NUMBERS), ours.at(NUMBERS), rtol=1e-6, atol=1e-9).mean() > 0.999
    values = np.empty(700)
    device.raw.fill(0, values)
    assert np.allclose(device.scaled(values), device.at(NUMBERS))


def test_a_search_on_a_device(backend: Backend, curve: tuple[np.ndarray, ...]) -> None:
    curves = LightCurves.of_lists(*([column] for column in curve))
    rules = PeriodRules(grid=GridRules(maximum=4, samples_per_peak=5), algorithms=("LS", "CE", "EAOV", "BLS"))
    ours, device = (find_periods(curves, rules, backend=b).table.to_pylist()[0] for b in (None, backend))
    for name in ("period_LS", "period_CE", "period_EAOV", "period_BLS", "period_LS_CE_EAOV", "period"):
        assert device[name] == pytest.approx(ours[name], rel=1e-6)


def test_more_harmonics_stay_in_compiled_loops() -> None:
    backend = Backend(np)
    assert not backend.can("LS", StatisticRules(harmonics=2))
    assert not backend.can("AOV", StatisticRules(aov_harmonics=2))
    assert not backend.can("BLS", StatisticRules())
