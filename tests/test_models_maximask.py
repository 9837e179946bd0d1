"""The networks of MaxiMask and MaxiTrack: against slow numpy code, and against what the originals gave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from astropy.io import fits
from onnx import TensorProto, helper

from tapetum.core.errors import FormatError, MissingExtraError, ModelError
from tapetum.images.normalise import normalise_original
from tapetum.models.installing import complete_card
from tapetum.models.maximask_onnx import maximask_onnx, maxitrack_onnx, without_unpooling
from tapetum.models.registry import load_template
from tapetum.models.runtime import Model, open_session
from tapetum.models.tiles import original_tiles, plan_tiles, run_tiles

SMALL = 4  # planes of the levels below full resolution, in the small network
DEPTH = 156  # how far a tile's border reaches into it, counted through all layers


# --- the slow truth: (channel, y, x), one kernel offset at a time ---


def conv(x, arrays, name):
    kernel, bias = arrays[f"{name}/kernel"], arrays[f"{name}/bias"]
    half = kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (half, half), (half, half)))
    n_y, n_x = x.shape[1:]
    total = np.zeros((kernel.shape[3], n_y, n_x)) + bias[:, None, None]
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            total += np.tensordot(kernel[i, j].T, padded[:, i : i + n_y, j : j + n_x], axes=1)
    return total


def relu(x):
    return np.maximum(x, 0)


def layer(x, arrays, *names):
    for name in names:
        x = relu(conv(x, arrays, name))
    return x


def pool(x):
    """Maxima of 2 x 2, and a mask of the first pixel of each window that has it; odd sides stand alone."""
    n_y, n_x = x.shape[1:]
    pooled, first = np.zeros((len(x), -(-n_y // 2), -(-n_x // 2))), np.zeros(x.shape, bool)
    for c, i, j in np.ndindex(pooled.shape):
        window = x[c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        pooled[c, i, j] = window.max()
        y, z = np.unravel_index(window.argmax(), window.shape)
        first[c, 2 * i + y, 2 * j + z] = True
    return pooled, first


def unpool(x, first):
    n_y, n_x = first.shape[1:]
    return np.where(first, x.repeat(2, axis=1).repeat(2, axis=2)[:, :n_y, :n_x], 0)


def maximask(x, a):
    maps, places = {}, {}
    x = np.arcsinh(x)
    layers = [("conv1",), ("conv2",), *((f"conv{n}_1", f"conv{n}_2") for n in (3, 4, 5))]
    for level, names in enumerate(layers, 1):
        maps[level] = layer(x, a, *names)
        x, places[level] = pool(maps[level])
    x = layer(x, a, "convmid")
    unpooled = {}
    for level in (5, 4, 3):
        unpooled[level] = unpool(x, places[level])
        x = layer(unpooled[level] + maps[level], a, f"upconv{level}_2", f"upconv{level}_1")
    unpooled[2] = unpool(x, places[2])
    unpooled[1] = unpool(layer(unpooled[2] + maps[2], a, "upconv2"), places[1])
    paths = [layer(unpooled[1] + maps[1], a, "upconv1")]
    for level in (4, 3, 2, 1):
        x = unpooled[level]
        for step in range(level, 1, -1):
            x = unpool(layer(x, a, f"ucp{level}_conv{step}"), places[step - 1])
        paths.append(layer(x, a, f"ucp{level}_conv1"))
    return 1 / (1 + np.exp(-conv(np.concatenate(paths), a, "final_conv")))


@pytest.fixture
def small(rng):
    """Arrays of a network like MaxiMask with few planes and many zeros after each ReLU."""
    n = SMALL
    widths = {
        "conv1": (1, 32),
        "conv2": (32, n),
        "upconv2": (n, 32),
        "upconv1": (32, 14),
        "final_conv": (70, 14),
    }
    widths |= {f"ucp{level}_conv1": (32, 14) for level in (1, 2, 3, 4)}
    widths |= {f"ucp{level}_conv2": (n, 32) for level in (2, 3, 4)}
    inner = [f"{kind}{level}_{i}" for kind in ("conv", "upconv") for level in (3, 4, 5) for i in (1, 2)]
    inner += ["convmid", "ucp3_conv3", "ucp4_conv3", "ucp4_conv4"]
    widths |= dict.fromkeys(inner, (n, n))
    arrays = {}
    for name, (n_in, n_out) in widths.items():
        spread = np.sqrt(2 / (9 * n_in))
        arrays[f"{name}/kernel"] = rng.normal(0, spread, (3, 3, n_in, n_out)).astype(np.float32)
        arrays[f"{name}/bias"] = rng.normal(0, 0.3, n_out).astype(np.float32)
    return arrays


@pytest.fixture
def frame(rng):
    """Two frames with noise, bright pixels and areas of one value: ties in every window there."""
    image = rng.normal(0, 1, (2, 1, 64, 48)).astype(np.float32)  # 3 pixels wide at the lowest level
    image[:, :, 10:30, 5:25] = 0
    image[:, :, 32:48, 16:40] = 7
    image[0, 0, 40, ::3] = 300
    return image


def test_maximask_is_the_slow_truth(small, frame):
    (found,) = open_session(maximask_onnx(small), "small").run(None, {"frame": frame})
    assert found.shape == (2, 14, 64, 48)
    assert 0.2 < np.quantile(found, 0.1) < np.quantile(found, 0.9) - 0.2
    for image, planes in zip(frame, found, strict=True):
        assert abs(planes - maximask(image.astype(float), small)).max() < 1e-5


@pytest.mark.parametrize("core", [(0, 0, 16, 48), (16, 16, 64, 32), (48, 0, 64, 48), (0, 0, 640, 640)])
def test_a_core_is_part_of_the_whole(small, frame, core):
    session = open_session(maximask_onnx(small), "small")
    (whole,) = session.run(None, {"frame": frame})
    (found,) = session.run(None, {"frame": frame, "core": np.array(core)})
    expected = whole[:, :, core[0] : core[2], core[1] : core[3]]
    assert found.shape == expected.shape
    assert abs(found - expected).max() < 1e-6


def test_without_unpooling_the_answer_is_the_same(small, frame):
    network = maximask_onnx(small)
    portable = without_unpooling(network)
    assert "MaxUnpool" not in {node.op_type for node in onnx.load_model_from_string(portable).graph.node}
    (expected,) = open_session(network, "small").run(None, {"frame": frame})
    (found,) = open_session(portable, "portable").run(None, {"frame": frame})
    assert abs(found - expected).max() < 1e-6
    assert without_unpooling(portable) == portable


def test_arrays_that_do_not_fit_are_named(small):
    kernel = small.pop("ucp4_conv3/kernel")
    with pytest.raises(FormatError, match="the array ucp4_conv3/kernel is missing"):
        maximask_onnx(small)
    small["ucp4_conv3/kernel"] = kernel[0]
    with pytest.raises(
        FormatError, match=r"the array ucp4_conv3/kernel has the shape \(3, 4, 4\), not 4 axes"
    ):
        maximask_onnx(small)


def test_unpooling_that_cannot_be_rewritten():
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 9, 9])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 9, 9])
    window = {"kernel_shape": [3, 3], "strides": [3, 3]}
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p", "i"], name="pool", **window),
        helper.make_node("MaxUnpool", ["p", "i"], ["y"], name="unpool", **window),
    ]
    graph = helper.make_graph(nodes, "g", [image], [answer])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(FormatError, match="pool: unpooling of windows other than 2 x 2"):
        without_unpooling(model.SerializeToString())
    with pytest.raises(FormatError, match="not an ONNX network"):
        without_unpooling(b"nothing of the kind")


def test_maxitrack_flattens_like_the_original():
    """Planes that each see one corner: the first dense layer must find them where the original has them."""
    arrays = {}
    for number, n_in, n_out, side in (
        (1, 1, 1, 400),
        (2, 1, 1, 200),
        (3, 1, 1, 100),
        (4, 1, 1, 50),
        (5, 1, 2, 25),
    ):
        kernel = np.zeros((9, 9, n_in, n_out), np.float32)
        kernel[4, 4] = np.array([[1.0, 2.0][:n_out]])
        arrays |= {f"conv{number}/kernel": kernel, f"conv{number}/bias": np.zeros(n_out, np.float32)}
        arrays[f"conv{number}/prelu"] = np.full((side, side, n_out), 0.5, np.float32)
    weights = np.zeros((12 * 12 * 2, 3), np.float32)
    for column, (y, x, plane) in enumerate([(0, 0, 0), (2, 7, 1), (11, 11, 1)]):
        weights[(12 * y + x) * 2 + plane, column] = 1
    arrays |= {"dense1/kernel": weights, "dense2/kernel": np.eye(3, dtype=np.float32)}
    arrays["dense3/kernel"] = np.array([[1, 0], [0, 1], [0, 0.5]], np.float32)
    for number, n in ((1, 3), (2, 3), (3, 2)):
        arrays[f"dense{number}/bias"] = np.zeros(n, np.float32)
        arrays[f"dense{number}/prelu"] = np.full(n, 0.25, np.float32)
    image = np.full((1, 1, 400, 400), -np.sinh(32.0), np.float32)
    for y, x, value in ((0, 0, 1.0), (2, 7, 0.6), (11, 11, 0.4)):
        image[0, 0, 32 * y : 32 * (y + 1), 32 * x : 32 * (x + 1)] = np.sinh(value)
    (found,) = open_session(maxitrack_onnx(arrays), "small").run(None, {"frame": image})
    logits = np.array([1.0, 2 * 0.6 + 0.5 * 2 * 0.4])
    assert found[0] == pytest.approx(np.exp(logits) / np.exp(logits).sum(), abs=1e-5)


# --- the original weights ---


def original(real_data, name):
    arrays = dict(np.load(real_data / "maximask" / f"{name}_weights.npz"))
    network = {"maximask": maximask_onnx, "maxitrack": maxitrack_onnx}[name](arrays)
    template = load_template(name)
    assert template is not None
    return complete_card(template, network), network


@pytest.fixture(scope="module")
def network(real_data):
    return original(real_data, "maximask")


@pytest.fixture(scope="module")
def model(network):
    return Model(*network, "maximask", threads=2)


def golden(real_data, name):
    with fits.open(real_data / "images" / f"{name}.fits") as hdus:
        data = next(hdu.data for hdu in hdus if hdu.data is not None)
    return normalise_original(data).data, np.load(real_data / "images" / f"{name}.golden.npz")


def probabilities(model, image, tiles):
    out = np.full((14, *image.shape), np.nan, np.float32)
    run_tiles(model, image, tiles, lambda place, maps: out.__setitem__((slice(None), *place), maps), batch=2)
    return out


@pytest.mark.parametrize("name", ["saao_ste3", "trail_ystar", "trail400_hsc"])
def test_maximask_gives_what_the_original_gave(real_data, model, name):
    image, expected = golden(real_data, name)
    found = probabilities(model, image, original_tiles(image.shape))
    y, x = expected["proba_crop_origin"]
    crop = found[:, y : y + 256, x : x + 256]
    assert abs(crop - expected["proba_crop"]).max() < 1e-3  # pytest.approx takes seconds
    assert found.max(axis=(1, 2)) == pytest.approx(expected["proba_max"], abs=1e-4)
    for number, spec in enumerate(model.card.classes):
        odds = spec.training_prior / (1 - spec.training_prior) * (1 - spec.prior) / spec.prior
        p = found[number].astype(np.float64)
        flagged, wanted = p / (p + odds * (1 - p)) > spec.threshold, expected["mask_bits"] >> number & 1 == 1
        if wanted.sum() > 50:
            assert (flagged & wanted).sum() >= 0.999 * (flagged | wanted).sum(), spec.name


def test_maxitrack_gives_what_the_original_gave(real_data):
    model = Model(*original(real_data, "maxitrack"), "maxitrack", threads=2)
    for name in ("saao_ste3", "nircam_f200w_a", "clean400_sdss", "galaxy_apogee"):
        image, expected = golden(real_data, name)
        tiles = [image[y : y + 400, x : x + 400] for x, y in expected["maxitrack_block_xy"]]
        found = model.scores({"frame": np.stack(tiles)[:, None]})
        assert found[:, 1] == pytest.approx(expected["maxitrack_block_proba"], abs=1e-5)


def crowded(rng, shape):
    image = rng.normal(0, 1, shape).astype(np.float32)
    image[tuple(rng.integers(0, n, 200) for n in shape)] += rng.exponential(300, 200)
    image[:, shape[1] // 3] += 20
    image[shape[0] // 3 : shape[0] // 2, 100:200] = 0
    return image


def test_tiles_do_not_show(model, rng):
    """Wherever tiles lie, every pixel has the probability that the whole frame at once gives it."""
    image = crowded(rng, (704, 380))
    padded = np.pad(image, ((0, 0), (0, 4)))
    whole = model.maps(padded[None, None])[0, :, :, :380].copy()
    assert whole.max() > 0.9
    for side in (500, 430):
        tiles = plan_tiles(image.shape, side=side, margin=DEPTH, multiple=32)
        assert len(tiles) > 1
        assert abs(probabilities(model, image, tiles) - whole).max() < 1e-4


def test_tiles_show_where_the_margin_is_too_small(model, rng):
    """The test above is able to fail."""
    image = crowded(rng, (704, 384))
    whole = model.maps(image[None, None])[0].copy()
    tiles = plan_tiles(image.shape, side=500, margin=48, multiple=32)
    assert abs(probabilities(model, image, tiles) - whole).max() > 1e-3


def test_frames_that_do_not_fit_are_refused(model, real_data):
    with pytest.raises(ModelError, match="maximask: "):
        model.maps(np.zeros((1, 2, 64, 64), np.float32))
    track = Model(*original(real_data, "maxitrack"), "maxitrack")
    with pytest.raises(ModelError, match="the network has no answer for each pixel"):
        track.maps(np.zeros((1, 1, 400, 400), np.float32))


def test_openvino_is_close(network, model, rng):
    pytest.importorskip("openvino")
    other = Model(*network, "maximask", threads=2, runtime="openvino")
    other.check_golden()
    image = crowded(rng, (416, 288))[None, None]
    expected, found = model.maps(image), other.maps(image)
    assert abs(found - expected).mean() < 0.002
    sure = (expected < 0.01) | (expected > 0.99)
    assert ((found > 0.5) == (expected > 0.5))[sure].mean() > 0.9999
    blank = np.zeros((2, 1, 400, 400), np.float32)  # another shape, odd at the lowest level
    assert abs(other.maps(blank) - model.maps(blank)).max() < 0.05


def test_without_openvino_the_extra_is_named(network, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tapetum\[openvino\]'"):
        Model(*network, "maximask", runtime="openvino")


def test_importing_the_runtime_does_not_import_openvino():
    code = "import sys, tapetum.models.runtime; sys.exit('openvino' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
