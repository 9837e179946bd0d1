"""What is put into an image: sources drawn at random, each fully described by its numbers.

Magnitudes become DN by the zero point of the image, flux = 10^(-0.4 (mag - zero point)). Things without a
magnitude - particles, columns, ghosts - are drawn in units of the image's own noise or in electrons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tapetum.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tapetum.images.frame import Image

Values = NDArray[np.float64]

MOVING = ("streak", "comet", "satellite")
ARTEFACTS = ("ghost", "cosmic_ray", "bad_column", "hot_pixel")
KINDS = ("transient", *MOVING, "bright_star", *ARTEFACTS)
APART_KINDS = ("transient", "streak", "comet")  # what a search is to find: two at one place are one detection
APART_FWHM = 5.0
APART_TRIES = 30  # then it is too crowded to keep them apart
HOST_REACH = 2.5  # of a host's Kron-like ellipse, in units of its rms axes
HOST_WIDTH, MOST_WIDTH = 1.35, 12.0  # a source this much wider than a star is taken as a galaxy, if its
HOST_SNR = 20.0  # signal-to-noise says that the width means something
MOST_HOSTS = 2000


@dataclass(frozen=True)
class Source:
    """One thing to be put into an image; NaN where a number means nothing for its kind.

    Attributes
    ----------
    kind
        One of `KINDS`.
    x, y
        Where it is, 0-based: of a trail the middle, of a comet the nucleus, of a column its first pixel [pixel].
    flux
        All its light [DN]; of a comet nucleus, coma and tail together; of a bad column the level that is added.
    length_pix, angle_deg
        Trail: length [pixel], direction from +x to +y. Column: its length.
    width_pix
        Satellite: diameter of its out-of-focus disc; ghost: radius of the annulus [pixel].
    hole
        Ghost: inner over outer radius.
    variation, period_pix, phase
        Satellite: amplitude (0 steady, 1 down to nothing), period along the trail [pixel] and phase [rad] of its
        brightness; glints are narrow where `sharpness` is large.
    sharpness
        Power to which the wave of a satellite's brightness is raised.
    coma_slope, coma_radius_pix, coma_fan
        Comet: k of rho^-k; radius of the Gaussian cut-off [pixel]; amplitude of the cosine around `tail_angle_deg`.
    nucleus_fraction, tail_fraction
        Comet: shares of the flux; the rest is coma.
    tail_length_pix, tail_angle_deg, tail_curvature, tail_width_pix, tail_growth
        Comet: exponential scale [pixel]; direction at the nucleus from +x to +y; bend c of v = c s^2 [1 / pixel];
        width at the nucleus [pixel]; power of the growth of the width with distance.
    arms, arm_fraction
        Bright star: number of diffraction spikes and their share of the flux (on top of it).
    host_x, host_y, host_flux
        The galaxy under a transient [pixel, DN].
    """

    kind: str
    x: float
    y: float
    flux: float
    length_pix: float = math.nan
    angle_deg: float = math.nan
    width_pix: float = math.nan
    hole: float = math.nan
    variation: float = math.nan
    period_pix: float = math.nan
    phase: float = math.nan
    sharpness: float = math.nan
    coma_slope: float = math.nan
    coma_radius_pix: float = math.nan
    coma_fan: float = math.nan
    nucleus_fraction: float = math.nan
    tail_fraction: float = math.nan
    tail_length_pix: float = math.nan
    tail_angle_deg: float = math.nan
    tail_curvature: float = math.nan
    tail_width_pix: float = math.nan
    tail_growth: float = math.nan
    arms: float = math.nan
    arm_fraction: float = math.nan
    host_x: float = math.nan
    host_y: float = math.nan
    host_flux: float = math.nan

    def ends(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 of a trail; NaN for what has no length [pixel]."""
        dx = 0.5 * self.length_pix * math.cos(math.radians(self.angle_deg))
        dy = 0.5 * self.length_pix * math.sin(math.radians(self.angle_deg))
        return self.x - dx, self.y - dy, self.x + dx, self.y + dy


