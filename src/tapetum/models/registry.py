"""Find a model: in the package, among the imported ones, or at a path."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from tapetum.core.errors import ModelError
from tapetum.core.places import cache_dir
from tapetum.models.card import CardTemplate, parse_card

ONNX_NAME, CARD_NAME = "model.onnx", "card.json"
PUBLISHED = ("maximask", "maxitrack")  # in the package index; imported without a file of the user
_SPEC = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]*)(?:@(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies.

    Attributes
    ----------
    name
        As it was asked for; the card says the true one.
    version
        Empty where only the card knows it.
    onnx, card
        The two files.
    origin
        In the package, imported by the user, or named by path.
    """

    name: str
    version: str
    onnx: Path
    card: Path
    origin: Literal["package", "imported", "path"]


def weights_dir() -> Path:
    """Models that come with the package."""
    return Path(str(files("tapetum.models"))) / "weights"


def imported_dir() -> Path:
    """Models that the user imported: ``$XDG_CACHE_HOME/tapetum/models/<name>/<version>/``."""
    return cache_dir() / "models"


def packaged_names() -> set[str]:
    """Names of the models that come with the package; no imported model may hide one."""
    return {model.name for model in _packaged()}


def template_names() -> list[str]:
    """Names of the foreign models whose card comes with us, sorted."""
    folder = files("tapetum.models") / "templates"
    return sorted(
        entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")
    )


def load_template(name: str) -> CardTemplate | None:
    """The card that comes with us for a foreign model, or None."""
    if name not in template_names():
        return None
    text = (files("tapetum.models") / "templates" / f"{name}.json").read_text(encoding="utf-8")
    return parse_card(text, f"template {name}", CardTemplate)


def list_models() -> list[ModelFiles]:
    """Every model of the package and every imported version, by name, newest first."""
    return sorted(
        _packaged() + _imported(), key=lambda model: (model.name, [-n for n in _numbers(model.version)])
    )


def find_model(spec: str) -> ModelFiles:
    """Find a model.

    Parameters
    ----------
    spec
        ``name`` (the newest version wins), ``name@version``, or the path of a folder or of an ONNX file with
        ``card.json`` beside it; a path has a separator or ends in ``.onnx``.

    Raises
    ------
    ModelError
        There is no such model; says what to do about it.
    """
    if os.sep in spec or spec.endswith(".onnx"):
        return _at_path(Path(spec))
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ModelError(f"{spec!r} is not a model: give a name, name@version, or a path")
    name, version = match["name"], match["version"]
    found = [model for model in list_models() if model.name == name]
    for model in found:
        if version in (None, model.version):
            return model
    if found:
        known = ", ".join(model.version for model in found)
        raise ModelError(f"{name} has no version {version}; there is {known}")
    if name in template_names():
        how = name if name in PUBLISHED else f"FILE --name {name}"
        raise ModelError(f"{name} is known but not imported: tapetum models import {how}")
    names = sorted({model.name for model in list_models()} | set(template_names()))
    raise ModelError(f"there is no model {name!r}; known: {', '.join(names)} (tapetum models list)")


def _at_path(path: Path) -> ModelFiles:
    folder, onnx = (path, path / ONNX_NAME) if path.is_dir() else (path.parent, path)
    for file in (onnx, folder / CARD_NAME):
        if not file.is_file():
            raise ModelError(f"{file}: no such file; a model is a folder with {ONNX_NAME} and {CARD_NAME}")
    return ModelFiles(folder.resolve().name, "", onnx, folder / CARD_NAME, "path")


def _packaged() -> list[ModelFiles]:
    found = []
    for card in sorted(weights_dir().glob(f"*/{CARD_NAME}")):
        version = re.search(r'"version":\s*"([^"]+)"', card.read_text(encoding="utf-8"))
        if version is not None:
            name = card.parent.name
            found.append(ModelFiles(name, version[1], card.with_name(ONNX_NAME), card, "package"))
    return found


def _imported() -> list[ModelFiles]:
    return [
        ModelFiles(card.parents[1].name, card.parent.name, card.with_name(ONNX_NAME), card, "imported")
        for card in imported_dir().glob(f"*/*/{CARD_NAME}")
        if _VERSION.fullmatch(card.parent.name)
    ]


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]
