"""The runner's way to a cluster: workers of a Dask scheduler that runs somewhere, or jobs of SLURM.

Here, too, a worker sets itself up once and takes one item at a time with one thread of compute; results come back in
the order of the items and only a few items are under way. A worker that is lost - killed, out of memory, at the end of
its walltime - costs nothing but time: the scheduler gives its items to another one.

This module needs the extra `cluster`; the runner imports it when a cluster is asked for.
"""

from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import time
from collections import deque
from concurrent.futures import CancelledError
from contextlib import ExitStack
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import distributed
from dask_jobqueue import SLURMCluster
from distributed.comm import CommClosedError
from distributed.protocol import pickle

from tapetum import __version__
from tapetum.core.errors import NetworkError, TapetumError, UsageError
from tapetum.core.settings import ClusterSettings
from tapetum.pipelines.runner import ITEMS_PER_WORKER, ONE_THREAD, remade, work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

REACH_SECONDS = 5.0  # a scheduler that listens answers at once
GREETING_BYTES = 2**20
CONNECT_SECONDS = 10.0
LOOK_SECONDS = 5.0  # between two looks at the workers while a result is awaited
SUBMIT_SECONDS = 60.0
LOST_WORKERS = 3  # that an item may lose; those that only waited for the same worker are counted as well

_log = logging.getLogger(__name__)


def run_on_cluster(
    items: Iterable[Any],
    setup: Callable[[], Callable[[Any], Any]],
    jobs: int,
    scheduler: str,
    settings: ClusterSettings | None,
) -> Iterator[tuple[Any, Any]]:
    """As `tapetum.pipelines.runner.run_over`, away from this machine.

    Raises
    ------
    TapetumError
        As `tapetum.pipelines.runner.run_over`.
    """
    with _Team(scheduler, jobs, settings or ClusterSettings()) as team:
        payload = pickle.dumps(setup)
        waiting: deque[tuple[Any, Any]] = deque()
        for item in items:
            waiting.append((item, team.submit(payload, item)))
            while len(waiting) >= ITEMS_PER_WORKER * team.size():
                item, future = waiting.popleft()
                yield item, team.result(future)
        while waiting:
            item, future = waiting.popleft()
            yield item, team.result(future)


