"""From pixels to the sky and back: ICRS, whatever system and order of axes the WCS of an image has.

A WCS gives its own coordinates in its own order: galactic ones, FK4, or the latitude first. Nobody else asks it: all
positions that leave an image, or come from a catalogue, go through here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import InputError
from tapetum.sky.match import separation_arcsec

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

ROUND_TRIP_PIX = 1e-5  # a position that does not come back to itself is no position
CONE_MARGIN_DEG = 0.01  # for a WCS that is a little off
PLACED = ("RA", "GLON")  # longitudes that have a place in ICRS without a time and an observer
EQUINOXES = (1800.0, 2200.0)  # others are no equinoxes but mistakes
FIRST_FK5 = 1984.0  # equinox; earlier ones are of FK4 (FITS standard 4.0, section 8.3)
SYSTEMS = ("", "ICRS", "FK5", "FK4", "FK4-NO-E")  # of equatorial coordinates


def is_celestial(wcs: Any) -> bool:
    """Whether a WCS says where its image lies: two axes, equatorial or galactic."""
    return bool(wcs is not None and wcs.has_celestial and wcs.naxis == 2 and wcs.wcs.lngtyp in PLACED)


def require_celestial(wcs: Any) -> None:
    """Raise InputError for a WCS that does not say where its image lies."""
    if not is_celestial(wcs):
        raise InputError(
            "an image without a celestial WCS of two axes, equatorial or galactic, cannot be placed on the sky; "
            "solve its astrometry first"
        )


def system_problem(wcs: Any) -> str | None:
    """What a header says of its equatorial system that cannot be, so that it is taken as ICRS; None when all can."""
    if wcs.wcs.lngtyp != "RA":
        return None
    name, equinox = wcs.wcs.radesys.strip().upper(), wcs.wcs.equinox
    if name not in SYSTEMS:
        return f"its RADESYS {name} is not known: taken as ICRS"
    if name != "ICRS" and (equinox < EQUINOXES[0] or equinox > EQUINOXES[1]):  # NaN where nothing is said
        return f"its EQUINOX {equinox:g} is not of this time: taken as ICRS"
    return None


def sky_of_pixels(wcs: Any, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """ICRS positions of pixels, with all distortions; NaN where there is none.

    FK5 J2000 is taken as ICRS, because which of the two a header names says more about its software than about its
    catalogue, and they differ by less than 0.03 arcsec. FK4 is taken at its equinox.

    Parameters
    ----------
    wcs
        An `astropy.wcs.WCS` of two axes.
    x, y : array_like of equal shape
        0-based [pixel].

    Returns
    -------
    ra, dec : ndarray of float64
        Of the same shape [deg], the first from 0 to 360.

    Raises
    ------
    InputError
        The WCS is not celestial.
    """
    require_celestial(wcs)
    ra, dec = _turned(*native_of_pixels(wcs, x, y), _system(wcs), None)
    return ra % 360.0, dec


def pixels_of_sky(wcs: Any, ra: ArrayLike, dec: ArrayLike) -> tuple[Array, Array]:
    """Pixels of ICRS positions; NaN where there is none.

    Positions are inverted with the distortions of the WCS (SIP, TPV, tables) and then sent back to the sky: what does
    not come back to the same place - behind the tangent plane, where a distortion polynomial folds, where the
    inversion did not converge - is NaN.

    Parameters
    ----------
    wcs
        An `astropy.wcs.WCS` of two axes.
    ra, dec : array_like of equal shape
        ICRS [deg].

    Returns
    -------
    x, y : ndarray of float64
        Of the same shape, 0-based [pixel].

    Raises
    ------
    InputError
        The WCS is not celestial.
    """
    return _pixels_of_native(wcs, *native_of_sky(wcs, ra, dec))


def sky_positions(wcs: Any, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """ICRS positions of pixels [deg] as `sky_of_pixels`; NaN without a celestial WCS."""
    if not is_celestial(wcs):
        nowhere = np.full(np.shape(x), np.nan)
        return nowhere, nowhere.copy()
    return sky_of_pixels(wcs, x, y)


def pixels_in_other(wcs_from: Any, wcs_to: Any, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """Where pixels of `wcs_to` lie in the image of `wcs_from` [pixel]; NaN as `pixels_of_sky`.

    Raises
    ------
    InputError
        A WCS is not celestial.
    """
    require_celestial(wcs_from)
    require_celestial(wcs_to)
    lon, lat = native_of_pixels(wcs_to, x, y)
    return _pixels_of_native(wcs_from, *_turned(lon, lat, _system(wcs_to), _system(wcs_from)))


def enclosing_cone(wcs: Any, shape: tuple[int, int]) -> tuple[float, float, float]:
    """Centre and radius of a circle that encloses an image of a shape, (ra, dec, radius), ICRS [deg].

    The radius has a margin of 0.01 degrees for a WCS that is a little off.

    Raises
    ------
    InputError
        The WCS is not celestial.
    """
    right, top = shape[1] - 1.0, shape[0] - 1.0
    ra, dec = sky_of_pixels(wcs, [right / 2, 0, right, 0, right], [top / 2, 0, 0, top, top])
    radius = float(separation_arcsec(ra[0], dec[0], ra[1:], dec[1:]).max()) / 3600
    return float(ra[0]), float(dec[0]), radius + CONE_MARGIN_DEG


def native_of_pixels(wcs: Any, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """Longitude and latitude of pixels in the system of the WCS itself [deg]."""
    with np.errstate(all="ignore"):
        world = wcs.all_pix2world(np.asarray(x, np.float64), np.asarray(y, np.float64), 0)
    return np.asarray(world[wcs.wcs.lng]), np.asarray(world[wcs.wcs.lat])


def native_of_sky(wcs: Any, ra: ArrayLike, dec: ArrayLike) -> tuple[Array, Array]:
    """Longitude and latitude of ICRS positions in the system of the WCS itself [deg].

    Raises
    ------
    InputError
        The WCS is not celestial.
    """
    require_celestial(wcs)
    return _turned(np.asarray(ra, np.float64), np.asarray(dec, np.float64), None, _system(wcs))


def _pixels_of_native(wcs: Any, lon: Array, lat: Array) -> tuple[Array, Array]:
    from astropy.wcs.utils import proj_plane_pixel_area

    x, y = np.full(lon.shape, np.nan), np.full(lon.shape, np.nan)
    known = np.isfinite(lon) & np.isfinite(lat)
    if not known.any():
        return x, y
    world = (lon[known], lat[known]) if wcs.wcs.lng == 0 else (lat[known], lon[known])
    with np.errstate(all="ignore"):
        x[known], y[known] = wcs.all_world2pix(*world, 0, tolerance=1e-7, maxiter=50, quiet=True)
        x[~np.isfinite(x) | ~np.isfinite(y)] = np.nan
        back_lon, back_lat = native_of_pixels(wcs, x, y)
        around = (back_lon - lon + 180.0) % 360.0 - 180.0
        miss = np.hypot(around * np.cos(np.deg2rad(lat)), back_lat - lat) / np.sqrt(
            proj_plane_pixel_area(wcs)
        )
    lost = ~(miss < ROUND_TRIP_PIX)
    x[lost] = y[lost] = np.nan
    return x, y


def _system(wcs: Any) -> Any:
    """The coordinate frame of a celestial WCS; None is ICRS, told without asking astropy."""
    name, equinox = wcs.wcs.radesys.strip().upper(), wcs.wcs.equinox
    if wcs.wcs.lngtyp == "RA":
        if name == "ICRS" or system_problem(wcs):
            return None
        name = name or ("FK4" if equinox < FIRST_FK5 else "FK5")
        if name == "FK5" and (np.isnan(equinox) or equinox == 2000.0):
            return None
    from astropy.coordinates import FK4, FK5, FK4NoETerms, Galactic
    from astropy.time import Time

    if wcs.wcs.lngtyp == "GLON":
        return Galactic()
    if name == "FK5":
        return FK5(equinox=Time(equinox, format="jyear"))
    own = FK4 if name == "FK4" else FK4NoETerms
    return own(equinox=Time(1950.0 if np.isnan(equinox) else equinox, format="byear"))


def _turned(lon: Array, lat: Array, source: Any, target: Any) -> tuple[Array, Array]:
    """From one system to another; None is ICRS."""
    if source is None and target is None:
        return lon, lat
    from astropy.coordinates import ICRS, SkyCoord

    source, target = (ICRS() if system is None else system for system in (source, target))
    if source.is_equivalent_frame(target):
        return lon, lat
    known = np.isfinite(lon) & np.isfinite(lat)
    there = SkyCoord(lon[known], lat[known], unit="deg", frame=source).transform_to(target).spherical
    new_lon, new_lat = np.full(lon.shape, np.nan), np.full(lat.shape, np.nan)
    new_lon[known], new_lat[known] = there.lon.deg, there.lat.deg
    return new_lon, new_lat
