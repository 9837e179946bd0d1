"""Simulated packets: readable by other Avro and FITS readers, true to their truth, the same for the same seed."""

from __future__ import annotations

import gzip
import io
from typing import TYPE_CHECKING

import fastavro
import numpy as np
import pytest
from astropy.io import fits

from tapetum.alerts.decode import decode_packets
from tapetum.alerts.packets import Packet, iter_packets
from tapetum.simulate.alerts import (
    BOGUS,
    TRANSIENT,
    SimulatedAlert,
    aperture_snr,
    cut_at_edge,
    lose_pixels,
    simulate_alerts,
    write_alerts,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def alerts() -> list[SimulatedAlert]:
    return simulate_alerts(80, np.random.default_rng(5), at_edge=0.2, with_missing=0.3)


def stamps_of(alert: SimulatedAlert) -> list[np.ndarray]:
    names = ("cutoutScience", "cutoutTemplate", "cutoutDifference")
    raw = [gzip.decompress(alert.record[name]["stampData"]) for name in names]
    return [np.asarray(fits.open(io.BytesIO(data))[0].data) for data in raw]


def test_container_reads_back_and_decodes(alerts: list[SimulatedAlert], tmp_path: Path) -> None:
    path = tmp_path / "night.avro"
    write_alerts(path, alerts)
    with path.open("rb") as handle:
        assert [record["candid"] for record in fastavro.reader(handle)] == [
            a.record["candid"] for a in alerts
        ]
    packets = [packet for packet in iter_packets([path]) if isinstance(packet, Packet)]
    [(batch, kept)], rejections = decode_packets(packets, history=True, candidate=True)
    assert rejections == []
    assert kept == list(range(len(alerts)))
    assert batch.survey == "ztf"
    assert batch.object_id == [alert.record["objectId"] for alert in alerts]
    for row, alert in enumerate(alerts):
        for channel, stamp in enumerate(stamps_of(alert)):
            n_y, n_x = batch.shapes[row, channel]
            np.testing.assert_array_equal(batch.stamps[row, channel, :n_y, :n_x], stamp)
    assert batch.history is not None
    past = [len(alert.record["prv_candidates"] or []) for alert in alerts]
    assert np.diff(batch.history.offsets).tolist() == [1 + count for count in past]


def test_same_seed_same_bytes() -> None:
    first, second = (simulate_alerts(6, np.random.default_rng(9)) for _ in range(2))
    assert [a.record for a in first] == [a.record for a in second]


def test_other_seeds_and_counts_share_no_id() -> None:
    seen: set[object] = set()
    n = 0
    for seed, count in ((9, 6), (10, 6), (9, 7)):
        for alert in simulate_alerts(count, np.random.default_rng(seed)):
            rows = [alert.record, *(alert.record["prv_candidates"] or [])]
            ids = [row["candid"] for row in rows if row["candid"] is not None]
            assert all(0 < candid < 2**63 for candid in ids)
            seen |= {alert.record["objectId"], *ids}
            n += 1 + len(ids)
    assert len(seen) == n


def test_every_kind_can_be_asked_for_and_truth_fits() -> None:
    rng = np.random.default_rng(3)
    real = simulate_alerts(40, rng, shares=dict.fromkeys(TRANSIENT, 1.0))
    bogus = simulate_alerts(40, rng, shares=dict.fromkeys(BOGUS, 1.0))
    assert {a.truth for a in real} <= set(TRANSIENT)
    assert {a.truth for a in bogus} <= set(BOGUS)
    assert np.mean([a.target for a in real]) > 0.6
    assert np.mean([a.target for a in bogus]) < 0.05


def test_stamps_show_the_source_at_the_centre_and_positive() -> None:
    for alert in simulate_alerts(25, np.random.default_rng(4), at_edge=0, with_missing=0):
        assert aperture_snr(stamps_of(alert)[2]) > 0
        assert alert.record["candidate"]["scorr"] >= 3


def test_some_stamps_are_short_and_some_have_holes(alerts: list[SimulatedAlert]) -> None:
    shapes = [stamps_of(alert)[0].shape for alert in alerts]
    holes = [bool(np.isnan(stamps_of(alert)[2]).any()) for alert in alerts]
    assert 0.05 < np.mean([shape != (63, 63) for shape in shapes]) < 0.4
    assert 0.15 < np.mean(holes) < 0.5
    assert all(np.isfinite(stamps_of(a)[2]).any() for a in alerts)


@pytest.mark.parametrize(
    ("side", "rows", "columns"),
    [
        (0, slice(5, None), slice(None)),
        (1, slice(None, -5), slice(None)),
        (2, slice(None), slice(5, None)),
        (3, slice(None), slice(None, -5)),
    ],
)
def test_each_edge_cuts_its_own_pixels(side: int, rows: slice, columns: slice) -> None:
    stamps = np.arange(3 * 63 * 63, dtype=np.float32).reshape(3, 63, 63)
    np.testing.assert_array_equal(cut_at_edge(stamps, 5, side), stamps[:, rows, columns])


def test_lost_pixels_are_nan_and_the_rest_is_untouched(rng: np.random.Generator) -> None:
    stamps = rng.normal(size=(3, 63, 63)).astype(np.float32)
    for _ in range(12):
        lost = lose_pixels(stamps, rng)
        gone = np.isnan(lost)
        assert gone.any()
        np.testing.assert_array_equal(lost[~gone], stamps[~gone])
    assert np.isfinite(stamps).all()


def test_astropy_finds_no_fault_in_the_stamps(alerts: list[SimulatedAlert]) -> None:
    for alert in alerts[:5]:
        raw = gzip.decompress(alert.record["cutoutScience"]["stampData"])
        with fits.open(io.BytesIO(raw)) as hdus:
            hdus.verify("exception")
            assert hdus[0].data.dtype == np.dtype(">f4")
