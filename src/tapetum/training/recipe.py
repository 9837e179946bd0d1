"""A recipe: one TOML file that says how a network is made, from data to card.

Its key ``task`` says of which kind it is; what recipes of all kinds have in common is `RecipeBase`.
"""

from __future__ import annotations

import tomllib
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tapetum.core.errors import InputError
from tapetum.models.card import ImageContract, Name, Version
from tapetum.training.truth import TruthRules

if TYPE_CHECKING:
    from collections.abc import Mapping


class RecipePart(BaseModel):
    """A part of a recipe: no key that it does not know, nothing changed after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PacketData(RecipePart):
    """Alert packets the user names with ``--alerts``."""

    source: Literal["packets"]
    repeat: int = Field(1, ge=1, description="times an example goes through the network in an epoch")


class SampleData(RecipePart):
    """Alert packets of the package index."""

    source: Literal["sample"]
    sample: str
    repeat: int = Field(1, ge=1)


class SimulatedData(RecipePart):
    """Simulated alerts."""

    source: Literal["simulation"]
    seed: int = Field(ge=0)
    mix: dict[str, Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="scenario -> share, of any sum"
    )
    flip: float = Field(
        0.85, ge=0, le=1, description="share of surveys that flip the sign of negative differences"
    )
    pool: int = Field(ge=1, description="alerts of an epoch")
    renew: int = Field(0, ge=0, description="of which this many are new in each epoch")
    validation: int = Field(ge=0)
    test: int = Field(ge=0)
    repeat: int = Field(1, ge=1)


Data = Annotated[PacketData | SampleData | SimulatedData, Field(discriminator="source")]


class SimulatedPool(RecipePart):
    """Simulated examples: a pool to learn from that renews itself, and fixed ones to be judged by."""

    source: Literal["simulation"]
    seed: int = Field(ge=0)
    pool: int = Field(ge=1, description="examples of an epoch")
    renew: int = Field(0, ge=0, description="of which this many are new in each epoch")
    validation: int = Field(ge=1)
    test: int = Field(ge=1)


class NetworkSpec(RecipePart):
    """A network of `tapetum.training.networks` and its arguments."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Augmentation(RecipePart):
    """Share of the real and simulated examples that each change is made to, whenever they are shown."""

    resample: float = Field(0.0, ge=0, le=1, description="zoom and sub-pixel shift, of real stamps")
    zoom: tuple[float, float] = (0.75, 1.5)
    shift_pix: float = Field(0.5, ge=0)
    noise: float = Field(0.0, ge=0, le=1, description="more noise in science and difference")
    gradient: float = Field(0.0, ge=0, le=1, description="sloping background in science or template")
    swap: float = Field(0.0, ge=0, le=1, description="science and template change places")
    crop: float = Field(0.0, ge=0, le=1, description="smaller stamps, the source still in the middle")
    cut: float = Field(
        0.0, ge=0, le=1, description="rows or columns are missing, the rest moves to the array origin"
    )
    band: float = Field(0.0, ge=0, le=1, description="a ragged band along one side has no values")
    block: float = Field(0.0, ge=0, le=1, description="a rectangle has no values")
    holes: float = Field(0.0, ge=0, le=1, description="single pixels have no values")


class Optimiser(RecipePart):
    """AdamW with a one-cycle rate and an average of the weights."""

    epochs: int = Field(ge=1)
    batch: int = Field(128, ge=2)
    rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warm_up: float = Field(0.1, gt=0, lt=1, description="share of the steps in which the rate rises")
    average: float = Field(
        0.998, ge=0, lt=1, description="decay per step of the averaged weights, which are what is exported"
    )
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient; none: not limited")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="bf16: the network computes in bfloat16 where torch's autocast does; losses in float32",
    )
    memory: Literal["contiguous", "channels_last"] = Field(
        "contiguous", description="order of images in memory; channels_last is faster for most convolutions"
    )


class PatientOptimiser(Optimiser):
    """A constant rate that falls where validation no longer improves, and an end where it has not for long.

    The described training of light-curve networks; the network of the best epoch is what is exported.
    """

    average: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    patience: int = Field(20, ge=1, description="epochs without improvement after which the run ends")
    rate_patience: int = Field(10, ge=1, description="epochs without improvement after which the rate falls")
    rate_factor: float = Field(0.1, gt=0, lt=1, description="by which it falls")
    least_gain: float = Field(1e-4, ge=0, description="of the validation loss that counts for the rate")
    decay: float = Field(0.0, ge=0, description="the rate is divided by one plus this times the steps so far")
    beta_1: float = Field(0.9, ge=0, lt=1, description="of AdamW: memory of the gradient")
    beta_2: float = Field(0.999, ge=0, lt=1, description="of AdamW: memory of its square")
    epsilon: float = Field(1e-7, gt=0, description="of AdamW")
    amsgrad: bool = False


