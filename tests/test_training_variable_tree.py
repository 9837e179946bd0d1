"""From labelled light curves to a classifier over a tree, on made-up stars, and what the finder makes of it."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tapetum.cli.app import app
from tapetum.core.errors import InputError, UsageError
from tapetum.finders.variable_tree import Config, VariableTree, load
from tapetum.lightcurves.curves import LightCurves
from tapetum.simulate.variables import eclipses, saw_tooth
from tapetum.training.recipe import load_any_recipe
from tapetum.training.split import role_of
from tapetum.training.variable_tree_data import CurveSource, leaking, star_folds, worse_copies
from tapetum.training.variable_tree_evaluate import evaluate_tree
from tapetum.training.variable_tree_recipe import VariableTreeRecipe

pytest.importorskip("torch")
pytest.importorskip("xgboost")
STARS, POINTS = 100, 50
LABELS = ("RRab", "EA", "Mira", "Mira or so")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stars of three classes, a few of which have a wider label, and one without a known one."""
    rng = np.random.default_rng(11)
    rows: dict[str, list[object]] = {
        name: [] for name in ("lc_id", "object_id", "survey", "label", "time", "mag", "magerr")
    }
    for number in range(STARS):
        kind = number % 3
        time = np.sort(rng.uniform(0, 500, POINTS))
        period = (rng.uniform(0.4, 0.8), rng.uniform(2, 6), rng.uniform(100, 200))[kind]
        phase = time / period
        shape = (saw_tooth(phase, rng), eclipses(phase, rng), 4 * np.cos(2 * np.pi * phase))[kind]
        label = "what?" if number == STARS - 1 else LABELS[kind + (kind == 2 and number % 4 == 0)]
        rows["lc_id"].append(f"lc{number}")
        rows["object_id"].append(f"star{number}")
        rows["survey"].append("made up")
        rows["label"].append(label)
        rows["time"].append(time)
        rows["mag"].append(14 + shape + rng.normal(0, 0.03, POINTS))
        rows["magerr"].append(np.full(POINTS, 0.03))
    path = tmp_path_factory.mktemp("curves") / "labelled.parquet"
    pq.write_table(pa.table(rows), path)
    return path


def small_recipe() -> VariableTreeRecipe:
    recipe = load_any_recipe("variables")
    assert isinstance(recipe, VariableTreeRecipe)
    labels = {"RRab": "rrab", "EA": "ea", "Mira": "mir", "Mira or so": "lpv"}
    settings = recipe.model_dump()
    settings["name"] = "tiny-tree"
    settings["length"] = 24
    settings["folds"] = 2
    settings["network"]["arguments"] = {"width": 16, "heads": 2, "queries": 3, "blocks": 1, "dense": 16}
    settings["data"][0] |= {"labels": labels, "variants": 1, "weights": {"made up": 3.0}}
    settings["data"][1] |= {"count": 20}
    settings["pretraining"] |= {"epochs": 1, "batch": 16}
    settings["optimiser"] |= {"epochs": 6, "batch": 16, "rate": 3e-3}
    settings["trees"] |= {"rounds": 12}
    return VariableTreeRecipe.model_validate(settings)


