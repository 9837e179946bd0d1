"""Contaminated frames: every layer against an independent slow truth, and the truth of whole frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tapetum.images.contaminants import NAMES, TITLES, Contaminant, code_of
from tapetum.simulate.artefacts import (
    TrailShape,
    cross_profile,
    fringes,
    nebula,
    particle_tracks,
    persistence,
    smooth_field,
    spiral_galaxy,
    trail_layer,
)
from tapetum.simulate.contaminants import ALL, SHARES, ContaminantSettings, contaminated_frame

SHAPE = (128, 160)
STRAIGHT = TrailShape(80.0, 64.0, 27.0, 900.0, 0.0, 0.0, 3.0, 3.0)


def only(*names: str, **settings: object) -> ContaminantSettings:
    shares = {name: float(name in names) for name in SHARES}
    return replace(ContaminantSettings(shape=SHAPE, shares=shares), **settings)  # type: ignore[arg-type]


def bits(truth: np.ndarray) -> set[str]:
    return {flag.name for flag in Contaminant if (truth & np.uint16(flag)).any() and flag.name}


def test_codes_are_those_of_the_described_single_mask() -> None:
    assert NAMES == ("CR", "HCL", "DCL", "HP", "DP", "P", "TRL", "FR", "NEB", "SAT", "SP", "OV", "BBG", "BG")
    assert [code_of(name) for name in NAMES] == [2**k for k in range(13)] + [0]
    assert set(TITLES) == set(NAMES)


def test_a_trail_is_the_sum_of_its_points() -> None:
    """Across: every point of a long line shines as a Moffat disc; summed one by one."""
    trail = replace(STRAIGHT, width_pix=8.0, hole=0.4)
    alpha2 = (trail.fwhm / 2) ** 2 / (2 ** (1 / trail.beta) - 1)
    along = np.arange(-60, 60, 0.2)[:, None]
    points = np.array([(x, y) for x in np.arange(-4, 4.01, 0.2) for y in np.arange(-4, 4.01, 0.2)
                       if 1.6 <= np.hypot(x, y) <= 4.0])  # fmt: skip
    offsets = np.arange(0, 9, 0.5)
    slow = []
    for d in offsets:
        inner = np.linspace(d - 0.45, d + 0.45, 10)  # the pixel
        r2 = (along - points[:, 0]) ** 2 + ((inner[:, None, None] - points[:, 1]) ** 2)
        slow.append(float(((1 + r2 / alpha2) ** -trail.beta).sum(axis=(1, 2)).mean()))
    d, profile = cross_profile(trail)
    fast = np.interp(offsets, d, profile)
    np.testing.assert_allclose(fast / fast.sum(), np.array(slow) / np.sum(slow), atol=0.004)


def test_trails_lie_where_their_shape_says() -> None:
    rng = np.random.default_rng(1)
    light, across = trail_layer(SHAPE, STRAIGHT, rng)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    angle = np.radians(27.0)
    distance = np.abs((y - 64) * np.cos(angle) - (x - 80) * np.sin(angle))
    assert np.all(light[distance < 0.3] > 0.95)
    assert np.all(light[distance > 12] < 0.02)
    np.testing.assert_array_equal(light, across)
    short, _ = trail_layer(SHAPE, replace(STRAIGHT, length_pix=40.0), rng)
    along = (x - 80) * np.cos(angle) + (y - 64) * np.sin(angle)
    assert np.all(short[np.abs(along) > 30] < 0.02)
    dark, steady = trail_layer(SHAPE, replace(STRAIGHT, variation=1.0, period_pix=50.0), rng)
    assert dark[distance < 0.3].min() < 0.05 < steady[distance < 0.3].min()
    bent, _ = trail_layer(SHAPE, replace(STRAIGHT, angle_deg=0.0, curvature=1e-3), rng)
    assert abs(int(bent[:, 160 - 10].argmax()) - round(64 + 0.5e-3 * 70**2)) <= 1
    wandering, _ = trail_layer(SHAPE, replace(STRAIGHT, angle_deg=0.0, jitter_pix=2.0), rng)
    assert 0.8 < wandering.argmax(0).std() < 4.0


def test_particles_leave_all_their_charge() -> None:
    rng = np.random.default_rng(2)
    n = 40
    charge = rng.uniform(10, 1000, n)
    layer = particle_tracks((400, 400), n, charge, np.full(n, 3.0), np.full(n, 0.1), rng)
    assert layer.sum() == pytest.approx(charge.sum(), rel=0.1)  # but what leaves the frame
    assert not particle_tracks(SHAPE, 0, np.zeros(0), np.zeros(0), np.zeros(0), rng).any()


def test_patterns_have_the_amplitude_that_is_asked_for() -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        pattern = fringes(SHAPE, rng)
        assert 0.8 < pattern.max() <= 1.31
        assert -1.31 <= pattern.min() < -0.7
        cloud = nebula(SHAPE, rng)
        assert cloud.min() >= 0
        assert cloud.max() == pytest.approx(1)
        galaxy = spiral_galaxy(SHAPE, 20.0, 1.0, rng)
        assert galaxy.min() >= 0
        assert galaxy.max() == pytest.approx(1)
        glow = persistence(SHAPE, 3.0, rng)
        assert glow.min() >= 0
        assert glow.max() <= 3.0
    field = smooth_field((256, 256), 3.0, 100.0, rng)
    assert field.std() == pytest.approx(1, rel=1e-3)
    power = np.abs(np.fft.rfft2(field)) ** 2
    assert power[2:6, 2:6].mean() > 100 * power[60:70, 60:70].mean()


@pytest.mark.parametrize(
    ("share", "expected"),
    [("trail", "TRL"), ("fringes", "FR"), ("nebula", "NEB"), ("persistence", "P"), ("cosmic_ray", "CR"),
     ("hot", "HP"), ("dead", "DP"), ("cluster", "DCL"), ("overscan", "OV")],
)  # fmt: skip
def test_an_artefact_gives_its_own_class_and_no_other(share: str, expected: str) -> None:
    settings = only(share, sky=(2000.0, 2000.0), stars=(1.0, 1.0), full_well=(3e5, 3e5), fwhm=(2.5, 2.5))
    found: set[str] = set()
    for seed in range(4):
        frame = contaminated_frame(np.random.default_rng([5, seed]), settings)
        found |= bits(frame.truth)
        assert not (frame.truth & frame.ignore).any()
        inside = frame.truth & np.uint16(Contaminant[expected]) > 0
        sky = frame.data[frame.truth == 0]
        if share in ("cosmic_ray", "hot", "persistence") and inside.any() and len(sky):
            assert np.mean(frame.data[inside]) > np.median(sky) + np.std(sky[sky < np.median(sky)])
    assert expected in found
    assert found <= {expected, "BBG", "SAT"}


def test_saturation_and_spikes_come_from_bright_stars() -> None:
    settings = only(
        "spikes", "bright_stars", full_well=(40_000.0, 40_000.0), sky=(50.0, 50.0), fwhm=(2.0, 2.0)
    )
    frames = [contaminated_frame(np.random.default_rng([6, seed]), settings) for seed in range(4)]
    assert {"SAT", "SP", "BBG"} <= set().union(*(bits(frame.truth) for frame in frames))
    for frame in frames:
        full = (frame.truth & np.uint16(Contaminant.SAT)) > 0
        if full.any():
            assert frame.data[full].min() > np.median(frame.data[~full])


def test_the_map_of_trails_is_that_of_their_class() -> None:
    for seed in range(6):
        frame = contaminated_frame(np.random.default_rng([7, seed]), only("trail", "overscan", "missing"))
        trails = (frame.truth & np.uint16(Contaminant.TRL)) > 0
        np.testing.assert_array_equal(trails, frame.trails > 0)
        missing = ~np.isfinite(frame.data)
        assert not frame.truth[missing].any()
        assert (frame.ignore[missing] == ALL).all()
        assert frame.background_unknown[missing].all()


def test_a_frame_is_a_function_of_its_seed() -> None:
    one, same, other = (contaminated_frame(np.random.default_rng([8, k]), only("trail")) for k in (0, 0, 1))
    np.testing.assert_array_equal(one.data, same.data)
    np.testing.assert_array_equal(one.truth, same.truth)
    assert not np.array_equal(one.data, other.data)


def test_artefacts_go_into_a_real_frame_whose_stars_are_left_open() -> None:
    rng = np.random.default_rng(9)
    y, x = np.mgrid[:128, :160]
    star = 4000 * np.exp(-((x - 40) ** 2 + (y - 50) ** 2) / (2 * 2.0**2))
    base = (500 + star + rng.normal(0, 8, x.shape)).astype(np.float32)
    base[:5] = np.nan
    frame = contaminated_frame(rng, only("hot", "lines"), base)
    assert np.isnan(frame.data[:5]).all()
    assert frame.background_unknown[50, 40]
    assert frame.ignore[50, 40] & np.uint16(Contaminant.BBG)
    assert not frame.background_unknown[20:30, 90:150].all()
    untouched = (frame.truth == 0) & (frame.ignore == 0) & ~frame.background_unknown
    np.testing.assert_array_equal(frame.data[untouched], base[untouched])
    with pytest.raises(ValueError, match="no sky noise"):
        contaminated_frame(rng, only("hot"), np.full((64, 64), 7, np.float32))