class CalibrationSpec(RecipePart):
    """How scores become probabilities."""

    method: Literal["temperature", "platt", "isotonic"] = "platt"


class CardSpec(RecipePart):
    """What the card says that no measurement can."""

    title: str
    version: Version
    description: str
    notes: list[str] = Field(default_factory=list)
    limitations: list[str] = Field(default_factory=list)
    citations: dict[str, str] = Field(
        default_factory=dict, description="data set -> where it comes from and its licence"
    )


class RecipeBase(RecipePart):
    """What recipes of every kind have: everything that makes a network, but the files the user names.

    A kind adds its `task` (a key of `tapetum.training.task.TASKS` and of `RECIPES`), its list `data`, whose entries
    have a `source`, and whatever else it needs. `SOURCES` are the names of the sources that it knows, `FILES` the
    one among them that takes the files of the user and the option that names these. `NETWORK` is false where what is
    made is no network, and torch not needed.
    """

    SOURCES: ClassVar[tuple[str, ...]]
    FILES: ClassVar[tuple[str, str]]
    NETWORK: ClassVar[bool] = True

    task: str
    name: Name
    seed: int = Field(ge=0)
    opset: int = Field(20, ge=17)
    card: CardSpec
    network: NetworkSpec
    data: list[Any] = Field(min_length=1)
    optimiser: Optimiser


class Recipe(RecipeBase):
    """How a network that judges the stamps of an alert is made."""

    SOURCES = ("packets", "sample", "simulation")
    FILES = ("packets", "--alerts")

    task: Literal["stamps"] = "stamps"
    input: ImageContract
    truth: TruthRules = TruthRules()
    data: list[Data] = Field(min_length=1)
    augment: Augmentation = Augmentation()
    calibration: CalibrationSpec = CalibrationSpec()


RECIPES: Mapping[str, str] = {
    "stamps": "tapetum.training.recipe:Recipe",
    "masks": "tapetum.training.mask_recipe:MaskRecipe",
    "tracking": "tapetum.training.tracking_recipe:TrackingRecipe",
    "variables": "tapetum.training.variables_recipe:VariablesRecipe",
    "trees": "tapetum.training.variables_recipe:TreesRecipe",
    "variable-tree": "tapetum.training.variable_tree_recipe:VariableTreeRecipe",
}
"""``task`` of a recipe -> ``module:class``, a `RecipeBase`; no torch is imported."""


def recipe_names() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in _folder().iterdir() if entry.name.endswith(".toml")
    )


def load_recipe(
    name: str, epochs: int | None = None, *, model_name: str | None = None, version: str | None = None
) -> Recipe:
    """Load a recipe for stamps by its name, or from a path that ends in ``.toml``.

    Parameters
    ----------
    name
        Recipe or path.
    epochs, model_name, version
        Instead of those in the recipe.

    Raises
    ------
    InputError
        No such recipe, it is not a valid one (the message names the key), or it is of another kind.
    """
    recipe = load_any_recipe(name, epochs, model_name=model_name, version=version)
    if not isinstance(recipe, Recipe):
        raise InputError(f"{name}: a recipe of the task {recipe.task!r}; here one for stamps is needed")
    return recipe


def load_any_recipe(
    name: str, epochs: int | None = None, *, model_name: str | None = None, version: str | None = None
) -> RecipeBase:
    """Load a recipe of any kind, as `load_recipe` does.

    Raises
    ------
    InputError
        No such recipe, or it is not a valid one; the message names the key.
    """
    try:
        content = tomllib.loads(_text(name))
    except tomllib.TOMLDecodeError as problem:
        raise InputError(f"{name}: not valid TOML: {problem}") from None
    if epochs is not None:
        content.setdefault("optimiser", {})["epochs"] = epochs
    if model_name is not None:
        content["name"] = model_name
    if version is not None:
        content.setdefault("card", {})["version"] = version
    kind = content.get("task", "stamps")
    if kind not in RECIPES:
        raise InputError(f"{name}: task: {kind!r} is none of {', '.join(RECIPES)}")
    module, _, attribute = RECIPES[kind].partition(":")
    made: type[RecipeBase] = getattr(import_module(module), attribute)
    try:
        return made.model_validate(content)
    except ValidationError as problem:
        first = problem.errors()[0]
        raise InputError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _text(name: str) -> str:
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise InputError(f"{name}: no such recipe")
        return Path(name).read_text(encoding="utf-8")
    if name not in recipe_names():
        raise InputError(
            f"{name!r} is not a recipe; known: {', '.join(recipe_names())}, or the path of a recipe.toml"
        )
    return str((_folder() / f"{name}.toml").read_text(encoding="utf-8"))


def _folder() -> Any:
    return files("tapetum.training") / "recipes"
