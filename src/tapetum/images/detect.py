"""Detection on difference images: matched filter with the measured PSF, points, trails and extended sources.

The road: data and noise become a map of the significance that a star at each pixel would have (Zackay & Ofek 2017);
the map is calibrated by its own scatter, because remapped and convolved images have correlated noise; pixels above a
limit are joined to segments; elongated segments that a line of even brightness explains are trails; all others are
points, unless a filter two or four times as wide sees more in them or sees something where there is no point.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntFlag
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.images import _detect_kernels as kernels
from tapetum.images.extract import Sources, extract_sources
from tapetum.images.frame import Bad
from tapetum.images.shapes import FWHM_PER_SIGMA, Shape, measure_shapes, weighted_plane
from tapetum.images.significance import PsfField, Segments, SignificanceMap, segments_of, significance_map
from tapetum.images.trails import FoundTrail, find_trails, near_trail, ridge

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.images.frame import Image, MaskPlane
    from tapetum.images.psf import PsfModel

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]
    Flags = NDArray[np.bool_]

__all__ = ["Detections", "Note", "Sources", "detect_difference", "extract_sources"]

LINK = 0.6  # pixels above this part of the threshold are linked
MOSTLY_LOST = 0.6  # part of the PSF on unusable pixels beyond which nothing can be said
TURNS = 6  # of the fit of a position


class Note(IntFlag):
    """What is to be known of a detection; several may hold at once."""

    EDGE = 1  # closer to the edge of the image than the radius of the fit
    MASKED = 2  # more than a tenth of its light falls on pixels that cannot be used
    SATURATED = 4  # a saturated pixel within two FWHM
    SHARP = 8  # narrower than a star: cosmic ray or hot pixel
    DIPOLE = 16  # something of the other sign, at least half as strong, touches it
    TRAIL = 32  # a line
    EXTENDED = 64  # a filter wider than the PSF sees it better
    BLENDED = 128  # it shares pixels above the limit with another detection
    BAD_FIT = 256  # the PSF does not fit: chi2 far above what noise and 5 % of PSF error explain
    NO_FIT = 512  # the fit of the position failed; it is that of the peak


@dataclass(frozen=True)
class Detections:
    """What was found on a difference image, by falling significance. All arrays have shape (n,).

    Attributes
    ----------
    x, y
        0-based position; of a trail its middle [pixel].
    flux, flux_err
        Of the PSF at that position; of a trail along the line; of an extended source under the filter that sees it
        best. Negative for a hole [DN].
    snr
        Significance of the matched filter, calibrated by its own scatter, >= 0; of a trail that of the whole line.
    sign
        +1 or -1.
    fwhm_pix, elongation, angle_deg
        Ellipse (adaptive moments); the angle from +x to +y in [0, 180); NaN where there is none.
    fwhm_psf_pix
        What the PSF itself has there in the same measure [pixel].
    length_pix, x1, y1, x2, y2
        Of a trail; 0 and the position itself for everything else [pixel].
    chi2
        Of the fit of the PSF (of the line, for a trail) per degree of freedom.
    peak
        Brightest pixel of the 3x3 around the position, of that sign [DN].
    n_pix
        Pixels of its segment beyond the threshold in the significance map.
    sharpness
        `peak` over what the PSF would put there; 1 for a star.
    dipole
        Significance of the strongest peak of the other sign within two FWHM, over `snr`.
    masked_fraction
        Part of the (squared) PSF that falls on pixels that cannot be used.
    negative_fraction
        Part of the pixels around it that are 2 sigma on the other side of zero.
    edge_distance
        To the nearest edge of the image [pixel].
    scale
        Width of the filter that sees it best, in units of the PSF: 1, 2 or 4.
    flags
        Bits of `Note`.
    """

    x: Floats
    y: Floats
    flux: Floats
    flux_err: Floats
    snr: Floats
    sign: NDArray[np.int8]
    fwhm_pix: Floats
    fwhm_psf_pix: Floats
    elongation: Floats
    angle_deg: Floats
    length_pix: Floats
    x1: Floats
    y1: Floats
    x2: Floats
    y2: Floats
    chi2: Floats
    peak: Floats
    n_pix: NDArray[np.int32]
    sharpness: Floats
    dipole: Floats
    masked_fraction: Floats
    negative_fraction: Floats
    edge_distance: Floats
    scale: NDArray[np.int32]
    flags: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> Detections:
        """Those of a mask, slice or array of indices."""
        return Detections(**{name: np.atleast_1d(value[index]) for name, value in self.columns().items()})

    def columns(self) -> dict[str, NDArray[Any]]:
        """Name -> array, in the order of the attributes."""
        return {column.name: getattr(self, column.name) for column in fields(self)}

    def has(self, note: Note) -> Flags:
        """Which ones carry any bit of `note`."""
        found: Flags = (self.flags & int(note)) != 0
        return found


def detect_difference(
    data: Image,
    noise: Image,
    mask: MaskPlane | None,
    psf: PsfModel,
    *,
    threshold: float = 5.0,
    both_signs: bool = True,
    trails: bool = True,
    n_scales: int = 3,
    threads: int = 1,
) -> Detections:
    """Find what is new or gone.

    Parameters
    ----------
    data : ndarray of float32, shape (n_y, n_x)
        Difference image, background 0 [DN].
    noise : ndarray of float32, shape (n_y, n_x)
        1 sigma, photon noise included [DN].
    mask : ndarray of uint8, shape (n_y, n_x), or None
        Bits of `Bad`; nonzero pixels are not used.
    psf
        Of the difference.
    threshold
        Least significance of a detection [sigma].
    both_signs
        Find holes, too.
    trails
        Join what lies on a line, and measure its ends.
    n_scales
        1: the PSF only; 2 and 3 add filters twice and four times as wide, for comets.
    threads
        The result does not depend on it.

    Returns
    -------
    Detections

    Raises
    ------
    ValueError
        Shapes differ, or the threshold is not positive.
    """
    if not threshold > 0:
        raise ValueError(f"the threshold must be positive, got {threshold}")
    field = PsfField.of(psf, data.shape)
    plane = weighted_plane(data, noise, mask, field.half, threads=threads)
    maps = [significance_map(plane, field, 1, threads)]
    for level in range(1, n_scales):
        if min(maps[-1].plane.shape) < 32:
            break
        maps.append(significance_map(maps[-1].plane.halved(), field, 2**level, threads))
    segments = segments_of(maps[0], LINK * threshold, threshold, both_signs=both_signs)
    found = find_trails(maps[0], segments, psf, field, threshold) if trails else []
    used = np.zeros(len(segments.x), bool)
    for one in found:
        used[one.members] = True
    seeds = _Seeds.of_points(segments, (segments.snr >= threshold) & ~used)
    for wide in maps[1:]:
        seeds = _wide_seeds(wide, seeds, found, field, threshold, both_signs=both_signs)
    return _measured(maps, seeds, found, psf, field, mask)


@dataclass(frozen=True)
class _Seeds:
    """Where something is to be measured."""

    x: Floats  # pixels of the image
    y: Floats
    sign: Integers
    snr: Floats  # in the map where it was found
    best: Floats  # in the map that sees it best
    n_over: Integers
    born: Integers  # factor of the map where it was found
    scale: Integers  # factor of the map that sees it best
    blended: Flags

    @classmethod
    def of_points(cls, segments: Segments, keep: Flags, factor: int = 1) -> _Seeds:
        """Peaks of segments."""
        n = int(keep.sum())
        factors = np.full(n, factor, np.int64)
        return cls(
            (segments.x[keep] + 0.5) * factor - 0.5,
            (segments.y[keep] + 0.5) * factor - 0.5,
            segments.sign[keep],
            segments.snr[keep],
            segments.snr[keep],
            segments.n_over[keep] * factor**2,
            factors,
            factors,
            segments.blended[keep],
        )

    def joined(self, other: _Seeds) -> _Seeds:
        """Both."""
        return _Seeds(
            *(
                np.concatenate([getattr(self, field.name), getattr(other, field.name)])
                for field in fields(self)
            )
        )

    def __getitem__(self, index: Any) -> _Seeds:
        return _Seeds(*(getattr(self, field.name)[index] for field in fields(self)))


def _seen_wider(seeds: _Seeds, wide: SignificanceMap) -> _Seeds:
    """Note the seeds that a wider filter sees clearly better."""
    n_y, n_x = wide.snr.shape
    columns = ((seeds.x + 0.5) / wide.factor).astype(int)
    rows = ((seeds.y + 0.5) / wide.factor).astype(int)
    value = np.zeros(len(seeds.x))
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            near = wide.snr[np.clip(rows + dy, 0, n_y - 1), np.clip(columns + dx, 0, n_x - 1)]
            value = np.maximum(value, near * seeds.sign)
    better = value > 1.15 * seeds.best + 1
    return replace(
        seeds,
        best=np.where(better, value, seeds.best),
        scale=np.where(better, wide.factor, seeds.scale),
    )


def _wide_seeds(
    wide: SignificanceMap,
    seeds: _Seeds,
    found: list[FoundTrail],
    field: PsfField,
    threshold: float,
    *,
    both_signs: bool,
) -> _Seeds:
    """Add what only a wider filter sees: peaks away from every seed and trail."""
    seeds = _seen_wider(seeds, wide)
    segments = segments_of(wide, threshold, threshold, both_signs=both_signs)
    new = _Seeds.of_points(segments, segments.n_over >= 2, wide.factor)
    reach = wide.factor * field.typical_fwhm
    free = np.ones(len(new.x), bool)
    if len(seeds.x) and len(new.x):
        tree = _tree(seeds.x, seeds.y)
        free &= tree.query(np.stack([new.x, new.y], axis=1))[0] > reach
    for one in found:
        free &= ~near_trail(one.trail, new.x, new.y, reach, reach)
    return seeds.joined(new[free])


def _tree(x: Floats, y: Floats) -> Any:
    from scipy.spatial import cKDTree

    return cKDTree(np.stack([x, y], axis=1))


def _without_doubles(seeds: _Seeds, fwhm: float) -> Flags:
    """Which seeds stay: the stronger of two within one FWHM, and of an extended source not its fainter knots."""
    stay = np.ones(len(seeds.x), bool)
    if not len(seeds.x):
        return stay
    tree = _tree(seeds.x, seeds.y)
    for one in np.argsort(-seeds.best, kind="stable"):
        if not stay[one]:
            continue
        near = np.array(
            tree.query_ball_point([seeds.x[one], seeds.y[one]], fwhm * max(int(seeds.scale[one]), 1)), int
        )
        near = near[(seeds.sign[near] == seeds.sign[one]) & (near != one)]
        distance = np.hypot(seeds.x[near] - seeds.x[one], seeds.y[near] - seeds.y[one])
        knot = (distance <= fwhm) | (seeds.snr[near] < 0.3 * seeds.best[one])
        stay[near[knot & (seeds.best[near] <= seeds.best[one])]] = False
    return stay


@dataclass(frozen=True)
class _Fit:
    """PSF fits at positions of one map."""

    x: Floats  # pixels of the image
    y: Floats
    columns: Floats  # (n, POINT_COLUMNS)
    flux: Floats
    flux_err: Floats
    fitted: Flags


def _fit(significance: SignificanceMap, psf: PsfModel, field: PsfField, seeds: _Seeds, *, move: bool) -> _Fit:
    """Fit stars as wide as the map's filter; the position steps by Gauss-Newton when it may `move`."""
    factor, plane = significance.factor, significance.plane
    start_x, start_y = (seeds.x + 0.5) / factor - 0.5, (seeds.y + 0.5) / factor - 0.5
    x, y = start_x.copy(), start_y.copy()
    radius = np.full(len(x), max(2, round(1.25 * field.typical_fwhm)), np.int64)
    out = np.empty((len(x), kernels.POINT_COLUMNS))
    fitted = np.full(len(x), move)
    trim = psf.size // 2 - field.half
    inner = slice(trim, psf.size - trim)
    for turn in range(TURNS if move else 1):
        column, row = np.floor(x + 0.5).astype(np.int64), np.floor(y + 0.5).astype(np.int64)
        at_x, at_y = np.floor(x * factor) + (x - column), np.floor(y * factor) + (y - row)
        stamps = np.ascontiguousarray(psf.stamps(at_x, at_y)[:, inner, inner])
        kernels.fit_points(
            plane.weighted, plane.weight, plane.pad, stamps, column, row, seeds.sign, radius, out
        )
        if turn == TURNS - 1 or not move:
            break
        x, y = x + np.clip(out[:, 2], -0.6, 0.6), y + np.clip(out[:, 3], -0.6, 0.6)
        lost = np.hypot(x - start_x, y - start_y) > 1.6
        x[lost], y[lost], fitted[lost] = start_x[lost], start_y[lost], False
    level, spread = significance.correction(x, y)
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = 1 / np.sqrt(out[:, 1])
        flux = out[:, 0] - level * unit
    return _Fit((x + 0.5) * factor - 0.5, (y + 0.5) * factor - 0.5, out, flux, spread * unit, fitted)


