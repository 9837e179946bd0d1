"""Parquet files of light curves, nested (one row per curve) or long (one row per point)."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tapetum.core.errors import FormatError
from tapetum.core.files import whole_file
from tapetum.lightcurves.formats.assemble import cut, from_nested, joined
from tapetum.lightcurves.formats.columns import Layout, Reading, recognise
from tapetum.lightcurves.formats.nested import aligned, nested_table
from tapetum.lightcurves.formats.sources import CURVES_AT_A_TIME, LongSource, Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tapetum.lightcurves.curves import LightCurves

ROWS_AT_A_TIME = 2**18


def open_parquet(path: Path, how: Reading) -> Source:
    """The light curves of one file, whichever layout it has.

    Raises
    ------
    FormatError
        Not Parquet, or its columns are not those of light curves; the message names them.
    """
    with _opened(path) as file:
        schema, n_rows, n_groups = file.schema_arrow, file.metadata.num_rows, file.metadata.num_row_groups
    layout = recognise(schema, str(path), how)
    if layout.nested:
        return NestedParquet(str(path), path, layout, how, tuple(range(n_groups)))
    return LongSource(str(path), ParquetRows(path, n_rows), layout, how)


@dataclass(frozen=True)
class NestedParquet(Source):
    """A file with one row per curve, or some of its row groups, which are its parts."""

    name: str
    path: Path
    layout: Layout
    how: Reading
    groups: tuple[int, ...]

    def batches(self, n: int = CURVES_AT_A_TIME) -> Iterator[LightCurves]:
        """As `Source.batches`."""
        with _opened(self.path) as file:
            row = sum(file.metadata.row_group(group).num_rows for group in range(min(self.groups, default=0)))
            for batch in file.iter_batches(n, list(self.groups), _leaves(self.layout)):
                table = pa.Table.from_batches([batch]).replace_schema_metadata(file.schema_arrow.metadata)
                # rows of several bands are more than one curve each
                yield from cut(from_nested(table, self.layout, self.how, str(self.path), row), n)
                row += batch.num_rows

    def parts(self) -> list[Source]:
        """One for each row group."""
        if len(self.groups) == 1:
            return [self]
        return [
            NestedParquet(f"{self.path}#{group}", self.path, self.layout, self.how, (group,))
            for group in self.groups
        ]


@dataclass(frozen=True)
class ParquetRows:
    """The rows of a long file."""

    path: Path
    n_rows: int

    @property
    def name(self) -> str:
        """The file."""
        return str(self.path)

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """As `Rows.read`."""
        with _opened(self.path) as file:
            for batch in file.iter_batches(ROWS_AT_A_TIME, columns=list(columns)):
                yield pa.Table.from_batches([batch]).replace_schema_metadata(file.schema_arrow.metadata)


def _leaves(layout: Layout) -> list[str]:
    """What has to be read, down to the fields of a struct; Parquet's own names of list items have varied."""
    if layout.inside is None:
        return layout.columns
    inner = ("", "list.element.", "list.item.", "bag.array_element.")
    fields = [f"{layout.inside}.{step}{theirs}" for theirs in layout.points.values() for step in inner]
    return [column for column in layout.columns if column != layout.inside] + fields


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as problem:
        if isinstance(problem, FileNotFoundError | PermissionError):
            raise
        raise FormatError(f"{path}: not a readable Parquet file: {problem}") from None


def write_nested(
    batches: Iterable[LightCurves], path: Path, metadata: Mapping[str, str], *, dialect: str = "tapetum"
) -> int:
    """Write one row per curve, one row group per batch; the number of curves.

    The first batch decides on the columns; what later ones lack is null.

    Raises
    ------
    UsageError
        A later batch has columns that the first does not have.
    """
    count = 0
    with whole_file(path) as part:
        writer: Any = None
        try:
            for curves in batches:
                table = nested_table(curves, dialect, metadata)
                if writer is None:
                    writer = pq.ParquetWriter(part, table.schema, compression="zstd")
                writer.write_table(aligned(table, writer.schema, path))
                count += len(curves)
            if writer is None:
                pq.write_table(nested_table(joined([]), dialect, metadata), part)
        finally:
            if writer is not None:
                writer.close()
    return count
