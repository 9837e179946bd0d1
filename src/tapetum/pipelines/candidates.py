"""From detections to candidates: what speaks against each detection, and the table of those that nothing rules out.

Pure: arrays in, arrays and tables out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.finders.transients import CandidateFlag, flag_names
from tapetum.images.contaminants import Contaminant
from tapetum.images.cutouts import cut, distances
from tapetum.images.detect import Note
from tapetum.pipelines.contaminated import UNKNOWN, contamination_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from numpy.typing import NDArray

    from tapetum.finders.realbogus import Scores
    from tapetum.images.detect import Detections
    from tapetum.images.frame import Image, MaskPlane
    from tapetum.images.psf import PsfModel

    Array = NDArray[np.float64]

VETOES = (
    CandidateFlag.MASKED
    | CandidateFlag.NEAR_SATURATED
    | CandidateFlag.COSMIC
    | CandidateFlag.DIPOLE
    | CandidateFlag.FWHM
    | CandidateFlag.RESIDUAL
    | CandidateFlag.REPEATED
    | CandidateFlag.CONTAMINATED
)
AREA_RADII = 0.7  # a brighter star saturates more pixels, and disturbs more beyond them
UNITS = {
    "x": "pix",
    "y": "pix",
    "ra": "deg",
    "dec": "deg",
    "mag": "mag",
    "mag_err": "mag",
    "flux": "adu",
    "flux_err": "adu",
    "flux_template": "adu",
    "fwhm": "pix",
    "fwhm_psf": "pix",
    "length_pix": "pix",
    "angle_deg": "deg",
    "match_distance": "arcsec",
}


DECIMALS = {"x": 3, "y": 3, "ra": 7, "dec": 7, "mag": 4, "angle_deg": 2, "length_pix": 2}
"""Digits after the point in tables; other numbers have six in all."""
DESCRIPTIONS = {
    "candidate_id": "image and rank",
    "x": "column, 0-based, centre of the first pixel 0.0",
    "y": "row, 0-based, centre of the first pixel 0.0",
    "ra": "ICRS",
    "dec": "ICRS",
    "band": "sncosmo name",
    "mag": "of the light that changed",
    "mag_err": "statistical; that of the zero point is in the metadata",
    "flux": "of the searched image, in DN of the science image",
    "flux_err": "its error",
    "flux_template": "of the reference at the same place, in DN of the science image",
    "snr": "flux over its error",
    "significance": "of the detection, in sigma of the filter that made it",
    "fwhm": "width by adaptive moments",
    "fwhm_psf": "width of a star there in the searched image, by adaptive moments as fwhm is",
    "elongation": "long over short axis",
    "length_pix": "of a trail; 0 for all else",
    "angle_deg": "of the long axis, from +x to +y",
    "chi2": "reduced, of the fit of the PSF",
    "masked_fraction": "part of its light on bad pixels",
    "contaminated_fraction": "part of its light on pixels of contaminants that look like a change; 0 where the others "
    "confirm it",
    "dipole": "strongest peak of the other sign beside it over its own",
    "saturated_distance": "pixels to the nearest saturated area, less 0.7 of its radius",
    "sharpness": "light of the fainter neighbours over what a star has; less than one half is a particle",
    "relative": "change over the light of the reference",
    "sign": "1 brighter, -1 fainter than the reference",
    "n_pix": "pixels above the threshold",
    "notes": "bits, named in the metadata",
    "contaminants": "what contaminates the science image there: codes added, named in the metadata",
    "match": "nearest known object: table and row",
    "match_distance": "to it",
    "score": "raw output of the network",
    "probability": "calibrated score",
    "flags": "bits, named in the metadata",
    "reason": "vetoes that rule it out; empty for a candidate",
}
NUMBERS = (
    "mjd", "exposure_s", "pixel_scale_arcsec", "area_deg2", "zero_point", "zero_point_error", "flux_err",
    "mag_limit", "fwhm_pix", "threshold",
)  # fmt: skip
"""Of the metadata; the other values are words."""


def typed(words: Mapping[str, str]) -> dict[str, Any]:
    """Metadata as numbers, lists and mappings, for formats that can hold them."""
    out: dict[str, Any] = dict(words)
    out |= {key: float(words[key]) for key in NUMBERS if key in words}
    if "cutout_size" in words:
        out["cutout_size"] = int(words["cutout_size"])
    if "shape" in words:
        out["shape"] = [int(side) for side in words["shape"].split()]
    for key in ("flags", "notes", "contaminants"):
        if key in words:
            out[key] = {int(bit): name for bit, name in json.loads(words[key]).items()}
    return out


@dataclass(frozen=True)
class VetoLimits:
    """What a detection must not exceed.

    Attributes
    ----------
    masked
        Part of its light that falls on pixels that cannot be used.
    saturated_fwhm
        Least distance to the nearest saturated area, see `saturated_margin` [FWHM].
    cosmic, cosmic_sigma
        A particle's hit: the darker of the pairs of opposite neighbours reaches less than this part of what a star's
        would, and lacks so many sigma.
    dipole
        The strongest peak of the other sign beside it over its own.
    residual
        Change over the light that was there before: less than this is what a subtraction leaves of a star.
    fwhm_ratio
        Range of the width over a star's; trails are exempt.
    contaminated
        Part of its light that falls on contaminated pixels and nowhere else, see `contaminated.contamination_of`.
    """

    masked: float = 0.6
    saturated_fwhm: float = 1.5
    cosmic: float = 0.5
    cosmic_sigma: float = 4.0
    dipole: float = 0.5
    residual: float = 0.03
    fwhm_ratio: tuple[float, float] = (0.5, 5.0)
    contaminated: float = 0.5


@dataclass(frozen=True)
class Surface:
    """What vetoes look at: images on one grid, background subtracted, in DN of the science image.

    Attributes
    ----------
    sharp, sharp_noise, sharp_psf
        An image that no kernel has blurred, its sky noise and its PSF: there a particle's hit is narrower than a star.
    template
        The aligned reference; None where there is none.
    saturated : ndarray of bool, shape (n_y, n_x)
        Where either image is saturated.
    unusable : ndarray of uint8, shape (n_y, n_x)
        Not 0 where a pixel cannot be used.
    blurred
        Whether a kernel has blurred the image that was searched; then `sharp` is the science image itself.
    codes : ndarray of uint16, shape (n_y, n_x)
        What contaminates the science image, as `tapetum.images.contaminants` has it; None where nobody knows.
    """

    sharp: Image
    sharp_noise: Image
    sharp_psf: PsfModel
    template: Image | None
    saturated: NDArray[np.bool_]
    unusable: MaskPlane
    blurred: bool = False
    codes: NDArray[np.uint16] | None = None


@dataclass(frozen=True)
class Evidence:
    """Measured for each detection beside what `Detections` says; arrays of shape (n,).

    Attributes
    ----------
    saturated_distance
        To the nearest saturated area, see `saturated_margin` [pixel].
    sharpness, sharpness_sigma
        What the fainter pair of opposite neighbours has over what it would have in a star, and by how many sigma it
        lacks.
    relative
        Change over the light of the template; inf where there is none.
    contaminants, contaminated
        `codes` and `fraction` of `contaminated.Contamination`.
    """

    saturated_distance: Array
    sharpness: Array
    sharpness_sigma: Array
    relative: Array
    contaminants: NDArray[np.int32]
    contaminated: Array


def measure_evidence(found: Detections, surface: Surface) -> Evidence:
    """Look at the surroundings of every detection."""
    sharpness, sigma = _sharpness(found, surface)
    margin = saturated_margin(surface.saturated, found.x, found.y)
    mask = contamination_of(found, surface, sharpness)
    return Evidence(margin, sharpness, sigma, _relative(surface, found), mask.codes, mask.fraction)


def judge(found: Detections, evidence: Evidence, limits: VetoLimits) -> NDArray[np.int32]:
    """Flags of `CandidateFlag` for everything that speaks against a detection."""
    ratio = found.fwhm_pix / found.fwhm_psf_pix
    # the moments of something faint and wide run away to its neighbours; the filter that sees it best does not
    ratio = np.where(found.has(Note.EXTENDED), np.fmin(ratio, found.scale), ratio)
    low, high = limits.fwhm_ratio
    line = found.has(Note.TRAIL)
    cosmic = (evidence.sharpness < limits.cosmic) & (evidence.sharpness_sigma > limits.cosmic_sigma)
    faults = {
        CandidateFlag.MASKED: found.masked_fraction > limits.masked,
        CandidateFlag.NEAR_SATURATED: evidence.saturated_distance
        < limits.saturated_fwhm * found.fwhm_psf_pix,
        CandidateFlag.COSMIC: (cosmic | found.has(Note.SHARP)) & (found.sign > 0),
        CandidateFlag.DIPOLE: found.dipole > limits.dipole,
        CandidateFlag.FWHM: np.isfinite(ratio) & ~((ratio >= low) & (ratio <= high)) & ~line,
        CandidateFlag.RESIDUAL: evidence.relative < limits.residual,
        CandidateFlag.CONTAMINATED: evidence.contaminated >= limits.contaminated,
    }
    flags = np.zeros(len(found), np.int32)
    for flag, raised in faults.items():
        flags[raised] |= int(flag)
    return flags


def saturated_margin(saturated: NDArray[np.bool_], x: Array, y: Array) -> Array:
    """Distance to the nearest saturated pixel less 0.7 radii of its area [pixel]; inf where nothing is saturated."""
    from scipy.ndimage import label
    from scipy.spatial import cKDTree

    areas, n = label(saturated, np.ones((3, 3), int))
    if not n or not len(x):
        return np.full(len(x), np.inf)
    rows, columns = np.nonzero(saturated)
    owner = areas[rows, columns]
    radius = np.sqrt(np.bincount(owner) / np.pi)
    distance, nearest = cKDTree(np.column_stack([columns, rows])).query(np.column_stack([x, y]))
    return np.asarray(distance - AREA_RADII * radius[owner[nearest]], np.float64)


def _sharpness(found: Detections, surface: Surface) -> tuple[Array, Array]:
    """Light of the fainter pair of opposite neighbours of the brightest pixel, against that of a centred star.

    A star that is not centred on its pixel, or is trailed, or sits on another, has more; a particle's track is one
    pixel wide across at least one of the four directions.
    """
    if not len(found):
        return np.empty(0), np.empty(0)
    core = cut(surface.sharp, found.x, found.y, 5)
    noise = cut(surface.sharp_noise, found.x, found.y, 1)[:, 0, 0]
    rows = np.arange(len(core))
    inner = np.nan_to_num(core[:, 1:4, 1:4], nan=-np.inf).reshape(len(core), 9)
    brightest = inner.argmax(axis=1)
    j, i = brightest // 3 + 1, brightest % 3 + 1
    peak = core[rows, j, i]
    steps = ((0, 1), (1, 0), (1, 1), (1, -1))
    pairs = np.stack([(core[rows, j + a, i + b] + core[rows, j - a, i - b]) / 2 for a, b in steps])
    star = surface.sharp_psf.centred(*_middle(surface.sharp_psf))
    m = star.shape[0] // 2
    wanted = np.array([(star[m + a, m + b] + star[m - a, m - b]) / 2 for a, b in steps]) / star[m, m]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = pairs / peak / wanted[:, None]
        lacking = (wanted[:, None] * peak - pairs) / (noise * np.sqrt(0.5 + wanted[:, None] ** 2))
    share, lacking = np.nan_to_num(share, nan=np.inf), np.nan_to_num(lacking, nan=0.0)
    least = share.argmin(axis=0)
    return share[least, rows], lacking[least, rows]


def _middle(psf: PsfModel) -> tuple[float, float]:
    return psf.shape[1] / 2, psf.shape[0] / 2


def _relative(surface: Surface, found: Detections) -> Array:
    if surface.template is None:
        return np.full(len(found), np.inf)
    fwhm = found.fwhm_psf_pix
    size = 2 * int(np.ceil(1.5 * float(fwhm.max(initial=1.0)))) + 1
    light = np.nan_to_num(cut(surface.template, found.x, found.y, size))
    near = distances(found.x, found.y, size) <= 1.5 * fwhm[:, None, None]
    before = np.where(near, light, 0.0).sum(axis=(1, 2), dtype=np.float64)
    return np.where(before > 0, np.abs(found.flux) / np.maximum(before, 1e-30), np.inf)


def repeated(x: Array, y: Array, snr: Array, group: NDArray[np.intp], radius: Array) -> NDArray[np.bool_]:
    """Which detections repeat a better one of another group within `radius` [pixel]."""
    from scipy.spatial import cKDTree

    worse = np.zeros(len(x), bool)
    if len(x) < 2:
        return worse
    pairs = cKDTree(np.column_stack([x, y])).query_pairs(float(np.max(radius)), output_type="ndarray")
    for a, b in pairs.tolist():
        if group[a] != group[b] and np.hypot(x[a] - x[b], y[a] - y[b]) <= max(radius[a], radius[b]):
            worse[b if snr[a] >= snr[b] else a] = True
    return worse


@dataclass(frozen=True)
class Judged:
    """Detections and what speaks against each; all of one length.

    Attributes
    ----------
    flags : ndarray of int32
        Bits of `tapetum.finders.transients.CandidateFlag`.
    """

    found: Detections
    evidence: Evidence
    flags: NDArray[np.int32]


@dataclass(frozen=True)
class Known:
    """Which known object lies at each detection.

    Attributes
    ----------
    name : list of str
        Empty where there is none.
    distance_arcsec : ndarray, shape (n,)
        NaN where there is none.
    """

    name: list[str]
    distance_arcsec: Array


@dataclass(frozen=True)
class Photometry:
    """Where a detection is on the sky and how bright it is; arrays of shape (n,), NaN where it is not known.

    `flux_template` is what the reference has at the place, all fluxes in DN of the science image.
    """

    ra: Array
    dec: Array
    flux: Array
    flux_err: Array
    mag: Array
    mag_err: Array
    flux_template: Array


def magnitudes(flux: Array, flux_err: Array, zero_point: float | None) -> tuple[Array, Array]:
    """AB-like magnitudes of the size of a change, whatever its sign; NaN without a zero point."""
    if zero_point is None:
        return np.full(len(flux), np.nan), np.full(len(flux), np.nan)
    size = np.abs(flux)
    with np.errstate(divide="ignore", invalid="ignore"):
        mag = np.where(size > 0, zero_point - 2.5 * np.log10(size), np.nan)
        mag_err = np.where(size > 0, 2.5 / np.log(10) * flux_err / size, np.nan)
    return mag, mag_err


def signal_to_noise(flux: Array, flux_err: Array) -> Array:
    """Size of a change over its error, that of the light that `magnitudes` are made of; 0 where it has none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.abs(flux) / flux_err, nan=0.0, posinf=0.0)


