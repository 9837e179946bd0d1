"""Trails: lines of even brightness, smeared by the PSF; found among the segments of a significance map."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tapetum.images import _detect_kernels as kernels
from tapetum.images.shapes import WeightedPlane, ellipses_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.images.frame import Image
    from tapetum.images.psf import PsfModel
    from tapetum.images.significance import PsfField, Segments, SignificanceMap

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

_ITERATIONS = 40
_LEAST_PIXELS = 8  # of a segment that may be a trail
_LEAST_ELONGATION = 1.25  # of its pixels; a smear makes short trails rounder than they are
WIDEST = 1.8  # of a trail, in units of the PSF


@dataclass(frozen=True)
class Trail:
    """One trail: a line of even brightness, smeared by a Gaussian.

    Attributes
    ----------
    x, y
        Its middle [pixel].
    length
        Of the line, without the smear [pixel].
    angle
        From +x to +y, in [0, pi) [rad].
    flux, flux_err
        [DN].
    sigma
        Of the smear [pixel].
    chi2
        Per degree of freedom; pixels beyond 4 sigma count less.
    """

    x: float
    y: float
    length: float
    angle: float
    flux: float
    flux_err: float
    sigma: float
    chi2: float

    @property
    def ends(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 [pixel]; the first end is the one with the smaller x (the smaller y if upright)."""
        dx, dy = 0.5 * self.length * np.cos(self.angle), 0.5 * self.length * np.sin(self.angle)
        first, last = sorted([(self.x - dx, self.y - dy), (self.x + dx, self.y + dy)])
        return (*first, *last)


def fit_trail(
    plane: WeightedPlane, x: float, y: float, length: float, angle: float, sigma: float, *, sign: int = 1
) -> Trail | None:
    """Fit a trail of even brightness to the pixels around a first guess.

    Parameters
    ----------
    x, y, length, angle
        The guess: middle [pixel], length [pixel], angle from +x to +y [rad].
    sigma
        Of a star [pixel]; the smear of the trail may be half to twice of it.
    sign
        -1 fits a dark trail.

    Returns
    -------
    Trail or None
        None when too few pixels can be used, or the fit leaves the window it was given.

    Notes
    -----
    Model: Veres et al. (2012), PASP 124, 1197, equation 3. Its flux lacks the wings of a real star; `line_flux`
    has them.
    """
    reach = 4.0 * sigma
    pixels = kernels.strip_pixels(
        plane.weighted, plane.weight, plane.pad, x, y, length, angle, reach, reach + 0.25 * length
    )
    if len(pixels) < 3 * kernels.TRAIL_PARAMETERS:
        return None
    pixels[:, 2] *= sign
    start = float(pixels[:, 2].sum())
    guess = max(start, 3.0 / float(np.sqrt(pixels[:, 3].mean())))
    parameters = np.array([x, y, max(length, 1.0), angle, guess, sigma])
    cost, flux_err = kernels.fit_trail(pixels, parameters, 0.3 * sigma, 2.5 * sigma, _ITERATIONS)
    x, y, fitted, angle, flux, width = (float(value) for value in parameters)
    if not (np.isfinite(parameters).all() and flux > 0 and fitted < 2 * length + 8 * reach):
        return None
    x, y, fitted = _inside(x, y, fitted, angle, plane.shape)
    if fitted <= 0:
        return None
    degrees = max(len(pixels) - kernels.TRAIL_PARAMETERS, 1)
    return Trail(
        x,
        y,
        fitted,
        float(np.mod(angle, np.pi)),
        sign * flux,
        float(flux_err),
        width,
        cost / degrees,
    )


