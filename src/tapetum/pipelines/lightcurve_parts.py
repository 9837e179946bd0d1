"""From light curves to one table, a part at a time: what is finished waits in files of its own beside the output.

A part is a piece of what the light curves are kept in (a row group, a partition of a HATS catalogue, a file), or a
piece of that. It is worked on in a worker, which writes it and sends nothing back but how it went; so a run that was
stopped, or lost a worker, goes on where it was, and the table does not depend on how often it was stopped. Workers of
a cluster need the same folders as this process.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tapetum import __version__
from tapetum.core.errors import InputError
from tapetum.core.progress import Progress, no_progress
from tapetum.lightcurves.curves import KEY
from tapetum.lightcurves.formats.parquet import NestedParquet
from tapetum.lightcurves.formats.sources import CURVES_AT_A_TIME, Several
from tapetum.pipelines.outputs import STDOUT, finished_run, record_settings
from tapetum.pipelines.runner import run_over
from tapetum.pipelines.steps import TROUBLE, reason
from tapetum.report.tables import table_format, write_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tapetum.core.settings import Settings
    from tapetum.lightcurves.curves import LightCurves
    from tapetum.lightcurves.formats.sources import Source

WHEN = "made_utc"
APART = "apart:"  # begins the names of columns that go into a file of their own
KEYS = (KEY, "object_id")  # what tells whose row it is
ORDER = "__order"  # of rows that were made out of turn; not in the output
MOST_PIECES = 64  # of one row group
ROWS_AT_A_TIME = 256  # of the finished parts: a row may hold whole periodograms
SHARES = 16  # of sources whose curves may be anywhere in the input


class Unit(Protocol):
    """What is worked on at a time: light curves, or rows that were made of some."""

    @property
    def number(self) -> int:
        """Its place among all."""

    @property
    def name(self) -> str:
        """For messages."""


@dataclass(frozen=True)
class Part:
    """A unit of work with light curves.

    Attributes
    ----------
    number
        Its place among all.
    source
        Where its light curves are.
    piece, n_pieces
        Of the source; what a piece is, is for `Piece` to say.
    size
        Curves of a piece; 0: of any number.
    """

    number: int
    source: Source
    piece: int = 0
    n_pieces: int = 1
    size: int = 0

    @property
    def name(self) -> str:
        """For messages."""
        return (
            self.source.name
            if self.n_pieces == 1
            else f"{self.source.name}, part {self.piece + 1} of {self.n_pieces}"
        )

    def batches(self, n: int = CURVES_AT_A_TIME) -> Iterator[LightCurves]:
        """The light curves of this piece, those of the source cut into batches of `size`; the last has the rest."""
        if self.n_pieces == 1:
            yield from self.source.batches(n)
            return
        last = None if self.piece == self.n_pieces - 1 else self.piece + 1
        yield from islice(self.source.batches(self.size), self.piece, last)


@dataclass(frozen=True)
class Outcome:
    """How a part went: why there is no table of it, if there is none."""

    problem: str | None = None


@dataclass(frozen=True)
class Recipe:
    """What is made of light curves.

    Attributes
    ----------
    verb
        For the settings beside the output.
    setup
        Gives the function that makes the rows of a part; as `tapetum.pipelines.runner.run_over` takes it.
    options
        What is decided, for the settings and the metadata.
    made_from
        Fingerprint of all that decides the output.
    units, descriptions
        Of columns.
    key
        Column of which no value may be in two rows; None: not looked at.
    apart
        File for the columns whose names begin with `APART`, with the keys of their rows, not sorted; None: there
        are none.
    words
        More metadata of the output, not of the file apart.
    finish
        Makes other parts of all that are there, in their folder, of which the output is joined: for what depends on
        all of them.
    """

    verb: str
    setup: Callable[[], Callable[[Any], Iterable[pa.Table]]]
    options: Mapping[str, Any]
    made_from: str
    units: Mapping[str, str] = field(default_factory=dict)
    descriptions: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    apart: str | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    finish: Callable[[Sequence[Path]], Sequence[Path]] | None = None


@dataclass(frozen=True)
class MadeReport:
    """What became of the parts.

    Attributes
    ----------
    n_rows
        Of the output.
    n_parts
        Parts that are in it.
    n_reused
        Those of them that an earlier run had made.
    problems
        Parts that failed, and why.
    left_out
        Columns that the format of the output, or of the file apart, cannot hold.
    finished
        The output was there already, made from the same.
    """

    n_rows: int = 0
    n_parts: int = 0
    n_reused: int = 0
    problems: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    finished: bool = False


def inputs_of(paths: Iterable[str], sources: Iterable[Source] = ()) -> list[str]:
    """What a fingerprint of light curves is made from: files, and the states of stores; no URL with its password.

    Parameters
    ----------
    paths
        Names of files, and URLs, which a fingerprint cannot look at.
    sources
        Those of `paths` that are opened; of a store it is the only one that knows whether it has changed.
    """
    files = [path for path in paths if "://" not in path]
    return [*files, *(f"{source.name}@{source.state}" for source in sources if source.state)]


def parts_of(sources: Iterable[Source], size: int = 0) -> list[Part]:
    """Units of work of which each has light curves of its own.

    Parameters
    ----------
    size
        Row groups with more curves are cut into pieces of about this size, where a curve is much work; 0: never.
    """
    found: list[Part] = []
    for source in sources:
        for part in source.parts():
            n_rows = _rows_of(part) if size else None
            pieces = 1 if n_rows is None else min(max(-(-n_rows // size), 1), MOST_PIECES)
            each = 0 if n_rows is None else -(-n_rows // pieces)
            found += [Part(len(found) + k, part, k, pieces, each) for k in range(pieces)]
    return found


def shares_of(sources: Sequence[Source], n_shares: int = SHARES) -> list[Part]:
    """Units of work of which each has whole sources (`object_id`), wherever their light curves are.

    The partitions of one HATS catalogue have them by themselves. Anything else is read once for each of `n_shares`
    units, which take their share of the sources.
    """
    only = sources[0] if len(sources) == 1 else None
    if isinstance(only, Several) and only.whole:
        return [Part(number, part) for number, part in enumerate(only.parts())]
    every = only or Several(f"{len(sources)} inputs", tuple(sources))
    return [Part(k, every, k, n_shares) for k in range(n_shares)]


def _rows_of(source: Source) -> int | None:
    """Rows of a piece of a Parquet file, where its footer says so."""
    if not isinstance(source, NestedParquet):
        return None
    metadata = pq.read_metadata(source.path)
    return sum(int(metadata.row_group(group).num_rows) for group in source.groups)


def make_once(
    parts: Sequence[Unit],
    recipe: Recipe,
    output: str,
    settings: Settings,
    *,
    overwrite: bool = False,
    rejected: Sequence[str] = (),
    progress: Progress = no_progress,
) -> MadeReport:
    """Make one table of all parts, unless the same has been made before; the settings are written beside it.

    A part that fails is named in the report and stops no other. The output has the others, and its metadata say what
    is not in it; finished parts stay in ``<output>.parts`` as long as one is missing, and are not made again.

    Parameters
    ----------
    parts
        Units of work, numbered; of what kind is for the recipe to know.
    recipe
        What is made of them.
    output
        File whose suffix decides the format, or ``-`` for CSV on stdout.
    settings
        Of the run: jobs, scheduler, cluster.
    overwrite
        Make everything anew.
    rejected
        Inputs that could not be opened, and why; they count as failed.
    progress
        Told of every part.

    Raises
    ------
    UsageError
        The output cannot be written.
    TapetumError
        A worker died; the same call goes on from there.
    InputError
        A source is in two parts.
    """
    before = None if overwrite else finished_run(output, recipe.made_from)
    beside_it = recipe.apart is None or Path(recipe.apart).exists()
    if before is not None and not before.n_rejected and beside_it:
        return MadeReport(n_rows=before.n_done, finished=True)
    if overwrite and output != STDOUT:
        shutil.rmtree(parts_folder(output), ignore_errors=True)
    with folder_of_parts(output, recipe.made_from) as folder:
        problems, n_reused = _make_parts(parts, recipe, folder, settings, progress)
        problems = [*rejected, *problems]
        there = [path for part in parts if (path := _path_of(folder, part)).exists()]
        report = MadeReport(n_parts=len(there), n_reused=n_reused, problems=tuple(problems))
        if there:
            final = there if recipe.finish is None else recipe.finish(there)
            n_rows, left_out = _write_joined(final, recipe, output, problems)
            report = MadeReport(n_rows, len(there), n_reused, tuple(problems), left_out)
    if output != STDOUT and there:
        record_settings(
            Path(output), settings, {"verb": recipe.verb, **_plain(recipe.options)}, recipe.made_from, problems,
            report.n_rows,
        )  # fmt: skip
        if not problems:
            shutil.rmtree(parts_folder(output), ignore_errors=True)
    return report


def parts_folder(output: str) -> Path:
    """Where finished parts wait for the others."""
    return Path(f"{output}.parts")


@contextmanager
def folder_of_parts(output: str, made_from: str) -> Iterator[Path]:
    """The folder of the parts of one recipe; for stdout one that goes away."""
    if output == STDOUT:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    # of this recipe: a part of another one would be something else
    folder = parts_folder(output).absolute() / made_from[:16]
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _path_of(folder: Path, part: Unit) -> Path:
    return folder / f"{part.number:06d}.parquet"


def _make_parts(
    parts: Sequence[Unit], recipe: Recipe, folder: Path, settings: Settings, progress: Progress
) -> tuple[list[str], int]:
    """Make what is not there yet; why some failed, and how many were there."""
    missing = [part for part in parts if not _path_of(folder, part).exists()]
    n_reused = len(parts) - len(missing)
    progress(n_reused, len(parts))
    problems: list[str] = []
    results: Iterator[tuple[Unit, Outcome]] = run_over(
        missing,
        partial(_maker, recipe.setup, folder),
        settings.jobs,
        scheduler=settings.scheduler,
        cluster=settings.cluster,
    )
    for number, (_, outcome) in enumerate(results if missing else (), 1):
        progress(n_reused + number, len(parts))
        if outcome.problem is not None:
            problems.append(outcome.problem)
    return problems, n_reused


def _maker(
    setup: Callable[[], Callable[[Any], Iterable[pa.Table]]], folder: Path
) -> Callable[[Unit], Outcome]:
    return partial(_make, setup(), folder)


def _make(work: Callable[[Any], Iterable[pa.Table]], folder: Path, part: Unit) -> Outcome:
    """The rows of a part, in a file that appears whole."""
    try:
        path = str(_path_of(folder, part))
        write_table(_reader(work(part)), path, {WHEN: datetime.now(UTC).isoformat(timespec="seconds")})
    except TROUBLE as problem:
        return Outcome(reason(part.name, problem))
    return Outcome()


def _reader(tables: Iterable[pa.Table]) -> pa.RecordBatchReader:
    """Tables as a stream; the first one decides on the columns, of no table there are none."""
    rest = iter(tables)
    first = next(rest, pa.table({}))
    batches = (batch for table in chain([first], rest) for batch in conform(table, first.schema).to_batches())
    return pa.RecordBatchReader.from_batches(first.schema, batches)


# ---- one table of all parts ----------------------------------------------------------------------------------------


def common_schema(paths: Iterable[Path]) -> pa.Schema:
    """Columns of all parts; where one has whole numbers and another has not, none has.

    Raises
    ------
    InputError
        A column is text in one part and numbers in another.
    """
    try:
        return pa.unify_schemas(
            [pq.read_schema(path).remove_metadata() for path in paths], promote_options="permissive"
        )
    except (pa.ArrowException, TypeError) as problem:
        raise InputError(f"the tables of different parts do not fit together: {problem}") from None


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of `schema`; null where it has none."""
    arrays = [
        table[column.name].cast(column.type)
        if column.name in table.column_names
        else pa.nulls(table.num_rows, column.type)
        for column in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _write_joined(
    paths: Sequence[Path], recipe: Recipe, output: str, problems: Sequence[str]
) -> tuple[int, tuple[str, ...]]:
    """Write parts one after the other; how many rows, and the columns that the output cannot hold."""
    every = common_schema(paths)
    if recipe.key in every.names:
        _refuse_doubles(paths, str(recipe.key))
    metadata = _metadata(recipe, paths, problems)
    own, lost = _held([column for column in every if not column.name.startswith(APART)], output)
    _write_columns(paths, own, recipe, output, metadata)
    if recipe.apart is not None:
        apart = [column for column in every if column.name.startswith(APART)]
        told = {column.name.removeprefix(APART) for column in apart}
        keys = [column for column in every if column.name in KEYS and column.name not in told]
        kept, lost_apart = _held([*keys, *apart], recipe.apart)
        # words say what the output is: the other file is something else
        plain = {key: text for key, text in metadata.items() if key not in recipe.words}
        _write_columns(paths, kept, recipe, recipe.apart, plain)
        lost += lost_apart
    return sum(pq.read_metadata(path).num_rows for path in paths), tuple(dict.fromkeys(lost))


def _held(columns: Sequence[pa.Field], output: str) -> tuple[list[pa.Field], list[str]]:
    """The columns that a file can hold, and names of those that it cannot: lists have a place in two formats only."""
    if table_format(output) in ("parquet", "hdf5"):
        return list(columns), []
    lost = [column.name for column in columns if pa.types.is_nested(column.type)]
    held = [column for column in columns if column.name not in lost]
    return held, [name.removeprefix(APART) for name in lost]


def _write_columns(
    paths: Sequence[Path],
    columns: Sequence[pa.Field],
    recipe: Recipe,
    output: str,
    metadata: Mapping[str, str],
) -> None:
    """Write some columns of all parts, in their order or in that of the column `ORDER`."""
    schema = pa.schema([_certain(column) for column in columns])
    batches = (batch for path in paths for batch in _batches(path, schema))
    rows: Any = pa.RecordBatchReader.from_batches(schema, batches)
    if ORDER in schema.names:
        rows = rows.read_all().sort_by(ORDER).drop_columns([ORDER])
    names = list(rows.schema.names)
    if any(name.startswith(APART) for name in names):
        rows = _renamed(rows, [name.removeprefix(APART) for name in names])
    write_table(
        rows,
        output,
        metadata,
        {name: unit for name, unit in recipe.units.items() if name in rows.schema.names},
        {name: text for name, text in recipe.descriptions.items() if name in rows.schema.names},
        sidecar=True,
    )


def _batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    wanted = [name for name in schema.names if name in pq.read_schema(path).names]
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_AT_A_TIME, columns=wanted):
            yield from conform(pa.Table.from_batches([batch]), schema).to_batches()


