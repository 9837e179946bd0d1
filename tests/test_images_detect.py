"""Detection on differences: the filter against a slow truth, silent noise, sources, trails, comets, artefacts."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from tapetum.images import _detect_kernels as kernels
from tapetum.images.detect import Detections, Note, detect_difference
from tapetum.images.frame import Bad
from tapetum.images.psf import PsfModel
from tapetum.images.shapes import weighted_plane
from tapetum.images.significance import PsfField, segments_of, significance_map

SHAPE = (384, 400)
NOISE = 8.0


def moffat(fwhm=2.2, shape=SHAPE):
    return PsfModel.moffat(fwhm, 3.2, shape)


def with_stars(psf, x, y, flux, shape=SHAPE):
    image = np.zeros((shape[0] + 2 * psf.half, shape[1] + 2 * psf.half))
    for stamp, a, b, f in zip(psf.stamps(x, y), x, y, np.broadcast_to(flux, np.shape(x)), strict=True):
        row, column = int(np.floor(b + 0.5)), int(np.floor(a + 0.5))
        image[row : row + psf.size, column : column + psf.size] += f * stamp
    return image[psf.half : -psf.half, psf.half : -psf.half]


def with_line(psf, x0, y0, length, angle_deg, flux):
    n = int(8 * length)
    along = ((np.arange(n) + 0.5) / n - 0.5) * length
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    x, y = x0 + along * c, y0 + along * s
    inside = (x > 0) & (y > 0) & (x < SHAPE[1] - 1) & (y < SHAPE[0] - 1)
    return with_stars(psf, x[inside], y[inside], flux / n)


def search(rng, image, psf=None, *, mask=None, gain=6.0, **options):
    """Noise added, then searched."""
    sigma = np.sqrt(NOISE**2 + np.abs(image) / gain)
    data = (image + rng.normal(0, 1, image.shape) * sigma).astype(np.float32)
    return detect_difference(data, sigma.astype(np.float32), mask, psf or moffat(), **options)


def sigma_of(psf, flux):
    """Flux [DN] of so many sigma, limited by the sky."""
    return flux * NOISE * np.sqrt(psf.neff(200, 200))


# ---- the filter ----------------------------------------------------------------------------------------------------


def test_the_filter_is_the_sum_of_its_definition(rng):
    data = rng.normal(0, 1, (40, 45)).astype(np.float32)
    noise = rng.uniform(0.5, 2, data.shape).astype(np.float32)
    mask = (rng.random(data.shape) < 0.1).astype(np.uint8)
    data[5, 5], noise[9, 9] = np.nan, 0
    stars = rng.random((3, 3, 5, 5)).astype(np.float32)
    plane = weighted_plane(data, noise, mask, 2)
    snr = np.empty(data.shape, np.float32)
    kernels.matched_filter(plane.weighted, plane.weight, stars, 16, 0, 40, snr)
    usable = (mask == 0) & np.isfinite(data) & (noise > 0)
    for y, x in [(0, 0), (5, 6), (9, 8), (20, 15), (20, 16), (39, 44), (31, 33)]:
        top = bottom = 0.0
        star = stars[min(y // 16, 2), min(x // 16, 2)]
        for j in range(-2, 3):
            for i in range(-2, 3):
                if 0 <= y + j < 40 and 0 <= x + i < 45 and usable[y + j, x + i]:
                    p, v = float(star[j + 2, i + 2]), float(noise[y + j, x + i]) ** 2
                    top += p * float(data[y + j, x + i]) / v
                    bottom += p * p / v
        assert snr[y, x] == pytest.approx(top / np.sqrt(bottom), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize("wrong", [0.5, 1.0, 3.0])
def test_the_map_is_calibrated_by_its_own_scatter(rng, correlated, wrong):
    """Remapped images have correlated noise, and noise maps may be wrong: the map has unit scatter all the same."""
    data = rng.normal(0, NOISE, SHAPE) * np.linspace(0.9, 1.2, SHAPE[1])
    data = gaussian_filter(data, 0.8) if correlated else data
    field = PsfField.of(moffat(), SHAPE)
    plane = weighted_plane(
        data.astype(np.float32) + 3, np.full(SHAPE, wrong * NOISE, np.float32), None, field.half
    )
    for factor in (1, 2):
        found = significance_map(plane, field, factor, 1)
        for part in np.array_split(found.snr, 3, axis=1):
            assert part.std() == pytest.approx(1, abs=0.12)
            assert part.mean() == pytest.approx(0, abs=0.15)
        plane = plane.halved()


def test_halving_keeps_the_sums(rng):
    plane = weighted_plane(
        rng.normal(0, 1, (31, 33)).astype(np.float32), np.ones((31, 33), np.float32), None, 3
    )
    coarse = plane.halved()
    assert coarse.shape == (16, 17)
    assert coarse.weight.sum() == pytest.approx(31 * 33)
    assert coarse.weighted.sum() == pytest.approx(plane.weighted.sum(), abs=1e-3)


def test_segments_split_at_deep_saddles_only(rng):
    psf = moffat(2.5, (100, 100))
    field = PsfField.of(psf, (100, 100))
    image = with_stars(psf, [30, 30, 70, 77.5], [50, 53, 50, 50], sigma_of(psf, 40.0), (100, 100))
    plane = weighted_plane(image.astype(np.float32), np.full((100, 100), NOISE, np.float32), None, field.half)
    found = significance_map(plane, field, 1, 1)
    raw = replace(found, snr=found.snr * 0)
    kernels.matched_filter(plane.weighted, plane.weight, field.kernels, 256, 0, 100, raw.snr)
    segments = segments_of(raw, 3.0, 5.0, both_signs=True)
    bright = segments.snr > 20
    assert bright.sum() == 3  # the two at 3 pixels are one, those at 7.5 pixels are two
    assert segments.blended[bright & (segments.x > 50)].all()
    assert (segments.n_low >= segments.n_over).all()


# ---- what is found -------------------------------------------------------------------------------------------------


def test_noise_alone_is_silent():
    """Peaks of a Gaussian field: 30 beyond 4 sigma of either sign in 800 x 800 pixels, one beyond 5, 0.1 beyond 5.5."""
    psf = moffat(shape=(800, 800))
    signs = []
    for seed, smooth in ((1, 0.0), (2, 0.0), (3, 0.7), (4, 0.7)):
        data = np.random.default_rng(seed).normal(0, 1, (800, 800))
        data = (gaussian_filter(data, smooth) if smooth else data).astype(np.float32)
        found = detect_difference(data, np.full_like(data, data.std()), None, psf, threshold=4.0)
        assert 10 < len(found) < 60
        assert (found.snr > 5.5).sum() <= 1
        assert not found.has(Note.TRAIL).any()
        signs += found.sign.tolist()
    assert 0.35 < np.mean(np.array(signs) > 0) < 0.65


def test_points_of_both_signs_are_found_and_measured(rng):
    psf = moffat()
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(25, 380, 27.0), np.arange(25, 370, 26.0)))
    x, y = x + rng.uniform(-4, 4, x.size), y + rng.uniform(-4, 4, x.size)
    snr = np.exp(rng.uniform(np.log(3), np.log(400), x.size)) * rng.choice([-1, 1], x.size)
    found = search(rng, with_stars(psf, x, y, sigma_of(psf, snr)), psf)
    distance, index = cKDTree(np.stack([found.x, found.y], axis=1)).query(np.stack([x, y], axis=1))
    hit = distance < 1.5
    assert hit[np.abs(snr) > 7].all()
    assert hit[(np.abs(snr) > 5.5)].mean() > 0.95
    assert len(found) <= hit.sum() + 1
    one = found[index[hit]]
    assert (one.sign == np.sign(snr[hit])).all()
    pull = (one.flux - sigma_of(psf, snr[hit])) / one.flux_err
    assert pull.std() == pytest.approx(1, abs=0.2)
    bright = np.abs(snr[hit]) > 60
    assert distance[hit][bright].max() < 0.1
    assert np.median(one.chi2) == pytest.approx(1, abs=0.1)
    assert one.fwhm_pix[bright] == pytest.approx(one.fwhm_psf_pix[bright], rel=0.1)
    assert one.sharpness[bright] == pytest.approx(1, abs=0.1)
    assert not (one[bright].flags & ~int(Note.EDGE)).any()
    assert (np.diff(found.snr) <= 0).all()


def test_the_result_does_not_depend_on_threads(rng):
    psf = moffat()
    x, y = rng.uniform(5, 395, 60), rng.uniform(5, 380, 60)
    image = with_stars(psf, x, y, 3000.0) + with_line(psf, 200, 200, 60, 30, 30000)
    one, two = (search(np.random.default_rng(4), image, psf, threads=threads) for threads in (1, 3))
    for name, values in one.columns().items():
        np.testing.assert_array_equal(values, getattr(two, name))


def test_one_sign_only_when_asked(rng):
    psf = moffat()
    image = with_stars(psf, [100.0, 200.0], [100.0, 200.0], [5000.0, -5000.0])
    assert search(rng, image, both_signs=False).sign.tolist() == [1]
    assert sorted(search(rng, image).sign.tolist()) == [-1, 1]


def test_the_psf_of_the_place_is_used(rng):
    """Stars that widen over the field: a filter that knows it fits them everywhere."""
    xs, ys = (axis.ravel() for axis in np.meshgrid(np.linspace(0, 799, 7), np.linspace(0, 299, 3)))
    stamps = [PsfModel.moffat(2.0 + 2.0 * a / 800, 3.2, (300, 800), half=14).centred(0, 0) for a in xs]
    psf = PsfModel.from_stamps(xs, ys, stamps, (300, 800), order=2)
    x, y = np.linspace(40, 760, 20), np.tile([80.0, 150.0, 220.0, 150.0], 5)
    found = search(rng, with_stars(psf, x, y, 8000.0, (300, 800)), psf)
    found = found[found.snr > 10]
    assert len(found) == 20
    assert np.abs(found.flux / 8000 - 1).max() < 0.15
    left, right = found.x < 250, found.x > 550
    assert found.fwhm_psf_pix[right].mean() > found.fwhm_psf_pix[left].mean() + 0.8
    assert found.fwhm_pix == pytest.approx(found.fwhm_psf_pix, rel=0.25)


@pytest.mark.parametrize(
    ("length", "angle", "density"), [(7.0, 80.0, 900.0), (15.0, 170.0, 500.0), (60.0, 35.0, 200.0)]
)
def test_a_streak_is_one_detection_with_its_ends(rng, length, angle, density):
    psf = moffat()
    found = search(rng, with_line(psf, 180.4, 200.7, length, angle, density * length), psf)
    assert len(found) == 1
    assert found.has(Note.TRAIL)[0]
    assert found.length_pix[0] == pytest.approx(length, abs=1.2)
    assert abs((found.angle_deg[0] - angle + 90) % 180 - 90) < 3
    assert np.hypot(found.x[0] - 180.4, found.y[0] - 200.7) < 0.5
    assert found.flux[0] == pytest.approx(density * length, rel=0.06)
    ends = np.array([[found.x1[0], found.y1[0]], [found.x2[0], found.y2[0]]])
    assert ends.mean(axis=0) == pytest.approx([found.x[0], found.y[0]])


def test_a_faint_streak_below_the_threshold_of_its_pixels(rng):
    psf = moffat()
    faint = with_line(psf, 200, 200, 70, 25, 70 * 55.0)
    found = search(rng, faint, psf)
    assert len(found) == 1
    assert found.snr[0] > 8
    without = search(rng, faint, psf, trails=False)
    assert (without.length_pix == 0).all()
    assert without.snr.max(initial=0) < found.snr[0]


def test_a_satellite_through_the_frame_and_gaps_is_one_trail(rng):
    psf = moffat()
    image = with_line(psf, 200, 190, 700, 33.0, 700 * 150.0)
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, 95:104] = int(Bad.DEFECT)
    mask[:, 250:270] = int(Bad.DEFECT)
    found = search(rng, image, psf, mask=mask)
    assert len(found) == 1
    assert found.length_pix[0] > 380
    assert found.angle_deg[0] == pytest.approx(33, abs=0.3)


def coma(x0, y0, flux, slope=1.2, reach=9.0):
    y, x = np.indices(SHAPE)
    rho = np.maximum(np.hypot(x - x0, y - y0), 0.5)
    light = rho**-slope * np.exp(-((rho / reach) ** 2))
    return gaussian_filter(flux * light / light.sum(), 0.95)


def test_a_comet_with_a_tail_is_one_extended_detection_at_its_head(rng):
    tail = sum(
        coma(200.3 + 4 * k * 0.87, 150.6 + 4 * k * 0.5, 900 * np.exp(-k / 5), 0.5, 4.0 + k / 3)
        for k in range(1, 12)
    )
    found = search(rng, coma(200.3, 150.6, 15000) + tail)
    near = np.hypot(found.x - 200.3, found.y - 150.6)
    assert near.min() < 1
    assert (near < 8).sum() == 1
    assert found.has(Note.EXTENDED)[near.argmin()]
    assert not found.has(Note.TRAIL).any()


def test_wide_filters_find_what_the_psf_does_not(rng):
    y, x = np.indices(SHAPE)
    diffuse = 14.0 * np.exp(-0.5 * ((x - 150.0) ** 2 + (y - 220.0) ** 2) / 3.5**2)
    seed = 11
    narrow = search(np.random.default_rng(seed), diffuse, n_scales=1)
    wide = search(np.random.default_rng(seed), diffuse)
    assert len(wide) == 1
    assert np.hypot(wide.x[0] - 150, wide.y[0] - 220) < 2.5
    assert wide.scale[0] > 1
    assert wide.snr[0] > 1.2 * narrow.snr.max(initial=5.0)


# ---- positions and fluxes --------------------------------------------------------------------------------------------


def scattered_stars(rng, fwhm, step=30):
    """Stars of 15 to 1000 sigma on a loose grid, at any place within their pixels; the PSF, x, y, flux."""
    psf = moffat(fwhm)
    x, y = np.meshgrid(np.arange(25, SHAPE[1] - 20, step), np.arange(25, SHAPE[0] - 20, step))
    x, y = (axis.ravel() + rng.uniform(-0.5, 0.5, axis.size) for axis in (x, y))
    return psf, x, y, sigma_of(psf, rng.permutation(np.geomspace(15, 1000, x.size)))


@pytest.mark.parametrize("fwhm", [1.0, 1.2, 1.5, 2.5, 6.0])
def test_positions_and_fluxes_are_as_good_as_the_light_allows(rng, fwhm):
    psf, x, y, flux = scattered_stars(rng, fwhm, 60 if fwhm > 5 else 30)
    found = search(rng, with_stars(psf, x, y, flux), psf)
    off, nearest = cKDTree(np.stack([found.x, found.y], axis=1)).query(np.stack([x, y], axis=1))
    found = found[nearest]
    assert off.max() < 1
    # a Gaussian's error is its FWHM / 2.355 over the signal-to-noise ratio along each axis; five in two dimensions
    clear = found.flux / found.flux_err
    assert (off * clear < 5 * found.fwhm_psf_pix / 2.355).all()
    assert off[clear > 150].max() < 0.05
    ratio = found.flux[clear > 50] / flux[clear > 50]
    assert np.median(ratio) == pytest.approx(1, abs=0.01)
    assert not found.has(Note.NO_FIT | Note.BAD_FIT | Note.EXTENDED | Note.SHARP).any()
    assert np.median(found.chi2) == pytest.approx(1, abs=0.2)


def test_stars_beside_each_other_keep_their_light(rng):
    """Pairs 2.5 to 4.5 FWHM apart: the light of the one is not that of the other, and two stars are no wide one."""
    psf = moffat(2.5)
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(40.3, 370, 60), np.arange(40.2, 350, 50)))
    apart, turn = np.linspace(6.5, 11, len(x)), np.linspace(0, 6, len(x))
    bright, faint = sigma_of(psf, 200.0), sigma_of(psf, 60.0)
    x2, y2 = x + apart * np.cos(turn), y + apart * np.sin(turn)
    image = with_stars(psf, x, y, bright) + with_stars(psf, x2, y2, faint)
    found = search(rng, image, psf)
    for at_x, at_y, flux in ((x, y, bright), (x2, y2, faint)):
        off, nearest = cKDTree(np.stack([found.x, found.y], axis=1)).query(np.stack([at_x, at_y], axis=1))
        near = found[nearest]
        assert off.max() < 0.3
        assert near.flux == pytest.approx(np.full(len(x), flux), rel=0.12)
        assert np.median(near.flux) == pytest.approx(flux, rel=0.02)
        assert not near.has(Note.EXTENDED).any()


@pytest.mark.parametrize("slope", [1.0, 1.4])
def test_the_light_of_a_comet_is_that_of_all_of_it(rng, slope):
    """Also when its head is so sharp that the filter of a star sees it best."""
    flux = 15000.0
    found = search(rng, coma(200.3, 150.6, flux, slope))
    assert len(found) == 1
    assert found.has(Note.EXTENDED)[0]
    assert found.flux[0] == pytest.approx(flux, abs=4 * found.flux_err[0] + 0.05 * flux)
    assert 0.01 * flux < found.flux_err[0] < 0.1 * flux


def test_an_aperture_ends_where_something_else_begins(rng):
    psf = moffat()
    image = coma(200.3, 150.6, 15000.0)
    alone = search(np.random.default_rng(5), image)
    beside = search(np.random.default_rng(5), image + with_stars(psf, [212.0], [150.0], 30000.0))
    comet = beside[np.hypot(beside.x - 200.3, beside.y - 150.6) < 2]
    assert len(comet) == 1
    assert comet.flux[0] == pytest.approx(alone.flux[0], rel=0.1)


def test_a_sharp_survey_image_is_measured_as_sextractor_does(real_data):
    """ZTF with 1.3 pixels of seeing, whose wings lean: the centre of light moves by 0.1 with the isophote."""
    from astropy.io import fits

    from tapetum.images.fits import read_frame
    from tapetum.pipelines.search_steps import compare, prepare

    path = real_data / "imagepairs" / "ztf_zr_sci.fits.fz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    frame = read_frame(path)
    inner = np.s_[:1500, :1500]
    frame = replace(frame, data=frame.data[inner].copy(), mask=frame.mask[inner].copy(), variance=None)
    part = compare(prepare(frame), None)
    found = detect_difference(part.data, part.noise, part.mask, part.psf, both_signs=False)
    with fits.open(path.with_name("ztf_zr_sextractor.fits")) as hdus:
        golden = next(hdu.data for hdu in hdus if isinstance(hdu, fits.BinTableHDU))
    off, nearest = cKDTree(np.stack([golden["X_IMAGE"] - 1, golden["Y_IMAGE"] - 1], axis=1)).query(
        np.stack([found.x, found.y], axis=1)
    )
    golden = golden[nearest]
    bad = found.has(Note.MASKED | Note.SATURATED | Note.EXTENDED | Note.BLENDED)
    clean = (off < 1) & (found.flux > 20 * found.flux_err) & (golden["FLAGS"] == 0) & ~bad
    assert clean.sum() > 600
    shift = [
        np.median((ours - theirs + 1)[clean])
        for ours, theirs in ((found.x, golden["X_IMAGE"]), (found.y, golden["Y_IMAGE"]))
    ]
    assert np.hypot(*shift) < 0.1
    scatter = np.hypot(
        (found.x - golden["X_IMAGE"] + 1)[clean] - shift[0],
        (found.y - golden["Y_IMAGE"] + 1)[clean] - shift[1],
    )
    assert np.median(scatter) < 0.1
    magnitude = -2.5 * np.log10(
        found.flux[clean] / np.asarray(golden["FLUX_APER"]).reshape(len(golden), -1)[clean, 0]
    )
    assert abs(np.median(magnitude)) < 0.03
    assert found.has(Note.NO_FIT).mean() < 0.01
    assert (found.x == np.rint(found.x)).mean() < 0.01


# ---- what is to be known of it -------------------------------------------------------------------------------------


def test_cosmic_rays_are_sharp_and_stars_are_not(rng):
    psf = moffat(2.5)
    image = with_stars(psf, [100.0, 300.3], [100.0, 300.4], 4000.0)
    sigma = np.full(SHAPE, NOISE, np.float32)
    data = (image + rng.normal(0, NOISE, SHAPE)).astype(np.float32)
    data[200, 200] += 900
    for k in range(9):
        data[50 + k, 250 + k // 2] += 500
    found = detect_difference(data, sigma, None, psf)
    sharp = found[found.has(Note.SHARP)]
    assert len(found) == 4
    assert sorted(np.round(sharp.x / 50).tolist()) == [4, 5]
    assert (sharp.sharpness > 1.5).all()


def test_a_dipole_says_so(rng):
    psf = moffat()
    found = search(
        rng, with_stars(psf, [100.0, 103.0, 250.0], [100.0, 100.0, 250.0], [6000.0, -6000.0, 6000.0])
    )
    alone = found[found.x > 200]
    pair = found[found.x < 200]
    assert len(pair) == 2
    assert pair.has(Note.DIPOLE).all()
    assert not alone.has(Note.DIPOLE).any()
    assert (pair.dipole > 0.5).all()
    assert (pair.negative_fraction > alone.negative_fraction[0]).all()


def test_masked_saturated_and_edge_are_noted(rng):
    psf = moffat()
    mask = np.zeros(SHAPE, np.uint8)
    mask[100, 90:110] = int(Bad.DEFECT)
    mask[203:206, 200:203] = int(Bad.SATURATED)
    mask[298:305, 298:305] = int(Bad.NO_DATA)
    image = with_stars(psf, [100.0, 200.0, 300.0, 1.0, 50.0], [100.0, 200.0, 301.0, 250.0, 350.0], 20000.0)
    image[mask != 0] = 1e7
    found = search(rng, image, psf, mask=mask)
    by_x = {round(float(x) / 50): Note(int(flags)) for x, flags in zip(found.x, found.flags, strict=True)}
    assert Note.MASKED in by_x[2]
    assert Note.SATURATED in by_x[4]
    assert 6 not in by_x or Note.MASKED in by_x[6]  # its core is gone: not found, or said to be masked
    assert Note.EDGE in by_x[0]
    assert by_x[1] == Note(0)


def test_nan_and_infinite_noise_do_not_spread(rng):
    psf = moffat()
    data = (with_stars(psf, [100.0], [100.0], 5000.0) + rng.normal(0, NOISE, SHAPE)).astype(np.float32)
    noise = np.full(SHAPE, NOISE, np.float32)
    data[200:300, 200:300] = np.nan
    data[300:310, 10:50] = 1e30
    noise[300:310, 10:50] = np.inf
    noise[320:330, 10:50] = 0
    found = detect_difference(data, noise, None, psf)
    assert len(found) == 1
    assert np.isfinite([found.flux[0], found.flux_err[0], found.chi2[0]]).all()


@pytest.mark.parametrize("shape", [(20, 20), (9, 70), (130, 257)])
def test_small_and_odd_shapes(rng, shape):
    psf = moffat(shape=shape)
    y, x = shape[0] / 2 - 0.7, shape[1] / 2 + 0.2
    found = search(rng, with_stars(psf, [x], [y], 8000.0, shape), psf)
    assert len(found) >= 1
    assert np.hypot(found.x[0] - x, found.y[0] - y) < 0.3


def test_nothing_usable_gives_nothing():
    empty = detect_difference(
        np.zeros(SHAPE, np.float32), np.ones(SHAPE, np.float32), np.ones(SHAPE, np.uint8), moffat()
    )
    assert len(empty) == 0
    assert len(empty[empty.snr > 3]) == 0
    flat = detect_difference(np.zeros(SHAPE, np.float32), np.ones(SHAPE, np.float32), None, moffat())
    assert isinstance(flat, Detections)
    assert len(flat) == 0


def test_nonsense_is_refused():
    plane = np.zeros((30, 30), np.float32)
    with pytest.raises(ValueError, match="threshold"):
        detect_difference(plane, plane + 1, None, moffat(), threshold=0)
    with pytest.raises(ValueError, match="one shape"):
        detect_difference(plane, np.ones((30, 31), np.float32), None, moffat())


# ---- simulated pairs -----------------------------------------------------------------------------------------------


def difference_of(folder, number):
    """Our own subtraction of a simulated pair, and its truth."""
    from astropy.io import fits

    from tapetum.images.background import estimate_background
    from tapetum.images.frame import FrameInfo
    from tapetum.images.psf import measure_psf
    from tapetum.images.subtract import Plane, subtract

    planes = []
    with fits.open(folder / f"sim_dev{number}_msk.fits.fz") as hdus:
        bad = (hdus[1].data != 0).astype(np.uint8) * np.uint8(Bad.DEFECT)
    for kind in ("sci", "ref"):
        with fits.open(folder / f"sim_dev{number}_{kind}.fits.fz") as hdus:
            header, data = hdus[1].header, hdus[1].data.astype(np.float32)
        mask = bad.copy() if kind == "sci" else np.zeros_like(bad)
        mask[data > 0.9 * header["SATURATE"]] |= np.uint8(Bad.SATURATED)
        sky = estimate_background(data, mask)
        info = FrameInfo(gain=header["GAIN"], saturation=0.9 * header["SATURATE"])
        psf = measure_psf(data, sky, mask, info)
        planes.append(Plane(data - sky.level, sky.noise, mask, header["GAIN"], info.saturation, psf))
    truth = json.loads((folder / f"sim_dev{number}_truth.json").read_text())
    return subtract(*planes), [entry for entry in truth if entry["kind"] != "satellite"]


def test_a_simulated_pair_is_searched_well(real_data):
    """Better than the baseline of HOTPANTS and sep at 1.5 sigma, and with fewer false detections."""
    folder = real_data / "imagepairs"
    if not (folder / "sim_dev0_sci.fits.fz").exists():
        pytest.skip(f"no simulated pairs in {folder}")
    made, truth = difference_of(folder, 0)
    found = detect_difference(made.data, made.noise, made.mask, made.psf)
    found = found[found.sign > 0]
    tree = cKDTree(np.stack([found.x, found.y], axis=1))
    explained = np.zeros(len(found), bool)
    hits: dict[str, list[bool]] = {"point": [], "faint": [], "comet": [], "streak": []}
    for entry in truth:
        reach = {"point": 3.0, "comet": 5.0, "streak": 3.0}[entry["kind"]]
        near = tree.query_ball_point([entry["x"], entry["y"]], reach)
        explained[tree.query_ball_point([entry["x"], entry["y"]], reach + entry.get("length", 0) / 2)] = True
        if made.mask[round(entry["y"]), round(entry["x"])]:
            continue
        faint = entry["mag"] > (20 if entry["kind"] == "point" else 19) and entry["kind"] != "streak"
        kind = "faint" if faint else entry["kind"]
        hits[kind].append(bool(near))
        if entry["kind"] == "streak":
            lines = [k for k in near if found.has(Note.TRAIL)[k]]
            assert len(lines) == 1
            assert found.length_pix[lines[0]] == pytest.approx(entry["length"], abs=1.5)
            assert abs((found.angle_deg[lines[0]] - entry["angle"] + 90) % 180 - 90) < 3
    assert np.mean(hits["point"]) >= 0.98
    assert np.mean(hits["faint"]) >= 0.55
    assert np.mean(hits["comet"]) == 1
    assert np.mean(hits["streak"]) == 1
    assert (~explained).sum() <= 30
    left = found[~explained]
    assert (~left.has(Note.SHARP | Note.TRAIL | Note.EXTENDED | Note.BAD_FIT)).sum() <= 5


# ---- the verb ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A frame with stars, a difference, and a file that is no image."""
    from astropy.io import fits
    from astropy.wcs import WCS

    rng = np.random.default_rng(8)
    folder = tmp_path_factory.mktemp("night")
    psf = PsfModel.moffat(2.6, 3.2, SHAPE)
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(20, 380, 24.0), np.arange(20, 370, 24.0)))
    x, y = x + rng.uniform(-5, 5, x.size), y + rng.uniform(-5, 5, x.size)
    stars = with_stars(psf, x, y, 10 ** rng.uniform(3, 4.5, x.size))
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.0, 20.0], [200, 190]
    wcs.wcs.cdelt = [-2.8e-4, 2.8e-4]
    header = wcs.to_header()
    header.update({"GAIN": 4.0, "MAGZP": 26.0, "SATURATE": 60000.0, "EXPTIME": 30.0})
    new = with_stars(psf, [100.0, 300.0], [150.0, 250.0], [4000.0, -4000.0])
    for name, light, sky in (("science", stars, 200.0), ("diff", new, 0.0)):
        data = light + sky + rng.normal(0, NOISE, SHAPE)
        fits.writeto(folder / f"{name}.fits", data.astype(np.float32), header)
    (folder / "broken.fits").write_bytes(b"SIMPLE = nothing of the kind")
    return folder, np.stack([x, y], axis=1)


