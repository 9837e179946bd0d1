"""What a Kowalski server has around positions: light curves, bright stars, alerts, entries of other catalogues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tapetum.core.threads import in_threads
from tapetum.lightcurves.curves import KEY
from tapetum.lightcurves.remote import GEOJSON, epochs_column, position_of, row_projection, rows_of
from tapetum.sky.match import separation_arcsec, unit_vectors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from tapetum.surveys.kowalski import Document, Kowalski

    Array = NDArray[np.float64]

POSITIONS = 1000  # in one question
CELL_DEG = 0.25  # sources within such a cell share one cone of bright stars
BRIGHT_MAG = 13.0  # Gaia G; fainter stars spoil no neighbour
BRIGHT_RADIUS_ARCSEC = 300.0
MATCH_RADIUS_ARCSEC = 2.0
STAR_COLUMNS = ("phot_g_mean_mag", "phot_bp_mean_mag", "phot_rp_mean_mag", "bp_rp")


def fetch_curves_around(
    server: Kowalski,
    catalogue: str,
    ra: ArrayLike,
    dec: ArrayLike,
    radius_arcsec: float = MATCH_RADIUS_ARCSEC,
    *,
    min_epochs: int = 0,
    epochs: str | None = None,
    threads: int = 4,
    at_a_time: int = POSITIONS,
) -> pa.Table:
    """Light curves around positions.

    Parameters
    ----------
    server, catalogue
        Where they are.
    ra, dec : array_like, shape (n,)
        Positions [deg].
    radius_arcsec
        Of each cone [arcsec].
    min_epochs
        Curves with fewer points are left out.
    epochs
        The catalogue's column with the number of points; None is that of `epochs_column`.
    threads
        Questions at the same time.
    at_a_time
        Positions in one question.

    Returns
    -------
    pyarrow.Table
        Columns of `remote.ROW`, `position` (number of the position) and `separation_arcsec`; by
        position, then by distance.

    Raises
    ------
    InputError, LimitError, NetworkError
        As for `Kowalski.query`.
    """
    counted = epochs or epochs_column(catalogue)
    kept: Document = {counted: {"$gte": min_epochs}} if min_epochs > 0 else {}
    projection = row_projection(counted)
    found = _around(server, catalogue, ra, dec, radius_arcsec, kept, projection, threads, at_a_time)
    owner, documents, apart = _flattened(found, ra, dec)
    table = rows_of(documents, counted)
    table = table.append_column("position", pa.array(owner, pa.int64()))
    table = table.append_column("separation_arcsec", pa.array(apart, pa.float64()))
    return table.sort_by([("position", "ascending"), ("separation_arcsec", "ascending"), (KEY, "ascending")])


def fetch_matches(
    server: Kowalski,
    catalogue: str,
    ra: ArrayLike,
    dec: ArrayLike,
    columns: Sequence[str],
    radius_arcsec: float = MATCH_RADIUS_ARCSEC,
    *,
    threads: int = 4,
    at_a_time: int = POSITIONS,
) -> pa.Table:
    """The nearest entry of a catalogue to each position.

    Parameters
    ----------
    server, catalogue
        Where it is, for instance ``Gaia_EDR3``.
    ra, dec : array_like, shape (n,)
        Positions [deg].
    columns
        What is taken of the entry.
    radius_arcsec
        Farther entries do not count [arcsec].
    threads
        Questions at the same time.
    at_a_time
        Positions in one question.

    Returns
    -------
    pyarrow.Table
        One row per position: ``<catalogue>___id`` and ``<catalogue>__<column>``; null where nothing is near.

    Raises
    ------
    InputError, LimitError, NetworkError
        As for `Kowalski.query`.
    """
    names = ("_id", *columns)
    projection = dict.fromkeys((*names, GEOJSON), 1)
    found = _around(server, catalogue, ra, dec, radius_arcsec, {}, projection, threads, at_a_time)
    owner, documents, apart = _flattened(found, ra, dec)
    nearest: list[Document] = [{} for _ in found]
    for number in np.argsort(
        -np.nan_to_num(apart, nan=np.inf), kind="stable"
    ):  # the nearest comes last, and stays
        nearest[owner[number]] = documents[number]
    table = {}
    for name in names:
        values = pa.array([entry.get(name) for entry in nearest])
        if pa.types.is_null(
            values.type
        ):  # no match at all: numbers all the same, so that tables fit together
            values = values.cast(pa.int64() if name == "_id" else pa.float64())
        table[f"{catalogue}__{name}"] = values
    return pa.table(table)


def fetch_bright_stars(
    server: Kowalski,
    ra: ArrayLike,
    dec: ArrayLike,
    radius_arcsec: float = BRIGHT_RADIUS_ARCSEC,
    *,
    catalogue: str = "Gaia_EDR3",
    faintest: float = BRIGHT_MAG,
    threads: int = 4,
) -> pa.Table:
    """Every bright star that is near one of many sources, each once.

    One question covers all sources of a quarter of a degree, not one each.

    Parameters
    ----------
    server
        Where the stars are.
    ra, dec : array_like, shape (n,)
        The sources [deg].
    radius_arcsec
        How near [arcsec].
    catalogue
        Gaia's name on this server.
    faintest
        Gaia G of the faintest star.
    threads
        Questions at the same time.

    Returns
    -------
    pyarrow.Table
        gaia_id, ra, dec [deg], phot_g_mean_mag, bp_rp (null where Gaia has no colour); by id. There may be stars in it
        that are near no source.

    Raises
    ------
    InputError, LimitError, NetworkError
        As for `Kowalski.query`.
    """
    bright = {"phot_g_mean_mag": {"$lt": faintest}}
    projection = dict.fromkeys(("_id", "ra", "dec", GEOJSON, *STAR_COLUMNS), 1)

    def ask(cone: tuple[float, float, float]) -> list[Document]:
        return server.cone_search(catalogue, [cone[:2]], cone[2], filter=bright, projection=projection)[0]

    stars: dict[Any, Document] = {}
    for outcome in in_threads(ask, covering_cones(ra, dec, radius_arcsec), threads):
        stars |= {star["_id"]: star for star in outcome.result if "_id" in star}
    ordered = [stars[key] for key in sorted(stars)]
    positions = [position_of(star) for star in ordered]
    return pa.table(
        {
            "gaia_id": pa.array([star["_id"] for star in ordered], None if ordered else pa.int64()),
            "ra": pa.array([place[0] for place in positions], pa.float64()),
            "dec": pa.array([place[1] for place in positions], pa.float64()),
            "phot_g_mean_mag": pa.array([star.get("phot_g_mean_mag") for star in ordered], pa.float64()),
            "bp_rp": pa.array([_colour(star) for star in ordered], pa.float64()),
        }
    )


def covering_cones(
    ra: ArrayLike, dec: ArrayLike, reach_arcsec: float, cell_deg: float = CELL_DEG
) -> list[tuple[float, float, float]]:
    """Few cones that together hold everything within a distance of any of many positions.

    Parameters
    ----------
    ra, dec : array_like, shape (n,)
        Positions [deg]; those that are not finite are left out.
    reach_arcsec
        The distance [arcsec].
    cell_deg
        Positions of a cell of this size share a cone [deg].

    Returns
    -------
    list of (ra, dec, radius)
        [deg, deg, arcsec]
    """
    lon, lat = (np.atleast_1d(np.asarray(values, np.float64)) for values in (ra, dec))
    usable = np.isfinite(lon) & np.isfinite(lat)
    lon, lat = lon[usable] % 360.0, lat[usable]
    row = np.floor((lat + 90.0) / cell_deg).astype(np.int64)
    width = cell_deg / np.maximum(np.cos(np.deg2rad(row * cell_deg - 90.0 + cell_deg / 2)), cell_deg / 360.0)
    cell = np.column_stack([row, np.floor(lon / width).astype(np.int64)])
    _, owner = np.unique(cell, axis=0, return_inverse=True)
    cones = []
    for number in range(owner.max() + 1 if owner.size else 0):
        inside = owner.ravel() == number
        x, y, z = unit_vectors(lon[inside], lat[inside]).mean(axis=0)
        centre = float(np.rad2deg(np.arctan2(y, x)) % 360.0), float(np.rad2deg(np.arctan2(z, np.hypot(x, y))))
        farthest = separation_arcsec(*centre, lon[inside], lat[inside]).max()
        cones.append((*centre, float(farthest) + reach_arcsec))
    return cones


def fetch_alert_statistics(
    server: Kowalski,
    ra: ArrayLike,
    dec: ArrayLike,
    radius_arcsec: float = MATCH_RADIUS_ARCSEC,
    *,
    catalogue: str = "ZTF_alerts",
    classifier: str = "braai",
    threads: int = 4,
    at_a_time: int = POSITIONS,
) -> pa.Table:
    """How many alerts lie around each position, and how real they are.

    Parameters
    ----------
    server, catalogue
        Where the alerts are.
    ra, dec : array_like, shape (n,)
        Positions [deg].
    radius_arcsec
        Of each cone [arcsec].
    classifier
        Whose score is averaged, of those in `classifications`; other scores do not enter.
    threads
        Questions at the same time.
    at_a_time
        Positions in one question.

    Returns
    -------
    pyarrow.Table
        n_ztf_alerts and mean_ztf_alert_braai; both 0 where there is no alert, or none with a score.

    Raises
    ------
    InputError, LimitError, NetworkError
        As for `Kowalski.query`.
    """
    projection = {"_id": 1, f"classifications.{classifier}": 1}
    found = _around(server, catalogue, ra, dec, radius_arcsec, {}, projection, threads, at_a_time)
    means = []
    for alerts in found:
        scores = [(alert.get("classifications") or {}).get(classifier) for alert in alerts]
        known = np.array([score for score in scores if score is not None], np.float64)
        known = known[np.isfinite(known)]
        means.append(float(known.mean()) if known.size else 0.0)
    return pa.table(
        {
            "n_ztf_alerts": pa.array([len(alerts) for alerts in found], pa.int64()),
            "mean_ztf_alert_braai": pa.array(means, pa.float64()),
        }
    )


def _around(
    server: Kowalski,
    catalogue: str,
    ra: ArrayLike,
    dec: ArrayLike,
    radius_arcsec: float,
    wanted: Mapping[str, Any],
    projection: Mapping[str, Any],
    threads: int,
    at_a_time: int,
) -> list[list[Document]]:
    """Documents around each position."""

    def ask(positions: list[tuple[float, float]]) -> list[list[Document]]:
        return server.cone_search(catalogue, positions, radius_arcsec, filter=wanted, projection=projection)

    found: list[list[Document]] = []
    for outcome in in_threads(ask, _in_questions(ra, dec, at_a_time), threads):
        found += outcome.result
    return found


def _in_questions(ra: ArrayLike, dec: ArrayLike, size: int) -> Iterator[list[tuple[float, float]]]:
    places = np.column_stack([np.atleast_1d(np.asarray(values, np.float64)) for values in (ra, dec)])
    if not np.isfinite(places).all():
        raise ValueError("positions must be finite")
    for start in range(0, len(places), size):
        yield [(float(lon), float(lat)) for lon, lat in places[start : start + size]]


def _flattened(
    found: Sequence[Sequence[Document]], ra: ArrayLike, dec: ArrayLike
) -> tuple[NDArray[np.int64], list[Document], Array]:
    """All documents, which position each belongs to, and how far from it [arcsec]."""
    owner = np.repeat(np.arange(len(found)), [len(documents) for documents in found])
    documents = [document for group in found for document in group]
    places = np.array([position_of(document) for document in documents], np.float64).reshape(-1, 2)
    lon, lat = (np.atleast_1d(np.asarray(values, np.float64))[owner] for values in (ra, dec))
    return owner, documents, separation_arcsec(lon, lat, places[:, 0], places[:, 1])


def _colour(star: Mapping[str, Any]) -> float | None:
    known = star.get("bp_rp")
    if known is not None:
        return float(known)
    blue, red = star.get("phot_bp_mean_mag"), star.get("phot_rp_mean_mag")
    return None if blue is None or red is None else float(blue) - float(red)
