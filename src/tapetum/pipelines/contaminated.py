"""Detections on contaminated pixels: which classes lie at each, and whether they are what was detected.

Pure: arrays in, arrays out. A mask alone rules nothing out: a star that a particle has hit is still a star, and a mask
may be wrong. So the light itself decides, pixel by pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tapetum.images.contaminants import Contaminant
from tapetum.images.cutouts import cut, distances
from tapetum.images.detect import Note

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.images.detect import Detections
    from tapetum.images.frame import Image
    from tapetum.pipelines.candidates import Surface

    Array = NDArray[np.float64]
    Codes = NDArray[np.uint16]

IMITATORS = (
    Contaminant.CR
    | Contaminant.HCL
    | Contaminant.DCL
    | Contaminant.HP
    | Contaminant.DP
    | Contaminant.P
    | Contaminant.TRL
    | Contaminant.SP
    | Contaminant.OV
)
"""What looks like a change and is none: not saturation, which new stars may have, nor what lies under real ones."""
BRIGHTENING = Contaminant.CR | Contaminant.HP | Contaminant.P | Contaminant.TRL  # makes nothing fainter
BROAD = Contaminant.TRL | Contaminant.SP  # covers what lies on it together with its surroundings
NARROW = Contaminant.CR | Contaminant.HP | Contaminant.DP  # has not the neighbours of a star
LINES = Contaminant.HCL | Contaminant.DCL | Contaminant.SP | Contaminant.OV  # that a trail may be in truth
TRACKS = Contaminant.CR | Contaminant.HP  # that one may be which is narrower than a star
MISSHAPEN = Note.SHARP | Note.BAD_FIT | Note.NO_FIT
UNKNOWN = -1  # in place of codes where there is no mask

REACH_FWHM = 0.6  # codes are those within this of a detection
WINDOW_FWHM = 1.5  # light is looked at within this
CONFIRMED = 0.5  # of the light, which the pixels that are clean must show for themselves
CONFIRMED_SIGMA = 3.0
LONG_FWHM = 40.0  # trails shorter than this may be what moves, and are searched for
STAR_SNR, STAR_WIDTH, STAR_ELONGATION = (
    10.0,
    1.3,
    1.4,
)  # from which on, and up to which, something looks like a star
STAR_SHARPNESS = 0.3  # half way from a particle to a faint star; from there on it has the neighbours of one
CHUNK = 1024  # detections at a time


@dataclass(frozen=True)
class Contamination:
    """What the mask says of detections; arrays of shape (n,).

    Attributes
    ----------
    codes : ndarray of int32
        Codes of `tapetum.images.contaminants.Contaminant` near each, added; `UNKNOWN` without a mask.
    fraction : ndarray of float64
        Part of its light on pixels of classes that imitate a change; 0 where the other pixels show it as well, and NaN
        without a mask.
    """

    codes: NDArray[np.int32]
    fraction: Array


def contamination_of(found: Detections, surface: Surface, sharpness: Array) -> Contamination:
    """Look up every detection in the mask of the science image; `sharpness` is that of `candidates.Evidence`."""
    n = len(found)
    codes = surface.codes
    if codes is None:
        return Contamination(np.full(n, UNKNOWN, np.int32), np.full(n, np.nan))
    near = codes_near(codes, found.x, found.y, np.maximum(1.0, REACH_FWHM * found.fwhm_psf_pix))
    fraction = np.zeros(n)
    if not (codes & np.uint16(IMITATORS)).any():
        return Contamination(near, fraction)
    long_enough = LONG_FWHM * float(np.median(found.fwhm_psf_pix)) if n else 0.0
    telling = np.where(_short_trails(codes, long_enough), codes & np.uint16(~Contaminant.TRL), codes)
    against = imitators_of(found, sharpness)
    line = found.has(Note.TRAIL)
    for row in np.flatnonzero(line).tolist():
        fraction[row] = _share_of_line(telling, found, row, int(against[row]))
    rows = np.flatnonzero(~line)
    for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        fraction[some] = _share_of_light(telling, surface, found[some], against[some])
    return Contamination(near, fraction)


def codes_near(codes: Codes, x: Array, y: Array, radius: Array) -> NDArray[np.int32]:
    """All codes of the pixels whose centres are within `radius` of each position [pixel], added; shape (n,)."""
    half = int(np.ceil(radius.max(initial=1.0)))
    stamps = _codes_of(codes, x, y, 2 * half + 1)
    stamps[distances(x, y, 2 * half + 1) > radius[:, None, None]] = 0
    # the pixel itself counts even where its centre is farther away than a small radius
    stamps[:, half, half] |= _codes_of(codes, x, y, 1)[:, 0, 0]
    return np.asarray(np.bitwise_or.reduce(stamps, axis=(1, 2)), np.int32)


def imitators_of(found: Detections, sharpness: Array) -> NDArray[np.uint16]:
    """Codes of the classes that each detection may be in truth, added; shape (n,).

    Networks take faint sharp stars for particles, and whatever lies on a trail for a part of it: what has the shape
    of a star is believed to be one.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        width = found.fwhm_pix / found.fwhm_psf_pix
    star = (
        (found.snr > STAR_SNR)
        & (np.maximum(width, 1 / width) < STAR_WIDTH)
        & (found.elongation < STAR_ELONGATION)
        & ~found.has(Note.EXTENDED | Note.DIPOLE | MISSHAPEN)
    )
    neighbours = (sharpness >= STAR_SHARPNESS) & (found.sign > 0) & ~found.has(MISSHAPEN)
    against = np.full(len(found), int(IMITATORS))
    against[star] &= ~int(BROAD)
    against[neighbours] &= ~int(NARROW)
    against[found.has(Note.EXTENDED)] &= ~int(Contaminant.TRL)  # the tail of a comet
    against[found.has(Note.TRAIL)] &= int(LINES | TRACKS)
    against[found.has(Note.TRAIL) & ~found.has(Note.SHARP)] &= int(LINES)
    against[found.sign < 0] &= ~int(BRIGHTENING)
    return against.astype(np.uint16)


