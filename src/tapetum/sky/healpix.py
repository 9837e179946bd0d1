"""HEALPix: the order-29 index that every stored position carries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

ORDER = 29
NSIDE = 2**ORDER


def hpx29(ra: ArrayLike, dec: ArrayLike) -> NDArray[np.int64]:
    """Nested HEALPix index at order 29 (pixels of 0.4 milliarcseconds).

    A nested index of any lower order k is ``hpx29 >> 2 * (29 - k)``, and all points of a pixel of order k form one
    range of order-29 indices: a cone becomes a few ranges.

    Parameters
    ----------
    ra, dec : array_like of float, same shape
        ICRS [deg]; `ra` may be outside 0...360.

    Returns
    -------
    ndarray of int64, shape of `ra`
        0 <= index < 12 * 4**29.

    Raises
    ------
    ValueError
        A coordinate is not finite, or a declination beyond +-90.

    Notes
    -----
    Gorski et al. (2005), ApJ 622, 759, section 5.3.
    """
    import healpix

    lon, lat = np.asarray(ra, np.float64), np.asarray(dec, np.float64)
    if not (np.isfinite(lon).all() and (np.abs(lat) <= 90).all()):
        raise ValueError("positions must be finite, with declinations between -90 and 90 deg")
    return np.asarray(healpix.ang2pix(NSIDE, lon, lat, nest=True, lonlat=True), np.int64)
