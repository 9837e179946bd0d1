"""Does the WCS of an image point where it says, and a small correction when it does not quite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tapetum.core.errors import InputError
from tapetum.core.robust import MAD_TO_SIGMA
from tapetum.images.celestial import native_of_sky, sky_of_pixels
from tapetum.sky.match import match_sky, unit_vectors

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]
    Order = Literal["shift", "similarity", "affine"]

CLIP = 3.5  # standard deviations per axis


@dataclass(frozen=True)
class AstrometricFit:
    """How the stars of an image lie against a catalogue.

    Attributes
    ----------
    offset_ra_arcsec, offset_dec_arcsec
        Median of catalogue minus image, the first times cos(dec) [arcsec].
    offset_arcsec
        Length of that [arcsec].
    rms_arcsec
        Scatter about it, both axes together, robust [arcsec].
    n_matched, n_stars, n_catalogue
        Pairs, stars of the image, catalogue stars in its frame.
    i_star, i_catalogue : ndarray of int64, shape (n_matched,)
        The pairs.
    """

    offset_ra_arcsec: float
    offset_dec_arcsec: float
    offset_arcsec: float
    rms_arcsec: float
    n_matched: int
    n_stars: int
    n_catalogue: int
    i_star: NDArray[np.int64]
    i_catalogue: NDArray[np.int64]


def check_astrometry(
    x: ArrayLike, y: ArrayLike, wcs: Any, ra: ArrayLike, dec: ArrayLike, *, radius_arcsec: float = 10.0
) -> AstrometricFit:
    """Compare the positions of stars with a catalogue.

    The common offset is where the differences of all pairs within the radius pile up; pairs are then matched
    around it, each the other's nearest.

    Parameters
    ----------
    x, y : array_like, shape (n,)
        Stars of the image [pixel], 0-based.
    wcs
        `astropy.wcs.WCS` of the image.
    ra, dec : array_like, shape (m,)
        Catalogue, ICRS [deg].
    radius_arcsec
        Largest offset looked for [arcsec].

    Returns
    -------
    AstrometricFit

    Raises
    ------
    InputError
        Fewer than 3 pairs, or no offset stands out from chance pairs; the message says how many there were.
    """
    sky = np.column_stack(sky_of_pixels(wcs, x, y))
    cat_ra, cat_dec = np.asarray(ra, np.float64), np.asarray(dec, np.float64)
    n_in_frame = _in_frame(sky, cat_ra, cat_dec, radius_arcsec)
    i1, i2, _ = match_sky(sky[:, 0], sky[:, 1], cat_ra, cat_dec, radius_arcsec)
    if len(i1) < 3:
        raise InputError(
            f"astrometry: {len(i1)} pairs of {len(sky)} stars and {n_in_frame} catalogue stars within"
            f" {radius_arcsec:g} arcsec; wrong field, epoch or WCS?"
        )
    east, north = _offsets(sky[i1], cat_ra[i2], cat_dec[i2])
    bulk = _pile(east, north, radius_arcsec)
    close = np.hypot(east - bulk[0], north - bulk[1])
    keep = _mutual(i1, i2, close)
    keep &= close < max(1.0, 0.25 * radius_arcsec)
    i1, i2, east, north = i1[keep], i2[keep], east[keep], north[keep]
    good = _clipped(east, north)
    if good.sum() < 3:
        raise InputError(f"astrometry: only {int(good.sum())} stars agree with the catalogue")
    shift = float(np.median(east[good])), float(np.median(north[good]))
    scatter = float(np.hypot(_sigma(east[good]), _sigma(north[good])))
    return AstrometricFit(
        *shift,
        float(np.hypot(*shift)),
        scatter,
        int(good.sum()),
        len(sky),
        n_in_frame,
        i1[good],
        i2[good],
    )


def refine_wcs(
    wcs: Any,
    x: ArrayLike,
    y: ArrayLike,
    ra: ArrayLike,
    dec: ArrayLike,
    *,
    model: Order = "affine",
    radius_arcsec: float = 10.0,
    max_shift_arcsec: float = 30.0,
    max_rotation_deg: float = 1.0,
    max_scale: float = 0.02,
) -> Any:
    """A WCS that fits catalogue stars better, changed in CRVAL and its linear matrix only.

    Distortion terms (SIP, TPV) belong to the camera: they and CRPIX, to which they refer, stay. With few stars the
    model is lowered: a shift below 6 pairs, shift, rotation and scale below 12.

    Parameters
    ----------
    wcs, x, y, ra, dec, radius_arcsec
        As `check_astrometry`.
    model
        ``shift``, ``similarity`` (shift, rotation, scale) or ``affine``.
    max_shift_arcsec, max_rotation_deg, max_scale
        Corrections beyond these are refused: then something else is wrong.

    Returns
    -------
    astropy.wcs.WCS
        A new one.

    Raises
    ------
    InputError
        No match, a correction beyond the limits, or one that does not bring the stars closer.
    """
    at = np.column_stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])
    cat_ra, cat_dec = np.asarray(ra, np.float64), np.asarray(dec, np.float64)
    before = check_astrometry(x, y, wcs, cat_ra, cat_dec, radius_arcsec=radius_arcsec)
    new, fit, radius = wcs.deepcopy(), before, radius_arcsec
    _forget_crota(new)
    for _ in range(5):
        chosen: Order = (
            "shift"
            if fit.n_matched < 6
            else "similarity"
            if fit.n_matched < 12 and model != "shift"
            else model
        )
        step = _solve(new, at[fit.i_star], cat_ra[fit.i_catalogue], cat_dec[fit.i_catalogue], chosen)
        _apply(new, *step)
        _refuse_absurd(wcs, new, max_shift_arcsec, max_rotation_deg, max_scale)
        radius = max(2.0, min(radius, 5 * fit.rms_arcsec))
        fit = check_astrometry(x, y, new, cat_ra, cat_dec, radius_arcsec=radius)
    gained = np.hypot(fit.offset_arcsec, fit.rms_arcsec) <= 1.05 * np.hypot(
        before.offset_arcsec, before.rms_arcsec
    )
    if not gained or fit.n_matched < 0.5 * before.n_matched:
        raise InputError(
            f"astrometry: the refined WCS is no better (rms {before.rms_arcsec:.3f} -> {fit.rms_arcsec:.3f} arcsec,"
            f" {before.n_matched} -> {fit.n_matched} stars)"
        )
    return new


def _in_frame(sky: Array, ra: Array, dec: Array, radius_arcsec: float) -> int:
    """Catalogue entries near the area that the stars cover."""
    if len(sky) == 0:
        return 0
    north = (dec > sky[:, 1].min() - radius_arcsec / 3600) & (dec < sky[:, 1].max() + radius_arcsec / 3600)
    around = (ra - sky[0, 0] + 180) % 360
    own = (sky[:, 0] - sky[0, 0] + 180) % 360
    return int((north & (around >= own.min()) & (around <= own.max())).sum())


def _offsets(sky: Array, ra: Array, dec: Array) -> tuple[Array, Array]:
    """Catalogue minus image, east and north [arcsec], for small separations at any declination."""
    east = ((ra - sky[:, 0] + 180) % 360 - 180) * np.cos(np.deg2rad(0.5 * (dec + sky[:, 1]))) * 3600
    return east, (dec - sky[:, 1]) * 3600


def _pile(east: Array, north: Array, radius: float) -> tuple[float, float]:
    """Where the differences pile up; an error when no place stands out from chance."""
    step = max(0.5, radius / 20)
    n = 2 * int(np.ceil(radius / step)) + 1
    edge = (np.arange(n + 1) - n / 2) * step
    counts, _, _ = np.histogram2d(east, north, bins=[edge, edge])
    blocks = counts.copy()
    for dx, dy in ((1, 0), (0, 1), (1, 1), (-1, 0), (0, -1), (-1, -1), (1, -1), (-1, 1)):
        blocks += np.roll(counts, (dx, dy), (0, 1))
    best = np.unravel_index(int(np.argmax(blocks)), blocks.shape)
    chance = len(east) * 9 * step**2 / (np.pi * radius**2)
    if blocks[best] < max(3.0, min(chance, float(np.median(blocks))) + 4 * np.sqrt(chance)):
        raise InputError(
            f"astrometry: no offset stands out: {int(blocks[best])} of {len(east)} pairs agree, {chance:.1f} by chance"
        )
    middle = (edge[1:] + edge[:-1]) / 2
    near = np.hypot(east - middle[best[0]], north - middle[best[1]]) < 2 * step
    return float(np.median(east[near])), float(np.median(north[near]))


def _mutual(i1: NDArray[np.int64], i2: NDArray[np.int64], apart: Array) -> NDArray[np.bool_]:
    """Pairs that are each the other's nearest."""
    order = np.argsort(apart, kind="stable")
    keep = np.zeros(len(i1), bool)
    first = np.unique(i1[order], return_index=True)[1]
    second = np.unique(i2[order], return_index=True)[1]
    keep[order[np.intersect1d(first, second)]] = True
    return keep


