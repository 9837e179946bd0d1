"""A trained network as ONNX: batch norms folded, a sigmoid at the end, checked against torch."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tapetum.core.errors import ModelError
from tapetum.core.files import whole_file
from tapetum.models.runtime import open_session

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

TOLERANCE = 1e-5
OUTPUT = "score"


class _Scored(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.network(images))


def folded(network: nn.Module) -> nn.Module:
    """A copy in which every batch norm right after a convolution is part of the convolution."""
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for number in range(len(module) - 1):
            convolution, norm = module[number], module[number + 1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[number] = fuse_conv_bn_eval(convolution, norm)
                module[number + 1] = nn.Identity()
    return network


def export_onnx(
    network: nn.Module, path: Path, input_name: str, shape: tuple[int, int, int], opset: int
) -> None:
    """Write a network that maps images to logits as ONNX that maps images to scores.

    Parameters
    ----------
    network
        In evaluation mode, on the CPU.
    path
        ``model.onnx`` to write.
    input_name
        Name of the ONNX input, as in the card.
    shape
        (n_planes, size, size); the first axis, of alerts, is free.
    opset
        ONNX operator set.
    """
    # two alerts in the example, or the exporter would take the free axis for a constant
    example = torch.zeros(2, *shape)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with whole_file(path) as part, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own deprecations while exporting
            torch.onnx.export(
                _Scored(folded(network)).eval(), (example,), str(part), input_names=[input_name], output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("n")},), opset_version=opset, dynamo=True, external_data=False,
                verbose=False,
            )  # fmt: skip
            part.write_bytes(anonymous(part.read_bytes()))
    finally:
        quiet.setLevel(level)


def anonymous(content: bytes) -> bytes:
    """An ONNX file without what the exporter notes in it: source lines, paths of this machine, names of classes.

    It computes the same, and the same training gives the same bytes wherever it ran.
    """
    model = onnx.load_model_from_string(content)
    graph = model.graph
    noted = [model, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output]
    for part in noted:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    serialised: bytes = model.SerializeToString()
    return serialised


def check_onnx(
    path: Path, network: nn.Module, images: NDArray[np.float32], tolerance: float = TOLERANCE
) -> float:
    """Largest difference between the ONNX scores and those of torch on these images.

    Raises
    ------
    ModelError
        It is beyond the tolerance, or a score is not finite.
    """
    session = open_session(path.read_bytes(), str(path))
    found = session.run(None, {session.get_inputs()[0].name: images})[0]
    with torch.no_grad():
        expected = torch.sigmoid(network.eval()(torch.from_numpy(images))).numpy()
    worst = float(np.abs(found - expected).max()) if found.size else 0.0
    if not np.isfinite(found).all() or not worst <= tolerance:
        raise ModelError(f"{path}: ONNX and torch differ by {worst:.2g}, more than {tolerance:g}")
    return worst
