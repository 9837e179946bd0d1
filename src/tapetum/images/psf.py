"""The point spread function of an image, measured from its stars.

The model is the effective PSF (Anderson & King 2000): what a pixel at (u, v) from a star's centre receives, pixel
response included, so that a stamp is a look-up and no integration. It is written in cubic B-splines on a grid with
`over` nodes per pixel, and each of their coefficients is a polynomial of the position in the image. All coefficients
come from one penalised least-squares problem over the pixels of all stars, solved by conjugate gradients; positions
and fluxes of the stars, and pixels and stars that do not belong, are settled in turns with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import InputError
from tapetum.core.robust import MAD_TO_SIGMA
from tapetum.images import _psf_kernels as kernels
from tapetum.images._psf_grid import (
    N_TERMS,
    core_moments,
    default_half,
    default_over,
    field_terms,
    fitted_into,
    grid_half,
    moffat_grid,
    normalised,
    support,
    to_spline,
)
from tapetum.images.shapes import over_rows
from tapetum.images.stars import Stars, select_stars, without_sky

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from tapetum.images.background import Background
    from tapetum.images.frame import FrameInfo, Image, MaskPlane

    Array = NDArray[np.float64]
    Flags = NDArray[np.bool_]

__all__ = ["PsfModel", "PsfQuality", "Stars", "measure_psf", "select_stars"]

MODEL_ERROR = 0.005  # part of the model not trusted when stars are weighted against each other
MIN_STARS = {0: 1, 1: 8, 2: 20}  # that an order needs
ROUNDS = 2  # of positions and splines in turns
PARTS = 8  # of the stars, summed one after the other, so that the sum does not depend on who did them
THREADED_STARS = 200  # fewer are done before a thread has begun
CG_STEPS = 45  # of conjugate gradients at most
CG_GAIN = 0.5  # they end when another step could lower the sum of squares by no more than this
ROUGHNESS = (
    0.55  # penalty for fourth differences, in units of profile / width^2 [node]: what is finer is noise
)
MASS = 0.25  # of B-splines: that of the smooth ones is one, that of the finest far less
AMPLITUDE = {0: 2.0, 1: 1.6, 2: 1.6}  # departures from the Moffat profile that the penalty allows, by power
STEEPEST = 30.0  # Moffat exponent to start from: nearly a Gaussian
SKY_PRIOR = 0.2  # a star's own sky differs from the map by this part of the noise


@dataclass(frozen=True)
class PsfQuality:
    """How well the stars are described.

    Attributes
    ----------
    n_stars
        Stars that made the model; 0 = not measured.
    fwhm_pix
        Full width at half maximum in the middle of the frame, pixel response included [pixel].
    ellipticity
        1 - minor/major axis of the core in the middle of the frame.
    chi2
        Reduced chi-square in the core of stars that were not used (median over stars); NaN when not measured.
    residual
        Of the same stars: rms of the residuals of the core beyond their noise, as part of the rms of the core.
    n_test
        Number of these stars.
    order
        Order of the polynomial in x and y.
    """

    n_stars: int = 0
    fwhm_pix: float = np.nan
    ellipticity: float = np.nan
    chi2: float = np.nan
    residual: float = np.nan
    n_test: int = 0
    order: int = 0


@dataclass(frozen=True)
class PsfModel:
    """A PSF that varies over the field.

    Attributes
    ----------
    coefficients : ndarray of float32, shape (n_terms, side, side)
        Cubic B-spline coefficients [1 / pixel] for the terms 1, X, Y, X^2, XY, Y^2 (as many as `order` has), with
        X = (2x - (n_x - 1)) / n_x and Y alike: -1...1 over the frame. The middle node is the star's centre; along an
        axis the nodes are 1/`over` pixel apart; the outer nodes are zero, so that no stamp reaches beyond the grid.
    over
        Nodes per pixel.
    order
        Of the polynomial, 0...2.
    shape
        (n_y, n_x) of the frame [pixel].
    quality
        How well the stars are described.
    """

    coefficients: NDArray[np.float32]
    over: int
    order: int
    shape: tuple[int, int]
    quality: PsfQuality = PsfQuality()

    def __post_init__(self) -> None:
        n_terms, side_y, side_x = self.coefficients.shape
        fits = (side_x // 2 - 3) % self.over == 0 and side_x % 2 == 1
        if n_terms != N_TERMS.get(self.order) or side_y != side_x or not fits or self.over < 1:
            raise InputError(
                f"PSF: coefficients {self.coefficients.shape} do not fit order {self.order}"
                f" and {self.over} nodes per pixel"
            )
        if not np.isfinite(self.coefficients).all():
            raise InputError("PSF: a coefficient is not finite")

    @property
    def half(self) -> int:
        """Pixels of a stamp on each side of its centre pixel."""
        return int((self.coefficients.shape[1] // 2 - 3) // self.over - 1)

    @property
    def size(self) -> int:
        """Side of a stamp [pixel], odd."""
        return 2 * self.half + 1

    def stamps(self, x: ArrayLike, y: ArrayLike) -> Image:
        """Stars of unit flux at x, y [pixel].

        Returns
        -------
        ndarray of float32, shape (n, size, size)
            Windows whose centre pixel is (floor(x + 0.5), floor(y + 0.5)).
        """
        at_x, at_y = np.atleast_1d(np.asarray(x, np.float64)), np.atleast_1d(np.asarray(y, np.float64))
        return self.stamps_around(at_x, at_y, np.floor(at_x + 0.5), np.floor(at_y + 0.5))

    def stamps_around(self, x: Array, y: Array, centre_x: Array, centre_y: Array) -> Image:
        """As `stamps`, in windows around centre pixels that are at most one pixel away from the stars."""
        out = np.empty((x.size, self.size, self.size), np.float32)
        n_y, n_x = self.shape
        kernels.render(
            self.coefficients, self.order, self.over, self.half, n_x, n_y, x, y, centre_x, centre_y, out
        )
        return out

    def stamp(self, x: float, y: float) -> Image:
        """One star of unit flux at (x, y): `stamps` of a single position, shape (size, size)."""
        stamp: Image = self.stamps(x, y)[0]
        return stamp

    def centred(self, x: float, y: float) -> Image:
        """The PSF at (x, y), with the star in the middle of the centre pixel; shape (size, size)."""
        return self.stamp(np.floor(x + 0.5), np.floor(y + 0.5))

    def fine(self, x: float, y: float, step: int) -> Image:
        """The PSF at (x, y) at `step` points per pixel, centre in the middle.

        Returns
        -------
        ndarray of float32, shape (step * (size - 1) + 1,) * 2
            Values per pixel: every `step`-th of them is a stamp and sums to one.
        """
        from scipy.interpolate import BSpline

        grid = self.local(x, y)
        middle = grid.shape[0] // 2
        points = np.arange(-self.half * step, self.half * step + 1) / step * self.over + middle
        knots = np.arange(-2, grid.shape[0] + 2)
        basis = BSpline.design_matrix(points, knots, 3).toarray()
        return np.asarray(basis @ grid @ basis.T, np.float32)

    def local(self, x: float, y: float) -> Array:
        """B-spline coefficients at (x, y), shape (side, side)."""
        return np.asarray(np.tensordot(self._terms(x, y)[0], self.coefficients, axes=1))

    def fwhm_at(self, x: float, y: float) -> float:
        """Full width at half maximum at (x, y) [pixel]: diameter of the circle with the area above half maximum."""
        step = 8 * max(1, self.over)
        reach = min(self.half, 3 + int(3 / np.sqrt(self.local(x, y).max())))  # about four FWHM
        fine = self.fine(x, y, step)
        middle = fine.shape[0] // 2
        core = fine[
            middle - reach * step : middle + reach * step + 1,
            middle - reach * step : middle + reach * step + 1,
        ]
        return float(2 * np.sqrt((core > core.max() / 2).sum() / np.pi) / step)

    def neff(self, x: float, y: float) -> float:
        """Number of pixels whose noise a PSF-weighted flux carries, 1 / sum(psf^2)."""
        return float(1 / np.square(self.centred(x, y), dtype=np.float64).sum())

    def ellipticity_at(self, x: float, y: float) -> float:
        """1 - minor / major axis of the core at (x, y), from Gaussian-weighted moments."""
        _, _, xx, yy, xy = core_moments(self.fine(x, y, 3), 3, self.fwhm_at(x, y))
        spread = np.hypot(xx - yy, 2 * xy)
        # the weight halves a round variance, and shrinks a difference of variances to a quarter
        v_mean, v_diff = 2 * 0.5 * (xx + yy), 4 * 0.5 * spread
        return float(1 - np.sqrt(max(0.0, v_mean - v_diff) / (v_mean + v_diff)))

    def _terms(self, x: ArrayLike, y: ArrayLike) -> Array:
        return field_terms(x, y, self.shape, self.order)

    @classmethod
    def moffat(
        cls,
        fwhm_pix: float,
        beta: float,
        shape: tuple[int, int],
        *,
        half: int | None = None,
        ellipticity: float = 0.0,
        angle_deg: float = 0.0,
    ) -> PsfModel:
        """An assumed PSF: the same Moffat profile everywhere, integrated over pixels.

        I(r) ~ (1 + (r/a)^2)^-beta with a = FWHM / (2 sqrt(2^(1/beta) - 1)) (Moffat 1969).

        Parameters
        ----------
        fwhm_pix
            FWHM of the profile before pixels integrate it [pixel]; for an ellipse the geometric mean of its axes.
        beta
            Exponent; 2.5...4.5 for the atmosphere.
        shape
            (n_y, n_x) of the frame [pixel].
        half
            Pixels of a stamp on each side of its centre; None: about 4.5 FWHM.
        ellipticity, angle_deg
            1 - minor/major, and direction of the major axis from +x to +y [deg].

        Raises
        ------
        InputError
            FWHM not positive, beta not above 1, or ellipticity outside 0...1.
        """
        if not (0.1 < fwhm_pix < 200 and beta > 1 and 0 <= ellipticity < 1):
            raise InputError(
                f"no such Moffat profile: FWHM {fwhm_pix} px, beta {beta}, ellipticity {ellipticity}"
            )
        half = default_half(fwhm_pix) if half is None else half
        over = default_over(float(np.hypot(fwhm_pix, 0.9)))
        values = moffat_grid(fwhm_pix, beta, half, over, ellipticity, angle_deg)
        model = cls(normalised(to_spline(values)[None], over), over, 0, shape)
        return replace(model, quality=_quality(model))

    @classmethod
    def from_stamps(
        cls,
        x: ArrayLike,
        y: ArrayLike,
        stamps: ArrayLike,
        shape: tuple[int, int],
        *,
        order: int = 2,
        over: int = 1,
        half: int | None = None,
    ) -> PsfModel:
        """A model through PSFs known at some positions.

        Parameters
        ----------
        x, y : array_like, shape (n,)
            Positions in the frame [pixel].
        stamps : array_like, shape (n, side, side)
            PSFs, centred on the middle of an odd side, `over` samples per pixel (as `PsfModel.fine` gives them); each
            is scaled to unit flux.
        shape
            (n_y, n_x) of the frame [pixel].
        order
            Of the polynomial in x and y; lowered when there are too few positions for it.
        over
            Samples per pixel. With 1 the values between the pixels are interpolated, which a PSF narrower than
            about 2.5 px does not forgive; give oversampled stamps then.
        half
            Pixels of a stamp on each side of its centre; None: as many as the given stamps cover.

        Raises
        ------
        InputError
            Shapes do not fit, or a stamp has no positive flux.
        """
        known = np.asarray(stamps, np.float64)
        at_x, at_y = np.atleast_1d(np.asarray(x, np.float64)), np.atleast_1d(np.asarray(y, np.float64))
        if (
            known.ndim != 3
            or known.shape[1] != known.shape[2]
            or known.shape[1] % 2 == 0
            or len(known) != at_x.size
        ):
            raise InputError(
                f"PSF stamps: need (n, side, side) with an odd side and {at_x.size} positions, got {known.shape}"
            )
        total = known.sum(axis=(1, 2))
        if not (np.isfinite(total).all() and (total > 0).all()):
            raise InputError("PSF stamps: a stamp has no positive, finite flux")
        known = known / total[:, None, None] * over**2
        order = max(k for k in (0, 1, 2) if k <= order and (k == 0 or N_TERMS[k] <= at_x.size))
        terms = field_terms(at_x, at_y, shape, order)
        fitted = np.linalg.lstsq(terms, known.reshape(len(known), -1), rcond=1e-6)[0]
        values = fitted.reshape(-1, *known.shape[1:])
        half = (known.shape[1] // 2) // over if half is None else half
        grid = np.stack([to_spline(fitted_into(value, grid_half(half, over))) for value in values])
        model = cls(normalised(grid, over), over, order, shape)
        return replace(model, quality=_quality(model))


def _quality(model: PsfModel, **known: Any) -> PsfQuality:
    """Width and shape in the middle of the frame, and what is known of the stars."""
    x, y = (model.shape[1] - 1) / 2, (model.shape[0] - 1) / 2
    quality = PsfQuality(
        fwhm_pix=model.fwhm_at(x, y), ellipticity=model.ellipticity_at(x, y), order=model.order
    )
    return replace(quality, **known)


@dataclass
class _Sample:
    """Pixels of stars around their centre pixels, and what is known of the stars while the model is made."""

    pixels: Image  # (n, size, size), sky-free [DN]
    variance: Image  # the same; 0 = not to be used
    centre: Array  # (n, 2), x and y of the centre pixels
    fit: Array  # (n, 10), columns of kernels.fit_stars
    kept: Flags  # stars that belong
    threads: int  # that share the stars

    def part(self, index: Flags) -> _Sample:
        names = ("pixels", "variance", "centre", "fit", "kept")
        return replace(self, **{name: getattr(self, name)[index] for name in names})


def measure_psf(
    data: Image,
    background: Background,
    mask: MaskPlane | None,
    info: FrameInfo,
    *,
    size: int | None = None,
    order: int = 2,
    over: int | None = None,
    n_max: int = 400,
    stars: Stars | None = None,
    threads: int = 1,
) -> PsfModel:
    """Measure the PSF of an image from its stars.

    The order of the polynomial is the lowest whose description of a fifth of the stars, kept out of the fit, is within
    1 % of the best; the model returned is then made from all of them.

    Parameters
    ----------
    data : ndarray of float32, shape (n_y, n_x)
        Image with its sky [DN].
    background
        Its sky and noise.
    mask : ndarray of uint8, shape (n_y, n_x), or None
        Nonzero = bad.
    info
        For gain [electron / DN] and saturation [DN].
    size
        Side of a stamp [pixel], odd; None: nine FWHM or so.
    order
        Highest order of the polynomial in x and y, 0...2.
    over
        Nodes per pixel; None: what the width of the stars needs.
    n_max
        Most stars to use.
    stars
        Stars to use; None: `select_stars`.
    threads
        The result does not depend on it.

    Returns
    -------
    PsfModel

    Raises
    ------
    InputError
        There is no star to measure, the stars do not agree on a PSF, or `size` or `order` is impossible.

    Notes
    -----
    Effective PSF: Anderson & King (2000), PASP 112, 1360. Penalised splines: Eilers & Marx (1996). The penalty draws
    the wings, where pixels carry little, to a Moffat profile fitted to the same stars.

    Unit flux is the light within the stamp above the sky around the star. What wider wings carry beyond it is not in
    it (0.3 % for a Moffat exponent of 2.5), nor what the map of the sky took for sky: where stars with such wings fill
    the frame, that may be half a per cent more.
    """
    if order not in N_TERMS or (size is not None and (size < 7 or size % 2 == 0)):
        raise InputError(f"PSF: order {order} must be 0, 1 or 2, size {size} odd and at least 7")
    if stars is None:
        stars = select_stars(data, background, mask, info, n_max=n_max, threads=threads)
    if len(stars) == 0:
        raise InputError("PSF: no isolated, unsaturated star found")
    fwhm = float(np.median(stars.fwhm))
    half = default_half(fwhm) if size is None else size // 2
    over = default_over(fwhm) if over is None else over
    sky_free, bad = without_sky(data, background, mask)
    sample = _cut(sky_free, background.noise, bad, stars, half, threads)
    start = PsfModel(
        normalised(to_spline(_moffat_like(sample, stars, half, over))[None], over),
        over,
        0,
        (data.shape[0], data.shape[1]),
    )
    return _cross_validated(sample, start, order, info.gain)


def _cross_validated(sample: _Sample, start: PsfModel, highest: int, gain: float) -> PsfModel:
    """The model of the order that describes unused stars best."""
    n = len(sample.kept)
    test = np.arange(n) % 5 == 2 if n >= 8 else np.zeros(n, bool)
    training, unused = sample.part(~test), sample.part(test if test.any() else ~test)
    base = start.local(0, 0)
    model, tried = start, []
    for order in range(highest + 1):
        if order and training.kept.sum() < MIN_STARS[order]:
            break
        model = _rounds(training, _raised(model, order), base, gain, ROUNDS if order == 0 else 2)
        tried.append((model, *_describe(unused, model, gain)))
    best = min(score for *_, score in tried)
    model, chi2, residual, _ = next(entry for entry in tried if entry[-1] <= 1.01 * best)
    if test.any():
        sample.kept[~test] = training.kept
        model = _rounds(sample, model, base, gain, 1)
    n_stars = int(sample.kept.sum()) if test.any() else int(training.kept.sum())
    quality = _quality(model, n_stars=n_stars, chi2=chi2, residual=residual, n_test=int(test.sum()))
    if not (0.3 < quality.fwhm_pix < 2 * model.half):
        raise InputError(
            f"PSF: the stars do not agree on one (FWHM {quality.fwhm_pix:.2f} px from {n_stars} stars)"
        )
    return replace(model, quality=quality)


def _cut(sky_free: Image, noise: Image, bad: MaskPlane, stars: Stars, half: int, threads: int) -> _Sample:
    """Stamps of the stars; pixels of other objects, of the mask and outside the image get variance 0."""
    from scipy.ndimage import maximum_filter

    reach = np.arange(-half, half + 1)
    centre = np.floor(np.column_stack([stars.x, stars.y]) + 0.5)
    rows = centre[:, 1].astype(np.intp)[:, None, None] + reach[:, None]
    columns = centre[:, 0].astype(np.intp)[:, None, None] + reach
    n_y, n_x = sky_free.shape
    inside = (rows >= 0) & (rows < n_y) & (columns >= 0) & (columns < n_x)
    at = np.clip(rows, 0, n_y - 1), np.clip(columns, 0, n_x - 1)
    owner = stars.segments[at]
    other = maximum_filter((owner != 0) & (owner != stars.label[:, None, None]), size=(1, 3, 3))
    variance = np.where(inside & ~other & (bad[at] == 0), np.square(noise[at]), 0).astype(np.float32)
    fit = np.zeros((len(stars), 10))
    fit[:, 0], fit[:, 1], fit[:, 2] = stars.x, stars.y, stars.flux
    threads = threads if len(stars) >= THREADED_STARS else 1
    return _Sample(sky_free[at], variance, centre, fit, np.ones(len(stars), bool), threads)


def _moffat_like(sample: _Sample, stars: Stars, half: int, over: int) -> Array:
    """A round Moffat profile through the pixels of the best stars, on the grid of the model."""
    from scipy.optimize import least_squares

    best = np.argsort(-stars.snr)[:60]
    reach = np.arange(-half, half + 1)
    x, y = sample.fit[best, 0], sample.fit[best, 1]
    r2 = (
        np.square(reach - (x - np.floor(x + 0.5))[:, None])[:, None, :]
        + np.square(reach - (y - np.floor(y + 0.5))[:, None])[:, :, None]
    )
    scale = sample.fit[best, 2][:, None, None]
    value, used = sample.pixels[best] / scale, sample.variance[best] > 0
    noise = (np.sqrt(sample.variance[best]) / scale)[used]
    r2, value = r2[used], value[used]

    def profile(p: Array) -> Array:
        width, beta, peak = np.exp(p[0]), 1.2 + np.exp(p[1]), np.exp(p[2])
        return np.asarray(peak * (1 + 4 * r2 * (2 ** (1 / beta) - 1) / width**2) ** -beta)

    fwhm = float(np.median(stars.fwhm))
    p = np.array([np.log(fwhm), 0.6, np.log(0.7 / fwhm**2)])
    for _ in range(2):
        # what a pixel is trusted follows from the model: from its own value, wings would come out too low
        sigma = noise + 0.1 * profile(p) + 1e-4 * np.exp(p[2])
        p = least_squares(lambda q: (profile(q) - value) / sigma, p, loss="soft_l1", max_nfev=20).x  # noqa: B023
    width = float(np.clip(np.exp(p[0]), fwhm / 2, 2 * fwhm))
    beta = float(np.clip(1.2 + np.exp(p[1]), 1.5, STEEPEST))
    return moffat_grid(width, beta, half, over, points=1)


def _raised(model: PsfModel, order: int) -> PsfModel:
    """The same PSF with room for a higher order."""
    more = np.zeros((N_TERMS[order] - len(model.coefficients), *model.coefficients.shape[1:]), np.float32)
    return replace(model, coefficients=np.concatenate([model.coefficients, more]), order=order)


def _rounds(sample: _Sample, model: PsfModel, base: Array, gain: float, n: int) -> PsfModel:
    """Stars on the model, then the model on the stars, `n` times; bad stars are dropped on the way."""
    for _ in range(n):
        sample.fit = _fit_sample(sample, model, gain)
        sample.kept = _believed(sample, model)
        model = _improved(sample, model, base, gain)
    return model


def _fit_sample(sample: _Sample, model: PsfModel, gain: float) -> Array:
    """Position, flux and local sky of every star under the model."""
    out = np.empty((len(sample.kept), 10))
    columns = [np.ascontiguousarray(a) for a in (*sample.fit[:, :2].T, *sample.centre.T)]

    def work(first: int, last: int) -> None:
        own = slice(first, last)
        kernels.fit_stars(
            sample.pixels[own],
            sample.variance[own],
            model.coefficients,
            model.order,
            model.over,
            model.half,
            model.shape[1],
            model.shape[0],
            *(column[own] for column in columns),
            gain,
            4,
            SKY_PRIOR,
            6.0,
            out[own],
        )

    over_rows(work, len(out), sample.threads)
    return out


def _residuals(sample: _Sample, model: PsfModel) -> tuple[Array, Array]:
    """Pixels less flux times PSF less sky [DN], and the unit-flux PSFs."""
    x, y, centre_x, centre_y = (np.ascontiguousarray(a) for a in (*sample.fit[:, :2].T, *sample.centre.T))
    psf = model.stamps_around(x, y, centre_x, centre_y).astype(np.float64)
    return sample.pixels - sample.fit[:, 2, None, None] * psf - sample.fit[:, 4, None, None], psf


def _believed(sample: _Sample, model: PsfModel) -> Flags:
    """Stars whose fit worked and whose core looks like that of the others."""
    fit = sample.fit
    kept = np.isfinite(fit[:, :4]).all(axis=1) & (fit[:, 2] > 0) & (fit[:, 7] > 0.7)
    if not kept.any():
        raise InputError("PSF: no star could be fitted")
    score = np.full(len(kept), np.inf)
    score[kept] = _core_misfit(sample.part(kept), model)[1]
    typical = float(np.median(score[kept]))
    spread = MAD_TO_SIGMA * float(np.median(np.abs(score[kept] - typical)))
    return np.asarray(kept & (score <= typical + max(5 * spread, 0.02)))


def _core_misfit(sample: _Sample, model: PsfModel, gain: float = 0.0) -> tuple[Array, Array]:
    """Reduced chi-square of the core, and rms of its residuals beyond noise as part of its rms, for every star."""
    residual, psf = _residuals(sample, model)
    used = (psf > 0.05 * psf.max(axis=(1, 2), keepdims=True)) & (sample.variance > 0)
    expected = np.maximum(sample.fit[:, 2, None, None] * psf, 0)
    variance = sample.variance + (expected / gain if gain > 0 else 0)
    n = np.maximum(used.sum(axis=(1, 2)), 1)
    chi2 = np.where(used, np.square(residual) / np.where(used, variance, 1), 0).sum(axis=(1, 2)) / np.maximum(
        n - 4, 1
    )
    excess = np.where(
        used, np.square(residual) - variance * np.maximum(n - 4, 1)[:, None, None] / n[:, None, None], 0
    )
    light = np.where(used, np.square(expected), 0).sum(axis=(1, 2))
    beyond = np.maximum(excess.sum(axis=(1, 2)), 0) / np.where(light > 0, light, np.inf)
    return chi2, np.sqrt(beyond)


def _describe(unused: _Sample, model: PsfModel, gain: float) -> tuple[float, float, float]:
    """Chi-square and residual part of stars that the model has not seen, and a score to rank models by."""
    unused.fit = _fit_sample(unused, model, gain)
    good = np.isfinite(unused.fit[:, :4]).all(axis=1) & (unused.fit[:, 2] > 0)
    if not good.any():
        return np.nan, np.nan, np.inf
    chi2, residual = _core_misfit(unused.part(good), model, gain)
    return float(np.median(chi2)), float(np.median(residual)), float(np.exp(np.log(chi2 + 1e-9).mean()))


def _improved(sample: _Sample, model: PsfModel, base: Array, gain: float) -> PsfModel:
    """One solution for the coefficients at fixed positions and fluxes, centred and of unit sum."""
    stars = sample.part(sample.kept)
    flux = stars.fit[:, 2, None, None]
    residual, psf = _residuals(stars, model)
    light = flux * np.maximum(psf, 0)
    variance = stars.variance + (light / gain if gain > 0 else 0) + np.square(MODEL_ERROR * light)
    outlier = np.square(residual) > 25 * (variance + np.square(0.05 * light))
    weight = np.where(
        (stars.variance > 0) & ~outlier, np.square(flux) / np.where(variance > 0, variance, 1), 0
    )
    terms = np.ascontiguousarray(field_terms(stars.fit[:, 0], stars.fit[:, 1], model.shape, model.order))
    offsets = stars.fit[:, :2] - stars.centre
    step = _solve(model, base, terms, offsets, weight, residual / flux, sample.threads)
    moved = replace(model, coefficients=normalised(model.coefficients + step, model.over))
    return _centred(_centred(moved))


def _solve(
    model: PsfModel,
    base: Array,
    terms: Array,
    offsets: Array,
    weight: Array,
    target: Array,
    threads: int,
) -> Array:
    """Step of the coefficients that minimises  sum w (target - A step)^2 + penalty(coefficients - base).

    Preconditioned conjugate gradients; the penalty is that of an amplitude and of fourth differences,
    which scale with the profile itself: a core may differ by much and a wing by little. Second differences would
    smooth as well, but flatten the core and bias every flux by per cents.
    """
    from scipy.linalg import eigh

    inside = support(model.half, model.over)
    by_term = np.array([AMPLITUDE[p] for p in (0, 1, 1, 2, 2, 2)[: len(model.coefficients)]]) ** -2.0
    by_node = 1 / np.square(np.abs(base) + 1e-4 * base.max())
    stiff = by_term[:, None, None] * by_node
    rough_scale = ROUGHNESS * (model.over * _width(base, model.over) / 2.355) ** 2
    offsets = np.ascontiguousarray(offsets)

    def through_stars(c: Array, z: Array | None, powers: Array) -> Array:
        """Onto the pixels of all stars and back to the coefficients; with `z` only back."""
        cuts = np.linspace(0, len(powers), PARTS + 1).astype(int).tolist()
        sums = np.zeros((PARTS, *c.shape))

        def work(first: int, last: int) -> None:
            for k in range(first, last):
                own = slice(cuts[k], cuts[k + 1])
                pixels = weight[own] if z is None else z[own]
                kernels.normal_product(
                    c, powers[own], offsets[own], model.over, model.half, weight[own], pixels, z is not None, sums[k]
                )  # fmt: skip

        over_rows(work, PARTS, threads)
        return np.asarray(sums.sum(0))

    def rough(c: Array) -> Array:
        return rough_scale * _laplacian(_laplacian(stiff * rough_scale * _laplacian(_laplacian(c))))

    def product(c: Array) -> Array:
        return np.where(inside, through_stars(c, None, terms) + stiff * c + rough(c), 0)

    departure = model.coefficients.astype(np.float64)
    departure[0] -= base
    right = through_stars(departure, target, terms)
    right = np.where(inside, right - stiff * departure - rough(departure), 0)
    # terms mix as they do in the stars on average: in their joint eigenbasis with the penalty a diagonal will do
    seen = through_stars(departure[:1], np.ones_like(weight), np.ones_like(terms[:, :1]))[0]
    share = weight.sum(axis=(1, 2)) / weight.sum()
    strength, modes = eigh((terms * share[:, None]).T @ terms, np.diag(by_term))
    scale = 1 / (MASS * strength[:, None, None] * seen + by_node * (1 + 676 * rough_scale**2))

    def eased(r: Array) -> Array:
        return np.asarray(np.einsum("tk,kyx->tyx", modes, scale * np.einsum("tk,tyx->kyx", modes, r)))

    return _conjugate_gradients(product, right, eased)


def _conjugate_gradients(
    product: Callable[[Array], Array], right: Array, eased: Callable[[Array], Array]
) -> Array:
    """Solve product(z) = right for a symmetric positive definite product, of which `eased` is a rough inverse."""
    z, r = np.zeros_like(right), right.copy()
    q = eased(r)
    p, rho = q.copy(), float(np.vdot(r, q))
    stop = max(CG_GAIN, 1e-8 * rho)
    for _ in range(CG_STEPS):
        if not rho > stop:
            break
        ap = product(p)
        alpha = rho / float(np.vdot(p, ap))
        z += alpha * p
        r -= alpha * ap
        q = eased(r)
        rho, before = float(np.vdot(r, q)), rho
        p = q + (rho / before) * p
    return z


def _laplacian(c: Array) -> Array:
    """Second differences along both axes of every term; zero beyond the grid."""
    out = -4 * c
    out[:, 1:] += c[:, :-1]
    out[:, :-1] += c[:, 1:]
    out[:, :, 1:] += c[:, :, :-1]
    out[:, :, :-1] += c[:, :, 1:]
    return out


def _width(grid: Array, over: int) -> float:
    """FWHM [pixel] of spline coefficients, from the area above half maximum."""
    return float(2 * np.sqrt((grid > grid.max() / 2).sum() / np.pi) / over)


def _centred(model: PsfModel) -> PsfModel:
    """The model with its windowed centre at zero everywhere in the frame, to first order in the shift."""
    n_y, n_x = model.shape
    places = [(x, y) for y in np.linspace(0, n_y - 1, 3) for x in np.linspace(0, n_x - 1, 3)]
    fwhm = model.fwhm_at(n_x / 2, n_y / 2)
    shifts = (
        np.array([core_moments(model.fine(x, y, 3), 3, fwhm)[:2] for x, y in places]) * 2
    )  # the weight halves it
    terms = field_terms([x for x, _ in places], [y for _, y in places], model.shape, model.order)
    by_term = np.linalg.lstsq(terms, shifts, rcond=None)[0]
    c = model.coefficients.astype(np.float64)
    along = [np.zeros_like(c[0]), np.zeros_like(c[0])]
    along[0][:, 1:-1] = (c[0][:, 2:] - c[0][:, :-2]) * (
        model.over / 2
    )  # value of the derivative, node by node
    along[1][1:-1] = (c[0][2:] - c[0][:-2]) * (model.over / 2)
    for axis, derivative in enumerate(along):
        c += by_term[:, axis, None, None] * derivative
    return replace(model, coefficients=normalised(c, model.over))
