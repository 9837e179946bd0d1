"""Scores of alerts: one row each, nothing scored that lacks something, and parity with the original networks."""

from __future__ import annotations

import datetime
from dataclasses import replace

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

from tapetum.alerts.batch import AlertBatch
from tapetum.alerts.decode import decode_packets
from tapetum.alerts.packets import Packet, iter_packets
from tapetum.core.errors import InputError, ModelError
from tapetum.finders.realbogus import COLUMNS, Config, RealBogus, load, to_arrow
from tapetum.models.card import ModelCard, PlattCalibration
from tapetum.models.flags import UNSCORED, InputFlag
from tapetum.models.importer import import_keras
from tapetum.models.keras_h5 import read_keras_h5
from tapetum.models.registry import imported_dir
from tapetum.models.runtime import Model

TODAY = datetime.date(2026, 11, 20)
SIZE = 9
ACAI = [f"acai-{k}" for k in "hvonb"]


def make_batch(n, survey="ztf", size=SIZE, features=None, seed=5):
    rng = np.random.default_rng(seed)
    table = features or {}
    none = np.full(n, np.nan)
    return AlertBatch(
        survey=survey,
        alert_id=np.arange(n, dtype=np.int64) + 10**17,
        object_id=[f"ZTF{i}" for i in range(n)],
        mjd=60000.0 + np.arange(n),
        ra=np.linspace(0, 350, n),
        dec=np.linspace(-20, 80, n),
        band=["ztfg"] * n,
        mag=none,
        mag_err=none,
        flux=none,
        flux_err=none,
        stamps=rng.normal(100, 10, (n, 3, size, size)).astype(np.float32),
        shapes=np.full((n, 3, 2), size, dtype=np.int16),
        source=["here"] * n,
        record=list(range(n)),
        _feature=lambda name: np.asarray(table.get(name, none), dtype=np.float64),
    )


