"""Training of the network for tracking errors: examples with truth, loss where the truth is known, card and ONNX."""

from __future__ import annotations

import math
from contextlib import closing
from datetime import date
from itertools import islice

import numpy as np
import pytest

from tapetum.core.errors import InputError
from tapetum.models.runtime import Model
from tapetum.training.datasets import simulated_ids
from tapetum.training.recipe import load_any_recipe
from tapetum.training.tracking_card import balance, require_both_classes
from tapetum.training.tracking_data import TrackingSource, make_tile, turned
from tapetum.training.tracking_recipe import SimulatedTiles, TrackingRecipe


def small(**changes):
    numbers = {"seed": 1, "pool": 6, "renew": 2, "validation": 4, "test": 2, "side": 64, "test_side": 96}
    return SimulatedTiles(source="simulation", **{**numbers, **changes})


def direction(image):
    """Twice the angle of what is bright, from second moments."""
    light = np.clip(image.astype(float), 0, None)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    dx, dy = (part - (light * part).sum() / light.sum() for part in (columns, rows))
    xx, yy, xy = ((light * part).sum() for part in (dx * dx, dy * dy, dx * dy))
    return math.atan2(2 * xy, xx - yy)


@pytest.mark.parametrize("how", range(8))
def test_turning_a_tile_turns_its_trail(how):
    rows, columns = np.mgrid[-20:21, -20:21]
    angle = 0.35
    along = columns * math.cos(angle) + rows * math.sin(angle)
    across = rows * math.cos(angle) - columns * math.sin(angle)
    image = np.exp(-((along / 9) ** 2) - (across / 3) ** 2).astype(np.float16)
    target = np.array([1, 12 * math.cos(2 * angle), 12 * math.sin(2 * angle)], np.float32)
    laid, truth = turned(image, target, how)
    assert truth[0] == 1
    assert math.hypot(*truth[1:]) == pytest.approx(12, rel=1e-5)
    assert math.cos(direction(laid) - math.atan2(truth[2], truth[1])) == pytest.approx(1, abs=1e-3)


def test_tiles_depend_on_their_names_alone():
    simulation = small()
    with closing(TrackingSource(simulation)) as source:
        first, second = source.pool(0, 1), source.pool(1, 1)
    names = list(islice(simulated_ids(1, "fit"), 8))
    assert [tile.name for tile in first] == names[:6]
    assert [tile.name for tile in second] == names[2:]
    again = make_tile(simulation.simulated(64), names[3])
    np.testing.assert_array_equal(again.image, second[1].image)
    np.testing.assert_array_equal(again.target, second[1].target)
    assert first[0].image.shape == (64, 64)
    assert source.fixed("validation")[0].image.shape == (96, 96)
    assert len(source.keys("fit", 3)) == 10
    assert len(source.keys("validation", 3)) == 4


def test_truth_of_a_tile_is_that_of_its_frame():
    tiles = [make_tile(small().simulated(96), name) for name in islice(simulated_ids(4, "test"), 40)]
    for tile in tiles:
        error, *vector = tile.target
        if error == 1:
            assert tile.elongation >= 0.6
            assert np.isfinite(vector).all()
        if "stars" not in tile.tags:
            assert error == 0
            assert np.isnan(vector).all()
    assert {0.0, 1.0} <= {float(tile.target[0]) for tile in tiles}


@pytest.mark.parametrize("change", [{"settings": {"what": 1}}, {"extras": {"what": 0.5}}])
def test_recipe_names_what_it_does_not_know(change):
    with pytest.raises(ValueError, match="what"):
        small(**change)


def test_shipped_recipe_is_one_of_this_kind():
    recipe = load_any_recipe("tracking")
    assert isinstance(recipe, TrackingRecipe)
    assert recipe.input.multiple == 16
    assert recipe.input.side is None


def test_balance_makes_both_answers_equally_frequent():
    error = np.array([1.0, 0, 0, 0])
    weight = balance(error)
    assert weight.sum() == pytest.approx(4)
    assert weight[error == 1].sum() == pytest.approx(2)


def test_calibration_needs_both_answers():
    tile = make_tile(small(settings={"empty": 1.0}).simulated(64), "sim-1-0")
    with pytest.raises(InputError, match="validation"):
        require_both_classes([tile])


# with torch


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_compressed_trails_come_back(torch):
    from tapetum.training.networks.tracking import compress, trail_of

    trails = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-20.0, 10.0], [0.1, 0.0]])
    torch.testing.assert_close(trail_of(compress(trails)), trails, rtol=1e-3, atol=2e-3)
    assert float(compress(trails)[0].norm()) == pytest.approx(math.log(6), rel=1e-3)


def test_unknown_truth_weighs_nothing(torch):
    from tapetum.training.networks.tracking import tracking_loss

    found = torch.tensor([[2.0, 3.0, 4.0], [0.0, 1.0, 1.0], [-1.0, 5.0, 5.0]])
    target = torch.tensor([[1.0, 3.0, 4.0], [math.nan, 1.0, 1.0], [0.0, math.nan, math.nan]])
    right = tracking_loss(found, target)
    assert float(right) == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2, abs=1e-5)
    other = found.clone()
    other[1, 0], other[2, 1:] = 9.0, 70.0
    torch.testing.assert_close(tracking_loss(other, target), right)


def test_network_takes_tiles_of_any_size_and_learns_with_places(torch):
    from tapetum.training.networks.tracking import Tracking

    network = Tracking(widths=(4, 4, 4), head=8)
    images = torch.randn(2, 1, 64, 48)
    verdict, local, weight = network.train()(images)
    assert verdict.shape == (2, 3)
    assert local.shape == (2, 3, 8, 6)
    assert weight.shape == (2, 1, 8, 6)
    assert network.eval()(torch.randn(1, 1, 96, 128)).shape == (1, 3)


def test_noise_alone_has_hardly_a_vote(torch):
    from tapetum.training.networks.tracking import Tracking

    network = Tracking(widths=(4, 4, 4), head=8).train()
    noise = torch.randn(1, 1, 128, 128)
    star = noise.clone()
    star[0, 0, 60:64, 60:64] += 200
    total, with_star = (float(network(image)[2].detach().sum()) for image in (noise, star))
    weights = network(star)[2][0, 0].detach()
    assert float(weights.max()) > 30 * float(weights.median())
    assert with_star > total


def test_recipe_to_model(torch, tmp_path):
    from tapetum.training.run import train

    shipped = load_any_recipe("tracking")
    data = small(pool=8, validation=16, test=20, test_side=64, settings={"density": (100, 300), "empty": 0.2})
    recipe = shipped.model_copy(
        update={
            "name": "tiny",
            "data": [data],
            # the exporter takes its time with every level
            "network": shipped.network.model_copy(update={"arguments": {"widths": [4, 4], "head": 8}}),
            "optimiser": shipped.optimiser.model_copy(update={"epochs": 2, "batch": 4}),
        }
    )
    made = train(recipe, [], tmp_path, today=date(2026, 11, 20))
    card = made.card
    assert card.finder == "tracking"
    assert card.classes[0].training_prior == 0.5
    assert card.golden is not None
    assert "simulated_auc" in card.metrics
    model = Model.load(str(tmp_path / "model.onnx"))
    found = model.outputs({"frame": np.zeros((3, 1, 96, 160), np.float32)})
    assert found["score"].shape == (3, 1)
    assert found["trail"].shape == (3, 2)
    assert train(recipe, [], tmp_path, today=date(2026, 11, 21)).finished_before
