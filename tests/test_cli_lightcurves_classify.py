"""`tapetum lightcurves classify` as a user calls it: every kind of input, the files, restarts, refusals."""

from __future__ import annotations

import importlib.util
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from tapetum.cli import lightcurves_classify, lightcurves_features
from tapetum.core.errors import InputError, PartialFailureError, TapetumError, UsageError
from tapetum.finders.variable_group import VariableGroup
from tapetum.finders.variables import WORD
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.formats.opening import open_curves, write_curves
from tapetum.lightcurves.wanted import read_wanted
from tapetum.pipelines import lightcurve_classify, lightcurve_classify_job
from tapetum.pipelines.lightcurve_classify import ClassifyOptions, classify_recipe
from tapetum.pipelines.lightcurve_features import FeatureOptions
from tapetum.pipelines.lightcurve_parts import parts_folder, parts_of
from tapetum.report.read_tables import read_table, words_of

_spec = importlib.util.spec_from_file_location("models_", Path(__file__).with_name("variable_models.py"))
models_ = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models_)

SOURCES, FEATURES = "ZTF_sources_20230109", "ZTF_source_features_DR16"
GRID = ("--samples-per-peak", "3", "--max-frequency", "4")
STATISTICS = ({"name": "iqr"}, {"name": "stetson_k"})
FOLDED = ({"name": "wstd"}, {"name": "f1_power", "periodic": True})
app = typer.Typer()
app.command("classify")(lightcurves_classify.classify)
app.command("combine")(lightcurves_classify.combine)
app.command("features")(lightcurves_features.features)


