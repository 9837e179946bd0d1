"""Made-up variable stars."""

from __future__ import annotations

import numpy as np

from tapetum.lightcurves.periods.points import Points
from tapetum.simulate.variables import KINDS, simulate_variables


def test_curves_are_the_same_in_every_run_and_depend_on_their_number_alone() -> None:
    some, later = simulate_variables(6, seed=3), simulate_variables(3, seed=3, first=3)
    assert some.curves.ids[3:] == later.curves.ids
    np.testing.assert_array_equal(some.curves.mag[some.curves.offsets[3] :], later.curves.mag)
    assert (simulate_variables(6, seed=4).curves.mag[:5] != some.curves.mag[:5]).any()


def test_curves_are_usable_and_of_all_kinds() -> None:
    made = simulate_variables(120, seed=1)
    assert set(made.kind) == set(KINDS)
    assert np.isfinite(made.curves.mag).all()
    assert (made.curves.magerr > 0).all()
    for time, _, _ in made.curves:
        assert time.size >= 15
        assert (np.diff(time) >= 0).all()
    periodic = np.array([kind not in ("walk", "explosion") for kind in made.kind])
    np.testing.assert_array_equal(np.isfinite(made.period), periodic)


def test_the_period_is_that_of_the_curve() -> None:
    made = simulate_variables(150, seed=2)
    better = []
    for (time, mag, err), period, kind in zip(made.curves, made.period, made.kind, strict=True):
        if kind not in ("series", "saw"):
            continue
        points = Points.of(time, mag, err)

        def left(days: float, points: Points = points) -> float:
            angle = 2 * np.pi * points.time[:, None] / days * np.arange(1, 6)
            terms = np.hstack([np.cos(angle), np.sin(angle), np.ones((points.time.size, 1))])
            fit = np.linalg.lstsq(terms, points.mag, rcond=None)[0]
            return float(np.var(points.mag - terms @ fit))

        better.append(left(period) < left(period * 1.0137))
    assert np.mean(better) > 0.85
