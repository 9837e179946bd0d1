"""From labelled light curves to the classifier over a tree: periods, pre-training, tuning, trees, calibration."""

from __future__ import annotations

import json
import logging
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tapetum.core.errors import InputError
from tapetum.core.files import whole_file
from tapetum.finders.variable_tree import wave_periods
from tapetum.lightcurves.curves import LightCurves
from tapetum.models.points import prepare_points
from tapetum.simulate.variables import simulate_variables
from tapetum.training.loop import answers_of
from tapetum.training.loop import fit as fit_network
from tapetum.training.sequences_task import AT_ONCE, Pretraining, Tuning, together
from tapetum.training.task import RecipeTask
from tapetum.training.trees_task import require_xgboost
from tapetum.training.variable_tree_card import describe
from tapetum.training.variable_tree_data import CurveSource
from tapetum.training.variable_tree_export import check_both, export_both, mixed, read_many
from tapetum.training.variable_tree_metrics import partial_loss

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.core.progress import Progress
    from tapetum.models.card import ModelCard
    from tapetum.training.variable_tree_data import Examples
    from tapetum.training.variable_tree_recipe import VariableTreeRecipe

    Values = NDArray[np.float64]

log = logging.getLogger(__name__)
WORK, CHOSEN = "work", "halves.json"
WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))
CHECKED = 64  # curves on which the file is compared with its halves
SIMULATED_AT_ONCE = 1000