def verb(*arguments):
    """The verb as the command runs it; (error, what it printed)."""
    import typer
    from typer.testing import CliRunner

    from tapetum.cli.images_detect import detect

    app = typer.Typer(rich_markup_mode=None)
    app.command()(detect)
    result = CliRunner().invoke(app, [str(part) for part in arguments])
    return result.exception, result.stdout


def read(path):
    from astropy.table import Table

    return Table.read(path)


@pytest.mark.parametrize("options", [(), ("--psf",)])
def test_a_catalogue_has_the_stars_with_units(images, tmp_path, options):
    folder, truth = images
    error, _ = verb(folder / "science.fits", "-o", tmp_path / "a.ecsv", *options)
    assert error is None
    table = read(tmp_path / "a.ecsv")
    distance, _ = cKDTree(np.stack([table["x"], table["y"]], axis=1)).query(truth)
    assert (distance < 1).mean() > 0.97
    assert (str(table["ra"].unit), str(table["mag"].unit), str(table["fwhm"].unit)) == ("deg", "mag", "pix")
    assert table["mag"].max() < 22
    assert np.abs(table["ra"] - 150).max() < 0.1
    assert table.meta["threshold"] == ("5" if options else "1.5")
    wanted = {
        "x",
        "y",
        "ra",
        "dec",
        "flux",
        "flux_err",
        "mag",
        "mag_err",
        "snr",
        "fwhm",
        "elongation",
        "angle_deg",
    }
    assert wanted | {"n_pix", "flags"} <= set(table.colnames)


