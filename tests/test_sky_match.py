from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord, search_around_sky

from tapetum.sky.match import match_sky, separation_arcsec, unit_vectors

CENTRES = [(0.0, 0.0), (359.9999, 45.0), (123.4, 89.9999), (10.0, -89.9999), (180.0, -30.0)]


def cloud(ra, dec, n, radius_arcsec, rng):
    """Points around a position, made by astropy so that poles are right."""
    return SkyCoord(ra, dec, unit="deg").directional_offset_by(
        rng.uniform(0, 360, n) * u.deg, radius_arcsec * np.sqrt(rng.uniform(size=n)) * u.arcsec
    )


@pytest.mark.parametrize(("ra", "dec"), CENTRES)
def test_all_pairs_are_those_of_astropy(ra, dec, rng):
    one, two = cloud(ra, dec, 120, 30, rng), cloud(ra, dec, 150, 30, rng)
    i1, i2, apart = match_sky(one.ra.deg, one.dec.deg, two.ra.deg + 360, two.dec.deg, 5.0)
    j1, j2, theirs, _ = search_around_sky(one, two, 5 * u.arcsec)
    assert sorted(zip(i1, i2, strict=True)) == sorted(zip(j1, j2, strict=True))
    assert len(i1) > 100
    order = np.lexsort((j2, theirs.arcsec, j1))
    np.testing.assert_allclose(apart, theirs.arcsec[order], atol=1e-7)
    assert (np.diff(i1) >= 0).all()


@pytest.mark.parametrize(("ra", "dec"), CENTRES)
def test_nearest_and_mutual(ra, dec, rng):
    one, two = cloud(ra, dec, 80, 40, rng), cloud(ra, dec, 100, 40, rng)
    full = one[:, None].separation(two[None, :]).arcsec
    i1, i2, apart = match_sky(one.ra.deg, one.dec.deg, two.ra.deg, two.dec.deg, 8.0, keep="nearest")
    want = [k for k in range(80) if full[k].min() <= 8]
    np.testing.assert_array_equal(i1, want)
    np.testing.assert_array_equal(i2, full[want].argmin(axis=1))
    np.testing.assert_allclose(apart, full[want].min(axis=1), atol=1e-7)
    m1, m2, _ = match_sky(one.ra.deg, one.dec.deg, two.ra.deg, two.dec.deg, 8.0, keep="mutual")
    want = [k for k in want if full[:, full[k].argmin()].argmin() == k]
    np.testing.assert_array_equal(m1, want)
    np.testing.assert_array_equal(m2, full[want].argmin(axis=1))
    assert 0 < len(m1) < len(i1)


def test_the_radius_is_inclusive_and_exact():
    i1, _, apart = match_sky([10.0], [20.0], [10.0], [20.0 + 1 / 3600], 1.0 + 1e-9)
    assert len(i1) == 1
    assert apart[0] == pytest.approx(1.0, abs=1e-8)
    assert len(match_sky([10.0], [20.0], [10.0], [20.0 + 1.001 / 3600], 1.0)[0]) == 0
    assert len(match_sky([10.0], [20.0], [10.0], [20.0], 0.0)[0]) == 1
    far = match_sky([0.0], [0.0], [179.0], [0.0], 647000.0)
    assert far[2][0] == pytest.approx(179 * 3600)


def test_separation_of_any_size():
    for a, b in (((0, 0), (180, 0)), ((5, 89), (185, 89)), ((359.99, 1), (0.01, 1)), ((3, 4), (3, 4))):
        want = SkyCoord(*a, unit="deg").separation(SkyCoord(*b, unit="deg")).arcsec
        assert separation_arcsec(*a, *b) == pytest.approx(want, abs=1e-8)


def test_empty_lists_and_bad_values():
    assert [len(part) for part in match_sky([], [], [1.0], [1.0], 5.0)] == [0, 0, 0]
    with pytest.raises(ValueError, match="finite"):
        unit_vectors([np.nan], [0.0])
    with pytest.raises(ValueError, match="-90 and 90"):
        unit_vectors([0.0], [91.0])
    with pytest.raises(ValueError, match="one length"):
        match_sky([1.0, 2.0], [1.0], [1.0], [1.0], 5.0)
    with pytest.raises(ValueError, match="radius"):
        match_sky([1.0], [1.0], [1.0], [1.0], -1.0)
