"""Light curves, their ids and stored features out of the catalogues of a Kowalski server."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tapetum.core.errors import NetworkError, UsageError
from tapetum.core.threads import in_threads
from tapetum.lightcurves.curves import KEY, LightCurves
from tapetum.surveys.profile import load_alert_profile

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from tapetum.surveys.kowalski import Document, Kowalski

SURVEY = "ztf"  # whose catalogues Kowalski keeps under ZTF_sources_*
CCDS, QUADRANTS = (1, 16), (1, 4)  # first and last of ZTF's camera
PROGRAMS = (1, 2, 3)  # public, partnership, Caltech
PAGE = 10_000  # ids asked for at a time
POINTS = ("hjd", "mag", "magerr", "catflags", "programid")
GEOJSON = "coordinates.radec_geojson.coordinates"
DMDT = "dmdt"
DMDT_VALUES = 26 * 26
ROW_UNITS = {"ra": "deg", "dec": "deg", "separation_arcsec": "arcsec"}
ROW = pa.schema(
    [
        (KEY, pa.string()),
        ("survey", pa.string()),
        ("band", pa.string()),
        ("ra", pa.float64()),
        ("dec", pa.float64()),
        ("field", pa.int32()),
        ("ccd", pa.int32()),
        ("quadrant", pa.int32()),
        ("n_points", pa.int64()),
    ]
)
"""What is known of a light curve without its points."""


@dataclass(frozen=True, order=True)
class Quadrant:
    """One readout channel of ZTF in one field.

    Attributes
    ----------
    field
        Number of the field.
    ccd
        1 to 16.
    quadrant
        1 to 4.
    """

    field: int
    ccd: int
    quadrant: int

    def __str__(self) -> str:
        return f"field {self.field} CCD {self.ccd} quadrant {self.quadrant}"


def quadrants_of(
    field: int, ccds: tuple[int, int] = CCDS, quadrants: tuple[int, int] = QUADRANTS
) -> list[Quadrant]:
    """Quadrants of a field, of a range of CCDs and a range of quadrants, ends included.

    Raises
    ------
    UsageError
        A range is empty or reaches beyond the camera.
    """
    for name, (first, last), (low, high) in (("CCDs", ccds, CCDS), ("quadrants", quadrants, QUADRANTS)):
        if not low <= first <= last <= high:
            raise UsageError(f"{name} {first} to {last}: ZTF has {low} to {high}")
    return [
        Quadrant(field, ccd, quadrant)
        for ccd in range(ccds[0], ccds[1] + 1)
        for quadrant in range(quadrants[0], quadrants[1] + 1)
    ]


def epochs_column(catalogue: str) -> str:
    """How a catalogue calls the number of points of a curve: `n` beside features, else `nobs`."""
    return "n" if "features" in catalogue else "nobs"


def key_of(lc_id: str) -> int | str:
    """A curve's `_id` on the server, of our `lc_id`: a number where it is one."""
    return int(lc_id) if lc_id.isdecimal() else lc_id


def fetch_ids(
    server: Kowalski,
    catalogue: str,
    where: Quadrant,
    *,
    min_epochs: int = 20,
    skip: int = 0,
    limit: int | None = None,
    page: int = PAGE,
    epochs: str | None = None,
) -> pa.Table:
    """Light curves of one quadrant, in the order of their ids.

    Pages follow each other by id, not by number, so that none is lost or doubled while the catalogue grows.

    Parameters
    ----------
    server, catalogue
        Where they are.
    where
        The quadrant.
    min_epochs
        Curves with fewer points are left out.
    skip, limit
        So many of the first are left out, and so many are taken; None takes all.
    page
        Asked for at a time.
    epochs
        The catalogue's column with the number of points; None is that of `epochs_column`.

    Returns
    -------
    pyarrow.Table
        With the columns of `ROW`.

    Raises
    ------
    InputError, LimitError, NetworkError
        As for `Kowalski.query`.
    """
    counted = epochs or epochs_column(catalogue)
    wanted: Document = {"field": where.field, "ccd": where.ccd, "quad": where.quadrant}
    wanted |= {counted: {"$gte": min_epochs}} if min_epochs > 0 else {}
    projection = row_projection(counted)
    found: list[Document] = []
    last: Document = {}
    while limit is None or len(found) < limit:
        size = page if limit is None else min(page, limit - len(found))
        documents = server.find(
            catalogue, wanted | last, projection, limit=size, skip=0 if last else skip, sort=[("_id", 1)]
        )
        found += documents
        if len(documents) < size:
            break
        last = {"_id": {"$gt": documents[-1]["_id"]}}
    return rows_of(found, counted, where)


