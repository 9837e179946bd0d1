"""The submitter: so many jobs at a time, a few attempts for each, until every row is done or has failed for good.

What it knows is in files: how rows ended (`tapetum.pipelines.slurm_jobs`), and a journal of what it submitted, to which
lines are only ever added, the first of them before sbatch is called. So it may be killed at any moment and started
again: jobs carry the number of their row and attempt in their names, by which they are found in the queue.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import TYPE_CHECKING, Any

from tapetum.core.errors import NetworkError, TapetumError, UsageError
from tapetum.core.progress import Progress, no_progress
from tapetum.pipelines.slurm_jobs import FINAL_CODES, JOB_SCRIPT, LOGS, Plan, Result, Results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tapetum.pipelines.slurm_client import QueuedJob, Scheduler
    from tapetum.pipelines.slurm_tables import Row

JOURNAL, LOCK = "submitted.jsonl", "submit.lock"
PATIENCE = 48  # looks at a SLURM that does not answer, one after the other: four hours of the usual waits
REFUSALS = 5  # of sbatch, one after the other while none of our jobs is left
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # a shared file system without locks


@dataclass(frozen=True)
class Rules:
    """How jobs are submitted.

    Attributes
    ----------
    max_instances
        Jobs that wait or run at the same time.
    wait_s
        Between two looks at the queue [s].
    interval_s
        Between two submissions [s].
    attempts
        Of each row, before it is given up.
    stop_after
        Failures one after the other, without any row done between them, after which nothing more is submitted.
    grace_s
        For how long the end of a job that left the queue may stay untold: shared file systems show new files late [s].
    once
        Look once, submit what has room, and do not wait.
    """

    max_instances: int = 20
    wait_s: float = 300.0
    interval_s: float = 60.0
    attempts: int = 3
    stop_after: int = 10
    grace_s: float = 60.0
    once: bool = False

    def __post_init__(self) -> None:
        if (
            min(self.max_instances, self.attempts, self.stop_after) < 1
            or min(self.wait_s, self.interval_s) < 0
        ):
            raise UsageError(
                f"{self.max_instances} instances, {self.attempts} attempts, stop after {self.stop_after}, waits of "
                f"{self.wait_s:g} and {self.interval_s:g} s: the first three are 1 or more, the others 0 or more"
            )


class State(StrEnum):
    """Where a row is."""

    DONE = "done"
    RUNNING = "running"
    QUEUED = "queued"
    SUBMITTED = "submitted"  # handed to SLURM; not in its queue now, and no end is told yet
    WAITING = "waiting"  # to be submitted, for the first time or again
    FAILED = "failed"


OPEN = (State.RUNNING, State.QUEUED, State.SUBMITTED)


@dataclass(frozen=True)
class RowState:
    """What became of a row so far.

    Attributes
    ----------
    row
        Of the table.
    state
        Where it is.
    n_failed
        Attempts that failed.
    problem
        Why the last one did; of a row that is done, what was left out.
    slurm_id
        Number of the last job.
    seconds
        How long the last run that came to an end took [s]; None if there was none.
    host
        Where that was.
    """

    row: Row
    state: State
    n_failed: int = 0
    problem: str = ""
    slurm_id: str = ""
    seconds: float | None = None
    host: str = ""


@dataclass
class Attempt:
    """One submission of a row.

    Attributes
    ----------
    job
        Number of the row.
    name
        Of the job; no other has it.
    when
        Of the submission [Unix time].
    digest
        Of the row's commands at that time: failures of others do not count.
    slurm_id
        SLURM's number; empty while sbatch has not answered.
    gone
        Since when it has not been in the queue any more; None while it is.
    """

    job: int
    name: str
    when: float
    digest: str
    slurm_id: str = ""
    gone: float | None = None


@dataclass
class Journal:
    """What was submitted from a folder.

    Attributes
    ----------
    path
        One JSON object per line.
    prefix
        Begins the names of our jobs; others are of an earlier plan.
    """

    path: Path
    prefix: str
    forgiven: float = 0.0
    _attempts: dict[str, Attempt] = field(default_factory=dict)
    _of_row: dict[int, list[Attempt]] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan) -> Journal:
        """Read it, as far as it was written."""
        journal = cls(plan.folder / JOURNAL, f"{plan.name}.")
        try:
            lines = journal.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return journal
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # the writer was killed in the middle of it
            if isinstance(event, dict):
                journal._take(event)
        return journal

    def of_row(self, job: int) -> list[Attempt]:
        """Attempts of a row, the first one first."""
        return self._of_row.get(job, [])

    def begin(self, job: int, digest: str, now: float) -> Attempt:
        """Note that a row is about to be submitted."""
        name = f"{self.prefix}{job}.{len(self.of_row(job)) + 1}"
        self._add({"job": job, "name": name, "when": now, "digest": digest})
        return self._attempts[name]

    def accepted(self, attempt: Attempt, slurm_id: str) -> None:
        """Note SLURM's number of a job."""
        self._add({"name": attempt.name, "slurm_id": slurm_id})

    def left(self, attempt: Attempt, gone: float | None) -> None:
        """Note that a job is no longer in the queue; None: that it is there again."""
        self._add({"name": attempt.name, "gone": gone})

    def forgive(self, now: float) -> None:
        """Note that failures so far do not count."""
        self._add({"forgiven": now})

    def _add(self, event: dict[str, Any]) -> None:
        # a line that an earlier writer could not finish is ended by the first newline
        with self.path.open("ab") as handle:
            handle.write(b"\n" + json.dumps(event).encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())
        self._take(event)

    def _take(self, event: Mapping[str, Any]) -> None:
        name = event.get("name", "")
        if "forgiven" in event:
            self.forgiven = float(event["forgiven"])
        elif "job" in event and name.startswith(self.prefix):
            attempt = Attempt(int(event["job"]), name, float(event["when"]), event["digest"])
            self._attempts[name] = attempt
            self._of_row.setdefault(attempt.job, []).append(attempt)
        elif name in self._attempts:
            attempt = self._attempts[name]
            attempt.slurm_id = event.get("slurm_id", attempt.slurm_id)
            attempt.gone = event.get("gone", attempt.gone)


