"""Figures of merit against slow truths, and calibrations that must improve what is miscalibrated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tapetum.core.errors import InputError, UsageError
from tapetum.models.calibration import calibrate, sigmoid
from tapetum.models.card import PlattCalibration, TemperatureCalibration
from tapetum.training.calibrate import fit_calibration, fit_isotonic, fit_platt
from tapetum.training.evaluate import (
    auc,
    brier,
    expected_calibration_error,
    fnr_at_fpr,
    fpr_at_tpr,
    magnitude_bands,
    measure,
    reliability,
    threshold_at_tpr,
)
from tapetum.training.figures import draw_reliability

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def scored(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    real = rng.random(300) < 0.4
    score = np.round(rng.normal(real * 1.2, 1.0), 1)  # rounded: with ties
    return score, real


def test_auc_is_the_share_of_ordered_pairs(scored: tuple[np.ndarray, np.ndarray]) -> None:
    score, real = scored
    pairs = score[real][:, None] - score[~real][None, :]
    assert auc(score, real) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert auc(-score, real) == pytest.approx(1 - auc(score, real))
    assert np.isnan(auc(score, np.ones_like(real)))


@pytest.mark.parametrize("tpr", [0.97, 0.95, 0.9, 0.5])
def test_false_positives_at_a_true_positive_rate(scored: tuple[np.ndarray, np.ndarray], tpr: float) -> None:
    score, real = scored
    fits = [cut for cut in np.unique(score) if (score[real] >= cut).mean() >= tpr]
    assert threshold_at_tpr(score, real, tpr) == max(fits)
    assert fpr_at_tpr(score, real, tpr) == pytest.approx((score[~real] >= max(fits)).mean())


@pytest.mark.parametrize(
    ("n", "tpr", "kept"), [(100, 0.90, 90), (100, 0.97, 97), (20, 0.95, 19), (7, 0.5, 4)]
)
def test_the_threshold_keeps_no_more_than_it_must(n: int, tpr: float, kept: int) -> None:
    score = np.arange(n, dtype=float)
    threshold = threshold_at_tpr(score, np.ones(n, bool), tpr)
    assert (score >= threshold).sum() == kept
    assert threshold_at_tpr(score, np.ones(n, bool), 1.0) == 0


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.1, 1.0])
def test_misses_at_a_false_positive_rate(scored: tuple[np.ndarray, np.ndarray], fpr: float) -> None:
    score, real = scored
    cuts = [cut for cut in [*np.unique(score), np.inf] if (score[~real] >= cut).mean() <= fpr]
    assert fnr_at_fpr(score, real, fpr) == pytest.approx((score[real] < min(cuts)).mean())


def test_perfect_scores_have_no_error() -> None:
    real = np.arange(100) >= 60
    score = real.astype(float)
    assert (auc(score, real), fpr_at_tpr(score, real, 0.97), fnr_at_fpr(score, real, 0.01)) == (1, 0, 0)
    assert brier(score, real) == 0
    assert expected_calibration_error(reliability(score, real), debiased=False) == 0


def test_bins_hold_equal_numbers_and_everything(scored: tuple[np.ndarray, np.ndarray]) -> None:
    score, real = scored
    bins = reliability(sigmoid(score), real, 15)
    assert [entry.n for entry in bins] == [20] * 15
    assert sum(entry.n * entry.fraction for entry in bins) == pytest.approx(real.sum())
    assert len(reliability(sigmoid(score[:4]), real[:4], 15)) == 4


def test_debiasing_takes_away_what_chance_alone_gives(rng: np.random.Generator) -> None:
    plain, debiased = [], []
    for _ in range(40):
        probability = rng.random(600)
        bins = reliability(probability, rng.random(600) < probability)  # calibrated by construction
        plain.append(expected_calibration_error(bins, debiased=False))
        debiased.append(expected_calibration_error(bins))
    assert np.mean(plain) > 0.04
    assert np.mean(debiased) < 0.6 * np.mean(plain)
    probability = rng.random(20000)
    bins = reliability(probability, rng.random(20000) < np.clip(probability + 0.1, 0, 1))
    assert expected_calibration_error(bins) == pytest.approx(0.095, abs=0.015)  # a real error stays


def test_uncertain_truth_counts_by_its_probability(rng: np.random.Generator) -> None:
    target = rng.random(6000)  # what is known is a probability, and the scores are exactly it
    assert expected_calibration_error(reliability(target, target), debiased=False) == pytest.approx(
        0, abs=1e-12
    )
    figures = measure(target, target, [str(i) for i in range(6000)], n_bootstrap=0)
    assert figures["brier"].value == 0
    assert figures["auc"].value == 1
    assert figures["ece"].n == 6000
    assert figures["auc"].n == ((target >= 0.8) | (target <= 0.2)).sum()
    # leaving the uncertain ones out would call the same scores wrong
    certain = (target >= 0.8) | (target <= 0.2)
    hard = reliability(target[certain], target[certain] > 0.5)
    assert expected_calibration_error(hard) > 0.05


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_calibration_repairs_overconfidence(method: str, rng: np.random.Generator) -> None:
    true_logits = rng.normal(0, 1.5, 8000)
    real = rng.random(8000) < sigmoid(true_logits)
    logits = 3 * true_logits  # three times too sure
    fitted = fit_calibration(method, logits[:4000], real[:4000].astype(float))
    score, test = sigmoid(logits[4000:]), real[4000:]
    before = expected_calibration_error(reliability(score, test))
    after = expected_calibration_error(reliability(calibrate(score, fitted), test))
    assert before > 0.1
    assert after < 0.02


def test_platt_and_temperature_find_what_was_put_in(rng: np.random.Generator) -> None:
    logits = rng.normal(0, 2, 20000)
    real = (rng.random(20000) < sigmoid(0.5 * logits - 0.7)).astype(float)
    platt = fit_calibration("platt", logits, real)
    assert isinstance(platt, PlattCalibration)
    assert (platt.a, platt.b) == pytest.approx((0.5, -0.7), abs=0.04)
    real = (rng.random(20000) < sigmoid(logits / 2.5)).astype(float)
    temperature = fit_calibration("temperature", logits, real)
    assert isinstance(temperature, TemperatureCalibration)
    assert temperature.temperature == pytest.approx(2.5, rel=0.05)


def test_weights_count_like_repeated_examples(rng: np.random.Generator) -> None:
    logits = rng.normal(0, 2, 400)
    real = (rng.random(400) < sigmoid(logits)).astype(float)
    twice = np.where(np.arange(400) < 200, 2.0, 1.0)
    repeated = np.repeat(np.arange(400), twice.astype(int))
    weighted = fit_platt(logits, real, twice)
    assert weighted == pytest.approx(fit_platt(logits[repeated], real[repeated], np.ones(600)), abs=0.02)
    x, y = fit_isotonic(sigmoid(logits), real, twice)
    assert (np.diff(x) > 0).all()
    assert (np.diff(y) >= 0).all()


def test_separable_examples_give_a_finite_slope_and_one_class_is_refused() -> None:
    logits = np.concatenate([np.full(50, -4.0), np.full(50, 4.0)])
    fitted = fit_calibration("platt", logits, (logits > 0).astype(float))
    assert isinstance(fitted, PlattCalibration)
    assert 0 < fitted.a < 10
    with pytest.raises(InputError, match="real and bogus"):
        fit_calibration("platt", logits, np.ones(100))


def test_intervals_resample_objects_not_alerts(rng: np.random.Generator) -> None:
    # ten objects of forty identical alerts each know far less than four hundred objects do
    score = np.repeat(rng.normal(size=10), 40)
    real = np.repeat(np.arange(10) < 5, 40)
    score = score + real
    together = measure(score, real, [f"object {i // 40}" for i in range(400)], names=("auc",))["auc"]
    apart = measure(score, real, [f"object {i}" for i in range(400)], names=("auc",))["auc"]
    assert together.value == apart.value
    assert together.low <= together.value <= together.high
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_magnitude_bands_cover_every_alert() -> None:
    names = magnitude_bands(np.array([15.0, 17.5, 19.9, 22.0, np.nan]))
    assert names == ["< 17 mag", "17 to 18 mag", "19 to 20 mag", "> 20 mag", "no magnitude"]


def test_a_diagram_is_svg_or_png(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x\.foo.*\.svg or \.png"):
        draw_reliability(tmp_path / "x.foo", [], "title", 0.0)
    assert not (tmp_path / "x.foo").exists()
