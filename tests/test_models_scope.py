"""Classifiers that SCoPe trained: both kinds of files against slow arithmetic in numpy, and what must be refused."""

from __future__ import annotations

import contextlib
import json
from datetime import date
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tapetum.cli.app import app
from tapetum.core.errors import FormatError, InputError, UsageError
from tapetum.finders import variables
from tapetum.lightcurves.impute import Strategy
from tapetum.models.card import load_card
from tapetum.models.feature_statistics import read_statistics, statistics_of
from tapetum.models.scope_models import (
    DESCRIBED,
    PERIODIC,
    ScopeContract,
    import_scope,
    read_scope_config,
)
from tapetum.models.tables import imputer_of

TODAY = date(2026, 11, 20)
SUFFIX = "ELS_ECE_EAOV"
N_ROWS = 12


def columns_of(view: Any) -> list[str]:
    return [f"{name}_{SUFFIX}" if name in PERIODIC else name for name in DESCRIBED[view]]


def training_set(view: Any, rng: np.random.Generator, missing: float = 0.0) -> pa.Table:
    """Features of made-up stars; of those from catalogues a share is missing."""
    table: dict[str, Any] = {}
    for at, name in enumerate(columns_of(view)):
        values = rng.normal(at, 1 + at / 10, N_ROWS)
        if "__" in name:
            values[rng.random(N_ROWS) < missing] = np.nan
            values[0] = at
        table[name] = values
    histograms = rng.random((N_ROWS, 26 * 26)).astype(np.float32)
    table["lc_id"] = [str(row) for row in range(N_ROWS)]
    table["dmdt"] = pa.FixedSizeListArray.from_arrays(pa.array(histograms.ravel()), 26 * 26)
    return pa.table(table)


def numbers(table: pa.Table, columns: list[str]) -> np.ndarray[Any, Any]:
    return np.column_stack([table[name].to_numpy() for name in columns])


# ---- the network, layer by layer -----------------------------------------------------------------------------------


def separable(x: Any, weights: dict[str, Any]) -> Any:
    """3 x 3 without padding: each channel alone, then all together, then what is positive."""
    n, n_y, n_x, depth = x.shape
    seen = np.zeros((n, n_y - 2, n_x - 2, depth))
    for i in range(3):
        for j in range(3):
            seen += x[:, i : i + n_y - 2, j : j + n_x - 2] * weights["depthwise_kernel"][i, j, :, 0]
    return np.maximum(seen @ weights["pointwise_kernel"][0, 0] + weights["bias"], 0)


def forward(features: Any, dmdt: Any, w: dict[str, dict[str, Any]]) -> Any:
    """The described network, in double precision."""
    rows = features
    for name in ("dense_fc_1", "dense_fc_2"):
        rows = np.maximum(rows @ w[name]["kernel"] + w[name]["bias"], 0)
    x = separable(separable(dmdt, w["conv_conv_1"]), w["conv_conv_2"])
    n_y = x.shape[1] // 2
    x = x[:, : 2 * n_y, : 2 * n_y].reshape(len(x), n_y, 2, n_y, 2, -1).max(axis=(2, 4))
    x = separable(separable(x, w["conv_conv_3"]), w["conv_conv_4"]).mean(axis=(1, 2))
    both = np.concatenate([rows, x], axis=1)
    both = np.maximum(both @ w["fc_1"]["kernel"] + w["fc_1"]["bias"], 0)
    return 1 / (1 + np.exp(-(both @ w["score"]["kernel"] + w["score"]["bias"])))[:, 0]


