"""Figures of the classifier over a tree of classes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tapetum.training.variable_tree_metrics import (
    accuracy,
    by_points,
    class_table,
    conformal_threshold,
    confusion,
    f1_scores,
    macro_f1,
    partial_loss,
    temperature_of,
    with_intervals,
)

TRUTH = np.array([0, 0, 0, 1, 1, 2])
GIVEN = np.array([0, 0, 1, 1, 1, 0])


def test_scores_are_those_of_the_definition() -> None:
    matrix = confusion(TRUTH, GIVEN, 4)
    assert matrix[0].tolist() == [2, 1, 0, 0]
    np.testing.assert_allclose(f1_scores(matrix), [2 * 2 / 6, 2 * 2 / 5, 0, np.nan])
    assert accuracy(matrix) == pytest.approx(4 / 6)
    assert macro_f1(matrix) == pytest.approx((4 / 6 + 4 / 5) / 3)
    assert math.isnan(accuracy(np.zeros((2, 2))))


def test_intervals_resample_stars_and_not_curves() -> None:
    truth = np.zeros(400, np.int64)
    given = (np.arange(400) >= 300).astype(np.int64)
    alone = with_intervals({"accuracy": accuracy}, truth, given, [str(i) for i in range(400)], 2, seed=1)
    grouped = with_intervals(
        {"accuracy": accuracy}, truth, given, [str(i // 100) for i in range(400)], 2, seed=1
    )
    assert alone["accuracy"].value == grouped["accuracy"].value == 0.75
    assert alone["accuracy"].high - alone["accuracy"].low < 0.12
    assert grouped["accuracy"].high - grouped["accuracy"].low > 0.4


def test_class_table_counts_stars_and_curves() -> None:
    rows = class_table(TRUTH, GIVEN, ["a", "a", "b", "c", "d", "e"], ["x", "y", "z"])
    assert [(row["class"], row["curves"], row["stars"]) for row in rows] == [
        ("x", 3, 2),
        ("y", 2, 2),
        ("z", 1, 1),
    ]
    assert rows[0]["precision"] == pytest.approx(2 / 3)
    assert rows[1]["recall"] == 1.0
    assert rows[0]["f1_low"] <= rows[0]["f1"] <= rows[0]["f1_high"]


def test_groups_by_number_of_points() -> None:
    rows = by_points(np.array([True, False, True]), np.array([True, True, True]), np.array([10, 20, 900]))
    assert [(row["from"], row["below"], row["curves"]) for row in rows] == [(5, 30, 2), (800, None, 1)]
    assert rows[0]["accuracy"] == 0.5


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_cover_what_they_promise(coverage: float) -> None:
    rng = np.random.default_rng(7)
    hits = []
    for _ in range(300):
        threshold = conformal_threshold(rng.beta(2, 1, 99), coverage)
        hits.append((rng.beta(2, 1, 200) >= threshold).mean())
    # at least the promise on average, and no more than 1 / (n + 1) above it
    assert coverage - 0.006 < np.mean(hits) < coverage + 0.016


def test_a_threshold_that_few_stars_cannot_give_is_zero() -> None:
    assert conformal_threshold(np.array([0.4, 0.9]), 0.99) == 0.0


def test_temperature_and_loss_of_wide_labels() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(4000, 5))
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    drawn = np.array([rng.choice(5, p=row) for row in chance])
    inside = np.eye(5)[drawn]
    assert temperature_of(3 * logits, inside) == pytest.approx(3, rel=0.15)
    assert partial_loss(logits, np.ones((4000, 5))) == pytest.approx(0, abs=1e-9)
    assert partial_loss(logits, inside) > 0.5
