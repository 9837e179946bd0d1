"""Light curves of sources that somebody names: by position, or by the ids of their light curves.

Which light curves a source has is written to a table of its own, by which they are taken out of files or fetched.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapetum.core.errors import FormatError
from tapetum.core.settings import without_password
from tapetum.lightcurves.curves import KEY, LightCurves
from tapetum.lightcurves.wanted import NAMES, find_curves, read_ids, read_wanted
from tapetum.pipelines.lightcurve_parts import Part, Recipe, inputs_of
from tapetum.pipelines.outputs import fingerprint, finished_run, record_settings
from tapetum.report.read_tables import read_table
from tapetum.report.tables import write_table
from tapetum.sky.match import match_sky

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from tapetum.core.settings import Settings
    from tapetum.lightcurves.formats.sources import Source
    from tapetum.surveys.kowalski import Kowalski

    Whole = NDArray[np.int64]

OBJECT = "object_id"
SEPARATION, FILE = "separation_arcsec", "file"
MATCH = pa.schema(
    [
        (OBJECT, pa.string()),
        (KEY, pa.string()),
        ("survey", pa.string()),
        ("band", pa.string()),
        ("ra", pa.float64()),
        ("dec", pa.float64()),
        (SEPARATION, pa.float64()),
        (FILE, pa.string()),
    ]
)
"""What is told of each light curve of a wanted source."""
UNITS = {"ra": "deg", "dec": "deg", SEPARATION: "arcsec"}
DESCRIPTIONS = {
    OBJECT: "the source that was asked for",
    SEPARATION: "from the position that was asked for",
    FILE: "where the light curve is; empty: on the server",
}


def wanted_sources(path: str) -> pa.Table:
    """A table of sources: `object_id`, and `lc_id` or `ra` and `dec`.

    Parameters
    ----------
    path
        As `tapetum.lightcurves.wanted.read_wanted` takes it, or a bare list of ids (`read_ids`). Ids of light curves
        without names of sources keep the names that are in the light curves: `object_id` is null.

    Raises
    ------
    InputError
        It is not there, or has neither positions nor ids.
    """
    try:
        table = read_wanted(path)
    except FormatError as problem:
        try:
            ids = read_ids(path)
        except FormatError:
            raise problem from None
        return pa.table({OBJECT: pa.nulls(len(ids), pa.string()), KEY: pa.array(ids, pa.string())})
    names = {name.lower() for name in read_table(path).column_names}
    if KEY in table.column_names and not names & set(NAMES[OBJECT]):
        place = table.column_names.index(OBJECT)
        table = table.set_column(place, OBJECT, pa.nulls(table.num_rows, pa.string()))
    return table


# ---- which light curves --------------------------------------------------------------------------------------------


def match_recipe(
    path: str, radius_arcsec: float, inputs: Sequence[str], sources: Sequence[Source] = ()
) -> Recipe:
    """How `tapetum.pipelines.lightcurve_parts.make_once` finds out which light curves of files are wanted.

    Parameters
    ----------
    path
        Of the table of sources.
    radius_arcsec
        Of a cone around a position [arcsec].
    inputs
        Files of the light curves, or of features of them.
    sources
        The light curves, opened: the fingerprint of a store is its own.
    """
    options = {"wanted": path, "radius_arcsec": radius_arcsec}
    return Recipe(
        "lightcurves classify: sources",
        partial(match_maker, path, radius_arcsec),
        options,
        fingerprint([path, *inputs_of(inputs, sources)], {"verb": "match", **options}),
        UNITS,
        DESCRIPTIONS,
    )


def match_maker(path: str, radius_arcsec: float) -> Callable[[Any], Iterator[pa.Table]]:
    """The function of a worker."""
    return partial(_matches_of_part, wanted_sources(path), radius_arcsec)


def _matches_of_part(wanted: pa.Table, radius_arcsec: float, part: Any) -> Iterator[pa.Table]:
    where = part.source.name if isinstance(part, Part) else part.path
    tables = (batch.table for batch in part.batches()) if isinstance(part, Part) else part.tables()
    yield MATCH.empty_table()
    for table in tables:
        rows, source, apart = matched(table, wanted, radius_arcsec)
        names = wanted[OBJECT].take(pa.array(source))
        if OBJECT in table.column_names:
            names = pc.coalesce(names, table[OBJECT].take(pa.array(rows)))
        columns: dict[str, Any] = {OBJECT: names, SEPARATION: apart, FILE: [where] * len(rows)}
        for column in MATCH:
            if column.name not in columns:
                given = column.name in table.column_names
                columns[column.name] = (
                    table[column.name].take(pa.array(rows)) if given else pa.nulls(len(rows), column.type)
                )
        yield pa.table({name: columns[name] for name in MATCH.names}).cast(MATCH)


def matched(
    table: pa.Table, wanted: pa.Table, radius_arcsec: float
) -> tuple[Whole, Whole, NDArray[np.float64]]:
    """Rows of light curves that belong to wanted sources: by id where these have ids, else by position.

    Returns
    -------
    rows, sources : ndarray of int64, shape (n_pairs,)
        Sorted by row; a light curve may be of several sources.
    separation : ndarray of float64, shape (n_pairs,)
        [arcsec], NaN where it was found by id.
    """
    if KEY in wanted.column_names:
        places: dict[str, list[int]] = {}
        for number, lc_id in enumerate(wanted[KEY].to_pylist()):
            places.setdefault(lc_id, []).append(number)
        pairs = [
            (row, number)
            for row, lc_id in enumerate(table[KEY].to_pylist())
            for number in places.get(lc_id, ())
        ]
        found = np.array(pairs, np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1], np.full(len(found), np.nan)
    if not {"ra", "dec"} <= set(table.column_names):
        nothing: Whole = np.empty(0, np.int64)
        return nothing, nothing, np.empty(0)
    ra, dec = (np.array(table[name].cast(pa.float64()).to_numpy(), np.float64) for name in ("ra", "dec"))
    placed = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    rows, sources, apart = match_sky(
        ra[placed], dec[placed], wanted["ra"].to_numpy(), wanted["dec"].to_numpy(), radius_arcsec
    )
    order = np.lexsort((sources, rows))
    return placed[rows[order]], sources[order], apart[order]


def find_once(
    server: Kowalski,
    catalogue: str,
    wanted: str,
    output: str,
    settings: Settings,
    *,
    radius_arcsec: float,
    min_epochs: int = 0,
    overwrite: bool = False,
) -> None:
    """Write which light curves of a server are wanted, unless the same has been found before.

    Parameters
    ----------
    server, catalogue
        Where the light curves are.
    wanted
        File with a table of sources.
    output
        File for the light curves of each.
    settings
        Of the run.
    radius_arcsec
        Of a cone around a position [arcsec].
    min_epochs
        Curves with fewer points are left out.
    overwrite
        Ask anew.

    Raises
    ------
    InputError, LimitError, NetworkError
        As for `tapetum.lightcurves.wanted.find_curves`.
    """
    options = {
        "server": without_password(server.url),
        "catalogue": catalogue,
        "radius_arcsec": radius_arcsec,
        "min_epochs": min_epochs,
    }
    made_from = fingerprint([wanted], {"verb": "find", **options})
    if not overwrite and finished_run(output, made_from) is not None:
        return
    found = find_curves(
        server, catalogue, wanted_sources(wanted), radius_arcsec, min_epochs=min_epochs,
        threads=settings.kowalski.threads,
    )  # fmt: skip
    rest = [column for column in found.schema if column.name not in MATCH.names]
    columns = {
        column.name: found[column.name]
        if column.name in found.column_names
        else pa.nulls(found.num_rows, column.type)
        for column in (*MATCH, *rest)
    }
    write_table(pa.table(columns), output, options, UNITS, DESCRIPTIONS, sidecar=True)
    command = {"verb": "lightcurves classify: sources", "wanted": wanted, **options}
    record_settings(Path(output), settings, command, made_from, n_done=found.num_rows)


# ---- taking them ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matches:
    """Light curves of wanted sources.

    Attributes
    ----------
    table
        With the columns of `MATCH`.
    rows
        (file or empty, id of a light curve) -> rows of the table.
    """

    table: pa.Table
    rows: Mapping[tuple[str, str], Sequence[int]] = field(repr=False)

    @classmethod
    def of(cls, table: pa.Table) -> Matches:
        """Of a table with the columns of `MATCH`."""
        rows: dict[tuple[str, str], list[int]] = {}
        files = table[FILE].to_pylist() if FILE in table.column_names else [None] * table.num_rows
        for number, (where, lc_id) in enumerate(zip(files, table[KEY].to_pylist(), strict=True)):
            rows.setdefault((where or "", str(lc_id)), []).append(number)
        return cls(table, rows)

    @classmethod
    def read(cls, path: str) -> Matches:
        """Of a file, which is read once as long as it stays the same."""
        state = Path(path).stat()
        return _read(path, state.st_mtime_ns, state.st_size)

    @property
    def ids(self) -> list[str]:
        """Ids of the light curves, each once."""
        return list(dict.fromkeys(str(lc_id) for lc_id in self.table[KEY].to_pylist()))

    @property
    def files(self) -> set[str]:
        """Where light curves are."""
        return {where for where, _ in self.rows}

    def pairs(self, ids: Iterable[Any], where: str) -> tuple[Whole, Whole]:
        """Numbers among `ids`, and rows of the table that they belong to."""
        pairs = [
            (number, row)
            for number, lc_id in enumerate(map(str, ids))
            for row in self.rows.get((where, lc_id)) or self.rows.get(("", lc_id), ())
        ]
        found = np.array(pairs, np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1]

    def named(self, table: pa.Table, rows: Whole) -> pa.Table:
        """A table of light curves with the names of their sources, and how far they are from where these should be."""
        names = self.table[OBJECT].take(pa.array(rows)).cast(pa.string())
        if OBJECT in table.column_names:
            names = pc.coalesce(names, table[OBJECT].cast(pa.string()))
            table = table.drop_columns([OBJECT])
        table = table.append_column(OBJECT, names)
        if SEPARATION in table.column_names:
            table = table.drop_columns([SEPARATION])
        return table.append_column(SEPARATION, self.table[SEPARATION].take(pa.array(rows)).cast(pa.float64()))


@lru_cache(maxsize=2)
def _read(path: str, mtime_ns: int, size: int) -> Matches:
    return Matches.of(read_table(path))


def chosen_curves(curves: LightCurves, matches: Matches, where: str) -> LightCurves:
    """The wanted ones of some light curves, with the names of their sources."""
    numbers, rows = matches.pairs(curves.ids, where)
    taken = curves.take(numbers)
    return replace(taken, table=matches.named(taken.table, rows))


def chosen_rows(table: pa.Table, matches: Matches, where: str = "") -> pa.Table:
    """The same of rows of features."""
    numbers, rows = matches.pairs(table[KEY].to_pylist(), where)
    return matches.named(table.take(pa.array(numbers)), rows)


def sources_without(wanted: pa.Table, matches: pa.Table) -> int:
    """How many wanted sources have no light curve."""
    if KEY in wanted.column_names:
        return len(set(wanted[KEY].to_pylist()) - set(matches[KEY].to_pylist()))
    return len(set(wanted[OBJECT].to_pylist()) - set(matches[OBJECT].to_pylist()))


def only_wanted(parts: Sequence[Part], matches: Matches) -> list[Part]:
    """Those units of work that have a wanted light curve."""
    kept = [part for part in parts if {part.source.name, ""} & matches.files]
    return [replace(part, number=number) for number, part in enumerate(kept)]
