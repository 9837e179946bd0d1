"""The finder of variables: columns, what is missing, combination, hierarchy, sources, groups."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest
from onnx import TensorProto, helper

from tapetum.core.errors import InputError, ModelError
from tapetum.finders.taxonomy import load_taxonomy
from tapetum.finders.variables import WORD, Config, Variables, combined, consistent, load, per_source
from tapetum.models.card import ModelCard, PlattCalibration, TableContract, write_card
from tapetum.models.flags import InputFlag
from tapetum.models.runtime import Model

NAN = float("nan")


def network(n_features):
    """sigmoid of the sum of the features."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["features", "axes"], ["row"]),
            helper.make_node("Sigmoid", ["row"], ["score"]),
        ],
        "sum",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", n_features])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


def classifier(
    code="ea", algorithm="dnn", features=({"name": "a"}, {"name": "b", "missing": "zero"}), **changes
):
    onnx = network(len(features))
    contract = TableContract.model_validate({"name": "features", "features": features, "period_suffix": "LS"})
    card = ModelCard.model_validate(
        {
            "name": f"variables-{code}-{algorithm}",
            "version": "1.0.0",
            "title": code,
            "finder": "variables",
            "algorithm": algorithm,
            "licence": "BSD-3-Clause",
            "authors": ["nobody"],
            "source": {"description": "made up"},
            "created": "2026-11-20",
            "inputs": [contract],
            "outputs": [{"name": "score", "columns": [code]}],
            "training": {"description": "not trained"},
            "onnx_sha256": hashlib.sha256(onnx).hexdigest(),
            **changes,
        }
    )
    return Model(card, onnx, f"{code}/{algorithm}")


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
    other = classifier("ew", features=({"name": "b", "missing": "zero"},))
    found = Variables([classifier("ea"), other], Config(name_imputed=True)).find(table())
    assert [found[name].null_count for name in ("ea_dnn", "ew_dnn")] == [1, 0]
    assert found["imputed"].to_pylist() == [None, None, "b"]
    assert found["flags"].to_pylist() == [0, InputFlag.MISSING_FEATURE, InputFlag.IMPUTED]


def test_an_answer_that_is_no_number_is_flagged():
    features = ({"name": "a", "missing": "keep"},)  # the network cannot take what it says it does
    found = Variables([classifier("ea", features=features)], Config()).find(table())
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


def test_median_of_an_even_number():
    rows = pa.table({"a": [0.0, 1.0, 2.0, 30.0], "object_id": ["x"] * 4})
    found = Variables([classifier("ea", features=({"name": "a"},))], Config(calibrated=False)).find(rows)
    got = per_source(found, "median")["ea_dnn"][0].as_py()
    assert got == pytest.approx(np.median(sigmoid(0, 1, 2, 30)), rel=1e-6)


def write(model, folder):
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(network(2))
    write_card(folder / "card.json", model.card)


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


def test_other_models_are_refused():
    with pytest.raises(InputError, match="no classifier of light curves"):
        Variables([classifier("ea", algorithm="")], Config())
    with pytest.raises(InputError, match="was given"):
        Variables([], Config())


def test_an_empty_table_gives_an_empty_classification():
    found = Variables([classifier("ea")], Config(combine="max", hierarchy="down")).find(table().slice(0, 0))
    assert found.num_rows == 0
    assert per_source(found).num_rows == 0
