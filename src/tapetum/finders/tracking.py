"""Did the telescope follow the sky? One probability per frame, from a network that judges it tile by tile.

Tiles without stars are not judged: a network has nothing to go by there, and MaxiTrack calls pure noise a tracking
error. A frame's probability is the mean of its judged tiles, each carried over to the frequency that is expected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from tapetum.core.errors import InputError, UsageError
from tapetum.finders.config import FinderConfig
from tapetum.finders.contaminants import at_prior, prior_odds
from tapetum.images._extract_kernels import XX, XY, YY, X, Y
from tapetum.images.extract import find_objects
from tapetum.images.normalise import normalise, normalise_original
from tapetum.models.runtime import Model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from tapetum.images.normalise import Normalised
    from tapetum.models.card import FrameContract

    Image = NDArray[np.float32]
    Values = NDArray[np.float64]
    Window = tuple[slice, slice]

MODEL = "tracking"
CLASS = "tracking_error"  # column of the network's first output
TRAIL = "trail"  # name of the output with the trail vector, where a network has one
PRIOR = 0.05  # of a tracking error
SIDES = (512, 1024, 2048)  # of tiles for a network that takes any: larger ones where stars are rare [pixel]
ORIGINAL_SIDE = 400
FEWEST_STARS = 3  # in a tile that is judged
STAR_SIGMA = 3.0  # of the smoothed image, in units of the noise of a pixel: no noise reaches it over 5 pixels
STAR_AREA = 5  # pixels above it

Tiling = Literal["covering", "original"]


class Config(FinderConfig):
    """Settings of the finder."""

    prior: float = Field(default=PRIOR, description="share of the frames that are expected to be trailed")
    fewest_stars: int = Field(default=FEWEST_STARS, ge=0, description="in a tile that is judged")
    tiling: Tiling = Field(
        default="covering", description="tiles that cover the frame; original: MaxiTrack's of 400 pixels"
    )
    normalisation: Literal["tapetum", "original"] = Field(
        default="tapetum", description="original: as MaxiTrack does it"
    )
    batch_size: int = Field(default=4, ge=1, description="tiles per run of the network")


@dataclass(frozen=True)
class TrackingVerdict:
    """What was found on one image; arrays have one value per tile, shape (n,).

    Attributes
    ----------
    x, y, n_x, n_y : ndarray of int64
        First column and row of each tile, and its sides [pixel].
    n_stars : ndarray of int64
        Sources in it.
    score : ndarray of float64
        As the network gives it; NaN where a tile was not judged, here and below.
    probability : ndarray of float64
        Of a tracking error, at the expected frequency.
    trail_x, trail_y : ndarray of float64
        Trail vector as measured on the sources [pixel], of two opposite ones that with its angle in [0, 180) deg;
        see `measured_trail`.
    network_x, network_y : ndarray of float64
        The same as the network sees it; NaN where it gives none.
    """

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    n_x: NDArray[np.int64]
    n_y: NDArray[np.int64]
    n_stars: NDArray[np.int64]
    score: Values
    probability: Values
    trail_x: Values
    trail_y: Values
    network_x: Values
    network_y: Values

    def __len__(self) -> int:
        return len(self.x)

    @property
    def judged(self) -> NDArray[np.bool_]:
        """Tiles with a probability, shape (n,)."""
        return np.isfinite(self.probability)

    @property
    def frame_probability(self) -> float:
        """Mean of the judged tiles; NaN where none is."""
        return float(self.probability[self.judged].mean()) if self.judged.any() else math.nan

    @property
    def trail_length(self) -> Values:
        """Length of the trail [pixel]."""
        return np.hypot(self.trail_x, self.trail_y)

    @property
    def trail_angle_deg(self) -> Values:
        """Direction of the trail from +x to +y, in [0, 180) [deg]."""
        return np.degrees(np.arctan2(self.trail_y, self.trail_x)) % 180.0

    @property
    def frame_trail(self) -> tuple[float, float]:
        """Length [pixel] and direction [deg] of the trail of the frame: of the tiles' mean, by their stars."""
        known = self.judged & np.isfinite(self.trail_x)
        if not known.any():
            return math.nan, math.nan
        length, twice = self.trail_length[known], np.radians(2 * self.trail_angle_deg[known])
        weight = self.n_stars[known].clip(1)
        cos, sin = (
            float(np.average(length * part, weights=weight)) for part in (np.cos(twice), np.sin(twice))
        )
        return math.hypot(cos, sin), math.degrees(math.atan2(sin, cos)) / 2 % 180.0


