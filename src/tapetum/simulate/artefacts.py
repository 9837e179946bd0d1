"""Layers of light and charge that contaminate an image, each with its own truth: trails, fringes, cosmic rays...

Every function draws one thing from a generator and gives a layer that has the shape of the frame [DN]; what of it
can be seen, and must therefore be found, is decided by whoever adds the layers up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator

Image = NDArray[np.float32]
Values = NDArray[np.float64]
Profile = NDArray[np.floating]
Flags = NDArray[np.bool_]
Shape = tuple[int, int]

PROFILE_STEP = 0.1  # of the tables across a trail [pixel]
BRIGHTEST = 800.0  # ridge of a trail [sky noise]
TRACK_STEP = 0.2  # between the points of a particle's track [pixel]


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number between two positive limits, even in its logarithm."""
    return math.exp(float(rng.uniform(math.log(low), math.log(high))))


# trails


@dataclass(frozen=True)
class TrailShape:
    """A trail: a line that may bend and jitter, sharp or out of focus, steady, tumbling or blinking.

    In its own frame the trail runs along s from 0 to `length_pix`, at v(s) = curvature s^2 / 2 + jitter(s).

    Attributes
    ----------
    x, y
        Where its middle lies [pixel].
    angle_deg
        Direction there, from +x to +y.
    length_pix
        From end to end [pixel].
    width_pix, hole
        Diameter of the disc that one of its points is (defocus), and that of its hole relative to it [pixel].
    fwhm, beta
        Of the Moffat profile of a star [pixel].
    curvature
        [1 / pixel].
    jitter_pix, jitter_scale_pix
        rms of the wandering across, and its correlation length along [pixel].
    variation, period_pix, phase, sharpness
        Brightness along the trail: 1 - a + a ((1 + cos(2 pi s / period + phase)) / 2)^sharpness.
    taper
        Share of the length over which a meteor rises and fades; 0 for a satellite.
    roughness
        rms of the brightness along the trail, natural logarithm, with the correlation length of the jitter.
    """

    x: float
    y: float
    angle_deg: float
    length_pix: float
    width_pix: float
    hole: float
    fwhm: float
    beta: float
    curvature: float = 0.0
    jitter_pix: float = 0.0
    jitter_scale_pix: float = 10.0
    variation: float = 0.0
    period_pix: float = math.inf
    phase: float = 0.0
    sharpness: float = 1.0
    taper: float = 0.0
    roughness: float = 0.0


def cross_profile(trail: TrailShape) -> tuple[Profile, Profile]:
    """Distance from the ridge [pixel] and brightness there, peak 1.

    A Moffat profile integrated along the line is (1 + d^2/a^2)^(1/2 - beta); it is convolved with the chord of the
    disc or ring that a point out of focus is, and with the pixel.
    """
    reach = trail.width_pix / 2 + 8 * trail.fwhm + 3
    n = math.ceil(reach / PROFILE_STEP)
    d = np.arange(-n, n + 1) * PROFILE_STEP
    alpha2 = (trail.fwhm / 2) ** 2 / (2 ** (1 / trail.beta) - 1)
    profile = (1 + d**2 / alpha2) ** (0.5 - trail.beta)
    radius = trail.width_pix / 2
    if radius > PROFILE_STEP:
        chord = np.sqrt(np.maximum(radius**2 - d**2, 0))
        chord -= np.sqrt(np.maximum((trail.hole * radius) ** 2 - d**2, 0))
        profile = _convolved(profile, chord)
    pixel = np.ones(round(1 / PROFILE_STEP))
    profile = _convolved(profile, pixel)
    return d, profile / profile.max()


def _convolved(profile: Profile, kernel: Profile) -> Profile:
    from scipy.signal import fftconvolve

    return np.asarray(np.maximum(fftconvolve(profile, kernel / kernel.sum(), "same"), 0))


