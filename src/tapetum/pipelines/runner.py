"""THE runner: one function over many inputs, in this process, in workers, or on a cluster.

A worker is a fresh Python that sets itself up once and then takes one item at a time; it holds one thread of
compute, more cores are used by more workers. Each end of a worker's pipe is always being read, so that nobody
waits for anybody. When the parent dies, however it dies, the pipe closes and the worker leaves.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, TypeVar

from tapetum import __version__
from tapetum.core.errors import MissingExtraError, TapetumError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tapetum.core.settings import ClusterSettings

Item = TypeVar("Item")
Result = TypeVar("Result")
ITEMS_PER_WORKER = (
    3  # one being worked on, two waiting: enough for the longest pause of who takes the results
)
END_SECONDS = 10.0
START = "import sys; from tapetum.pipelines.runner import serve; serve(int(sys.argv[1]))"
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
"""Environment of a worker: libraries that would otherwise each start a thread per core."""
_one_at_a_time = threading.Lock()  # for workers of a cluster that somebody started with several threads


def run_over(
    items: Iterable[Item],
    setup: Callable[[], Callable[[Item], Result]],
    jobs: int = 1,
    *,
    apart: bool = False,
    scheduler: str = "local",
    cluster: ClusterSettings | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Apply a function to items, in order, holding only a few at a time.

    Parameters
    ----------
    items
        Consumed only as far as there is somebody to work on them.
    setup
        Called once per worker (with `jobs` 1: once, here); returns the function. For workers it must be picklable: a
        function of a module, or a partial of one. Items and results travel through pipes.
    jobs
        Number of worker processes; 1 works in this process. With ``slurm`` it is the number of workers asked for; a
        scheduler at ``tcp://`` has as many as it has.
    apart
        Use a worker even for one job: for libraries that a hostile input can crash.
    scheduler
        ``local``; ``tcp://host:port`` of a running Dask scheduler, whose workers have the same Tapetum installed; or
        ``slurm``, which submits jobs from here and ends them afterwards. Away from ``local`` an item whose worker was
        lost is worked on again elsewhere, so the function must be one that may run twice.
    cluster
        Settings of ``slurm``, and how long workers are waited for; None is the default of each.

    Yields
    ------
    (item, result)
        In the order of `items`.

    Raises
    ------
    TapetumError
        What `setup` or the function raised, or that a worker died.
    UsageError
        `scheduler` is none of the three.
    MissingExtraError
        The extra `cluster` is not installed.
    NetworkError
        The scheduler cannot be reached, was lost, or has no workers.
    """
    if scheduler != "local":
        try:
            from tapetum.pipelines._cluster import run_on_cluster
        except ModuleNotFoundError as problem:
            raise MissingExtraError("cluster", f"--scheduler {scheduler}") from problem
        yield from run_on_cluster(items, setup, jobs, scheduler, cluster)
        return
    if jobs == 1 and not apart:
        function = setup()
        for item in items:
            yield item, function(item)
        return
    with _Workers(setup, jobs) as workers:
        waiting: dict[int, Item] = {}
        done: dict[int, Result] = {}
        number = first = 0
        for item in items:
            waiting[number] = item
            workers.send(number, item)
            number += 1
            workers.receive(done, block=False)
            # results that wait for an earlier one count as well: one slow item must not fill the memory
            while first in done or len(waiting) >= ITEMS_PER_WORKER * jobs:
                if first not in done:
                    workers.receive(done, block=True)
                    continue
                yield waiting.pop(first), done.pop(first)
                first += 1
        while first < number:
            while first not in done:
                workers.receive(done, block=True)
            yield waiting.pop(first), done.pop(first)
            first += 1


