"""Frames with a truth for every pixel: tiles of real frames, and contaminated examples."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import InputError, UsageError
from tapetum.images.contaminants import NAMES
from tapetum.images.fits import expand_sources, image_name, list_images, path_of, read_frame
from tapetum.images.frame import Bad
from tapetum.images.normalise import normalise
from tapetum.simulate.contaminants import ContaminantSettings, contaminated_frame
from tapetum.training.datasets import Key, seeds_of
from tapetum.training.mask_recipe import TILE
from tapetum.training.pool import PooledSource, as_half
from tapetum.training.split import USED_ROLES, role_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.simulate.contaminants import Contaminated
    from tapetum.training.mask_recipe import FrameData, MaskRecipe, SimulatedFrames
    from tapetum.training.split import Role

log = logging.getLogger(__name__)
LEAST_TILE = 128  # side of the smallest image that is worth a tile [pixel]
BACKGROUND_BIT = np.uint16(1 << NAMES.index("BG"))
ALL_BITS = np.uint16((1 << len(NAMES)) - 1)


@dataclass(frozen=True)
class RealTile:
    """A piece of a real frame.

    Attributes
    ----------
    name
        ``image:row:column``.
    image
        What the split goes by: name of the file without its suffixes.
    data : ndarray of float32, shape (n_y, n_x)
        [DN], in training at most `TILE` on a side; NaN where there is no value.
    """

    name: str
    image: str
    data: NDArray[np.float32]


@dataclass(frozen=True)
class MaskExample:
    """A normalised frame and its truth; bit i of truth and unknown is class i of `NAMES`, the background included.

    Attributes
    ----------
    name
        Of the simulated object.
    base
        Name of the real tile that it was made of; empty: simulated wholly.
    image : ndarray of float16, shape (TILE, TILE)
        In units of the sky noise.
    truth, unknown : ndarray of uint16, shape (TILE, TILE)
        Classes that hold, and those of which nobody knows.
    trails : ndarray of uint8, shape (TILE, TILE)
        Number of the trail that a pixel is of, from 1; empty in what is learned from.
    """

    name: str
    base: str
    image: NDArray[np.float16]
    truth: NDArray[np.uint16]
    unknown: NDArray[np.uint16]
    trails: NDArray[np.uint8]


def files_in(paths: Sequence[Path | str]) -> list[str]:
    """The images meant by files, folders and lists, as `tapetum images` takes them."""
    return expand_sources(list(paths)) if paths else []


def tiles_of(
    paths: Sequence[Path | str], most: int, roles: Collection[Role] | None = None, side: int = TILE
) -> list[RealTile]:
    """Tiles of every image of FITS files, evenly spread, at most so many of an image; what is unusable is left out.

    Parameters
    ----------
    paths
        Files, also with extensions.
    most
        Tiles of an image.
    roles
        Files of any other role are not even opened; None: all are.
    side
        Of the largest tiles [pixel].

    Raises
    ------
    InputError
        A file is no FITS image.
    """
    tiles = []
    for path in paths:
        role = role_of(image_name(path_of(path)))
        if roles is not None and role not in roles:
            log.warning("%s is left out: it belongs to the %s part of the split", path, role)
            continue
        tiles += [tile for source in list_images(path) for tile in _cut(source, most, side)]
    return tiles


def _cut(source: str, most: int, side: int) -> Iterator[RealTile]:
    frame = read_frame(source)
    data = np.where(frame.mask & Bad.NO_DATA, np.float32(np.nan), frame.data)
    n_y, n_x = data.shape
    places = [(y, x) for y in _starts(n_y, side) for x in _starts(n_x, side)]
    for at in np.unique(np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)):
        y, x = places[at]
        part = np.ascontiguousarray(data[y : y + side, x : x + side])
        try:
            _require_sky(part)
            normalise(part)
        except InputError as problem:
            log.warning("%s, tile at row %d, column %d, is left out: %s", source, y, x, problem)
            continue
        yield RealTile(f"{image_name(source)}:{y}:{x}", image_name(path_of(source)), part)


def _starts(n: int, side: int) -> list[int]:
    if n < LEAST_TILE:
        return []
    count = max(n // side, 1)
    return [int(start) for start in np.linspace(0, max(n - side, 0), count).round()]


def _require_sky(part: NDArray[np.float32]) -> None:
    values = part[np.isfinite(part)]
    if values.size < part.size // 2:
        raise InputError("more than half of it has no value")
    if not np.median(np.abs(values - np.median(values))) > 0:
        raise InputError("half of its pixels have one value: there is no sky noise")


def make_example(name: str, base: RealTile | None, settings: ContaminantSettings) -> MaskExample:
    """The example of this name, which seeds every draw.

    Parameters
    ----------
    name
        ``sim-SEED-NUMBER``.
    base
        Real tile that contaminants are put into; None: everything is simulated.
    settings
        What is drawn.
    """
    made = draw(name, base, settings)
    seen = normalise(made.data)
    image = as_half(seen.data)
    truth, unknown = bits_of(made, seen.missing)
    trails = np.zeros((0, 0), np.uint8) if role_of(name) == "fit" else _canvas(made.trails, 0)
    return MaskExample(
        name,
        "" if base is None else base.name,
        _canvas(image, 0),
        _canvas(truth, BACKGROUND_BIT),
        _canvas(unknown, ALL_BITS),
        trails,
    )


def draw(name: str, base: RealTile | None, settings: ContaminantSettings) -> Contaminated:
    """The frame of an example as it was read out, and its truth; arguments as for `make_example`."""
    return contaminated_frame(
        np.random.default_rng(seeds_of(name)), settings, None if base is None else base.data
    )


def bits_of(made: Contaminated, missing: NDArray[np.bool_]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Truth and unknown of a frame; bit i is class i of `NAMES`, the background included.

    Nothing is asked about pixels that are `missing` from the normalised frame, such as those of a blank overscan strip.
    """
    truth = np.where(made.truth == 0, BACKGROUND_BIT, made.truth)
    unknown = made.ignore | np.where(made.background_unknown, BACKGROUND_BIT, np.uint16(0))
    unknown[missing] = ALL_BITS
    return truth, unknown


