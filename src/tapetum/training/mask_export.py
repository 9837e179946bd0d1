"""A trained mask network as ONNX: calibrated on validation pixels, class by class, inside its last layer."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from tapetum.core.errors import ModelError
from tapetum.images.contaminants import NAMES
from tapetum.training.calibrate import fit_platt
from tapetum.training.export import compare_onnx, export_maps
from tapetum.training.mask_card import OUTPUT
from tapetum.training.mask_metrics import CENTRES, N_BINS, histogram

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.models.card import FrameContract
    from tapetum.training.mask_data import MaskExample

TOLERANCE = 1e-4  # between ONNX and torch
FOLDED = 1e-3  # between logits scaled by the last layer and after it
CHECKED_SIDES = ((1, 2, 3), (2, 4, 2), (1, 8, 8))  # number of images, and sides in multiples of the network's


@torch.no_grad()
def fit_classes(
    network: nn.Module, frames: Sequence[MaskExample]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slope and offset of each class's logit that make it the logit of a probability (Platt 1999).

    Parameters
    ----------
    network
        In evaluation mode, on the CPU.
    frames
        That it did not learn from, with pixels of every class.

    Returns
    -------
    slope, offset : ndarray of float64, shape (n_classes,)
    """
    total = np.zeros((2, len(NAMES), N_BINS), np.int64)
    for example in frames:
        logits = network(torch.from_numpy(example.image.astype(np.float32))[None, None])[0]
        total += histogram(logits.numpy(), example.truth, example.unknown)
    target = np.repeat([0.0, 1.0], N_BINS)
    fits = [
        fit_platt(np.tile(CENTRES, 2), target, total[:, i].ravel().astype(float), float(total[:, i].sum()))
        for i in range(len(NAMES))
    ]
    slope, offset = np.array(fits).T
    return slope, offset


@torch.no_grad()
def scaled(network: nn.Module, slope: NDArray[np.float64], offset: NDArray[np.float64]) -> nn.Module:
    """A copy of a network whose logits of class c are ``slope[c] * logit + offset[c]``.

    Its last layer must be the convolution `head`, with the channels of a class one after the other, and nothing
    behind it but what moves pixels; a second one without bias, `point_head`, may add to it.

    Raises
    ------
    ModelError
        It is not so.
    """
    changed = copy.deepcopy(network).eval()
    head = getattr(changed, "head", None)
    if not isinstance(head, nn.Conv2d) or head.bias is None or head.out_channels % len(slope):
        raise ModelError(
            "the calibration needs a network whose last layer is a convolution `head` with a bias"
        )
    for layer in (head, getattr(changed, "point_head", None)):
        if layer is None:
            continue
        times = layer.out_channels // len(slope)
        a, b = (torch.from_numpy(np.repeat(part, times)).to(layer.weight.dtype) for part in (slope, offset))
        layer.weight.mul_(a[:, None, None, None])
        if layer.bias is not None:
            layer.bias.mul_(a).add_(b)
    images = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (1, 1, 64, 64)).astype(np.float32))
    a, b = (torch.from_numpy(part).float()[:, None, None] for part in (slope, offset))
    difference = (changed(images) - (a * network.eval()(images) + b)).abs().max()
    if not float(difference) < FOLDED:
        raise ModelError(f"the calibration did not survive the last layer: logits differ by {difference:.2g}")
    return changed


class Probabilities(nn.Module):
    """Sigmoids of a network's logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities, shape (n, n_classes, n_y, n_x)."""
        return torch.sigmoid(self.network(images))


def export_masks(
    network: nn.Module, frames: Sequence[MaskExample], path: Path, contract: FrameContract, opset: int
) -> None:
    """Calibrate a network, write it, and compare the file with torch on several sizes of images.

    Parameters
    ----------
    network
        In evaluation mode, on the CPU.
    frames
        Of the validation part.
    path
        ``model.onnx`` to write.
    contract
        Of its input.
    opset
        ONNX operator set.

    Raises
    ------
    ModelError
        ONNX and torch differ.
    """
    calibrated = scaled(network, *fit_classes(network.eval(), frames))
    export_maps(calibrated, path, (contract.name, OUTPUT), contract.multiple, opset)
    rng = np.random.default_rng(0)
    for n, rows, columns in CHECKED_SIDES:
        shape = (n, 1, rows * contract.multiple, columns * contract.multiple)
        noise = rng.normal(0, 1, shape) * np.exp(rng.normal(0, 1, shape))
        compare_onnx(path, Probabilities(calibrated), noise.astype(np.float32), TOLERANCE)
    image = frames[0].image.astype(np.float32)[None, None]
    compare_onnx(path, Probabilities(calibrated), image, TOLERANCE)
