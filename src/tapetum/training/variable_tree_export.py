"""Network and trees as one ONNX file: points and features in, a logit for each leaf out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from tapetum.core.errors import ModelError
from tapetum.core.files import whole_file
from tapetum.models.runtime import open_session
from tapetum.models.trees_onnx import ML_OPSET, ensemble_of
from tapetum.training.export import write_onnx
from tapetum.training.variable_tree_data import FEATURES, POINTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Values = NDArray[np.float64]

OUTPUT, OF_NETWORK = "logits", "of_network"
TOLERANCE = 1e-3  # of a logit
NEVER = -20.0  # least logarithm of a probability of either half


@dataclass(frozen=True)
class ManyTrees:
    """Boosted trees of several classes.

    Attributes
    ----------
    base
        Margin of each class before any tree.
    trees
        As xgboost's JSON has them.
    targets
        The class that each adds to.
    """

    base: tuple[float, ...]
    trees: tuple[dict[str, Any], ...]
    targets: tuple[int, ...]


def read_many(text: bytes, n_classes: int, rounds: int) -> ManyTrees:
    """Read a booster of ``multi:softprob`` as ``save_raw("json")`` writes it, its first `rounds` rounds."""
    learner = json.loads(text)["learner"]
    model = learner["gradient_booster"]["model"]
    share = [float(each) for each in str(learner["learner_model_param"]["base_score"]).strip("[]").split(",")]
    base = share * n_classes if len(share) == 1 else share
    count = rounds * n_classes
    return ManyTrees(tuple(base), tuple(model["trees"][:count]), tuple(model["tree_info"][:count]))


class Weighted(nn.Module):
    """Mean of the logarithms of the probabilities of members, times their weight."""

    def __init__(self, networks: Sequence[Any], weight: float) -> None:
        super().__init__()
        self.networks, self.weight = nn.ModuleList(networks), weight

    def forward(self, points: Tensor, features: Tensor) -> Tensor:
        """Shape (n, n_leaves)."""
        members = [torch.log_softmax(member.judge(points, features), 1) for member in self.networks]
        logarithm = torch.stack(members).mean(0)
        return self.weight * torch.clamp(logarithm, min=NEVER)


def export_both(
    networks: Sequence[nn.Module],
    trees: ManyTrees,
    weight: float,
    path: Path,
    examples: tuple[NDArray[np.float32], NDArray[np.float32]],
    opset: int,
) -> None:
    """Write one file of both halves.

    Parameters
    ----------
    networks
        Tuned `tapetum.training.networks.sequences.Sequences`, on the CPU.
    trees
        The other half.
    weight
        Of the networks; the trees have the rest.
    path
        ``model.onnx`` to write.
    examples
        Points and features, two rows or more.
    opset
        ONNX operator set.
    """
    n = torch.export.Dim("n")
    example = tuple(torch.from_numpy(array[:2]) for array in examples)
    write_onnx(Weighted(networks, weight), example, path, (POINTS, FEATURES, OF_NETWORK), {0: n}, opset)
    model = onnx.load_model_from_string(path.read_bytes())
    graph = model.graph
    ensemble = helper.make_node(
        "TreeEnsembleRegressor", [FEATURES], ["margin"], domain="ai.onnx.ml", n_targets=len(trees.base),
        aggregate_function="SUM", post_transform="NONE", base_values=list(trees.base),
        **ensemble_of(trees.trees, trees.targets),
    )  # fmt: skip
    for name, value in (("trees_weight", 1 - weight), ("never", NEVER)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    graph.node.extend(
        [
            ensemble,
            helper.make_node("LogSoftmax", ["margin"], ["of_trees"], axis=1),
            helper.make_node("Max", ["of_trees", "never"], ["of_trees_kept"]),
            helper.make_node("Mul", ["of_trees_kept", "trees_weight"], ["of_trees_weighted"]),
            helper.make_node("Add", [OF_NETWORK, "of_trees_weighted"], [OUTPUT]),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["n", len(trees.base)]))
    if not any(entry.domain == "ai.onnx.ml" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("ai.onnx.ml", ML_OPSET))
    with whole_file(path) as part:
        part.write_bytes(model.SerializeToString())


def mixed(of_network: Values, of_trees: Values, weight: float) -> Values:
    """Logits of both halves together; each is logarithms of probabilities."""
    return np.asarray(weight * np.maximum(of_network, NEVER) + (1 - weight) * np.maximum(of_trees, NEVER))


def margins(trees: ManyTrees, rows: NDArray[np.float32]) -> Values:
    """What trees say of rows, shape (n, n_classes): a plain walk, to check the file by."""
    out = np.tile(np.array(trees.base), (len(rows), 1))
    for tree, target in zip(trees.trees, trees.targets, strict=True):
        left, right = np.array(tree["left_children"]), np.array(tree["right_children"])
        feature, split = np.array(tree["split_indices"]), np.array(tree["split_conditions"], np.float32)
        missing_left = np.array(tree["default_left"], bool)
        node = np.zeros(len(rows), np.int64)
        while (left[node] >= 0).any():
            inner = left[node] >= 0
            value = rows[np.arange(len(rows)), feature[node]]
            goes_left = np.where(np.isnan(value), missing_left[node], value < split[node])
            node = np.where(inner, np.where(goes_left, left[node], right[node]), node)
        out[:, target] += split[node]
    return out


@torch.no_grad()
def expected(
    networks: Sequence[nn.Module],
    trees: ManyTrees,
    weight: float,
    inputs: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> Values:
    """What the file must say of points and features."""
    points, features = inputs
    members = Weighted(networks, 1.0).eval()(torch.from_numpy(points), torch.from_numpy(features))
    margin = margins(trees, features)
    top = margin.max(axis=1, keepdims=True)
    logarithm = margin - top - np.log(np.exp(margin - top).sum(axis=1, keepdims=True))
    return mixed(members.double().numpy(), logarithm, weight)


def check_both(
    path: Path, examples: tuple[NDArray[np.float32], NDArray[np.float32]], expected: Values
) -> float:
    """Largest difference between the file and what its halves say.

    Raises
    ------
    ModelError
        It is beyond the tolerance, or no number.
    """
    points, features = examples
    session = open_session(path.read_bytes(), str(path))
    (found,) = session.run([OUTPUT], {POINTS: points, FEATURES: features})
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE:
        raise ModelError(f"{path}: ONNX and its halves differ by {difference:.2g}, more than {TOLERANCE:g}")
    return difference
