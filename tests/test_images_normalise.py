"""Images in units of their sky noise: MaxiMask's numbers where they are asked for, and right ones else."""

from __future__ import annotations

import numpy as np
import pytest

from tapetum.core.errors import InputError
from tapetum.images.fits import read_frame
from tapetum.images.normalise import LIMIT, normalise, normalise_original

SKY, NOISE = 1000.0, 30.0
GOLDENS = (
    "clean400_sdss", "galaxy_apogee", "m51_kpno_1987", "nircam_f200w_a", "saao_ste3", "trail400_hsc", "trail_ystar",
)  # fmt: skip


def flat(rng, *shape):
    return rng.normal(SKY, NOISE, shape).astype(np.float32)


@pytest.mark.parametrize("name", GOLDENS)
def test_original_numbers_are_repeated(real_data, name):
    golden = np.load(real_data / "images" / f"{name}.golden.npz")
    found = normalise_original(read_frame(real_data / "images" / f"{name}.fits").data, threads=2)
    np.testing.assert_allclose(found.data[::8, ::8], golden["norm_stride8"], rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(found.background[::50, ::50], golden["bg_stride50"], rtol=5e-7, atol=1e-9)
    np.testing.assert_allclose(found.sigma[::50, ::50], golden["sigma_stride50"], rtol=5e-7)


@pytest.mark.parametrize("side", [450, 1000])
def test_sky_is_flat_into_the_corners(rng, side):
    image = flat(rng, side, side)
    ours, theirs = normalise(image), normalise_original(image)
    assert np.abs(ours.background - SKY).max() < 0.1 * NOISE
    assert np.abs(ours.sigma / NOISE - 1).max() < 0.05
    assert theirs.background[0, 0] < SKY - 2 * NOISE  # the defect that this module says it has


def test_values_are_in_units_of_the_noise(rng):
    image = flat(rng, 500, 700)
    image[250, 300] += 100 * NOISE
    found = normalise(image)
    assert found.data.std() == pytest.approx(1, abs=0.05)
    assert found.data[250, 300] == pytest.approx(100, abs=5)
    assert not found.missing.any()


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_the_unit_of_the_image_does_not_matter(rng, unit):
    image = flat(rng, 300, 300)
    np.testing.assert_allclose(normalise(image * np.float32(unit)).data, normalise(image).data, atol=2e-4)


def test_slopes_and_vignetting_count_as_sky(rng):
    y, x = np.mgrid[-1:1:1000j, -1:1:1000j]
    sky = SKY * (1 - 0.15 * (x * x + y * y)) + 100 * x
    found = normalise((sky + rng.normal(0, 10, sky.shape)).astype(np.float32))
    assert np.abs(found.background - sky).mean() < 4
    assert np.abs(found.background - sky).max() < 30
    assert found.sigma.max() < 14
    assert found.sigma.min() > 9


def test_a_region_without_values_changes_nothing_elsewhere(rng):
    image = flat(rng, 900, 900)
    holed = image.copy()
    holed[:, 300:520] = np.nan
    holed[5, 5], holed[6, 6] = np.inf, -np.inf
    bad = np.zeros(image.shape, np.uint8)
    bad[700:705] = 1
    holed[700:705] = 9e8  # said to be bad, so its value is nothing
    found = normalise(holed, bad)
    gone = ~np.isfinite(holed) | (bad != 0)
    np.testing.assert_array_equal(found.missing, gone)
    assert not found.data[gone].any()
    assert np.abs(found.data - normalise(image).data)[~gone].max() < 0.2


def test_a_dead_half_does_not_spoil_the_other(rng):
    image = flat(rng, 600, 1200)
    image[:, 700:] = 0
    found = normalise(image)
    assert found.data[:, :600].std() == pytest.approx(1, abs=0.05)
    assert np.isfinite(found.data).all()


@pytest.mark.parametrize("shape", [(1, 40), (7, 7), (50, 450), (199, 201)])
def test_frames_smaller_than_a_block(rng, shape):
    found = normalise(flat(rng, *shape))
    assert found.data.shape == shape
    assert found.data.std() == pytest.approx(1, abs=0.35)


def test_threads_change_nothing(rng):
    image = flat(rng, 450, 610)
    for function in (normalise, normalise_original):
        np.testing.assert_array_equal(function(image, threads=3).data, function(image).data)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int64, np.uint64, ">f4", np.float64])