def _canvas(values: NDArray[Any], fill: int | np.uint16) -> NDArray[Any]:
    if values.shape == (TILE, TILE):
        return values
    canvas = np.full((TILE, TILE), fill, values.dtype)
    canvas[: values.shape[0], : values.shape[1]] = values
    return canvas


def _made(settings: ContaminantSettings, item: tuple[str, RealTile | None]) -> MaskExample:
    return make_example(*item, settings)


class MaskSource(PooledSource[MaskExample]):
    """Examples by role; see `PooledSource`.

    Parameters
    ----------
    simulation
        How many of which.
    tiles
        Of real frames; each is used in the role of its image only.
    share
        Of the examples that are made of a tile, where the role has one.
    jobs
        Processes.
    """

    simulation: SimulatedFrames

    def __init__(
        self, simulation: SimulatedFrames, tiles: Sequence[RealTile], share: float, jobs: int = 1
    ) -> None:
        super().__init__(simulation, jobs)
        self.share = share
        self._tiles: dict[Role, list[RealTile]] = {}
        for tile in tiles:
            self._tiles.setdefault(role_of(tile.image), []).append(tile)

    def tiles(self, role: Role) -> list[RealTile]:
        """Real tiles of a role."""
        return self._tiles.get(role, [])

    def base_of(self, name: str) -> RealTile | None:
        """The real tile that an example is made of, if it is made of one: its name decides."""
        tiles = self.tiles(role_of(name))
        rng = np.random.default_rng([*seeds_of(name), 1])
        if not tiles or rng.random() >= self.share:
            return None
        return tiles[int(rng.integers(len(tiles)))]

    def keys(self, role: Role, epochs: int) -> list[Key]:
        """Every example that a run of so many epochs shows in a role, and every tile it may be made of."""
        tiles = [Key("frames", _digest(tile.data), tile.name) for tile in self.tiles(role)]
        return super().keys(role, epochs) + tiles

    def _item(self, name: str) -> tuple[str, RealTile | None]:
        return name, self.base_of(name)

    def _maker(self, role: Role) -> Callable[[tuple[str, RealTile | None]], MaskExample]:
        del role
        return partial(_made, self.simulation.simulated())


def _digest(data: NDArray[np.float32]) -> int:
    return int(hashlib.sha256(data.astype("<f4").tobytes()).hexdigest()[:12], 16)


def open_source(recipe: MaskRecipe, paths: Sequence[Path], jobs: int = 1) -> MaskSource:
    """The examples of a recipe, with the user's frames.

    Raises
    ------
    UsageError
        The recipe has no simulation, which all examples need.
    InputError
        A file is no FITS image.
    """
    if recipe.simulation is None:
        raise UsageError(
            f"the recipe {recipe.name} needs its data source simulation: it makes the contaminants"
        )
    frames = recipe.frames
    if frames is None:
        return MaskSource(recipe.simulation, [], 0.0, jobs)
    tiles = tiles_of([*_sample_frames(frames), *files_in(paths)], frames.tiles, USED_ROLES)
    return MaskSource(recipe.simulation, tiles, frames.share, jobs)


def _sample_frames(frames: FrameData) -> list[Path]:
    from tapetum.core.samples import fetch_sample

    paths = [path for name in frames.samples for path in fetch_sample(name)]
    return [path for path in paths if ".fits" in path.name and "mskimg" not in path.name]
