"""Survey conventions turned into ours: times to UTC, magnitudes to fluxes and back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tapetum.surveys.profile import JD_MINUS_MJD, TimeFields

if TYPE_CHECKING:
    from numpy.typing import NDArray

SECONDS_PER_DAY = 86_400.0
AB_ZERO_POINT_NJY = 31.4  # mag = 31.4 - 2.5 log10(flux / nJy)
MAG_PER_LN = 2.5 / math.log(10.0)


def to_utc(time: NDArray[np.float64], fields: TimeFields) -> NDArray[np.float64]:
    """Survey time as MJD in UTC, still at the moment the survey names."""
    mjd = time - JD_MINUS_MJD if fields.format == "jd" else time
    if fields.scale == "utc":
        return mjd
    import erfa

    finite = np.isfinite(mjd)
    utc = np.full(mjd.shape, np.nan)
    day, part = erfa.taiutc(JD_MINUS_MJD, mjd[finite])
    utc[finite] = (day - JD_MINUS_MJD) + part
    return utc


def flux_of_mag(mag: NDArray[np.float64]) -> NDArray[np.float64]:
    """Flux [nJy] of an AB magnitude; NaN for what is no magnitude, as the placeholder -999 of some surveys."""
    with np.errstate(over="ignore"):
        flux = 10 ** (-0.4 * (mag - AB_ZERO_POINT_NJY))
    return np.where(np.isfinite(flux), flux, np.nan)


def to_flux(
    mag: NDArray[np.float64], mag_err: NDArray[np.float64], sign: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AB magnitude and error as signed flux and error [nJy] (Pogson)."""
    size = flux_of_mag(mag)
    return sign * size, size * mag_err / MAG_PER_LN


def to_mag(
    flux: NDArray[np.float64], flux_err: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Size of a signed flux [nJy] as AB magnitude and error; NaN where the flux is 0 or missing."""
    size = np.abs(flux)
    with np.errstate(divide="ignore", invalid="ignore"):
        mag = np.where(size > 0, AB_ZERO_POINT_NJY - 2.5 * np.log10(size), np.nan)
        return mag, np.where(size > 0, MAG_PER_LN * flux_err / size, np.nan)