def trail_layer(shape: Shape, trail: TrailShape, rng: np.random.Generator) -> tuple[Image, Image]:
    """Light of a trail whose ridge has brightness 1, and the share of the ridge that each pixel has.

    Parameters
    ----------
    shape
        (n_y, n_x) of the frame.
    trail
        What it looks like.
    rng
        Of the jitter.

    Returns
    -------
    light : ndarray of float32, shape `shape`
        With the brightness that varies along the trail.
    across : ndarray of float32, shape `shape`
        The same for a steady trail: where the trail is, also where it is dark for a while.
    """
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    cos, sin = math.cos(math.radians(trail.angle_deg)), math.sin(math.radians(trail.angle_deg))
    u = (x - np.float32(trail.x)) * np.float32(cos) + (y - np.float32(trail.y)) * np.float32(sin)
    v = (y - np.float32(trail.y)) * np.float32(cos) - (x - np.float32(trail.x)) * np.float32(sin)
    slope = np.float32(trail.curvature) * u
    v = (v - np.float32(0.5) * slope * u) / np.sqrt(1 + slope * slope)
    if trail.jitter_pix:
        v = v - np.float32(trail.jitter_pix) * _wandering(u, trail.jitter_scale_pix, rng)
    across = np.interp(v.ravel(), *cross_profile(trail), left=0, right=0).reshape(shape)
    soft = max(trail.fwhm, trail.width_pix) / 2.3548
    half = trail.length_pix / 2
    inside = 1 / (1 + np.exp(np.clip(1.7 * (np.abs(u) - half) / soft, -30, 30)))
    across = (across * inside).astype(np.float32)
    wave = (1 + np.cos(2 * math.pi * u / trail.period_pix + trail.phase)) / 2
    along = 1 - trail.variation + trail.variation * wave**trail.sharpness
    if trail.taper:
        along = along * np.clip((half - np.abs(u)) / (trail.taper * half), 0.02, 1)
    if trail.roughness:
        along = along * np.exp(trail.roughness * _wandering(u, trail.jitter_scale_pix, rng))
    return (across * along).astype(np.float32), across


def _wandering(u: Image, scale_pix: float, rng: np.random.Generator) -> Image:
    """A smooth random function of the place along a trail, rms 1."""
    from scipy.ndimage import gaussian_filter1d

    first, n = math.floor(float(u.min())) - 2, math.ceil(float(np.ptp(u))) + 6
    walk = gaussian_filter1d(rng.standard_normal(n), scale_pix)
    walk /= max(float(walk.std()), 1e-9)
    return np.asarray(np.interp(u.ravel(), first + np.arange(n), walk).reshape(u.shape), np.float32)


def draw_trails(
    shape: Shape, fwhm: float, beta: float, sigma: float, rng: np.random.Generator
) -> Iterator[tuple[TrailShape, float]]:
    """Trails of one frame with the brightness of their ridges [DN]: mostly one, sometimes a few of one train.

    The faintest are a fraction of the sky noise where they are wide, the brightest a thousand times it.
    """
    n = 1 if rng.random() < 0.7 else int(rng.integers(2, 5))
    first = _draw_trail(shape, fwhm, beta, rng)
    parallel = rng.random() < 0.5
    for number in range(n):
        trail = first
        if number and parallel:
            apart = float(rng.normal(0, 0.25)) * max(shape)
            turn = math.radians(first.angle_deg + 90)
            trail = _moved(first, apart * math.cos(turn), apart * math.sin(turn))
        elif number:
            trail = _draw_trail(shape, fwhm, beta, rng)
        # what makes a wide trail visible is its light per length
        spread = math.sqrt(max(trail.width_pix, trail.fwhm))
        length = math.sqrt(min(trail.length_pix, max(shape)) / 100)
        faintest = 2.2 / spread / max(length, 0.5)
        yield trail, sigma * log_uniform(rng, faintest, 30 * faintest if rng.random() < 0.6 else BRIGHTEST)


def _moved(trail: TrailShape, dx: float, dy: float) -> TrailShape:
    from dataclasses import replace

    return replace(trail, x=trail.x + dx, y=trail.y + dy)


