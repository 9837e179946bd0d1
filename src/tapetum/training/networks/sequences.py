"""A light curve as a set of points: a few learned queries look at all points, then at each other (a transformer).

The cost grows with the number of points, not with its square, and the order of points does not matter: when they were
taken is in their channels (Jaegle et al. 2021, arXiv:2103.03206; Kim et al. 2019, arXiv:1901.05761, for the
reconstruction). It learns first without labels, from points that are hidden and must be told from the others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tapetum.models.points import ERROR, MAGNITUDE, THERE

SPREAD = 5.0  # least and largest natural logarithm of a predicted variance


class Attention(nn.Module):
    """Queries look at points that are there; plain matrix products, which every runtime has."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, queries: Tensor, points: Tensor, hidden: Tensor | None) -> Tensor:
        """Shape of `queries` (n, n_queries, width); `hidden` (n, n_points) is large where nothing is to be seen."""
        n, n_queries, width = queries.shape
        split = (n, -1, self.heads, width // self.heads)
        query = self.query(queries).reshape(split).transpose(1, 2)
        key = self.key(points).reshape(split).permute(0, 2, 3, 1)
        value = self.value(points).reshape(split).transpose(1, 2)
        fit = query @ key * (width // self.heads) ** -0.5
        if hidden is not None:
            fit = fit - hidden[:, None, None, :]
        seen = torch.softmax(fit, -1) @ value
        answer: Tensor = self.out(seen.transpose(1, 2).reshape(n, n_queries, width))
        return answer


class Block(nn.Module):
    """Queries look at points, then at each other."""

    def __init__(self, width: int, heads: int, drop: float) -> None:
        super().__init__()
        self.before = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.points, self.selves = Attention(width, heads), Attention(width, heads)
        self.dense = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(drop), nn.Linear(2 * width, width)
        )

    def forward(self, queries: Tensor, points: Tensor, hidden: Tensor) -> Tensor:
        """Queries that know more."""
        queries = queries + self.points(self.before[0](queries), points, hidden)
        own = self.before[1](queries)
        queries = queries + self.selves(own, own, None)
        answer: Tensor = queries + self.dense(self.before[2](queries))
        return answer


class Encoder(nn.Module):
    """Points, shape (n, length, channels), to queries that know of them, shape (n, n_queries, width)."""

    def __init__(self, channels: int, width: int, heads: int, queries: int, blocks: int, drop: float) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, queries, width) * 0.5)
        self.embed = nn.Sequential(
            nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width)
        )
        self.blocks = nn.ModuleList(Block(width, heads, drop) for _ in range(blocks))
        self.after = nn.LayerNorm(width)

    def forward(self, points: Tensor) -> Tensor:
        """Queries."""
        hidden = (1 - points[..., THERE]) * 1e4
        embedded = self.embed(points)
        queries = self.queries.expand(points.shape[0], -1, -1)
        for block in self.blocks:
            queries = block(queries, embedded, hidden)
        answer: Tensor = self.after(queries)
        return answer


class Sequences(nn.Module):
    """The network: embedding of the points beside features, logits of the leaves; and what it learns from before.

    Parameters
    ----------
    channels, length
        Of the points.
    n_features, n_leaves
        Columns of the table, and of the answer; no leaves: the network tells hidden points instead.
    width, heads, queries, blocks
        Of the transformer.
    dense
        Width of the last layer but one.
    drop
        Share left out in the transformer.
    drop_features
        Share of the features left out, and before the last layer.
    """

    def __init__(
        self,
        channels: int,
        length: int,
        n_features: int = 0,
        n_leaves: int = 0,
        width: int = 64,
        heads: int = 4,
        queries: int = 12,
        blocks: int = 2,
        dense: int = 96,
        drop: float = 0.1,
        drop_features: float = 0.3,
    ) -> None:
        super().__init__()
        self.channels, self.length, self.n_features = channels, length, n_features
        self.encoder = Encoder(channels, width, heads, queries, blocks, drop)
        if not n_leaves:
            self.asks = nn.Sequential(nn.Linear(channels - 2, width), nn.GELU(), nn.Linear(width, width))
            self.looks = Attention(width, heads)
            self.tells = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2))
            return
        self.register_buffer("centre", torch.zeros(n_features))
        self.register_buffer("spread", torch.ones(n_features))
        self.pooled = nn.Sequential(nn.Linear(queries * width, width), nn.GELU(), nn.Dropout(drop))
        self.rows = nn.Sequential(
            nn.Linear(2 * n_features, dense),
            nn.GELU(),
            nn.Dropout(drop_features),
            nn.Linear(dense, dense),
            nn.GELU(),
        )
        self.forget = nn.Dropout(drop_features)
        self.head = nn.Linear(dense + width, n_leaves)

    def forward(self, both: Tensor) -> Tensor:
        """Answer to points and features one after the other in a row.

        Returns
        -------
        Tensor
            Logits, shape (n, n_leaves); or of each point mean and logarithm of the variance, shape (n, length, 2).
        """
        n_points = self.length * self.channels
        points = both[:, :n_points].reshape(-1, self.length, self.channels)
        if self.n_features:
            return self.judge(points, both[:, n_points:])
        known = self.encoder(points)
        when = points[..., ERROR + 1 : THERE]
        asked = self.asks(torch.cat([points[..., ERROR : ERROR + 1], when], -1))
        told = self.tells(asked + self.looks(asked, known, None))
        return torch.stack([told[..., 0], SPREAD * torch.tanh(told[..., 1] / SPREAD)], -1)

    def judge(self, points: Tensor, features: Tensor) -> Tensor:
        """Logits of the leaves, from points and features apart; a feature may be NaN."""
        missing = torch.isnan(features)
        there = torch.where(missing, self.centre, features)
        scaled = torch.asinh((there - self.centre) / self.spread)
        rows = self.rows(torch.cat([self.forget(scaled), missing.to(scaled.dtype)], 1))
        embedded = self.pooled(self.encoder(points).flatten(1))
        logits: Tensor = self.head(self.forget(torch.cat([rows, embedded], 1)))
        return logits


def hide(points: Tensor, hidden: Tensor) -> Tensor:
    """The points without the magnitudes of some, which `Encoder` then does not see.

    Parameters
    ----------
    points
        Shape (n, length, channels).
    hidden
        1 where a point is hidden, shape (n, length).
    """
    out = points.clone()
    out[..., MAGNITUDE] *= 1 - hidden
    out[..., THERE] *= 1 - hidden
    return out