def _fits_of_born(maps: list[SignificanceMap], psf: PsfModel, field: PsfField, seeds: _Seeds) -> _Fit:
    """Each seed fitted in the map where it was found."""
    n = len(seeds.x)
    whole = _Fit(
        np.empty(n),
        np.empty(n),
        np.empty((n, kernels.POINT_COLUMNS)),
        np.empty(n),
        np.empty(n),
        np.empty(n, bool),
    )
    for significance in maps:
        rows = np.flatnonzero(seeds.born == significance.factor)
        part = _fit(significance, psf, field, seeds[rows], move=True)
        for column in fields(whole):
            getattr(whole, column.name)[rows] = getattr(part, column.name)
    return whole


def _light_of_extended(
    maps: list[SignificanceMap], psf: PsfModel, field: PsfField, seeds: _Seeds, fit: _Fit
) -> None:
    """Replace the flux of extended sources by what the filter that sees them best gives, in place."""
    for wide in maps[1:]:
        rows = np.flatnonzero(seeds.scale == wide.factor)
        here = _fit(wide, psf, field, seeds[rows], move=False)
        better = (here.columns[:, 8] < MOSTLY_LOST) & np.isfinite(here.flux_err)
        fit.flux[rows[better]] = here.flux[better]
        fit.flux_err[rows[better]] = here.flux_err[better]


