"""Tiles of simulated star fields with their truth: a pool that renews itself, and fixed sets to be judged by."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from tapetum.pipelines.runner import run_over
from tapetum.simulate.tracking import FEWEST_STARS, TrackingSettings, as_network_sees, tracking_frame
from tapetum.training.datasets import Key, simulated_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from tapetum.training.split import Role
    from tapetum.training.tracking_recipe import SimulatedTiles

LARGEST_HALF = 60_000.0  # float16 ends soon after


@dataclass(frozen=True)
class TileExample:
    """A tile and its truth.

    Attributes
    ----------
    name
        Of the simulated object; it seeds every draw.
    image : ndarray of float16, shape (side, side)
        Above the sky [sky noise].
    target : ndarray of float32, shape (3,)
        1 a tracking error, 0 none, NaN neither; trail vector [pixel], NaN where no star shows it.
    length_pix, elongation
        As `tapetum.simulate.tracking.TrackingFrame` and its path have them.
    n_visible
        Stars that show their shape.
    tags
        What was put in.
    """

    name: str
    image: NDArray[np.float16] = field(repr=False)
    target: NDArray[np.float32]
    length_pix: float
    elongation: float
    n_visible: int
    tags: frozenset[str]


def make_tile(settings: TrackingSettings, name: str) -> TileExample:
    """The tile of this name, ``sim-SEED-NUMBER``."""
    rng = np.random.default_rng([int(part) for part in name.split("-")[1:]])
    frame = tracking_frame(settings, rng)
    seen = frame.n_visible >= FEWEST_STARS
    vector = frame.path.vector if seen else (np.nan, np.nan)
    image = np.clip(as_network_sees(frame, rng), -LARGEST_HALF, LARGEST_HALF).astype(np.float16)
    target = np.array([frame.error, *vector], np.float32)
    return TileExample(
        name, image, target, frame.path.length_pix, frame.elongation, frame.n_visible, frame.tags
    )


def turned(
    image: NDArray[np.float16], target: NDArray[np.float32], how: int
) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """One of the eight ways to lay a square down, and the truth that goes with it."""
    error, along, across = target
    if how & 1:  # rows become columns: angle t becomes 90 degrees - t
        image, along = image.T, -along
    if how & 2:
        image, across = image[::-1], -across
    if how & 4:
        image, across = image[:, ::-1], -across
    return image, np.array([error, along, across], np.float32)


def _maker(settings: TrackingSettings) -> Callable[[str], TileExample]:
    return partial(make_tile, settings)


class TrackingSource:
    """Tiles by role; those of role `fit` slide along an endless list, `renew` new ones an epoch.

    Parameters
    ----------
    simulation
        How many of which.
    jobs
        Processes that make them.
    """

    def __init__(self, simulation: SimulatedTiles, jobs: int = 1) -> None:
        self.simulation = simulation
        self.jobs = jobs
        self._fixed: dict[Role, list[TileExample]] = {}
        self._pool: dict[str, TileExample] = {}

    def fixed(self, role: Role) -> list[TileExample]:
        """All tiles of role validation or test."""
        if role not in self._fixed:
            count = self.simulation.validation if role == "validation" else self.simulation.test
            names = islice(simulated_ids(self.simulation.seed, role), count)
            self._fixed[role] = list(self._make(names, self.simulation.test_side))
        return self._fixed[role]

    def pool(self, epoch: int) -> list[TileExample]:
        """The tiles of an epoch."""
        start = epoch * self.simulation.renew
        names = list(islice(simulated_ids(self.simulation.seed, "fit"), start, start + self.simulation.pool))
        missing = [name for name in names if name not in self._pool]
        made = {tile.name: tile for tile in self._make(missing, self.simulation.side)}
        self._pool = {name: self._pool.get(name) or made[name] for name in names}
        return list(self._pool.values())

    def _make(self, names: Iterable[str], side: int) -> Iterator[TileExample]:
        setup = partial(_maker, self.simulation.simulated(side))
        for _, tile in run_over(names, setup, self.jobs):
            yield tile

    def keys(self, role: Role, epochs: int) -> list[Key]:
        """Every tile that a run of so many epochs shows in a role."""
        counts = {
            "fit": self.simulation.pool + (epochs - 1) * self.simulation.renew,
            "validation": self.simulation.validation,
            "test": self.simulation.test,
        }
        names = islice(simulated_ids(self.simulation.seed, role), counts.get(role, 0))
        return [Key("simulated", 0, name) for name in names]