@dataclass(frozen=True)
class Hosts:
    """Galaxies of an image, and their light, on which transients can be put.

    Attributes
    ----------
    x, y, flux, a, b, theta : ndarray of float64, shape (n,)
        Centre [pixel], flux [DN], rms axes [pixel], direction of the long axis from +x to +y [rad].
    light : ndarray of float32, shape (n_y, n_x)
        The image without its background [DN]; NaN where a pixel cannot be used.
    """

    x: Values
    y: Values
    flux: Values
    a: Values
    b: Values
    theta: Values
    light: Image = field(repr=False)

    def __len__(self) -> int:
        return len(self.x)

    def place_on(self, which: int, rng: np.random.Generator) -> tuple[float, float]:
        """A position on a host, drawn in proportion to the light that its pixels really have."""
        reach = math.ceil(HOST_REACH * float(self.a[which])) + 1
        column, row = round(float(self.x[which])), round(float(self.y[which]))
        y0, x0 = max(row - reach, 0), max(column - reach, 0)
        part = self.light[y0 : row + reach + 1, x0 : column + reach + 1]
        dy, dx = np.mgrid[: part.shape[0], : part.shape[1]].astype(np.float64)
        dx, dy = dx + x0 - self.x[which], dy + y0 - self.y[which]
        cos, sin = math.cos(self.theta[which]), math.sin(self.theta[which])
        along, across = (dx * cos + dy * sin) / self.a[which], (dy * cos - dx * sin) / self.b[which]
        inside = along**2 + across**2 <= HOST_REACH**2
        weight = np.where(inside, np.nan_to_num(np.maximum(part, 0), nan=0.0), 0).astype(np.float64).ravel()
        if not weight.sum() > 0:
            return float(self.x[which]), float(self.y[which])
        pixel = int(rng.choice(weight.size, p=weight / weight.sum()))
        jitter = rng.uniform(-0.5, 0.5, 2)
        return x0 + pixel % part.shape[1] + float(jitter[0]), y0 + pixel // part.shape[1] + float(jitter[1])


@dataclass(frozen=True)
class Conditions:
    """What sources are drawn for.

    Attributes
    ----------
    shape
        (n_y, n_x) of the image [pixel].
    zero_point
        Magnitude of 1 DN.
    mag_range
        Of whatever has a magnitude, drawn evenly.
    fwhm_pix
        Seeing [pixel].
    sky_noise
        rms of a sky pixel [DN].
    gain
        Electrons per DN.
    saturation
        Level above the sky at which a pixel is full [DN].
    usable : ndarray of bool, shape `shape`, or None
        Pixels on which a source may be centred; None: all.
    hosts, on_galaxies
        Galaxies, and which part of the transients lies on one, as long as there is a galaxy for each.
    apart_fwhm
        Least distance of transients, streaks and comets from one another, where there is room for it [FWHM]; 0: none.
    """

    shape: tuple[int, int]
    zero_point: float
    mag_range: tuple[float, float] = (14.0, 23.0)
    fwhm_pix: float = 2.5
    sky_noise: float = 1.0
    gain: float = 1.0
    saturation: float = math.inf
    usable: NDArray[np.bool_] | None = None
    hosts: Hosts | None = None
    on_galaxies: float = 0.0
    apart_fwhm: float = APART_FWHM


def draw_sources(counts: Mapping[str, int], conditions: Conditions, rng: np.random.Generator) -> list[Source]:
    """Draw sources of several kinds.

    Parameters
    ----------
    counts
        Kind -> how many. A kind's sources do not depend on which other kinds are wanted, but for those that would come
        too near to one of another kind.
    conditions
        What they are drawn for.
    rng
        Source of every random choice.

    Raises
    ------
    UsageError
        There is no such kind.
    InputError
        A kind needs something that this image does not have.
    """
    unknown = sorted(set(counts) - set(KINDS))
    if unknown:
        raise UsageError(f"{', '.join(unknown)}: no such kind of source; known: {', '.join(KINDS)}")
    drawn: list[Source] = []
    room = Room(conditions.apart_fwhm * conditions.fwhm_pix, conditions.fwhm_pix)
    for kind, own in zip(KINDS, rng.spawn(len(KINDS)), strict=True):
        draw = _transients(conditions, own) if kind == "transient" else partial(_DRAW[kind], conditions)
        for one in own.spawn(counts.get(kind, 0)):
            source = draw(one)
            for _ in range(APART_TRIES if kind in APART_KINDS else 0):
                if room.is_free(source):
                    break
                source = draw(one)
            if kind in APART_KINDS:
                room.take(source)
            drawn.append(source)
    return drawn


