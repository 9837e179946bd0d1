"""Rows of feature tables as inputs of networks: columns by name, missing values, scaling; cards and golden vectors."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from tapetum.core.errors import FormatError, InputError, ModelError
from tapetum.models.card import (
    DmdtContract,
    Golden,
    ModelCard,
    StoredArray,
    SyntheticDmdt,
    TableContract,
    load_card,
    write_card,
)
from tapetum.models.golden import golden_inputs, synthetic_dmdt
from tapetum.models.runtime import Model
from tapetum.models.tables import gather_table, imputer_of, prepare_dmdt, prepare_table
from tapetum.models.trees_onnx import importance, read_trees, trees_to_onnx

FEATURES = [
    {"name": "median", "centre": 15.0, "width": 4.0},
    {"name": "amp", "periodic": True, "missing": "zero"},
    {"name": "n", "dtype": "int64", "missing": "median", "median": 60.0},
    {"name": "ra", "include": False},
]


def contract(**changes):
    return TableContract.model_validate(
        {
            "name": "features",
            "features": FEATURES,
            "period_suffix": "LS",
            "scaling": "median_std",
            "limit": 2.0,
            **changes,
        }
    )


def table(**changes):
    columns = {
        "n": pa.array([50, None, 70], pa.int64()),
        "amp_LS": [0.5, 0.1, float("nan")],
        "median": [16.0, None, 40.0],
    }
    return pa.table(columns | changes)


def test_columns_are_found_by_name_imputed_scaled_and_kept_within_the_limit():
    got = prepare_table(table(), contract(), "x")
    np.testing.assert_allclose(got.values, [[0.25, 0.5, 2], [np.nan, 0.1, 2], [2, 0, 2]])
    np.testing.assert_array_equal(got.imputed, [[0, 0, 0], [0, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(got.lacking, [[0, 0, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(got.usable, [True, False, True])
    assert got.values.dtype == np.float32


@pytest.mark.parametrize("rows", [[0], [1], [2], [2, 0], []])
def test_a_row_does_not_depend_on_its_neighbours(rows):
    whole = prepare_table(table(), contract(), "x").values
    part = prepare_table(table().take(pa.array(rows, pa.int64())), contract(), "x").values
    np.testing.assert_array_equal(part, whole[rows])


def test_a_missing_feature_is_an_error_that_names_it():
    with pytest.raises(InputError, match=r"model variables-ea needs the feature amp_LS, which"):
        gather_table(table().drop_columns(["amp_LS"]), contract(), "variables-ea")
    with pytest.raises(InputError, match=r"the feature median and 2 more"):
        gather_table(pa.table({"lc_id": ["a"]}), contract(), "variables-ea")


def test_a_feature_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="median is string"):
        gather_table(table(median=["a", "b", "c"]), contract(), "x")
    with pytest.raises(InputError, match="n has fractions"):
        gather_table(table(n=[1.0, 2.5, 3.0]), contract(), "x")


def test_float32_features_are_rounded_before_they_are_scaled():
    features = [{"name": "median", "dtype": "float32", "centre": 16777216.0, "width": 1.0, "missing": "zero"}]
    rounding = contract(features=features, limit=100.0)
    assert prepare_table(table(median=[16777217.0, 1e39, 1.0]), rounding, "x").values[0] == 0.0
    assert prepare_table(table(median=[16777217.0, 1e39, 1.0]), rounding, "x").imputed[1]


def test_regressed_features_come_from_the_frozen_neighbours():
    donors = np.array([[1, 10], [2, 20], [3, 30], [4, 40], [5, 50], [100, 1000]], np.float32)
    features = [
        {"name": name, "missing": "regress", "mean": 0.0, "centre": 0.0, "width": 1.0} for name in "ab"
    ]
    frozen = contract(features=features, scaling="min_max", limit=1e6, donors=StoredArray.pack(donors))
    got = prepare_table(pa.table({"a": [3.0, None], "b": [None, 1000.0]}), frozen, "x")
    assert got.values[0, 1] == 30.0
    assert got.values[1, 0] == pytest.approx((100 + 5 + 4 + 3 + 2) / 5)
    assert imputer_of(frozen).regressed == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features": [{"name": "a", "centre": 1.0}]}, "belong together"),
        ({"features": [{"name": "a", "missing": "median"}]}, "no `median`"),
        ({"features": [{"name": "a", "missing": "mean", "median": 1.0}]}, "no `mean`"),
        ({"features": [{"name": "a"}, {"name": "a"}]}, "twice"),
        ({"features": [{"name": "a", "include": False}]}, "no feature is included"),
        ({"period_suffix": ""}, "period_suffix"),
        ({"scaling": "none"}, "`scaling` is none"),
        ({"features": [{"name": "a", "missing": "regress", "mean": 1.0}]}, "donors"),
        ({"features": [{"name": "a", "centre": 0.0, "width": 0.0}]}, "greater than 0"),
    ],
)
def test_contracts_that_mean_nothing_are_refused(changes, reason):
    with pytest.raises(ValidationError, match=reason):
        contract(**changes)


PICTURE = DmdtContract(name="dmdt", shape=(2, 3))


@pytest.mark.parametrize("nested", [True, False])
def test_histograms_in_either_form(nested):
    values = np.arange(12.0).reshape(2, 2, 3)
    rows = [value.tolist() if nested else value.ravel().tolist() for value in values]
    got = prepare_dmdt(pa.table({"dmdt": [rows[0], None, rows[1]]}), PICTURE, "x")
    np.testing.assert_array_equal(got[[0, 2], 0], values)
    assert np.isnan(got[1]).all()
    tall = PICTURE.model_copy(update={"layout": "nhwc"})
    assert prepare_dmdt(pa.table({"dmdt": [rows[0]]}), tall, "x").shape == (1, 2, 3, 1)
    assert prepare_dmdt(pa.table({"dmdt": pa.array([], pa.list_(pa.float32()))}), PICTURE, "x").shape == (
        0,
        1,
        2,
        3,
    )


@pytest.mark.parametrize(
    ("rows", "reason"), [([[1.0, 2.0]], "2 bins a row"), ([[1.0], [1.0, 2.0]], "differ")]
)
def test_histograms_of_another_shape_are_refused(rows, reason):
    with pytest.raises(InputError, match=reason):
        prepare_dmdt(pa.table({"dmdt": rows}), PICTURE, "x")


def test_a_table_without_histograms_is_refused():
    with pytest.raises(InputError, match="model x needs the column dmdt"):
        prepare_dmdt(table(), PICTURE, "x")


def tiny_network(n_features, weight=1.0):
    """sigmoid(weight * sum of the features + sum of dmdt)."""
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    more = numpy_helper.from_array(np.array([1, 2, 3], np.int64), "more")
    factor = numpy_helper.from_array(np.array(weight, np.float32), "factor")
    nodes = [
        helper.make_node("ReduceSum", ["features", "axes"], ["row"], keepdims=1),
        helper.make_node("Mul", ["row", "factor"], ["weighted"]),
        helper.make_node("ReduceSum", ["dmdt", "more"], ["flat"], keepdims=0),
        helper.make_node("Unsqueeze", ["flat", "axes"], ["column"]),
        helper.make_node("Add", ["weighted", "column"], ["both"]),
        helper.make_node("Sigmoid", ["both"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", n_features]),
            helper.make_tensor_value_info("dmdt", TensorProto.FLOAT, ["n", 1, 2, 3]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        [axes, more, factor],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


def make_card(onnx, **changes):
    body = {
        "name": "variables-ea",
        "version": "1.0.0",
        "title": "tiny",
        "finder": "variables",
        "algorithm": "dnn",
        "licence": "BSD-3-Clause",
        "authors": ["nobody"],
        "source": {"description": "made up"},
        "created": "2026-11-20",
        "inputs": [contract(), PICTURE],
        "outputs": [{"name": "score", "columns": ["ea"]}],
        "training": {"description": "not trained"},
        "onnx_sha256": hashlib.sha256(onnx).hexdigest(),
    }
    return ModelCard.model_validate(body | changes)


GOLDEN_ROWS = ((16.0, 0.5, 60.0), (14.0, None, 50.0))


def test_golden_vectors_go_through_the_contract(tmp_path):
    onnx = tiny_network(3)
    empty = Golden(table=GOLDEN_ROWS, dmdt=SyntheticDmdt(seed=1, count=2), outputs=((0.0,), (0.0,)))
    model = Model(make_card(onnx, golden=empty), onnx, "tiny")
    inputs = golden_inputs(model.card)
    np.testing.assert_allclose(inputs["features"][1], [-0.25, 0, 2])
    pictures = synthetic_dmdt(SyntheticDmdt(seed=1, count=2), (2, 3))
    np.testing.assert_allclose(np.linalg.norm(pictures.reshape(2, -1), axis=1), 1, rtol=1e-6)
    golden = empty.model_copy(update={"outputs": tuple(map(tuple, model.scores(inputs).tolist()))})
    write_card(tmp_path / "card.json", make_card(onnx, golden=golden))
    (tmp_path / "model.onnx").write_bytes(onnx)
    loaded = Model.load(f"{tmp_path}/")
    assert loaded.check_golden() < 1e-6
    assert loaded.card == load_card(tmp_path / "card.json")
    wrong = [contract(scaling="min_max", limit=1.0), PICTURE]
    write_card(tmp_path / "card.json", make_card(onnx, golden=golden, inputs=wrong))
    with pytest.raises(ModelError, match="golden vector"):
        Model.load(f"{tmp_path}/")


@pytest.mark.parametrize(
    ("golden", "reason"),
    [
        ({"table": GOLDEN_ROWS}, "exactly the inputs"),
        (
            {"table": ((1.0, 2.0),) * 2, "dmdt": SyntheticDmdt(seed=1, count=2)},
            "one number per included feature",
        ),
        ({"table": GOLDEN_ROWS, "dmdt": SyntheticDmdt(seed=1, count=3)}, "as many golden histograms"),
    ],
)
def test_golden_vectors_fit_the_card(golden, reason):
    with pytest.raises(ValidationError, match=reason):
        make_card(b"", golden={**golden, "outputs": ((0.5,), (0.5,))})


def test_tables_and_frames_do_not_mix():
    with pytest.raises(ValidationError, match="takes no stamps"):
        make_card(b"", inputs=[contract(), {"kind": "features", "name": "f", "features": ["a"]}])


# boosted trees

LEFT = {"left_children": [1, -1, -1], "right_children": [2, -1, -1], "split_indices": [1, 0, 0]}
STUMP = {**LEFT, "split_conditions": [0.5, -1.0, 2.0], "default_left": [1, 0, 0], "loss_changes": [3.0, 0, 0]}
OTHER = {**STUMP, "split_indices": [0, 0, 0], "default_left": [0, 0, 0], "loss_changes": [1.0, 0, 0]}


def booster(**changes):
    learner = {
        "feature_names": ["a", "b"],
        "learner_model_param": {"base_score": "5E-1", "num_class": "0", "num_feature": "2"},
        "objective": {"name": "binary:logistic"},
        "gradient_booster": {"name": "gbtree", "model": {"trees": [STUMP, OTHER]}},
    }
    import json

    return json.dumps({"learner": learner | changes})


def test_trees_by_hand():
    trees = read_trees(booster(), "b.json")
    rows = np.array([[0, 0], [1, 0.5], [np.nan, np.nan], [0, 0.49999]], np.float32)
    onnx = trees_to_onnx(trees)
    from tapetum.models.runtime import open_session

    (score,) = open_session(onnx, "b").run(None, {"features": rows})
    margin = np.array([-1 - 1, 2 + 2, -1 + 2, -1 - 1])
    np.testing.assert_allclose(score[:, 0], 1 / (1 + np.exp(-margin)), atol=1e-6)
    assert importance(trees) == {"b": 0.75, "a": 0.25}
    assert onnx == trees_to_onnx(read_trees(booster(), "again"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "KeyError"),
        ("not json", "not a model of xgboost"),
        (booster(objective={"name": "multi:softprob"}), "multi:softprob"),
        (booster(gradient_booster={"name": "gblinear", "model": {}}), "gblinear"),
        (
            booster(
                gradient_booster={"name": "gbtree", "model": {"trees": [{**STUMP, "split_type": [1, 0, 0]}]}}
            ),
            "category",
        ),
    ],
)
def test_other_models_of_xgboost_are_refused(text, reason):
    with pytest.raises(FormatError, match=reason):
        read_trees(text, "b.json")


@pytest.mark.parametrize("rounds", [1, 40])
def test_trees_answer_as_xgboost_does(rng, rounds):
    xgboost = pytest.importorskip("xgboost")
    rows = rng.normal(size=(400, 5)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.2] = np.nan
    truth = (np.nan_to_num(rows[:, 0]) + np.nan_to_num(rows[:, 1] * rows[:, 2]) > 0.3).astype(float)
    data = xgboost.DMatrix(rows, label=truth, nthread=1)
    made = xgboost.train({"objective": "binary:logistic", "max_depth": 5, "nthread": 1}, data, rounds)
    from tapetum.models.runtime import open_session

    onnx = trees_to_onnx(read_trees(bytes(made.save_raw("json")), "b"))
    (score,) = open_session(onnx, "b").run(None, {"features": rows})
    np.testing.assert_allclose(score[:, 0], made.predict(data), atol=1e-6)
    assert score.std() > 0.01