def count_ids(
    server: Kowalski,
    catalogue: str,
    wheres: Sequence[Quadrant],
    *,
    min_epochs: int = 0,
    epochs: str | None = None,
    threads: int = 4,
) -> pa.Table:
    """How many light curves each quadrant has: columns field, ccd, quadrant, n_curves.

    A field of which nothing is there is asked for once, not quadrant by quadrant.

    Raises
    ------
    InputError, LimitError, NetworkError
        As for `Kowalski.query`.
    """
    counted = epochs or epochs_column(catalogue)
    more: Document = {counted: {"$gte": min_epochs}} if min_epochs > 0 else {}
    every = sorted({where.field for where in wheres})

    def there(field: int) -> bool:
        return server.count_documents(catalogue, {"field": field, **more}) > 0

    known = {outcome.item: outcome.result for outcome in in_threads(there, every, threads)}

    def count(where: Quadrant) -> int:
        if not known[where.field]:
            return 0
        wanted: Document = {"field": where.field, "ccd": where.ccd, "quad": where.quadrant, **more}
        return server.count_documents(catalogue, wanted)

    rows = [(outcome.item, outcome.result) for outcome in in_threads(count, wheres, threads)]
    columns = {
        name: pa.array([getattr(where, name) for where, _ in rows], pa.int64())
        for name in ("field", "ccd", "quadrant")
    }
    return pa.table({**columns, "n_curves": pa.array([number for _, number in rows], pa.int64())})


def row_projection(epochs: str) -> Document:
    """What `rows_of` needs of a document."""
    names = ("_id", "filter", "ra", "dec", "field", "ccd", "quad", epochs, GEOJSON)
    return dict.fromkeys(names, 1)


def rows_of(documents: Sequence[Document], epochs: str, where: Quadrant | None = None) -> pa.Table:
    """What documents say of their light curves, with the columns of `ROW`.

    Parameters
    ----------
    documents
        As `row_projection` lets them through.
    epochs
        Their key with the number of points.
    where
        The quadrant, where they do not say it.

    Raises
    ------
    NetworkError
        A document has no id, or text where a number belongs.
    """
    positions = [position_of(document) for document in documents]
    columns: dict[str, Sequence[Any]] = {
        KEY: _ids_of(documents),
        "survey": [SURVEY] * len(documents),
        "band": [_band(document.get("filter")) for document in documents],
        "ra": [position[0] for position in positions],
        "dec": [position[1] for position in positions],
        "n_points": [document.get(epochs) for document in documents],
    }
    for name, key in (("field", "field"), ("ccd", "ccd"), ("quadrant", "quad")):
        known = getattr(where, name) if where else None
        columns[name] = [document.get(key, known) for document in documents]
    try:
        arrays = [pa.array(columns[field.name], field.type) for field in ROW]
    except (pa.ArrowException, TypeError, ValueError) as problem:
        raise NetworkError(f"a document is not one of a light curve: {problem}") from None
    return pa.Table.from_arrays(arrays, schema=ROW)


def position_of(document: Mapping[str, Any]) -> tuple[float, float]:
    """Right ascension and declination [deg] of a document; NaN where it has none.

    MongoDB knows longitudes from -180 to 180 deg only, so Kowalski's GeoJSON has RA - 180.
    """
    ra, dec = document.get("ra"), document.get("dec")
    if _is_number(ra) and _is_number(dec):
        return float(ra or 0), float(dec or 0)
    point: Any = document
    for key in GEOJSON.split("."):
        point = point.get(key) if isinstance(point, dict) else None
    if isinstance(point, list) and len(point) == 2 and all(map(_is_number, point)):
        return float(point[0]) + 180.0, float(point[1])
    return float("nan"), float("nan")


def curves_of(
    documents: Sequence[Document], *, programs: Collection[int] = PROGRAMS, latest_hjd: float | None = None
) -> LightCurves:
    """Light curves of documents of ``ZTF_sources_*``, in their order and with all their points.

    Parameters
    ----------
    documents
        With ``_id``, ``data.{hjd, mag, magerr}`` and, where they have them, ``data.{catflags, programid}``, ``filter``,
        ``ra``, ``dec``, ``field``, ``ccd``, ``quad``.
    programs
        Points of other programs are left out; points of a public release, which do not name theirs, stay.
    latest_hjd
        Later points are left out [d].

    Returns
    -------
    LightCurves
        Times are HJD [d]; flags are `catflags`; the table has the columns of `ROW` and `time_system`.

    Raises
    ------
    NetworkError
        A document is none of a light curve.
    """
    series = [document.get("data") or [] for document in documents]
    try:
        points: list[Document] = list(chain.from_iterable(series))
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in series])]).astype(np.int64)
        time, mag, magerr = (
            np.array([point.get(name) for point in points], np.float64) for name in POINTS[:3]
        )
        flags = np.array([point.get("catflags") or 0 for point in points], np.int64).astype(np.int32)
        program = [point.get("programid") for point in points]
    except (TypeError, ValueError, AttributeError) as problem:
        raise NetworkError(f"a document is not one of a light curve: {problem}") from None
    keep = np.array([name is None or name in programs for name in program], np.bool_)
    if latest_hjd is not None:
        keep &= ~(time > latest_hjd)  # what has no time is for the cleaning to tell
    table = rows_of([{**document, "n": None} for document in documents], "n")
    curves = LightCurves(time, mag, magerr, offsets, table, flags).where(keep)
    known = table.set_column(table.column_names.index("n_points"), "n_points", pa.array(curves.n_points))
    known = known.append_column("time_system", pa.array(["hjd"] * len(curves), pa.string()))
    return LightCurves(curves.time, curves.mag, curves.magerr, curves.offsets, known, curves.flags)


