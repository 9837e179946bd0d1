"""Stamps as pictures: a foreign PNG reader sees the pixels we meant, and missing pixels never look like sky."""

from __future__ import annotations

import base64
import io

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from tapetum.report.stamps import (
    GREY_LEVELS,
    HATCH,
    data_uri,
    display_limits,
    encode_png,
    stamp_png,
    to_levels,
)


def read_png(png: bytes) -> NDArray[np.uint8]:
    with PIL.Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.fixture
def stamp(rng: np.random.Generator) -> NDArray[np.float32]:
    """A star at x = 20, y = 5 on sky 300 with noise 10."""
    y, x = np.indices((31, 41))
    star = 5000 * np.exp(-0.5 * ((x - 20) ** 2 + (y - 5) ** 2) / 1.5**2)
    return (300 + rng.normal(0, 10, star.shape) + star).astype(np.float32)


def test_png_has_the_pixels_we_meant(rng: np.random.Generator) -> None:
    levels = rng.integers(0, 256, (9, 13)).astype(np.uint8)
    pixels = read_png(encode_png(levels))
    grey = levels < GREY_LEVELS
    expected = np.rint(255.0 * levels[grey] / (GREY_LEVELS - 1)).astype(np.uint8)
    np.testing.assert_array_equal(pixels[grey], np.repeat(expected[:, None], 3, 1))
    for number, colour in enumerate(HATCH):
        assert (pixels[levels == GREY_LEVELS + number] == colour).all()


def test_first_row_is_at_the_bottom_and_pixels_stay_crisp(stamp: NDArray[np.float32]) -> None:
    pixels = read_png(stamp_png(stamp, scale=3))[..., 0]
    assert pixels.shape == (93, 123)
    rows, columns = np.nonzero(pixels == 255)
    assert 30 - rows.mean() // 3 == 5
    assert columns.mean() // 3 == 20
    blocks = pixels.reshape(31, 3, 41, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()


@pytest.mark.parametrize("stretch", ["asinh", "linear"])
def test_stretch_keeps_the_order_and_ignores_units(stamp: NDArray[np.float32], stretch: str) -> None:
    levels = to_levels(stamp, stretch)  # type: ignore[arg-type]
    order = np.argsort(stamp, axis=None)
    assert (np.diff(levels.ravel()[order].astype(int)) >= 0).all()
    assert levels[5, 20] == GREY_LEVELS - 1
    scaled = to_levels(stamp * 7 + 1000, stretch)  # type: ignore[arg-type]
    assert np.abs(scaled.astype(int) - levels).max() <= 1


def test_outliers_do_not_set_the_limits(stamp: NDArray[np.float32]) -> None:
    spoilt = stamp.copy()
    spoilt[0, :3] = 1e9, -1e9, np.inf
    sky, sigma, black, white = display_limits(spoilt)
    assert sky == pytest.approx(300, abs=2)
    assert sigma == pytest.approx(10, rel=0.15)
    assert black > 200
    assert white < 6000


@pytest.mark.parametrize("value", [np.nan, 0.0, 7.0])
def test_flat_and_empty_stamps_are_pictures(value: float) -> None:
    flat = np.full((5, 5), value, np.float32)
    levels = to_levels(flat)
    assert (levels >= GREY_LEVELS).all() == bool(np.isnan(value))
    assert read_png(stamp_png(flat)).shape == (5, 5, 3)


def test_missing_pixels_are_hatched_and_nothing_else_is(stamp: NDArray[np.float32]) -> None:
    stamp[3:9, 4:11] = np.nan
    stamp[20, 20] = np.inf
    levels = to_levels(stamp)
    np.testing.assert_array_equal(levels >= GREY_LEVELS, ~np.isfinite(stamp))
    assert set(np.unique(levels[3:9, 4:11])) == {GREY_LEVELS, GREY_LEVELS + 1}


def test_data_uri_carries_the_picture(stamp: NDArray[np.float32]) -> None:
    head, _, body = data_uri(stamp_png(stamp)).partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body) == stamp_png(stamp)
