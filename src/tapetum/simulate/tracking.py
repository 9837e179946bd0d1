r"""Star fields of telescopes that followed the sky, and of telescopes that did not, with the truth.

A tracking error moves every source of a frame along one and the same path during the exposure: the stars become
copies of the path. What else makes stars long - optics, spikes, satellites, particles, galaxies - either leaves some
sources round or has no common path, and is drawn here as well so that a network learns the difference.

Everything is in units of the sky noise: pixels are :math:`(I - sky) / \sigma`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tapetum.simulate.inject import spikes_patch
from tapetum.simulate.scene import SERSIC_INDICES, galaxy_points
from tapetum.simulate.stamping import MoffatField, TabulatedPsf, bleed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Image = NDArray[np.float32]
Values = NDArray[np.float64]
PathKind = Literal["straight", "uneven", "curved", "wave", "jump", "drift_jump", "zigzag"]

PATHS: tuple[PathKind, ...] = get_args(PathKind)
TRACKED_BELOW = 0.3  # rms of the path along its long axis over the sigma of a star: well tracked, e < 0.04
ERROR_FROM = 0.6  # the same: a tracking error, e > 0.14
FAINTEST = 0.02  # of the sky noise: light that nobody sees
VISIBLE_SNR = 10.0  # of a star that shows its shape
FEWEST_STARS = 3  # visible, for a trailed frame to be told from a tracked one


@dataclass(frozen=True)
class Path:
    """Where a star stood on the detector during the exposure, relative to its mean place.

    Attributes
    ----------
    x, y : ndarray of float64, shape (n,)
        Places [pixel].
    weight : ndarray of float64, shape (n,)
        Share of the exposure, sum 1.
    """

    x: Values
    y: Values
    weight: Values

    @property
    def covariance(self) -> tuple[float, float, float]:
        """Second moments xx, yy, xy about the mean place [pixel^2]."""
        dx, dy = self.x - self.weight @ self.x, self.y - self.weight @ self.y
        return float(self.weight @ dx**2), float(self.weight @ dy**2), float(self.weight @ (dx * dy))

    @property
    def rms(self) -> float:
        """Along the long axis [pixel]."""
        xx, yy, xy = self.covariance
        return math.sqrt(max((xx + yy) / 2 + math.hypot((xx - yy) / 2, xy), 0.0))

    @property
    def length_pix(self) -> float:
        r"""Of the straight, even trail with the same extent: :math:`\sqrt{12}` times the rms [pixel]."""
        return math.sqrt(12) * self.rms

    @property
    def angle(self) -> float:
        """Of the long axis, from +x to +y, in [0, pi) [rad]."""
        xx, yy, xy = self.covariance
        return (0.5 * math.atan2(2 * xy, xx - yy)) % math.pi

    @property
    def vector(self) -> tuple[float, float]:
        r"""What makes the stars long: a length times cosine and sine of twice its angle [pixel].

        The length is :math:`\sqrt{12 (\lambda_1 - \lambda_2)}`, from the variances along and across. Of a straight,
        even trail that is its length, whichever way it was drawn; where the path is as broad as long it is nothing.
        """
        xx, yy, xy = self.covariance
        excess = math.hypot(xx - yy, 2 * xy)  # of the variance along the long axis over that across
        scale = math.sqrt(12 / excess) if excess > 0 else 0.0
        return scale * (xx - yy), scale * 2 * xy


EXTRAS: Mapping[str, float] = {
    "arms": 0.3, "coma": 0.25, "defocus": 0.08, "galaxies": 0.5, "bright": 0.4, "bleeding": 0.5, "satellite": 0.15,
    "particles": 0.4, "defects": 0.25, "correlated": 0.3, "structure": 0.3, "missing": 0.1, "pairs": 0.2,
}  # fmt: skip
"""Things that make a frame harder -> share of the frames that have them."""

STILL = Path(np.zeros(1), np.zeros(1), np.ones(1))


@dataclass(frozen=True)
class TrackingFrame:
    """A frame and what is true of it.

    Attributes
    ----------
    data : ndarray of float32, shape (n_y, n_x)
        Light above the sky [sky noise]; NaN where there is no value.
    path
        That all its stars share.
    sigma
        Width of a star that does not move: seeing, pixel and focus [pixel].
    n_visible
        Unsaturated stars bright enough to show their shape.
    tags
        What was put in, in words.
    """

    data: Image = field(repr=False)
    path: Path = field(repr=False)
    sigma: float
    n_visible: int
    tags: frozenset[str] = frozenset()

    @property
    def elongation(self) -> float:
        """Rms of the path along its long axis over the width of a star."""
        return self.path.rms / self.sigma

    @property
    def error(self) -> float:
        """1: a tracking error; 0: none; NaN: in between, or trailed but with too few stars to see it."""
        if not self.tags & {"stars"} or self.elongation <= TRACKED_BELOW:
            return 0.0
        return 1.0 if self.elongation >= ERROR_FROM and self.n_visible >= FEWEST_STARS else math.nan


@dataclass(frozen=True)
class TilePsf(MoffatField):
    """A PSF as one tile of a detector sees it: Moffat, the same coma everywhere, diffraction arms.

    Attributes
    ----------
    slant : (float, float)
        Coma along x and y, relative asymmetry.
    arms, arm_share, arm_angle, arm_ratio
        How many; their light over that of the star; direction of the first [rad]; light of every other pair over
        that of the first.
    """

    slant: tuple[float, float] = (0.0, 0.0)
    arms: int = 0
    arm_share: float = 0.0
    arm_angle: float = 0.0
    arm_ratio: float = 1.0

    def profile(self, u: float, v: float, x: Image, y: Image) -> Image:
        """Brightness at offsets (x, y) [pixel] from a star, peak about 1, before the pixel."""
        light = super().profile(u, v, x, y)
        radius = np.sqrt(x**2 + y**2)
        if any(self.slant):
            light *= 1 + (self.slant[0] * x + self.slant[1] * y) / (self.fwhm + radius)
        if self.arms:
            # the light of a Moffat profile of peak 1 over that of one arm of ridge 1
            alpha2 = (self.fwhm / 2) ** 2 / (2 ** (1 / self.beta) - 1)
            sigma, slope = self.fwhm / 2.3548, 1.8
            unit = (
                math.pi
                * alpha2
                / (self.beta - 1)
                / (math.sqrt(2 * math.pi) * sigma * self.fwhm / (slope - 1))
            )
            for arm in range(self.arms // 2):  # each goes both ways
                angle = self.arm_angle + math.pi * arm / (self.arms / 2)
                along = x * math.cos(angle) + y * math.sin(angle)
                across = y * math.cos(angle) - x * math.sin(angle)
                ridge = self.arm_share / self.arms * unit * (self.arm_ratio if arm % 2 else 1.0)
                light += (
                    ridge * (1 + np.abs(along) / self.fwhm) ** -slope * np.exp(-((across / sigma) ** 2) / 2)
                )
        return np.asarray(light, np.float32)


def draw_path(kind: PathKind, length_pix: float, step: float, rng: np.random.Generator) -> Path:
    """A path of a given kind and length, in any direction.

    Parameters
    ----------
    kind
        ``straight``: at constant speed; ``uneven``: at a changing one; ``curved``: an arc of up to 2/3 turn;
        ``wave``: to and fro, sinusoidal; ``jump``: two places; ``drift_jump``: a drift, then another place;
        ``zigzag``: drifts in several directions.
    length_pix
        Of the straight, even trail with the same rms along its long axis [pixel].
    step
        Largest distance between neighbouring places [pixel]; with less than the sigma of a star the copies merge.
    rng
        Source of direction and shape.
    """
    n = max(2, math.ceil(3 * length_pix / step) + 1)
    time = (np.arange(n) + 0.5) / n
    x, y = _shape(kind, time, rng)
    turn = float(rng.uniform(0, 2 * math.pi))
    x, y = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
    path = Path(x, y, np.full(n, 1 / n))
    scale = length_pix / max(path.length_pix, 1e-9)
    x, y = (scale * (value - value.mean()) for value in (x, y))
    return _merged(x, y, step / 2)


def _shape(kind: PathKind, time: Values, rng: np.random.Generator) -> tuple[Values, Values]:
    """The course of a path, of any scale."""
    still = np.zeros_like(time)
    if kind == "straight":
        return time, still
    if kind == "uneven":
        return time ** float(math.exp(rng.uniform(-1.1, 1.1))), still
    if kind == "curved":
        angle = float(rng.uniform(0.5, 4.0)) * time
        return np.cos(angle), np.sin(angle)
    if kind == "wave":
        turns = float(rng.uniform(0.5, 4))
        return np.sin(2 * math.pi * turns * time + rng.uniform(0, 6.28)), float(rng.uniform(0, 0.4)) * time
    if kind == "jump":
        return (time > rng.uniform(0.15, 0.85)).astype(np.float64), still
    if kind == "drift_jump":
        late = (time > rng.uniform(0.2, 0.8)).astype(np.float64)
        return time + late * float(rng.uniform(0.3, 2.0)), late * float(rng.normal(0, 0.7))
    corners = np.sort(rng.random(int(rng.integers(1, 4))))
    leg = np.searchsorted(corners, time)
    heading: Values = rng.uniform(0, 2 * math.pi, len(corners) + 1)[leg]
    return np.asarray(np.cumsum(np.cos(heading)), np.float64), np.asarray(
        np.cumsum(np.sin(heading)), np.float64
    )


def _merged(x: Values, y: Values, cell: float) -> Path:
    """The same path with one place per cell of a grid."""
    key = np.floor(x / cell).astype(np.int64) * 100_003 + np.floor(y / cell).astype(np.int64)
    _, where, count = np.unique(key, return_inverse=True, return_counts=True)
    weight = count / len(x)
    return Path(np.bincount(where, x) / count, np.bincount(where, y) / count, weight)


def disc(radius: float, hole: float, step: float) -> Path:
    """The pupil of a telescope out of focus as a set of places: a ring without a long axis.

    Parameters
    ----------
    radius, hole
        Of the ring [pixel], and of its hole over it.
    step
        Distance of neighbouring places [pixel].
    """
    n = max(12, math.ceil(math.pi * radius**2 / step**2))
    share = (np.arange(n) + 0.5) / n
    r = radius * np.sqrt(hole**2 + share * (1 - hole**2))
    turn = np.arange(n) * math.pi * (3 - math.sqrt(5))
    return Path(r * np.cos(turn), r * np.sin(turn), np.full(n, 1 / n))


@dataclass(frozen=True)
class TrackingSettings:
    """What frames are drawn from; pairs are ranges, log-uniform where both are positive.

    Attributes
    ----------
    shape
        (n_y, n_x) [pixel].
    fwhm
        Seeing before the pixel [pixel].
    length_pix
        Of a trailed frame's path.
    density
        Stars with a signal-to-noise above 5, per 256 x 256 pixels.
    trailed
        Share of the frames with a tracking error.
    empty
        Share of the frames without any star.
    kinds
        Of paths, and how often.
    extras
        Things that make a frame harder -> share of the frames that have them.
    """

    shape: tuple[int, int] = (256, 256)
    fwhm: tuple[float, float] = (1.2, 8.0)
    length_pix: tuple[float, float] = (0.5, 25.0)
    density: tuple[float, float] = (8.0, 400.0)
    trailed: float = 0.6
    empty: float = 0.06
    kinds: Sequence[PathKind] = ("straight", "straight", *PATHS)
    extras: Mapping[str, float] = field(default_factory=lambda: dict(EXTRAS))


def tracking_frame(
    settings: TrackingSettings, rng: np.random.Generator, *, path: Path | None = None
) -> TrackingFrame:
    """Draw a frame.

    Parameters
    ----------
    settings
        What is drawn, and how often.
    rng
        Source of everything random.
    path
        The path of the stars; None: drawn as the settings say.
    """
    tags = {name for name, share in settings.extras.items() if rng.random() < share}
    if rng.random() >= settings.empty:
        tags.add("stars")
    fwhm = _log_uniform(rng, settings.fwhm)
    sigma = math.hypot(fwhm / 2.3548, math.sqrt(1 / 12))
    blur = STILL
    if "defocus" in tags:
        blur = disc(float(rng.uniform(1.0, 3.5)) * sigma, float(rng.uniform(0, 0.6)), sigma)
        sigma = math.hypot(sigma, blur.rms)
    if path is None:
        path = _any_path(settings, sigma, rng)
    light = np.zeros(settings.shape, np.float32)
    electrons = _log_uniform(rng, (3, 300))  # per unit of the sky noise
    full = _log_uniform(rng, (100, 20_000))
    n_visible = 0
    if "stars" in tags:
        course = _convolved(path, blur)
        n_visible = _add_sky(light, course, fwhm, sigma, full, tags, settings, rng)
    if "satellite" in tags:
        _add_satellite(light, fwhm, rng)
    if "structure" in tags:
        light += _structure(settings.shape, rng)
    _expose(light, electrons, full, tags, rng)
    if not tags & {"stars"}:
        path = STILL
    return TrackingFrame(light, path, sigma, n_visible, frozenset(tags))


def _log_uniform(rng: np.random.Generator, span: tuple[float, float]) -> float:
    return math.exp(rng.uniform(math.log(span[0]), math.log(span[1])))


def _any_path(settings: TrackingSettings, sigma: float, rng: np.random.Generator) -> Path:
    """Trailed, still, or nearly still."""
    least = max(settings.length_pix[0], 0.8 * ERROR_FROM * math.sqrt(12) * sigma)
    if rng.random() < settings.trailed:
        length = _log_uniform(rng, (min(least, settings.length_pix[1]), settings.length_pix[1]))
    elif rng.random() < 0.5:
        return STILL
    else:
        length = TRACKED_BELOW * math.sqrt(12) * sigma * float(rng.random())
    return draw_path(settings.kinds[int(rng.integers(len(settings.kinds)))], length, sigma, rng)


def _convolved(one: Path, two: Path) -> Path:
    return Path(
        (one.x[:, None] + two.x).ravel(),
        (one.y[:, None] + two.y).ravel(),
        (one.weight[:, None] * two.weight).ravel(),
    )


def draw_psf(fwhm: float, tags: set[str], rng: np.random.Generator) -> TilePsf:
    """Optics of a tile: an ellipticity of a few per cent, seldom up to 0.1; coma and arms where the tags say so."""
    ellipticity, angle = min(float(rng.rayleigh(0.03)), 0.1), float(rng.uniform(0, 2 * math.pi))
    coma, towards = (
        (float(rng.uniform(0.05, 0.5)) if "coma" in tags else 0.0),
        float(rng.uniform(0, 2 * math.pi)),
    )
    return TilePsf(
        fwhm=fwhm,
        beta=float(rng.uniform(2.2, 5.0)),
        e1=(ellipticity * math.cos(angle), 0, 0),
        e2=(ellipticity * math.sin(angle), 0, 0),
        aureole=float(rng.uniform(0, 0.02)),
        slant=(coma * math.cos(towards), coma * math.sin(towards)),
        arms=int(rng.choice([4, 4, 6, 8])) if "arms" in tags else 0,
        arm_share=_log_uniform(rng, (0.005, 0.15)),
        arm_angle=float(rng.choice([0.0, math.pi / 4, rng.uniform(0, math.pi)])),
        arm_ratio=float(rng.choice([1.0, rng.uniform(0.1, 1.0)])),
    )


def _add_sky(
    light: Image,
    course: Path,
    fwhm: float,
    sigma: float,
    full: float,
    tags: set[str],
    settings: TrackingSettings,
    rng: np.random.Generator,
) -> int:
    """Add stars and galaxies, all along one course; how many stars show their shape."""
    n_y, n_x = light.shape
    psf = TabulatedPsf.of_field(draw_psf(fwhm, tags, rng), settings.shape)
    width = math.sqrt(4 * math.pi) * sigma  # noise of the flux of a star that does not move
    area = (n_y + 40) * (n_x + 40) / 65_536
    n_stars = 1 + int(rng.poisson(area * _log_uniform(rng, settings.density)))
    slope = float(rng.uniform(0.6, 1.1))
    flux = np.minimum(5 * width * rng.random(n_stars) ** (-1 / slope), 1e7)
    if "bright" in tags:
        flux[0] = full * sigma**2 * _log_uniform(rng, (3, 300))
    x, y = rng.uniform(-20, n_x + 20, n_stars), rng.uniform(-20, n_y + 20, n_stars)
    if "pairs" in tags:  # true neighbours look like a jump, but each pair has its own direction
        second = rng.random(n_stars) < 0.25
        near = rng.integers(n_stars, size=n_stars)
        x = np.where(second, x[near] + rng.normal(0, 3 * sigma, n_stars), x)
        y = np.where(second, y[near] + rng.normal(0, 3 * sigma, n_stars), y)
    points = [(x, y, flux)]
    if "galaxies" in tags:
        points.append(_galaxies(light.shape, n_stars, width, sigma, slope, rng))
    _stamp(light, psf, course, points)
    _long_spikes(light, course, (x, y, flux), full, fwhm, tags, rng)
    trailed = math.sqrt(sigma**2 + course.rms**2) / sigma
    shows = (flux > VISIBLE_SNR * width * math.sqrt(trailed)) & (flux < 6 * full * sigma**2 * trailed)
    inside = (x > 0) & (x < n_x - 1) & (y > 0) & (y < n_y - 1)
    return int((shows & inside).sum())


def _galaxies(
    shape: tuple[int, ...], n_stars: int, width: float, sigma: float, slope: float, rng: np.random.Generator
) -> tuple[Values, Values, Values]:
    n = int(rng.poisson(min(n_stars, 80) * rng.uniform(0.1, 1.5)))
    flux = np.minimum(8 * width * rng.random(n) ** (-1 / slope), 300 * width)
    radius = sigma * np.exp(rng.normal(0.5, 0.6, n))
    x, y, part, _ = galaxy_points(
        rng.uniform(-20, shape[1] + 20, n), rng.uniform(-20, shape[0] + 20, n), flux, radius,
        rng.uniform(0.2, 1, n), rng.uniform(0, math.pi, n), rng.choice(SERSIC_INDICES, n), 0.5 * width,
    )  # fmt: skip
    return x, y, part


def _stamp(
    light: Image, psf: TabulatedPsf, course: Path, points: Sequence[tuple[Values, Values, Values]]
) -> None:
    x, y, flux = (np.concatenate(parts) for parts in zip(*points, strict=True))
    psf.add(
        light,
        (x[:, None] + course.x).ravel(),
        (y[:, None] + course.y).ravel(),
        (flux[:, None] * course.weight).ravel(),
        faintest=FAINTEST,
    )


def _long_spikes(
    light: Image,
    course: Path,
    stars: tuple[Values, Values, Values],
    full: float,
    fwhm: float,
    tags: set[str],
    rng: np.random.Generator,
) -> None:
    """Spikes of the brightest stars that reach beyond their stamps."""
    if not tags & {"bright"} or rng.random() < 0.3:
        return
    share, turn = _log_uniform(rng, (0.002, 0.03)), float(rng.choice([0, 45, rng.uniform(0, 90)]))
    arms = int(rng.choice([4, 4, 6, 8]))
    places = np.linspace(0, len(course.x) - 1, min(len(course.x), 12)).astype(int)
    for star in np.argsort(-stars[2])[:3]:
        x, y, flux = (float(values[star]) for values in stars)
        if flux < full * fwhm**2:
            return
        for place in places:
            patch = spikes_patch(
                x + course.x[place], y + course.y[place], flux * share / len(places), fwhm, arms, turn, 0.1
            )
            covered = patch.on((light.shape[0], light.shape[1]))
            if covered is not None:
                light[covered[0]] += covered[1]


def _add_satellite(light: Image, fwhm: float, rng: np.random.Generator) -> None:
    """One to three satellites, which cross frames that were tracked and frames that were not."""
    n_y, n_x = light.shape
    rows, columns = np.ogrid[:n_y, :n_x]
    for _ in range(int(rng.integers(1, 4))):
        angle, x, y = rng.uniform(0, math.pi), rng.uniform(0, n_x), rng.uniform(0, n_y)
        off = (columns - x) * math.sin(angle) - (rows - y) * math.cos(angle)
        width = fwhm / 2.3548 * float(rng.uniform(1, 2.5))
        light += np.float32(_log_uniform(rng, (1, 60))) * np.exp(-((off / width) ** 2) / 2).astype(np.float32)


def _structure(shape: tuple[int, int], rng: np.random.Generator) -> Image:
    """What a sky subtraction leaves: a slope and clouds."""
    from scipy.ndimage import zoom

    coarse = rng.normal(0, rng.uniform(0.1, 1.0), (5, 5))
    return np.asarray(
        zoom(coarse, (shape[0] / 5, shape[1] / 5), order=3, grid_mode=True, mode="nearest"), np.float32
    )


def _expose(light: Image, electrons: float, full: float, tags: set[str], rng: np.random.Generator) -> None:
    """Photon noise, full pixels, and what the detector adds, in place."""
    noise = rng.standard_normal(light.shape, np.float32)
    if "correlated" in tags:  # resampled
        from scipy.ndimage import gaussian_filter

        noise = gaussian_filter(noise, float(rng.uniform(0.35, 0.9)))
        noise /= noise.std()
    light += noise * np.sqrt(1 + np.maximum(light, 0) / np.float32(electrons))
    if "particles" in tags:
        _add_particles(light, rng)
    if "bleeding" in tags:
        bleed(light, full)
    else:
        np.minimum(light, np.float32(full), out=light)
    if "defects" in tags:
        _add_defects(light, full, rng)
    if "missing" in tags:
        _lose(light, rng)


def _add_particles(light: Image, rng: np.random.Generator) -> None:
    """Tracks one pixel wide, of any direction and length."""
    n_y, n_x = light.shape
    for _ in range(int(math.exp(rng.uniform(0.7, 4.5)) * light.size / 65_536)):
        length, angle = float(rng.exponential(6)), float(rng.uniform(0, 2 * math.pi))
        place = np.arange(0, max(length, 0.3), 0.25)
        x = np.floor(rng.uniform(0, n_x) + place * math.cos(angle)).astype(int)
        y = np.floor(rng.uniform(0, n_y) + place * math.sin(angle)).astype(int)
        inside = (x >= 0) & (x < n_x) & (y >= 0) & (y < n_y)
        np.add.at(light, (y[inside], x[inside]), np.float32(_log_uniform(rng, (2, 200))))


def _add_defects(light: Image, full: float, rng: np.random.Generator) -> None:
    """Hot and dead pixels, columns."""
    n_y, n_x = light.shape
    n = int(rng.integers(0, 60))
    rows, columns = rng.integers(n_y, size=n), rng.integers(n_x, size=n)
    light[rows, columns] = np.minimum(np.exp(rng.uniform(1, 7, n)), full) * rng.choice([1, -0.02], n)
    for _ in range(int(rng.integers(0, 4))):
        along = slice(int(rng.integers(n_y)), None)
        value = np.float32(rng.choice([-1, 1]) * _log_uniform(rng, (2, 100)))
        if rng.random() < 0.8:
            light[along, int(rng.integers(n_x))] += value
        else:
            light[int(rng.integers(n_y)), along] += value


def _lose(light: Image, rng: np.random.Generator) -> None:
    """A border or a rectangle without values."""
    n_y, n_x = light.shape
    if rng.random() < 0.5:
        light[: int(rng.integers(1, n_y // 2))] = np.nan
        return
    row, column = int(rng.integers(n_y)), int(rng.integers(n_x))
    light[row : row + int(rng.integers(8, n_y)), column : column + int(rng.integers(8, n_x))] = np.nan


def as_network_sees(frame: TrackingFrame, rng: np.random.Generator) -> Image:
    """The frame as the estimate of a sky leaves it, a little off in level and noise; 0 where there is no value."""
    level, noise = np.float32(rng.normal(0.05, 0.1)), np.float32(math.exp(rng.normal(0.03, 0.08)))
    return np.asarray(np.nan_to_num((frame.data - level) / noise, nan=0.0), np.float32)


def describe(frame: TrackingFrame) -> dict[str, Any]:
    """What is true of a frame, for tables."""
    return {
        "error": frame.error, "length_pix": frame.path.length_pix, "angle": frame.path.angle, "sigma": frame.sigma,
        "elongation": frame.elongation, "n_visible": frame.n_visible, "tags": " ".join(sorted(frame.tags)),
    }  # fmt: skip
