"""A network for one class of variable as ONNX: features and histogram apart, a score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tapetum.training.export import OUTPUT, compare_onnx, write_onnx
from tapetum.training.variables_recipe import DMDT, FEATURES

if TYPE_CHECKING:
    from pathlib import Path

    from tapetum.training.variables_data import Rows

TOLERANCE = 1e-5


class Apart(nn.Module):
    """The network with an input for each kind of data, and a probability."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, dmdt: Tensor | None = None) -> Tensor:
        """Score, shape (n, 1), of features, shape (n, n_features), and histograms, shape (n, 1, 26, 26)."""
        both = features if dmdt is None else torch.cat([features, dmdt.flatten(1)], 1)
        return torch.sigmoid(self.network(both))


def export_classifier(network: nn.Module, rows: Rows, path: Path, opset: int) -> float:
    """Write a trained network and compare it with torch; the largest difference of a score.

    Parameters
    ----------
    network
        In evaluation mode, on the CPU.
    rows
        That it is compared on, two or more.
    path
        ``model.onnx`` to write.
    opset
        ONNX operator set.

    Raises
    ------
    ModelError
        ONNX and torch differ, or a score is not finite.
    """
    n = torch.export.Dim("n")
    arrays = tuple(rows.inputs.values())
    # two rows in the example, or the exporter would take the free axis for a constant
    example = tuple(torch.from_numpy(array[:2]) for array in arrays)
    names = (FEATURES, DMDT)[: len(arrays)]
    write_onnx(Apart(network), example, path, (*names, OUTPUT), {0: n}, opset)
    return compare_onnx(path, Apart(network), arrays, TOLERANCE)
