"""The network `contaminants` that comes with the package: what it is, and what it finds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tapetum.finders.contaminants import BACKGROUND_BIT, Config, Contaminants, load
from tapetum.images.contaminants import NAMES, Contaminant, code_of
from tapetum.images.normalise import normalise
from tapetum.models.registry import find_model
from tapetum.models.runtime import Model
from tapetum.models.tiles import plan_tiles, run_tiles
from tapetum.simulate.artefacts import TrailShape, trail_layer
from tapetum.simulate.contaminants import SHARES, ContaminantSettings, contaminated_frame

MEGABYTE = 2**20
SOURCE = Path(__file__).parents[1]
ARTEFACTS = (
    "trail", "cosmic_ray", "lines", "hot", "dead", "cluster", "bright_stars", "spikes", "overscan", "persistence",
    "nebula",
)  # fmt: skip
ENOUGH = 200  # pixels of a class, for its overlap to say something


@cache
def finder() -> Contaminants:
    return load(threads=2)


def sky(shape: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(500, 10, shape).astype(np.float32)


def stars(shape: tuple[int, int], seed: int, fwhm: float = 3.0) -> np.ndarray:
    """Gaussian stars, nothing like those it learned from."""
    rng = np.random.default_rng(seed)
    image = sky(shape, seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for _ in range(40):
        r2 = (x - rng.uniform(0, shape[1])) ** 2 + (y - rng.uniform(0, shape[0])) ** 2
        image += np.float32(10 ** rng.uniform(1.5, 3.5)) * np.exp(-r2 / (2 * (fwhm / 2.3548) ** 2))
    return image.astype(np.float32)


def test_it_is_small_and_has_ordinary_upsampling() -> None:
    files = find_model("contaminants")
    assert files.origin == "package"
    assert files.onnx.stat().st_size < 8 * MEGABYTE
    operators = {node.op_type for node in onnx.load(files.onnx).graph.node}
    assert not operators & {"MaxUnpool", "MaxPool", "ScatterND", "ScatterElements"}
    assert operators & {"Resize", "Upsample"}


def test_its_card_has_the_14_classes_and_figures_of_each() -> None:
    card = finder().model.card
    assert tuple(spec.name for spec in card.classes) == NAMES
    assert [spec.code for spec in card.classes] == [code_of(name) for name in NAMES]
    assert card.training.recipe["task"] == "masks"
    for name in NAMES:
        assert any(name in metric.split("_") for metric in card.metrics), name
    assert card.frame is not None
    assert card.frame.margin >= 300


def test_answers_do_not_depend_on_the_tiles() -> None:
    card = finder().model.card
    assert card.frame is not None
    image = np.random.default_rng(5).normal(0, 1, (160, 1600)).astype(np.float32)
    image[:, 700:720] += 5
    answers = []
    for side in (1024, 384):
        tiles = plan_tiles(image.shape, side=side, margin=card.frame.margin, multiple=card.frame.multiple)
        answer = np.empty((len(NAMES), *image.shape), np.float32)

        def consume(place: tuple[slice, slice], maps: np.ndarray, into: np.ndarray = answer) -> None:
            into[:, place[0], place[1]] = maps

        run_tiles(finder().model, image, tiles, consume)
        answers.append((len(tiles), answer))
    assert answers[0][0] < answers[1][0]
    np.testing.assert_allclose(answers[0][1], answers[1][1], atol=1e-4)


@pytest.mark.parametrize(("width", "brightness"), [(0.0, 12.0), (0.0, 100.0), (25.0, 6.0)])
def test_trails_are_trails_and_no_cosmic_rays(width: float, brightness: float) -> None:
    """Where the original network sees thousands of cosmic rays, or nothing."""
    image = stars((512, 512), 11)
    trail = TrailShape(250.0, 260.0, 31.0, 2000.0, width, 0.0, 3.0, 3.0)
    light, across = trail_layer(image.shape, trail, np.random.default_rng(0))
    masks = finder().find(image + 10 * brightness * light)
    found = masks.codes & np.uint16(Contaminant.TRL) > 0
    assert found[across > 0.5].mean() > 0.7
    assert found[across < 0.01].mean() < 0.01
    assert masks.counts["CR"] < 0.2 * masks.counts["TRL"]


def test_sky_and_stars_alone_have_hardly_any_contaminants() -> None:
    for image in (sky((512, 512), 3), stars((512, 512), 4)):
        counts = finder().find(image).counts
        for name in ("CR", "HCL", "DCL", "HP", "DP", "TRL", "OV"):
            assert counts[name] < 100, (name, counts)


def test_sharp_defects_are_told_apart() -> None:
    image = stars((512, 512), 21)
    rng = np.random.default_rng(22)
    hot = (rng.integers(20, 490, 30), rng.integers(20, 230, 30))
    image[hot] += 600
    image[:, 300] += 120
    image[:, 380] = 300
    codes = finder().find(image).codes
    assert np.mean(codes[hot] & np.uint16(Contaminant.HP) > 0) > 0.7
    assert np.mean(codes[:, 300] & np.uint16(Contaminant.HCL) > 0) > 0.8
    assert np.mean(codes[:, 380] & np.uint16(Contaminant.DCL) > 0) > 0.8


def test_a_higher_threshold_finds_less() -> None:
    image = stars((256, 256), 31)
    image[100:103, 40:90] += 300
    few, many = (
        load(config=Config(thresholds=dict.fromkeys(NAMES, value))).find(image).counts
        for value in (0.99, 0.01)
    )
    assert all(few[name] <= many[name] for name in NAMES)


@cache
def contaminated(number: int) -> np.ndarray:
    """A frame with nearly everything in it."""
    shares = {name: float(name in ARTEFACTS) for name in SHARES}
    settings = ContaminantSettings(sky=(300, 300), fwhm=(3, 3), stars=(100, 100), shares=shares)
    return contaminated_frame(np.random.default_rng([9, number]), settings).data


@cache
def network() -> bytes:
    return find_model("contaminants").onnx.read_bytes()


def agreement(changed: bytes) -> dict[str, float]:
    """Class -> pixels that the masks of a changed network share with ours, of those that either has."""
    card = finder().model.card
    other = Contaminants(Model(card, changed, "changed"))
    both, either = np.zeros(len(NAMES)), np.zeros(len(NAMES))
    bits = np.array([code_of(name) or BACKGROUND_BIT for name in NAMES], np.uint16)[:, None, None]
    for number in range(4):
        mine, theirs = (each.find(contaminated(number)).flagged & bits for each in (finder(), other))
        both += np.count_nonzero(mine & theirs, axis=(1, 2))
        either += np.count_nonzero(mine | theirs, axis=(1, 2))
    return {
        name: n / of for name, n, of in zip(NAMES, both.tolist(), either.tolist(), strict=True) if of > ENOUGH
    }


def rounded(values: np.ndarray) -> np.ndarray:
    """Nearest bfloat16 of float32, as float32; ties go to the even one."""
    bits = np.atleast_1d(values).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def in_bfloat16(onnx_bytes: bytes) -> bytes:
    """A network whose weights, and what its convolutions are given, have the 8 significant bits of bfloat16."""
    model = onnx.load_model_from_string(onnx_bytes)
    for entry in model.graph.initializer:
        if entry.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(entry)
            entry.CopyFrom(numpy_helper.from_array(rounded(values).reshape(values.shape), entry.name))
    nodes, short = [], {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            name = node.input[0]
            if name not in short:
                short[name] = f"{name}_short"
                nodes.append(helper.make_node("Cast", [name], [f"{name}_bfloat16"], to=TensorProto.BFLOAT16))
                nodes.append(
                    helper.make_node("Cast", [f"{name}_bfloat16"], [short[name]], to=TensorProto.FLOAT)
                )
            node.input[0] = short[name]
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    changed: bytes = model.SerializeToString()
    return changed


def test_rounding_is_to_the_nearest_bfloat16() -> None:
    """Values of 7 bits of mantissa stay; halfway goes to the even one; the rest to the nearest."""
    step = 2.0**-7
    values = np.array([1, 1 + step, 1 + step / 2, 1 + 1.5 * step, -1 - 0.6 * step, 0, 1e30], np.float32)
    expected = [1, 1 + step, 1, 1 + 2 * step, -1 - step, 0]
    np.testing.assert_array_equal(rounded(values)[:-1], np.array(expected, np.float32))
    assert rounded(values)[-1] == pytest.approx(1e30, rel=step / 2)


def test_masks_survive_bfloat16() -> None:
    rows = agreement(in_bfloat16(network()))
    assert len(rows) >= 8
    assert min(rows.values()) > 0.95, rows
    assert min(rows.values()) < 1, "nothing was rounded"


def test_masks_survive_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in int8 but the first and the last, ranges from frames that are not judged."""
    monkeypatch.syspath_prepend(SOURCE)  # of the benchmarks
    from benchmarks.precision import FLOAT, all_but, quantised

    frames = [normalise(contaminated(number)).data for number in (100, 101)]
    small = quantised(network(), "image", frames, all_but(network(), FLOAT))
    assert len(small) < 0.35 * len(network())
    rows = agreement(small)
    assert len(rows) >= 8
    assert min(rows.values()) > 0.75, rows
    assert np.mean(list(rows.values())) > 0.93, rows
