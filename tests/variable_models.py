"""Classifiers of variables whose answers everybody can compute: the sigmoid of the sum of features, and a tree."""

from __future__ import annotations

import hashlib
import types

import numpy as np
import pyarrow as pa
from onnx import TensorProto, helper

from tapetum.models.card import ModelCard, TableContract, write_card
from tapetum.models.runtime import Model


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


def write(model, folder):
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(network(len(model.card.table.features)))
    write_card(folder / "card.json", model.card)


class Tree:
    """Says of a light curve what its first point is: 0.25, or 0.5 if its magnitude is above 20."""

    codes = ("puls", "rrab", "rrc")
    leaves = ("rrab", "rrc")
    threshold = 0.2
    model = types.SimpleNamespace(card=types.SimpleNamespace(algorithm="tree", name="variables"))

    @property
    def columns(self):
        return {"puls": "pulsators", "rrab": "RR ab", "rrc": "RR c", "class_probability": "of class"}

    def about(self):
        return {"models": {"variables": {"model": "variables"}}}

    def find(self, curves):
        rrab = np.where(curves.mag[curves.offsets[:-1]] > 20, 0.5, 0.25)
        return self.told({"lc_id": curves.table["lc_id"], "period": pa.array([0.5] * len(curves))}, rrab)

    def told(self, columns, rrab):
        best = np.where(rrab > 0.4, "rrab", "rrc")
        return pa.table(
            {
                **columns, "puls": np.ones(len(rrab)), "rrab": rrab, "rrc": 1 - rrab, "class": best,
                "class_probability": np.maximum(rrab, 1 - rrab), "class_set": [["rrab", "rrc"]] * len(rrab),
                "flags": pa.array(np.zeros(len(rrab)), pa.int32()), "error": pa.nulls(len(rrab), pa.string()),
            }
        )  # fmt: skip
