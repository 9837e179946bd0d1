"""Work for sites without Dask: a folder with a job table, a script for sbatch, and what became of each row.

A row is a command line of Tapetum - or several, one after the other - with the row's values put in. It is run by its
number, on whatever node; when it has ended, a small file says how. Nothing marks a row as being worked on: what is done
is seen from those files and the outputs, what runs is asked of SLURM.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapetum import __version__
from tapetum.core.errors import FormatError, InputError, MissingExtraError, PartialFailureError, UsageError
from tapetum.core.files import whole_file
from tapetum.pipelines.slurm_scripts import SUBMIT_SCRIPT, JobOptions, job_script, submit_script
from tapetum.pipelines.slurm_tables import COMMAND, QUADRANT, Row, filled, rows_from_csv, rows_to_csv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Launch = Callable[[Sequence[str], Path], "Ending"]

PLAN, TABLE, JOB_SCRIPT = "plan.json", "jobs.csv", "job.sub"
RESULTS, LOGS = "results", "logs"
THEN = "then"  # between two commands of a row
TALK_LINES = 20  # of stderr, kept for the reason of a failure
TALK_LETTERS = 400  # of each line
DONE_CODES = (0, PartialFailureError.exit_code)
FINAL_CODES = (UsageError.exit_code, InputError.exit_code, MissingExtraError.exit_code)
"""Exit statuses of what would end the same way again."""


@dataclass(frozen=True)
class Ending:
    """How a command ended.

    Attributes
    ----------
    code
        Its exit status; negative is the signal that killed it.
    talk
        The last lines of its stderr.
    """

    code: int
    talk: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """How a row ended, as its file says.

    Attributes
    ----------
    job
        Number of the row.
    code
        Exit status of its last command.
    problem
        The reason, when that is not 0.
    seconds
        How long it took [s].
    ended
        When [Unix time].
    digest
        Of the commands it ran: another command's end says nothing of ours.
    name, slurm_id, host
        Job, its number and its node; empty outside of SLURM.
    """

    job: int
    code: int
    problem: str
    seconds: float
    ended: float
    digest: str
    name: str = ""
    slurm_id: str = ""
    host: str = ""

    @property
    def done(self) -> bool:
        """Whether the output is there, if not of every input."""
        return self.code in DONE_CODES


@dataclass(frozen=True)
class Plan:
    """What a folder of jobs says.

    Attributes
    ----------
    folder
        With table, scripts, results and logs.
    token
        Of this folder alone: part of the names of its jobs, by which they are known among the user's.
    commands
        Words of each command of a row, with places for its values; none: the table has a column of commands.
    workdir
        Where commands run, and relative paths begin.
    options
        What a job needs.
    config
        Settings file of the commands.
    rows
        The table.
    """

    folder: Path
    token: str
    commands: tuple[tuple[str, ...], ...]
    workdir: Path
    options: JobOptions
    config: Path | None
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """Begins the name of each job."""
        return f"{self.options.name}.{self.token}"

    @cached_property
    def by_index(self) -> dict[int, Row]:
        """Rows by number."""
        return {row.index: row for row in self.rows}

    def row(self, index: int) -> Row:
        """The row with this number.

        Raises
        ------
        UsageError
            There is none.
        """
        if index not in self.by_index:
            known = sorted(self.by_index)
            raise UsageError(f"--index {index}: {self.folder / TABLE} has jobs {known[0]} to {known[-1]}")
        return self.by_index[index]

    def steps(self, row: Row) -> list[list[str]]:
        """The commands of a row, without `tapetum` itself."""
        steps = self.commands or split_steps(shlex.split(row.values[COMMAND]))
        return [filled(step, row) for step in steps]

    def outputs(self, row: Row) -> list[Path]:
        """Files and folders that the commands of a row write, as their ``-o`` says."""
        return [self.workdir / name for step in self.steps(row) if (name := _output(step)) not in (None, "-")]

    def digest(self, row: Row) -> str:
        """Of the commands of a row."""
        return hashlib.sha256(json.dumps([self.steps(row), str(self.workdir)]).encode()).hexdigest()[:16]

    def result_path(self, index: int) -> Path:
        """Where the end of a row is told."""
        return self.folder / RESULTS / f"{index:06d}.json"

    def finished(self, row: Row, result: Result | None) -> bool:
        """Whether a row need not be run: it ended well, and what it wrote last is still there."""
        if result is None or not result.done or result.digest != self.digest(row):
            return False
        return all(path.exists() for path in self.outputs(row)[-1:])


def split_steps(words: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Commands out of words: the word `then` is between two; each may begin with `tapetum`.

    Raises
    ------
    UsageError
        One is empty.
    """
    steps: list[list[str]] = [[]]
    for word in words:
        if word == THEN:
            steps.append([])
        else:
            steps[-1].append(word)
    plain = tuple(tuple(step[1:] if step[:1] == ["tapetum"] else step) for step in steps)
    if not all(plain):
        raise UsageError(
            "no command for the jobs; give it after --, for instance -- lightcurves features {part} ..."
        )
    return plain