def make_finder(
    *, features=(), fallbacks=None, columns=("real",), calibration=None, micro_batch=4, blow_up=False
):
    """A network that returns the sigmoid of the mean pixel (and of the sum of its features); log of it to blow up."""
    nodes = [helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0)]
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])]
    constants = [numpy_helper.from_array(np.array([-1, 1]), "column")]
    last = "mean"
    contracts = [
        {
            "kind": "image",
            "name": "images",
            "size": SIZE,
            "channels": ["science", "template", "difference"],
            "normalisation": {"method": "stamp_l2"},
            "padding": {"side": "bottom_right"},
        }
    ]
    if features:
        inputs.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", len(features)]))
        nodes.append(helper.make_node("ReduceMean", ["features"], ["sum"], axes=[1], keepdims=0))
        nodes.append(helper.make_node("Add", ["mean", "sum"], ["total"]))
        last = "total"
        contracts.append(
            {"kind": "features", "name": "features", "features": features, "fallbacks": fallbacks or {}}
        )
    if blow_up:
        nodes.append(helper.make_node("Log", [last], ["log"]))
        last = "log"
    nodes.append(helper.make_node("Sigmoid", [last], ["flat"]))
    nodes.append(helper.make_node("Reshape", ["flat", "column"], ["score"]))
    output = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1])
    graph = helper.make_graph(nodes, "g", inputs, [output], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    card = ModelCard.model_validate(
        {
            "name": "tiny",
            "version": "0.1.0",
            "title": "tiny",
            "licence": "x",
            "authors": [],
            "source": {"description": "x"},
            "created": "2026-11-20",
            "onnx_sha256": "0" * 64,
            "training": {"description": "x"},
            "outputs": [{"name": "score", "columns": columns}],
            "inputs": contracts,
            "micro_batch": micro_batch,
        }
        | ({"calibration": calibration.model_dump()} if calibration else {})
    )
    return RealBogus(Model(card, made.SerializeToString(), "tiny"))


def expected(batch, extra=0.0):
    norm = np.sqrt((batch.stamps.astype(float) ** 2).sum(axis=(2, 3), keepdims=True))
    return 1 / (1 + np.exp(-((batch.stamps / norm).mean(axis=(1, 2, 3)) + extra)))


def test_scores_in_order_whatever_the_micro_batch():
    batch = make_batch(11)
    for micro_batch in (1, 4, 11, 64):
        scores = make_finder(micro_batch=micro_batch).find(batch)
        np.testing.assert_allclose(scores.score, expected(batch), atol=1e-6)
        assert (scores.model, scores.model_version) == ("tiny", "0.1.0")
        assert set(scores.error) == {None}
        assert np.isnan(scores.probability).all()


def test_unusable_alerts_have_a_reason_and_the_others_their_own_score():
    batch = make_batch(9)
    want = expected(batch)
    batch.shapes[1, 2] = 0
    batch.stamps[1, 2] = np.nan
    batch.stamps[3, 1] = 7.0
    batch.stamps[4] = np.nan
    batch.stamps[6, 0] = np.inf
    scores = make_finder().find(batch)
    lost = [1, 3, 4, 6]
    kept = [0, 2, 5, 7, 8]
    np.testing.assert_allclose(scores.score[kept], want[kept], atol=1e-6)
    assert np.isnan(scores.score[lost]).all()
    assert scores.error[1] == "the difference stamp is missing"
    assert scores.error[3] == "the template stamp has no value, or one value everywhere"
    assert scores.error[4].count("no value") == 3
    assert [scores.error[row] for row in kept] == [None] * 5
    assert scores.flags[1] & InputFlag.MISSING_STAMP
    assert scores.flags[6] & InputFlag.DEGENERATE_STAMP
    # every alert is truncated: ZTF's full stamp has 63 pixels, these have 9
    assert (scores.flags & InputFlag.TRUNCATED_STAMP).all()
    assert ((scores.flags & UNSCORED) != 0).tolist() == [row in lost for row in range(9)]


def test_bad_pixels_and_cut_stamps_are_scored_and_flagged():
    batch = make_batch(3)
    batch.stamps[1, 0, 2, 3] = np.nan
    batch.shapes[2] = SIZE, SIZE - 2
    batch.stamps[2, :, :, SIZE - 2 :] = np.nan
    scores = make_finder().find(replace(batch, survey="unknown survey"))
    assert np.isfinite(scores.score).all()
    assert scores.flags.tolist() == [0, InputFlag.BAD_PIXELS, InputFlag.TRUNCATED_STAMP]


def test_stamps_larger_than_the_network_are_refused():
    scores = make_finder().find(make_batch(2, size=SIZE + 1))
    assert np.isnan(scores.score).all()
    assert scores.error[0].startswith(
        "the science stamp of 10 x 10 pixels is larger than the 9 x 9 allowed; the template"
    )
    assert (scores.flags & InputFlag.WRONG_SIZE).all()


def test_missing_feature_and_fallback():
    nan = np.nan
    batch = make_batch(
        4, features={"drb": [0.5, nan, nan, 0.1], "rb": [9, 0.25, nan, 9], "fwhm": [1, 2, 3, np.inf]}
    )
    scores = make_finder(features=("drb", "fwhm"), fallbacks={"drb": "rb"}).find(batch)
    want = expected(batch, np.array([0.75, 1.125, 0, 0]))
    np.testing.assert_allclose(scores.score[:2], want[:2], rtol=1e-6)
    assert np.isnan(scores.score[2:]).all()
    assert scores.error == [None, None, "the packet has no drb", "the packet has no fwhm"]
    assert (scores.flags[2:] & InputFlag.MISSING_FEATURE).all()
    scores = make_finder(features=("drb", "colour")).find(batch)
    assert scores.error[1] == "the packet has no drb, colour"


def test_output_that_is_not_a_number_is_no_score():
    batch = make_batch(3)
    batch.stamps[1] *= -1  # the logarithm of a negative mean
    scores = make_finder(blow_up=True).find(batch)
    assert np.isfinite(scores.score[[0, 2]]).all()
    assert np.isnan(scores.score[1])
    assert scores.error[1] == "the output of the network is not a finite number"
    assert scores.flags[1] & InputFlag.BAD_OUTPUT


def test_probability_comes_with_a_calibration():
    batch = make_batch(3)
    batch.shapes[2] = 0
    scores = make_finder(calibration=PlattCalibration(a=1.0, b=0.0)).find(batch)
    np.testing.assert_allclose(scores.probability[:2], scores.score[:2], rtol=1e-6)
    assert np.isnan(scores.probability[2])


def test_batch_without_stamps_or_alerts():
    batch = make_batch(2)
    bare = replace(batch, stamps=np.empty((2, 3, 0, 0), np.float32), shapes=np.zeros((2, 3, 2), np.int16))
    assert make_finder().find(bare).error[0].startswith("the science stamp is missing")
    empty = make_finder(features=("rb",)).find(make_batch(0))
    assert len(empty.score) == len(empty.error) == 0


def test_table_has_the_public_columns_and_nulls():
    batch = make_batch(3)
    batch.stamps[1, 2] = 0
    table = to_arrow(batch, make_finder().find(batch))
    assert tuple(table.column_names) == COLUMNS
    rows = table.to_pylist()
    assert rows[0]["alert_id"] == 10**17
    assert rows[0]["object_id"] == "ZTF0"
    assert rows[0]["error"] is None
    assert rows[0]["probability"] is None
    assert rows[1]["score"] is None
    assert "difference" in rows[1]["error"]
    assert [str(table.schema.field(name).type) for name in ("alert_id", "score", "flags")] == [
        "int64",
        "double",
        "int32",
    ]


def test_only_one_score_per_alert():
    with pytest.raises(InputError, match="2 numbers per alert"):
        make_finder(columns=("real", "bogus"))
    with pytest.raises(ModelError, match="known but not imported"):
        load("braai-d6-m7", Config(verify=False))


# --- parity with the original networks, on every real alert there is ---


ORIGINALS = {
    "braai-d6-m7": ("d6_m7", "d6_m7", "row"),
    "braai-d6-m9": ("braai_d6_m9", "braai_d6_m9", "stamp"),
    **{name: (f"{name.replace('-', '_')}.d1_dnn_20201130", name.replace("-", "_"), None) for name in ACAI},
}


def import_original(real_data, name):
    path = real_data / "braai" / f"{ORIGINALS[name][0]}.h5"
    import_keras(path, name, None, imported_dir(), TODAY)
    return load(name)


@pytest.fixture(scope="module")
def packets(real_data):
    """The 499 original packets as one batch."""
    found = list(iter_packets([real_data / "alerts" / "ztf_packets.tar.xz"]))
    (batch, _), *others = decode_packets([packet for packet in found if isinstance(packet, Packet)])[0]
    assert len(batch) == 499
    assert not others
    return batch


@pytest.fixture(scope="module")
def triplets(real_data):
    """The 369 alerts that exist as arrays only."""
    with np.load(real_data / "alerts" / "ztf_triplets.npz") as stored:
        stamps = np.stack([stored[name] for name in ("science", "template", "difference")], axis=1)
        batch = make_batch(len(stamps))
        return replace(batch, alert_id=stored["candid"], stamps=stamps, shapes=stored["shape"])


@pytest.mark.parametrize("name", list(ORIGINALS))
def test_importer_reads_the_published_weights(real_data, name):
    stem = ORIGINALS[name][0]
    net = read_keras_h5(real_data / "braai" / f"{stem}.h5")
    read = {f"{layer.name}/{key}": values for layer in net.layers for key, values in layer.weights.items()}
    with np.load(real_data / "braai" / f"{stem}.npz") as stored:
        assert set(read) == set(stored.files)
        for key in stored.files:
            np.testing.assert_array_equal(read[key], stored[key])


@pytest.mark.parametrize("name", ["braai-d6-m7", "braai-d6-m9"])
def test_braai_reproduces_every_stored_score(real_data, packets, triplets, name):
    finder = import_original(real_data, name)
    _, model, normalisation = ORIGINALS[name]
    golden = pq.read_table(real_data / "alerts" / "golden_braai.parquet").to_pylist()
    want = {
        r["candid"]: r["score"] for r in golden if (r["model"], r["normalisation"]) == (model, normalisation)
    }
    assert len(want) == 868
    worst = 0.0
    for batch in (packets, triplets):
        scores = finder.find(batch)
        assert set(scores.error) == {None}
        stored = np.array([want.pop(alert_id) for alert_id in batch.alert_id.tolist()])
        worst = max(worst, float(np.abs(scores.score - stored).max()))
        # edge stamps and fill values are among them
        assert (scores.flags & InputFlag.TRUNCATED_STAMP).any()
        assert (scores.flags & InputFlag.BAD_PIXELS).any()
    assert not want
    print(f"{name}: 868 alerts, largest difference {worst:.1e}")
    assert worst < 1e-5


@pytest.mark.parametrize("name", ACAI)
def test_acai_reproduces_every_stored_score(real_data, packets, name):
    """Including which alerts have none: the 353 packets that lack four of the fields."""
    scores = import_original(real_data, name).find(packets)
    golden = pq.read_table(real_data / "alerts" / "golden_acai.parquet").to_pylist()
    by_id = {row["candid"]: row[ORIGINALS[name][1]] for row in golden}
    stored = np.array([by_id[alert_id] for alert_id in packets.alert_id.tolist()], dtype=np.float64)
    assert np.isfinite(stored).sum() == 146
    np.testing.assert_array_equal(np.isnan(scores.score), np.isnan(stored))
    worst = np.nanmax(np.abs(scores.score - stored))
    print(f"{name}: 146 alerts, largest difference {worst:.1e}")
    assert worst < 1e-5
    for row in np.flatnonzero(np.isnan(stored)).tolist():
        assert scores.error[row] == "the packet has no clrcoeff, clrcounc, neargaia, neargaiabright"
        assert scores.flags[row] & InputFlag.MISSING_FEATURE


def test_networks_reproduce_the_scores_stored_by_a_third_party(real_data):
    """BTSbot's example triplets carry scores that its authors' own pipeline computed."""
    table = pq.read_table(real_data / "braai" / "btsbot_example_candidates.parquet")
    numbers = [
        field.name for field in table.schema if str(field.type) in ("double", "float", "int64", "int32")
    ]
    columns = {name: table[name].to_numpy().astype(np.float64) for name in numbers}
    with np.load(real_data / "braai" / "btsbot_example_triplets.npz") as stored:
        stamps = np.ascontiguousarray(stored["triplets"].transpose(0, 3, 1, 2))
    batch = replace(make_batch(len(stamps), size=63, features=columns), stamps=stamps)
    assert len(batch) == 39
    for name, column in [("braai-d6-m9", "new_drb"), *((name, name.replace("-", "_")) for name in ACAI)]:
        scores = import_original(real_data, name).find(batch)
        assert np.abs(scores.score - columns[column]).max() < 1e-5, name


def test_the_wrong_normalisation_is_noticed(real_data, packets):
    """What happens to those who feed one braai network as the other: the reason for the contract."""
    right = import_original(real_data, "braai-d6-m7")
    card = right.model.card
    images = card.images
    norm = images.normalisation.model_copy(update={"method": "stamp_l2"})
    wrong_card = card.model_copy(update={"inputs": (images.model_copy(update={"normalisation": norm}),)})
    onnx_bytes = (imported_dir() / "braai-d6-m7" / "1.0.0" / "model.onnx").read_bytes()
    wrong = RealBogus(Model(wrong_card, onnx_bytes, "wrong"))
    flips = (wrong.find(packets).score > 0.5) != (right.find(packets).score > 0.5)
    assert flips.mean() > 0.05
    with pytest.raises(ModelError, match="golden vector"):
        wrong.model.check_golden()
