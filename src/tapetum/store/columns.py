"""What goes into the tables, as compact columns: made by the workers, written by the one writer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tapetum.alerts.batch import AlertBatch, History
from tapetum.sky.healpix import hpx29

if TYPE_CHECKING:
    from numpy.typing import NDArray

DETECTION_VALUES = ("mag", "mag_err", "mag_limit", "flux", "flux_err", "ra", "dec")


@dataclass(frozen=True)
class ScoreColumns:
    """The scores of one model for the alerts of an `AlertColumns`, row by row.

    Not the finder's own class: the process that writes needs no network library.

    Attributes
    ----------
    model, version, identity
        Name and version of the model, and the hash of what decides its scores.
    score, probability : ndarray of float64, shape (n,)
        NaN is null.
    flags : ndarray of int32, shape (n,)
    error : list of str or None, length n
        Why a score is null.
    """

    model: str
    version: str
    identity: str
    score: NDArray[np.float64]
    probability: NDArray[np.float64]
    flags: NDArray[np.int32]
    error: list[str | None]


@dataclass(frozen=True)
class DetectionColumns:
    """Rows of light curves, flat: those of alert ``i`` are ``offsets[i]:offsets[i + 1]``.

    Attributes
    ----------
    offsets : ndarray of int64, shape (n_alerts + 1,)
    mjd : ndarray of float64, shape (n_rows,)
    band : ndarray of int16, shape (n_rows,)
        Index into `band_names`.
    band_names
        sncosmo names.
    forced : ndarray of bool, shape (n_rows,)
    rank : ndarray of int64, shape (n_rows,)
        See `detection_rank`.
    values : ndarray of float64, shape (7, n_rows)
        In the order of `DETECTION_VALUES`; NaN is null.
    """

    offsets: NDArray[np.int64]
    mjd: NDArray[np.float64]
    band: NDArray[np.int16]
    band_names: list[str]
    forced: NDArray[np.bool_]
    rank: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class AlertColumns:
    """Alerts of one survey without their stamps.

    Attributes
    ----------
    index : ndarray of int64, shape (n,)
        Which packet of its batch each alert came from; -1 for one that cannot be stored.
    mag, mag_err, flux, flux_err : ndarray of float64, shape (n,)
        NaN is null.
    candidate
        JSON texts, None where nothing is kept.

    The other columns are those of `tapetum.alerts.batch.AlertBatch`.
    """

    survey: str
    index: NDArray[np.int64]
    alert_id: NDArray[np.int64]
    object_id: list[str]
    mjd: NDArray[np.float64]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    hpx29: NDArray[np.int64]
    band: list[str]
    mag: NDArray[np.float64]
    mag_err: NDArray[np.float64]
    flux: NDArray[np.float64]
    flux_err: NDArray[np.float64]
    candidate: list[str | None]
    detections: DetectionColumns
    scores: ScoreColumns | None = None

    def __len__(self) -> int:
        return int(self.alert_id.size)


def detection_rank(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Order of preference between versions of one row, from its content alone: the order of arrival is nothing.

    A detection is better than a limit, then more values are better than fewer, then a smaller `flux_err` (as
    float32) is better; what is left is decided by a hash of all values, which differs whenever they do.

    Parameters
    ----------
    values : ndarray of float64, shape (7, n)
        In the order of `DETECTION_VALUES`.

    Returns
    -------
    ndarray of int64, shape (n,)
        Bit 62: a flux; bits 58-61: number of values; bits 26-57: precision; bits 0-25: hash.
    """
    present = ~np.isnan(values)
    flux, flux_err = DETECTION_VALUES.index("flux"), DETECTION_VALUES.index("flux_err")
    with np.errstate(over="ignore"):
        error = np.where(present[flux_err], np.abs(values[flux_err]), np.inf).astype(np.float32)
    precision = np.int64(0xFFFFFFFF) - error.view(np.uint32).astype(
        np.int64
    )  # positive floats order as their bits do
    mixed = np.zeros(values.shape[1], np.uint64)
    for bits in np.where(present, values, 0.0).view(np.uint64):
        mixed = (mixed ^ bits) * np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio
        mixed ^= mixed >> np.uint64(32)
    digest = (mixed >> np.uint64(38)).astype(np.int64)
    count = present.sum(axis=0).astype(np.int64)
    rank: NDArray[np.int64] = (
        (present[flux].astype(np.int64) << 62) | (count << 58) | (precision << 26) | digest
    )
    return rank


def detection_columns(batch: AlertBatch) -> DetectionColumns:
    """The light-curve rows of a batch: its history, or the alerts' own detections where there is none."""
    history = batch.history if batch.history is not None else _own_rows(batch)
    names = list(dict.fromkeys(history.band))
    number = {name: code for code, name in enumerate(names)}
    values = np.array([getattr(history, name) for name in DETECTION_VALUES], np.float64)
    return DetectionColumns(
        offsets=history.offsets,
        mjd=history.mjd,
        band=np.fromiter(map(number.__getitem__, history.band), np.int16, len(history.band)),
        band_names=names,
        forced=history.forced,
        rank=detection_rank(values),
        values=values,
    )


def _own_rows(batch: AlertBatch) -> History:
    n = len(batch)
    return History(
        offsets=np.arange(n + 1),
        mjd=batch.mjd,
        band=batch.band,
        mag=batch.mag,
        mag_err=batch.mag_err,
        mag_limit=np.full(n, np.nan),
        flux=batch.flux,
        flux_err=batch.flux_err,
        ra=batch.ra,
        dec=batch.dec,
        forced=np.zeros(n, np.bool_),
    )


def unusable(batch: AlertBatch) -> list[str | None]:
    """Why each alert of a batch cannot be stored; None when it can.

    That it has a position, a time and a name is known from decoding it.
    """
    reasons: list[str | None] = [None] * len(batch)
    for what, texts in (("object", batch.object_id), ("band", batch.band)):
        for row, text in enumerate(texts):
            if "\0" in text:  # PostgreSQL keeps no NUL in a text
                reasons[row] = f"its {what} has no proper name: {text!r}"
    return reasons


def alert_columns(
    batch: AlertBatch, index: list[int], scores: ScoreColumns | None = None
) -> tuple[AlertColumns, list[tuple[int, str]]]:
    """Strip a batch to what the tables take.

    Parameters
    ----------
    batch
        Decoded alerts.
    index
        Packet of each alert within its batch of packets.
    scores
        Their scores, row by row.

    Returns
    -------
    (AlertColumns, list of (int, str))
        The alerts; and packet and reason of those that cannot be stored: their `index` is -1.
    """
    reasons = unusable(batch)
    rejected = [(index[row], reason) for row, reason in enumerate(reasons) if reason is not None]
    good = np.array([reason is None for reason in reasons], np.bool_)
    columns = AlertColumns(
        survey=batch.survey,
        # an alert that cannot be stored points at no packet
        index=np.where(good, np.asarray(index, np.int64), -1),
        alert_id=batch.alert_id,
        object_id=batch.object_id,
        mjd=batch.mjd,
        ra=batch.ra,
        dec=batch.dec,
        hpx29=hpx29(batch.ra, batch.dec),
        band=batch.band,
        mag=batch.mag,
        mag_err=batch.mag_err,
        flux=batch.flux,
        flux_err=batch.flux_err,
        candidate=list(batch.candidate_json) if batch.candidate_json is not None else [None] * len(batch),
        detections=detection_columns(batch),
        scores=scores,
    )
    return columns, rejected