def write_network(path: Path, n_features: int, rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """A file as Keras 2 writes it, with random weights; what is in it."""
    w: dict[str, dict[str, Any]] = {}

    def dense(name: str, n_in: int, n_out: int) -> None:
        w[name] = {"kernel": rng.normal(0, n_in**-0.5, (n_in, n_out)), "bias": rng.normal(0, 0.1, n_out)}

    def conv(name: str, n_in: int, n_out: int) -> None:
        w[name] = {
            "depthwise_kernel": rng.normal(0, 0.4, (3, 3, n_in, 1)),
            "pointwise_kernel": rng.normal(0, n_in**-0.5, (1, 1, n_in, n_out)),
            "bias": rng.normal(0, 0.1, n_out),
        }

    dense("dense_fc_1", n_features, 256)
    dense("dense_fc_2", 256, 32)
    for name, n_in, n_out in (("1", 1, 16), ("2", 16, 16), ("3", 16, 32), ("4", 32, 32)):
        conv(f"conv_conv_{name}", n_in, n_out)
    dense("fc_1", 64, 16)
    dense("score", 16, 1)
    layers: list[dict[str, Any]] = []

    def add(kind: str, name: str, inputs: list[str], **config: Any) -> None:
        inbound = [[[parent, 0, 0, {}] for parent in inputs]] if inputs else []
        layers.append(
            {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": inbound}
        )

    add("InputLayer", "features", [], batch_input_shape=[None, n_features])
    add("InputLayer", "dmdt", [], batch_input_shape=[None, 26, 26, 1])
    add("Dense", "dense_fc_1", ["features"], units=256, activation="relu", use_bias=True)
    add("Dropout", "dropout", ["dense_fc_1"], rate=0.25)
    add("Dense", "dense_fc_2", ["dropout"], units=32, activation="relu", use_bias=True)
    separable_config = {"kernel_size": [3, 3], "strides": [1, 1], "padding": "valid", "activation": "relu"}
    for number, parent in (("1", "dmdt"), ("2", "conv_conv_1"), ("3", "pool"), ("4", "conv_conv_3")):
        filters = 16 if number < "3" else 32
        add("SeparableConv2D", f"conv_conv_{number}", [parent], filters=filters, **separable_config)
        if number == "2":
            add("MaxPooling2D", "pool", ["conv_conv_2"], pool_size=[2, 2], strides=[2, 2], padding="valid")
    add("GlobalAveragePooling2D", "mean", ["conv_conv_4"])
    add("Concatenate", "both", ["dense_fc_2", "mean"], axis=-1)
    add("Dense", "fc_1", ["both"], units=16, activation="relu", use_bias=True)
    add("Dense", "score", ["fc_1"], units=1, activation="sigmoid", use_bias=True)
    ends = {"input_layers": [["features", 0, 0], ["dmdt", 0, 0]], "output_layers": [["score", 0, 0]]}
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.15.0"
        file.attrs["model_config"] = json.dumps(
            {"class_name": "Functional", "config": {"layers": layers, **ends}}
        )
        root = file.create_group("model_weights")
        for layer in layers:
            name = layer["name"]
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{key}:0".encode() for key in w.get(name, {})]
            for key, values in w.get(name, {}).items():
                group.create_dataset(f"{name}/{key}:0", data=values.astype(np.float32))
    return w


def scaled(values: Any) -> Any:
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    return (values - low) / (high - low)


def test_a_network_gives_the_scores_of_its_layers(tmp_path: Path, rng: np.random.Generator) -> None:
    table = training_set("phenomenological", rng)
    w = write_network(tmp_path / "vnv.h5", 35, rng)
    contract = ScopeContract("vnv", "variable", "phenomenological", statistics={})
    done = import_scope(
        tmp_path / "vnv.h5", "variables-vnv-dnn", "dnn", contract, tmp_path / "m", TODAY, training_set=table
    )
    assert done.new
    features = scaled(numbers(table, columns_of("phenomenological")))
    dmdt = np.array(table["dmdt"].to_pylist()).reshape(-1, 26, 26, 1)
    expected = forward(features, dmdt, w)
    assert expected.std() > 0.01  # they differ, so order and scaling of the features matter
    got = variables.load(str(done.folder)).find(table)["vnv_dnn"].to_numpy()
    np.testing.assert_allclose(got, expected, atol=2e-6)
    card = done.card
    assert card.table is not None
    assert [card.table.column(entry) for entry in card.table.included] == columns_of("phenomenological")
    assert (card.algorithm, card.thresholds, card.calibration.method) == ("dnn", {"described": 0.7}, "none")
    assert card.golden is not None
    assert len({row[0] for row in card.golden.outputs}) == 8
    again = import_scope(
        tmp_path / "vnv.h5", "variables-vnv-dnn", "dnn", contract, tmp_path / "m", TODAY, training_set=table
    )
    assert not again.new


# ---- boosted trees -------------------------------------------------------------------------------------------------


def tree(rng: np.random.Generator, n_features: int) -> dict[str, list[Any]]:
    """A tree of depth two as xgboost writes it."""
    return {
        "left_children": [1, 3, 5, -1, -1, -1, -1],
        "right_children": [2, 4, 6, -1, -1, -1, -1],
        "split_indices": [*rng.integers(0, n_features, 3).tolist(), 0, 0, 0, 0],
        "split_conditions": [*rng.uniform(0.2, 0.8, 3).tolist(), *rng.normal(0, 1, 4).tolist()],
        "default_left": [1, 0, 1, 0, 0, 0, 0],
        "split_type": [0] * 7,
        "loss_changes": [1.0] * 3 + [0.0] * 4,
    }


def climb(one: dict[str, list[Any]], row: Any) -> float:
    at = 0
    while one["left_children"][at] >= 0:
        value = np.float32(row[one["split_indices"][at]])
        left = one["default_left"][at] if np.isnan(value) else value < np.float32(one["split_conditions"][at])
        at = one["left_children"][at] if left else one["right_children"][at]
    return float(np.float32(one["split_conditions"][at]))


def write_trees(path: Path, names: list[str], rng: np.random.Generator) -> list[dict[str, list[Any]]]:
    trees = [tree(rng, len(names)) for _ in range(20)]
    parameters = {"num_class": "0", "num_feature": str(len(names)), "base_score": "3E-1"}
    learner = {
        "feature_names": names,
        "learner_model_param": parameters,
        "objective": {"name": "binary:logistic"},
        "gradient_booster": {"name": "gbtree", "model": {"trees": trees}},
    }
    path.write_text(json.dumps({"learner": learner, "version": [1, 7, 3]}))
    return trees


def write_params(path: Path, n_features: int) -> None:
    booster = {"tree_train_param": {"eta": "0.05", "max_depth": "7", "unknown": "x"}}
    learner = {
        "learner_model_param": {"num_feature": str(n_features), "base_score": "3E-1"},
        "objective": {"name": "binary:logistic"},
        "gradient_booster": booster,
    }
    path.write_text(json.dumps({"learner": learner, "version": [1, 7, 3]}))


def test_trees_give_the_sum_of_their_leaves(tmp_path: Path, rng: np.random.Generator) -> None:
    names = columns_of("ontological")
    trees = write_trees(tmp_path / "dscu.json", names, rng)
    write_params(tmp_path / "dscu.params", len(names))
    table = training_set("ontological", rng)
    contract = ScopeContract("dscu", "Delta Scu", "ontological")
    done = import_scope(
        tmp_path / "dscu.json", "variables-dscu-xgb", "xgb", contract, tmp_path, TODAY, training_set=table
    )
    rows = scaled(numbers(table, names))
    margin = np.log(0.3 / 0.7) + np.array([sum(climb(one, row) for one in trees) for row in rows])
    got = variables.load(str(done.folder)).find(table)["dscu_xgb"].to_numpy()
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-margin)), atol=1e-6)
    assert got.std() > 0.05
    assert done.card.training.recipe == {"objective": "binary:logistic", "eta": "0.05", "max_depth": "7"}
    # what a training goes on from
    assert (done.folder / "booster.json").read_bytes() == (tmp_path / "dscu.json").read_bytes()
    (done.folder / "booster.json").unlink()
    import_scope(
        tmp_path / "dscu.json", "variables-dscu-xgb", "xgb", contract, tmp_path, TODAY, training_set=table
    )
    assert (done.folder / "booster.json").is_file()


