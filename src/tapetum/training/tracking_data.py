"""Tiles of simulated star fields with their truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tapetum.simulate.tracking import FEWEST_STARS, TrackingSettings, as_network_sees, tracking_frame
from tapetum.training.datasets import seeds_of
from tapetum.training.pool import PooledSource, as_half

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tapetum.training.split import Role
    from tapetum.training.tracking_recipe import SimulatedTiles


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
    rng = np.random.default_rng(seeds_of(name))
    frame = tracking_frame(settings, rng)
    seen = frame.n_visible >= FEWEST_STARS
    vector = frame.path.vector if seen else (np.nan, np.nan)
    image = as_half(as_network_sees(frame, rng))
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


class TrackingSource(PooledSource[TileExample]):
    """Tiles by role; see `PooledSource`."""

    simulation: SimulatedTiles

    def _maker(self, role: Role) -> Callable[[str], TileExample]:
        side = self.simulation.side if role == "fit" else self.simulation.test_side
        return partial(make_tile, self.simulation.simulated(side))
