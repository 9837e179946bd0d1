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
ROUNDS = 3  # of the fits of neighbours, each to what the others leave
BLEND_REACH = 4.0  # neighbours are those this close [FWHM]
HALO_SNR = 10.0  # of a star from which on its surroundings are looked at
HALO = 0.3  # part of its own light that a star has around it if it is extended
FARTHEST_RING = 3.0  # of an extended source [widths of its filter]
LARGEST_APERTURE = 80  # radius [pixel]
PSF_ERROR = 0.05  # part of a star that its PSF may be wrong by, or as much as its own stars say


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
    BAD_FIT = (
        256  # the PSF does not fit: chi2 far above what noise and the error of the PSF (5 % or more) explain
    )
    NO_FIT = 512  # the fit of the position failed; it is that of the peak


@dataclass(frozen=True)
class Detections:
    """What was found on a difference image, by falling significance. All arrays have shape (n,).

    Attributes
    ----------
    x, y
        0-based position; of a trail its middle [pixel].
    flux, flux_err
        Of the PSF at that position, neighbours fitted with it; of a trail along the line; of an extended source in a
        circle that ends where it sinks into the noise. Negative for a hole [DN].
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
        Width of the filter that sees it best, in units of the PSF: 1, 2 or 4; also 2 where a star has a halo.
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
    better = _sees_more(value, seeds.best)
    return replace(
        seeds,
        best=np.where(better, value, seeds.best),
        scale=np.where(better, wide.factor, seeds.scale),
    )


def _sees_more(wide: Floats, narrow: Floats) -> Flags:
    """Whether a significance is clearly above that of a narrower filter."""
    better: Flags = wide > 1.15 * narrow + 1
    return better


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

    def __getitem__(self, index: Any) -> _Fit:
        return _Fit(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class _Neighbours:
    """Stars of the same sign around each star: ``near[first[n]:first[n + 1]]`` are the numbers of those of the n-th."""

    first: Integers
    near: Integers

    @classmethod
    def none(cls, n: int) -> _Neighbours:
        return cls(np.zeros(n + 1, np.int64), np.zeros(0, np.int64))

    @classmethod
    def within(cls, reach: float, seeds: _Seeds) -> _Neighbours:
        """Those found in the same map; positive and negative ones are no blend but a dipole."""
        n = len(seeds.x)
        if n < 2:
            return cls.none(n)
        pairs = _tree(seeds.x, seeds.y).query_pairs(reach, output_type="ndarray").astype(np.int64)
        one, other = pairs.reshape(-1, 2).T
        alike = (seeds.sign[one] == seeds.sign[other]) & (seeds.born[one] == seeds.born[other])
        both = np.concatenate([pairs[alike], pairs[alike][:, ::-1]]).reshape(-1, 2)
        both = both[np.lexsort([both[:, 1], both[:, 0]])]
        return cls(np.searchsorted(both[:, 0], np.arange(n + 1)), np.ascontiguousarray(both[:, 1]))

    @property
    def has(self) -> Flags:
        """Which stars have any."""
        some: Flags = np.diff(self.first) > 0
        return some


def _fit(
    significance: SignificanceMap,
    psf: PsfModel,
    field: PsfField,
    seeds: _Seeds,
    *,
    move: bool,
    neighbours: _Neighbours | None = None,
) -> _Fit:
    """Fit stars as wide as the map's filter; the position is free when it may `move`.

    Neighbours are first what they are alone; then each star that has any is fitted again in turn, brightest first,
    to what the others leave.
    """
    factor, plane = significance.factor, significance.plane
    home_x, home_y = (seeds.x + 0.5) / factor - 0.5, (seeds.y + 0.5) / factor - 0.5
    x, y, flux = home_x.copy(), home_y.copy(), np.zeros(len(home_x))
    reach = max(2, round(1.25 * field.typical_fwhm))
    out, fitted = np.empty((len(x), kernels.POINT_COLUMNS)), np.full(len(x), move)

    def fit(todo: Integers, known: _Neighbours) -> None:
        n_y, n_x = psf.shape
        kernels.fit_points(
            plane.weighted, plane.weight, plane.pad,
            psf.coefficients, psf.order, psf.over, psf.half, n_x, n_y,
            factor, max(field.half, reach), reach, move, todo, known.first, known.near,
            seeds.sign, home_x, home_y, x, y, flux, fitted, out,
        )  # fmt: skip

    everyone = np.arange(len(x))
    fit(everyone, _Neighbours.none(len(x)))
    if neighbours is not None and neighbours.has.any():
        brightest_first = np.argsort(-seeds.best, kind="stable")
        again = brightest_first[neighbours.has[brightest_first]]
        for _ in range(ROUNDS):
            fit(again, neighbours)
    level, spread = significance.correction(x, y)
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = 1 / np.sqrt(out[:, 1])
        light = out[:, 0] - level * unit
    return _Fit((x + 0.5) * factor - 0.5, (y + 0.5) * factor - 0.5, out, light, spread * unit, fitted)


def _fits_of_born(
    maps: list[SignificanceMap],
    psf: PsfModel,
    field: PsfField,
    seeds: _Seeds,
    *,
    joint: bool,
) -> _Fit:
    """Each seed fitted in the map where it was found; `joint`: together with its neighbours in the sharpest map."""
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
        some = seeds[rows]
        near = _Neighbours.within(_blend_reach(field), some) if joint and significance.factor == 1 else None
        part = _fit(significance, psf, field, some, move=True, neighbours=near)
        for column in fields(whole):
            getattr(whole, column.name)[rows] = getattr(part, column.name)
    return whole


def _blend_reach(field: PsfField) -> float:
    """How far a star's light matters to another [pixel]."""
    return max(BLEND_REACH * field.typical_fwhm, 6.0)