class Tracking:
    """The finder.

    Attributes
    ----------
    model
        The network.
    config
        Its settings.

    Raises
    ------
    InputError
        The network answers another question.
    UsageError
        A prior of 0 or 1.
    """

    def __init__(self, model: Model, config: Config | None = None, *, threads: int = 1) -> None:
        self.model = model
        self.config = config or Config()
        self.threads = threads
        contract = model.card.frame
        spec = next((entry for entry in model.card.classes if entry.name == CLASS), None)
        if contract is None or spec is None or model.card.outputs[0].per != "example":
            raise InputError(f"{model.card.name}: is no network that tells tracking errors of frames")
        self.contract: FrameContract = contract
        self._column = model.card.outputs[0].columns.index(CLASS)
        self._odds = prior_odds(spec.training_prior, checked_prior(self.config.prior))

    def find(
        self, data: NDArray[Any], bad: NDArray[Any] | None = None, *, saturation: float = np.inf
    ) -> TrackingVerdict:
        """Judge an image.

        Parameters
        ----------
        data : ndarray, shape (n_y, n_x)
            Image [DN or any linear unit], of any size.
        bad : ndarray, shape (n_y, n_x), optional
            Not 0 = without a value, as NaN and infinity are anyway.
        saturation
            Pixels hold no more than this [DN]; a frame with nothing else cannot be judged.

        Raises
        ------
        InputError
            The image cannot be judged: no values, one value, or saturated.
        ModelError
            The network does not give what its card says.
        """
        image = self._normalised(data, bad, saturation)
        stars = star_shapes(image.data, image.missing, threads=self.threads)
        tiles, n_stars = self._tiles(image.data.shape, stars)
        score = np.full(len(tiles), np.nan)
        trail = np.full((len(tiles), 2), np.nan)
        judged = np.flatnonzero(n_stars >= self.config.fewest_stars)
        for rows in _in_batches(judged, self.config.batch_size):
            found, vector = self._run(np.stack([_cut(image.data, tiles[i]) for i in rows])[:, None])
            score[rows] = found
            if vector is not None:
                trail[rows] = vector
        rows_at, columns_at = zip(*tiles, strict=True)
        probability = self.model.probability(score)
        if np.isnan(probability[judged]).all():  # a card without calibration: the score is taken as it is
            probability = score
        measured = np.array([measured_trail(stars[inside]) for inside in _within(stars, tiles)])
        measured[n_stars < self.config.fewest_stars] = np.nan
        vectors = np.concatenate([_unsigned(measured), _unsigned(trail)], axis=1).T
        return TrackingVerdict(
            x=np.array([part.start for part in columns_at]),
            y=np.array([part.start for part in rows_at]),
            n_x=np.array([part.stop - part.start for part in columns_at]),
            n_y=np.array([part.stop - part.start for part in rows_at]),
            n_stars=n_stars,
            score=score,
            probability=at_prior(probability, self._odds),
            trail_x=vectors[0],
            trail_y=vectors[1],
            network_x=vectors[2],
            network_y=vectors[3],
        )

    def _run(self, images: Image) -> tuple[Values, Image | None]:
        """Score and, where the network gives it, trail vector of tiles."""
        outputs = self.model.outputs({self.contract.name: images})
        first = outputs[self.model.card.outputs[0].name]
        return first[:, self._column].astype(np.float64), outputs.get(TRAIL)

    def _normalised(self, data: NDArray[Any], bad: NDArray[Any] | None, saturation: float) -> Normalised:
        if self.config.normalisation == "original":
            return normalise_original(data, bad, threads=self.threads)
        return normalise(data, bad, saturation=saturation, threads=self.threads)

    def _tiles(self, shape: Sequence[int], stars: Values) -> tuple[list[Window], NDArray[np.int64]]:
        """Tiles and the stars in each: the smallest tiles of which one at least has stars enough."""
        if self.config.tiling == "original":
            tiles = original_grid(shape, self.contract.side or ORIGINAL_SIDE)
            return tiles, count_within(stars, tiles)
        for side in SIDES if self.contract.side is None else (self.contract.side,):
            tiles = covering_grid(shape, side, exact=self.contract.side, multiple=self.contract.multiple)
            n_stars = count_within(stars, tiles)
            if n_stars.max() >= self.config.fewest_stars:
                break
        return tiles, n_stars


def load(model: str | None = None, config: Config | None = None, *, threads: int = 1) -> Tracking:
    """Load the finder.

    Parameters
    ----------
    model
        Name, ``name@version`` or path; None takes the network `tracking`.
    threads
        Of network, normalisation and the search for stars.

    Raises
    ------
    ModelError
        No such model, or its file, card and golden vectors do not fit together.
    InputError
        It answers another question.
    UsageError
        A prior of 0 or 1.
    """
    config = config or Config()
    checked_prior(config.prior)
    return Tracking(
        Model.load(model or MODEL, verify=config.verify, threads=threads), config, threads=threads
    )