def _draw_trail(shape: Shape, fwhm: float, beta: float, rng: np.random.Generator) -> TrailShape:
    n_y, n_x = shape
    way = rng.random()
    whole = way < 0.6
    width = 0.0 if rng.random() < 0.45 else log_uniform(rng, 0.3 * fwhm, 60)
    least = max(40.0, 8 * fwhm, 6 * width)  # shorter, it might be a galaxy
    length = 3.0 * max(shape) if whole else log_uniform(rng, least, max(1.2 * max(shape), 2 * least))
    varies = rng.random()
    blinks = varies > 0.75
    return TrailShape(
        x=float(rng.uniform(0, n_x)),
        y=float(rng.uniform(0, n_y)),
        angle_deg=float(rng.uniform(0, 180)),
        length_pix=length,
        width_pix=width,
        hole=float(rng.uniform(0.2, 0.6)) if width > 3 * fwhm and rng.random() < 0.5 else 0.0,
        fwhm=fwhm * float(rng.uniform(0.8, 1.2)),
        beta=beta,
        curvature=float(rng.normal(0, 3e-4)) if rng.random() < 0.25 else 0.0,
        jitter_pix=log_uniform(rng, 0.1, 1.0) * fwhm if rng.random() < 0.3 else 0.0,
        jitter_scale_pix=log_uniform(rng, 2, 40),
        variation=float(rng.uniform(0.2, 1)) if varies > 0.55 else 0.0,
        period_pix=log_uniform(rng, 20, 800),
        phase=float(rng.uniform(0, 2 * math.pi)),
        sharpness=log_uniform(rng, 4, 100) if blinks else 1.0,
        taper=float(rng.uniform(0.3, 1)) if not whole and rng.random() < 0.3 else 0.0,
        roughness=float(rng.uniform(0.1, 0.6)) if rng.random() < 0.3 else 0.0,
    )


# particles


def particle_tracks(
    shape: Shape, n: int, charge: Values, length: Values, bend: Values, rng: np.random.Generator
) -> Image:
    """Charge that n particles leave: lumpy tracks that are a pixel wide, straight or winding.

    Parameters
    ----------
    shape
        (n_y, n_x) of the frame.
    n
        Particles, anywhere in the frame.
    charge, length, bend : ndarray of float64, shape (n,)
        All charge of each [any unit], length of its track [pixel], change of direction per `TRACK_STEP` [rad rms].
    rng
        Source of every random choice.
    """
    layer = np.zeros(shape, np.float32)
    if not n:
        return layer
    steps = np.maximum(np.ceil(length / TRACK_STEP).astype(np.int64), 1)
    owner = np.repeat(np.arange(n), steps)
    first = np.cumsum(steps) - steps
    turn = np.cumsum(rng.standard_normal(len(owner)) * bend[owner])
    turn += (rng.uniform(0, 2 * math.pi, n) - turn[first])[owner]
    x, y = (np.cumsum(TRACK_STEP * wave(turn)) for wave in (np.cos, np.sin))
    x += (rng.uniform(-4, shape[1] + 4, n) - x[first])[owner]
    y += (rng.uniform(-4, shape[0] + 4, n) - y[first])[owner]
    lump = rng.gamma(1.5, 1, len(owner))
    lump *= (charge / np.bincount(owner, lump, n))[owner]
    _spread(layer, x, y, lump)
    return layer


def _spread(layer: Image, x: Values, y: Values, charge: Values) -> None:
    """Charge at sub-pixel positions, shared by the four pixels around each."""
    n_y, n_x = layer.shape
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = x - column, y - row
    flat = np.zeros(n_y * n_x)
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            i, j = column + dx, row + dy
            inside = (i >= 0) & (i < n_x) & (j >= 0) & (j < n_y)
            flat += np.bincount(j[inside] * n_x + i[inside], (charge * wx * wy)[inside], n_y * n_x)
    layer += flat.reshape(n_y, n_x).astype(np.float32)


def cosmic_rays(shape: Shape, sigma: float, rng: np.random.Generator) -> Image:
    """Charge of the cosmic rays of one frame [DN]: muons, grazing muons, electrons that wander; diffused a little."""
    from scipy.ndimage import gaussian_filter

    area = shape[0] * shape[1] / 512**2
    n = int(rng.poisson(area * log_uniform(rng, 3, 200)))
    kind = rng.choice(3, n, p=(0.7, 0.1, 0.2))
    length = np.select(
        [kind == 0, kind == 1], [1.5 + rng.exponential(4, n), rng.uniform(15, 120, n)], rng.uniform(4, 40, n)
    )
    bend = np.select(
        [kind == 0, kind == 1], [np.full(n, 0.02), np.full(n, 0.003)], np.exp(rng.uniform(-2.5, -0.7, n))
    )
    per_pixel = np.exp(rng.uniform(math.log(3), math.log(300), n))
    layer = particle_tracks(shape, n, per_pixel * sigma * np.maximum(length, 1.5), length, bend, rng)
    blur = float(rng.uniform(0.0, 0.55))
    return layer if blur < 0.15 else np.asarray(gaussian_filter(layer, blur, truncate=5), np.float32)