def test_a_difference_needs_a_psf_and_gives_both_signs(images, tmp_path):
    from tapetum.core.errors import InputError, UsageError

    folder, _ = images
    diff = folder / "diff.fits"
    error, _ = verb(diff, "--difference", "-o", tmp_path / "a.csv")
    assert isinstance(error, InputError)
    for options in (("--psf-of", folder / "science.fits"), ("--fwhm", 2.8)):
        error, text = verb(diff, "--difference", *options, "-o", "-")
        assert error is None
        rows = text.splitlines()
        assert rows[0].startswith("x,y,ra,dec,flux,flux_err,mag,mag_err,snr,sign")
        assert sorted(float(row.split(",")[9]) for row in rows[1:] if float(row.split(",")[8]) > 10) == [
            -1,
            1,
        ]
    assert isinstance(verb(diff, "--fwhm", 3, "-o", tmp_path / "b.csv")[0], UsageError)
    assert isinstance(verb(diff, "--difference", "--psf", "-o", tmp_path / "b.csv")[0], UsageError)


def test_one_table_per_image_resumed_and_named_when_one_fails(images, tmp_path):
    from tapetum.core.errors import PartialFailureError, UsageError

    folder, _ = images
    good, out = folder / "science.fits", tmp_path / "tables"
    error, _ = verb(good, folder / "broken.fits", "-o", out, "--format", "csv")
    assert isinstance(error, PartialFailureError)
    made = out / "science.sources.csv"
    assert {path.name for path in out.iterdir()} == {made.name, f"{made.name}.settings.toml"}
    first = made.stat().st_mtime_ns
    assert verb(good, "-o", out, "--format", "csv")[0] is None
    assert made.stat().st_mtime_ns == first
    assert verb(good, "-o", out, "--format", "csv", "--threshold", 3)[0] is None
    assert made.stat().st_mtime_ns > first
    made.write_text("mine")
    assert verb(good, "-o", out, "--format", "csv", "--threshold", 3, "--overwrite")[0] is None
    assert made.read_text() != "mine"
    assert isinstance(verb(good, folder / "diff.fits", "-o", tmp_path / "x.ecsv")[0], UsageError)
    assert isinstance(verb(good, "-o", tmp_path / "x.txt")[0], UsageError)