def line_flux(plane: WeightedPlane, psf: PsfModel, trail: Trail) -> tuple[float, float, float]:
    """Flux of a trail with the real PSF: stars of equal flux set along its line, and one free factor.

    Returns
    -------
    flux, flux_err, chi2 : float
        [DN], [DN], and chi2 per degree of freedom where the trail is brighter than a tenth of its maximum; NaN when
        no pixel of it can be used.
    """
    n = max(2 * round(trail.length), 2)
    along = ((np.arange(n) + 0.5) / n - 0.5) * trail.length
    x, y = trail.x + along * np.cos(trail.angle), trail.y + along * np.sin(trail.angle)
    stamps = psf.stamps(x, y)
    half = psf.size // 2
    columns, rows = np.floor(x + 0.5).astype(np.int64), np.floor(y + 0.5).astype(np.int64)
    left, top = int(columns.min()) - half, int(rows.min()) - half
    line = np.zeros((int(rows.max()) + half + 1 - top, int(columns.max()) + half + 1 - left), np.float32)
    for stamp, row, column in zip(stamps, rows - half - top, columns - half - left, strict=True):
        line[row : row + psf.size, column : column + psf.size] += stamp
    n_y, n_x = plane.shape
    y0, y1, x0, x1 = max(top, 0), min(top + line.shape[0], n_y), max(left, 0), min(left + line.shape[1], n_x)
    model = line[y0 - top : y1 - top, x0 - left : x1 - left] / n
    window = slice(y0 + plane.pad, y1 + plane.pad), slice(x0 + plane.pad, x1 + plane.pad)
    weight, weighted = plane.weight[window], plane.weighted[window]
    norm = float((model.astype(np.float64) ** 2 * weight).sum())
    if norm <= 0:
        return np.nan, np.nan, np.nan
    flux = float((model.astype(np.float64) * weighted).sum()) / norm
    core = (model > 0.1 * model.max()) & (weight > 0)
    residual = weighted[core] / weight[core] - flux * model[core]
    chi2 = float((residual.astype(np.float64) ** 2 * weight[core]).sum()) / max(int(core.sum()) - 6, 1)
    return flux, norm**-0.5, chi2


def _inside(
    x: float, y: float, length: float, angle: float, shape: tuple[int, int]
) -> tuple[float, float, float]:
    """The part of a line that lies on the image: its middle and length (0 when none does)."""
    low, high = -0.5 * length, 0.5 * length
    for position, slope, side in ((x, np.cos(angle), shape[1]), (y, np.sin(angle), shape[0])):
        if abs(slope) < 1e-12:
            continue
        one, other = sorted(((-0.5 - position) / slope, (side - 0.5 - position) / slope))
        low, high = max(low, one), min(high, other)
    middle = 0.5 * (low + high)
    return x + middle * np.cos(angle), y + middle * np.sin(angle), max(high - low, 0.0)


def ridge(snr: Image, trail: Trail) -> Floats:
    """Values of a matched-filter map along a trail, one per pixel of its length."""
    n = max(round(trail.length), 1)
    along = (np.arange(n) + 0.5) / n * trail.length - 0.5 * trail.length
    columns = np.clip(np.rint(trail.x + along * np.cos(trail.angle)), 0, snr.shape[1] - 1).astype(int)
    rows = np.clip(np.rint(trail.y + along * np.sin(trail.angle)), 0, snr.shape[0] - 1).astype(int)
    return np.asarray(snr[rows, columns], np.float64)


def near_trail(trail: Trail, x: Floats, y: Floats, across: float, beyond: float) -> NDArray[np.bool_]:
    """Which positions lie within `across` of a trail and at most `beyond` its ends [pixel]."""
    c, s = np.cos(trail.angle), np.sin(trail.angle)
    u, v = (x - trail.x) * c + (y - trail.y) * s, -(x - trail.x) * s + (y - trail.y) * c
    found: NDArray[np.bool_] = (np.abs(v) <= across) & (np.abs(u) <= 0.5 * trail.length + beyond)
    return found


def link_lines(sums: Floats, sign: Integers, n_pix: Integers, fwhm: float) -> list[Integers]:
    """Group segments that lie on a line: pieces of one trail.

    Parameters
    ----------
    sums : ndarray, shape (n, 6)
        Of the pixels of each segment, see `ellipses_of`.
    sign : ndarray, shape (n,)
        Segments of different sign are never pieces of one trail.
    n_pix : ndarray, shape (n,)
        Number of their pixels.
    fwhm
        Of a star [pixel].

    Returns
    -------
    list of ndarray
        Indices of each group that is elongated, the largest group first; a segment is in at most one group.
    """
    ellipses = ellipses_of(sums)
    long, short = ellipses[2], ellipses[3]
    seeds = np.flatnonzero((n_pix >= _LEAST_PIXELS) & (long > _LEAST_ELONGATION * short))
    taken = np.zeros(len(sums), bool)
    groups = []
    for seed in seeds[np.argsort(-long[seeds], kind="stable")]:
        if taken[seed]:
            continue
        taken[seed] = True
        group = np.array([seed])
        free = ~taken & (sign == sign[seed])
        while len(more := _pieces_on_line(sums, ellipses, free, group, fwhm)):
            free[more] = False
            group = np.concatenate([group, more])
        taken[group] = True
        groups.append(group)
    return sorted(groups, key=lambda group: -float(sums[group, 0].sum()))


