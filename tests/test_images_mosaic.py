"""Several reference cells made into one: levels, zero points, overlaps, what is masked in one of them."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from tapetum.core.errors import InputError
from tapetum.images.frame import Bad, Frame, FrameInfo
from tapetum.images.mosaic import mosaic
from tapetum.images.pixelmap import covered, pixel_to_pixel

N = 200
CELL = 170
SKY = 100.0


def wcs_at(column, row, n, scale=1.0) -> WCS:
    """A TAN grid whose middle is pixel (column, row) of the target grid."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [58.0, 35.7]
    middle = (N - 1) / 2
    wcs.wcs.crpix = [(n + 1) / 2 + (middle - column) / scale, (n + 1) / 2 + (middle - row) / scale]
    wcs.wcs.cdelt = [-scale / 3600, scale / 3600]
    wcs.wcs.set()
    return wcs


ONTO = Frame(
    "science", "science.fits", np.zeros((N, N), np.float32), np.zeros((N, N), np.uint8),
    wcs_at(99.5, 99.5, N), fits.Header(), FrameInfo(wcs_kind="TAN"),
)  # fmt: skip


def light(x, y) -> np.ndarray:
    """Stars of 4 pixels FWHM on a lattice, 1000 DN each; x, y on the target grid."""
    sigma = 4.0 / 2.3548
    image = np.zeros(np.shape(x))
    for centre_x in range(20, N, 32):
        for centre_y in range(20, N, 32):
            image += np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * sigma**2))
    return 1000.0 * image / (2 * np.pi * sigma**2)


def cell(
    column, row, *, level=0.0, zero_point=25.0, noise=0.0, name="cell", gain=2.0, seed=0, variance=None
) -> Frame:
    """A cell around a place of the target grid, in its own DN."""
    wcs = wcs_at(column + 0.3, row - 0.2, CELL)
    rows, columns = np.indices((CELL, CELL)).astype(float)
    x, y = pixel_to_pixel(ONTO.wcs, wcs)(columns, rows)
    scale = 10 ** (0.4 * (zero_point - 25.0))
    rng = np.random.default_rng(seed)
    data = scale * (light(x, y) + SKY + level + noise * rng.normal(size=(CELL, CELL)))
    planes = None if variance is None else np.full((CELL, CELL), variance * scale**2, np.float32)
    info = FrameInfo(zero_point=zero_point, gain=gain, fwhm_pix=4.0, saturation=5e4)
    mask = np.zeros((CELL, CELL), np.uint8)
    return Frame(name, f"{name}.fits", data.astype(np.float32), mask, wcs, fits.Header(), info, planes)


def truth() -> np.ndarray:
    rows, columns = np.indices((N, N)).astype(float)
    return light(columns, rows) + SKY


def test_four_cells_of_different_level_and_zero_point_become_one():
    cells = [
        cell(60, 60, name="a"),
        cell(140, 60, level=30.0, zero_point=26.0, name="b"),
        cell(60, 140, level=-20.0, zero_point=24.5, gain=3.0, name="c"),
        cell(140, 140, level=7.0, name="d"),
    ]
    made = mosaic(cells, ONTO)
    assert made.shape == (N, N)
    assert made.wcs is ONTO.wcs
    assert made.name == "a_mosaic"
    assert made.info.zero_point == 25.0
    assert made.info.gain == pytest.approx(3.0 / 10**0.2)  # of c, whose DN are now larger
    assert (made.mask == 0).all()
    # the level of the largest cell stays; the others follow it
    np.testing.assert_allclose(made.data - np.median(made.data - truth()), truth(), atol=0.3)
    left_alone = mosaic(cells, ONTO, match_background=False)
    assert np.ptp(np.median(left_alone.data - truth(), axis=0)) > 10


def test_a_different_order_and_threads_give_the_same_light():
    cells = [cell(60, 60, name="a", noise=2.0), cell(140, 140, level=5.0, name="b", noise=3.0, seed=1)]
    one, other, threaded = mosaic(cells, ONTO), mosaic(cells[::-1], ONTO), mosaic(cells, ONTO, threads=2)
    np.testing.assert_array_equal(one.data, threaded.data)
    np.testing.assert_allclose(one.data, other.data, atol=0.3)


