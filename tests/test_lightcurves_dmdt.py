"""Histograms of pairs against numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.dmdt import DM_EDGES, DT_EDGES, dmdt


def slowly(t: np.ndarray, m: np.ndarray, dt_edges=DT_EDGES, dm_edges=DM_EDGES) -> np.ndarray:
    i, j = np.triu_indices(len(t), 1)
    counts = np.histogram2d(t[j] - t[i], m[j] - m[i], bins=[np.array(dt_edges), np.array(dm_edges)])[0].T
    return counts / max(np.linalg.norm(counts), 1e-300)


def one(t, m, **edges) -> np.ndarray:
    return dmdt(LightCurves.of_lists([t], [m], [np.full(len(t), 0.1)]), **edges)[0]


@pytest.mark.parametrize("n", [2, 3, 50, 51, 300])
def test_every_pair_is_counted_in_its_bin(n: int, rng: np.random.Generator) -> None:
    t, m = 58000 + np.sort(rng.uniform(0, 2600, n)), rng.normal(18, 0.3, n)
    np.testing.assert_allclose(one(t, m), slowly(t, m), atol=1e-7)


def test_differences_on_the_edges_are_counted_where_comparing_puts_them(rng: np.random.Generator) -> None:
    t = np.sort(rng.integers(0, 4000, 200)) / 2.0
    m = rng.integers(0, 160, 200) * 0.05
    np.testing.assert_allclose(one(t, m), slowly(t, m), atol=1e-7)


@pytest.mark.parametrize("which", range(len(DT_EDGES)))
@pytest.mark.parametrize("way", [-1, 0, 1])
def test_a_pair_at_an_edge_in_time(which: int, way: int) -> None:
    late = np.nextafter(DT_EDGES[which], way * np.inf) if way else DT_EDGES[which]
    if late >= 0:
        t, m = np.array([0.0, late]), np.array([1.0, 1.02])
        np.testing.assert_array_equal(one(t, m), slowly(t, m))


@pytest.mark.parametrize("edge", DM_EDGES)
@pytest.mark.parametrize("way", [-1, 0, 1])
def test_a_pair_at_an_edge_in_magnitude(edge: float, way: int) -> None:
    t, m = np.array([0.0, 3.0]), np.array([0.0, np.nextafter(edge, way * np.inf) if way else edge])
    np.testing.assert_array_equal(one(t, m), slowly(t, m))


def test_curves_beyond_the_tables_are_counted_as_well(rng: np.random.Generator) -> None:
    t, m = np.sort(rng.uniform(0, 900, 60)), rng.normal(18, 5, 60)
    assert np.ptp(m) > 8
    np.testing.assert_allclose(one(t, m), slowly(t, m), atol=1e-7)
    t[-1] = 1e6
    np.testing.assert_allclose(one(t, m / 10), slowly(t, m / 10), atol=1e-7)


def test_other_edges(rng: np.random.Generator) -> None:
    t, m = np.sort(rng.uniform(0, 90, 80)), rng.normal(18, 0.2, 80)
    wide = {"dt_edges": (0.0, 1.0, 50.0), "dm_edges": (-1.0, 0.0, 0.5, 1.0)}
    fine = {"dt_edges": (0.0, 1.0, 50.0), "dm_edges": (-1.0, 0.0, 1e-5, 1.0)}
    late = {"dt_edges": (5.0, 5.1, 5.2, 60.0), "dm_edges": (0.1, 0.2)}
    for edges in (wide, fine, late):
        np.testing.assert_allclose(one(t, m, **edges), slowly(t, m, **edges), atol=1e-7)


@pytest.mark.parametrize(
    "edges",
    [
        {"dt_edges": (0.0, 1.0, 1.0)},
        {"dt_edges": (-1.0, 1.0)},
        {"dm_edges": (0.0,)},
        {"dm_edges": tuple(range(64))},
        {"dm_edges": (0.0, np.nan)},
    ],
)
def test_edges_that_make_no_bins_are_refused(edges) -> None:
    with pytest.raises(ValueError, match=r"rise|begin at zero"):
        one([0.0, 1.0], [1.0, 2.0], **edges)


def test_single_points_and_far_pairs_leave_it_empty() -> None:
    assert not one([5.0], [17.0]).any()
    assert not one([0.0, 3000.0], [17.0, 17.0]).any()


def test_the_norm_is_one_and_points_of_one_time_count(rng: np.random.Generator) -> None:
    t, m = np.repeat(np.arange(20.0), 2), rng.normal(18, 0.2, 40)
    got = one(t, m)
    assert (got.astype(float) ** 2).sum() == pytest.approx(1.0, rel=1e-6)
    np.testing.assert_allclose(got, slowly(t, m), atol=1e-7)
    assert got[:, 0].any()


def test_unusable_curves_are_missing_and_their_neighbours_are_not(rng: np.random.Generator) -> None:
    t, m, e = np.arange(30.0), rng.normal(18, 0.2, 30), np.full(30, 0.1)
    got = dmdt(LightCurves.of_lists([t, t[::-1], t], [m, m, m], [e, e, e]))
    assert got.dtype == np.float32
    assert np.isnan(got[1]).all()
    np.testing.assert_array_equal(got[0], got[2])
    assert dmdt(LightCurves.of_lists([], [], [])).shape == (0, 26, 26)
