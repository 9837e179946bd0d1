"""What THE loop and `run` ask of a kind of training, and the kinds there are; importing this needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from tapetum.training.record import fingerprint, keys_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from tapetum.core.progress import Progress
    from tapetum.models.card import ModelCard
    from tapetum.training.datasets import Key
    from tapetum.training.recipe import Optimiser, RecipeBase
    from tapetum.training.record import Keyed
    from tapetum.training.split import Role

TASKS: Mapping[str, str] = {
    "stamps": "tapetum.training.stamp_task:StampTask",
    "masks": "tapetum.training.mask_task:MaskTask",
    "tracking": "tapetum.training.tracking_task:TrackingTask",
    "variables": "tapetum.training.variables_task:VariablesTask",
    "trees": "tapetum.training.trees_task:TreesTask",
    "variable-tree": "tapetum.training.variable_tree_task:VariableTreeTask",
}
"""``task`` of a recipe -> ``module:class``; its class method ``open(recipe, paths, jobs)`` gives the `Task`."""

Batch = tuple["NDArray[Any]", ...]
"""Inputs of the network, shape (n, ...), then whatever the loss needs to know of them, each of n rows."""


@dataclass(frozen=True)
class Epoch:
    """The batches of an epoch, and how many they are: the rate of learning goes by it."""

    n_batches: int
    batches: Iterator[Batch]


class Learnable(Protocol):
    """What the loop trains: networks, batches and loss of one kind of training.

    The loop owns all else: seeds, optimiser, rate, averaging, precision, memory layout, device, checkpoints, log.

    In this order it calls `network` twice (the second is the average), and then in each epoch `epoch`, once per
    batch the network itself and `loss`, and at last `validation_loss` of the average. Whatever is drawn must be a
    function of the recipe's seed and the epoch alone, and never of what was called before: a run that was
    interrupted goes on with the checkpoint of its last whole epoch and must end the same. Networks are called with
    the first array of a batch, give a tensor or a tuple of them, and are called under autocast where the recipe
    asks for bf16; what they give comes to `loss` as float32.
    """

    @property
    def seed(self) -> int:
        """Seed of the weights and of dropout."""
        ...

    @property
    def optimiser(self) -> Optimiser:
        """Epochs, batch, rate and the like."""
        ...

    def network(self) -> nn.Module:
        """An untrained network, its weights drawn from torch's generator."""
        ...

    def epoch(self, epoch: int) -> Epoch:
        """Batches of an epoch, numbered from 0; they may be drawn in another thread than this one.

        Raises
        ------
        UsageError
            An example is of a part of the split that may not be learned from (`tapetum.training.split.require`).
        InputError
            There is nothing to learn from.
        """
        ...

    def loss(self, answers: Any, *truth: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar: `answers` of the network, `truth` the batch without its first array."""
        ...

    def validation_loss(self, network: nn.Module) -> tuple[float, int]:
        """Loss on the validation part and how many examples it has; see `tapetum.training.loop.answers_of`."""
        ...


class Described(Protocol):
    """What is asked of a kind of training before it learns and after."""

    def fingerprint(self) -> str:
        """Hex SHA-256 of the names of all examples of the run: what a folder is bound to, beside the recipe."""
        ...

    def require_examples(self) -> None:
        """Refuse before anything is written.

        Raises
        ------
        InputError
            There is nothing to learn from, or nothing to calibrate on.
        """
        ...

    def describe(self, onnx: Path, today: date) -> ModelCard:
        """The card of the exported network: contract, classes, calibration, thresholds, figures, golden vectors."""
        ...

    def close(self) -> None:
        """End what works in the background."""
        ...


@runtime_checkable
class SelfTaught(Described, Protocol):
    """A kind of training whose model is no network: it learns by itself, without the loop and without torch."""

    def learn(self, path: Path, progress: Progress) -> None:
        """Make the model and write it as ONNX that gives scores.

        Raises
        ------
        ModelError
            ONNX and the model differ.
        MissingExtraError
            What it learns with is not installed.
        """
        ...


class Task(Learnable, Described, Protocol):
    """A kind of training from data to card, as `tapetum.training.run.train` uses it.

    A new kind is one recipe class (`tapetum.training.recipe.RECIPES`; without torch), and one class with these
    methods (`TASKS`). Networks are entries of `tapetum.training.networks.NETWORKS`; `tapetum.training.export`
    writes any torch module as ONNX (`write_onnx`) and compares the two (`check_onnx`).
    """

    @classmethod
    def open(cls, recipe: Any, paths: Sequence[Path], jobs: int = 1) -> Task:
        """The task of a recipe with the files of the user; `jobs` processes may make examples."""
        ...

    def export(self, network: nn.Module, path: Path) -> None:
        """Write the trained network as ONNX that gives scores, and check that it does.

        Raises
        ------
        ModelError
            ONNX and torch differ.
        """
        ...


class RecipeTask:
    """What a task has from its recipe, whatever it learns; a kind of training adds the rest of `Task`.

    Parameters
    ----------
    recipe
        Of the run.
    sources
        Of its examples.
    """

    def __init__(self, recipe: RecipeBase, sources: Sequence[Keyed]) -> None:
        self._recipe = recipe
        self._sources = tuple(sources)

    @property
    def seed(self) -> int:
        """Of the recipe."""
        return self._recipe.seed

    @property
    def optimiser(self) -> Optimiser:
        """Of the recipe."""
        return self._recipe.optimiser

    @cached_property
    def keys(self) -> dict[Role, list[list[Key]]]:
        """Every example of the run, by role and source."""
        return keys_of(self._sources, self.optimiser.epochs)

    def fingerprint(self) -> str:
        """Hash of the names of all examples."""
        return fingerprint(self.keys)


def open_task(recipe: RecipeBase, paths: Sequence[Path], jobs: int = 1) -> Task | SelfTaught:
    """The task that a recipe names.

    Parameters
    ----------
    recipe
        Of any kind.
    paths
        Files of the user.
    jobs
        Processes that may make examples.
    """
    module, _, name = TASKS[recipe.task].partition(":")
    task: Task | SelfTaught = getattr(import_module(module), name).open(recipe, paths, jobs)
    return task
