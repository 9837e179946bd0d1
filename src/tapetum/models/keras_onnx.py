"""Write a Keras network as ONNX: one short function per layer class.

Images run as (batch, channel, y, x) inside, which is what onnxruntime wants; weights are turned to match, among them
the first dense layer after a Flatten, so that no transpose is left in the graph.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tapetum.core.errors import FormatError
from tapetum.models.keras_h5 import Layer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.models.keras_h5 import KerasNet

OPSET = 17
MAX_INPUT_VALUES = 2**26
IR_VERSION = 8
IMAGE_INPUT, FEATURE_INPUT, SCORE_OUTPUT = "images", "features", "score"


@dataclass(frozen=True)
class Tensor:
    """A value in the graph.

    Attributes
    ----------
    name
        ONNX name.
    shape
        As Keras sees it without the batch: (y, x, channel), or (features,); None where it is not fixed.
    flat_of
        (y, x, channel) when this is a flattened image whose numbers still run channel, y, x.
    """

    name: str
    shape: tuple[int | None, ...]
    flat_of: tuple[int, int, int] | None = None

    @property
    def channels(self) -> int:
        """Length of the last axis, which is always fixed."""
        n = self.shape[-1]
        if n is None:
            raise ValueError("the number of channels is not fixed")
        return n

    @property
    def is_image(self) -> bool:
        """Has the axes y, x and channel."""
        return len(self.shape) == 3


@dataclass(frozen=True)
class Translation:
    """A network as ONNX.

    Attributes
    ----------
    onnx
        The file's content.
    image_shape, n_features
        What its inputs take, the image as (y, x, channel); None for an input it does not have.
    output_shape
        One row of its output.
    activation
        ``sigmoid``, ``softmax`` or ``none``, whichever it ends with.
    """

    onnx: bytes
    image_shape: tuple[int | None, ...] | None
    n_features: int | None
    output_shape: tuple[int | None, ...]
    activation: str


class Graph:
    """Nodes and weights under construction."""

    def __init__(self, keras_version: str) -> None:
        major = re.match(r"\d{1,3}", keras_version)
        self.keras_major = int(major[0]) if major else 2
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operation: str, inputs: Sequence[str], label: str, **attributes: Any) -> str:
        """Append a node; returns the name of its output."""
        name = f"{label}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, values: NDArray[Any], label: str) -> str:
        """Append a weight; returns its name."""
        name = f"{label}:{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def number(self, value: float, label: str) -> str:
        """Append a scalar; returns its name."""
        return self.constant(np.array(value, dtype=np.float32), label)


Builder = Callable[[Graph, Layer, list[Tensor]], Tensor]


def unsupported(layer: Layer, what: str = "") -> FormatError:
    """The error that names a layer we cannot translate."""
    return FormatError(f"layer {layer.name} ({layer.kind}){': ' + what if what else ''} is not supported")


def to_onnx(net: KerasNet) -> Translation:
    """Translate a Keras network.

    Image inputs take (batch, channel, y, x) and are named ``images``, feature inputs take (batch, features) and are
    named ``features``; the output is named ``score``. The same network gives the same bytes.

    Raises
    ------
    FormatError
        A layer, or something in its settings, is not supported; names layer and class.
    """
    graph = Graph(net.keras_version)
    tensors: dict[str, Tensor] = {}
    inputs: list[Any] = []
    for layer in net.layers:
        try:
            if layer.kind == "InputLayer":
                tensors[layer.name], declared = _input(layer)
                inputs.append(declared)
            elif layer.kind in BUILDERS:
                parents = [tensors[name] for name in layer.inbound]
                tensors[layer.name] = BUILDERS[layer.kind](graph, layer, parents)
            else:
                raise unsupported(layer)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as problem:
            raise FormatError(
                f"layer {layer.name} ({layer.kind}): its settings are not understood: {problem!r}"
            ) from None
    names = [declared.name for declared in inputs]
    if len(set(names)) != len(names):
        raise FormatError("the network has more than one image input or more than one feature input")
    if len(net.outputs) != 1:
        raise FormatError(f"the network has {len(net.outputs)} outputs; exactly one is supported")
    last = tensors[net.outputs[0]]
    given = {tensor.name: tensor.shape for name, tensor in tensors.items() if name in net.inputs}
    ends_with = {node.output[0]: node.op_type for node in graph.nodes}.get(last.name, "")
    return Translation(
        onnx=_finish(graph, inputs, last),
        image_shape=given.get(IMAGE_INPUT),
        n_features=given.get(FEATURE_INPUT, (None,))[0],
        output_shape=last.shape,
        activation={"Sigmoid": "sigmoid", "Softmax": "softmax"}.get(ends_with, "none"),
    )


def _input(layer: Layer) -> tuple[Tensor, Any]:
    batch_shape = layer.config.get("batch_input_shape") or layer.config.get("batch_shape")
    if batch_shape is None:
        raise unsupported(layer, "an input without a shape")
    shape = tuple(batch_shape[1:])
    if (
        len(shape) not in (1, 3)
        or shape[-1] is None
        or any(not isinstance(n, int | None) or n == 0 for n in shape)
    ):
        raise unsupported(layer, f"an input of shape {shape}")
    if np.prod([n or 1 for n in shape], dtype=np.float64) > MAX_INPUT_VALUES:
        raise unsupported(layer, f"an input of shape {shape}")
    if len(shape) == 3:
        name, axes = IMAGE_INPUT, ["batch", shape[2], shape[0] or "y", shape[1] or "x"]
    else:
        name, axes = FEATURE_INPUT, ["batch", shape[0]]
    return Tensor(name, shape), helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)


def _finish(graph: Graph, inputs: list[Any], last: Tensor) -> bytes:
    last = in_keras_order(graph, last)
    if last.is_image:
        graph.nodes.append(helper.make_node("Transpose", [last.name], [SCORE_OUTPUT], perm=[0, 2, 3, 1]))
    else:
        graph.nodes.append(helper.make_node("Identity", [last.name], [SCORE_OUTPUT]))
    axes: list[int | str] = ["batch", *(size or f"axis{axis}" for axis, size in enumerate(last.shape))]
    output = helper.make_tensor_value_info(SCORE_OUTPUT, TensorProto.FLOAT, axes)
    made = helper.make_graph(graph.nodes, "network", inputs, [output], graph.constants)
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="tapetum"
    )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise FormatError(f"the network makes no sense: {str(problem).strip().splitlines()[0]}") from None
    return bytes(model.SerializeToString(deterministic=True))


def in_keras_order(graph: Graph, tensor: Tensor) -> Tensor:
    """A flattened image with its numbers in Keras' order (y, x, channel)."""
    if tensor.flat_of is None:
        return tensor
    n_y, n_x, n_c = tensor.flat_of
    order = np.arange(n_y * n_x * n_c).reshape(n_c, n_y, n_x).transpose(1, 2, 0).ravel()
    name = graph.add("Gather", [tensor.name, graph.constant(order, "order")], "in_keras_order", axis=1)
    return Tensor(name, tensor.shape)


