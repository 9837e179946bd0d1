"""Read Keras whole-model ``.h5`` files with h5py alone: the architecture from JSON, the weights from the arrays.

Nothing is executed and nothing is unpickled. Sequential and functional models of Keras 2 and 3 are understood; what is
not understood is named.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from tapetum.core.errors import FormatError, LimitError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SUFFIXES = (".h5", ".hdf5")
CONFIG_BYTES = 64 * 2**20
WEIGHT_BYTES = 2 * 2**30
MAX_LAYERS = 10_000
MAX_CHUNKS = 1_000  # pieces that Keras cuts a long list of names into

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Layer:
    """One layer of a Keras model.

    Attributes
    ----------
    name, kind
        Its name and its Keras class.
    config
        Its settings, as Keras wrote them.
    inbound
        Names of the layers it takes its inputs from, in order; empty for an input.
    weights
        Arrays by short name (``kernel``, ``bias``, ...), in Keras' own axis order.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    inbound: tuple[str, ...]
    weights: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class KerasNet:
    """A Keras model as data: layers in an order in which each comes after its inputs."""

    layers: tuple[Layer, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    keras_version: str

    def weights_sha256(self) -> str:
        """Identity of the weights, whatever file they were saved in: shapes and values in the order of the layers."""
        digest = hashlib.sha256()
        for layer in self.layers:
            for name, values in sorted(layer.weights.items()):
                digest.update(f"{name} {values.shape}".encode())
                digest.update(np.ascontiguousarray(values, dtype="<f4").tobytes())
        return digest.hexdigest()


def read_keras_h5(path: Path) -> KerasNet:
    """Read a whole-model file.

    Raises
    ------
    FormatError
        Another suffix or format, weights without architecture, a layer without its weights, an unknown structure.
    LimitError
        The architecture or the weights are larger than the limits.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise FormatError(
            f"{path}: the suffix is not {' or '.join(SUFFIXES)}; save the Keras model as whole-model .h5"
        )
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    if not h5py.is_hdf5(path):
        raise FormatError(f"{path}: not an HDF5 file, or damaged; get it again")
    try:
        with h5py.File(path, "r") as file:
            return _read(file)
    except FormatError as problem:
        raise FormatError(f"{path}: {problem}") from None
    except LimitError as problem:
        raise LimitError(f"{path}: {problem}") from None
    except (
        OSError,
        KeyError,
        RuntimeError,
        ValueError,
        TypeError,
        OverflowError,
    ) as problem:  # h5py's own words
        raise FormatError(f"{path}: damaged HDF5 file: {problem}") from None


def _read(file: h5py.File) -> KerasNet:
    if "model_config" not in file.attrs:
        raise FormatError(
            "holds no architecture (attribute model_config): weights only; save the whole model"
        )
    version = _text(file.attrs.get("keras_version", "2"))
    config_text = _text(file.attrs["model_config"])
    if len(config_text) > CONFIG_BYTES:
        raise LimitError(f"the architecture is larger than {CONFIG_BYTES} bytes")
    try:
        model = json.loads(config_text)
        kind, config = model["class_name"], model["config"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError("the architecture is not the JSON of a Keras model") from None
    if "model_weights" not in file:
        raise FormatError("holds no weights (group model_weights)")
    weights = _Weights(file["model_weights"])
    try:
        if kind == "Sequential":
            return _sequential(config, weights, version)
        if kind in ("Model", "Functional"):
            return _functional(config, weights, version)
    except (KeyError, TypeError, IndexError, AttributeError) as problem:
        raise FormatError(f"the architecture has a structure that is not understood: {problem!r}") from None
    raise FormatError(f"a {kind} model is not supported; Sequential and functional models are")


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class _Weights:
    """The group of weights, read layer by layer under a cap on the sum."""

    def __init__(self, group: h5py.Group) -> None:
        self._group = group
        self._left = WEIGHT_BYTES

    def of(self, layer: str) -> dict[str, NDArray[np.float32]]:
        """Arrays of one layer by short name."""
        if layer not in self._group:
            return {}
        group = self._group[layer]
        arrays: dict[str, NDArray[np.float32]] = {}
        for full_name in _names(group, "weight_names"):
            short = full_name.rsplit("/", 1)[-1].split(":", 1)[0]
            if short in arrays:
                raise FormatError(
                    f"layer {layer}: two weights are named {short!r} (nested models are not supported)"
                )
            arrays[short] = self._array(group, full_name, layer)
        return arrays

    def _array(self, group: h5py.Group, name: str, layer: str) -> NDArray[np.float32]:
        data = group.get(name)
        if not isinstance(data, h5py.Dataset):
            raise FormatError(f"layer {layer}: its weight {name!r} is missing")
        # a link or a virtual data set could name any other file of this machine
        if data.file.filename != group.file.filename or data.external or data.is_virtual:
            raise FormatError(f"layer {layer}: its weight {name!r} is kept in another file")
        if data.dtype.kind != "f":
            raise FormatError(
                f"layer {layer}: its weight {name!r} holds {data.dtype}, not floating-point numbers"
            )
        self._left -= 8 * math.prod(data.shape)
        if self._left < 0:
            raise LimitError(f"the weights are larger than {WEIGHT_BYTES} bytes")
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # what is beyond float32 becomes infinite, and is refused
            values = np.asarray(data[()], dtype=np.float32)
        if not np.isfinite(values).all():
            raise FormatError(f"layer {layer}: its weight {name!r} holds values that are not finite")
        return values


def _names(group: h5py.Group, attribute: str) -> Iterator[str]:
    """A list of names; Keras cuts a long one into ``attribute0``, ``attribute1``, ..."""
    if attribute in group.attrs:
        yield from map(_text, group.attrs[attribute])
        return
    for piece in range(MAX_CHUNKS):
        if f"{attribute}{piece}" not in group.attrs:
            return
        yield from map(_text, group.attrs[f"{attribute}{piece}"])


def _sequential(config: Any, weights: _Weights, version: str) -> KerasNet:
    entries = config if isinstance(config, list) else config["layers"]  # a bare list before Keras 2.2.3
    layers: list[Layer] = []
    for entry in _capped(entries):
        kind, settings = entry["class_name"], entry["config"]
        if not layers and kind != "InputLayer":
            shape = settings.get("batch_input_shape") or settings.get("batch_shape")
            if shape is None:
                raise FormatError(
                    f"layer {settings['name']} ({kind}): the model does not say the shape of its input"
                )
            layers.append(Layer("input", "InputLayer", {"name": "input", "batch_input_shape": shape}, (), {}))
        inbound = (layers[-1].name,) if layers else ()
        layers.append(Layer(settings["name"], kind, settings, inbound, weights.of(settings["name"])))
    if len(layers) < 2:
        raise FormatError("the model has no layers")
    return KerasNet(tuple(layers), (layers[0].name,), (layers[-1].name,), version)


def _functional(config: Mapping[str, Any], weights: _Weights, version: str) -> KerasNet:
    found: dict[str, Layer] = {}
    for entry in _capped(config["layers"]):
        name = entry.get("name") or entry["config"]["name"]
        settings = {"name": name, **entry["config"]}
        inbound = _inbound(name, entry["class_name"], entry.get("inbound_nodes") or [])
        found[name] = Layer(name, entry["class_name"], settings, inbound, weights.of(name))
    inputs, outputs = _ends(config["input_layers"]), _ends(config["output_layers"])
    return KerasNet(_ordered(found, outputs, inputs), inputs, outputs, version)


def _capped(entries: Sequence[Any]) -> Sequence[Any]:
    if len(entries) > MAX_LAYERS:
        raise LimitError(f"more than {MAX_LAYERS} layers")
    return entries


def _ends(entries: Any) -> tuple[str, ...]:
    """Names in ``input_layers`` or ``output_layers``: a list of [name, node, tensor], one of them, or a mapping."""
    if isinstance(entries, Mapping):
        entries = list(entries.values())
    if entries and isinstance(entries[0], str):
        entries = [entries]
    return tuple(str(entry[0]) for entry in entries)


def _inbound(name: str, kind: str, nodes: Sequence[Any]) -> tuple[str, ...]:
    if not nodes:
        return ()
    if len(nodes) > 1:
        raise FormatError(
            f"layer {name} ({kind}) is used {len(nodes)} times; shared layers are not supported"
        )
    node = nodes[0]
    if isinstance(node, Mapping):  # Keras 3
        found = tuple(_histories(node["args"]))
        if not found or any(_histories(list(node.get("kwargs", {}).values()))):
            raise FormatError(f"layer {name} ({kind}): a call with tensors as keywords is not supported")
        return found
    entries = [node] if isinstance(node[0], str) else node
    if any(len(entry) > 3 and entry[3] for entry in entries):
        raise FormatError(f"layer {name} ({kind}): a call with keywords is not supported")
    return tuple(str(entry[0]) for entry in entries)


def _histories(value: Any) -> Iterator[str]:
    """Names of the layers whose tensors stand in the arguments of a Keras 3 call."""
    if isinstance(value, Mapping):
        if value.get("class_name") == "__keras_tensor__":
            yield str(value["config"]["keras_history"][0])
        return
    if isinstance(value, list):
        for item in value:
            yield from _histories(item)


def _ordered(layers: Mapping[str, Layer], outputs: Sequence[str], inputs: Sequence[str]) -> tuple[Layer, ...]:
    """The layers that the outputs need, each after its inputs; without recursion, deep models are common."""
    order: dict[str, Layer] = {}
    open_layers: set[str] = set()
    stack = list(reversed([*inputs, *outputs]))
    while stack:
        name = stack[-1]
        if name in order:
            stack.pop()
            continue
        if name not in layers:
            raise FormatError(f"layer {name!r} is used but not defined")
        missing = [parent for parent in layers[name].inbound if parent not in order]
        if not missing:
            order[name] = layers[stack.pop()]
        elif name in open_layers:
            raise FormatError(f"layer {name!r} depends on itself")
        else:
            open_layers.add(name)
            stack.extend(reversed(missing))
    return tuple(order.values())
