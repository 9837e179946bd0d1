from __future__ import annotations

import healpix
import numpy as np
import pytest

from tapetum.sky.healpix import hpx29


def test_coarser_pixels_are_the_leading_bits(rng):
    ra, dec = rng.uniform(0, 360, 2000), np.degrees(np.arcsin(rng.uniform(-1, 1, 2000)))
    fine = hpx29(ra, dec)
    assert fine.dtype == np.int64
    for order in (0, 5, 13, 20):
        coarse = healpix.ang2pix(2**order, ra, dec, nest=True, lonlat=True)
        assert (fine >> 2 * (29 - order) == coarse).all()


@pytest.mark.parametrize(("ra", "base"), [(10.0, 0), (100.0, 1), (190.0, 2), (350.0, 3)])
def test_poles_are_the_corners_of_the_base_pixels(ra, base):
    per_base = 4**29
    assert hpx29(ra, 90.0) == (base + 1) * per_base - 1
    assert hpx29(ra, -90.0) == (base + 8) * per_base


def test_right_ascension_wraps():
    assert (hpx29([-1.0, 721.5], [12.0, -3.0]) == hpx29([359.0, 1.5], [12.0, -3.0])).all()


def test_neighbours_within_a_milliarcsecond_differ():
    assert hpx29(120.0, 30.0) != hpx29(120.0, 30.0 + 1e-3 / 3600)


@pytest.mark.parametrize(("ra", "dec"), [(np.nan, 0.0), (10.0, np.inf), (10.0, 90.01), (np.inf, 1.0)])
def test_no_position_is_an_error(ra, dec):
    with pytest.raises(ValueError, match="finite"):
        hpx29([1.0, ra], [1.0, dec])
