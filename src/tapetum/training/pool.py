"""Simulated examples by role: fixed ones to be judged by, and a pool that slides along an endless list."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from tapetum.pipelines.runner import run_over
from tapetum.training.datasets import Key, simulated_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from numpy.typing import NDArray

    from tapetum.training.recipe import SimulatedPool
    from tapetum.training.split import Role

LARGEST_HALF = 60_000.0  # float16 ends soon after
Example = TypeVar("Example")


def as_half(image: NDArray[np.float32]) -> NDArray[np.float16]:
    """An image as examples hold it, clipped to what float16 can."""
    return np.clip(image, -LARGEST_HALF, LARGEST_HALF).astype(np.float16)


class PooledSource(ABC, Generic[Example]):
    """Examples by role; those of role `fit` slide along an endless list, `renew` new ones an epoch.

    Example k of a run depends on the recipe's seed, k and the user's files alone. New ones are made by other processes
    while the network learns.

    Parameters
    ----------
    simulation
        How many of which.
    jobs
        Processes.
    """

    def __init__(self, simulation: SimulatedPool, jobs: int = 1) -> None:
        self.simulation = simulation
        self.jobs = jobs
        self._fixed: dict[Role, list[Example]] = {}
        self._pool: list[Example] = []
        self._first = 0  # place of the pool's first example in the list of role `fit`
        self._stream: Generator[Example] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="examples")
        self._coming: Future[list[Example]] | None = None
        self._stopped = False

    @abstractmethod
    def _maker(self, role: Role) -> Callable[[Any], Example]:
        """The function that makes an example of a role out of an item; it can be pickled."""

    def _item(self, name: str) -> Any:
        """What the example of this name is made of."""
        return name

    def fixed(self, role: Role) -> list[Example]:
        """All examples of role validation or test."""
        if role not in self._fixed:
            self._fixed[role] = list(self._make(role, 0, self._count(role)))
        return self._fixed[role]

    def pool(self, epoch: int, last: int) -> list[Example]:
        """The pool of an epoch; the new ones of the next are begun, unless this is the `last`.

        Epochs are asked for one after the other.
        """
        size, renew = self.simulation.pool, self.simulation.renew
        start = epoch * renew
        if self._stream is None:
            self._stream = self._make("fit", start, self._count("fit", last + 1))
            self._first = start
        missing = start + size - self._first - len(self._pool)
        new = self._take(missing) if self._coming is None else self._coming.result()
        self._pool = [*self._pool, *new][start - self._first :]  # the list of the last epoch stays as it is
        self._first = start
        self._coming = self._thread.submit(self._take, renew) if epoch < last and renew else None
        return self._pool

    def _take(self, count: int) -> list[Example]:
        taken: list[Example] = []
        while self._stream is not None and len(taken) < count and not self._stopped:
            taken.append(next(self._stream))
        return taken

    def _make(self, role: Role, start: int, stop: int) -> Generator[Example]:
        setup = partial(partial, self._maker(role))
        items = map(self._item, self._names(role, start, stop))
        # those of role `fit` apart, also for one job: they are made while the network learns
        for _, example in run_over(items, setup, self.jobs, apart=role == "fit"):
            yield example

    def _names(self, role: Role, start: int, stop: int) -> Iterator[str]:
        return islice(simulated_ids(self.simulation.seed, role), start, stop)

    def _count(self, role: Role, epochs: int = 1) -> int:
        counts = {
            "fit": self.simulation.pool + (epochs - 1) * self.simulation.renew,
            "validation": self.simulation.validation,
            "test": self.simulation.test,
        }
        return counts.get(role, 0)

    def keys(self, role: Role, epochs: int) -> list[Key]:
        """Every example that a run of so many epochs shows in a role."""
        return [Key("simulated", 0, name) for name in self._names(role, 0, self._count(role, epochs))]

    def close(self) -> None:
        """End the processes."""
        self._stopped = True
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._stream is not None:
            self._stream.close()
            self._stream = None
