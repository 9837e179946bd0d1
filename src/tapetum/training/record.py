"""What a run says of itself in every kind of training: which examples, which settings, the card's first half.

Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Protocol

from tapetum.core.files import sha256_of
from tapetum.models.card import DataSet, Training
from tapetum.models.card import Source as CardSource
from tapetum.training.split import USED_ROLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from tapetum.training.datasets import Key
    from tapetum.training.recipe import RecipeBase
    from tapetum.training.split import Role

SPLIT = (
    "by object: int(sha1(object_id)[:8], 16) % 10 is 5 to 9 for training (of which int(sha1(object_id)[8:16], 16) % 10 "
    "0 and 1 for validation and calibration), 3 and 4 for test, 0 to 2 never read; simulated objects by their names too"
)


class Keyed(Protocol):
    """A source that names its examples."""

    def keys(self, role: Role, epochs: int) -> list[Key]:
        """Every example that a run of so many epochs shows in a role."""
        ...


def keys_of(sources: Sequence[Keyed], epochs: int) -> dict[Role, list[list[Key]]]:
    """Every example that a run uses, by role and source."""
    return {role: [source.keys(role, epochs) for source in sources] for role in USED_ROLES}


def fingerprint(keys: Mapping[Role, Sequence[Sequence[Key]]]) -> str:
    """Hash of the names of all examples, by role and source, in order."""
    digest = hashlib.sha256()
    for role, sources in keys.items():
        for number, names in enumerate(sources):
            for key in names:
                digest.update(json.dumps([role, number, *key]).encode() + b"\n")
    return digest.hexdigest()


def settings_of(recipe: RecipeBase) -> dict[str, Any]:
    """A recipe without the words of its card, as JSON."""
    # the words of the card may change between the start and the end of a run
    settings: dict[str, Any] = recipe.model_dump(mode="json", exclude={"card"})
    return settings


def join_keys(sources: Sequence[Sequence[Key]]) -> list[Key]:
    """The examples of all sources, in order."""
    return [key for names in sources for key in names]


def data_sets_of(used: Mapping[Role, Sequence[Key]], citations: Mapping[str, str]) -> tuple[DataSet, ...]:
    """What a card says of the examples, by role and origin."""
    data = []
    for role, keys in used.items():
        for origin in sorted({key.origin for key in keys}):
            objects = [key.object_id for key in keys if key.origin == origin]
            data.append(
                DataSet(
                    name=origin,
                    n=len(objects),
                    role="training" if role == "fit" else "validation" if role == "validation" else "test",
                    description=f"{len(set(objects))} objects",
                    citation=citations.get(origin),
                )
            )
    return tuple(data)


def card_body(
    recipe: RecipeBase, onnx: Path, data: tuple[DataSet, ...], today: date, *, split: str = SPLIT
) -> dict[str, Any]:
    """The fields of a card that follow from any recipe; inputs, outputs, classes and figures are the task's.

    Parameters
    ----------
    recipe
        That the network was made by.
    onnx
        ``model.onnx``.
    data
        Its examples.
    today
        Date of the card.
    split
        How they were told apart.
    """
    return {
        "name": recipe.name,
        "version": recipe.card.version,
        "title": recipe.card.title,
        "licence": "BSD-3-Clause",
        "authors": ("The Tapetum developers",),
        "source": CardSource(description=recipe.card.description),
        "created": today.isoformat(),
        "onnx_sha256": sha256_of(onnx),
        "training": Training(
            description=recipe.card.description, data=data, split=split, recipe=settings_of(recipe)
        ),
        "notes": tuple(recipe.card.notes),
        "limitations": tuple(recipe.card.limitations),
    }
