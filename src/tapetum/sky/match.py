"""Which positions of two lists belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]

ARCSEC = np.pi / 648000  # radian


def unit_vectors(ra: ArrayLike, dec: ArrayLike) -> NDArray[np.float64]:
    """Points on the unit sphere.

    Parameters
    ----------
    ra, dec : array_like, shape (n,)
        ICRS [deg]; `ra` may be outside 0...360.

    Returns
    -------
    ndarray of float64, shape (n, 3)

    Raises
    ------
    ValueError
        Shapes differ, a coordinate is not finite, or a declination is beyond +-90.
    """
    lon = np.deg2rad(np.atleast_1d(np.asarray(ra, np.float64)))
    lat = np.deg2rad(np.atleast_1d(np.asarray(dec, np.float64)))
    if lon.shape != lat.shape or lon.ndim != 1:
        raise ValueError(f"ra and dec must be lists of one length, got {lon.shape} and {lat.shape}")
    if not (np.isfinite(lon).all() and (np.abs(lat) <= np.pi / 2).all()):
        raise ValueError("positions must be finite, with declinations between -90 and 90 deg")
    return np.column_stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


def separation_arcsec(
    ra1: ArrayLike, dec1: ArrayLike, ra2: ArrayLike, dec2: ArrayLike
) -> NDArray[np.float64]:
    """Angle between positions [arcsec], exact at any distance (Vincenty 1975); arguments in degrees, broadcast."""
    lon = np.deg2rad(np.asarray(ra2, np.float64) - np.asarray(ra1, np.float64))
    lat1, lat2 = np.deg2rad(np.asarray(dec1, np.float64)), np.deg2rad(np.asarray(dec2, np.float64))
    across = np.hypot(
        np.cos(lat2) * np.sin(lon), np.cos(lat1) * np.sin(lat2) - np.sin(lat1) * np.cos(lat2) * np.cos(lon)
    )
    along = np.sin(lat1) * np.sin(lat2) + np.cos(lat1) * np.cos(lat2) * np.cos(lon)
    return np.asarray(np.arctan2(across, along) / ARCSEC)


def match_sky(
    ra1: ArrayLike,
    dec1: ArrayLike,
    ra2: ArrayLike,
    dec2: ArrayLike,
    radius_arcsec: float,
    *,
    keep: Literal["all", "nearest", "mutual"] = "all",
) -> Pairs:
    """Pairs of positions at most `radius_arcsec` apart.

    A k-d tree of the longer list, on unit vectors: poles and the meridian of RA 0 are places like any other.

    Parameters
    ----------
    ra1, dec1 : array_like, shape (n1,)
        First list [deg].
    ra2, dec2 : array_like, shape (n2,)
        Second list [deg].
    radius_arcsec
        Largest separation [arcsec], below 180 degrees.
    keep
        ``all`` pairs; for each position of the first list the ``nearest`` of the second; or only ``mutual`` ones:
        each the other's nearest.

    Returns
    -------
    i1, i2 : ndarray of int64, shape (n,)
        Indices into the lists, sorted by `i1`, then by separation.
    separation_arcsec : ndarray of float64, shape (n,)

    Raises
    ------
    ValueError
        As `unit_vectors`, or a radius that is not between 0 and 180 degrees.
    """
    if not 0 <= radius_arcsec < 648000:
        raise ValueError(f"a match radius of {radius_arcsec} arcsec makes no sense")
    first, second = unit_vectors(ra1, dec1), unit_vectors(ra2, dec2)
    if len(first) == 0 or len(second) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    # a hair more than asked for: the exact angle decides
    chord = 2 * np.sin(0.5 * radius_arcsec * ARCSEC) * (1 + 1e-9) + 1e-15
    if keep == "all":
        i1, i2 = _all_pairs(first, second, chord)
    else:
        i1, i2 = _nearest(first, second, chord)
        if keep == "mutual":
            j2, j1 = _nearest(second, first, chord)
            back = np.full(len(second), -1)
            back[j2] = j1
            same = back[i2] == i1
            i1, i2 = i1[same], i2[same]
    apart = _angle(first[i1], second[i2])
    within = apart <= radius_arcsec
    i1, i2, apart = i1[within], i2[within], apart[within]
    by = np.lexsort((i2, apart, i1))
    return i1[by], i2[by], apart[by]


def _angle(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angle between unit vectors [arcsec]; exact for small angles too (Kahan)."""
    less = np.linalg.norm(a - b, axis=1)
    more = np.linalg.norm(a + b, axis=1)
    return np.asarray(2 * np.arctan2(less, more) / ARCSEC)


def _all_pairs(
    first: NDArray[np.float64], second: NDArray[np.float64], chord: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    from scipy.spatial import cKDTree

    trees = [cKDTree(v, balanced_tree=False, compact_nodes=False) for v in (first, second)]
    found = trees[0].sparse_distance_matrix(trees[1], chord, output_type="ndarray")
    return found["i"].astype(np.int64), found["j"].astype(np.int64)


def _nearest(
    of: NDArray[np.float64], among: NDArray[np.float64], chord: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    from scipy.spatial import cKDTree

    apart, index = cKDTree(among, balanced_tree=False, compact_nodes=False).query(
        of, distance_upper_bound=np.nextafter(chord, np.inf)
    )
    found = np.isfinite(apart)
    return np.flatnonzero(found).astype(np.int64), index[found].astype(np.int64)
