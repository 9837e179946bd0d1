"""Job scripts: what a site wants to know of a job, as lines of sbatch."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tapetum.core.errors import UsageError

MIB_OF = {
    "": 1024.0,  # a bare number is GB, as in the option
    "k": 1 / 1024,
    "m": 1.0,
    "g": 1024.0,
    "t": 1024.0**2,
}
_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?\s*", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9_.+-]+")
_TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}")
MAIL_EVENTS = "END,FAIL,TIME_LIMIT"
SUBMIT_SCRIPT = "submit.sub"
BEFORE_THE_END_S = 300  # the submitter makes room for the next one; SLURM may be a minute early
HARDLY_S = 60  # nothing is submitted again before


@dataclass(frozen=True)
class JobOptions:
    """What a job needs of the cluster.

    Attributes
    ----------
    name
        Begins the name of every job.
    cluster
        Name of the cluster, where the site has several.
    partition, submit_partition
        Where jobs run, and where the job that submits them does; None is the site's choice, and `partition`.
    nodes, cpus, gpus
        Of one job.
    memory, submit_memory
        Of one job on each node, as ``16GiB`` or ``16`` (GB); None is the site's choice.
    time, submit_time
        When it is ended: ``48:00:00``, ``2-00:00:00`` or minutes. The one that submits goes on in another job then.
    mail_user
        Address that hears of the end of the submitting job, and of jobs that fail.
    account
        Who pays.
    python_env
        Python to use: a folder (venv or conda prefix) or the name of a conda environment; None is the one that writes
        the scripts.
    directives, prologue
        More lines after ``#SBATCH``, and commands before the work.
    """

    name: str = "tapetum"
    cluster: str | None = None
    partition: str | None = None
    submit_partition: str | None = None
    nodes: int = 1
    cpus: int = 1
    gpus: int = 0
    memory: str | None = None
    submit_memory: str | None = "2GiB"
    time: str | None = "01:00:00"
    submit_time: str | None = None
    mail_user: str | None = None
    account: str | None = None
    python_env: str | None = None
    directives: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"job name {self.name!r}: letters, digits and _ . + - only")
        for what in ("time", "submit_time"):
            text = getattr(self, what)
            if text is not None and not _TIME.fullmatch(text):
                raise UsageError(f"{what} {text!r}: give HH:MM:SS, D-HH:MM:SS or minutes")
        for key, value in asdict(self).items():
            texts = value if isinstance(value, tuple) else [value]
            if any(isinstance(text, str) and "\n" in text for text in texts):
                raise UsageError(f"{key}: a line of a script cannot hold a line break")
        if min(self.nodes, self.cpus) < 1 or self.gpus < 0:
            raise UsageError(
                f"{self.nodes} nodes, {self.cpus} cores, {self.gpus} GPUs: a job needs one node and core"
            )
        for text in (self.memory, self.submit_memory):
            megabytes(text)


def megabytes(text: str | None) -> int | None:
    """``16GiB``, ``16GB``, ``500M`` or ``16`` (GB) in the MiB of sbatch, rounded up; SLURM's GB are GiB.

    Raises
    ------
    UsageError
        It is none of these.
    """
    if text is None:
        return None
    match = _MEMORY.fullmatch(text)
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"memory {text!r}: give for instance 16GiB, or 16 for GB")
    return max(1, int(-(-float(match[1]) * MIB_OF[match[2].lower()] // 1)))


def job_script(options: JobOptions, name: str, folder: Path, workdir: Path) -> str:
    """The script of one row of the table; its argument, or the index within an array, says of which.

    Parameters
    ----------
    options
        What it needs.
    name
        Of jobs that are submitted by hand; the submitter names each one itself.
    folder
        With the plan and the table.
    workdir
        Where the command of the row runs.
    """
    lines = [
        *_head(options, name, folder, workdir),
        ("nodes", options.nodes),
        ("cpus-per-task", options.cpus),
        ("gpus", options.gpus or None),
        ("mem", _mem(options.memory)),
        ("partition", options.partition),
        ("time", options.time),
        ("mail-type", "FAIL" if options.mail_user else None),
    ]
    run = f"{_tapetum(options)} lightcurves slurm run {shlex.quote(str(folder))}"
    work = [
        'export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"',
        f'exec {run} --index "${{1:-$SLURM_ARRAY_TASK_ID}}"',
    ]
    return _script(options, lines, work)


def submit_script(options: JobOptions, name: str, folder: Path, workdir: Path, arguments: list[str]) -> str:
    """The script of the job that submits the others, ``submit.sub`` of the folder; `arguments` are those of its verb.

    Shortly before its time is over it submits itself once more: a table may take longer than any job lives.
    """
    lines = [
        *_head(options, f"{name}.submit", folder, workdir),
        ("nodes", 1),
        ("cpus-per-task", 1),
        ("mem", _mem(options.submit_memory)),
        ("partition", options.submit_partition or options.partition),
        ("time", options.submit_time or options.time),
        ("signal", f"B:USR1@{BEFORE_THE_END_S}"),
        ("mail-type", MAIL_EVENTS if options.mail_user else None),
    ]
    words = shlex.join(["lightcurves", "slurm", "submit", str(folder), *arguments])
    work = [f"{_tapetum(options)} {words} &", 'wait "$!"']
    return _script(options, lines, [*_again(folder / SUBMIT_SCRIPT), *work])


def _again(script: Path) -> list[str]:
    """What to do when the time is nearly over; a job that has hardly lived lets it come, or it would go on for ever."""
    # what describes this job must not leak into the next one; bash goes on waiting after the signal, so it waits anew
    return [
        "again() {",
        f'  if [ "$SECONDS" -lt {HARDLY_S} ]; then wait "$!"; exit; fi',
        '  kill -TERM "$!" || true',
        '  wait "$!" || true',
        '  for name in "${!SLURM_@}" "${!SBATCH_@}"; do [ "$name" = SLURM_CONF ] || unset "$name"; done',
        f"  exec sbatch {shlex.quote(str(script))}",
        "}",
        "trap again USR1",
    ]


def _head(options: JobOptions, name: str, folder: Path, workdir: Path) -> list[tuple[str, str | int | None]]:
    logs = str(folder / "logs").replace("%", "%%")  # sbatch would put something in place of it
    return [
        ("job-name", name),
        ("output", f"{logs}/%x.%j.out"),
        ("chdir", str(workdir)),
        ("clusters", options.cluster),
        ("account", options.account),
        ("ntasks-per-node", 1),
        ("mail-user", options.mail_user),
    ]


def _mem(text: str | None) -> str | None:
    size = megabytes(text)
    return None if size is None else f"{size}M"


def _tapetum(options: JobOptions) -> str:
    """The command itself: `-m` finds it wherever that Python has it."""
    python = "python" if options.python_env else shlex.quote(sys.executable)
    return f"{python} -m tapetum"


def _script(options: JobOptions, lines: list[tuple[str, str | int | None]], work: list[str]) -> str:
    directives = [f"#SBATCH --{key}={_quoted(str(value))}" for key, value in lines if value is not None]
    more = [f"#SBATCH {text}" for text in options.directives]
    parts = ["#!/bin/bash", *directives, *more, "", "set -e", *options.prologue, *_activation(options), *work]
    return "\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    return f'"{text}"' if re.search(r"\s", text) else text


def _activation(options: JobOptions) -> list[str]:
    env = options.python_env
    if not env:
        return []
    if "/" not in env:
        return ['eval "$(conda shell.bash hook)"', f"conda activate {shlex.quote(env)}"]
    folder = Path(env).expanduser().absolute()
    return [f'export PATH={shlex.quote(str(folder / "bin"))}:"$PATH"']