def commands_of(words: Sequence[str], rows: Sequence[Row], folder: Path) -> tuple[tuple[str, ...], ...]:
    """The commands of the jobs, as they are asked for; else features.

    Parameters
    ----------
    words
        Commands with `then` between them. None, or options of `lightcurves features`, stand for the usual commands: of
        files, their features; of quadrants, their ids and light curves, fetched from the server of the settings, and
        the features of these.
    rows
        The table.
    folder
        Where the usual commands write.

    Raises
    ------
    UsageError
        There is no usual command for such a table.
    """
    if words and not words[0].startswith("-"):
        return split_steps(words)
    columns = set(rows[0].values)
    if {"part", "name"} <= columns:
        return (_features("{part}", folder / "features" / "{name}.parquet", words),)
    if set(QUADRANT) <= columns:
        name = "field_{field}/ccd_{ccd:02d}_quad_{quad}"
        ids, curves, features = (
            folder / kind / f"{name}.parquet" for kind in ("ids", "lightcurves", "features")
        )
        where = ("--field", "{field}", "--ccd", "{ccd}", "--quadrant", "{quad}")
        return (
            ("lightcurves", "ids", *where, "-o", str(ids)),
            ("lightcurves", "fetch", str(ids), "-o", str(curves)),
            _features(str(curves), features, words),
        )
    raise UsageError(
        f"give the command of the jobs after --; the table has the columns {' '.join(rows[0].values)}, which stand "
        f"in it as {{{next(iter(rows[0].values))}}}"
    )


def _features(what: str, output: Path, options: Sequence[str]) -> tuple[str, ...]:
    return ("lightcurves", "features", what, *options, "-o", str(output))


def _output(step: Sequence[str]) -> str | None:
    for number, word in enumerate(step):
        if word in ("-o", "--out") and number + 1 < len(step):
            return step[number + 1]
        if word.startswith("--out="):
            return word.removeprefix("--out=")
    return None


# ---- the folder ----------------------------------------------------------------------------------------------------


def prepare(
    folder: Path,
    rows: Sequence[Row],
    commands: Sequence[Sequence[str]],
    options: JobOptions,
    *,
    workdir: Path,
    config: Path | None = None,
    submit_arguments: Sequence[str] = (),
    overwrite: bool = False,
) -> Plan:
    """Write table, scripts and plan into a folder; nothing is submitted.

    The same call again changes scripts and table, and keeps what is done: rows whose commands are the same.

    Parameters
    ----------
    folder
        Is made.
    rows, commands, options, workdir, config
        As of `Plan`.
    submit_arguments
        Options of the submitter, for its script.
    overwrite
        Forget what an earlier plan in the folder did.

    Raises
    ------
    UsageError
        A command names a column that is not there, two rows write the same output, or the folder holds something else.
    """
    folder = folder.absolute()
    old = _old_plan(folder)
    token = old["token"] if old and not overwrite else secrets.token_hex(3)
    plan = Plan(folder, token, tuple(map(tuple, commands)), workdir.absolute(), options, config, tuple(rows))
    _check(plan)
    for name in (RESULTS, LOGS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if overwrite:
        for path in (folder / RESULTS).glob("*.json"):
            path.unlink()
    _write(folder / TABLE, rows_to_csv(rows))
    script = submit_script(options, plan.name, folder, plan.workdir, list(submit_arguments))
    _write(folder / SUBMIT_SCRIPT, script)
    _write(folder / JOB_SCRIPT, job_script(options, plan.name, folder, plan.workdir))
    _write(folder / PLAN, json.dumps(_as_json(plan), indent=1) + "\n")
    return plan


def _check(plan: Plan) -> None:
    if not plan.commands and COMMAND not in plan.rows[0].values:
        split_steps(())
    seen: dict[Path, Row] = {}
    for row in plan.rows:
        for path in plan.outputs(row)[-1:]:
            if path in seen:
                raise UsageError(
                    f"{row} and {seen[path]} would both write {path}; put a column into its name, as {{job}}"
                )
            seen[path] = row


def _old_plan(folder: Path) -> dict[str, Any] | None:
    if (folder / PLAN).exists():
        return _read_json(folder / PLAN)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"-o {folder}: holds something else; name a new folder for the jobs")
    return None


def _as_json(plan: Plan) -> dict[str, Any]:
    return {
        "tapetum": __version__,
        "token": plan.token,
        "commands": [list(step) for step in plan.commands],
        "workdir": str(plan.workdir),
        "config": None if plan.config is None else str(plan.config.absolute()),
        "options": asdict(plan.options),
    }


