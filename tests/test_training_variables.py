"""Classifiers of variables: truth from labels, frozen contracts, networks and trees from table to card."""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tapetum.core.errors import InputError, UsageError
from tapetum.finders.taxonomy import load_taxonomy
from tapetum.models.card import load_card
from tapetum.training.record import fingerprint, keys_of
from tapetum.training.split import role_of
from tapetum.training.variables_card import best_threshold
from tapetum.training.variables_data import TableSource, balanced, objects_of, truth_of, weights
from tapetum.training.variables_metrics import Ranking
from tapetum.training.variables_recipe import (
    ClassifierOptions,
    LabelledTable,
    any_recipe,
    classifier_recipe,
)

TODAY = date(2026, 11, 20)
COLUMNS = [{"name": "a"}, {"name": "f1_b", "periodic": True}, {"name": "Gaia_EDR3__parallax"}]
SMALL = {"features": {"columns": COLUMNS, "period_suffix": "LS"}}


def labelled(n=260, seed=3, classes=("ea", "ew")):
    """Two light curves for each source; `a` and the picture tell the classes apart."""
    rng = np.random.default_rng(seed)
    of = rng.random(n) < 0.5
    names = [f"star-{i // 2}" for i in range(n)]
    of = of[np.arange(n) // 2 * 2]  # both curves of a source have its class
    pictures = rng.random((n, 26 * 26)) * (0.2 + of[:, None] * (np.arange(676) < 338))
    parallax = [None if i % 3 == 0 else float(rng.normal(1)) for i in range(n)]
    return pa.table(
        {
            "lc_id": [f"lc-{i}" for i in range(n)],
            "object_id": names,
            "a": 10 + 5 * of + rng.normal(size=n),
            "f1_b_LS": rng.normal(size=n),
            "Gaia_EDR3__parallax": parallax,
            "dmdt": (pictures / np.linalg.norm(pictures, axis=1, keepdims=True)).astype(np.float32).tolist(),
            "scope_class": [classes[0] if one else classes[1] for one in of],
        }
    )


@pytest.fixture
def path(tmp_path):
    pq.write_table(labelled(), tmp_path / "features.parquet")
    return tmp_path / "features.parquet"


def truth(names, code, **rules):
    table = pa.table({"scope_class": names})
    return truth_of(table, code, load_taxonomy(), LabelledTable(**rules)).tolist()


def test_truth_from_the_one_class_of_a_row():
    nan = pytest.approx(float("nan"), nan_ok=True)
    names = ["ea", "ew", "e", "dscu", "", None]
    assert truth(names, "ea") == [1, 0, nan, nan, nan, nan]
    assert truth(names, "e") == [1, 1, 1, nan, nan, nan]
    assert truth(names, "ea", other_view="negative") == [1, 0, nan, 0, nan, nan]


def test_truth_from_confidences():
    table = pa.table(
        {"ea": [0.9, 0.7, 0.0, None], "variable": [1.0, 0.5, 0.0, 0.0], "non-variable": [0, 0.2, 1.0, None]}
    )
    assert truth_of(table, "ea", load_taxonomy(), LabelledTable()).tolist() == [
        1, 0, 0, pytest.approx(float("nan"), nan_ok=True),
    ]  # fmt: skip
    # what is not sure to be variable is not thereby sure to be constant
    got = truth_of(table, "vnv", load_taxonomy(), LabelledTable())
    np.testing.assert_array_equal(got, [1, np.nan, 0, np.nan])
    with pytest.raises(InputError, match="no column ew"):
        truth_of(table, "ew", load_taxonomy(), LabelledTable())


def test_described_feature_lists():
    looks, is_ = classifier_recipe("variables-ea", "dnn"), classifier_recipe("variables-rrab", "xgb")
    assert len(looks.features.columns) == 35
    assert len(is_.features.columns) == 61
    assert looks.weighted  # as in the described configuration
    assert not classifier_recipe("variables-ew", "dnn").weighted
    assert (looks.name, is_.name) == ("variables-ea-dnn", "variables-rrab-xgb")
    with pytest.raises(UsageError, match="nothing"):
        classifier_recipe("variables-nothing", "dnn")
    with pytest.raises(InputError, match="takes no missing values"):
        classifier_recipe("variables-ea", "dnn", {"features": {"otherwise": "keep"}})


def test_what_is_frozen_comes_from_the_rows_to_learn_from_alone(path):
    source = TableSource(classifier_recipe("variables-ea", "dnn", SMALL), [path])
    table = pq.read_table(path)
    fit = np.array([role_of(name) == "fit" for name in table["object_id"].to_pylist()])
    a, parallax = (table[name].to_numpy()[fit] for name in ("a", "Gaia_EDR3__parallax"))
    first, _, last = source.contract.features
    assert (first.centre, first.width) == (a.min(), a.max() - a.min())
    assert (first.missing, last.missing) == ("drop", "regress")
    assert last.mean == pytest.approx(np.nanmean(parallax), rel=1e-12)
    np.testing.assert_array_equal(
        source.contract.donors.unpack()[:, 0], parallax[~np.isnan(parallax)].astype(np.float32)
    )
    roles = {role: set(source.rows(role).object_id) for role in ("fit", "validation", "test")}
    assert not roles["fit"] & roles["validation"]
    assert {role_of(name) for names in roles.values() for name in names} == {"fit", "validation", "test"}
    # the same file with other test rows freezes the same
    changed = table.set_column(2, "a", pa.array(np.where(fit, table["a"].to_numpy(), 1e6)))
    pq.write_table(changed, path)
    assert TableSource(classifier_recipe("variables-ea", "dnn", SMALL), [path]).contract == source.contract


def test_sources_are_told_apart_row_by_row_by_what_a_row_has(path, caplog):
    table = pq.read_table(path)
    n = table.num_rows
    names = table["object_id"].to_pylist()
    some = [name if row % 2 else None for row, name in enumerate(names)]
    mixed = table.set_column(1, "object_id", pa.array(some, pa.string()))
    assert objects_of(mixed, "t").to_pylist() == [name or f"lc-{row}" for row, name in enumerate(some)]
    pq.write_table(mixed, path)
    source = TableSource(classifier_recipe("variables-ea", "dnn", SMALL), [path])
    assert source.table.num_rows == n
    # as a table is whose sources nobody knows; empty text says as little as null
    unknown = table.set_column(1, "object_id", pa.nulls(n, pa.string()))
    assert objects_of(unknown, "t").to_pylist() == table["lc_id"].to_pylist()
    numbers = pa.table({"object_id": [7.0, float("nan"), None], "obj_id": ["", "8", ""], "_id": [1, 2, 3]})
    assert objects_of(numbers, "t").to_pylist() == ["7", "8", "3"]
    with pytest.raises(InputError, match="no column tells sources apart"):
        objects_of(unknown.drop_columns(["lc_id"]), "t")
    pq.write_table(mixed.drop_columns(["lc_id"]), path)
    source = TableSource(classifier_recipe("variables-ea", "dnn", SMALL), [path])
    assert source.table.num_rows == n // 2
    assert f"{n // 2} of {n} rows are left out" in caplog.text


def test_features_that_were_made_anew_are_other_examples(path):
    def keys():
        source = TableSource(classifier_recipe("variables-ea", "dnn", SMALL), [path])
        return fingerprint(keys_of([source], 3))

    table, first = pq.read_table(path), keys()
    pq.write_table(table.append_column("other", table["a"]), path)
    assert keys() == first  # nobody reads it
    role = [role_of(name) for name in table["object_id"].to_pylist()]
    for name in ("a", "f1_b_LS", "dmdt"):
        for part in ("fit", "test"):
            row = role.index(part)
            values = table[name].to_pylist()
            values[row] = values[row] + 1e-9 if name != "dmdt" else [0.5, *values[row][1:]]
            column = pa.array(values, table.schema.field(name).type)
            pq.write_table(table.set_column(table.column_names.index(name), name, column), path)
            assert keys() != first, (name, part)


def test_balance_and_weights(path):
    recipe = classifier_recipe("variables-ea", "dnn", SMALL | {"balance": 0.5})
    rows = balanced(TableSource(classifier_recipe("variables-ea", "dnn", SMALL), [path]).rows("fit"), recipe)
    count = sorted([int(rows.target.sum()), int((1 - rows.target).sum())])
    assert count[0] == int(0.5 * count[1])
    target = np.array([1, 0, 0, 0.0])
    weight = weights(target, weighted=True)
    assert weight[0] == pytest.approx(weight[1:].sum())
    assert weight.max() == 1
    np.testing.assert_array_equal(weights(target, weighted=False), 1)


def test_threshold_of_the_best_f1():
    probability, target = np.array([0.9, 0.8, 0.8, 0.3, 0.1]), np.array([1, 1, 1, 0, 0.0])
    assert best_threshold(probability, target) == pytest.approx(0.55)
    at = {edge: Ranking.of(probability, target, list("abcde"), edge).figures()[:4] for edge in (0.55, 0.85)}
    np.testing.assert_allclose(at[0.55], 1)
    np.testing.assert_allclose(at[0.85], [0.6, 1, 1 / 3, 0.5])
    assert best_threshold(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == 0.25


def test_trees_from_table_to_card(path, tmp_path):
    pytest.importorskip("xgboost")
    from tapetum.finders import variables
    from tapetum.training.run import train

    quick = {"optimiser": {"epochs": 30, "folds": 2, "depths": [2], "shares": [0.8], "rates": [0.3, 0.1]}}
    recipe = classifier_recipe("variables-ea", "xgb", {**SMALL, **quick})
    trained = train(recipe, [path], tmp_path / "group" / "ea-xgb", today=TODAY)
    card = load_card(trained.folder / "card.json")
    assert card.metrics["auc"].value > 0.95
    assert card.table.features[0].missing == "keep"
    assert card.golden.table[0] == (None, None, None)
    found = variables.load(str(tmp_path / "group")).find(pq.read_table(path))
    of = np.array(labelled()["scope_class"].to_pylist()) == "ea"
    assert ((found["ea_xgb"].to_numpy() > 0.5) == of).mean() > 0.95
    again = train(recipe, [path], tmp_path / "again", today=TODAY)
    assert (again.folder / "model.onnx").read_bytes() == (trained.folder / "model.onnx").read_bytes()
    assert train(recipe, [path], trained.folder, today=TODAY).finished_before


def test_network_from_table_to_card_stops_early_and_goes_on_after_a_kill(path, tmp_path):
    pytest.importorskip("torch")
    from tapetum.finders import variables
    from tapetum.training.loop import fit
    from tapetum.training.run import train
    from tapetum.training.task import open_task

    quick = {
        "optimiser": {"epochs": 40, "rate": 0.01, "batch": 32, "patience": 3, "rate_patience": 2},
        "network": {"arguments": {"dense": [16, 8], "planes": [4, 4], "head": 8}},
    }
    recipe = classifier_recipe("variables-ea", "dnn", {**SMALL, **quick})
    trained = train(recipe, [path], tmp_path / "whole", today=TODAY)
    assert trained.card.metrics["auc"].value > 0.9
    log = (tmp_path / "whole" / "log.csv").read_text().splitlines()[1:]
    losses = [float(line.split(",")[4]) for line in log]
    assert len(losses) < 40
    assert len(losses) - 1 - int(np.argmin(losses)) == 3

    def kill(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, [path], tmp_path / "parts", today=TODAY, progress=kill)
    fit(open_task(recipe, [path]), tmp_path / "parts")  # all that follows is a function of what it leaves
    with (
        np.load(tmp_path / "whole" / "checkpoint.npz") as one,
        np.load(tmp_path / "parts" / "checkpoint.npz") as two,
    ):
        assert sorted(one.files) == sorted(two.files)
        assert all(np.array_equal(one[name], two[name]) for name in one.files)
    found = variables.load(f"{tmp_path}/whole/").find(pq.read_table(path))
    assert found["ea_dnn"].null_count == 0


def test_examples_of_both_kinds_are_needed(tmp_path):
    pytest.importorskip("torch")
    from tapetum.training.run import train

    pq.write_table(labelled(classes=("ew", "ew")), tmp_path / "f.parquet")
    with pytest.raises(InputError, match="training part of the split has 0 complete rows of the class ea"):
        train(
            classifier_recipe("variables-ea", "dnn", SMALL),
            [tmp_path / "f.parquet"],
            tmp_path / "out",
            today=TODAY,
        )
    assert not (tmp_path / "out").exists()


def test_recipes_as_the_command_line_asks_for_them(tmp_path):
    (tmp_path / "f.toml").write_text('columns = [{ name = "a" }, { name = "b", periodic = true }]\n')
    got = any_recipe(
        "variables-ea",
        7,
        version="1.2.0",
        options=ClassifierOptions("xgb", period_suffix="CE", features=tmp_path / "f.toml", skip_cv=True),
    )
    assert [column.name for column in got.features.columns] == ["a", "b"]
    assert (got.features.period_suffix, got.optimiser.epochs, got.optimiser.search) == ("CE", 7, False)
    assert (got.card.version, got.name) == ("1.2.0", "variables-ea-xgb")
    assert any_recipe("tracking", 3).optimiser.epochs == 3
    with pytest.raises(UsageError, match="--algorithm is for classifiers"):
        any_recipe("tracking", options=ClassifierOptions("dnn"))
    with pytest.raises(UsageError, match="say how with --algorithm"):
        any_recipe("variables-ea")
    with pytest.raises(UsageError, match="--algorithm svm"):
        any_recipe("variables-ea", options=ClassifierOptions("svm"))
    (tmp_path / "f.toml").write_text("columns = []")
    with pytest.raises(InputError, match="not a list of features"):
        any_recipe("variables-ea", options=ClassifierOptions("dnn", features=tmp_path / "f.toml"))


def test_training_by_command(path, tmp_path, monkeypatch):
    pytest.importorskip("xgboost")
    from typer.testing import CliRunner

    from tapetum.cli.app import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.toml").write_text('columns = [{ name = "a" }]\n')
    words = ["models", "train", "variables-ea", "--algorithm", "xgb", "--features", "f.toml", "--skip-cv"]
    done = CliRunner().invoke(app, [*words, "--table", str(path), "--epochs", "5", "-o", "ea"])
    assert done.exit_code == 0, done.output
    assert load_card(tmp_path / "ea" / "card.json").algorithm == "xgb"
    assert "variables-ea-xgb" in done.stderr
