"""`tapetum lightcurves slurm`: jobs for sites without Dask; mounted by `tapetum.cli.lightcurves`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tapetum.cli.common import JsonOption, progress_bar, say, settings_of, warn
from tapetum.cli.lightcurves_common import number_range

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapetum.pipelines.slurm_submit import RowState
    from tapetum.pipelines.slurm_tables import Row

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Jobs for SLURM sites without Dask: a job table, scripts, a submitter.",
)

FolderArgument = Annotated[Path, typer.Argument(help="Folder that `prepare` wrote.")]
UserOption = Annotated[
    str | None, typer.Option("--user", help="Whose jobs are looked for in the queue; default: yours.")
]
MaxInstancesOption = Annotated[
    int, typer.Option("--max-instances", min=1, help="Jobs that wait or run at the same time.")
]
WaitOption = Annotated[
    float, typer.Option("--wait-time-minutes", min=0, help="Between two looks at the queue [min].")
]
IntervalOption = Annotated[
    float, typer.Option("--submit-interval-minutes", min=0, help="Between two submissions [min].")
]
AttemptsOption = Annotated[int, typer.Option("--attempts", min=1, help="Of each row, before it is given up.")]
StopOption = Annotated[
    int, typer.Option("--stop-after", min=1, help="Failures in a row after which no more is submitted.")
]


@app.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": True})
def prepare(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for table, scripts and what is known of jobs.")
    ],
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- COMMAND",
            help="Command of each row, without `tapetum`; {column} stands for a value, `then` between two commands. "
            "Default: features, of files or of quadrants that are fetched first; what begins with an option is its.",
        ),
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--files",
            help="Light curves: file, folder or HATS catalogue, a row per file or partition; may be repeated.",
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option("--table", help="Job table: any table with a header, or .dat with job field ccd quad."),
    ] = None,
    field_list: Annotated[
        list[int] | None,
        typer.Option("--field", "--field-list", help="Rows for each quadrant of a field; may be repeated."),
    ] = None,
    ccds: Annotated[str, typer.Option("--ccd", metavar="N|FIRST-LAST", help="CCDs of --field.")] = "1-16",
    quadrants: Annotated[
        str, typer.Option("--quadrant", "--quad", metavar="N|FIRST-LAST", help="Quadrants of --field.")
    ] = "1-4",
    each: Annotated[
        list[str] | None,
        typer.Option(
            "--each", metavar="COLUMN=A,B,...", help="Rows for each value; several make every combination."
        ),
    ] = None,
    script: Annotated[
        Path | None, typer.Option("--script", help="Rows for each line of a file of tapetum commands.")
    ] = None,
    job_name: Annotated[str, typer.Option("--job-name", help="Begins the name of each job.")] = "tapetum",
    cluster_name: Annotated[
        str | None, typer.Option("--cluster-name", help="Cluster, where the site has several.")
    ] = None,
    partition: Annotated[
        str | None, typer.Option("--partition", "--partition-type", help="Where jobs run.")
    ] = None,
    submit_partition: Annotated[
        str | None,
        typer.Option(
            "--submit-partition",
            "--submit-partition-type",
            help="Where the submitter runs; default: --partition.",
        ),
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Of one job.")] = 1,
    cpus: Annotated[int, typer.Option("--cpus", min=1, help="Cores of one job.")] = 1,
    gpus: Annotated[int, typer.Option("--gpus", min=0, help="Of one job.")] = 0,
    memory_gb: Annotated[
        float | None, typer.Option("--memory-gb", "--memory-GB", min=0, help="Of one job [GB].")
    ] = None,
    submit_memory_gb: Annotated[
        float, typer.Option("--submit-memory-gb", "--submit-memory-GB", min=0, help="Of the submitter [GB].")
    ] = 2,
    time: Annotated[str | None, typer.Option("--time", help="Longest life of a job, HH:MM:SS.")] = None,
    submit_time: Annotated[
        str | None,
        typer.Option(
            "--submit-time", help="Of the submitter, which goes on in another job then; default: --time."
        ),
    ] = None,
    mail_user: Annotated[str | None, typer.Option("--mail-user", help="Address that hears of ends.")] = None,
    account_name: Annotated[str | None, typer.Option("--account-name", help="Who pays.")] = None,
    python_env: Annotated[
        str | None,
        typer.Option(
            "--python-env",
            "--python-env-name",
            help="venv or conda folder, or name of a conda environment; default: this one.",
        ),
    ] = None,
    user: UserOption = None,
    max_instances: MaxInstancesOption = 20,
    wait: WaitOption = 5,
    interval: IntervalOption = 1,
    attempts: AttemptsOption = 3,
    stop_after: StopOption = 10,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Forget what an earlier plan in the folder did.")
    ] = False,
) -> None:
    """Write a job table and the scripts for sbatch; what is not said here comes from [cluster] of the settings.

    The folder gets jobs.csv, job.sub (one row; `sbatch job.sub 17`, or `sbatch --array=0-99 job.sub`) and submit.sub,
    which runs `tapetum lightcurves slurm submit` as a job. Relative paths of the command begin where you are now.

    Example: tapetum lightcurves slurm prepare -o jobs --files ztf_hats --partition main --time 04:00:00
    """
    from tapetum.pipelines.slurm_jobs import commands_of
    from tapetum.pipelines.slurm_jobs import prepare as write
    from tapetum.pipelines.slurm_scripts import SUBMIT_SCRIPT, JobOptions

    cluster = settings_of(context).cluster
    rows = _rows(files, table, field_list, ccds, quadrants, each, script)
    commands = () if script else commands_of(command or (), rows, out.absolute())
    options = JobOptions(
        name=job_name,
        cluster=cluster_name,
        partition=partition or cluster.queue,
        submit_partition=submit_partition,
        nodes=nodes,
        cpus=cpus,
        gpus=gpus,
        memory=cluster.memory if memory_gb is None else f"{memory_gb:g}",
        submit_memory=f"{submit_memory_gb:g}",
        time=time or cluster.walltime,
        submit_time=submit_time,
        mail_user=mail_user,
        account=account_name or cluster.account,
        python_env=python_env,
        directives=tuple(cluster.directives),
        prologue=tuple(cluster.prologue),
    )
    told = {
        "--max-instances": max_instances,
        "--wait-time-minutes": wait,
        "--submit-interval-minutes": interval,
    }
    told |= {"--attempts": attempts, "--stop-after": stop_after}
    arguments = [word for name, value in told.items() for word in (name, f"{value:g}")]
    plan = write(
        out,
        rows,
        commands,
        options,
        workdir=Path.cwd(),
        config=context.find_root().obj,
        submit_arguments=[*arguments, *(["--user", user] if user else [])],
        overwrite=overwrite,
    )
    say(
        f"{len(rows)} jobs in {plan.folder}; start them with  sbatch {plan.folder / SUBMIT_SCRIPT}  or  "
        f"tapetum lightcurves slurm submit {out}"
    )


def _rows(
    files: list[Path] | None,
    table: Path | None,
    fields: list[int] | None,
    ccds: str,
    quadrants: str,
    each: list[str] | None,
    script: Path | None,
) -> list[Row]:
    from tapetum.core.errors import UsageError
    from tapetum.lightcurves.remote import quadrants_of
    from tapetum.pipelines import slurm_tables as tables

    given = [files, table, each, script, None if table else fields]
    if sum(bool(entry) for entry in given) != 1:
        raise UsageError(
            "give one of --files, --table, --field, --each and --script (--table may have --field)"
        )
    if script:
        return tables.command_rows(script)
    if files:
        return tables.file_rows(files)
    if table:
        return tables.table_rows(table, fields or ())
    if each:
        return tables.product_rows(dict(_column(text) for text in each))
    ranges = number_range("--ccd", ccds), number_range("--quadrant", quadrants)
    return tables.quadrant_rows(where for number in fields or () for where in quadrants_of(number, *ranges))


def _column(text: str) -> tuple[str, list[str]]:
    name, _, values = text.partition("=")
    if not name.isidentifier() or not values:
        raise typer.BadParameter(f"{text!r}: give COLUMN=A,B,...", param_hint="--each")
    return name, [value for value in values.split(",") if value]


@app.command()
def run(
    folder: FolderArgument,
    index: Annotated[
        list[int] | None,
        typer.Option(
            "--index", help="Number of a row; may be repeated. Default: every row, one after the other."
        ),
    ] = None,
) -> None:
    """Run rows of the job table here; those that are finished are skipped.

    Example: tapetum lightcurves slurm run jobs --index 17
    """
    from tapetum.core.errors import PartialFailureError, TapetumError
    from tapetum.pipelines.slurm_jobs import load_plan, run_row

    plan = load_plan(folder)
    numbers = [row.index for row in plan.rows] if not index else [plan.row(number).index for number in index]
    n_failed = 0
    last = ""
    for number in numbers:
        result, before = run_row(plan, number)
        if before:
            say(f"{plan.row(number)}: finished already")
        elif result.problem:
            n_failed += 1
            last = f"{plan.row(number)}: {result.problem}"
            warn(last)
    if n_failed == len(numbers) == 1 and result.done:
        raise PartialFailureError(last)
    if n_failed == len(numbers):
        raise TapetumError(last)
    if n_failed:
        raise PartialFailureError(f"{n_failed} of {len(numbers)} jobs failed or left something out")


@app.command()
def submit(
    folder: FolderArgument,
    max_instances: MaxInstancesOption = 20,
    wait: WaitOption = 5,
    interval: IntervalOption = 1,
    attempts: AttemptsOption = 3,
    stop_after: StopOption = 10,
    once: Annotated[
        bool,
        typer.Option("--once", help="Submit what has room and leave; call it again later, as from cron."),
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Forget failures, and try these rows again.")
    ] = False,
    user: UserOption = None,
) -> None:
    """Submit jobs, so many at a time, until every row is done or given up; may be stopped and started at any moment.

    Example: tapetum lightcurves slurm submit jobs --max-instances 50
    """
    from tapetum.pipelines.slurm_client import Slurm
    from tapetum.pipelines.slurm_jobs import load_plan
    from tapetum.pipelines.slurm_submit import Rules, submit_all

    plan = load_plan(folder)
    rules = Rules(max_instances, wait * 60, interval * 60, attempts, stop_after, once=once)
    with progress_bar("jobs") as progress:
        states = submit_all(
            plan,
            Slurm(user, plan.options.cluster),
            rules,
            retry_failed=retry_failed,
            tell=say,
            progress=progress,
        )
    _conclude(states)


def _conclude(states: Sequence[RowState]) -> None:
    """Say how it stands, and end with the exit status for some or for all failed."""
    from tapetum.core.errors import PartialFailureError, TapetumError
    from tapetum.pipelines.slurm_submit import State

    failed = [entry for entry in states if entry.state == State.FAILED]
    incomplete = [entry for entry in states if entry.state == State.DONE and entry.problem]
    for entry in (*failed, *incomplete):
        warn(f"{entry.row}: {entry.problem}")
    say(_in_words(states))
    if len(failed) == len(states):
        raise TapetumError(f"all {len(states)} jobs failed; mend it, and submit again with --retry-failed")
    if failed or incomplete:
        raise PartialFailureError(
            f"{len(failed)} of {len(states)} jobs failed, {len(incomplete)} left something out; the rest is safe"
        )


def _in_words(states: Sequence[RowState]) -> str:
    from tapetum.pipelines.slurm_submit import State

    counts = {state: sum(entry.state == state for entry in states) for state in State}
    return f"{len(states)} jobs: " + ", ".join(f"{n} {state}" for state, n in counts.items() if n)


@app.command()
def status(
    folder: FolderArgument,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="Also a table with a row per job; its suffix decides the format."),
    ] = None,
    attempts: AttemptsOption = 3,
    user: UserOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count jobs that are done, run, wait or failed, how long they took, and why they failed.

    Example: tapetum lightcurves slurm status jobs -o jobs.csv
    """
    import time as clock

    from tapetum.pipelines.slurm_client import Slurm
    from tapetum.pipelines.slurm_jobs import load_plan
    from tapetum.pipelines.slurm_submit import Rules, overview, summary

    plan = load_plan(folder)
    rules = Rules(attempts=attempts)
    states, unknown = overview(plan, Slurm(user, plan.options.cluster), rules, now=clock.time())
    if unknown:
        warn(f"what waits and runs is not known: {unknown}")
    if out is not None:
        _write_states(states, out)
    figures = summary(states)
    if as_json:
        typer.echo(json.dumps(figures))
        return
    for name, value in figures.items():
        if name == "problems":
            for problem, count in value.items():
                typer.echo(f"{count} x {problem}")
        elif value is not None:
            typer.echo(f"{name:16} {value:g}")