# patterns


def fringes(shape: Shape, rng: np.random.Generator) -> Image:
    """Interference of a layer of uneven thickness, amplitude 1: contours of a smooth surface.

    The phase is a wedge and a few slow waves, so that fringes run nearly parallel here and close into rings there.
    """
    n_y, n_x = shape
    y, x = np.mgrid[:n_y, :n_x].astype(np.float32)
    period = log_uniform(rng, 12, 120)
    angle = float(rng.uniform(0, 2 * math.pi))
    phase = (x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))) * np.float32(
        2 * math.pi / period
    )
    for _ in range(4):
        wave, way = log_uniform(rng, 150, 900), float(rng.uniform(0, 2 * math.pi))
        depth = float(rng.uniform(0.3, 1.2)) * wave / period
        argument = (x * np.float32(math.cos(way)) + y * np.float32(math.sin(way))) * np.float32(
            2 * math.pi / wave
        ) + np.float32(rng.uniform(0, 2 * math.pi))
        phase += np.float32(depth) * np.sin(argument)
    second = np.float32(rng.uniform(0, 0.3))
    light: Image = np.cos(phase) + second * np.cos(2 * phase)
    return light.astype(np.float32)


def smooth_field(shape: Shape, slope: float, longest: float, rng: np.random.Generator) -> Image:
    """A random field whose power falls as k^-slope below a longest wave [pixel]; mean 0, rms 1."""
    from scipy import fft

    n_y, n_x = shape
    k = np.hypot(np.fft.fftfreq(n_y)[:, None], np.fft.rfftfreq(n_x)[None, :])
    weight = (k**2 + 1 / longest**2) ** (-slope / 4)
    spectrum = weight * fft.rfft2(rng.standard_normal(shape, np.float32))
    spectrum[0, 0] = 0
    field = fft.irfft2(spectrum, shape)
    return np.asarray(field / field.std(), np.float32)


def nebula(shape: Shape, rng: np.random.Generator) -> Image:
    """Light of a cloud, peak 1: filaments of a fractal field, on part of the frame or on all of it."""
    field = smooth_field(shape, float(rng.uniform(2.6, 3.6)), log_uniform(rng, 80, 500), rng)
    if rng.random() < 0.5:
        field = np.exp(np.clip(0.8 * field, -6, 6))
    level = float(np.quantile(field, rng.uniform(0.0, 0.7)))
    light = np.maximum(field - level, 0)
    n_y, n_x = shape
    y, x = np.mgrid[:n_y, :n_x].astype(np.float32)
    if rng.random() < 0.6:
        cx, cy = (np.float32(rng.uniform(0, n)) for n in (n_x, n_y))
        size = np.float32(log_uniform(rng, 60, 400))
        light = light * np.exp(-(((x - cx) ** 2 + (y - cy) ** 2) / (2 * size * size)))
    return np.asarray(light / max(float(light.max()), 1e-9), np.float32)


def spiral_galaxy(shape: Shape, radius: float, soft: float, rng: np.random.Generator) -> Image:
    """Light of a large disc galaxy, peak about 1: arms, knots, dust between them, a bulge; at any inclination.

    The disc falls as exp(-r / radius); its arms are logarithmic spirals; `soft` is the sigma of the seeing [pixel].
    """
    from scipy.ndimage import gaussian_filter

    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    dx, dy = (v - np.float32(rng.uniform(0, n)) for v, n in ((x, shape[1]), (y, shape[0])))
    angle, flat = float(rng.uniform(0, math.pi)), float(rng.uniform(0.15, 1))
    u = dx * np.float32(math.cos(angle)) + dy * np.float32(math.sin(angle))
    v = (dy * np.float32(math.cos(angle)) - dx * np.float32(math.sin(angle))) / np.float32(flat)
    r = np.hypot(u, v) + np.float32(0.5)
    pitch, arms = math.tan(math.radians(float(rng.uniform(8, 35)))), int(rng.choice([1, 2, 2, 3, 4]))
    phase = arms * (np.arctan2(v, u) - np.log(r / np.float32(radius)) / np.float32(pitch))
    structure = np.exp(
        float(rng.uniform(0, 1.5)) * np.cos(phase) + rng.uniform(0, 0.6) * smooth_field(shape, 2.2, 40, rng)
    )
    disc = np.exp(-r / np.float32(radius)) * structure
    bulge = float(rng.uniform(0, 4)) * np.exp(-np.hypot(dx, dy) / np.float32(0.15 * radius))
    light = gaussian_filter(disc + bulge, soft, truncate=3)
    return np.asarray(light / max(float(light.max()), 1e-9), np.float32)