def _measured(
    maps: list[SignificanceMap],
    seeds: _Seeds,
    found: list[FoundTrail],
    psf: PsfModel,
    field: PsfField,
    mask: MaskPlane | None,
) -> Detections:
    """Positions, fluxes and shapes of all seeds, and the trails among them."""
    fwhm = field.typical_fwhm
    fit = _fits_of_born(maps, psf, field, seeds)
    seeds = replace(seeds, x=fit.x, y=fit.y)
    n_y, n_x = maps[0].snr.shape
    stay = _without_doubles(seeds, fwhm) & (fit.columns[:, 8] < MOSTLY_LOST) & np.isfinite(fit.flux_err)
    stay &= (fit.x > -0.5) & (fit.y > -0.5) & (fit.x < n_x - 0.5) & (fit.y < n_y - 0.5)
    seeds, fit = seeds[stay], _Fit(*(getattr(fit, f.name)[stay] for f in fields(fit)))
    _light_of_extended(maps, psf, field, seeds, fit)
    seeds, fit, lines = _with_trails(maps[0], seeds, fit, found, psf, field)
    return _assembled(maps[0], seeds, fit, lines, field, mask)


def _with_trails(
    significance: SignificanceMap,
    seeds: _Seeds,
    fit: _Fit,
    found: list[FoundTrail],
    psf: PsfModel,
    field: PsfField,
) -> tuple[_Seeds, _Fit, list[FoundTrail | None]]:
    """Append the trails; what is said of single pixels is said of their brightest one."""
    if not found:
        return seeds, fit, [None] * len(seeds.x)
    spots = np.array([_brightest(significance.snr, one) for one in found])
    ones = np.ones(len(found), np.int64)
    snr = np.array([one.snr for one in found])
    lines = _Seeds(
        spots[:, 0],
        spots[:, 1],
        np.array([one.sign for one in found], np.int64),
        snr,
        snr,
        np.array([one.n_pix for one in found], np.int64),
        ones,
        ones,
        np.zeros(len(found), bool),
    )
    local = _fit(significance, psf, field, lines, move=False)
    x, y = np.array([one.trail.x for one in found]), np.array([one.trail.y for one in found])
    columns = local.columns.copy()
    columns[:, 4] = [one.trail.chi2 for one in found]
    line_fit = _Fit(
        x,
        y,
        columns,
        np.array([one.trail.flux for one in found]),
        np.array([one.trail.flux_err for one in found]),
        np.ones(len(found), bool),
    )
    both = _Fit(*(np.concatenate([getattr(fit, f.name), getattr(line_fit, f.name)]) for f in fields(fit)))
    return replace(seeds.joined(lines)), both, [None] * len(seeds.x) + list(found)