class _Worker:
    """One process, and how it is reached."""

    def __init__(self, setup: Callable[[], Callable[[Any], Any]]) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        with theirs:
            # not `multiprocessing.Process`: that would run the caller's script a second time
            command = [sys.executable, "-c", START, str(theirs.fileno())]
            environment = {**os.environ, **ONE_THREAD}
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        self.in_flight = 0
        self.pipe.send(setup)

    def died(self) -> TapetumError:
        try:
            code = self.process.wait(END_SECONDS)
            how = f"by signal {-code}" if code < 0 else f"with status {code}"
        except subprocess.TimeoutExpired:
            how = "its work without being asked to"
        return TapetumError(
            f"a worker process ended {how}; what is finished is safe, run the same command again "
            "(with fewer --jobs if memory was short)"
        )

    def end(self, *, at_once: bool) -> None:
        """Wait for the process, which ends because its pipe is closed; kill it when it does not, or when `at_once`."""
        if at_once:
            self.process.kill()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Workers:
    """Worker processes that end when this process ends."""

    def __init__(self, setup: Callable[[], Callable[[Any], Any]], jobs: int) -> None:
        self._workers = [_Worker(setup) for _ in range(jobs)]

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.end(at_once=kind is not None)

    def send(self, number: int, item: Any) -> None:
        """Give an item to whoever has the least to do; it does not wait, since a thread over there always reads."""
        worker = min(self._workers, key=lambda w: w.in_flight)
        try:
            worker.pipe.send((number, item))
        except OSError:
            raise self._failure(worker) from None
        worker.in_flight += 1

    def receive(self, done: dict[int, Any], *, block: bool) -> None:
        """Collect results that have arrived; `block` waits for at least one."""
        pipes = {worker.pipe: worker for worker in self._workers}
        for pipe in wait(list(pipes), None if block else 0):
            assert isinstance(pipe, Connection)
            worker = pipes[pipe]
            try:
                number, result, problem = pipe.recv()
            except (EOFError, OSError):
                raise worker.died() from None
            if problem is not None:
                raise remade(*problem)
            worker.in_flight -= 1
            done[number] = result

    def _failure(self, worker: _Worker) -> TapetumError:
        """Why a worker no longer reads: what it said last, or how it ended."""
        try:
            while worker.pipe.poll():
                _, _, problem = worker.pipe.recv()
                if problem is not None:
                    return remade(*problem)
        except (EOFError, OSError):
            pass
        return worker.died()


def remade(kind: type[TapetumError], message: str) -> TapetumError:
    """The error of a worker, here."""
    # not through its __init__, which may want other arguments than the finished message
    return kind.__new__(kind, message)


def serve(descriptor: int) -> None:
    """Be a worker until the pipe with this file descriptor closes."""
    pipe = Connection(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    try:
        function = pipe.recv()()
    except TapetumError as problem:
        pipe.send((None, None, (type(problem), str(problem))))
        return
    except EOFError:
        return
    threading.Thread(target=_receive, args=(pipe, inbox), daemon=True).start()
    threading.Thread(target=_send, args=(pipe, outbox), daemon=True).start()
    while True:
        number, item = inbox.get()
        try:
            outbox.put((number, function(item), None))
        except TapetumError as problem:
            outbox.put((number, None, (type(problem), str(problem))))


def _receive(pipe: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            inbox.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(0)  # the parent is gone, or has all it wanted: even a long item need not be finished


def _send(pipe: Connection, outbox: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            pipe.send(outbox.get())
    except OSError:
        os._exit(0)


def work(version: str, setup: bytes, item: Any) -> tuple[Any, tuple[type[TapetumError], str] | None]:
    """Be a worker of a cluster for one item.

    Parameters
    ----------
    version
        Version of Tapetum whose run this is.
    setup
        As `run_over` takes it, pickled.
    item
        What to work on.

    Returns
    -------
    (result, problem)
        The result and None; or None and the error to raise where the run was started.
    """
    if version != __version__:
        problem = f"{socket.gethostname()}: this worker has Tapetum {__version__}, the run is of {version}"
        return None, (TapetumError, f"{problem}; install the same version there")
    os.environ.update(ONE_THREAD)  # for what is not imported yet; Dask's nanny has done the same before
    try:
        with _one_at_a_time:
            return _function(setup)(item), None
    except TapetumError as caught:
        return None, (type(caught), str(caught))


@lru_cache(maxsize=1)
def _function(setup: bytes) -> Callable[[Any], Any]:
    """What `setup` returns, made once in the life of a worker and forgotten when another run comes."""
    function: Callable[[Any], Any] = pickle.loads(setup)()
    return function
