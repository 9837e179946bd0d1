"""What changed between two images: the sharper one is blurred like the other, and taken away.

`subtract` decides which of the two is convolved, fits the kernel (`tapetum.images.matching`) or asks
`tapetum.images.zogy`, and lets nothing through that a look at the result would reject: every difference has been
measured on its own stars, and on its own noise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from tapetum.core.errors import InputError
from tapetum.images._subtract_kernels import convolve_tiles, finish_difference, mark_changed, spread_mask
from tapetum.images.background import estimate_background
from tapetum.images.difference import (
    Difference,
    Method,
    Plane,
    SubtractionError,
    SubtractionQuality,
    checked,
    disagreement,
    filled,
    judged,
    star_flux_ratio,
    stars_of_both,
)
from tapetum.images.frame import Bad
from tapetum.images.matching import (
    MOSTLY,
    STAMP_FWHM,
    Basis,
    MatchingError,
    MatchingKernel,
    Stamps,
    cut_stamps,
    fit_kernel,
    gaussian_basis,
)
from tapetum.images.psf import PsfModel
from tapetum.images.shapes import over_rows
from tapetum.images.zogy import proper_difference

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.images.frame import Image, MaskPlane

__all__ = ["Difference", "Method", "Plane", "SubtractionError", "SubtractionQuality", "subtract"]

Moving = Literal["reference", "science"]

TILE = 48  # side of the parts of the field in which the kernel is constant [pixel]
SMALLEST_STAMP, LARGEST_STAMP = 7, 20  # half side [pixel]
ENCLOSED = 0.9  # part of the kernel inside the radius by which bad pixels spread
FIT_REACH = 0.5  # of the kernel's half side, by which bad pixels lose their weight in the fit
FLATTEN_BOX = 128  # of the background that is left in the difference; smaller in small images [pixel]
PSF_GRID = 5  # positions per axis at which a convolved PSF is computed


def subtract(
    science: Plane,
    reference: Plane,
    *,
    method: Method = "kernel",
    convolve: Literal["auto", "reference", "science"] = "auto",
    order: int = 2,
    threads: int = 1,
) -> Difference:
    """Subtract a reference from a science image on the same pixel grid.

    Parameters
    ----------
    science, reference
        Of equal shape.
    method
        ``kernel`` fits a kernel that varies over the field; ``zogy`` is the proper difference image of Zackay, Ofek &
        Gal-Yam (2016, ApJ 830, 27), with the PSFs of each part of the field.
    convolve
        Which image is blurred; ``auto`` takes the sharper one, and the other when that fails.
    order
        Highest order of the kernel's variation over the field.
    threads
        Of the convolution; the result does not depend on it.

    Raises
    ------
    SubtractionError
        The result would be non-finite, over-fitted, unsubtracted or of the wrong scale; the message says which.
    InputError
        Shapes differ, or a seeing or PSF that is needed is not known.
    """
    if science.data.shape != reference.data.shape:
        raise InputError(
            f"science {science.data.shape} and reference {reference.data.shape} differ in shape: align them first"
        )
    try:
        if method == "zogy":
            return checked(proper_difference(science, reference, threads=threads), science, reference)
        return _by_kernel(science, reference, convolve, order, threads)
    except (SubtractionError, MatchingError) as problem:
        raise SubtractionError(f"{disagreement(science, reference)}{problem}") from None


def _by_kernel(
    science: Plane,
    reference: Plane,
    convolve: Literal["auto", "reference", "science"],
    order: int,
    threads: int,
) -> Difference:
    """The first difference that passes the gate, of those that may be made."""
    sharper: Moving = "reference" if reference.seeing <= science.seeing else "science"
    sides: tuple[Moving, ...] = (convolve,) if convolve != "auto" else (sharper, _other(sharper))
    problems: dict[str, list[str]] = {}
    for side in sides:
        try:
            return checked(_kernel_difference(science, reference, side, order, threads), science, reference)
        except (SubtractionError, MatchingError) as problem:
            problems.setdefault(str(problem), []).append(side)
    told = [
        text if len(done) == len(sides) else f"convolving the {done[0]}: {text}"
        for text, done in problems.items()
    ]
    raise SubtractionError("; ".join(told))


def _other(side: Moving) -> Moving:
    return "science" if side == "reference" else "reference"


def _kernel_difference(
    science: Plane, reference: Plane, side: Moving, order: int, threads: int
) -> Difference:
    moving, target = (reference, science) if side == "reference" else (science, reference)
    shape = moving.data.shape
    basis = gaussian_basis(moving.seeing, target.seeing)
    stamp_half = int(
        np.clip(np.ceil(STAMP_FWHM * max(moving.seeing, target.seeing)), SMALLEST_STAMP, LARGEST_STAMP)
    )
    image, still = filled(moving), filled(target)
    x, y = stars_of_both(moving, target, stamp_half + basis.half)
    ratio = star_flux_ratio(target, moving, still, image, x, y, stamp_half)
    stamps = _stamps(moving, target, image, still, basis, stamp_half, x, y, ratio)
    kernel = fit_kernel(stamps, basis, (shape[0], shape[1]), ratio, order=order)
    model, spread = _convolved(image, kernel, threads)
    data, noise = np.empty_like(model), np.empty_like(model)
    photons = 1 / target.gain + spread.mean() / max(kernel.scale, 1e-30) / moving.gain + kernel.noise.photons
    sky = moving.noise * np.sqrt(spread)
    photons, relative = float(photons), float(kernel.noise.relative)
    over_rows(
        lambda a, b: finish_difference(still, model, target.noise, sky, photons, relative, a, b, data, noise),
        len(data),
        threads,
    )
    mask = target.mask.copy()
    spread_mask(moving.mask, _radius(kernel), mask)
    data[np.isnan(science.data) | np.isnan(reference.data)] = np.nan
    if side == "science":
        np.negative(data, out=data)
        data /= kernel.scale
        noise /= kernel.scale
    data = _flattened(data, noise, mask, threads)
    psf = science.psf
    if psf is not None and side == "science":
        psf = _convolved_psf(psf, kernel)
    scale = kernel.scale if side == "reference" else 1 / kernel.scale
    expected = ratio if side == "reference" else 1 / ratio
    quality = replace(_unjudged(kernel), scale_expected=expected)
    quality = judged(quality, data, noise, mask, science, x, y)
    return Difference(data, noise, mask, psf, scale, "kernel", side, quality, kernel)


def _unjudged(kernel: MatchingKernel) -> SubtractionQuality:
    nan = float("nan")
    return SubtractionQuality(
        kernel.n_stars, kernel.n_clipped, kernel.chi2, kernel.chi2_held, kernel.noise.relative, nan, nan, nan, nan, nan,
        kernel.richness,
    )  # fmt: skip


def _stamps(
    moving: Plane,
    target: Plane,
    image: Image,
    still: Image,
    basis: Basis,
    stamp_half: int,
    x: NDArray[np.int64],
    y: NDArray[np.int64],
    ratio: float,
) -> Stamps:
    """Stamps of the fit with their noise, for which a first guess of the kernel is good enough."""
    # a Gaussian of the missing width: what it leaves of white noise, and of photon noise
    missing = max(target.seeing**2 - moving.seeing**2, 0.0) / 2.3548**2
    left = 1 / (4 * np.pi * missing + 1)
    sky = target.noise[y, x] ** 2 + left * (ratio * moving.noise[y, x]) ** 2
    photons = np.full(len(x), 1 / target.gain + left * ratio / moving.gain, np.float32)
    reach = target.mask.copy()
    spread_mask(moving.mask, basis.half * FIT_REACH, reach)
    stamps = cut_stamps(image, still, basis, stamp_half, x, y, sky.astype(np.float32), photons, reach == 0)
    return stamps[stamps.usable.mean(1) >= MOSTLY]


def _convolved(image: Image, kernel: MatchingKernel, threads: int) -> tuple[Image, Image]:
    """(the image through the kernel, plus background; what part of white variance the kernel leaves)."""
    n_y, n_x = image.shape
    half = kernel.basis.half
    rows, cols = np.arange(-(-n_y // TILE)), np.arange(-(-n_x // TILE))
    centre_x, centre_y = np.meshgrid((cols + 0.5) * TILE, (rows + 0.5) * TILE)
    x, y = np.minimum(centre_x, n_x - 1).ravel(), np.minimum(centre_y, n_y - 1).ravel()
    kernels = kernel.at(x, y).astype(np.float32)
    grid = (len(rows), len(cols))
    turned = np.ascontiguousarray(kernels[:, ::-1, ::-1]).reshape(*grid, *kernels.shape[1:])
    padded = np.pad(image, half, mode="edge")
    out = np.empty_like(image)
    over_rows(lambda a, b: convolve_tiles(padded, turned, TILE, a, b, out), len(rows), threads)
    _add_background(out, kernel)
    spread = (kernels.astype(np.float64) ** 2).sum((1, 2)).astype(np.float32).reshape(grid)
    return out, np.repeat(np.repeat(spread, TILE, 0)[:n_y], TILE, 1)[:, :n_x]


def _add_background(image: Image, kernel: MatchingKernel) -> None:
    """Add the polynomial background to every pixel, a few rows at a time so that it needs no memory."""
    n_y, n_x = image.shape
    x = np.arange(n_x, dtype=np.float64)
    # a polynomial of order n is known from n + 1 rows; rows between follow exactly
    nodes = np.linspace(0, n_y - 1, kernel.order + 1) if n_y > 1 else np.zeros(1)
    values = np.stack([kernel.background(x, np.full(n_x, row)) for row in nodes])
    powers = np.vander(nodes / max(n_y - 1, 1), len(nodes))
    coefficients = np.linalg.solve(powers, values)
    rows = np.vander(np.arange(n_y) / max(n_y - 1, 1), len(nodes)).astype(np.float32)
    for first in range(0, n_y, TILE):
        own = slice(first, first + TILE)
        image[own] += rows[own] @ coefficients.astype(np.float32)


def _radius(kernel: MatchingKernel) -> float:
    """Radius that encloses most of the kernel in the middle of the field [pixel]."""
    n_y, n_x = kernel.shape
    middle = np.abs(kernel.at(np.array([n_x / 2]), np.array([n_y / 2]))[0])
    axis = np.arange(-kernel.basis.half, kernel.basis.half + 1.0)
    distance = np.hypot(axis[:, None], axis).ravel()
    order = np.argsort(distance, kind="stable")
    inside = np.cumsum(middle.ravel()[order]) / middle.sum()
    return float(max(distance[order][np.searchsorted(inside, ENCLOSED)], 1.0))


def _flattened(data: Image, noise: Image, mask: MaskPlane, threads: int) -> Image:
    """Take away what background is left, measured where nothing changed."""
    changed = np.empty_like(mask)
    limit, bad = np.float32(5), np.uint8(Bad.NO_DATA)
    over_rows(
        lambda a, b: mark_changed(data, noise, mask, limit, bad, a, b, changed),
        len(data),
        threads,
    )
    if changed.all():
        return data
    box = int(np.clip(min(data.shape) // 4, FLATTEN_BOX // 2, FLATTEN_BOX))
    data -= estimate_background(data, changed, box=box, threads=threads).level
    return data


def _convolved_psf(psf: PsfModel, kernel: MatchingKernel) -> PsfModel:
    """PSF of a convolved image, from a grid of positions."""
    from scipy.signal import fftconvolve

    n_y, n_x = kernel.shape
    xs, ys = np.meshgrid(np.linspace(0, n_x - 1, PSF_GRID), np.linspace(0, n_y - 1, PSF_GRID))
    x, y = xs.ravel(), ys.ravel()
    kernels = kernel.at(x, y)
    stamps = [
        fftconvolve(psf.centred(float(a), float(b)), k / k.sum(), mode="same")
        for a, b, k in zip(x, y, kernels, strict=True)
    ]
    return PsfModel.from_stamps(x, y, np.asarray(stamps, np.float32), kernel.shape, order=2)
