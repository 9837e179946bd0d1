"""The light curve that a packet carries: earlier detections, limits and forced photometry, as columns."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.alerts import _kernels as k
from tapetum.alerts.batch import History, ReferencePhotometry
from tapetum.alerts.schema import HISTORY_COLUMNS
from tapetum.surveys.conventions import flux_of_mag, to_flux, to_mag, to_utc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tapetum.alerts.rows import Rows
    from tapetum.surveys.profile import AlertProfile

COLUMN = {name: number for number, name in enumerate(HISTORY_COLUMNS)}
VALUES = ("mjd", "mag", "mag_err", "mag_limit", "flux", "flux_err", "ra", "dec")
REFERENCE_VALUES = ("mag", "mag_err", "field", "quadrant")


class PastRows:
    """The history rows of many packets of one survey as photometry.

    Parameters
    ----------
    raw
        Rows as the walk left them, columns as in `HISTORY_COLUMNS`.
    bodies
        Body of the packet of each row.
    bands
        Band of the alert of each row, for surveys whose history does not name it.
    half_exposure
        Added to times [day].
    """

    def __init__(
        self,
        raw: Rows,
        bodies: Sequence[bytes],
        bands: Sequence[str],
        profile: AlertProfile,
        half_exposure: float,
    ) -> None:
        self.raw, self.bodies, self.profile = raw, bodies, profile
        self.entries = profile.alert.history
        self.array = raw.ints[:, COLUMN["array"]]
        self.forced = self._by_array([entry.forced for entry in self.entries], bool)
        self.bands = self._bands(bands)
        mjd = to_utc(self._number("time"), profile.alert.time) + half_exposure
        mag, mag_err, limit = self._number("mag"), self._number("mag_err"), self._number("mag_limit")
        useless = limit <= 0
        limit[useless] = np.nan
        flux, flux_err = self._fluxes(mag, mag_err, limit)
        of_flux, err_of_flux = to_mag(flux, flux_err)
        from_flux = np.isnan(mag) & ~np.isnan(flux)
        columns = (
            mjd, np.where(from_flux, of_flux, mag), np.where(from_flux, err_of_flux, mag_err), limit, flux, flux_err,
            self._number("ra"), self._number("dec"),
        )  # fmt: skip
        self.values = dict(zip(VALUES, columns, strict=True))
        self.good = np.isfinite(mjd) & ~useless & self._good_status() & np.isfinite(flux_err)

    def reference(self) -> dict[str, NDArray[np.float64]]:
        """Magnitude of the source in the reference image, and where on the camera each row was taken."""
        values = [self._number(name) for name in ("mag_ref", "mag_ref_err", "field", "quadrant")]
        pattern = self.profile.alert.reference.image_pattern if self.profile.alert.reference else None
        if pattern:
            for row in np.flatnonzero(np.isnan(values[2]) | np.isnan(values[3])):
                name = self.raw.bytes_of(int(row), COLUMN["image"], self.bodies) or b""
                values[2][row], values[3][row] = place_on_camera(name.decode("utf-8", "replace"), pattern)
        return dict(zip(REFERENCE_VALUES, values, strict=True))

    def _by_array(self, values: Sequence[Any], dtype: Any) -> NDArray[Any]:
        return np.array(values, dtype)[self.array] if len(values) else np.zeros(0, dtype)

    def _number(self, name: str) -> NDArray[np.float64]:
        return self.raw.numbers(COLUMN[name])

    def _good_status(self) -> NDArray[np.bool_]:
        """Rows whose status is the good one; it is text in some schemas ("0", or a list of problems as "56,57")."""
        wanted = self._by_array(
            [entry.status_good if entry.status else np.nan for entry in self.entries], float
        )
        status = self._number("status")
        for row in np.flatnonzero(self.raw.kinds[:, COLUMN["status"]] == k.IS_BYTES):
            status[row] = _as_number(self.raw.bytes_of(int(row), COLUMN["status"], self.bodies) or b"")
        good: NDArray[np.bool_] = np.isnan(wanted) | (status == wanted)
        return good

    def _bands(self, alert_bands: Sequence[str]) -> list[str]:
        column, names = COLUMN["band"], self.profile.alert.band.names
        kinds, ints = self.raw.kinds[:, column].tolist(), self.raw.ints[:, column].tolist()
        known = {int(value): name for value, name in names.items() if value.lstrip("-").isdigit()}
        bands = []
        for row, (kind, value) in enumerate(zip(kinds, ints, strict=True)):
            if kind == k.IS_INT:
                bands.append(known.get(value, str(value)))
            elif kind == k.IS_BYTES:
                text = (self.raw.bytes_of(row, column, self.bodies) or b"").decode("utf-8", "replace")
                bands.append(names.get(text, text))
            else:
                bands.append(alert_bands[row])
        return bands

    def _signs(self) -> NDArray[np.float64]:
        sign = np.ones(len(self.raw))
        for name, yes in (("positive", 1.0), ("negative", -1.0)):
            flag = self.raw.is_true(COLUMN[name], self.bodies)
            given = self.raw.kinds[:, COLUMN[name]] != k.MISSING
            sign = np.where(given, np.where(flag, yes, -yes), sign)
        return sign

    def _fluxes(
        self, mag: NDArray[np.float64], mag_err: NDArray[np.float64], limit: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Signed flux [nJy] from magnitudes, or from fluxes at their zero point; limits give an error only."""
        offsets = self.profile.alert.band.ab_offset
        offset = np.array([offsets.get(band, 0.0) for band in self.bands]) if offsets else 0.0
        flux, flux_err = to_flux(mag + offset, mag_err, self._signs())
        one_sigma = flux_of_mag(limit + offset) / 5
        flux_err = np.where(np.isnan(mag), one_sigma, flux_err)
        given, given_err, zero_point = (
            self._number("flux"),
            self._number("flux_err"),
            self._number("zero_point"),
        )
        scale = np.where(np.isnan(zero_point), 1.0, flux_of_mag(zero_point))
        fluxes_given = self._by_array([entry.flux is not None for entry in self.entries], bool)
        return np.where(fluxes_given, given * scale, flux), np.where(
            fluxes_given, given_err * scale, flux_err
        )