def candidate_table(
    image: str,
    band: str | None,
    judged: Judged,
    light: Photometry,
    known: Known,
    scores: Scores,
    flags: NDArray[np.int32],
    survives: NDArray[np.bool_],
    metadata: Mapping[str, str],
) -> tuple[pa.Table, NDArray[np.intp]]:
    """All detections: survivors first, then by probability (score without one), then by signal-to-noise ratio.

    Returns
    -------
    table
        One row per detection.
    order : ndarray of int
        Which detection each row is.

    Notes
    -----
    Columns: ``candidate_id x y ra dec band mag mag_err flux flux_err flux_template snr significance fwhm fwhm_psf
    elongation length_pix angle_deg chi2 masked_fraction dipole saturated_distance sharpness relative
    contaminated_fraction sign n_pix notes contaminants match match_distance score probability flags reason``; ``snr``
    is flux over its error, ``significance`` that of the filter which detected it.
    """
    import pyarrow as pa

    found, evidence = judged.found, judged.evidence
    level = np.where(np.isnan(scores.probability), scores.score, scores.probability)
    snr = signal_to_noise(light.flux, light.flux_err)
    order = np.lexsort([-snr, -np.nan_to_num(level, nan=-1.0), ~survives])
    names = [f"{image}_{number:05d}" for number in range(1, len(found) + 1)]
    codes = evidence.contaminants[order]
    columns: dict[str, Any] = {
        "candidate_id": pa.array(names, pa.string()),
        **{name: _floats(values[order]) for name, values in _numbers_before(found, light).items()},
        "band": pa.array([band] * len(found), pa.string()),
        **{name: _floats(values[order]) for name, values in _numbers_after(found, light, evidence).items()},
        "sign": pa.array(found.sign[order].astype(np.int8)),
        "n_pix": pa.array(found.n_pix[order].astype(np.int32)),
        "notes": pa.array(found.flags[order].astype(np.int32)),
        "contaminants": pa.array(codes, pa.int32(), mask=codes == UNKNOWN),
        "match": pa.array([known.name[row] for row in order.tolist()], pa.string()),
        "match_distance": _floats(known.distance_arcsec[order]),
        "score": _floats(scores.score[order]),
        "probability": _floats(scores.probability[order]),
        "flags": pa.array((flags | scores.flags)[order], pa.int32()),
        "reason": pa.array([reason_of(value) for value in flags[order].tolist()], pa.string()),
    }
    notes = {note.value: str(note.name).lower() for note in Note}
    words = {**metadata, "flags": json.dumps(flag_names()), "notes": json.dumps(notes)}
    words["contaminants"] = json.dumps({code.value: code.name for code in Contaminant})
    return pa.table(columns).replace_schema_metadata(words), order