# ---- where every row is --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Queue:
    """Our jobs in SLURM's queue, by name; and by row, where somebody submitted the script as an array."""

    by_name: Mapping[str, QueuedJob]
    by_row: Mapping[int, QueuedJob]

    def job_of(self, row: int, attempts: Sequence[Attempt]) -> QueuedJob | None:
        for attempt in attempts:
            if attempt.name in self.by_name:
                return self.by_name[attempt.name]
        return self.by_row.get(row)


def _ours(plan: Plan, jobs: Sequence[QueuedJob]) -> _Queue:
    by_row = {job.array_index: job for job in jobs if job.name == plan.name and job.array_index is not None}
    return _Queue({job.name: job for job in jobs}, by_row)


def row_states(
    plan: Plan,
    results: Mapping[int, Result],
    journal: Journal,
    jobs: Sequence[QueuedJob] | None,
    rules: Rules,
    now: float,
) -> list[RowState]:
    """Where every row of a plan is.

    Parameters
    ----------
    plan, results, journal
        What was planned, what has ended, and what was submitted.
    jobs
        The user's queue; None when nothing is known of it.
    rules
        For the number of attempts, and for how long an end may stay untold.
    now
        [Unix time]
    """
    queue = None if jobs is None else _ours(plan, jobs)
    return [_row_state(plan, row, results.get(row.index), journal, queue, rules, now) for row in plan.rows]


def _row_state(
    plan: Plan,
    row: Row,
    result: Result | None,
    journal: Journal,
    queue: _Queue | None,
    rules: Rules,
    now: float,
) -> RowState:
    attempts = journal.of_row(row.index)
    job = queue.job_of(row.index, attempts) if queue else None
    digest = plan.digest(row)
    ended = result if result is not None and result.digest == digest else None
    last = attempts[-1] if attempts else None
    known = job or last or ended
    slurm_id = known.slurm_id if known else ""

    def state(which: State, n_failed: int = 0, problem: str = "") -> RowState:
        seconds, host = (ended.seconds, ended.host) if ended else (None, "")
        return RowState(row, which, n_failed, problem, slurm_id, seconds, host)

    bad = ended if ended is not None and not ended.done and ended.ended > journal.forgiven else None
    tried = [
        attempt for attempt in attempts if _counts(attempt, ended, digest) and attempt.when > journal.forgiven
    ]
    if ended is not None and plan.finished(row, ended):
        return state(State.DONE, len(tried), ended.problem)
    if job is not None:
        before = sum(attempt.name != job.name for attempt in tried)
        return state(State.RUNNING if job.running else State.QUEUED, before, bad.problem if bad else "")
    if last is not None and not _settled(last, result, rules, now):
        return state(State.SUBMITTED, sum(attempt is not last for attempt in tried))
    given_up = len(tried) >= rules.attempts or (bad is not None and bad.code in FINAL_CODES)
    return state(State.FAILED if given_up else State.WAITING, len(tried), _problem(tried, bad, plan))


