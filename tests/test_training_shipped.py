"""The real/bogus network in the package: whole, small, cheap, honest about its numbers, and good enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tapetum.models.card import load_card
from tapetum.models.inputs import prepare_images
from tapetum.models.registry import weights_dir
from tapetum.models.runtime import Model
from tapetum.simulate.injections import simulate_alert
from tapetum.training.compare import compare, gather, read_labels
from tapetum.training.evaluate import auc, fpr_at_tpr
from tapetum.training.macs import count_macs
from tapetum.training.recipe import load_recipe
from tapetum.training.scoring import probabilities_of_model, scores_of_model

if TYPE_CHECKING:
    from pathlib import Path

    from tapetum.training.datasets import Examples

FOLDER = weights_dir() / "realbogus"
# braai's VGG6 on 63 x 63 x 3: convolutions of 16, 16, 32, 32 channels without padding, dense 1152 -> 256 -> 1
BRAAI_MACS = 61**2 * 16 * 27 + 59**2 * 16 * 144 + 27**2 * 32 * 144 + 25**2 * 32 * 288 + 1152 * 256 + 256


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load("realbogus")


@pytest.fixture(scope="module")
def labelled(real_data: Path) -> dict[str, Examples]:
    folder = real_data / "alerts"
    labels = read_labels(folder / "visual_labels.parquet")
    paths = [folder / "ztf_packets.tar.xz", folder / "ztf_triplets.npz"]
    return gather(load_recipe("realbogus"), paths, "all", labels, simulated=False)


def test_it_is_small_and_its_golden_vectors_come_out(model: Model) -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3 * 2**20
    assert model.check_golden() <= 1e-5
    assert model.card.golden is not None
    assert len(model.card.golden.outputs) >= 8


def test_the_file_tells_nothing_of_the_machine_that_made_it() -> None:
    content = (FOLDER / "model.onnx").read_bytes()
    for trace in (b".py", b"stack_trace", b"/home", b"/tmp", b"site-packages"):
        assert trace not in content


def test_it_costs_less_than_the_braai_network() -> None:
    assert count_macs(FOLDER / "model.onnx") < 0.75 * BRAAI_MACS


def test_the_card_says_what_a_user_must_know(model: Model) -> None:
    card = load_card(FOLDER / "card.json")
    assert card.licence == "BSD-3-Clause"
    assert card.calibration.method != "none"
    assert card.reliability is not None
    assert card.reliability.ece < 0.05
    assert card.limitations
    assert card.thresholds
    assert card.training.split is not None
    assert {"training", "validation", "test"} <= {entry.role for entry in card.training.data}
    assert all(entry.citation for entry in card.training.data)
    metric = card.metrics["packets_auc"]
    assert metric.low is not None
    assert metric.high is not None
    assert metric.low <= metric.value <= metric.high


def test_scores_do_not_depend_on_level_scale_or_company(model: Model, rng: np.random.Generator) -> None:
    stamps = np.stack([simulate_alert("variable", rng).stamps for _ in range(8)])
    shapes = np.full((8, 3, 2), 63, np.int16)
    contract = model.card.images
    assert contract is not None
    base = model.scores({contract.name: prepare_images(stamps, shapes, contract)})
    other = model.scores({contract.name: prepare_images(stamps * 4 + 512, shapes, contract)})
    np.testing.assert_allclose(other, base, atol=2e-3)
    alone = model.scores({contract.name: prepare_images(stamps[:1], shapes[:1], contract)})
    np.testing.assert_allclose(alone, base[:1], atol=1e-5)


@pytest.mark.parametrize("size", [21, 31, 48, 61, 63, 81, 101])
@pytest.mark.parametrize("missing", ["nothing", "half", "template", "everything"])
def test_any_size_and_any_missing_pixels_give_a_finite_score(
    model: Model, size: int, missing: str, rng: np.random.Generator
) -> None:
    stamps = rng.normal(50, 3, (2, 3, size, size)).astype(np.float32)
    stamps[0, 2, size // 2, size // 2] = np.inf
    if missing == "half":
        stamps[:, :, : size // 2] = np.nan
    elif missing == "template":
        stamps[:, 1] = np.nan
    elif missing == "everything":
        stamps[:] = np.nan
    contract = model.card.images
    assert contract is not None
    shapes = np.full((2, 3, 2), size, np.int16)
    scores = model.scores({contract.name: prepare_images(stamps, shapes, contract)})
    assert np.isfinite(scores).all()
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("side", ["top", "bottom", "left", "right"])
def test_a_source_at_a_detector_edge_stays_real_and_a_spot_stays_bogus(model: Model, side: str) -> None:
    kept = slice(20, None) if side in {"top", "left"} else slice(None, 43)
    window = np.s_[:, :, kept, :] if side in {"top", "bottom"} else np.s_[:, :, :, kept]
    contract = model.card.images
    assert contract is not None
    means = []
    for kind in ("new_source", "cosmic_ray"):
        truths = [simulate_alert(kind, np.random.default_rng([13, seed])) for seed in range(60)]
        stamps = np.stack([t.stamps for t in truths if kind == "cosmic_ray" or t.snr > 12])[window]
        shapes = np.tile(np.array(stamps.shape[2:], np.int16), (len(stamps), 3, 1))
        score = model.scores({contract.name: prepare_images(np.ascontiguousarray(stamps), shapes, contract)})
        means.append(model.probability(score[:, 0]).mean())
    assert means[0] > 0.8
    assert means[1] < 0.35


def test_quality_floor_on_labels_by_eye(model: Model, labelled: dict[str, Examples]) -> None:
    everything = next(examples for name, examples in labelled.items() if "all part" in name)
    test = next(examples for name, examples in labelled.items() if "test part" in name)
    assert len(everything) > 600
    for examples, floor in ((everything, 0.965), (test, 0.94)):
        score = scores_of_model(model, examples)
        assert auc(score, examples.target > 0.5) > floor


def test_fewer_bogus_pass_than_with_braai_on_the_same_alerts(
    model: Model, labelled: dict[str, Examples], real_data: Path
) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(real_data / "alerts" / "golden_braai.parquet").to_pylist()
    braai = {
        row["candid"]: row["score"]
        for row in rows
        if (row["model"], row["normalisation"]) == ("braai_d6_m9", "stamp")
    }
    examples = next(examples for name, examples in labelled.items() if "all part" in name)
    real = examples.target > 0.5
    ours = probabilities_of_model(model, examples)
    theirs = np.array([braai[int(number)] for number in examples.alert_id])
    for tpr in (0.97, 0.95, 0.90):
        assert fpr_at_tpr(ours, real, tpr) < 0.8 * fpr_at_tpr(theirs, real, tpr)


def test_a_comparison_can_be_read_and_repeated(labelled: dict[str, Examples]) -> None:
    examples = {name: part.take(np.arange(60)) for name, part in labelled.items() if "all part" in name}
    first, again = compare(["realbogus"], examples), compare(["realbogus"], examples)
    assert first.as_json() == again.as_json()
    assert "| realbogus | 60 |" in first.as_markdown()
    macs = count_macs(FOLDER / "model.onnx")
    assert f"realbogus {macs / 1e6:.1f} million" in first.as_markdown()