def _measured(
    maps: list[SignificanceMap],
    seeds: _Seeds,
    found: list[FoundTrail],
    psf: PsfModel,
    field: PsfField,
    mask: MaskPlane | None,
) -> Detections:
    """Positions, fluxes and shapes of all seeds, and the trails among them."""
    shape = maps[0].snr.shape
    fit = _fits_of_born(maps, psf, field, seeds, joint=False)
    as_stars = replace(seeds, x=fit.x, y=fit.y, scale=np.ones_like(seeds.scale))
    stay = _usable(fit, shape) & _without_doubles(as_stars, field.typical_fwhm)
    seeds, fit = seeds[stay], fit[stay]
    if _Neighbours.within(_blend_reach(field), seeds).has.any():
        fit = _fits_of_born(maps, psf, field, seeds, joint=True)
        stay = _usable(fit, shape) & (fit.columns[:, 0] * seeds.sign > 0)
        seeds, fit = seeds[stay], fit[stay]
    seeds = replace(seeds, x=fit.x, y=fit.y)
    seeds = _really_extended(maps[0], psf, field, seeds, fit)
    seeds = _with_haloes(maps, psf, field, seeds, fit)
    stay = _without_doubles(seeds, field.typical_fwhm)
    seeds, fit = seeds[stay], fit[stay]
    if (seeds.scale > 1).any():
        _light_of_extended(maps, psf, field, seeds, fit)
    seeds, fit, lines = _with_trails(maps[0], seeds, fit, found, psf, field)
    return _assembled(maps[0], seeds, fit, lines, psf, field, mask)


def _usable(fit: _Fit, shape: tuple[int, ...]) -> Flags:
    """Which fits are inside the image and on usable pixels."""
    n_y, n_x = shape
    stay = (fit.columns[:, 6] < MOSTLY_LOST) & np.isfinite(fit.flux_err)
    stay &= (fit.x > -0.5) & (fit.y > -0.5) & (fit.x < n_x - 0.5) & (fit.y < n_y - 0.5)
    return np.asarray(stay)


@dataclass(frozen=True)
class _Rings:
    """Light around some of the seeds, in rings one pixel wide; arrays of shape (n, rings)."""

    light: Floats
    variance: Floats
    good: Floats
    whole: Floats

    @property
    def filled(self) -> Floats:
        """Light of whole rings: pixels that cannot be used shine like the others of their ring."""
        return np.asarray(self.light * self.whole / np.maximum(self.good, 1))


