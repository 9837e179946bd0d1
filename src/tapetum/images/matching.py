"""The kernel that turns one image's PSF into another's, fitted on stamps around stars.

After Alard & Lupton (1998, ApJ 503, 325) and Alard (2000, A&AS 144, 363): the target image is the other one
convolved with a kernel, plus a background; the kernel is a sum of Gaussians times polynomials whose coefficients
vary over the field as polynomials, which makes the fit linear. Three things are ours: the weights follow from the
model and not from the noisy pixels (so that the flux scale has no bias), a relative error of the model is measured
and enters the weights (so that a few bright stars do not rule the fit), and how many terms the kernel gets is
decided by cross-validation over stars.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tapetum.core.errors import TapetumError
from tapetum.core.robust import MAD_TO_SIGMA
from tapetum.images._subtract_kernels import local_maxima

if TYPE_CHECKING:
    from tapetum.images.frame import Image, MaskPlane

Vector = NDArray[np.float64]

RELATIVE_WIDTHS = (
    0.5,
    1.0,
    2.0,
    4.0,
)  # of the Gaussians, in units of the width to match; the last one is for wings
DEGREES = (6, 4, 2, 0)  # of the polynomials that multiply them
NARROWEST = 0.7  # sigma of a Gaussian that pixels can still carry [pixel]
FLOOR_WIDTH = 1.0  # width taken where both images are equally sharp [pixel]
REACH = 2.5  # half side of the kernel in units of the widest Gaussian's sigma
SMALLEST_HALF, LARGEST_HALF = 4, 15
STAMP_FWHM = 2.5  # half side of a fit stamp in FWHM of the blurrier image
CLIP = 4.0  # sigma
CORE_LIGHT = 0.2  # of a star's brightest pixel: where the error of the model is measured
MOSTLY = 0.5  # of the pixels of a stamp that must be usable
MOST_TRUSTED = 0.01  # relative error by which bright stars lose weight, at most
FOLDS = 5
INDEPENDENT = 1e-3  # part of a kernel that the ones before must leave for it to count
PRIOR_SHAPE = 0.1  # expected size of a coefficient of a kernel of unit norm, in units of the flux scale
PRIOR_SCALE = 0.05  # relative error of the flux scale that photometry gives beforehand
PRIOR_VARIES = 0.03  # ... and of its variation over the field
RIDGE = 1e-7  # relative to the diagonal: only keeps the solution defined
MOST_STARS = 400
CELLS = 12  # per axis: stars are taken evenly from so many parts of the field
ENOUGH_STARS = 3
SIGNIFICANT_PEAK = 15.0  # sigma above the background for a star to be used
LEAST_PEAK = 3.0  # sigma above the background that the same star must reach in the target
TOO_SHARP = 0.4  # of what a Gaussian of the seeing has beside its peak: less is a particle or a hot pixel
LINEAR_PART = 0.8  # of the saturation level
STANDARD_ERRORS = 1.0  # how much better than simpler ones a richer kernel must be


class MatchingError(TapetumError):
    """No kernel can be fitted to these images."""


@dataclass(frozen=True)
class Basis:
    """Kernels of which matching kernels are made.

    Attributes
    ----------
    kernels : ndarray of float64, shape (n, side, side)
        The first has unit sum, the sums of all others vanish: its coefficient is the flux scale.
    degree : ndarray of int64, shape (n,)
        Degree of the polynomial in each.
    """

    kernels: Vector
    degree: NDArray[np.int64]

    @property
    def half(self) -> int:
        """Half side [pixel]; the side is odd."""
        return int(self.kernels.shape[1]) // 2


@dataclass(frozen=True)
class Stamps:
    """What the fit knows of each star: the target's pixels and all that convolution can make of the other image.

    Attributes
    ----------
    x, y : ndarray of int64, shape (n,)
        Centres [pixel].
    columns : ndarray of float32, shape (n, n_basis + 1, n_pix)
        The other image convolved with each kernel of the basis; the last is 1, the background.
    target : ndarray of float32, shape (n, n_pix)
    sky : ndarray of float32, shape (n,)
        Variance of the sky of both images after convolution [DN^2].
    photons : ndarray of float32, shape (n,)
        Variance per DN of light, of both images after convolution [DN]; 0 where no gain is known.
    usable : ndarray of float32, shape (n, n_pix)
        1 for good pixels, 0 for those that bad ones of either image reach.
    """

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    columns: NDArray[np.float32]
    target: NDArray[np.float32]
    sky: NDArray[np.float32]
    photons: NDArray[np.float32]
    usable: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, chosen: NDArray[np.bool_]) -> Stamps:
        return Stamps(
            self.x[chosen],
            self.y[chosen],
            self.columns[chosen],
            self.target[chosen],
            self.sky[chosen],
            self.photons[chosen],
            self.usable[chosen],
        )


@dataclass(frozen=True)
class NoiseModel:
    """What stars scatter by beyond the noise of the sky.

    Attributes
    ----------
    photons
        Variance per DN of light where no gain is known [DN]; 0 where the gain tells it.
    relative
        Root mean square error of the model over the light of a pixel.
    """

    photons: float = 0.0
    relative: float = 0.0

    def variance(self, stamps: Stamps, light: Image) -> Image:
        """Variance of each pixel, shape (n, n_pix) [DN^2]."""
        light = np.maximum(light, 0)
        per_light = (stamps.photons + np.float32(self.photons))[:, None]
        variance: Image = stamps.sky[:, None] + per_light * light + (np.float32(self.relative) * light) ** 2
        return variance


@dataclass(frozen=True)
class MatchingKernel:
    """A kernel that varies over the field, and the background between the two images.

    Attributes
    ----------
    basis
        What it is made of.
    coefficients : ndarray of float64, shape (n_basis + 1, n_poly)
        Of each kernel of the basis and of the background, times the terms of `polynomial`.
    order
        Of the polynomials in position.
    shape
        (n_y, n_x) of the images [pixel].
    richness
        Name of the set of terms that cross-validation chose.
    noise
        What stars scatter by beyond the noise of the sky.
    n_stars, n_clipped
        Stars that were used, and those that were left out as outliers.
    chi2, chi2_held
        Reduced chi-square of the stars in the fit, and of stars while they were held out of it.
    """

    basis: Basis
    coefficients: Vector
    order: int
    shape: tuple[int, int]
    richness: str
    noise: NoiseModel
    n_stars: int
    n_clipped: int
    chi2: float
    chi2_held: float

    def at(self, x: Vector, y: Vector) -> Vector:
        """Kernels at positions.

        Parameters
        ----------
        x, y : ndarray of float64, shape (n,)
            Column, row [pixel].

        Returns
        -------
        ndarray of float64, shape (n, side, side)
        """
        terms = polynomial(x, y, self.shape, self.order)
        return np.tensordot(terms @ self.coefficients[:-1].T, self.basis.kernels, 1)

    def background(self, x: Vector, y: Vector) -> Vector:
        """Background of the target over the convolved image at positions [DN], shape (n,)."""
        return np.asarray(polynomial(x, y, self.shape, self.order) @ self.coefficients[-1])

    @property
    def scale(self) -> float:
        """Flux of a star in the target over its flux in the other image, in the middle of the field."""
        n_y, n_x = self.shape
        return float(self.at(np.array([n_x / 2]), np.array([n_y / 2])).sum())


def polynomial(x: Vector, y: Vector, shape: tuple[int, int], order: int) -> Vector:
    """Terms 1, v, v^2, ..., u, u v, ... of position, u and v from -1 to 1 over the field; shape (n, n_poly)."""
    n_y, n_x = shape
    u = 2.0 * np.asarray(x, np.float64) / max(n_x - 1, 1) - 1.0
    v = 2.0 * np.asarray(y, np.float64) / max(n_y - 1, 1) - 1.0
    return np.stack([u**i * v**j for i in range(order + 1) for j in range(order + 1 - i)], axis=-1)


@cache
def _powers(order: int) -> tuple[int, ...]:
    return tuple(i + j for i in range(order + 1) for j in range(order + 1 - i))


def gaussian_basis(fwhm_from: float, fwhm_to: float) -> Basis:
    """Basis for a kernel that widens one PSF to another.

    Parameters
    ----------
    fwhm_from, fwhm_to
        Of the image to convolve and of the target [pixel]. Where they are nearly equal, or the wrong way round, a
        floor keeps the Gaussians from falling between the pixels.
    """
    missing = (max(fwhm_to**2 - fwhm_from**2, 0.0)) ** 0.5 / 2.3548
    width = max(missing, FLOOR_WIDTH, 0.2 * fwhm_from)
    sigmas = [max(ratio * width, NARROWEST) for ratio in RELATIVE_WIDTHS]
    half = int(np.clip(np.ceil(REACH * sigmas[-1]), SMALLEST_HALF, LARGEST_HALF))
    axis = np.arange(-half, half + 1.0)
    kernels, degrees = [], []
    for sigma, top in zip(sigmas, DEGREES, strict=True):
        bell = np.exp(-0.5 * (axis / sigma) ** 2)
        for i in range(top + 1):
            for j in range(top + 1 - i):
                kernels.append(np.outer(bell * (axis / sigma) ** j, bell * (axis / sigma) ** i))
                degrees.append(i + j)
    order = np.argsort(degrees, kind="stable")
    return _orthogonal(np.array(kernels)[order], np.array(degrees)[order])


def _orthogonal(kernels: Vector, degrees: NDArray[np.int64]) -> Basis:
    """The same kernels made orthogonal one after the other, so that each degree spans what it did and no more."""
    stack = kernels / np.abs(kernels).sum((1, 2), keepdims=True)
    stack[1:] -= stack[1:].sum((1, 2), keepdims=True) / stack[0].sum() * stack[0]
    kept, degree = [stack[0] / stack[0].sum()], [degrees[0]]
    directions = np.empty((0, stack[0].size))
    for kernel, power in zip(stack[1:].reshape(len(stack) - 1, -1), degrees[1:], strict=True):
        rest = kernel - directions.T @ (directions @ kernel)
        rest -= directions.T @ (directions @ rest)  # once more, for what rounding left
        if np.linalg.norm(rest) > INDEPENDENT * np.linalg.norm(kernel):
            rest /= np.linalg.norm(rest)
            directions = np.vstack([directions, rest])
            kept.append(rest.reshape(stack[0].shape))
            degree.append(power)
    return Basis(np.array(kept), np.array(degree))


@dataclass(frozen=True)
class Side:
    """One of two images in which stars are looked for.

    Attributes
    ----------
    data, noise, mask
        Pixels, noise of the sky and bits of `tapetum.images.frame.Bad`.
    ceiling
        Level that no pixel of a star may reach [DN].
    fwhm
        Seeing [pixel].
    """

    data: Image
    noise: Image
    mask: MaskPlane
    ceiling: float
    fwhm: float

    def shows_stars(self, x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether there is light below the ceiling, not sharper than a star, at positions off the edges; shape (n,)."""
        if not len(x):
            return np.zeros(0, bool)
        box = np.stack([self.data[y + j, x + i] for j in (-1, 0, 1) for i in (-1, 0, 1)])
        peak = box.max(0)
        beside = np.stack([self._cross(x + i, y + j) for j in (-1, 0, 1) for i in (-1, 0, 1)])
        around = beside[box.argmax(0), np.arange(len(x))]
        wide = np.exp(-4 * np.log(2) / self.fwhm**2)  # of the peak of a Gaussian, one pixel off
        lit = peak > LEAST_PEAK * self.noise[y, x]
        return np.asarray(lit & (peak < self.ceiling) & (around > TOO_SHARP * wide * peak))

    def _cross(self, x: NDArray[np.int64], y: NDArray[np.int64]) -> Image:
        """Mean of the four pixels beside each."""
        four = self.data[y, x - 1] + self.data[y, x + 1] + self.data[y - 1, x] + self.data[y + 1, x]
        return np.asarray(four / 4, np.float32)