def call(*words: object) -> Any:
    """Run a verb; what went wrong is raised."""
    result = CliRunner().invoke(app, list(map(str, words)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def sigmoid(values: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(values, float)))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bands of a source with a period of 0.7 d, one of another source, and a curve that is too short."""
    rng = np.random.default_rng(8)
    times = [np.sort(rng.uniform(0, 30, n)) for n in (60, 60, 60, 10)]
    mags = [18 + 0.3 * np.sin(2 * np.pi * t / 0.7) + rng.normal(0, 0.02, t.size) for t in times]
    about = {
        "lc_id": ["a", "b", "c", "d"],
        "object_id": ["s", "s", "t", "u"],
        "band": ["ztfr", "ztfg", "ztfg", "ztfg"],
        "ra": [10.0, 10.0, 20.0, 30.0],
        "dec": [5.0, 5.0 + 0.3 / 3600, 5.0, 5.0],
        "field": [301, 301, 302, 302],
    }
    path = tmp_path_factory.mktemp("curves") / "curves.parquet"
    write_curves(
        LightCurves.of_lists(times, mags, [np.full(t.size, 0.02) for t in times], pa.table(about)), path
    )
    return path


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, one of them with two algorithms; one takes the period LS."""
    folder = tmp_path_factory.mktemp("models") / "group"
    models_.write(models_.classifier("vnv", features=STATISTICS), folder / "vnv-dnn")
    models_.write(models_.classifier("vnv", "xgb", features=FOLDED), folder / "vnv-xgb")
    models_.write(models_.classifier("ea", features=STATISTICS), folder / "ea")
    return folder


@pytest.fixture(scope="module")
def features(file: Path) -> Path:
    path = file.with_name("features.parquet")
    call("features", file, "-o", path, "--algorithms", "LS", *GRID)
    return path


def test_light_curves_to_sources(file: Path, group: Path, features: Path, tmp_path: Path) -> None:
    out = tmp_path / "classes.parquet"
    call(
        "classify", file, "--models", group, "-o", out, *GRID, "--combine", "mean", "--threshold", "0.6", "--csv",
        "--save-features", tmp_path / "made.parquet",
    )  # fmt: skip
    curves, made = read_table(tmp_path / "classes_lightcurves.parquet"), read_table(features)
    assert curves["lc_id"].to_pylist() == ["a", "b", "c", "d"]
    expected = sigmoid(np.add(made["iqr"].to_numpy(), made["stetson_k"].to_numpy()))
    np.testing.assert_allclose(curves["vnv_dnn"].to_numpy(), expected, rtol=1e-5)
    folded = sigmoid(np.add(made["wstd"].to_numpy(), made["f1_power_LS"].to_numpy()))
    np.testing.assert_allclose(curves["vnv_xgb"].to_numpy(), folded, rtol=1e-5)
    np.testing.assert_allclose(curves["vnv"].to_numpy(), (expected + folded) / 2, rtol=1e-5)
    np.testing.assert_allclose(curves["nonvar"].to_numpy(), 1 - (expected + folded) / 2, rtol=1e-5)
    assert curves["period_LS"][0].as_py() == pytest.approx(0.7, rel=5e-3)
    assert curves["error"].to_pylist() == [None, None, None, "no features: short, 10 of 10 points left"]
    sources = read_table(out)
    assert sources["object_id"].to_pylist() == ["s", "t", "u"]
    assert sources["lc_id"].to_pylist() == ["a b", "c", "d"]
    assert sources["n_light_curves"].to_pylist() == [2, 1, 1]
    assert sources["n_classified"].to_pylist() == [2, 1, 0]
    assert sources["vnv_dnn"][0].as_py() == pytest.approx(expected[:2].mean(), rel=1e-5)
    assert sources["classes"].to_pylist()[2] is None
    about = json.loads(words_of(sources)[WORD])
    assert about["models"]["vnv_xgb"]["model"] == "variables-vnv-xgb"
    assert b"variables-vnv-dnn" in sources.schema.field("vnv_dnn").metadata[b"description"]
    assert read_table(tmp_path / "classes.csv")["vnv"].to_pylist() == pytest.approx(
        sources["vnv"].to_pylist()
    )
    kept = read_table(tmp_path / "made.parquet")
    assert kept["iqr"].to_pylist() == made["iqr"].to_pylist()
    assert set(made.column_names) <= set(kept.column_names)
    summary = json.loads((tmp_path / "classes.parquet.summary.json").read_text())
    assert (summary["rows"], summary["light_curves"], summary["fields"]) == (3, 4, ["301", "302"])
    assert summary["above_threshold"].get("ea", 0) == sum(
        "ea" in (c or "").split() for c in sources["classes"].to_pylist()
    )


def test_features_to_light_curves_and_nothing_twice(group: Path, features: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.parquet"
    words = ("classify", features, "--models", group, "-o", out, "--by", "curve", "--decimals", 2)
    call(*words)
    found, made = read_table(out), read_table(features)
    expected = sigmoid(np.add(made["iqr"].to_numpy(), made["stetson_k"].to_numpy()))[:3]
    np.testing.assert_array_equal(
        found["ea_dnn"].to_numpy()[:3], expected.astype(np.float32).astype(float).round(2)
    )
    assert not (tmp_path / "c_lightcurves.parquet").exists()
    before = out.stat().st_mtime_ns
    call(*words)
    assert out.stat().st_mtime_ns == before
    call(*words, "--overwrite")
    assert out.stat().st_mtime_ns > before


def test_a_table_of_the_described_system(group: Path, tmp_path: Path) -> None:
    rows = {
        "_id": [10487131000001, 10487131000002, 10487131000003], "obj_id": ["x", None, None],
        "Gaia_EDR3___id": [0, 7, 7], "ra": [1.0, 2.0, 2.0], "dec": [0.0] * 3, "filter": [1, 1, 2],
        "iqr": [0.1, 0.2, 0.3], "stetson_k": [0.0, 0.0, None], "wstd": [0.1] * 3, "f1_power_LS": [0.1] * 3,
        "period_LS": [0.5] * 3,
    }  # fmt: skip
    folder = tmp_path / "field_301"
    folder.mkdir()
    pq.write_table(pa.table(rows), folder / "quad_1.parquet", row_group_size=2)
    pq.write_table(pa.table(rows).slice(0, 0), folder / "quad_2.parquet")
    out = tmp_path / "preds.parquet"
    call("classify", folder, "--models", group, "-o", out, "--flag-ids")
    curves, sources = read_table(tmp_path / "preds_lightcurves.parquet"), read_table(out)
    assert curves["lc_id"].to_pylist() == [str(number) for number in rows["_id"]]
    assert curves["error"].to_pylist() == [None, None, "no value of stetson_k"]
    assert sources["n_light_curves"].to_pylist() == [1, 2]
    assert sources["object_id"].to_pylist() == ["x", "10487131000002"]
    assert "imputed" in curves.column_names


def test_names_of_columns_and_a_classification_given_by_mistake(
    file: Path, group: Path, tmp_path: Path
) -> None:
    rows = ["star,when,brightness,error,flags", *(f"x,{k},{18 + k % 7 / 10},0.1,0" for k in range(60))]
    (tmp_path / "long.csv").write_text("\n".join(rows))
    names = ("--column", "time=when", "--column", "mag=brightness", "--column", "lc_id=star")
    out = tmp_path / "c.csv"
    call("classify", tmp_path / "long.csv", "--models", group / "ea", "-o", out, *names)
    assert read_table(out)["lc_id"].to_pylist() == ["x"]
    with pytest.raises(InputError, match="is a classification already"):
        call("classify", tmp_path / "c_lightcurves.csv", "--models", group / "ea", "-o", tmp_path / "d.csv")


def test_our_own_model_is_asked_without_being_named(
    file: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(models: Any, config: Any, tree_config: Any) -> VariableGroup:
        asked.append((tuple(models), tree_config.coverage))
        return VariableGroup(None, models_.Tree(), config)

    monkeypatch.setattr(lightcurve_classify, "load_group", load)
    monkeypatch.setattr(lightcurve_classify, "identities", list)
    monkeypatch.setattr(lightcurve_classify_job, "identities", list)
    call("classify", file, "-o", tmp_path / "runs", "--coverage", "0.90", "--csv")
    assert set(asked) == {(("variables",), "0.90")}
    (folder,) = (tmp_path / "runs").iterdir()
    assert not (folder / "features.parquet").exists()
    rows = read_table(folder / "classes.parquet").to_pylist()
    assert [(row["object_id"], row["class"], row["n_classified"]) for row in rows] == [
        ("s", "rrc", 2), ("t", "rrc", 1), ("u", "rrc", 1),  # 10 points are enough for it
    ]  # fmt: skip
    assert read_table(folder / "classes_lightcurves.csv")["class_set"].to_pylist() == ["rrab rrc"] * 4
    summary = json.loads((folder / "classes.parquet.summary.json").read_text())
    assert (summary["most_probable"], summary["models"]) == ({"rrc": 3}, ["variables"])
    with pytest.raises(UsageError, match="looks at light curves, not at features"):
        call("classify", features, "-o", tmp_path / "c.parquet")
    with pytest.raises(UsageError, match="no model takes features"):
        call("classify", file, "-o", tmp_path / "c.parquet", "--save-features", tmp_path / "f.parquet")


def test_the_shipped_model_by_itself_and_beside_a_group(file: Path, group: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.parquet"
    call("classify", file, "-o", out, "--models", "variables", "--models", group / "ea")
    for path, n in ((out, 3), (tmp_path / "c_lightcurves.parquet", 4)):
        table = read_table(path)
        assert table.num_rows == n
        parts = [table[f"{code}_tree"].to_numpy() for code in ("ea", "eb", "ew")]
        np.testing.assert_allclose(sum(parts), table["e_tree"].to_numpy(), atol=1e-9)
        pairs = zip(table["class"].to_pylist(), table["class_set"].to_pylist(), strict=True)
        assert all(name == names.split()[0] for name, names in pairs)
    assert table["ea_dnn"].is_valid().to_pylist() == [True, True, True, False]
    alone = tmp_path / "alone.parquet"
    call("classify", file, "-o", alone)
    one, other = read_table(alone), read_table(out)
    assert [one[name] == other[name] for name in ("class", "rrab_tree", "period")] == [True] * 3


def test_stdout_has_sources(features: Path, group: Path) -> None:
    lines = call("classify", features, "--models", group, "-o", "-").stdout.splitlines()
    assert [line.split(",")[0].strip('"') for line in lines] == ["object_id", "s", "t", "u"]


def test_workers_get_what_they_need(file: Path, group: Path) -> None:
    options = ClassifyOptions((str(group / "ea"),), features=FeatureOptions())
    recipe = classify_recipe([str(file)], "curves", options, options.load())
    (part,) = parts_of([open_curves(file)])
    setup, sent = pickle.loads(pickle.dumps((recipe.setup, part)))
    (found,) = setup()(sent)
    assert found["lc_id"].to_pylist() == ["a", "b", "c", "d"]
    assert found["ea_dnn"].is_valid().to_pylist() == [True, True, True, False]


# ---- what is wanted ------------------------------------------------------------------------------------------------


def test_positions_among_local_light_curves(file: Path, group: Path, tmp_path: Path) -> None:
    wanted = tmp_path / "local_radec.csv"
    wanted.write_text("obj_id,R.A.,Decl.\nmine,10.0001,5.0\nnowhere,100.0,5.0\n")
    out = tmp_path / "c.parquet"
    call(
        "classify", wanted, "--from", file, "--models", group, "-o", out, *GRID, "--save-sources",
        tmp_path / "s.parquet",
    )  # fmt: skip
    sources, matched = read_table(out), read_table(tmp_path / "s.parquet")
    assert sources["object_id"].to_pylist() == ["mine"]
    assert sources["lc_id"].to_pylist() == ["a b"]
    assert matched["separation_arcsec"][0].as_py() == pytest.approx(0.36 * np.cos(np.deg2rad(5)), rel=1e-4)
    curves = read_table(tmp_path / "c_lightcurves.parquet")
    assert curves["separation_arcsec"].to_pylist() == matched["separation_arcsec"].to_pylist()
    with pytest.raises(InputError, match="none of its sources has a light curve"):
        call(
            "classify",
            wanted,
            "--from",
            file,
            "--models",
            group,
            "-o",
            tmp_path / "d.parquet",
            "--radius-arcsec",
            0.1,
        )


def test_ids_among_local_features_in_a_dated_folder(features: Path, group: Path, tmp_path: Path) -> None:
    wanted = tmp_path / "local_ztfid.csv"
    wanted.write_text("ztf_id,obj_id\nb,two\nb,again\nc,three\nz,none\n")
    words = ("classify", wanted, "--from", features, "--models", group, "-o", tmp_path / "runs")
    call(*words)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name[:2] == "20"
    rows = read_table(folder / "classes.parquet").to_pylist()
    assert [(row["object_id"], row["lc_id"]) for row in rows] == [
        ("two", "b"),
        ("again", "b"),
        ("three", "c"),
    ]
    before = (folder / "classes.parquet").stat().st_mtime_ns
    call(*words)  # the same: nothing is made
    assert (folder / "classes.parquet").stat().st_mtime_ns == before
    assert len(list((tmp_path / "runs").iterdir())) == 1
    call(*words, "--combine", "max")  # something else: another folder
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_dated_folder_of_light_curves_has_features(file: Path, group: Path, tmp_path: Path) -> None:
    call("classify", file, "--models", group / "ea", "-o", tmp_path / "runs")
    (folder,) = (tmp_path / "runs").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert {"classes.parquet", "classes_lightcurves.parquet", "features.parquet", "run.json"} <= names
    assert "iqr" in read_table(folder / "features.parquet").column_names


@pytest.mark.parametrize("suffix", [".parquet", ".h5", ".fits", ".csv"])
def test_kept_features_are_a_table_that_can_be_classified(
    file: Path, group: Path, tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept = tmp_path / f"f{suffix}"
    with caplog.at_level("INFO"):
        call(
            "classify", file, "--models", group / "ea", "-o", tmp_path / "c.parquet", "--save-features", kept
        )
    names = read_table(kept).column_names
    assert len(set(names)) == len(names)
    assert {"lc_id", "object_id", "iqr"} <= set(names)
    assert ("dmdt" in names) == (suffix in (".parquet", ".h5"))
    assert ("no place for dmdt" in caplog.text) == (suffix in (".fits", ".csv"))
    again = tmp_path / "again.parquet"
    call("classify", kept, "--models", group / "ea", "-o", again)
    one, other = read_table(tmp_path / "c.parquet"), read_table(again)
    for name in ("object_id", "lc_id", "ea_dnn"):
        assert one[name].to_pylist() == other[name].to_pylist()


@pytest.mark.parametrize("suffix", [".fits", ".csv", ".h5", ".ecsv", ".vot"])
def test_every_format_holds_a_classification(
    features: Path, group: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"c{suffix}"
    call("classify", features, "--models", group, "-o", out, "--threshold", "0.6", "--combine", "mean")
    call("classify", features, "--models", group, "-o", tmp_path / "c.parquet", "--threshold", "0.6", "--combine",
         "mean")  # fmt: skip
    one, other = read_table(out), read_table(tmp_path / "c.parquet")
    assert json.loads(words_of(one)[WORD]) == json.loads(words_of(other)[WORD])
    assert one["object_id"].to_pylist() == other["object_id"].to_pylist()
    np.testing.assert_allclose(one["vnv"].to_numpy(), other["vnv"].to_numpy())


def test_names_that_a_run_made_are_no_keys_of_the_next(features: Path, group: Path, tmp_path: Path) -> None:
    table = read_table(features).slice(0, 3)
    places = {"object_id": pa.nulls(3, pa.string()), "dec": pa.array([5.0, 5.0 + 3 / 3600, 9.0])}
    for name, column in places.items():
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, tmp_path / "f.parquet")
    out = tmp_path / "c.parquet"
    words = ("classify", tmp_path / "f.parquet", "--models", group / "ea", "-o", out)

    def found(*more: object) -> list[str]:
        call(*words, *more)
        names = read_table(out)["lc_id"].to_pylist()
        assert isinstance(names, list)
        return names

    for _ in range(2):
        assert found() == ["a", "b", "c"]
        assert found("--source-radius-arcsec", 5) == ["a b", "c"]
        curves = read_table(tmp_path / "c_lightcurves.parquet")
        assert curves["object_id"].to_pylist() == ["a", "a", "c"]
        assert curves["object_id_made"].to_pylist() == [True] * 3
        assert found("--only-keyed") == []
    call(
        "combine",
        tmp_path / "c_lightcurves.parquet",
        "-o",
        tmp_path / "d.parquet",
        "--source-radius-arcsec",
        5,
    )
    assert read_table(tmp_path / "d.parquet")["lc_id"].to_pylist() == ["a b", "c"]


def test_runs_with_other_rows_have_other_folders(features: Path, group: Path, tmp_path: Path) -> None:
    words = ("classify", features, "--models", group / "ea", "-o", tmp_path / "runs")
    rules = ((), ("--by", "curve"), ("--statistic", "max"), ("--source-key", "catalogues"), ("--only-keyed",))
    for number, more in enumerate(rules, 1):
        call(*words, *more)
        assert len(list((tmp_path / "runs").iterdir())) == number
    call(*words)
    assert len(list((tmp_path / "runs").iterdir())) == len(rules)


# ---- one after the other -------------------------------------------------------------------------------------------


def test_algorithms_run_apart_and_joined_are_as_run_together(
    features: Path, group: Path, tmp_path: Path
) -> None:
    rest = ("--threshold", "0.6")
    call("classify", features, "--models", group, "-o", tmp_path / "both.parquet", "--combine", "max", *rest)
    for name in ("vnv-dnn", "vnv-xgb", "ea"):
        call(
            "classify",
            features,
            "--models",
            group / name,
            "-o",
            tmp_path / f"{name}.parquet",
            "--by",
            "curve",
        )
    out = tmp_path / "joined.parquet"
    words = [tmp_path / f"{name}.parquet" for name in ("vnv-dnn", "vnv-xgb", "ea")]
    call("combine", *words, "-o", out, "--combine", "max", *rest)
    for end in ("", "_lightcurves"):
        one, other = (
            read_table(tmp_path / f"both{end}.parquet"),
            read_table(tmp_path / f"joined{end}.parquet"),
        )
        assert set(one.column_names) == set(other.column_names)
        for name in one.column_names:
            if name != "error":  # of which another may come first
                assert one[name].to_pylist() == other[name].to_pylist(), name
    before = out.stat().st_mtime_ns
    call("combine", *words, "-o", out, "--combine", "max", *rest)
    assert out.stat().st_mtime_ns == before


def test_predictions_of_the_described_system(tmp_path: Path) -> None:
    keys = {"obj_id": ["x", "x", None], "Gaia_EDR3___id": [0, 0, 9], "ra": [1.0, 1.0, 2.0], "dec": [0.0] * 3}
    for name, column in (("preds_dnn", "vnv_dnn"), ("preds_xgb", "vnv_xgb")):
        for field in (1, 2):
            rows = {"_id": [field * 10 + k for k in range(3)], **keys, column: [0.9, 0.5, 0.1 * field]}
            (tmp_path / name).mkdir(exist_ok=True)
            pq.write_table(pa.table(rows), tmp_path / name / f"field_{field}.parquet")
    out = tmp_path / "preds_dnn_xgb"
    call("combine", tmp_path / "preds_dnn", tmp_path / "preds_xgb", "-o", out, "--p-threshold", "0.65")
    assert json.loads((out / "fields.json").read_text()) == {"field_1.parquet": 3, "field_2.parquet": 3}
    rows = read_table(out / "field_2.parquet").to_pylist()
    assert [(row["object_id"], row["lc_id"], row["classes"]) for row in rows] == [
        ("x", "20 21", "vnv"),
        ("22", "22", "nonvar"),
    ]
    assert rows[0]["vnv"] == pytest.approx(0.7)
    both = tmp_path / "all.parquet"  # of several fields as well
    call("combine", *sorted(tmp_path.glob("preds_???/*.parquet")), "-o", both, "--by", "curve")
    assert read_table(both)["lc_id"].to_pylist()[:4] == ["10", "11", "12", "20"]
    with pytest.raises(InputError, match="is by source"):
        call("combine", out / "field_2.parquet", "-o", both)
    with pytest.raises(InputError, match="no classification: no columns such as"):
        call("combine", features_like(tmp_path), "-o", both)


def test_of_dated_folders_only_classifications_are_joined(
    file: Path, group: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = []
    for name in ("ea", "vnv-dnn"):
        call("classify", file, "--models", group / name, "-o", tmp_path / name, "--csv")
        folders += (tmp_path / name).iterdir()
    with caplog.at_level("INFO"):
        call("combine", *folders, "-o", tmp_path / "both")
    assert json.loads((tmp_path / "both" / "fields.json").read_text()) == {
        "classes.csv": 4, "classes.parquet": 4,
    }  # fmt: skip
    names = read_table(tmp_path / "both" / "classes.parquet").column_names
    assert {"ea_dnn", "vnv_dnn"} <= set(names)
    assert all(str(folder / "features.parquet") in caplog.text for folder in folders)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no classifications in"):
        call("combine", tmp_path / "none", "-o", tmp_path / "nothing")


def test_a_taxonomy_of_ones_own_is_not_needed_to_join(features: Path, group: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    rows = [("vnv", "variable", ""), ("quiet", "quiet", 'opposite = "vnv"'), ("ea", "EA", 'parent = "vnv"')]
    text = [f'[[class]]\ncode = "{a}"\nlabel = "{b}"\nview = "ontological"\n{c}\n' for a, b, c in rows]
    mine.write_text('name = "mine"\n' + "".join(text))
    words = ("--models", group / "vnv-dnn", "--by", "curve", "--taxonomy", mine)
    call("classify", features, *words, "-o", tmp_path / "a.parquet")
    mine.unlink()
    call("combine", tmp_path / "a.parquet", "-o", tmp_path / "b.parquet", "--by", "curve")
    one, other = read_table(tmp_path / "a.parquet"), read_table(tmp_path / "b.parquet")
    assert one["quiet_dnn"].to_pylist() == other["quiet_dnn"].to_pylist()
    assert "nonvar" not in other.column_names
    call("combine", tmp_path / "b.parquet", "-o", tmp_path / "c.parquet")
    assert "quiet" in read_table(tmp_path / "c.parquet").column_names


def test_joined_classes_of_a_tree(file: Path, group: Path, tmp_path: Path) -> None:
    out = tmp_path / "tree.parquet"
    call("classify", file, "-o", out)
    call("classify", file, "--models", group / "ea", "-o", tmp_path / "ea.parquet")
    call(
        "combine", tmp_path / "tree_lightcurves.parquet", tmp_path / "ea_lightcurves.parquet", "-o",
        tmp_path / "both.parquet",
    )  # fmt: skip
    one, other = read_table(out), read_table(tmp_path / "both.parquet")
    for name in ("class", "class_probability", "class_set", "rrab_tree"):
        assert one[name].to_pylist() == other[name].to_pylist(), name
    assert one["class"].null_count == 0
    assert "ea_dnn" in other.column_names


def test_combine_refuses_before_the_work(features: Path, group: Path, tmp_path: Path) -> None:
    curves = tmp_path / "c.parquet"
    call("classify", features, "--models", group / "ea", "-o", curves, "--by", "curve")
    for words, said in ((("--threshold", "7"), "--threshold 7"), ((curves,), "named twice")):
        with pytest.raises(UsageError, match=said):
            call("combine", curves, *words, "-o", tmp_path / "d.parquet")
    assert not (tmp_path / "d.parquet").exists()


def features_like(folder: Path) -> Path:
    pq.write_table(pa.table({"lc_id": ["1"], "iqr": [1.0]}), folder / "f.parquet")
    return folder / "f.parquet"


# ---- from a server -------------------------------------------------------------------------------------------------


@pytest.fixture
def server(kowalski: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TAPETUM_KOWALSKI__USER", kowalski.user)
    monkeypatch.setenv("TAPETUM_KOWALSKI__PASSWORD", kowalski.password)
    kowalski.catalogues[SOURCES] = [document(number) for number in range(1, 5)]
    kowalski.catalogues[FEATURES] = [
        {"_id": number, "n": 60, "iqr": 0.1 * number, "stetson_k": 0.0, "ra": 10.0, "dec": 5.0, "field": 301}
        for number in range(1, 5)
    ]
    return kowalski


def document(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    points = [
        {
            "hjd": 2458000.5 + k,
            "mag": float(18 + rng.normal(0, 0.1)),
            "magerr": 0.1,
            "catflags": 0,
            "programid": 1,
        }
        for k in range(60)
    ]
    return {
        "_id": number, "filter": 1 + number % 2, "field": 301, "ccd": 1, "quad": 3, "nobs": 60,
        "coordinates": {"radec_geojson": {"type": "Point", "coordinates": [10.0 + number // 2 - 180, 5.0]}},
        "data": points,
    }  # fmt: skip


def test_a_field_of_a_server(server: Any, group: Path, tmp_path: Path) -> None:
    out = tmp_path / "field.parquet"
    words = (
        "classify",
        "--field",
        301,
        "--ccd",
        1,
        "--models",
        group / "ea",
        "-o",
        out,
        "--server",
        server.url,
    )
    call(*words)
    # light curves without a name of their source: two bands at one place are one source
    assert read_table(out)["lc_id"].to_pylist() == ["1", "2 3", "4"]
    assert read_table(tmp_path / "field_lightcurves.parquet")["object_id"].to_pylist() == ["1", "2", "2", "4"]
    asked = len(server.asked)
    call(*words)
    assert len(server.asked) == asked
    call(*words, "--stored-features", "--overwrite")
    found = read_table(tmp_path / "field_lightcurves.parquet")
    np.testing.assert_allclose(found["ea_dnn"].to_numpy(), sigmoid(0.1 * np.arange(1, 5)), rtol=1e-6)


def test_positions_of_a_server(server: Any, group: Path, tmp_path: Path) -> None:
    wanted = tmp_path / "radec.csv"
    wanted.write_text("name,ra,dec\nmine,11.0,5.0\n")
    out = tmp_path / "c.parquet"
    words = ("classify", wanted, "--models", group / "ea", "-o", out, "--server", server.url)
    call(*words)
    (row,) = read_table(out).to_pylist()
    assert (row["object_id"], row["lc_id"], row["n_light_curves"]) == ("mine", "2 3", 2)
    assert read_table(tmp_path / "c_sources.parquet")["object_id"].to_pylist() == ["mine", "mine"]
    wanted.write_text("name,ra,dec\nmine,111.0,5.0\n")
    with pytest.raises(InputError, match="no light curve of"):
        call(*words)


def test_a_server_is_asked_for_the_catalogues_that_models_list(
    server: Any, file: Path, tmp_path: Path
) -> None:
    listed = ({"name": "iqr"}, {"name": "Gaia_EDR3__parallax", "missing": "zero"}, {"name": "n_ztf_alerts"})
    models_.write(models_.classifier(features=listed), tmp_path / "m")
    server.catalogues["Gaia_EDR3"] = [
        {
            "_id": 77, "parallax": 0.25, "phot_g_mean_mag": 18.0, "phot_bp_mean_mag": 18.5, "phot_rp_mean_mag": 17.5,
            "coordinates": {"radec_geojson": {"type": "Point", "coordinates": [10.0 - 180, 5.0]}},
        }
    ]  # fmt: skip
    server.catalogues["ZTF_alerts"] = []
    out = tmp_path / "c.parquet"
    words = ("classify", file, "--models", tmp_path / "m", "-o", out, "--server", server.url)
    call(*words, "--save-features", tmp_path / "f.parquet")
    made = read_table(tmp_path / "f.parquet")
    assert made["Gaia_EDR3__parallax"].to_pylist()[:3] == [0.25, 0.25, None]
    expected = sigmoid(np.add(made["iqr"].to_numpy()[:3], [0.25, 0.25, 0]))
    np.testing.assert_allclose(
        read_table(tmp_path / "c_lightcurves.parquet")["ea_dnn"].to_numpy()[:3], expected, rtol=1e-6
    )
    asked = len(server.asked)
    call(*words, "--save-features", tmp_path / "f.parquet")
    assert len(server.asked) == asked
    # of positions that are wanted, no others are asked for
    (tmp_path / "w.csv").write_text("ra,dec\n20,5\n")
    call(
        "classify", tmp_path / "w.csv", "--from", file, "--models", tmp_path / "m", "-o", tmp_path / "w.parquet",
        "--server", server.url,
    )  # fmt: skip
    cones = [body["query"] for body in server.asked[asked:] if body["query_type"] in ("cone_search", "near")]
    places = [query.get("radec") or query["object_coordinates"]["radec"] for query in cones]
    assert places
    assert all(len(each) == 1 for each in places)


def test_only_a_server_that_is_named_is_asked(
    server: Any, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = ({"name": "iqr"}, {"name": "Gaia_EDR3__parallax", "missing": "zero"}, {"name": "n_ztf_alerts",
              "missing": "zero"})  # fmt: skip
    models_.write(models_.classifier(features=listed), tmp_path / "m")
    words = ("classify", file, "--models", tmp_path / "m", "-o", tmp_path / "c.parquet")
    with pytest.raises(UsageError, match=r"kowalski\.url is not set"):
        call(*words, "--server", "settings")
    monkeypatch.setenv("TAPETUM_KOWALSKI__URL", server.url)
    server.catalogues |= {"Gaia_EDR3": [], "ZTF_alerts": []}
    with pytest.raises(UsageError, match="needs columns of Gaia_EDR3"):
        call(*words)
    call(*words, "--absent", "missing")
    assert server.asked == []
    call(*words, "--server", "settings", "--overwrite", "--absent", "missing", "--alerts-catalogue", "none")
    assert server.asked
    # neither alerts, which are not wanted, nor bright stars, which no model lists
    text = json.dumps(server.asked)
    assert "ZTF_alerts" not in text
    assert "phot_g_mean_mag" not in text
    with pytest.raises(UsageError, match="needs n_ztf_alerts: give --alerts"):
        call(*words, "--server", "settings", "--alerts-catalogue", "none")


# ---- failures ------------------------------------------------------------------------------------------------------


def test_a_bad_file_stops_no_other_and_is_taken_up_again(features: Path, group: Path, tmp_path: Path) -> None:
    table = read_table(features)
    pq.write_table(table.slice(0, 2), tmp_path / "1.parquet")
    pq.write_table(table.slice(2).drop_columns(["iqr"]), tmp_path / "2.parquet")
    words = (
        "classify",
        tmp_path / "1.parquet",
        tmp_path / "2.parquet",
        "--models",
        group,
        "-o",
        tmp_path / "c.csv",
    )
    with pytest.raises(PartialFailureError, match="1 of 2 parts rejected"):
        call(*words)
    assert read_table(tmp_path / "c_lightcurves.csv").num_rows == 2
    assert parts_folder(str(tmp_path / "c_lightcurves.csv")).exists()
    call(*words, "--absent", "missing")
    assert read_table(tmp_path / "c_lightcurves.csv").num_rows == 4


@pytest.mark.parametrize("what", ["file", "features"])
def test_a_damaged_file_among_others_is_named(
    request: pytest.FixtureRequest, what: str, group: Path, tmp_path: Path
) -> None:
    good = request.getfixturevalue(what)
    (tmp_path / "0.parquet").write_bytes(b"PAR1, or not")
    (tmp_path / "1.parquet").write_bytes(good.read_bytes())
    both = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    for inputs in (both, both[::-1], [tmp_path]):
        out = tmp_path.parent / f"{what}-{len(inputs)}.parquet"
        with pytest.raises(PartialFailureError, match="1 of 2 parts rejected"):
            call("classify", *inputs, "--models", group / "ea", "-o", out, "--overwrite")
        assert read_table(out)["lc_id"].to_pylist() == ["a b", "c", "d"]
    with pytest.raises(InputError, match=r"0\.parquet"):
        call("classify", both[0], "--models", group / "ea", "-o", tmp_path / "c.parquet")


def test_nothing_is_taken_twice(file: Path, features: Path, group: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "f.parquet").write_bytes(features.read_bytes())
    for inputs in ((file, file), (features, features), (folder, folder / "." / "f.parquet")):
        with pytest.raises(UsageError, match="is named twice"):
            call("classify", *inputs, "--models", group / "ea", "-o", tmp_path / "c.parquet")
    with pytest.raises(UsageError, match="is named twice"):
        call("features", file, file.parent / "." / file.name, "-o", tmp_path / "f.parquet")


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (("--models", "nothing-like-it"), TapetumError, "there is no model"),
        (("--threshold", "high"), UsageError, "--threshold high"),
        (("--threshold", "2"), UsageError, "--threshold 2"),
        (("--field", "301"), UsageError, "not both"),
        (("--from", "x.parquet"), UsageError, "--from is for a table of what is wanted"),
        (("--save-features", "x.txt"), UsageError, "unknown table suffix"),
    ],
)
def test_wrong_words_are_refused_before_the_work(
    file: Path, group: Path, tmp_path: Path, words: Any, kind: Any, said: str
) -> None:
    models = () if "--models" in words else ("--models", group)
    with pytest.raises(kind) as caught:
        call("classify", file, "-o", tmp_path / "c.parquet", *models, *words)
    assert said in str(caught.value)
    assert list(tmp_path.glob("c.*")) == []


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("Gaia_EDR3__parallax", "needs columns of Gaia_EDR3: give --gaia TABLE"),
        ("n_ztf_alerts", "give --alerts TABLE"),
        ("nobody_knows", "neither made here nor a column of the light curves"),
    ],
)
def test_what_nobody_makes_is_said_with_its_remedy(
    file: Path, tmp_path: Path, missing: str, said: str
) -> None:
    models_.write(
        models_.classifier(features=({"name": "iqr"}, {"name": missing, "missing": "zero"})), tmp_path / "m"
    )
    words = ("classify", file, "--models", tmp_path / "m", "-o", tmp_path / "c.parquet")
    with pytest.raises(UsageError, match=said):
        call(*words)
    call(*words, "--absent", "missing")
    assert read_table(tmp_path / "c.parquet")["ea_dnn"].is_valid().to_pylist() == [True, True, False]


def test_other_inputs_are_named(file: Path, group: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="neither features nor a list of sources, nor light curves"):
        call("classify", tmp_path / "x.parquet", "--models", group, "-o", tmp_path / "c.parquet")
    (tmp_path / "w.csv").write_text("ra,dec\n1,2\n")
    with pytest.raises(UsageError, match="say where the light curves are"):
        call("classify", tmp_path / "w.csv", "--models", group, "-o", tmp_path / "c.parquet")
    with pytest.raises(UsageError, match="classify one kind at a time"):
        call("classify", tmp_path / "w.csv", file, "--models", group, "-o", tmp_path / "c.parquet")
    with pytest.raises(UsageError, match="name light curves"):
        call("classify", "--models", group, "-o", tmp_path / "c.parquet")


# ---- the page ------------------------------------------------------------------------------------------------------


def test_both_example_inputs_of_the_page(real_data: Path, group: Path, tmp_path: Path) -> None:
    page = Path(__file__).parents[1] / "docs" / "how-to" / "classify-light-curves.md"
    blocks = [
        block.removeprefix("text\n")
        for block in page.read_text().split("```")[1::2]
        if block.startswith("text\n")
    ]
    for name, text in zip(("radec", "ztfid"), blocks, strict=True):
        (tmp_path / f"{name}.csv").write_text(text)
    curves = real_data / "lightcurves" / "lightcurves.parquet"
    out = tmp_path / "c.parquet"
    call("classify", tmp_path / "radec.csv", "--from", curves, "--models", group / "ea", "-o", out)
    rows = read_table(out).to_pylist()
    assert [row["object_id"] for row in rows] == ["first", "second"]
    named = read_wanted(tmp_path / "ztfid.csv")
    assert [f"ztf-{lc_id}" for lc_id in named["lc_id"].to_pylist()] == [row["lc_id"] for row in rows]
    assert named["object_id"].to_pylist() == ["first", "second"]


@pytest.mark.parametrize("verb", ["classify", "combine"])
def test_the_page_names_options_that_there_are(verb: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "classify-light-curves.md").read_text()
    known = {option for name in ("classify", "combine") for option in options_of(name)}
    commands = [line for line in page.splitlines() if line.startswith(f"tapetum lightcurves {verb}")]
    assert commands
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page)) <= known | {"--group", "--jobs"}
    assert {word for line in commands for word in line.split() if word.startswith("--")} <= set(
        options_of(verb)
    )


def options_of(verb: str) -> list[str]:
    command = typer.main.get_command(app).commands[verb]
    return [option for param in command.params for option in (*param.opts, *param.secondary_opts)]
