"""What is known about real packets: who says that an alert is real, and what its stamp says against it.

No list of labels is read. An alert counts as real or bogus when its packet's own score is decided, when it is
a known asteroid, or, where only an older score is there and it is undecided, by the shape of what was
detected. The shape also tempers the packet's score, because that score accepts many residuals of bad
subtraction: the energy a point source leaves unexplained is compared with the energy it explains, the same
ratio by which simulated alerts are judged (`tapetum.simulate.injections.judge`). Which fields of a packet
these are is in the profile of its survey.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tapetum.core.robust import MAD_TO_SIGMA
from tapetum.surveys.profile import load_alert_profile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.alerts.batch import AlertBatch

BOX = 7  # half the side of the box that is fitted [pixel]
APERTURE = 6.0  # pixels beyond this radius do not count
FWHM_GRID = (1.0, 1.25, 1.5, 1.75, 2.0, 2.3, 2.6, 3.0, 3.5, 4.2, 5.0, 6.0)  # [pixel]
OFFSETS = tuple(np.arange(-1.5, 1.51, 0.25))  # of the source from the middle of the stamp [pixel]


class TruthRules(BaseModel):
    """Numbers of the labelling rule, as a recipe gives them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    real_above: float = Field(0.9, description="the packet's own score is trusted above this")
    bogus_below: float = Field(0.1, description="and below this")
    early_real_above: float = Field(0.7, description="the older score, where the packet has no other")
    early_bogus_below: float = Field(0.35)
    asteroid_arcsec: float = Field(5.0, description="a known asteroid this close is the source ...")
    asteroid_mag: float = Field(1.5, description="... if its brightness agrees this well [mag]")
    unexplained: float = Field(
        0.5, gt=0, description="ratio of energies at which shape alone gives even odds"
    )
    steepness: float = Field(4.0, gt=0)
    clear_snr: float = Field(8.0, description="below this a shape says nothing")
    trust: float = Field(
        0.7, description="share that shape has in the target of an alert its packet calls real"
    )
    sharpest_fwhm_pix: dict[str, float] = Field(
        default_factory=dict, description="survey -> narrower than any PSF it delivers"
    )


@dataclass(frozen=True)
class Shapes:
    """Point-source fits to the middle of difference stamps.

    Attributes
    ----------
    snr : ndarray of float32, shape (n,)
        Matched-filter signal-to-noise; NaN where the middle is missing or the stamp is cut.
    unexplained : ndarray of float32, shape (n,)
        Root energy of the residual beyond noise over that of the source.
    fwhm : ndarray of float32, shape (n,)
        Width of the best source [pixel].
    """

    snr: NDArray[np.float32]
    unexplained: NDArray[np.float32]
    fwhm: NDArray[np.float32]


@cache
def _sources() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    # pixel-integrated Gaussians of unit energy, one per row, and their widths
    pixels = np.arange(-BOX, BOX + 1)[:, None] + np.array([-1, 0, 1])[None, :] / 3
    rows, widths = [], []
    for fwhm in FWHM_GRID:
        profiles = [np.exp(-0.5 * ((pixels - offset) * 2.3548 / fwhm) ** 2).mean(1) for offset in OFFSETS]
        for along_y in profiles:
            for along_x in profiles:
                source = np.outer(along_y, along_x).ravel()
                rows.append(source / np.sqrt((source**2).sum()))
                widths.append(fwhm)
    return np.array(rows, np.float32), np.array(widths, np.float32)


