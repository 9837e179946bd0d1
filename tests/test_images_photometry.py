from __future__ import annotations

import warnings

import numpy as np
import pytest
import sep
from astropy.io import fits

from tapetum.core.errors import InputError
from tapetum.images.background import estimate_background
from tapetum.images.frame import FrameInfo
from tapetum.images.photometry import (
    fit_zero_point,
    forced_photometry,
)
from tapetum.images.psf import PsfModel, measure_psf, select_stars


@pytest.fixture(scope="module")
def scene():
    """Isolated stars of a known PSF and flux in known noise."""
    rng = np.random.default_rng(12)
    psf = PsfModel.moffat(2.4, 3.0, (600, 600), half=12)
    image, noise, gain = np.zeros((600, 600)), 5.0, 4.0
    x, y = (
        g.ravel() + rng.uniform(-0.5, 0.5, 196)
        for g in np.meshgrid(np.arange(14) * 42.0 + 25, np.arange(14) * 42.0 + 25)
    )
    flux = 10 ** rng.uniform(2.0, 4.5, 196)
    for stamp, a, b, f in zip(psf.stamps(x, y), x, y, flux, strict=True):
        i, j = int(np.floor(a + 0.5)), int(np.floor(b + 0.5))
        image[j - 12 : j + 13, i - 12 : i + 13] += f * stamp
    image += rng.normal(size=image.shape) * np.sqrt(noise**2 + image / gain)
    return image.astype(np.float32), np.full((600, 600), noise, np.float32), psf, x, y, flux, gain


def pulls(found, error, truth):
    pull = (found - truth) / error
    return pull.mean(), pull.std()


def test_forced_fluxes_and_their_errors_are_right(scene):
    image, noise, psf, x, y, flux, gain = scene
    found = forced_photometry(image, noise, None, psf, x, y, gain=gain)
    flux_all, error_all, *_ = found  # a tuple, for those who want only the first two
    mean, width = pulls(flux_all, error_all, flux)
    assert abs(mean) < 0.25
    assert 0.85 < width < 1.15
    np.testing.assert_allclose(found.chi2.mean(), 1, atol=0.05)
    np.testing.assert_allclose(found.coverage, 1, atol=1e-6)
    np.testing.assert_array_equal(found.x, x)
    assert np.isnan(found.x_err).all()
    # matched filter: the error of a faint star is noise * sqrt(neff)
    faint = forced_photometry(image, noise, None, psf, x, y).flux_err
    np.testing.assert_allclose(faint, 5 * np.sqrt(psf.neff(0, 0)), rtol=0.05)


def test_positions_are_fitted_with_honest_errors(scene):
    image, noise, psf, x, y, flux, gain = scene
    rng = np.random.default_rng(1)
    bright = flux > 1000
    start = x[bright] + rng.uniform(-0.4, 0.4, bright.sum()), y[bright] + rng.uniform(-0.4, 0.4, bright.sum())
    found = forced_photometry(image, noise, None, psf, *start, gain=gain, fit_position=True)
    for value, error, truth in ((found.x, found.x_err, x[bright]), (found.y, found.y_err, y[bright])):
        mean, width = pulls(value, error, truth)
        assert abs(mean) < 0.35
        assert 0.8 < width < 1.2
    assert 0.85 < pulls(found.flux, found.flux_err, flux[bright])[1] < 1.2


def test_bad_pixels_edges_and_outside(scene):
    image, noise, psf, x, y, flux, gain = scene
    hurt, mask = image.copy(), np.zeros(image.shape, np.uint8)
    middle = round(y[0]), round(x[0])
    hurt[middle] = 1e6
    mask[middle] = 8
    hurt[round(y[1]), round(x[1]) + 1] = np.nan
    found = forced_photometry(hurt, noise, mask, psf, x[:3], y[:3], gain=gain)
    assert 0.7 < found.coverage[0] < 0.95
    assert (np.abs(found.flux - flux[:3]) < 5 * found.flux_err).all()
    assert found.flux_err[0] > forced_photometry(image, noise, None, psf, x[:1], y[:1], gain=gain).flux_err[0]
    mask[middle[0] - 8 : middle[0] + 9, middle[1] - 8 : middle[1] + 9] = 1
    lost = forced_photometry(hurt, noise, mask, psf, [x[0], -100, np.nan, 0.0], [y[0], 5, 5, 0.0])
    assert np.isnan(lost.flux[:3]).all()
    assert np.isfinite(lost.flux[3])
    assert lost.coverage[3] < 0.5
    np.testing.assert_array_equal(lost.coverage[1:3], 0)