def _brightest(snr: Image, found: FoundTrail) -> tuple[float, float]:
    """Pixel of the crest where the map is highest."""
    trail = found.trail
    values = ridge(snr, trail) * found.sign
    along = ((int(values.argmax()) + 0.5) / len(values) - 0.5) * trail.length
    return (
        float(np.clip(np.rint(trail.x + along * np.cos(trail.angle)), 0, snr.shape[1] - 1)),
        float(np.clip(np.rint(trail.y + along * np.sin(trail.angle)), 0, snr.shape[0] - 1)),
    )


def _assembled(
    significance: SignificanceMap,
    seeds: _Seeds,
    fit: _Fit,
    lines: list[FoundTrail | None],
    field: PsfField,
    mask: MaskPlane | None,
) -> Detections:
    """Put everything into columns, strongest first."""
    n, fwhm = len(seeds.x), field.typical_fwhm
    column, row = np.rint(seeds.x).astype(np.int64), np.rint(seeds.y).astype(np.int64)
    opposite = np.empty(n)
    kernels.opposite_peak(significance.snr, column, row, seeds.sign, np.full(n, 2 * fwhm), opposite)
    width = np.maximum(seeds.scale, 1)
    plane = significance.plane
    window = np.minimum(np.ceil(3 * fwhm * width), 40.0)
    shape = measure_shapes(plane, fit.x, fit.y, seeds.sign, field.typical_sigma * width, window)
    n_y, n_x = plane.shape
    edge = np.min([fit.x, fit.y, n_x - 1 - fit.x, n_y - 1 - fit.y], axis=0) + 0.5
    points = fit.columns
    with np.errstate(divide="ignore", invalid="ignore"):
        sharpness = np.where(points[:, 6] > 0, points[:, 5] / points[:, 6], np.nan)
    trail_columns = _trail_columns(fit, shape, sharpness, lines, field)
    flags = _flags(seeds, fit, trail_columns, opposite, edge, field)
    flags |= np.where(_saturated_near(mask, column, row, 2 * fwhm), int(Note.SATURATED), 0)
    flags |= np.where([line is not None for line in lines], int(Note.TRAIL), 0)
    table = Detections(
        x=fit.x,
        y=fit.y,
        flux=fit.flux,
        flux_err=fit.flux_err,
        snr=seeds.best,
        sign=seeds.sign.astype(np.int8),
        fwhm_psf_pix=field.fwhm_at(fit.x, fit.y),
        chi2=points[:, 4],
        peak=points[:, 5] * seeds.sign,
        n_pix=seeds.n_over.astype(np.int32),
        dipole=opposite / seeds.best,
        masked_fraction=points[:, 8],
        negative_fraction=points[:, 9],
        edge_distance=edge,
        scale=seeds.scale.astype(np.int32),
        flags=flags.astype(np.int32),
        **trail_columns,
    )
    return table[np.argsort(-table.snr, kind="stable")]


