"""How light gets onto pixels: stars exactly at sub-pixel positions, trails, and extended light through a PSF.

A PSF here is what a star of unit flux puts into each pixel (the *effective* PSF: optics, seeing and the
integration over the pixel), as `tapetum.images.psf.PsfModel` measures it. Everything that shines is a sum of such
stars: a trail is the integral over points along it, a galaxy a set of points that sample its light, a coma an
image on a finer grid that is convolved with the PSF sampled equally fine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from tapetum.simulate._kernels import add_points, bleed_columns, point_stamps

if TYPE_CHECKING:
    from collections.abc import Sequence

Image = NDArray[np.float32]
Values = NDArray[np.float64]

CORE_SIDE = 33  # table for every star [pixel]
CORE_PHASES = (
    12  # per pixel; linear interpolation between them adds < 0.002 pixel^2 to the variance of a star
)
WING_SIDE = 201  # table for the wings of bright stars only
WING_PHASES = 2
NODES = 5  # per axis: where the PSF of a field is tabulated
GAUSS_NODES = 3  # of each panel of a trail


class PointSpread(Protocol):
    """Whatever gives stars: `tapetum.images.psf.PsfModel`, or a `TabulatedPsf`."""

    @property
    def size(self) -> int:
        """Odd side of the stamps [pixel]."""
        ...

    def stamps(self, x: Values, y: Values) -> Image:
        """Stars of unit flux at (x, y), in windows centred on (floor(x + 1/2), floor(y + 1/2)): (n, size, size)."""
        ...


@dataclass(frozen=True)
class MoffatField:
    r"""A PSF that varies over the field: elliptical Moffat profiles with coma and an aureole.

    With u, v in [-1, 1] over the frame: :math:`I \propto (1 + r^2/a^2)^{-\beta}`,
    :math:`a = FWHM / (2 \sqrt{2^{1/\beta} - 1})`.

    Attributes
    ----------
    fwhm
        In the middle of the frame, geometric mean of both axes, before the pixel [pixel].
    beta
        Wing exponent, > 1.
    e1, e2 : (float, float, float)
        Ellipticity (1 - q) cos 2t and (1 - q) sin 2t: constant, and change per u and v.
    growth : (float, float, float, float, float)
        Relative change of the FWHM per u, v, u^2, u v, v^2.
    coma
        Relative asymmetry at the corners, pointing away from the middle; the star's windowed centre stays where
        the star is.
    aureole
        Share of the light in a wide halo that falls as r^-2.6.
    """

    fwhm: float
    beta: float = 3.2
    e1: tuple[float, float, float] = (0.0, 0.0, 0.0)
    e2: tuple[float, float, float] = (0.0, 0.0, 0.0)
    growth: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)
    coma: float = 0.0
    aureole: float = 0.0

    def fwhm_at(self, u: float, v: float) -> float:
        """FWHM before the pixel at a place of the frame [pixel]."""
        terms = (u, v, u * u, u * v, v * v)
        return self.fwhm * (1 + sum(a * b for a, b in zip(self.growth, terms, strict=True)))

    def profile(self, u: float, v: float, x: Image, y: Image) -> Image:
        """Brightness at offsets (x, y) [pixel] from a star at (u, v), peak 1, before the pixel."""
        e1, e2 = (terms[0] + terms[1] * u + terms[2] * v for terms in (self.e1, self.e2))
        angle, stretch = 0.5 * math.atan2(e2, e1), math.sqrt(1 - min(math.hypot(e1, e2), 0.9))
        cos, sin = math.cos(angle), math.sin(angle)
        along, across = (x * cos + y * sin) * stretch, (y * cos - x * sin) / stretch
        fwhm = self.fwhm_at(u, v)
        square = along**2 + across**2
        alpha2 = (fwhm / 2) ** 2 / (2 ** (1 / self.beta) - 1)
        light = (1 + square / alpha2) ** -self.beta
        if self.coma:
            light *= 1 + self.coma * (x * u + y * v) / (math.sqrt(2) * (fwhm + np.sqrt(x**2 + y**2)))
        if self.aureole:
            width2 = (4 * fwhm) ** 2
            halo = self.aureole / (1 - self.aureole) * alpha2 / (self.beta - 1) * 0.3 / width2
            light += halo * (1 + square / width2) ** -1.3
        return np.asarray(light, np.float32)

    def sampled(self, u: float, v: float, side: int, over: int, *, unit: float | None = None) -> Image:
        """Effective PSF of a star at (u, v), `over` samples per pixel, with the pixel's integral.

        Parameters
        ----------
        side
            Of the square that is sampled [pixel].
        over
            Samples per pixel and axis.
        unit
            Sum of the profile that counts as a flux of 1, as `total` gives it; None: what lies on the square.

        Returns
        -------
        ndarray of float32, shape (side * over + 1, side * over + 1)
            Sample m lies at ``m / over - side / 2`` pixels from the star.
        """
        from scipy import fft

        n = fft.next_fast_len((side + 6) * over, real=True)
        axis = (np.fft.fftfreq(n, 1 / n) / over).astype(np.float32)
        light = self.profile(u, v, axis[None, :], axis[:, None])
        x, y = _windowed_centre(light, axis, self.fwhm_at(u, v)) if self.coma else (0.0, 0.0)
        # far wings are a millionth of the peak, and single precision knows no better
        spectrum = fft.rfft2(light.astype(np.float64) if side > CORE_SIDE else light)
        # the box of one pixel; sample 0 of the result lies side / 2 pixels below the star, the windowed centre of
        # the profile where the star is
        for k, shift in (
            (np.fft.fftfreq(n, 1 / over)[:, None], y),
            (np.fft.rfftfreq(n, 1 / over)[None, :], x),
        ):
            spectrum *= (np.sinc(k) * np.exp(-2j * np.pi * k * (side / 2 - shift))).astype(spectrum.dtype)
        last = side * over + 1
        square = fft.irfft2(spectrum, (n, n))[:last, :last]
        whole = light.sum(dtype=np.float64) / over**2 if unit is None else unit
        return np.asarray(np.maximum(square / square.dtype.type(whole), 0), np.float32)

    def total(self, u: float, v: float, side: int) -> float:
        """Sum of the profile, peak 1, on a square of `side` pixels around a star at (u, v)."""
        over = 2  # enough for an FWHM of 1.2 pixel
        axis = ((np.arange(side * over) - (side * over - 1) / 2) / over).astype(np.float32)
        return float(self.profile(u, v, axis[None, :], axis[:, None]).sum(dtype=np.float64) / over**2)


def _windowed_centre(light: Image, axis: Image, fwhm: float) -> tuple[float, float]:
    """Centre of a profile in a Gaussian window of its own width, as catalogues measure it (SExtractor's XWIN)."""
    x, y, sigma = 0.0, 0.0, fwhm / 2.3548
    for _ in range(10):
        window = np.exp(-((axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2) / (2 * sigma**2)) * light
        x += 2 * float((window.sum(0) * (axis - x)).sum() / window.sum())
        y += 2 * float((window.sum(1) * (axis - y)).sum() / window.sum())
    return x, y


@dataclass(frozen=True)
class TabulatedPsf:
    """Stars ready to be stamped: sub-pixel phases at some places of the frame, interpolated in between.

    Attributes
    ----------
    core : ndarray of float32, shape (n_gy, n_gx, over + 1, over + 1, side, side)
        The stamp that every star gets.
    shape
        (n_y, n_x) of the frame over which the places are spread evenly.
    wings : ndarray of float32 of the same layout, or None
        What bright stars have beyond the core; zero in its middle.
    """

    core: Image
    shape: tuple[int, int]
    wings: Image | None = None

    @classmethod
    def of_field(
        cls, psf: MoffatField, shape: tuple[int, int], *, wings: bool = True, nodes: int | None = None
    ) -> TabulatedPsf:
        """Tabulate a PSF field; the flux of a star is what falls within the table of wings."""
        constant = not (any(psf.growth) or any(psf.e1[1:]) or any(psf.e2[1:]) or psf.coma)
        n = nodes or (1 if constant else NODES)
        places = [(u, v) for v in _nodes(n) for u in _nodes(n)]
        units = [psf.total(u, v, WING_SIDE if wings else CORE_SIDE) for u, v in places]
        core = _table(psf, places, units, CORE_SIDE, CORE_PHASES, n)
        if not wings:
            return cls(core, shape)
        wide = _table(psf, places, units, WING_SIDE, WING_PHASES, n)
        first = (WING_SIDE - CORE_SIDE) // 2
        wide[..., first : first + CORE_SIDE, first : first + CORE_SIDE] = 0
        return cls(core, shape, wide)

    @classmethod
    def of_measured(
        cls, psf: PointSpread, shape: tuple[int, int], *, over: int = 8, nodes: int = NODES
    ) -> TabulatedPsf:
        """Tabulate a measured PSF, where many thousand stars of it are wanted."""
        side = psf.size
        rows, columns = (np.rint(np.linspace(0, n - 1, nodes)) for n in shape)
        table = np.zeros((nodes, nodes, over + 1, over + 1, side, side), np.float32)
        shift = np.arange(over) / over - 0.5
        dy, dx = (part.ravel() for part in np.meshgrid(shift, shift, indexing="ij"))
        for b, row in enumerate(rows):
            for a, column in enumerate(columns):
                stars = psf.stamps(column + dx, row + dy).reshape(over, over, side, side)
                table[b, a, :over, :over] = stars
        # a star half a pixel to the right is one half a pixel to the left of the next pixel
        table[:, :, :over, over, :, 1:] = table[:, :, :over, 0, :, :-1]
        table[:, :, over, :, 1:] = table[:, :, 0, :, :-1]
        return cls(table, shape)

    @property
    def size(self) -> int:
        """Odd side of the stamps [pixel]."""
        return int(self.core.shape[4])

    def stamps(self, x: Values, y: Values) -> Image:
        """Stars of unit flux at (x, y), without their wings: (n, size, size)."""
        x, y = (np.ascontiguousarray(value, np.float64).ravel() for value in (x, y))
        stamps = np.zeros((len(x), self.size, self.size), np.float32)
        n_y, n_x = self.shape
        point_stamps(stamps, x, y, n_x, n_y, self.core)
        return stamps

    def add(
        self,
        image: Image,
        x: Values,
        y: Values,
        flux: Values,
        *,
        faintest: float = 0.0,
        reach: int | None = None,
    ) -> None:
        """Add stars to an image of this PSF's shape, in place.

        Parameters
        ----------
        image : ndarray of float32, shape `shape`
        x, y, flux : ndarray of float64, shape (n,)
            Positions [pixel] and fluxes [unit of the image].
        faintest
            Brightness per pixel that nobody sees, such as a twentieth of the sky noise: a stamp ends where its light
            is fainter, but never so early that more than 0.1 % of the star is lost. 0: all of each stamp and wings.
        reach
            Half side of every stamp [pixel] instead.
        """
        x, y, flux = (np.ascontiguousarray(value, np.float64).ravel() for value in (x, y, flux))
        half = self.size // 2
        if reach is not None:
            reaches = np.full(len(x), min(reach, half), np.int64)
        else:
            reaches = _reach(self.core, flux, faintest)
        order = _table_order(x, y, image.shape, self.core.shape)
        add_points(image, x, y, flux, reaches, order, self.core)
        if self.wings is None or reach is not None:
            return
        edge = float(self.wings.max())
        bright = order[np.abs(flux[order]) * edge > faintest]
        wide = np.full(len(x), self.wings.shape[4] // 2, np.int64)
        if faintest > 0 and len(bright):
            wide[bright] = _reach(self.wings, flux[bright], faintest)
        add_points(image, x, y, flux, wide, bright, self.wings)


def _nodes(n: int) -> list[float]:
    return [0.0] if n == 1 else np.linspace(-1, 1, n).tolist()


def _table(
    psf: MoffatField,
    places: Sequence[tuple[float, float]],
    units: Sequence[float],
    side: int,
    over: int,
    n: int,
) -> Image:
    table = np.empty((len(places), over + 1, over + 1, side, side), np.float32)
    for index, ((u, v), unit) in enumerate(zip(places, units, strict=True)):
        fine = psf.sampled(u, v, side, over, unit=unit)
        for ky in range(over + 1):
            for kx in range(over + 1):
                table[index, ky, kx] = fine[over - ky :: over, over - kx :: over][:side, :side]
    return table.reshape(n, n, over + 1, over + 1, side, side)


def _reach(table: Image, flux: Values, faintest: float) -> NDArray[np.int64]:
    """Half side of the stamp that each star needs."""
    half = table.shape[4] // 2
    if faintest <= 0:
        return np.full(len(flux), half, np.int64)
    phase = (table.shape[2] - 1) // 2  # a star in the middle of its pixel
    star = table[table.shape[0] // 2, table.shape[1] // 2, phase, phase]
    brightest, inside = _rings(star)
    enough = int(np.argmax(inside >= inside[-1] - 1e-3 * max(inside[-1], 1e-30)))
    needed = half + 1 - np.searchsorted(brightest[::-1], faintest / np.maximum(np.abs(flux), 1e-30))
    return np.asarray(np.clip(needed, min(max(enough, 4), half), half), np.int64)


def _rings(star: Image) -> tuple[Values, Values]:
    """Brightest pixel from each half side outwards, and light within it."""
    half = star.shape[0] // 2
    axis = np.abs(np.arange(star.shape[0]) - half)
    ring = np.maximum(axis[None, :], axis[:, None]).ravel()
    peak = np.zeros(half + 1)
    np.maximum.at(peak, ring, star.ravel())
    light = np.bincount(ring, star.ravel().astype(np.float64), half + 1)
    return np.maximum.accumulate(peak[::-1])[::-1], np.cumsum(light)


def _table_order(x: Values, y: Values, shape: tuple[int, ...], table: tuple[int, ...]) -> NDArray[np.int64]:
    """Order in which neighbours need the same part of the table."""
    over = table[2] - 1
    n_y, n_x = shape[:2]
    cells = []
    for value, n_pix, nodes in ((y, n_y, table[0]), (x, n_x, table[1])):
        cells.append(np.clip(value / max(n_pix - 1, 1) * (nodes - 1), 0, max(nodes - 2, 0)).astype(np.int64))
    phases = [((value - np.floor(value + 0.5) + 0.5) * over).astype(np.int64) for value in (y, x)]
    key = ((cells[0] * table[1] + cells[1]) * over + phases[0]) * over + phases[1]
    return np.asarray(np.argsort(key, kind="stable"))


@dataclass(frozen=True)
class Patch:
    """Light on a rectangle of the frame.

    Attributes
    ----------
    left, bottom
        Column and row of the frame where the rectangle begins; it may lie partly outside.
    data : ndarray of float32, shape (n_y, n_x)
        Expected light [DN].
    """

    left: int
    bottom: int
    data: Image = field(repr=False)

    def on(self, shape: tuple[int, int]) -> tuple[tuple[slice, slice], Image] | None:
        """Rows and columns of the frame that it covers, and its light there; None when it lies outside."""
        n_y, n_x = self.data.shape
        y0, y1 = max(self.bottom, 0), min(self.bottom + n_y, shape[0])
        x0, x1 = max(self.left, 0), min(self.left + n_x, shape[1])
        if y0 >= y1 or x0 >= x1:
            return None
        part = self.data[y0 - self.bottom : y1 - self.bottom, x0 - self.left : x1 - self.left]
        return (slice(y0, y1), slice(x0, x1)), part


def star_patch(psf: PointSpread, x: float, y: float, flux: float) -> Patch:
    """One star."""
    half = psf.size // 2
    stamp = psf.stamps(np.array([x]), np.array([y]))[0] * np.float32(flux)
    return Patch(math.floor(x + 0.5) - half, math.floor(y + 0.5) - half, stamp)


def points_patch(psf: PointSpread, x: Values, y: Values, flux: Values, *, batch: int = 2048) -> Patch:
    """Many stars on one rectangle, exactly; for many thousand of them use a `TabulatedPsf`."""
    half = psf.size // 2
    columns, rows = np.floor(x + 0.5).astype(int) - half, np.floor(y + 0.5).astype(int) - half
    left, bottom = int(columns.min()), int(rows.min())
    canvas = np.zeros((int(rows.max()) - bottom + psf.size, int(columns.max()) - left + psf.size), np.float32)
    for start in range(0, len(x), batch):
        part = slice(start, start + batch)
        stars = psf.stamps(x[part], y[part]) * flux[part, None, None].astype(np.float32)
        for star, column, row in zip(stars, columns[part] - left, rows[part] - bottom, strict=True):
            canvas[row : row + psf.size, column : column + psf.size] += star
    return Patch(left, bottom, canvas)


def line_points(
    x1: float, y1: float, x2: float, y2: float, *, panel: float = 1.0
) -> tuple[Values, Values, Values]:
    """Points and weights that integrate along a line: Gauss-Legendre with three nodes per panel.

    The integral of a PSF over a line is the trail of Veres et al. (2012, PASP 124, 1197), PSF * box(length), for any
    PSF; with panels of a pixel it is exact to better than 1e-6 for every PSF that pixels can sample.

    Returns
    -------
    x, y, weight : ndarray of float64, shape (n,)
        The weights sum to 1.
    """
    length = math.hypot(x2 - x1, y2 - y1)
    panels = max(1, math.ceil(length / panel))
    node, weight = np.polynomial.legendre.leggauss(GAUSS_NODES)
    place = ((np.arange(panels)[:, None] + (node[None, :] + 1) / 2) / panels).ravel()
    weights = np.tile(weight / 2 / panels, panels)
    return x1 + place * (x2 - x1), y1 + place * (y2 - y1), weights


def fine_psf(psf: PointSpread, x: float, y: float, over: int) -> Image:
    """The PSF near (x, y) sampled `over` times per pixel, `over` odd: (size * over, size * over), sum over^2."""
    middle = over // 2
    shift = (middle - np.arange(over)) / over  # a star to the left shows what lies to the right of its middle
    dy, dx = (part.ravel() for part in np.meshgrid(shift, shift, indexing="ij"))
    stars = psf.stamps(math.floor(x + 0.5) + dx, math.floor(y + 0.5) + dy)
    side = psf.size
    fine = stars.reshape(over, over, side, side).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(fine.reshape(side * over, side * over))


def extended_patch(
    psf: PointSpread, x: float, y: float, left: int, bottom: int, light: Image, over: int
) -> Patch:
    """Extended light through the PSF near (x, y).

    Parameters
    ----------
    left, bottom
        Pixel of the frame where the rectangle begins.
    light : ndarray of float32, shape (n_y * over, n_x * over)
        Flux in each of the cells into which the pixels are divided.
    over
        Cells per pixel and axis, odd.
    """
    from scipy.signal import fftconvolve

    through = fftconvolve(light, fine_psf(psf, x, y, over), mode="same")
    middle = over // 2
    seen = np.maximum(through[middle::over, middle::over], 0)
    return Patch(left, bottom, np.ascontiguousarray(seen, np.float32))


def bleed(data: Image, full: float | Image) -> None:
    """Let charge that a pixel cannot hold run along its column, in place: half of it up, half down.

    Parameters
    ----------
    data : ndarray of float32, shape (n_y, n_x)
        Charge is kept, except what reaches an edge.
    full
        What a pixel holds: one level, or one for each pixel, shape (n_y, n_x).
    """
    over = np.flatnonzero((data > full).any(0))
    if not len(over):
        return
    levels = (
        np.full((data.shape[0], 1), full, np.float32) if np.ndim(full) == 0 else np.asarray(full, np.float32)
    )
    columns = np.ascontiguousarray(data[:, over])
    bounds = np.broadcast_to(levels, data.shape)[:, over]
    bleed_columns(columns, np.ascontiguousarray(bounds))
    data[:, over] = columns