def persistence(shape: Shape, fwhm: float, rng: np.random.Generator) -> Image:
    """Afterglow of stars of the exposures before: flat discs with edges sharper than the seeing, amplitude about 1."""
    layer = np.zeros(shape, np.float32)
    copies, offset = int(rng.integers(1, 4)), rng.normal(0, 40, 2)  # of the exposures before
    soft = float(rng.uniform(0.4, 0.9))
    for _ in range(int(rng.integers(1, 12))):
        x, y = float(rng.uniform(0, shape[1])), float(rng.uniform(0, shape[0]))
        radius = log_uniform(rng, max(1.5, 0.6 * fwhm), max(12.0, 2.0 * fwhm))
        level, fades = log_uniform(rng, 0.3, 3), float(rng.uniform(0.3, 0.8))
        bled = log_uniform(rng, 10, 150) if rng.random() < 0.25 else 0.0
        for copy in range(copies):
            at = (x + copy * float(offset[0]), y + copy * float(offset[1]))
            _add_disc(layer, at, radius, bled, level * fades**copy, soft)
    return layer


def _add_disc(
    layer: Image, at: tuple[float, float], radius: float, bled: float, level: float, soft: float
) -> None:
    reach = math.ceil(max(radius, bled) + 4)
    side = math.ceil(radius + 4)
    x0, y0 = math.floor(at[0]), math.floor(at[1])
    rows = slice(max(y0 - reach, 0), min(y0 + reach + 1, layer.shape[0]))
    columns = slice(max(x0 - side, 0), min(x0 + side + 1, layer.shape[1]))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    y, x = np.mgrid[rows, columns]
    r = np.hypot(x - at[0], y - at[1])
    light = 1 / (1 + np.exp(np.clip((r - radius) / (0.4 * soft), -30, 30)))
    if bled:
        stem = (np.abs(x - x0) <= max(radius / 4, 0.5)) & (np.abs(y - at[1]) < bled)
        light = np.maximum(light, stem)
    layer[rows, columns] = np.maximum(layer[rows, columns], level * light)


# bad pixels


def draw_lines(shape: Shape, rng: np.random.Generator) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of bad columns (three quarters) and lines: whole, from somewhere to an edge, or a piece."""
    for _ in range(int(rng.integers(1, 5))):
        upright = rng.random() < 0.75
        across, along = (shape[1], shape[0]) if upright else shape
        first = int(rng.integers(across))
        width = 1 if rng.random() < 0.7 else int(rng.integers(2, 5))
        start, stop = 0, along
        way = rng.random()
        if way < 0.4:
            start = int(rng.integers(along))
            start, stop = (start, along) if rng.random() < 0.5 else (0, max(start, 1))
        elif way < 0.6:
            start = int(rng.integers(along))
            stop = min(start + int(log_uniform(rng, 8, along)), along)
        line, band = slice(start, stop), slice(first, min(first + width, across))
        yield (line, band) if upright else (band, line)


def single_pixels(shape: Shape, rng: np.random.Generator, most: float = 200) -> tuple[NDArray[np.int64], ...]:
    """Rows and columns of single bad pixels, a few or many."""
    n = int(rng.poisson(log_uniform(rng, 2, most) * shape[0] * shape[1] / 512**2))
    return tuple(np.unravel_index(rng.choice(shape[0] * shape[1], n, replace=False), shape))


def dead_cluster(shape: Shape, rng: np.random.Generator) -> Flags:
    """A group of neighbouring dead pixels."""
    where = np.zeros(shape, np.bool_)
    x, y = rng.integers(shape[1]), rng.integers(shape[0])
    n = int(log_uniform(rng, 4, 300))
    spread = 0.4 * math.sqrt(n)
    rows = np.rint(rng.normal(y, spread, n)).astype(np.int64)
    columns = np.rint(rng.normal(x, spread, n)).astype(np.int64)
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    where[rows[inside], columns[inside]] = True
    return where
