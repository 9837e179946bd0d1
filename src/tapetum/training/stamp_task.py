"""Stamps of alerts: one network, one number, real or bogus."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from tapetum.core.errors import InputError
from tapetum.models.inputs import prepare_images
from tapetum.training.augment import augment
from tapetum.training.datasets import join, open_sources
from tapetum.training.export import check_onnx, export_onnx
from tapetum.training.networks import build_network
from tapetum.training.scoring import known
from tapetum.training.split import LEARNING, require
from tapetum.training.stamp_card import describe, require_both_classes
from tapetum.training.task import Epoch, RecipeTask

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.models.card import ModelCard
    from tapetum.training.datasets import Examples, Source
    from tapetum.training.recipe import Recipe
    from tapetum.training.task import Batch

PREPARE_AT_ONCE = 512
CHECKED_ALERTS = 256  # on which ONNX and torch are compared


class StampTask(RecipeTask):
    """A `tapetum.training.task.Task`: examples of sources, cross-entropy of one logit.

    Parameters
    ----------
    recipe
        Network, optimiser, augmentation, seed.
    sources
        Sources and how often their examples are shown in an epoch.
    """

    def __init__(self, recipe: Recipe, sources: Sequence[tuple[Source, int]]) -> None:
        self.recipe = recipe
        self.sources = list(sources)
        super().__init__(recipe, [source for source, _ in self.sources])

    @classmethod
    def open(cls, recipe: Recipe, paths: Sequence[Path], jobs: int = 1) -> StampTask:
        """The task with the sources that the recipe names; stamps are made in this process."""
        del jobs
        return cls(recipe, open_sources(recipe, paths))

    @cached_property
    def validation(self) -> Examples:
        """The validation part of all sources, of known truth."""
        parts = [known(source.examples("validation")) for source, _ in self.sources]
        for examples in parts:
            require(examples.object_id, LEARNING)
        return join(parts)

    def network(self) -> nn.Module:
        """An untrained network."""
        spec, contract = self.recipe.network, self.recipe.input
        network: nn.Module = build_network(spec.name, contract.n_planes, contract.size, spec.arguments)
        return network

    def epoch(self, epoch: int) -> Epoch:
        """Shuffled, augmented, prepared batches: images and targets."""
        shown = [(known(source.examples("fit", epoch)), repeat) for source, repeat in self.sources]
        for examples, _ in shown:
            require(examples.object_id, frozenset({"fit"}))
        n_shown = sum(len(examples) * repeat for examples, repeat in shown)
        if not n_shown:
            raise InputError(
                "no example to learn from: the sources have none of known truth in the training part"
            )
        rng = np.random.default_rng([self.seed, epoch])
        return Epoch(max(n_shown // self.optimiser.batch, 1), _batches(shown, self.recipe, rng))

    def loss(self, answers: Tensor, *truth: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return nn.functional.binary_cross_entropy_with_logits(answers[:, 0], truth[0])

    def validation_loss(self, network: nn.Module) -> tuple[float, int]:
        """Mean cross-entropy of the validation part, NaN where that is empty."""
        target = self.validation.target
        if not len(target):
            return float("nan"), 0
        logits = logits_of(network, self.validation, self.recipe)
        return float(np.mean(np.logaddexp(0, logits) - target * logits)), len(target)

    def require_examples(self) -> None:
        """Refuse a run without anything to learn from, or without both classes to calibrate on."""
        if not any(self.keys["fit"]):
            raise InputError(
                "no example to learn from: the sources have none of known truth in the training part"
            )
        require_both_classes(self.validation)

    def export(self, network: nn.Module, path: Path) -> None:
        """Write ``model.onnx`` and compare it with torch on validation examples."""
        contract = self.recipe.input
        shape = (contract.n_planes, contract.size, contract.size)
        export_onnx(network, path, contract.name, shape, self.recipe.opset)
        rows = slice(0, CHECKED_ALERTS)
        images = prepare_images(self.validation.stamps[rows], self.validation.shapes[rows], contract)
        check_onnx(path, network, images)

    def describe(self, onnx: Path, today: date) -> ModelCard:
        """The card, with figures of the test part."""
        test = known(join([source.examples("test") for source, _ in self.sources]))
        return describe(self.recipe, onnx, {"validation": self.validation, "test": test}, self.keys, today)

    def close(self) -> None:
        """Nothing works in the background."""


def _batches(
    shown: Sequence[tuple[Examples, int]], recipe: Recipe, rng: np.random.Generator
) -> Iterator[Batch]:
    """Shuffled, augmented, prepared batches of one epoch: images and targets."""
    where = [
        (s, i)
        for s, (examples, repeat) in enumerate(shown)
        for i in np.tile(np.arange(len(examples)), repeat)
    ]
    order = rng.permutation(len(where))
    size = recipe.optimiser.batch
    for step in range(max(len(where) // size, 1)):
        rows = [where[j] for j in order[step * size : (step + 1) * size]]
        changed = [
            augment(
                shown[s][0].stamps[i],
                shown[s][0].shapes[i],
                shown[s][0].origin[i] != "simulated",
                recipe.augment,
                rng,
            )
            for s, i in rows
        ]
        stamps, shapes = np.stack([stamp for stamp, _ in changed]), np.stack([shape for _, shape in changed])
        target = np.array([shown[s][0].target[i] for s, i in rows], np.float32)
        yield prepare_images(stamps, shapes, recipe.input), target


@torch.no_grad()
def logits_of(network: nn.Module, examples: Examples, recipe: Recipe) -> NDArray[np.float64]:
    """Logits of a network for examples as they are, shape (n,)."""
    device = next(network.parameters()).device
    network.eval()
    parts = []
    for start in range(0, len(examples), PREPARE_AT_ONCE):
        rows = slice(start, start + PREPARE_AT_ONCE)
        images = prepare_images(examples.stamps[rows], examples.shapes[rows], recipe.input)
        parts.append(network(torch.from_numpy(images).to(device))[:, 0].cpu().double().numpy())
    return np.concatenate(parts) if parts else np.zeros(0)
