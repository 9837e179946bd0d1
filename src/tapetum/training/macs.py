"""Multiplications and additions of a network, counted from its ONNX graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path


def count_macs(path: Path) -> int:
    """Multiply-accumulate operations of convolutions and dense layers for one example.

    Raises
    ------
    ValueError
        The graph's shapes cannot be inferred.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    weights = {entry.name: tuple(entry.dims) for entry in model.graph.initializer}
    shapes = {
        entry.name: [d.dim_value for d in entry.type.tensor_type.shape.dim]
        for entry in [*model.graph.value_info, *model.graph.output]
    }
    total = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            shape = shapes.get(node.output[0])
            if not shape or not all(shape[1:]):
                raise ValueError(f"{path}: the shape of {node.output[0]} is not known")
            kernel = weights[node.input[1]]
            total += int(np.prod(shape[1:])) * int(np.prod(kernel[1:]))
        elif node.op_type in {"Gemm", "MatMul"} and node.input[1] in weights:
            total += int(np.prod(weights[node.input[1]]))
    return total