def _counts(attempt: Attempt, ended: Result | None, digest: str) -> bool:
    """Whether an attempt that is over has failed: SLURM took it, the commands were these, and it did not end well."""
    if ended is not None and ended.name == attempt.name:
        return not ended.done
    return bool(attempt.slurm_id) and attempt.digest == digest


def _settled(attempt: Attempt, result: Result | None, rules: Rules, now: float) -> bool:
    """Whether nothing more is to be expected of an attempt that is not in the queue."""
    if result is not None and result.name == attempt.name:
        return True
    return attempt.gone is not None and now - attempt.gone >= rules.grace_s


def _problem(tried: Sequence[Attempt], bad: Result | None, plan: Plan) -> str:
    """Why the last attempt failed."""
    last = tried[-1] if tried else None
    if bad is not None and (last is None or bad.name == last.name or bad.ended > last.when):
        return bad.problem
    if last is None:
        return ""
    return (
        f"SLURM job {last.slurm_id} ended without a word (time, memory or its node); see "
        f"{plan.folder / LOGS}/{last.name}.{last.slurm_id}.out"
    )


# ---- submitting ----------------------------------------------------------------------------------------------------


class _Submitter:
    """A plan, and who works on it."""

    def __init__(
        self,
        plan: Plan,
        scheduler: Scheduler,
        rules: Rules,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        tell: Callable[[str], None],
    ) -> None:
        self.plan, self.scheduler, self.rules = plan, scheduler, rules
        self.clock, self.sleep, self.tell = clock, sleep, tell
        self.journal, self.results = Journal.of(plan), Results(plan)
        self.refused = 0

    def look(self) -> list[RowState]:
        """Where every row is; waits for a SLURM that does not answer."""
        jobs = self._queue()
        now = self.clock()
        ours = _ours(self.plan, jobs)
        results = self.results.refresh()
        for row in self.plan.rows:
            for attempt in self.journal.of_row(row.index)[-1:]:
                self._note(attempt, ours.by_name.get(attempt.name), results.get(row.index), now)
        return row_states(self.plan, results, self.journal, jobs, self.rules, now)

    def _queue(self) -> list[QueuedJob]:
        for missed in range(PATIENCE):
            try:
                return self.scheduler.queue()
            except NetworkError as problem:
                if self.rules.once or missed == PATIENCE - 1:
                    raise
                self.tell(f"{problem}; looking again in {self.rules.wait_s:g} s")
                self.sleep(self.rules.wait_s)
        raise AssertionError  # the last look returns or raises

    def _note(self, attempt: Attempt, job: QueuedJob | None, result: Result | None, now: float) -> None:
        """Keep what the queue says of an attempt."""
        if job is not None:
            if not attempt.slurm_id:  # we were killed before sbatch had answered
                self.journal.accepted(attempt, job.slurm_id)
            if attempt.gone is not None:
                self.journal.left(attempt, None)
        elif attempt.gone is None and not (result is not None and result.name == attempt.name):
            self.journal.left(attempt, now)

    def submit(self, states: Sequence[RowState]) -> int:
        """Submit what there is room for; the number of jobs that SLURM took."""
        ours = [entry for entry in states if entry.state in OPEN]
        waiting = [entry for entry in states if entry.state == State.WAITING]
        n_taken = sum(bool(entry.slurm_id) for entry in ours)
        room = waiting[: max(0, self.rules.max_instances - len(ours))]
        for number, entry in enumerate(room):
            if number:
                self.sleep(self.rules.interval_s)
            attempt = self.journal.begin(entry.row.index, self.plan.digest(entry.row), self.clock())
            script = self.plan.folder / JOB_SCRIPT
            try:
                slurm_id = self.scheduler.submit(script, attempt.name, [str(entry.row.index)])
            except NetworkError as problem:
                self._refusal(problem, n_taken + number)
                return number
            self.journal.accepted(attempt, slurm_id)
            self.refused = 0
            self.tell(f"{entry.row}: SLURM job {slurm_id}")
        return len(room)

    def _refusal(self, problem: NetworkError, n_taken: int) -> None:
        """Sites limit how many jobs one may have: while ours run there is something to wait for."""
        self.refused = 0 if n_taken else self.refused + 1
        if self.rules.once or self.refused >= REFUSALS:
            raise problem
        self.tell(f"{problem}; trying again in {self.rules.wait_s:g} s")


