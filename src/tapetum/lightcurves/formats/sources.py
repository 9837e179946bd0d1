"""Where light curves come from: one type for every file, which gives them a batch at a time.

A source is small, can be pickled and sent to a worker, and falls into parts that are worked on independently.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapetum.core.errors import InputError, LimitError
from tapetum.lightcurves.formats.assemble import cut, from_long, joined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tapetum.lightcurves.curves import LightCurves
    from tapetum.lightcurves.formats.columns import Layout, Reading

CURVES_AT_A_TIME = 1000
MOST_SHELVES = 250  # files that are open at once while rows are sorted into them
_GOLDEN = np.uint64(
    0x9E3779B97F4A7C15
)  # 2^64 / golden ratio: spreads consecutive numbers (Knuth, vol. 3, 6.4)


class Source(ABC):
    """Light curves somewhere outside.

    Attributes
    ----------
    name
        What it is called in messages and in lists of finished work.
    state
        Changes when the light curves do, where no size or time of a file tells.
    """

    name: str
    state: str = ""

    @abstractmethod
    def batches(self, n: int = CURVES_AT_A_TIME) -> Iterator[LightCurves]:
        """The light curves, at most `n` at a time, always in the same order.

        Raises
        ------
        InputError
            The file is damaged or not what it should be; the message names it.
        """

    def parts(self) -> list[Source]:
        """Sources that together are this one, in its order, each of which can be read alone; the unit of work."""
        return [self]

    def read(self) -> LightCurves:
        """All of them; for what is known to fit into memory."""
        return joined(list(self.batches(1_000_000)))


@dataclass(frozen=True)
class Several(Source):
    """Sources one after the other."""

    name: str
    members: tuple[Source, ...]
    whole: bool = False  # members are units of work, even those with parts

    def batches(self, n: int = CURVES_AT_A_TIME) -> Iterator[LightCurves]:
        """As `Source.batches`."""
        return chain.from_iterable(member.batches(n) for member in self.members)

    def parts(self) -> list[Source]:
        """As `Source.parts`."""
        if self.whole:
            return list(self.members)
        return [part for member in self.members for part in member.parts()]


@dataclass(frozen=True)
class Given(Source):
    """Light curves that are in memory already, as those of a store or a server."""

    name: str
    curves: LightCurves

    def batches(self, n: int = CURVES_AT_A_TIME) -> Iterator[LightCurves]:
        """As `Source.batches`."""
        return cut(self.curves, n)


class Rows(Protocol):
    """A table that can be read more than once, a piece at a time."""

    @property
    def name(self) -> str:
        """Of the file."""

    @property
    def n_rows(self) -> int:
        """How many rows there are, or at most are."""

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns, all rows in their order, a piece at a time."""


@dataclass(frozen=True)
class LongSource(Source):
    """A table with one row per point.

    Rows of a curve may be anywhere in it. A table that is longer than `Reading.memory_rows` is read twice: once for the
    ids alone; if the rows of each id are together, as in a sorted table, the second time curves are cut out of the
    stream, which takes no memory to speak of. Else the rows are sorted onto shelves, files in a temporary folder, by
    the hash of their id, and one shelf after the other is read, which takes as much room there as the table has points.

    Attributes
    ----------
    finish
        Called with each batch of curves, to add what another table knows of them.
    """

    name: str
    rows: Rows
    layout: Layout
    how: Reading
    finish: Callable[[LightCurves], LightCurves] | None = field(default=None)

    def batches(self, n: int = CURVES_AT_A_TIME) -> Iterator[LightCurves]:
        """As `Source.batches`."""
        for table in self._tables():
            curves = from_long(table, self.layout, self.how, self.name)
            yield from cut(self.finish(curves) if self.finish else curves, n)

    def _tables(self) -> Iterator[pa.Table]:
        """Tables in which every curve is complete."""
        key = self.layout.key
        if self.rows.n_rows <= self.how.memory_rows:
            pieces = list(self.rows.read(self.layout.columns))
            if pieces:
                yield pa.concat_tables(pieces)
        elif key is None:
            raise LimitError(
                f"{self.name}: {self.rows.n_rows} rows and no column of ids, so all would be one light curve; "
                "name the column: columns={'lc_id': ...}"
            )
        elif _are_together(self.rows, key):
            yield from _complete(self.rows.read(self.layout.columns), key)
        else:
            yield from _shelved(self.rows, self.layout.columns, key, self.how.memory_rows)


