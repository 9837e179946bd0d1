"""Stamps against a slow truth."""

import numpy as np
import pytest

from tapetum.images.cutouts import centre_pixel, cut
from tapetum.images.psf import PsfModel


def slow_cut(data, x, y, size):
    """Pixel by pixel."""
    out = np.full((len(x), size, size), np.nan, np.float32)
    for n in range(len(x)):
        column, row = int(np.floor(x[n] + 0.5)), int(np.floor(y[n] + 0.5))
        for j in range(size):
            for i in range(size):
                a, b = row + j - size // 2, column + i - size // 2
                if 0 <= a < data.shape[0] and 0 <= b < data.shape[1]:
                    out[n, j, i] = data[a, b]
    return out


@pytest.mark.parametrize("size", [1, 4, 7, 31])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i2", ">i4", "u1", "f8"])
def test_stamps_are_those_of_a_slow_loop(rng, size, dtype):
    data = rng.integers(0, 200, (13, 17)).astype(dtype)
    x, y = rng.uniform(-6, 22, 25), rng.uniform(-6, 18, 25)
    stamps = cut(data, x, y, size)
    assert stamps.dtype == np.float32
    np.testing.assert_array_equal(stamps, slow_cut(data, x, y, size))


def test_the_middle_pixel_is_that_of_a_star_of_the_psf():
    psf = PsfModel.moffat(2.0, 3.0, (40, 40))
    x, y = np.array([10.5, 11.49, 20.0]), np.array([7.5, 8.2, 30.9])
    image = np.zeros((60, 60), np.float32)
    for stamp, column, row in zip(psf.stamps(x, y), centre_pixel(x), centre_pixel(y), strict=True):
        image[row : row + psf.size, column : column + psf.size] += stamp
    stamps = cut(image, x + psf.half, y + psf.half, 3)
    assert [stamp.argmax() for stamp in stamps] == [
        4 if n else stamps[0].argmax() for n in range(3)
    ]  # a star on the border of two pixels has its peak in either
    assert (stamps[0].max() - stamps[0][1, 1]) < 1e-3 * stamps[0].max()


def test_positions_far_outside_give_empty_stamps():
    assert np.isnan(cut(np.ones((5, 5)), [1e300, -1e18], [2.0, 2.0], 5)).all()
    assert cut(np.ones((0, 5)), [1.0], [1.0], 3).shape == (1, 3, 3)
    assert cut(np.ones((5, 5)), [], [], 3).shape == (0, 3, 3)


@pytest.mark.parametrize(
    ("x", "y", "size"),
    [([1.0], [1.0, 2.0], 3), ([np.nan], [1.0], 3), ([1.0], [np.inf], 3), ([1.0], [1.0], 0)],
)
def test_nonsense_is_refused(x, y, size):
    with pytest.raises(ValueError, match="need"):
        cut(np.ones((5, 5)), x, y, size)
