from __future__ import annotations

import warnings

import numpy as np
import pytest
from astropy.io import fits
from scipy.special import erf

from tapetum.core.errors import InputError
from tapetum.images.background import Background, estimate_background
from tapetum.images.frame import FrameInfo
from tapetum.images.photometry import forced_photometry
from tapetum.images.psf import PsfModel, measure_psf, select_stars

SIDE = 560


def moffat_star(x, y, half, fwhm, beta=3.2, ellipticity=0.0, angle=0.0, fine=9):
    """A Moffat star of unit flux summed over pixels by brute force: nothing of the code under test is in it."""
    offsets = (np.arange((2 * half + 1) * fine) + 0.5) / fine - 0.5 - half
    px, py = offsets[None] - (x - np.floor(x + 0.5)), offsets[:, None] - (y - np.floor(y + 0.5))
    q, a2 = 1 - ellipticity, fwhm**2 / (4 * (2 ** (1 / beta) - 1))
    u, v = px * np.cos(angle) + py * np.sin(angle), py * np.cos(angle) - px * np.sin(angle)
    profile = (1 + (u * u * q + v * v / q) / a2) ** -beta * (beta - 1) / (np.pi * a2)
    return profile.reshape(2 * half + 1, fine, 2 * half + 1, fine).sum((1, 3)) / fine**2


def varying_star(x, y, half, fwhm, fine=9):
    u, v = 2 * x / SIDE - 1, 2 * y / SIDE - 1
    return moffat_star(
        x,
        y,
        half,
        fwhm * (1 + 0.12 * u + 0.08 * v * v),
        ellipticity=0.06 + 0.05 * u,
        angle=0.5 + 0.6 * v,
        fine=fine,
    )


def star_field(fwhm, n_stars, rng, *, noise=8.0, gain=6.0, sky=160.0):
    image, half = np.zeros((SIDE, SIDE)), 30
    x, y = rng.uniform(0, SIDE - 1, (2, n_stars))
    flux = 10 ** rng.uniform(2.8, 5.0, n_stars)
    for a, b, f in zip(x, y, flux, strict=True):
        add(image, f * varying_star(a, b, half, fwhm, fine=7), a, b)
    image = image + sky + rng.normal(size=image.shape) * np.sqrt(noise**2 + image / gain)
    return image.astype(np.float32), x, y, flux


def add(image, stamp, x, y):
    half = stamp.shape[0] // 2
    i, j = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
    top, left = max(0, j - half), max(0, i - half)
    bottom, right = min(image.shape[0], j + half + 1), min(image.shape[1], i + half + 1)
    image[top:bottom, left:right] += stamp[
        top - j + half : bottom - j + half, left - i + half : right - i + half
    ]


def core_error(model, truth, x, y):
    """Rms difference in the core as part of the core's rms, and flux that the model finds in the true star."""
    seen = model.stamp(x, y).astype(float)
    core = truth > 0.05 * truth.max()
    error = np.sqrt(((seen - truth)[core] ** 2).sum() / (truth[core] ** 2).sum())
    return error, (truth * seen).sum() / (seen * seen).sum()


@pytest.mark.parametrize(
    ("fwhm", "n_stars", "typical", "worst", "bias"),
    [(1.7, 260, 0.015, 0.05, 0.004), (2.8, 200, 0.015, 0.05, 0.005)],
)
def test_a_varying_moffat_psf_is_recovered(fwhm, n_stars, typical, worst, bias):
    rng = np.random.default_rng(3)
    image, *_ = star_field(fwhm, n_stars, rng)
    model = measure_psf(image, estimate_background(image), None, FrameInfo(gain=6.0, saturation=60000.0))
    places = rng.uniform(15, SIDE - 15, (40, 2))
    errors, fluxes = np.array(
        [core_error(model, varying_star(x, y, model.half, fwhm), x, y) for x, y in places]
    ).T
    assert model.order == 2
    assert np.median(errors) < typical
    assert errors.max() < worst
    assert abs(np.median(fluxes) - 1) < bias
    assert model.quality.n_stars > 0.3 * n_stars
    assert model.quality.n_test >= 10
    assert 0.7 < model.quality.chi2 < 2.0
    assert model.quality.residual < 0.02
    # the FWHM follows the truth over the field, and includes the pixel
    for x in (20, SIDE - 20):
        own = fwhm * (1 + 0.12 * (2 * x / SIDE - 1))
        assert model.fwhm_at(x, SIDE / 2) == pytest.approx(np.hypot(own, 0.9), rel=0.05)
    assert model.fwhm_at(SIDE / 2, SIDE / 2) == pytest.approx(np.hypot(fwhm, 0.9), rel=0.05)


