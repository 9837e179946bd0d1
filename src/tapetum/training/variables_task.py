"""Features and histograms of light curves: one network, one number, of the class or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from tapetum.core.errors import InputError
from tapetum.models.registry import ONNX_NAME
from tapetum.models.runtime import Model
from tapetum.training.classifier_task import ClassifierTask
from tapetum.training.loop import answers_of
from tapetum.training.networks import build_network
from tapetum.training.task import Epoch
from tapetum.training.variables_card import describe
from tapetum.training.variables_data import TableSource, weights
from tapetum.training.variables_export import export_classifier
from tapetum.training.variables_recipe import VariablesRecipe
from tapetum.training.variables_warm import card_of, layers_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date

    from numpy.typing import NDArray

    from tapetum.models.card import ModelCard
    from tapetum.training.task import Batch
    from tapetum.training.variables_data import Rows

AT_ONCE = 1024
SAME_ANSWERS = 1e-4  # of a network that training goes on from
CHECKED_ROWS = 256  # on which ONNX and torch are compared


class VariablesTask(ClassifierTask[VariablesRecipe]):
    """A `tapetum.training.task.Task`: rows of labelled feature tables, weighted cross-entropy of one logit.

    Parameters
    ----------
    recipe
        Class, features, network, optimiser.
    source
        Of the rows.
    """

    @classmethod
    def open(cls, recipe: VariablesRecipe, paths: Sequence[Path], jobs: int = 1) -> VariablesTask:
        """The task of a recipe with the tables of the user; it needs no other processes."""
        del jobs
        return cls(recipe, TableSource(recipe, paths))

    def network(self) -> nn.Module:
        """An untrained network, or one with the weights to go on from."""
        spec, dmdt = self.recipe.network, self.source.dmdt
        side = 0 if dmdt is None else dmdt.shape[0]
        network: nn.Module = build_network(
            spec.name, len(self.source.contract.included), side, spec.arguments
        )
        if self.recipe.warm_start is not None:
            go_on_from(network, self.recipe)
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

    def export(self, network: nn.Module, path: Path) -> None:
        """Write ``model.onnx`` and compare it with torch on validation rows."""
        rows = self.validation.take(np.arange(min(CHECKED_ROWS, len(self.validation))))
        export_classifier(network, rows, path, self.recipe.opset)

    def describe(self, onnx: Path, today: date) -> ModelCard:
        """The card, with figures of the test part."""
        return describe(self.recipe, onnx, self.source, self.keys, today)

    def close(self) -> None:
        """Nothing works in the background."""


def go_on_from(network: nn.Module, recipe: VariablesRecipe) -> None:
    """Give a network the weights of the model that its recipe goes on from.

    Parameters
    ----------
    network
        Gets the weights.
    recipe
        Names the model, which may also be one that was imported: its layers must have the same shapes in the same
        order, and its answers are compared.

    Raises
    ------
    InputError
        It is another network.
    """
    assert recipe.warm_start is not None
    layers = layers_of(recipe)
    name = f"{recipe.warm_start.name} {recipe.warm_start.version}"
    for kind, theirs in ((nn.Linear, layers.dense), (nn.Conv2d, layers.convolutions)):
        mine = [module for module in network.modules() if isinstance(module, kind)]
        shapes = [tuple(module.weight.shape) for module in mine]
        if shapes != [weight.shape for weight, _ in theirs]:
            raise InputError(
                f"{name} has layers of the shapes {' '.join(str(weight.shape) for weight, _ in theirs)}, the network "
                f"of the recipe {' '.join(map(str, shapes))}: training cannot go on from it"
            )
        with torch.no_grad():
            for module, (weight, bias) in zip(mine, theirs, strict=True):
                module.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
                if module.bias is not None:
                    module.bias.copy_(torch.zeros(len(weight)) if bias is None else torch.from_numpy(bias))
    _require_same_answers(network, recipe, name)


def _require_same_answers(network: nn.Module, recipe: VariablesRecipe, name: str) -> None:
    card = card_of(recipe)
    assert recipe.warm_start is not None
    assert card.table is not None
    rng = np.random.default_rng(0)
    both = rng.random((CHECKED_ROWS, len(card.table.included)), np.float32)
    inputs = {card.table.name: both}
    if card.dmdt is not None:
        pictures = rng.random((CHECKED_ROWS, *card.dmdt.planes), np.float32)
        inputs[card.dmdt.name] = pictures
        both = np.concatenate([both, pictures.reshape(CHECKED_ROWS, -1)], 1)
    model = Model.load(str(Path(recipe.warm_start.folder) / ONNX_NAME))
    was_training = network.training
    with torch.no_grad():
        mine = torch.sigmoid(network.eval()(torch.from_numpy(both)))[:, 0].numpy()
    network.train(was_training)
    difference = float(np.abs(mine - model.scores(inputs)[:, 0]).max())
    if not difference <= SAME_ANSWERS:
        raise InputError(
            f"{name} is another network than that of the recipe: with its weights the answers differ by "
            f"{difference:.2g}"
        )


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