def _short_trails(codes: Codes, length: float) -> NDArray[np.bool_]:
    """Pixels of connected areas of trails that are shorter than `length` [pixel]."""
    from scipy.ndimage import find_objects, label

    areas, n = label((codes & np.uint16(Contaminant.TRL)) != 0, np.ones((3, 3), int))
    short = np.zeros(n + 1, bool)
    for number, box in enumerate(find_objects(areas), 1):
        short[number] = np.hypot(*(side.stop - side.start for side in box)) < length
    return np.asarray(short[areas])


def _share_of_line(codes: Codes, found: Detections, row: int, against: int) -> float:
    """Part of a trail beside which there is a pixel of classes `against`."""
    n = max(2, round(float(found.length_pix[row])) + 1)
    x, y = (
        np.linspace(float(begin[row]), float(end[row]), n)
        for begin, end in ((found.x1, found.x2), (found.y1, found.y2))
    )
    touched = (_codes_of(codes, x, y, 3) & np.uint16(against)).any(axis=(1, 2))
    return float(touched.mean())


def _share_of_light(codes: Codes, surface: Surface, found: Detections, against: NDArray[np.uint16]) -> Array:
    """Part of the light of detections, as the PSF weighs it, on pixels of classes `against`.

    With the weights P of the PSF the light D is ``sum(P D)``, a sum over pixels, of which some are flagged. What the
    clean ones alone would measure is ``F = sum(P D) / sum(P P)``, with an error of ``noise / sqrt(sum(P P))``: a source
    has the same F there as anywhere, a particle's hit has none.
    """
    share = np.zeros(len(found))
    half = int(np.ceil(WINDOW_FWHM * float(found.fwhm_psf_pix.max(initial=1.0))))
    size = 2 * min(half, surface.sharp_psf.half) + 1
    flagged = (_codes_of(codes, found.x, found.y, size) & against[:, None, None]) != 0
    rows = np.flatnonzero(flagged.any(axis=(1, 2)))
    if not rows.size:
        return share
    x, y, flagged = found.x[rows], found.y[rows], flagged[rows]
    light = _light(surface, x, y, size) * found.sign[rows, None, None]
    weight = _middle(surface.sharp_psf.stamps(x, y), size)
    weight = np.where(np.isfinite(light), weight, 0).astype(np.float64)
    light = np.nan_to_num(light).astype(np.float64)
    noise = cut(surface.sharp_noise, x, y, 1)[:, 0, 0]
    clean = np.where(flagged, 0, weight)
    total, rest = ((part * light).sum(axis=(1, 2)) for part in (weight, clean))
    norm, rest_norm = ((part**2).sum(axis=(1, 2)) for part in (weight, clean))
    with np.errstate(divide="ignore", invalid="ignore"):
        of_light = np.clip(1 - rest / total, 0, 1)
        of_pixels = 1 - rest_norm / norm  # where there is no light to weigh, or nothing to see of it
        seen = rest / rest_norm
        confirmed = (seen > CONFIRMED * total / norm) & (seen * np.sqrt(rest_norm) > CONFIRMED_SIGMA * noise)
    part = np.where(total > 0, of_light, of_pixels)
    share[rows] = np.where(confirmed & (total > 0), 0, np.nan_to_num(part))
    return share


def _light(surface: Surface, x: Array, y: Array, size: int) -> Image:
    """What changed, in an image that no kernel has blurred; NaN where a pixel cannot be used."""
    light = cut(surface.sharp, x, y, size)
    if surface.blurred and surface.template is not None:
        light = light - cut(surface.template, x, y, size)
    light[cut(surface.unusable, x, y, size) != 0] = np.nan
    return light


def _middle(stamps: Image, size: int) -> Image:
    start = stamps.shape[-1] // 2 - size // 2
    return stamps[:, start : start + size, start : start + size]


def _codes_of(codes: Codes, x: Array, y: Array, size: int) -> Codes:
    """Stamps of a mask; 0 beyond it."""
    return np.nan_to_num(cut(codes, x, y, size)).astype(np.uint16)