@pytest.fixture(scope="module")
def trained(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tapetum.training.run import train

    folder = tmp_path_factory.mktemp("model") / "tiny-tree"
    card = train(small_recipe(), [labelled], folder, today=date(2026, 1, 2)).card
    assert card.finder == "variable-tree"
    return folder


def test_it_learns_and_its_card_says_how_well(trained: Path, labelled: Path) -> None:
    tree = load(str(trained))
    assert tree.leaves == ("rrab", "mir", "ea")
    card = tree.model.card
    assert card.metrics["accuracy"].value > 0.8
    assert set(card.thresholds) == {"conformal_0.90", "conformal_0.95", "conformal_0.99"}
    assert {data.role for data in card.training.data} == {"training", "test"}
    halves = json.loads((trained / "halves.json").read_text())
    assert 0 <= halves["weight_of_networks"] <= 1
    report = evaluate_tree(str(trained), [labelled])
    assert report["metrics"]["accuracy"]["value"] == pytest.approx(card.metrics["accuracy"].value)
    assert {row["class"] for row in report["classes"]} == {"rrab", "mir", "ea"}


def test_a_finished_run_is_not_made_again(trained: Path, labelled: Path) -> None:
    from tapetum.training.run import train

    before = (trained / "model.onnx").stat().st_mtime_ns
    assert train(small_recipe(), [labelled], trained, today=date(2026, 1, 3)).finished_before
    assert (trained / "model.onnx").stat().st_mtime_ns == before


def test_an_interrupted_run_ends_the_same(trained: Path, labelled: Path, tmp_path: Path) -> None:
    from tapetum.training.run import train

    # what is left when only the file itself was not written: every part is taken up again
    folder = tmp_path / "again"
    folder.mkdir()
    (folder / "work").symlink_to(trained / "work")
    card = train(small_recipe(), [labelled], folder, today=date(2026, 1, 2)).card
    assert card.onnx_sha256 == load(str(trained)).model.card.onnx_sha256


def test_probabilities_agree_with_the_tree(trained: Path, labelled: Path) -> None:
    tree = load(str(trained))
    table = pq.read_table(labelled).slice(0, 12)
    curves = LightCurves.of_lists(
        table["time"].to_pylist(), table["mag"].to_pylist(), table["magerr"].to_pylist(),
        table.select(["lc_id", "object_id", "survey"]),
    )  # fmt: skip
    found = tree.find(curves)
    assert found["lc_id"].to_pylist() == [f"lc{number}" for number in range(12)]
    values = {code: found[code].to_numpy() for code in tree.codes}
    np.testing.assert_allclose(values["puls"], values["rrab"] + values["mir"], atol=1e-12)
    np.testing.assert_allclose(values["puls"] + values["e"], 1, atol=1e-12)
    right = [
        given == ("rrab", "ea", "mir")[number % 3] for number, given in enumerate(found["class"].to_pylist())
    ]
    assert np.mean(right) > 0.8
    for given, inside in zip(found["class"].to_pylist(), found["class_set"].to_pylist(), strict=True):
        assert inside[0] == given
    # periods that are given are taken
    again = tree.find(curves, pa.table({"period": found["period"]}))
    np.testing.assert_allclose(again["rrab"].to_numpy(), values["rrab"], atol=1e-6)
    with pytest.raises(InputError, match="11 rows of periods for 12"):
        tree.find(curves, pa.table({"period": found["period"].slice(1)}))


def test_sources_are_the_mean_of_their_curves(trained: Path) -> None:
    tree = load(str(trained), Config(coverage="0.90"))
    rng = np.random.default_rng(1)
    time = [np.sort(rng.uniform(0, 200, n)) for n in (40, 60, 3)]
    curves = LightCurves.of_lists(
        time, [15 + rng.normal(0, 0.1, t.size) for t in time], [np.full(t.size, 0.1) for t in time],
        {"lc_id": ["a", "b", "c"], "object_id": ["one", "one", "two"], "ra": [1.0, 1.0, 2.0]},
    )  # fmt: skip
    found = tree.find(curves)
    assert found["class"].to_pylist()[2] is None
    assert found["error"].to_pylist() == [None, None, "fewer than 5 good points"]
    assert found["flags"].to_pylist()[2] != 0
    sources = tree.sources(found)
    assert sources["object_id"].to_pylist() == ["one"]
    assert sources["n_curves"].to_pylist() == [2]
    assert sources["ea"].to_pylist()[0] == pytest.approx(np.mean(found["ea"].to_numpy()[:2]))
    total = sum(sources[code].to_pylist()[0] for code in tree.leaves)
    assert total == pytest.approx(1)
    with pytest.raises(InputError, match="no object_id"):
        tree.sources(found.drop_columns(["object_id"]))


def test_roles_labels_and_doubles(labelled: Path) -> None:
    source = CurveSource(small_recipe(), [labelled])
    assert "lc99" not in source.curves.ids  # its label is not among those of the recipe
    fit = source.examples("fit")
    assert set(fit.weight.tolist()) == {3.0}
    assert set(source.examples("fit", 1).weight.tolist()) == {1.5}
    for learned, judging in star_folds(fit, 3, seed=1):
        objects = np.array(fit.object_id)
        assert not set(objects[learned]) & set(objects[judging])
        assert set(fit.inside[judging].argmax(axis=1)) == {0, 1, 2}
    assert {role_of(name) for name in fit.object_id} == {"fit"}
    wide = [code == "lpv" for code in source.code]
    inside = source.inside(source.code)
    assert inside[wide].tolist() == [[0, 1, 0]] * sum(wide)
    names = {
        role: next(f"star{i}" for i in range(99) if role_of(f"star{i}") == role) for role in ("fit", "test")
    }
    table = pa.table(
        {
            "lc_id": ["a", "b", "c"],
            "object_id": [names["fit"], names["test"], names["fit"]],
            "duplicate_of": ["b", "", ""],
        }
    )
    assert leaking(table).tolist() == [True, False, False]


def test_worse_copies_have_fewer_points_of_the_same_curve(labelled: Path) -> None:
    curves = CurveSource(small_recipe(), [labelled]).curves
    worse = worse_copies(curves, np.random.default_rng(1))
    assert (worse.n_points <= curves.n_points).all()
    assert worse.n_points.min() >= 19
    assert worse.n_points.mean() < 45
    assert all(set(few[0]) <= set(all_[0]) for few, all_ in zip(worse, curves, strict=True))


def test_command_line(trained: Path, labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    call = ["models", "evaluate", str(trained), "--table", str(labelled), "-o", str(out)]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text())["part"] == "test"
    done = CliRunner().invoke(app, ["models", "evaluate", str(trained), "--table", str(labelled)])
    assert "| accuracy |" in done.output
    with pytest.raises(UsageError, match="--part fit"):
        evaluate_tree(str(trained), [labelled], "fit")


def test_other_models_are_refused() -> None:
    from tapetum.models.runtime import Model

    with pytest.raises(InputError, match="no classifier over a tree"):
        VariableTree(Model.load("realbogus"), Config())


def test_data_without_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.parquet"
    table = pa.table({"lc_id": ["a"], "object_id": ["a"], "time": [[1.0]], "mag": [[1.0]], "magerr": [[0.1]]})
    pq.write_table(table, path)
    with pytest.raises(InputError, match="no column label"):
        CurveSource(small_recipe(), [path])
    with pytest.raises(InputError, match="no labelled light curves"):
        CurveSource(small_recipe(), [])
