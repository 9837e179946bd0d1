"""What every import ends with: whose weights these are, golden vectors, and both files in their place."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tapetum.core.errors import InputError, ModelError
from tapetum.models.card import Golden, ModelCard, SyntheticStamps, load_card, write_card
from tapetum.models.golden import golden_inputs, uniforms
from tapetum.models.registry import CARD_NAME, ONNX_NAME, load_template, template_names
from tapetum.models.runtime import Model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tapetum.models.card import CardBody, CardTemplate

GOLDEN_SEED, GOLDEN_COUNT = 7, 6


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes
    ----------
    card
        Of the imported model.
    folder
        Where it lies.
    new
        False when the same file had been imported before.
    """

    card: ModelCard
    folder: Path
    new: bool


def check_identity(path: Path, weights_sha256: str, template: CardTemplate) -> None:
    """Refuse weights that are not those of the template.

    Raises
    ------
    InputError
        Says whose they are, if that is known.
    """
    if weights_sha256 == template.weights_sha256:
        return
    for other in template_names():
        known = load_template(other)
        if known is not None and known.weights_sha256 == weights_sha256:
            raise InputError(
                f"{path}: these are the weights of {other}, not of {template.name}; use --name {other}"
            )
    raise InputError(
        f"{path}: these are not the weights of {template.name}; choose another name, and give the contract"
    )


def complete_card(body: CardBody, onnx: bytes) -> ModelCard:
    """The card with the sha256 of the network, and with golden vectors: checked, or made now where there are none.

    Raises
    ------
    ModelError
        The network does not give the golden vectors, or its inputs and outputs are not the card's.
    """
    values = {key: value for key, value in dict(body).items() if key != "weights_sha256"}
    card = ModelCard(**values, onnx_sha256=hashlib.sha256(onnx).hexdigest())
    model = Model(card, onnx, f"{card.name} {card.version}")
    if card.golden is not None:
        model.check_golden()
        return card
    stamps = features = None
    if card.images is not None:
        stamps = SyntheticStamps(seed=GOLDEN_SEED, count=GOLDEN_COUNT, size=max(card.images.size, 8))
    if card.features is not None:
        width = len(card.features.features)
        features = tuple(tuple(uniforms(GOLDEN_SEED, row, width).tolist()) for row in range(GOLDEN_COUNT))
    blank = tuple((0.0,) * len(card.outputs[0].columns) for _ in range(GOLDEN_COUNT))
    card = card.model_copy(update={"golden": Golden(stamps=stamps, features=features, outputs=blank)})
    outputs = tuple(tuple(row) for row in model.scores(golden_inputs(card)).tolist())
    golden = Golden(stamps=stamps, features=features, outputs=outputs)
    return ModelCard.model_validate(card.model_copy(update={"golden": golden}).model_dump())


def install(
    card: ModelCard, onnx: bytes, models: Path, path: Path, *, beside: Mapping[str, bytes] | None = None
) -> Imported:
    """Put both files in place under `models`; the folder appears whole.

    Parameters
    ----------
    card, onnx
        The model.
    models
        Folder of imported models.
    path
        What it was imported from, for messages.
    beside
        More files of its folder, by name.

    Raises
    ------
    InputError
        This version is there, from other weights or with another contract.
    """
    folder = models / card.name / card.version
    if (folder / CARD_NAME).is_file():
        old = load_card(folder / CARD_NAME)
        if old.source.sha256 != card.source.sha256 and old.onnx_sha256 != card.onnx_sha256:
            raise InputError(
                f"{path}: {card.name} {card.version} was imported from another file ({old.source.file}); "
                "give this one another --version or --name"
            )
        if (old.inputs, old.licence) != (card.inputs, card.licence):
            raise InputError(
                f"{path}: {card.name} {card.version} was imported with another contract; give a --version"
            )
        if is_intact(folder) and all((folder / name).is_file() for name in beside or ()):
            return Imported(old, folder, new=False)
        shutil.rmtree(folder)  # damaged since; the same file makes it whole again
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / ONNX_NAME).write_bytes(onnx)
    for name, content in (beside or {}).items():
        (part / name).write_bytes(content)
    write_card(part / CARD_NAME, card)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return Imported(card, folder, new=True)


def is_intact(folder: Path) -> bool:
    """Whether the model in a folder loads and gives its golden vectors."""
    try:
        Model.load(str(folder / ONNX_NAME))
    except ModelError:
        return False
    return True
