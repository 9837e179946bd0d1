"""Contaminated frames with the exact truth of every pixel, for the 14 classes of `tapetum.images.contaminants`.

Light and charge are drawn as separate layers and added as a telescope adds them: sky and astronomical light with
spikes; light that is not wanted (trails, fringes, clouds); the detector's noise, full wells and bleeding; then what
the detector adds by itself (cosmic rays, persistence, bad pixels and columns, overscan). A pixel belongs to a class
where that class's own layer stands out of the noise; where it is there but cannot be seen, nobody can say, and
`ignore` tells so. The same artefacts can be put into a real frame, of whose own contents only the sky is trusted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tapetum.images.contaminants import Contaminant
from tapetum.simulate.artefacts import (
    cosmic_rays,
    dead_cluster,
    draw_lines,
    draw_trails,
    fringes,
    log_uniform,
    nebula,
    persistence,
    single_pixels,
    smooth_field,
    spiral_galaxy,
    trail_layer,
)
from tapetum.simulate.inject import spikes_patch
from tapetum.simulate.scene import SERSIC_INDICES, detect, draw_mags, galaxy_points
from tapetum.simulate.stamping import MoffatField, TabulatedPsf

if TYPE_CHECKING:
    from collections.abc import Mapping

Image = NDArray[np.float32]
Codes = NDArray[np.uint16]
Flags = NDArray[np.bool_]
Shape = tuple[int, int]
Points = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

ALL = np.uint16(sum(Contaminant))
# what the bright pixels of a real frame may be; trails, fringes, overscan and afterglow it is trusted not to have
OF_STARS = ALL & ~np.uint16(Contaminant.TRL | Contaminant.FR | Contaminant.OV | Contaminant.P)
SEEN, UNSEEN = 1.0, 0.35  # of the noise: light of a wide class that counts, and that nobody can see
SHARP_SEEN, SHARP_UNSEEN = 3.0, 1.0  # the same for what is as narrow as a pixel
CLOUD_SMOOTH_PIX = 8.0  # gaps between the filaments of a cloud belong to it
POINT_SEEN = 6.0  # a single pixel must stand out so far, or noise does the same
BRIGHT_TRUST = 1.5  # of the noise of a real frame, smoothed: above, its own contents are not known
SHARES: Mapping[str, float] = {
    "trail": 0.5, "fringes": 0.12, "nebula": 0.18, "cosmic_ray": 0.75, "persistence": 0.15, "lines": 0.45,
    "hot": 0.5, "dead": 0.45, "cluster": 0.12, "overscan": 0.2, "bright_stars": 0.5, "spikes": 0.6,
    "large_galaxy": 0.3, "dust": 0.15, "steps": 0.15, "bands": 0.1, "defocus": 0.12, "long_stars": 0.15,
    "resampled": 0.12, "missing": 0.08, "integers": 0.6,
}  # fmt: skip
"""How many frames of a hundred have each artefact, and what is no contaminant but may look like one."""


@dataclass(frozen=True)
class ContaminantSettings:
    """What frames are drawn from; pairs are ranges, even in the logarithm.

    Attributes
    ----------
    shape
        (n_y, n_x) [pixel].
    sky
        Sky level [electron].
    read_noise
        [electron].
    gain
        Electrons per DN.
    full_well
        [electron].
    fwhm
        Of stars, before the pixel [pixel].
    stars, galaxies
        Per 512 x 512 pixels.
    shares
        As `SHARES`.
    """

    shape: Shape = (512, 512)
    sky: tuple[float, float] = (15.0, 20_000.0)
    read_noise: tuple[float, float] = (2.0, 15.0)
    gain: tuple[float, float] = (0.3, 8.0)
    full_well: tuple[float, float] = (40_000.0, 300_000.0)
    fwhm: tuple[float, float] = (1.1, 9.0)
    stars: tuple[float, float] = (15.0, 1500.0)
    galaxies: tuple[float, float] = (3.0, 120.0)
    shares: Mapping[str, float] = field(default_factory=lambda: dict(SHARES))


@dataclass(frozen=True)
class Contaminated:
    """A frame and what is wrong with each of its pixels.

    Attributes
    ----------
    data : ndarray of float32, shape (n_y, n_x)
        What was read [DN]; NaN where there is no value.
    truth : ndarray of uint16, same shape
        Codes of `Contaminant`, added up.
    ignore : ndarray of uint16, same shape
        Codes of the classes that may or may not be there.
    background_unknown : ndarray of bool, same shape
        Where the class of the background may or may not hold.
    trails : ndarray of uint8, same shape
        Number of the trail that a pixel of the class TRL belongs to, from 1; 0 elsewhere.
    """

    data: Image
    truth: Codes
    ignore: Codes
    background_unknown: Flags
    trails: NDArray[np.uint8]


@dataclass
class _Work:
    """A frame while it is made; all light in electrons."""

    rng: np.random.Generator
    settings: ContaminantSettings
    light: Image
    sigma: float
    fwhm: float
    beta: float
    truth: Codes
    ignore: Codes
    trails: NDArray[np.uint8]

    def happens(self, name: str) -> bool:
        return bool(self.rng.random() < self.settings.shares.get(name, 0.0))

    def mark(self, which: Contaminant, seen: Flags, unknown: Flags | None = None) -> None:
        self.truth[seen] |= np.uint16(which)
        if unknown is not None:
            self.ignore[unknown & ~seen] |= np.uint16(which)

    def mark_light(self, which: Contaminant, light: Image, sigma: Image | float) -> None:
        self.mark(which, light > SEEN * sigma, light > UNSEEN * sigma)


def contaminated_frame(
    rng: np.random.Generator, settings: ContaminantSettings | None = None, base: Image | None = None
) -> Contaminated:
    """One frame with contaminants and their truth.

    Parameters
    ----------
    rng
        Source of every random choice.
    settings
        What is drawn; its shape is not used where there is a base.
    base : ndarray of float32, shape (n_y, n_x), optional
        A real frame that contaminants are put into [DN]; NaN where it has no value. Without it the sky is
        simulated too.

    Raises
    ------
    ValueError
        The real frame has no sky noise.
    """
    settings = settings or ContaminantSettings()
    if base is not None:
        return _into_real(rng, settings, base)
    work = _empty_sky(rng, settings)
    gain, sky = log_uniform(rng, *settings.gain), log_uniform(rng, *settings.sky)
    read_noise = log_uniform(rng, *settings.read_noise)
    work.sigma = math.sqrt(sky + read_noise**2)
    psf = _draw_psf(work)
    full = max(log_uniform(rng, *settings.full_well), 3 * sky)
    _add_astronomical(work, psf, full)
    _add_foreground(work, work.sigma)
    image = _exposed(work, sky, read_noise, full)
    return _read_out(work, image, sky, gain, read_noise)


def _empty_sky(rng: np.random.Generator, settings: ContaminantSettings) -> _Work:
    shape = settings.shape
    return _Work(
        rng=rng,
        settings=settings,
        light=np.zeros(shape, np.float32),
        sigma=1.0,
        fwhm=log_uniform(rng, *settings.fwhm),
        beta=float(rng.uniform(2.2, 4.5)),
        truth=np.zeros(shape, np.uint16),
        ignore=np.zeros(shape, np.uint16),
        trails=np.zeros(shape, np.uint8),
    )


def _draw_psf(work: _Work) -> TabulatedPsf:
    rng = work.rng
    e, angle = abs(float(rng.normal(0, 0.07))), float(rng.uniform(0, 2 * math.pi))
    if work.happens("long_stars"):
        e = float(rng.uniform(0.1, 0.55))
    field_of_view = MoffatField(
        work.fwhm,
        work.beta,
        e1=(e * math.cos(angle), 0.0, 0.0),
        e2=(e * math.sin(angle), 0.0, 0.0),
        aureole=log_uniform(rng, 0.002, 0.08),
    )
    return TabulatedPsf.of_field(field_of_view, work.light.shape[:2])


# light of the sky


def _add_astronomical(work: _Work, psf: TabulatedPsf, full: float) -> None:
    """Stars, galaxies and the spikes of the brightest stars."""
    rng, settings, shape = work.rng, work.settings, work.light.shape
    area = shape[0] * shape[1] / 512**2
    n_stars, n_galaxies = (
        int(rng.poisson(area * log_uniform(rng, *span))) for span in (settings.stars, settings.galaxies)
    )
    noise = work.sigma * 1.9 * work.fwhm  # of a star's flux
    mags = draw_mags(n_stars, float(rng.uniform(0.22, 0.38)), (-12.0, 0.0), rng)
    flux = 3 * noise * 10 ** (-0.4 * mags)
    if work.happens("bright_stars"):
        peaks = [log_uniform(rng, 0.2, 200) for _ in range(int(rng.integers(1, 5)))]  # in full wells
        flux = np.concatenate([flux, np.array(peaks) * full * 1.3 * work.fwhm**2])
    x, y = (rng.uniform(-30, n + 30, len(flux)) for n in (shape[1], shape[0]))
    parts = [(x, y, flux), _galaxies(work, n_galaxies, noise)]
    x_all, y_all, flux_all = (np.concatenate(values) for values in zip(*parts, strict=True))
    psf.add(work.light, x_all, y_all, flux_all, faintest=0.02 * work.sigma)
    if work.happens("defocus"):
        _defocus(work)
    for _ in range(int(rng.integers(1, 6)) if work.happens("large_galaxy") else 0):
        work.light += _large_galaxy(work)
    brightest = np.argsort(-flux)[: 1 + n_stars // 40]
    spikes = _spikes(work, x[brightest], y[brightest], flux[brightest], full)
    # a bright background is astronomical light without the spikes
    work.mark_light(Contaminant.BBG, _smoothed(work.light, 0.5), work.sigma)
    if spikes is not None:
        share = spikes > 0.35 * work.light
        work.mark(Contaminant.SP, share & (spikes > SEEN * work.sigma), spikes > UNSEEN * work.sigma)
        work.ignore[spikes > UNSEEN * work.sigma] |= np.uint16(Contaminant.BBG)
        work.light += spikes


def _defocus(work: _Work) -> None:
    """Stars become the rings, or the doubled and smeared images, of a telescope out of focus or alignment."""
    from scipy.signal import fftconvolve

    rng = work.rng
    radius = log_uniform(rng, 0.6, 2.5) * work.fwhm
    reach = math.ceil(radius) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    r = np.hypot(x - rng.normal(0, 0.2) * radius, y - rng.normal(0, 0.2) * radius)
    kernel = np.clip(radius - r + 0.5, 0, 1) * np.clip(r - rng.uniform(0, 0.8) * radius + 0.5, 0, 1)
    kernel *= 1 + rng.uniform(0, 1) * np.cos(np.arctan2(y, x) * int(rng.integers(1, 4)) + rng.uniform(0, 6.3))
    work.light = np.maximum(fftconvolve(work.light, kernel / kernel.sum(), "same"), 0).astype(np.float32)


def _galaxies(work: _Work, n: int, noise: float) -> Points:
    rng, shape = work.rng, work.light.shape
    mags = draw_mags(n, 0.45, (-7.0, 0.0), rng)
    radius = np.minimum(work.fwhm * np.exp(rng.normal(0.3, 0.8, n)) * 10 ** (-0.07 * mags), 60.0)
    points = galaxy_points(
        rng.uniform(-20, shape[1] + 20, n), rng.uniform(-20, shape[0] + 20, n), 6 * noise * 10 ** (-0.4 * mags), radius,
        rng.uniform(0.12, 1, n), rng.uniform(0, math.pi, n), rng.choice(SERSIC_INDICES, n), 0.6 * noise,
    )  # fmt: skip
    return points[:3]


def _large_galaxy(work: _Work) -> Image:
    """One large galaxy; whether its light is a nebulosity is a matter of taste, and is left open."""
    rng = work.rng
    radius = log_uniform(rng, 4, 200)
    light = spiral_galaxy((work.light.shape[0], work.light.shape[1]), radius, work.fwhm / 2.3548, rng)
    light *= np.float32(work.sigma * log_uniform(rng, 5, 500))
    work.ignore[light > UNSEEN * work.sigma] |= np.uint16(Contaminant.NEB)
    return light


def _spikes(
    work: _Work, x: NDArray[np.float64], y: NDArray[np.float64], flux: NDArray[np.float64], full: float
) -> Image | None:
    rng = work.rng
    if not work.happens("spikes"):
        return None
    layer = np.zeros_like(work.light)
    arms, angle = int(rng.choice([2, 4, 4, 4, 6, 8])), float(rng.uniform(0, 90))
    share, width = log_uniform(rng, 0.003, 0.08), work.fwhm * float(rng.uniform(0.5, 1.2))
    for star in np.flatnonzero(flux > 0.2 * full * work.fwhm**2)[:12]:
        patch = spikes_patch(
            float(x[star]), float(y[star]), share * float(flux[star]), width, arms, angle, 0.2 * work.sigma
        )
        if (covered := patch.on((layer.shape[0], layer.shape[1]))) is not None:
            layer[covered[0]] += covered[1]
    return layer


def _smoothed(light: Image, sigma_pix: float) -> Image:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(light, sigma_pix, truncate=3), np.float32)


# light that is not wanted


def _add_foreground(work: _Work, sigma: float) -> None:
    """Trails, fringes and clouds, into `light`; `sigma` is the noise of the sky in the unit of `light`."""
    rng = work.rng
    shape = (work.light.shape[0], work.light.shape[1])
    if work.happens("trail"):
        for number, (trail, brightness) in enumerate(draw_trails(shape, work.fwhm, work.beta, sigma, rng), 1):
            _add_trail(work, trail_layer(shape, trail, rng), brightness, number, sigma)
    if work.happens("fringes"):
        envelope = 1 + 0.6 * smooth_field(shape, 4.0, 400, rng)
        envelope = np.clip(envelope, 0, 3) * np.float32(sigma * log_uniform(rng, 0.5, 12))
        work.mark_light(Contaminant.FR, 1.4 * envelope, sigma)
        work.light += envelope * fringes(shape, rng)
    if work.happens("nebula"):
        cloud = nebula(shape, rng) * np.float32(sigma * log_uniform(rng, 1.5, 60))
        work.mark_light(Contaminant.NEB, _smoothed(cloud, CLOUD_SMOOTH_PIX), sigma)
        work.light += cloud


def _add_trail(
    work: _Work, layers: tuple[Image, Image], brightness: float, number: int, sigma: float
) -> None:
    """Its pixels are those within a third of the brightness of the ridge, and all that shines above the noise."""
    light, across = layers
    ridge = (light / np.maximum(across, 1e-3)) * np.float32(brightness)  # along the trail
    core = (across > 0.3) & (ridge > 0.3 * sigma)
    seen = core | (brightness * light > SEEN * sigma)
    work.mark(Contaminant.TRL, seen, (across > 0.05) | (brightness * light > UNSEEN * sigma))
    work.trails[seen] = number
    work.light += np.float32(brightness) * light


# the detector


def _exposed(work: _Work, sky: float, read_noise: float, full: float) -> Image:
    """The frame after its exposure, in electrons: sky, noise, full wells; marks what is saturated."""
    rng, shape = work.rng, work.light.shape
    u, v = np.linspace(-1, 1, shape[1], dtype=np.float32), np.linspace(-1, 1, shape[0], dtype=np.float32)
    slope = rng.normal(0, 0.02, 3).astype(np.float32)
    plane = 1 + slope[0] * u[None, :] + slope[1] * v[:, None] + slope[2] * (u[None, :] ** 2 + v[:, None] ** 2)
    image: Image = (work.light + np.float32(sky) * plane).astype(np.float32)
    if work.happens("dust"):
        image *= 1 - _dust(work)
    detect(image, 1.0, read_noise, full, rng)
    saturated = image >= 0.98 * full
    work.mark(Contaminant.SAT, saturated)
    # what saturation hides nobody can see
    work.ignore[saturated] |= np.uint16(Contaminant.SP | Contaminant.CR | Contaminant.P | Contaminant.HP)
    return image


def _dust(work: _Work) -> Image:
    """Shadows of dust on a window: rings, a few per cent deep."""
    rng, shape = work.rng, work.light.shape
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    shade = np.zeros_like(work.light)
    for _ in range(int(rng.integers(1, 6))):
        radius, hole = log_uniform(rng, 8, 60), float(rng.uniform(0.2, 0.6))
        r = np.hypot(x - np.float32(rng.uniform(0, shape[1])), y - np.float32(rng.uniform(0, shape[0])))
        ring = np.clip(radius - r, 0, 1) * np.clip(r - hole * radius, 0, 1)
        shade += ring.astype(np.float32) * np.float32(log_uniform(rng, 0.003, 0.03))
    return shade


def _read_out(work: _Work, image: Image, sky: float, gain: float, read_noise: float) -> Contaminated:
    """What the detector adds by itself, and the frame in DN."""
    rng = work.rng
    noise = np.sqrt(np.maximum(work.light, 0) + np.float32(work.sigma**2))
    _add_detector(work, image, noise, sky)
    if work.happens("overscan"):
        _overscan(work, image, float(rng.normal(0, 0.02)) * sky, read_noise)
    if work.happens("steps"):
        half = int(rng.integers(image.shape[1]))
        image[:, half:] += np.float32(work.sigma * rng.uniform(-3, 3))
    if work.happens("bands"):  # every row has its own zero
        rows = rng.standard_normal((len(image), 1), np.float32)
        image += np.float32(work.sigma * log_uniform(rng, 0.05, 0.6)) * rows
    image /= np.float32(gain)
    if work.happens("integers") and gain < 2 * work.sigma:
        np.rint(image, out=image)
    return _finished(work, image + np.float32(rng.choice([0.0, 100.0, 1000.0])))


def _add_detector(work: _Work, image: Image, noise: Image, sky: float) -> None:
    """Cosmic rays, persistence, bad pixels, columns and clusters, in this order."""
    rng, shape = work.rng, (image.shape[0], image.shape[1])
    if work.happens("persistence"):
        glow = persistence(shape, work.fwhm, rng) * np.float32(work.sigma * log_uniform(rng, 2, 40))
        work.mark_light(Contaminant.P, glow, noise)
        image += glow
    if work.happens("cosmic_ray"):
        charge = cosmic_rays(shape, work.sigma, rng)
        work.mark(Contaminant.CR, charge > SHARP_SEEN * noise, charge > SHARP_UNSEEN * noise)
        image += charge
    if work.happens("resampled"):
        _resample(work, image)
    if work.happens("hot"):
        _hot_pixels(work, image, noise)
    if work.happens("dead"):
        _dead_pixels(work, image, noise, sky)
    if work.happens("cluster"):
        where = dead_cluster(shape, rng)
        _darken(work, image, where, float(rng.uniform(0, 0.6)), sky, Contaminant.DCL)
    if work.happens("lines"):
        for rows, columns in draw_lines(shape, rng):
            _bad_line(work, image, rows, columns, sky)


def _hot_pixels(work: _Work, image: Image, noise: Image) -> None:
    at = single_pixels((image.shape[0], image.shape[1]), work.rng)
    n = len(at[0])
    added = noise[at] * np.exp(work.rng.uniform(math.log(POINT_SEEN), math.log(800), n)).astype(np.float32)
    image[at] += added
    hot = np.zeros(image.shape, np.bool_)
    hot[at] = True
    work.mark(Contaminant.HP, hot)
    work.ignore[hot] |= np.uint16(Contaminant.CR)


def _dead_pixels(work: _Work, image: Image, noise: Image, sky: float) -> None:
    """Pixels that see little; those whose loss is within the noise are not known to anybody."""
    at = single_pixels((image.shape[0], image.shape[1]), work.rng, 600)
    where = np.zeros(image.shape, np.bool_)
    where[at] = True
    _darken(work, image, where, float(work.rng.uniform(0, 0.5)), sky, Contaminant.DP, POINT_SEEN)


def _darken(
    work: _Work,
    image: Image,
    where: Flags,
    response: float,
    sky: float,
    which: Contaminant,
    seen: float = SHARP_SEEN,
) -> None:
    """Pixels that see only a share of the light; charge of particles in them is lost as well."""
    before = work.light[where] + np.float32(sky)
    lost = (1 - response) * before
    if work.rng.random() < 0.3:  # read as a number that no sky has
        lost = np.maximum(lost, np.float32(work.sigma * log_uniform(work.rng, 6, 60)))
    image[where] = before - lost + np.float32(0.5 * work.sigma) * work.rng.standard_normal(len(lost))
    dark = np.zeros(image.shape, np.bool_)
    dark[where] = lost > seen * work.sigma
    work.mark(which, dark, where)
    work.truth[dark] &= ~np.uint16(Contaminant.CR | Contaminant.HP | Contaminant.SAT | Contaminant.P)


def _bad_line(work: _Work, image: Image, rows: slice, columns: slice, sky: float) -> None:
    rng = work.rng
    where = np.zeros(image.shape, np.bool_)
    where[rows, columns] = True
    if rng.random() < 0.45:
        _darken(work, image, where, float(rng.uniform(0, 0.7)), sky, Contaminant.DCL, 2.0)
        return
    level = work.sigma * log_uniform(rng, 1.5, 200)
    piece = np.full_like(image[rows, columns], level)
    if rng.random() < 0.3:  # charge that trails off
        upright = piece.shape[0] > piece.shape[1]
        along = np.arange(max(piece.shape), dtype=np.float32)
        decay = np.exp(-along / np.float32(log_uniform(rng, 30, 1000)))
        decay = decay if rng.random() < 0.5 else decay[::-1]
        piece *= decay[:, None] if upright else decay[None, :]
    piece *= 1 + np.float32(0.1 * rng.random()) * rng.standard_normal(piece.shape, np.float32)
    image[rows, columns] += piece
    added = np.zeros_like(image)
    added[rows, columns] = piece
    work.mark(Contaminant.HCL, added > 1.2 * work.sigma, where)


def _resample(work: _Work, image: Image) -> None:
    """A frame that was shifted by a fraction of a pixel: noise is correlated, cosmic rays are softer.

    Truth moves by less than a pixel and keeps its place.
    """
    from scipy.ndimage import shift

    dx, dy = work.rng.uniform(-0.5, 0.5, 2)
    order = 1 if work.rng.random() < 0.5 else 3
    image[:] = shift(image, (dy, dx), order=order, mode="nearest")
    soft = _dilated((work.truth & np.uint16(Contaminant.CR)) > 0)
    work.ignore[soft & ((work.truth & np.uint16(Contaminant.CR)) == 0)] |= np.uint16(Contaminant.CR)


def _dilated(where: Flags) -> Flags:
    from scipy.ndimage import binary_dilation

    return np.asarray(binary_dilation(where, np.ones((3, 3), np.bool_)), np.bool_)


def _overscan(work: _Work, image: Image, level: float, read_noise: float) -> None:
    """Strips along one or two edges that saw no light."""
    rng = work.rng
    where = np.zeros(image.shape, np.bool_)
    for side in rng.choice(4, int(rng.integers(1, 3)), replace=False):
        n = int(log_uniform(rng, 4, 70))
        strip = [np.s_[:n, :], np.s_[-n:, :], np.s_[:, :n], np.s_[:, -n:]][side]
        where[strip] = True
    blank = rng.random() < 0.2
    noise = np.float32(0 if blank else read_noise)
    image[where] = np.float32(level) + noise * rng.standard_normal(int(where.sum()), np.float32)
    work.truth[where] = np.uint16(0)
    work.ignore[where] = np.uint16(0)
    work.trails[where] = 0
    work.mark(Contaminant.OV, where)


def _finished(work: _Work, image: Image) -> Contaminated:
    unknown = (work.ignore != 0) & (work.truth == 0)
    data = np.ascontiguousarray(image, np.float32)
    if work.happens("missing"):
        _lose(work, data)
    missing = ~np.isfinite(data)
    work.truth[missing] = 0
    work.ignore[missing] = ALL
    work.trails[missing] = 0
    return Contaminated(data, work.truth, work.ignore & ~work.truth, unknown | missing, work.trails)


def _lose(work: _Work, data: Image) -> None:
    """A band along an edge, or scattered pixels, without values."""
    rng = work.rng
    if rng.random() < 0.6:
        n = int(log_uniform(rng, 3, 100))
        data[[np.s_[:n, :], np.s_[-n:, :], np.s_[:, :n], np.s_[:, -n:]][int(rng.integers(4))]] = np.nan
    else:
        data[rng.random(data.shape) < log_uniform(rng, 1e-4, 0.02)] = np.nan


# into real frames


def _into_real(rng: np.random.Generator, settings: ContaminantSettings, base: Image) -> Contaminated:
    """Everything but stars and saturation; what the frame shows of its own is trusted only where it is dark."""
    values = base[np.isfinite(base)]
    level = float(np.median(values)) if len(values) else math.nan
    sigma = 1.4826 * float(np.median(np.abs(values - level))) if len(values) else math.nan
    if not sigma > 0:
        raise ValueError("the real frame has no sky noise")
    work = _empty_sky(rng, _of_shape(settings, base.shape[:2]))
    work.sigma, work.fwhm = sigma, log_uniform(rng, 1.5, 4.0)
    clean = np.where(np.isfinite(base), base, np.float32(level))
    shown = _smoothed(clean - np.float32(level), 1.0)
    bright = np.abs(shown) > BRIGHT_TRUST * sigma * 0.28  # noise after the smoothing
    bright = _dilated(bright & _dilated(bright & (np.abs(shown) > sigma)))
    _add_foreground(work, sigma)
    image = clean + with_noise(work.light, sigma, rng)
    work.light += np.maximum(shown, 0)
    noise = np.sqrt(np.maximum(work.light, 0) * np.float32(sigma) * np.float32(0.2) + np.float32(sigma**2))
    work.ignore[bright] |= OF_STARS
    _add_detector(work, image, noise, max(level, 3 * sigma))
    if work.happens("overscan"):
        _overscan(work, image, level - sigma * log_uniform(rng, 3, 300), 0.5 * sigma)
    image[~np.isfinite(base)] = np.nan
    return _finished(work, image)


def _of_shape(settings: ContaminantSettings, shape: Shape) -> ContaminantSettings:
    from dataclasses import replace

    return replace(settings, shape=shape)


def with_noise(light: Image, sigma: float, rng: np.random.Generator) -> Image:
    """Added light with its own photon noise, as if a DN were a twentieth of the sky's variance."""
    own = np.sqrt(np.maximum(light, 0) * np.float32(0.05 * sigma))
    return np.asarray(light + own * rng.standard_normal(light.shape, np.float32), np.float32)