@pytest.mark.parametrize("n_max", [60, 400])
def test_threads_do_not_change_a_psf(n_max):
    image, *_ = star_field(1.7, 260, np.random.default_rng(3))
    maps = [estimate_background(image, threads=n) for n in (1, 3)]
    np.testing.assert_array_equal(maps[0].level, maps[1].level)
    np.testing.assert_array_equal(maps[0].noise, maps[1].noise)
    one, many = (measure_psf(image, maps[0], None, FrameInfo(), n_max=n_max, threads=n) for n in (1, 3))
    np.testing.assert_array_equal(one.coefficients, many.coefficients)
    assert 10 < one.quality.n_stars <= n_max


def test_fluxes_and_positions_of_faint_stars_are_unbiased():
    rng = np.random.default_rng(8)
    image, x, y, flux = star_field(2.0, 220, rng)
    background = estimate_background(image)
    model = measure_psf(image, background, None, FrameInfo(gain=6.0, saturation=60000.0))
    found = forced_photometry(
        image - background.level, background.noise, None, model, x, y, gain=6.0, fit_position=True
    )
    apart = np.array([np.sort(np.hypot(x - a, y - b))[1] for a, b in zip(x, y, strict=True)])
    alone = (apart > 25) & (np.minimum(x, y) > 20) & (np.maximum(x, y) < SIDE - 20)
    assert alone.sum() > 40
    bright = alone & (flux > 2e4)
    assert abs(np.median(found.flux[bright] / flux[bright]) - 1) < 0.005
    faint = alone & (flux < 3000)  # brighter ones show that a PSF is known to a per cent, not better
    pull = (found.flux - flux)[faint] / found.flux_err[faint]
    assert abs(np.median(pull)) < 0.6
    assert 0.7 < 1.4826 * np.median(np.abs(pull - np.median(pull))) < 1.4
    assert np.median(np.hypot(found.x - x, found.y - y)[bright]) < 0.01


def test_a_moffat_model_is_the_integrated_profile():
    for fwhm, beta in ((1.3, 3.0), (1.9, 3.2), (2.6, 2.5), (5.0, 4.0)):
        model = PsfModel.moffat(fwhm, beta, (500, 400), ellipticity=0.1, angle_deg=30.0)
        for x, y in ((100.0, 100.0), (100.3, 99.8), (99.55, 100.45)):
            truth = moffat_star(x, y, model.half, fwhm, beta, 0.1, np.deg2rad(30), fine=15)
            truth /= truth.sum()
            stamp = model.stamp(x, y)
            assert np.abs(stamp - truth).max() < 4e-3 * truth.max()
            assert stamp.sum() == pytest.approx(1, abs=2e-4)
    assert PsfModel.moffat(3.0, 3.0, (9, 9), ellipticity=0.2).quality.ellipticity == pytest.approx(
        0.2, abs=0.05
    )


def test_stamps_keep_the_rule_of_the_centre_pixel():
    model = PsfModel.moffat(2.2, 3.0, (300, 300))
    stamps = model.stamps([50.0, 50.4, 50.5, 49.6], [60.0] * 4)
    assert stamps.shape == (4, model.size, model.size)
    assert stamps.dtype == np.float32
    middle = np.array([s.sum(0) @ (np.arange(model.size) - model.half) for s in stamps])
    # 50.5 belongs to pixel 51, where it lies half a pixel to the left
    np.testing.assert_allclose(middle, [0, 0.4, -0.5, -0.4], atol=2e-3)
    np.testing.assert_array_equal(model.centred(50.4, 60.2), model.stamp(50.0, 60.0))
    assert model.neff(0, 0) == pytest.approx(1 / (model.centred(0, 0).astype(float) ** 2).sum())


def test_a_model_from_stamps_passes_through_them():
    models = [PsfModel.moffat(f, 3.0, (200, 300), half=10) for f in (2.4, 2.6, 2.8)]
    x, y = [0.0, 149.5, 299.0], [100.0] * 3
    fine = [m.fine(0, 0, 3) for m in models]
    joined = PsfModel.from_stamps(x, y, fine, (200, 300), order=1, over=3)
    assert joined.order == 1
    assert joined.half == 10
    for place, one in zip((0.3, 149.2, 298.7), models, strict=True):
        np.testing.assert_allclose(joined.stamp(place, 100.4), one.stamp(place, 100.4), atol=2.5e-3)
    flat = PsfModel.from_stamps([5.0], [5.0], [models[2].centred(0, 0)], (200, 300))
    assert flat.order == 0
    np.testing.assert_allclose(flat.centred(9, 9), models[2].centred(9, 9), atol=2e-4)
    np.testing.assert_allclose(flat.stamp(9.5, 9.2), models[2].stamp(9.5, 9.2), atol=2e-3)
    with pytest.raises(InputError, match="odd side"):
        PsfModel.from_stamps([5.0], [5.0], np.ones((1, 4, 4)), (200, 300))
    with pytest.raises(InputError, match="positive, finite flux"):
        PsfModel.from_stamps([5.0], [5.0], np.zeros((1, 5, 5)), (200, 300))


