"""Classical catalogues: SExtractor's golden numbers, and images that make trouble."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from tapetum.images import _extract_kernels as kernels
from tapetum.images.background import estimate_background
from tapetum.images.extract import SMOOTHING, Sources, extract_sources, find_objects
from tapetum.images.psf import PsfModel

SHAPE = (220, 260)


def field(rng, n=60, fwhm=2.5, noise=5.0):
    psf = PsfModel.moffat(fwhm, 3.2, SHAPE)
    x, y = (axis.ravel() for axis in np.meshgrid(np.linspace(25, 235, 10), np.linspace(25, 195, 6)))
    x, y = x[:n] + rng.uniform(-3, 3, n), y[:n] + rng.uniform(-3, 3, n)
    flux = 10 ** rng.uniform(3.0, 4.5, n)
    image = rng.normal(0, noise, SHAPE)
    for stamp, a, b, f in zip(psf.stamps(x, y), x, y, flux, strict=True):
        row, column = int(np.floor(b + 0.5)) - psf.half, int(np.floor(a + 0.5)) - psf.half
        image[row : row + psf.size, column : column + psf.size] += f * stamp
    return image.astype(np.float32), x, y, flux


def nearest(found, x, y):
    return cKDTree(np.stack([found.x, found.y], axis=1)).query(np.stack([x, y], axis=1))


@pytest.fixture(scope="module")
def golden(real_data):
    """The real ZTF frame without its sky, its noise, and SExtractor's catalogue of it in our pixels."""
    from astropy.io import fits

    folder = real_data / "imagepairs"
    if not (folder / "ztf_zr_sextractor.fits").exists():
        pytest.skip(f"no golden catalogue in {folder}")
    with fits.open(folder / "ztf_zr_sci.fits.fz") as hdus:
        data = hdus[1].data.astype(np.float32)
    with fits.open(folder / "ztf_zr_sextractor.fits") as hdus:
        table = {name: np.array(hdus[1].data[name]) for name in hdus[1].columns.names}
    sky = estimate_background(data)
    return data - sky.level, sky, table


@pytest.mark.parametrize("noise_map", [False, True])
def test_sources_are_those_of_sextractor(golden, noise_map):
    data, sky, table = golden
    found = extract_sources(data, sky.noise if noise_map else sky.typical_noise, auto=not noise_map)
    distance, index = nearest(found, table["X_IMAGE"] - 1, table["Y_IMAGE"] - 1)
    flux_error = 5.95 * np.sqrt(np.pi * 16)  # sky noise in the aperture of 8 pixels
    wanted = (table["FLAGS"] == 0) & (table["FLUX_APER"] > 10 * flux_error)
    assert wanted.sum() > 1000
    assert (distance[wanted] < 1).mean() > 0.999
    back = cKDTree(np.stack([table["X_IMAGE"] - 1, table["Y_IMAGE"] - 1], axis=1))
    ours = (found.flags == 0) & (found.snr > 10)
    assert (back.query(np.stack([found.x, found.y], axis=1)[ours])[0] < 1).mean() > 0.999
    same = wanted & (distance < 1)
    ratio = found.flux[index[same]] / table["FLUX_APER"][same]
    assert np.median(np.abs(ratio - 1)) < 0.01
    assert np.median(np.abs(found.a[index[same]] - table["A_IMAGE"][same])) < 0.01
    turn = np.abs((found.theta[index[same]] - table["THETA_IMAGE"][same] + 90) % 180 - 90)
    assert np.median(turn) < 1
    assert np.nanmedian(found.fwhm[found.snr > 50]) == pytest.approx(1.6, abs=0.15)
    if not noise_map:
        kron = found.flux_auto[index[same]] / table["FLUX_AUTO"][same]
        assert np.median(np.abs(kron - 1)) < 0.03


def test_positions_fluxes_and_widths_of_isolated_stars(rng):
    image, x, y, flux = field(rng)
    found = extract_sources(image, 5.0, aperture=14.0)
    distance, index = nearest(found, x, y)
    assert (distance < 0.5).all()
    pull = (found.flux[index] - flux) / found.flux_err[index]
    assert np.median(np.abs(found.flux[index] / flux - 0.97)) < 0.05  # a Moffat profile has wings beyond
    assert np.abs(pull).max() < 15
    assert np.median(found.fwhm[index]) == pytest.approx(2.8, abs=0.4)
    assert np.isnan(found.flux_auto).all()
    assert (np.diff(np.floor(found.y)) >= -6).all()  # from the first row to the last


