"""Masks: figures against slow truths, the loss, examples and crops, and a training from recipe to report."""

from __future__ import annotations

import csv
import json
import math
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from typer.testing import CliRunner

from tapetum.core.errors import InputError, ModelError, TapetumError, UsageError
from tapetum.finders.contaminants import Contaminants
from tapetum.images.contaminants import NAMES, code_of
from tapetum.models.calibration import sigmoid
from tapetum.models.card import DataSet
from tapetum.report.page import render_page
from tapetum.simulate.contaminants import ContaminantSettings, Contaminated
from tapetum.training.calibrate import fit_platt
from tapetum.training.evaluate import auc as exact_auc
from tapetum.training.mask_data import (
    ALL_BITS,
    BACKGROUND_BIT,
    TILE,
    MaskSource,
    RealTile,
    make_example,
    tiles_of,
)
from tapetum.training.mask_metrics import (
    CENTRES,
    LIMIT,
    N_BINS,
    Tally,
    Truth,
    as_logits,
    auc,
    best_cut,
    calibration_error,
    draws_of,
    figures_of,
    histogram,
    match_trails,
    mcc,
    overlap,
    precision,
    recall,
    tally,
    weights_of,
)
from tapetum.training.mask_recipe import MaskRecipe, SimulatedFrames
from tapetum.training.recipe import load_any_recipe, load_recipe
from tapetum.training.split import role_of