def merge_history(
    own: Mapping[str, NDArray[np.float64]],
    own_bands: Sequence[str],
    own_reference: Mapping[str, NDArray[np.float64]] | None,
    past: PastRows,
    owner: NDArray[np.intp],
) -> History:
    """Own detections and earlier rows of each alert, the own one first.

    Parameters
    ----------
    own
        Columns of the alerts themselves, each of shape (n_alerts,).
    own_reference
        The same for the reference image, or None when it was not asked for.
    owner : ndarray of int, shape (n_past_rows,)
        Alert of each past row; negative for alerts that were rejected.
    """
    n = len(own_bands)
    keep = np.flatnonzero(past.good & (owner >= 0))
    order = np.argsort(np.concatenate([np.arange(n), owner[keep]]), kind="stable")
    merged = {name: np.concatenate([own[name], past.values[name][keep]])[order] for name in VALUES}
    bands = [*own_bands, *(past.bands[row] for row in keep)]
    reference = None
    if own_reference is not None:
        theirs = past.reference()
        joined = {
            name: np.concatenate([own_reference[name], theirs[name][keep]])[order]
            for name in REFERENCE_VALUES
        }
        reference = ReferencePhotometry(**joined)
    return History(
        offsets=np.concatenate([[0], np.cumsum(1 + np.bincount(owner[keep], minlength=n))]).astype(np.int64),
        band=[bands[row] for row in order],
        forced=np.concatenate([np.zeros(n, bool), past.forced[keep]])[order],
        reference=reference,
        **merged,
    )


def place_on_camera(image: str, pattern: str) -> tuple[float, float]:
    """Field and quadrant number (4 per CCD, from 0) in an image's file name; NaN where the name is of another kind."""
    found = re.search(pattern, image)
    if not found:
        return math.nan, math.nan
    return float(found["field"]), 4.0 * (int(found["ccd"]) - 1) + int(found["quadrant"]) - 1


def _as_number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
