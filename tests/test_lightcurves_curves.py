"""Many light curves as flat arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tapetum.lightcurves.curves import LightCurves


@pytest.fixture
def curves() -> LightCurves:
    times = [[3.0, 1.0, 1.0], [], [5.0, 4.0]]
    mags = [[10.0, 11.0, 12.0], [], [13.0, 14.0]]
    errors = [[0.1, 0.2, 0.3], [], [0.4, 0.5]]
    return LightCurves.of_lists(times, mags, errors, {"lc_id": ["a", "b", "c"]}, [[0, 1, 2], [], [3, 4]])


def points(curves: LightCurves) -> list[list[float]]:
    return [mag.tolist() for _, mag, _ in curves]


def test_curves_come_out_as_they_went_in(curves: LightCurves) -> None:
    assert len(curves) == 3
    assert curves.n_points.tolist() == [3, 0, 2]
    assert points(curves) == [[10, 11, 12], [], [13, 14]]


def test_some_curves_in_another_order_keep_their_points_and_names(curves: LightCurves) -> None:
    turned = curves.take(np.array([2, 0, 2]))
    assert turned.ids == ["c", "a", "c"]
    assert points(turned) == [[13, 14], [10, 11, 12], [13, 14]]
    assert turned.flags is not None
    assert turned.flags.tolist() == [3, 4, 0, 1, 2, 3, 4]
    assert curves.take(np.array([False, True, True])).ids == ["b", "c"]


def test_points_of_one_time_keep_their_order(curves: LightCurves) -> None:
    assert points(curves.ordered()) == [[11, 12, 10], [], [14, 13]]


def test_curves_may_lose_points(curves: LightCurves) -> None:
    kept = curves.where(np.array([True, False, False, True, True]))
    assert points(kept) == [[10], [], [13, 14]]
    assert kept.ids == curves.ids


def test_random_selections_are_those_of_lists() -> None:
    rng = np.random.default_rng(3)
    lists = [rng.normal(size=n).tolist() for n in rng.integers(0, 6, 40)]
    curves = LightCurves.of_lists(lists, lists, lists)
    which = rng.integers(0, 40, 25)
    assert points(curves.take(which)) == [lists[i] for i in which]
    keep = rng.random(int(curves.offsets[-1])) < 0.5
    split = np.split(keep, curves.offsets[1:-1])
    assert points(curves.where(keep)) == [
        [v for v, k in zip(values, kept, strict=True) if k] for values, kept in zip(lists, split, strict=True)
    ]


def test_what_does_not_fit_together_is_refused() -> None:
    one, table = np.zeros(1), pa.table({"lc_id": ["a"]})
    with pytest.raises(ValueError, match="rise from 0"):
        LightCurves(one, one, one, np.array([1, 1]), table)
    with pytest.raises(ValueError, match="1 points"):
        LightCurves(one, np.zeros(2), one, np.array([0, 1]), table)
    with pytest.raises(ValueError, match="column lc_id"):
        LightCurves(one, one, one, np.array([0, 1]), pa.table({"name": ["a"]}))
