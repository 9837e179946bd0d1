"""Going on from an earlier classifier: which one, what it takes, and its weights. Needs neither torch nor xgboost.

The input contract of the earlier model (scaling, replacements of missing values) stays with its weights: with another
one the same weights would be another model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tapetum.core.errors import InputError, ModelError
from tapetum.finders.variables import members
from tapetum.models.card import load_card
from tapetum.models.registry import CARD_NAME, ONNX_NAME, find_model
from tapetum.models.trees_onnx import BOOSTER
from tapetum.training.variables_recipe import DMDT, FEATURES, WarmStart

if TYPE_CHECKING:
    from tapetum.models.card import DmdtContract, ModelCard, TableContract
    from tapetum.training.variables_recipe import ClassifierRecipe, FeatureRules

Weight = NDArray[np.float32]
CHOSEN = "trees.json"  # what cross-validation chose


def in_group(group: str | Path, algorithm: str) -> dict[str, Path]:
    """Class -> folder of the model of a kind, in a group.

    Raises
    ------
    ModelError
        There is no model in the folder, or one has no valid card.
    InputError
        Two are of one class.
    """
    found: dict[str, Path] = {}
    for folder in map(Path, members(group)):
        card = load_card(folder / CARD_NAME)
        if card.table is None or card.algorithm != algorithm:
            continue
        code = card.outputs[0].columns[0]
        if code in found:
            raise InputError(
                f"{group}: {found[code]} and {folder} are both of the class {code}; name one of them"
            )
        found[code] = folder
    return found


def warm_start(spec: str, code: str, algorithm: str) -> WarmStart:
    """The model of a class to go on from.

    Parameters
    ----------
    spec
        A model (name, ``name@version``, path), or a folder with a model for each class.
    code, algorithm
        What it must be of.

    Raises
    ------
    ModelError
        There is none, or the model is of another class or algorithm.
    """
    path = Path(spec)
    if path.is_dir() and not (path / CARD_NAME).is_file():
        folder = in_group(path, algorithm).get(code)
        if folder is None:
            raise ModelError(f"{spec}: no model of the class {code} by {algorithm} in it to go on from")
        path = folder
    files = find_model(str(path.absolute()) if path.exists() else spec)
    card = load_card(files.card)
    if card.table is None or card.algorithm != algorithm or card.outputs[0].columns != (code,):
        of = f"{', '.join(card.outputs[0].columns)} by {card.algorithm or 'something else'}"
        raise ModelError(f"{spec} answers for {of}; a training of {code} by {algorithm} cannot go on from it")
    return WarmStart(
        name=card.name, version=card.version, sha256=card.onnx_sha256, folder=str(files.card.parent)
    )


def card_of(recipe: ClassifierRecipe) -> ModelCard:
    """The card of the model to go on from."""
    assert recipe.warm_start is not None
    return load_card(Path(recipe.warm_start.folder) / CARD_NAME)


def contracts(recipe: ClassifierRecipe) -> tuple[TableContract, DmdtContract | None]:
    """What the model to go on from takes, periodic features by the period of the recipe.

    Raises
    ------
    InputError
        The recipe lists other features than the model has; names one.
    """
    card = card_of(recipe)
    assert card.table is not None
    _require_same_features(card, recipe.features)
    if recipe.features.dmdt != (card.dmdt is not None):
        takes = "takes" if card.dmdt else "does not take"
        raise InputError(f"{card.name} {takes} histograms of pairs, unlike the recipe: set features.dmdt")
    table = card.table.model_copy(update={"name": FEATURES, "period_suffix": recipe.features.period_suffix})
    # the same numbers in the same order, by the names and in the layout of our networks
    dmdt = None if card.dmdt is None else card.dmdt.model_copy(update={"name": DMDT, "layout": "nchw"})
    return table, dmdt


def _require_same_features(card: ModelCard, rules: FeatureRules) -> None:
    assert card.table is not None
    listed = {column.name for column in rules.columns if column.include}
    known = {feature.name for feature in card.table.included}
    which = f"{card.name} {card.version}, which training is to go on from,"
    if lacking := sorted(listed - known):
        raise InputError(
            f"{which} lacks the feature {lacking[0]} of the list; take it out of --features, or train without "
            "--warm-start"
        )
    if more := sorted(known - listed):
        raise InputError(
            f"{which} needs the feature {more[0]}, which is not in the list; add it to --features"
        )


@dataclass(frozen=True)
class Layers:
    """Weights of a network, layer by layer.

    Attributes
    ----------
    dense, convolutions
        Weight and bias of each, in the order of the computation, shaped as torch has them; no bias is None.
    """

    dense: tuple[tuple[Weight, Weight | None], ...]
    convolutions: tuple[tuple[Weight, Weight | None], ...]


def layers_of(recipe: ClassifierRecipe) -> Layers:
    """Layers of the network to go on from, whoever made it.

    Raises
    ------
    InputError
        The file is no ONNX, or holds no such network.
    """
    import onnx

    assert recipe.warm_start is not None
    path = Path(recipe.warm_start.folder) / ONNX_NAME
    graph = onnx.load(path).graph
    arrays: dict[str, Weight] = {
        entry.name: onnx.numpy_helper.to_array(entry).copy() for entry in graph.initializer
    }
    found: dict[str, list[tuple[Weight, Weight | None]]] = {"Gemm": [], "Conv": []}
    for node in graph.node:
        if node.op_type not in found:
            continue
        weight = arrays.get(node.input[1]) if len(node.input) > 1 else None
        if weight is None:
            raise InputError(f"{path}: the weights of a layer ({node.op_type}) are not in the file")
        turned = any(entry.name == "transB" and entry.i for entry in node.attribute)
        bias = arrays.get(node.input[2]) if len(node.input) > 2 else None
        found[node.op_type].append((weight.T if node.op_type == "Gemm" and not turned else weight, bias))
    return Layers(tuple(found["Gemm"]), tuple(found["Conv"]))


def booster_of(recipe: ClassifierRecipe) -> tuple[bytes, dict[str, Any]]:
    """Trees to go on from as xgboost reads them, and the numbers they were made with where that is known.

    Raises
    ------
    InputError
        The model has no such file.
    """
    assert recipe.warm_start is not None
    folder = Path(recipe.warm_start.folder)
    path = folder / BOOSTER
    if not path.is_file():
        raise InputError(f"{path}: no such file, without which no training can go on from these trees")
    chosen = folder / CHOSEN
    numbers = json.loads(chosen.read_text(encoding="utf-8"))["chosen"] if chosen.is_file() else {}
    return path.read_bytes(), numbers