def measure_shapes(difference: NDArray[np.float32], shapes: NDArray[np.int16]) -> Shapes:
    """Fit a point source of free width and place to the middle of each difference stamp.

    Parameters
    ----------
    difference : ndarray of float32, shape (n, n_y, n_x)
        Stamps at the array origin, NaN where there is no value.
    shapes : ndarray of int16, shape (n, 2)
        (n_y, n_x) of each; a stamp that is not square was cut, its source is not in the middle, and it is not
        measured.
    """
    n = len(difference)
    snr, unexplained, width = (np.full(n, np.nan, np.float32) for _ in range(3))
    sources, widths = _sources()
    axis = np.arange(-BOX, BOX + 1)
    inside = (np.hypot(axis[:, None], axis[None, :]) <= APERTURE).ravel()
    for i in range(n):
        side, other = int(shapes[i, 0]), int(shapes[i, 1])
        if side != other or side < 2 * BOX + 1:
            continue
        stamp = difference[i, :side, :side]
        finite = stamp[np.isfinite(stamp)]
        if finite.size < stamp.size // 4:
            continue
        level = np.median(finite)
        noise = MAD_TO_SIGMA * float(np.median(np.abs(finite - level)))
        middle = np.s_[side // 2 - BOX : side // 2 + BOX + 1]
        box = (stamp[middle, middle].ravel() - level) / (noise or 1.0)
        if np.isfinite(box).mean() < 0.9:
            continue
        values = np.where(inside & np.isfinite(box), box, 0).astype(np.float32)
        fits = sources @ values
        best = int(np.argmax(fits))
        residual = float(((values - fits[best] * sources[best]) ** 2).sum())
        expected = inside.sum() + 2 * np.sqrt(
            2 * inside.sum()
        )  # of pure noise, and two of its standard deviations
        snr[i], width[i] = fits[best], widths[best]
        unexplained[i] = np.sqrt(max(residual - expected, 0)) / max(float(fits[best]), 1e-3)
    return Shapes(snr, unexplained, width)


def packet_truth(batch: AlertBatch, rules: TruthRules) -> NDArray[np.float32]:
    """Probability that each alert is real, NaN where nothing trustworthy is known.

    Parameters
    ----------
    batch
        Alerts of one survey, with stamps.
    rules
        See `TruthRules`.

    Returns
    -------
    ndarray of float32, shape (n,)
    """
    shapes = measure_shapes(batch.stamps[:, 2], batch.shapes[:, 2])
    clear = shapes.snr >= rules.clear_snr
    by_shape = 1 / (1 + (shapes.unexplained / rules.unexplained) ** rules.steepness)
    narrow = shapes.fwhm / rules.sharpest_fwhm_pix.get(batch.survey, 1e-3)
    by_shape = by_shape * np.minimum(narrow, 1.0) ** 6  # half at 0.9 of the sharpest PSF, a tenth at 0.7
    real, bogus = _packet_says(batch, rules)
    target = np.where(clear & ~real & ~bogus & _undecided(batch), by_shape, np.nan)
    tempered = np.where(clear, (1 - rules.trust) + rules.trust * by_shape, 1.0)
    target = np.where(real, tempered, target)
    target = np.where(bogus, 0.0, target)
    return np.where(_asteroids(batch, rules) & ~(clear & (narrow < 1)), 1.0, target).astype(np.float32)


def truth_fields(survey: str) -> list[str]:
    """Names of the candidate's fields that the rule reads for a survey."""
    alert = load_alert_profile(survey).alert
    asteroid = (alert.asteroid.distance, alert.asteroid.mag) if alert.asteroid else ()
    paths = (alert.reliability, alert.early_reliability, alert.brightness.mag, *asteroid)
    return [_leaf(path) for path in paths if path]


def _leaf(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _field(batch: AlertBatch, path: str | None) -> NDArray[np.float64]:
    return batch.feature(_leaf(path)) if path else np.full(len(batch), np.nan)


def _scores(batch: AlertBatch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    alert = load_alert_profile(batch.survey).alert
    return _field(batch, alert.reliability), _field(batch, alert.early_reliability)


def _packet_says(batch: AlertBatch, rules: TruthRules) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    score, early = _scores(batch)
    old = np.isnan(score)
    real = (score > rules.real_above) | (old & (early > rules.early_real_above))
    bogus = (score < rules.bogus_below) | (old & (early < rules.early_bogus_below))
    return real, bogus


def _undecided(batch: AlertBatch) -> NDArray[np.bool_]:
    # shape alone decides only where no network did: the middle of a score is doubt about more than shape
    score, early = _scores(batch)
    return np.asarray(np.isnan(score) & np.isfinite(early), bool)


def _asteroids(batch: AlertBatch, rules: TruthRules) -> NDArray[np.bool_]:
    alert = load_alert_profile(batch.survey).alert
    if alert.asteroid is None:
        return np.zeros(len(batch), bool)
    distance = _field(batch, alert.asteroid.distance)
    mag = _field(batch, alert.brightness.mag)
    agrees = np.abs(_field(batch, alert.asteroid.mag) - mag) <= rules.asteroid_mag
    return np.asarray((distance >= 0) & (distance <= rules.asteroid_arcsec) & agrees, bool)