def test_local_sky_and_radius(scene):
    image, noise, psf, x, y, flux, _ = scene
    raised = image + 20
    plain = forced_photometry(raised, noise, None, psf, x, y)
    with_sky = forced_photometry(raised, noise, None, psf, x, y, sky_sigma=100.0)
    close = forced_photometry(image, noise, None, psf, x, y, radius_pix=3.0)
    faint = flux < 2000
    assert (plain.flux - flux)[faint].mean() > 100
    assert abs((with_sky.flux - flux)[faint].mean()) < 15
    np.testing.assert_allclose(with_sky.sky, 20, atol=2.5)
    assert abs((close.flux - flux)[faint].mean()) < 15
    assert (close.flux_err > plain.flux_err).all()


def test_a_zero_point_among_variables_and_wrong_matches(rng):
    n = 400
    instrumental, colour = rng.uniform(-12, -6, n), rng.uniform(0, 1.5, n)
    error = 0.01 + 0.05 * rng.uniform(size=n)
    noise = rng.normal(size=n) * np.hypot(error, 0.03)
    catalogue = instrumental + 26.2 + 0.08 * colour + noise
    catalogue[:60] += rng.uniform(-2, 2, 60)
    catalogue[60:65] = np.nan
    fit = fit_zero_point(instrumental, catalogue, error, colour)
    assert fit.value == pytest.approx(26.2, abs=4 * fit.error)
    assert fit.colour_term == pytest.approx(0.08, abs=4 * fit.colour_error)
    assert 0.001 < fit.error < 0.01
    assert fit.intrinsic == pytest.approx(0.03, abs=0.012)
    assert 300 < fit.n_used < 365
    assert fit.n_given == 395
    assert fit.used.sum() == fit.n_used
    assert not fit.used[60:65].any()
    plain = fit_zero_point(instrumental, catalogue - 0.08 * colour)
    assert plain.value == pytest.approx(26.2, abs=0.01)
    assert plain.colour_term == 0


def test_errors_of_the_zero_point_are_honest():
    values, errors = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        error = rng.uniform(0.01, 0.05, 40)
        fit = fit_zero_point(np.zeros(40), 25 + error * rng.normal(size=40), error)
        values.append(fit.value)
        errors.append(fit.error)
    assert 0.75 < np.std(values) / np.mean(errors) < 1.35
    assert abs(np.mean(values) - 25) < 0.003


