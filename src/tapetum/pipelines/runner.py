"""THE runner: one function over many inputs, in this process or in workers.

A worker is a fresh Python that sets itself up once and then takes one item at a time; it holds one thread of
compute, more cores are used by more workers. Each end of a worker's pipe is always being read, so that nobody
waits for anybody. When the parent dies, however it dies, the pipe closes and the worker leaves.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, TypeVar

from tapetum.core.errors import TapetumError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")
ITEMS_PER_WORKER = (
    3  # one being worked on, two waiting: enough for the longest pause of who takes the results
)
END_SECONDS = 10.0
START = "import sys; from tapetum.pipelines.runner import serve; serve(int(sys.argv[1]))"


def run_over(
    items: Iterable[Item],
    setup: Callable[[], Callable[[Item], Result]],
    jobs: int = 1,
    *,
    apart: bool = False,
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
        Number of worker processes; 1 works in this process.
    apart
        Use a worker even for one job: for libraries that a hostile input can crash.

    Yields
    ------
    (item, result)
        In the order of `items`.

    Raises
    ------
    TapetumError
        What `setup` or the function raised, or that a worker died.
    """
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
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
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
                raise _remade(*problem)
            worker.in_flight -= 1
            done[number] = result

    def _failure(self, worker: _Worker) -> TapetumError:
        """Why a worker no longer reads: what it said last, or how it ended."""
        try:
            while worker.pipe.poll():
                _, _, problem = worker.pipe.recv()
                if problem is not None:
                    return _remade(*problem)
        except (EOFError, OSError):
            pass
        return worker.died()


def _remade(kind: type[TapetumError], message: str) -> TapetumError:
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
