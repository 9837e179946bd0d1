"""From stamps to network input: the compiled kernels against a slow truth, and properties."""

from __future__ import annotations

import itertools
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tapetum.alerts.batch import STAMP_NAMES
from tapetum.models import _kernels
from tapetum.models.card import ImageContract, Normalisation, Padding
from tapetum.models.flags import InputFlag
from tapetum.models.inputs import inspect_images, prepare_images

FLOAT32_MAX = float(np.finfo(np.float32).max)
UPPER_QUARTILE = NormalDist().inv_cdf(0.75)
METHODS = ("row_l2", "stamp_l2", "stamp_l2_mean", "background_noise")


def contract(method="stamp_l2", **changes):
    padding = Padding(
        side=changes.pop("side", "bottom_right"),
        value=changes.pop("value", 0.0),
        when=changes.pop("when", "after"),
    )
    normalisation = Normalisation(method=method, softening=changes.pop("softening", 1.0))
    settings = {"name": "images", "size": 9, "channels": STAMP_NAMES} | changes
    return ImageContract(normalisation=normalisation, padding=padding, **settings)


# --- the slow truth ---


def true_values(pixels, good, method, softening):
    """Normalise one window in float64."""
    filled = np.where(good, pixels, 0.0).astype(np.float64)
    if not filled.size:
        return filled
    if method == "background_noise":
        values = np.sort(pixels[good].astype(np.float64))
        if not values.size:
            return filled
        background = values[(values.size - 1) // 2]
        distances = np.sort(abs(values - background))
        noise = distances[(values.size - 1) // 2] / UPPER_QUARTILE or values.std() or 1.0
        return np.where(good, np.arcsinh((filled - background) / noise / softening), 0.0)
    axis = -1 if method == "row_l2" else None
    square = (filled**2).sum(axis=axis, keepdims=True)
    norm = np.sqrt(np.where(square > FLOAT32_MAX, np.inf, np.where(square == 0, 1.0, square)))
    scaled = filled / norm
    return scaled - scaled.mean() if method == "stamp_l2_mean" else scaled


def true_plane(stamp, shape, c):
    """One stamp as one plane, and the plane of its validity."""
    size, centre = c.size, c.padding.side == "centre"
    plane, valid = np.full((size, size), float(c.padding.value)), np.zeros((size, size))
    windows = []
    for n in shape:
        if n >= size:
            windows.append((slice((n - size) // 2, (n - size) // 2 + size), slice(0, size)))
        else:
            offset = -((n - size) // 2) if centre else 0  # ceil((size - n) / 2)
            windows.append((slice(0, n), slice(offset, offset + n)))
    (sy, ty), (sx, tx) = windows
    pixels = stamp[sy, sx]
    with np.errstate(invalid="ignore"):
        good = abs(pixels) <= np.float32(c.limit)
    valid[ty, tx] = good
    if c.padding.when == "before":
        plane[ty, tx] = np.where(good, pixels, 0.0)
        return true_values(plane, np.ones_like(plane, bool), c.normalisation.method, 1.0), valid
    plane[ty, tx] = true_values(pixels, good, c.normalisation.method, c.normalisation.softening)
    return plane, valid


def truth(stamps, shapes, c):
    planes = [STAMP_NAMES.index(name) for name in c.channels]
    out = []
    for stamp, shape in zip(stamps, shapes, strict=True):
        pairs = [true_plane(stamp[p], shape[p].tolist(), c) for p in planes]
        masks = [valid for _, valid in pairs]
        extra = {"none": [], "per_stamp": masks, "combined": [np.min(masks, axis=0)]}[c.masks]
        out.append(np.stack([plane for plane, _ in pairs] + extra))
    out = np.stack(out)
    return out if c.layout == "nchw" else out.transpose(0, 2, 3, 1)


@pytest.fixture
def stamps(rng):
    """Alerts of every kind: whole, cut, with NaN, infinity and fill values, missing, flat."""
    pixels = rng.normal(120, 15, (8, 3, 11, 12)).astype(np.float32)
    shapes = np.full((8, 3, 2), (11, 12), dtype=np.int16)
    shapes[1], shapes[2], shapes[3, 1], shapes[4, 2] = (9, 9), (5, 12), (4, 3), (0, 0)
    pixels[5, 0, 2:5, 3:9] = np.nan
    pixels[5, 1, 5, 5], pixels[5, 1, 5, 6] = np.inf, -np.inf
    pixels[5, 2, 4:6, 4] = -FLOAT32_MAX
    pixels[6, 0], pixels[6, 1] = 7.0, np.nan
    pixels[6, 2] = np.where(rng.random((11, 12)) < 0.8, 3.0, 5.0)  # more than half of the pixels are equal
    pixels[7] *= 1e-3
    outside = np.ones_like(pixels, bool)
    for i, j in itertools.product(range(8), range(3)):
        outside[i, j, : shapes[i, j, 0], : shapes[i, j, 1]] = False
    pixels[outside] = np.nan
    return pixels, shapes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 7, 9, 12, 16])
@pytest.mark.parametrize("side", ["bottom_right", "centre"])
def test_equals_the_slow_truth(stamps, method, size, side):
    c = contract(method, size=size, side=side, value=1e-9)
    got = prepare_images(*stamps, c)
    assert got.dtype == np.float32
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, truth(*stamps, c), atol=2e-6)


@pytest.mark.parametrize("method", METHODS[:3])
@pytest.mark.parametrize("limit", [1e30, FLOAT32_MAX])
def test_padding_before_normalisation(stamps, method, limit):
    c = contract(method, size=13, side="centre", value=40.0, when="before", limit=limit)
    np.testing.assert_allclose(prepare_images(*stamps, c), truth(*stamps, c), atol=2e-6)


@pytest.mark.parametrize("masks", ["none", "per_stamp", "combined"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("method", ["row_l2", "background_noise"])
def test_masks_layouts_and_channel_order(stamps, masks, layout, method):
    c = contract(
        method, masks=masks, layout=layout, channels=("difference", "science"), side="centre", softening=3.0
    )
    got = prepare_images(*stamps, c)
    assert got.shape[1 if layout == "nchw" else 3] == c.n_planes
    np.testing.assert_allclose(got, truth(*stamps, c), atol=2e-6)


def test_norm_beyond_float32_gives_zero_as_the_original(stamps):
    """-3.4e38 marks failed subtractions; the original's float32 norm overflows and the stamp becomes 0."""
    got = prepare_images(*stamps, contract("stamp_l2", size=11, limit=FLOAT32_MAX))
    assert (got[5, 2] == 0).all()
    assert (got[5, 0] != 0).any()
    rows = prepare_images(*stamps, contract("row_l2", size=11, limit=FLOAT32_MAX))
    assert (rows[5, 2, 4:6] == 0).all()
    assert (rows[5, 2, :4] != 0).any()


@given(
    arrays(
        np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    ),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_order_statistic_is_exact(values, data):
    rank = data.draw(st.integers(0, values.size - 1))
    keys = np.array([_kernels._key.py_func(value) for value in values], dtype=np.int32)
    found = _kernels.order_statistic(keys, rank, np.int32(-(2**31)), np.int32(2**31 - 1))
    assert _kernels._value.py_func(np.int32(found)) == np.sort(values)[rank]


def test_order_statistic_of_many_equal_values(rng):
    values = rng.integers(0, 4, 3000).astype(np.float32)
    keys = values.view(np.int32).copy()
    for rank in (0, 700, 1499, 2999):
        found = _kernels.order_statistic(keys, rank, np.int32(0), np.float32(3).view(np.int32))
        assert np.int32(found).view(np.float32) == np.sort(values)[rank]


def test_background_noise_does_not_care_about_zero_point_or_gain(rng):
    pixels = rng.normal(0, 1, (4, 3, 9, 9)).astype(np.float32)
    shapes = np.full((4, 3, 2), 9)
    c = contract("background_noise")
    plain = prepare_images(pixels, shapes, c)
    for gain, sky in ((3.5, 0), (1e-8, 1e-7), (1e6, -3e6), (12.0, 900.0)):
        np.testing.assert_allclose(
            prepare_images((gain * pixels + sky).astype(np.float32), shapes, c), plain, atol=2e-3
        )


def test_background_noise_of_extreme_values_stays_finite():
    pixels = np.zeros((2, 3, 9, 9), np.float32)
    pixels[0, 0], pixels[0, 1, 0, 0], pixels[0, 2, 4] = 3e38, 1e-44, -3e38
    pixels[1, 0, ::2], pixels[1, 1, ::2], pixels[1, 2, ::2] = 3.4e38, 1e-40, 1e-30
    got = prepare_images(pixels, np.full((2, 3, 2), 9), contract("background_noise", limit=FLOAT32_MAX))
    assert np.isfinite(got).all()


def test_stretch_is_arcsinh():
    values = np.concatenate([-np.geomspace(1e14, 1e-6, 400), [0], np.geomspace(1e-6, 1e14, 400)]).astype(
        np.float32
    )
    got = values.copy()
    _kernels.stretch(got, np.float32(1e30), np.float32(0), np.float32(1))
    np.testing.assert_allclose(got, np.arcsinh(values.astype(float)), rtol=3e-7, atol=2e-7)


def test_nothing_in_nothing_out():
    got = prepare_images(np.empty((0, 3, 9, 9), np.float32), np.empty((0, 3, 2), np.int16), contract())
    assert got.shape == (0, 3, 9, 9)


@pytest.mark.parametrize(
    ("pixels", "shapes", "message"),
    [
        (np.zeros((2, 2, 9, 9)), np.zeros((2, 3, 2)), "stamps must have the shape"),
        (np.zeros((2, 3, 9, 9)), np.zeros((1, 3, 2)), "shapes must have the shape"),
        (np.zeros((2, 3, 9, 9)), np.full((2, 3, 2), 10), "larger than its array"),
        (np.zeros((2, 3, 9, 9)), np.full((2, 3, 2), -1), "larger than its array"),
    ],
)
def test_wrong_arrays_are_refused(pixels, shapes, message):
    for function in (prepare_images, lambda *arguments: inspect_images(*arguments, 9)):
        with pytest.raises(ValueError, match=message):
            function(pixels, shapes, contract())


def test_inspection_sees_what_is_wrong(stamps):
    c = contract(size=11)
    flags = inspect_images(*stamps, c, 12)
    truncated, bad, flat = InputFlag.TRUNCATED_STAMP, InputFlag.BAD_PIXELS, InputFlag.DEGENERATE_STAMP
    large = InputFlag.WRONG_SIZE  # 12 columns into 11
    assert flags[0].tolist() == [truncated | large] * 3
    assert flags[1].tolist() == [truncated] * 3
    assert flags[4, 2] == InputFlag.MISSING_STAMP
    assert [int(f) & bad for f in flags[5]] == [bad] * 3
    assert [int(f) & (flat | bad) for f in flags[6]] == [flat, flat | bad, 0]
    whole = inspect_images(*stamps, contract(size=11, larger="crop_centre", channels=("science",)), 11)
    assert whole[0].tolist() == [0]
    assert inspect_images(*stamps, contract(size=12, limit=FLOAT32_MAX), 11)[5, 2] == bad
