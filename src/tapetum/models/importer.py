"""Bring a Keras network in: weights become ONNX, and what must be known to use them becomes a card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from pydantic import ValidationError

from tapetum.alerts.batch import STAMP_NAMES
from tapetum.core.errors import FormatError, InputError
from tapetum.core.files import sha256_of
from tapetum.models.card import CardBody, FeatureContract, ImageContract, Output, Source, Training
from tapetum.models.installing import Imported, check_identity, complete_card, install
from tapetum.models.keras_h5 import read_keras_h5
from tapetum.models.keras_onnx import FEATURE_INPUT, IMAGE_INPUT, SCORE_OUTPUT, Translation, to_onnx
from tapetum.models.registry import load_template, packaged_names

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable
    from pathlib import Path

    from tapetum.models.keras_h5 import KerasNet


@dataclass(frozen=True)
class Contract:
    """What a weight file does not say about its inputs; needed for networks that have no template.

    Attributes
    ----------
    normalisation
        Method, as in `tapetum.models.card.Normalisation`; required by a network with an image input.
    channels
        Order of the stamps.
    size
        Side of the input [pixel]; only for networks that take any size.
    pad_side, pad_value, pad_when
        As in `tapetum.models.card.Padding`.
    features
        Names of the candidate fields; required by a network with a feature input.
    licence, version
        Of the network.
    """

    normalisation: str | None = None
    channels: tuple[str, ...] = STAMP_NAMES
    size: int | None = None
    pad_side: str = "bottom_right"
    pad_value: float = 0.0
    pad_when: str = "after"
    features: tuple[str, ...] = ()
    licence: str = "unknown"
    version: str = "1.0.0"


def import_keras(
    path: Path,
    name: str,
    contract: Contract | None,
    models: Path,
    today: datetime.date,
    *,
    read: Callable[[Path], KerasNet] = read_keras_h5,
) -> Imported:
    """Import a Keras whole-model ``.h5`` file.

    Parameters
    ----------
    path
        The file.
    name
        Name of the model from now on; a known name brings its own card.
    contract
        What the file does not say; None, and refused, for a name with a template.
    models
        Folder of imported models.
    today
        Date for the card of a network without template.
    read
        Reads the file.

    Raises
    ------
    InputError
        The file cannot be used, the contract is incomplete or does not fit, or this version was imported from
        another file.
    ModelError
        The network does not give the golden vectors of its template.
    """
    if name in packaged_names():
        raise InputError(
            f"{name} is a model of the package, and the default of some verbs; choose another --name"
        )
    net = read(path)
    template = load_template(name)
    if template is not None:
        if contract is not None:
            raise InputError(f"{name} is a known network with its own input contract; leave the options away")
        check_identity(path, net.weights_sha256(), template)
    sha256 = sha256_of(path)
    try:
        translation = to_onnx(net)
    except FormatError as problem:
        raise FormatError(f"{path}: {problem}") from None
    source = {"file": path.name, "sha256": sha256}
    if template is not None:
        body: CardBody = template.model_copy(update={"source": template.source.model_copy(update=source)})
    else:
        body = _described(path, name, contract or Contract(), translation, source, today)
    return install(complete_card(body, translation.onnx), translation.onnx, models, path)


def _described(
    path: Path,
    name: str,
    contract: Contract,
    translation: Translation,
    source: dict[str, str],
    today: datetime.date,
) -> CardBody:
    """The card of a network without template, from what the user said about it."""
    if translation.output_shape[1:] or translation.output_shape[0] is None:
        raise FormatError(f"{path}: an output of shape {translation.output_shape} is not a score")
    n_columns = translation.output_shape[0]
    columns = ("score",) if n_columns == 1 else tuple(f"class_{column}" for column in range(n_columns))
    try:
        return CardBody(
            name=name,
            version=contract.version,
            title=f"{name}, imported from {path.name}",
            licence=contract.licence,
            authors=(),
            source=Source(description="imported by the user", **source),
            created=today.isoformat(),
            inputs=_inputs(path, contract, translation),
            outputs=(Output(name=SCORE_OUTPUT, columns=columns, activation=_activation(translation)),),
            training=Training(description="not known"),
            notes=("the input contract is the importing user's word",),
        )
    except ValidationError as problem:
        first = problem.errors()[0]
        raise InputError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _activation(translation: Translation) -> Literal["sigmoid", "softmax", "none"]:
    return cast("Literal['sigmoid', 'softmax', 'none']", translation.activation)


def _inputs(
    path: Path, contract: Contract, translation: Translation
) -> tuple[ImageContract | FeatureContract, ...]:
    inputs: list[ImageContract | FeatureContract] = []
    if translation.image_shape is not None:
        if contract.normalisation is None:
            raise InputError(
                f"{path}: the network takes stamps; say how they are normalised (--normalisation)"
            )
        n_y, n_x, n_planes = translation.image_shape
        size = n_y or contract.size
        if size is None or n_x not in (None, size):
            raise InputError(f"{path}: the network takes {n_y} x {n_x} pixels; a square is needed (--size)")
        if n_planes != len(contract.channels):
            raise InputError(f"{path}: the network takes {n_planes} channels, not {len(contract.channels)}")
        image = {
            "name": IMAGE_INPUT,
            "size": size,
            "channels": contract.channels,
            "normalisation": {"method": contract.normalisation},
            "padding": {"side": contract.pad_side, "value": contract.pad_value, "when": contract.pad_when},
        }
        inputs.append(ImageContract.model_validate(image))
    if translation.n_features is not None:
        if len(contract.features) != translation.n_features:
            given = len(contract.features)
            raise InputError(
                f"{path}: the network takes {translation.n_features} features, {given} given (--features)"
            )
        inputs.append(FeatureContract(name=FEATURE_INPUT, features=contract.features))
    return tuple(inputs)