class Room:
    """Where sources are already, so that others keep away from them.

    Parameters
    ----------
    apart
        Least distance [pixel]; 0: everywhere is free.
    step
        Trails are represented by points so far apart [pixel].
    """

    def __init__(self, apart: float, step: float) -> None:
        self._step = step
        # two lines of points this far apart are nowhere nearer than `apart` in between
        self._limit = math.hypot(apart, step / math.sqrt(2)) if apart > 0 else 0.0
        self._x, self._y = np.empty(0), np.empty(0)

    def is_free(self, source: Source) -> bool:
        """Whether nothing that was taken lies too near."""
        if not self._limit or not len(self._x):
            return True
        x, y = self._points(source)
        return bool(np.hypot(x[:, None] - self._x, y[:, None] - self._y).min() >= self._limit)

    def take(self, source: Source) -> None:
        """Nothing else may lie here."""
        x, y = self._points(source)
        self._x, self._y = np.append(self._x, x), np.append(self._y, y)

    def _points(self, source: Source) -> tuple[Values, Values]:
        if not source.length_pix > 0:
            return np.array([source.x]), np.array([source.y])
        x1, y1, x2, y2 = source.ends()
        n = math.ceil(source.length_pix / self._step) + 1
        return np.linspace(x1, x2, n), np.linspace(y1, y2, n)


def parse_kinds(kinds: Sequence[str], number: int) -> dict[str, int]:
    """How many of each kind: ``streak:5`` is five, bare names share `number` evenly, ``all`` is every kind.

    Raises
    ------
    UsageError
        A kind is not known, or a number is none.
    """
    fixed: dict[str, int] = {}
    shared: list[str] = []
    for name, colon, count in (entry.strip().partition(":") for entry in kinds):
        if name == "all" and not colon:
            shared += KINDS
        elif name not in KINDS:
            raise UsageError(f"{name!r}: no such kind of source; known: {', '.join(KINDS)}, all")
        elif not colon:
            shared.append(name)
        elif count.isdecimal():
            fixed[name] = int(count)
        else:
            raise UsageError(f"{name}:{count}: the number of sources must be 0, 1, 2, ...")
    shared = [name for name in dict.fromkeys(shared) if name not in fixed]
    for index, name in enumerate(shared):
        fixed[name] = number // len(shared) + (index < number % len(shared))
    return fixed


def find_hosts(
    light: Image, noise: Image, mask: NDArray[np.uint8], fwhm_pix: float, saturation: float
) -> Hosts:
    """Galaxies of an image: isolated sources clearly wider than its stars.

    Parameters
    ----------
    light, noise : ndarray of float32, shape (n_y, n_x)
        Image without background, and rms of the sky [DN].
    mask : ndarray of uint8, shape (n_y, n_x)
        Nonzero = bad.
    fwhm_pix
        Of the stars [pixel].
    saturation
        Level above which a source is a star that overflows [DN].
    """
    from tapetum.images.detect import extract_sources

    found = extract_sources(light, noise, mask)
    star = fwhm_pix
    if (measured := found.fwhm[(found.snr > HOST_SNR) & (found.flags == 0) & np.isfinite(found.fwhm)]).size:
        star = max(
            star, float(np.percentile(measured, 25))
        )  # catalogue widths of narrow stars come out larger
    wide = (found.fwhm > HOST_WIDTH * star) & (found.fwhm < MOST_WIDTH * star)
    strong = (found.snr > HOST_SNR) & (found.n_pix > 4 * fwhm_pix**2)
    alone = (found.flags == 0) & (found.peak < 0.3 * saturation) & (found.b > 0.2 * found.a)
    use = np.flatnonzero(wide & strong & alone)
    use = use[np.argsort(-found.flux_iso[use], kind="stable")][:MOST_HOSTS]
    theta = np.radians(found.angle_deg[use])
    usable = np.where(mask == 0, light, np.float32(np.nan))
    return Hosts(found.x[use], found.y[use], found.flux_iso[use], found.a[use], found.b[use], theta, usable)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def _flux(c: Conditions, rng: np.random.Generator) -> float:
    return float(10 ** (-0.4 * (rng.uniform(*c.mag_range) - c.zero_point)))