def test_galaxies_hits_blends_and_saturated_stars_are_not_selected():
    rng = np.random.default_rng(5)
    image = rng.normal(100, 5, (400, 400))
    grid = [
        (x + rng.uniform(-0.5, 0.5), y + rng.uniform(-0.5, 0.5))
        for x in range(30, 380, 50)
        for y in range(30, 380, 50)
    ]
    kinds = {}
    for k, (x, y) in enumerate(grid):
        kind = ("star", "galaxy", "hit", "blend", "saturated", "star", "star")[k % 7]
        kinds[kind] = [*kinds.get(kind, []), (x, y)]
        flux = rng.uniform(6e3, 3e4)
        if kind == "galaxy":
            add(
                image,
                2 * flux * moffat_star(x, y, 15, rng.uniform(3.5, 6), 2.5, 0.2, rng.uniform(0, 3)),
                x,
                y,
            )
        elif kind == "hit":
            image[int(y), int(x) : int(x) + int(rng.integers(1, 4))] += flux / 4
        else:
            scale = 60 if kind == "saturated" else 1
            add(image, flux * scale * moffat_star(x, y, 15, 2.2), x, y)
            if kind == "blend":
                add(image, 0.6 * flux * moffat_star(x + 3.2, y, 15, 2.2), x + 3.2, y)
    image = np.minimum(image, 50000).astype(np.float32)
    found = select_stars(image, estimate_background(image), None, FrameInfo(saturation=50000.0))

    def selected(kind):
        return sum(np.hypot(found.x - x, found.y - y).min() < 4 for x, y in kinds[kind])

    assert selected("star") >= 0.85 * len(kinds["star"])
    for kind in ("galaxy", "hit", "blend", "saturated"):
        assert selected(kind) == 0, kind
    assert np.median(found.fwhm) == pytest.approx(np.hypot(2.2, 0.9), rel=0.15)


def test_undersampled_stars_are_selected_at_every_place_in_their_pixel():
    rng = np.random.default_rng(4)
    image = rng.normal(100, 5, (700, 700))
    for x0 in range(25, 680, 30):
        for y0 in range(25, 680, 30):
            x, y = x0 + rng.uniform(-0.5, 0.5), y0 + rng.uniform(-0.5, 0.5)
            add(image, rng.uniform(3e3, 3e4) * moffat_star(x, y, 12, 1.0), x, y)
    image = image.astype(np.float32)
    background = estimate_background(image)
    stars = select_stars(image, background, None, FrameInfo(), n_max=600)
    assert len(stars) > 400
    for axis in (stars.x, stars.y):
        central = np.mean(np.abs(axis - np.floor(axis + 0.5)) < 0.25)
        assert 0.42 < central < 0.62  # half of them, as chance has it
    model = measure_psf(image, background, None, FrameInfo(), stars=stars)
    truth = moffat_star(350, 350, model.half, 1.0, fine=15)
    assert model.stamp(350, 350).max() == pytest.approx(truth.max(), rel=0.02)


def test_few_stars_lower_the_order_and_none_is_an_error():
    rng = np.random.default_rng(6)
    image = rng.normal(100, 5, (200, 200))
    background = estimate_background(image.astype(np.float32))
    with pytest.raises(InputError, match="no isolated, unsaturated star"):
        measure_psf(image.astype(np.float32), background, None, FrameInfo())
    for x, y in ((40.2, 50.7), (150.4, 60.1), (90.9, 150.3)):
        add(image, 2e4 * moffat_star(x, y, 20, 2.5), x, y)
    model = measure_psf(image.astype(np.float32), background, None, FrameInfo())
    assert (model.order, model.quality.n_stars, model.quality.n_test) == (0, 3, 0)
    truth = moffat_star(100.3, 99.6, model.half, 2.5)
    error, flux = core_error(model, truth, 100.3, 99.6)
    assert error < 0.02
    assert flux == pytest.approx(1, abs=0.01)


def test_masked_pixels_and_nan_do_no_harm():
    rng = np.random.default_rng(3)
    image, *_ = star_field(2.0, 150, rng)
    clean = measure_psf(image, estimate_background(image), None, FrameInfo(gain=6.0))
    mask = np.zeros(image.shape, np.uint8)
    image[:, 100], mask[:, 100] = 5e4, 2  # a hot column, masked
    image[:, 300] = np.nan
    image[200:220, 200:260] = np.nan
    hurt = measure_psf(image, estimate_background(image, mask), mask, FrameInfo(gain=6.0))
    assert np.isfinite(hurt.coefficients).all()
    a, b = clean.centred(SIDE / 2, SIDE / 2), hurt.centred(SIDE / 2, SIDE / 2)
    assert np.abs(a - b).max() < 0.02 * a.max()