class _Team:
    """A client of the scheduler, and what is known of the workers behind it."""

    def __init__(self, scheduler: str, jobs: int, settings: ClusterSettings) -> None:
        self._scheduler, self._jobs, self._settings = scheduler, jobs, settings
        self._size, self._looked, self._seen = 1, -LOOK_SECONDS, time.monotonic()
        self._cluster: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> _Team:
        with ExitStack() as stack:
            if self._scheduler == "slurm":
                self._cluster = stack.enter_context(_slurm(self._settings))
                self._cluster.scale(self._jobs)
            else:
                _reach(self._scheduler)
            where = self._cluster or self._scheduler
            try:
                client = distributed.Client(where, timeout=CONNECT_SECONDS, set_as_default=False)
            except (OSError, TimeoutError) as problem:
                raise NetworkError(f"{self._scheduler}: no Dask scheduler answers: {problem}") from None
            self._client = stack.enter_context(client)
            self._wait_for_workers()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *reason: object) -> None:
        self._stack.close()

    def _wait_for_workers(self) -> None:
        _log.info("%s: waiting for workers, at most %g s", self._scheduler, self._settings.wait_s)
        try:
            self._client.wait_for_workers(1, timeout=self._settings.wait_s)
        except (TimeoutError, distributed.TimeoutError):
            raise self._nobody() from None
        # asked first, because a worker that has no Tapetum would die of being sent one of its functions
        self._finished(self._client.submit(installed_version, "tapetum", pure=False))
        threads = set(self._client.nthreads().values())
        if threads != {1}:
            _log.warning(
                "%s has workers with several threads, of which one is used; start them with --nthreads 1",
                self._scheduler,
            )

    def _nobody(self) -> NetworkError:
        hint = (
            "look at `squeue --me`, or raise cluster.wait_s in the settings"
            if self._cluster is not None
            else f"start some with  dask worker {self._scheduler} --nworkers N --nthreads 1"
        )
        return NetworkError(
            f"{self._scheduler}: no worker for {self._settings.wait_s:g} s; what is finished is safe; {hint}"
        )

    def size(self) -> int:
        """How many workers there are; asked anew every few seconds, because they come and go."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._look()
        return self._size

    def _look(self) -> None:
        n_workers = len(self._client.nthreads())
        now = self._looked = time.monotonic()
        if n_workers:
            self._seen = now
        elif now - self._seen > self._settings.wait_s:
            raise self._nobody()
        if self._cluster is not None and n_workers < self._jobs:
            self._cluster.scale(self._jobs)  # a job that came to its end is submitted again
        self._size = max(n_workers, 1)

    def submit(self, payload: bytes, item: Any) -> Any:
        """Give an item to whoever is free."""
        return self._client.submit(work, __version__, payload, item, pure=False)

    def result(self, future: Any) -> Any:
        """Wait for one item."""
        result, problem = self._finished(future)
        if problem is not None:
            raise remade(*problem)
        return result

    def _finished(self, future: Any) -> Any:
        """What a task returned; what Dask says of one that did not come to its end, in our words."""
        try:
            while True:
                try:
                    return future.result(timeout=LOOK_SECONDS)
                except (TimeoutError, distributed.TimeoutError):
                    if future.status == "error":
                        raise  # of the function
                    self._look()
        except distributed.KilledWorker as lost:
            raise TapetumError(
                f"{self._scheduler}: an item was lost with every worker that took it ({lost.last_worker}), for want of "
                "memory or of walltime; what is finished is safe, run the same command again with larger workers"
            ) from None
        except ModuleNotFoundError as problem:
            raise TapetumError(
                f"{self._scheduler}: a worker has no {problem.name}; install Tapetum {__version__} there, with "
                "the same extras"
            ) from None
        except (CancelledError, CommClosedError):
            raise NetworkError(
                f"{self._scheduler}: the scheduler was lost; what is finished is safe, run the same command again"
            ) from None


def _address(scheduler: str) -> tuple[str, int]:
    parts = urlsplit(scheduler)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme != "tcp" or not host or not port:
        raise UsageError(f"--scheduler {scheduler}: it is local, tcp://host:port or slurm")
    return host, port


def _reach(scheduler: str) -> None:
    """Find out within seconds that no scheduler listens; Dask itself would wait for ever for its greeting."""
    host, port = _address(scheduler)
    try:
        with socket.create_connection((host, port), timeout=REACH_SECONDS) as probe:
            greeting = probe.recv(8)
    except TimeoutError:
        greeting = b""
    except OSError as problem:
        raise NetworkError(
            f"{scheduler}: no scheduler can be reached: {problem}; start one with  dask scheduler --port {port}"
        ) from None
    # it speaks first, and begins with the number of bytes that follow
    if not 0 < int.from_bytes(greeting, "little") < GREETING_BYTES:
        raise NetworkError(f"{scheduler}: what listens there is no Dask scheduler")


def _slurm(settings: ClusterSettings) -> Any:
    """A Dask scheduler in this process whose workers are SLURM jobs.

    Raises
    ------
    UsageError
        This machine cannot submit jobs.
    TapetumError
        SLURM refuses such a job.
    """
    if shutil.which("sbatch") is None:
        raise UsageError(
            "--scheduler slurm: there is no sbatch on the PATH; run on a machine that submits jobs"
        )
    n = settings.workers_per_job
    cluster = SLURMCluster(
        queue=settings.queue,
        account=settings.account,
        walltime=settings.walltime,
        cores=n,
        processes=n,
        memory=settings.memory,
        interface=settings.interface,
        job_name="tapetum",
        job_extra_directives=settings.directives,
        job_script_prologue=[f"export {key}={value}" for key, value in ONE_THREAD.items()]
        + settings.prologue,
        local_directory=settings.scratch,
        log_directory=settings.logs,
        worker_extra_args=["--no-dashboard"],
        scheduler_options={
            "allowed_failures": LOST_WORKERS,
            "dashboard": False,
            "dashboard_address": "127.0.0.1:0",
        },
    )
    try:
        _try_to_submit(cluster.job_script())
    except BaseException:
        cluster.close()
        raise
    return cluster


def _try_to_submit(script: str) -> None:
    """Let SLURM judge the job before it is submitted: Dask would only log a refusal and wait for ever."""
    command = ["sbatch", "--test-only"]
    try:
        done = subprocess.run(
            command, input=script, text=True, capture_output=True, timeout=SUBMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise NetworkError(f"SLURM: no answer of sbatch within {SUBMIT_SECONDS:g} s") from None
    if done.returncode:
        raise TapetumError(
            f"SLURM refuses the job: {done.stderr.strip()}; see [cluster] in the settings (tapetum doctor --settings)"
        )
