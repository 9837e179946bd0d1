"""From a Kowalski server to a file: ids, light curves or stored features, in batches, as often as it takes.

Each finished batch is a file of its own beside the output, so that a run that was stopped, or had batches that failed,
goes on where it was: what is there is not asked for again. Questions wait for the server, not for a processor, so they
run in threads of this process and not in the runner's workers; no password leaves it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from tapetum import __version__
from tapetum.core.progress import Progress, no_progress
from tapetum.core.settings import without_password
from tapetum.core.threads import in_threads
from tapetum.lightcurves.formats.opening import open_curves, write_curves
from tapetum.lightcurves.remote import DMDT
from tapetum.pipelines.lightcurve_impute import Imputation, impute_parts
from tapetum.pipelines.lightcurve_parts import common_schema, conform, folder_of_parts, parts_folder
from tapetum.pipelines.outputs import STDOUT, fingerprint, finished_run, record_settings
from tapetum.report.tables import table_format, write_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tapetum.core.settings import Settings
    from tapetum.pipelines.lightcurve_plans import Batch, Plan
    from tapetum.surveys.kowalski import Kowalski

THREADS = 4  # questions at the same time
IN_A_ROW = 10  # batches that fail one after the other: nobody is there
WHEN = "fetched_utc"


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class FetchReport:
    """What became of a plan.

    Attributes
    ----------
    n_rows
        Rows of the output.
    n_asked
        Ids that were asked for in batches that were answered; 0 where ids were looked for.
    n_missing
        Those of them that the server does not have.
    n_dropped
        Rows left out because a value was missing that nothing replaces.
    n_reused
        Batches that an earlier run had fetched.
    problems
        Batches that failed, and why.
    left_out
        Columns that the output's format cannot hold.
    counts
        Rows of each batch, by its name.
    finished
        The output was there already, made by the same plan.
    """

    n_rows: int = 0
    n_asked: int = 0
    n_missing: int = 0
    n_dropped: int = 0
    n_reused: int = 0
    problems: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    finished: bool = False


def fetch_once(
    plan: Plan,
    server: Kowalski,
    output: str,
    settings: Settings,
    *,
    overwrite: bool = False,
    threads: int = THREADS,
    imputation: Imputation | None = None,
    progress: Progress = no_progress,
) -> FetchReport:
    """As `fetch`, unless the same plan has made the output before; the settings are written beside it.

    Parameters
    ----------
    plan, server, output, threads, imputation, progress
        As for `fetch`.
    settings
        Of the run.
    overwrite
        Ask for everything anew.

    Raises
    ------
    TapetumError
        As for `fetch`.
    """
    made_from = _made_from(plan, server, imputation)
    before = None if overwrite else finished_run(output, made_from)
    if before is not None and not before.n_rejected:
        return FetchReport(n_rows=before.n_done, finished=True)
    if overwrite:
        shutil.rmtree(parts_folder(output), ignore_errors=True)
    report = fetch(plan, server, output, threads=threads, imputation=imputation, progress=progress)
    if output != STDOUT and report.counts:
        command = {"verb": f"fetch {plan.kind}", "catalogue": plan.catalogue, "server": server.url}
        command |= {key: value for key, value in plan.options.items() if value is not None}
        record_settings(Path(output), settings, command, made_from, report.problems, report.n_rows)
    return report


def _made_from(plan: Plan, server: Kowalski, imputation: Imputation | None) -> str:
    if imputation is None:
        return plan.made_from(server)
    return fingerprint(
        imputation.files, {"plan": plan.made_from(server), "imputation": imputation.described()}
    )


def fetch(
    plan: Plan,
    server: Kowalski,
    output: str,
    *,
    threads: int = THREADS,
    imputation: Imputation | None = None,
    now: Callable[[], datetime] = _now,
    progress: Progress = no_progress,
) -> FetchReport:
    """Fetch what is planned and write it as one table.

    A batch that fails is named in the report and stops no other; the output then has the rest, and its metadata say
    what is not in it. The same call asks for what failed again, and for nothing else.

    Parameters
    ----------
    plan
        What is wanted.
    server
        Who has it.
    output
        File whose suffix decides the format, or ``-`` for CSV on stdout. Finished batches lie in ``<output>.parts``
        until all are there.
    threads
        Questions at the same time.
    imputation
        Replaces missing features; None leaves them.
    now
        The clock.
    progress
        Told of every batch.

    Raises
    ------
    UsageError
        The output cannot hold it.
    InputError
        The server does not know us, or the answers of two batches do not fit together.
    NetworkError
        The server cannot be reached to log in.
    """
    plan.check(output)
    server.login()
    with folder_of_parts(output, plan.made_from(server)) as folder:
        problems, n_reused = _fetch_parts(plan, server, folder, threads, now, progress)
        there = [(batch, path) for batch, path in _numbered(plan, folder) if path.exists()]
        report = _written(plan, server, there, output, tuple(problems), imputation, n_reused)
    if output != STDOUT and not problems:
        shutil.rmtree(parts_folder(output), ignore_errors=True)
    return report


def _numbered(plan: Plan, folder: Path) -> list[tuple[Batch, Path]]:
    return [(batch, folder / f"{number:06d}.parquet") for number, batch in enumerate(plan.batches)]


def _fetch_parts(
    plan: Plan,
    server: Kowalski,
    folder: Path,
    threads: int,
    now: Callable[[], datetime],
    progress: Progress,
) -> tuple[list[str], int]:
    """Fetch what is not there yet; complaints about what failed, and how many batches were there."""
    entries = _numbered(plan, folder)
    missing = [(batch, path) for batch, path in entries if not path.exists()]
    n_reused = len(entries) - len(missing)
    progress(n_reused, len(entries))

    def work(entry: tuple[Batch, Path]) -> None:
        batch, path = entry
        table = plan.ask(server, batch.content)
        write_table(table, str(path), {WHEN: now().isoformat(timespec="seconds")})

    problems: list[str] = []
    in_a_row = 0
    for tried, outcome in enumerate(in_threads(work, missing, threads), 1):
        progress(n_reused + tried, len(entries))
        in_a_row = in_a_row + 1 if outcome.problem else 0
        if outcome.problem:
            problems.append(f"{outcome.item[0].name}: {outcome.problem}")
        if in_a_row == IN_A_ROW:
            reason = f"not asked for, since {IN_A_ROW} in a row failed"
            problems += [f"{batch.name}: {reason}" for batch, path in missing[tried:] if not path.exists()]
            break
    return problems, n_reused


def _written(
    plan: Plan,
    server: Kowalski,
    there: Sequence[tuple[Batch, Path]],
    output: str,
    problems: tuple[str, ...],
    imputation: Imputation | None,
    n_reused: int,
) -> FetchReport:
    """Write the parts that are there as one table."""
    if not there:
        return FetchReport(problems=problems)
    counts = {batch.name: pq.read_metadata(path).num_rows for batch, path in there}
    paths = [path for _, path in there]
    metadata = _metadata(plan, server, paths, problems)
    if plan.kind == "ids":
        metadata["counts"] = json.dumps(counts)
    n_dropped = 0
    left_out: tuple[str, ...] = ()
    if plan.kind == "curves":
        write_curves(open_curves(paths), output, metadata=metadata)
    else:
        if imputation is not None:
            done = impute_parts(paths, imputation)
            paths, n_dropped = list(done.paths), done.n_dropped
            metadata["imputation"] = json.dumps(done.strategies)
        left_out = _write_joined(plan, paths, output, metadata)
    n_asked = sum(len(batch.content) for batch, _ in there if isinstance(batch.content, tuple))
    n_found = sum(counts.values())
    return FetchReport(
        n_rows=n_found - n_dropped,
        n_asked=n_asked,
        n_missing=max(n_asked - n_found, 0),
        n_dropped=n_dropped,
        n_reused=n_reused,
        problems=problems,
        left_out=left_out,
        counts=counts,
    )


def _metadata(plan: Plan, server: Kowalski, paths: Sequence[Path], problems: Sequence[str]) -> dict[str, str]:
    times = sorted((pq.read_schema(path).metadata or {}).get(WHEN.encode(), b"").decode() for path in paths)
    words = {
        "tapetum": __version__,
        "server": without_password(server.url),
        "catalogue": plan.catalogue,
        "fetched_start_utc": times[0],
        "fetched_end_utc": times[-1],
    }
    words |= {key: json.dumps(value) for key, value in plan.options.items() if value not in (None, [])}
    if problems:
        words["not_in_it"] = json.dumps([text.partition(":")[0] for text in problems])
    return words


def _write_joined(
    plan: Plan, paths: Sequence[Path], output: str, metadata: dict[str, str]
) -> tuple[str, ...]:
    """Write parts one after the other; the columns that the output cannot hold."""
    # a feature that nobody has is still a number
    fields = [
        column.with_type(pa.float64()) if pa.types.is_null(column.type) else column
        for column in common_schema(paths)
    ]
    left_out = (DMDT,) if table_format(output) == "csv" and any(f.name == DMDT for f in fields) else ()
    schema = pa.schema([column for column in fields if column.name not in left_out])
    rows = pa.RecordBatchReader.from_batches(schema, _rows(paths, schema))
    write_table(rows, output, metadata, plan.units, sidecar=True)
    return left_out


def _rows(paths: Sequence[Path], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """One part after the other, with all columns."""
    for path in paths:
        yield from conform(pq.read_table(path), schema).combine_chunks().to_batches()