def test_too_few_stars_for_a_zero_point():
    with pytest.raises(InputError, match="2 stars with magnitudes, need 3"):
        fit_zero_point([1.0, 2.0, np.nan], [1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="one colour"):
        fit_zero_point(np.zeros(9), np.zeros(9), None, np.full(9, 0.7))
    with pytest.raises(InputError, match="one length"):
        fit_zero_point(np.zeros(9), np.zeros(8))
    exact = fit_zero_point(np.arange(5.0), np.arange(5.0) + 20)
    assert exact.value == pytest.approx(20)
    assert exact.intrinsic == 0


def test_photometry_refuses_shapes_that_do_not_fit(scene):
    image, noise, psf, x, y, *_ = scene
    with pytest.raises(InputError, match="one shape"):
        forced_photometry(image, noise[:-1], None, psf, x, y)
    with pytest.raises(InputError, match="one length"):
        forced_photometry(image, noise, None, psf, x, y[:-1])


def light_within(psf, stars, radius):
    """Part of each star's light inside a circle around it."""
    parts = []
    for x, y, stamp in zip(stars.x, stars.y, psf.stamps(stars.x, stars.y), strict=True):
        off_x, off_y = x - np.floor(x + 0.5), y - np.floor(y + 0.5)
        stamp = np.ascontiguousarray(stamp, np.float64)
        parts.append(sep.sum_circle(stamp, [psf.half + off_x], [psf.half + off_y], radius)[0][0])
    return parts


def test_the_header_zero_point_of_a_real_ztf_frame(real_data):
    """PSF fluxes of the quadrant, against apertures with the header's zero point and aperture correction."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(real_data / "imagepairs" / "ztf_zr_sci.fits.fz") as file:
            data, header = file[1].data[:1100].astype(np.float32), file[1].header
        bits = fits.getdata(real_data / "imagepairs" / "ztf_zr_msk.fits.fz")[:1100]
    mask = ((bits & ~((1 << 1) | (1 << 11))) != 0).astype(np.uint8)
    background = estimate_background(data, mask)
    info = FrameInfo(gain=header["GAIN"], saturation=header["SATURATE"])
    stars = select_stars(data, background, mask, info)
    psf = measure_psf(data, background, mask, info, stars=stars)
    sky_free = data - background.level
    ours = forced_photometry(
        sky_free,
        background.noise,
        mask,
        psf,
        stars.x,
        stars.y,
        gain=info.gain,
        fit_position=True,
        radius_pix=5.0,
    )
    # ZTF's own aperture corrections (PSF minus aperture magnitude) are what our PSF holds within those circles
    for k, diameter in ((1, 2), (2, 3), (3, 4), (4, 6), (5, 10)):
        ours_mag = 2.5 * np.log10(np.median(light_within(psf, stars, diameter / 2)))
        assert ours_mag == pytest.approx(header[f"APCOR{k}"], abs=0.06)
    # a catalogue as ZTF would have made it: the 14-pixel aperture is total light in its scheme
    total, error, _ = sep.sum_circle(
        sky_free, stars.x, stars.y, 7.0, err=background.noise, mask=mask != 0, gain=info.gain
    )
    bright = (stars.snr > 150) & (total > 0)
    catalogue = header["MAGZP"] + header["APCOR6"] - 2.5 * np.log10(total[bright])
    fit = fit_zero_point(-2.5 * np.log10(ours.flux[bright]), catalogue, 1.0857 * (error / total)[bright])
    assert fit.n_used > 0.6 * bright.sum()
    assert fit.rms < 0.05
    assert fit.value == pytest.approx(header["MAGZP"], abs=0.05)


def test_a_catalogue_made_from_the_header_is_calibrated_back(real_data):
    """Magnitudes from header zero point and apertures, with errors, variables and a colour term put in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(real_data / "imagepairs" / "ztf_zr_sci.fits.fz") as file:
            data, header = file[1].data[:700].astype(np.float32), file[1].header
    background = estimate_background(data)
    stars = select_stars(data, background, None, FrameInfo(saturation=header["SATURATE"]))
    flux, error, _ = sep.sum_circle(
        data - background.level, stars.x, stars.y, 5.0, err=background.noise, gain=header["GAIN"]
    )
    rng = np.random.default_rng(2)
    colour = rng.normal(header["CLRMED"], header["CLRRMS"], len(stars))
    instrumental = -2.5 * np.log10(flux)
    catalogue = header["MAGZP"] + instrumental + header["CLRCOEFF"] * colour
    catalogue += rng.normal(0, 0.02, len(stars))
    catalogue[::11] += 0.7
    fit = fit_zero_point(instrumental, catalogue, np.hypot(1.0857 * error / flux, 0.02), colour)
    assert fit.value == pytest.approx(header["MAGZP"], abs=4 * fit.error)
    assert fit.colour_term == pytest.approx(header["CLRCOEFF"], abs=4 * fit.colour_error)
    assert fit.error < 0.01
    assert fit.n_used < 0.94 * len(stars)
