"""The recipe of the classifier over a tree of classes of light curves; importing this needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tapetum.core.errors import TapetumError
from tapetum.finders.taxonomy import load_taxonomy
from tapetum.training.recipe import Optimiser, RecipeBase, RecipePart


class LabelledCurves(RecipePart):
    """Light curves with the class of their star that the user names with ``--table``."""

    source: Literal["labelled"]
    column: str = Field("label", description="text with the class of a row")
    labels: dict[str, str] = Field(
        min_length=1, description="text -> code in the taxonomy; rows of other text are left out"
    )
    weights: dict[str, float] = Field(
        default_factory=dict, description="survey -> weight of its curves in learning; others have 1"
    )
    least_points: int = Field(10, ge=5, description="good points of a curve")
    variants: int = Field(
        2, ge=0, description="worse copies of each curve to learn from: fewer points, larger errors"
    )
    share: float = Field(
        0.5, ge=0, lt=1, description="of the curves of an epoch, and weight, of worse copies"
    )


class OtherCurves(RecipePart):
    """Made-up light curves, hidden points of which are told from the others."""

    source: Literal["simulation"]
    seed: int = Field(ge=0)
    count: int = Field(ge=0, description="made-up curves")


class Trees(RecipePart):
    """Boosted trees over the features, beside the network."""

    rounds: int = Field(300, ge=1, description="most trees for each class")
    patience: int = Field(20, ge=1, description="rounds without improvement of the stars of the other fold")
    rate: float = Field(0.1, gt=0, le=1)
    depth: int = Field(4, ge=1, le=12)
    child_weight: float = Field(1.0, ge=0)
    subsample: float = Field(0.8, gt=0, le=1)
    colsample: float = Field(0.5, gt=0, le=1)


Data = Annotated[LabelledCurves | OtherCurves, Field(discriminator="source")]


class VariableTreeRecipe(RecipeBase):
    """How the classifier is made: what its classes are, what it sees, and its two halves."""

    SOURCES = ("labelled", "simulation")
    FILES = ("labelled", "--table")

    task: Literal["variable-tree"] = "variable-tree"
    taxonomy: str = "tapetum"
    least: int = Field(6, ge=1, description="stars to learn from that a class needs to be an answer")
    length: int = Field(160, ge=8, le=1024, description="points of a curve that the network sees")
    without: list[str] = Field(
        default_factory=list,
        description="features that tell the survey rather than the star: the classifier does not see them",
    )
    data: list[Data] = Field(min_length=1)
    pretraining: Optimiser
    hidden: float = Field(0.4, gt=0, lt=1, description="share of points hidden in pre-training")
    misled: float = Field(
        0.2, ge=0, lt=1, description="share of its curves with another period than the true one"
    )
    folds: int = Field(4, ge=2, le=10, description="of the stars, and members of the committee of networks")
    trees: Trees = Trees()
    coverages: list[float] = Field([0.9, 0.95, 0.99], min_length=1, description="of the sets of classes")

    @property
    def labelled(self) -> LabelledCurves:
        """Where the labels are."""
        return next(entry for entry in self.data if isinstance(entry, LabelledCurves))

    @property
    def simulated(self) -> OtherCurves | None:
        """The made-up curves, if any."""
        return next((entry for entry in self.data if isinstance(entry, OtherCurves)), None)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if sum(isinstance(entry, LabelledCurves) for entry in self.data) != 1:
            raise ValueError("one source of labelled curves is needed")
        try:
            known = load_taxonomy(self.taxonomy).by_code
        except TapetumError as problem:
            raise ValueError(str(problem)) from None
        if unknown := [code for code in self.labelled.labels.values() if code not in known]:
            raise ValueError(f"{unknown[0]} is no class of the taxonomy {self.taxonomy}")
        return self
