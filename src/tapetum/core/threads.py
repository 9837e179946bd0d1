"""Waiting for several answers at a time: for questions to other machines, never for compute."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from tapetum.core.errors import TapetumError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")
WAITING = 2  # questions per thread that are begun before their answers are taken


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item.

    Attributes
    ----------
    item
        What was worked on.
    problem
        Why there is no result; None when there is one.
    """

    item: Item
    problem: TapetumError | None
    _answer: Future[Result]

    @property
    def result(self) -> Result:
        """What the function returned; raises the problem when there is one."""
        return self._answer.result()


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Outcome[Item, Result]]:
    """Apply a function to items, several at a time, in order, holding only a few answers.

    Parameters
    ----------
    function
        Waits for something outside; it is called from several threads.
    items
        Consumed only as far as there is somebody to ask.
    threads
        Items worked on at the same time.

    Yields
    ------
    Outcome
        One for each item; a `TapetumError` of one stops no other.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="asking")
    begun: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            begun.append((item, pool.submit(function, item)))
            if len(begun) >= WAITING * threads:
                yield _outcome(*begun.popleft())
        while begun:
            yield _outcome(*begun.popleft())
    finally:
        pool.shutdown(cancel_futures=True)  # who stops early does not wait for what was not begun


def _outcome(item: Item, answer: Future[Result]) -> Outcome[Item, Result]:
    problem = answer.exception()
    if problem is not None and not isinstance(problem, TapetumError):
        raise problem  # a fault of ours, not of the item
    return Outcome(item, problem, answer)
