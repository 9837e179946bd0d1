"""Second moments and trails against images whose shapes are known."""

import numpy as np
import pytest

from tapetum.images.psf import PsfModel
from tapetum.images.shapes import (
    FWHM_PER_SIGMA,
    axes_of,
    ellipses_of,
    gaussian_of,
    measure_shapes,
    over_rows,
    weighted_plane,
)
from tapetum.images.trails import Trail, fit_trail, line_flux, link_lines, near_trail

SHAPE = (120, 140)
NOISE = 5.0


def plane_of(image, mask=None, noise=NOISE):
    return weighted_plane(image.astype(np.float32), np.full(image.shape, noise, np.float32), mask, 5)


def gaussian(x0, y0, long, short, angle_deg, flux=1.0):
    y, x = np.indices(SHAPE)
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    u, v = (x - x0) * c + (y - y0) * s, -(x - x0) * s + (y - y0) * c
    return flux * np.exp(-0.5 * (u**2 / long**2 + v**2 / short**2)) / (2 * np.pi * long * short)


def trail_image(psf, x0, y0, length, angle_deg, flux):
    """Many stars on a line: the truth that no formula enters."""
    image = np.zeros((SHAPE[0] + 2 * psf.half, SHAPE[1] + 2 * psf.half))
    along = (np.arange(400) + 0.5) / 400 * length - length / 2
    xs, ys = x0 + along * np.cos(np.radians(angle_deg)), y0 + along * np.sin(np.radians(angle_deg))
    for stamp, x, y in zip(psf.stamps(xs, ys), xs, ys, strict=True):
        column, row = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        if -psf.half <= column < SHAPE[1] + psf.half - 1 and -psf.half <= row < SHAPE[0] + psf.half - 1:
            part = image[max(row, 0) : row + psf.size, max(column, 0) : column + psf.size]
            top, left = max(-row, 0), max(-column, 0)
            part += flux / 400 * stamp[top : top + part.shape[0], left : left + part.shape[1]]
    return image[psf.half : -psf.half, psf.half : -psf.half]


@pytest.mark.parametrize(("long", "short", "angle"), [(3.0, 2.0, 30.0), (1.5, 1.5, 0.0), (4.0, 1.2, 135.0)])
@pytest.mark.parametrize("sign", [1, -1])
def test_moments_of_a_gaussian_are_its_own(long, short, angle, sign):
    plane = plane_of(sign * gaussian(60.3, 50.7, long, short, angle, 1e4))
    ones = np.array([1])
    shape = measure_shapes(
        plane, np.array([60.3]), np.array([50.7]), sign * ones, np.array([1.8]), np.array([20.0])
    )
    assert shape.fwhm_pix[0] == pytest.approx(FWHM_PER_SIGMA * np.sqrt(long * short), rel=0.01)
    assert shape.elongation[0] == pytest.approx(long / short, rel=0.02)
    if long > short:
        assert shape.angle_deg[0] == pytest.approx(angle, abs=1)


def test_moments_of_nothing_are_nan_and_masked_pixels_do_not_bias(rng):
    image = gaussian(60.0, 50.0, 2.0, 2.0, 0.0, 1e4)
    mask = (rng.random(SHAPE) < 0.02).astype(np.uint8)
    image[mask != 0] = 1e6
    plane = plane_of(image, mask)
    where = np.array([60.0, 10.0]), np.array([50.0, 10.0])
    shape = measure_shapes(plane, *where, np.array([1, -1]), np.full(2, 1.5), np.full(2, 12.0))
    assert shape.fwhm_pix[0] == pytest.approx(2 * FWHM_PER_SIGMA, rel=0.15)
    assert np.isnan(shape.fwhm_pix[1])
    assert np.isnan(shape.angle_deg[1])


def test_axes_and_angle_follow_a_rotation():
    long, short, angle = axes_of(
        np.array([9.0, 4.0, 5.0]), np.array([0.0, 0.0, 4.0]), np.array([4.0, 9.0, 5.0])
    )
    np.testing.assert_allclose(long, [3, 3, 3])
    np.testing.assert_allclose(short, [2, 2, 1])
    np.testing.assert_allclose(np.degrees(angle), [0, 90, 45])


def test_gaussian_of_a_gaussian():
    y, x = np.indices((15, 15)) - 7
    assert gaussian_of(np.exp(-0.5 * (x**2 + y**2) / 1.3**2).astype(np.float32)) == pytest.approx(
        1.3, rel=0.02
    )