def _write_states(states: Sequence[RowState], out: str) -> None:
    import pyarrow as pa

    from tapetum.report.tables import write_table

    columns = {name: [entry.row.values.get(name) for entry in states] for name in states[0].row.values}
    table = pa.table(
        {
            "job": pa.array([entry.row.index for entry in states], pa.int64()),
            **{name: pa.array(values, pa.string()) for name, values in columns.items()},
            "state": pa.array([entry.state.value for entry in states], pa.string()),
            "n_failed": pa.array([entry.n_failed for entry in states], pa.int32()),
            "slurm_id": pa.array([entry.slurm_id for entry in states], pa.string()),
            "host": pa.array([entry.host for entry in states], pa.string()),
            "seconds": pa.array([entry.seconds for entry in states], pa.float64()),
            "problem": pa.array([entry.problem for entry in states], pa.string()),
        }
    )
    write_table(table, out, units={"seconds": "s"})


@app.command()
def cancel(folder: FolderArgument, user: UserOption = None) -> None:
    """End the submitter and every job of the folder; what is finished stays, and `submit` goes on from there.

    Example: tapetum lightcurves slurm cancel jobs
    """
    from tapetum.pipelines.slurm_client import Slurm
    from tapetum.pipelines.slurm_jobs import load_plan
    from tapetum.pipelines.slurm_submit import cancel_all

    plan = load_plan(folder)
    n = cancel_all(plan, Slurm(user, plan.options.cluster))
    say(f"{n} jobs ended")