def test_classes_are_given_above_the_threshold_of_scope(tmp_path: Path, rng: np.random.Generator) -> None:
    trees = write_trees(tmp_path / "dscu.json", ["ad", "median"], rng)
    for one in trees:  # every row has the same score
        one["split_conditions"] = [*one["split_conditions"][:3], *[0.08] * 4]
    content = json.loads((tmp_path / "dscu.json").read_text())
    content["learner"]["gradient_booster"]["model"]["trees"] = trees
    (tmp_path / "dscu.json").write_text(json.dumps(content))
    contract = ScopeContract("dscu", "Delta Scu", "ontological", scaling="none")
    done = import_scope(tmp_path / "dscu.json", "a", "xgb", contract, tmp_path, TODAY)
    config = variables.Config(threshold="card")
    found = variables.load(str(done.folder), config).find(pa.table({"ad": [1.0], "median": [1.0]}))
    assert 0.5 < found["dscu_xgb"][0].as_py() < 0.7
    assert found["classes"].to_pylist() == [""]


def test_missing_features_are_replaced_as_described(tmp_path: Path, rng: np.random.Generator) -> None:
    names = columns_of("ontological")
    write_trees(tmp_path / "dscu.json", names, rng)
    table = training_set("ontological", rng, missing=0.3)
    contract = ScopeContract("dscu", "Delta Scu", "ontological")
    done = import_scope(tmp_path / "dscu.json", "a", "xgb", contract, tmp_path, TODAY, training_set=table)
    assert done.card.table is not None
    rules = {entry.name: entry.missing for entry in done.card.table.included}
    assert rules["ad"] == rules["period"] == "drop"
    assert rules["n_ztf_alerts"] == "zero"
    assert rules["PS1_DR1__gMeanPSFMagErr"] == rules["AllWISE__w1sigmpro"] == "median"
    assert rules["Gaia_EDR3__parallax"] == rules["AllWISE__w4mpro"] == "regress"
    found = variables.load(str(done.folder)).find(table)
    assert found["dscu_xgb"].null_count == 0
    blank = table.set_column(table.column_names.index("ad"), "ad", pa.nulls(N_ROWS, pa.float64()))
    assert variables.load(str(done.folder)).find(blank)["dscu_xgb"].null_count == N_ROWS
    # none of the regressed ones is known: the mean of the column, as KNNImputer has it
    entries = {entry.name: entry for entry in done.card.table.included}
    for name in ("Gaia_EDR3__parallax", "PS1_DR1__gMeanPSFMag"):
        assert entries[name].mean == pytest.approx(np.nanmean(table[name].to_numpy()), rel=1e-12)
    regressed = [name for name, rule in rules.items() if rule == "regress"]
    unknown = pa.table({name: [np.nan if name in regressed else 1.0] for name in names})
    filled = imputer_of(done.card.table).apply(unknown).table
    assert [filled[name][0].as_py() for name in regressed] == [entries[name].mean for name in regressed]
    # a rule of the configuration stands above the described one
    strategies = {"AllWISE__w1mpro": Strategy.MEAN, "Gaia_EDR3__parallax": Strategy.DROP}
    own = ScopeContract("dscu", "Delta Scu", "ontological", strategies=strategies)
    card = import_scope(tmp_path / "dscu.json", "c", "xgb", own, tmp_path, TODAY, training_set=table).card
    assert card.table is not None
    ruled = {entry.name: entry for entry in card.table.included}
    assert (ruled["AllWISE__w1mpro"].missing, ruled["Gaia_EDR3__parallax"].missing) == ("mean", "drop")
    assert ruled["AllWISE__w1mpro"].mean == entries["AllWISE__w1mpro"].mean
    # statistics alone: there are no neighbours, so the median takes their place
    plain = ScopeContract("dscu", "Delta Scu", "ontological", statistics=statistics_of(table, names))
    other = import_scope(tmp_path / "dscu.json", "b", "xgb", plain, tmp_path, TODAY).card.table
    assert other is not None
    assert {entry.missing for entry in other.included} == {"drop", "zero", "median"}