def fetch_curves(
    server: Kowalski,
    catalogue: str,
    ids: Sequence[str],
    *,
    programs: Collection[int] = PROGRAMS,
    latest_hjd: float | None = None,
) -> LightCurves:
    """Light curves by id, in the order of `ids`; those that the server does not have are not in it.

    Parameters
    ----------
    server, catalogue
        Where they are.
    ids
        `lc_id` of each; a thousand is a good number.
    programs, latest_hjd
        As for `curves_of`.

    Raises
    ------
    InputError, LimitError, NetworkError
        As for `Kowalski.query`.
    """
    names = (
        "_id",
        "filter",
        "ra",
        "dec",
        "field",
        "ccd",
        "quad",
        GEOJSON,
        *(f"data.{name}" for name in POINTS),
    )
    documents = _by_id(server, catalogue, ids, dict.fromkeys(names, 1))
    return curves_of(documents, programs=programs, latest_hjd=latest_hjd)


def fetch_rows(
    server: Kowalski, catalogue: str, ids: Sequence[str], *, epochs: str | None = None
) -> pa.Table:
    """What the server knows of light curves by id, without their points; as `fetch_curves`, a table as `fetch_ids`.

    Raises
    ------
    InputError, LimitError, NetworkError
        As for `Kowalski.query`.
    """
    counted = epochs or epochs_column(catalogue)
    return rows_of(_by_id(server, catalogue, ids, row_projection(counted)), counted)


def fetch_features(
    server: Kowalski, catalogue: str, ids: Sequence[str], columns: Sequence[str] = ()
) -> pa.Table:
    """Stored features by id, in the order of `ids`; those that the server does not have are not in it.

    Parameters
    ----------
    server, catalogue
        Where they are.
    ids
        `lc_id` of each.
    columns
        Which features; none means all.

    Returns
    -------
    pyarrow.Table
        `lc_id` and the features under the catalogue's names; `dmdt` as lists of 676 float32, row by row.

    Raises
    ------
    InputError, LimitError, NetworkError
        As for `Kowalski.query`.
    """
    projection: Document = dict.fromkeys(("_id", *columns), 1) if columns else {}
    return features_of(_by_id(server, catalogue, ids, projection), columns)


def features_of(documents: Sequence[Document], columns: Sequence[str] = ()) -> pa.Table:
    """Documents of ``ZTF_source_features_*`` as a table; see `fetch_features`.

    Raises
    ------
    NetworkError
        A feature has values of several kinds.
    """
    there = dict.fromkeys(chain.from_iterable(documents))
    names = [name for name in columns or there if name not in ("_id", "coordinates", KEY)]
    table: dict[str, pa.Array] = {KEY: pa.array(_ids_of(documents), pa.string())}
    for name in names:
        values = [document.get(name) for document in documents]
        try:
            table[name] = _histograms(values) if name == DMDT else pa.array(values)
        except (pa.ArrowException, TypeError, ValueError) as problem:
            raise NetworkError(f"feature {name}: the documents do not agree: {problem}") from None
    return pa.table(table)


def _histograms(values: Sequence[Any]) -> pa.Array:
    """dm-dt histograms, stored as lists of lists, as lists of one length."""
    flat = [
        None if value is None else np.asarray(value, np.float32).ravel() if len(value) else None
        for value in values
    ]
    return pa.array(flat, pa.list_(pa.float32(), DMDT_VALUES))


def _by_id(
    server: Kowalski, catalogue: str, ids: Sequence[str], projection: Mapping[str, Any]
) -> list[Document]:
    keys = [key_of(lc_id) for lc_id in ids]
    documents = server.find(catalogue, {"_id": {"$in": keys}}, projection) if keys else []
    try:
        found = {document["_id"]: document for document in documents}
    except (KeyError, TypeError):
        raise NetworkError(f"{server.url}: a document of {catalogue} has no id") from None
    return [found[key] for key in dict.fromkeys(keys) if key in found]


def _ids_of(documents: Iterable[Document]) -> list[str]:
    try:
        return [str(document["_id"]) for document in documents]
    except (KeyError, TypeError):
        raise NetworkError("a document has no id") from None


def _band(number: Any) -> str | None:
    return None if number is None else _bands().get(str(number), str(number))


@cache
def _bands() -> dict[str, str]:
    return load_alert_profile(SURVEY).alert.band.names


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def batches_of(ids: Sequence[str], size: int) -> Iterator[list[str]]:
    """Ids, `size` at a time."""
    for start in range(0, len(ids), size):
        yield list(ids[start : start + size])
