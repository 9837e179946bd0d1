"""Features and histograms of light curves: one network, one number, of the class or not."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from tapetum.training.loop import answers_of
from tapetum.training.networks import build_network
from tapetum.training.split import LEARNING, require
from tapetum.training.task import Epoch, RecipeTask
from tapetum.training.variables_card import describe, require_both_classes
from tapetum.training.variables_data import TableSource, weights
from tapetum.training.variables_export import export_classifier

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.models.card import ModelCard
    from tapetum.training.task import Batch
    from tapetum.training.variables_data import Rows
    from tapetum.training.variables_recipe import VariablesRecipe

AT_ONCE = 1024
CHECKED_ROWS = 256  # on which ONNX and torch are compared


class VariablesTask(RecipeTask):
    """A `tapetum.training.task.Task`: rows of labelled feature tables, weighted cross-entropy of one logit.

    Parameters
    ----------
    recipe
        Class, features, network, optimiser.
    source
        Of the rows.
    """

    def __init__(self, recipe: VariablesRecipe, source: TableSource) -> None:
        self.recipe = recipe
        self.source = source
        super().__init__(recipe, [source])

    @classmethod
    def open(cls, recipe: VariablesRecipe, paths: Sequence[Path], jobs: int = 1) -> VariablesTask:
        """The task of a recipe with the tables of the user; it needs no other processes."""
        del jobs
        return cls(recipe, TableSource(recipe, paths))

    @cached_property
    def fit(self) -> Rows:
        """Rows to learn from."""
        rows = self.source.rows("fit")
        require(rows.object_id, frozenset({"fit"}))
        return rows

    @cached_property
    def validation(self) -> Rows:
        """Rows to choose by."""
        rows = self.source.rows("validation")
        require(rows.object_id, LEARNING)
        return rows

    def network(self) -> nn.Module:
        """An untrained network."""
        spec, dmdt = self.recipe.network, self.source.dmdt
        side = 0 if dmdt is None else dmdt.shape[0]
        network: nn.Module = build_network(
            spec.name, len(self.source.contract.included), side, spec.arguments
        )
        return network

    def epoch(self, epoch: int) -> Epoch:
        """Shuffled rows with truth and weight."""
        rows, size = self.fit, self.optimiser.batch
        rng = np.random.default_rng([self.seed, epoch])
        return Epoch(
            max(len(rows) // size, 1),
            _batches(rows, weights(rows.target, weighted=self.recipe.weighted), size, rng),
        )

    def loss(self, answers: Tensor, *truth: Tensor) -> Tensor:
        """Mean cross-entropy, weighted."""
        target, weight = truth
        return nn.functional.binary_cross_entropy_with_logits(answers[:, 0], target, weight)

    def validation_loss(self, network: nn.Module) -> tuple[float, int]:
        """The same, of the validation part."""
        rows = self.validation
        both = _together(rows)
        logits = np.concatenate(
            [
                answers_of(network, both[start : start + AT_ONCE], self.optimiser)
                .cpu()
                .double()
                .numpy()[:, 0]
                for start in range(0, len(both), AT_ONCE)
            ]
        )
        weight = weights(rows.target, weighted=self.recipe.weighted)
        return float(np.mean(weight * (np.logaddexp(0, logits) - rows.target * logits))), len(rows)

    def require_examples(self) -> None:
        """Refuse a run without examples of both kinds to learn from and to choose by."""
        require_both_classes("training", self.fit, self.recipe.of)
        require_both_classes("validation", self.validation, self.recipe.of)

    def export(self, network: nn.Module, path: Path) -> None:
        """Write ``model.onnx`` and compare it with torch on validation rows."""
        rows = self.validation.take(np.arange(min(CHECKED_ROWS, len(self.validation))))
        export_classifier(network, rows, path, self.recipe.opset)

    def describe(self, onnx: Path, today: date) -> ModelCard:
        """The card, with figures of the test part."""
        return describe(self.recipe, onnx, self.source, self.keys, today)

    def close(self) -> None:
        """Nothing works in the background."""


def _together(rows: Rows) -> NDArray[np.float32]:
    """Features and histogram of each row one after the other, as the network takes them."""
    if rows.pictures is None:
        return rows.values
    return np.concatenate([rows.values, rows.pictures.reshape(len(rows), -1)], axis=1)


def _batches(rows: Rows, weight: NDArray[np.float64], size: int, rng: np.random.Generator) -> Iterator[Batch]:
    both = _together(rows)
    order = rng.permutation(len(rows))
    for step in range(max(len(rows) // size, 1)):
        where = order[step * size : (step + 1) * size]
        yield both[where], rows.target[where].astype(np.float32), weight[where].astype(np.float32)
