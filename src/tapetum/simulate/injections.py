"""Alert triplets with known truth: a scene is rendered twice, spoilt, subtracted, and cut where it was detected.

Everything is linear in flux and in units of the science image's sky noise, so the difference splits exactly
into what a real change of the sky put there and what misregistration, wrong PSFs, saturation or particles put
there. The label follows from the energies of the two parts: an alert is real when the change of the sky
dominates what is seen at its position.

The proper difference image is that of Zackay, Ofek & Gal-Yam (2016, ApJ 830, 27), equation 13; the
alternative convolves the template with a regularised ratio of the two PSFs, the ideal kernel in the sense of
Alard & Lupton (1998, ApJ 503, 325).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tapetum.core.robust import MAD_TO_SIGMA

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FIELD = 96  # rendered side [pixel]: the stamp, and room for the detection to lie off the middle
OVER = 2  # sub-pixels per pixel and axis; enough for PSFs down to 1.2 pixel FWHM
STAMP = 63  # side of the stamps that are cut [pixel]
MIDDLE = FIELD // 2

Image = NDArray[np.float32]
Spectrum = NDArray[np.complex64]


@dataclass(frozen=True)
class Psf:
    """An elliptical Moffat profile.

    Attributes
    ----------
    fwhm
        Geometric mean of both axes [pixel].
    beta
        Wing exponent; large is Gaussian.
    ellipticity
        1 - minor / major, in [0, 1).
    angle
        Of the major axis from +x to +y [rad].
    """

    fwhm: float
    beta: float = 3.5
    ellipticity: float = 0.0
    angle: float = 0.0

    def image(self, n_pix: int, over: int = 1, offset: float = 0.0) -> Image:
        """Profile of unit sum on a wrapped grid of ``n_pix * over`` samples a side.

        Parameters
        ----------
        n_pix
            Side [pixel].
        over
            Samples per pixel and axis.
        offset
            Centre of the profile on both axes, in samples from the middle of sample (0, 0).

        Returns
        -------
        ndarray of float32, shape (n_pix * over, n_pix * over)
        """
        axis = ((np.fft.fftfreq(n_pix * over, 1 / (n_pix * over)) - offset) / over).astype(np.float32)
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        stretch = np.sqrt(1 - self.ellipticity)
        along = (axis[None, :] * cos + axis[:, None] * sin) * stretch
        across = (axis[:, None] * cos - axis[None, :] * sin) / stretch
        alpha = 0.5 * self.fwhm / np.sqrt(2 ** (1 / self.beta) - 1)
        profile = (1 + (along**2 + across**2) / alpha**2) ** -self.beta
        return np.asarray(profile / profile.sum(), np.float32)


@dataclass
class Scene:
    """What is on the sky and what goes wrong, before anything is rendered; fluxes in science sky sigmas.

    Attributes
    ----------
    psf_science, psf_template
        True PSFs.
    stars : ndarray of float64, shape (n, 4)
        x, y [pixel of the field], flux in science, flux in template; not part of the change.
    change : ndarray of float64, shape (m, 3)
        x, y, flux of what truly changed (in the science image only; negative faded).
    galaxy : ndarray of float32, shape (FIELD * OVER, FIELD * OVER), or None
        Extended light on both images before the PSF.
    science_extra, template_extra : ndarray of float32, shape (FIELD, FIELD), or None
        Light that no PSF smoothed: particles, columns, ghosts, steps.
    shift : (float, float)
        Registration error of the template [pixel].
    psf_error : (float, float)
        Relative error of the assumed widths of science and template PSF.
    scale_error
        Relative error of the flux scale of the template.
    noise_template
        Template sky noise in science sky sigmas.
    correlation
        Gaussian sigma of the noise correlation [pixel]; 0 is white.
    electrons
        Electrons per science sky sigma: sets photon noise of bright sources.
    saturation : (float, float)
        Levels at which science and template are clipped.
    centre : (float, float)
        x, y near which the alert is detected [pixel].
    radius
        How far from `centre` the detection may lie [pixel].
    proper
        Proper difference (True) or kernel-matched difference.
    """

    psf_science: Psf
    psf_template: Psf
    stars: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))
    change: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 3)))
    galaxy: Image | None = None
    science_extra: Image | None = None
    template_extra: Image | None = None
    shift: tuple[float, float] = (0.0, 0.0)
    psf_error: tuple[float, float] = (0.0, 0.0)
    scale_error: float = 0.0
    noise_template: float = 0.3
    correlation: float = 0.0
    electrons: float = 60.0
    saturation: tuple[float, float] = (np.inf, np.inf)
    centre: tuple[float, float] = (MIDDLE, MIDDLE)
    radius: float = 2.0
    proper: bool = True


@dataclass(frozen=True)
class Truth:
    """A simulated alert.

    Attributes
    ----------
    stamps : ndarray of float32, shape (3, STAMP, STAMP)
        Science, template, difference.
    target
        Probability that the alert is real, by the energies of change and artefact.
    snr
        Matched-filter signal-to-noise of the change in the difference image.
    artefact
        Energy of the artefact over that of the change (root of the sum of squares), in the same box.
    kind
        Name of the scenario.
    """

    stamps: Image
    target: float
    snr: float
    artefact: float
    kind: str


def render(points: NDArray[np.float64], otf: Spectrum, extended: Image | None = None) -> Image:
    """Image of point sources and extended light through one PSF.

    Parameters
    ----------
    points : ndarray of float64, shape (n, 3)
        x, y [pixel], flux.
    otf : ndarray of complex64, shape (FIELD * OVER, FIELD * OVER // 2 + 1)
        `numpy.fft.rfft2` of the oversampled PSF.
    extended : ndarray of float32, shape (FIELD * OVER, FIELD * OVER), optional
        Light before the PSF.

    Returns
    -------
    ndarray of float32, shape (FIELD, FIELD)
    """
    n = FIELD * OVER
    # the centre of pixel x lies at OVER * x + (OVER - 1) / 2 on the fine grid
    x, y = (OVER * points[:, axis] + (OVER - 1) / 2 for axis in (0, 1))
    rows = np.exp(-2j * np.pi * np.outer(np.fft.fftfreq(n), y)).astype(np.complex64)
    columns = np.exp(-2j * np.pi * np.outer(x, np.fft.rfftfreq(n))).astype(np.complex64)
    spectrum = (rows * points[:, 2].astype(np.float32)) @ columns
    if extended is not None:
        spectrum = spectrum + np.fft.rfft2(extended)
    fine = np.asarray(np.fft.irfft2(spectrum * otf, (n, n)), np.float32)
    return _sum_samples(fine)


def subtraction_filters(
    science: Psf, template: Psf, noise: tuple[float, float], *, proper: bool
) -> tuple[Spectrum, Spectrum]:
    """Filters (a, b) such that the difference is ``a * science - b * template`` in Fourier space.

    Parameters
    ----------
    science, template
        The PSFs as the pipeline believes them to be.
    noise
        Sky noise of science and template.
    proper
        Zackay, Ofek & Gal-Yam (2016) eq. 13 with unit flux scales, else the regularised kernel of the PSF
        ratio.

    Returns
    -------
    two ndarrays of complex64, shape (FIELD, FIELD // 2 + 1)
    """
    p_science = np.fft.rfft2(_binned(science))
    p_template = np.fft.rfft2(_binned(template))
    if proper:
        variance = noise[0] ** 2 * np.abs(p_template) ** 2 + noise[1] ** 2 * np.abs(p_science) ** 2
        weight = 1 / np.sqrt(variance + 1e-12)
        return (p_template * weight).astype(np.complex64), (p_science * weight).astype(np.complex64)
    if science.fwhm >= template.fwhm:  # degrade the sharper of the two
        kernel = p_science * p_template.conj() / (np.abs(p_template) ** 2 + 1e-3)
        return np.ones_like(kernel, np.complex64), kernel.astype(np.complex64)
    kernel = p_template * p_science.conj() / (np.abs(p_science) ** 2 + 1e-3)
    return kernel.astype(np.complex64), np.ones_like(kernel, np.complex64)


def _binned(psf: Psf) -> Image:
    # the PSF integrated over pixels, centred on the middle of pixel (0, 0)
    fine = psf.image(FIELD, OVER, (OVER - 1) / 2)
    return _sum_samples(fine)


def _sum_samples(fine: Image) -> Image:
    return np.asarray(fine.reshape(FIELD, OVER, FIELD, OVER).sum((1, 3)), np.float32)


def _filtered(image: Image, spectrum: Spectrum) -> Image:
    return np.fft.irfft2(np.fft.rfft2(image) * spectrum, image.shape).astype(np.float32)


def _noise(rng: np.random.Generator, sigma: Image, correlation: float) -> Image:
    white = rng.standard_normal((FIELD, FIELD), np.float32)
    if correlation > 0:
        ky, kx = np.fft.fftfreq(FIELD)[:, None], np.fft.rfftfreq(FIELD)[None, :]
        white = _filtered(
            white, np.exp(-2 * (np.pi * correlation) ** 2 * (kx**2 + ky**2)).astype(np.complex64)
        )
        white = white / white.std()
    return np.asarray(white * sigma, np.float32)


@dataclass(frozen=True)
class _Frames:
    science: Image
    template: Image
    difference: Image
    change: Image  # part of the difference that the sky made
    artefact: Image  # part of the difference that nothing on the sky made
    photon: Image  # local noise over sky noise of the science image


def subtract_scene(scene: Scene, rng: np.random.Generator) -> _Frames:
    """Render both images of a scene, add noise, subtract, and keep apart what the difference is made of."""
    otf = [
        np.fft.rfft2(psf.image(FIELD, OVER)).astype(np.complex64)
        for psf in (scene.psf_science, scene.psf_template)
    ]
    change = render(scene.change, otf[0]) if len(scene.change) else np.zeros((FIELD, FIELD), np.float32)
    science = render(scene.stars[:, [0, 1, 2]], otf[0], scene.galaxy) + change
    moved = scene.stars[:, [0, 1, 3]] + np.array([*scene.shift, 0.0])
    template = render(moved, otf[1], scene.galaxy) * np.float32(1 + scene.scale_error)
    photon = np.sqrt(1 + np.maximum(science, 0) / scene.electrons)
    deep = scene.noise_template * np.sqrt(1 + np.maximum(template, 0) / scene.electrons)
    science, template = np.minimum(science, scene.saturation[0]), np.minimum(template, scene.saturation[1])
    science = science if scene.science_extra is None else science + scene.science_extra
    template = template if scene.template_extra is None else template + scene.template_extra
    believed = [
        Psf(psf.fwhm * (1 + error), psf.beta, psf.ellipticity, psf.angle)
        for psf, error in zip((scene.psf_science, scene.psf_template), scene.psf_error, strict=True)
    ]
    a, b = subtraction_filters(believed[0], believed[1], (1.0, scene.noise_template), proper=scene.proper)
    signal = _filtered(change, a)
    clean = _filtered(science, a) - _filtered(template, b)
    science = science + _noise(rng, photon, scene.correlation)
    template = template + _noise(rng, deep, scene.correlation)
    difference = _filtered(science, a) - _filtered(template, b)
    return _Frames(science, template, difference, signal, clean - signal, photon)


def _detect(difference: Image, scene: Scene) -> tuple[int, int, float]:
    # the strongest peak of the smoothed |difference| near the expected place, and its sign
    ky, kx = np.fft.fftfreq(FIELD)[:, None], np.fft.rfftfreq(FIELD)[None, :]
    smooth = _filtered(difference, np.exp(-2 * (np.pi * 0.6) ** 2 * (kx**2 + ky**2)).astype(np.complex64))
    y, x = np.mgrid[:FIELD, :FIELD]
    reach = STAMP // 2
    inside = (x >= reach) & (x < FIELD - reach) & (y >= reach) & (y < FIELD - reach)
    near = inside & ((x - scene.centre[0]) ** 2 + (y - scene.centre[1]) ** 2 <= scene.radius**2)
    if not near.any():
        near = inside
    peak = int(np.argmax(np.where(near, np.abs(smooth), -1)))
    return peak % FIELD, peak // FIELD, float(np.sign(smooth.flat[peak]) or 1.0)


def judge(frames: _Frames, scene: Scene, x: int, y: int) -> tuple[float, float, float]:
    """Probability that a detection at (x, y) is real, S/N of the change, and energy of artefact over change.

    Notes
    -----
    The energies are root sums of squares in a box of 2 ceil(max(3, 1.2 FWHM)) + 1 pixels a side about the
    detection. An artefact counts beyond twice the noise only; one of 0.7 times the change halves the
    probability. The change itself counts fully from S/N 5, not at all below 2.5, and not at all when it lies
    elsewhere.
    """
    half = int(np.ceil(max(3.0, 1.2 * scene.psf_science.fwhm)))
    box = np.s_[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1]
    sigma = MAD_TO_SIGMA * float(np.median(np.abs(frames.difference - np.median(frames.difference))))
    signal = float(np.sqrt((frames.change[box] ** 2).sum()))
    artefact = float(np.sqrt(max((frames.artefact[box] ** 2).sum() - 4 * sigma**2, 0.0)))
    snr = signal / (sigma * float(frames.photon[y, x]))
    ratio = artefact / max(signal, 1e-6)
    if not len(scene.change):
        return 0.0, snr, ratio
    weight = np.abs(scene.change[:, 2])
    where = (scene.change[:, :2] * weight[:, None]).sum(0) / weight.sum()
    if np.hypot(*(where - (x, y))) > max(2.0, 0.7 * scene.psf_science.fwhm):
        return 0.0, snr, ratio
    return float(np.clip((snr - 2.5) / 2.5, 0, 1) / (1 + (ratio / 0.7) ** 4)), snr, ratio


def simulate_alert(kind: str, rng: np.random.Generator, *, flip: float = 0.85) -> Truth:
    """Draw one alert of a scenario.

    Parameters
    ----------
    kind
        A key of `SCENARIOS`.
    rng
        Source of every random choice.
    flip
        Share of surveys that store a negative difference with its sign flipped, as ZTF does.

    Raises
    ------
    KeyError
        No such scenario.
    """
    scene = _background(rng)
    SCENARIOS[kind](scene, rng)
    frames = subtract_scene(scene, rng)
    x, y, sign = _detect(frames.difference, scene)
    target, snr, ratio = judge(frames, scene, x, y)
    half = STAMP // 2
    cut = np.s_[y - half : y + half + 1, x - half : x + half + 1]
    difference = frames.difference[cut] * (-1.0 if sign < 0 and rng.random() < flip else 1.0)
    sky, unit = rng.uniform(0, 500), np.exp(rng.uniform(np.log(0.5), np.log(50)))
    stamps = np.stack(
        [frames.science[cut] * unit + sky, frames.template[cut] * unit + sky, difference * unit]
    )
    return Truth(stamps.astype(np.float32), target, snr, ratio, kind)


# what a field looks like


def _flux(psf: Psf, snr: float) -> float:
    # over unit white noise the matched filter finds F * sqrt(sum(P^2)); for these profiles the root is about
    # 0.53 / FWHM
    return snr * psf.fwhm / 0.53


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _background(rng: np.random.Generator) -> Scene:
    """Field stars, PSFs, noise and the small errors that every subtraction has."""
    fwhm = _log_uniform(rng, 1.5, 4.0) if rng.random() < 0.75 else _log_uniform(rng, 1.2, 6.0)
    science = Psf(fwhm, rng.uniform(2.5, 6), rng.uniform(0, 0.15), rng.uniform(0, np.pi))
    ratio = rng.uniform(0.65, 1.2)
    template = Psf(max(1.2, fwhm * ratio), science.beta, rng.uniform(0, 0.1), rng.uniform(0, np.pi))
    n_stars = rng.poisson(_log_uniform(rng, 0.7, 60))
    snr = np.minimum(3 * rng.random(n_stars) ** (-1 / 0.7), 4000)
    flux = snr * _flux(science, 1.0)
    stars = np.column_stack([rng.uniform(0, FIELD, (n_stars, 2)), flux, flux])
    careful = rng.random() < 0.7  # most nights subtract well
    size = 1.0 if careful else 4.0
    return Scene(
        science,
        template,
        stars=stars,
        shift=(rng.normal(0, 0.02 * size), rng.normal(0, 0.02 * size)),
        psf_error=(rng.normal(0, 0.01 * size), rng.normal(0, 0.01 * size)),
        scale_error=rng.normal(0, 0.003 * size),
        noise_template=rng.uniform(0.15, 0.7),
        correlation=rng.uniform(0.3, 0.8) if rng.random() < 0.25 else 0.0,
        electrons=_log_uniform(rng, 15, 200),
        saturation=(_log_uniform(rng, 800, 2e4), _log_uniform(rng, 800, 2e4)),
        centre=(MIDDLE + rng.uniform(-0.5, 0.5), MIDDLE + rng.uniform(-0.5, 0.5)),
        proper=bool(rng.random() < 0.65),
    )


def _add_star(scene: Scene, x: float, y: float, flux: float) -> None:
    scene.stars = np.vstack([scene.stars, [x, y, flux, flux]])


def _alert_snr(rng: np.random.Generator) -> float:
    # alert streams are dominated by sources near the limit
    return float(min(4.5 * rng.random() ** (-1 / 0.9), 400))


def _change(scene: Scene, flux: float, x: float | None = None, y: float | None = None) -> None:
    scene.change = np.array(
        [[scene.centre[0] if x is None else x, scene.centre[1] if y is None else y, flux]]
    )


def _galaxy(scene: Scene, rng: np.random.Generator, x: float, y: float) -> float:
    """Put a galaxy at (x, y): an exponential disc, half of them with a bulge; its scale length [pixel]."""
    length = _log_uniform(rng, 0.8, 8)
    axis_ratio, angle = rng.uniform(0.25, 1), rng.uniform(0, np.pi)
    axis = (np.arange(FIELD * OVER, dtype=np.float32) - (OVER - 1) / 2) / OVER
    dx, dy = axis[None, :] - x, axis[:, None] - y
    along, across = (
        dx * np.cos(angle) + dy * np.sin(angle),
        (dy * np.cos(angle) - dx * np.sin(angle)) / axis_ratio,
    )
    radius = np.sqrt(along**2 + across**2) / length
    light = np.exp(-radius)
    if rng.random() < 0.5:  # de Vaucouleurs-like cusp
        light = light + rng.uniform(0.5, 5) * np.exp(-4 * np.sqrt(radius))
    total = _flux(scene.psf_science, _log_uniform(rng, 8, 600))
    light = (light * total / light.sum()).astype(np.float32)
    scene.galaxy = light if scene.galaxy is None else scene.galaxy + light
    return length


# real


def _new_source(scene: Scene, rng: np.random.Generator) -> None:
    _change(scene, _flux(scene.psf_science, _alert_snr(rng)))


def _on_galaxy(scene: Scene, rng: np.random.Generator) -> None:
    distance, angle = abs(rng.normal(0, 5)) * (rng.random() < 0.7), rng.uniform(0, 2 * np.pi)
    _galaxy(
        scene, rng, scene.centre[0] + distance * np.cos(angle), scene.centre[1] + distance * np.sin(angle)
    )
    sign = -1 if rng.random() < 0.1 else 1
    _change(scene, sign * _flux(scene.psf_science, _alert_snr(rng)))


def _variable(scene: Scene, rng: np.random.Generator) -> None:
    """A star at the centre grew brighter or fainter; the change is at most all of it when it faded."""
    change = _flux(scene.psf_science, _alert_snr(rng))
    amplitude = _log_uniform(rng, 0.03, 5)
    star = change / amplitude
    _add_star(scene, *scene.centre, star)
    faded = rng.random() < 0.5
    _change(scene, -min(change, star) if faded else change)


def _near_star(scene: Scene, rng: np.random.Generator) -> None:
    distance, angle = rng.uniform(2.5, 12), rng.uniform(0, 2 * np.pi)
    x, y = scene.centre[0] + distance * np.cos(angle), scene.centre[1] + distance * np.sin(angle)
    _add_star(scene, x, y, _flux(scene.psf_science, _log_uniform(rng, 20, 2000)))
    _change(scene, _flux(scene.psf_science, _alert_snr(rng)))


def _moving(scene: Scene, rng: np.random.Generator) -> None:
    """An asteroid that moved a few pixels at most during the exposure."""
    length, angle = rng.uniform(0, 2.5 * scene.psf_science.fwhm), rng.uniform(0, np.pi)
    steps = np.linspace(-0.5, 0.5, 9) * length
    x, y = scene.centre[0] + steps * np.cos(angle), scene.centre[1] + steps * np.sin(angle)
    flux = _flux(scene.psf_science, _alert_snr(rng) * (1 + length / scene.psf_science.fwhm / 2))
    scene.change = np.column_stack([x, y, np.full(9, flux / 9)])


# bogus


def _anywhere(scene: Scene, radius: float = 16.0) -> None:
    scene.centre, scene.radius = (MIDDLE, MIDDLE), radius


def _noise_peak(scene: Scene, rng: np.random.Generator) -> None:
    scene.stars = (
        scene.stars[scene.stars[:, 2] < np.median(scene.stars[:, 2])] if len(scene.stars) > 1 else scene.stars
    )
    _anywhere(scene, float(rng.choice([2.0, 16.0])))


def _bad_star(scene: Scene, rng: np.random.Generator, low: float, high: float) -> None:
    _add_star(scene, *scene.centre, _flux(scene.psf_science, _log_uniform(rng, low, high)))
    scene.radius = max(3.0, scene.psf_science.fwhm)


def _dipole(scene: Scene, rng: np.random.Generator) -> None:
    _bad_star(scene, rng, 30, 3000)
    size, angle = _log_uniform(rng, 0.06, 1.0), rng.uniform(0, 2 * np.pi)
    scene.shift = (size * np.cos(angle), size * np.sin(angle))


def _ring(scene: Scene, rng: np.random.Generator) -> None:
    """The assumed PSFs are wrong: a positive core in a negative ring, or the reverse."""
    _bad_star(scene, rng, 40, 4000)
    scene.psf_error = (rng.normal(0, 0.12), rng.normal(0, 0.12))
    scene.shift = (rng.normal(0, 0.08), rng.normal(0, 0.08))


def _ringing_variable(scene: Scene, rng: np.random.Generator) -> None:
    """A star that changed a little in a bad subtraction: the energies decide."""
    _variable(scene, rng)
    scene.psf_error = (rng.normal(0, 0.06), rng.normal(0, 0.06))
    scene.shift = (rng.normal(0, 0.1), rng.normal(0, 0.1))


def _saturated(scene: Scene, rng: np.random.Generator) -> None:
    level = _log_uniform(rng, 300, 5000)
    scene.saturation = (level, level * _log_uniform(rng, 0.3, 3))
    _bad_star(scene, rng, 3000, 60000)
    scene.radius = 6.0
    if rng.random() < 0.5:  # the bleed trail along the columns
        trail = np.zeros((FIELD, FIELD), np.float32)
        length, column = int(rng.integers(4, 40)), round(scene.centre[0])
        row = round(scene.centre[1])
        trail[max(row - length, 0) : row + length, column : column + int(rng.integers(1, 3))] = (
            level * rng.uniform(0.2, 1)
        )
        scene.science_extra = trail


def _galaxy_residual(scene: Scene, rng: np.random.Generator) -> None:
    _galaxy(scene, rng, *scene.centre)
    scene.scale_error = rng.normal(0, 0.04)
    scene.psf_error = (rng.normal(0, 0.1), rng.normal(0, 0.1))
    size, angle = _log_uniform(rng, 0.1, 1.2), rng.uniform(0, 2 * np.pi)
    scene.shift = (size * np.cos(angle), size * np.sin(angle))
    scene.radius = 4.0


def cosmic_ray(rng: np.random.Generator, x: float, y: float, energy: float) -> Image:
    """Charge of one particle, unsmoothed: a pixel or two, or a track.

    Parameters
    ----------
    rng
        Draws shape and direction.
    x, y
        Where it enters [pixel].
    energy
        Total signal.

    Returns
    -------
    ndarray of float32, shape (FIELD, FIELD)
    """
    image = np.zeros((FIELD, FIELD), np.float32)
    length = 0.0 if rng.random() < 0.5 else float(rng.exponential(2.5))
    steps = np.linspace(0, length, int(length * 6) + 1)
    angle = rng.uniform(0, 2 * np.pi)
    columns = np.clip(np.round(x + steps * np.cos(angle)).astype(int), 0, FIELD - 1)
    rows = np.clip(np.round(y + steps * np.sin(angle)).astype(int), 0, FIELD - 1)
    np.add.at(
        image, (rows, columns), energy / steps.size * rng.uniform(0.4, 1.6, steps.size).astype(np.float32)
    )
    leak = np.float32(rng.choice([0.0, 0.03, 0.1]))  # diffusion of charge into the neighbours
    spread = sum(np.roll(image, step, axis) for step in (-1, 1) for axis in (0, 1))
    return np.asarray(image * (1 - 4 * leak) + leak * spread, np.float32)


def _cosmic_ray(scene: Scene, rng: np.random.Generator) -> None:
    scene.science_extra = cosmic_ray(rng, *scene.centre, 6 * rng.random() ** (-1 / 0.8))


def _cosmic_ray_on_star(scene: Scene, rng: np.random.Generator) -> None:
    distance, angle = abs(rng.normal(0, 1.5)), rng.uniform(0, 2 * np.pi)
    x, y = scene.centre[0] + distance * np.cos(angle), scene.centre[1] + distance * np.sin(angle)
    _add_star(scene, x, y, _flux(scene.psf_science, _log_uniform(rng, 5, 300)))
    _cosmic_ray(scene, rng)


def _dead_pixel(scene: Scene, rng: np.random.Generator) -> None:
    """A negative spot in science, or a positive one left in the template: bright in a flipped difference."""
    spot = cosmic_ray(rng, *scene.centre, 6 * rng.random() ** (-1 / 0.8))
    if rng.random() < 0.5:
        scene.science_extra = -spot
    else:
        scene.template_extra = spot


def _bad_column(scene: Scene, rng: np.random.Generator) -> None:
    image = np.zeros((FIELD, FIELD), np.float32)
    column, width = round(scene.centre[0]), int(rng.integers(1, 4))
    start = 0 if rng.random() < 0.5 else int(rng.integers(0, MIDDLE))
    image[start:, column : column + width] = rng.choice([-1, 1]) * _log_uniform(rng, 2, 60)
    scene.science_extra = image if rng.random() < 0.5 else image.T.copy()
    scene.radius = 4.0


def _streak(scene: Scene, rng: np.random.Generator) -> None:
    """A satellite crosses, or ends in, the stamp."""
    angle = rng.uniform(0, np.pi)
    start = -70.0 if rng.random() < 0.75 else float(rng.uniform(-30, 0))
    steps = np.arange(start, 70, 0.7)
    x, y = scene.centre[0] + steps * np.cos(angle), scene.centre[1] + steps * np.sin(angle)
    keep = (x > 0) & (x < FIELD) & (y > 0) & (y < FIELD)
    flux = _flux(scene.psf_science, _log_uniform(rng, 1.0, 20))
    light = np.column_stack([x, y, np.full(steps.size, flux), np.zeros(steps.size)])
    scene.stars = np.vstack([scene.stars, light[keep]])
    scene.radius = 6.0


def _ghost(scene: Scene, rng: np.random.Generator) -> None:
    """Diffuse light, a reflection or a bad background: much wider than the PSF."""
    y, x = np.mgrid[:FIELD, :FIELD].astype(np.float32)
    radius = np.hypot(x - scene.centre[0], y - scene.centre[1])
    size = rng.uniform(2.5, 8) * scene.psf_science.fwhm
    blob = (
        np.exp(-0.5 * (radius / size) ** 2)
        if rng.random() < 0.5
        else np.exp(-0.5 * ((radius - size) / 2) ** 2)
    )
    light = np.asarray(blob * _log_uniform(rng, 0.7, 15), np.float32)
    if rng.random() < 0.7:
        scene.science_extra = light
    else:
        scene.template_extra = light
    scene.radius = 8.0


def _step(scene: Scene, rng: np.random.Generator) -> None:
    """A seam of coadded frames or amplifiers, or the gradient beside a mask."""
    axis = np.arange(FIELD, dtype=np.float32) - (MIDDLE + rng.uniform(-8, 8))
    edge = (
        np.where(axis > 0, np.exp(-axis / rng.uniform(1, 40)), 0)
        * _log_uniform(rng, 2, 60)
        * rng.choice([-1, 1])
    )
    image = np.broadcast_to(edge.astype(np.float32), (FIELD, FIELD)).copy()
    image = image if rng.random() < 0.5 else image.T.copy()
    if rng.random() < 0.5:
        scene.science_extra = image
    else:
        scene.template_extra = image
    _anywhere(scene, 10.0)


def _off_centre(scene: Scene, rng: np.random.Generator) -> None:
    """A good source, but somewhere else in the stamp; nothing where the alert says."""
    distance, angle = rng.uniform(6, 25), rng.uniform(0, 2 * np.pi)
    flux = _flux(scene.psf_science, _alert_snr(rng))
    _change(
        scene, flux, scene.centre[0] + distance * np.cos(angle), scene.centre[1] + distance * np.sin(angle)
    )


def _wrong_scale(scene: Scene, rng: np.random.Generator) -> None:
    """Every star leaves the same share of itself: the zero points disagree."""
    count = int(rng.integers(5, 25))
    flux = _flux(scene.psf_science, 1.0) * 20 * rng.random(count) ** (-1 / 0.8)
    where = rng.uniform(10, FIELD - 10, (count, 2))
    where[0] = scene.centre
    flux[0] = max(flux[0], float(np.median(flux)))
    scene.stars = np.vstack([scene.stars, np.column_stack([where, flux, flux])])
    scene.scale_error = rng.choice([-1, 1]) * rng.uniform(0.04, 0.4)


SCENARIOS: Mapping[str, Callable[[Scene, np.random.Generator], None]] = {
    "new_source": _new_source,
    "on_galaxy": _on_galaxy,
    "variable": _variable,
    "near_star": _near_star,
    "moving": _moving,
    "noise_peak": _noise_peak,
    "dipole": _dipole,
    "ring": _ring,
    "ringing_variable": _ringing_variable,
    "saturated": _saturated,
    "galaxy_residual": _galaxy_residual,
    "cosmic_ray": _cosmic_ray,
    "cosmic_ray_on_star": _cosmic_ray_on_star,
    "dead_pixel": _dead_pixel,
    "bad_column": _bad_column,
    "streak": _streak,
    "ghost": _ghost,
    "step": _step,
    "off_centre": _off_centre,
    "wrong_scale": _wrong_scale,
}
"""What can be simulated, by name; whether the result is real follows from `judge`, not from the name."""
