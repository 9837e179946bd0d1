"""Exclusion of sources near bright stars."""

import numpy as np
import pytest

from tapetum.lightcurves.bright_stars import exclusion_radius, near_bright_stars


def by_hand(g, c):
    """The described formulas, written out for one star."""
    b = g - (-0.004288 - 0.8547 * c + 0.1244 * c**2 - 0.9085 * c**3 + 0.4843 * c**4 - 0.06814 * c**5)
    v = g - (-0.01077 - 0.0682 * c - 0.2387 * c**2 + 0.02342 * c**3)
    if g >= 13 or not b < 13:
        return 0.0
    d = b - v
    return max(
        0.0, 354.817 - 53.27823 * b + 66.01137 * d + 2.1031286 * b**2 + 7.6737066 * d**2 - 6.164676 * b * d
    )


def test_radii_are_those_of_the_formulas():
    g, colour = np.meshgrid(np.linspace(2, 14, 25), np.linspace(-0.3, 3.5, 20))
    expected = [by_hand(*star) for star in zip(g.ravel(), colour.ravel(), strict=True)]
    np.testing.assert_allclose(exclusion_radius(g.ravel(), colour.ravel()), expected, rtol=1e-12)
    assert 0 < np.mean(np.array(expected) > 0) < 1


def test_stars_without_a_colour_or_too_faint_do_no_harm():
    assert exclusion_radius([8.0, 13.0, np.nan], [np.nan, 0.5, 0.5]).tolist() == [0, 0, 0]
    assert exclusion_radius([12.99], [2.5]).tolist() == [0]  # red: fainter than 13 in B


@pytest.mark.parametrize("ra", [10.0, 0.0])
def test_only_sources_within_the_radius_go(ra):
    reach = exclusion_radius([9.0], [0.8])[0]
    assert 20 < reach < 300
    apart = np.array([0.5, 1.9, 2.1, reach - 0.1, reach + 0.1, 290.0])
    near = near_bright_stars(np.full(6, ra), 20 + apart / 3600, [ra + 360], [20.0], [9.0], [0.8])
    assert near.excluded.tolist() == [False, False, True, True, False, False]
    assert near.star.tolist() == [-1, -1, 0, 0, -1, -1]
    assert near.radius_arcsec.tolist() == [reach]


def test_the_star_that_reaches_farthest_is_named():
    stars = {"star_ra": [50.0, 50.0, 50.0], "star_dec": [0.01, -0.01, 0.002], "star_g": [10.0, 7.0, 15.0]}
    near = near_bright_stars([50.0, 80.0, np.nan], [0.0, 0.0, 0.0], **stars, star_bp_rp=[0.8, 0.8, 0.8])
    assert near.star.tolist() == [1, -1, -1]
    assert near.excluded.tolist() == [True, False, False]


def test_no_stars_no_harm():
    near = near_bright_stars([1.0, 2.0], [3.0, 4.0], [], [], [], [])
    assert near.excluded.tolist() == [False, False]


def test_a_field_of_stars_agrees_with_every_pair_tried(rng):
    ra, dec = 150 + rng.uniform(0, 0.5, 300), 30 + rng.uniform(0, 0.5, 300)
    star_ra, star_dec = 150 + rng.uniform(0, 0.5, 40), 30 + rng.uniform(0, 0.5, 40)
    g, colour = rng.uniform(7, 14, 40), np.where(rng.random(40) < 0.1, np.nan, rng.uniform(0, 2, 40))
    found = near_bright_stars(ra, dec, star_ra, star_dec, g, colour).excluded
    expected = []
    for lon, lat in zip(ra, dec, strict=True):
        across = (star_ra - lon) * np.cos(np.deg2rad((star_dec + lat) / 2))
        apart = 3600 * np.hypot(across, star_dec - lat)
        radius = np.nan_to_num([by_hand(*star) for star in zip(g, colour, strict=True)])
        expected.append(bool(((apart < radius) & (apart >= 2) & (apart <= 300)).any()))
    assert found.tolist() == expected
    assert 0 < found.sum() < 300
