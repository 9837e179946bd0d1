"""Boosted trees over features of light curves: of the class or not. Needs xgboost, and no torch."""

from __future__ import annotations

import json
import logging
from importlib import import_module
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import InputError, MissingExtraError, ModelError
from tapetum.core.files import whole_file
from tapetum.models.runtime import open_session
from tapetum.models.trees_onnx import BOOSTER, importance, read_trees, trees_to_onnx
from tapetum.training.classifier_task import ClassifierTask
from tapetum.training.variables_card import describe
from tapetum.training.variables_data import TableSource, weights
from tapetum.training.variables_recipe import FEATURES, TreesRecipe
from tapetum.training.variables_warm import CHOSEN, booster_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.core.progress import Progress
    from tapetum.models.card import ModelCard
    from tapetum.training.variables_data import Rows
    from tapetum.training.variables_recipe import Boosting

log = logging.getLogger(__name__)
TOLERANCE = 1e-6
STEPS = 5  # grids, final fit
DEPTH_STEP, CHILD_STEP, SHARE_STEP = 1, 1, 0.1  # of the refinement


def require_xgboost() -> Any:
    """The package xgboost.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    try:
        return import_module("xgboost")
    except ModuleNotFoundError:
        raise MissingExtraError("train", "boosting trees") from None


class TreesTask(ClassifierTask[TreesRecipe]):
    """A `tapetum.training.task.SelfTaught`: trees, their numbers chosen by cross-validation over sources.

    Parameters
    ----------
    recipe
        Class, features, grids.
    source
        Of the rows.
    """

    @classmethod
    def open(cls, recipe: TreesRecipe, paths: Sequence[Path], jobs: int = 1) -> TreesTask:
        """The task of a recipe with the tables of the user."""
        del jobs
        require_xgboost()
        return cls(recipe, TableSource(recipe, paths))

    def learn(self, path: Path, progress: Progress) -> None:
        """Choose the numbers, count the trees on validation, make them, and write them as ONNX.

        Where the recipe goes on from earlier trees, their numbers stay, and new trees are added.

        Beside it: ``booster.json``, as xgboost reads it again, and ``trees.json``: what was chosen, how each choice
        fared, and the share of each feature in the gain.

        Raises
        ------
        ModelError
            ONNX and xgboost differ.
        """
        xgboost = require_xgboost()
        fit, validation = (self._matrix(xgboost, rows) for rows in (self.fit, self.validation))
        tried: list[dict[str, Any]] = []
        if self.recipe.warm_start is None:
            chosen, tried = self._choose(xgboost, fit, progress)
            n_trees = _count_trees(xgboost, fit, validation, chosen, self.recipe.optimiser)
            booster = xgboost.train(chosen, fit, n_trees)
        else:
            booster, chosen = self._go_on(xgboost, fit, validation)
        n_trees = booster.num_boosted_rounds()
        text = bytes(booster.save_raw("json"))
        trees = read_trees(text, str(path))
        onnx = trees_to_onnx(trees, FEATURES)
        _check(onnx, str(path), self.validation, booster.predict(validation))
        gain = importance(trees)
        report = {"chosen": chosen, "n_trees": n_trees, "importance": gain, "tried": tried}
        for name, content in (
            (BOOSTER, text),
            (CHOSEN, json.dumps(report, indent=1).encode()),
            (path.name, onnx),
        ):
            with whole_file(path.with_name(name)) as part:
                part.write_bytes(content)
        log.info("%d trees, %s", n_trees, chosen)
        progress(STEPS, STEPS)

    def _choose(
        self, xgboost: Any, fit: Any, progress: Progress
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The numbers, and how every choice fared."""
        settings: Boosting = self.recipe.optimiser
        chosen, tried = parameters_of(settings, self.recipe.seed), []
        if settings.search:
            folds = folds_by_source(self.fit.object_id, self.fit.target, settings.folds, self.recipe.seed)
            for number, grid in enumerate(_grids(settings)):
                chosen, results = _best_of(xgboost, fit, folds, chosen, grid(chosen), settings)
                tried += results
                progress(number + 1, STEPS)
        return chosen, tried

    def _go_on(self, xgboost: Any, fit: Any, validation: Any) -> tuple[Any, dict[str, Any]]:
        """Earlier trees with as many new ones as make validation better, by the numbers of the earlier."""
        settings: Boosting = self.recipe.optimiser
        content, numbers = booster_of(self.recipe)
        chosen = parameters_of(settings, self.recipe.seed) | numbers | {"seed": self.recipe.seed}
        earlier = xgboost.Booster(chosen, model_file=bytearray(content))
        names = fit.feature_names
        if earlier.num_features() != len(names):
            raise InputError(
                f"the earlier trees have {earlier.num_features()} features, the list {len(names)}"
            )
        earlier.feature_names = names  # their periods may have been of another algorithm
        before = float(earlier.eval(validation).rpartition(":")[2])
        longer = xgboost.train(
            chosen, fit, settings.epochs, evals=[(validation, "validation")], xgb_model=earlier,
            early_stopping_rounds=settings.patience, verbose_eval=False,
        )  # fmt: skip
        n_new = longer.best_iteration + 1 - earlier.num_boosted_rounds()
        if longer.best_score <= before:
            return earlier, chosen
        return xgboost.train(chosen, fit, n_new, xgb_model=earlier), chosen

    def _matrix(self, xgboost: Any, rows: Rows) -> Any:
        contract = self.source.contract
        return xgboost.DMatrix(
            rows.values,
            label=rows.target,
            weight=weights(rows.target, weighted=self.recipe.weighted),
            feature_names=[contract.column(feature) for feature in contract.included],
            nthread=1,
        )

    def describe(self, onnx: Path, today: date) -> ModelCard:
        """The card, with figures of the test part."""
        return describe(self.recipe, onnx, self.source, self.keys, today)

    def close(self) -> None:
        """Nothing works in the background."""


