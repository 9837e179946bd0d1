"""HATS catalogues: folders of Parquet files, each of one HEALPix pixel, as LSDB and many archives serve them.

The layout is that of the HATS note of the IVOA (2025): ``dataset/Norder=k/Dir=d/Npix=p.parquet`` (or a folder
``Npix=p/``), with ``hats.properties`` and ``partition_info.csv`` beside ``dataset``.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tapetum import __version__
from tapetum.core.errors import FormatError, InputError, UsageError
from tapetum.core.files import whole_file
from tapetum.lightcurves.formats.nested import aligned, lists_of
from tapetum.lightcurves.formats.parquet import open_parquet
from tapetum.lightcurves.formats.sources import Several, Source
from tapetum.sky.healpix import ORDER, hpx29

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.lightcurves.curves import LightCurves
    from tapetum.lightcurves.formats.columns import Reading

PROPERTIES = ("hats.properties", "properties")  # new and old name
COLLECTION = "collection.properties"
INDEX = "_healpix_29"
POINTS = "lightcurve"  # the column that holds the points in what we write
PIXELS_PER_FOLDER = 10_000
FINEST_ORDER = 10  # of a partition, 3.4 arcmin
_PIXEL = re.compile(r"Norder=(\d+)/Dir=\d+/Npix=(\d+)(?:\.parquet|/.+\.parquet)$")


def is_hats(folder: Path) -> bool:
    """Whether a folder is a HATS catalogue, or a collection of one with its margins."""
    marks = (*PROPERTIES, COLLECTION, "dataset/_metadata", "partition_info.csv")
    return any((folder / mark).is_file() for mark in marks) or any(folder.glob("Norder=*"))


def open_hats(folder: Path, how: Reading) -> Source:
    """The light curves of a catalogue; its partitions, in the order of the sky, are its parts.

    Nested (a struct of lists, lists, or a list of structs) and long catalogues ("source" catalogues) are both read. Of
    a long one each partition is taken by itself, so it must be partitioned by the position of the object.

    Raises
    ------
    FormatError
        There are no partitions, or their columns are not those of light curves.
    """
    members = tuple(
        _named(open_parquet(path, how), f"{folder}#{pixel}") for pixel, path in partitions_of(folder)
    )
    return Several(str(folder), members, whole=True)


def partitions_of(folder: Path) -> list[tuple[str, Path]]:
    """Name and file of each partition, in the order of the sky; of a collection without those of its margins.

    Raises
    ------
    FormatError
        There are none.
    """
    files = _partitions(_main_catalogue(folder))
    if not files:
        raise FormatError(
            f"{folder}: a HATS catalogue without partitions (dataset/Norder=*/Dir=*/Npix=*.parquet)"
        )
    return files


def _named(source: Source, name: str) -> Source:
    return replace(source, name=name)  # type: ignore[type-var]


def _main_catalogue(folder: Path) -> Path:
    """The catalogue itself, where the folder is a collection."""
    if not (folder / COLLECTION).is_file():
        return folder
    name = read_properties(folder / COLLECTION).get("hats_primary_table_url", "")
    main = folder / name
    if not name or not main.resolve().is_relative_to(folder.resolve()) or not main.is_dir():
        raise FormatError(f"{folder / COLLECTION}: its hats_primary_table_url {name!r} is no folder in it")
    return main


def _partitions(folder: Path) -> list[tuple[str, Path]]:
    """Name and file of each partition, by the place of its pixel on the sky."""
    found = []
    for path in (folder / "dataset" if (folder / "dataset").is_dir() else folder).glob(
        "Norder=*/Dir=*/Npix=*"
    ):
        for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
            match = _PIXEL.search(file.as_posix())
            if match:
                order, pixel = int(match[1]), int(match[2])
                found.append(
                    (pixel << 2 * (ORDER - order), order, file.name, f"Norder={order},Npix={pixel}", file)
                )
    found.sort()
    pixels = Counter(name for *_, name, _ in found)
    return [(name if pixels[name] == 1 else f"{name},{part}", file) for _, _, part, name, file in found]


def read_properties(path: Path) -> dict[str, str]:
    """Keys and values of a Java properties file, which HATS uses for its metadata."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = [
        line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith(("#", "!"))
    ]
    return {key.strip(): value.strip() for key, _, value in pairs}


# ---- writing -------------------------------------------------------------------------------------------------------


def write_hats(source: Source, folder: Path, *, most_rows: int = 100_000, overwrite: bool = False) -> int:
    """Write light curves as a HATS catalogue with a nested column `lightcurve`; the number of curves.

    The source is read twice: once for how many curves are where, once to sort them into partitions, through temporary
    files beside the catalogue. The catalogue appears whole: it is written under another name first.

    Parameters
    ----------
    source
        Every curve with `ra` and `dec`.
    folder
        Must not exist, unless `overwrite`.
    most_rows
        Curves of a partition; a pixel with more is divided.

    Raises
    ------
    UsageError
        The folder exists, or a curve has no position.
    """
    if folder.exists() and not overwrite:
        raise UsageError(f"{folder}: exists already; remove it, or ask for it to be overwritten")
    counts: Counter[int] = Counter()
    for curves in source.batches():
        counts.update((_pixels(curves, folder) >> 2 * (ORDER - FINEST_ORDER)).tolist())
    leaves = _divide(counts, most_rows)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent) as scratch:
        whole, shelves = Path(scratch) / "whole", Path(scratch) / "shelves"
        schema = _sort_out(source, shelves, leaves, folder)
        for order, pixel in leaves:
            _write_partition(shelves / f"{order}-{pixel}", whole / _file_of(order, pixel), schema)
        _describe(whole, folder.name, leaves, schema, sum(counts.values()))
        _take_place(whole, folder)
    return sum(counts.values())


