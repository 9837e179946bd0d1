"""Light curves of single alerts: sorted, cleaned, and corrected for the flux in the reference image.

Formulas: the survey's guide to reading alert photometry as Kowalski applies it; magnitudes by Pogson's law. For
variable stars a difference flux means little alone: the star's own flux in the reference image must be added.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tapetum.alerts.batch import AlertBatch, History, ReferencePhotometry
from tapetum.surveys.conventions import MAG_PER_LN, flux_of_mag, to_mag
from tapetum.surveys.profile import load_alert_profile

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class LightCurve:
    """One object's photometry from one packet, by time; columns as in `tapetum.alerts.batch.History`."""

    mjd: NDArray[np.float64]
    band: NDArray[np.str_]
    mag: NDArray[np.float64]
    mag_err: NDArray[np.float64]
    mag_limit: NDArray[np.float64]
    flux: NDArray[np.float64]
    flux_err: NDArray[np.float64]
    forced: NDArray[np.bool_]
    reference: ReferencePhotometry | None

    def __len__(self) -> int:
        return int(self.mjd.size)


@dataclass(frozen=True)
class ApparentMagnitudes:
    """Magnitudes of the source itself, reference and difference together [mag]; NaN where not available.

    Attributes
    ----------
    mag, mag_err : ndarray of float64, shape (n_rows,)
        For detections.
    brightest, faintest : ndarray of float64, shape (n_rows,)
        For non-detections: the bounds that the limit leaves.
    """

    mag: NDArray[np.float64]
    mag_err: NDArray[np.float64]
    brightest: NDArray[np.float64]
    faintest: NDArray[np.float64]


def light_curve(
    history: History, alert: int, *, forced: bool = True, min_forced_snr: float = 3.0
) -> LightCurve:
    """Photometry of one alert of a batch, sorted by time, repeated rows dropped.

    Parameters
    ----------
    alert
        Row of the batch.
    forced
        Keep forced photometry.
    min_forced_snr
        A forced flux below this many sigmas is shown as a limit (its flux becomes NaN).
    """
    keys: dict[tuple[float, str, bool, float | None], int] = {}
    for row in range(history.offsets[alert], history.offsets[alert + 1]):
        if forced or not history.forced[row]:
            mag = None if np.isnan(history.mag[row]) else float(history.mag[row])
            keys.setdefault((history.mjd[row], history.band[row], bool(history.forced[row]), mag), row)
    chosen = np.array(
        sorted(keys.values(), key=lambda row: (bool(history.forced[row]), history.mjd[row])), np.intp
    )
    flux = history.flux[chosen].copy()
    weak = history.forced[chosen] & ~(np.abs(flux) > min_forced_snr * history.flux_err[chosen])
    flux[weak] = np.nan
    ours = history.reference
    reference = None
    if ours is not None:
        reference = ReferencePhotometry(
            *(a[chosen] for a in (ours.mag, ours.mag_err, ours.field, ours.quadrant))
        )
    return LightCurve(
        history.mjd[chosen], np.array([history.band[row] for row in chosen], np.str_), history.mag[chosen],
        history.mag_err[chosen], history.mag_limit[chosen], flux, history.flux_err[chosen],
        history.forced[chosen], reference,
    )  # fmt: skip


def are_stars(
    batch: AlertBatch, *, match_radius_arcsec: float = 1.5, threshold: float = 0.4
) -> NDArray[np.bool_]:
    """Which alerts are stars: their nearest catalogued source is close enough, and star-like enough.

    For these a difference flux must be added to that of the reference image. All are False for a survey whose packets
    say nothing of catalogued sources.

    Parameters
    ----------
    match_radius_arcsec
        Farthest that the source may be.
    threshold
        Least star/galaxy score, 1 = star.
    """
    reference = load_alert_profile(batch.survey).alert.reference
    if reference is None:
        return np.zeros(len(batch), bool)
    distance, score = batch.feature(reference.star_distance), batch.feature(reference.star_score)
    stars: NDArray[np.bool_] = (distance < match_radius_arcsec) & (score > threshold)
    return stars


def add_reference_flux(curve: LightCurve) -> LightCurve:
    r"""Difference flux plus the source's flux in the reference image.

    .. math:: f = f_{diff} + f_{ref}, \quad \sigma_f^2 = \sigma_{diff}^2 + \sigma_{ref}^2

    A missing reference magnitude is the median of the same field, quadrant and band.

    Raises
    ------
    ValueError
        The light curve was decoded without its reference photometry.
    """
    reference = _imputed(curve)
    flux_ref = flux_of_mag(reference.mag)
    err_ref = flux_ref * reference.mag_err / MAG_PER_LN
    detected = np.isfinite(curve.flux)
    flux_err = np.where(detected, np.hypot(curve.flux_err, err_ref), curve.flux_err)
    return replace(curve, flux=curve.flux + flux_ref, flux_err=flux_err, reference=reference)


def apparent_magnitudes(curve: LightCurve) -> ApparentMagnitudes:
    """Magnitudes of reference plus difference flux, and the bounds where there is only a limit.

    Raises
    ------
    ValueError
        The light curve was decoded without its reference photometry.
    """
    reference = _imputed(curve)
    flux_ref = flux_of_mag(reference.mag)
    sign = np.where(curve.flux < 0, -1.0, 1.0)
    size = flux_of_mag(curve.mag)
    total = flux_ref + sign * size
    error = np.hypot(flux_ref * reference.mag_err, size * curve.mag_err) / MAG_PER_LN
    mag, mag_err = to_mag(np.where(total > 0, total, np.nan), error)
    limit = np.where(np.isnan(curve.mag), flux_of_mag(curve.mag_limit), np.nan)
    brightest, _ = to_mag(flux_ref + limit, error)
    faintest, _ = to_mag(np.where(flux_ref > limit, flux_ref - limit, np.nan), error)
    return ApparentMagnitudes(mag, mag_err, brightest, faintest)


def _imputed(curve: LightCurve) -> ReferencePhotometry:
    """Reference photometry with gaps filled by the median of the rows that share the reference image."""
    reference = curve.reference
    if reference is None:
        raise ValueError(
            "the light curve has no reference photometry: decode the packets with reference=True"
        )
    mag, mag_err = reference.mag.copy(), reference.mag_err.copy()
    for values in (mag, mag_err):
        for row in np.flatnonzero(np.isnan(values)):
            same = (curve.band == curve.band[row]) & (reference.field == reference.field[row])
            same &= (reference.quadrant == reference.quadrant[row]) & np.isfinite(values)
            if same.any():
                values[row] = np.median(values[same])
    return replace(reference, mag=mag, mag_err=mag_err)