def load_plan(folder: Path) -> Plan:
    """What `prepare` wrote.

    Raises
    ------
    InputError
        The folder is none of jobs, or was changed into something else.
    """
    folder = folder.absolute()
    if not (folder / PLAN).is_file():
        raise InputError(
            f"{folder}: no {PLAN} in it; write one with  tapetum lightcurves slurm prepare -o {folder}"
        )
    said = _read_json(folder / PLAN)
    try:
        options: dict[str, Any] = dict(said["options"])
        options |= {key: tuple(options[key]) for key in ("directives", "prologue")}
        config = said["config"]
        return Plan(
            folder,
            said["token"],
            tuple(map(tuple, said["commands"])),
            Path(said["workdir"]),
            JobOptions(**options),
            None if config is None else Path(config),
            tuple(rows_from_csv(folder / TABLE)),
        )
    except (KeyError, TypeError, AttributeError) as problem:
        raise FormatError(f"{folder / PLAN}: not a plan of jobs ({problem}); prepare it again") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise FormatError(f"{path}: cannot be read: {problem}") from None
    if not isinstance(said, dict):
        raise FormatError(f"{path}: not what was written there")
    return said


def _write(path: Path, text: str) -> None:
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


# ---- one row -------------------------------------------------------------------------------------------------------


def run_row(
    plan: Plan,
    index: int,
    *,
    launch: Launch | None = None,
    clock: Callable[[], float] = time.time,
) -> tuple[Result, bool]:
    """Run the commands of one row, one after the other until one fails, and write down how it ended.

    Parameters
    ----------
    plan
        Of the row.
    index
        Its number.
    launch
        Runs a command (its words without `tapetum`, and where) to its end; None does so in a process.
    clock
        Seconds since 1970.

    Returns
    -------
    (result, finished_before)
        Of this run; or of the earlier one, when the row need not be run again.

    Raises
    ------
    UsageError
        There is no such row.
    """
    row = plan.row(index)
    before = read_result(plan.result_path(index))
    if before is not None and plan.finished(row, before):
        return before, True
    start = clock()
    ending, partial = Ending(0), None
    for step in plan.steps(row):
        config = [] if plan.config is None else ["--config", str(plan.config)]
        ending = (launch or run_process)([*config, *step], plan.workdir)
        if ending.code not in DONE_CODES:
            break
        partial = ending if ending.code else partial
    else:
        ending = partial or ending  # an earlier step that left something out must not be forgotten
    result = Result(
        job=index,
        code=ending.code,
        problem=_problem(ending),
        seconds=round(clock() - start, 3),
        ended=clock(),
        digest=plan.digest(row),
        name=os.environ.get("SLURM_JOB_NAME", ""),
        slurm_id=os.environ.get("SLURM_JOB_ID", ""),
        host=socket.gethostname(),
    )
    _write(plan.result_path(index), json.dumps(asdict(result)) + "\n")
    return result, False


def run_process(words: Sequence[str], workdir: Path) -> Ending:
    """Run a command of Tapetum in a process of its own; its stderr goes on to ours."""
    workdir.mkdir(parents=True, exist_ok=True)
    talk: deque[str] = deque(maxlen=TALK_LINES)
    command = [sys.executable, "-m", "tapetum", *words]
    with subprocess.Popen(
        command, cwd=workdir, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        for line in process.stderr or ():
            sys.stderr.write(line)
            talk.append(line.rstrip())
        code = process.wait()
    return Ending(code, tuple(talk))


def _problem(ending: Ending) -> str:
    """Why a command failed: what it said last, which may only sum up the line before."""
    if ending.code == 0:
        return ""
    said = [line for line in ending.talk if line.strip()][-2:]
    if len(said) == 2 and said[0][0].isspace():
        del said[0]  # of a traceback
    text = "; ".join(re.sub(r"^error: ", "", line)[:TALK_LETTERS] for line in said)
    if ending.code > 0:
        return text or f"exit status {ending.code}"
    return " - ".join(filter(None, [f"killed by signal {-ending.code}", text]))


def read_result(path: Path) -> Result | None:
    """How a row ended; None when nothing is written of it."""
    try:
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class Results:
    """How rows ended, read from their files; only those that changed are read again."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._seen: dict[str, tuple[int, int]] = {}
        self._known: dict[int, Result] = {}

    def refresh(self) -> dict[int, Result]:
        """By number of the row."""
        with os.scandir(self._plan.folder / RESULTS) as entries:
            found = [entry for entry in entries if entry.name.endswith(".json")]
        for entry in found:
            status = entry.stat()
            state = (status.st_mtime_ns, status.st_size)
            if self._seen.get(entry.name) != state:
                result = read_result(Path(entry.path))
                if result is not None:
                    self._known[result.job] = result
                    self._seen[entry.name] = state
        return dict(self._known)


def run_all(
    plan: Plan, *, launch: Launch | None = None, clock: Callable[[], float] = time.time
) -> Iterator[Result]:
    """Run every row here, one after the other, without SLURM; those that are done are only told.

    Yields
    ------
    Result
        Of each row.
    """
    for row in plan.rows:
        yield run_row(plan, row.index, launch=launch, clock=clock)[0]