def _take_place(whole: Path, folder: Path) -> None:
    if folder.exists():
        folder.rename(whole.with_name("old"))  # goes with the scratch folder
    whole.rename(folder)


def _pixels(curves: LightCurves, folder: Path) -> NDArray[np.int64]:
    missing = [name for name in ("ra", "dec") if name not in curves.table.column_names]
    if missing:
        raise UsageError(
            f"{folder}: a HATS catalogue needs the column {', '.join(missing)} of every light curve"
        )
    try:
        return hpx29(curves.table["ra"].to_numpy(), curves.table["dec"].to_numpy())
    except ValueError as problem:
        raise UsageError(f"{folder}: a light curve has no position on the sky: {problem}") from None


def _divide(counts: Counter[int], most_rows: int) -> list[tuple[int, int]]:
    """(order, pixel) of the partitions: the largest pixels that do not hold too much."""
    level = dict(counts)
    sums = {FINEST_ORDER: level}
    for order in range(FINEST_ORDER - 1, -1, -1):
        above: Counter[int] = Counter()
        for pixel, count in level.items():
            above[pixel >> 2] += count
        sums[order] = level = dict(above)
    leaves, todo = [], [(0, pixel) for pixel in sums[0]]
    while todo:
        order, pixel = todo.pop()
        if order == FINEST_ORDER or sums[order][pixel] <= most_rows:
            leaves.append((order, pixel))
        else:
            todo += [
                (order + 1, child) for child in range(4 * pixel, 4 * pixel + 4) if child in sums[order + 1]
            ]
    return sorted(leaves, key=lambda leaf: leaf[1] << 2 * (ORDER - leaf[0]))


def _sort_out(source: Source, shelves: Path, leaves: list[tuple[int, int]], folder: Path) -> pa.Schema:
    """Write the rows of each batch into the folder of their partition; the schema of all."""
    starts = np.array([pixel << 2 * (ORDER - order) for order, pixel in leaves], np.int64)
    names = [f"{order}-{pixel}" for order, pixel in leaves]
    schema: pa.Schema | None = None
    for number, curves in enumerate(source.batches()):
        pixels = _pixels(curves, folder)
        table = _rows(curves, pixels)
        schema = schema or table.schema
        table = aligned(table, schema, folder)
        shelf = np.searchsorted(starts, pixels, side="right") - 1
        for which in np.unique(shelf).tolist():
            target = shelves / names[which] / f"{number:09d}.parquet"
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.filter(pa.array(shelf == which)), target)
    if schema is None:
        raise InputError(f"{folder}: there are no light curves to write")
    return schema


def _rows(curves: LightCurves, pixels: NDArray[np.int64]) -> pa.Table:
    """One row per curve: the index on the sky, what is known of it, and a struct of lists."""
    lists = lists_of(curves)
    points = pa.StructArray.from_arrays(list(lists.values()), names=list(lists))
    fields = [pa.field(INDEX, pa.int64()), *curves.table.schema, pa.field(POINTS, points.type)]
    columns: list[Any] = [pa.array(pixels), *curves.table.columns, points]
    if INDEX in curves.table.column_names:  # of the catalogue that they come from
        index = curves.table.column_names.index(INDEX) + 1
        del fields[index], columns[index]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields, metadata=curves.table.schema.metadata))


def _write_partition(shelf: Path, target: Path, schema: pa.Schema) -> None:
    table = pa.concat_tables([pq.read_table(path, schema=schema) for path in sorted(shelf.glob("*.parquet"))])
    target.parent.mkdir(parents=True, exist_ok=True)
    order = np.argsort(table[INDEX].to_numpy(), kind="stable")
    pq.write_table(table.take(pa.array(order)), target, compression="zstd")


def _file_of(order: int, pixel: int) -> str:
    folder = pixel // PIXELS_PER_FOLDER * PIXELS_PER_FOLDER
    return f"dataset/Norder={order}/Dir={folder}/Npix={pixel}.parquet"


def _describe(whole: Path, name: str, leaves: list[tuple[int, int]], schema: pa.Schema, n_rows: int) -> None:
    """The files that say what the catalogue is."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%MUTC")
    properties = {
        "obs_collection": name,
        "dataproduct_type": "object",
        "hats_nrows": n_rows,
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": INDEX,
        "hats_col_healpix_order": ORDER,
        "hats_npix_suffix": ".parquet",
        "hats_order": max(order for order, _ in leaves),
        "hats_builder": f"tapetum v{__version__}",
        "hats_creation_date": now,
        "hats_estsize": sum(path.stat().st_size for path in whole.rglob("*.parquet")) // 1024,
        "hats_release_date": "2025-08-22",
        "hats_version": "v1.0",
    }
    with whole_file(whole / PROPERTIES[0]) as part:
        part.write_text("#HATS catalog\n" + "".join(f"{key}={value}\n" for key, value in properties.items()))
    with whole_file(whole / "partition_info.csv") as part:
        part.write_text("Norder,Npix\n" + "".join(f"{order},{pixel}\n" for order, pixel in leaves))
    pq.write_metadata(schema, whole / "dataset" / "_common_metadata")