def _weight(layer: Layer, name: str, shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    if name not in layer.weights:
        raise FormatError(f"layer {layer.name} ({layer.kind}): its weight {name!r} is missing")
    values = layer.weights[name]
    if values.ndim != len(shape) or any(
        want not in (None, got) for want, got in zip(shape, values.shape, strict=True)
    ):
        raise FormatError(
            f"layer {layer.name} ({layer.kind}): its weight {name!r} has the shape {values.shape}, not {shape}"
        )
    return values


def _one(layer: Layer, tensors: list[Tensor], *, image: bool | None = None) -> Tensor:
    if len(tensors) != 1:
        raise unsupported(layer, f"a call with {len(tensors)} inputs")
    if image is not None and tensors[0].is_image != image:
        raise unsupported(layer, f"an input of shape {tensors[0].shape}")
    return tensors[0]


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _channels_last(layer: Layer) -> None:
    if layer.config.get("data_format", "channels_last") not in ("channels_last", None):
        raise unsupported(layer, f"data_format {layer.config['data_format']}")


# --- convolution and pooling ---


@dataclass(frozen=True)
class Window:
    """Geometry of a sliding window, ready for ONNX, and the size of what comes out."""

    attributes: Mapping[str, Any]
    out: tuple[int | None, int | None]


def _window(layer: Layer, tensor: Tensor, kernel: tuple[int, int], strides: Any, dilation: Any = 1) -> Window:
    """Place the window; with padding `same` an odd pixel goes to the bottom and right, as in TensorFlow."""
    _channels_last(layer)
    stride, dilate = _pair(strides), _pair(dilation)
    padding = layer.config.get("padding", "valid")
    if padding not in ("valid", "same"):
        raise unsupported(layer, f"padding {padding!r}")
    begin, end, out = zip(
        *(
            _span(layer, tensor.shape[axis], (kernel[axis] - 1) * dilate[axis] + 1, stride[axis], padding)
            for axis in (0, 1)
        ),
        strict=True,
    )
    attributes: dict[str, Any] = {
        "kernel_shape": list(kernel),
        "strides": list(stride),
        "pads": [*begin, *end],
    }
    if dilate != (1, 1):
        attributes["dilations"] = list(dilate)
    return Window(attributes, out)


def _span(layer: Layer, n: int | None, reach: int, stride: int, padding: str) -> tuple[int, int, int | None]:
    """Padding before, padding after and number of steps of a window of `reach` pixels along an axis of `n`."""
    if padding == "valid":
        if n is not None and n < reach:
            raise unsupported(layer, f"a window of {reach} pixels on an image of {n}")
        return 0, 0, None if n is None else (n - reach) // stride + 1
    if n is None:
        if stride > 1:
            raise unsupported(layer, "padding 'same' with strides on an image of unknown size")
        return (reach - 1) // 2, reach // 2, None
    steps = -(-n // stride)
    total = max((steps - 1) * stride + reach - n, 0)
    return total // 2, total - total // 2, steps


def _convolve(
    graph: Graph,
    layer: Layer,
    name: str,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    window: Window,
) -> str:
    """One Conv node; `weight` is (out, in / group, y, x)."""
    operands = [name, graph.constant(weight, layer.name)]
    if bias is not None:
        operands.append(graph.constant(bias, layer.name))
    return graph.add("Conv", operands, layer.name, **window.attributes)


def _bias(layer: Layer, size: int) -> NDArray[np.float32] | None:
    return _weight(layer, "bias", (size,)) if layer.config.get("use_bias", True) else None


def _grouped(window: Window, group: int) -> Window:
    return replace(window, attributes={**window.attributes, "group": group})


def conv2d(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
    """Conv2D, also grouped."""
    tensor = _one(layer, tensors, image=True)
    size, filters = _pair(layer.config["kernel_size"]), int(layer.config["filters"])
    group = int(layer.config.get("groups", 1))
    kernel = _weight(layer, "kernel", (*size, tensor.channels // group, filters))
    window = _window(layer, tensor, size, layer.config["strides"], layer.config.get("dilation_rate", 1))
    bias = _bias(layer, filters)
    name = _convolve(graph, layer, tensor.name, kernel.transpose(3, 2, 0, 1), bias, _grouped(window, group))
    return _activated(graph, layer, Tensor(name, (*window.out, filters)))


def _depthwise(layer: Layer, tensor: Tensor, weight_name: str) -> tuple[NDArray[np.float32], Window]:
    """Weight (in * multiplier, 1, y, x) and window of a convolution that keeps the channels apart."""
    size, multiplier = _pair(layer.config["kernel_size"]), int(layer.config.get("depth_multiplier", 1))
    kernel = _weight(layer, weight_name, (*size, tensor.channels, multiplier))
    window = _window(layer, tensor, size, layer.config["strides"], layer.config.get("dilation_rate", 1))
    weight = kernel.transpose(2, 3, 0, 1).reshape(tensor.channels * multiplier, 1, *size)
    return weight, _grouped(window, tensor.channels)


def depthwise_conv2d(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
    """DepthwiseConv2D; Keras 3 calls its weight `kernel`."""
    tensor = _one(layer, tensors, image=True)
    weight, window = _depthwise(layer, tensor, "kernel" if "kernel" in layer.weights else "depthwise_kernel")
    name = _convolve(graph, layer, tensor.name, weight, _bias(layer, len(weight)), window)
    return _activated(graph, layer, Tensor(name, (*window.out, len(weight))))


def separable_conv2d(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
    """SeparableConv2D: depthwise without bias, then 1 x 1 with bias, then the activation."""
    tensor = _one(layer, tensors, image=True)
    weight, window = _depthwise(layer, tensor, "depthwise_kernel")
    filters = int(layer.config["filters"])
    pointwise = _weight(layer, "pointwise_kernel", (1, 1, len(weight), filters)).transpose(3, 2, 0, 1)
    name = _convolve(graph, layer, tensor.name, weight, None, window)
    name = _convolve(
        graph, layer, name, pointwise, _bias(layer, filters), Window({"kernel_shape": [1, 1]}, window.out)
    )
    return _activated(graph, layer, Tensor(name, (*window.out, filters)))


def _pool(operation: str, **attributes: int) -> Builder:
    def build(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
        tensor = _one(layer, tensors, image=True)
        size = _pair(layer.config["pool_size"])
        window = _window(layer, tensor, size, layer.config.get("strides") or size)
        name = graph.add(operation, [tensor.name], layer.name, **window.attributes, **attributes)
        return Tensor(name, (*window.out, tensor.channels))

    return build


def _global_pool(operation: str) -> Builder:
    def build(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
        tensor = _one(layer, tensors, image=True)
        _channels_last(layer)
        name = graph.add(operation, [tensor.name], layer.name)
        if layer.config.get("keepdims", False):
            return Tensor(name, (1, 1, tensor.channels))
        return Tensor(graph.add("Flatten", [name], layer.name, axis=1), (tensor.channels,))

    return build


def zero_padding2d(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
    """ZeroPadding2D."""
    tensor = _one(layer, tensors, image=True)
    _channels_last(layer)
    padding = layer.config["padding"]
    (top, bottom), (left, right) = (
        (_pair(side) for side in _pair(padding)) if isinstance(padding, int) else map(_pair, padding)
    )
    pads = np.array([0, 0, top, left, 0, 0, bottom, right], dtype=np.int64)
    name = graph.add("Pad", [tensor.name, graph.constant(pads, layer.name)], layer.name)
    grown = [
        None if n is None else n + more
        for n, more in zip(tensor.shape, (top + bottom, left + right), strict=False)
    ]
    return Tensor(name, (*grown, tensor.channels))


# --- dense, normalisation, shape ---


def dense(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
    """Dense; after a Flatten its rows are put in the order in which numbers come; on an image a 1 x 1 convolution."""
    tensor = _one(layer, tensors)
    units = int(layer.config["units"])
    kernel, bias = _weight(layer, "kernel", (tensor.channels, units)), _bias(layer, units)
    if tensor.is_image:
        window = Window({"kernel_shape": [1, 1]}, (tensor.shape[0], tensor.shape[1]))
        name = _convolve(graph, layer, tensor.name, kernel.T[:, :, None, None], bias, window)
        return _activated(graph, layer, Tensor(name, (*window.out, units)))
    if tensor.flat_of is not None:
        kernel = kernel.reshape(*tensor.flat_of, units).transpose(2, 0, 1, 3).reshape(-1, units)
    operands = [tensor.name, graph.constant(kernel, layer.name)]
    if bias is not None:
        operands.append(graph.constant(bias, layer.name))
    return _activated(graph, layer, Tensor(graph.add("Gemm", operands, layer.name), (units,)))


def batch_normalization(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
    """BatchNormalization of the last axis; onnxruntime folds it into a convolution before it where it can."""
    tensor = in_keras_order(graph, _one(layer, tensors))
    axis = layer.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if axis not in (-1, len(tensor.shape)):
        raise unsupported(layer, f"axis {axis}")
    size = tensor.channels
    ones, zeros = np.ones(size, np.float32), np.zeros(size, np.float32)
    scale = _weight(layer, "gamma", (size,)) if layer.config.get("scale", True) else ones
    offset = _weight(layer, "beta", (size,)) if layer.config.get("center", True) else zeros
    statistics = [_weight(layer, name, (size,)) for name in ("moving_mean", "moving_variance")]
    operands = [tensor.name, *(graph.constant(values, layer.name) for values in (scale, offset, *statistics))]
    name = graph.add(
        "BatchNormalization", operands, layer.name, epsilon=float(layer.config.get("epsilon", 1e-3))
    )
    return Tensor(name, tensor.shape)


def flatten(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
    """Flatten; the order of the numbers is put right later, where it matters."""
    tensor = _one(layer, tensors)
    if not tensor.is_image:
        return tensor
    _channels_last(layer)
    n_y, n_x, n_c = tensor.shape
    if n_y is None or n_x is None or n_c is None:
        raise unsupported(layer, "an image of unknown size")
    name = graph.add("Flatten", [tensor.name], layer.name, axis=1)
    return Tensor(name, (n_y * n_x * n_c,), None if n_c == 1 or n_y * n_x == 1 else (n_y, n_x, n_c))


def reshape(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
    """Reshape between an image and a row of numbers."""
    tensor = in_keras_order(graph, _one(layer, tensors))
    if None in tensor.shape:
        raise unsupported(layer, "an input of unknown size")
    total = int(np.prod([n for n in tensor.shape if n is not None]))
    target = [int(n) for n in layer.config["target_shape"]]
    if -1 in target:
        target[target.index(-1)] = total // -int(np.prod(target))
    if len(target) not in (1, 3) or int(np.prod(target)) != total:
        raise unsupported(
            layer, f"target_shape {layer.config['target_shape']} for an input of shape {tensor.shape}"
        )
    name = tensor.name
    if tensor.is_image:
        name = graph.add("Transpose", [name], layer.name, perm=[0, 2, 3, 1])
    name = graph.add("Reshape", [name, graph.constant(np.array([0, *target]), layer.name)], layer.name)
    if len(target) == 3:
        name = graph.add("Transpose", [name], layer.name, perm=[0, 3, 1, 2])
    return Tensor(name, tuple(target))


def identity(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
    """Layers that do nothing once training is over."""
    del graph
    return _one(layer, tensors)


def rescaling(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
    """Rescaling: times `scale`, plus `offset`."""
    tensor = _one(layer, tensors)
    name = graph.add("Mul", [tensor.name, graph.number(layer.config["scale"], layer.name)], layer.name)
    offset = graph.number(layer.config.get("offset", 0.0), layer.name)
    return replace(tensor, name=graph.add("Add", [name, offset], layer.name))


# --- merging ---


def concatenate(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
    """Concatenate along any axis but the batch."""
    if len({tensor.is_image for tensor in tensors}) != 1:
        raise unsupported(layer, "images and rows of numbers together")
    joined = [in_keras_order(graph, tensor) for tensor in tensors]
    n_axes = len(joined[0].shape)
    axis = int(layer.config.get("axis", -1))
    axis = axis + n_axes + 1 if axis < 0 else axis
    if not 1 <= axis <= n_axes:
        raise unsupported(layer, f"axis {layer.config['axis']}")
    name = graph.add(
        "Concat", [tensor.name for tensor in joined], layer.name, axis=1 if axis == n_axes else axis + 1
    )
    lengths = [tensor.shape[axis - 1] for tensor in joined]
    shape = list(joined[0].shape)
    shape[axis - 1] = None if None in lengths else sum(n for n in lengths if n is not None)
    return Tensor(name, tuple(shape))


def _merge(operation: str) -> Builder:
    def build(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
        if len(tensors) < 2 or any(tensor.shape != tensors[0].shape for tensor in tensors):
            raise unsupported(layer, f"inputs of shapes {', '.join(str(tensor.shape) for tensor in tensors)}")
        merged = [in_keras_order(graph, tensor) for tensor in tensors]
        if operation in ("Max", "Min", "Mean", "Sum"):
            return replace(
                merged[0], name=graph.add(operation, [tensor.name for tensor in merged], layer.name)
            )
        name = merged[0].name
        for tensor in merged[1:]:
            name = graph.add(operation, [name, tensor.name], layer.name)
        return replace(merged[0], name=name)

    return build


# --- activations ---


def _plain(operation: str, **attributes: float) -> Callable[[Graph, str, str], str]:
    return lambda graph, name, label: graph.add(operation, [name], label, **attributes)


def _relu6(graph: Graph, name: str, label: str) -> str:
    return graph.add("Clip", [name, graph.number(0, label), graph.number(6, label)], label)


def _hard_sigmoid(graph: Graph, name: str, label: str) -> str:
    # Keras 3 changed the slope from 1/5 to 1/6
    return graph.add("HardSigmoid", [name], label, alpha=1 / 6 if graph.keras_major >= 3 else 0.2, beta=0.5)


def _swish(graph: Graph, name: str, label: str) -> str:
    return graph.add("Mul", [name, graph.add("Sigmoid", [name], label)], label)


def _gelu(graph: Graph, name: str, label: str) -> str:
    scaled = graph.add("Mul", [name, graph.number(0.5**0.5, label)], label)
    raised = graph.add("Add", [graph.add("Erf", [scaled], label), graph.number(1, label)], label)
    return graph.add("Mul", [graph.add("Mul", [name, raised], label), graph.number(0.5, label)], label)


ACTIVATIONS: dict[str, Callable[[Graph, str, str], str]] = {
    "linear": lambda graph, name, label: name,
    "relu": _plain("Relu"),
    "relu6": _relu6,
    "leaky_relu": _plain("LeakyRelu", alpha=0.2),
    "elu": _plain("Elu"),
    "selu": _plain("Selu"),
    "sigmoid": _plain("Sigmoid"),
    "hard_sigmoid": _hard_sigmoid,
    "tanh": _plain("Tanh"),
    "softmax": _plain("Softmax", axis=1),
    "softplus": _plain("Softplus"),
    "softsign": _plain("Softsign"),
    "exponential": _plain("Exp"),
    "swish": _swish,
    "silu": _swish,
    "gelu": _gelu,
}


def _activated(graph: Graph, layer: Layer, tensor: Tensor) -> Tensor:
    """Apply the activation in the layer's settings."""
    activation = layer.config.get("activation", "linear") or "linear"
    if isinstance(activation, Mapping):  # Keras 3 may write {"class_name": "function", "config": "relu"}
        activation = activation.get("config") if activation.get("class_name") == "function" else activation
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise unsupported(layer, f"activation {activation}")
    if activation == "softmax":
        tensor = in_keras_order(graph, tensor)
    return replace(tensor, name=ACTIVATIONS[activation](graph, tensor.name, layer.name))


def activation_layer(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
    """Activation."""
    return _activated(graph, layer, _one(layer, tensors))


def relu_layer(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
    """ReLU with slope and ceiling; a threshold is not supported."""
    tensor = _one(layer, tensors)
    if layer.config.get("threshold"):
        raise unsupported(layer, f"threshold {layer.config['threshold']}")
    slope, ceiling = layer.config.get("negative_slope") or 0.0, layer.config.get("max_value")
    name = graph.add("LeakyRelu", [tensor.name], layer.name, alpha=float(slope)) if slope else tensor.name
    if ceiling is not None:
        limits = ["" if slope else graph.number(0, layer.name), graph.number(ceiling, layer.name)]
        name = graph.add("Clip", [name, *limits], layer.name)
    elif not slope:
        name = graph.add("Relu", [name], layer.name)
    return replace(tensor, name=name)


def leaky_relu_layer(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
    """LeakyReLU; Keras 3 calls its slope `negative_slope`."""
    tensor = _one(layer, tensors)
    slope = float(layer.config.get("negative_slope", layer.config.get("alpha", 0.3)))
    return replace(tensor, name=graph.add("LeakyRelu", [tensor.name], layer.name, alpha=slope))


def elu_layer(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
    """ELU."""
    tensor = _one(layer, tensors)
    return replace(
        tensor, name=graph.add("Elu", [tensor.name], layer.name, alpha=float(layer.config.get("alpha", 1.0)))
    )


def softmax_layer(graph: Graph, layer: Layer, tensors: list[Tensor]) -> Tensor:
    """Softmax over the last axis."""
    if layer.config.get("axis", -1) not in (-1, [-1]):
        raise unsupported(layer, f"axis {layer.config['axis']}")
    tensor = in_keras_order(graph, _one(layer, tensors))
    return replace(tensor, name=graph.add("Softmax", [tensor.name], layer.name, axis=1))


BUILDERS: dict[str, Builder] = {
    "Activation": activation_layer,
    "Add": _merge("Sum"),
    "Average": _merge("Mean"),
    "AveragePooling2D": _pool("AveragePool", count_include_pad=0),
    "BatchNormalization": batch_normalization,
    "Concatenate": concatenate,
    "Conv2D": conv2d,
    "Dense": dense,
    "DepthwiseConv2D": depthwise_conv2d,
    "Dropout": identity,
    "ELU": elu_layer,
    "Flatten": flatten,
    "GaussianDropout": identity,
    "GaussianNoise": identity,
    "GlobalAveragePooling2D": _global_pool("GlobalAveragePool"),
    "GlobalMaxPooling2D": _global_pool("GlobalMaxPool"),
    "LeakyReLU": leaky_relu_layer,
    "MaxPooling2D": _pool("MaxPool"),
    "Maximum": _merge("Max"),
    "Minimum": _merge("Min"),
    "Multiply": _merge("Mul"),
    "ReLU": relu_layer,
    "Rescaling": rescaling,
    "Reshape": reshape,
    "SeparableConv2D": separable_conv2d,
    "Softmax": softmax_layer,
    "SpatialDropout2D": identity,
    "Subtract": _merge("Sub"),
    "ZeroPadding2D": zero_padding2d,
}
