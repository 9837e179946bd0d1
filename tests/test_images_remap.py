"""The remapper against exact WCS, against stars whose truth is a formula, and against SWarp's result."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import typer
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS, FITSFixedWarning
from typer.testing import CliRunner

from tapetum.cli.images_align import align as align_command
from tapetum.core.errors import InputError, PartialFailureError, UsageError
from tapetum.images.fits import read_frame
from tapetum.images.frame import Bad, Frame, FrameInfo
from tapetum.images.pixelmap import covered, map_pixels, pixel_to_pixel
from tapetum.images.remap import align, remap

SIDE = 300
FWHM = 2.0  # pixel: as sharp as survey images get
SIGMA = FWHM / 2.3548


def tan_wcs(n=SIDE, scale=1.0, angle=0.0, shift=(0.0, 0.0), ra=58.0, dec=35.7, kind="TAN") -> WCS:
    """Scale in arcsec, angle in degrees, shift of the centre in pixels."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [f"RA---{kind}", f"DEC--{kind}"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [(n + 1) / 2 + shift[0], (n + 1) / 2 + shift[1]]
    turn = np.deg2rad(angle)
    matrix = np.array([[-np.cos(turn), np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    wcs.wcs.cd = scale / 3600 * matrix
    wcs.wcs.set()
    return wcs


def tpv_wcs(n=SIDE, strength=1.0, **place) -> WCS:
    """A quadrant's distortion, made stronger so that a small image shows it."""
    header = tan_wcs(n, **place).to_header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TPV", "DEC--TPV"
    terms = {0: -4e-5, 1: 1.00004, 2: 9e-5, 4: 0.02, 5: 0.011, 6: 0.015, 7: -0.3, 8: 0.02, 9: -0.2, 10: 0.05}
    for axis, sign in ((1, 1.0), (2, -0.7)):
        for k, value in terms.items():
            header[f"PV{axis}_{k}"] = value if k < 4 else value * strength * sign
    return WCS(header)


def sip_wcs(n=SIDE, strength=1.0, **place) -> WCS:
    wcs = tan_wcs(n, **place)
    header = wcs.to_header(relax=True)
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    header["A_ORDER"] = header["B_ORDER"] = 3
    terms = {"A_2_0": 2e-5, "A_1_1": -1e-5, "A_0_3": 3e-8, "B_0_2": 1.5e-5, "B_2_0": -2e-5, "B_3_0": 2e-8}
    for key, value in terms.items():
        header[key] = value * strength
    return WCS(header)


def stars(x, y, flux, shape) -> np.ndarray:
    """Gaussian stars, drawn by the formula."""
    image = np.zeros(shape)
    reach = 12
    for one_x, one_y, one_flux in zip(x, y, flux, strict=True):
        i, j = round(float(one_x)), round(float(one_y))
        rows = slice(max(j - reach, 0), max(j + reach + 1, 0))
        columns = slice(max(i - reach, 0), max(i + reach + 1, 0))
        part = image[rows, columns]
        if not part.size:
            continue
        down = np.arange(rows.start, rows.start + part.shape[0]) - one_y
        along = np.arange(columns.start, columns.start + part.shape[1]) - one_x
        profile = np.exp(-(down[:, None] ** 2 + along[None] ** 2) / (2 * SIGMA**2))
        part += one_flux / (2 * np.pi * SIGMA**2) * profile
    return image.astype(np.float32)


def aperture_sums(image, x, y, radius=8.0) -> np.ndarray:
    """Sum within a circle of whole pixels around each place, and position under a Gaussian window of the star's width.

    The position is a first step of SExtractor's windowed one: an offset under such a window shows by half.
    """
    rows, columns = np.indices(image.shape)
    found = []
    for one_x, one_y in zip(x, y, strict=True):
        distance = np.hypot(columns - one_x, rows - one_y)
        light = image * np.exp(-(distance**2) / (2 * SIGMA**2))
        offset = [
            2 * (light * (axis - one)).sum() / light.sum() for axis, one in ((columns, one_x), (rows, one_y))
        ]
        found.append((image[distance <= radius].sum(dtype=np.float64), one_x + offset[0], one_y + offset[1]))
    return np.array(found).T


def star_field(rng, side=5, spacing=52):
    """Positions on a loose lattice, at random sub-pixel phases, so that apertures do not meet."""
    n = side**2
    first = (SIDE - 1 - (side - 1) * spacing) / 2
    grid = np.arange(n) % side * spacing + first, np.arange(n) // side * spacing + first
    x, y = (axis + rng.uniform(-8, 8, n) for axis in grid)
    return x, y, 10 ** rng.uniform(3, 5, n)


CASES = {
    "TPV onto TPV": (tpv_wcs(), tpv_wcs(angle=0.15, shift=(3.3, -2.7))),
    "TPV onto TAN": (tpv_wcs(), tan_wcs(angle=-1.4)),
    "SIP onto TAN": (sip_wcs(), tan_wcs(angle=33.0, shift=(5.0, 1.0))),
    "TAN onto SIP, mirrored": (tan_wcs(angle=180.0), sip_wcs(shift=(0.5, 0.25))),
}


def positions(pixels):
    """All positions of a map, as interpolated: x, y, area, and their columns and rows in the output."""
    n = SIDE * pixels.over
    x, y, area = np.empty((3, n, n))
    pixels.block(0, x, y, area)
    rows, columns = (np.indices((n, n)) + 0.5) / pixels.over - 0.5
    return x, y, area, columns, rows


@pytest.mark.parametrize("case", CASES)
def test_interpolated_map_is_within_1e_4_pixel_of_the_exact_one(case):
    wcs_from, wcs_to = CASES[case]
    pixels = map_pixels(wcs_from, wcs_to, (SIDE, SIDE), (SIDE, SIDE))
    x, y, area, columns, rows = (each[::3, ::2] for each in positions(pixels))
    convert = pixel_to_pixel(wcs_from, wcs_to)
    true_x, true_y = convert(columns, rows)
    assert np.nanmax(np.hypot(x - true_x, y - true_y)) < 1e-4
    right, left = convert(columns + 0.5, rows), convert(columns - 0.5, rows)
    up, down = convert(columns, rows + 0.5), convert(columns, rows - 0.5)
    true_area = np.abs((right[0] - left[0]) * (up[1] - down[1]) - (right[1] - left[1]) * (up[0] - down[0]))
    assert np.nanmax(np.abs(area / true_area - 1)) < 1e-5


def test_a_violent_distortion_gets_a_finer_grid_and_exact_cells():
    wcs_from, wcs_to = tpv_wcs(strength=60.0), tan_wcs(scale=1.0)
    pixels = map_pixels(wcs_from, wcs_to, (SIDE, SIDE), (SIDE, SIDE))
    assert pixels.step < 64 or pixels.exact
    x, y, _, columns, rows = (each[::3, ::2] for each in positions(pixels))
    true_x, true_y = pixel_to_pixel(wcs_from, wcs_to)(columns, rows)
    inside = (true_x > 0) & (true_x < SIDE) & (true_y > 0) & (true_y < SIDE)
    assert inside.mean() > 0.5
    assert np.max(np.hypot(x - true_x, y - true_y)[inside]) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_stars_keep_flux_place_and_peak(case, rng):
    # 2 pixels FWHM is at the limit of what 6x6 pixels can carry: SWarp's figures with the same kernel are a flux rms
    # of 8e-5, 0.0055 pixel, a peak of 0.9885 and a residual of 0.029 of the image's rms
    wcs_from, wcs_to = CASES[case]
    x, y, flux = star_field(rng)
    source_x, source_y = pixel_to_pixel(wcs_from, wcs_to)(x, y)
    image = stars(source_x, source_y, flux, (SIDE, SIDE))
    moved = remap(image, None, None, wcs_from, wcs_to, (SIDE, SIDE))
    truth = stars(x, y, flux, (SIDE, SIDE))
    whole = np.array(
        [
            np.isfinite(moved.data[round(b) - 9 : round(b) + 10, round(a) - 9 : round(a) + 10]).all()
            for a, b in zip(x, y, strict=True)
        ]
    )
    assert whole.sum() >= 15
    x, y, flux = x[whole], y[whole], flux[whole]
    data = np.nan_to_num(moved.data)
    total, found_x, found_y = aperture_sums(data, x, y)
    assert abs(np.median(total / flux) - 1) < 1e-4
    assert np.std(total / flux) < 5e-4
    assert np.median(np.hypot(found_x - x, found_y - y)) < 0.01
    peak = [data[round(b), round(a)] / truth[round(b), round(a)] for a, b in zip(x, y, strict=True)]
    turned = case == "SIP onto TAN"  # its pixels need four positions each, which is a mean over the pixel
    assert (0.9 if turned else 0.95) < np.median(peak) < 1.01
    kept = np.isfinite(moved.data)
    assert np.std((moved.data - truth)[kept]) < (0.1 if turned else 0.06) * np.std(truth[kept])


def test_the_same_grid_gives_the_same_pixels(rng):
    image = rng.normal(100, 5, (70, 90)).astype(np.float32)
    image[20, 30] = np.nan
    mask = np.zeros(image.shape, np.uint8)
    mask[40, 50] = Bad.SATURATED
    wcs = tpv_wcs()
    moved = remap(image, mask, image, wcs, wcs, image.shape)
    np.testing.assert_array_equal(moved.data, image)
    np.testing.assert_array_equal(moved.variance, image)
    expected = mask.copy()
    expected[20, 30] = Bad.NO_DATA
    np.testing.assert_array_equal(moved.mask, expected)


def test_a_shift_by_whole_pixels_is_a_copy(rng):
    image = rng.normal(100, 5, (SIDE, SIDE)).astype(np.float32)
    moved = remap(image, None, None, tan_wcs(), tan_wcs(shift=(-7, 4)), (SIDE, SIDE))
    np.testing.assert_array_equal(moved.data[4:, : SIDE - 7], image[: SIDE - 4, 7:])
    assert np.isnan(moved.data[:4]).all()
    assert (moved.mask[:4] == Bad.NO_DATA).all()
    assert np.isnan(moved.data[:, SIDE - 7 :]).all()


def test_an_origin_cuts_a_piece_of_the_whole(rng):
    image = rng.normal(100, 5, (SIDE, SIDE)).astype(np.float32)
    wcs_from, wcs_to = CASES["TPV onto TAN"]
    whole = remap(image, None, None, wcs_from, wcs_to, (SIDE, SIDE))
    piece = remap(image, None, None, wcs_from, wcs_to, (100, 80), origin=(130, 90))
    np.testing.assert_allclose(piece.data, whole.data[90:190, 130:210], rtol=2e-3)


@pytest.mark.parametrize("scale", [1.0, 2.6])
def test_threads_change_nothing(rng, scale):
    image = rng.normal(100, 5, (SIDE, SIDE)).astype(np.float32)
    image[rng.random(image.shape) < 0.01] = np.nan
    wcs_from, wcs_to = tpv_wcs(), tan_wcs(scale=scale, angle=3.0)
    alone, many = (
        remap(image, None, np.abs(image), wcs_from, wcs_to, (SIDE, SIDE), threads=threads)
        for threads in (1, 3)
    )
    np.testing.assert_array_equal(alone.data, many.data)
    np.testing.assert_array_equal(alone.variance, many.variance)
    np.testing.assert_array_equal(alone.mask, many.mask)


@pytest.mark.parametrize("angle", [0.0, 5.0, 18.0, 45.0, 90.0, 135.0])
def test_flux_survives_a_rotation(rng, angle):
    # one position per pixel would lose or gain up to 2 %, depending on where in a pixel the star lies
    x, y, flux = star_field(rng, side=4, spacing=45)
    wcs_from, wcs_to = tan_wcs(), tan_wcs(2 * SIDE, angle=angle, shift=(0.3, -0.2))
    moved = remap(stars(x, y, flux, (SIDE, SIDE)), None, None, wcs_from, wcs_to, (2 * SIDE, 2 * SIDE))
    total, _, _ = aperture_sums(np.nan_to_num(moved.data), *pixel_to_pixel(wcs_to, wcs_from)(x, y))
    np.testing.assert_allclose(total, flux, rtol=2e-3)


@pytest.mark.parametrize("scale", [0.4, 0.8, 1.2, 1.3, 1.7, 2.5, 3.6, 5.0, 9.3])
def test_flux_survives_a_change_of_scale(rng, scale):
    # a star's light ends up in fewer and larger, or in more and smaller, pixels; its sum stays
    x, y, flux = star_field(rng, side=2, spacing=90)
    image = stars(x, y, flux, (SIDE, SIDE))
    n = round(SIDE / scale)
    wcs_from, wcs_to = tan_wcs(), tan_wcs(n, scale=scale, angle=12.0, shift=(0.3, -0.2))
    moved = remap(image, None, np.ones_like(image), wcs_from, wcs_to, (n, n))
    assert moved.area == pytest.approx(scale**2, rel=1e-3)
    place = pixel_to_pixel(wcs_to, wcs_from)(x, y)
    total, found_x, found_y = aperture_sums(np.nan_to_num(moved.data), *place, radius=20 / scale)
    np.testing.assert_allclose(total, flux, rtol=1e-3 if scale < 4 else 5e-3)
    if scale < 1.5:  # the window of larger pixels sees too few of them
        np.testing.assert_allclose((found_x, found_y), place, atol=0.03)
    level = remap(np.full_like(image, 3.0), None, None, wcs_from, wcs_to, (n, n), conserve_flux=False)
    np.testing.assert_allclose(level.data[level.mask == 0], 3.0, rtol=1e-5)


@pytest.mark.parametrize(("scale", "angle"), [(1.0, 30.0), (2.4, 10.0), (6.0, 10.0)])
def test_variance_is_that_of_the_pixels(scale, angle):
    rng = np.random.default_rng(3)
    n = 60
    wcs_from = tan_wcs(scale=1.0)
    wcs_to = tan_wcs(n, scale=scale * 0.7, angle=angle)
    sigma = 4.0
    results = []
    for _ in range(60):
        noise = rng.normal(0, sigma, (SIDE, SIDE)).astype(np.float32)
        results.append(remap(noise, None, np.full_like(noise, sigma**2), wcs_from, wcs_to, (n, n)))
    measured = np.var([result.data for result in results], axis=0)
    assert np.nanmean(measured / results[0].variance) == pytest.approx(1.0, abs=0.02)


def test_bad_pixels_are_left_out_and_told():
    # a level of 50 with one absurd value: whatever its flag says of it decides what is done
    image = np.full((SIDE, SIDE), 50.0, np.float32)
    image[150, 150] = 1e6
    wcs_from, wcs_to = tan_wcs(), tan_wcs(shift=(0.5, 0.3))
    for bad in (Bad.DEFECT, Bad.COSMIC, Bad.NO_DATA):
        mask = np.zeros(image.shape, np.uint8)
        mask[150, 150] = bad
        moved = remap(image, mask, None, wcs_from, wcs_to, image.shape)
        inside = moved.data[5:-5, 5:-5]
        np.testing.assert_allclose(inside[np.isfinite(inside)], 50.0, rtol=1e-5)
        touched = moved.mask[5:-5, 5:-5] & bad > 0
        assert 9 <= touched.sum() <= 36
        assert np.isnan(inside[~touched]).sum() == 0
    lost = np.isnan(inside)
    assert lost.sum() <= 2
    assert (moved.mask[5:-5, 5:-5][lost] & Bad.NO_DATA > 0).all()


def test_saturated_pixels_are_used_and_told():
    image = np.full((SIDE, SIDE), 50.0, np.float32)
    image[150, 150] = 1e4
    mask = np.zeros(image.shape, np.uint8)
    mask[150, 150] = Bad.SATURATED
    moved = remap(image, mask, None, tan_wcs(), tan_wcs(shift=(0.5, 0.3)), image.shape)
    kept = moved.mask[5:-5, 5:-5]
    assert np.isfinite(moved.data[5:-5, 5:-5]).all()
    assert set(np.unique(kept)) == {0, int(Bad.SATURATED)}
    # what spreads beyond the flag is less than 0.1 % of the pixel
    assert np.abs(moved.data[5:-5, 5:-5] - 50.0)[kept == 0].max() < 0.001 * 1e4
    assert np.nanmax(moved.data) > 4000


def test_a_hole_wider_than_the_kernel_stays_a_hole():
    image = np.full((SIDE, SIDE), 50.0, np.float32)
    image[100:120, 140:170] = np.nan
    variance = np.ones_like(image)
    variance[200, 200] = np.nan
    moved = remap(image, None, variance, tan_wcs(), tan_wcs(angle=0.4, shift=(0.2, 0.1)), image.shape)
    hole = np.isnan(moved.data[90:130, 130:180])
    assert 550 < hole.sum() < 650
    assert (moved.mask[90:130, 130:180][hole] & Bad.NO_DATA > 0).all()
    assert (moved.mask[195:206, 195:206] & Bad.NO_DATA > 0).any()
    np.testing.assert_array_equal(np.isnan(moved.data), np.isnan(moved.variance))


@pytest.mark.parametrize("scale", [2.6, 8.0])
def test_bad_pixels_are_told_in_larger_pixels(scale):
    image = np.full((SIDE, SIDE), 50.0, np.float32)
    image[150, 150] = 1e6
    mask = np.zeros(image.shape, np.uint8)
    mask[150, 150] = Bad.DEFECT
    n = int(SIDE / scale)
    moved = remap(image, mask, None, tan_wcs(), tan_wcs(n, scale=scale), (n, n), conserve_flux=False)
    np.testing.assert_allclose(moved.data[2:-2, 2:-2], 50.0, rtol=1e-5)
    assert (moved.mask[2:-2, 2:-2] == Bad.DEFECT).sum() >= 1
    assert moved.mask[2, 2] == 0


def test_beyond_the_horizon_there_is_no_data(rng):
    # one image of the whole sky onto a hemisphere: corners beyond the limb, and a map that is anything but linear
    sky = WCS(naxis=2)
    sky.wcs.ctype = ["RA---CAR", "DEC--CAR"]
    sky.wcs.crval, sky.wcs.crpix, sky.wcs.cdelt = [180.0, 0.0], [180.5, 90.5], [-1.0, 1.0]
    sky.wcs.set()
    ball = tan_wcs(160, scale=3600 * 0.8, ra=100.0, dec=20.0, kind="SIN")
    image = np.full((180, 360), 7.0, np.float32)
    moved = remap(image, None, None, sky, ball, (160, 160), conserve_flux=False)
    rows, columns = np.indices((160, 160)) - 79.5
    radius = np.hypot(rows, columns)
    limb = np.rad2deg(1.0) / 0.8
    assert np.isnan(moved.data[radius > limb]).all()
    assert (moved.mask[radius > limb] & Bad.NO_DATA > 0).all()
    middle = moved.data[radius < 0.9 * limb]
    np.testing.assert_allclose(middle[np.isfinite(middle)], 7.0, rtol=1e-5)
    assert np.isfinite(middle).mean() > 0.97  # the seam of the plate carree costs a line


def test_behind_the_tangent_plane_is_no_overlap(rng):
    image = rng.normal(100, 5, (SIDE, SIDE)).astype(np.float32)
    opposite = tan_wcs(ra=58.0 + 180.0, dec=-35.7)  # a plain tangent formula would put it right on top
    with pytest.raises(InputError, match=r"do not overlap.*RA 58\.0000 Dec \+35\.7000.*RA 238\.0000"):
        remap(image, None, None, tan_wcs(), opposite, (SIDE, SIDE))
    with pytest.raises(InputError, match="do not overlap"):
        remap(image, None, None, sip_wcs(), tan_wcs(ra=59.0), (SIDE, SIDE))
    assert covered(tan_wcs(), opposite, (SIDE, SIDE), (SIDE, SIDE)) == (0.0, None)


def test_galactic_and_equatorial_meet(rng):
    from astropy.coordinates import SkyCoord

    place = SkyCoord(58.0, 35.7, unit="deg").galactic
    galactic = tan_wcs(ra=place.l.deg, dec=place.b.deg)
    galactic.wcs.ctype = ["GLON-TAN", "GLAT-TAN"]
    galactic.wcs.set()
    x, y, _ = star_field(rng)
    coordinates = SkyCoord.from_pixel(x, y, tan_wcs()).galactic
    wanted = np.array(galactic.wcs_world2pix(coordinates.l.deg, coordinates.b.deg, 0))
    found = pixel_to_pixel(galactic, tan_wcs())(x, y)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "mask", "message"),
    [
        (np.full((50, 50), np.nan, np.float32), None, "no pixel of the image has a usable value"),
        (np.ones((50, 50), np.float32), np.ones((50, 49), np.uint8), "the mask of shape"),
        (np.ones(50, np.float32), None, "two axes"),
    ],
)
def test_unusable_input_is_refused(data, mask, message):
    with pytest.raises(InputError, match=message):
        remap(data, mask, None, tan_wcs(50), tan_wcs(50), (50, 50))


def test_a_wcs_that_is_not_of_the_sky_is_refused():
    with pytest.raises(InputError, match="celestial"):
        remap(np.ones((50, 50), np.float32), None, None, WCS(naxis=2), tan_wcs(50), (50, 50))


def frame_of(data, wcs, name="one", **info) -> Frame:
    mask = np.where(np.isfinite(data), 0, Bad.NO_DATA).astype(np.uint8)
    return Frame(name, f"{name}.fits", data, mask, wcs, fits.Header(), FrameInfo(**info))


def test_align_follows_the_size_of_the_pixels():
    data = np.full((SIDE, SIDE), 10.0, np.float32)
    one = frame_of(data, tan_wcs(), pixel_scale_arcsec=1.0, fwhm_pix=4.0, saturation=1000.0, zero_point=25.0)
    other = frame_of(np.zeros((140, 130), np.float32), tan_wcs(120, scale=2.0), "other")
    moved = align(one, other)
    assert moved.shape == (140, 130)
    assert moved.wcs is other.wcs
    assert moved.name == "one"
    assert moved.info.pixel_scale_arcsec == pytest.approx(2.0, rel=1e-4)
    assert moved.info.fwhm_pix == pytest.approx(2.0, rel=1e-4)
    assert moved.info.saturation == pytest.approx(4000.0, rel=1e-4)
    assert moved.info.zero_point == 25.0
    assert np.nanmedian(moved.data) == pytest.approx(40.0, rel=1e-4)


def test_frames_without_a_wcs_are_aligned_only_by_their_shape():
    data = np.ones((40, 50), np.float32)
    bare, placed = frame_of(data, None), frame_of(data, tan_wcs(), "placed")
    moved = align(bare, placed)
    assert moved.data is data
    assert moved.wcs is placed.wcs
    assert "taken as aligned" in moved.info.warnings[0]
    with pytest.raises(InputError, match=r"one\.fits: has no celestial WCS"):
        align(bare, frame_of(data[:, :40], tan_wcs(), "placed"))
    with pytest.raises(InputError, match=r"one\.fits onto placed\.fits: the images do not overlap"):
        align(frame_of(data, tan_wcs(dec=-80.0)), placed)


@pytest.fixture
def command():
    """`align` as a command, called with words."""
    app = typer.Typer()
    app.command()(align_command)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def night(tmp_path, rng):
    """Two images, the same field turned, one that is no image, and the image to align onto."""
    for name, angle in (("one", 2.0), ("two", -3.0)):
        data = rng.normal(100.0, 5.0, (90, 80)).astype(np.float32)
        header = tan_wcs(80, angle=angle).to_header()
        header["SATURATE"], header["EXPTIME"] = 5e4, 30.0
        fits.writeto(tmp_path / f"{name}.fits", data, header)
    (tmp_path / "broken.fits").write_bytes(b"SIMPLE  =")
    wide = tan_wcs(40, scale=2.0).to_header()
    fits.writeto(tmp_path / "onto.fits", rng.normal(0, 1, (44, 40)).astype(np.float32), wide)
    return tmp_path


def test_command_aligns_what_it_can_and_finishes_later(command, night):
    out = night / "aligned"
    words = [
        night / "one.fits",
        night / "broken.fits",
        night / "two.fits",
        "--onto",
        night / "onto.fits",
        "-o",
        out,
    ]
    result = command(*words)
    assert isinstance(result.exception, PartialFailureError)
    assert sorted(path.name for path in out.glob("*.fits.fz")) == [
        "one.aligned.fits.fz",
        "two.aligned.fits.fz",
    ]
    made = read_frame(out / "one.aligned.fits.fz")
    assert made.shape == (44, 40)
    assert np.nanmedian(made.data) == pytest.approx(400.0, rel=0.01)
    assert made.info.saturation == pytest.approx(2e5, rel=1e-3)
    assert made.mask[0, 0] & Bad.NO_DATA
    assert "aligned" in str(made.header["HISTORY"])
    before = (out / "one.aligned.fits.fz").stat().st_mtime_ns
    (out / "two.aligned.fits.fz").unlink()
    command(*words)
    assert (out / "one.aligned.fits.fz").stat().st_mtime_ns == before
    assert (out / "two.aligned.fits.fz").exists()
    command(*words, "--overwrite")
    assert (out / "one.aligned.fits.fz").stat().st_mtime_ns > before


def test_command_writes_one_image_to_a_file(command, night):
    result = command(
        night / "one.fits", "--onto", night / "onto.fits", "-o", night / "moved.fits", "--jobs", 2
    )
    assert result.exit_code == 0, result.output
    assert read_frame(night / "moved.fits").shape == (44, 40)
    both = command(
        night / "one.fits", night / "two.fits", "--onto", night / "onto.fits", "-o", night / "all.fits"
    )
    assert isinstance(both.exception, UsageError)
    (night / "again").mkdir()
    shutil.copy(night / "one.fits", night / "again" / "one.fits")
    same = command(
        night / "one.fits", night / "again" / "one.fits", "--onto", night / "onto.fits", "-o", night / "x"
    )
    assert isinstance(same.exception, UsageError)
    assert "would both become" in str(same.exception)
    broken = command(night / "one.fits", "--onto", night / "broken.fits", "-o", night / "y")
    assert isinstance(broken.exception, InputError)


def read_image(path: Path) -> tuple[np.ndarray, WCS]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        with fits.open(path) as hdus:
            return np.asarray(hdus[1].data, np.float32), WCS(hdus[1].header)


def test_golden_swarp(real_data):
    # SWarp 2.41 LANCZOS3 of the same pixels onto the same WCS; it conserves flux by one factor for the whole frame,
    # which the scale takes up
    folder = real_data / "imagepairs"
    image, wcs_from = read_image(folder / "ztf_zr_sci.fits.fz")
    golden, wcs_to = read_image(folder / "ztf_zr_swarp_tan.fits.fz")
    moved = remap(image, None, None, wcs_from, wcs_to, golden.shape, threads=2)
    both = np.isfinite(moved.data) & (golden != 0)
    assert both.mean() > 0.99
    scale = np.median(golden[both] / moved.data[both])
    assert scale == pytest.approx(1.0, abs=1e-3)
    assert np.median(np.abs(moved.data * scale - golden)[both]) <= 0.1
    table = Table.read(folder / "ztf_zr_sextractor.fits")
    bright = (table["FLUX_APER"] > 3000) & (table["FLUX_APER"] < 2e5) & (table["FLAGS"] == 0)
    x, y = pixel_to_pixel(wcs_to, wcs_from)(
        np.asarray(table["X_IMAGE"][bright], float) - 1, np.asarray(table["Y_IMAGE"][bright], float) - 1
    )
    inside = (x > 15) & (x < golden.shape[1] - 16) & (y > 15) & (y < golden.shape[0] - 16)
    ratios = []
    rows, columns = np.mgrid[-8:9, -8:9]
    circle = np.hypot(rows, columns) <= 8
    sky = np.median(golden[both])
    for one_x, one_y in zip(np.round(x[inside]).astype(int), np.round(y[inside]).astype(int), strict=True):
        window = slice(one_y - 8, one_y + 9), slice(one_x - 8, one_x + 9)
        ratios.append((moved.data[window] * scale - sky)[circle].sum() / (golden[window] - sky)[circle].sum())
    assert len(ratios) > 300
    assert np.std(ratios) < 1e-3
    assert np.median(ratios) == pytest.approx(1.0, abs=5e-4)
