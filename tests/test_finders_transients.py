"""The finder of transients: silent without a network, and with one it scores what can be scored."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tapetum.core.errors import InputError, ModelError
from tapetum.finders.transients import (
    MODEL,
    STAMP_SIZE,
    CandidateBatch,
    CandidateFlag,
    Transients,
    flag_names,
    load,
    misfit,
)
from tapetum.models.card import ModelCard, write_card
from tapetum.models.flags import InputFlag
from tapetum.models.registry import CARD_NAME, ONNX_NAME, imported_dir
from tapetum.models.runtime import Model

SIZE = 9


def make_network(columns=("real",), features=("snr",)):
    """A network whose score is the sigmoid of the mean pixel of the difference plus its features."""
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])]
    nodes = [
        helper.make_node("Slice", ["images", "from", "to", "axis"], ["difference"]),
        helper.make_node("ReduceMean", ["difference"], ["mean"], axes=[1, 2, 3], keepdims=0),
    ]
    constants = [
        numpy_helper.from_array(np.array([value], np.int64), name)
        for name, value in (("from", 2), ("to", 3), ("axis", 1), ("column", -1))
    ]
    contracts = [
        {
            "kind": "image",
            "name": "images",
            "size": SIZE,
            "channels": ["science", "template", "difference"],
            "normalisation": {"method": "stamp_l2"},
            "padding": {"side": "centre"},
            "larger": "crop_centre",
        }
    ]
    last = "mean"
    if features:
        inputs.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", len(features)]))
        nodes.append(helper.make_node("ReduceMean", ["features"], ["sum"], axes=[1], keepdims=0))
        nodes.append(helper.make_node("Add", ["mean", "sum"], ["total"]))
        last = "total"
        contracts.append({"kind": "features", "name": "features", "features": list(features)})
    nodes += [
        helper.make_node("Unsqueeze", [last, "column"], ["wide"]),
        helper.make_node("Sigmoid", ["wide"], ["score"]),
    ]
    if len(columns) > 1:
        nodes[-1] = helper.make_node("Sigmoid", ["wide"], ["one"])
        nodes.append(helper.make_node("Concat", ["one"] * len(columns), ["score"], axis=1))
    output = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", len(columns)])
    graph = helper.make_graph(nodes, "net", inputs, [output], constants)
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    raw = network.SerializeToString()
    card = ModelCard.model_validate(
        {
            "name": MODEL,
            "version": "1.0.0",
            "title": "a test",
            "finder": "transients",
            "licence": "BSD-3-Clause",
            "authors": ["nobody"],
            "source": {"description": "made up"},
            "created": "2026-11-20",
            "inputs": contracts,
            "outputs": [{"name": "score", "columns": list(columns)}],
            "training": {"description": "none"},
            "onnx_sha256": hashlib.sha256(raw).hexdigest(),
        }
    )
    return raw, card


def install(raw, card):
    folder = imported_dir() / MODEL / card.version
    folder.mkdir(parents=True)
    (folder / ONNX_NAME).write_bytes(raw)
    write_card(folder / CARD_NAME, card)


def make_batch(rng, n=5, size=21):
    stamps = rng.normal(0, 1, (n, 3, size, size)).astype(np.float32)
    return CandidateBatch(stamps, {"snr": np.linspace(5, 20, n)})


def test_without_a_network_nothing_is_scored_and_says_so(rng):
    finder = load()
    scores = finder.find(make_batch(rng))
    assert (finder.name, finder.version, finder.stamp_size) == ("", "", STAMP_SIZE)
    assert np.isnan(scores.score).all()
    assert np.isnan(scores.probability).all()
    assert (scores.flags == CandidateFlag.UNSCORED).all()
    assert all(scores.error)


def test_an_installed_network_is_used_unasked(rng):
    install(*make_network())
    finder = load()
    batch = make_batch(rng)
    scores = finder.find(batch)
    assert (finder.name, finder.stamp_size) == (MODEL, SIZE)
    centre = batch.stamps[:, 2, 6:15, 6:15]
    centre = centre / np.sqrt((centre.astype(float) ** 2).sum(axis=(1, 2), keepdims=True))
    expected = 1 / (1 + np.exp(-(centre.mean(axis=(1, 2)) + batch.features["snr"])))
    np.testing.assert_allclose(scores.score, expected, atol=1e-5)
    assert not (scores.flags & CandidateFlag.UNSCORED).any()


def test_what_lacks_something_is_flagged_and_has_no_score(rng):
    raw, card = make_network()
    finder = Transients(Model(card, raw, "here"))
    batch = make_batch(rng)
    batch.stamps[1, 1] = np.nan
    batch.features["snr"][3] = np.nan
    scores = finder.find(batch)
    assert np.isfinite(scores.score).tolist() == [True, False, True, False, True]
    assert scores.flags[1] & InputFlag.MISSING_STAMP
    assert scores.flags[3] & InputFlag.MISSING_FEATURE
    assert (scores.flags[[1, 3]] & CandidateFlag.UNSCORED).all()
    assert [error is None for error in scores.error] == [True, False, True, False, True]


def test_no_candidates_are_no_trouble(rng):
    raw, card = make_network()
    scores = Transients(Model(card, raw, "here")).find(make_batch(rng, n=0))
    assert len(scores.score) == 0


def test_a_network_of_several_numbers_is_refused():
    raw, card = make_network(columns=("point", "streak"))
    with pytest.raises(InputError, match="one number"):
        Transients(Model(card, raw, "here"))


@pytest.mark.parametrize(
    ("features", "stamps", "problem"),
    [
        (("snr",), ("science", "template", "difference"), ""),
        (("snr",), ("science",), "template, difference"),
        (("snr", "magpsf"), ("science", "template", "difference"), "magpsf"),
    ],
)
def test_a_network_that_can_score_nothing_says_why(features, stamps, problem):
    found = misfit(make_network(features=features)[1], stamps, ("snr", "mag"))
    assert (found == "") == (problem == "")
    assert problem in found


def test_a_named_network_must_be_there():
    with pytest.raises(ModelError, match="no model"):
        load("nothing-of-that-name")


def test_flags_do_not_overlap_those_of_the_input():
    names = flag_names()
    assert len(names) == len(InputFlag) + len(CandidateFlag)
    assert all(bit & (bit - 1) == 0 for bit in names)


def test_the_network_of_the_tests_is_valid():
    onnx.checker.check_model(onnx.load_from_string(make_network()[0]))