def _rings(
    significance: SignificanceMap,
    psf: PsfModel,
    seeds: _Seeds,
    light: Floats,
    rows: Integers,
    radius: int,
    *,
    own: bool = False,
) -> _Rings:
    """Rings around the seeds `rows`, without the stars near them whose `light` is not zero, nor their `own` star."""
    plane = significance.plane
    near: list[list[int]] = [[] for _ in range(len(seeds.x))]
    stars = np.flatnonzero(light)
    if len(stars):
        tree = _tree(seeds.x[stars], seeds.y[stars])
        for row in rows.tolist():
            found = tree.query_ball_point([seeds.x[row], seeds.y[row]], radius + psf.half)
            here = stars[np.array(sorted(found), np.int64)]
            near[row] = here[(own | (here != row)) & (seeds.sign[here] == seeds.sign[row])].tolist()
    first = np.cumsum([0, *(len(some) for some in near)])
    numbers = np.array([star for some in near for star in some], np.int64)
    sums = [np.zeros((len(rows), radius + 1)) for _ in range(4)]
    n_y, n_x = psf.shape
    kernels.light_in_rings(
        plane.weighted, plane.weight, plane.pad,
        psf.coefficients, psf.order, psf.over, psf.half, n_x, n_y,
        rows, first, numbers, seeds.x, seeds.y, light, *sums,
    )  # fmt: skip
    return _Rings(*sums)


