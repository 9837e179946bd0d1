"""Augmentation keeps the source where it must be and never invents or loses a stamp."""

from __future__ import annotations

import numpy as np
import pytest

from tapetum.training.augment import (
    augment,
    cropped,
    cut_at_edge,
    noisier,
    resampled,
    sloped,
    with_holes,
    without_band,
    without_block,
)
from tapetum.training.recipe import Augmentation

EVERYTHING = Augmentation(
    resample=0.5, noise=0.5, gradient=0.5, swap=0.5, crop=0.3, cut=0.5, band=0.5, block=0.5, holes=0.5
)


@pytest.fixture
def triplet(rng: np.random.Generator) -> np.ndarray:
    stamps = rng.normal(100, 5, (3, 63, 63)).astype(np.float32)
    stamps[:, 31, 31] += 1000
    return stamps


def test_nothing_asked_for_is_a_flip_or_turn(triplet: np.ndarray, rng: np.random.Generator) -> None:
    shapes = np.full((3, 2), 63, np.int16)
    seen = set()
    for _ in range(60):
        stamps, new = augment(triplet, shapes, True, Augmentation(), rng)
        assert (new == 63).all()
        np.testing.assert_array_equal(np.sort(stamps, axis=None), np.sort(triplet, axis=None))
        assert (stamps[:, 31, 31] > 900).all()
        seen.add(stamps[0, 0, :3].tobytes())
    assert len(seen) == 8


def test_everything_at_once_keeps_a_bright_source_and_valid_shapes(
    triplet: np.ndarray, rng: np.random.Generator
) -> None:
    shapes = np.full((3, 2), 63, np.int16)
    for _ in range(300):
        stamps, new = augment(triplet, shapes, True, EVERYTHING, rng)
        assert stamps.shape == triplet.shape
        for stamp, (n_y, n_x) in zip(stamps, new, strict=True):
            assert 1 <= n_y <= 63
            assert 1 <= n_x <= 63
            assert np.isnan(stamp[n_y:]).all()
            assert np.isnan(stamp[:, n_x:]).all()
            assert np.nanmax(stamp) > 200  # the source is still there


def test_stamps_that_are_cut_already_are_not_cut_again(triplet: np.ndarray, rng: np.random.Generator) -> None:
    stamps = triplet.copy()
    stamps[:, 40:] = np.nan
    shapes = np.array([[40, 63]] * 3, np.int16)
    for _ in range(50):
        _, new = augment(stamps, shapes, True, Augmentation(cut=1, crop=1, band=1, block=1, resample=1), rng)
        assert sorted(new[0].tolist()) == [40, 63]


def test_zoom_widens_about_the_middle_and_a_shift_moves(rng: np.random.Generator) -> None:
    y, x = np.mgrid[:63, :63] - 31
    gaussian = np.exp(-0.5 * (x**2 + y**2) / 2.0**2).astype(np.float32)[None].repeat(3, 0)
    wide = resampled(gaussian, 1.5, 0.0, 0.0)[0]
    inner = np.hypot(x, y) < 20
    width = np.sqrt((wide * x**2)[inner].sum() / wide[inner].sum())
    assert width == pytest.approx(3.0, rel=0.05)
    moved = resampled(gaussian, 1.0, 0.25, -0.5)[0]
    centre = [(moved * axis)[inner].sum() / moved[inner].sum() for axis in (y, x)]
    assert centre == pytest.approx([0.25, -0.5], abs=0.02)
    same = resampled(gaussian, 1.0, 0.0, 0.0)
    np.testing.assert_allclose(same, gaussian)


def test_an_edge_takes_rows_or_columns_but_never_the_source(
    triplet: np.ndarray, rng: np.random.Generator
) -> None:
    shapes = set()
    for _ in range(100):
        cut = cut_at_edge(triplet, rng)
        assert (cut.max(axis=(1, 2)) > 900).all()
        assert cut.shape[1:] != (63, 63)
        shapes.add((cut.shape[1] < 63, cut.shape[2] < 63))
    assert shapes == {(True, False), (False, True), (True, True)}


def test_a_crop_keeps_the_source_in_the_middle(triplet: np.ndarray, rng: np.random.Generator) -> None:
    for _ in range(30):
        small = cropped(triplet, rng)
        side = small.shape[1]
        assert small.shape == (3, side, side)
        assert 25 <= side <= 63
        assert (small[:, side // 2, side // 2] > 900).all()


@pytest.mark.parametrize("change", [with_holes, without_band, without_block])
def test_masks_take_values_away_but_not_the_source(
    change, triplet: np.ndarray, rng: np.random.Generator
) -> None:
    lost = 0
    for _ in range(50):
        masked = change(triplet, rng)
        assert np.isfinite(masked[:, 31, 31]).all()
        kept = np.isfinite(masked)
        np.testing.assert_array_equal(masked[kept], triplet[kept])
        lost += int((~kept).sum())
    assert lost > 0
    assert np.isfinite(triplet).all()


def test_noise_goes_into_science_and_difference_alike(triplet: np.ndarray, rng: np.random.Generator) -> None:
    out = noisier(triplet, rng)
    np.testing.assert_array_equal(out[1], triplet[1])
    added = [(out[c] - triplet[c]).ravel() for c in (0, 2)]
    assert np.corrcoef(added[0], added[1])[0, 1] > 0.999
    slope = sloped(triplet, rng)
    np.testing.assert_array_equal(slope[2], triplet[2])
    assert not np.array_equal(slope[:2], triplet[:2])


@pytest.mark.parametrize("side", range(1, 31))
def test_stamps_of_any_size_can_be_augmented(side: int, rng: np.random.Generator) -> None:
    stamps = np.full((3, 63, 63), np.nan, np.float32)
    stamps[:, :side, :side] = 1.0
    middle = side // 2
    stamps[:, middle, middle] = 1000.0
    always = Augmentation(noise=1, gradient=1, crop=1, cut=1, band=1, block=1, holes=1)
    for _ in range(20):
        for settings in (EVERYTHING, always):
            changed, new = augment(stamps, np.full((3, 2), side, np.int16), False, settings, rng)
            assert ((new >= 1) & (new <= side)).all()
            assert np.nanmax(changed) > 500


def test_small_stamps_are_not_made_smaller_than_their_source(rng: np.random.Generator) -> None:
    small = np.ones((3, 9, 9), np.float32)
    for change in (cropped, cut_at_edge, without_band):
        assert change(small, rng) is small
