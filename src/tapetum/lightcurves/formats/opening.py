"""The one way to open light curves, and the one way to write them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from tapetum.core.errors import FormatError, InputError, UsageError
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.formats.assemble import from_long, from_nested, joined
from tapetum.lightcurves.formats.columns import Reading, recognise
from tapetum.lightcurves.formats.hats import is_hats, open_hats, write_hats
from tapetum.lightcurves.formats.matchfile import is_matchfile, open_matchfile, write_matchfile
from tapetum.lightcurves.formats.nested import UNITS, long_table
from tapetum.lightcurves.formats.parquet import open_parquet, write_nested
from tapetum.lightcurves.formats.sources import Given, Several, Source, refuse_absent
from tapetum.lightcurves.formats.tables import SUFFIXES as TABLES
from tapetum.lightcurves.formats.tables import open_csv, open_table
from tapetum.report.tables import write_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa

    Layout = Literal["nested", "long", "ztf-dr", "hats"]

MATCHFILES = (".pytable", ".pytables", ".matchfile")
SUFFIXES = (".parquet", ".csv", *TABLES, *MATCHFILES)
_PACKED = (".gz",)
_WHOLE_CURVES = 1000  # curves of a row group


def open_curves(paths: str | Path | Sequence[str | Path], how: Reading | None = None) -> Source:
    """Open light curves, whatever they are kept in; nothing but schemas is read before they are asked for.

    Parameters
    ----------
    paths
        Files and folders: Parquet (one row per curve, with lists, or one per point, in any order; ZTF's public light
        curves among them), CSV (may be gzipped), ECSV, FITS, VOTable, HDF5 tables, matchfiles of ZTF and PTF; HATS
        catalogues; folders, of which every file of a known suffix is opened, by name.
    how
        Names of columns and the like; None recognises them.

    Returns
    -------
    Source
        ``batches(n)`` gives `LightCurves`, ``parts()`` pieces for workers, ``read()`` all at once. Each batch has a
        table with `lc_id` (text) and what else the file says of each curve, under the names `object_id survey band ra
        dec field ccd quadrant time_system` where these are known. Points keep their order; times are the file's own.

    Raises
    ------
    InputError
        Nothing is there, or nothing in a folder can be light curves.
    FormatError
        A file is damaged, or no light curves can be found in its columns; the message names these.
    """
    how = how or Reading()
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise InputError("no light curves were named")
    members = [_open(Path(path), how) for path in given]
    return members[0] if len(members) == 1 else Several(f"{len(members)} inputs", tuple(members))


def open_each(
    paths: Sequence[str | Path], how: Reading | None = None, rejected: Callable[[str], None] | None = None
) -> list[Source]:
    """Open light curves of which some may be unusable: each file, or HATS catalogue, is a source of its own.

    Parameters
    ----------
    paths, how
        As for `open_curves`.
    rejected
        Told why a file or folder cannot be used, with its name; None raises.

    Raises
    ------
    InputError
        As `open_curves`, without `rejected`.
    """
    how = how or Reading()
    found: list[Source] = []
    for path in map(Path, paths):
        try:
            files = _files_of(path)
        except InputError as problem:
            _refuse(problem, rejected)
            continue
        for file in files:
            try:
                found.append(_open(file, how))
            except (InputError, OSError) as problem:
                _refuse(problem, rejected)
    return found


def _refuse(problem: InputError | OSError, rejected: Callable[[str], None] | None) -> None:
    if rejected is None:
        raise problem
    rejected(str(problem))


def curves_of(table: pa.Table, name: str, how: Reading | None = None) -> LightCurves:
    """Light curves of a table in memory, nested or long: of a store's, or of documents that a server sent.

    Documents of Kowalski (``_id``, ``filter``, ``data: [{hjd, mag, magerr, catflags}, ...]``) become one with
    ``pa.Table.from_pylist``.

    Parameters
    ----------
    name
        What it is called in errors.

    Raises
    ------
    FormatError
        As `open_curves`.
    """
    how = how or Reading()
    layout = recognise(table.schema, name, how)
    return (from_nested if layout.nested else from_long)(table, layout, how, name)


def _open(path: Path, how: Reading) -> Source:
    files = _files_of(path)
    if files != [path]:
        return Several(str(path), tuple(_open_file(file, how) for file in files))
    return open_hats(path, how) if path.is_dir() else _open_file(path, how)


def _files_of(path: Path) -> list[Path]:
    """A file or HATS catalogue itself; the files of any other folder."""
    refuse_absent(path)
    if not path.is_dir() or is_hats(path):
        return [path]
    files = sorted(entry for entry in path.iterdir() if entry.is_file() and _suffix(entry) in SUFFIXES)
    if not files:
        raise InputError(f"{path}: no light curves in this folder; known suffixes: {' '.join(SUFFIXES)}")
    return files


def _open_file(path: Path, how: Reading) -> Source:
    suffix = _suffix(path)
    if suffix == ".parquet":
        return open_parquet(path, how)
    if suffix == ".csv":
        return open_csv(path, how)
    if suffix in MATCHFILES or (suffix in (".h5", ".hdf5") and is_matchfile(path)):
        return open_matchfile(path, how)
    if suffix in TABLES:
        return open_table(path, how)
    raise FormatError(
        f"{path}: unknown suffix {suffix!r}; light curves come as {' '.join(SUFFIXES)}, or as a folder"
    )


def _suffix(path: Path) -> str:
    """Lower case, without that of gzip."""
    return (path.with_suffix("") if path.suffix.lower() in _PACKED else path).suffix.lower()


def write_curves(
    curves: Source | LightCurves,
    path: str | Path,
    layout: Layout | None = None,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write light curves; the file (or folder) appears whole. The number of curves.

    Parameters
    ----------
    curves
        A source is written as it is read: Parquet with one row per curve and HATS need no more memory than a batch.
    path
        The suffix decides: ``.parquet``, ``.csv``, ``.ecsv``, ``.fits``, ``.vot``, ``.xml``, ``.hdf5``, ``.h5``,
        ``.pytable`` (a matchfile), none (HATS).
    layout
        Of Parquet: ``nested`` (the default, one row per curve), ``long`` (one per point) or ``ztf-dr`` (nested, named
        as ZTF's public light curves). Tables of other suffixes are long; a curve without points is not in them.
    metadata
        More words about the whole, beside those of `LightCurves.table`; those of CSV lie in a file beside it.

    Raises
    ------
    UsageError
        An unknown suffix or layout, or what the format asks for is missing.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    source = Given("light curves", curves) if isinstance(curves, LightCurves) else curves
    kind = layout or ("nested" if suffix == ".parquet" else "long" if suffix else "hats")
    if (kind in ("nested", "ztf-dr")) != (suffix == ".parquet" and kind != "long") or (kind == "hats") != (
        not suffix
    ):
        raise UsageError(
            f"{path}: light curves of the layout {kind} are not written to {suffix or 'a folder'}"
        )
    words = dict(metadata or {})
    if kind == "hats":
        return write_hats(source, target)
    if kind in ("nested", "ztf-dr"):
        return write_nested(
            source.batches(_WHOLE_CURVES), target, words, dialect="ztf-dr" if kind == "ztf-dr" else "tapetum"
        )
    every = joined(list(source.batches(_WHOLE_CURVES)))
    if suffix in MATCHFILES:
        write_matchfile(every, target)
        return len(every)
    write_table(long_table(every, words), str(target), units=_units(every), sidecar=True)
    return int(np.count_nonzero(every.n_points))


def _units(curves: LightCurves) -> dict[str, str]:
    """Unit of each column: what the source said, else what we know."""
    said = {
        field.name: field.metadata[b"unit"].decode()
        for field in curves.table.schema
        if field.metadata and b"unit" in field.metadata
    }
    return {
        **{
            name: unit
            for name, unit in UNITS.items()
            if name in (*curves.table.column_names, "time", "mag", "magerr")
        },
        **said,
    }
