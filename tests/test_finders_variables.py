"""The finder of variables: columns, what is missing, combination, hierarchy, sources, groups."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tapetum.core.errors import InputError, ModelError
from tapetum.finders.taxonomy import load_taxonomy
from tapetum.finders.variable_group import VariableGroup
from tapetum.finders.variable_join import join
from tapetum.finders.variable_sources import as_made, per_source, source_of_rows, with_source_names
from tapetum.finders.variables import (
    WORD,
    Config,
    Variables,
    combined,
    consistent,
    given_classes,
    load,
    specs_of,
)
from tapetum.lightcurves.clean import CleaningRules, clean
from tapetum.lightcurves.curves import LightCurves
from tapetum.models.card import PlattCalibration
from tapetum.models.flags import InputFlag

_spec = importlib.util.spec_from_file_location("models_", Path(__file__).with_name("variable_models.py"))
models_ = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models_)
classifier, network, write, Tree = models_.classifier, models_.network, models_.write, models_.Tree

NAN = float("nan")
FREE = ({"name": "a", "missing": "zero"}, {"name": "b", "missing": "zero"})


def table(**columns):
    return pa.table(
        {
            "lc_id": ["1", "2", "3"],
            "object_id": ["x", "y", "x"],
            "ra": [1.0, 2.0, 1.0],
            "a": [0.5, None, -1.0],
            "b": [1.0, 1.0, None],
            "period_LS": [0.1, 0.2, 0.3],
            "dmdt": [[1.0]] * 3,
            **columns,
        }
    )


def sigmoid(*values):
    return 1 / (1 + np.exp(-np.array(values, float)))


def test_one_column_for_each_class_and_algorithm_beside_the_keys():
    found = Variables([classifier("ew", "xgb"), classifier("e"), classifier("ew")], Config()).find(table())
    assert found.column_names == [
        "lc_id",
        "object_id",
        "ra",
        "period_LS",
        "e_dnn",
        "ew_dnn",
        "ew_xgb",
        "flags",
        "error",
    ]
    np.testing.assert_allclose(found["e_dnn"].to_numpy(), [*sigmoid(1.5), NAN, *sigmoid(-1)], rtol=1e-6)
    assert found["e_dnn"].null_count == 1
    assert found["error"].to_pylist() == [None, "no value of a", None]
    assert found["flags"].to_pylist() == [0, InputFlag.MISSING_FEATURE, InputFlag.IMPUTED]
    words = found.schema.field("ew_xgb").metadata[b"description"].decode()
    assert words == f"{load_taxonomy().of('ew').label}: score by variables-ew-xgb 1.0.0"
    about = json.loads(found.schema.metadata[WORD.encode()])
    assert about["models"]["ew_xgb"]["algorithm"] == "xgb"
    assert about["models"]["ew_xgb"]["sha256"] == hashlib.sha256(network(2)).hexdigest()


def test_a_row_that_one_model_takes_and_another_does_not():
    other = classifier("ew", features=({"name": "period_LS"}, {"name": "b", "missing": "zero"}))
    found = Variables([classifier("ea"), other], Config(name_imputed=True)).find(table())
    assert [found[name].null_count for name in ("ea_dnn", "ew_dnn")] == [1, 0]
    assert found["imputed"].to_pylist() == [None, None, "b"]
    assert found["flags"].to_pylist() == [0, InputFlag.MISSING_FEATURE, InputFlag.IMPUTED]


def test_an_answer_that_is_no_number_is_flagged():
    features = (
        {"name": "b"},
        {"name": "a", "missing": "keep"},
    )  # the network cannot take what it says it does
    found = Variables([classifier("ea", features=features)], Config()).find(table(b=[1.0, 1.0, 1.0]))
    assert found["flags"].to_pylist() == [0, InputFlag.BAD_OUTPUT, 0]
    assert found["error"].to_pylist() == [
        None,
        "ea_dnn: the output of the network is not a finite number",
        None,
    ]


def test_a_listed_feature_that_the_table_lacks_is_an_error():
    finder = Variables([classifier("ea")], Config())
    with pytest.raises(InputError, match="model variables-ea-dnn needs the feature b, which the table lacks"):
        finder.find(table().drop_columns(["b"]))
    # unless it may be missing as in single rows: b becomes zero
    found = Variables([classifier("ea")], Config(absent="missing")).find(table().drop_columns(["b"]))
    np.testing.assert_allclose(found["ea_dnn"].to_numpy(), [*sigmoid(0.5), NAN, *sigmoid(-1)], rtol=1e-6)


@pytest.mark.parametrize(
    "rows", [{"a": [1.0, None, 1.0], "b": [1.0, None, 1.0]}, {"kept": [True, False, True]}]
)
def test_a_light_curve_without_any_feature_is_not_classified(rows):
    # the network would take them: trees that may miss a feature may miss all
    features = ({"name": "a", "missing": "zero"}, {"name": "b", "missing": "zero"})
    reasons = {"reason": [None, "too few points", None]} if "kept" in rows else {}
    found = Variables([classifier("ea", features=features)], Config()).find(table(**rows, **reasons))
    assert found["ea_dnn"].is_valid().to_pylist() == [True, False, True]
    assert found["flags"][1].as_py() == InputFlag.MISSING_FEATURE
    said = "no features: too few points" if reasons else "ea_dnn: no feature has a value"
    assert found["error"].to_pylist() == [None, said, None]


def test_the_opposite_of_a_class():
    models = [
        classifier("vnv", features=FREE),
        classifier("vnv", "xgb", features=FREE),
        classifier("ea", features=FREE),
    ]
    found = Variables(models, Config(combine="mean")).find(table())
    for end in ("_dnn", "_xgb", ""):
        np.testing.assert_allclose(found[f"nonvar{end}"].to_numpy(), 1 - found[f"vnv{end}"].to_numpy())
    words = found.schema.field("nonvar_xgb").metadata[b"description"]
    assert words == b"1 - vnv_xgb"
    assert "nonvar_dnn" not in Variables(models, Config(opposites=False)).find(table()).column_names
    own = Variables([*models, classifier("nonvar", features=FREE)], Config()).find(table())
    assert "nonvar_xgb" not in own.column_names
    np.testing.assert_allclose(own["nonvar_dnn"].to_numpy(), own["vnv_dnn"].to_numpy())


def test_probabilities_are_rounded():
    found = Variables([classifier("ea", features=FREE)], Config(decimals=2, opposites=False)).find(table())
    assert found["ea_dnn"].to_pylist() == [round(float(sigmoid(x)[0]), 2) for x in (1.5, 1.0, -1.0)]
    assert per_source(found)["ea_dnn"][0].as_py() == round((0.82 + 0.27) / 2, 2)


def test_classes_above_their_thresholds():
    spec = {"name": "ea", "title": "EA", "training_prior": 0.5, "prior": 0.5, "threshold": 0.75}
    models = [classifier("ea", features=FREE, classes=[spec]), classifier("vnv", features=FREE)]
    by_card = Variables(models, Config(threshold="card")).find(table(a=[0.5, None, -3.0]))
    # sigmoid(1.5) = 0.82, sigmoid(1) = 0.73, sigmoid(-3) = 0.05; a card without a threshold counts as 0.5
    assert by_card["classes"].to_pylist() == ["vnv ea", "vnv", "nonvar"]
    assert per_source(by_card)["classes"].to_pylist() == ["nonvar", "vnv"]  # means of 0.44, 0.73
    one = Variables(models, Config(threshold=0.7)).find(table(a=[0.5, None, -3.0]))
    assert one["classes"].to_pylist() == ["vnv ea", "vnv ea", "nonvar"]
    with pytest.raises(ValueError, match="threshold is a probability"):
        Config(threshold=1.0)


@pytest.mark.parametrize(
    ("combine", "expected"), [("none", ["", "ea", "ea", None]), ("max", ["ea", "ea", "ea", None])]
)
def test_thresholds_of_several_algorithms(combine, expected):
    about = {
        "settings": {"threshold": 0.7, "combine": combine},
        "models": {
            f"ea_{name}": {"class": "ea", "algorithm": name, "threshold": None} for name in ("dnn", "xgb")
        },
        "opposites": {},
    }
    values = {"ea_dnn": np.array([0.9, 0.9, 0.9, NAN]), "ea_xgb": np.array([0.2, 0.8, NAN, NAN])}
    if combine != "none":
        values["ea"] = combined(list(values.values()), combine)
    assert given_classes(values, {**about, "columns": dict.fromkeys(values, "")}) == expected


def test_probabilities_are_calibrated_unless_scores_are_asked_for():
    model = classifier("ea", calibration=PlattCalibration(a=2.0, b=0.5))
    for config, expected in ((Config(), sigmoid(3.5)), (Config(calibrated=False), sigmoid(1.5))):
        found = Variables([model], config).find(table())
        assert found["ea_dnn"][0].as_py() == pytest.approx(expected[0], rel=1e-6)


@pytest.mark.parametrize(("how", "expected"), [("mean", [0.3, 0.5, NAN]), ("max", [0.4, 0.5, NAN])])
def test_combination_of_algorithms(how, expected):
    got = combined([np.array([0.2, NAN, NAN]), np.array([0.4, 0.5, NAN])], how)
    np.testing.assert_allclose(got, expected)


def test_combined_columns():
    more = classifier("ea", "xgb", features=({"name": "b", "missing": "zero"},))
    found = Variables([classifier("ea"), more], Config(combine="mean")).find(table())
    assert found.column_names[4:7] == ["ea_dnn", "ea_xgb", "ea"]
    both = np.nanmean([found["ea_dnn"].to_numpy(), found["ea_xgb"].to_numpy()], axis=0)
    np.testing.assert_allclose(found["ea"].to_numpy(), both)


def test_hierarchy():
    # vnv > pnp > e > ea; pnp has no model
    values = {"vnv": [0.5, 0.9, NAN], "e": [0.7, 0.2, 0.6], "ea": [0.6, 0.8, NAN], "mine": [1.0, 1.0, 1.0]}
    given = {code: np.array(numbers) for code, numbers in values.items()}
    down = consistent(given, load_taxonomy(), upwards=False)
    np.testing.assert_allclose(down["e"], [0.5, 0.2, 0.6])
    np.testing.assert_allclose(down["ea"], [0.5, 0.2, NAN])
    up = consistent(given, load_taxonomy(), upwards=True)
    np.testing.assert_allclose(up["e"], [0.7, 0.8, 0.6])
    np.testing.assert_allclose(up["vnv"], [0.7, 0.9, NAN])
    np.testing.assert_array_equal(up["mine"], 1)
    np.testing.assert_array_equal(given["e"], values["e"])


def test_hierarchy_within_each_algorithm():
    small = classifier("e", features=({"name": "b", "missing": "zero"},))
    models = [small, classifier("ea"), classifier("ea", "xgb")]
    found = Variables(models, Config(hierarchy="down")).find(table())
    np.testing.assert_allclose(
        found["ea_dnn"].to_numpy(), np.array([*sigmoid(1), NAN, *sigmoid(-1)]), rtol=1e-6
    )
    assert found["ea_xgb"][0].as_py() == pytest.approx(sigmoid(1.5)[0])


@pytest.mark.parametrize("how", ["mean", "median", "max"])
def test_one_row_for_each_source(how):
    found = Variables([classifier("ea", features=({"name": "a"},))], Config()).find(
        table(lc_id=[*"123"], object_id=["x", "y", "x"])
    )
    sources = per_source(found, how)
    assert sources["object_id"].to_pylist() == ["x", "y"]
    assert sources["n_light_curves"].to_pylist() == [2, 1]
    expected = {"mean": np.mean, "median": np.median, "max": np.max}[how](sigmoid(0.5, -1))
    assert sources["ea_dnn"][0].as_py() == pytest.approx(expected, rel=1e-6)
    assert sources["ea_dnn"][1].as_py() is None
    assert sources["flags"].to_pylist() == [0, InputFlag.MISSING_FEATURE]
    assert json.loads(sources.schema.metadata[WORD.encode()])["aggregate"] == how
    with pytest.raises(InputError, match="no classification"):
        per_source(table(), how)


def test_sources_by_catalogue_where_there_is_no_object():
    rows = pa.table(
        {
            "a": [0.0, 1.0, 2.0, 3.0, 4.0],
            "Gaia_EDR3___id": pa.array([7, 0, 7, None, 0]),
            "AllWISE___id": pa.array([1, 7, 2, 0, 7]),
        }
    )
    found = Variables([classifier("ea", features=({"name": "a"},))], Config()).find(rows)
    sources = per_source(found, "max")
    assert sources["n_light_curves"].to_pylist() == [2, 2, 1]
    np.testing.assert_allclose(sources["ea_dnn"].to_numpy(), sigmoid(2, 4, 3), rtol=1e-6)


def test_described_catalogue_keys_alone_and_without_the_others():
    rows = pa.table(
        {
            "object_id": ["x", "x", "y", "z"],
            "a": [0.0, 1.0, 2.0, 3.0],
            "Gaia_EDR3___id": [7, 8, 7, 0],
            "PS1_DR1___id": pa.array([0, None, 5, 0]),
        }
    )
    found = Variables([classifier("ea", features=({"name": "a"},))], Config()).find(rows)
    assert per_source(found)["n_light_curves"].to_pylist() == [2, 1, 1]
    by_catalogue = per_source(found, by="catalogues", others=False)
    assert by_catalogue["n_light_curves"].to_pylist() == [2, 1]  # 7 and 8; z has no counterpart
    assert by_catalogue["object_id"].to_pylist() == ["x", "x"]
    assert per_source(found, by="catalogues").num_rows == 3


def test_sources_by_position_where_nothing_else_tells_them():
    rows = pa.table(
        {
            "lc_id": ["1", "2", "3", "4", "5"],
            "object_id": pa.array([None, None, None, "x", None], pa.string()),
            "band": ["ztfr", "ztfg", "ztfg", "ztfg", "ztfi"],
            "ra": [10.0, 10.0, 10.1, 10.0, None],
            "dec": [60.0, 60.0 + 0.5 / 3600, 60.0, 60.0, None],
            "a": [0.0, 1.0, 2.0, 3.0, 4.0],
        }
    )
    found = Variables([classifier("ea", features=({"name": "a"},))], Config()).find(rows)
    sources = per_source(found)
    assert sources["lc_id"].to_pylist() == ["1 2", "3", "4", "5"]
    assert sources["bands"].to_pylist() == ["ztfg ztfr", "ztfg", "ztfg", "ztfi"]
    assert sources["object_id"].to_pylist() == ["1", "3", "x", "5"]
    assert per_source(found, radius_arcsec=0.2).num_rows == 5
    assert per_source(found, radius_arcsec=0).num_rows == 5
    where, told = source_of_rows(rows, radius_arcsec=1000)
    assert len(set(where.tolist())) == 3
    assert told.tolist() == [False, False, False, True, False]


def test_names_that_were_made_are_no_keys():
    rows = pa.table(
        {
            "lc_id": ["1", "2", "3"], "object_id": pa.array([None, "", "x"]), "ra": [10.0, 10.0, 20.0],
            "dec": [5.0, 5.0 + 3 / 3600, 5.0], "a": [0.0, 1.0, 2.0],
        }
    )  # fmt: skip
    found = Variables([classifier("ea", features=({"name": "a"},))], Config()).find(rows)
    named = with_source_names(found)
    assert named["object_id"].to_pylist() == ["1", "2", "x"]
    assert named["object_id_made"].to_pylist() == [True, True, False]
    assert as_made(named)["object_id"].to_pylist() == [None, None, "x"]
    assert as_made(named).column_names == found.column_names
    # at another radius, other sources; none of the names counts as a key
    assert per_source(named, radius_arcsec=5)["lc_id"].to_pylist() == ["1 2", "3"]
    assert per_source(named, others=False)["lc_id"].to_pylist() == ["3"]
    assert join([named], ["n"])["object_id"].to_pylist() == [None, None, "x"]
    assert with_source_names(as_made(named), radius_arcsec=5)["object_id"].to_pylist() == ["1", "1", "x"]
    own = found.filter([False, False, True])
    assert with_source_names(own).column_names == own.column_names


def test_median_of_an_even_number():
    rows = pa.table({"a": [0.0, 1.0, 2.0, 30.0], "object_id": ["x"] * 4})
    found = Variables([classifier("ea", features=({"name": "a"},))], Config(calibrated=False)).find(rows)
    got = per_source(found, "median")["ea_dnn"][0].as_py()
    assert got == pytest.approx(np.median(sigmoid(0, 1, 2, 30)), rel=1e-6)


def test_a_group_is_a_folder_of_models(tmp_path):
    write(classifier("ea"), tmp_path / "group" / "ea" / "1")
    write(classifier("ew", "xgb"), tmp_path / "group" / "ew")
    assert list(load(str(tmp_path / "group")).models) == ["ea_dnn", "ew_xgb"]
    assert list(load(f"{tmp_path}/group/ew").models) == ["ew_xgb"]
    assert list(load([f"{tmp_path}/group/ew", f"{tmp_path}/group/ea"]).models) == ["ea_dnn", "ew_xgb"]
    with pytest.raises(InputError, match="both give the column ew_xgb"):
        load([f"{tmp_path}/group/ew", f"{tmp_path}/group"])
    (tmp_path / "none").mkdir()
    with pytest.raises(ModelError, match="no model in it"):
        load(str(tmp_path / "none"))


def test_a_model_of_a_name_is_not_hidden_by_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(classifier("ea"), tmp_path / "mine")
    write(classifier("ew"), tmp_path / "realbogus" / "ew")
    assert list(load("mine").models) == ["ea_dnn"]
    assert specs_of("realbogus") == ["realbogus"]
    assert list(load("./realbogus").models) == ["ew_dnn"]


def test_other_models_are_refused():
    with pytest.raises(InputError, match="no classifier of light curves"):
        Variables([classifier("ea", algorithm="")], Config())
    with pytest.raises(InputError, match="was given"):
        Variables([], Config())


def test_an_empty_table_gives_an_empty_classification():
    found = Variables([classifier("ea")], Config(combine="max", hierarchy="down")).find(table().slice(0, 0))
    assert found.num_rows == 0
    assert per_source(found).num_rows == 0


# ---- with a classifier over a tree of classes -----------------------------------------------------------------------


def some_curves():
    times = [np.arange(n, dtype=float) for n in (9, 9, 3, 9)]
    mags = [np.full(9, 19.0), np.full(9, 21.0), np.full(3, 19.0), np.full(9, 21.0)]
    about = {
        "lc_id": [*"abcd"],
        "object_id": ["x", "x", "y", "z"],
        "ra": [1.0, 1.0, 2.0, 3.0],
        "dec": [0.0] * 4,
    }
    return LightCurves.of_lists(times, mags, [np.full(len(t), 0.1) for t in times], pa.table(about))


@pytest.mark.parametrize("alone", [True, False])
def test_a_tree_of_classes_beside_others(alone):
    curves = some_curves()
    cleaned = clean(curves, CleaningRules(min_points=5))
    features = table(lc_id=[*"abcd"], object_id=["x", "x", "y", "z"], ra=[1.0, 1.0, 2.0, 3.0], a=[0.0, 1.0, None, 2.0],
                     b=[0.0] * 4, period_LS=[0.1] * 4, dmdt=[[1.0]] * 4)  # fmt: skip
    config = Config(decimals=6, threshold=0.6)
    group = VariableGroup(None if alone else Variables([classifier("ea")], config), Tree(), config)
    found = group.find(None if alone else features, curves, cleaned)
    assert found["rrab_tree"].to_pylist() == [0.25, 0.5, None, 0.5]
    assert found["class"].to_pylist() == ["rrc", "rrab", None, "rrab"]
    assert found["class_set"].to_pylist() == ["rrab rrc", "rrab rrc", None, "rrab rrc"]
    short = "no features: 3 of 3 points left, 5 needed"
    assert found["error"][2].as_py().startswith(short if alone else "no value of a")
    assert found["flags"].to_pylist() == [0, 0, InputFlag.MISSING_FEATURE, 0]
    assert list(group.columns) == [
        *([] if alone else ["ea_dnn"]),
        "puls_tree",
        "rrab_tree",
        "rrc_tree",
        "class_probability",
    ]
    assert group.needed == ({} if alone else {"a": "variables-ea-dnn", "b": "variables-ea-dnn"})
    found = found.replace_schema_metadata({WORD: json.dumps(group.about())})
    sources = per_source(found, "max")
    assert sources["object_id"].to_pylist() == ["x", "y", "z"]
    assert sources["rrab_tree"].to_pylist() == [0.375, None, 0.5]  # the mean, though others are the largest
    assert sources["class"].to_pylist() == ["rrc", None, "rrab"]
    assert sources["class_probability"].to_pylist() == [0.625, None, 0.5]
    assert sources["class_set"].to_pylist() == ["rrc rrab", None, "rrab rrc"]
    assert sources["n_classified"].to_pylist() == [2, 0, 1]
    if not alone:
        assert sources["ea_dnn"][0].as_py() == pytest.approx(sigmoid(1)[0], abs=1e-6)
        assert sources["classes"].to_pylist() == ["ea", None, "ea"]


def test_a_tree_needs_light_curves():
    with pytest.raises(InputError, match="looks at light curves, not at features"):
        VariableGroup(None, Tree(), Config()).find(table())
    with pytest.raises(InputError, match="was given"):
        VariableGroup(None, None, Config())
