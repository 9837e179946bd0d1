"""Keras files: every layer against a slow forward pass in plain numpy, and files that must be refused."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from tapetum.core.errors import FormatError, InputError
from tapetum.models.keras_h5 import read_keras_h5
from tapetum.models.keras_onnx import ACTIVATIONS, BUILDERS, to_onnx
from tapetum.models.runtime import open_session

N = 3  # alerts per comparison


# --- the slow truth: Keras semantics, (batch, y, x, channel), one kernel offset at a time ---


def padded(x, kernel, stride, dilation, padding, value=0.0):
    if padding == "valid":
        return x
    pads = [(0, 0)]
    for axis in (0, 1):
        n, reach = x.shape[1 + axis], (kernel[axis] - 1) * dilation + 1
        total = max((-(-n // stride) - 1) * stride + reach - n, 0)
        pads.append((total // 2, total - total // 2))
    return np.pad(x, [*pads, (0, 0)], constant_values=value)


def patches(x, kernel, stride, dilation):
    """Yield (row of kernel, column of kernel, what this offset sees)."""
    n_y = (x.shape[1] - (kernel[0] - 1) * dilation - 1) // stride + 1
    n_x = (x.shape[2] - (kernel[1] - 1) * dilation - 1) // stride + 1
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows = slice(i * dilation, i * dilation + (n_y - 1) * stride + 1, stride)
            columns = slice(j * dilation, j * dilation + (n_x - 1) * stride + 1, stride)
            yield i, j, x[:, rows, columns]


def conv(x, kernel, stride=1, dilation=1, padding="valid", groups=1):
    x = padded(x, kernel.shape[:2], stride, dilation, padding)
    total = 0.0
    for i, j, seen in patches(x, kernel.shape[:2], stride, dilation):
        parts = np.split(seen, groups, axis=-1)
        columns = np.split(kernel[i, j], groups, axis=-1)
        total = total + np.concatenate([p @ c for p, c in zip(parts, columns, strict=True)], axis=-1)
    return total


def depthwise(x, kernel, stride=1, dilation=1, padding="valid"):
    x = padded(x, kernel.shape[:2], stride, dilation, padding)
    total = 0.0
    for i, j, seen in patches(x, kernel.shape[:2], stride, dilation):
        total = total + (seen[..., :, None] * kernel[i, j]).reshape(*seen.shape[:3], -1)
    return total


def pool(x, size, stride, padding, how):
    x = padded(x, size, stride, 1, padding, value=np.nan)
    return how(np.stack([seen for _, _, seen in patches(x, size, stride, 1)]), axis=0)


def erf(x):  # Abramowitz & Stegun 7.1.26 is too coarse: integrate
    grid = np.linspace(0, 1, 2001)
    return 2 / np.sqrt(np.pi) * x * np.trapezoid(np.exp(-((x[..., None] * grid) ** 2)), grid, axis=-1)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(x))


TRUTH = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "elu": elu,
    "selu": lambda x: 1.05070098 * elu(x, 1.67326324),
    "sigmoid": sigmoid,
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "tanh": np.tanh,
    "softmax": softmax,
    "softplus": lambda x: np.log1p(np.exp(x)),
    "softsign": lambda x: x / (1 + abs(x)),
    "exponential": np.exp,
    "swish": lambda x: x * sigmoid(x),
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
}


# --- writing files as Keras does, by hand ---


def layer(kind, name, weights=None, **config):
    return {"class_name": kind, "config": {"name": name, **config}, "weights": weights or {}}


def write(path, layers, kind="Sequential", version="2.4.0", **config):
    entries = [{key: value for key, value in entry.items() if key != "weights"} for entry in layers]
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = version
        file.attrs["model_config"] = json.dumps({"class_name": kind, "config": {"layers": entries, **config}})
        root = file.create_group("model_weights")
        for entry in layers:
            name = entry["config"]["name"]
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{key}:0".encode() for key in entry["weights"]]
            for key, values in entry["weights"].items():
                group.create_dataset(f"{name}/{key}:0", data=values)
    return path


def run(path, **inputs):
    session = open_session(to_onnx(read_keras_h5(path)).onnx, str(path))
    return session.run(None, inputs)[0]


def nchw(x):
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def weights(rng, **shapes):
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def image(rng):
    return rng.normal(0, 1, (N, 9, 8, 3)).astype(np.float32)


FIRST = {"batch_input_shape": [None, 9, 8, 3]}


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("stride", "dilation", "size"), [(1, 1, (3, 3)), (2, 1, (3, 2)), (3, 1, (4, 4)), (1, 2, (2, 3))]
)
def test_convolutions(tmp_path, rng, image, padding, stride, dilation, size):
    common = {
        "kernel_size": size,
        "strides": [stride] * 2,
        "dilation_rate": [dilation] * 2,
        "padding": padding,
    }
    w = weights(rng, kernel=(*size, 3, 4), bias=(4,))
    d = weights(rng, depthwise_kernel=(*size, 3, 2), bias=(6,))
    s = weights(rng, depthwise_kernel=(*size, 3, 2), pointwise_kernel=(1, 1, 6, 5), bias=(5,))
    plain = [layer("Conv2D", "c", w, filters=4, activation="relu", **common, **FIRST)]
    apart = [layer("DepthwiseConv2D", "d", d, depth_multiplier=2, activation="linear", **common, **FIRST)]
    separable = [
        layer("SeparableConv2D", "s", s, filters=5, depth_multiplier=2, activation="tanh", **common, **FIRST)
    ]
    geometry = (stride, dilation, padding)
    expected = np.maximum(conv(image, w["kernel"], *geometry) + w["bias"], 0)
    assert run(write(tmp_path / "c.h5", plain), images=nchw(image)) == pytest.approx(expected, abs=1e-5)
    expected = depthwise(image, d["depthwise_kernel"], *geometry) + d["bias"]
    assert run(write(tmp_path / "d.h5", apart), images=nchw(image)) == pytest.approx(expected, abs=1e-5)
    expected = np.tanh(
        conv(depthwise(image, s["depthwise_kernel"], *geometry), s["pointwise_kernel"]) + s["bias"]
    )
    assert run(write(tmp_path / "s.h5", separable), images=nchw(image)) == pytest.approx(expected, abs=1e-5)


def test_grouped_convolution_without_bias(tmp_path, rng):
    x = rng.normal(0, 1, (N, 6, 6, 4)).astype(np.float32)
    w = weights(rng, kernel=(3, 3, 2, 6))
    config = {
        "filters": 6,
        "groups": 2,
        "kernel_size": 3,
        "strides": 1,
        "use_bias": False,
        "activation": None,
    }
    path = write(tmp_path / "g.h5", [layer("Conv2D", "g", w, batch_input_shape=[None, 6, 6, 4], **config)])
    assert run(path, images=nchw(x)) == pytest.approx(conv(x, w["kernel"], groups=2), abs=1e-5)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("size", "stride"), [((2, 2), 2), ((3, 2), 1), ((4, 4), 3)])
def test_pooling(tmp_path, image, padding, size, stride):
    config = {"pool_size": size, "strides": [stride] * 2, "padding": padding, **FIRST}
    for kind, how in (("MaxPooling2D", np.nanmax), ("AveragePooling2D", np.nanmean)):
        path = write(tmp_path / f"{kind}.h5", [layer(kind, "p", **config)])
        assert run(path, images=nchw(image)) == pytest.approx(
            pool(image, size, stride, padding, how), abs=1e-6
        )


def test_pool_stride_defaults_to_its_size(tmp_path, image):
    path = write(tmp_path / "p.h5", [layer("MaxPooling2D", "p", pool_size=[2, 2], strides=None, **FIRST)])
    assert run(path, images=nchw(image)) == pytest.approx(pool(image, (2, 2), 2, "valid", np.nanmax))


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        ("GlobalAveragePooling2D", {}, lambda x: x.mean(axis=(1, 2))),
        ("GlobalMaxPooling2D", {}, lambda x: x.max(axis=(1, 2))),
        ("GlobalAveragePooling2D", {"keepdims": True}, lambda x: x.mean(axis=(1, 2), keepdims=True)),
        ("Flatten", {}, lambda x: x.reshape(N, -1)),
        ("Dropout", {"rate": 0.5}, lambda x: x),
        ("SpatialDropout2D", {"rate": 0.5}, lambda x: x),
        ("GaussianNoise", {"stddev": 1.0}, lambda x: x),
        ("GaussianDropout", {"rate": 0.5}, lambda x: x),
        (
            "ZeroPadding2D",
            {"padding": [[1, 2], [0, 3]]},
            lambda x: np.pad(x, [(0, 0), (1, 2), (0, 3), (0, 0)]),
        ),
        ("ZeroPadding2D", {"padding": [2, 1]}, lambda x: np.pad(x, [(0, 0), (2, 2), (1, 1), (0, 0)])),
        ("ZeroPadding2D", {"padding": 1}, lambda x: np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])),
        ("Rescaling", {"scale": 0.5, "offset": -1.0}, lambda x: 0.5 * x - 1),
        ("Reshape", {"target_shape": [4, 6, 9]}, lambda x: x.reshape(N, 4, 6, 9)),
        ("Reshape", {"target_shape": [-1]}, lambda x: x.reshape(N, -1)),
        ("ReLU", {"max_value": None, "negative_slope": 0.0, "threshold": 0.0}, lambda x: np.maximum(x, 0)),
        ("ReLU", {"max_value": 0.7, "negative_slope": 0.0}, lambda x: np.clip(x, 0, 0.7)),
        (
            "ReLU",
            {"max_value": 0.7, "negative_slope": 0.1},
            lambda x: np.minimum(np.where(x > 0, x, 0.1 * x), 0.7),
        ),
        ("LeakyReLU", {"alpha": 0.3}, lambda x: np.where(x > 0, x, np.float32(0.3) * x)),
        ("LeakyReLU", {"negative_slope": 0.4}, lambda x: np.where(x > 0, x, np.float32(0.4) * x)),
        ("ELU", {"alpha": 0.5}, lambda x: elu(x, 0.5)),
        ("Softmax", {"axis": -1}, softmax),
        ("Activation", {"activation": "sigmoid"}, sigmoid),
    ],
)
def test_layers_without_weights(tmp_path, image, kind, config, expected):
    path = write(tmp_path / "l.h5", [layer(kind, "l", **config, **FIRST)])
    assert run(path, images=nchw(image)) == pytest.approx(expected(image.astype(float)), abs=1e-6)


@pytest.mark.parametrize("name", sorted(TRUTH))
def test_activations(tmp_path, rng, name):
    x = rng.normal(0, 3, (N, 5)).astype(np.float32)
    w = weights(rng, kernel=(5, 4), bias=(4,))
    dense = layer("Dense", "d", w, units=4, activation=name, batch_input_shape=[None, 5])
    expected = TRUTH[name]((x @ w["kernel"] + w["bias"]).astype(float))
    assert run(write(tmp_path / "a.h5", [dense]), features=x) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_every_activation_has_a_truth():
    assert set(TRUTH) == set(ACTIVATIONS)


def test_hard_sigmoid_of_keras_3(tmp_path, rng):
    x = rng.normal(0, 3, (N, 5)).astype(np.float32)
    path = write(
        tmp_path / "k3.h5",
        [
            layer(
                "Activation",
                "a",
                activation={"class_name": "function", "config": "hard_sigmoid"},
                batch_shape=[None, 5],
            )
        ],
        version="3.6.0",
    )
    assert run(path, features=x) == pytest.approx(np.clip(x / 6 + 0.5, 0, 1), abs=1e-6)


@pytest.mark.parametrize("flat", [False, True])
def test_batch_normalization(tmp_path, rng, image, flat):
    size = 9 * 8 * 3 if flat else 3
    w = weights(rng, gamma=(size,), beta=(size,), moving_mean=(size,))
    w["moving_variance"] = rng.uniform(0.5, 2, size).astype(np.float32)
    layers = [layer("Flatten", "f", **FIRST)] if flat else []
    config = {"axis": -1 if flat else [3], "epsilon": 0.01} | ({} if flat else FIRST)
    path = write(tmp_path / "b.h5", [*layers, layer("BatchNormalization", "b", w, **config)])
    x = image.reshape(N, -1) if flat else image
    expected = (x - w["moving_mean"]) / np.sqrt(w["moving_variance"] + 0.01) * w["gamma"] + w["beta"]
    assert run(path, images=nchw(image)) == pytest.approx(expected, abs=1e-5)


def test_batch_normalization_without_scale_and_centre(tmp_path, rng, image):
    w = {"moving_mean": np.ones(3, np.float32), "moving_variance": np.full(3, 4, np.float32)}
    config = {"axis": [3], "epsilon": 1e-3, "scale": False, "center": False}
    path = write(tmp_path / "b.h5", [layer("BatchNormalization", "b", w, **config, **FIRST)])
    assert run(path, images=nchw(image)) == pytest.approx((image - 1) / np.sqrt(4.001), abs=1e-6)


def test_dense_after_flatten_and_on_an_image(tmp_path, rng, image):
    w1, w2 = weights(rng, kernel=(3, 2), bias=(2,)), weights(rng, kernel=(9 * 8 * 2, 4), bias=(4,))
    layers = [
        layer("Dense", "d1", w1, units=2, activation="relu", **FIRST),
        layer("Flatten", "f"),
        layer("Dropout", "o", rate=0.1),
        layer("Activation", "t", activation="tanh"),
        layer("Dense", "d2", w2, units=4, activation="softmax"),
    ]
    hidden = np.tanh(np.maximum(image @ w1["kernel"] + w1["bias"], 0)).reshape(N, -1)
    expected = softmax(hidden @ w2["kernel"] + w2["bias"])
    assert run(write(tmp_path / "d.h5", layers), images=nchw(image)) == pytest.approx(expected, abs=1e-5)


def test_flattened_softmax_and_reshape_keep_keras_order(tmp_path, image):
    layers = [
        layer("Flatten", "f", **FIRST),
        layer("Softmax", "s"),
        layer("Reshape", "r", target_shape=[9, 8, 3]),
    ]
    expected = softmax(image.reshape(N, -1)).reshape(image.shape)
    assert run(write(tmp_path / "o.h5", layers), images=nchw(image)) == pytest.approx(expected, abs=1e-6)


def node(*names):
    return [[[name, 0, 0, {}] for name in names]]


def keras3_node(*names):
    tensors = [
        {"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, 0]}} for name in names
    ]
    return [{"args": [tensors if len(names) > 1 else tensors[0]], "kwargs": {}}]


@pytest.mark.parametrize("keras", [2, 3])
def test_functional_network_with_two_inputs(tmp_path, rng, image, keras):
    """Branches, sums and joins; layers listed out of order, as Keras does."""
    f = rng.normal(0, 1, (N, 4)).astype(np.float32)
    c, d, last = (
        weights(rng, kernel=(1, 1, 3, 3), bias=(3,)),
        weights(rng, kernel=(4, 6), bias=(6,)),
        weights(rng, kernel=(3 + 3 + 6, 1), bias=(1,)),
    )
    shape, link = ("batch_input_shape", node) if keras == 2 else ("batch_shape", keras3_node)
    conv_config = {"filters": 3, "kernel_size": [1, 1], "strides": [1, 1], "activation": "relu"}
    parts = [
        (layer("Dense", "out", last, units=1, activation="sigmoid"), link("joined")),
        (layer("InputLayer", "pictures", **{shape: [None, 9, 8, 3]}), []),
        (layer("InputLayer", "numbers", **{shape: [None, 4]}), []),
        (layer("Conv2D", "c", c, **conv_config), link("pictures")),
        (layer("Add", "sum"), link("c", "pictures")),
        (layer("GlobalAveragePooling2D", "mean"), link("sum")),
        (layer("GlobalMaxPooling2D", "top"), link("sum")),
        (layer("Dense", "d", d, units=6, activation="elu"), link("numbers")),
        (layer("Concatenate", "joined", axis=-1), link("d", "mean", "top")),
    ]
    layers = [{**part, "name": part["config"]["name"], "inbound_nodes": inbound} for part, inbound in parts]
    ends = {"input_layers": [["pictures", 0, 0], ["numbers", 0, 0]], "output_layers": [["out", 0, 0]]}
    if keras == 3:
        ends["output_layers"] = ["out", 0, 0]
    path = write(tmp_path / "f.h5", layers, "Functional", "3.5.0" if keras == 3 else "2.4.0", **ends)
    total = np.maximum(conv(image, c["kernel"]) + c["bias"], 0) + image
    joined = np.concatenate(
        [elu(f @ d["kernel"] + d["bias"]), total.mean(axis=(1, 2)), total.max(axis=(1, 2))], axis=1
    )
    expected = sigmoid(joined @ last["kernel"] + last["bias"])
    assert run(path, images=nchw(image), features=f) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("Add", lambda a, b: a + b),
        ("Subtract", lambda a, b: a - b),
        ("Multiply", lambda a, b: a * b),
        ("Average", lambda a, b: (a + b) / 2),
        ("Maximum", np.maximum),
        ("Minimum", np.minimum),
    ],
)
def test_merging(tmp_path, image, kind, expected):
    parts = [
        (layer("InputLayer", "i", **FIRST), []),
        (layer("Flatten", "a"), node("i")),
        (layer("Activation", "b", activation="tanh"), node("a")),
        (layer(kind, "m"), node("a", "b")),
    ]
    layers = [{**part, "name": part["config"]["name"], "inbound_nodes": inbound} for part, inbound in parts]
    path = write(tmp_path / "m.h5", layers, "Model", input_layers=[["i", 0, 0]], output_layers=[["m", 0, 0]])
    flat = image.reshape(N, -1)
    assert run(path, images=nchw(image)) == pytest.approx(expected(flat, np.tanh(flat)), abs=1e-6)


@pytest.mark.parametrize(("axis", "numpy_axis"), [(-1, 3), (3, 3), (1, 1), (2, 2), (-2, 2)])
def test_concatenate_images(tmp_path, image, axis, numpy_axis):
    parts = [
        (layer("InputLayer", "i", **FIRST), []),
        (layer("ReLU", "r"), node("i")),
        (layer("Concatenate", "j", axis=axis), node("i", "r")),
    ]
    layers = [{**part, "name": part["config"]["name"], "inbound_nodes": inbound} for part, inbound in parts]
    path = write(tmp_path / "m.h5", layers, "Model", input_layers=[["i", 0, 0]], output_layers=[["j", 0, 0]])
    expected = np.concatenate([image, np.maximum(image, 0)], axis=numpy_axis)
    assert run(path, images=nchw(image)) == pytest.approx(expected)


def test_fully_convolutional_network_takes_any_size(tmp_path, rng):
    w = weights(rng, kernel=(3, 3, 3, 2), bias=(2,))
    config = {"filters": 2, "kernel_size": [3, 3], "strides": [1, 1], "padding": "same"}
    layers = [
        layer("Conv2D", "c", w, batch_input_shape=[None, None, None, 3], **config),
        layer("GlobalAveragePooling2D", "g"),
    ]
    path = write(tmp_path / "any.h5", layers)
    for size in (5, 8):
        x = rng.normal(0, 1, (N, size, size, 3)).astype(np.float32)
        expected = (conv(x, w["kernel"], padding="same") + w["bias"]).mean(axis=(1, 2))
        assert run(path, images=nchw(x)) == pytest.approx(expected, abs=1e-5)


def test_long_lists_of_names_in_pieces(tmp_path, rng):
    x = rng.normal(0, 1, (N, 5)).astype(np.float32)
    w = weights(rng, kernel=(5, 1), bias=(1,))
    path = write(tmp_path / "a.h5", [layer("Dense", "d", w, units=1, batch_input_shape=[None, 5])])
    with h5py.File(path, "a") as file:
        group = file["model_weights/d"]
        names = list(group.attrs["weight_names"])
        del group.attrs["weight_names"]
        group.attrs["weight_names0"], group.attrs["weight_names1"] = names[:1], names[1:]
    assert run(path, features=x) == pytest.approx(x @ w["kernel"] + w["bias"], abs=1e-5)


def test_weights_identity_does_not_depend_on_the_file(tmp_path, rng):
    w = weights(rng, kernel=(5, 1), bias=(1,))
    one = write(tmp_path / "a.h5", [layer("Dense", "d", w, units=1, batch_input_shape=[None, 5])])
    two = write(
        tmp_path / "b.h5", [layer("Dense", "other", w, units=1, batch_input_shape=[None, 5])], version="2.9"
    )
    w["bias"] = w["bias"] + 1
    three = write(tmp_path / "c.h5", [layer("Dense", "d", w, units=1, batch_input_shape=[None, 5])])
    identities = [read_keras_h5(path).weights_sha256() for path in (one, two, three)]
    assert identities[0] == identities[1] != identities[2]
    assert to_onnx(read_keras_h5(one)).onnx == to_onnx(read_keras_h5(one)).onnx


# --- what must be refused, and how it is said ---


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (layer("LSTM", "memory", **FIRST), r"layer memory \(LSTM\) is not supported"),
        (
            layer("Activation", "odd", activation="mish", **FIRST),
            r"layer odd \(Activation\): activation mish",
        ),
        (layer("Activation", "odd", activation={"class_name": "PReLU", "config": {}}, **FIRST), "activation"),
        (layer("MaxPooling2D", "p", pool_size=[2, 2], data_format="channels_first", **FIRST), "data_format"),
        (layer("MaxPooling2D", "p", pool_size=[2, 2], padding="reflect", **FIRST), "padding 'reflect'"),
        (layer("MaxPooling2D", "p", pool_size=[20, 2], **FIRST), "a window of 20 pixels on an image of 9"),
        (layer("BatchNormalization", "b", axis=[1], **FIRST), r"layer b \(BatchNormalization\): axis 1"),
        (layer("ReLU", "r", threshold=1.0, **FIRST), "threshold 1.0"),
        (layer("Softmax", "s", axis=1, **FIRST), "axis 1"),
        (layer("Reshape", "r", target_shape=[5, 5], **FIRST), "target_shape"),
        (layer("Dense", "d", units=2, **FIRST), r"layer d \(Dense\): its weight 'kernel' is missing"),
        (
            layer("Dense", "d", {"kernel": np.ones((4, 2)), "bias": np.ones(2)}, units=2, **FIRST),
            r"shape \(4, 2\)",
        ),
        (layer("Dense", "d", {"kernel": np.full((3, 2), np.nan)}, units=2, **FIRST), "not finite"),
        (layer("Dense", "d", {"kernel": np.ones((3, 2), int)}, units=2, **FIRST), "not floating-point"),
        (layer("Dense", "d", units="many", **FIRST), r"layer d \(Dense\): its settings are not understood"),
        (layer("Conv2D", "c", kernel_size=[3, 3], **FIRST), "filters"),
        (layer("Dropout", "d"), "does not say the shape of its input"),
        (layer("Dropout", "d", batch_input_shape=[None, 4, 4]), "an input of shape"),
        (layer("Concatenate", "c", axis=4, **FIRST), "axis 4"),
        (layer("Add", "a", **FIRST), "inputs of shapes"),
    ],
)
def test_unsupported_is_named(tmp_path, entry, message):
    path = write(tmp_path / "n.h5", [entry])
    with pytest.raises(FormatError, match=message):
        to_onnx(read_keras_h5(path))


def _functional(tmp_path, parts, **ends):
    layers = [{**part, "name": part["config"]["name"], "inbound_nodes": inbound} for part, inbound in parts]
    return write(
        tmp_path / "f.h5",
        layers,
        "Model",
        **({"input_layers": [["i", 0, 0]], "output_layers": [["o", 0, 0]]} | ends),
    )


@pytest.mark.parametrize(
    ("inbound", "message"),
    [
        (node("i") + node("i"), r"layer o \(ReLU\) is used 2 times"),
        ([[["i", 0, 0, {"training": True}]]], "a call with keywords"),
        (node("nowhere"), "layer 'nowhere' is used but not defined"),
        (node("o"), "depends on itself"),
        ([{"args": [], "kwargs": {}}], "tensors as keywords"),
        ([[7]], "structure that is not understood"),
        (node("i", "i"), "a call with 2 inputs"),
    ],
)
def test_strange_graphs_are_named(tmp_path, inbound, message):
    parts = [(layer("InputLayer", "i", **FIRST), []), (layer("ReLU", "o"), inbound)]
    with pytest.raises(FormatError, match=message):
        to_onnx(read_keras_h5(_functional(tmp_path, parts)))


def test_two_outputs_and_two_images_are_refused(tmp_path):
    parts = [(layer("InputLayer", "i", **FIRST), []), (layer("ReLU", "o"), node("i"))]
    path = _functional(tmp_path, parts, output_layers=[["o", 0, 0], ["i", 0, 0]])
    with pytest.raises(FormatError, match="2 outputs"):
        to_onnx(read_keras_h5(path))
    parts = [
        (layer("InputLayer", "i", **FIRST), []),
        (layer("InputLayer", "j", **FIRST), []),
        (layer("Add", "o"), node("i", "j")),
    ]
    path = _functional(tmp_path, parts, input_layers=[["i", 0, 0], ["j", 0, 0]])
    with pytest.raises(FormatError, match="more than one image input"):
        to_onnx(read_keras_h5(path))


def test_files_that_are_not_whole_models(tmp_path):
    wrong = tmp_path / "model.keras"
    wrong.write_bytes(b"PK")
    with pytest.raises(FormatError, match=r"model\.keras: the suffix is not \.h5"):
        read_keras_h5(wrong)
    with pytest.raises(FormatError, match="no such file"):
        read_keras_h5(tmp_path / "absent.h5")
    junk = tmp_path / "junk.h5"
    junk.write_bytes(b"not hdf5 at all")
    with pytest.raises(FormatError, match="not an HDF5 file"):
        read_keras_h5(junk)
    bare = tmp_path / "weights.h5"
    with h5py.File(bare, "w") as file:
        file.create_group("conv1")
    with pytest.raises(FormatError, match="weights only"):
        read_keras_h5(bare)
    for config, message in [("{", "not the JSON"), ('{"class_name": "Funny", "config": {}}', "Funny model")]:
        with h5py.File(bare, "a") as file:
            file.attrs["model_config"] = config
            file.require_group("model_weights")
        with pytest.raises(FormatError, match=message):
            read_keras_h5(bare)
    with h5py.File(bare, "a") as file:
        del file["model_weights"]
    with pytest.raises(FormatError, match="holds no weights"):
        read_keras_h5(bare)


def test_weights_in_another_file_are_refused(tmp_path, rng):
    w = weights(rng, kernel=(5, 1), bias=(1,))
    secret = write(tmp_path / "secret.h5", [layer("Dense", "d", w, units=1, batch_input_shape=[None, 5])])
    path = write(tmp_path / "a.h5", [layer("Dense", "d", w, units=1, batch_input_shape=[None, 5])])
    with h5py.File(path, "a") as file:
        del file["model_weights/d/d/kernel:0"]
        file["model_weights/d/d/kernel:0"] = h5py.ExternalLink(str(secret), "/model_weights/d/d/kernel:0")
    with pytest.raises(FormatError, match="kept in another file"):
        read_keras_h5(path)


def test_a_truncated_or_altered_file_never_crashes(tmp_path, rng):
    """Bytes cut off or changed anywhere: a network comes out, or an error of ours."""
    w = weights(rng, kernel=(3, 3, 3, 2), bias=(2,))
    config = {"filters": 2, "kernel_size": [3, 3], "strides": [1, 1], "batch_input_shape": [None, 9, 8, 3]}
    whole = write(tmp_path / "a.h5", [layer("Conv2D", "c", w, **config)]).read_bytes()
    path = tmp_path / "b.h5"
    refused = 0
    for trial in range(120):
        if trial % 2:
            data = whole[: int(rng.integers(1, len(whole)))]
        else:
            changed = bytearray(whole)
            changed[int(rng.integers(0, len(whole)))] ^= 1 << int(rng.integers(0, 8))
            data = bytes(changed)
        path.write_bytes(data)
        try:
            to_onnx(read_keras_h5(path))
        except InputError:
            refused += 1
    assert refused > 50


def test_every_supported_layer_is_tested():
    source = Path(__file__).read_text(encoding="utf-8")
    assert [kind for kind in BUILDERS if f'"{kind}"' not in source] == []
