"""The difference of two images: kernels against slow truths, fluxes and noise against what was put in, and the gate."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.signal import convolve2d

from tapetum.core.errors import InputError
from tapetum.images._subtract_kernels import convolve_tiles
from tapetum.images.background import estimate_background
from tapetum.images.difference import Plane, SubtractionError, checked, disagreement
from tapetum.images.frame import Bad
from tapetum.images.matching import (
    MatchingError,
    Stamps,
    _assemble,
    _designs,
    _normal_equations,
    _solve,
    cut_stamps,
    fit_kernel,
    gaussian_basis,
    polynomial,
)
from tapetum.images.psf import PsfModel
from tapetum.images.subtract import subtract

SHAPE = (420, 460)
SKY_NOISE = 8.0
GAIN = 4.0
TRANSIENTS = np.array([[100.3, 90.6, 6000.0], [310.8, 333.1, 3000.0], [222.2, 150.9, -4000.0]])


@dataclass
class Sky:
    """Stars of one field."""

    x: np.ndarray
    y: np.ndarray
    flux: np.ndarray


def make_sky(n=160, seed=1):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(5, SHAPE[1] - 5, n), rng.uniform(5, SHAPE[0] - 5, n)
    far = np.min(np.hypot(x[:, None] - TRANSIENTS[:, 0], y[:, None] - TRANSIENTS[:, 1]), axis=1) > 25
    return Sky(x[far], y[far], 10 ** rng.uniform(3.2, 5.2, n)[far])


def stamp_image(psf, x, y, flux):
    image = np.zeros((SHAPE[0] + 2 * psf.half, SHAPE[1] + 2 * psf.half))
    for one, a, b, f in zip(psf.stamps(x, y), x, y, flux, strict=True):
        row, col = int(np.floor(b + 0.5)), int(np.floor(a + 0.5))
        image[row : row + psf.size, col : col + psf.size] += f * one
    return image[psf.half : -psf.half, psf.half : -psf.half]


def field_psf(fwhm, slope=0.0):
    """A Moffat profile whose width grows with x."""
    xs, ys = (
        a.ravel() for a in np.meshgrid(np.linspace(0, SHAPE[1] - 1, 5), np.linspace(0, SHAPE[0] - 1, 3))
    )
    moffats = [PsfModel.moffat(fwhm * (1 + slope * (a / SHAPE[1] - 0.5)), 3.5, SHAPE, half=14) for a in xs]
    return PsfModel.from_stamps(xs, ys, np.array([m.centred(0, 0) for m in moffats]), SHAPE, order=2)


def plane(rng, image, psf, gain=GAIN, noise=SKY_NOISE):
    """The image with sky and photon noise, and what is known of it."""
    data = image + rng.normal(0, 1, SHAPE) * np.sqrt(noise**2 + np.maximum(image, 0) / gain)
    return Plane(
        data.astype(np.float32), np.full(SHAPE, noise, np.float32), np.zeros(SHAPE, np.uint8), gain, 6e4, psf
    )


def make_pair(science_fwhm=3.2, reference_fwhm=2.4, slope=0.15, scale=1.7, seed=0, transients=TRANSIENTS):
    """Science and reference of one field, the reference 1/`scale` as bright and with less noise."""
    rng = np.random.default_rng(seed)
    sky, ours, theirs = make_sky(), field_psf(science_fwhm, slope), field_psf(reference_fwhm)
    new = stamp_image(ours, sky.x, sky.y, sky.flux)
    if len(transients):
        new += stamp_image(ours, *transients.T)
    old = stamp_image(theirs, sky.x, sky.y, sky.flux / scale)
    return plane(rng, new, ours), plane(rng, old, theirs, gain=10 * GAIN, noise=SKY_NOISE / scale / 3), sky


def box(image, x, y, half=6):
    col, row = round(x), round(y)
    return image[row - half : row + half + 1, col - half : col + half + 1]


def flux_at(difference, x, y):
    """PSF flux and error at a known position, by weighted least squares."""
    one = difference.psf.stamp(x, y)
    half = one.shape[0] // 2
    data, noise = (box(image, x, y, half) for image in (difference.data, difference.noise))
    weight = one / noise**2
    norm = (weight * one).sum()
    return (weight * data).sum() / norm, norm**-0.5


def test_tiles_are_convolved_as_the_textbook_says():
    rng = np.random.default_rng(3)
    image = rng.normal(size=(70, 83)).astype(np.float32)
    kernels = rng.normal(size=(3, 3, 9, 9)).astype(np.float32)
    out = np.empty_like(image)
    convolve_tiles(np.pad(image, 4), np.ascontiguousarray(kernels[:, :, ::-1, ::-1]), 32, 0, 3, out)
    for row in range(3):
        for col in range(3):
            part = np.s_[32 * row : 32 * (row + 1), 32 * col : 32 * (col + 1)]
            truth = convolve2d(image.astype(float), kernels[row, col], mode="same")[part]
            np.testing.assert_allclose(out[part], truth, atol=2e-5)


@pytest.mark.parametrize(("fwhm_from", "fwhm_to"), [(2.0, 3.0), (2.0, 2.01), (3.0, 2.0), (1.2, 9.0)])
def test_the_first_kernel_carries_the_flux_and_the_rest_none(fwhm_from, fwhm_to):
    basis = gaussian_basis(fwhm_from, fwhm_to)
    sums = basis.kernels.sum((1, 2))
    assert sums[0] == pytest.approx(1)
    np.testing.assert_allclose(sums[1:], 0, atol=1e-9)
    flat = basis.kernels[1:].reshape(len(basis.kernels) - 1, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(len(flat)), atol=1e-8)
    assert np.isfinite(basis.kernels).all()
    assert (np.diff(basis.degree) >= 0).all()


def test_normal_equations_solve_the_dense_problem():
    rng = np.random.default_rng(5)
    basis = gaussian_basis(2.0, 3.0)
    image, target = (rng.normal(10, 5, (200, 200)).astype(np.float32) for _ in range(2))
    x, y = rng.integers(30, 170, 40), rng.integers(30, 170, 40)
    ones = np.ones(40, np.float32)
    stamps = cut_stamps(image, target, basis, 8, x, y, ones, 0 * ones, np.ones((200, 200), bool))
    weight = rng.uniform(0.5, 2, stamps.target.shape).astype(np.float32)
    terms = polynomial(x.astype(float), y.astype(float), (200, 200), 1)
    design = _designs(basis, 1, 40, stamps.target.shape[1])[2]
    sums = _normal_equations(stamps, weight)
    matrix, vector = _assemble(sums, terms, np.ones(40, bool))
    found = _solve(matrix, vector, np.zeros(len(vector)), design.chosen)
    dense = (stamps.columns.transpose(0, 2, 1)[:, :, :, None] * terms[:, None, None, :]).astype(float)
    dense = dense.reshape(stamps.target.size, -1)[:, design.chosen] * np.sqrt(weight.reshape(-1, 1))
    truth = np.linalg.lstsq(dense, stamps.target.ravel() * np.sqrt(weight.ravel()), rcond=None)[0]
    np.testing.assert_allclose(found[design.chosen], truth, rtol=2e-3, atol=2e-3 * np.abs(truth).max())


@pytest.fixture(scope="module")
def matched():
    science, reference, sky = make_pair()
    return subtract(science, reference), science, sky


def test_the_difference_is_as_quiet_as_its_noise_map_says(matched):
    difference, _, sky = matched
    z = difference.data / difference.noise
    far = np.ones(SHAPE, bool)
    for x, y, _ in TRANSIENTS:
        box(far, x, y, 15)[:] = False
    assert z[far].std() == pytest.approx(1, abs=0.05)
    bright = sky.flux > 5e4
    cores = [box(z, x, y, 4) for x, y in zip(sky.x[bright], sky.y[bright], strict=True)]
    whole = [core.std() for core in cores if core.shape == (9, 9)]
    assert len(whole) > 20
    assert np.median(whole) < 1.3
    assert difference.quality.noise_ratio == pytest.approx(1, abs=0.06)


def test_fluxes_of_what_changed_are_kept(matched):
    difference, _, _ = matched
    assert difference.convolved == "reference"
    assert difference.scale == pytest.approx(1.7, rel=0.01)
    for x, y, flux in TRANSIENTS:
        found, error = flux_at(difference, x, y)
        assert abs(found - flux) < 4 * error
        assert error < 0.06 * abs(flux)


def test_the_field_decides_how_rich_the_kernel_is(matched):
    difference, _, _ = matched
    assert "order 0" not in difference.quality.richness.split(", scale")[0]
    still, reference, _ = make_pair(slope=0.0)
    plain = subtract(still, reference)
    assert "order 0, scale order 0" in plain.quality.richness
    assert plain.quality.chi2_held < 1.2


def test_threads_change_nothing(matched):
    difference, science, _ = matched
    _, reference, _ = make_pair()
    again = subtract(science, reference, threads=2)
    np.testing.assert_array_equal(again.data, difference.data)
    np.testing.assert_array_equal(again.noise, difference.noise)


def test_the_sharper_science_image_is_convolved_and_fluxes_stay_its_own():
    science, reference, _ = make_pair(science_fwhm=2.3, reference_fwhm=3.3, slope=0.0)
    difference = subtract(science, reference)
    assert difference.convolved == "science"
    assert difference.scale == pytest.approx(1.7, rel=0.01)
    assert difference.psf.fwhm_at(200, 200) == pytest.approx(field_psf(3.3).fwhm_at(200, 200), rel=0.03)
    for x, y, flux in TRANSIENTS:
        found, error = flux_at(difference, x, y)
        assert abs(found - flux) < 4 * error


@pytest.mark.parametrize("ratio", [1.0, 1.01, 0.99])
def test_equal_seeing_is_no_trap(ratio):
    science, reference, _ = make_pair(science_fwhm=2.6 * ratio, reference_fwhm=2.6, slope=0.0)
    difference = subtract(science, reference)
    assert np.isfinite(difference.data).all()
    assert difference.quality.chi2_held < 1.3


def test_bad_pixels_stay_where_they_are():
    science, reference, _ = make_pair()
    whole = subtract(science, reference)
    science.data[40:43, 50:53] = np.nan
    science.mask[40:43, 50:53] = Bad.NO_DATA
    reference.data[300, 200] = 1e6
    reference.mask[300, 200] = Bad.DEFECT
    reference.data[350, 100] = np.nan
    reference.mask[350, 100] = Bad.NO_DATA
    difference = subtract(science, reference)
    assert np.isnan(difference.data[40:43, 50:53]).all()
    assert np.isnan(difference.data).sum() == 10
    for dy, dx in ((0, 0), (0, 1), (1, 0), (-1, -1)):
        assert difference.mask[300 + dy, 200 + dx] & Bad.DEFECT
    assert difference.mask[300, 212] == 0
    far = np.ones(SHAPE, bool)
    for y, x in ((41, 51), (300, 200), (350, 100)):
        far[y - 10 : y + 11, x - 10 : x + 11] = False
    moved = np.abs(difference.data - whole.data)[far] / whole.noise[far]
    assert np.percentile(moved, 99) < 0.3


def test_variable_stars_do_not_spoil_the_fit():
    science, reference, sky = make_pair(transients=np.empty((0, 3)))
    rng = np.random.default_rng(8)
    brighter = rng.choice(np.flatnonzero(sky.flux > 2e4), 8, replace=False)
    extra = stamp_image(science.psf, sky.x[brighter], sky.y[brighter], sky.flux[brighter] * 0.5)
    changed = replace(science, data=science.data + extra.astype(np.float32))
    quality = subtract(changed, reference).quality
    assert quality.n_clipped >= 6
    assert quality.scale_expected == pytest.approx(1.7, rel=0.05)
    difference = subtract(changed, reference)
    assert difference.scale == pytest.approx(1.7, rel=0.01)
    found, error = flux_at(difference, sky.x[brighter[0]], sky.y[brighter[0]])
    assert found == pytest.approx(0.5 * sky.flux[brighter[0]], rel=0.05, abs=4 * float(error))


def test_background_that_differs_is_taken_away():
    science, reference, _ = make_pair()
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    slope = (30 + 0.1 * x - 0.05 * y).astype(np.float32)
    difference = subtract(replace(science, data=science.data + slope), reference)
    assert abs(np.median(difference.data)) < 1
    left = estimate_background(difference.data).level
    assert np.abs(left).max() < 0.4 * SKY_NOISE


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda rng, r: replace(r, data=rng.normal(0, 3, SHAPE).astype(np.float32)), "stars|scale"),
        (lambda rng, r: replace(r, data=np.roll(r.data, (37, 53), (0, 1))), "stars|scale"),
        (lambda rng, r: replace(r, data=np.full(SHAPE, np.nan, np.float32)), "stars can be used"),
        (lambda rng, r: replace(r, data=np.zeros(SHAPE, np.float32)), "stars can be used"),
    ],
)
def test_what_cannot_be_subtracted_is_refused_with_the_reason(spoil, reason):
    science, reference, _ = make_pair()
    with pytest.raises(SubtractionError, match=reason):
        subtract(science, spoil(np.random.default_rng(0), reference))


def test_wrong_noise_is_refused():
    science, reference, _ = make_pair()
    with pytest.raises(SubtractionError, match="its noise is"):
        subtract(replace(science, noise=science.noise / 4), replace(reference, noise=reference.noise / 4))


@pytest.mark.parametrize("method", ["kernel", "zogy"])
def test_the_same_image_twice_is_called_so(method):
    science, _, _ = make_pair()
    with pytest.raises(SubtractionError, match="share their noise: they are the same"):
        subtract(science, science, method=method)


def test_a_noise_that_is_said_too_high_is_put_right():
    science, reference, _ = make_pair()
    wanted = subtract(science, reference)
    loud = subtract(replace(science, noise=science.noise * 3), replace(reference, noise=reference.noise * 3))
    assert 0.25 < loud.quality.noise_ratio < 0.4
    assert np.nanmedian(loud.noise) == pytest.approx(np.nanmedian(wanted.noise), rel=0.1)


def test_too_few_stars_are_counted():
    basis = gaussian_basis(2.0, 3.0)
    none = np.zeros(2, np.int64)
    numbers = np.ones(2, np.float32)
    stamps = Stamps(
        none,
        none,
        np.ones((2, 5, 9), np.float32),
        np.ones((2, 9), np.float32),
        numbers,
        numbers,
        np.ones((2, 9), np.float32),
    )
    with pytest.raises(MatchingError, match="2 stars can be used and 3 are needed"):
        fit_kernel(stamps, basis, SHAPE, 1.0)


def test_shapes_must_agree_and_seeing_must_be_known():
    science, reference, _ = make_pair()
    with pytest.raises(InputError, match="align them first"):
        subtract(replace(science, data=science.data[:-1]), reference)
    with pytest.raises(InputError, match="seeing"):
        subtract(replace(science, psf=None), reference)
    with pytest.raises(InputError, match="PSFs of both"):
        subtract(replace(science, psf=None, fwhm_pix=3.2), reference, method="zogy")


def test_zogy_gives_the_same_fluxes_and_white_noise():
    science, reference, _ = make_pair()
    difference = subtract(science, reference, method="zogy")
    assert difference.convolved == "both"
    assert difference.scale == pytest.approx(1.7, rel=0.01)
    for x, y, flux in TRANSIENTS:
        found, error = flux_at(difference, x, y)
        assert abs(found - flux) < 4 * error
    z = difference.data / difference.noise
    quiet = np.abs(z) < 4
    assert z[quiet].std() == pytest.approx(1, abs=0.08)


def test_zogy_finds_the_registration():
    science, reference, sky = make_pair()
    moved = stamp_image(field_psf(2.4), sky.x - 0.3, sky.y + 0.2, sky.flux / 1.7)
    rng = np.random.default_rng(4)
    shifted = replace(plane(rng, moved, reference.psf, 10 * GAIN, SKY_NOISE / 5), psf=reference.psf)
    aligned, off = subtract(science, reference, method="zogy"), subtract(science, shifted, method="zogy")
    assert off.quality.core_residual < 2 * aligned.quality.core_residual + 0.01
    assert off.quality.relative_error < 0.1


@pytest.mark.parametrize(
    ("science_name", "reference_name"),
    [
        ("eaba_eso085_4.fits.fz", "eaba_eso085_5.fits.fz"),
        ("decam_obs04a.fits", "decam_obs18a.fits"),
        ("nircam_sci.fits.fz", "nircam_ref.fits.fz"),
    ],
)
def test_real_pairs_pass_the_gate(real_data, science_name, reference_name):
    check_gate(real_data, science_name, reference_name)


def test_a_simulated_pair_passes_the_gate(real_data):
    check_gate(real_data, "sim_dev0_sci.fits.fz", "sim_dev0_ref.fits.fz")


def check_gate(real_data, science_name, reference_name):
    from benchmarks.subtraction import load_image

    folder = real_data / "imagepairs"
    if not folder.is_dir():
        pytest.skip("no imagepairs among the test data")
    images = (load_image(folder / name) for name in (science_name, reference_name))
    difference = subtract(*(image.plane for image in images))
    assert difference.quality.chi2_held < 1.6
    assert difference.quality.core_residual < 0.2


def test_images_that_share_their_noise_are_refused_in_words():
    science, _, _ = make_pair()
    rng = np.random.default_rng(2)
    spots = stamp_image(science.psf, *np.array([[100.0, 90.0], [200.0, 150.0], [5000.0, 7000.0]]))
    other = replace(science, data=(science.data + spots).astype(np.float32))
    with pytest.raises(SubtractionError, match=r"share their noise.*another exposure"):
        subtract(other, science)
    fresh = rng.normal(0, SKY_NOISE, SHAPE).astype(np.float32)
    subtract(replace(other, data=other.data + fresh, noise=science.noise * np.float32(2**0.5)), science)


def test_a_kernel_that_would_have_to_sharpen_is_refused():
    """The science image is the worse one: convolved, its stars are still no match, and rings are all that is left."""
    science, reference, _ = make_pair(science_fwhm=4.2, reference_fwhm=2.0)
    with pytest.raises(SubtractionError, match=r"badly fitted.*the one convolved"):
        subtract(science, reference, convolve="science")
    assert subtract(science, reference).convolved == "reference"


@pytest.mark.parametrize(
    ("figures", "refused"),
    [
        ({"chi2": 4.0, "chi2_held": 4.5}, True),
        ({"chi2": 3.5, "chi2_held": 3.9}, False),
        ({"negative": 1.0, "n_loud": 500, "relative_error": 0.23}, True),
        ({"negative": 0.0, "n_loud": 500, "relative_error": 0.23}, True),
        ({"negative": 0.0, "n_loud": 500, "relative_error": 0.03}, False),  # new sources only
        ({"negative": 1.0, "n_loud": 20, "relative_error": 0.23}, False),
        ({"negative": 0.6, "n_loud": 500, "relative_error": 0.23}, False),
    ],
)
def test_the_gate_knows_a_bad_fit(matched, figures, refused):
    difference, science, _ = matched
    spoilt = replace(difference, quality=replace(difference.quality, **figures))
    if refused:
        with pytest.raises(SubtractionError, match="badly fitted"):
            checked(spoilt, science, science)
    else:
        assert checked(spoilt, science, science) is spoilt


@pytest.mark.parametrize("method", ["kernel", "zogy"])
def test_another_field_is_called_so(method):
    science, same, _ = make_pair()
    psf, elsewhere = field_psf(2.4), make_sky(seed=8)
    image = stamp_image(psf, elsewhere.x, elsewhere.y, elsewhere.flux)
    reference = plane(np.random.default_rng(4), image, psf)
    with pytest.raises(SubtractionError, match="stars of the two images do not match"):
        subtract(science, reference, method=method)
    assert disagreement(science, same) == ""
