"""The model card: schema, round trip, and everything that makes a card invalid."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

import tapetum.models
from tapetum.core.errors import ModelError
from tapetum.models.card import (
    FeatureContract,
    Golden,
    ImageContract,
    IsotonicCalibration,
    Metric,
    ModelCard,
    PlattCalibration,
    Reliability,
    ReliabilityBin,
    StoredArray,
    StoredStamps,
    SyntheticFrames,
    card_schema,
    load_card,
    parse_card,
    write_card,
)
from tapetum.models.flags import UNSCORED, InputFlag, flag_names
from tapetum.models.golden import check_golden, golden_projections, golden_rows, synthetic_frames

IMAGE = {
    "kind": "image",
    "name": "images",
    "size": 5,
    "channels": ["science", "difference"],
    "normalisation": {"method": "stamp_l2"},
    "padding": {"side": "centre"},
}


def make_card(**changes):
    body = {
        "name": "tiny",
        "version": "1.2.3",
        "title": "A tiny network",
        "licence": "BSD-3-Clause",
        "authors": ["nobody"],
        "source": {"description": "made up"},
        "created": "2026-11-20",
        "inputs": [IMAGE],
        "outputs": [{"name": "score", "columns": ["real"]}],
        "training": {"description": "not trained"},
        "onnx_sha256": "0" * 64,
    }
    return ModelCard.model_validate(body | changes)


def test_schema_in_the_package_is_the_generated_one():
    path = Path(tapetum.models.__file__).with_name("card.schema.json")
    assert path.read_text(encoding="utf-8") == card_schema(), "write card_schema() to models/card.schema.json"


def test_round_trip_of_a_full_card(tmp_path, rng):
    stamps = rng.normal(0, 1, (2, 3, 4, 5)).astype(np.float32)
    stamps[0, 0, 0, 0] = np.nan
    shape = ((4, 5),) * 3
    card = make_card(
        inputs=[
            IMAGE,
            {"kind": "features", "name": "features", "features": ["rb"], "fallbacks": {"rb": "drb"}},
        ],
        golden=Golden(
            stamps=StoredStamps(stamps=StoredArray.pack(stamps), shapes=(shape, shape)),
            features=((0.5,), (0.1,)),
            outputs=((0.25,), (0.75,)),
        ),
        calibration=PlattCalibration(a=1.5, b=-0.25),
        metrics={"auc": Metric(value=0.99, low=0.98, high=0.995, confidence=0.95, n=400, data="test")},
        reliability=Reliability(
            data="test",
            n=4,
            ece=0.01,
            bins=(ReliabilityBin(low=0, high=1, n=4, mean_probability=0.5, fraction_positive=0.5),),
        ),
        thresholds={"real": 0.5},
    )
    write_card(tmp_path / "card.json", card)
    again = load_card(tmp_path / "card.json")
    assert again == card
    np.testing.assert_array_equal(again.golden.stamps.stamps.unpack(), stamps)
    assert json.loads((tmp_path / "card.json").read_text())["card_version"] == 1


def test_flags_are_named_bit_by_bit():
    assert make_card().flags == flag_names() == {flag.value: flag.name.lower() for flag in InputFlag}
    assert InputFlag.TRUNCATED_STAMP not in UNSCORED
    assert InputFlag.MISSING_FEATURE in UNSCORED


def test_planes_of_the_contract():
    counts = {
        masks: ImageContract.model_validate(IMAGE | {"masks": masks}).n_planes
        for masks in ("none", "per_stamp", "combined")
    }
    assert counts == {"none": 2, "per_stamp": 4, "combined": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, "surprise"),
        ({"card_version": 2}, "card_version"),
        ({"version": "1.2"}, "version"),
        ({"name": "../evil"}, "name"),
        ({"onnx_sha256": "abc"}, "onnx_sha256"),
        ({"flags": {"3": "two bits"}}, "one bit"),
        ({"flags": {str(2**31): "sign"}}, "one bit"),
        ({"inputs": [IMAGE, IMAGE]}, "at most one input of each kind"),
        ({"inputs": [IMAGE | {"channels": ["science", "science"]}]}, "named twice"),
        (
            {
                "inputs": [
                    IMAGE
                    | {
                        "normalisation": {"method": "background_noise"},
                        "padding": {"side": "centre", "when": "before"},
                    }
                ]
            },
            "pads after normalisation only",
        ),
        ({"calibration": {"method": "isotonic", "x": [0, 0.5, 1], "y": [0.5, 0.6]}}, "different lengths"),
        ({"calibration": {"method": "isotonic", "x": [0, 0], "y": [0, 1]}}, "x must increase"),
        ({"calibration": {"method": "isotonic", "x": [0, 1], "y": [1, 0]}}, "y must not decrease"),
        ({"golden": {"outputs": [[0.5]]}}, "exactly the inputs"),
        (
            {"golden": {"stamps": {"seed": 1, "count": 2, "size": 9}, "outputs": [[0.5]]}},
            "as many golden stamps",
        ),
        ({"golden": {"stamps": {"seed": 1, "count": 1, "size": 9}, "outputs": [[0.5, 0.5]]}}, "1 column"),
    ],
)
def test_invalid_cards_name_what_is_wrong(changes, message):
    base = json.loads(make_card().model_dump_json())
    for entry in (changes.get("golden"),):
        if entry and "stamps" in entry:
            entry["stamps"] = {"kind": "synthetic", **entry["stamps"]}
    with pytest.raises(ModelError, match=message) as problem:
        parse_card(json.dumps(base | changes), "here.json", ModelCard)
    assert str(problem.value).startswith("here.json: not a model card of version 1")


def test_golden_features_must_fit():
    features = FeatureContract(name="features", features=("a", "b"))
    with pytest.raises(ValidationError, match="one number per feature"):
        make_card(inputs=[features.model_dump()], golden={"features": [[1.0]], "outputs": [[0.5]]})


def test_unreadable_cards(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        load_card(tmp_path / "card.json")
    (tmp_path / "card.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="cannot be read"):
        load_card(tmp_path / "card.json")
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(ModelError, match="not a model card"):
        load_card(tmp_path / "card.json")


FRAME = {"kind": "frame", "name": "frame", "multiple": 32, "margin": 167}
CLASS = {"title": "a class", "training_prior": 0.1, "prior": 0.01, "threshold": 0.5}
MAPS = {
    "finder": "contaminants",
    "inputs": [FRAME],
    "outputs": [{"name": "probability", "columns": ["CR", "BG"], "per": "pixel"}],
    "classes": [{"name": "CR", "code": 1, **CLASS}, {"name": "BG", **CLASS}],
    "golden": {"frames": {"seed": 1, "count": 1, "size": 64}, "outputs": [[0.5, 0.25]]},
}


def test_card_of_a_network_for_frames(tmp_path):
    card = make_card(**MAPS)
    assert (card.frame.margin, card.frame.side, card.images, card.features) == (167, None, None, None)
    write_card(tmp_path / "card.json", card)
    assert load_card(tmp_path / "card.json") == card
    assert make_card().frame is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": [FRAME, IMAGE]}, "takes nothing else"),
        ({"inputs": [FRAME | {"side": 100}]}, "not a multiple"),
        ({"inputs": [FRAME | {"side": 128}]}, "size that the network takes"),
        ({"inputs": [IMAGE], "golden": None}, "answers for each pixel"),
        ({"golden": {"frames": {"seed": 1, "count": 1, "size": 65}, "outputs": [[0.5, 0.25]]}}, "size that"),
        (
            {"golden": {"frames": {"seed": 1, "count": 2, "size": 64}, "outputs": [[0.5, 0.25]]}},
            "many golden",
        ),
        ({"golden": {"outputs": [[0.5, 0.25]]}}, "exactly the inputs"),
        (
            {"golden": {**MAPS["golden"], "projections": [[0.5]]}},
            "projections must have the shape",
        ),
        ({"classes": [{"name": "BG", **CLASS}, {"name": "CR", **CLASS}]}, "in their order"),
        ({"classes": [{"name": "CR", **CLASS}]}, "in their order"),
        ({"classes": [{"name": name, "code": 2, **CLASS} for name in ("CR", "BG")]}, "same code"),
        ({"classes": [{"name": name, "code": 3, **CLASS} for name in ("CR", "BG")]}, "one bit"),
        ({"classes": [{"name": name, **CLASS, "prior": 0} for name in ("CR", "BG")]}, "greater than 0"),
    ],
)
def test_invalid_cards_of_networks_for_frames(changes, message):
    with pytest.raises(ValidationError, match=message):
        make_card(**(MAPS | changes))


def test_golden_answers_for_each_pixel_are_averaged(rng):
    card = make_card(**MAPS)

    def run(inputs):
        frames = inputs["frame"]
        assert frames.shape == (1, 1, 64, 64)
        maps = rng.normal(0, 1, (1, 2, 64, 64))
        return maps - maps.mean(axis=(2, 3), keepdims=True) + np.array([0.5, 0.25])[:, None, None]

    assert check_golden(card, run) < 1e-12
    assert check_golden(card, lambda _: np.array([[0.5, 0.25]])) == 0
    with pytest.raises(ModelError, match=r"golden vector 0 differs by 0\.5"):
        check_golden(card, lambda _: np.zeros((1, 2, 64, 64)))


def test_maps_that_were_moved_or_turned_are_told(rng):
    maps = np.zeros((1, 2, 64, 64))
    maps[0, 0, 20, 30:33] = 0.9  # a few pixels in all
    maps[0, 1] = rng.random((64, 64))
    rows, projections = (tuple(map(tuple, made(maps).tolist())) for made in (golden_rows, golden_projections))
    golden = MAPS["golden"] | {"outputs": rows, "projections": projections, "tolerance": 1e-4}
    card = make_card(**MAPS | {"golden": golden})
    assert check_golden(card, lambda _: maps) < 1e-12
    assert check_golden(card, lambda _: maps + rng.normal(0, 1e-5, maps.shape)) < 1e-4  # another machine
    assert check_golden(card, lambda _: maps + 1e-5) < 2e-5
    moved = np.roll(maps, 1, axis=3)
    for changed in (moved, maps.swapaxes(2, 3), maps[..., ::-1], np.concatenate([maps[:, :1], moved[:, 1:]], 1),
                    np.concatenate([moved[:, :1], maps[:, 1:]], 1)):  # fmt: skip
        np.testing.assert_allclose(golden_rows(changed), golden_rows(maps))
        with pytest.raises(ModelError, match="golden vector 0 differs"):
            check_golden(card, lambda _, changed=changed: changed)


def test_synthetic_frames_never_change():
    """The golden vectors of published cards depend on every bit of them."""
    frames = synthetic_frames(SyntheticFrames(seed=11, count=2, size=64))
    assert frames.shape == (2, 1, 64, 64)
    assert frames.dtype == np.float32
    assert hashlib.sha256(frames.tobytes()).hexdigest() == FRAMES_SHA256
    assert (frames[:, 0, 56:, 52:] == 0).all()
    sky = frames[0, 0, :56, :52]
    assert abs(np.median(sky)) < 1
    assert sky.max() > 100


FRAMES_SHA256 = "2ffb36f117a7f1ee0458cb14a4ea4365a41a4eb09edd9349add8419b943882f4"


@pytest.mark.parametrize(
    "stored",
    [
        StoredArray(shape=(2,), data="not base64!"),
        StoredArray(shape=(2,), data="AAAA"),
        StoredArray(shape=(3,), data=StoredArray.pack(np.zeros(2)).data),
        StoredArray(shape=(1,), data=StoredArray.pack(np.zeros(2**20)).data),
        StoredArray(shape=(2**30, 2**30), data=""),
    ],
)
def test_broken_stored_arrays(stored):
    with pytest.raises(ModelError, match="array of the model card"):
        stored.unpack()


def test_isotonic_knots_are_kept():
    assert IsotonicCalibration(x=(0, 0.5, 1), y=(0, 0.2, 1)).x == (0, 0.5, 1)