def _numbers_before(found: Detections, light: Photometry) -> dict[str, Array]:
    return {"x": found.x, "y": found.y, "ra": light.ra, "dec": light.dec}


def _numbers_after(found: Detections, light: Photometry, evidence: Evidence) -> dict[str, Array]:
    return {
        "mag": light.mag,
        "mag_err": light.mag_err,
        "flux": light.flux,
        "flux_err": light.flux_err,
        "flux_template": light.flux_template,
        "snr": signal_to_noise(light.flux, light.flux_err),
        "significance": np.abs(found.snr),
        "fwhm": found.fwhm_pix,
        "fwhm_psf": found.fwhm_psf_pix,
        "elongation": found.elongation,
        "length_pix": found.length_pix,
        "angle_deg": found.angle_deg,
        "chi2": found.chi2,
        "masked_fraction": found.masked_fraction,
        "dipole": found.dipole,
        "saturated_distance": evidence.saturated_distance,
        "sharpness": evidence.sharpness,
        "relative": evidence.relative,
        "contaminated_fraction": evidence.contaminated,
    }


def _floats(values: NDArray[Any]) -> Any:
    import pyarrow as pa

    plain = np.asarray(values, np.float64)
    return pa.array(plain, pa.float64(), mask=~np.isfinite(plain))


def reason_of(flags: int) -> str:
    """Names of the vetoes among flags, with commas; empty for a candidate.

    >>> reason_of(int(CandidateFlag.COSMIC | CandidateFlag.UNSCORED))
    'cosmic'
    """
    return ", ".join(flag.name.lower() for flag in CandidateFlag if flag.name and flag & flags & VETOES)
