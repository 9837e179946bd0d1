"""Trailed star fields: paths have the length, angle and weight they were asked for, and stars follow them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapetum.simulate.stamping import TabulatedPsf
from tapetum.simulate.tracking import (
    ERROR_FROM,
    EXTRAS,
    PATHS,
    STILL,
    TRACKED_BELOW,
    Path,
    TilePsf,
    TrackingFrame,
    TrackingSettings,
    as_network_sees,
    disc,
    draw_path,
    tracking_frame,
)

NOTHING = dict.fromkeys(EXTRAS, 0.0)


def quiet(**changes):
    return TrackingSettings(
        **{"shape": (160, 160), "fwhm": (2.5, 3.5), "empty": 0.0, "extras": NOTHING, **changes}
    )


@given(st.sampled_from(PATHS), st.floats(0.5, 25), st.floats(0.3, 3), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_paths_have_the_length_that_was_asked_for(kind, length, step, seed):
    path = draw_path(kind, length, step, np.random.default_rng(seed))
    assert path.weight.sum() == pytest.approx(1)
    assert path.weight @ path.x == pytest.approx(0, abs=1e-9)
    assert path.length_pix == pytest.approx(length, rel=0.02, abs=0.3 * step)  # places of a cell are joined
    along, across = path.vector
    assert math.hypot(along, across) <= path.length_pix + 1e-9


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, 2.9])
def test_vector_of_a_straight_trail_is_its_length_at_twice_the_angle(angle):
    place = (np.arange(400) + 0.5) / 400 * 12 - 6
    for way in (1, -1):
        path = Path(way * place * math.cos(angle), way * place * math.sin(angle), np.full(400, 1 / 400))
        assert path.length_pix == pytest.approx(12, rel=1e-4)
        np.testing.assert_allclose(
            path.vector, [12 * math.cos(2 * angle), 12 * math.sin(2 * angle)], atol=2e-3
        )
        assert math.cos(2 * (path.angle - angle)) == pytest.approx(1)


def test_a_round_path_has_no_direction():
    turn = np.arange(360) * 2 * math.pi / 360
    ring = Path(5 * np.cos(turn), 5 * np.sin(turn), np.full(360, 1 / 360))
    assert math.hypot(*ring.vector) < 1e-5
    assert ring.length_pix > 10
    assert math.hypot(*disc(4.0, 0.4, 0.5).vector) < 1.0


def test_what_counts_as_an_error():
    path = Path(np.array([-1.0, 1.0]), np.zeros(2), np.full(2, 0.5))  # rms 1
    for sigma, n_visible, tags, wanted in (
        (0.99 / ERROR_FROM, 5, {"stars"}, 1.0),
        (1.01 / TRACKED_BELOW, 5, {"stars"}, 0.0),
        (1.5 / (ERROR_FROM + TRACKED_BELOW) * 1.4, 5, {"stars"}, math.nan),
        (0.99 / ERROR_FROM, 1, {"stars"}, math.nan),
        (0.99 / ERROR_FROM, 0, set(), 0.0),
    ):
        frame = TrackingFrame(np.zeros((1, 1), np.float32), path, sigma, n_visible, frozenset(tags))
        assert frame.error == wanted or (math.isnan(wanted) and math.isnan(frame.error))


def test_stars_are_trailed_along_the_path_and_keep_their_light():
    rng = np.random.default_rng(1)
    psf = TabulatedPsf.of_field(TilePsf(fwhm=2.5, beta=3.5), (81, 81))
    path = draw_path("straight", 14.0, 1.0, rng)
    image = np.zeros((81, 81), np.float32)
    psf.add(image, 40 + path.x, 40 + path.y, 1000 * path.weight)
    still = np.zeros((81, 81), np.float32)
    psf.add(still, np.array([40.0]), np.array([40.0]), np.array([1000.0]))
    assert image.sum() == pytest.approx(still.sum(), rel=1e-3)
    rows, columns = np.mgrid[-40:41, -40:41]

    def moments(light):
        core = light * (np.hypot(rows, columns) < 25)
        return [(core * part).sum() / core.sum() for part in (columns**2, rows**2, rows * columns)]

    more = np.array(moments(image)) - moments(still)
    np.testing.assert_allclose(more, path.covariance, rtol=0.05, atol=0.3)


def test_frames_follow_the_settings_and_the_seed():
    a = tracking_frame(quiet(), np.random.default_rng(3))
    b = tracking_frame(quiet(), np.random.default_rng(3))
    np.testing.assert_array_equal(a.data, b.data)
    assert a.data.shape == (160, 160)
    assert a.tags == {"stars"}
    empty = tracking_frame(quiet(empty=1.0), np.random.default_rng(3))
    assert empty.error == 0
    assert empty.n_visible == 0
    assert empty.path is STILL
    assert abs(float(empty.data.std()) - 1) < 0.02  # the unit is the noise of the sky


def test_shares_of_trailed_and_tracked_frames_are_those_of_the_settings():
    small = quiet(shape=(64, 64), density=(300, 400))
    errors = [tracking_frame(small, np.random.default_rng(seed)).error for seed in range(60)]
    assert 0.25 < np.mean(np.equal(errors, 1)) < 0.7
    assert 0.2 < np.mean(np.equal(errors, 0)) < 0.7


def test_own_path_is_taken_and_seen_in_the_stars():
    path = Path(np.linspace(-6, 6, 25), np.zeros(25), np.full(25, 1 / 25))
    frame = tracking_frame(quiet(density=(60, 80)), np.random.default_rng(5), path=path)
    assert frame.error == 1
    assert frame.path is path
    bright = np.clip(frame.data, 0, 50)
    bright -= bright.mean()
    level = float((bright[:, 7:] * bright[:, :-7]).mean())
    upright = float((bright[7:] * bright[:-7]).mean())
    assert level > 2 * upright


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_every_extra_changes_the_frame_and_leaves_it_finite_but_for_missing_pixels(extra):
    without = {**NOTHING, "bright": float(extra != "bright")}  # a star that can bleed
    seen = tracking_frame(quiet(extras={**without, extra: 1.0}), np.random.default_rng(3))
    plain = tracking_frame(quiet(extras=without), np.random.default_rng(3))
    assert extra in seen.tags
    assert not np.array_equal(np.nan_to_num(seen.data), np.nan_to_num(plain.data))
    assert np.isfinite(seen.data).all() != (extra == "missing")
    assert np.isfinite(as_network_sees(seen, np.random.default_rng(0))).all()


def test_arms_lie_where_they_were_asked_for():
    psf = TilePsf(fwhm=3.0, arms=4, arm_share=0.2, arm_angle=0.0)
    x, y = np.array([[20.0, 0.0, 14.1]], np.float32), np.array([[0.0, 20.0, 14.1]], np.float32)
    right, up, between = psf.profile(0, 0, x, y)[0]
    assert right == pytest.approx(up)
    assert right > 5 * between