def _pieces_on_line(
    sums: Floats, ellipses: tuple[Floats, ...], free: NDArray[np.bool_], group: Integers, fwhm: float
) -> Integers:
    """Free segments that continue the line of a group: near its axis, along it if they are long, across a short gap."""
    x0, y0, a, _, theta = (float(value[0]) for value in ellipses_of(sums[group].sum(axis=0)[None]))
    reach = np.sqrt(3.0) * a  # half the length of an even line
    if 2 * reach < 4 * fwhm:
        return np.array([], np.int64)
    x, y, long, short, angle = ellipses
    u = (x - x0) * np.cos(theta) + (y - y0) * np.sin(theta)
    v = -(x - x0) * np.sin(theta) + (y - y0) * np.cos(theta)
    half = np.sqrt(3.0) * long
    is_long = (long > 1.5 * short) & (2 * half > 3 * fwhm)
    turn = np.abs(np.mod(angle - theta + np.pi / 2, np.pi) - np.pi / 2)
    gap = np.abs(u) - half - reach
    allowed = np.where(is_long, np.minimum(np.maximum(6 * fwhm, reach), 150.0), 2.5 * fwhm)
    along = np.where(is_long, turn < np.radians(12), True)
    near = (np.abs(v) < fwhm + 0.02 * np.abs(u)) & (gap < allowed) & along
    return np.flatnonzero(near & free)


@dataclass(frozen=True)
class FoundTrail:
    """A trail that holds."""

    trail: Trail
    sign: int
    snr: float
    members: Integers  # the segments it explains
    n_pix: int


def find_trails(
    significance: SignificanceMap, segments: Segments, psf: PsfModel, field: PsfField, threshold: float
) -> list[FoundTrail]:
    """Fit a line to each group of elongated segments, and keep those that are lines."""
    found: list[FoundTrail] = []
    if not len(segments.x):
        return found
    fwhm, sigma = field.typical_fwhm, field.typical_sigma
    free = np.ones(len(segments.x), bool)
    for group in link_lines(segments.moments, segments.sign, segments.n_low, fwhm):
        if not free[group].any():
            continue
        sign = int(segments.sign[group[0]])
        x, y, long, short, angle = (
            float(value[0]) for value in ellipses_of(segments.moments[group].sum(axis=0)[None])
        )
        length = float(np.sqrt(12 * max(long**2 - min(short, long) ** 2, 0.1)))
        trail = fit_trail(significance.plane, x, y, length, angle, sigma, sign=sign)
        if trail is None:
            continue
        spread = float(significance.correction(np.array([trail.x]), np.array([trail.y]))[1][0])
        trail = replace(trail, flux_err=trail.flux_err * spread)
        strongest = float(segments.snr[group].max())
        if not _is_line(trail, significance.snr, sign, strongest, threshold, field):
            continue
        crest = float(np.median(ridge(significance.snr, trail))) * sign
        same = (segments.sign == sign) & near_trail(trail, segments.x, segments.y, 1.5 * fwhm, 1.5 * fwhm)
        same &= segments.snr < 1.5 * crest + 5  # something brighter on the line is not of it
        members = np.union1d(group, np.flatnonzero(same))
        free[members] = False
        snr = abs(trail.flux) / trail.flux_err
        trail = _with_true_flux(trail, significance.plane, psf, spread, field)
        found.append(FoundTrail(trail, sign, snr, members, int(segments.n_over[members].sum())))
    return found


def _with_true_flux(
    trail: Trail, plane: WeightedPlane, psf: PsfModel, spread: float, field: PsfField
) -> Trail:
    """The flux that the whole PSF gives along the line; that of the Gaussian stays where the width is not the PSF's."""
    if 0.6 * field.typical_sigma < trail.sigma < WIDEST * field.typical_sigma:
        flux, flux_err, chi2 = line_flux(plane, psf, trail)
        if np.isfinite(flux):
            return replace(trail, flux=flux, flux_err=flux_err * spread, chi2=chi2)
    return trail


def _is_line(
    trail: Trail, snr_map: Image, sign: int, strongest: float, threshold: float, field: PsfField
) -> bool:
    """Longer than wide, much better explained by a line than by its strongest point, thin and of even brightness.

    A comet fails the last two: its coma is wide, and most of its light sits at one end.
    """
    fwhm, snr = field.typical_fwhm, abs(trail.flux) / trail.flux_err
    if snr < threshold or trail.length < 1.2 * fwhm or snr**2 - strongest**2 < 25 + 0.05 * strongest**2:
        return False
    if (
        trail.sigma > WIDEST * field.typical_sigma and trail.length < 40 * fwhm
    ):  # satellites may be out of focus
        return False
    crest = ridge(snr_map, trail) * sign
    return bool(crest.max() < 1.5 * np.median(crest) + 3.5)
