from __future__ import annotations

import warnings

import numpy as np
import pytest
import sep
from astropy.io import fits
from scipy.interpolate import CubicSpline

from tapetum.core.errors import InputError
from tapetum.images.background import estimate_background


def sky(rng, shape=(400, 520), noise=6.0):
    y, x = np.mgrid[: shape[0], : shape[1]]
    level = 150 + 20 * x / shape[1] + 10 * np.sin(2 * np.pi * y / 600)
    return level.astype(np.float32), (level + rng.normal(0, noise, shape)).astype(np.float32)


def test_level_and_noise_of_a_crowded_sky(rng):
    level, image = sky(rng)
    for x, y in rng.uniform(5, 390, (300, 2)):
        image[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] += rng.exponential(300)
    found = estimate_background(image)
    assert found.level.dtype == found.noise.dtype == np.float32
    assert np.abs(np.median(found.level - level)) < 0.6
    assert np.abs(found.level - level).max() < 4
    assert np.median(found.noise) == pytest.approx(6.0, rel=0.06)
    assert found.noise.min() > 4


def test_nan_and_masked_pixels_are_left_out(rng):
    level, image = sky(rng)
    mask = np.zeros(image.shape, np.uint8)
    image[100:170, 60:200] = np.nan
    image[200:330, 300:430], mask[200:330, 300:430] = 9000, 4
    found = estimate_background(image, mask)
    assert np.isfinite(found.level).all()
    assert np.isfinite(found.noise).all()
    assert np.abs(found.level - level).max() < 5
    assert found.noise.max() < 9


def test_a_bright_galaxy_does_not_become_sky(rng):
    level, image = sky(rng, (700, 700))
    y, x = np.mgrid[:700, :700]
    galaxy = 5000 * np.exp(-np.hypot(x - 352, y - 352) / 30)
    found = estimate_background(image + galaxy.astype(np.float32))
    sep_level = sep.Background(np.ascontiguousarray(image + galaxy.astype(np.float32))).back()
    centre = np.s_[330:375, 330:375]
    assert (found.level - level)[centre].mean() < 0.25 * (sep_level - level)[centre].mean()
    assert found.noise.max() < 40
    corners = np.hypot(x - 352, y - 352) > 330
    assert np.abs(found.level - level)[corners].max() < 4


@pytest.mark.parametrize("side", [150, 400])
def test_the_map_is_a_spline_through_the_boxes(side):
    """With a box per block the mesh is known: between its centres the map is scipy's spline, beyond them straight."""
    box = 50
    n = side // box
    mesh = np.add.outer(np.sin(np.arange(n)), np.cos(1.7 * np.arange(n))) * 20 + 500
    noise = np.random.default_rng(1).normal(0, 0.01, (side, side))
    image = (np.kron(mesh, np.ones((box, box))) + noise).astype(np.float32)
    found = estimate_background(image, box=box, filter_size=1).level
    at, centres = np.arange(side), np.arange(n) * box + (box - 1) / 2
    bc = "not-a-knot" if n > 3 else "natural"
    wanted = mesh
    for axis in (0, 1):
        wanted = CubicSpline(centres, wanted, axis=axis, bc_type=bc)(at)
    inner = np.flatnonzero((at >= centres[0]) & (at <= centres[-1]))
    assert np.abs(found - wanted)[np.ix_(inner, inner)].max() < 0.05
    for outer in (at < centres[0], at > centres[-1]):
        steps = np.diff(found[outer], 2, axis=0), np.diff(found[:, outer], 2, axis=1)
        assert max(np.abs(step).max() for step in steps) < 1e-3


def test_odd_sizes_and_single_boxes(rng):
    image = rng.normal(150, 6, (70, 33)).astype(np.float32)
    found = estimate_background(image, box=64)
    assert found.level.shape == (70, 33)
    assert np.median(found.noise) == pytest.approx(6.0, rel=0.15)


def test_hopeless_images_are_refused(rng):
    with pytest.raises(InputError, match="enough good pixels"):
        estimate_background(np.full((100, 100), np.nan, np.float32))
    with pytest.raises(InputError, match="differ from each other"):
        estimate_background(np.full((100, 100), 7, np.float32))
    with pytest.raises(InputError, match="odd filter"):
        estimate_background(np.zeros((100, 100), np.float32), filter_size=2)
    with pytest.raises(InputError, match="one shape"):
        estimate_background(np.zeros((100, 100), np.float32), np.zeros((10, 10), np.uint8))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("ztf_20200924431759_000655_zr_c13_o_q3_sciimg.fits.fz", slice(0, 1024)),
        ("ztf_20200723164595_000752_zg_c02_o_q3_sciimg.fits.fz", slice(600, 1800)),
    ],
)
def test_real_frames_agree_with_sep_where_the_sky_is_plain(real_data, name, rows):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(real_data / "ztf_images" / name) as file:
            data = file[1].section[rows, 1024:].astype(np.float32)
    found = estimate_background(data)
    other = sep.Background(data)
    level, noise = other.back(), other.rms()
    plain = noise < 1.3 * np.median(noise)  # in the other frame a comet's head fills some boxes
    assert plain.mean() > 0.6
    assert np.abs(np.median((found.level - level)[plain])) < 0.1
    assert np.percentile(np.abs(found.level - level)[plain], 95) < 0.4 * np.median(noise)
    assert np.median(found.noise[plain] / noise[plain]) == pytest.approx(1, abs=0.02)
    assert found.noise.max() < 4 * np.median(found.noise)


@pytest.mark.parametrize("slope", [0.0, 0.5, 2.0])
def test_a_slope_is_no_noise(rng, slope):
    y, x = np.mgrid[:400, :500]
    level = 200 + slope * x - 0.4 * slope * y
    found = estimate_background((level + rng.normal(0, 10, level.shape)).astype(np.float32))
    assert found.typical_noise == pytest.approx(10, rel=0.03)
    assert found.noise.max() < 11
    assert np.abs(found.level - level).max() < 5
