"""Sources in the glare of a bright star: their light curves show the star's, not their own variation.

The rule is the one SCoPe applies to ZTF. Gaia's G and BP - RP give Tycho-2's B and V, and these the radius around the
star within which no source is trusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import polynomial

from tapetum.sky.match import match_sky

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

CONE_ARCSEC = 300.0  # a star farther away does no harm
ITSELF_ARCSEC = 2.0  # a star this close is the source
FAINTEST_G = 13.0  # [mag]
FAINTEST_B = 13.0  # [mag], Tycho-2

# G - B_T and G - V_T as polynomials of BP - RP: Gaia EDR3 documentation, section 5.5.1
_G_MINUS_B = (-0.004288, -0.8547, 0.1244, -0.9085, 0.4843, -0.06814)
_G_MINUS_V = (-0.01077, -0.0682, -0.2387, 0.02342)


@dataclass(frozen=True)
class NearBrightStars:
    """Which sources a bright star is too close to.

    Attributes
    ----------
    excluded : ndarray of bool, shape (n_sources,)
        Sources within the radius of a star.
    star : ndarray of int64, shape (n_sources,)
        The star that reaches farthest beyond the source; -1 where none does.
    radius_arcsec : ndarray of float64, shape (n_stars,)
        Of every star, 0 for one that does no harm.
    """

    excluded: NDArray[np.bool_]
    star: NDArray[np.int64]
    radius_arcsec: NDArray[np.float64]


def exclusion_radius(g: ArrayLike, bp_rp: ArrayLike) -> NDArray[np.float64]:
    """Radius around a star within which sources are not to be trusted.

    Parameters
    ----------
    g, bp_rp : array_like, shape (n,)
        Gaia's G and BP - RP [mag]; NaN where not measured.

    Returns
    -------
    ndarray of float64, shape (n,)
        [arcsec]; 0 for stars that are fainter than 13 mag in G or B_T, or have no colour.

    Notes
    -----
    With B and V of Tycho-2, 354.817 - 53.27823 B + 66.01137 (B - V) + 2.1031286 B^2 + 7.6737066 (B - V)^2
    - 6.164676 B (B - V); what SCoPe 0.9.5 uses for ZTF.
    """
    magnitude, colour = np.broadcast_arrays(np.asarray(g, np.float64), np.asarray(bp_rp, np.float64))
    b = magnitude - polynomial.polyval(colour, _G_MINUS_B)
    blue = b - (magnitude - polynomial.polyval(colour, _G_MINUS_V))
    radius = (
        354.817
        - 53.27823 * b
        + 66.01137 * blue
        + 2.1031286 * b**2
        + 7.6737066 * blue**2
        - 6.164676 * b * blue
    )
    return np.where((magnitude < FAINTEST_G) & (b < FAINTEST_B), np.maximum(radius, 0), 0.0)


def near_bright_stars(
    ra: ArrayLike,
    dec: ArrayLike,
    star_ra: ArrayLike,
    star_dec: ArrayLike,
    star_g: ArrayLike,
    star_bp_rp: ArrayLike,
    cone_arcsec: float = CONE_ARCSEC,
    itself_arcsec: float = ITSELF_ARCSEC,
) -> NearBrightStars:
    """Sources with a bright star nearer than its exclusion radius.

    Parameters
    ----------
    ra, dec : array_like, shape (n_sources,)
        [deg]; a source without a position (NaN) is never excluded.
    star_ra, star_dec : array_like, shape (n_stars,)
        [deg], of all stars that could reach a source.
    star_g, star_bp_rp : array_like, shape (n_stars,)
        Gaia's G and BP - RP [mag].
    cone_arcsec
        Stars farther than this from a source are not looked at.
    itself_arcsec
        A star closer than this to a source is the source itself and does not exclude it.

    Raises
    ------
    ValueError
        Shapes differ, or a declination is beyond +-90.
    """
    lon, lat = np.asarray(ra, np.float64), np.asarray(dec, np.float64)
    radius = exclusion_radius(star_g, star_bp_rp)
    placed = np.flatnonzero(np.isfinite(lon) & np.isfinite(lat))
    harmful = np.flatnonzero(radius > 0)
    source, by, apart = match_sky(
        lon[placed],
        lat[placed],
        np.asarray(star_ra, np.float64)[harmful],
        np.asarray(star_dec, np.float64)[harmful],
        cone_arcsec,
    )
    beyond = radius[harmful[by]] - apart
    close = (beyond > 0) & (apart >= itself_arcsec)
    source, by, beyond = placed[source[close]], harmful[by[close]], beyond[close]
    star = np.full(len(lon), -1, np.int64)
    worst = np.argsort(beyond, kind="stable")  # of several stars the last one assigned stays: the worst
    star[source[worst]] = by[worst]
    return NearBrightStars(star >= 0, star, radius)