def find_stars(
    moving: Side, target: Side, level: float, margin: int, core: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bright, linear, undisturbed peaks, spread over the field; galaxies and close pairs may be among them.

    Parameters
    ----------
    moving
        The image to convolve; it must show a significant peak, since what is only in the target (particles,
        transients) must not be fitted.
    target
        The other one; it must show light there as well.
    level
        Of the threshold, in units of `SIGNIFICANT_PEAK`.
    margin
        Distance from the edges [pixel].
    core
        Half side of the box that must be free of bad pixels [pixel].

    Returns
    -------
    x, y : ndarray of int64
        At most `MOST_STARS`, the brightest of each part of the field.
    """
    xs, ys = np.empty(200_000, np.int32), np.empty(200_000, np.int32)
    threshold = np.asarray(level * SIGNIFICANT_PEAK * moving.noise, np.float32)
    n = local_maxima(moving.data, moving.mask, threshold, max(margin, 3), xs, ys)
    x, y = xs[:n].astype(np.int64), ys[:n].astype(np.int64)
    stars = moving.shows_stars(x, y) & target.shows_stars(x, y)
    x, y = x[stars], y[stars]
    chosen: list[int] = []
    for i in _spread_out(moving.data, x, y):
        box = np.s_[y[i] - core : y[i] + core + 1, x[i] - core : x[i] + core + 1]
        near = any(abs(x[i] - x[k]) <= 2 and abs(y[i] - y[k]) <= 2 for k in chosen)
        if not near and not moving.mask[box].any() and not target.mask[box].any():
            chosen.append(int(i))
        if len(chosen) == MOST_STARS:
            break
    return x[chosen], y[chosen]


def _spread_out(image: Image, x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order of stars in which the brightest of each part of the field come first, then the second, and so on."""
    if not len(x):
        return np.zeros(0, np.int64)
    n_y, n_x = image.shape
    cell = (y * CELLS // n_y) * CELLS + x * CELLS // n_x
    order = np.lexsort((-image[y, x], cell))
    first = np.concatenate([[0], np.flatnonzero(np.diff(cell[order])) + 1])
    rank = np.arange(len(order)) - np.repeat(first, np.diff([*first, len(order)]))
    return order[np.argsort(rank, kind="stable")]


def cut_stamps(
    image: Image,
    target: Image,
    basis: Basis,
    stamp_half: int,
    x: NDArray[np.int64],
    y: NDArray[np.int64],
    sky: NDArray[np.float32],
    photons: NDArray[np.float32],
    usable: NDArray[np.bool_],
) -> Stamps:
    """Convolve the neighbourhood of each star with every kernel of the basis.

    `image` and `target` are free of NaN; no star is nearer to an edge than both halves together. Pixels that are not
    `usable` have no weight.
    """
    half, side = basis.half, 2 * basis.half + 1
    taps = np.ascontiguousarray(basis.kernels.reshape(len(basis.kernels), -1)[:, ::-1].astype(np.float32))
    n_pix = (2 * stamp_half + 1) ** 2
    columns = np.ones((len(x), len(taps) + 1, n_pix), np.float32)
    targets, good = np.empty((len(x), n_pix), np.float32), np.empty((len(x), n_pix), np.float32)
    for i, (col, row) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        reach = stamp_half + half
        window = image[row - reach : row + reach + 1, col - reach : col + reach + 1]
        patches = sliding_window_view(window, (side, side)).reshape(n_pix, side * side)
        columns[i, :-1] = taps @ patches.T
        box = np.s_[row - stamp_half : row + stamp_half + 1, col - stamp_half : col + stamp_half + 1]
        targets[i], good[i] = target[box].ravel(), usable[box].ravel()
    return Stamps(x, y, columns, targets, sky, photons, good)


@dataclass(frozen=True)
class _Sums:
    """Normal equations of each star by itself: M a = b for its local coefficients a."""

    matrix: Vector  # (n, nb, nb)
    vector: Vector  # (n, nb)


def _normal_equations(stamps: Stamps, weight: NDArray[np.float32]) -> _Sums:
    weighted = stamps.columns * weight[:, None, :]
    matrix = np.matmul(weighted, stamps.columns.transpose(0, 2, 1)).astype(np.float64)
    vector = np.matmul(weighted, stamps.target[:, :, None])[:, :, 0].astype(np.float64)
    return _Sums(matrix, vector)


@dataclass(frozen=True)
class _Design:
    """Which products of basis kernel and polynomial term take part."""

    name: str
    rank: int  # how rich it is
    chosen: NDArray[np.int64]


def _designs(basis: Basis, order: int, n_stars: int, n_pix: int) -> list[_Design]:
    """From a plain Gaussian sum that is the same everywhere to the full basis that varies with the highest order."""
    n_basis = len(basis.degree)
    powers = np.array(_powers(order))
    designs = []
    for top in (0, 2, 4, 6):
        for shape_order in range(order + 1):
            for scale_order in sorted({0, shape_order}):
                take = np.zeros((n_basis + 1, len(powers)), bool)
                take[np.flatnonzero(basis.degree <= top)] = powers <= shape_order
                take[0] = powers <= scale_order
                take[-1] = powers <= order
                n_terms = int(take.sum())
                # as many stars as a polynomial has terms twice over, and several pixels for each coefficient
                if n_stars < 2 * int((powers <= shape_order).sum()) or n_stars * n_pix < 10 * n_terms:
                    continue
                name = f"degree {top}, order {shape_order}, scale order {scale_order}"
                designs.append(_Design(name, n_terms, np.flatnonzero(take)))
    if not designs:
        take = np.zeros((n_basis + 1, len(powers)), bool)
        take[np.flatnonzero(basis.degree == 0), 0] = take[-1, 0] = True
        designs.append(_Design("degree 0, order 0, scale order 0", int(take.sum()), np.flatnonzero(take)))
    return sorted(designs, key=lambda design: design.rank)


def _assemble(sums: _Sums, terms: Vector, use: NDArray[np.bool_]) -> tuple[Vector, Vector]:
    """Normal equations of all stars in use, for every product of kernel and polynomial term."""
    matrix, vector, rows = sums.matrix[use], sums.vector[use], terms[use]
    n, n_basis, n_poly = len(rows), matrix.shape[1], rows.shape[1]
    pairs = (rows[:, :, None] * rows[:, None, :]).reshape(n, -1)
    whole = (matrix.reshape(n, -1).T @ pairs).reshape(n_basis, n_basis, n_poly, n_poly)
    size = n_basis * n_poly
    return whole.transpose(0, 2, 1, 3).reshape(size, size), (vector.T @ rows).reshape(size)


def _prior(n_basis: int, order: int, scale: float) -> Vector:
    """Weight with which each coefficient is drawn to its mean, flat; none for the background.

    The mean of the flux scale is `scale`, as photometry of stars gives it, that of all others is zero.
    """
    width = np.full((n_basis + 1, len(_powers(order))), PRIOR_VARIES)
    width[:, 0] = PRIOR_SHAPE
    weight = 1 / (width * scale) ** 2
    weight[0, 0] = 1 / (PRIOR_SCALE * scale) ** 2
    weight[-1] = 0
    return np.asarray(weight.ravel())


def _solve(matrix: Vector, vector: Vector, prior: Vector, chosen: NDArray[np.int64]) -> Vector:
    """Coefficients of the chosen terms, zero for the others."""
    block = matrix[np.ix_(chosen, chosen)] + np.diag(prior[chosen])
    scale = np.sqrt(np.maximum(np.diag(block), 1e-300))
    block = block / np.outer(scale, scale) + RIDGE * np.eye(len(chosen))
    found = np.zeros(len(vector))
    try:
        found[chosen] = np.linalg.solve(block, vector[chosen] / scale) / scale
    except np.linalg.LinAlgError:
        raise MatchingError("the kernel's equations have no solution: the stars do not tell enough") from None
    return found


def _held_out(
    stamps: Stamps,
    weight: NDArray[np.float32],
    sums: _Sums,
    terms: Vector,
    prior: Vector,
    pull: Vector,
    use: NDArray[np.bool_],
    designs: list[_Design],
) -> Vector:
    """Reduced chi-square of each star under each design when it is not in the fit, shape (n_designs, n)."""
    fold = np.cumsum(use) % min(FOLDS, int(use.sum()))
    n_pix = np.maximum(stamps.usable.sum(1), 1)
    result = np.ones((len(designs), len(use)))
    matrix, vector = _assemble(sums, terms, use)
    for k in range(int(fold.max()) + 1):
        out = use & (fold == k)
        part = _assemble(sums, terms, out)
        left_out = stamps[out]
        for i, design in enumerate(designs):
            found = _solve(matrix - part[0], vector - part[1] + pull, prior, design.chosen)
            residual, _ = _residuals(left_out, terms[out], found)
            result[i, out] = (weight[out] * residual**2).sum(1) / n_pix[out]
    return result


def _choose(held: Vector, use: NDArray[np.bool_], designs: list[_Design]) -> int:
    """The simplest design that is not worse than the best by more than the scatter between stars allows."""
    scores = np.log(held[:, use])  # a factor counts the same for bright and for faint stars
    best = int(scores.mean(1).argmin())
    for i in range(best):
        worse = scores[i] - scores[best]
        if worse.mean() <= STANDARD_ERRORS * worse.std() / np.sqrt(len(worse)):
            return i
    return best


def _residuals(stamps: Stamps, terms: Vector, found: Vector) -> tuple[Image, Image]:
    """(target minus model, model without background) of each pixel, shape (n, n_pix)."""
    local = (terms @ found.reshape(stamps.columns.shape[1], -1).T).astype(np.float32)
    light = np.matmul(local[:, None, :-1], stamps.columns[:, :-1])[:, 0]
    return stamps.target - light - local[:, -1:], light


def _measured_noise(stamps: Stamps, residual: Image, light: Image) -> NoiseModel:
    """Fit the excess of the residuals over the known noise, star by star, by light and light squared."""
    bright = (light > CORE_LIGHT * light.max(1, keepdims=True)) * stamps.usable
    known = NoiseModel().variance(stamps, light)
    excess = (bright * (residual**2 - known)).sum(1, dtype=np.float64)
    first = (bright * np.maximum(light, 0)).sum(1, dtype=np.float64)
    second = (bright * light**2).sum(1, dtype=np.float64)
    heavy = second > np.median(second)
    if not heavy.any():
        return NoiseModel()
    if stamps.photons.any():
        return NoiseModel(0.0, float(np.sqrt(max(np.median(excess[heavy] / second[heavy]), 0.0))))
    # without a gain: photons dominate faint stars, the model's error bright ones
    faint = ~heavy & (first > 0)
    photons = max(float(np.median(excess[faint] / first[faint])), 0.0) if faint.any() else 0.0
    rest = (excess - photons * first)[heavy] / second[heavy]
    return NoiseModel(photons, float(np.sqrt(max(np.median(rest), 0.0))))


def fit_kernel(
    stamps: Stamps, basis: Basis, shape: tuple[int, int], scale: float, *, order: int = 2
) -> MatchingKernel:
    """Fit a matching kernel to the stamps of stars.

    Parameters
    ----------
    stamps
        From `cut_stamps`.
    basis
        The same.
    shape
        (n_y, n_x) of the images [pixel].
    scale
        Flux of a star in the target over that in the image to convolve, as photometry gives it.
    order
        Highest order of the polynomials in position; cross-validation may choose a lower one.

    Raises
    ------
    MatchingError
        Fewer than `ENOUGH_STARS` stars, or equations without a solution.
    """
    if len(stamps) < ENOUGH_STARS:
        raise MatchingError(
            f"{len(stamps)} stars can be used and {ENOUGH_STARS} are needed: is the reference of the same field?"
        )
    terms = polynomial(stamps.x.astype(np.float64), stamps.y.astype(np.float64), shape, order)
    use = np.ones(len(stamps), bool)
    n_pix = np.maximum(stamps.usable.sum(1), 1)
    light = np.float32(scale) * np.maximum(stamps.columns[:, 0], 0)  # a first guess
    prior = _prior(len(basis.kernels), order, scale)
    pull = np.zeros(len(prior))
    pull[0] = prior[0] * scale
    weighting = NoiseModel()
    designs = _designs(basis, order, len(stamps), stamps.target.shape[1])
    for last in (False, False, True):
        weight = stamps.usable / weighting.variance(stamps, light)
        sums = _normal_equations(stamps, weight)
        held = _held_out(stamps, weight, sums, terms, prior, pull, use, designs)
        best = _choose(held, use, designs)
        matrix, vector = _assemble(sums, terms, use)
        found = _solve(matrix, vector + pull, prior, designs[best].chosen)
        residual, light = _residuals(stamps, terms, found)
        chi2 = (weight * residual**2).sum(1, dtype=np.float64) / n_pix
        use = _typical(chi2)
        noise = _measured_noise(stamps[use], residual[use], light[use])
        if not last:  # no more than this, or bright stars lose their say, fit worse, and lose more of it
            weighting = replace(noise, relative=min(noise.relative, MOST_TRUSTED))
    return MatchingKernel(
        basis,
        found.reshape(len(basis.kernels) + 1, -1),
        order,
        shape,
        designs[best].name,
        noise,
        int(use.sum()),
        int((~use).sum()),
        float(np.median(chi2[use])),
        float(np.median(held[best][use])),
    )


def _typical(chi2: Vector) -> NDArray[np.bool_]:
    """Stars whose chi-square is not far above the others': no variables, no transients, no particles."""
    level = np.log(np.maximum(chi2, 1e-30))
    middle = np.median(level)
    spread = max(MAD_TO_SIGMA * float(np.median(np.abs(level - middle))), 0.05)
    typical = level < middle + CLIP * spread
    return typical if typical.sum() >= ENOUGH_STARS else np.ones(len(chi2), bool)
