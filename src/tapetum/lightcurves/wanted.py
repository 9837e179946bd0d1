"""Tables that say which sources are wanted: by position, or by the ids of their light curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tapetum.core.errors import FormatError, InputError
from tapetum.lightcurves.around import MATCH_RADIUS_ARCSEC, fetch_curves_around
from tapetum.lightcurves.curves import KEY
from tapetum.lightcurves.remote import batches_of, fetch_rows
from tapetum.report.read_tables import read_table
from tapetum.report.tables import HDF5_TABLE, table_format

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.surveys.kowalski import Kowalski

NAMES = {
    "ra": ("ra", "r.a.", "radeg", "ra_deg"),
    "dec": ("dec", "dec.", "decl.", "dedeg", "de_deg", "dec_deg"),
    KEY: (KEY, "ztf_id", "ztfid", "_id"),
    "object_id": ("object_id", "obj_id", "objectid", "name", "fritz_name"),
}
"""Our name -> what a column may be called, in any case; the first that is there counts."""
TEXTS = frozenset((*NAMES[KEY], *NAMES["object_id"]))
IDS_PER_QUESTION = 1000


def read_wanted(path: str | Path) -> pa.Table:
    """Read a table of sources.

    Parameters
    ----------
    path
        CSV, Parquet, HDF5, ECSV, FITS or VOTable with `ra` and `dec` [deg], or `lc_id`, or both; and `object_id`. The
        columns may be called as in `NAMES`.

    Returns
    -------
    pyarrow.Table
        `object_id` (str; made of the position or of the id where the file names none) and those of `lc_id` (str), `ra`,
        `dec` that the file has; then its other columns.

    Raises
    ------
    InputError
        The file is not there, or has neither positions nor ids, or an unusable one.
    """
    return wanted_of(read_table(path, names=TEXTS), str(path))


def wanted_of(table: pa.Table, name: str) -> pa.Table:
    """A table of sources with our names; see `read_wanted`.

    Parameters
    ----------
    table
        Any.
    name
        Of its file, for errors.

    Raises
    ------
    InputError
        It has neither positions nor ids, or an unusable one.
    """
    lower = {column.lower(): column for column in reversed(table.column_names)}
    found = {
        ours: lower[hit]
        for ours, names in NAMES.items()
        if (hit := next((n for n in names if n in lower), ""))
    }
    if KEY not in found and not {"ra", "dec"} <= set(found):
        raise FormatError(
            f"{name}: no columns of positions (ra, dec) nor of light-curve ids (lc_id, ztf_id); "
            f"it has: {' '.join(table.column_names[:30])}"
        )
    columns: dict[str, Any] = {}
    if KEY in found:
        columns[KEY] = pa.array(ids_of(table[found[KEY]], name), pa.string())
    if {"ra", "dec"} <= set(found):
        columns |= _positions(table, found, name)
    if "object_id" in found:
        names = [None if value is None else str(value) for value in table[found["object_id"]].to_pylist()]
    elif "ra" in columns:
        names = [
            coordinate_name(*place)
            for place in zip(columns["ra"].to_pylist(), columns["dec"].to_pylist(), strict=True)
        ]
    else:
        names = [f"ZTF_{lc_id}" for lc_id in columns[KEY].to_pylist()]
    used = set(found.values())
    rest = {column: table[column] for column in table.column_names if column not in used | set(columns)}
    return pa.table({"object_id": pa.array(names, pa.string()), **columns, **rest})


def _positions(table: pa.Table, found: dict[str, str], name: str) -> dict[str, pa.Array]:
    places = {}
    for axis, low, high in (("ra", -360.0, 360.0), ("dec", -90.0, 90.0)):
        try:
            values = table[found[axis]].cast(pa.float64()).to_numpy()
        except pa.ArrowException:
            raise FormatError(f"{name}: column {found[axis]} is not in degrees") from None
        wrong = np.flatnonzero(~((values >= low) & (values <= high)))
        if wrong.size:
            raise InputError(
                f"{name}: row {wrong[0] + 1}: {found[axis]} is {values[wrong[0]]}, not a position [deg]"
            )
        places[axis] = pa.array(values % 360.0 if axis == "ra" else values)
    return places


def read_ids(path: str | Path) -> list[str]:
    """Ids of light curves out of a file.

    Parameters
    ----------
    path
        A table with a column of ids (`NAMES`), or an HDF5 file whose first data set is a list of numbers, as SCoPe's
        `get-quad-ids` writes it.

    Returns
    -------
    list of str
        In the order of the file, each once.

    Raises
    ------
    InputError
        The file is not there, or has no ids.
    """
    bare = _bare_dataset(str(path)) if table_format(str(path)) == "hdf5" else None
    if bare is not None:
        return list(dict.fromkeys(ids_of(pa.chunked_array([pa.array(bare)]), str(path))))
    wanted = read_wanted(path)
    if KEY not in wanted.column_names:
        raise FormatError(f"{path}: no column of light-curve ids (lc_id, ztf_id, _id)")
    return list(dict.fromkeys(wanted[KEY].to_pylist()))


def _bare_dataset(path: str) -> NDArray[Any] | None:
    """The first data set of an HDF5 file that is none of ours, when it is a plain list of numbers."""
    import h5py

    try:
        with h5py.File(path) as file:
            first = next(iter(file.values()), None)
            if HDF5_TABLE in file or not isinstance(first, h5py.Dataset):
                return None
            plain = first.ndim == 1 and first.dtype.kind in "iuf"
            return np.asarray(first[:]) if plain else None
    except OSError:
        return None  # reading it as a table will say why


def ids_of(column: pa.ChunkedArray, name: str) -> list[str]:
    """Ids as text: numbers without a fraction become their digits.

    Parameters
    ----------
    column
        Text, whole numbers, or numbers with a point that are whole.
    name
        Of the file, for errors.

    Raises
    ------
    FormatError
        A value is missing or no id.
    """
    if column.null_count:
        raise FormatError(f"{name}: {column.null_count} light-curve ids are missing")
    values = column.to_pylist()
    if pa.types.is_floating(column.type):
        exact = all(value.is_integer() and 0 <= value < 2**53 for value in values)
        if not exact:
            raise FormatError(
                f"{name}: the light-curve ids are no whole numbers, or beyond what a float64 can hold"
            )
        values = [int(value) for value in values]
    return [str(value).strip() for value in values]


def coordinate_name(ra: float, dec: float) -> str:
    """A name made of a position [deg]: ``J185051.53+062214.7``, cut off, not rounded, as the IAU wants it.

    Examples
    --------
    >>> coordinate_name(282.714726, 6.370752)
    'J185051.53+062214.7'
    """
    # decimals are not exact in binary: without a ten-thousandth of the last digit 0.1 deg would become 0.0999...
    centiseconds = int(ra % 360.0 * 24000.0 + 1e-4) % 8640000
    deciseconds = int(abs(dec) * 36000.0 + 1e-4)
    hours, rest = divmod(centiseconds, 360000)
    minutes, seconds = divmod(rest, 6000)
    degrees, left = divmod(deciseconds, 36000)
    arcminutes, arcseconds = divmod(left, 600)
    right = f"{hours:02d}{minutes:02d}{seconds // 100:02d}.{seconds % 100:02d}"
    sign = "-" if dec < 0 else "+"
    return f"J{right}{sign}{degrees:02d}{arcminutes:02d}{arcseconds // 10:02d}.{arcseconds % 10}"


def find_curves(
    server: Kowalski,
    catalogue: str,
    wanted: pa.Table,
    radius_arcsec: float = MATCH_RADIUS_ARCSEC,
    *,
    min_epochs: int = 0,
    threads: int = 4,
) -> pa.Table:
    """Light curves of sources: by id where the table has ids, else around their positions.

    Parameters
    ----------
    server, catalogue
        Where the light curves are.
    wanted
        As `read_wanted` gives it.
    radius_arcsec
        Of a cone around a position [arcsec].
    min_epochs
        Curves with fewer points are left out.
    threads
        Questions at the same time.

    Returns
    -------
    pyarrow.Table
        One row per light curve: `object_id` of its source, then what `fetch_ids` tells, and `separation_arcsec` of
        those found by position. A curve that two sources share has two rows.

    Raises
    ------
    InputError, LimitError, NetworkError
        As for `Kowalski.query`.
    """
    if KEY not in wanted.column_names:
        ra, dec = (wanted[name].to_numpy() for name in ("ra", "dec"))
        found = fetch_curves_around(
            server, catalogue, ra, dec, radius_arcsec, min_epochs=min_epochs, threads=threads
        )
        names = wanted["object_id"].take(found["position"].combine_chunks())
        return found.drop_columns(["position"]).add_column(0, "object_id", names)
    return _by_ids(server, catalogue, wanted, min_epochs)


def _by_ids(server: Kowalski, catalogue: str, wanted: pa.Table, min_epochs: int) -> pa.Table:
    ids: Sequence[str] = wanted[KEY].to_pylist()
    parts = [
        fetch_rows(server, catalogue, part) for part in batches_of(list(dict.fromkeys(ids)), IDS_PER_QUESTION)
    ]
    known = pa.concat_tables(parts or [fetch_rows(server, catalogue, [])])
    row = {lc_id: number for number, lc_id in enumerate(known[KEY].to_pylist())}
    points = known["n_points"].to_pylist()
    pairs = [
        (name, row[lc_id])
        for name, lc_id in zip(wanted["object_id"].to_pylist(), ids, strict=True)
        if lc_id in row and (points[row[lc_id]] or 0) >= min_epochs
    ]
    found = known.take(pa.array([number for _, number in pairs], pa.int64()))
    return found.add_column(0, "object_id", pa.array([name for name, _ in pairs], pa.string()))