def config(path: Path, **changes: Any) -> Path:
    """A configuration of two features, one of which is periodic."""
    lines = {
        "period_suffix": "LS_CE_AOV", "features": "ontological", "median": "{min: 14, max: 20, median: 17, std: 1}",
        "rule": "zero", **changes,
    }  # fmt: skip
    path.write_text(
        f"""
features:
  info: {{period_suffix: {lines["period_suffix"]}}}
  phenomenological:
    median: {{include: true, dtype: float, periodic: false}}
  ontological:
    period: {{include: true, dtype: float, impute_strategy: None, periodic: true}}
    ra: {{include: false, dtype: float, impute_strategy: None, periodic: false}}
    median: {{include: true, dtype: float, impute_strategy: {lines["rule"]}, periodic: false}}
feature_stats:
  median: {lines["median"]}
training:
  classes:
    dscu: {{label: Delta Scu, features: {lines["features"]}}}
"""
    )
    return path


def test_a_configuration_says_list_scaling_and_rules(tmp_path: Path) -> None:
    found = read_scope_config(config(tmp_path / "c.yaml"), "dscu", "ontological")
    assert (found.features, found.period_suffix) == (("period", "median"), "LS_CE_AOV")
    # None is a rule as well: the row is dropped, whatever is described for a feature of this name
    assert found.strategies == {"period": Strategy.DROP, "median": Strategy.ZERO}
    mean = read_scope_config(config(tmp_path / "m.yaml", rule="Mean"), "dscu", "ontological")
    assert mean.strategies["median"] is Strategy.MEAN
    assert found.statistics == {"median": {"min": 14.0, "max": 20.0, "median": 17.0, "std": 1.0}}
    no_suffix = read_scope_config(
        config(tmp_path / "d.yaml", period_suffix="None"), "vnv", "phenomenological"
    )
    assert (no_suffix.period_suffix, no_suffix.features) == ("", ("median",))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": "nothing"}, "KeyError: 'nothing'"),
        ({"rule": "guess"}, "'guess' is not a valid Strategy"),
        ({"median": "{min: .nan}"}, "the statistics of median are not finite"),
        ({"median": "[1"}, "not a configuration of SCoPe"),
    ],
)
def test_other_configurations_are_refused(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(FormatError, match=r"c\.yaml") as caught:
        read_scope_config(config(tmp_path / "c.yaml", **changes), "dscu", "ontological")
    assert said in str(caught.value)


def test_the_described_lists_are_those_of_the_described_system() -> None:
    assert [len(names) for names in DESCRIBED.values()] == [35, 61]
    assert DESCRIBED["phenomenological"][:6] == ("ad", "chi2red", "f1_BIC", "f1_a", "f1_amp", "f1_b")
    assert DESCRIBED["ontological"][22:26] == (
        "mean_ztf_alert_braai",
        "median",
        "median_abs_dev",
        "n_ztf_alerts",
    )
    assert DESCRIBED["ontological"][39:41] == ("AllWISE__w1mpro", "AllWISE__w1sigmpro")


# ---- the command ---------------------------------------------------------------------------------------------------


def call(*words: object) -> None:
    result = CliRunner().invoke(app, ["models", "import", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output


def test_the_command_imports_with_a_configuration(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trees = write_trees(tmp_path / "x.json", ["period_LS_CE_AOV", "median"], rng)
    call(
        tmp_path / "x.json",
        "--class",
        "dscu",
        "--algorithm",
        "xgb",
        "--scope-config",
        config(tmp_path / "c.yaml"),
    )
    folder = tmp_path / "cache" / "tapetum" / "models" / "variables-dscu-xgb" / "1.0.0"
    card = load_card(folder / "card.json")
    assert card.outputs[0].columns == ("dscu",)
    table = pa.table({"period_LS_CE_AOV": [0.5, 0.1], "median": [17.0, None]})
    got = variables.load(str(folder)).find(table)["dscu_xgb"].to_pylist()
    rows = [[0.5, 0.5], [0.1, (0 - 14) / 6]]  # periods had no statistics: SCoPe leaves these as they are
    margin = [np.log(0.3 / 0.7) + sum(climb(one, row) for one in trees) for row in rows]
    assert got == pytest.approx([1 / (1 + np.exp(-value)) for value in margin], abs=1e-6)
    named = ("--class", "Delta Scu", "--algorithm", "xgb", "--name", "mine", "--version", "2.0.0")
    pq.write_table(pa.table({"period_LS": [1.0, 2.0], "median": [15.0, 16.0]}), tmp_path / "t.parquet")
    write_trees(tmp_path / "y.json", ["period_LS", "median"], rng)
    more = ("--training-set", tmp_path / "t.parquet", "--period-suffix", "LS", "--scaling", "median_std")
    call(tmp_path / "y.json", *named, *more)
    mine = load_card(folder.parents[1] / "mine" / "2.0.0" / "card.json")
    assert mine.table is not None
    assert [(entry.name, entry.centre, entry.width) for entry in mine.table.included] == [
        ("period", 1.5, 0.5), ("median", 15.5, 0.5),
    ]  # fmt: skip
    of_config = (
        "--scope-config",
        tmp_path / "c.yaml",
        "--feature-stats",
        "config",
        "--features",
        "period,median",
    )
    call(tmp_path / "y.json", *named[:-1], "3.0.0", *more[:-2], *of_config)
    third = load_card(folder.parents[1] / "mine" / "3.0.0" / "card.json")
    assert third.table is not None
    assert [(entry.name, entry.centre, entry.width) for entry in third.table.included] == [
        ("period", None, None), ("median", 14.0, 6.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "problem", "said"),
    [
        (("--class", "dscu"), UsageError, "needs --class CODE and --algorithm"),
        (("--class", "xx", "--algorithm", "xgb"), UsageError, "'xx' is no class of scope"),
        (("--class", "dscu", "--algorithm", "xgb"), InputError, "does not say how its features were scaled"),
        (("--class", "dscu", "--algorithm", "xgb", "--size", "3"), UsageError, "--size is for networks"),
        (
            ("--class", "dscu", "--algorithm", "dnn", "--scaling", "none"),
            FormatError,
            "the suffix is not .h5",
        ),
        (
            ("--class", "dscu", "--algorithm", "xgb", "--scaling", "none", "--period-suffix", "LS"),
            InputError,
            "whose period is not that of LS",
        ),
        (
            ("--class", "dscu", "--algorithm", "xgb", "--scaling", "none", "--features", "a,b"),
            InputError,
            "the trees name other features",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    words: Any,
    problem: type[Exception],
    said: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_trees(tmp_path / "x.json", [f"f1_a_{SUFFIX}", "median"], rng)
    with pytest.raises(problem) as caught:
        call(tmp_path / "x.json", *words)
    assert said in str(caught.value)
    assert not (tmp_path / "cache" / "tapetum" / "models").exists()


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    contract = ScopeContract("dscu", "Delta Scu", "ontological", scaling="none")
    path = tmp_path / "x.json"
    write_trees(path, ["ad", "median"], rng)
    write_params(tmp_path / "x.params", 61)
    with pytest.raises(FormatError, match="do not belong together"):
        import_scope(path, "a", "xgb", contract, tmp_path / "m", TODAY)
    (tmp_path / "x.params").write_text("{}")
    with pytest.raises(FormatError, match="not the configuration of boosted trees"):
        import_scope(path, "a", "xgb", contract, tmp_path / "m", TODAY)
    write_network(tmp_path / "x.h5", 40, rng)
    with pytest.raises(InputError, match="takes 40 features, the list has 61"):
        import_scope(tmp_path / "x.h5", "a", "dnn", contract, tmp_path / "m", TODAY)
    (tmp_path / "s.json").write_text("[1]")
    with pytest.raises(FormatError, match="not statistics of features"):
        read_statistics(tmp_path / "s.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"left_children": [1, 3, 5, -1, -1, -1]}, "its lists differ in length"),
        ({"left_children": [0, 3, 5, -1, -1, -1, -1]}, "its nodes do not hang together"),
        ({"right_children": [2, 4, 99, -1, -1, -1, -1]}, "its nodes do not hang together"),
        ({"right_children": [2, 4, -1, -1, -1, -1, -1]}, "a node has one child"),
        ({"split_indices": [2, 0, 1, 0, 0, 0, 0]}, "a feature beyond the 2"),
        ({"split_conditions": [1e39, 0, 0, 0, 0, 0, 0]}, "is not finite"),
        ({"default_left": None}, "its lists differ in length"),
        ({"split_conditions": ["x"] * 7}, "ValueError"),
    ],
)
def test_trees_that_are_none_are_refused(
    tmp_path: Path, rng: np.random.Generator, changes: dict[str, Any], said: str
) -> None:
    write_trees(tmp_path / "x.json", ["ad", "median"], rng)
    content = json.loads((tmp_path / "x.json").read_text())
    content["learner"]["gradient_booster"]["model"]["trees"][3] |= changes
    (tmp_path / "x.json").write_text(json.dumps(content))
    contract = ScopeContract("dscu", "Delta Scu", "ontological", scaling="none")
    with pytest.raises(FormatError, match=r"x\.json: tree 3") as caught:
        import_scope(tmp_path / "x.json", "a", "xgb", contract, tmp_path / "m", TODAY)
    assert said in str(caught.value)


def test_a_damaged_file_never_crashes(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "x.json"
    write_trees(path, ["ad", "median"], rng)
    whole = path.read_bytes()
    contract = ScopeContract("dscu", "Delta Scu", "ontological", scaling="none")
    damaged = [whole[: rng.integers(len(whole))] for _ in range(20)]
    for _ in range(60):
        content = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            content[at] = rng.integers(32, 127)
        damaged.append(bytes(content))
    for number, content in enumerate([*damaged, b"[" * 100_000, b'{"learner": ' * 5000]):
        path.write_bytes(content)
        with contextlib.suppress(InputError):
            import_scope(path, "a", "xgb", contract, tmp_path / str(number), TODAY)


def test_trees_of_the_library_itself(tmp_path: Path, rng: np.random.Generator) -> None:
    xgboost = pytest.importorskip("xgboost")
    names = columns_of("phenomenological")
    rows = rng.normal(0, 1, (300, len(names)))
    target = rows[:, 3] - rows[:, 7] > 0
    data = xgboost.DMatrix(rows, label=target, feature_names=names)
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3, "eta": 0.3}, data, 20)
    booster.save_model(tmp_path / "vnv.json")
    (tmp_path / "vnv.params").write_text(booster.save_config())
    contract = ScopeContract("vnv", "variable", "phenomenological", scaling="none")
    done = import_scope(tmp_path / "vnv.json", "vnv", "xgb", contract, tmp_path / "m", TODAY)
    got = variables.load(str(done.folder)).find(pa.table(dict(zip(names, rows.T, strict=True))))
    np.testing.assert_allclose(got["vnv_xgb"].to_numpy(), booster.predict(data), atol=1e-6)
    assert done.card.training.recipe["max_depth"] == "3"
