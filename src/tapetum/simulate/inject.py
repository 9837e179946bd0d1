"""Sources put into an image: its own PSF, photon noise by its gain, its saturation, its WCS."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tapetum.core.errors import InputError
from tapetum.images.frame import Bad, Frame
from tapetum.simulate.sources import ARTEFACTS, Source
from tapetum.simulate.stamping import (
    Patch,
    PointSpread,
    TabulatedPsf,
    bleed,
    extended_patch,
    line_points,
    points_patch,
    star_patch,
)
from tapetum.simulate.truth import Fate, truth_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapetum.images.background import Background
    from tapetum.images.frame import Image

Values = NDArray[np.float64]

GAUSSIAN_FROM = 1000.0  # electrons: above, Poisson noise is drawn as Gaussian
MOST_REACH = 600  # half side of the largest comet or bright star [pixel]
CUSP_REACH, CUSP_CELLS = (
    3.0,
    7,
)  # the middle of a coma is integrated over finer cells [pixel, per cell and axis]
CUSP_SOFTENING = 0.05  # radius inside which a coma no longer rises [pixel]
SPIKE_SLOPE = 1.8  # of the light along a diffraction spike, u^-1.8
HALO_SLOPE = 3.0  # of a bright star beyond the measured PSF, r^-3
HALO_FROM = 0.6  # of the half side of the stamp: further out a measured PSF is mostly noise


def inject(
    frame: Frame,
    psf: PointSpread,
    sources: Sequence[Source],
    rng: np.random.Generator,
    *,
    background: Background | None = None,
    seed: int | None = None,
    photon_noise: bool = True,
) -> tuple[Frame, Any]:
    """Put sources into an image.

    Parameters
    ----------
    frame
        The image; it is not changed. ``frame.info`` gives gain, saturation and zero point.
    psf
        Its PSF, for instance `tapetum.images.psf.measure_psf` of it.
    sources
        What to put in, see `tapetum.simulate.sources.draw_sources`.
    rng
        Source of photon noise and of the tracks of particles.
    background
        Sky and noise of the image, for the signal-to-noise of the truth; None: estimated here.
    seed
        Noted in the truth.
    photon_noise
        False leaves the expected light: for tests.

    Returns
    -------
    Frame
        The image with the sources; its mask has `Bad.SATURATED` where they overflow, its variance, where the image
        has one, their photon noise.
    astropy.table.Table
        What is true, see `tapetum.simulate.truth.truth_table`.

    Raises
    ------
    InputError
        The image has no zero point, or a gain that is not positive.
    """
    info = frame.info
    if info.zero_point is None:
        raise InputError(f"{frame.source}: no zero point, so magnitudes mean nothing; give --zero-point")
    if not info.gain > 0:
        raise InputError(f"{frame.source}: gain {info.gain} electrons per DN; give --gain")
    if background is None:
        from tapetum.images.background import estimate_background

        background = estimate_background(frame.data, frame.mask)
    work = _Work(frame, psf, background, rng, photon_noise)
    order = sorted(range(len(sources)), key=lambda index: sources[index].kind in ARTEFACTS[1:])
    fates: dict[int, Fate] = {}
    for index in order:  # light first, then what the detector does
        fates[index] = work.add(sources[index])
    full = work.data >= info.saturation
    mask = np.where(full, frame.mask | np.uint8(Bad.SATURATED), frame.mask).astype(np.uint8)
    done = replace(frame, data=work.data, mask=mask, variance=work.variance)
    return done, truth_table(frame, sources, [fates[index] for index in range(len(sources))], seed)


class _Work:
    """An image on its way."""

    def __init__(
        self,
        frame: Frame,
        psf: PointSpread,
        background: Background,
        rng: np.random.Generator,
        photon_noise: bool,
    ) -> None:
        self.frame, self.psf, self.background, self.rng = frame, psf, background, rng
        self.photon_noise = photon_noise
        self.data = frame.data.copy()
        self.variance = None if frame.variance is None else frame.variance.copy()
        self._tabulated: TabulatedPsf | None = psf if isinstance(psf, TabulatedPsf) else None

    @property
    def tabulated(self) -> TabulatedPsf:
        """The PSF as a table, made when the first source needs it."""
        if self._tabulated is None:
            self._tabulated = TabulatedPsf.of_measured(self.psf, self.frame.shape)
        return self._tabulated

    def add(self, source: Source) -> Fate:
        """Add one source and tell what became of it."""
        if source.kind == "bad_column":
            return self._add_column(source)
        if source.kind in ("cosmic_ray", "hot_pixel"):
            return self._add_charge(source)
        if source.kind == "satellite":
            patch = satellite_patch(self.tabulated, source)
        else:
            faintest = 0.1 * self.background.typical_noise
            patch = light_of(self.psf, source, faintest)
        return self._add_light(source, patch)

    def _add_light(self, source: Source, patch: Patch) -> Fate:
        covered = patch.on(self.frame.shape)
        if covered is None:
            return Fate()
        where, light = covered
        gain, level = self.frame.info.gain, self.frame.info.saturation
        fate = self._fate(where, light, float(light.sum() / patch.data.sum()))
        if self.variance is not None:
            self.variance[where] += np.maximum(light, 0) / np.float32(gain)
        before = self.data[where]
        after = before + (with_photon_noise(light, gain, self.rng) if self.photon_noise else light)
        most = np.maximum(before, np.float32(level))
        full = after > most
        if source.kind == "bright_star" and full.any():
            self._overflow(where[1], where[0], after)
        else:
            self.data[where] = np.where(full, most, after)
        return replace(fate, saturated=bool(full.any()))

    def _overflow(self, columns: slice, rows: slice, after: Image) -> None:
        block = self.data[:, columns].copy()
        bounds = np.maximum(block, np.float32(self.frame.info.saturation))
        block[rows] = after
        bleed(block, bounds)
        self.data[:, columns] = block

    def _fate(self, where: tuple[slice, slice], light: Image, inside: float) -> Fate:
        local = np.maximum(self.data[where] - self.background.level[where], 0) + np.maximum(light, 0)
        variance = self.background.noise[where] ** 2 + local / self.frame.info.gain
        squares = np.where(np.isfinite(variance), light**2 / np.maximum(variance, 1e-12), 0)
        return Fate(snr=math.sqrt(float(squares.sum(dtype=np.float64))), inside=inside)

    def _add_charge(self, source: Source) -> Fate:
        if source.kind == "hot_pixel":
            patch = Patch(round(source.x), round(source.y), np.full((1, 1), source.flux, np.float32))
        else:
            patch = track_patch(source, self.rng)
        covered = patch.on(self.frame.shape)
        if covered is None:
            return Fate()
        where, charge = covered
        fate = self._fate(where, charge, float(charge.sum() / patch.data.sum()))
        before = self.data[where]
        level = np.maximum(before, np.float32(self.frame.info.saturation))
        self.data[where] = np.minimum(before + charge, level)
        return replace(fate, saturated=bool((before + charge > level).any()))

    def _add_column(self, source: Source) -> Fate:
        rows = slice(round(source.y), round(source.y + source.length_pix))
        self.data[rows, round(source.x)] += np.float32(source.flux)
        noise = self.background.noise[rows, round(source.x)].astype(np.float64)
        return Fate(snr=abs(source.flux) * math.sqrt(float((noise**-2).sum())), inside=1.0)


def with_photon_noise(light: Image, gain: float, rng: np.random.Generator) -> Image:
    """Light as a detector counts it: Poisson in electrons, Gaussian above a thousand of them.

    Parameters
    ----------
    light : ndarray of float32
        Expected light [DN]; what is negative stays as it is.
    gain
        Electrons per DN.
    """
    electrons = light * np.float32(gain)
    counted = electrons.copy()
    faint = (electrons > 0) & (electrons < GAUSSIAN_FROM)
    counted[faint] = rng.poisson(electrons[faint])
    bright = electrons >= GAUSSIAN_FROM
    noise = rng.standard_normal(int(bright.sum()), np.float32)
    counted[bright] += np.sqrt(electrons[bright]) * noise
    return np.asarray(counted / np.float32(gain), np.float32)


def equivalent_fwhm(psf: PointSpread, x: float, y: float) -> float:
    """FWHM of the Gaussian that has as many noise pixels, 1 / sum(psf^2), as the PSF at (x, y) [pixel]."""
    stamp = psf.stamps(np.array([x]), np.array([y]))[0].astype(np.float64)
    return 2.3548 * math.sqrt(float(stamp.sum() ** 2 / (stamp**2).sum()) / (4 * math.pi))


def light_of(psf: PointSpread, source: Source, faintest: float) -> Patch:
    """Expected light of a source on the pixels around it; `faintest` [DN] is what nobody sees."""
    if source.kind == "transient":
        return star_patch(psf, source.x, source.y, source.flux)
    if source.kind == "streak":
        x, y, weight = line_points(*source.ends())
        return points_patch(psf, x, y, weight * source.flux)
    if source.kind == "comet":
        return comet_patch(psf, source)
    if source.kind == "bright_star":
        return bright_patch(psf, source, faintest)
    return ghost_patch(source)


def satellite_patch(psf: TabulatedPsf, source: Source) -> Patch:
    """A long trail, out of focus, its brightness steady or a wave; on the whole frame.

    Brightness along the trail: 1 - a + a ((1 + cos(2 pi s / period + phase)) / 2)^sharpness.
    """
    x1, y1, x2, y2 = source.ends()
    along_x, along_y, weight = line_points(x1, y1, x2, y2)
    n_across = 2 * math.ceil(source.width_pix / 2) + 1
    across = ((np.arange(n_across) + 0.5) / n_across - 0.5) * source.width_pix
    chord = np.sqrt(1 - (2 * across / max(source.width_pix, 1e-9)) ** 2) if n_across > 1 else np.ones(1)
    place = np.hypot(along_x - x1, along_y - y1)
    wave = (1 + np.cos(2 * math.pi * place / source.period_pix + source.phase)) / 2
    weight = weight * (1 - source.variation + source.variation * wave**source.sharpness)
    weight = np.outer(chord / chord.sum(), weight / weight.sum()) * source.flux
    cos, sin = math.cos(math.radians(source.angle_deg)), math.sin(math.radians(source.angle_deg))
    x = along_x[None, :] - across[:, None] * sin
    y = along_y[None, :] + across[:, None] * cos
    canvas = np.zeros(psf.shape, np.float32)
    reach = psf.size
    near = (x > -reach) & (x < psf.shape[1] + reach) & (y > -reach) & (y < psf.shape[0] + reach)
    psf.add(canvas, x[near], y[near], weight[near], reach=psf.size // 2)
    return Patch(0, 0, canvas)


def comet_patch(psf: PointSpread, source: Source) -> Patch:
    """Nucleus, coma and tail through the PSF.

    Coma: rho^-k exp(-(rho / R)^2) (1 + fan cos(theta - tail direction)). Tail: along an axis that bends as
    v = c s^2, exp(-s / L) Gaussian across, its width growing as w0 (1 + s / w0)^growth, and its light beginning
    smoothly at the nucleus. The shares of the flux are those of the light on the rectangle that is drawn.
    """
    box = _comet_box(psf, source)
    over = 5 if max(box.n_x, box.n_y) < 160 else 3
    x, y = box.cells(source, over)
    coma = _coma(source, x, y)
    _integrate_cusp(coma, source, x, y, over)
    shares = {"coma": 1 - source.nucleus_fraction - source.tail_fraction}
    light = coma * (shares["coma"] / coma.sum())
    if source.tail_fraction > 0:
        tail = _tail(source, x, y)
        light += tail * (source.tail_fraction / tail.sum())
    fine = (light * source.flux).astype(np.float32)
    patch = extended_patch(psf, source.x, source.y, box.left, box.bottom, fine, over)
    if source.nucleus_fraction > 0:
        star = star_patch(psf, source.x, source.y, source.flux * source.nucleus_fraction)
        row, column = star.bottom - box.bottom, star.left - box.left
        patch.data[row : row + psf.size, column : column + psf.size] += star.data
    return patch


@dataclass(frozen=True)
class _Box:
    """A rectangle of pixels."""

    left: int
    bottom: int
    n_x: int
    n_y: int

    def cells(self, source: Source, over: int) -> tuple[Values, Values]:
        """Offsets of its fine cells from a source, as a row and a column [pixel]."""
        x = self.left - source.x + (np.arange(self.n_x * over) + 0.5) / over - 0.5
        y = self.bottom - source.y + (np.arange(self.n_y * over) + 0.5) / over - 0.5
        return x[None, :], y[:, None]


def _comet_box(psf: PointSpread, source: Source) -> _Box:
    reach = 2.7 * source.coma_radius_pix
    x, y, margin = np.array([-reach, reach]), np.array([-reach, reach]), psf.size // 2 + 2
    if source.tail_fraction > 0:
        s = np.linspace(0, 5 * source.tail_length_pix, 20)
        bend = source.tail_curvature * s**2
        cos, sin = (
            math.cos(math.radians(source.tail_angle_deg)),
            math.sin(math.radians(source.tail_angle_deg)),
        )
        width = 3 * _tail_width(source, s)
        axis_x, axis_y = s * cos - bend * sin, s * sin + bend * cos
        x = np.concatenate([x, axis_x - width, axis_x + width])
        y = np.concatenate([y, axis_y - width, axis_y + width])
    low = [max(math.floor(float(v.min())), -MOST_REACH) - margin for v in (x, y)]
    high = [min(math.ceil(float(v.max())), MOST_REACH) + margin for v in (x, y)]
    left, bottom = math.floor(source.x) + low[0], math.floor(source.y) + low[1]
    return _Box(left, bottom, high[0] - low[0] + 1, high[1] - low[1] + 1)


def _coma(source: Source, x: Values, y: Values) -> Values:
    square = x**2 + y**2
    light = (square + CUSP_SOFTENING**2) ** (-source.coma_slope / 2) * np.exp(
        -square / source.coma_radius_pix**2
    )
    cos, sin = math.cos(math.radians(source.tail_angle_deg)), math.sin(math.radians(source.tail_angle_deg))
    along = (x * cos + y * sin) / np.sqrt(square + CUSP_SOFTENING**2)
    return np.asarray(light * (1 + source.coma_fan * along))


def _integrate_cusp(coma: Values, source: Source, x: Values, y: Values, over: int) -> None:
    """Replace the steep middle by means over finer cells."""
    columns = np.flatnonzero(np.abs(x[0]) < CUSP_REACH)
    rows = np.flatnonzero(np.abs(y[:, 0]) < CUSP_REACH)
    parts = ((np.arange(CUSP_CELLS) + 0.5) / CUSP_CELLS - 0.5) / over
    fine_x = (x[0, columns][:, None] + parts).ravel()[None, :]
    fine_y = (y[rows, 0][:, None] + parts).ravel()[:, None]
    fine = _coma(source, fine_x, fine_y).reshape(len(rows), CUSP_CELLS, len(columns), CUSP_CELLS)
    coma[np.ix_(rows, columns)] = fine.mean((1, 3))


def _tail_width(source: Source, s: Values) -> Values:
    return np.asarray(source.tail_width_pix * (1 + s / source.tail_width_pix) ** source.tail_growth)


def _tail(source: Source, x: Values, y: Values) -> Values:
    cos, sin = math.cos(math.radians(source.tail_angle_deg)), math.sin(math.radians(source.tail_angle_deg))
    s = x * cos + y * sin
    behind = np.maximum(s, 0)
    width = _tail_width(source, behind)
    across = (y * cos - x * sin - source.tail_curvature * s**2) / width
    start = -np.expm1(-behind / source.tail_width_pix)
    return np.asarray(start * np.exp(-behind / source.tail_length_pix - across**2 / 2) / width)


def bright_patch(psf: PointSpread, source: Source, faintest: float) -> Patch:
    """A bright star: its PSF, a halo that carries on beyond the stamp, and diffraction spikes."""
    half = psf.size // 2
    star = star_patch(psf, source.x, source.y, source.flux)
    fwhm = equivalent_fwhm(psf, source.x, source.y)
    arms, light = max(round(source.arms), 1), source.flux * source.arm_fraction
    patch = spikes_patch(source.x, source.y, light, fwhm, arms, source.angle_deg, faintest, least=half)
    reach = patch.data.shape[0] // 2
    x = patch.left + np.arange(2 * reach + 1)[None, :] - source.x
    y = patch.bottom + np.arange(2 * reach + 1)[:, None] - source.y
    glow = _halo(star.data, x, y)
    inner = slice(reach - half, reach + half + 1)
    glow[inner, inner] = np.maximum(star.data, glow[inner, inner])
    return Patch(patch.left, patch.bottom, (patch.data + glow).astype(np.float32))


def spikes_patch(
    x: float,
    y: float,
    flux: float,
    fwhm: float,
    arms: int,
    angle_deg: float,
    faintest: float,
    *,
    least: int = 0,
) -> Patch:
    """Diffraction spikes: along each arm (1 + u / FWHM)^-1.8, across it as wide as a star.

    Parameters
    ----------
    flux
        Light of all arms together, followed for ever [DN].
    angle_deg
        Direction of the first arm from +x to +y.
    faintest, least
        The arms end where they are fainter than this [DN], but no closer than this to the star [pixel].
    """
    sigma = fwhm / 2.3548
    ridge = flux / arms * (SPIKE_SLOPE - 1) / fwhm / (math.sqrt(2 * math.pi) * sigma)
    reach = int(fwhm * (ridge / faintest) ** (1 / SPIKE_SLOPE)) if ridge > faintest else 0
    reach = min(max(reach, least, 1), MOST_REACH)
    column, row = math.floor(x + 0.5), math.floor(y + 0.5)
    dx = np.arange(-reach, reach + 1)[None, :] + (column - x)
    dy = np.arange(-reach, reach + 1)[:, None] + (row - y)
    light = np.zeros((2 * reach + 1, 2 * reach + 1))
    for arm in range(arms):
        angle = math.radians(angle_deg) + 2 * math.pi * arm / arms
        u, v = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
        along = np.where(u > 0, (1 + np.maximum(u, 0) / fwhm) ** -SPIKE_SLOPE, 0)
        light += ridge * along * np.exp(-((v / sigma) ** 2) / 2)
    return Patch(column - reach, row - reach, light.astype(np.float32))


def _halo(stamp: Image, x: NDArray[np.floating], y: NDArray[np.floating]) -> Values:
    """What r^-3 gives outside of a stamp, from its level at `HALO_FROM`; zero inside."""
    half = stamp.shape[0] // 2
    start = HALO_FROM * half
    dy, dx = np.mgrid[-half : half + 1, -half : half + 1]
    ring = np.abs(np.hypot(dx, dy) - start) < 1
    level = max(float(np.median(stamp[ring])), 0.0)
    radius = np.hypot(x, y)
    return np.where(radius > start, level * (np.maximum(radius, start) / start) ** -HALO_SLOPE, 0.0)


def ghost_patch(source: Source) -> Patch:
    """An out-of-focus annulus with its hole a little off centre; edges half a pixel soft."""
    radius = source.width_pix
    reach = math.ceil(radius) + 2
    left, bottom = math.floor(source.x) - reach, math.floor(source.y) - reach
    x = left + np.arange(2 * reach + 2)[None, :] - source.x
    y = bottom + np.arange(2 * reach + 2)[:, None] - source.y
    outer = np.clip(radius - np.hypot(x, y) + 0.5, 0, 1)
    hole = np.clip(source.hole * radius - np.hypot(x - 0.1 * radius, y) + 0.5, 0, 1)
    light = outer * (1 - hole)
    return Patch(left, bottom, (light * (source.flux / light.sum())).astype(np.float32))


def track_patch(source: Source, rng: np.random.Generator) -> Patch:
    """The track of a particle, a pixel wide: it bends a little, and leaves its charge in lumps."""
    n = max(2, math.ceil(source.length_pix / 0.2))
    step = source.length_pix / n
    turn = np.cumsum(rng.normal(0, 0.02, n)) + math.radians(source.angle_deg)
    x, y = np.cumsum(step * np.cos(turn)), np.cumsum(step * np.sin(turn))
    x, y = x - x.mean() + source.x, y - y.mean() + source.y
    charge = rng.gamma(0.5, 1, n)
    charge *= source.flux / charge.sum()
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    left, bottom = int(column.min()), int(row.min())
    data = np.zeros((int(row.max()) - bottom + 2, int(column.max()) - left + 2), np.float32)
    fx, fy = x - column, y - row
    for dy, wy in ((0, 1 - fy), (1, fy)):
        for dx, wx in ((0, 1 - fx), (1, fx)):
            np.add.at(data, (row - bottom + dy, column - left + dx), charge * wx * wy)
    return Patch(left, bottom, data)
