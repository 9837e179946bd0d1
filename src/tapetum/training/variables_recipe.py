"""Recipes of classifiers for one class of variable: a network, or boosted trees. Needs neither torch nor xgboost."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, ValidationError, field_serializer, model_validator

from tapetum.core.errors import InputError, UsageError
from tapetum.finders.taxonomy import load_taxonomy
from tapetum.models.feature_statistics import read_statistics
from tapetum.training.recipe import (
    CalibrationSpec,
    NetworkSpec,
    Optimiser,
    PatientOptimiser,
    RecipeBase,
    RecipePart,
    load_any_recipe,
    recipe_names,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

Algorithm = Literal["dnn", "xgb"]
Missing = Literal["drop", "zero", "median", "mean", "regress", "keep"]
PREFIX = "variables-"
FEATURES, DMDT = "features", "dmdt"  # inputs of the models that are made here


class FeatureChoice(RecipePart):
    """One feature of a classifier."""

    name: str
    include: bool = True
    dtype: Literal["float32", "float64", "int64"] = "float64"
    periodic: bool = False
    missing: Missing | None = Field(
        None, description="instead of the described rule for the name; see `tapetum.lightcurves.impute`"
    )


class FeatureStatistics(RecipePart):
    """Numbers of a feature that it is scaled by."""

    min: float | None = None
    max: float | None = None
    median: float | None = None
    std: float | None = None


class FeatureRules(RecipePart):
    """What a classifier sees of a feature table."""

    columns: list[FeatureChoice] = Field(min_length=1)
    period_suffix: str = Field("", description="algorithm of the period, at the end of the periodic columns")
    scaling: Literal["none", "min_max", "median_std"] = "min_max"
    statistics: dict[str, FeatureStatistics] = Field(
        default_factory=dict, description="by feature, instead of those of the training part"
    )
    limit: float = Field(10.0, gt=0, description="scaled values stay within +-limit")
    otherwise: Missing = Field("drop", description="rule for missing values of features without one")
    dmdt: bool = Field(True, description="also the histogram of pairs")


class LabelledTable(RecipePart):
    """A feature table the user names with ``--table``, with what is known of the classes."""

    source: Literal["table"] = "table"
    threshold: float = Field(
        0.7, ge=0, lt=1, description="confidence of a label above which a row is of the class"
    )
    column: str = Field(
        "scope_class", description="text with the one class of a row, where the table has no column of labels"
    )
    other_view: Literal["unknown", "negative"] = Field(
        "unknown", description="what a class of the other view (how it looks, what it is) says about this one"
    )


class WarmStart(RecipePart):
    """The model that a training goes on from."""

    name: str
    version: str
    sha256: str = Field(description="of its model.onnx")
    folder: str = Field("", exclude=True, description="where it lies here; in no record of the run")


class ClassifierRecipe(RecipeBase):
    """What recipes of a classifier have in common, whatever it is."""

    SOURCES = ("table",)
    FILES = ("table", "--table")

    of: str = Field(description="code of the class in the taxonomy")
    taxonomy: str = Field(
        "scope", description="name or TOML file; records of a run have the name of the file alone"
    )
    algorithm: Algorithm
    features: FeatureRules
    data: list[LabelledTable] = Field(default=[LabelledTable()], min_length=1, max_length=1)
    balance: float | None = Field(
        None, gt=0, description="most rows of the larger class for each one of the smaller; none: all"
    )
    weighted: bool = Field(False, description="both classes weigh the same")
    warm_start: WarmStart | None = Field(
        None, description="goes on from this model, whose input contract (scaling, imputation) it keeps"
    )
    calibration: CalibrationSpec = CalibrationSpec()

    @field_serializer("taxonomy")
    def _name_of_taxonomy(self, taxonomy: str) -> str:
        return Path(taxonomy).name if Path(taxonomy).suffix == ".toml" else taxonomy


class VariablesRecipe(ClassifierRecipe):
    """A network over features and the histogram of pairs."""

    task: Literal["variables"] = "variables"
    algorithm: Literal["dnn"] = "dnn"
    network: NetworkSpec = NetworkSpec(name="variables")
    optimiser: PatientOptimiser

    @model_validator(mode="after")
    def _possible(self) -> Self:
        kept = [column.name for column in self.features.columns if column.missing == "keep"]
        if kept or self.features.otherwise == "keep":
            raise ValueError(
                f"a network takes no missing values, but {(kept or ['otherwise'])[0]} keeps them"
            )
        return self


class Boosting(Optimiser):
    """Boosted trees; `epochs` is the largest number of trees, `rate` what each counts."""

    epochs: int = Field(999, ge=1)
    rate: float = Field(0.1, gt=0, le=1)
    patience: int = Field(10, ge=1, description="trees without improvement after which the run ends")
    max_depth: int = Field(6, ge=1)
    min_child_weight: float = Field(1.0, ge=0)
    subsample: float = Field(1.0, gt=0, le=1)
    colsample: float = Field(1.0, gt=0, le=1, description="share of the features that a tree sees")
    folds: int = Field(5, ge=2, description="of the cross-validation, by source")
    search: bool = Field(
        True, description="choose the numbers below by cross-validation, one grid after the other"
    )
    depths: tuple[int, ...] = (3, 5, 7)
    child_weights: tuple[float, ...] = (1, 3, 5)
    shares: tuple[float, ...] = Field(default=(0.6, 0.8, 1.0), description="of subsample and colsample")
    rates: tuple[float, ...] = (0.3, 0.2, 0.1, 0.05)
    refine: bool = Field(True, description="then also the neighbours of what was chosen")


class TreesRecipe(ClassifierRecipe):
    """Boosted trees over features."""

    NETWORK = False

    task: Literal["trees"] = "trees"
    algorithm: Literal["xgb"] = "xgb"
    network: NetworkSpec = NetworkSpec(name="trees")
    optimiser: Boosting

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.features.dmdt:
            raise ValueError("boosted trees take no histogram of pairs: features.dmdt must be false")
        return self


def classifier_recipe(
    name: str, algorithm: str, changes: Mapping[str, Any] | None = None, taxonomy: str = "scope"
) -> VariablesRecipe | TreesRecipe:
    """The recipe of a classifier by the name of its class.

    Parameters
    ----------
    name
        ``variables-<class>``, the class by its code in the taxonomy.
    algorithm
        dnn or xgb.
    changes
        Keys of the recipe and their values, tables within tables; instead of those in the package.
    taxonomy
        Name or file.

    Raises
    ------
    UsageError
        There is no such class or algorithm.
    InputError
        The changes make no valid recipe; names the key.
    """
    made: dict[str, type[VariablesRecipe] | type[TreesRecipe]] = {"dnn": VariablesRecipe, "xgb": TreesRecipe}
    if algorithm not in made:
        raise UsageError(f"--algorithm {algorithm}: there are {' and '.join(made)}")
    entry = load_taxonomy(taxonomy).of(name.removeprefix(PREFIX))
    content = _template(f"{algorithm}.toml")
    content["features"] = {**content["features"], **_template(f"{entry.view}.toml")}
    content |= {"of": entry.code, "taxonomy": taxonomy, "weighted": entry.weighted}
    content["name"] = f"{PREFIX}{entry.code}-{algorithm}"
    content["card"] = {**content["card"], "title": f"Is it of the class {entry.label}? ({algorithm})"}
    try:
        return made[algorithm].model_validate(_merged(content, changes or {}))
    except ValidationError as problem:
        first = problem.errors()[0]
        raise InputError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


@dataclass(frozen=True)
class ClassifierOptions:
    """What can be said of the training of a classifier beside its class; None and () leave it to the recipe.

    Attributes
    ----------
    algorithm
        dnn or xgb.
    taxonomy
        Name or file of the classes.
    period_suffix
        Algorithm of the period.
    features, statistics
        Files with a feature list, and with the numbers that features are scaled by.
    skip_cv
        Boosted trees: no cross-validation.
    seed, threshold, balance, weighted, scaling, batch, rate, patience
        Keys of the recipe.
    assignments
        Any other key of the recipe, as ``optimiser.beta_1=0.8``.
    """

    algorithm: str | None = None
    taxonomy: str | None = None
    period_suffix: str | None = None
    features: Path | None = None
    statistics: Path | None = None
    skip_cv: bool = False
    seed: int | None = None
    threshold: float | None = None
    balance: float | None = None
    weighted: bool | None = None
    scaling: str | None = None
    batch: int | None = None
    rate: float | None = None
    patience: int | None = None
    assignments: tuple[str, ...] = ()

    def given(self) -> list[str]:
        """Options of the command line that say something."""
        return [
            OPTIONS.get(entry.name, "--" + entry.name.replace("_", "-"))
            for entry in fields(self)
            if getattr(self, entry.name) not in (None, False, ())
            or (entry.name == "weighted" and self.weighted is False)
        ]

    def changes(self, epochs: int | None = None, version: str | None = None) -> dict[str, Any]:
        """The same as keys of a recipe and their values, tables within tables.

        Raises
        ------
        InputError
            A file cannot be read, or is not what it should be.
        UsageError
            An assignment is none, or an option is for the other algorithm.
        """
        if self.skip_cv and self.algorithm != "xgb":
            raise UsageError("--skip-cv is for boosted trees (--algorithm xgb)")
        features = read_feature_rules(self.features) if self.features else {}
        statistics = _scaling_of(self.statistics) if self.statistics else None
        data = {key: value for key, value in (("threshold", self.threshold),) if value is not None}
        found: dict[str, Any] = {
            "features": features
            | _known(period_suffix=self.period_suffix, scaling=self.scaling, statistics=statistics),
            "optimiser": _known(epochs=epochs, batch=self.batch, rate=self.rate, patience=self.patience),
            "card": _known(version=version),
            **_known(seed=self.seed, balance=self.balance, weighted=self.weighted),
        }
        if self.skip_cv:
            found["optimiser"]["search"] = False
        for text in self.assignments:
            found = _merged(found, assignment(text))
        data |= found.pop("data", {})
        return found | ({"data": [data]} if data else {})


OPTIONS = {
    "statistics": "--feature-stats", "batch": "--batch-size", "assignments": "--set", "weighted": "--weighted",
}  # fmt: skip
"""Fields of `ClassifierOptions` whose option has another name."""
FIXED = (
    "task",
    "of",
    "algorithm",
    "taxonomy",
    "name",
    "warm_start",
)  # keys with an option or argument of their own


def assignment(text: str) -> dict[str, Any]:
    """``optimiser.beta_1=0.8`` as tables within tables; a value that is no TOML is text.

    Raises
    ------
    UsageError
        It has no ``=``, or the key is said elsewhere.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    names = key.split(".")
    if not equals or not all(names):
        raise UsageError(f"--set {text}: write KEY=VALUE, as in optimiser.beta_1=0.8")
    if names[0] in FIXED:
        raise UsageError(f"--set {text}: {names[0]} is said by an argument or option of its own")
    try:
        found: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        found = value
    for name in reversed(names):
        found = {name: found}
    return dict(found)


