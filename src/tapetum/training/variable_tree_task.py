"""From labelled light curves to the classifier over a tree: periods, pre-training, tuning, trees, calibration.

The networks are members of a committee: each learns from all folds of the stars but one. What is said of a star by the
member that did not learn from it decides weights, calibration and sets of classes.
"""

from __future__ import annotations

import json
import logging
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
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
from tapetum.training.variable_tree_data import CurveSource, Examples, star_folds
from tapetum.training.variable_tree_export import check_both, expected, export_both, mixed, read_many
from tapetum.training.variable_tree_metrics import partial_loss

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.core.progress import Progress
    from tapetum.models.card import ModelCard
    from tapetum.training.variable_tree_export import ManyTrees
    from tapetum.training.variable_tree_recipe import VariableTreeRecipe

    Values = NDArray[np.float64]

log = logging.getLogger(__name__)
WORK, CHOSEN = "work", "halves.json"
WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))
LEAST_PROBABILITY = 1e-30
CHECKED = 64  # curves on which the file is compared with its halves


class VariableTreeTask(RecipeTask):
    """A `tapetum.training.task.SelfTaught`: networks by THE loop and boosted trees, in one file.

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
        self.judged: Values = np.zeros((0, 0))  # logits of curves by members that did not learn from them
        super().__init__(recipe, [source])

    @classmethod
    def open(cls, recipe: VariableTreeRecipe, paths: Sequence[Path], jobs: int = 1) -> VariableTreeTask:
        """The task of a recipe with the files of the user."""
        del jobs
        require_xgboost()
        return cls(recipe, CurveSource(recipe, paths))

    @cached_property
    def learning(self) -> list[Examples]:
        """Curves to learn from, as they are, then each worse copy of them, in the same order."""
        variants = range(self.recipe.labelled.variants + 1)
        return [
            joined([self.source.examples("fit", variant), self.source.examples("validation", variant)])
            for variant in variants
        ]

    @cached_property
    def folds(self) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Curves that a member learns from and those that judge it, for each member."""
        return star_folds(self.learning[0], self.recipe.folds, self.recipe.seed)

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
        for role in ("fit", "validation"):
            if not (self.source.role == role).any():
                raise InputError(f"no labelled curve is in the {role} part of the split")

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
        networks, of_networks = self._networks(work, progress)
        trees, of_trees, rounds = self._trees()
        inside = self.learning[0].inside.astype(np.float64)
        losses = [partial_loss(mixed(of_networks, of_trees, weight), inside) for weight in WEIGHTS]
        weight = WEIGHTS[int(np.argmin(losses))]
        self.judged = mixed(of_networks, of_trees, weight)
        some = self.learning[0].take(np.arange(min(CHECKED, len(self.learning[0]))))
        inputs = (prepare_points(some.curves, some.period, self.recipe.length), some.rows)
        export_both(networks, trees, weight, path, inputs, self.recipe.opset)
        check_both(path, inputs, expected(networks, trees, weight, inputs))
        report = {
            "weight_of_networks": weight,
            "loss": dict(zip(map(str, WEIGHTS), losses, strict=True)),
            "rounds": rounds,
            "leaves": list(self.source.leaves),
        }
        with whole_file(path.with_name(CHOSEN)) as part:
            part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        log.info("networks %.1f, trees %.1f of the answer", weight, 1 - weight)

    def _networks(self, work: Path, progress: Progress) -> tuple[list[Any], Values]:
        """Members, and what they say of the curves that they did not learn from."""
        told = self._pretrained(work, progress).state_dict()
        members, found = [], np.zeros(self.learning[0].inside.shape)
        for number, (learned, judging) in enumerate(self.folds):
            parts = [part.take(learned) for part in self.learning]
            judges = self.learning[0].take(judging)
            task = Tuning(self.recipe, parts, judges, told, self.recipe.seed + 100 * number)
            member = fit_network(task, work / f"tuning-{number}", progress=progress)
            found[judging] = log_probabilities(member, judges, self.recipe)
            members.append(member)
        return members, found

    def _pretrained(self, work: Path, progress: Progress) -> Any:
        fit = [self.source.examples("fit", variant) for variant in range(self.recipe.labelled.variants + 1)]
        simulated, wave = self._simulated()
        curves = [*(part.curves for part in fit), *([simulated] if len(simulated) else [])]
        periods = [*(part.period for part in fit), *([wave] if len(simulated) else [])]
        judges = self.source.examples("validation")
        task = Pretraining(self.recipe, curves, periods, judges.curves, judges.period)
        return fit_network(task, work / "pretraining", progress=progress)

    def _simulated(self) -> tuple[LightCurves, Values]:
        rules = self.recipe.simulated
        if rules is None or not rules.count:
            return LightCurves.of_lists([], [], []), np.zeros(0)
        made = simulate_variables(rules.count, rules.seed)
        return made.curves, wave_periods(made.curves, made.period)

    def _trees(self) -> tuple[ManyTrees, Values, int]:
        """Trees of all curves; what trees of the folds say of the others; how many rounds there are."""
        xgboost = require_xgboost()
        boosters = [
            self._boosted(learned, self.recipe.trees.rounds, judging) for learned, judging in self.folds
        ]
        rounds = max(round(float(np.mean([booster.best_iteration + 1 for booster in boosters]))), 1)
        found = np.zeros(self.learning[0].inside.shape)
        for booster, (_, judging) in zip(boosters, self.folds, strict=True):
            rows = xgboost.DMatrix(self.learning[0].rows[judging], nthread=1)
            last = min(rounds, booster.num_boosted_rounds())
            told = booster.predict(rows, iteration_range=(0, last)).astype(np.float64)
            found[judging] = np.log(np.maximum(told, LEAST_PROBABILITY))
        booster = self._boosted(np.arange(len(self.learning[0])), rounds)
        return read_many(bytes(booster.save_raw("json")), len(self.source.leaves), rounds), found, rounds

    def _boosted(
        self, learned: NDArray[np.intp], rounds: int, judging: NDArray[np.intp] | None = None
    ) -> Any:
        """A booster; with others to judge by it ends where it no longer gets better for them."""
        xgboost, rules = require_xgboost(), self.recipe.trees
        parts = [part.take(learned) for part in self.learning]
        data = _matrix(xgboost, [part.take(part.sure) for part in parts])
        more: dict[str, Any] = {}
        if judging is not None:
            judges = self.learning[0].take(judging)
            more["evals"] = [(_matrix(xgboost, [judges.take(judges.sure)]), "judges")]
            more["early_stopping_rounds"] = rules.patience
        return xgboost.train(
            {
                "objective": "multi:softprob", "num_class": len(self.source.leaves), "eval_metric": "mlogloss",
                "nthread": 1, "seed": self.recipe.seed, "eta": rules.rate, "max_depth": rules.depth,
                "tree_method": "hist", "min_child_weight": rules.child_weight, "subsample": rules.subsample,
                "max_bin": 128, "colsample_bytree": rules.colsample,
            },
            data, rounds, verbose_eval=False, **more,
        )  # fmt: skip

    def describe(self, onnx: Path, today: date) -> ModelCard:
        """The card, with calibration and sets from validation and figures of the test part."""
        self.source.cache = onnx.parent / WORK
        return describe(
            self.recipe, onnx, self.source, self.learning[0], self.judged, self.source.examples("test"), self.keys,
            today,
        )  # fmt: skip

    def close(self) -> None:
        """Nothing works in the background."""