def _really_extended(
    significance: SignificanceMap, psf: PsfModel, field: PsfField, seeds: _Seeds, fit: _Fit
) -> _Seeds:
    """Take back the width of those in which the wide filter saw no more than their neighbours."""
    rows = np.flatnonzero((seeds.scale > 1) & (seeds.born == 1))
    if not len(rows):
        return seeds
    light = np.where(seeds.born == 1, fit.columns[:, 0], 0.0)
    scale = seeds.scale[rows, None]
    radius = int(np.ceil(3 * field.typical_sigma * scale.max()))
    window = np.exp(-0.5 * (np.arange(radius + 1) / (field.typical_sigma * scale)) ** 2)
    alone, all_of_it = (
        (window * _rings(significance, psf, seeds, known, rows, radius).filled).sum(axis=1)
        for known in (light, np.zeros_like(light))
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.nan_to_num(np.clip(alone / all_of_it, 0, 1))
    narrow = np.abs(fit.flux[rows]) / fit.flux_err[rows]
    a_point = (part < 1) & ~(_sees_more(part * seeds.best[rows], narrow))
    scales, best = seeds.scale.copy(), seeds.best.copy()
    scales[rows[a_point]], best[rows[a_point]] = 1, seeds.snr[rows[a_point]]
    return replace(seeds, scale=scales, best=best)


def _with_haloes(
    maps: list[SignificanceMap], psf: PsfModel, field: PsfField, seeds: _Seeds, fit: _Fit
) -> _Seeds:
    """Call extended, too, what has much light around its star: the head of a comet may be as sharp as a star."""
    points = fit.columns
    spike = points[:, 3] > 1.5 * points[:, 4] + 3 * points[:, 5]
    bright = np.abs(fit.flux) > HALO_SNR * fit.flux_err
    rows = np.flatnonzero(bright & ~spike & (seeds.scale == 1) & (seeds.born == 1))
    if len(maps) < 2 or not len(rows):
        return seeds
    fwhm = field.typical_fwhm
    cuts = [max(round(part * fwhm), least) for part, least in ((1.25, 2), (2.5, 4), (4.0, 6))]
    light = np.where((seeds.scale == 1) & (seeds.born == 1), points[:, 0], 0.0)
    rings = _rings(maps[0], psf, seeds, light, rows, cuts[2], own=True)
    spread = _spread_of(maps, seeds, rows)
    excess, noise = np.empty((2, len(rows))), np.empty((2, len(rows)))
    for k in range(2):
        band = slice(cuts[k] + 1, cuts[k + 1] + 1)
        excess[k] = rings.light[:, band].sum(axis=1) * seeds.sign[rows]
        noise[k] = spread * np.sqrt(rings.variance[:, band].sum(axis=1))
    total = excess.sum(axis=0)
    halo = (excess > 3 * noise).all(axis=0) & (total > 6 * np.hypot(*noise))
    halo &= total > HALO * np.abs(points[rows, 0])
    scale = seeds.scale.copy()
    scale[rows[halo]] = 2
    return replace(seeds, scale=scale)


def _spread_of(maps: list[SignificanceMap], seeds: _Seeds, rows: Integers) -> Floats:
    """Scatter of the map of the widest filter, which knows how noise and sky are correlated over wide apertures."""
    wide = maps[-1]
    return wide.correction(seeds.x[rows] / wide.factor, seeds.y[rows] / wide.factor)[1]


def _light_of_extended(
    maps: list[SignificanceMap], psf: PsfModel, field: PsfField, seeds: _Seeds, fit: _Fit
) -> None:
    """Replace the flux of extended sources by that in a circle that grows with them, in place."""
    rows = np.flatnonzero(seeds.scale > 1)
    fwhm = field.typical_fwhm
    limit = np.minimum(np.ceil(FARTHEST_RING * fwhm * seeds.scale[rows]), LARGEST_APERTURE).astype(int)
    light = np.where((seeds.scale == 1) & (seeds.born == 1), fit.columns[:, 0], 0.0)
    rings = _rings(maps[0], psf, seeds, light, rows, int(limit.max()))
    spread = _spread_of(maps, seeds, rows)
    least = np.where(seeds.born[rows] > 1, fwhm * seeds.scale[rows], 1.5 * fwhm)
    width = max(round(fwhm), 2)
    for k, row in enumerate(rows.tolist()):
        sign = int(seeds.sign[row])
        end = _end_of_light(
            sign * rings.light[k], spread[k] ** 2 * rings.variance[k], rings.good[k],
            int(np.ceil(least[k])), int(limit[k]), width,
        )  # fmt: skip
        inside = slice(0, end + 1)
        share = rings.whole[k, inside] / np.maximum(rings.good[k, inside], 1)
        flux = float(rings.filled[k, inside].sum())
        if flux * sign > 0 and rings.variance[k, inside].any():
            fit.flux[row] = flux
            fit.flux_err[row] = spread[k] * np.sqrt((share**2 * rings.variance[k, inside]).sum())


def _end_of_light(light: Floats, variance: Floats, good: Floats, least: int, limit: int, width: int) -> int:
    """Last ring of an aperture: the next `width` rings are lost in noise, or brighter: something else begins there."""
    for end in range(least, limit):
        outer, inner = slice(end + 1, end + 1 + width), slice(end + 1 - width, end + 1)
        pixels, noise = max(good[outer].sum(), 1.0), np.sqrt(variance[outer].sum())
        inner_mean = light[inner].sum() / max(good[inner].sum(), 1.0)
        if light[outer].sum() < noise or light[outer].sum() > pixels * max(inner_mean, 0.0) + 3 * noise:
            return end
    return limit


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
    columns[:, 2] = [one.trail.chi2 for one in found]
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
    psf: PsfModel,
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
        sharpness = np.where(points[:, 4] > 0, points[:, 3] / points[:, 4], np.nan)
    trail_columns = _trail_columns(fit, shape, sharpness, lines, field)
    flags = _flags(seeds, fit, trail_columns, opposite, edge, psf, field)
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
        chi2=points[:, 2],
        peak=points[:, 3] * seeds.sign,
        n_pix=seeds.n_over.astype(np.int32),
        dipole=opposite / seeds.best,
        masked_fraction=points[:, 6],
        negative_fraction=points[:, 7],
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
    seeds: _Seeds,
    fit: _Fit,
    shapes: dict[str, Floats],
    opposite: Floats,
    edge: Floats,
    psf: PsfModel,
    field: PsfField,
) -> Integers:
    """Bits of `Note` that follow from the measurements."""
    points, fwhm = fit.columns, field.typical_fwhm
    line = shapes["length_pix"] > 0
    # what the error of the PSF adds to chi2; less for a trail, whose width is fitted
    wrong = max(PSF_ERROR, float(np.nan_to_num(2 * psf.quality.residual)))
    strength = np.where(line, 0.2 * seeds.best**2, points[:, 0] ** 2 * points[:, 1])
    excused = wrong**2 * strength / np.maximum(points[:, 8], 1)
    # a pixel that stands out of the fitted star: by half of what is expected, and beyond doubt
    spike = points[:, 3] > 1.5 * points[:, 4] + 3 * points[:, 5]
    with np.errstate(invalid="ignore"):
        short_axis = shapes["fwhm_pix"] / np.sqrt(shapes["elongation"])
        narrow = (short_axis < 0.6 * field.fwhm_at(fit.x, fit.y)) & (seeds.snr > 8)
    sharp = np.where(line, shapes["sharpness"] > 1.6, (seeds.scale == 1) & (spike | narrow))
    notes = {
        Note.EDGE: edge < 1.25 * fwhm,
        Note.MASKED: points[:, 6] > 0.1,
        Note.SHARP: sharp,
        Note.DIPOLE: opposite > 0.5 * seeds.best,
        Note.EXTENDED: seeds.scale > 1,
        Note.BLENDED: seeds.blended,
        Note.BAD_FIT: points[:, 2] > 3 + excused,
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
