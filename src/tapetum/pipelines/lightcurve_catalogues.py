"""What catalogues in local tables say of the positions of light curves: the nearest entry, bright stars, alerts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tapetum.core.errors import FormatError, InputError
from tapetum.lightcurves.bright_stars import CONE_ARCSEC, near_bright_stars
from tapetum.report.read_tables import read_table
from tapetum.sky.catalogue import DEC_NAMES, RA_NAMES
from tapetum.sky.match import match_sky

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

RADIUS_ARCSEC = 2.0
GAIA, PS1, ALLWISE = "Gaia_EDR3", "PS1_DR1", "AllWISE"
DESCRIBED: dict[str, tuple[str, ...]] = {
    GAIA: (
        "parallax", "parallax_error", "pm", "pm_error", "pmra", "pmra_error", "pmdec", "pmdec_error",
        "astrometric_excess_noise", "phot_g_mean_mag", "phot_bp_mean_mag", "phot_rp_mean_mag",
        "phot_bp_rp_excess_factor",
    ),
    PS1: (
        *(f"{band}MeanPSFMag{error}" for band in "grizy" for error in ("", "Err")), "qualityFlag",
    ),
    ALLWISE: (*(f"w{band}{kind}mpro" for band in "1234" for kind in ("", "sig")), "ph_qual"),
}  # fmt: skip
"""Columns that are taken of a catalogue of this name, where it has them; of others all are."""
ID_NAMES = ("_id", "source_id", "objid", "designation", "id")
G, BP, RP, COLOUR = "phot_g_mean_mag", "phot_bp_mean_mag", "phot_rp_mean_mag", "bp_rp"
SCORES = ("braai", "drb", "rb", "score", "probability")
SLACK_ARCSEC = 1.0


@dataclass(frozen=True)
class CatalogueFile:
    """A local table of a catalogue.

    Attributes
    ----------
    name
        Begins the names of columns: ``<name>__<column>``.
    path
        As `tapetum.report.read_tables.read_table` takes it, with positions in degrees.
    columns
        Taken of it; empty: those of `DESCRIBED`, or all.
    matched
        It has a row for each position of a light curve, with columns under their long names: what a server said.
    """

    name: str
    path: str
    columns: tuple[str, ...] = ()
    matched: bool = False


class LocalCatalogue:
    """Entries of a catalogue in memory, by declination, so that a batch of positions sees those near to it only.

    Parameters
    ----------
    ra, dec : ndarray, shape (n,)
        [deg]; entries without a position are left out.
    table
        Their other columns.
    """

    def __init__(self, ra: Array, dec: Array, table: pa.Table) -> None:
        placed = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90))
        order = placed[np.argsort(dec[placed], kind="stable")]
        self.ra, self.dec = ra[order], dec[order]
        self.table = table.take(pa.array(order)).combine_chunks()

    def near(self, dec: Array, radius_arcsec: float) -> slice:
        """Entries whose declination is within reach of any of these."""
        if not dec.size:
            return slice(0, 0)
        reach = (radius_arcsec + SLACK_ARCSEC) / 3600
        first, last = np.searchsorted(self.dec, [dec.min() - reach, dec.max() + reach])
        return slice(int(first), int(last))


def read_local(file: CatalogueFile) -> LocalCatalogue:
    """Read a catalogue; its columns get their long names.

    Raises
    ------
    InputError
        It is not there, cannot be read, or has no positions or none of the columns.
    """
    table = read_table(file.path)
    ra, dec = _positions(table, file.path)
    if file.matched:
        return LocalCatalogue(ra, dec, table.drop_columns(["ra", "dec"]))
    lower = {name.lower(): name for name in reversed(table.column_names)}
    key = next((lower[name] for name in ID_NAMES if name in lower), None)
    wanted = file.columns or tuple(
        name for name in DESCRIBED.get(file.name, table.column_names) if name in table.column_names
    )
    absent = [name for name in wanted if name not in table.column_names]
    if absent or not wanted:
        raise FormatError(
            f"{file.path}: no column {', '.join(absent) or f'of those known of {file.name}'}; "
            f"it has: {' '.join(table.column_names[:30])}"
        )
    columns = {} if key is None else {f"{file.name}___id": table[key]}
    columns |= {
        f"{file.name}__{name}": table[name]
        for name in wanted
        if name != key and not pa.types.is_nested(table[name].type)
    }
    return LocalCatalogue(ra, dec, pa.table(columns))


def _positions(table: pa.Table, path: str) -> tuple[Array, Array]:
    lower = {name.lower(): name for name in reversed(table.column_names)}
    found = [next((lower[name] for name in names if name in lower), None) for names in (RA_NAMES, DEC_NAMES)]
    if found[0] is None or found[1] is None:
        raise FormatError(
            f"{path}: no position columns (ra, dec); it has: {' '.join(table.column_names[:30])}"
        )
    try:
        ra, dec = (table[name].cast(pa.float64()).to_numpy() for name in found)
    except pa.ArrowException:
        raise FormatError(f"{path}: columns {found[0]}, {found[1]} are not in degrees") from None
    return ra, dec


def nearest_entries(
    catalogue: LocalCatalogue, ra: Array, dec: Array, radius_arcsec: float = RADIUS_ARCSEC
) -> pa.Table:
    """The nearest entry to each position; null where none is near, or there is no position.

    Parameters
    ----------
    ra, dec : ndarray, shape (n,)
        [deg], NaN where not known.
    """
    placed = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    part = catalogue.near(dec[placed], radius_arcsec)
    found, entry, _ = match_sky(
        ra[placed], dec[placed], catalogue.ra[part], catalogue.dec[part], radius_arcsec, keep="nearest"
    )
    which = np.full(ra.size, -1)
    which[placed[found]] = entry + part.start
    return catalogue.table.take(pa.array(which, mask=which < 0))


class BrightStars:
    """Gaia's bright stars out of a local table.

    Parameters
    ----------
    path
        Of the table.
    cone_arcsec
        Stars farther than this from a source are not looked at.
    """

    def __init__(self, path: str, cone_arcsec: float = CONE_ARCSEC) -> None:
        self._cone_arcsec = cone_arcsec
        table = read_table(path)
        absent = [name for name in (G, COLOUR) if name not in table.column_names]
        if G in absent or (absent and not {BP, RP} <= set(table.column_names)):
            raise FormatError(
                f"{path}: bright stars need {G}, and {COLOUR} or {BP} and {RP}; "
                f"it has: {' '.join(table.column_names[:30])}"
            )
        ra, dec = _positions(table, path)
        g = _numbers(table, G)
        colour = _numbers(table, COLOUR) if not absent else _numbers(table, BP) - _numbers(table, RP)
        self._stars = LocalCatalogue(ra, dec, pa.table({G: g, COLOUR: colour}))

    def spoil(self, ra: Array, dec: Array) -> NDArray[np.bool_]:
        """Which positions a bright star is too close to."""
        part = self._stars.near(dec[np.isfinite(dec)], self._cone_arcsec)
        table = self._stars.table.slice(part.start, part.stop - part.start)
        stars = self._stars.ra[part], self._stars.dec[part]
        colours = table[G].to_numpy(), table[COLOUR].to_numpy()
        return near_bright_stars(ra, dec, *stars, *colours, self._cone_arcsec).excluded


class Alerts:
    """Alerts out of a local table."""

    def __init__(self, path: str) -> None:
        table = read_table(path)
        score = next((name for name in SCORES if name in table.column_names), None)
        if score is None:
            raise FormatError(
                f"{path}: no score of alerts ({', '.join(SCORES)}); it has: {' '.join(table.column_names[:30])}"
            )
        self._alerts = LocalCatalogue(*_positions(table, path), pa.table({"score": _numbers(table, score)}))

    def around(self, ra: Array, dec: Array, radius_arcsec: float = RADIUS_ARCSEC) -> pa.Table:
        """How many lie around each position, and their mean score; both 0 where there is none."""
        placed = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
        part = self._alerts.near(dec[placed], radius_arcsec)
        owner, alert, _ = match_sky(
            ra[placed], dec[placed], self._alerts.ra[part], self._alerts.dec[part], radius_arcsec
        )
        scores = self._alerts.table["score"].to_numpy()[alert + part.start]
        known = np.isfinite(scores)
        owner = placed[owner]
        sums = np.bincount(owner[known], scores[known], ra.size)
        counts = np.bincount(owner[known], minlength=ra.size)
        return pa.table(
            {
                "n_ztf_alerts": pa.array(np.bincount(owner, minlength=ra.size), pa.int64()),
                "mean_ztf_alert_braai": pa.array(sums / np.maximum(counts, 1), pa.float64()),
            }
        )


def _numbers(table: pa.Table, name: str) -> Array:
    try:
        return np.asarray(table[name].cast(pa.float64()).to_numpy())
    except pa.ArrowException:
        raise FormatError(f"column {name} does not hold numbers") from None


def check_files(paths: Sequence[str]) -> None:
    """Raise InputError when a table is not there; asked before the work, not after."""
    for path in paths:
        if not Path(path).is_file():
            raise InputError(f"{path}: no such table")