def test_holes_are_left_out(rng):
    image, x, y, _ = field(rng)
    mask = np.zeros(SHAPE, np.uint8)
    column, row = int(x[0] + 0.5), int(y[0] + 0.5)
    mask[row - 5 : row + 6, column - 5 : column + 6] = 2
    noise = np.full(SHAPE, 5.0, np.float32)
    noise[int(y[1] + 0.5) - 5 : int(y[1] + 0.5) + 6, int(x[1] + 0.5) - 5 : int(x[1] + 0.5) + 6] = np.inf
    image[int(y[2] + 0.5) - 5 : int(y[2] + 0.5) + 6, int(x[2] + 0.5) - 5 : int(x[2] + 0.5) + 6] = np.nan
    found = extract_sources(image, noise, mask)
    distance, _ = nearest(found, x, y)
    assert (distance[:3] > 2).all()
    assert (distance[3:] < 1).all()


def pairs(rng):
    """400 pairs of stars on noise: image, positions (brighter ones first) and fluxes."""
    shape = (840, 840)
    psf = PsfModel.moffat(2.5, 3.2, shape)
    x, y = (axis.ravel() for axis in np.meshgrid(*2 * [np.arange(30.0, 830.0, 40.0)]))
    apart, turn = rng.uniform(3.5, 8, x.size), rng.uniform(0, 2 * np.pi, x.size)
    flux = 10 ** rng.uniform(3.3, 4.5, x.size)
    x = np.concatenate([x, x + apart * np.cos(turn)]) + 0.3
    y = np.concatenate([y, y + apart * np.sin(turn)]) - 0.2
    flux = np.concatenate([flux, flux * rng.uniform(0.15, 1, flux.size)])
    image = rng.normal(0, 5, shape)
    for stamp, a, b, f in zip(psf.stamps(x, y), x, y, flux, strict=True):
        row, column = int(np.floor(b + 0.5)) - psf.half, int(np.floor(a + 0.5)) - psf.half
        image[row : row + psf.size, column : column + psf.size] += f * stamp
    return image.astype(np.float32), x, y, flux


def judged(xy, light, x, y, flux):
    """Which pairs were taken apart, and error of place and light of both stars of each."""
    distance, index = cKDTree(xy).query(np.stack([x, y], axis=1))
    n = len(x) // 2
    apart = (distance < 1.5).reshape(2, n).all(axis=0) & (index[:n] != index[n:])
    error = np.abs(light[index] / flux - np.median(light[index] / flux))
    return apart, distance.reshape(2, n), error.reshape(2, n)


def test_pairs_are_taken_apart_as_by_an_independent_program_and_measured_no_worse(rng):
    import sep

    image, x, y, flux = pairs(rng)
    theirs = sep.extract(image, 1.5, err=5.0, filter_kernel=np.array(SMOOTHING, np.float32), clean=False)
    ours = extract_sources(image, 5.0, clean=None, shapes=False)
    assert abs(len(ours) - len(theirs)) <= 0.002 * len(theirs)
    blended = (ours.flags & 2) > 0
    assert abs(blended.sum() - (theirs["flag"] & 1).sum()) <= 0.005 * blended.sum()
    distance, index = cKDTree(np.stack([theirs["x"], theirs["y"]], axis=1)).query(
        np.stack([ours.x, ours.y], axis=1)
    )
    assert (distance < 1).mean() > 0.998
    assert distance[~blended].max() < 1e-3
    for name, column in (("n_pix", "npix"), ("flux_iso", "flux"), ("a", "a"), ("b", "b"), ("peak", "peak")):
        np.testing.assert_allclose(getattr(ours, name)[~blended], theirs[column][index[~blended]], rtol=2e-4)
    apart, place, light = judged(np.stack([ours.x, ours.y], axis=1), ours.flux_iso, x, y, flux)
    apart_sep, place_sep, light_sep = judged(
        np.stack([theirs["x"], theirs["y"]], axis=1), theirs["flux"], x, y, flux
    )
    assert (apart == apart_sep).mean() > 0.995
    assert apart.sum() > 250
    for star in (0, 1):
        assert np.median(place[star, apart]) < 1.02 * np.median(place_sep[star, apart])
        assert np.median(light[star, apart]) < 1.02 * np.median(light_sep[star, apart])


def test_a_component_is_the_pixels_that_touch(rng):
    from scipy.ndimage import label

    image = rng.normal(0, 1, (150, 170)).astype(np.float32)
    found = find_objects(
        image, 1.0, threshold=1.0, min_area=4, kernel=None, deblend_contrast=1.0, clean=None, segments=True
    )
    truth, _ = label(image > 1, np.ones((3, 3)))
    area = np.bincount(truth.ravel())
    kept = np.flatnonzero(area >= 4)[1:]
    assert len(found) == len(kept) > 50
    assert (np.isin(truth, kept) == (found.segments > 0)).all()
    assert len(np.unique(np.stack([truth, found.segments])[:, found.segments > 0], axis=1).T) == len(kept)
    np.testing.assert_array_equal(np.bincount(found.segments.ravel())[1:], found.table[:, kernels.N_PIX])


