"""Light curves in tables of the kinds that astronomers exchange."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv as pacsv

from tapetum.core.errors import FormatError
from tapetum.lightcurves.formats.assemble import from_nested
from tapetum.lightcurves.formats.columns import Reading, recognise
from tapetum.lightcurves.formats.sources import Given, LongSource, Source
from tapetum.report.read_tables import ASTROPY, READABLE, read_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SUFFIXES = tuple(suffix for suffix, kind in READABLE.items() if kind in ASTROPY)
"""Of tables that are read as a whole."""

BLOCK = 2**24  # bytes of CSV read at a time
SHORTEST_ROW = 6  # bytes of a line of CSV: a bound on how many there are
DENSEST_GZIP = 20  # bytes of numbers per byte of gzip, at most


def open_table(path: Path, how: Reading) -> Source:
    """The light curves of a FITS, VOTable, ECSV or HDF5 table, one row per point or per curve.

    Raises
    ------
    FormatError
        Not such a file, or its columns are not those of light curves.
    LimitError
        Larger than is read as a whole.
    """
    table = read_table(path)
    layout = recognise(table.schema, str(path), how)
    if layout.nested:
        return Given(str(path), from_nested(table, layout, how, str(path)))
    return LongSource(str(path), TableRows(path, table.num_rows, table), layout, how)


def open_csv(path: Path, how: Reading) -> Source:
    """The light curves of a CSV file with one row per point; it may be larger than memory.

    Raises
    ------
    FormatError
        Not CSV, or its columns are not those of light curves.
    """
    schema = _csv_schema(path)
    layout = recognise(schema, str(path), how)
    types = {name: pa.float64() for name in layout.points.values()}
    for ours, theirs in layout.about.items():
        if ours in ("ra", "dec"):
            types[theirs] = pa.float64()
        elif ours in ("lc_id", "object_id", "survey"):
            types[theirs] = pa.string()
    # what has no value in the first block may have a text later
    types |= {
        entry.name: pa.string()
        for entry in schema
        if pa.types.is_null(entry.type) and entry.name not in types
    }
    types = {name: kind for name, kind in types.items() if name in layout.columns}
    size = path.stat().st_size * (DENSEST_GZIP if path.suffix.lower() == ".gz" else 1)
    return LongSource(str(path), CsvRows(path, size // SHORTEST_ROW, tuple(types.items())), layout, how)


@dataclass(frozen=True)
class TableRows:
    """The rows of a table that is read as a whole; another process reads it again instead of being sent it."""

    path: Path
    n_rows: int
    table: pa.Table | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "table": None}

    @property
    def name(self) -> str:
        """The file."""
        return str(self.path)

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """As `Rows.read`."""
        yield (self.table or read_table(self.path)).select(list(columns))


@dataclass(frozen=True)
class CsvRows:
    """The rows of a CSV file, a block at a time.

    Attributes
    ----------
    n_rows
        At most so many.
    types
        Of columns, as pairs; others are guessed from the first block.
    """

    path: Path
    n_rows: int
    types: tuple[tuple[str, pa.DataType], ...]

    @property
    def name(self) -> str:
        """The file."""
        return str(self.path)

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """As `Rows.read`."""
        convert = pacsv.ConvertOptions(
            include_columns=list(columns), column_types=dict(self.types), strings_can_be_null=True
        )
        try:
            with _csv_reader(self.path, convert) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])
        except (pa.ArrowException, UnicodeDecodeError) as problem:
            raise FormatError(f"{self.path}: not a readable CSV table: {problem}") from None


def _csv_schema(path: Path) -> pa.Schema:
    try:
        with _csv_reader(path, pacsv.ConvertOptions()) as reader:
            return reader.schema
    except (pa.ArrowException, UnicodeDecodeError) as problem:
        raise FormatError(f"{path}: not a readable CSV table: {problem}") from None


def _csv_reader(path: Path, convert: pacsv.ConvertOptions) -> pacsv.CSVStreamingReader:
    # one thread: the rows stay in their order, and other cores belong to other workers
    return pacsv.open_csv(
        path, pacsv.ReadOptions(use_threads=False, block_size=BLOCK), convert_options=convert
    )
