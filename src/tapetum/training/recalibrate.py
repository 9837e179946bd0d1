"""The calibration of a stamp model, fitted again on other alerts. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tapetum.core.errors import UsageError
from tapetum.core.files import whole_file
from tapetum.models.card import write_card
from tapetum.models.registry import CARD_NAME, ONNX_NAME, find_model
from tapetum.models.runtime import Model
from tapetum.training.datasets import join, open_sources
from tapetum.training.recipe import PacketData
from tapetum.training.record import data_sets_of, join_keys, keys_of
from tapetum.training.run import numbers_of, require_sources
from tapetum.training.scoring import known
from tapetum.training.split import USED_ROLES
from tapetum.training.stamp_card import measured, require_both_classes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from tapetum.models.card import ModelCard
    from tapetum.training.datasets import Examples, Key
    from tapetum.training.recipe import Recipe
    from tapetum.training.split import Role

CALIBRATED = "Calibration of version"  # how the note of a new calibration begins


def recalibrate(
    spec: str,
    recipe: Recipe,
    paths: Sequence[Path],
    folder: Path,
    *,
    method: str,
    today: date,
    also: Collection[str] = (),
) -> ModelCard:
    """Fit the calibration of a model again on validation examples; the next PATCH version.

    Parameters
    ----------
    spec
        Name, ``name@version`` or path of the model.
    recipe
        Has the rules of truth, and says what the sources in `also` are.
    paths
        Alerts of the user.
    folder
        Gets ``model.onnx``, unchanged, and ``card.json``: thresholds, metrics and reliability diagram are those
        of these alerts, and nothing is left of the earlier ones.
    method
        temperature, platt or isotonic.
    today
        Date for the card.
    also
        Kinds of data source of the recipe that are used besides `paths`.

    Raises
    ------
    ModelError
        No such model.
    UsageError
        There are neither `paths` nor `also`, or the recipe has no such source.
    InputError
        The sources have no validation examples of both classes.
    """
    files = find_model(spec)
    card = Model.load(spec).card
    recipe = _for_calibration(recipe, paths, also)
    sources = [source for source, _ in open_sources(recipe, paths)]
    sets: dict[str, Examples] = {
        role: known(join([source.examples(role) for source in sources])) for role in USED_ROLES[1:]
    }
    require_both_classes(sets["validation"])
    card = measured(_renewed(card, recipe, keys_of(sources, 1), method, today), files.onnx, sets, method)
    with whole_file(folder / ONNX_NAME) as part:
        part.write_bytes(files.onnx.read_bytes())
    write_card(folder / CARD_NAME, card)
    return card


def _for_calibration(recipe: Recipe, paths: Sequence[Path], also: Collection[str]) -> Recipe:
    require_sources("--with", also, recipe)
    if missing := sorted(set(also) - {entry.source for entry in recipe.data}):
        raise UsageError(f"--with {missing[0]}: the recipe {recipe.name} has no such data source")
    packets = [PacketData(source="packets")] if paths else []
    others = [entry for entry in recipe.data if entry.source in also and not isinstance(entry, PacketData)]
    if not packets and not others:
        raise UsageError(
            "nothing to calibrate on: name alerts with --alerts, or give --with sample or simulation"
        )
    return recipe.model_copy(update={"data": [*packets, *others]})


def _renewed(
    card: ModelCard, recipe: Recipe, keys: Mapping[Role, Sequence[Sequence[Key]]], method: str, today: date
) -> ModelCard:
    # the card of the same network with nothing left that the earlier calibration made true
    major, minor, patch = numbers_of(card.version)
    version = f"{major}.{minor}.{patch + 1}"
    learned = tuple(entry for entry in card.training.data if entry.role == "training")
    # the recipe's other citations are of its own packets, not of the user's
    simulated = {name: text for name, text in recipe.card.citations.items() if name == "simulated"}
    used = {role: join_keys(keys[role]) for role in USED_ROLES[1:]}
    data = learned + data_sets_of(used, simulated)
    fitted = ", ".join(f"{entry.n} {entry.name}" for entry in data if entry.role == "validation")
    note = (
        f"{CALIBRATED} {version}: {method}, fitted on {fitted} (validation part of the split); any mix named above is "
        "that of an earlier version."
    )
    kept = [text for text in card.notes if not text.startswith(CALIBRATED)]
    return card.model_copy(
        update={
            "version": version,
            "created": today.isoformat(),
            "metrics": {},
            "reliability": None,
            "thresholds": {},
            "training": card.training.model_copy(update={"data": data}),
            "notes": (*kept, note),
        }
    )