@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads_gives_the_same(rng, threads):
    image, *_ = pairs(rng)
    image[100:140, 300:600] += 20  # one component for one thread alone
    one = extract_sources(image, 5.0, auto=True, gain=2.0)
    more = extract_sources(image, 5.0, auto=True, gain=2.0, threads=threads)
    for name, values in one.columns().items():
        np.testing.assert_array_equal(values, more.columns()[name], err_msg=name)
    both = [find_objects(image, 5.0, segments=True, threads=n).segments for n in (1, threads)]
    np.testing.assert_array_equal(*both)


def test_segments_are_the_pixels_of_their_rows(rng):
    image, *_ = pairs(rng)
    found = find_objects(image, 5.0, segments=True)
    assert found.segments.max() == len(found)
    pixels = np.bincount(found.segments.ravel(), minlength=len(found) + 1)[1:]
    np.testing.assert_array_equal(pixels, found.table[:, kernels.N_PIX])
    light = np.bincount(found.segments.ravel(), image.ravel())[1:]
    np.testing.assert_allclose(light, found.table[:, kernels.FLUX], rtol=1e-5)
    rows, columns = found.table[:, [kernels.PEAK_Y, kernels.PEAK_X]].astype(int).T
    np.testing.assert_array_equal(found.segments[rows, columns], np.arange(len(found)) + 1)


def test_a_frame_that_is_one_crowd_is_taken_apart(rng):
    crowded = rng.normal(0, 1, (700, 700)).astype(np.float32) + 10  # one component of half a million pixels
    found = extract_sources(crowded, 1.0, deblend_contrast=0.0, shapes=False, clean=None)
    assert found.n_pix.sum() == crowded.size
    assert len(found) > 1000
    whole = extract_sources(crowded, 1.0, shapes=False)
    assert whole.n_pix.tolist() == [crowded.size]
    assert whole.flags[0] & 8


def test_what_the_wings_of_a_bright_star_made_is_cleaned_away(rng):
    y, x = np.indices((201, 201)) - 100
    image = rng.normal(0, 5, x.shape) + 20000 * (1 + (x**2 + y**2) / 16) ** -1.5
    image[20:24, 20:24] += 60
    assert len(extract_sources(image, 5.0, clean=None)) > 20  # its wings break up into islands
    cleaned = extract_sources(image, 5.0)
    assert len(cleaned) == 2
    assert nearest(cleaned, [100, 21.5], [100, 21.5])[0].max() < 0.2


@pytest.mark.parametrize("wing", [0.7, 1.0, 3.0])
def test_cleaning_by_neighbours_is_that_of_all_pairs(rng, wing):
    image, *_ = pairs(rng)
    table = find_objects(image, 5.0, threshold=1.0, clean=None).table
    xx, xy, yy = (table[:, column] for column in (kernels.XX, kernels.XY, kernels.YY))
    light, level, area = (table[:, column] for column in (kernels.LIGHT, kernels.LEVEL, kernels.N_PIX))
    size = np.pi * np.sqrt(xx * yy - xy**2)
    core = 2 * size * np.log((level + table[:, kernels.TOP]) / (2 * level))
    summit = light / (2 * size * np.minimum((area - table[:, kernels.HALF]) / core, 1))
    slope = ((summit / level) ** (1 / wing) - 1) * size / area
    stays = np.ones(len(table), bool)
    for k in np.argsort(-light, kind="stable"):
        dx, dy = table[:, kernels.X] - table[k, kernels.X], table[:, kernels.Y] - table[k, kernels.Y]
        distance2 = (yy[k] * dx**2 - 2 * xy[k] * dx * dy + xx[k] * dy**2) / (xx[k] * yy[k] - xy[k] ** 2)
        wings = summit[k] * (1 + slope[k] * distance2) ** -wing
        lost = (light < light[k]) & (wings > kernels.FAINT_WING * level[k])
        if stays[k] and summit[k] > level[k]:
            stays &= ~(lost & (table[:, kernels.LEAST] - wings < level))
    cleaned = find_objects(image, 5.0, threshold=1.0, clean=wing).table
    assert 0 < (~stays).sum() < len(table) / 2
    assert abs(len(cleaned) - stays.sum()) <= 1  # one may sit at the limit of faint wings
    assert np.isin(cleaned[:, kernels.X], table[stays, kernels.X]).mean() > 0.998


