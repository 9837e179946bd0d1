"""`tapetum alerts`: packets scored, stored and looked at."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tapetum.cli.common import (
    JobsOption,
    OutOption,
    OverwriteOption,
    SchemaOption,
    StoreOption,
    complaint,
    progress_bar,
    report_rejections,
    say,
    settings_of,
)

if TYPE_CHECKING:
    from tapetum.store.ingest import Acknowledge

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Alert packets: score, ingest, light curves."
)

SourcesArgument = Annotated[
    list[str], typer.Argument(help="Packets: files, folders, tar(.gz|.xz) archives, Parquet; - is stdin.")
]
ModelOption = Annotated[
    list[str] | None, typer.Option("--model", help="Model: a name, name@version or path; may be repeated.")
]


@app.command()
def score(
    context: typer.Context,
    paths: SourcesArgument,
    out: OutOption,
    model: ModelOption = None,
    schema: SchemaOption = None,
    jobs: JobsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Score alerts: one row per alert and model.

    Example: tapetum alerts score night.tar.gz --model realbogus -o scores.parquet
    """
    from tapetum.alerts.packets import STDIN
    from tapetum.alerts.schema import load_schema_file
    from tapetum.pipelines.outputs import check_output, fingerprint, finished_run, own_files, record_settings
    from tapetum.pipelines.score import SCORE_UNITS, score_alerts
    from tapetum.report.tables import table_format, write_table

    settings = settings_of(context, jobs=jobs)
    check_output(out)
    table_format(out)
    models = list(dict.fromkeys(model or [settings.alerts.model]))
    bare = load_schema_file(schema) if schema else None
    options = {"models": _identities(models), "schema": bare.fingerprint if bare else None}
    # nobody knows what stdin will bring, so a run that reads it is never a finished one
    made_from = "" if STDIN in paths else fingerprint(paths, options, own_files(out))
    if not overwrite and (before := finished_run(out, made_from)) is not None:
        say(f"{out}: finished already; --overwrite makes it again")
        report_rejections(before.complaints, before.n_rejected, before.n_done)
        return
    with progress_bar("scoring alerts") as progress:
        report = score_alerts(
            paths,
            models,
            jobs=settings.jobs,
            batch=settings.alerts.batch,
            schema=bare,
            skip=own_files(out),
            progress=progress,
        )
    complaints = [complaint(rejection) for rejection in report.rejections]
    if report.table is not None:
        write_table(report.table, out, {"model": ", ".join(models)}, SCORE_UNITS)
        if out != "-":
            command = {"verb": "alerts score", "inputs": paths, "models": models}
            record_settings(Path(out), settings, command, made_from, complaints, report.n_alerts)
            say(f"{report.n_alerts} alerts scored -> {out}")
    if report.n_repeated:
        say(f"{report.n_repeated} packets repeat an alert that came before, and have no row of their own")
    report_rejections(complaints, len(complaints), report.n_alerts)


def _identities(models: Sequence[str]) -> list[str]:
    """What decides the scores of models: the hash of each network and its card, not where they lie."""
    from tapetum.core.files import sha256_of
    from tapetum.models.registry import find_model

    found = [find_model(model) for model in models]
    return [f"{files.name} {sha256_of(files.card)} {sha256_of(files.onnx)}" for files in found]


@app.command()
def ingest(
    context: typer.Context,
    sources: SourcesArgument,
    store: StoreOption = None,
    model: Annotated[str | None, typer.Option("--model", help="Model: a name, name@version or path.")] = None,
    no_score: Annotated[bool, typer.Option("--no-score", help="Store without scoring.")] = False,
    schema: SchemaOption = None,
    jobs: JobsOption = None,
    acknowledge: Annotated[
        str | None,
        typer.Option(
            help="File (- is stdout) for one line `survey alert_id` per alert that is safe on disk."
        ),
    ] = None,
) -> None:
    """Store and score alerts; a missing SQLite file is made.

    The same alerts again change nothing, and running a killed ingest again repairs it. Packets that cannot be used
    are kept as dead letters, named on stderr, and make the exit status 5 (3 when nothing could be used).

    Example: tapetum alerts ingest night.tar.gz --store sqlite:///night.db --jobs 2
    """
    from tapetum.alerts.schema import load_schema_file
    from tapetum.cli.store import open_named
    from tapetum.core.errors import UsageError
    from tapetum.core.settings import write_settings
    from tapetum.store.ingest import ingest as ingest_sources

    if no_score and model is not None:
        raise UsageError("--model and --no-score exclude each other")
    settings = settings_of(context, store__url=store, jobs=jobs, alerts__model=model)
    bare = load_schema_file(schema) if schema else None
    complaints: list[str] = []
    with (
        _telling(acknowledge) as tell,
        open_named(settings, create=(settings.store.url or "").startswith("sqlite")) as opened,
        progress_bar("ingesting alerts") as progress,
    ):
        report = ingest_sources(
            opened,
            sources,
            model=None if no_score else settings.alerts.model,
            schema=bare,
            jobs=settings.jobs,
            batch=settings.alerts.batch,
            commit_alerts=settings.store.commit_alerts,
            segment_bytes=settings.store.segment_bytes,
            acknowledge=tell,
            rejected=lambda rejection: complaints.append(complaint(rejection)),
            progress=progress,
        )
        command = {"verb": "alerts ingest", "inputs": sources, "scored": not no_score}
        write_settings(opened.settings_path, settings, command)
    n_done = report.stored + report.known
    say(
        f"{report.stored} stored, {report.known} known, {report.scored} scored, {report.rejected} rejected"
        f" in {report.seconds:.1f} s, {n_done / max(report.seconds, 1e-9):.0f} alerts/s"
    )
    report_rejections(complaints, len(complaints), n_done)


@app.command()
def lightcurve(
    context: typer.Context,
    object_id: Annotated[str, typer.Argument(help="The object's name in its survey.")],
    out: OutOption,
    store: StoreOption = None,
    survey: Annotated[str | None, typer.Option(help="Needed when two surveys use the same name.")] = None,
) -> None:
    """Write the merged light curve of an object: all that its alerts and their histories told.

    Example: tapetum alerts lightcurve ZTF18aabcvnq --store sqlite:///night.db -o curve.csv
    """
    from tapetum.cli.store import open_named
    from tapetum.pipelines.outputs import check_output, record_settings
    from tapetum.report.tables import table_format, write_table
    from tapetum.store.store import LIGHTCURVE_UNITS

    check_output(out)
    table_format(out)
    settings = settings_of(context, store__url=store)
    with open_named(settings) as opened:
        write_table(opened.lightcurve(object_id, survey), out, units=LIGHTCURVE_UNITS)
    if out != "-":  # a store changes, so there is no finished light curve: it is written anew each time
        record_settings(Path(out), settings, {"verb": "alerts lightcurve", "object_id": object_id})


@contextlib.contextmanager
def _telling(target: str | None) -> Iterator[Acknowledge | None]:
    """A function that writes a line per alert to `target`, flushed at once."""
    with contextlib.ExitStack() as stack:
        handle = sys.stdout
        if target not in (None, "-"):
            handle = stack.enter_context(Path(str(target)).open("a", encoding="utf-8"))

        def tell(alerts: list[tuple[str, int]]) -> None:
            handle.write("".join(f"{survey} {alert_id}\n" for survey, alert_id in alerts))
            handle.flush()

        yield None if target is None else tell