def submit_all(
    plan: Plan,
    scheduler: Scheduler,
    rules: Rules,
    *,
    retry_failed: bool = False,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[str], None] = lambda _: None,
    progress: Progress = no_progress,
) -> list[RowState]:
    """Submit the rows of a plan until each is done or given up.

    Parameters
    ----------
    plan
        What is to be done.
    scheduler
        Who runs it.
    rules
        How many at a time, how often, and so on.
    retry_failed
        Failures of earlier runs do not count.
    clock, sleep
        Seconds since 1970, and a wait.
    tell, progress
        Told of every submission, and of how many rows are done or given up.

    Returns
    -------
    list of RowState
        In the order of the table.

    Raises
    ------
    UsageError
        Another submitter works on the folder, or this machine cannot submit jobs.
    TapetumError
        SLURM refuses such jobs, or one job after the other fails.
    NetworkError
        SLURM does not answer for hours, or takes no job.
    """
    with _alone(plan.folder):
        team = _Submitter(plan, scheduler, rules, clock, sleep, tell)
        if retry_failed:
            team.journal.forgive(clock())
        scheduler.check(plan.folder / JOB_SCRIPT)
        states = team.look()
        failures = _Failures(states)
        while True:
            n_over = sum(entry.state in (State.DONE, State.FAILED) for entry in states)
            progress(n_over, len(states))
            if n_over == len(states):
                return states
            n_new = team.submit(states)
            if rules.once:
                return team.look() if n_new else states
            sleep(rules.wait_s)
            states = team.look()
            failures.see(states, rules.stop_after, plan)


class _Failures:
    """Failures one after the other."""

    def __init__(self, states: Sequence[RowState]) -> None:
        self._before = self._count(states)
        self._in_a_row = 0

    @staticmethod
    def _count(states: Sequence[RowState]) -> tuple[int, int]:
        return sum(e.n_failed for e in states), sum(e.state == State.DONE for e in states)

    def see(self, states: Sequence[RowState], most: int, plan: Plan) -> None:
        failed, done = self._count(states)
        self._in_a_row = 0 if done > self._before[1] else self._in_a_row + max(0, failed - self._before[0])
        self._before = failed, done
        if self._in_a_row >= most:
            said = Counter(entry.problem for entry in states if entry.n_failed and entry.problem)
            reason = said.most_common(1)[0][0] if said else "no reason was told"
            raise TapetumError(
                f"{self._in_a_row} jobs in a row failed, so no more are submitted; most of them said: {reason}; see "
                f"{plan.folder / LOGS}, mend it, and submit again with --retry-failed"
            )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else submits from this folder; the lock goes with the process, whatever ends it."""
    with (folder / LOCK).open("w") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            if problem.errno not in _NO_LOCKS:
                raise UsageError(f"{folder}: another submitter works on it") from None
        yield


def overview(plan: Plan, scheduler: Scheduler, rules: Rules, *, now: float) -> tuple[list[RowState], str]:
    """Where every row is, and why nothing is known of the queue, if so.

    Parameters
    ----------
    plan, scheduler, rules
        As for `submit_all`.
    now
        [Unix time]
    """
    jobs: list[QueuedJob] | None = None
    problem = ""
    try:
        jobs = scheduler.queue()
    except (NetworkError, UsageError) as caught:
        problem = str(caught)
    return row_states(plan, Results(plan).refresh(), Journal.of(plan), jobs, rules, now), problem


def summary(states: Sequence[RowState]) -> dict[str, Any]:
    """Counts of states; times of what is done [s]; reasons of failures, the commonest first."""
    times = [e.seconds for e in states if e.state == State.DONE and e.seconds is not None]
    said = Counter(e.problem for e in states if e.state == State.FAILED)
    return {
        "jobs": len(states),
        **{state.value: sum(entry.state == state for entry in states) for state in State},
        "incomplete": sum(e.state == State.DONE and bool(e.problem) for e in states),
        "failed_attempts": sum(entry.n_failed for entry in states),
        "seconds_median": median(times) if times else None,
        "seconds_longest": max(times, default=None),
        "seconds_total": sum(times) if times else None,
        "problems": dict(said.most_common()),
    }


def cancel_all(plan: Plan, scheduler: Scheduler) -> int:
    """End every job of a plan, the one that submits first; how many there were.

    Raises
    ------
    TapetumError
        SLURM does not answer.
    """
    ours = [job for job in scheduler.queue() if job.name == plan.name or job.name.startswith(f"{plan.name}.")]
    ours.sort(key=lambda job: not job.name.endswith(".submit"))
    scheduler.cancel(list(dict.fromkeys(job.slurm_id for job in ours)))
    return len(ours)
