"""Tiles of frames: one network that says whether the telescope followed the sky, and how the stars were trailed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from tapetum.training.loop import answers_of
from tapetum.training.networks import build_network
from tapetum.training.networks.tracking import tracking_loss
from tapetum.training.split import LEARNING, require
from tapetum.training.task import Epoch, RecipeTask
from tapetum.training.tracking_card import describe, require_both_classes
from tapetum.training.tracking_data import TrackingSource, turned
from tapetum.training.tracking_export import check_verdicts, export_verdicts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.models.card import ModelCard
    from tapetum.training.task import Batch
    from tapetum.training.tracking_data import TileExample
    from tapetum.training.tracking_recipe import TrackingRecipe

AT_ONCE = 32
CHECKED_TILES = 64  # on which ONNX and torch are compared


class TrackingTask(RecipeTask):
    """A `tapetum.training.task.Task`: simulated tiles, cross-entropy of a verdict and the error of a trail vector.

    Parameters
    ----------
    recipe
        Network, optimiser, data.
    jobs
        Processes that make tiles.
    """

    def __init__(self, recipe: TrackingRecipe, jobs: int = 1) -> None:
        self.recipe = recipe
        self.source = TrackingSource(recipe.data[0], jobs)
        super().__init__(recipe, [self.source])

    @classmethod
    def open(cls, recipe: TrackingRecipe, paths: Sequence[Path], jobs: int = 1) -> TrackingTask:
        """The task of a recipe; it takes no files of the user."""
        del paths
        return cls(recipe, jobs)

    def network(self) -> nn.Module:
        """An untrained network."""
        spec = self.recipe.network
        network: nn.Module = build_network(spec.name, 1, self.recipe.data[0].side, spec.arguments)
        return network

    def epoch(self, epoch: int) -> Epoch:
        """Shuffled tiles, each laid down in one of eight ways: images and targets."""
        tiles = self.source.pool(epoch, self.optimiser.epochs - 1)
        require((tile.name for tile in tiles), frozenset({"fit"}))
        rng = np.random.default_rng([self.seed, epoch])
        return Epoch(max(len(tiles) // self.optimiser.batch, 1), _batches(tiles, self.optimiser.batch, rng))

    def loss(self, answers: Tensor, *truth: Tensor) -> Tensor:
        """Of verdict and trail."""
        return tracking_loss(answers, truth[0])

    def validation_loss(self, network: nn.Module) -> tuple[float, int]:
        """The same, of the validation part."""
        tiles = self.source.fixed("validation")
        require((tile.name for tile in tiles), LEARNING)
        answers = [answers_of(network, _images(part), self.optimiser).cpu() for part in _parts(tiles)]
        target = torch.from_numpy(np.stack([tile.target for tile in tiles]))
        return float(tracking_loss(torch.cat(answers), target)), len(tiles)

    def require_examples(self) -> None:
        """Refuse a run without both classes to calibrate on."""
        require_both_classes(self.source.fixed("validation"))

    def export(self, network: nn.Module, path: Path) -> None:
        """Write ``model.onnx`` and compare it with torch on validation tiles."""
        export_verdicts(network, path, self.recipe.input, self.recipe.opset)
        check_verdicts(path, network, _images(self.source.fixed("validation")[:CHECKED_TILES]))

    def describe(self, onnx: Path, today: date) -> ModelCard:
        """The card, with figures of the test part."""
        sets = {"validation": self.source.fixed("validation"), "test": self.source.fixed("test")}
        return describe(self.recipe, onnx, sets, self.keys, today)

    def close(self) -> None:
        """End the processes that make tiles."""
        self.source.close()


def _batches(tiles: Sequence[TileExample], size: int, rng: np.random.Generator) -> Iterator[Batch]:
    order = rng.permutation(len(tiles))
    for step in range(max(len(tiles) // size, 1)):
        laid = [
            turned(tiles[i].image, tiles[i].target, int(rng.integers(8)))
            for i in order[step * size : (step + 1) * size]
        ]
        images = np.stack([image for image, _ in laid]).astype(np.float32)[:, None]
        yield images, np.stack([target for _, target in laid])


def _images(tiles: Sequence[TileExample]) -> NDArray[np.float32]:
    return np.stack([tile.image for tile in tiles]).astype(np.float32)[:, None]


def _parts(tiles: Sequence[TileExample]) -> Iterator[Sequence[TileExample]]:
    for start in range(0, len(tiles), AT_ONCE):
        yield tiles[start : start + AT_ONCE]