def parameters_of(settings: Boosting, seed: int) -> dict[str, Any]:
    """Parameters as xgboost calls them."""
    return {
        "objective": "binary:logistic",
        "eval_metric": "auc",
        "seed": seed,
        "nthread": 1,
        "max_depth": settings.max_depth,
        "min_child_weight": settings.min_child_weight,
        "subsample": settings.subsample,
        "colsample_bytree": settings.colsample,
        "eta": settings.rate,
    }


def _grids(settings: Boosting) -> list[Any]:
    """Functions from what was chosen so far to what is tried next."""

    def depths(_: Mapping[str, Any]) -> list[dict[str, Any]]:
        return _product(max_depth=settings.depths, min_child_weight=settings.child_weights)

    def shares(_: Mapping[str, Any]) -> list[dict[str, Any]]:
        return _product(subsample=settings.shares, colsample_bytree=settings.shares)

    def rates(_: Mapping[str, Any]) -> list[dict[str, Any]]:
        return _product(eta=settings.rates)

    def neighbours(chosen: Mapping[str, Any]) -> list[dict[str, Any]]:
        near: list[dict[str, Any]] = [{}]  # what was chosen may stay
        for name, step, least, most in (
            ("max_depth", DEPTH_STEP, 1, 64),
            ("min_child_weight", CHILD_STEP, 0, 1e6),
            ("subsample", SHARE_STEP, SHARE_STEP, 1.0),
            ("colsample_bytree", SHARE_STEP, SHARE_STEP, 1.0),
        ):
            values = (round(chosen[name] + sign * step, 6) for sign in (-1, 1))
            near += [{name: value} for value in values if least <= value <= most]
        return near

    return [depths, shares, rates, neighbours] if settings.refine else [depths, shares, rates]


def _product(**values: Iterable[Any]) -> list[dict[str, Any]]:
    return [dict(zip(values, each, strict=True)) for each in product(*values.values())]


def folds_by_source(
    object_id: Sequence[str], target: NDArray[np.float64], n_folds: int, seed: int
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows to learn from and rows to judge by, for each fold; all light curves of a source are in the same one.

    Both kinds of sources are dealt out evenly, into no more folds than there are sources of the rarer kind, but two
    or more.
    """
    names, where = np.unique(np.asarray(object_id, str), return_inverse=True)
    of = np.bincount(where, target > 0.5) > 0
    n_folds = max(min(n_folds, int(of.sum()), int((~of).sum())), 2)
    rng = np.random.default_rng([seed, 2])
    dealt = np.concatenate([rng.permutation(np.flatnonzero(kind)) for kind in (of, ~of)])
    fold_of_source = np.empty(len(names), int)
    fold_of_source[dealt] = np.arange(len(names)) % n_folds
    fold = fold_of_source[where]
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n_folds)]


def _best_of(
    xgboost: Any,
    data: Any,
    folds: Sequence[Any],
    chosen: Mapping[str, Any],
    grid: Sequence[Mapping[str, Any]],
    settings: Boosting,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The point of a grid with the largest mean area under the curve, and all of them with theirs."""
    results = []
    for point in grid:
        table = xgboost.cv(
            {**chosen, **point}, data, settings.epochs, folds=list(folds),
            early_stopping_rounds=settings.patience, as_pandas=False,
        )  # fmt: skip
        results.append({**point, "auc": float(max(table["test-auc-mean"]))})
    best = int(np.argmax([result["auc"] for result in results]))
    return {**chosen, **grid[best]}, results


def _count_trees(
    xgboost: Any, fit: Any, validation: Any, chosen: Mapping[str, Any], settings: Boosting
) -> int:
    """Trees up to the best area under the curve of the validation part."""
    booster = xgboost.train(
        dict(chosen), fit, settings.epochs, evals=[(validation, "validation")],
        early_stopping_rounds=settings.patience, verbose_eval=False,
    )  # fmt: skip
    return int(booster.best_iteration) + 1


def _check(onnx: bytes, origin: str, rows: Rows, expected: NDArray[np.float32]) -> None:
    (found,) = open_session(onnx, origin).run(None, {FEATURES: rows.values})
    difference = float(np.abs(found[:, 0] - expected).max())
    if not difference <= TOLERANCE:
        raise ModelError(f"{origin}: ONNX and xgboost differ by {difference:.2g}, more than {TOLERANCE:g}")
