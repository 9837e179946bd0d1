"""A network for tracking errors as ONNX: probability and trail vector, tiles of any number and size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tapetum.training.export import compare_onnx, folded, write_onnx
from tapetum.training.tracking_card import SCORE, TRAIL

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from tapetum.models.card import FrameContract

TOLERANCE = 1e-3  # of the score, and of the trail [pixel]


class Answered(nn.Module):
    """The network with its two outputs apart, the first as a probability."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Score, shape (n, 1), and trail vector, shape (n, 2) [pixel]."""
        verdict = self.network(images)
        return torch.sigmoid(verdict[:, :1]), verdict[:, 1:]


def export_verdicts(network: nn.Module, path: Path, contract: FrameContract, opset: int) -> None:
    """Write a trained network.

    Parameters
    ----------
    network
        In evaluation mode, on the CPU.
    path
        ``model.onnx`` to write.
    contract
        Of its input.
    opset
        ONNX operator set.
    """
    step = contract.multiple
    n, rows, columns = (torch.export.Dim(name) for name in ("n", "rows", "columns"))
    # three unequal numbers, none of them one, or the exporter would take free axes for constant or equal ones
    example = torch.zeros(2, 1, 8 * step, 9 * step)
    axes = {0: n, 2: step * rows, 3: step * columns}
    write_onnx(Answered(folded(network)), example, path, (contract.name, SCORE, TRAIL), axes, opset)


def check_verdicts(path: Path, network: nn.Module, images: NDArray[np.float32]) -> float:
    """Largest difference between ONNX and torch.

    Raises
    ------
    ModelError
        It is beyond the tolerance, or an answer is not finite.
    """
    return compare_onnx(path, Answered(network.eval()), images, TOLERANCE)
