"""The steps of a search, each pure: frames and arrays in, frozen dataclasses out.

science, reference -> prepare -> subtract -> detect -> evidence -> judged candidates with photometry.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tapetum.core.errors import InputError
from tapetum.finders.realbogus import Scores
from tapetum.finders.transients import CandidateFlag
from tapetum.images.background import estimate_background
from tapetum.images.detect import Detections, detect_difference
from tapetum.images.difference import TOO_QUIET
from tapetum.images.edges import without_bad_edges
from tapetum.images.frame import Bad
from tapetum.images.psf import PsfModel, measure_psf
from tapetum.images.subtract import Difference, Plane, subtract
from tapetum.pipelines.candidates import (
    Evidence,
    Judged,
    Surface,
    VetoLimits,
    judge,
    measure_evidence,
    repeated,
)
from tapetum.pipelines.saturated import large_areas, new_saturated
from tapetum.pipelines.steps import WARNING

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tapetum.images.frame import Frame, FrameInfo, Image, MaskPlane

    Say = Callable[[str], None]

GAIN_SLACK = 0.5  # resampled images have less noise in each pixel than their photons say
ASSUMED_BETA = 3.0  # of a Moffat profile, where no star shows the PSF
GALAXY_RATIO = 1.35  # wider than a star by this much is a galaxy
GALAXY_SNR = 20.0
PSF_STARS = 400  # most that the PSF is measured from
WIDTH_STARS = 120  # where only its width matters, and the light of what is at a candidate's place


def nobody(message: str) -> None:
    """Hear nothing."""


@dataclass(frozen=True)
class Prepared:
    """An image ready to be subtracted or searched.

    Attributes
    ----------
    name, source
        As in `Frame`.
    plane
        Its pixels without sky, noise, mask and PSF.
    info
        What is known of it.
    wcs
        Or None.
    sky
        Median level that was taken away [DN].
    """

    name: str
    source: str
    plane: Plane
    info: FrameInfo
    wcs: Any
    sky: float

    @property
    def psf(self) -> PsfModel:
        """The PSF, which `prepare` always finds or refuses."""
        assert self.plane.psf is not None
        return self.plane.psf


def prepare(
    frame: Frame,
    *,
    n_stars: int = PSF_STARS,
    fwhm_pix: float | None = None,
    threads: int = 1,
    say: Say = nobody,
) -> Prepared:
    """Mask edges that the detector gets wrong, take away the sky, measure noise and PSF.

    Parameters
    ----------
    n_stars
        Most stars to measure the PSF from.
    fwhm_pix
        Width of a star where none shows it [pixel]; None takes the header's.
    threads
        The result does not depend on it.
    say
        Told what was measured.

    Raises
    ------
    InputError
        There is no sky, or neither a star nor the header nor `fwhm_pix` tells the width of the PSF.
    """
    frame, edges = without_bad_edges(frame)
    if edges:
        say(f"{frame.name}: {edges}")
    background = estimate_background(frame.data, frame.mask, threads=threads)
    try:
        psf = measure_psf(frame.data, background, frame.mask, frame.info, n_max=n_stars, threads=threads)
    except InputError as problem:
        width = fwhm_pix or frame.info.fwhm_pix
        if width is None:
            raise InputError(
                f"{frame.source}: {problem}; give the seeing with --fwhm, or a --telescope whose profile names its key"
            ) from None
        said = "the seeing that was given" if fwhm_pix else "the header's seeing"
        say(f"{frame.source}: {problem}; a Moffat profile of {said}, {width:.2f} px, is used")
        psf = PsfModel.moffat(width, ASSUMED_BETA, frame.shape)
    sky = float(np.median(background.level[::8, ::8]))
    data = frame.data - background.level
    gain = believable_gain(frame.info, sky, background.typical_noise)
    if gain != frame.info.gain:
        say(
            f"warning: {frame.source}: a gain of {frame.info.gain:g} does not go with its noise; {gain:.4g} is used"
        )
    plane = Plane(data, background.noise, frame.mask, gain, frame.info.saturation - sky, psf)
    q = psf.quality
    say(
        f"{frame.name}: sky {sky:.5g} DN, noise {background.typical_noise:.3g} DN, PSF of {q.n_stars} stars, "
        f"FWHM {q.fwhm_pix:.2f} px, ellipticity {q.ellipticity:.2f}"
    )
    return Prepared(frame.name, frame.source, plane, frame.info, frame.wcs, sky)


def believable_gain(info: FrameInfo, sky: float, noise: float) -> float:
    """The gain that photon noise is computed with [electron / DN].

    The photons of the sky alone make a noise of sqrt(sky / gain): a gain that would make more noise than there is
    cannot be true. A gain that was only guessed is no better than that limit, and where the sky is taken away
    already, which hides the limit, photon noise is left out.
    """
    floor = sky / noise**2 if sky > 0 else 0.0
    if "gain" not in info.guessed:
        return info.gain if info.gain > GAIN_SLACK * floor else floor
    return max(info.gain, floor) if sky > noise else float("inf")


@dataclass(frozen=True)
class Compared:
    """What is searched for detections.

    Attributes
    ----------
    science, reference
        `reference` is None when the science image itself is searched.
    difference
        Of `tapetum.images.subtract`; None when the science image itself is searched.
    data, noise, mask, psf
        The image that is searched [science DN].
    """

    science: Prepared
    reference: Prepared | None
    difference: Difference | None
    data: Image
    noise: Image
    mask: MaskPlane
    psf: PsfModel

    @property
    def template(self) -> Image | None:
        """The aligned reference without sky, in DN of the science image."""
        if self.reference is None or self.difference is None:
            return None
        return self.reference.plane.data * np.float32(self.difference.scale)


def compare(
    science: Prepared,
    reference: Prepared | None,
    *,
    method: Literal["kernel", "zogy"] = "kernel",
    convolve: Literal["auto", "reference", "science"] = "auto",
    threads: int = 1,
    say: Say = nobody,
) -> Compared:
    """Subtract the reference; without one, what is searched is the science image.

    Raises
    ------
    SubtractionError
        The difference is not usable.
    """
    if reference is None:
        plane = science.plane
        noise = np.sqrt(plane.noise**2 + np.maximum(np.nan_to_num(plane.data), 0) / np.float32(plane.gain))
        return Compared(science, None, None, plane.data, noise.astype(np.float32), plane.mask, science.psf)
    made = subtract(science.plane, reference.plane, method=method, convolve=convolve, threads=threads)
    say(f"subtracted by {made.method}, {made.convolved} convolved: {quality_words(made)}")
    if made.quality.noise_ratio < TOO_QUIET:
        say(
            f"{WARNING}the noise of the images was over-estimated, as in crowded fields: only"
            f" {made.quality.noise_ratio:.2f} of it is there; the noise map of the difference was scaled down to that"
        )
    return Compared(science, reference, made, made.data, made.noise, made.mask, made.psf or science.psf)


def quality_words(made: Difference) -> str:
    """The figures of a difference in one line; those that its method does not give are left out."""
    q = made.quality
    figures = (
        (made.scale, f"flux scale {made.scale:.4g}"),
        (q.scale_expected, f"{q.scale_expected:.4g} by apertures"),
        (q.n_stars, f"{q.n_stars} stars, {q.n_clipped} clipped"),
        (q.chi2, f"chi2 {q.chi2:.2f}"),
        (q.chi2_held, f"of stars held out {q.chi2_held:.2f}"),
        (q.core_residual, f"core residual {q.core_residual:.4f}"),
        (q.relative_error, f"model error {q.relative_error:.4f}"),
        (q.noise_ratio, f"noise {q.noise_ratio:.2f} of the expected"),
        (q.negative, f"{q.negative:.0%} of the pixels beyond 5 sigma negative"),
        (q.finite, f"{q.finite:.2%} finite"),
    )
    return ", ".join(words for value, words in figures if np.isfinite(value))


def find(
    compared: Compared,
    limits: VetoLimits,
    *,
    threshold: float = 5.0,
    codes: NDArray[np.uint16] | None = None,
    threads: int = 1,
) -> Judged:
    """Detect, look at the surroundings of each detection, and judge it; new objects that saturate are added.

    Parameters
    ----------
    threshold
        Least significance [sigma].
    codes : ndarray of uint16, shape (n_y, n_x), optional
        What contaminates the science image, as `tapetum.images.contaminants` has it.
    """
    found = detect_difference(
        compared.data,
        compared.noise,
        compared.mask,
        compared.psf,
        threshold=threshold,
        both_signs=compared.reference is not None,
        threads=threads,
    )
    surface = surface_of(compared, codes)
    evidence = measure_evidence(found, surface)
    judged = Judged(found, evidence, judge(found, evidence, limits))
    bright = new_saturated(compared)
    if not len(bright):
        return judged
    own = np.full(len(bright), int(CandidateFlag.SATURATED), np.int32)  # no veto by their own pixels
    return _both(judged, Judged(bright, measure_evidence(bright, surface), own))


def together(first: Judged, second: Judged) -> Judged:
    """Detections of two reference cells; what the second finds again, or better, is flagged in the worse of the two."""
    joined = _both(first, second)
    found, flags = joined.found, joined.flags
    group = np.repeat([0, 1], [len(first.found), len(second.found)])
    worse = repeated(found.x, found.y, found.snr, group, found.fwhm_psf_pix)
    flags[worse] |= int(CandidateFlag.REPEATED)
    return joined


def _both(first: Judged, second: Judged) -> Judged:
    """One after the other."""
    a, b = first.found.columns(), second.found.columns()
    found = Detections(**{name: np.concatenate([a[name], b[name]]) for name in a})
    names = [part.name for part in fields(Evidence)]
    evidence = Evidence(
        **{
            name: np.concatenate([getattr(first.evidence, name), getattr(second.evidence, name)])
            for name in names
        }
    )
    return Judged(found, evidence, np.concatenate([first.flags, second.flags]))


def spread(scores: Scores, rows: NDArray[np.intp], n: int) -> Scores:
    """Scores of some rows as scores of all `n`; the others have none and are flagged `UNSCORED`."""
    score, probability = np.full(n, np.nan), np.full(n, np.nan)
    flags = np.full(n, int(CandidateFlag.UNSCORED), np.int32)
    score[rows], probability[rows], flags[rows] = scores.score, scores.probability, scores.flags
    error: list[str | None] = ["vetoed"] * n
    for row, text in zip(rows.tolist(), scores.error, strict=True):
        error[row] = text
    return Scores(scores.model, scores.model_version, score, probability, flags, error)


def surface_of(compared: Compared, codes: NDArray[np.uint16] | None = None) -> Surface:
    """What the vetoes look at."""
    science, made = compared.science, compared.difference
    blurred = made is not None and made.convolved != "reference"
    sharp = (
        (science.plane.data, science.plane.noise, science.psf)
        if blurred
        else (
            compared.data,
            compared.noise,
            compared.psf,
        )
    )
    return Surface(*sharp, compared.template, saturated_pixels(compared), compared.mask, blurred, codes)


def saturated_pixels(compared: Compared) -> NDArray[np.bool_]:
    """Where either image is saturated, in areas of at least `saturated.LEAST_SATURATED` pixels."""
    bits = compared.science.plane.mask & np.uint8(Bad.SATURATED)
    if compared.reference is not None:
        bits = bits | (compared.reference.plane.mask & np.uint8(Bad.SATURATED))
    return np.asarray(large_areas(bits != 0)[0] > 0)


@dataclass(frozen=True)
class Surroundings:
    """Galaxies and saturated stars of the field.

    Attributes
    ----------
    kind : list of str
        ``galaxy`` or ``saturated``.
    x, y, radius : ndarray, shape (n,)
        [pixel]
    """

    kind: list[str]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    radius: NDArray[np.float64]


def surroundings_of(compared: Compared, *, threads: int = 1) -> Surroundings:
    """Find the galaxies and the saturated stars on the reference, or on the science image without one."""
    from scipy.ndimage import find_objects, label

    areas, n = label(saturated_pixels(compared), np.ones((3, 3), int))
    boxes = find_objects(areas)
    sizes = np.bincount(areas.ravel(), minlength=n + 1)[1:]
    stars = [
        ((box[1].start + box[1].stop - 1) / 2, (box[0].start + box[0].stop - 1) / 2, np.sqrt(size / np.pi))
        for box, size in zip(boxes, sizes.tolist(), strict=True)
    ]
    galaxies = _galaxies(compared.reference or compared.science, threads)
    rows = np.array([*galaxies, *stars], np.float64).reshape(-1, 3)
    kinds = ["galaxy"] * len(galaxies) + ["saturated"] * len(stars)
    return Surroundings(kinds, rows[:, 0], rows[:, 1], rows[:, 2])


def _galaxies(image: Prepared, threads: int) -> list[tuple[float, float, float]]:
    """Position and half-width of everything that is bright, whole and wider than a star."""
    from tapetum.images.extract import extract_sources

    plane = image.plane
    found = extract_sources(plane.data, plane.noise, plane.mask, threshold=3.0, min_area=9, threads=threads)
    fwhm = image.psf.quality.fwhm_pix
    wide = (found.fwhm > GALAXY_RATIO * fwhm) & (found.snr > GALAXY_SNR) & (found.flags == 0)
    return [
        (float(x), float(y), float(width) / 2)
        for x, y, width in zip(found.x[wide], found.y[wide], found.fwhm[wide], strict=True)
    ]


@dataclass(frozen=True)
class Calibration:
    """How DN become magnitudes.

    Attributes
    ----------
    zero_point
        Magnitude of a source of 1 DN; None when nothing tells it.
    error
        Its uncertainty [mag]; NaN when the header does not say.
    origin
        ``header``, or the catalogue.
    notes
        What was found out on the way, for the report.
    """

    zero_point: float | None
    error: float = float("nan")
    origin: str = "header"
    notes: dict[str, str] = field(default_factory=dict)


def good_area_deg2(mask: MaskPlane, data: Image, scale_arcsec: float | None) -> float:
    """Area that was searched [deg^2]; NaN without a pixel scale."""
    if scale_arcsec is None:
        return float("nan")
    good = int(((mask == 0) & np.isfinite(data)).sum())
    return good * (scale_arcsec / 3600) ** 2


def point_noise(compared: Compared) -> float:
    """Error of the flux of a faint point source at the middle of the field [science DN]."""
    n_y, n_x = compared.data.shape
    sample = compared.noise[::8, ::8][compared.mask[::8, ::8] == 0]
    if not sample.size:
        return float("nan")
    return float(np.median(sample) * np.sqrt(compared.psf.neff(n_x / 2, n_y / 2)))
