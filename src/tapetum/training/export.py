"""A trained network as ONNX: batch norms folded, a sigmoid at the end, checked against torch."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tapetum.core.errors import ModelError
from tapetum.core.files import whole_file
from tapetum.models.runtime import open_session

if TYPE_CHECKING:
    from collections.abc import Mapping
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
    axes = {0: torch.export.Dim("n")}
    write_onnx(_Scored(folded(network)), torch.zeros(2, *shape), path, (input_name, OUTPUT), axes, opset)


def export_maps(
    network: nn.Module, path: Path, names: tuple[str, str], multiple: int, opset: int, margin: int = 64
) -> None:
    """Write a fully convolutional network that maps images to logits as ONNX that maps images to probabilities.

    Parameters
    ----------
    network
        In evaluation mode, on the CPU; takes one plane.
    path
        ``model.onnx`` to write.
    names
        Of the ONNX input, shape (n, 1, n_y, n_x), and of the output, shape (n, n_classes, n_y, n_x); number and
        sides of the images are free.
    multiple
        What the sides are multiples of.
    opset
        ONNX operator set.
    margin
        Least side of the example that the exporter follows [pixel].
    """
    n, rows, columns = (torch.export.Dim(name) for name in ("n", "rows", "columns"))
    axes = {0: n, 2: multiple * rows, 3: multiple * columns}
    # three unequal numbers, none of them one, or the exporter would take free axes for constant or equal ones
    steps = 2 + margin // multiple
    example = torch.zeros(2, 1, multiple * steps, multiple * (steps + 1))
    write_onnx(_Scored(folded(network)), example, path, names, axes, opset)


def write_onnx(
    module: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    path: Path,
    names: tuple[str, ...],
    axes: Mapping[int, Any],
    opset: int,
) -> None:
    """Write any module as ONNX, the same bytes wherever it is done.

    Parameters
    ----------
    module
        On the CPU; is put into evaluation mode.
    example
        An input, or several.
    path
        ``model.onnx`` to write.
    names
        Of every input, then of every output.
    axes
        Axis of each input that is free -> its `torch.export.Dim`.
    opset
        ONNX operator set.
    """
    examples = example if isinstance(example, tuple) else (example,)
    inputs, outputs = list(names[: len(examples)]), list(names[len(examples) :])
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with whole_file(path) as part, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own deprecations while exporting
            torch.onnx.export(
                module.eval(), examples, str(part), input_names=inputs, output_names=outputs,
                dynamic_shapes=tuple(dict(axes) for _ in examples), opset_version=opset, dynamo=True,
                external_data=False, verbose=False,
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

    Parameters
    ----------
    path
        ``model.onnx``.
    network
        Gives logits.
    images
        Inputs.
    tolerance
        Largest difference of scores.

    Raises
    ------
    ModelError
        It is beyond the tolerance, or a score is not finite.
    """
    return compare_onnx(path, _Scored(network), images, tolerance)


def compare_onnx(
    path: Path,
    module: nn.Module,
    inputs: NDArray[np.float32] | tuple[NDArray[np.float32], ...],
    tolerance: float,
) -> float:
    """Largest difference between all outputs of an ONNX file and those of the module it was written from.

    Raises
    ------
    ModelError
        It is beyond the tolerance, or an output is not finite.
    """
    session = open_session(path.read_bytes(), str(path))
    arrays = inputs if isinstance(inputs, tuple) else (inputs,)
    names = [port.name for port in session.get_inputs()]
    found = session.run(None, dict(zip(names, arrays, strict=True)))
    with torch.no_grad():
        answers = module.eval()(*(torch.from_numpy(array) for array in arrays))
    expected = answers if isinstance(answers, tuple) else (answers,)
    worst = 0.0
    for mine, theirs in zip(found, expected, strict=True):
        difference = float(np.abs(mine - theirs.numpy()).max()) if mine.size else 0.0
        worst = max(worst, difference)
        if not np.isfinite(mine).all() or not difference <= tolerance:
            raise ModelError(f"{path}: ONNX and torch differ by {difference:.2g}, more than {tolerance:g}")
    return worst
