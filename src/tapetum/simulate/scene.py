"""Whole scenes with truth: science and reference images without any input, and a second epoch of a real image.

Light is rendered without noise first - stars by number counts, galaxies as points that sample Sersic profiles, all
through a PSF that varies over the field - then counted by a detector, and then everything that is to be found or to
be recognised as an artefact is put in by `tapetum.simulate.inject`, exactly as into a real image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tapetum.core.errors import UsageError
from tapetum.images.background import Background
from tapetum.images.frame import Bad, Frame, FrameInfo, Image, MaskPlane
from tapetum.simulate.inject import GAUSSIAN_FROM, equivalent_fwhm, inject, spikes_patch
from tapetum.simulate.sources import APART_KINDS, APART_TRIES, Conditions, Room, Source, draw_sources
from tapetum.simulate.stamping import MoffatField, TabulatedPsf, bleed
from tapetum.simulate.truth import stack_truth

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Values = NDArray[np.float64]

SERSIC_INDICES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
SERSIC_REACH = 5.0  # half-light radii at which a galaxy ends
POINT_FLUX = 0.3  # of a galaxy's points, in units of the noise of a star's flux
LEAST_POINTS, MOST_POINTS = 24, 20_000
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
FAINTEST = 0.02  # of the sky noise: a stamp ends where its light is fainter
LEAST_BLUR = 0.5  # sigma of a Gaussian that still interpolates: positions stay good to 0.005 pixel
LABEL_FROM = 0.5  # of the sky noise: light of an artefact that is labelled
SKY_KINDS = ("transient", "streak", "comet", "bright_star")
STAGES: tuple[tuple[tuple[str, ...], Bad], ...] = (
    (("satellite", "ghost"), Bad.ARTEFACT),
    (("cosmic_ray",), Bad.COSMIC),
    (("hot_pixel", "bad_column"), Bad.DEFECT),
)
DEFAULT_COUNTS: Mapping[str, tuple[int, int]] = {
    "transient": (30, 60), "streak": (2, 8), "comet": (2, 8), "satellite": (0, 1), "ghost": (0, 3),
    "cosmic_ray": (20, 200), "hot_pixel": (0, 60), "bad_column": (0, 3),
}  # fmt: skip


@dataclass(frozen=True)
class SceneSettings:
    """What scenes are drawn from; pairs are ranges, one value per scene. The defaults look like a ZTF quadrant.

    Attributes
    ----------
    shape
        (n_y, n_x) [pixel].
    pixel_scale_arcsec, zero_point, gain, read_noise, saturation, exposure_s, band
        As in `tapetum.images.frame.FrameInfo`.
    sky
        Sky level [DN].
    gradient
        Change of the sky over the frame, relative; twilight reaches 0.3.
    fwhm
        Seeing of the science image, before the pixel [pixel].
    fwhm_ratio
        Seeing of the reference over that of the science image.
    stars, galaxies
        How many brighter than the faintest magnitude, per 3072 x 3080 pixels.
    star_slope
        s of the number counts N(m) ~ 10^(s m); galaxies have 0.6 without evolution, here 0.5.
    star_mags, galaxy_mags
        Brightest and faintest.
    depth
        Exposures in the reference.
    registration
        Displacement of the science image against its WCS: rms of the shift, and of a smooth warp [pixel].
    variable
        Share of stars that changed, by 0.3 mag rms.
    counts
        Kind of source -> range of how many per frame.
    mag_range
        Of the sources that are put in.
    on_galaxies
        Share of the transients on a galaxy, drawn from its light.
    """

    shape: tuple[int, int] = (3080, 3072)
    pixel_scale_arcsec: float = 1.012
    zero_point: float = 26.285
    gain: float = 6.0
    read_noise: float = 9.0
    saturation: float = 58_647.0
    exposure_s: float = 30.0
    band: str = "ztfr"
    sky: tuple[float, float] = (120.0, 450.0)
    gradient: tuple[float, float] = (0.0, 0.3)
    fwhm: tuple[float, float] = (1.5, 3.2)
    fwhm_ratio: tuple[float, float] = (0.75, 1.15)
    stars: tuple[float, float] = (4_000.0, 40_000.0)
    galaxies: tuple[float, float] = (1_500.0, 6_000.0)
    star_slope: tuple[float, float] = (0.28, 0.38)
    star_mags: tuple[float, float] = (11.0, 22.5)
    galaxy_mags: tuple[float, float] = (14.5, 22.5)
    depth: int = 15
    registration: float = 0.12
    variable: float = 0.01
    counts: Mapping[str, tuple[int, int]] = field(default_factory=lambda: dict(DEFAULT_COUNTS))
    mag_range: tuple[float, float] = (15.0, 21.5)
    on_galaxies: float = 0.5


@dataclass(frozen=True)
class ScenePair:
    """One scene.

    Attributes
    ----------
    science, reference
        The images on one pixel grid; their masks hold what a pipeline would know: bad columns and full pixels.
    truth
        Table of `tapetum.simulate.truth` of what only the science image has.
    labels : ndarray of uint8, shape (n_y, n_x)
        Bits of `Bad` of every artefact of the science image, those nobody told the mask of included.
    """

    science: Frame
    reference: Frame
    truth: Any
    labels: MaskPlane


@dataclass(frozen=True)
class _Sky:
    """Everything that both epochs show; positions on the grid of the reference [pixel], fluxes in DN."""

    x: Values
    y: Values
    flux: Values
    n_stars: int  # the first of these points are stars, the others sample galaxies
    owner: NDArray[np.int64]  # of the points after the stars: which galaxy
    galaxy_flux: Values


def simulate_scene(settings: SceneSettings, rng: np.random.Generator, name: str = "scene") -> ScenePair:
    """Draw and render a science and a reference image of one piece of sky.

    Parameters
    ----------
    settings
        What is drawn.
    rng
        Source of every random choice.
    name
        What the frames are called after: ``<name>_sci`` and ``<name>_ref``.
    """
    science_psf = draw_psf(settings, rng)
    reference_psf = replace(
        draw_psf(settings, rng), fwhm=science_psf.fwhm * rng.uniform(*settings.fwhm_ratio)
    )
    sky_level = float(rng.uniform(*settings.sky))
    noise = math.sqrt(sky_level / settings.gain + (settings.read_noise / settings.gain) ** 2)
    sky = _draw_sky(settings, noise * 1.9 * science_psf.fwhm, rng)
    wcs = _wcs(settings, rng)
    mjd = 60_000.0 + float(rng.uniform(0, 3000))

    tables = [TabulatedPsf.of_field(psf, settings.shape) for psf in (science_psf, reference_psf)]
    moved = _displace(sky.x, sky.y, settings, rng)
    changed = sky.flux * _variability(sky, settings.variable, rng)
    frames = []
    for which, (psf, x, y, flux, depth) in enumerate(
        ((tables[0], *moved, changed, 1), (tables[1], sky.x, sky.y, sky.flux, settings.depth))
    ):
        base = _sky_plane(settings, sky_level, rng)
        _render(base, psf, x, y, flux, sky.n_stars, settings, noise, rng)
        detect(base, settings.gain * depth, settings.read_noise * math.sqrt(depth), settings.saturation, rng)
        info = _info(settings, mjd - 100.0 * which, depth, tables[which])
        frames.append(_frame(f"{name}_{('sci', 'ref')[which]}", base, wcs, info))
    science, labels, truth = _put_in(frames[0], tables[0], settings, sky, moved, noise, rng)
    return ScenePair(science, frames[1], truth, labels)


def draw_psf(settings: SceneSettings, rng: np.random.Generator) -> MoffatField:
    """A PSF field as telescopes have them: Moffat wings, some ellipticity, worse towards the corners."""
    e, angle = abs(float(rng.normal(0, 0.04))), float(rng.uniform(0, 2 * math.pi))
    slopes = rng.normal(0, 0.015, 4)
    bowl = abs(float(rng.normal(0, 0.05)))
    return MoffatField(
        fwhm=float(np.exp(rng.uniform(*np.log(settings.fwhm)))),
        beta=float(rng.uniform(2.6, 4.2)),
        e1=(e * math.cos(angle), float(slopes[0]), float(slopes[1])),
        e2=(e * math.sin(angle), float(slopes[2]), float(slopes[3])),
        growth=(
            float(rng.normal(0, 0.02)),
            float(rng.normal(0, 0.02)),
            bowl,
            float(rng.normal(0, 0.01)),
            bowl,
        ),
        coma=float(rng.uniform(0, 0.15)),
        aureole=float(rng.uniform(0.002, 0.02)),
    )


def draw_mags(n: int, slope: float, mags: tuple[float, float], rng: np.random.Generator) -> Values:
    """Magnitudes with number counts N(m) ~ 10^(slope m) between two limits."""
    low, high = 10 ** (slope * mags[0]), 10 ** (slope * mags[1])
    return np.asarray(np.log10(low + rng.random(n) * (high - low)) / slope)


@cache
def sersic_radii(index: float) -> tuple[Values, Values]:
    """Share of the light within a radius, and that radius in half-light radii, of a Sersic profile cut at 5 of them.

    I ~ exp(-b (r / r_e)^(1/n)), its light within r is the incomplete gamma function of 2n (Ciotti 1991, A&A 249, 99).
    """
    from scipy.special import gammainc, gammaincinv

    b = float(gammaincinv(2 * index, 0.5))
    most = float(gammainc(2 * index, b * SERSIC_REACH ** (1 / index)))
    # finer towards both ends, where the radius changes fastest
    share = (1 - np.cos(np.linspace(0, math.pi, 1025))) / 2
    return share, (gammaincinv(2 * index, share * most) / b) ** index


def galaxy_points(
    x: Values,
    y: Values,
    flux: Values,
    radius: Values,
    axis_ratio: Values,
    angle: Values,
    index: Values,
    unit: float,
) -> tuple[Values, Values, Values, NDArray[np.int64]]:
    """Points of equal light that sample galaxies evenly, in sunflower order.

    Parameters
    ----------
    x, y, flux : ndarray of float64, shape (n,)
        Centres [pixel] and fluxes [DN] within 5 half-light radii.
    radius, axis_ratio, angle : ndarray of float64, shape (n,)
        Half-light radius (geometric mean of the axes) [pixel], minor / major, direction of the major axis [rad].
    index : ndarray of float64, shape (n,)
        Sersic indices, of `SERSIC_INDICES`.
    unit
        Flux of a point that nobody sees [DN].

    Returns
    -------
    x, y, flux : ndarray of float64, shape (m,)
        The points.
    owner : ndarray of int64, shape (m,)
        To which galaxy each belongs.
    """
    n_points = np.clip(np.ceil(flux / unit), LEAST_POINTS, MOST_POINTS).astype(np.int64)
    owner = np.repeat(np.arange(len(x)), n_points)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(n_points) - n_points, n_points)
    share = (number + 0.5) / n_points[owner]
    r = np.empty(len(owner))
    for value in np.unique(index):
        own = index[owner] == value
        r[own] = np.interp(share[own], *sersic_radii(float(value)))
    r *= radius[owner]
    turn = number * GOLDEN_ANGLE + 0.7 * owner
    root = np.sqrt(axis_ratio[owner])
    along, across = r * np.cos(turn) / root, r * np.sin(turn) * root
    cos, sin = np.cos(angle[owner]), np.sin(angle[owner])
    return (
        x[owner] + along * cos - across * sin,
        y[owner] + along * sin + across * cos,
        (flux / n_points)[owner],
        owner,
    )


def _draw_sky(settings: SceneSettings, flux_noise: float, rng: np.random.Generator) -> _Sky:
    n_y, n_x = settings.shape
    area = n_y * n_x / (3072 * 3080)
    margin = 30.0  # what lies outside still shines in
    n_stars, n_galaxies = (
        int(rng.poisson(area * math.exp(rng.uniform(*np.log(span)))))
        for span in (settings.stars, settings.galaxies)
    )
    x, y = (rng.uniform(-margin, n + margin, n_stars + n_galaxies) for n in (n_x, n_y))
    star_mags = draw_mags(n_stars, float(rng.uniform(*settings.star_slope)), settings.star_mags, rng)
    galaxy_mags = draw_mags(n_galaxies, 0.5, settings.galaxy_mags, rng)
    flux = 10 ** (-0.4 * (np.concatenate([star_mags, galaxy_mags]) - settings.zero_point))
    # fainter galaxies are smaller, with a scatter of a factor 1.6
    radius = 2.2 * 10 ** (-0.11 * (galaxy_mags - 19)) * np.exp(rng.normal(0, 0.45, n_galaxies))
    own = slice(n_stars, None)
    points = galaxy_points(
        x[own], y[own], flux[own], radius / settings.pixel_scale_arcsec, rng.uniform(0.25, 1, n_galaxies),
        rng.uniform(0, math.pi, n_galaxies), rng.choice(SERSIC_INDICES, n_galaxies), POINT_FLUX * flux_noise,
    )  # fmt: skip
    all_x, all_y, all_flux = (
        np.concatenate([part[:n_stars], more]) for part, more in zip((x, y, flux), points[:3], strict=True)
    )
    return _Sky(all_x, all_y, all_flux, n_stars, points[3], flux[own])


def _displace(
    x: Values, y: Values, settings: SceneSettings, rng: np.random.Generator
) -> tuple[Values, Values]:
    """Where the science image really shows what its WCS places at (x, y): a shift and a smooth warp."""
    n_y, n_x = settings.shape
    u, v = 2 * x / n_x - 1, 2 * y / n_y - 1
    moved = []
    for values in (x, y):
        shift, *warp = rng.normal(0, settings.registration, 6)
        bend = sum(w * t for w, t in zip(warp, (u, v, u * v, u * u - 1 / 3, v * v - 1 / 3), strict=True))
        moved.append(values + shift + 0.6 * bend)
    return moved[0], moved[1]


def _variability(sky: _Sky, share: float, rng: np.random.Generator) -> Values:
    factor = np.ones(len(sky.x))
    varies = np.flatnonzero(rng.random(sky.n_stars) < share)
    factor[varies] = 10 ** (-0.4 * rng.normal(0, 0.3, len(varies)))
    return factor


def _sky_plane(settings: SceneSettings, level: float, rng: np.random.Generator) -> Image:
    """Sky with the gradient of twilight: a plane, and a little curvature."""
    n_y, n_x = settings.shape
    u, v = (
        np.linspace(-1, 1, n_x, dtype=np.float32)[None, :],
        np.linspace(-1, 1, n_y, dtype=np.float32)[:, None],
    )
    slope, angle = float(rng.uniform(*settings.gradient)) / 2, float(rng.uniform(0, 2 * math.pi))
    bend = np.float32(0.2 * slope * rng.normal())
    plane = np.float32(slope * math.cos(angle)) * u + np.float32(slope * math.sin(angle)) * v
    return np.asarray(
        np.float32(level) * (1 + plane + bend * (u * u + v * v - np.float32(2 / 3))), np.float32
    )


def _render(
    image: Image,
    psf: TabulatedPsf,
    x: Values,
    y: Values,
    flux: Values,
    n_stars: int,
    settings: SceneSettings,
    noise: float,
    rng: np.random.Generator,
) -> None:
    """Add stars, galaxies, and the spikes of the stars that fill their pixels."""
    psf.add(image, x, y, flux, faintest=FAINTEST * noise)
    fwhm = equivalent_fwhm(psf, image.shape[1] / 2, image.shape[0] / 2)
    share, angle = float(rng.uniform(0.002, 0.01)), float(rng.choice([0.0, 45.0]))
    for star in np.flatnonzero(flux[:n_stars] > settings.saturation * fwhm**2):
        patch = spikes_patch(
            float(x[star]), float(y[star]), float(flux[star]) * share, fwhm, 4, angle, 0.1 * noise
        )
        covered = patch.on((image.shape[0], image.shape[1]))
        if covered is not None:
            image[covered[0]] += covered[1]


def detect(image: Image, gain: float, read_noise: float, saturation: float, rng: np.random.Generator) -> None:
    """Turn expected light into what a detector reads, in place: photon and read noise, full pixels that bleed.

    Parameters
    ----------
    image : ndarray of float32, shape (n_y, n_x)
        Expected light [DN], sky included.
    gain
        Electrons per DN.
    read_noise
        [electron].
    saturation
        Level at which a pixel is full [DN].
    rng
        Poisson where the faintest pixel has fewer than a thousand electrons and the frame is dark enough to need it,
        else Gaussian.
    """
    if float(image.min()) * gain < GAUSSIAN_FROM / 20:
        electrons = rng.poisson(np.maximum(image, 0) * gain).astype(np.float32)
        electrons += np.float32(read_noise) * rng.standard_normal(image.shape, np.float32)
        np.divide(electrons, np.float32(gain), out=image)
    else:
        variance = image / np.float32(gain)
        variance += np.float32((read_noise / gain) ** 2)
        image += np.sqrt(variance) * rng.standard_normal(image.shape, np.float32)
    if math.isfinite(saturation):
        bleed(image, saturation)


def _info(settings: SceneSettings, mjd: float, depth: int, psf: TabulatedPsf) -> FrameInfo:
    n_y, n_x = settings.shape
    return FrameInfo(
        telescope="generic",
        band=settings.band,
        mjd=mjd,
        exposure_s=settings.exposure_s * depth,
        gain=settings.gain * depth,
        read_noise=settings.read_noise * math.sqrt(depth),
        saturation=settings.saturation,
        pixel_scale_arcsec=settings.pixel_scale_arcsec,
        zero_point=settings.zero_point,
        fwhm_pix=equivalent_fwhm(psf, n_x / 2, n_y / 2),
        origin=dict.fromkeys(("gain", "read_noise", "saturation", "zero_point", "band"), "simulation"),
    )


def _frame(name: str, data: Image, wcs: Any, info: FrameInfo) -> Frame:
    mask = np.where(data >= info.saturation, np.uint8(Bad.SATURATED), np.uint8(0)).astype(np.uint8)
    return Frame(name, name, data, mask, wcs, _header(info), info)


def _header(info: FrameInfo) -> Any:
    """The cards by which our generic profile, and people, understand a simulated image."""
    from astropy.io.fits import Header

    header = Header()
    cards: tuple[tuple[str, Any, str], ...] = (
        ("TELESCOP", "simulation", "no photon was harmed"),
        ("FILTER", info.band, "sncosmo name"),
        ("MJD-AVG", info.mjd, "[d] UTC, middle of the exposure"),
        ("EXPTIME", info.exposure_s, "[s]"),
        ("GAIN", info.gain, "[electron/DN]"),
        ("RDNOISE", info.read_noise, "[electron]"),
        ("SATURATE", info.saturation, "[DN] full pixel"),
        ("MAGZP", info.zero_point, "[mag] of 1 DN"),
        ("SEEING", info.fwhm_pix, "[pixel] FWHM"),
    )
    for key, value, comment in cards:
        header[key] = (value, comment)
    return header


def _wcs(settings: SceneSettings, rng: np.random.Generator) -> Any:
    from astropy.wcs import WCS

    n_y, n_x = settings.shape
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [float(rng.uniform(0, 360)), math.degrees(math.asin(float(rng.uniform(-0.5, 0.95))))]
    wcs.wcs.crpix = [(n_x + 1) / 2, (n_y + 1) / 2]
    step, turn = settings.pixel_scale_arcsec / 3600, math.radians(float(rng.normal(0, 1)))
    wcs.wcs.cd = step * np.array([[-math.cos(turn), math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    wcs.wcs.set()
    return wcs


def _put_in(
    frame: Frame,
    psf: TabulatedPsf,
    settings: SceneSettings,
    sky: _Sky,
    moved: tuple[Values, Values],
    noise: float,
    rng: np.random.Generator,
) -> tuple[Frame, MaskPlane, Any]:
    """Put everything into the science image that the reference has not; label artefacts and tell the truth."""
    counts = {kind: int(rng.integers(low, high + 1)) for kind, (low, high) in settings.counts.items()}
    conditions = Conditions(
        settings.shape, settings.zero_point, settings.mag_range, float(frame.info.fwhm_pix or 2.0), noise,
        settings.gain, settings.saturation,
    )  # fmt: skip
    room = Room(conditions.apart_fwhm * conditions.fwhm_pix, conditions.fwhm_pix)
    sources = _onto_galaxies(draw_sources(counts, conditions, rng), sky, moved, settings, room, rng)
    level = np.full(settings.shape, np.median(frame.data[::7, ::7]), np.float32)
    background = Background(level, np.full(settings.shape, noise, np.float32))
    labels = frame.mask.copy()
    truths = []
    for kinds, label in ((SKY_KINDS, Bad(0)), *STAGES):
        own = [source for source in sources if source.kind in kinds]
        before = frame.data
        frame, truth = inject(frame, psf, own, rng, background=background)
        truths.append(truth)
        if label:
            labels[np.abs(frame.data - before) > LABEL_FROM * noise] |= np.uint8(label)
    known = np.zeros(settings.shape, np.bool_)
    for source in sources:
        if source.kind == "bad_column":
            known[round(source.y) :, round(source.x)] = True
    labels[known] |= np.uint8(Bad.DEFECT)
    labels |= frame.mask
    mask = np.where(known, frame.mask | np.uint8(Bad.DEFECT), frame.mask).astype(np.uint8)
    return replace(frame, mask=mask), labels, stack_truth(truths)


def _onto_galaxies(
    sources: Sequence[Source],
    sky: _Sky,
    moved: tuple[Values, Values],
    settings: SceneSettings,
    room: Room,
    rng: np.random.Generator,
) -> list[Source]:
    """Move a share of the transients to galaxies, away from all other sources where there is room for it."""
    share = settings.on_galaxies if len(sky.owner) else 0.0
    chosen = [source.kind == "transient" and rng.random() < share for source in sources]
    for source, move in zip(sources, chosen, strict=True):
        if source.kind in APART_KINDS and not move:
            room.take(source)
    out = []
    for source, move in zip(sources, chosen, strict=True):
        placed = source
        for _ in range(APART_TRIES if move else 0):
            placed = _onto_galaxy(source, sky, moved, settings, rng)
            if room.is_free(placed):
                break
        if move:
            room.take(placed)
        out.append(placed)
    return out


def _onto_galaxy(
    source: Source, sky: _Sky, moved: tuple[Values, Values], settings: SceneSettings, rng: np.random.Generator
) -> Source:
    """Move a transient to where galaxies have light: the more light, the more likely."""
    n_y, n_x = settings.shape
    light = np.cumsum(sky.galaxy_flux)
    for _ in range(100):
        galaxy = int(np.searchsorted(light, rng.random() * light[-1]))
        first, last = np.searchsorted(sky.owner, [galaxy, galaxy + 1])
        point = sky.n_stars + int(rng.integers(first, last))
        x, y = (
            float(moved[0][point] + rng.uniform(-0.2, 0.2)),
            float(moved[1][point] + rng.uniform(-0.2, 0.2)),
        )
        if 0 <= x <= n_x - 1 and 0 <= y <= n_y - 1:
            near = slice(sky.n_stars + first, sky.n_stars + last)
            centre = float(moved[0][near].mean()), float(moved[1][near].mean())
            flux = float(sky.galaxy_flux[galaxy])
            return replace(source, x=x, y=y, host_x=centre[0], host_y=centre[1], host_flux=flux)
    return source


# a second epoch of a real image


@dataclass(frozen=True)
class EpochChange:
    """How a second epoch differs from the first.

    Attributes
    ----------
    shift : (float, float)
        Where the first epoch's pixel (0, 0) lies in the second [pixel]; the WCS follows.
    fwhm_ratio
        Seeing of the second over the first, 1 to 2; a shift by parts of a pixel blurs by at least `LEAST_BLUR`.
    sky_factor
        Sky of the second over the first, >= 0.2.
    flux_factor
        Transparency: DN of the same star, second over first.
    """

    shift: tuple[float, float] = (0.0, 0.0)
    fwhm_ratio: float = 1.15
    sky_factor: float = 1.1
    flux_factor: float = 1.0


def second_epoch(
    frame: Frame,
    background: Background,
    fwhm_pix: float,
    change: EpochChange,
    rng: np.random.Generator,
    *,
    name: str | None = None,
) -> Frame:
    r"""Simulate another exposure of the field of a real image, so that the real one can serve as its reference.

    Parameters
    ----------
    frame
        The first epoch.
    background
        Its sky and noise.
    fwhm_pix
        Its seeing [pixel].
    change
        What is different.
    rng
        Source of the new noise.
    name
        Of the second epoch; None: that of the first with ``_epoch2``.

    Returns
    -------
    Frame
        With WCS, zero point, seeing and mask of the second epoch. Put sources in with `inject`.

    Raises
    ------
    UsageError
        A change that convolution cannot make.

    Notes
    -----
    An image contains its noise, and whatever is made from it repeats that noise: were the new epoch the old one plus
    fresh noise, a difference of the two would be quieter than that of two real exposures. Therefore

    - where the first epoch shows nothing (smoothed significance below 3.5), its pixels are replaced by the sky level:
      no noise of the first epoch is repeated there, and the second gets all the sky noise of an exposure of its own;
    - where it shows something, its pixels are kept with their noise :math:`n_1`, which the kernel k smooths, and the
      fresh noise is made larger by exactly that, variance :math:`\sigma_2^2 + k^2 * (w^2 \sigma_1^2)`: what the
      difference :math:`k * n_1` of two independent exposures would have had.

    The noise of a difference image is thus that of two independent exposures everywhere; single pixels of bright
    sources in the second epoch are noisier by :math:`2 k^2 * \sigma_1^2`, and sources fainter than the first epoch
    shows are missing in the second.
    """
    from scipy.ndimage import convolve1d

    kernels = _epoch_kernels(fwhm_pix, change)
    keep = _significant(frame, background, fwhm_pix)
    light = np.where(np.isfinite(frame.data), frame.data - background.level, 0) * keep

    def resample(image: Image, power: int = 1) -> Image:
        along_x = convolve1d(image, kernels[0] ** power, axis=1, mode="nearest")
        return np.asarray(convolve1d(along_x, kernels[1] ** power, axis=0, mode="nearest"), np.float32)

    gain = np.float32(frame.info.gain)
    kept = (keep * (background.noise**2 + np.maximum(light, 0) / gain)).astype(np.float32)
    factor = np.float32(change.flux_factor)
    moved = resample(light.astype(np.float32)) * factor
    level = resample(background.level)
    brighter = np.float32(change.sky_factor - 1) * np.maximum(level, 0) / gain
    fresh = np.maximum(
        resample(background.noise) ** 2 + brighter, (frame.info.read_noise / frame.info.gain) ** 2
    )
    variance = fresh + np.maximum(moved, 0) / gain + np.maximum(resample(kept, 2), 0) * factor**2
    data = level * np.float32(change.sky_factor) + moved
    data += np.sqrt(variance) * rng.standard_normal(frame.shape, np.float32)
    mask = _moved_mask(frame, change)
    data[(mask & Bad.NO_DATA) > 0] = np.nan
    return _as_epoch(frame, np.asarray(data, np.float32), mask, fwhm_pix, change, name)


def _epoch_blur(fwhm_pix: float, change: EpochChange) -> float:
    """Sigma of the Gaussian that makes the second seeing [pixel]; 0 where nothing is blurred or interpolated."""
    if not 1 <= change.fwhm_ratio <= 2:
        raise UsageError(f"a second epoch with {change.fwhm_ratio} times the seeing: must be 1 to 2")
    if not (change.sky_factor >= 0.2 and change.flux_factor > 0):
        raise UsageError("a second epoch needs sky_factor >= 0.2 and flux_factor > 0")
    sigma = fwhm_pix / 2.3548 * math.sqrt(change.fwhm_ratio**2 - 1)
    if sigma == 0 and all(shift == round(shift) for shift in change.shift):
        return 0.0
    return max(sigma, LEAST_BLUR)


def _epoch_kernels(fwhm_pix: float, change: EpochChange) -> tuple[Values, Values]:
    """1-D Gaussians displaced by the shift: they blur and interpolate at once, without ringing; they sum to 1."""
    sigma = _epoch_blur(fwhm_pix, change)
    kernels = []
    for shift in change.shift:
        half = math.ceil(abs(shift) + 1 + 5 * sigma)
        offset = np.arange(-half, half + 1) - shift
        kernel = np.exp(-((offset / sigma) ** 2) / 2) if sigma else (offset == 0).astype(np.float64)
        kernels.append(kernel / kernel.sum())
    return kernels[0], kernels[1]


def _significant(frame: Frame, background: Background, fwhm_pix: float) -> Image:
    """1 where the image shows something, 0 where it shows sky, with soft edges."""
    from scipy.ndimage import gaussian_filter, maximum_filter

    sigma = max(fwhm_pix / 2.3548, 0.7)
    snr = np.where(np.isfinite(frame.data), (frame.data - background.level) / background.noise, 0)
    # a Gaussian leaves 1 / (2 sqrt(pi) sigma) of white noise
    smooth = gaussian_filter(snr.astype(np.float32), sigma) * (2 * math.sqrt(math.pi) * sigma)
    wide = gaussian_filter(snr.astype(np.float32), 3 * sigma) * (6 * math.sqrt(math.pi) * sigma)
    shows = maximum_filter((smooth > 3.5) | (wide > 4), size=2 * math.ceil(1.2 * fwhm_pix) + 1)
    return np.asarray(gaussian_filter(shows.astype(np.float32), 1.0), np.float32)


def _moved_mask(frame: Frame, change: EpochChange) -> MaskPlane:
    from scipy.ndimage import maximum_filter

    dx, dy = (round(value) for value in change.shift)
    n_y, n_x = frame.shape
    mask = np.full(frame.shape, np.uint8(Bad.NO_DATA))
    source = frame.mask | np.where(np.isfinite(frame.data), np.uint8(0), np.uint8(Bad.NO_DATA))
    for bit in Bad:
        plane = maximum_filter(((source & bit) > 0).astype(np.uint8), 3) * np.uint8(bit)
        source = np.where(plane > 0, source | plane, source).astype(np.uint8)
    to_y, to_x = slice(max(dy, 0), min(n_y + dy, n_y)), slice(max(dx, 0), min(n_x + dx, n_x))
    from_y, from_x = slice(max(-dy, 0), min(n_y - dy, n_y)), slice(max(-dx, 0), min(n_x - dx, n_x))
    mask[to_y, to_x] = source[from_y, from_x]
    return mask


def _as_epoch(
    frame: Frame, data: Image, mask: MaskPlane, fwhm_pix: float, change: EpochChange, name: str | None
) -> Frame:
    name = name or f"{frame.name}_epoch2"
    zero_point = frame.info.zero_point
    if zero_point is not None:
        zero_point += 2.5 * math.log10(change.flux_factor)
    info = replace(
        frame.info,
        zero_point=zero_point,
        fwhm_pix=math.hypot(fwhm_pix, 2.3548 * _epoch_blur(fwhm_pix, change)),
    )
    wcs = frame.wcs
    if wcs is not None:
        wcs = wcs.deepcopy()
        wcs.wcs.crpix = wcs.wcs.crpix + np.array(change.shift)
        if wcs.sip is not None:  # its polynomials count from a reference pixel of their own
            from astropy.wcs import Sip

            old = wcs.sip
            wcs.sip = Sip(old.a, old.b, old.ap, old.bp, old.crpix + np.array(change.shift))
        wcs.wcs.set()
    return replace(frame, name=name, source=name, data=data, mask=mask, wcs=wcs, info=info, variance=None)
