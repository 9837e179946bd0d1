"""What a task of a classifier of light curves is, network or trees: its rows by the split. Without torch."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

from tapetum.training.split import LEARNING, require
from tapetum.training.task import RecipeTask
from tapetum.training.variables_card import require_both_classes
from tapetum.training.variables_recipe import ClassifierRecipe

if TYPE_CHECKING:
    from tapetum.training.variables_data import Rows, TableSource

Recipe = TypeVar("Recipe", bound=ClassifierRecipe)


class ClassifierTask(RecipeTask, Generic[Recipe]):
    """Rows to learn from and to choose by.

    Parameters
    ----------
    recipe
        Class, features, optimiser.
    source
        Of the rows.
    """

    def __init__(self, recipe: Recipe, source: TableSource) -> None:
        self.recipe = recipe
        self.source = source
        super().__init__(recipe, [source])

    @cached_property
    def fit(self) -> Rows:
        """Rows to learn from."""
        rows = self.source.rows("fit")
        require(rows.object_id, frozenset({"fit"}))
        return rows

    @cached_property
    def validation(self) -> Rows:
        """Rows to choose by: when a run ends, which numbers and which seed it keeps."""
        rows = self.source.rows("validation")
        require(rows.object_id, LEARNING)
        return rows

    def require_examples(self) -> None:
        """Refuse a run without examples of both kinds to learn from and to choose by."""
        require_both_classes("training", self.fit, self.recipe.of)
        require_both_classes("validation", self.validation, self.recipe.of)