def _anywhere(c: Conditions, rng: np.random.Generator) -> tuple[float, float]:
    n_y, n_x = c.shape
    for _ in range(1000):
        x, y = float(rng.uniform(-0.5, n_x - 0.5)), float(rng.uniform(-0.5, n_y - 0.5))
        if c.usable is None or c.usable[math.floor(y + 0.5), math.floor(x + 0.5)]:
            return x, y
    raise InputError("no place for a source: nearly all pixels of the image are without data")


def _transients(c: Conditions, rng: np.random.Generator) -> Callable[[np.random.Generator], Source]:
    """What draws one transient after the other: no galaxy has two of them, and when none is left they lie anywhere."""
    order = iter(rng.permutation(0 if c.hosts is None else len(c.hosts)).tolist())

    def draw(one: np.random.Generator) -> Source:
        flux = _flux(c, one)
        if c.hosts is not None and one.random() < c.on_galaxies and (which := next(order, None)) is not None:
            x, y = c.hosts.place_on(which, one)
            host = {"host_x": c.hosts.x[which], "host_y": c.hosts.y[which], "host_flux": c.hosts.flux[which]}
            return Source("transient", x, y, flux, **{name: float(value) for name, value in host.items()})
        x, y = _anywhere(c, one)
        return Source("transient", x, y, flux)

    return draw


def _streak(c: Conditions, rng: np.random.Generator) -> Source:
    x, y = _anywhere(c, rng)
    length = _log_uniform(rng, 2 * c.fwhm_pix, 40 * c.fwhm_pix)
    angle = float(rng.uniform(0, 180))
    return Source("streak", x, y, _flux(c, rng), length_pix=length, angle_deg=angle)


def _comet(c: Conditions, rng: np.random.Generator) -> Source:
    x, y = _anywhere(c, rng)
    tailed = rng.random() < 0.7
    diffuse = rng.random() < 0.2
    tail = float(rng.uniform(0.1, 0.6)) if tailed else 0.0
    return Source(
        "comet",
        x,
        y,
        _flux(c, rng),
        coma_slope=float(np.clip(rng.normal(1.15, 0.25), 0.7, 1.9)),
        coma_radius_pix=_log_uniform(rng, 1.5, 10) * c.fwhm_pix,
        coma_fan=float(rng.uniform(0, 0.6)),
        nucleus_fraction=0.0 if diffuse else float(rng.uniform(0, 0.5)) * (1 - tail),
        tail_fraction=tail,
        tail_length_pix=_log_uniform(rng, 2, 30) * c.fwhm_pix if tailed else math.nan,
        tail_angle_deg=float(rng.uniform(-180, 180)),
        tail_curvature=float(rng.normal(0, 1)) * 0.006 / c.fwhm_pix if tailed else math.nan,
        tail_width_pix=float(rng.uniform(0.5, 1.5)) * c.fwhm_pix if tailed else math.nan,
        tail_growth=float(rng.uniform(0.3, 0.8)) if tailed else math.nan,
    )