def test_any_type_of_number(rng, kind):
    image = rng.integers(90, 120, (60, 60))
    np.testing.assert_allclose(
        normalise(image.astype(kind)).data, normalise(image.astype(np.float32)).data, atol=1e-6
    )


def test_what_is_far_brighter_than_any_star_is_held(rng):
    image = flat(rng, 60, 60)
    image[3, 3] = 1e30
    found = normalise(image)
    assert found.data[3, 3] == LIMIT
    assert np.isfinite(found.data).all()


def saturated(rng):
    image = np.full((300, 300), 65535, np.float32)
    image[:20] = flat(rng, 20, 300)
    return image


@pytest.mark.parametrize("function", [normalise, normalise_original])
@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (lambda rng: np.full((300, 300), np.nan), "no pixel has a value"),
        (lambda rng: np.full((300, 300), 7), "every pixel is 7"),
        (lambda rng: np.zeros((300, 300)), "every pixel is 0"),
        (saturated, "84000 of 90000 pixels, more than half, have the value 65535"),
        (lambda rng: np.zeros((0, 5)), "two axes"),
        (lambda rng: np.zeros((2, 5, 5)), "two axes"),
    ],
)
def test_what_cannot_be_judged_is_said(rng, image, reason, function):
    with pytest.raises(InputError, match=reason):
        function(image(rng))


def test_further_frames_that_cannot_be_judged(rng):
    with pytest.raises(InputError, match=r"90000 of 90000 pixels are saturated \(at 500"):
        normalise(flat(rng, 300, 300), saturation=500)
    with pytest.raises(InputError, match=r"84000 of 90000 pixels are saturated \(at 65535"):
        normalise(saturated(rng), saturation=65535)
    with pytest.raises(InputError, match="mask of its shape"):
        normalise(flat(rng, 30, 30), np.zeros((3, 3)))
    with pytest.raises(InputError, match="no pixel has a value"):
        normalise(flat(rng, 30, 30), np.ones((30, 30)))
    beyond = rng.normal(1e6, 10, (450, 450))  # MaxiMask makes one value of it
    with pytest.raises(InputError, match="but one value"):
        normalise_original(beyond)
    assert normalise(beyond).data.std() == pytest.approx(1, abs=0.05)
    specks = np.zeros((300, 300))
    specks[::10, ::10] = 5
    with pytest.raises(InputError, match="no sky"):
        normalise(specks)


@pytest.mark.parametrize("seed", range(6))
def test_a_sky_that_is_cut_at_one_value_has_no_noise(seed):
    cut = np.maximum(np.random.default_rng(seed).normal(0, 1, (400, 400)), 0).astype(np.float32)
    for image in (cut, cut + np.float32(3), cut.astype(np.float64) * 1e-8):
        with pytest.raises(InputError, match="no sky"):
            normalise(image)


