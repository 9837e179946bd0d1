"""The three commands of SLURM that are needed: sbatch, squeue, scancel; spoken to in their machine-readable forms.

`squeue --json` is absent from older SLURMs and changes its keys from one release to the next; fields asked for one by
one with `--format` are the same in all of them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tapetum.core.errors import NetworkError, TapetumError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ANSWER_SECONDS = 120.0  # a controller under load takes its time, but not more
FIELDS = "%A|%T|%K|%j"  # id, state in full, index within an array, name; the name, which may hold anything, is last
_LINE = re.compile(r"(\d+)\|([A-Z_]+)\|([^|]*)\|(.*)")
_PARSABLE = re.compile(r"(\d+)(?:;\S+)?")
RUNNING_STATES = frozenset({"RUNNING", "COMPLETING", "STAGE_OUT", "SUSPENDED", "STOPPED", "SIGNALING"})


@dataclass(frozen=True)
class QueuedJob:
    """A job that has not ended.

    Attributes
    ----------
    slurm_id
        SLURM's number of it.
    state
        SLURM's word, for instance PENDING.
    name
        Of the job.
    array_index
        Its index within an array of jobs; None outside of one.
    """

    slurm_id: str
    state: str
    name: str
    array_index: int | None = None

    @property
    def running(self) -> bool:
        """Whether it has begun."""
        return self.state in RUNNING_STATES


class Scheduler(Protocol):
    """Who starts jobs on other machines."""

    def check(self, script: Path) -> None:
        """Raise TapetumError when jobs of this script would not be accepted."""

    def submit(self, script: Path, name: str, arguments: Sequence[str]) -> str:
        """Submit a job; its id."""

    def queue(self) -> list[QueuedJob]:
        """Jobs of the user that have not ended."""

    def cancel(self, slurm_ids: Sequence[str]) -> None:
        """End jobs; those that have ended already do not matter."""


@dataclass(frozen=True)
class Slurm:
    """SLURM, through its commands.

    Attributes
    ----------
    user
        Whose jobs are counted; None is who asks.
    clusters
        Name of the cluster, where the site has several; None is the one of this machine.
    timeout_s
        Longest wait for an answer [s].
    """

    user: str | None = None
    clusters: str | None = None
    timeout_s: float = ANSWER_SECONDS

    def check(self, script: Path) -> None:
        """Let SLURM judge a job without submitting it.

        Raises
        ------
        UsageError
            This machine cannot submit jobs.
        TapetumError
            SLURM says why it does not want it.
        NetworkError
            SLURM does not answer.
        """
        done = self._run("sbatch", "--test-only", str(script), "0")
        if done.returncode:
            raise TapetumError(f"{script}: SLURM refuses such a job: {_said(done)}")

    def submit(self, script: Path, name: str, arguments: Sequence[str]) -> str:
        """Submit a job; its id.

        Raises
        ------
        UsageError
            This machine cannot submit jobs.
        NetworkError
            SLURM did not take it, or nobody knows whether it did; the reason is its own.
        """
        done = self._run("sbatch", "--parsable", f"--job-name={name}", str(script), *arguments)
        if done.returncode:
            raise NetworkError(f"{script}: sbatch did not take job {name}: {_said(done)}")
        # a site may print a greeting above it
        lines = done.stdout.split("\n")
        found = [match[1] for line in lines if (match := _PARSABLE.fullmatch(line.strip()))]
        if not found:
            raise NetworkError(f"sbatch took job {name}, but gave no number for it: {done.stdout.strip()!r}")
        return found[-1]

    def queue(self) -> list[QueuedJob]:
        """Jobs of the user that wait or run; elements of arrays are listed one by one.

        Raises
        ------
        UsageError
            This machine has no squeue.
        NetworkError
            SLURM does not answer, or squeue prints something else: nothing is known then.
        """
        user = self.user or str(os.getuid())
        done = self._run("squeue", "--noheader", "--array", f"--user={user}", f"--format={FIELDS}")
        if done.returncode:
            raise NetworkError(f"squeue failed: {_said(done)}")
        # with --clusters a line CLUSTER: NAME comes before each one's jobs
        lines = [
            line for line in done.stdout.splitlines() if line.strip() and not line.startswith("CLUSTER:")
        ]
        return [_queued(line) for line in lines]

    def cancel(self, slurm_ids: Sequence[str]) -> None:
        """End jobs; those that have ended already do not matter.

        Raises
        ------
        UsageError
            This machine has no scancel.
        NetworkError
            SLURM does not answer, or does not let us.
        """
        if slurm_ids:
            done = self._run("scancel", *slurm_ids)
            if done.returncode:
                raise NetworkError(f"scancel failed: {_said(done)}")

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        if shutil.which(program) is None:
            raise UsageError(f"there is no {program} on the PATH; run on a machine that submits SLURM jobs")
        where = [f"--clusters={self.clusters}"] if self.clusters else []
        # what describes the job that we may run in ourselves must not leak into the ones we submit
        environment = {
            key: value
            for key, value in os.environ.items()
            if key == "SLURM_CONF" or not key.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))
        }
        try:
            return subprocess.run(
                [program, *where, *arguments],
                capture_output=True,
                text=True,
                timeout=self.timeout_s,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NetworkError(f"no answer of {program} within {self.timeout_s:g} s") from None


def _queued(line: str) -> QueuedJob:
    match = _LINE.fullmatch(line.strip())
    if match is None:
        raise NetworkError(f"squeue --format={FIELDS} printed {line.strip()!r}")
    index = int(match[3]) if match[3].isdecimal() else None
    return QueuedJob(match[1], match[2], match[4], index)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """The last thing a command said, which is its verdict."""
    text = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
    return text[-1]