class VariableTreeTask(RecipeTask):
    """A `tapetum.training.task.SelfTaught`: two networks by THE loop and boosted trees, in one file.

    Parameters
    ----------
    recipe
        Of the run.
    source
        Of the labelled curves.
    """

    def __init__(self, recipe: VariableTreeRecipe, source: CurveSource) -> None:
        self.recipe = recipe
        self.source = source
        super().__init__(recipe, [source])

    @classmethod
    def open(cls, recipe: VariableTreeRecipe, paths: Sequence[Path], jobs: int = 1) -> VariableTreeTask:
        """The task of a recipe with the files of the user."""
        del jobs
        require_xgboost()
        return cls(recipe, CurveSource(recipe, paths))

    @cached_property
    def validation(self) -> Examples:
        """Curves to choose by and to calibrate on."""
        return self.source.examples("validation")

    def require_examples(self) -> None:
        """Refuse a run without two classes to learn from, or without stars to choose by.

        Raises
        ------
        InputError
            Says what there is.
        """
        if len(self.source.leaves) < 2:
            raise InputError(
                f"{len(self.source.leaves)} classes have {self.recipe.least} stars or more in the training part; "
                "two are needed"
            )
        if not (self.source.role == "validation").any():
            raise InputError("no labelled curve is in the validation part of the split")

    def learn(self, path: Path, progress: Progress) -> None:
        """Make both halves and write them as one file.

        Beside it: the folder ``work`` with periods, checkpoints and logs, and ``halves.json``: what was chosen.

        Raises
        ------
        ModelError
            The file and its halves differ.
        """
        work = path.parent / WORK
        work.mkdir(parents=True, exist_ok=True)
        self.source.cache, self.source.progress = work, progress
        variants = range(self.recipe.labelled.variants + 1)
        fit = [self.source.examples("fit", variant) for variant in variants]
        network = self._network(work, fit, progress)
        trees, of_trees, rounds = self._trees(fit)
        of_network = log_probabilities(network, self.validation, self.recipe)
        inside = self.validation.inside.astype(np.float64)
        losses = [partial_loss(mixed(of_network, of_trees, weight), inside) for weight in WEIGHTS]
        weight = WEIGHTS[int(np.argmin(losses))]
        some = self.validation.take(np.arange(min(CHECKED, len(self.validation))))
        inputs = (prepare_points(some.curves, some.period, self.recipe.length), some.rows)
        export_both(network, trees, weight, path, inputs, self.recipe.opset)
        check_both(path, inputs, mixed(of_network[: len(some)], of_trees[: len(some)], weight))
        report = {
            "weight_of_network": weight,
            "validation_loss": dict(zip(map(str, WEIGHTS), losses, strict=True)),
            "rounds": rounds,
            "leaves": list(self.source.leaves),
        }
        with whole_file(path.with_name(CHOSEN)) as part:
            part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        log.info("network %.1f, trees %.1f of the answer", weight, 1 - weight)

    def _network(self, work: Path, fit: list[Examples], progress: Progress) -> Any:
        simulated, true_period = self._simulated()
        curves = [*(part.curves for part in fit), *([simulated] if len(simulated) else [])]
        periods = [*(part.period for part in fit), *([true_period] if len(simulated) else [])]
        first = Pretraining(self.recipe, curves, periods, self.validation.curves, self.validation.period)
        told = fit_network(first, work / "pretraining", progress=progress)
        second = Tuning(self.recipe, fit, self.validation, told.state_dict())
        return fit_network(second, work / "tuning", progress=progress)

    def _simulated(self) -> tuple[LightCurves, Values]:
        rules = self.recipe.simulated
        if rules is None or not rules.count:
            return LightCurves.of_lists([], [], []), np.zeros(0)
        made = simulate_variables(rules.count, rules.seed)
        return made.curves, wave_periods(made.curves, made.period)

    def _trees(self, fit: list[Examples]) -> tuple[Any, Values, int]:
        """The trees, what they say of validation, and how many rounds there are."""
        xgboost, rules = require_xgboost(), self.recipe.trees
        n_classes = len(self.source.leaves)
        sure = [part.take(part.sure) for part in fit]
        data = xgboost.DMatrix(
            np.concatenate([part.rows for part in sure]),
            label=np.concatenate([part.inside.argmax(axis=1) for part in sure]),
            weight=np.concatenate([part.weight for part in sure]),
            nthread=1,
        )
        known = self.validation.take(self.validation.sure)
        checked = xgboost.DMatrix(known.rows, label=known.inside.argmax(axis=1), nthread=1)
        booster = xgboost.train(
            {
                "objective": "multi:softprob", "num_class": n_classes, "eval_metric": "mlogloss", "nthread": 1,
                "seed": self.recipe.seed, "eta": rules.rate, "max_depth": rules.depth, "tree_method": "hist",
                "min_child_weight": rules.child_weight, "subsample": rules.subsample, "max_bin": 128,
                "colsample_bytree": rules.colsample,
            },
            data, rules.rounds, evals=[(checked, "validation")], early_stopping_rounds=rules.patience,
            verbose_eval=False,
        )  # fmt: skip
        rounds = int(booster.best_iteration) + 1
        told = booster.predict(
            xgboost.DMatrix(self.validation.rows, nthread=1), iteration_range=(0, rounds)
        ).astype(np.float64)
        return (
            read_many(bytes(booster.save_raw("json")), n_classes, rounds),
            np.log(np.maximum(told, 1e-30)),
            rounds,
        )

    def describe(self, onnx: Path, today: date) -> ModelCard:
        """The card, with calibration and sets from validation and figures of the test part."""
        self.source.cache = onnx.parent / WORK
        return describe(
            self.recipe, onnx, self.source, self.validation, self.source.examples("test"), self.keys, today
        )

    def close(self) -> None:
        """Nothing works in the background."""


def log_probabilities(network: Any, examples: Examples, recipe: VariableTreeRecipe) -> Values:
    """Logarithms of the network's probabilities, shape (n, n_leaves)."""
    parts = []
    for start in range(0, len(examples), AT_ONCE):
        some = examples.take(np.arange(start, min(start + AT_ONCE, len(examples))))
        answers = answers_of(network, together(some, recipe.length), recipe.optimiser)
        parts.append(torch.log_softmax(answers.double(), 1).cpu().numpy())
    return np.concatenate(parts)