@pytest.mark.parametrize("far", [1e6, 1e8, 1e10, 1e12])
@pytest.mark.parametrize("sign", [-1, 1])
def test_sentinels_have_no_effect(rng, sign, far):
    image = rng.normal(0, 1e-6, (600, 600)).astype(np.float32)
    places = rng.permutation(image.size)[: image.size // 10_000]
    found = image.copy()
    found.ravel()[places] = sign * far * 1e-6
    others = np.delete(np.arange(image.size), places)
    off = normalise(found).data.ravel()[others] - normalise(image).data.ravel()[others]
    assert np.abs(off).max() < 0.05


def diamond(n, share):
    """What is outside a square that stands on its corner."""
    y, x = np.abs(np.mgrid[:n, :n] - (n - 1) / 2)
    return y + x > np.quantile(y + x, 1 - share)


@pytest.mark.parametrize("side", [200, 400, 700])
@pytest.mark.parametrize("share", [0.15, 0.3, 0.54])
@pytest.mark.parametrize(
    ("sky", "noise", "value", "kind"),
    [
        (1000, 30, 0, np.float32),
        (1000, 30, 0, np.uint16),
        (1000, 30, 65535, np.uint16),
        (1e9, 4, -999.25, np.float64),
        (60, 30, 0, np.float32),
        (0, 5, 0, np.float32),
        (9, 3, 0, np.uint8),
    ],
)
def test_what_only_fills_the_frame_is_missing(rng, side, share, sky, noise, value, kind):
    good = rng.normal(sky, noise, (side, side))
    if np.issubdtype(kind, np.integer):
        good = good.round().clip(1, 60000)
    image, outside = good.astype(kind), diamond(side, share)
    image[outside] = value
    found = normalise(image)
    np.testing.assert_array_equal(found.missing, outside)
    assert not found.data[outside].any()
    assert found.data[~outside].mean() == pytest.approx(0, abs=0.05)
    assert found.data[~outside].std() == pytest.approx(1, abs=0.07)


@pytest.mark.parametrize("kind", [np.float32, np.uint16])
def test_scattered_pixels_of_one_value_are_missing(rng, kind):
    image = flat(rng, 500, 500).astype(kind)
    gone = rng.random(image.shape) < 0.3
    image[gone] = 0
    found = normalise(image)
    np.testing.assert_array_equal(found.missing, gone)
    assert found.data[~gone].std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", ["i4", "f4"])
@pytest.mark.parametrize("sky", [1000, 100, 10])
def test_two_fillers_with_nothing_between_them(rng, kind, sky):
    image = rng.normal(sky, 10, (400, 420)).astype(kind)
    image[:, :60], image[:, 360:] = 0, -999
    missing = normalise(image).missing
    assert missing[:, :60].all()
    assert missing[:, 360:].all()
    assert missing[:, 60:360].mean() < 2e-3  # a sky of 10 has zeros as well
    image[:, 360:] = 5000
    assert normalise(image).missing[:, 360:].all()


def test_two_fillers_and_a_mask(rng):
    image = flat(rng, 600, 600)
    image[:, :80], image[500:] = 0, 65535
    bad = np.zeros(image.shape, bool)
    bad[:100] = True
    found = normalise(image, bad)
    np.testing.assert_array_equal(found.missing, bad | (image == 0) | (image == 65535))


def test_a_filler_at_the_level_of_the_sky_takes_little_of_it(rng):
    image = rng.normal(0, 5, (500, 500)).round().astype(np.int16)
    outside = diamond(500, 0.3)
    image[outside] = 0
    found = normalise(image)
    assert found.missing[outside].mean() > 0.999
    assert found.missing[~outside].mean() < 0.005
    assert found.data[~outside].std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("noise", [0.35, 0.4, 0.5, 0.7, 1.0, 3.0])
def test_levels_of_a_quiet_integer_image_are_sky(rng, noise):
    image = rng.normal(100.2, noise, (400, 400)).round().astype(np.uint8)
    found = normalise(image)
    assert not found.missing.any()
    assert found.sigma.mean() == pytest.approx(image.std(), rel=0.15)


@pytest.mark.parametrize("rate", [0.5, 0.7, 1.0, 1.5, 8.0])
def test_no_photon_is_a_value_too(rng, rate):
    photons = rng.poisson(rate, (400, 400))
    for image in (
        photons,
        photons / rng.normal(1, 0.05, photons.shape),
    ):  # divided by a flat, 0 alone repeats
        assert not normalise(image).missing.any()


@pytest.mark.parametrize("level", [0.0, -1.0, -1.6])
def test_values_cut_at_a_level_are_sky(rng, level):
    image = np.maximum(rng.normal(0, 1, (600, 600)), level).astype(np.float32)
    image[5, :5] = -99
    try:
        assert not normalise(image).missing.any()
    except InputError as error:
        assert level == 0, error  # half of the pixels have this value  # noqa: PT017


def test_saturated_stars_and_small_blank_areas_stay(rng):
    image = flat(rng, 500, 500)
    image[100:200, 100:200] = 65535
    image[300, :] = 0
    assert not normalise(image).missing.any()
    image[:, 200:400] = 65535
    assert not normalise(image, saturation=65535).missing.any()
    assert normalise(image).missing[300, 300]


@pytest.mark.parametrize("kind", [np.int64, np.uint32, np.float64])
def test_differences_between_large_numbers_count(rng, kind):
    small = rng.integers(-3, 4, (400, 400))
    image = (small + 2**31).astype(kind)
    found = normalise(image)
    np.testing.assert_allclose(found.data, normalise(small).data, atol=1e-5)
    assert found.background.mean() == pytest.approx(2**31)
    image[5, 5] = 2**31 - 2**20 if kind != np.float64 else 1e300
    held = normalise(image).data
    assert (
        np.abs(np.delete(held.ravel(), 5 * 400 + 5) - np.delete(found.data.ravel(), 5 * 400 + 5)).max() < 0.05
    )
    assert abs(held[5, 5]) > 1e5
