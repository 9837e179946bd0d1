"""The network behind the contaminant masks: sharp at the pixel, with context down to 1/32 of the resolution.

What is as small as a pixel (cosmic rays, hot and dead pixels, columns) is decided by a shallow branch at full
resolution, the same for every pixel. What is larger, and what the small things lie on, is seen by a deep branch: its
first layer turns each 2 x 2 pixels and their neighbours into many channels at half the resolution, strides go down to
1/32, where one step is 32 pixels, copies of pixels come up again, and the last layer turns channels back into pixels.
The logits of both add up. Every layer is a convolution with a batch norm that is folded away on export, so that the
network may be run in low precision and in tiles of any size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST_LOGIT = -4.0  # most pixels are in none of the classes


def _layer(n_in: int, n_out: int, *, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * ((kernel - 1) // 2)  # of an even kernel with stride 2 the same
    convolution = nn.Conv2d(n_in, n_out, kernel, stride, padding, dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(n_out), nn.ReLU())


class _Residual(nn.Module):
    """Two convolutions that add to what they are given."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = _layer(width, width, dilation=dilation)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


class _Join(nn.Module):
    """What was seen from afar, brought to the finer resolution and added to what is seen there."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.narrow = nn.Sequential(nn.Conv2d(coarse, fine, 1, bias=False), nn.BatchNorm2d(fine))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.after = _layer(fine, fine)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        joined: Tensor = self.after(torch.relu(fine + self.up(self.narrow(coarse))))
        return joined


class Contaminants(nn.Module):
    """Logits of every class for every pixel.

    Parameters
    ----------
    n_planes
        Planes of the input.
    size
        Not used: the network takes frames whose sides are multiples of 32.
    classes
        Maps of the output.
    widths
        Channels at 1/2, 1/4, 1/8, 1/16 and 1/32 of the resolution.
    points
        Channels of the branch at full resolution.
    dilations
        Of the blocks at 1/32, where one step is 32 pixels.
    """

    def __init__(
        self,
        n_planes: int = 1,
        size: int = 0,
        classes: int = 14,
        widths: Sequence[int] = (48, 64, 96, 128, 128),
        points: int = 16,
        dilations: Sequence[int] = (1, 2),
    ) -> None:
        super().__init__()
        w, last = list(widths), len(widths) - 1
        self.sharp = nn.Sequential(_layer(n_planes, w[0], kernel=6, stride=2), _layer(w[0], w[0]))
        self.down = nn.ModuleList(
            nn.Sequential(
                _layer(w[k - 1], w[k], stride=2),
                *(_Residual(w[k], n) for n in (dilations if k == last else (1,))),
            )
            for k in range(1, len(w))
        )
        self.up = nn.ModuleList(_Join(w[k + 1], w[k]) for k in range(last - 1, -1, -1))
        self.head = nn.Conv2d(w[0], 4 * classes, 1)
        nn.init.constant_(self.head.bias, FIRST_LOGIT)
        self.pixels = nn.PixelShuffle(2)
        self.points = nn.Sequential(_layer(n_planes, points), _layer(points, points))
        self.point_head = nn.Conv2d(points, classes, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (n, classes, n_y, n_x), of images of shape (n, n_planes, n_y, n_x) in sky sigmas."""
        softened = torch.asinh(images)
        levels = [self.sharp(softened)]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = levels.pop()
        for up in self.up:
            x = up(x, levels.pop())
        logits: Tensor = self.pixels(self.head(x)) + self.point_head(self.points(softened))
        return logits
