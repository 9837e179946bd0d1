"""The columns of many alerts of one survey: what finders score, stores keep and reports show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

STAMP_NAMES = ("science", "template", "difference")
AlertKey = tuple[str, int]  # survey and alert_id: what tells an alert from every other


@dataclass(frozen=True)
class Rejection:
    """A packet that cannot be used, and why.

    Attributes
    ----------
    source
        File, or archive and member, that held it.
    record
        0-based record within the source, -1 when the source itself cannot be read.
    reason
        One sentence that names what is wrong.
    payload
        The packet's bytes as far as they could be cut out, for the dead letters.
    """

    source: str
    record: int
    reason: str
    payload: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class ReferencePhotometry:
    """What the packets say of the source in the reference image, per row of a `History`; NaN where they do not.

    Attributes
    ----------
    mag, mag_err : ndarray of float64, shape (n_rows,)
        Of the nearest source in the reference image [mag].
    field, quadrant : ndarray of float64, shape (n_rows,)
        Where on sky and camera the row was taken; rows of the same field, quadrant and band share a reference image.
    """

    mag: NDArray[np.float64]
    mag_err: NDArray[np.float64]
    field: NDArray[np.float64]
    quadrant: NDArray[np.float64]


@dataclass(frozen=True)
class History:
    """Photometry of alerts over time: own detection first, then the packet's earlier rows, flat.

    Rows of alert ``i`` are ``offsets[i]:offsets[i + 1]``.

    Attributes
    ----------
    offsets : ndarray of int64, shape (n_alerts + 1,)
    mjd : ndarray of float64, shape (n_rows,)
        UTC; mid-exposure by the survey's nominal exposure time where the rows do not carry their own.
    band : list of str, length n_rows
        sncosmo names.
    mag, mag_err, mag_limit : ndarray of float64, shape (n_rows,)
        Unsigned difference magnitude, its error and the 5-sigma limit [mag]; NaN where not available.
    flux, flux_err : ndarray of float64, shape (n_rows,)
        Signed difference flux [nJy AB]; `flux` is NaN for a non-detection, `flux_err` is then the 1-sigma limit.
    ra, dec : ndarray of float64, shape (n_rows,)
        ICRS [deg]; NaN for non-detections.
    forced : ndarray of bool, shape (n_rows,)
        From forced photometry.
    reference
        None when not asked for.
    """

    offsets: NDArray[np.int64]
    mjd: NDArray[np.float64]
    band: list[str]
    mag: NDArray[np.float64]
    mag_err: NDArray[np.float64]
    mag_limit: NDArray[np.float64]
    flux: NDArray[np.float64]
    flux_err: NDArray[np.float64]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    forced: NDArray[np.bool_]
    reference: ReferencePhotometry | None = None

    def __len__(self) -> int:
        return int(self.mjd.size)


@dataclass(frozen=True)
class AlertBatch:
    """Many alerts of one survey as columns.

    Attributes
    ----------
    survey
        Profile name.
    alert_id : ndarray of int64, shape (n,)
    object_id : list of str, length n
    mjd : ndarray of float64, shape (n,)
        UTC, mid-exposure.
    ra, dec : ndarray of float64, shape (n,)
        ICRS [deg].
    band : list of str, length n
    mag, mag_err : ndarray of float64, shape (n,)
        Unsigned difference magnitude [mag]; NaN where not available.
    flux, flux_err : ndarray of float64, shape (n,)
        Signed difference flux [nJy AB].
    stamps : ndarray of float32, shape (n, 3, n_y, n_x)
        Science, template, difference, each at the array origin; NaN outside the stamp and where the survey has
        no value. Empty on the pixel axes (0, 0) when stamps were not asked for.
    shapes : ndarray of int16, shape (n, 3, 2)
        (n_y, n_x) of each stamp as it came; (0, 0) when it is missing.
    source, record
        Where each packet came from.
    history
        None when not asked for.
    """

    survey: str
    alert_id: NDArray[np.int64]
    object_id: list[str]
    mjd: NDArray[np.float64]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    band: list[str]
    mag: NDArray[np.float64]
    mag_err: NDArray[np.float64]
    flux: NDArray[np.float64]
    flux_err: NDArray[np.float64]
    stamps: NDArray[np.float32]
    shapes: NDArray[np.int16]
    source: Sequence[str]
    record: Sequence[int]
    history: History | None = None
    candidate_json: list[str] | None = None
    _feature: Callable[[str], NDArray[np.float64]] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return int(self.alert_id.size)

    def feature(self, name: str) -> NDArray[np.float64]:
        """Field `name` of the candidate records as numbers, shape (n,); NaN where it is missing or none."""
        if self._feature is None:
            return np.full(len(self), np.nan)
        return self._feature(name)