def test_impossible_arguments_are_refused():
    background = Background(np.zeros((20, 20), np.float32), np.ones((20, 20), np.float32))
    image = np.zeros((20, 20), np.float32)
    with pytest.raises(InputError, match="order 3"):
        measure_psf(image, background, None, FrameInfo(), order=3)
    with pytest.raises(InputError, match="size 8"):
        measure_psf(image, background, None, FrameInfo(), size=8)
    with pytest.raises(InputError, match="one shape"):
        measure_psf(np.zeros((30, 30), np.float32), background, None, FrameInfo())
    with pytest.raises(InputError, match="no such Moffat"):
        PsfModel.moffat(-1, 3, (10, 10))
    with pytest.raises(InputError, match="do not fit order"):
        PsfModel(np.zeros((2, 11, 11), np.float32), 1, 0, (10, 10))


@pytest.fixture(scope="module")
def ztf(real_data):
    folder = real_data / "imagepairs"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(folder / "ztf_zr_sci.fits.fz") as file:
            data, header = file[1].data[:1024, :1536].astype(np.float32), file[1].header
        bits = fits.getdata(folder / "ztf_zr_msk.fits.fz")[:1024, :1536]
    mask = ((bits & ~((1 << 1) | (1 << 11))) != 0).astype(np.uint8)
    return data, mask, header


def test_a_real_ztf_frame_is_described(ztf):
    data, mask, header = ztf
    background = estimate_background(data, mask)
    info = FrameInfo(gain=header["GAIN"], saturation=header["SATURATE"])
    stars = select_stars(data, background, mask, info)
    odd = np.arange(len(stars)) % 2 == 1
    model = measure_psf(data, background, mask, info, stars=stars[~odd])
    assert model.over == 4  # the stars are narrower than a pixel and a half
    assert model.quality.fwhm_pix == pytest.approx(header["SEEING"], rel=0.15)
    assert model.quality.residual < 0.03
    unused = stars[odd]
    fit = forced_photometry(
        data - background.level,
        background.noise,
        mask,
        model,
        unused.x,
        unused.y,
        gain=info.gain,
        fit_position=True,
    )
    middling = (unused.snr > 30) & (unused.snr < 300)
    assert middling.sum() > 10
    assert 0.6 < np.median(fit.chi2[middling]) < 1.5
    assert np.median(np.hypot(fit.x - unused.x, fit.y - unused.y)) < 0.06  # two kinds of centre, 1.4 px FWHM


@pytest.mark.parametrize("fwhm", [2.0, 3.0, 5.0])
@pytest.mark.parametrize("beta", [2.5, 3.2, np.inf])
def test_fluxes_are_not_biased_whatever_the_profile(fwhm, beta):
    """Unit flux is the light within the stamp; a Gaussian and wide wings are equally far from the first guess."""
    rng = np.random.default_rng(4)
    image, half = np.full((SIDE, SIDE), 200.0), 40
    for i in range(45, SIDE - 40, 60):
        for j in range(45, SIDE - 40, 60):
            x, y = i + rng.uniform(-3, 3), j + rng.uniform(-3, 3)
            add(image, 30000 * profile_star(x, y, half, fwhm, beta), x, y)
    image = (rng.poisson(image * 2) / 2 + rng.normal(0, 2.5, image.shape)).astype(np.float32)
    sky = Background(np.full(image.shape, 200, np.float32), np.full(image.shape, 10.3, np.float32))
    model = measure_psf(image, sky, None, FrameInfo(gain=2.0, saturation=60000.0))
    places = [(280.0, 280.0), (100.3, 400.4), (400.55, 120.2)]
    truths = [profile_star(x, y, model.half, fwhm, beta) for x, y in places]
    errors, fluxes = np.array(
        [core_error(model, t / t.sum(), *at) for t, at in zip(truths, places, strict=True)]
    ).T
    assert abs(fluxes.mean() - 1) < 0.005
    assert errors.max() < 0.015
    assert model.quality.residual < 0.02


def profile_star(x, y, half, fwhm, beta):
    if np.isfinite(beta):
        return moffat_star(x, y, half, fwhm, beta, fine=5)
    edges = np.arange(-half, half + 2) - 0.5
    shares = [
        np.diff(erf((edges - (at - np.floor(at + 0.5))) / (fwhm / 2.3548) / np.sqrt(2))) / 2 for at in (y, x)
    ]
    return np.outer(*shares)
