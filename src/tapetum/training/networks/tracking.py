"""One verdict on a whole tile: what its stars have in common, whatever their number and the size of the tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tapetum.training.networks.compact import _block

if TYPE_CHECKING:
    from collections.abc import Sequence


SLOPES, DIRECTIONS = 4, 3  # planes of `Tracking._slopes` and `_mean_direction`
STEEP = 0.1  # softens the division by the square of a slope
BRIGHT = 2.0  # arcsinh of the light above which a pixel is bright: 3.6 sigma


class Tracking(nn.Module):
    """Convolutions in several resolutions, then mean and scatter of the features where there is something to see.

    Every place of the coarsest map has a weight that begins with how bright its brightest pixel is; the tile's
    features are the weighted mean and scatter of those of its places. So sky without stars has hardly a vote, and
    the same network takes tiles of any size. While it learns, every place is asked for a verdict of its own as well.

    Parameters
    ----------
    n_planes, size
        Planes of the input, and a side that nothing depends on.
    widths
        Channels of each resolution; the first is half that of the tile.
    head
        Units of the hidden dense layer.
    dropout
        Share of the head's inputs that are dropped while training.
    """

    def __init__(
        self,
        n_planes: int = 1,
        size: int | None = None,
        widths: Sequence[int] = (16, 32, 48, 64),
        head: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.stem = _block(n_planes, widths[0], kernel=5, stride=2)
        before = (widths[0], *widths[:-1])
        self.levels = nn.ModuleList(
            nn.Sequential(_block(n + SLOPES, width), _block(width, width))
            for n, width in zip(before, widths, strict=True)
        )
        n_features = widths[-1] + DIRECTIONS * len(widths)
        self.weight = nn.Conv2d(n_features + 1, 1, 1)
        nn.init.zeros_(self.weight.weight)
        with torch.no_grad():  # a pixel of 10 sigma begins to count
            self.weight.weight[0, -1] = 2.0
            assert self.weight.bias is not None
            self.weight.bias.fill_(-6.0)
        self.local = nn.Conv2d(n_features, 3, 1)
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(2 * n_features, head), nn.ReLU(), nn.Linear(head, 3)
        )
        along = torch.tensor([-1.0, 0.0, 1.0]) * torch.tensor([[1.0], [2.0], [1.0]]) / 8
        self.register_buffer("sobel", torch.stack([along, along.T])[:, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Verdicts on tiles.

        Parameters
        ----------
        images : Tensor, shape (n, n_planes, n_y, n_x)
            Above the sky, in units of its noise; 0 where there is no value. Sides are multiples of 16.

        Returns
        -------
        Tensor, shape (n, 3)
            Logit of a tracking error; trail vector (length times cosine and sine of twice its angle) [pixel].
            In training mode also the verdicts of all places, shape (n, 3, n_y / 16, n_x / 16), and their weights.
        """
        light = torch.asinh(images)
        features, slopes, image = self.stem(light), [], light[:, :1]
        for number, level in enumerate(self.levels):
            slopes.append(self._slopes(image))
            features = level(torch.cat([features if not number else _halved(features), slopes[-1]], 1))
            image = nn.functional.avg_pool2d(image, 2)
        directions = [
            _mean_direction(nn.functional.avg_pool2d(part, 2 ** (len(slopes) - 1 - k)))
            for k, part in enumerate(slopes)
        ]
        features = torch.cat([features, *directions], 1)
        brightest = nn.functional.max_pool2d(light[:, :1], 2 ** len(slopes))
        weight = nn.functional.softplus(self.weight(torch.cat([features, brightest], 1)))
        total = weight.sum((2, 3)) + 1e-3
        mean = (features * weight).sum((2, 3)) / total
        square = (features.square() * weight).sum((2, 3)) / total
        scatter = torch.sqrt(torch.relu(square - mean.square()) + 1e-4)
        verdict = _verdict(self.head(torch.cat([mean, scatter], 1)))
        return (verdict, _verdict(self.local(features)), weight) if self.training else verdict

    def _slopes(self, image: Tensor) -> Tensor:
        """In which direction an image is steep where it is bright, at half its resolution: (n, 4, n_y / 2, n_x / 2).

        The products of the two slopes turn by twice the angle by which the image is turned, as a trail vector does.
        The last plane is the share of bright pixels.
        """
        across, up = nn.functional.conv2d(image, self.sobel, padding=1).split(1, 1)
        square = across.square() + up.square()
        products = torch.cat([across.square() - up.square(), 2 * across * up, square], 1) / (square + STEEP)
        bright = torch.sigmoid(4 * (image - BRIGHT))
        return nn.functional.avg_pool2d(torch.cat([products * bright, bright], 1), 2)


def _mean_direction(slopes: Tensor) -> Tensor:
    """Of the bright pixels alone, (n, 3, n_y, n_x)."""
    return slopes[:, :3] / (slopes[:, 3:] + 0.01)


def _halved(features: Tensor) -> Tensor:
    return nn.functional.max_pool2d(features, 2)


def _verdict(raw: Tensor) -> Tensor:
    return torch.cat([torch.clamp(raw[:, :1], -30.0, 30.0), trail_of(raw[:, 1:])], 1)


def compress(trail: Tensor) -> Tensor:
    """A trail vector with the logarithm of its length, ln(1 + L), in which a pixel counts less in a long trail."""
    length = torch.sqrt(trail.square().sum(1, keepdim=True) + 1e-6)
    return trail * (torch.log1p(length) / length)


def trail_of(compressed: Tensor) -> Tensor:
    """The inverse of `compress`, for trails of up to 150 pixels."""
    length = torch.sqrt(compressed.square().sum(1, keepdim=True) + 1e-6)
    return compressed * (torch.expm1(torch.clamp(length, max=5.0)) / length)


def tracking_loss(found: Tensor | tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    """Cross entropy of the verdict plus the error of the trail vector, each where the truth is known.

    Parameters
    ----------
    found
        As `Tracking` gives it; verdicts of places count as much together as that of the tile.
    target : Tensor, shape (n, 3)
        1 a tracking error, 0 none, NaN neither; trail vector [pixel], NaN where no star shows it.
    """
    if isinstance(found, Tensor):
        return _loss(found, target, torch.ones_like(target[:, 0]))
    verdict, local, weight = found
    n, _, n_y, n_x = local.shape
    share = (weight / (weight.sum((2, 3), keepdim=True) + 1e-3)).detach()
    places = local.permute(0, 2, 3, 1).reshape(-1, 3)
    repeated = target[:, None].expand(n, n_y * n_x, 3).reshape(-1, 3)
    return tracking_loss(verdict, target) + _loss(places, repeated, share.reshape(-1))


def _loss(found: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    error, trail = target[:, 0], target[:, 1:]
    known = torch.isfinite(error) * weight
    entropy = nn.functional.binary_cross_entropy_with_logits(
        found[:, 0], torch.nan_to_num(error), known, reduction="sum"
    )
    seen = torch.isfinite(trail).all(1) * weight
    distance = nn.functional.smooth_l1_loss(
        compress(found[:, 1:]), compress(torch.nan_to_num(trail)), reduction="none", beta=0.2
    )
    return entropy / known.sum().clamp(min=1e-3) + (distance.sum(1) * seen).sum() / seen.sum().clamp(min=1e-3)