def _sigma(value: Array) -> float:
    return MAD_TO_SIGMA * float(np.median(np.abs(value - np.median(value)))) if len(value) else 0.0


def _clipped(east: Array, north: Array) -> NDArray[np.bool_]:
    """Pairs that lie with the others."""
    good = np.ones(len(east), bool)
    for _ in range(10):
        if not good.any():
            break
        away = np.zeros(len(east))
        for value in (east, north):
            away = np.maximum(away, np.abs(value - np.median(value[good])) / max(_sigma(value[good]), 1e-4))
        now = away < CLIP
        if (now == good).all():
            break
        good = now
    return good


def _forget_crota(wcs: Any) -> None:
    if wcs.wcs.has_crota():
        raise InputError(
            "astrometry: a WCS with CROTA cannot be refined; write it with CD or PC keywords first"
        )


def _solve(wcs: Any, at: Array, ra: Array, dec: Array, model: Order) -> tuple[Array, Array]:
    """Matrix and shift that take undistorted pixels of stars to where the catalogue wants them, robustly."""
    have = np.asarray(wcs.pix2foc(at, 0))
    want = np.asarray(wcs.wcs_world2pix(_in_order(wcs, np.column_stack(native_of_sky(wcs, ra, dec))), 0))
    origin = np.asarray(wcs.wcs.crpix) - 1
    u, v = have - origin, want - origin
    weight = np.ones(len(u), bool)
    matrix, shift = np.eye(2), np.zeros(2)
    for _ in range(8):
        matrix, shift = _linear(u[weight], v[weight], model)
        residual = v - u @ matrix.T - shift
        spread = np.array([max(_sigma(residual[weight, k]), 1e-4) for k in range(2)])
        now = (np.abs(residual - np.median(residual[weight], axis=0)) < CLIP * spread).all(axis=1)
        if now.sum() < 3 or (now == weight).all():
            break
        weight = now
    return matrix, shift


