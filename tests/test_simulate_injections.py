"""Simulated alerts: the arithmetic of rendering and subtraction, and labels that follow from what was put in."""

from __future__ import annotations

import numpy as np
import pytest

from tapetum.simulate.injections import (
    FIELD,
    MIDDLE,
    OVER,
    SCENARIOS,
    STAMP,
    Psf,
    Scene,
    cosmic_ray,
    render,
    simulate_alert,
    subtract_scene,
    subtraction_filters,
)

CLEAN = {"psf_science": Psf(2.6), "psf_template": Psf(2.2)}


def _otf(psf: Psf) -> np.ndarray:
    return np.fft.rfft2(psf.image(FIELD, OVER)).astype(np.complex64)


def test_flux_is_kept_and_lies_where_it_was_put() -> None:
    image = render(np.array([[40.3, 51.8, 1000.0]]), _otf(Psf(2.5)))
    y, x = np.mgrid[:FIELD, :FIELD]
    assert image.sum() == pytest.approx(1000, rel=1e-4)
    near = np.hypot(x - 40, y - 52) < 8
    centroid = [(image * axis)[near].sum() / image[near].sum() for axis in (x, y)]
    assert centroid == pytest.approx([40.3, 51.8], abs=0.02)


def test_rendering_is_linear_and_shifts_by_whole_pixels_exactly() -> None:
    otf = _otf(Psf(2.0, ellipticity=0.2, angle=0.7))
    one, other = np.array([[30.0, 40.0, 5.0]]), np.array([[50.25, 41.0, 7.0]])
    both = render(np.vstack([one, other]), otf)
    np.testing.assert_allclose(both, render(one, otf) + render(other, otf), atol=1e-5)
    moved = render(one + np.array([3, -2, 0]), otf)
    np.testing.assert_allclose(moved, np.roll(render(one, otf), (-2, 3), (0, 1)), atol=1e-5)


def test_the_psf_has_the_width_it_says() -> None:
    fine = Psf(4.0).image(64, 8)
    profile = np.roll(fine[0], 256)
    above = np.flatnonzero(profile >= profile.max() / 2)
    assert (above[-1] - above[0]) / 8 == pytest.approx(4.0, abs=0.2)


@pytest.mark.parametrize("proper", [True, False])
def test_constant_stars_vanish_and_noise_has_unit_spread(proper: bool, rng: np.random.Generator) -> None:
    stars = np.array([[30.2, 40.7, 900.0, 900.0], [60.5, 55.1, 4000.0, 4000.0]])
    scene = Scene(**CLEAN, stars=stars, proper=proper, electrons=1e9, noise_template=0.3)
    frames = subtract_scene(scene, rng)
    assert np.abs(frames.artefact).max() < (1 if proper else 12)  # of stars of peak 400
    if proper:
        assert frames.difference.std() == pytest.approx(1.0, abs=0.03)


def test_a_change_appears_with_its_flux_and_the_parts_add_up(rng: np.random.Generator) -> None:
    scene = Scene(**CLEAN, change=np.array([[MIDDLE, MIDDLE, 300.0]]), proper=False, electrons=1e9)
    frames = subtract_scene(scene, rng)
    assert frames.change.sum() == pytest.approx(300, rel=1e-3)
    noise = frames.difference - frames.change - frames.artefact
    assert noise.std() == pytest.approx(np.sqrt(1 + 0.3**2 * _kernel_power()), rel=0.1)
    assert abs(noise.mean()) < 0.1


def _kernel_power() -> float:
    _, kernel = subtraction_filters(Psf(2.6), Psf(2.2), (1.0, 0.3), proper=False)
    full = np.abs(np.fft.fft2(np.fft.irfft2(kernel, (FIELD, FIELD)))) ** 2
    return float(full.mean())


@pytest.mark.parametrize("kind", sorted(SCENARIOS))
def test_every_scenario_gives_a_whole_labelled_triplet_again_and_again(kind: str) -> None:
    truth = simulate_alert(kind, np.random.default_rng(11))
    assert truth.stamps.shape == (3, STAMP, STAMP)
    assert truth.stamps.dtype == np.float32
    assert np.isfinite(truth.stamps).all()
    assert 0 <= truth.target <= 1
    np.testing.assert_array_equal(simulate_alert(kind, np.random.default_rng(11)).stamps, truth.stamps)


REAL = ("new_source", "on_galaxy", "moving")
NEVER = sorted(
    set(SCENARIOS) - {"new_source", "on_galaxy", "variable", "near_star", "moving", "ringing_variable"}
)


@pytest.mark.parametrize("kind", REAL)
def test_changes_of_the_sky_are_mostly_real(kind: str) -> None:
    targets = [simulate_alert(kind, np.random.default_rng([3, seed])).target for seed in range(12)]
    assert np.mean(targets) > 0.6


@pytest.mark.parametrize("kind", NEVER)
def test_what_nothing_on_the_sky_made_is_never_real(kind: str) -> None:
    assert max(simulate_alert(kind, np.random.default_rng([5, seed])).target for seed in range(4)) == 0


def test_a_fading_source_is_flipped_where_the_survey_flips() -> None:
    kept = [simulate_alert("variable", np.random.default_rng([9, seed]), flip=0.0) for seed in range(30)]
    flipped = [simulate_alert("variable", np.random.default_rng([9, seed]), flip=1.0) for seed in range(30)]
    middle = np.s_[2, STAMP // 2 - 1 : STAMP // 2 + 2, STAMP // 2 - 1 : STAMP // 2 + 2]
    dark = [t for t in kept if t.snr > 15 and t.artefact < 0.2 and t.stamps[middle].sum() < 0]
    assert dark
    assert all(t.stamps[middle].sum() > 0 for t in flipped if t.snr > 15 and t.artefact < 0.2)


def test_a_cosmic_ray_is_sharper_than_any_psf(rng: np.random.Generator) -> None:
    for _ in range(20):
        image = cosmic_ray(rng, MIDDLE, MIDDLE, 100.0)
        assert image.sum() == pytest.approx(100, rel=0.7)
        assert (image > 0).sum() < 150
        assert image.max() > 3
