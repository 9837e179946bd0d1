"""The shipped classifier over a tree of classes, and what it is told of light curves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tapetum.finders.taxonomy import load_taxonomy
from tapetum.finders.variable_tree import (
    Config,
    VariableTree,
    conformal_set,
    curve_features,
    is_tree,
    leaf_sums,
    load,
    softmax,
    wave_periods,
)
from tapetum.lightcurves.clean import CleaningRules, clean
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.formats.opening import open_curves
from tapetum.models.registry import find_model
from tapetum.training.split import role_of
from tapetum.training.variable_tree_evaluate import recipe_of


def contact_binary(n: int = 180, seed: int = 1) -> LightCurves:
    """A star of two almost like, narrow minima and round maxima, orbit 0.37 d."""
    rng = np.random.default_rng(seed)
    time = np.sort(rng.uniform(0, 900, n))
    phase = time / 0.37
    dim = 0.6 * (1 - np.abs(np.sin(2 * np.pi * phase))) + 0.03 * np.cos(2 * np.pi * phase)
    mag = 13 + dim + rng.normal(0, 0.02, n)
    return LightCurves.of_lists([time], [mag], [np.full(n, 0.02)])


@pytest.mark.parametrize("period", [0.37, 0.185])
def test_the_wave_is_the_same_whichever_period_was_found(period: float) -> None:
    curves = contact_binary()
    assert wave_periods(curves, np.array([period])) == pytest.approx([0.185])
    table = curve_features(curves, np.array([period]))
    other = curve_features(curves, np.array([0.37]))
    differing = [name for name in table.column_names if table[name] != other[name]]
    assert set(differing) <= {"log_period", "log_period_ratio"}


def test_a_curve_without_a_period_has_features_all_the_same() -> None:
    table = curve_features(contact_binary(), np.array([np.nan]))
    assert table["log_wave"].to_pylist() == [None]
    assert table["amplitude"].to_pylist()[0] > 0.2


def test_sums_follow_the_tree() -> None:
    codes, inside = leaf_sums(("rrab", "rrc", "ea"), load_taxonomy("tapetum"))
    assert codes == ["puls", "rrlyr", "rrab", "rrc", "e", "ea"]
    assert inside.tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1]]


def test_sets_hold_the_best_class_and_all_above_the_threshold() -> None:
    chance = softmax(np.log(np.array([[0.7, 0.2, 0.1], [0.04, 0.5, 0.46], [0.34, 0.33, 0.33]])))
    found = conformal_set(chance, ("a", "b", "c"), 0.45)
    assert found == [["a"], ["b", "c"], ["a"]]


@pytest.fixture(scope="module")
def tree() -> VariableTree:
    return load()


def test_the_shipped_model_is_small_and_complete(tree: VariableTree) -> None:
    files = find_model("variables")
    assert files.origin == "package"
    assert files.onnx.stat().st_size < 5_000_000
    card = tree.model.card
    assert is_tree(card)
    assert all(data.citation for data in card.training.data)
    assert card.metrics["accuracy"].low is not None
    assert {"conformal_0.90", "conformal_0.95", "conformal_0.99"} <= set(card.thresholds)


def test_it_knows_a_contact_binary_of_any_survey(tree: VariableTree) -> None:
    curves = contact_binary()
    found = tree.find(curves)
    assert found["e"].to_pylist()[0] > 0.5
    moved = LightCurves.of_lists([curves.time + 53000.5], [curves.mag + 4], [curves.magerr])
    # nothing depends on where time and magnitude begin but for the phases of the grid of periods
    assert tree.find(moved, found)["e"].to_pylist()[0] == pytest.approx(found["e"].to_pylist()[0], abs=1e-3)


def test_columns_and_metadata_say_what_is_what(tree: VariableTree) -> None:
    found = tree.find(contact_binary())
    names = found.column_names
    assert names[:2] == ["lc_id", "period"]
    assert names[2:-5] == tree.codes
    assert names[-5:] == ["class", "class_probability", "class_set", "flags", "error"]
    about = json.loads(found.schema.metadata[b"classification"])
    assert about["models"]["variables"]["sha256"] == tree.model.card.onnx_sha256
    assert set(tree.columns) == {*tree.codes, "class_probability"}
    assert (
        found.schema.field("rrab").metadata[b"description"].startswith(b"RR Lyr ab: probability by variables")
    )


def test_wider_sets_at_higher_coverage(tree: VariableTree) -> None:
    wide = VariableTree(tree.model, Config(coverage="0.99"))
    assert wide.threshold <= tree.threshold
    rng = np.random.default_rng(3)
    curves = LightCurves.of_lists(
        [np.sort(rng.uniform(0, 500, 40)) for _ in range(4)],
        [15 + rng.normal(0, 0.1, 40) for _ in range(4)],
        [np.full(40, 0.1)] * 4,
    )
    narrow_sets, wide_sets = (each.find(curves)["class_set"].to_pylist() for each in (tree, wide))
    assert all(set(few) <= set(many) for few, many in zip(narrow_sets, wide_sets, strict=True))


def test_bad_curves_are_answered_or_named(tree: VariableTree) -> None:
    rng = np.random.default_rng(5)
    time = np.sort(rng.uniform(0, 300, 60))
    curves = LightCurves.of_lists(
        [time, time, np.repeat(time[:10], 3), time[:1], np.zeros(0)],
        [
            np.full(60, 15.0),
            np.where(np.arange(60) == 7, np.nan, 15.1),
            np.full(30, 14.0),
            [15.0],
            np.zeros(0),
        ],
        [np.full(60, 0.1), np.full(60, 0.1), np.full(30, 0.1), [0.1], np.zeros(0)],
    )
    kept = clean(curves, CleaningRules(min_points=1, cadence_minutes=0.0)).curves
    found = tree.find(kept)
    total = np.sum([np.array(found[code].to_pylist(), float) for code in tree.leaves], axis=0)
    answered = np.array([error is None for error in found["error"].to_pylist()])
    np.testing.assert_allclose(total[answered], 1)
    assert found["class"].to_pylist()[-1] is None
    empty = tree.find(kept.take(np.zeros(0, np.int64)))
    assert empty.num_rows == 0
    assert empty.schema.equals(found.schema)


def test_periods_may_be_given_and_may_be_missing(tree: VariableTree) -> None:
    curves = contact_binary()
    none = tree.find(curves, pa.table({"period": pa.array([None], pa.float64())}))
    assert none["period"].to_pylist() == [None]
    assert none["class"].to_pylist()[0] is not None


def test_it_is_right_on_real_stars_it_did_not_learn_from(tree: VariableTree, real_data: Path) -> None:
    path = real_data / "lightcurves" / "labelled" / "labelled_lightcurves.parquet"
    if not path.is_file():
        pytest.skip("no labelled light curves")
    curves = open_curves([str(path)]).read()
    labels = np.array(curves.table["label"].to_pylist())
    codes = recipe_of(tree.model.card).labelled.labels
    wanted = np.array([codes.get(label) in tree.leaves for label in labels])
    wanted &= np.array(curves.table["survey"].to_pylist()) == "ASAS-3 (ACVS)"
    wanted &= np.array([role_of(name) == "test" for name in curves.table["object_id"].to_pylist()])
    which = np.flatnonzero(wanted)[::8]
    found = tree.find(clean(curves.take(which), CleaningRules(min_points=5, cadence_minutes=0.0)).curves)
    truth = [codes[label] for label in labels[which]]
    assert len(truth) > 60
    assert np.mean([a == b for a, b in zip(truth, found["class"].to_pylist(), strict=True)]) > 0.85
    assert np.mean([a in b for a, b in zip(truth, found["class_set"].to_pylist(), strict=True)]) > 0.92
