"""Features of a light curve beside the histogram of its pairs: dense layers and separable convolutions, one logit.

The shape is that of Coughlin et al. (2021, MNRAS 505, 2954): Dense 256 and 32 over the features; four separable
convolutions over the 26 x 26 histogram, averaged; both together through Dense 16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class Separable(nn.Sequential):
    """A 3 x 3 convolution of each plane, then one that mixes planes, then what is positive."""

    def __init__(self, planes: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(planes, planes, 3, groups=planes, bias=False), nn.Conv2d(planes, width, 1), nn.ReLU()
        )


class Variables(nn.Module):
    """The network.

    Parameters
    ----------
    n_features
        Numbers of a row.
    side
        Of the histogram; 0: there is none.
    dense
        Widths over the features.
    planes
        Of the two pairs of convolutions.
    head
        Width of the last layer but one.
    drop
        Shares left out after the first dense layer, after each pair of convolutions, and before the head.
    """

    def __init__(
        self,
        n_features: int,
        side: int,
        dense: Sequence[int] = (256, 32),
        planes: Sequence[int] = (16, 32),
        head: int = 16,
        drop: Sequence[float] = (0.25, 0.25, 0.4),
    ) -> None:
        super().__init__()
        self.n_features, self.side = n_features, side
        first, second = dense
        self.rows = nn.Sequential(
            nn.Linear(n_features, first), nn.ReLU(), nn.Dropout(drop[0]), nn.Linear(first, second), nn.ReLU()
        )
        narrow, wide = planes
        self.pictures = nn.Sequential(
            Separable(1, narrow), Separable(narrow, narrow), nn.Dropout(drop[1]), nn.MaxPool2d(2),
            Separable(narrow, wide), Separable(wide, wide), nn.Dropout(drop[1]),
        )  # fmt: skip
        together = second + (wide if side else 0)
        self.head = nn.Sequential(
            nn.Dropout(drop[2]), nn.Linear(together, head), nn.ReLU(), nn.Linear(head, 1)
        )
        if not side:
            self.pictures = nn.Sequential()

    def forward(self, both: Tensor) -> Tensor:
        """Logits, shape (n, 1), of features and histogram one after the other, shape (n, n_features + side^2)."""
        parts = [self.rows(both[:, : self.n_features])]
        if self.side:
            picture = both[:, self.n_features :].reshape(-1, 1, self.side, self.side)
            parts.append(self.pictures(picture).mean((2, 3)))
        logits: Tensor = self.head(torch.cat(parts, 1))
        return logits