@pytest.mark.parametrize(("length", "angle"), [(6.0, 81.0), (12.4, 170.0), (40.0, 35.0), (60.0, 90.0)])
def test_a_trail_is_measured(rng, length, angle):
    psf = PsfModel.moffat(2.2, 3.2, SHAPE)
    truth = trail_image(psf, 70.3, 60.6, length, angle, 2000.0 * np.sqrt(length))
    plane = plane_of(truth + rng.normal(0, NOISE, SHAPE))
    sigma = gaussian_of(psf.centred(60, 60))
    trail = fit_trail(plane, 71.0, 60.0, 0.8 * length, np.radians(angle + 4), sigma)
    assert trail is not None
    assert np.hypot(trail.x - 70.3, trail.y - 60.6) < 0.15
    assert trail.length == pytest.approx(length, abs=0.7)
    assert abs((np.degrees(trail.angle) - angle + 90) % 180 - 90) < 1.5
    flux, flux_err, chi2 = line_flux(plane, psf, trail)
    assert abs(flux - 2000 * np.sqrt(length)) < 4 * flux_err + 0.02 * flux
    assert 0.7 < chi2 < 1.8
    x1, y1, x2, y2 = trail.ends
    assert x1 <= x2
    assert np.hypot(x2 - x1, y2 - y1) == pytest.approx(trail.length)


def test_a_dark_trail_is_measured_like_a_bright_one(rng):
    psf = PsfModel.moffat(2.2, 3.2, SHAPE)
    image = trail_image(psf, 70.0, 60.0, 30.0, 20.0, 40000.0) + rng.normal(0, NOISE, SHAPE)
    bright = fit_trail(plane_of(image), 70, 60, 28, np.radians(20), 1.0)
    dark = fit_trail(plane_of(-image), 70, 60, 28, np.radians(20), 1.0, sign=-1)
    assert bright is not None
    assert dark is not None
    assert dark.flux == pytest.approx(-bright.flux)
    assert dark.length == pytest.approx(bright.length)


def test_a_trail_that_leaves_the_image_ends_at_its_edge(rng):
    psf = PsfModel.moffat(2.2, 3.2, SHAPE)
    image = trail_image(psf, 20.0, 60.0, 80.0, 0.0, 80000.0) + rng.normal(0, NOISE, SHAPE)
    trail = fit_trail(plane_of(image), 30.0, 60.0, 60.0, 0.0, 1.0)
    assert trail is not None
    assert trail.ends[0] == pytest.approx(-0.5, abs=0.5)
    assert trail.ends[2] == pytest.approx(60.0, abs=0.7)


def test_no_trail_without_pixels():
    plane = plane_of(np.zeros(SHAPE), np.ones(SHAPE, np.uint8))
    assert fit_trail(plane, 60, 60, 20, 0.3, 1.0) is None
    nothing = Trail(60, 60, 20, 0.3, 1, 1, 1, 0)
    assert np.isnan(line_flux(plane, PsfModel.moffat(2, 3, SHAPE), nothing)).all()


def sums_of(pixels):
    """Sums of w = 1 over lists of (x, y)."""
    return np.array(
        [
            [
                len(p),
                p[:, 0].sum(),
                p[:, 1].sum(),
                (p[:, 0] ** 2).sum(),
                p.prod(axis=1).sum(),
                (p[:, 1] ** 2).sum(),
            ]
            for p in pixels
        ]
    )


def piece(x, y, length, angle_deg, width=2):
    along = np.linspace(-length / 2, length / 2, int(4 * length) + 1)
    across = np.linspace(-width / 2, width / 2, 5)
    u, v = (a.ravel() for a in np.meshgrid(along, across))
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.stack([x + u * c - v * s, y + u * s + v * c], axis=1)


def test_pieces_of_one_line_are_joined_and_others_are_not():
    line = [piece(100 + d, 100 + 0.5 * d, 20, 26.565) for d in (0, 30, 55)]
    others = [piece(100, 140, 20, 26.565), piece(128, 90, 20, 100), piece(130, 115, 2, 0)]
    pixels = [*line, *others]
    sums = sums_of(pixels)
    n_pix = np.array([len(p) for p in pixels])
    groups = link_lines(sums, np.ones(6, np.int64), n_pix, 2.5)
    assert {0, 1, 2} in [set(group.tolist()) & {0, 1, 2, 3, 4} for group in groups]
    signs = np.array([1, -1, 1, 1, 1, 1])
    assert all(len({int(signs[k]) for k in group}) == 1 for group in link_lines(sums, signs, n_pix, 2.5))
    x, y, long, _, angle = ellipses_of(sums[:1])
    assert (x[0], y[0]) == pytest.approx((100, 100))
    assert long[0] == pytest.approx(20 / np.sqrt(12), rel=0.05)
    assert np.degrees(angle[0]) == pytest.approx(26.565, abs=0.1)


def test_near_a_trail():
    trail = Trail(50.0, 50.0, 20.0, np.pi / 4, 1, 1, 1, 0)
    x, y = np.array([50.0, 57.0, 60.0, 50.0]), np.array([50.0, 57.0, 60.0, 55.0])
    assert near_trail(trail, x, y, 2.0, 3.0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_rows_are_shared_out_once_each(threads):
    seen = np.zeros(50, int)

    def work(first, last):
        assert first % 8 == 0
        seen[first:last] += 1

    over_rows(work, 50, threads, step=8)
    assert (seen == 1).all()


def test_planes_refuse_different_shapes():
    with pytest.raises(ValueError, match="one shape"):
        weighted_plane(np.zeros((5, 5), np.float32), np.zeros((5, 4), np.float32), None, 1)