def test_cells_that_do_not_meet_get_the_same_median():
    far = [cell(-5, 60, name="a"), cell(205, 150, level=50.0, name="b")]
    made = mosaic(far, ONTO)
    left, right = made.data[:, :60], made.data[:, 140:]
    assert abs(np.nanmedian(left) - np.nanmedian(right)) < 1.0
    assert np.isnan(made.data[:, 90:110]).all()
    assert (made.mask[:, 90:110] & Bad.NO_DATA > 0).all()


def test_flagged_pixels_are_taken_from_another_cell():
    damaged, whole = cell(100, 100, name="a"), cell(100, 100, name="b")
    damaged.data[70:80, 70:80] = 1e4
    damaged.mask[70:80, 70:80] = Bad.SATURATED
    made = mosaic([damaged, whole], ONTO)
    inside = np.isfinite(made.data)
    assert (made.mask[inside & (made.mask & Bad.SATURATED > 0)] == 0).all()
    np.testing.assert_allclose(
        made.data[inside], truth()[inside], atol=0.001 * 1e4
    )  # of a full pixel, unflagged
    alone = mosaic([damaged], ONTO)
    assert alone.name == "a"
    assert 100 <= (alone.mask & Bad.SATURATED > 0).sum() <= 256
    assert np.nanmax(alone.data) > 9e3


def test_weights_follow_the_noise_and_the_variance_is_right():
    quiet = [cell(100, 100, noise=1.0, variance=1.0, name="a", seed=seed) for seed in (1, 2)]
    loud = cell(100, 100, noise=5.0, variance=25.0, name="b", seed=3)
    made = mosaic([*quiet, loud], ONTO)
    inside = (slice(40, 160),) * 2
    spread = np.std((made.data - truth())[inside])
    assert spread == pytest.approx(np.sqrt(np.mean(made.variance[inside])), rel=0.05)
    plain = mosaic([*quiet, loud], ONTO, combine="median")
    assert spread < np.std((plain.data - truth())[inside])
    assert mosaic([*quiet, cell(100, 100, noise=1.0)], ONTO).variance is None


def test_a_median_ignores_what_one_of_three_shows():
    cells = [cell(100, 100, noise=1.0, name=name, seed=ord(name)) for name in "abc"]
    cells[1].data[60:64, 60:90] += 5000.0
    made = mosaic(cells, ONTO, combine="median")
    inside = np.isfinite(made.data)
    assert np.abs((made.data - truth())[inside]).max() < 10.0
    assert np.abs((mosaic(cells, ONTO).data - truth())[inside]).max() > 1000.0


def test_frames_are_read_one_at_a_time_and_those_elsewhere_passed_over():
    seen = []

    def reader():
        for name, place in (("beside", 900), ("here", 100), ("far", -700)):
            seen.append(name)
            yield cell(place, 100, name=name)

    made = mosaic(reader(), ONTO)
    assert seen == ["beside", "here", "far"]
    assert made.name == "here"
    with pytest.raises(InputError, match=r"none of 2 images overlaps science\.fits"):
        mosaic([cell(900, 0), cell(0, 900)], ONTO)
    with pytest.raises(InputError, match=r"none of 0 images"):
        mosaic([], ONTO)


def test_an_unknown_zero_point_is_told():
    known = cell(60, 100, name="a")
    unknown = cell(140, 100, name="b")
    unknown = Frame(**{**unknown.__dict__, "info": FrameInfo(zero_point=None)})
    made = mosaic([known, unknown], ONTO)
    assert made.info.zero_point == 25.0
    assert any("b.fits: combined as it is" in text for text in made.info.warnings)
    with pytest.raises(InputError, match=r"bare\.fits onto science\.fits"):
        mosaic([Frame(**{**known.__dict__, "wcs": None, "source": "bare.fits"})], ONTO)


def test_covered_tells_fraction_and_place():
    fraction, box = covered(wcs_at(0, 0, CELL), ONTO.wcs, (CELL, CELL), (N, N))
    assert fraction == pytest.approx((CELL / 2 / N) ** 2, abs=0.02)
    rows, columns = box
    assert rows.start == columns.start == 0
    assert 85 <= rows.stop <= 100
    assert 85 <= columns.stop <= 100
    assert covered(ONTO.wcs, ONTO.wcs, (N, N), (N, N)) == (1.0, (slice(0, N), slice(0, N)))
    sliver, box = covered(wcs_at(-84, 100, CELL), ONTO.wcs, (CELL, CELL), (N, N))
    assert box is not None  # one column wide
    assert sliver <= 0.03