def _satellite(c: Conditions, rng: np.random.Generator) -> Source:
    """A line through the whole frame, or one that ends in it (a tenth); 1 to 300 sky sigmas bright."""
    n_y, n_x = c.shape
    x, y = _anywhere(c, rng)
    angle = float(rng.uniform(0, 180))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    reach = 30.0  # so far beyond the frame that no end is seen
    walls = [((-reach if step * d < 0 else n + reach) - p) / (step * d) for step in (1, -1)
             for p, n, d in ((x, n_x, cos), (y, n_y, sin)) if abs(d) > 1e-9]  # fmt: skip
    per_side = len(walls) // 2
    ahead, behind = min(walls[:per_side]), min(walls[per_side:])
    if rng.random() < 0.1:
        ahead *= float(rng.uniform(0, 0.5))
    length, middle = ahead + behind, (ahead - behind) / 2
    width = float(rng.uniform(0, 2)) * c.fwhm_pix
    brightness = _log_uniform(rng, 1, 300) * c.sky_noise  # of its ridge [DN per pixel]
    source = Source(
        "satellite",
        x + middle * cos,
        y + middle * sin,
        brightness * length * math.hypot(1.07 * c.fwhm_pix, width),
        length_pix=length,
        angle_deg=angle,
        width_pix=width,
        variation=0.0,
        period_pix=math.inf,
        phase=float(rng.uniform(0, 2 * math.pi)),
        sharpness=1.0,
    )
    way = rng.random()
    if way < 0.25:  # tumbling
        period = _log_uniform(rng, 20, 600)
        return replace(source, variation=float(rng.uniform(0.2, 1)), period_pix=period)
    if way < 0.4:  # glints
        period = _log_uniform(rng, 60, 900)
        return replace(
            source,
            variation=float(rng.uniform(0.5, 1)),
            period_pix=period,
            sharpness=_log_uniform(rng, 8, 200),
        )
    return source


def _bright_star(c: Conditions, rng: np.random.Generator) -> Source:
    """A star whose light would fill its central pixel 2 to 60 times."""
    if not math.isfinite(c.saturation):
        raise InputError(
            "a bright star needs a saturation level; give --saturation, or leave out bright_star"
        )
    x, y = _anywhere(c, rng)
    in_peak = 0.88 / max(c.fwhm_pix, 1.0) ** 2
    return Source(
        "bright_star",
        x,
        y,
        _log_uniform(rng, 2, 60) * c.saturation / in_peak,
        angle_deg=45.0 if rng.random() < 0.5 else 0.0,
        arms=4.0,
        arm_fraction=float(rng.uniform(0.002, 0.02)),
    )


def _ghost(c: Conditions, rng: np.random.Generator) -> Source:
    x, y = _anywhere(c, rng)
    radius, hole = float(rng.uniform(12, 48)) * c.fwhm_pix, float(rng.uniform(0.2, 0.5))
    brightness = _log_uniform(rng, 0.2, 5) * c.sky_noise
    flux = brightness * math.pi * radius**2 * (1 - hole**2)
    return Source("ghost", x, y, flux, width_pix=radius, hole=hole)


def _cosmic_ray(c: Conditions, rng: np.random.Generator) -> Source:
    """A particle: charge as Landau has it, 300 to 30,000 electrons, along an exponentially distributed track."""
    x, y = _anywhere(c, rng)
    charge = min(300 / max(float(rng.random()), 1e-6) ** 1.2, 30_000.0)
    length = 1 + float(rng.exponential(7))
    angle = float(rng.uniform(0, 180))
    return Source("cosmic_ray", x, y, charge / c.gain, length_pix=length, angle_deg=angle)


def _bad_column(c: Conditions, rng: np.random.Generator) -> Source:
    column = int(rng.integers(c.shape[1]))
    start = 0 if rng.random() < 0.5 else int(rng.integers(c.shape[0]))
    level = float(rng.choice([-1.0, 1.0])) * _log_uniform(rng, 5, 200) * c.sky_noise
    return Source("bad_column", column, start, level, length_pix=float(c.shape[0] - start))


def _hot_pixel(c: Conditions, rng: np.random.Generator) -> Source:
    x, y = _anywhere(c, rng)
    return Source(
        "hot_pixel",
        float(math.floor(x + 0.5)),
        float(math.floor(y + 0.5)),
        _log_uniform(rng, 10, 1000) * c.sky_noise,
    )


_DRAW: Mapping[str, Callable[[Conditions, np.random.Generator], Source]] = {
    "streak": _streak,
    "comet": _comet,
    "satellite": _satellite,
    "bright_star": _bright_star,
    "ghost": _ghost,
    "cosmic_ray": _cosmic_ray,
    "bad_column": _bad_column,
    "hot_pixel": _hot_pixel,
}
