"""Masks on images: a foreign PNG reader sees the colours we meant, and grey where there is no class."""

from __future__ import annotations

import io
import re

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from tapetum.report.overlay import Box, Layer, beside_svg, overlay, overlay_png, overlay_svg, thinned_codes
from tapetum.report.stamps import GREY_LEVELS, HATCH, encode_rgb, stamp_png, thinned, to_levels

WIDE, HIT = Layer("wide", 4, "#00ff00", 0.25), Layer("hit", 1, "#ff0000", 1.0)


def read_png(png: bytes) -> NDArray[np.uint8]:
    with PIL.Image.open(io.BytesIO(png)) as picture:
        assert picture.mode in ("RGB", "P")
        return np.asarray(picture.convert("RGB"))


@pytest.fixture
def image(rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.normal(300, 10, (31, 41)).astype(np.float32)


def test_png_has_the_colours_we_meant(rng: np.random.Generator) -> None:
    picture = rng.integers(0, 256, (9, 13, 3)).astype(np.uint8)
    np.testing.assert_array_equal(read_png(encode_rgb(picture)), picture)


def test_classes_are_coloured_and_the_rest_is_grey(image: NDArray[np.float32]) -> None:
    codes = np.zeros(image.shape, np.uint16)
    codes[5, 7], codes[10:20, 10:20], codes[15, 15], codes[0, 0] = 1, 4, 5, 2
    image[30, 40] = np.nan
    picture = overlay(image, codes, [WIDE, HIT])
    grey = np.rint(to_levels(image) * (255 / (GREY_LEVELS - 1)))
    np.testing.assert_array_equal(picture[5, 7], [255, 0, 0])
    np.testing.assert_array_equal(picture[15, 15], [255, 0, 0])  # the last layer is above
    np.testing.assert_allclose(picture[12, 12], 0.75 * grey[12, 12] + [0, 63.75, 0], atol=1)
    plain = codes & 5 == 0
    plain[30, 40] = False
    np.testing.assert_array_equal(picture[plain], np.repeat(grey[plain][:, None], 3, 1))
    assert tuple(picture[30, 40]) in HATCH
    flipped = read_png(overlay_png(image, codes, [WIDE, HIT], scale=2))
    np.testing.assert_array_equal(flipped[::2, ::2][::-1], picture)
    np.testing.assert_array_equal(overlay(image, codes, []), overlay(image, codes * 0, [WIDE, HIT]))


def test_an_image_without_classes_looks_like_its_stamp(image: NDArray[np.float32]) -> None:
    codes = np.zeros(image.shape, np.uint16)
    np.testing.assert_array_equal(read_png(overlay_png(image, codes, [HIT])), read_png(stamp_png(image)))


def test_shapes_must_agree(image: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="one shape"):
        overlay(image, np.zeros((3, 3), np.uint16), [HIT])


def test_single_pixels_stay_when_a_mask_is_thinned_out() -> None:
    codes = np.zeros((11, 10), np.uint16)
    codes[4, 7], codes[5, 6], codes[10, 0] = 1, 4, 2
    thin = thinned_codes(codes, 5)
    assert thin.tolist() == [[0, 1], [0, 4]]
    image = np.where(codes == 1, np.nan, 6.0).astype(np.float32)
    assert thinned(image, 5).tolist() == [[6, 6], [6, 6]]


def test_frames_are_where_the_pixels_are(image: NDArray[np.float32]) -> None:
    codes = np.zeros(image.shape, np.uint16)
    text = overlay_svg(image, codes, [HIT], [Box(20, 30, 40), Box(84, 0, 40)], step=4, width=410)
    frames = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', text)
    # 10 px of the picture per pixel of the thin image, four pixels each; rows count from below
    assert [tuple(map(float, frame)) for frame in frames] == [(75.0, 160.0, 100.0), (0.0, 0.0, 100.0)]
    assert re.findall(r">(\d)</text>", text) == ["1", "2"]
    box = Box(3, 4, 5)
    assert image[box.window].shape == (5, 5)
    both = beside_svg(image, codes, [HIT], width=420)
    assert len(re.findall("<image ", both)) == 2
    assert 'viewBox="0 0 420 ' in both