def _known(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def any_recipe(
    name: str,
    epochs: int | None = None,
    *,
    model_name: str | None = None,
    version: str | None = None,
    options: ClassifierOptions | None = None,
    warm_start: WarmStart | None = None,
) -> RecipeBase:
    """A recipe of any kind by name, where ``variables-<class>`` is that of a classifier.

    Parameters
    ----------
    name
        As `tapetum.training.recipe.load_any_recipe` and `classifier_recipe` take it.
    epochs, model_name, version
        Instead of those in the recipe.
    options, warm_start
        Of a classifier alone.

    Raises
    ------
    UsageError
        An option of classifiers was given for another recipe, or a classifier without algorithm.
    InputError
        No such recipe, or it is not a valid one; the message names the key.
    """
    options = options or ClassifierOptions()
    if not is_classifier(name):
        given = options.given() + (["--warm-start"] if warm_start else [])
        if given:
            raise UsageError(f"{given[0]} is for classifiers (variables-CLASS), not for the recipe {name}")
        return load_any_recipe(name, epochs, model_name=model_name, version=version)
    if options.algorithm is None:
        raise UsageError(f"{name}: say how with --algorithm dnn or --algorithm xgb")
    changes = options.changes(epochs, version) | _known(name=model_name, warm_start=warm_start)
    return classifier_recipe(name, options.algorithm, changes, options.taxonomy or "scope")


def is_classifier(name: str) -> bool:
    """Whether a recipe is that of a classifier for one class: ``variables-<class>``."""
    return name.startswith(PREFIX) and not name.endswith(".toml") and name not in recipe_names()


def _scaling_of(path: Path) -> dict[str, dict[str, float]]:
    """Numbers that features are scaled by, from a TOML or JSON file; those that no scaling needs are passed over."""
    wanted = set(FeatureStatistics.model_fields)
    return {
        name: {key: value for key, value in numbers.items() if key in wanted}
        for name, numbers in read_statistics(path).items()
    }


def _template(name: str) -> dict[str, Any]:
    folder = files("tapetum.training") / "recipes" / "variables"
    return tomllib.loads((folder / name).read_text(encoding="utf-8"))


def _merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(content)
    for key, value in changes.items():
        inner = out.get(key)
        out[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return out


def read_feature_rules(path: Path) -> dict[str, Any]:
    """A feature list from a TOML file, as the key ``features`` of a recipe.

    Raises
    ------
    InputError
        The file cannot be read, or is not a feature list.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        FeatureRules.model_validate(content)
    except OSError as problem:
        raise InputError(f"{path}: cannot be read: {problem.strerror or problem}") from None
    except (ValueError, ValidationError) as problem:
        raise InputError(f"{path}: not a list of features: {str(problem).partition(chr(10))[0]}") from None
    return content