RECIPE = """
task = "masks"
name = "tiny-masks"
seed = 5
[card]
title = "Masks for tests"
version = "0.1.0"
description = "Learns next to nothing."
[input]
kind = "frame"
name = "image"
multiple = 32
margin = 32
[network]
name = "contaminants"
arguments = { widths = [4, 4], dilations = [1] }
[[data]]
source = "simulation"
seed = 3
pool = 4
renew = 2
validation = 6
test = 2
settings = { shape = [192, 192], stars = [200, 2000], full_well = [2e4, 5e4] }
[data.shares]
trail = 1
fringes = 0.5
nebula = 0.5
cosmic_ray = 1
persistence = 1
lines = 1
hot = 1
dead = 1
cluster = 1
overscan = 1
spikes = 1
[crops]
side = 64
per_frame = 4
checked = 2
scale = 0.1
offset = 0.1
[loss]
dice = 0.2
weights = { HP = 10 }
positive = { CR = 2 }
[optimiser]
epochs = 2
batch = 4
clip = 1.0
precision = "bf16"
memory = "channels_last"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> MaskRecipe:
    (tmp_path / "masks.toml").write_text(RECIPE)
    recipe = load_any_recipe(str(tmp_path / "masks.toml"))
    assert isinstance(recipe, MaskRecipe)
    return recipe


def _simulation(recipe: MaskRecipe) -> SimulatedFrames:
    assert recipe.simulation is not None
    return recipe.simulation


def _planes(bits: np.ndarray, n: int = len(NAMES)) -> np.ndarray:
    return (bits[None] >> np.arange(n)[:, None, None] & 1).astype(bool)


def _random_bits(rng: np.random.Generator, shape: tuple[int, int], share: float) -> np.ndarray:
    bits = np.zeros(shape, np.uint16)
    for i in range(len(NAMES)):
        bits |= (rng.random(shape) < share) * np.uint16(1 << i)
    return bits


# figures


def test_the_area_under_the_curve_of_a_histogram_is_the_exact_one(rng: np.random.Generator) -> None:
    truth, unknown = _random_bits(rng, (40, 50), 0.2), _random_bits(rng, (40, 50), 0.1)
    logits = rng.normal(0, 2, (14, 40, 50)) + 2 * _planes(truth)
    counts = histogram(logits, truth, unknown).astype(float)
    found = auc(counts[0], counts[1])
    for i in range(14):
        known = ~_planes(unknown)[i]
        # scores within a bin are ties
        binned = np.floor((logits[i] + LIMIT) * N_BINS / (2 * LIMIT))
        assert found[i] == pytest.approx(exact_auc(binned[known], _planes(truth)[i][known]), abs=1e-12)
        assert found[i] == pytest.approx(exact_auc(logits[i][known], _planes(truth)[i][known]), abs=2e-3)
    assert np.isnan(auc(np.zeros((1, N_BINS)), np.ones((1, N_BINS))))


def test_logits_beyond_the_histogram_are_kept_in_its_ends() -> None:
    truth = np.array([[0, 1, 1]], np.uint16)
    logits = as_logits(np.array([[[0.0, 1.0, np.nan]]], np.float32))
    counts = histogram(logits, truth, np.zeros_like(truth))
    assert counts[0, 0, 0] == 1
    assert (counts[1, 0, -1], counts[1, 0, 0]) == (1, 1)


def test_probabilities_that_round_beyond_their_ends_have_logits():
    beyond = np.array([np.nan, -1e-7, 0, 0.5, 1, np.nextafter(np.float32(1), np.float32(2))], np.float32)
    logits = as_logits(beyond)
    assert np.isfinite(logits).all()
    assert logits[3] == 0
    assert logits[4] == logits[5] == -logits[1] == -logits[2]


def test_overlaps_are_those_of_a_slow_count(rng: np.random.Generator) -> None:
    shape = (24, 31)
    mask, truth, unknown = (_random_bits(rng, shape, share) for share in (0.06, 0.05, 0.1))
    found = overlap(mask, truth, unknown)
    for i in range(len(NAMES)):
        flagged, real, known = _planes(mask)[i], _planes(truth)[i], ~_planes(unknown)[i]
        real = real & known
        near = {"flagged": 0, "true": 0}
        for y in range(shape[0]):
            for x in range(shape[1]):
                box = np.s_[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                near["flagged"] += bool(flagged[y, x] and known[y, x] and real[box].any())
                near["true"] += bool(real[y, x] and flagged[box].any())
        wanted = [
            (flagged & real & known).sum(), (flagged & ~real & known).sum(), (~flagged & real).sum(),
            (~flagged & ~real & known).sum(), near["flagged"], (flagged & known).sum(), near["true"], real.sum(),
        ]  # fmt: skip
        assert found[i].tolist() == wanted
        correlation = np.corrcoef(flagged[known], real[known])[0, 1]
        assert mcc(found[i].astype(float)) == pytest.approx(correlation, abs=1e-12)
        assert precision(found[i].astype(float)) == pytest.approx(near["flagged"] / wanted[5])
        assert recall(found[i].astype(float)) == pytest.approx(near["true"] / wanted[7])


def test_the_correlation_of_a_whole_night_does_not_overflow() -> None:
    counts = np.array([4e9, 1e8, 2e8, 9e12, 0, 0, 0, 0])
    assert 0.95 < mcc(counts) < 1
    assert mcc(np.array([0, 0, 3.0, 5.0, 0, 0, 0, 0])) == 0  # an empty mask says nothing
    assert np.isnan(mcc(np.array([0, 3.0, 0, 5.0, 0, 0, 0, 0])))


def test_trails_are_matched_as_whole_things() -> None:
    trails = np.zeros((60, 60), np.uint8)
    trails[10, 5:55], trails[30, 5:55] = 1, 2
    flagged = np.zeros((60, 60), bool)
    flagged[11, 5:35] = True  # 30 of 50 pixels of the first, one row beside it
    flagged[31, 5:28] = True  # 23 + 1 of 50 of the second: too few, but a piece that is right
    flagged[50, 5:30] = True  # nothing is there
    flagged[40, 5:10] = True  # too small to be called a trail
    unknown = np.zeros((60, 60), bool)
    assert match_trails(flagged, trails, unknown).tolist() == [2, 1, 3, 2]
    unknown[48:53] = True
    assert match_trails(flagged, trails, unknown).tolist() == [2, 1, 2, 2]
    assert match_trails(np.zeros_like(flagged), np.zeros_like(trails), unknown).tolist() == [0, 0, 0, 0]


def test_calibration_error_is_that_of_a_slow_count_and_nothing_where_all_is_right(
    rng: np.random.Generator,
) -> None:
    prior = 0.3
    inside = rng.integers(0, 50, N_BINS).astype(float)
    out = rng.integers(0, 90, N_BINS).astype(float)
    share = inside.sum() / (inside + out).sum()
    odds = prior / (1 - prior) * (1 - share) / share
    p = sigmoid(CENTRES)
    p = p / (p + odds * (1 - p))
    for least in (0.0, 0.4):
        gap = total = 0.0
        for low in np.arange(15) / 15:
            rows = (p >= low) & (p < low + 1 / 15) & (p >= least)
            gap += abs((p * (inside + out))[rows].sum() - inside[rows].sum())
            total += (inside + out)[rows].sum()
        assert calibration_error(out, inside, prior, least=least) == pytest.approx(gap / total, rel=1e-9)
    many = np.full(N_BINS, 1e6)
    p = sigmoid(CENTRES)
    right = float((many * p).sum() / many.sum())
    assert calibration_error(many * (1 - p), many * p, right) < 1e-9


def test_the_best_cut_is_the_best_of_all(rng: np.random.Generator) -> None:
    logits = np.concatenate([rng.normal(-3, 1.5, 4000), rng.normal(1, 1.5, 300)])
    truth = np.concatenate([np.zeros(4000, np.uint16), np.ones(300, np.uint16)])
    counts = histogram(logits[None, None], truth[None], np.zeros_like(truth)[None]).astype(float)
    cut = best_cut(counts[0, 0], counts[1, 0])
    best = max(np.corrcoef(logits > edge, truth)[0, 1] for edge in np.linspace(-6, 4, 251))
    assert np.corrcoef(logits > cut, truth)[0, 1] == pytest.approx(best, abs=5e-3)


def test_groups_are_resampled_together_and_models_alike(rng: np.random.Generator) -> None:
    weights = weights_of(["a", "a", "b", "c", "b"], 50, 1)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 2] == weights[:, 4]).all()
    assert ((weights[:, 0] + weights[:, 2] + weights[:, 3]) == 3).all()
    tallies = []
    for number in range(12):
        truth, none = _random_bits(rng, (30, 30), 0.1), np.zeros((30, 30), np.uint16)
        logits = rng.normal(0, 1, (14, 30, 30)) + 3 * _planes(truth)
        flagged = sum(((logits[i] > 1.5) * np.uint16(1 << i) for i in range(14)), none)
        trails = _planes(truth)[NAMES.index("TRL")].astype(np.uint8)
        tallies.append(tally(f"f{number}", f"g{number % 6}", logits, flagged, Truth(truth, none, trails)))
    draws = draws_of(tallies, [0.1] * 14, n_bootstrap=100)
    figures = figures_of(draws)
    assert set(figures) == set(NAMES)
    assert {"trail_recall", "trail_precision"} <= set(figures["TRL"])
    total = sum(entry.counts for entry in tallies)
    for i, name in enumerate(NAMES):
        assert figures[name]["mcc"].value == pytest.approx(float(mcc(total[i].astype(float))))
        assert figures[name]["mcc"].low < figures[name]["mcc"].value < figures[name]["mcc"].high
        assert figures[name]["mcc"].n == total[i, 7]
        assert figures[name]["mcc_best"].value >= figures[name]["mcc"].value - 0.01  # cuts are those of bins
    same = draws["CR"]["auc"].minus(draws["CR"]["auc"]).figure()
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_figure_that_is_not_defined_has_no_interval() -> None:
    empty = Tally("a", "a", np.zeros((2, 14, N_BINS), int), np.zeros((14, 8), int), np.zeros(4, int))
    figures = figures_of(draws_of([empty, empty], [0.5] * 14, n_bootstrap=5))
    assert math.isnan(figures["CR"]["auc"].value)
    assert math.isnan(figures["CR"]["auc"].low)


def test_platt_on_counts_keeps_a_rare_class_rare(rng: np.random.Generator) -> None:
    share, n = 1e-5, 1e8
    p = sigmoid(CENTRES)
    density = np.exp(-0.5 * ((CENTRES + 12) / 2) ** 2)
    density *= n / density.sum()
    counts = np.concatenate([density * (1 - p), density * p])
    target = np.repeat([0.0, 1.0], N_BINS)
    a, b = fit_platt(np.tile(2 * CENTRES + 1, 2), target, counts, n)
    np.testing.assert_allclose([a, b], [0.5, -0.5], atol=3e-3)  # logits are those of bins
    assert counts[N_BINS:].sum() / n < 10 * share


# recipes and examples


def test_recipes_say_of_which_task_they_are(recipe: MaskRecipe, tmp_path: Path) -> None:
    assert recipe.task == "masks"
    with pytest.raises(InputError, match="of the task 'masks'; here one for stamps"):
        load_recipe(str(tmp_path / "masks.toml"))
    for old, new, message in (
        ('"masks"', '"spectra"', "task: 'spectra' is none of stamps"),
        ("HP = 10", "XY = 10", "'XY' is none of the classes"),
        ("spikes = 1", "comets = 1", "shares: 'comets' is none of"),
        ("shape = [192", "size = [192", "settings: "),
        ("side = 64", "side = 65", "crops.side"),
    ):
        (tmp_path / "wrong.toml").write_text(RECIPE.replace(old, new))
        with pytest.raises(InputError, match=message):
            load_any_recipe(str(tmp_path / "wrong.toml"))


def _base(rng: np.random.Generator, shape: tuple[int, int] = (200, 160)) -> np.ndarray:
    data = rng.normal(300, 9, shape).astype(np.float32)
    data[:20, :30] = np.nan
    return data


def test_an_example_follows_from_its_name(recipe: MaskRecipe, rng: np.random.Generator) -> None:
    settings = _simulation(recipe).simulated()
    base = RealTile("night:0:0", "night", _base(rng))
    for tile in (None, base):
        one, again, other = (make_example(f"sim-3-{n}", tile, settings) for n in (1, 1, 2))
        assert one.base == ("" if tile is None else "night:0:0")
        np.testing.assert_array_equal(one.image, again.image)
        np.testing.assert_array_equal(one.truth, again.truth)
        assert (one.truth != other.truth).any()
        shape = (192, 192) if tile is None else (200, 160)
        assert one.image.shape == (TILE, TILE)
        assert (one.unknown[shape[0] :] == ALL_BITS).all()
        assert (one.unknown[:, shape[1] :] == ALL_BITS).all()
        inside = one.truth[: shape[0], : shape[1]]
        codes = ALL_BITS ^ BACKGROUND_BIT
        np.testing.assert_array_equal(inside & BACKGROUND_BIT != 0, inside & codes == 0)
    missing = np.s_[:20, :30]
    assert (one.image[missing] == 0).all()
    assert (one.unknown[missing] == ALL_BITS).all()


def test_tiles_of_real_frames_leave_out_what_has_no_sky(tmp_path: Path, rng: np.random.Generator) -> None:
    data = rng.normal(100, 5, (1100, 700)).astype(np.float32)
    data[:512, :] = 7.0
    fits.writeto(tmp_path / "frame.fits.gz", data)
    fits.writeto(tmp_path / "small.fits", data[-100:, -100:])
    tiles = tiles_of([tmp_path / "frame.fits.gz", tmp_path / "small.fits"], 64)
    assert [tile.name for tile in tiles] == ["frame:588:0"]
    np.testing.assert_array_equal(tiles[0].data, data[588:, :512])
    assert tiles[0].image == "frame"
    role = role_of("frame")
    assert tiles_of([tmp_path / "frame.fits.gz"], 64, {"held", "test", "fit", "validation"} - {role}) == []


def test_nothing_is_asked_about_what_has_no_value(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """A blank overscan strip that the normalisation leaves out is neither learned from nor measured."""
    data = rng.normal(100, 5, (512, 512)).astype(np.float32)
    data[:, :64] = 0
    truth = np.zeros(data.shape, np.uint16)
    truth[:, :64] = code_of("OV")
    nowhere = np.zeros(data.shape, np.bool_)
    made = Contaminated(data, truth, np.zeros_like(truth), nowhere, np.zeros(data.shape, np.uint8))
    monkeypatch.setattr("tapetum.training.mask_data.draw", lambda *_: made)
    example = make_example("sim-3-1", None, ContaminantSettings())
    assert (example.unknown[:, :64] == ALL_BITS).all()
    assert (example.image[:, :64] == 0).all()
    assert not example.unknown[:, 64:].any()


def test_real_tiles_keep_their_role(recipe: MaskRecipe, rng: np.random.Generator) -> None:
    images = {role_of(f"n{k}"): f"n{k}" for k in range(60)}
    assert set(images) == {"held", "test", "validation", "fit"}
    tiles = [RealTile(f"{image}:0:0", image, _base(rng)) for image in images.values()]
    source = MaskSource(_simulation(recipe), tiles, 1.0)
    roles = {role_of(name): name for name in (f"sim-3-{k}" for k in range(60))}
    for role in ("fit", "validation", "test"):
        base = source.base_of(roles[role])
        assert base is not None
        assert role_of(base.image) == role
    assert MaskSource(_simulation(recipe), tiles, 0.0).base_of(roles["fit"]) is None
    keys = {role: source.keys(role, 3) for role in ("fit", "validation", "test")}
    assert [key.origin for key in keys["fit"]] == ["simulated"] * 8 + ["frames"]
    changed = replace(tiles[0], data=tiles[0].data + 1)
    role = role_of(changed.image)
    if role != "held":
        assert MaskSource(_simulation(recipe), [changed], 1.0).keys(role, 3)[-1] not in keys[role]


def test_the_pool_slides_and_a_resumed_run_sees_the_same(recipe: MaskRecipe) -> None:
    sources = [MaskSource(_simulation(recipe), [], 0.0) for _ in range(2)]
    with closing(sources[0]) as first, closing(sources[1]) as resumed:
        pools = [[example.name for example in first.pool(epoch, 2)] for epoch in range(3)]
        assert all(len(pool) == 4 for pool in pools)
        assert pools[0][2:] == pools[1][:2]
        assert pools[1][2:] == pools[2][:2]
        assert {role_of(name) for pool in pools for name in pool} == {"fit"}
        late = resumed.pool(2, 2)
        assert [example.name for example in late] == pools[2]
        np.testing.assert_array_equal(late[3].image, first.pool(2, 2)[3].image)


# from here on with torch

torch_only = pytest.mark.needs_train


@torch_only
def test_the_loss_is_that_of_a_slow_sum_and_unknown_pixels_do_not_count(
    recipe: MaskRecipe, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    from tapetum.training.mask_task import mask_loss

    shape = (2, 9, 7)
    truth = np.stack([_random_bits(rng, shape[1:], 0.3) for _ in range(2)])
    unknown = np.stack([_random_bits(rng, shape[1:], 0.2) for _ in range(2)])
    logits = torch.from_numpy(rng.normal(0, 2, (2, 14, 9, 7)).astype(np.float32)).requires_grad_()
    bits = [torch.from_numpy(part.astype(np.int32)) for part in (truth, unknown)]
    loss = mask_loss(logits, *bits, recipe.loss)
    loss.backward()
    x = logits.detach().double().numpy()
    each, dice, weights = [], [], []
    for i, name in enumerate(NAMES):
        known, real = (unknown >> i & 1) == 0, (truth >> i & 1) == 1
        p = 1 / (1 + np.exp(-x[:, i]))
        times = recipe.loss.positive.get(name, 1.0)
        entropy = np.where(real, -times * np.log(p), -np.log(1 - p))
        each.append(entropy[known].mean())
        both = (p * real * known).sum()
        dice.append(1 - (2 * both + 1) / ((p * known).sum() + (real & known).sum() + 1))
        weights.append(recipe.loss.weights.get(name, 1.0))
    wanted = np.mean(np.multiply(each, weights)) + recipe.loss.dice * np.mean(dice)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    gradient = np.moveaxis(logits.grad.numpy(), 1, 0)
    nobody_knows = np.stack([(unknown >> i & 1) == 1 for i in range(14)])
    assert (gradient[nobody_knows] == 0).all()
    assert (gradient[~nobody_knows] != 0).all()


@torch_only
def test_crops_turn_image_and_truth_together(recipe: MaskRecipe, rng: np.random.Generator) -> None:
    pytest.importorskip("torch")
    from tapetum.training.mask_data import MaskExample
    from tapetum.training.mask_task import crops_of

    crops = recipe.crops.model_copy(update={"scale": 0.0, "offset": 0.0, "per_frame": 40})
    truth = rng.integers(0, 1 << 14, (TILE, TILE)).astype(np.uint16)
    image = (truth / 16).astype(np.float16)
    example = MaskExample("sim-3-1", "", image, truth, ~truth & ALL_BITS, np.zeros((0, 0), np.uint8))
    batches = list(crops_of([example], crops, 8, np.random.default_rng(1)))
    assert len(batches) == 5
    ways = set()
    for images, bits, unknown in batches:
        assert images.shape == (8, 1, 64, 64)
        np.testing.assert_array_equal(images[:, 0], (bits / 16).astype(np.float16))
        np.testing.assert_array_equal(unknown, ~bits & int(ALL_BITS))
        for crop in bits:
            steps = [np.argwhere(truth == crop[y, x]) for y, x in ((0, 0), (0, 1), (1, 0))]
            pairs = [(b - a) for a in steps[0] for b in steps[1] if np.abs(b - a).sum() == 1]
            ways.update(tuple(step.tolist()) for step in pairs)
    assert {(0, 1), (0, -1), (1, 0), (-1, 0)} <= ways
    again = list(crops_of([example], crops, 8, np.random.default_rng(1)))
    np.testing.assert_array_equal(again[3][0], batches[3][0])


@torch_only
def test_the_calibration_goes_into_the_last_layer_or_nowhere() -> None:
    torch = pytest.importorskip("torch")
    from tapetum.training.mask_export import scaled
    from tapetum.training.networks import build_network

    network = build_network("contaminants", 1, 0, {"widths": [4, 4, 4, 4, 4], "dilations": [1]}).eval()
    slope, offset = np.linspace(0.5, 2, 14), np.linspace(-3, 3, 14)
    images = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        before, after = network(images), scaled(network, slope, offset)(images)
    wanted = before * torch.from_numpy(slope).float()[:, None, None]
    wanted = wanted + torch.from_numpy(offset).float()[:, None, None]
    torch.testing.assert_close(after, wanted, atol=1e-4, rtol=1e-4)
    network.head = torch.nn.Sequential(network.head, torch.nn.ReLU())
    with pytest.raises(ModelError, match="last layer is a convolution"):
        scaled(network, slope, offset)

    class Bent(torch.nn.Module):
        """Something comes after its head."""

        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Conv2d(1, 14, 1)

        def forward(self, x):
            return torch.relu(self.head(x))

    with pytest.raises(ModelError, match="did not survive"):
        scaled(Bent(), slope, offset)


@torch_only
def test_a_diverging_run_stops_before_its_checkpoint(recipe: MaskRecipe, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tapetum.training.loop import fit
    from tapetum.training.mask_task import MaskTask
    from tapetum.training.task import Epoch

    class Diverging(MaskTask):
        """Its loss is infinite."""

        def epoch(self, epoch):
            bits = np.ones((2, 32, 32), np.int32)
            return Epoch(1, iter([(np.ones((2, 1, 32, 32), np.float32), bits, bits * 0)]))

        def loss(self, answers, *truth):
            return super().loss(answers, *truth) * torch.inf

    task = Diverging(recipe, MaskSource(_simulation(recipe), [], 0.0))
    with closing(task), pytest.raises(TapetumError, match=r"loss of epoch 1 is .*diverged"):
        fit(task, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


@torch_only
def test_batches_made_ahead_keep_their_order_and_their_errors() -> None:
    pytest.importorskip("torch")
    from tapetum.training.loop import made_ahead

    def batches(n: int):
        for k in range(n):
            yield (np.array([k]),)
        raise InputError("no more")

    taken = []
    with pytest.raises(InputError, match="no more"):
        taken.extend(int(batch[0][0]) for batch in made_ahead(batches(5)))
    assert taken in ([], [0, 1, 2, 3, 4])
    stream = made_ahead(batches(9))
    assert int(next(stream)[0][0]) == 0
    stream.close()


@torch_only
def test_from_recipe_to_masks_to_report(recipe: MaskRecipe, tmp_path: Path, rng: np.random.Generator) -> None:
    pytest.importorskip("torch")
    from tapetum.cli.app import app
    from tapetum.models.runtime import Model
    from tapetum.training.loop import fit
    from tapetum.training.mask_task import MaskTask
    from tapetum.training.record import settings_of

    # interrupted after the first epoch, the command goes on to the weights of an unbroken run
    out, whole = tmp_path / "model", tmp_path / "whole"
    with closing(MaskTask(recipe, MaskSource(_simulation(recipe), [], 0.0))) as task:
        fit(task, whole)
        record = {**settings_of(recipe), "data_sha256": task.fingerprint()}

    class Interrupted(MaskTask):
        """Stops at the second epoch, as a power cut would."""

        def epoch(self, epoch):
            if epoch:
                raise KeyboardInterrupt
            return super().epoch(epoch)

    task = Interrupted(recipe, MaskSource(_simulation(recipe), [], 0.0))
    with closing(task), pytest.raises(KeyboardInterrupt):
        fit(task, out)
    (out / "recipe.json").write_text(json.dumps(record))
    train = ["models", "train", str(tmp_path / "masks.toml")]
    result = CliRunner().invoke(app, [*train, "-o", str(out)])
    assert result.exit_code == 0, result.output
    with np.load(out / "checkpoint.npz") as mine, np.load(whole / "checkpoint.npz") as theirs:
        for name in theirs.files:
            np.testing.assert_array_equal(mine[name], theirs[name])

    model = Model.load(str(out))
    card = model.card
    assert (card.finder, card.calibration.method) == ("contaminants", "none")
    assert tuple(entry.name for entry in card.classes) == NAMES
    assert [entry.code for entry in card.classes] == [code_of(name) for name in NAMES]
    assert all(0 < entry.training_prior < 1 for entry in card.classes)
    assert {entry.role: entry.n for entry in card.training.data} == {
        "training": 6,
        "validation": 6,
        "test": 2,
    }
    assert "CR_auc" in card.metrics
    for shape in ((1, 1, 32, 96), (2, 1, 128, 64)):
        maps = model.maps(rng.normal(0, 1, shape).astype(np.float32))
        assert maps.shape == (shape[0], 14, *shape[2:])
        assert ((maps >= 0) & (maps <= 1)).all()
    _calibrated_on_validation(recipe, model)
    again = CliRunner().invoke(app, [*train, "-o", str(out)])
    assert "finished already" in again.stderr
    refused = CliRunner().invoke(app, [*train, "--alerts", str(tmp_path), "-o", str(out)])
    assert isinstance(refused.exception, UsageError)
    _reports(tmp_path, out, rng)


def _calibrated_on_validation(recipe: MaskRecipe, model) -> None:
    frames = MaskSource(_simulation(recipe), [], 0.0).fixed("validation")
    maps = [model.maps(frame.image.astype(np.float32)[None, None])[0] for frame in frames]
    for i, entry in enumerate(model.card.classes):
        known = [(frame.unknown >> i & 1) == 0 for frame in frames]
        total = sum(int(rows.sum()) for rows in known)
        expected = sum(float(plane[i][rows].sum()) for plane, rows in zip(maps, known, strict=True))
        there = sum(int((f.truth[rows] >> i & 1).sum()) for f, rows in zip(frames, known, strict=True))
        assert entry.training_prior == pytest.approx(there / total, rel=1e-6)
        # Platt's one more pixel of each kind, and logits known as bins
        assert expected == pytest.approx(there, rel=0.02, abs=1.5), entry.name


def _told_what_is_known(alike: list[Any], plan: MaskRecipe, night: Path) -> None:
    """Frames of images that a model has learned from are marked in every form of the report."""
    from tapetum.training.mask_compare import REAL, Subject, compare_masks, frames_of

    mine, other = alike
    card = mine.finder.model.card
    data = (
        *card.training.data,
        DataSet(name="frames", n=1, role="training", description="tiles of day, night"),
    )
    card = card.model_copy(update={"training": card.training.model_copy(update={"data": data})})
    model = SimpleNamespace(card=card, maps=mine.finder.model.maps)
    subjects = [Subject(mine.name, Contaminants(model, mine.finder.config)), other]
    result = compare_masks(subjects, frames_of(plan, [night], 2, 1), n_bootstrap=20)
    assert result.learned == {REAL: {mine.name: {"night": 2}}}
    for row in json.loads(result.as_json()):
        assert row["n_learned"] == (2 if row["set"] == REAL and mine.name in row["model"] else 0)
    said = f"{mine.name} has learned from the images of 2 of these 2 frames"
    assert said in result.as_markdown()
    assert said in render_page(result.page([]))


def _reports(tmp_path: Path, out: Path, rng: np.random.Generator) -> None:
    from tapetum.cli.app import app
    from tapetum.training.mask_compare import compare_masks, frames_of, subjects_of

    other = tmp_path / "other"
    shutil.copytree(out, other)

    frame = rng.normal(900, 20, (260, 300)).astype(np.float32)
    fits.writeto(tmp_path / "night.fits", frame)
    card = json.loads((other / "card.json").read_text())
    (other / "card.json").write_text(json.dumps({**card, "name": "other-masks"}))
    plan = load_any_recipe(str(tmp_path / "masks.toml"))
    assert isinstance(plan, MaskRecipe)
    subjects = subjects_of([str(out)], [str(other)])
    assert [subject.finder.config.tiling for subject in subjects] == ["overlapping", "original"]
    alike = subjects_of([str(out), str(other)])
    result = compare_masks(alike, frames_of(plan, [tmp_path / "night.fits"], 2, 1), n_bootstrap=20)
    rows = list(csv.DictReader(result.as_csv().splitlines()))
    assert {row["set"] for row in rows} == {"real frames with contaminants put in", "simulated frames"}
    assert len({row["model"] for row in rows}) == 3  # two, and their difference
    differences = [float(row["value"]) for row in rows if " - " in row["model"]]
    assert all(value == 0 or math.isnan(value) for value in differences)  # it is the same network
    assert len(json.loads(result.as_json())) == len(rows)
    assert "| Cosmic rays |" in result.as_markdown()
    assert {row["n_learned"] for row in rows} == {"0"}
    assert "has learned" not in result.as_markdown()
    _told_what_is_known(alike, plan, tmp_path / "night.fits")
    command = ["models", "evaluate", str(out), "--recipe", str(tmp_path / "masks.toml"), "--each", "1"]
    command += ["--frames", str(tmp_path / "night.fits"), "-o", str(tmp_path / "report.html")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "Cosmic rays" in (tmp_path / "report.html").read_text()
    assert f'recipe = "{tmp_path / "masks.toml"}"' in (tmp_path / "report.html.settings.toml").read_text()
    with pytest.raises(ModelError, match="named twice"):
        subjects_of([str(out), str(out)])
    with pytest.raises(InputError, match="no frame to judge on"):
        compare_masks(alike, frames_of(plan, [], 1, 0))
    for wrong, message in (
        (["--alerts", str(tmp_path)], "judges frames"),
        (["--recipe", "realbogus"], "one for masks"),
        (["--part", "validation"], "always those of the test part"),
    ):
        result = CliRunner().invoke(app, [*command, *wrong])
        assert isinstance(result.exception, TapetumError)
        assert message in str(result.exception)
    result = CliRunner().invoke(
        app, ["models", "evaluate", "realbogus", "--frames", str(tmp_path / "night.fits")]
    )
    assert "judges alerts" in str(result.exception)