def _renamed(rows: Any, names: Sequence[str]) -> pa.RecordBatchReader:
    """The same rows under other names."""
    schema = pa.schema([column.with_name(name) for column, name in zip(rows.schema, names, strict=True)])
    batches = rows.to_batches() if hasattr(rows, "num_rows") else rows
    renamed = (pa.RecordBatch.from_arrays(batch.columns, schema=schema) for batch in batches)
    return pa.RecordBatchReader.from_batches(schema, renamed)


def _certain(column: pa.Field) -> pa.Field:
    """A column that nobody has a value of is still one of numbers."""
    return column.with_type(pa.float64()) if pa.types.is_null(column.type) else column


def _refuse_doubles(paths: Sequence[Path], key: str) -> None:
    keys = pa.chunked_array(
        [chunk for path in paths for chunk in pq.read_table(path, columns=[key])[key].chunks], pa.string()
    )
    counts = pc.value_counts(keys.drop_null())
    doubled = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(doubled):
        raise InputError(
            f"{key} {doubled[0]['values'].as_py()} and {len(doubled) - 1} more are in several parts of the input; "
            "write it as a HATS catalogue, whose partitions have whole sources"
        )


def _metadata(recipe: Recipe, paths: Sequence[Path], problems: Sequence[str]) -> dict[str, str]:
    times = sorted((pq.read_schema(path).metadata or {}).get(WHEN.encode(), b"").decode() for path in paths)
    words = {
        "tapetum": __version__,
        "made_by": f"tapetum {recipe.verb}",
        "made_start_utc": times[0],
        "made_end_utc": times[-1],
        "options": json.dumps(dict(recipe.options), default=str, sort_keys=True),
    }
    words |= recipe.words
    return words | ({"not_in_it": json.dumps(list(problems)[:100])} if problems else {})


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the settings file can say them."""
    return {
        key: json.dumps(value, default=str) if isinstance(value, dict) else value
        for key, value in options.items()
        if value is not None
    }
