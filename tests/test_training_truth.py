"""The rule that labels real packets, and the tables that bring labels of people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tapetum.alerts.batch import AlertBatch
from tapetum.core.errors import InputError
from tapetum.simulate.injections import simulate_alert
from tapetum.training.compare import gather, read_labels
from tapetum.training.datasets import on_canvas, read_cube
from tapetum.training.recipe import load_recipe
from tapetum.training.split import role_of
from tapetum.training.truth import TruthRules, measure_shapes, packet_truth, truth_fields

if TYPE_CHECKING:
    from pathlib import Path

RULES = TruthRules(sharpest_fwhm_pix={"ztf": 1.4})
SQUARE = np.array([[63, 63]], np.int16)


def _spot(fwhm: float, dx: float = 0.0, peak: float = 60.0) -> np.ndarray:
    y, x = np.mgrid[:63, :63] - 31
    return (peak * np.exp(-4 * np.log(2) * ((x - dx) ** 2 + y**2) / fwhm**2)).astype(np.float32)


def _batch(difference: np.ndarray, survey: str = "ztf", **fields: float) -> AlertBatch:
    stamps = np.repeat(difference[None, None], 3, axis=1).astype(np.float32)
    one = np.zeros(1)
    columns = {"mag": one, "mag_err": one, "flux": one, "flux_err": one, "mjd": one, "ra": one, "dec": one}
    return AlertBatch(
        survey=survey,
        alert_id=np.zeros(1, np.int64),
        object_id=["o"],
        band=["ztfr"],
        stamps=stamps,
        shapes=np.repeat(SQUARE[:, None], 3, axis=1),
        source=["s"],
        record=[0],
        _feature=lambda name: np.array([fields.get(name, np.nan)]),
        **columns,
    )


@pytest.mark.parametrize("fwhm", [1.8, 2.3, 3.1, 4.5])
def test_a_point_source_is_explained_and_its_width_is_found(fwhm: float, rng: np.random.Generator) -> None:
    stamp = _spot(fwhm, dx=0.4) + rng.normal(0, 1, (63, 63)).astype(np.float32)
    shapes = measure_shapes(stamp[None], SQUARE)
    assert shapes.unexplained[0] < 0.12
    assert shapes.fwhm[0] == pytest.approx(fwhm, rel=0.25)
    energy = np.sqrt((_spot(fwhm, dx=0.4) ** 2).sum())
    assert shapes.snr[0] == pytest.approx(energy, rel=0.1)


def test_a_dipole_is_not_a_point_source(rng: np.random.Generator) -> None:
    noise = rng.normal(0, 1, (63, 63)).astype(np.float32)
    dipole = _spot(2.5, dx=1.0) - _spot(2.5, dx=-1.5)
    assert measure_shapes((dipole + noise)[None], SQUARE).unexplained[0] > 0.6


def test_what_cannot_be_measured_says_so(rng: np.random.Generator) -> None:
    stamp = rng.normal(0, 1, (63, 63)).astype(np.float32)
    holes = stamp.copy()
    holes[25:36, 25:36] = np.nan
    stamps = np.stack([stamp, stamp, holes])
    shapes = measure_shapes(stamps, np.array([[40, 63], [9, 9], [63, 63]], np.int16))
    assert np.isnan(shapes.snr).all()


def test_shapes_agree_with_the_truth_of_the_simulation() -> None:
    found = {"new_source": [], "dipole": []}
    for kind, values in found.items():
        for seed in range(40):
            truth = simulate_alert(kind, np.random.default_rng([17, seed]))
            shapes = measure_shapes(truth.stamps[2:3], SQUARE)
            if shapes.snr[0] > 12:
                values.append(float(shapes.unexplained[0]))
    assert np.median(found["new_source"]) < 0.25
    assert np.median(found["dipole"]) > 0.4


@pytest.mark.parametrize(
    ("fields", "low", "high"),
    [
        ({"drb": 0.99}, 0.9, 1.0),
        ({"drb": 0.01}, 0.0, 0.0),
        ({"rb": 0.9}, 0.9, 1.0),
        ({"rb": 0.2}, 0.0, 0.0),
        ({"rb": 0.5}, 0.9, 1.0),  # no decided score: the shape decides
        ({"drb": 0.01, "ssdistnr": 2.0, "ssmagnr": 18.0, "magpsf": 18.3}, 1.0, 1.0),
        ({"drb": 0.01, "ssdistnr": 2.0, "ssmagnr": 14.0, "magpsf": 18.3}, 0.0, 0.0),  # another source
        ({"drb": 0.01, "ssdistnr": -999.0, "ssmagnr": 18.0, "magpsf": 18.3}, 0.0, 0.0),
    ],
)
def test_who_says_what_about_a_clean_source(
    fields: dict[str, float], low: float, high: float, rng: np.random.Generator
) -> None:
    stamp = _spot(2.3) + rng.normal(0, 1, (63, 63)).astype(np.float32)
    assert low <= packet_truth(_batch(stamp, **fields), RULES)[0] <= high


def test_a_bad_residual_tempers_a_confident_packet_and_doubt_stays_doubt(rng: np.random.Generator) -> None:
    noise = rng.normal(0, 1, (63, 63)).astype(np.float32)
    dipole = _spot(2.5, dx=1.0) - _spot(2.5, dx=-1.5) + noise
    assert packet_truth(_batch(dipole, drb=0.99), RULES)[0] < 0.6
    assert packet_truth(_batch(dipole, rb=0.5), RULES)[0] < 0.3
    assert np.isnan(packet_truth(_batch(_spot(2.3) + noise, drb=0.5), RULES)[0])
    assert np.isnan(packet_truth(_batch(_spot(2.3) + noise, survey="winter"), RULES)[0])


def test_the_fields_of_the_rule_are_those_of_the_survey() -> None:
    assert truth_fields("ztf") == ["drb", "rb", "magpsf", "ssdistnr", "ssmagnr"]
    assert truth_fields("winter") == ["rb", "magpsf"]  # its only score, and no asteroids


def test_a_spot_sharper_than_the_survey_is_no_source(rng: np.random.Generator) -> None:
    stamp = rng.normal(0, 1, (63, 63)).astype(np.float32)
    stamp[31, 31] += 80
    fields = {"rb": 0.5, "ssdistnr": 1.0, "ssmagnr": 18.0, "magpsf": 18.0}
    assert packet_truth(_batch(stamp, **fields), RULES)[0] < 0.2


def test_labels_are_read_from_parquet_and_csv(tmp_path: Path) -> None:
    rows = {"candid": [1, 2, 3, 4], "label_1": ["r", "b", "u", "r"], "agreed": [True, True, True, False]}
    pq.write_table(pa.table(rows), tmp_path / "labels.parquet")
    assert read_labels(tmp_path / "labels.parquet") == {1: True, 2: False}
    (tmp_path / "labels.csv").write_text("alert_id,label\n7,real\n8,bogus\n9,0\n")
    assert read_labels(tmp_path / "labels.csv") == {7: True, 8: False, 9: False}
    (tmp_path / "night.tar.gz").write_bytes(b"not a table")
    with pytest.raises(InputError, match=r"night\.tar\.gz: labels are"):
        read_labels(tmp_path / "night.tar.gz")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="alert_id"):
        read_labels(tmp_path / "other.csv")


def test_a_cube_needs_its_arrays_and_its_table(tmp_path: Path, rng: np.random.Generator) -> None:
    stamps = rng.normal(size=(2, 63, 63)).astype(np.float32)
    cube = {"candid": np.array([5, 6]), "science": stamps, "template": stamps, "difference": stamps}
    np.savez(tmp_path / "cube.npz", **cube)
    with pytest.raises(InputError, match="it lacks shape"):
        read_cube(tmp_path / "cube.npz")
    np.savez(tmp_path / "cube.npz", shape=np.full((2, 3, 2), 63), **cube)
    with pytest.raises(InputError, match="names alert 5"):
        read_cube(tmp_path / "cube.npz")
    table = {"candid": [5, 6], "objectId": ["a", "b"], "drb": [0.5, None], "magpsf": [18.0, 19.0]}
    pq.write_table(pa.table(table), tmp_path / "table.parquet")
    batch = read_cube(tmp_path / "cube.npz")
    assert batch.object_id == ["a", "b"]
    np.testing.assert_array_equal(batch.feature("drb"), [0.5, np.nan])
    # a second table adds what the first lacks, replaces nothing, and its labels are not read
    more = {"candid": [6, 5], "objectId": ["b", "a"], "drb": [0.25, 0.75], "label_eye": [1.0, 0.0]}
    pq.write_table(pa.table(more), tmp_path / "tablet.parquet")
    batch = read_cube(tmp_path / "cube.npz")
    np.testing.assert_array_equal(batch.feature("drb"), [0.5, 0.25])
    np.testing.assert_array_equal(batch.feature("magpsf"), [18.0, 19.0])
    assert np.isnan(batch.feature("label_eye")).all()
    (tmp_path / "zero.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"zero\.parquet"):
        read_cube(tmp_path / "cube.npz")


def test_held_objects_are_gone_before_anything_is_measured(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tapetum.training import datasets

    names = [f"object {number}" for number in range(60)]
    stamps = rng.normal(size=(60, 63, 63)).astype(np.float32)
    images = dict.fromkeys(("science", "template", "difference"), stamps)
    np.savez(tmp_path / "cube.npz", candid=np.arange(60), shape=np.full((60, 3, 2), 63), **images)
    table = {"candid": range(60), "objectId": names, "drb": np.linspace(0, 1, 60), "magpsf": [18.0] * 60}
    pq.write_table(pa.table(table), tmp_path / "table.parquet")
    seen: list[str] = []

    def watched(batch: AlertBatch, rules: TruthRules) -> np.ndarray:
        seen.extend(batch.object_id)
        return packet_truth(batch, rules)

    monkeypatch.setattr(datasets, "packet_truth", watched)
    source = datasets.PacketSource([tmp_path / "cube.npz"], RULES)
    examples = source.examples("fit")
    assert set(seen) == {name for name in names if role_of(name) != "held"}
    assert 0 < len(seen) < 60
    assert set(examples.object_id) == {name for name in names if role_of(name) == "fit"}
    known = [name for name, target in zip(examples.object_id, examples.target, strict=True) if target >= 0]
    assert [key.object_id for key in source.keys("fit")] == known
    score = np.array([names.index(name) / 59 for name in examples.object_id])  # rows stay with their fields
    assert (examples.target[score < 0.1] == 0).all()
    assert np.isfinite(examples.target[score > 0.9]).all()


def test_canvas_cuts_about_the_centre_and_pads_at_the_end() -> None:
    large = np.arange(81 * 81, dtype=np.float32).reshape(1, 1, 81, 81).repeat(3, 1)
    canvas, shapes = on_canvas(large, np.full((1, 3, 2), 81, np.int16))
    assert canvas[0, 0, 31, 31] == large[0, 0, 40, 40]
    assert (shapes == 63).all()
    small, shapes = on_canvas(large[:, :, :31, :31], np.full((1, 3, 2), 31, np.int16))
    assert np.isnan(small[0, 0, 31:]).all()
    assert small[0, 0, 15, 15] == large[0, 0, 15, 15]
    assert (shapes == 31).all()


def test_the_test_part_is_all_that_is_measured_on_by_default(real_data: Path) -> None:
    sets = gather(load_recipe("realbogus"), [real_data / "alerts" / "pgir"], "test", None, simulated=False)
    assert [name for name in sets if "(test part)" in name] == list(sets)