def joined(parts: Sequence[Examples]) -> Examples:
    """All examples of some parts."""
    curves = [part.curves for part in parts]
    ends = np.cumsum([0, *(part.offsets[-1] for part in curves[:-1])])
    offsets = [part.offsets[1:] + end for part, end in zip(curves, ends, strict=True)]
    all_curves = LightCurves(
        np.concatenate([part.time for part in curves]),
        np.concatenate([part.mag for part in curves]),
        np.concatenate([part.magerr for part in curves]),
        np.concatenate([np.zeros(1, np.int64), *offsets]),
        pa.concat_tables([part.table for part in curves]),
    )
    return Examples(
        all_curves,
        np.concatenate([part.period for part in parts]),
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.inside for part in parts]),
        np.concatenate([part.weight for part in parts]),
    )


def _matrix(xgboost: Any, parts: Sequence[Examples]) -> Any:
    return xgboost.DMatrix(
        np.concatenate([part.rows for part in parts]),
        label=np.concatenate([part.inside.argmax(axis=1) for part in parts]),
        weight=np.concatenate([part.weight for part in parts]),
        nthread=1,
    )


def log_probabilities(network: Any, examples: Examples, recipe: VariableTreeRecipe) -> Values:
    """Logarithms of the network's probabilities, shape (n, n_leaves)."""
    parts = []
    for start in range(0, len(examples), AT_ONCE):
        some = examples.take(np.arange(start, min(start + AT_ONCE, len(examples))))
        answers = answers_of(network, together(some, recipe.length), recipe.optimiser)
        parts.append(torch.log_softmax(answers.double(), 1).cpu().numpy())
    return np.concatenate(parts)
