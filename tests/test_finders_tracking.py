"""The finder of tracking errors: tiles that cover the frame, no verdict without stars, means that are means."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapetum.core.errors import InputError, UsageError
from tapetum.finders.contaminants import at_prior
from tapetum.finders.tracking import (
    Config,
    Tracking,
    checked_prior,
    count_within,
    covering_grid,
    load,
    measured_trail,
    original_grid,
    star_shapes,
)
from tapetum.images.fits import read_frame
from tapetum.images.normalise import normalise
from tapetum.models.card import ClassSpec, FrameContract
from tapetum.models.maximask import import_arrays
from tapetum.simulate.tracking import EXTRAS, STILL, Path, TrackingSettings, tracking_frame

GOLDENS = (
    "trail_ystar", "galaxy_apogee", "saao_ste3", "nircam_f200w_a", "m51_kpno_1987", "trail400_hsc", "clean400_sdss",
)  # fmt: skip


def fake(score=lambda images: images.max((1, 2, 3)) > 1e3, trail=None, *, side=None, multiple=1):
    """A model that scores tiles by a function of their pixels, uncalibrated, learned at equal frequencies."""
    calls = []

    def outputs(inputs):
        images = inputs["x"]
        calls.append(images.shape)
        found = np.asarray(score(images), np.float32)
        answers = {"p": np.stack([1 - found, found], 1)}
        if trail is not None:
            answers["trail"] = np.tile(np.asarray(trail, np.float32), (len(images), 1))
        return answers

    spec = {"training_prior": 0.5, "prior": 0.05, "threshold": 0.5}
    card = SimpleNamespace(
        name="fake",
        frame=FrameContract(name="x", side=side, multiple=multiple),
        classes=tuple(ClassSpec(name=n, title=n, **spec) for n in ("good", "tracking_error")),
        outputs=[SimpleNamespace(name="p", columns=("good", "tracking_error"), per="example")],
    )
    return SimpleNamespace(
        card=card, outputs=outputs, probability=lambda scores: np.full_like(scores, np.nan), calls=calls
    )


def field(rng, shape=(300, 420), n_stars=40, box=None):
    """Sky with stars, all of them within `box` (y0, y1, x0, x1)."""
    image = rng.normal(100, 5, shape).astype(np.float32)
    y0, y1, x0, x1 = box or (10, shape[0] - 10, 10, shape[1] - 10)
    rows, columns = np.mgrid[-8:9, -8:9]
    star = 400 * np.exp(-(rows**2 + columns**2) / 6)
    for _ in range(n_stars):
        y, x = int(rng.integers(y0, y1)), int(rng.integers(x0, x1))
        image[y - 8 : y + 9, x - 8 : x + 9] += star
    return image


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([None, 400]), st.sampled_from([1, 16]))
def test_default_grid_covers_every_pixel_with_tiles_of_one_size(n_y, n_x, exact, multiple):
    tiles = covering_grid((n_y, n_x), 400, exact=exact, multiple=multiple)
    assert len(tiles) == math.ceil(n_y / 400) * math.ceil(n_x / 400)
    assert len({(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in tiles}) == 1
    for axis, n in enumerate((n_y, n_x)):
        seen = np.zeros(n, bool)
        for tile in tiles:
            side = tile[axis]
            assert side.start >= 0
            assert (side.stop - side.start) % multiple == 0
            seen[side] = True
        assert seen.all()
        assert max(tile[axis].stop for tile in tiles) <= max(n + multiple - 1, exact or 0, multiple)


def test_original_grid_leaves_out_the_remainder_below_and_left():
    assert original_grid((682, 1024)) == [
        (slice(282, 682), slice(224, 624)),
        (slice(282, 682), slice(624, 1024)),
    ]
    assert original_grid((300, 400)) == [(slice(0, 400), slice(0, 400))]


def test_tiles_without_stars_are_not_judged(rng):
    image = field(rng, (600, 900), box=(20, 280, 20, 280))
    model = fake(lambda images: np.full(len(images), 0.9), side=300)
    verdict = Tracking(model, Config(prior=0.5)).find(image)
    np.testing.assert_array_equal(verdict.judged, verdict.n_stars >= 3)
    assert verdict.judged.sum() == 1
    assert (verdict.x[verdict.judged], verdict.y[verdict.judged]) == (0, 0)
    assert verdict.frame_probability == pytest.approx(0.9)
    assert np.isnan(verdict.score[~verdict.judged]).all()


@pytest.mark.parametrize("smooth", [0.0, 0.7])
def test_noise_has_no_stars_and_no_verdict(rng, smooth):
    from scipy.ndimage import gaussian_filter

    noise = rng.normal(0, 1, (800, 800))
    image = normalise(gaussian_filter(noise, smooth) + 50)
    assert len(star_shapes(image.data, image.missing)) == 0
    verdict = Tracking(fake(lambda images: np.ones(len(images)))).find(noise + 50)
    assert not verdict.judged.any()
    assert math.isnan(verdict.frame_probability)
    assert all(math.isnan(value) for value in verdict.frame_trail)


def test_mean_is_that_of_all_tiles_whatever_the_batch(rng):
    """The described tool loses what its last, unfilled batch overwrites: 25 tiles of 0.993 print 0.636."""
    image = field(rng, (500, 500), n_stars=500)
    wanted = None
    for batch in (1, 4, 16, 100):
        model = fake(lambda images: 0.9 + 0.001 * (images.mean((1, 2, 3)) % 1), side=100)
        verdict = Tracking(model, Config(prior=0.5, batch_size=batch)).find(image)
        assert verdict.judged.sum() == 25
        assert max(shape[0] for shape in model.calls) <= batch
        assert 0.9 <= verdict.frame_probability <= 0.901
        assert wanted is None or verdict.frame_probability == pytest.approx(wanted, abs=1e-6)
        wanted = verdict.frame_probability


def test_prior_is_applied_to_tiles_before_the_mean():
    tiles = at_prior(np.array([0.5, 1.0, 0.0, np.nan]), 0.95 / 0.05)
    np.testing.assert_allclose(tiles, [0.05, 1.0, 0.0, np.nan], rtol=1e-6)


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_priors_that_leave_no_doubt_are_refused(prior):
    with pytest.raises(UsageError, match="between 0 and 1"):
        checked_prior(prior)
    with pytest.raises(UsageError, match="--prior"):
        load("no such model", Config(prior=prior))


def test_small_frames_and_frames_that_are_no_multiple_are_padded_with_sky(rng):
    model = fake(side=400)
    image = field(rng, (120, 130))
    verdict = Tracking(model, Config(prior=0.5)).find(image)
    assert len(verdict) == 1
    assert model.calls == [(1, 1, 400, 400)]
    model = fake(multiple=16)
    Tracking(model).find(image)
    assert model.calls == [(1, 1, 128, 144)]


def test_larger_tiles_are_taken_where_stars_are_rare(rng):
    model = fake(multiple=16)
    image = rng.normal(100, 5, (1024, 1024)).astype(np.float32)
    for y, x in ((100, 100), (100, 900), (900, 100)):
        image[y - 30 : y + 31, x - 30 : x + 31] += field(rng, (61, 61), 1, (30, 31, 30, 31)) - 100
    verdict = Tracking(model).find(image)
    assert verdict.n_x.tolist() == [1024]
    assert verdict.n_stars.tolist() == [3]
    assert Tracking(fake(multiple=16)).find(field(rng, (1024, 1024), 400)).n_x.tolist() == [512] * 4


def test_trail_of_the_network_is_unsigned(rng):
    angle = math.radians(170.0)
    model = fake(trail=(6 * math.cos(2 * angle), 6 * math.sin(2 * angle)), side=150)
    verdict = Tracking(model).find(field(rng, n_stars=100))
    np.testing.assert_allclose(verdict.network_x, 6 * math.cos(angle), rtol=1e-5)
    np.testing.assert_allclose(verdict.network_y, 6 * math.sin(angle), rtol=1e-5)
    assert np.isnan(Tracking(fake()).find(field(rng)).network_x).all()


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 175.0])
def test_trail_is_measured_on_the_sources(angle, rng):
    turn, place = math.radians(angle), np.linspace(-5, 5, 21)
    path = Path(place * math.cos(turn), place * math.sin(turn), np.full(21, 1 / 21))
    plain = TrackingSettings(
        shape=(300, 300), fwhm=(2.5, 3.0), density=(60, 80), empty=0, extras=dict.fromkeys(EXTRAS, 0)
    )
    trailed, still = (
        Tracking(fake()).find(tracking_frame(plain, rng, path=way).data * 7 + 300) for way in (path, STILL)
    )
    length, direction = trailed.frame_trail
    assert length == pytest.approx(9, abs=2.5)
    assert abs((direction - angle + 90) % 180 - 90) < 8
    assert still.frame_trail[0] < 2
    assert math.isnan(measured_trail(np.zeros((0, 4)))[0])
    assert measured_trail(np.zeros((3, 4))) == (0, 0)


def test_missing_pixels_are_sky_to_the_network(rng):
    image = field(rng, n_stars=60)
    bad = np.zeros(image.shape, np.uint8)
    image[50:70, 60:90] = np.nan
    bad[200:210] = 1
    seen = []
    model = fake(lambda images: seen.append(images) or np.zeros(len(images)))
    Tracking(model).find(image, bad)
    assert (seen[0][0, 0, 50:70, 60:90] == 0).all()
    assert (seen[0][0, 0, 200:210] == 0).all()


def test_counting_puts_every_star_into_one_tile_of_a_partition(rng):
    stars = rng.uniform(-0.5, 399.49, (500, 4))
    tiles = covering_grid((400, 400), 100)
    assert count_within(stars, tiles).sum() == 500


@pytest.mark.parametrize("fault", ["no class", "stamps"])
def test_networks_of_other_questions_are_refused(fault):
    model = fake()
    if fault == "no class":
        model.card.classes = model.card.classes[:1]
    else:
        model.card.frame = None
    with pytest.raises(InputError, match="tracking errors"):
        Tracking(model)


@pytest.mark.parametrize(
    ("image", "reason"), [(np.ones((90, 90)), "every pixel"), (np.full((90, 90), np.nan), "no pixel")]
)
def test_frames_that_cannot_be_judged_say_why(image, reason):
    with pytest.raises(InputError, match=reason):
        Tracking(fake()).find(image)


@pytest.fixture(scope="module")
def maxitrack(real_data, tmp_path_factory):
    with np.load(real_data / "maximask" / "maxitrack_weights.npz") as arrays:
        weights = {name: arrays[name] for name in arrays.files}
    source = {"file": "maxitrack_weights.npz", "sha256": "0" * 64}
    folder = tmp_path_factory.mktemp("models")
    found = import_arrays(weights, "maxitrack", source, folder, folder)
    return str(found.folder / "model.onnx")


@pytest.mark.parametrize("name", GOLDENS)
def test_original_network_gives_the_golden_tiles(name, maxitrack, real_data):
    config = Config(tiling="original", normalisation="original", fewest_stars=0)
    frame = read_frame(real_data / "images" / f"{name}.fits")
    verdict = load(maxitrack, config).find(frame.data)
    with np.load(real_data / "images" / f"{name}.golden.npz") as golden:
        np.testing.assert_array_equal(np.stack([verdict.x, verdict.y], 1), golden["maxitrack_block_xy"])
        np.testing.assert_allclose(verdict.score, golden["maxitrack_block_proba"].ravel(), atol=1e-3)
        np.testing.assert_allclose(
            verdict.probability, golden["maxitrack_block_proba_prior05"].ravel(), atol=1e-3
        )


@pytest.mark.parametrize(
    ("name", "trailed"),
    [
        ("trail_ystar", True),  # every star is long, in one direction, all over the frame
        ("nircam_f200w_a", False),  # spikes; MaxiTrack says 1.00
        ("trail400_hsc", False),  # a satellite; MaxiTrack says 0.9999
        ("m51_kpno_1987", False),
        ("clean400_sdss", False),
        ("saao_ste3", False),
    ],
)
def test_our_network_on_real_frames(name, trailed, real_data):
    frame = read_frame(real_data / "images" / f"{name}.fits")
    verdict = load(config=Config(prior=0.5)).find(frame.data)
    if trailed:
        assert verdict.frame_probability > 0.9
        assert verdict.frame_trail[0] > 3
    else:
        assert verdict.frame_probability < 0.5  # it is not called an error


def test_our_network_tells_trailed_from_tracked_and_the_direction(rng):
    finder = load(config=Config(prior=0.5))
    found = {}
    for angle in (None, 30.0, 120.0):
        turn = math.radians(angle or 0)
        place = np.linspace(-5, 5, 21) if angle is not None else np.zeros(1)
        path = Path(place * math.cos(turn), place * math.sin(turn), np.full(len(place), 1 / len(place)))
        frame = tracking_frame(
            TrackingSettings(
                shape=(300, 300),
                fwhm=(2.5, 3.0),
                density=(150, 200),
                empty=0,
                extras=dict.fromkeys(EXTRAS, 0),
            ),
            rng,
            path=path,
        )
        found[angle] = finder.find(frame.data * 7 + 300)
    assert found[None].frame_probability < 0.2
    for angle in (30.0, 120.0):
        assert found[angle].frame_probability > 0.9
        assert found[angle].frame_trail == (pytest.approx(9, abs=2.5), pytest.approx(angle, abs=8))