def _linear(u: Array, v: Array, model: Order) -> tuple[Array, Array]:
    """Least squares of v = M u + t."""
    mean_u, mean_v = u.mean(axis=0), v.mean(axis=0)
    if model == "shift":
        return np.eye(2), mean_v - mean_u
    a, b = u - mean_u, v - mean_v
    if model == "affine":
        matrix = np.linalg.lstsq(a, b, rcond=None)[0].T
    else:
        size = (a**2).sum()
        c, s = (a * b).sum() / size, (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / size
        matrix = np.array([[c, -s], [s, c]])
    return np.asarray(matrix), np.asarray(mean_v - matrix @ mean_u)


def _apply(wcs: Any, matrix: Array, shift: Array) -> None:
    """Fold a correction of undistorted pixels, relative to CRPIX, into CRVAL and the linear matrix."""
    origin = np.asarray(wcs.wcs.crpix) - 1
    # distortion terms may have a constant: CRPIX need not lie at CRVAL, only the way between two points counts
    here, there = _in_order(wcs, np.asarray(wcs.wcs_pix2world(np.stack([origin, origin + shift]), 0)))
    crval = _in_order(wcs, _carried(_in_order(wcs, np.asarray(wcs.wcs.crval)), here, there))
    if wcs.wcs.has_cd():
        wcs.wcs.cd = wcs.wcs.cd @ matrix
    else:
        wcs.wcs.pc = wcs.wcs.get_pc() @ matrix
    wcs.wcs.crval = crval
    wcs.wcs.set()


def _in_order(wcs: Any, points: Array) -> Array:
    """Longitude and latitude in the order of the axes of a WCS, or back; shape (..., 2)."""
    return points if wcs.wcs.lng == 0 else points[..., ::-1]


def _carried(point: Array, start: Array, end: Array) -> Array:
    """Where the shortest rotation of the sphere from `start` to `end` takes `point` [deg]."""
    p, a, b = unit_vectors(*np.stack([point, start, end]).T)
    axis, cosine = np.cross(a, b), float(a @ b)
    moved = p * cosine + np.cross(axis, p) + axis * (axis @ p) / (1 + cosine)  # Rodrigues' formula
    return np.rad2deg(
        [np.arctan2(moved[1], moved[0]) % (2 * np.pi), np.arctan2(moved[2], np.hypot(*moved[:2]))]
    )


def _refuse_absurd(
    old: Any, new: Any, max_shift_arcsec: float, max_rotation_deg: float, max_scale: float
) -> None:
    """An error when the new WCS is far from the old one."""
    change = np.linalg.solve(old.pixel_scale_matrix, new.pixel_scale_matrix)
    rotation = float(np.rad2deg(np.arctan2(change[1, 0] - change[0, 1], change[0, 0] + change[1, 1])))
    stretch = float(np.abs(np.linalg.svd(change)[1] - 1).max())
    middle = (np.asarray(old.wcs.crpix) - 1)[None]
    here, there = (_in_order(wcs, np.asarray(wcs.wcs_pix2world(middle, 0))) for wcs in (old, new))
    east, north = _offsets(here, there[:, 0], there[:, 1])
    shift = float(np.hypot(east[0], north[0]))
    if shift > max_shift_arcsec or abs(rotation) > max_rotation_deg or stretch > max_scale:
        raise InputError(
            f"astrometry: refused to correct by {shift:.1f} arcsec, {rotation:.3f} deg, {100 * stretch:.2f} % of scale"
            f" (limits {max_shift_arcsec:g} arcsec, {max_rotation_deg:g} deg, {100 * max_scale:g} %)"
        )
