"""Boosted trees as ONNX, from the JSON that xgboost writes; xgboost itself is not needed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper

from tapetum.core.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

OPSET, ML_OPSET, IR_VERSION = 17, 3, 8
INPUT, OUTPUT = "features", "score"
LOGISTIC = ("binary:logistic", "reg:logistic")
LEAF = -1
BOOSTER = "booster.json"  # beside a model: its trees as xgboost reads them


@dataclass(frozen=True)
class Trees:
    """Boosted trees that give the logit of one class.

    Attributes
    ----------
    features : tuple of str
        Names in the order of the input; empty where the file has none.
    n_features
        Numbers in a row.
    base
        Logit before any tree.
    trees
        As the JSON has them.
    """

    features: tuple[str, ...]
    n_features: int
    base: float
    trees: tuple[dict[str, Any], ...]


def read_trees(text: str | bytes, origin: str) -> Trees:
    """Read a model as ``Booster.save_raw("json")`` and ``save_model("x.json")`` write it.

    Raises
    ------
    FormatError
        Something else, or trees that are not for one class by the logistic function; names `origin`.
    """
    try:
        learner = json.loads(text)["learner"]
        parameters, booster = learner["learner_model_param"], learner["gradient_booster"]
        objective = learner["objective"]["name"]
        kind, n_classes = booster["name"], int(parameters["num_class"])
        trees = tuple(booster["model"]["trees"]) if kind == "gbtree" else ()
        # a number in text, since release 3 a list of them
        share = np.float32(str(parameters["base_score"]).strip("[]"))
        found = Trees(
            features=tuple(learner.get("feature_names") or ()),
            n_features=int(parameters["num_feature"]),
            base=float(math.log(share / (1 - share))),
            trees=trees,
        )
    except (ValueError, KeyError, TypeError, ArithmeticError) as problem:
        raise FormatError(
            f"{origin}: not a model of xgboost as JSON: {type(problem).__name__}: {problem}"
        ) from None
    if kind != "gbtree" or objective not in LOGISTIC or n_classes > 1 or not trees:
        raise FormatError(
            f"{origin}: {len(trees)} {kind} for {objective} and {n_classes} classes; trees (gbtree) for one class by "
            f"{' or '.join(LOGISTIC)} are needed"
        )
    if any(any(tree.get("split_type", ())) for tree in trees):
        raise FormatError(f"{origin}: trees that split by category cannot be written as ONNX here")
    return found


def trees_to_onnx(trees: Trees, input_name: str = INPUT, output_name: str = OUTPUT) -> bytes:
    """Write trees as ONNX: rows of features, NaN where missing, shape (n, n_features), to scores, shape (n, 1).

    The sum of the leaves is ``TreeEnsembleRegressor``'s, then comes a sigmoid: ``TreeEnsembleClassifier`` would give
    two columns for one class, and is told apart by the number of its weights.
    """
    nodes = ensemble_of(trees.trees)
    ensemble = helper.make_node(
        "TreeEnsembleRegressor", [input_name], ["margin"], domain="ai.onnx.ml", n_targets=1,
        aggregate_function="SUM", post_transform="NONE", base_values=[trees.base], **nodes,
    )  # fmt: skip
    graph = helper.make_graph(
        [ensemble, helper.make_node("Sigmoid", ["margin"], [output_name])],
        "trees",
        [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, ["n", trees.n_features])],
        [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, ["n", 1])],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="tapetum")
    written: bytes = model.SerializeToString()
    return written


def ensemble_of(
    trees: Sequence[dict[str, Any]], targets: Sequence[int] | None = None
) -> dict[str, list[Any]]:
    """The attributes of ``TreeEnsembleRegressor`` that are its trees, as xgboost's JSON has them.

    Parameters
    ----------
    trees
        Of ``gradient_booster.model.trees``.
    targets
        Which number of a row each of them adds to; None: there is one.
    """
    nodes: dict[str, list[Any]] = {
        key: []
        for key in (
            "nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_modes", "nodes_values",
            "nodes_truenodeids", "nodes_falsenodeids", "nodes_missing_value_tracks_true",
            "target_treeids", "target_nodeids", "target_ids", "target_weights",
        )
    }  # fmt: skip
    for number, tree in enumerate(trees):
        _add_tree(nodes, number, tree, 0 if targets is None else targets[number])
    return nodes


def _add_tree(nodes: dict[str, list[Any]], number: int, tree: dict[str, Any], target: int) -> None:
    left: Sequence[int] = tree["left_children"]
    for node, child in enumerate(left):
        leaf = child == LEAF
        row = {
            "treeids": number,
            "nodeids": node,
            "featureids": 0 if leaf else tree["split_indices"][node],
            "modes": "LEAF" if leaf else "BRANCH_LT",
            "values": 0.0 if leaf else tree["split_conditions"][node],
            "truenodeids": 0 if leaf else child,
            "falsenodeids": 0 if leaf else tree["right_children"][node],
            "missing_value_tracks_true": 0 if leaf else int(tree["default_left"][node]),
        }
        for key, value in row.items():
            nodes[f"nodes_{key}"].append(value)
        if leaf:
            nodes["target_treeids"].append(number)
            nodes["target_nodeids"].append(node)
            nodes["target_ids"].append(target)
            nodes["target_weights"].append(tree["split_conditions"][node])


def importance(trees: Trees) -> dict[str, float]:
    """Total gain of the splits of each feature over that of all, largest first; features that split nothing are out."""
    gain = np.zeros(trees.n_features)
    for tree in trees.trees:
        for node, child in enumerate(tree["left_children"]):
            if child != LEAF:
                gain[tree["split_indices"][node]] += tree["loss_changes"][node]
    names = trees.features or tuple(f"f{number}" for number in range(trees.n_features))
    order = [int(place) for place in np.argsort(-gain, kind="stable") if gain[place] > 0]
    return {names[place]: float(gain[place] / gain.sum()) for place in order}
