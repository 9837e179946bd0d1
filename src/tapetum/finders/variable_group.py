"""All classifiers of light curves that are run together: those of one class each, and one over a tree of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapetum.core.errors import InputError
from tapetum.finders import variable_tree
from tapetum.finders.variable_tree import VariableTree, conformal_set, is_tree
from tapetum.finders.variables import KEYS, Config, Variables, specs_of
from tapetum.models.card import load_card
from tapetum.models.flags import InputFlag
from tapetum.models.registry import find_model
from tapetum.models.runtime import Model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tapetum.lightcurves.clean import Cleaned
    from tapetum.lightcurves.curves import LightCurves

TREE = "tree"  # key in what a classification says of itself
LAST = ("flags", "error", "imputed")
"""Columns after all others."""


class VariableGroup:
    """Loaded classifiers.

    Attributes
    ----------
    binary : Variables or None
        Those of one class each.
    tree : VariableTree or None
        The one over a tree of classes; it looks at light curves, not at tables of features.
    config : Config
    """

    def __init__(self, binary: Variables | None, tree: VariableTree | None, config: Config) -> None:
        if binary is None and tree is None:
            raise InputError("no classifier of light curves was given")
        self.binary, self.tree, self.config = binary, tree, config

    @property
    def tree_columns(self) -> dict[str, str]:
        """Class of the tree -> its column."""
        if self.tree is None:
            return {}
        end = self.tree.model.card.algorithm or TREE
        return {code: f"{code}_{end}" for code in self.tree.codes}

    @property
    def columns(self) -> dict[str, str]:
        """Every column of numbers -> what it holds, in order."""
        out = {} if self.binary is None else self.binary.columns
        if self.tree is not None:
            words = self.tree.columns
            out = out | {column: words[code] for code, column in self.tree_columns.items()}
            out["class_probability"] = words["class_probability"]
        return out

    @property
    def needed(self) -> dict[str, str]:
        """Columns of features that models take -> a model that does."""
        return {} if self.binary is None else self.binary.needed | self.binary.pictures

    def about(self) -> dict[str, Any]:
        """Models and settings of a classification, as its metadata keep them."""
        plain: dict[str, Any] = {"taxonomy": "", "models": {}, "columns": {}, "opposites": {}}
        about = plain | ({} if self.binary is None else self.binary.about())
        about["settings"] = self.config.model_dump(mode="json")
        if self.tree is not None:
            about[TREE] = {
                **self.tree.about(),
                "columns": self.tree_columns,
                "leaves": list(self.tree.leaves),
                "threshold": self.tree.threshold,  # of class_set
            }
        return about

    def find(
        self, features: pa.Table | None, curves: LightCurves | None = None, cleaned: Cleaned | None = None
    ) -> pa.Table:
        """Classify light curves.

        Parameters
        ----------
        features
            One row for each; None where no model takes features.
        curves
            All of them, as they came; None where no model looks at light curves.
        cleaned
            What is left of them, for the tree.

        Returns
        -------
        pyarrow.Table
            As `Variables.find`, with the columns of the tree, ``<class>_<algorithm>``, and its ``class``,
            ``class_probability`` and ``class_set``.

        Raises
        ------
        InputError
            As `Variables.find`; or a model has nothing to look at.
        """
        if self.binary is not None:
            if features is None:
                raise InputError("the models take features, and there are none")
            found = self.binary.find(features)
        elif curves is not None:
            found = _keys(curves)
        else:
            raise self.no_curves()
        if self.tree is None:
            return found
        if curves is None or cleaned is None:
            raise self.no_curves()
        return self._with_tree(found, self.tree.find(cleaned.curves), cleaned)

    def no_curves(self) -> InputError:
        """Why a table of features is not enough."""
        name = "" if self.tree is None else self.tree.model.card.name
        return InputError(
            f"the model {name} looks at light curves, not at features: give the light curves, or other --models"
        )

    def _with_tree(self, found: pa.Table, judged: pa.Table, cleaned: Cleaned) -> pa.Table:
        kept = cleaned.kept
        judged = judged.take(pa.array(np.cumsum(kept) - 1, mask=~kept))
        columns = {name: found[name] for name in found.column_names if name not in LAST}
        columns.setdefault("period", judged["period"])
        columns |= {column: self._rounded(judged[code]) for code, column in self.tree_columns.items()}
        columns |= _of_tree(judged)
        columns["class_probability"] = self._rounded(judged["class_probability"])
        short = pa.array(np.where(kept, 0, int(InputFlag.MISSING_FEATURE)), pa.int32())
        flags = pc.bit_wise_or(pc.fill_null(judged["flags"].cast(pa.int32()), 0), short)
        reasons = [None if one else f"no features: {cleaned.explain(row)}" for row, one in enumerate(kept)]
        error = pc.coalesce(judged["error"], pa.array(reasons, pa.string()))
        if self.binary is not None:
            flags = pc.bit_wise_or(flags, found["flags"])
            error = pc.coalesce(found["error"], error)
        columns |= {"flags": flags, "error": error}
        return pa.table(columns | {name: found[name] for name in found.column_names if name == "imputed"})

    def _rounded(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        decimals = self.config.decimals
        return column if decimals is None else pc.round(column, decimals, "half_to_even")


def _keys(curves: LightCurves) -> pa.Table:
    """What is known of light curves, as a classification keeps it."""
    table = curves.table
    names = [name for name in KEYS if name in table.column_names]
    if "object_id" not in names:
        table = table.append_column("object_id", pa.nulls(len(curves), pa.string()))
        names.insert(1, "object_id")
    return table.select([name for name in names if name != "period"])


def tree_sources(means: Mapping[str, NDArray[np.float64]], about: Mapping[str, Any]) -> dict[str, pa.Array]:
    """What a tree says of sources, null where it says nothing: of a mean the parts add up as those of each curve do.

    Parameters
    ----------
    means
        Column -> mean of the light curves of each source, NaN where there is none.
    about
        What a classification says of its tree; the least probability of a class in ``class_set`` among it.
    """
    columns, leaves = about["columns"], about["leaves"]
    leaf = np.column_stack([means[columns[code]] for code in leaves])
    missing: NDArray[np.bool_] = np.asarray(~np.isfinite(leaf).all(axis=1), np.bool_)
    filled = np.where(missing[:, np.newaxis], 0.0, leaf)
    best = filled.argmax(axis=1)
    sets = [" ".join(names) for names in conformal_set(filled, leaves, about["threshold"])]
    return {
        "class": pa.array([leaves[place] for place in best.tolist()], pa.string(), mask=missing),
        "class_probability": pa.array(filled.max(axis=1), mask=missing),
        "class_set": pa.array(sets, pa.string(), mask=missing),
    }


def _of_tree(found: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Class, its probability, and the set that has the true class as text, which every format of tables can hold."""
    return {
        "class": found["class"],
        "class_probability": found["class_probability"],
        "class_set": pc.binary_join(found["class_set"], " "),
    }


def load_group(
    models: str | Sequence[str], config: Config | None = None, tree_config: variable_tree.Config | None = None
) -> VariableGroup:
    """Load classifiers of any kind.

    Parameters
    ----------
    models
        Names, ``name@version``, paths of models, or folders of models (groups); one of these or several.
    config, tree_config
        Settings of the one kind and of the other.

    Raises
    ------
    ModelError
        No such model, or its file, card and golden vectors do not fit together.
    InputError
        One of them is no classifier of light curves, two give the same column, or two are over a tree of classes.
    """
    config = config or Config()
    trees: list[str] = []
    others: list[str] = []
    for spec in specs_of(models):
        (trees if is_tree(load_card(find_model(spec).card)) else others).append(spec)
    if len(trees) > 1:
        raise InputError(f"{' and '.join(trees)} both answer for all classes; name one of them")
    loaded = [Model.load(spec, verify=config.verify) for spec in others]
    binary = Variables(loaded, config) if loaded else None
    tree = variable_tree.load(trees[0], tree_config) if trees else None
    return VariableGroup(binary, tree, config)