def _trail_columns(
    fit: _Fit, shape: Shape, sharpness: Floats, lines: list[FoundTrail | None], field: PsfField
) -> dict[str, Floats]:
    """Shapes and ends; a trail's are those of its line, and its sharpness that of its width."""
    out = {
        "fwhm_pix": shape.fwhm_pix.copy(),
        "elongation": shape.elongation.copy(),
        "angle_deg": shape.angle_deg.copy(),
        "length_pix": np.zeros(len(fit.x)),
        "x1": fit.x.copy(),
        "y1": fit.y.copy(),
        "x2": fit.x.copy(),
        "y2": fit.y.copy(),
        "sharpness": sharpness.copy(),
    }
    for number, line in enumerate(lines):
        if line is None:
            continue
        trail = line.trail
        fwhm = FWHM_PER_SIGMA * trail.sigma
        values = (fwhm, (trail.length + fwhm) / fwhm, np.degrees(trail.angle), trail.length, *trail.ends)
        for name, value in zip(out, values, strict=False):
            out[name][number] = value
        out["sharpness"][number] = field.typical_sigma / trail.sigma
    return out


def _flags(
    seeds: _Seeds, fit: _Fit, shapes: dict[str, Floats], opposite: Floats, edge: Floats, field: PsfField
) -> Integers:
    """Bits of `Note` that follow from the measurements."""
    points, fwhm = fit.columns, field.typical_fwhm
    line = shapes["length_pix"] > 0
    used = np.maximum(points[:, 10], 1)
    # a pixel that stands out of the fitted star: by half of what is expected, and beyond doubt
    spike = points[:, 5] > 1.5 * points[:, 6] + 3 * points[:, 7]
    with np.errstate(invalid="ignore"):
        short_axis = shapes["fwhm_pix"] / np.sqrt(shapes["elongation"])
        narrow = (short_axis < 0.6 * field.fwhm_at(fit.x, fit.y)) & (seeds.snr > 8)
    sharp = np.where(line, shapes["sharpness"] > 1.6, (seeds.scale == 1) & (spike | narrow))
    notes = {
        Note.EDGE: edge < 1.25 * fwhm,
        Note.MASKED: points[:, 8] > 0.1,
        Note.SHARP: sharp,
        Note.DIPOLE: opposite > 0.5 * seeds.best,
        Note.EXTENDED: seeds.scale > 1,
        Note.BLENDED: seeds.blended,
        Note.BAD_FIT: points[:, 4] > 3 + (0.05 * seeds.best) ** 2 / used * np.where(line, 0.2, 1.0),
        Note.NO_FIT: ~fit.fitted,
    }
    flags = np.zeros(len(seeds.x), np.int64)
    for note, holds in notes.items():
        flags |= np.where(holds, int(note), 0)
    return flags


def _saturated_near(mask: MaskPlane | None, column: Integers, row: Integers, radius: float) -> Flags:
    """Whether a saturated pixel lies within `radius` of each pixel."""
    near = np.zeros(len(column), bool)
    if mask is None:
        return near
    reach = int(np.ceil(radius))
    n_y, n_x = mask.shape
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if dx * dx + dy * dy <= radius * radius:
                here = mask[np.clip(row + dy, 0, n_y - 1), np.clip(column + dx, 0, n_x - 1)]
                near |= (here & int(Bad.SATURATED)) != 0
    return near
