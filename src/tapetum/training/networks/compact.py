"""A small plain convolutional network: 3 x 3 convolutions in three resolutions."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


def _block(n_in: int, n_out: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    # the batch norm is folded into the convolution on export
    convolution = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(n_out), nn.ReLU())


class Compact(nn.Module):
    """Stem with stride 2, two convolutions per resolution, pooling between, then a dense head.

    Parameters
    ----------
    n_planes, size
        Planes of the input and their side [pixel].
    widths
        Channels of each resolution.
    head
        Units of the hidden dense layer.
    squeeze
        Channels that the last resolution is reduced to before it is flattened.
    dropout
        Share of the head's inputs that are dropped while training.
    """

    def __init__(
        self,
        n_planes: int,
        size: int,
        widths: Sequence[int] = (16, 32, 64),
        head: int = 64,
        squeeze: int = 32,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [_block(n_planes, widths[0], stride=2), _block(widths[0], widths[0])]
        side = (size + 1) // 2
        for before, width in pairwise(widths):
            layers += [nn.MaxPool2d(2), _block(before, width), _block(width, width)]
            side //= 2
        layers.append(_block(widths[-1], squeeze, kernel=1))
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(squeeze * side * side, head),
            nn.ReLU(),
            nn.Linear(head, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (n, 1), of images of shape (n, n_planes, size, size)."""
        logits: Tensor = self.head(self.features(images))
        return torch.clamp(logits, -30.0, 30.0)