def checked_prior(prior: float) -> float:
    """The prior, if it leaves room for doubt.

    Raises
    ------
    UsageError
        It is 0 or less, 1 or more, or no number.
    """
    if not 0 < prior < 1:
        raise UsageError(
            f"--prior {prior:g}: the share of frames with a tracking error must lie between 0 and 1, without both; "
            "0 and 1 would settle the answer before anything is looked at"
        )
    return prior


def star_shapes(image: Image, missing: NDArray[np.bool_], *, threads: int = 1) -> Values:
    """Sources of a normalised image, trailed or not.

    Returns
    -------
    ndarray of float64, shape (n, 4)
        Column and row of the centre [pixel]; difference of the second moments along x and y, and twice the mixed one
        [pixel^2], of the light above the threshold.
    """
    found = find_objects(
        image,
        1.0,
        missing.view(np.uint8),
        threshold=STAR_SIGMA,
        min_area=STAR_AREA,
        deblend_levels=2,
        clean=None,
        threads=threads,
    ).table
    return np.stack([found[:, X], found[:, Y], found[:, XX] - found[:, YY], 2 * found[:, XY]], axis=1)


def measured_trail(stars: Values) -> tuple[float, float]:
    r"""What most sources have in common: length times cosine and sine of twice the angle [pixel]; NaN without any.

    The medians of both moments say by how much the light is spread further along than across; a straight, even trail of
    length L does that by :math:`L^2 / 12`. Light below the threshold is not seen, so lengths come out about a quarter
    short, and optics that make stars long show here as well.

    Parameters
    ----------
    stars : ndarray of float64, shape (n, 4)
        As `star_shapes` gives them.
    """
    if not len(stars):
        return math.nan, math.nan
    along, across = np.median(stars[:, 2:], axis=0).tolist()
    excess = math.hypot(along, across)
    scale = math.sqrt(12 / excess) if excess > 0 else 0.0
    return scale * along, scale * across


def _unsigned(vectors: Values) -> Values:
    """Trail vectors at the angle itself, in [0, 180) deg, from those at twice the angle."""
    length, half = np.hypot(*vectors.T), np.arctan2(vectors[:, 1], vectors[:, 0]) / 2 % np.pi
    return np.stack([length * np.cos(half), length * np.sin(half)], axis=1)


def _within(stars: Values, tiles: Sequence[Window]) -> Iterator[NDArray[np.bool_]]:
    """Which sources lie in each tile."""
    x, y = stars[:, 0], stars[:, 1]
    for rows, columns in tiles:
        yield (
            (x >= columns.start - 0.5)
            & (x < columns.stop - 0.5)
            & (y >= rows.start - 0.5)
            & (y < rows.stop - 0.5)
        )


def count_within(stars: Values, tiles: Sequence[Window]) -> NDArray[np.int64]:
    """How many sources lie in each tile."""
    return np.array([np.count_nonzero(inside) for inside in _within(stars, tiles)], np.int64)


def covering_grid(
    shape: Sequence[int], side: int, *, exact: int | None = None, multiple: int = 1
) -> list[Window]:
    """Tiles of one size that cover an image, with as little overlap as their size allows.

    Parameters
    ----------
    shape
        (n_y, n_x) [pixel].
    side
        Longest side of a tile [pixel].
    exact
        The only side that fits; None: what covers the image evenly. Tiles may reach beyond a smaller image.
    multiple
        Of which the sides are multiples.
    """
    axes = []
    for n in shape:
        count = math.ceil(n / side)
        length = exact or math.ceil(n / count / multiple) * multiple
        starts = np.linspace(0, max(n - length, 0), count).round().astype(int)
        axes.append([slice(int(start), int(start) + length) for start in starts])
    return [(rows, columns) for rows in axes[0] for columns in axes[1]]


def original_grid(shape: Sequence[int], side: int = ORIGINAL_SIDE) -> list[Window]:
    """MaxiTrack's tiles: side by side up to the upper right corner; what is left over below and left is not seen."""
    axes = [range(n % side, n, side) if n >= side else range(1) for n in shape]
    return [(slice(y, y + side), slice(x, x + side)) for y in axes[0] for x in axes[1]]


def _cut(image: Image, tile: Window) -> Image:
    """A tile, with zeros where it reaches beyond the image."""
    part = image[tile]
    wanted = tuple(side.stop - side.start for side in tile)
    if part.shape == wanted:
        return part
    return np.pad(part, [(0, n - there) for n, there in zip(wanted, part.shape, strict=True)])


def _in_batches(rows: NDArray[np.intp], size: int) -> Iterator[NDArray[np.intp]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