# ---- long tables that do not fit into memory -----------------------------------------------------------------------


def _run_starts(column: pa.ChunkedArray) -> Any:
    """Rows at which another value begins; row 0 is one."""
    values = column.combine_chunks()
    if len(values) < 2:
        return np.arange(len(values))
    new = pc.fill_null(pc.not_equal(values[1:], values[:-1]), True)
    return np.concatenate([[0], np.flatnonzero(np.asarray(new)) + 1])


def _are_together(rows: Rows, key: str) -> bool:
    """Whether the rows of each id follow one another."""
    begun: list[pa.Array] = []
    last = None
    for table in rows.read([key]):
        if table.num_rows == 0:
            continue
        ids = table[key].combine_chunks().take(pa.array(_run_starts(table[key])))
        if ids[0].as_py() == last:
            ids = ids[1:]
        if pc.count_distinct(ids).as_py() < len(ids):
            return False
        begun.append(ids)
        last = table[key][table.num_rows - 1].as_py()
    every = pa.chunked_array(begun)
    return bool(pc.count_distinct(every).as_py() == len(every))


def _complete(tables: Iterator[pa.Table], key: str) -> Iterator[pa.Table]:
    """Tables that end where an id ends."""
    waiting: list[pa.Table] = []
    for table in tables:
        starts = _run_starts(table[key])
        if len(starts) > 1 or (waiting and waiting[-1][key][-1].as_py() != table[key][0].as_py()):
            first = int(starts[-1]) if len(starts) > 1 else 0
            yield pa.concat_tables([*waiting, table.slice(0, first)])
            waiting = [table.slice(first)]
        elif table.num_rows:
            waiting.append(table)
    if waiting:
        yield pa.concat_tables(waiting)


def _shelved(rows: Rows, columns: list[str], key: str, memory_rows: int) -> Iterator[pa.Table]:
    """Tables with all rows of some of the ids."""
    n_shelves = min(-(-2 * rows.n_rows // memory_rows), MOST_SHELVES)
    with tempfile.TemporaryDirectory(prefix="tapetum-curves-") as folder:
        shelves: dict[int, pa.RecordBatchFileWriter] = {}
        try:
            for table in rows.read(columns):
                shelf = _shelf_of(table[key], n_shelves)
                for number in np.unique(shelf).tolist():
                    if number not in shelves:
                        shelves[number] = pa.ipc.new_file(Path(folder) / str(number), table.schema)
                    shelves[number].write_table(table.filter(pa.array(shelf == number)))
        finally:
            for writer in shelves.values():
                writer.close()
        for number in sorted(shelves):
            with pa.OSFile(str(Path(folder) / str(number))) as file:
                yield pa.ipc.open_file(file).read_all()


def _shelf_of(ids: pa.ChunkedArray, n_shelves: int) -> Any:
    if pa.types.is_integer(ids.type):
        numbers = pc.fill_null(ids, 0).cast(pa.int64()).to_numpy().astype(np.uint64)
        return ((numbers * _GOLDEN) >> np.uint64(40)) % np.uint64(n_shelves)
    encoded = ids.combine_chunks().dictionary_encode(null_encoding="encode")
    shelf = np.array(
        [crc32(str(value).encode()) % n_shelves for value in encoded.dictionary.to_pylist()], np.uint64
    )
    return shelf[encoded.indices.to_numpy()]


def refuse_absent(path: Path) -> None:
    """Raise InputError for what is not there."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