def test_an_aperture_takes_of_each_pixel_what_is_inside(rng):
    import sep

    image, *_ = field(rng)
    found = extract_sources(image, 5.0, aperture=7.3, gain=1.7)
    theirs, error, _ = sep.sum_circle(image, found.x, found.y, 3.65, err=5.0, gain=1.7, subpix=0)
    np.testing.assert_allclose(found.flux, theirs, rtol=1e-5, atol=1e-2)
    np.testing.assert_allclose(found.flux_err, error, rtol=1e-5)
    assert (found.flags & 48 == 0).all()


def test_apertures_say_what_they_miss():
    image = np.zeros((40, 40), np.float32)
    image[0:6, 10:16] = 100
    image[20:26, 20:26] = 100
    mask = np.zeros(image.shape, np.uint8)
    mask[26, 20:26] = 1
    found = extract_sources(image, 1.0, mask, aperture=12.0, kernel=None, auto=True)
    assert (found.flags & 16 > 0).tolist() == [True, False]
    assert (found.flags & 32 > 0).tolist() == [False, True]
    assert (found.flags & 8 > 0).tolist() == [True, False]
    part = 1 - 6 / (np.pi * 36)  # the row that is masked is taken for as bright as the rest
    assert found.flux[1] == pytest.approx(3600 / part, rel=0.02)


def test_kron_flux_of_a_gaussian_is_nearly_all_of_it():
    y, x = np.indices((121, 121))
    image = (1000 * np.exp(-0.5 * ((x - 60.2) ** 2 / 25 + (y - 59.7) ** 2 / 9))).astype(np.float32)
    found = extract_sources(image, 1.0, auto=True)
    assert found.flux_auto[0] == pytest.approx(2 * np.pi * 15 * 1000, rel=0.02)
    assert (found.x[0], found.y[0]) == (pytest.approx(60.2, abs=0.01), pytest.approx(59.7, abs=0.01))
    assert found.fwhm[0] == pytest.approx(2.3548 * np.sqrt(15), rel=0.01)
    assert found.angle_deg[0] % 180 == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("dtype", [">f4", "<i2", "f8"])
def test_any_dtype_and_an_empty_sky(dtype):
    found = extract_sources(np.zeros((64, 64), dtype), 1.0, auto=True)
    assert len(found) == 0
    assert isinstance(found[found.snr > 3], Sources)


def test_arrays_that_cannot_be_written_and_lie_anyhow_give_the_same(rng):
    image, *_ = field(rng)
    noise, mask = np.full(SHAPE, 5.0), np.zeros(SHAPE, np.int16)
    mask[100:110] = 256
    odd = np.asfortranarray(image)
    for array in (odd, noise, mask):
        array.flags.writeable = False
    one, two = extract_sources(odd, noise, mask), extract_sources(image, 5.0, mask.astype(bool))
    for name, values in one.columns().items():
        np.testing.assert_array_equal(values, two.columns()[name], err_msg=name)


@pytest.mark.parametrize("shape", [(1, 200), (200, 1), (2, 2), (1, 1)])
def test_narrow_images(shape):
    image = np.zeros(shape, np.float32)
    image.ravel()[: min(20, image.size)] = 100
    found = find_objects(image, 1.0, kernel=np.ones((4, 5)), min_area=1, segments=True)
    assert len(found) == 1
    assert found.segments.ravel()[0] == 1
    assert extract_sources(image, 1.0, min_area=1, auto=True).flags[0] & 8


def test_selection_keeps_the_columns_together(rng):
    image, *_ = field(rng)
    found = extract_sources(image, 5.0)
    bright = found[found.flux > np.median(found.flux)]
    assert 0 < len(bright) < len(found)
    assert all(len(values) == len(bright) for values in bright.columns().values())
    assert len(found[3]) == 1


@pytest.mark.parametrize(
    ("noise", "mask", "threshold"),
    [
        (0.0, None, 1.5),
        (1.0, None, -1.0),
        (1.0, np.zeros((3, 3), np.uint8), 1.5),
        (np.ones((3, 3)), None, 1.5),
    ],
)
def test_nonsense_is_refused(noise, mask, threshold):
    with pytest.raises(ValueError, match=r"positive|one shape"):
        extract_sources(np.zeros((30, 30), np.float32), noise, mask, threshold=threshold)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_area": 0},
        {"aperture": -1.0},
        {"threads": 0},
        {"kernel": np.zeros((3, 3))},
        {"kernel": [1.0, 2.0]},
    ],
)
def test_nonsense_options_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must be positive|kernel of two dimensions"):
        extract_sources(np.zeros((30, 30), np.float32), 1.0, **wrong)
