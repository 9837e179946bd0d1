"""Decoded columns of real packets against fastavro's records, survey by survey."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tapetum.alerts.decode import decode_packets
from tapetum.alerts.packets import Packet, iter_packets
from tapetum.alerts.records import to_record
from tapetum.alerts.stamps import read_stamp
from tapetum.surveys.conventions import to_flux, to_mag, to_utc
from tapetum.surveys.profile import TimeFields, load_profile

SOURCES = {
    "ztf": ("ztf_packets.tar.xz", 499),
    "pgir": ("pgir", 12),
    "winter": ("wntr", 7),
    "turbo": ("turbo", 8),
    "lsst": ("rubin_alerts.parquet", 27),
}


@pytest.fixture(scope="module", params=SOURCES)
def night(request, real_data: Path):
    name, least = SOURCES[request.param]
    packets = [p for p in iter_packets([real_data / "alerts" / name]) if isinstance(p, Packet)]
    assert packets
    if "shared" in str(real_data):
        assert len(packets) >= least
    [(batch, index)], rejections = decode_packets(packets, history=True, candidate=True)
    assert not rejections
    assert index == list(range(len(packets)))
    assert batch.survey == request.param
    return load_profile(request.param), batch, [to_record(p) for p in packets]


def get(record, path):
    value = record
    for name in path.split("."):
        value = None if value is None else value.get(name)
    return value


def test_identity_position_and_time(night):
    profile, batch, records = night
    alert = profile.alert
    for row, record in enumerate(records):
        assert batch.alert_id[row] == get(record, alert.alert_id)
        assert batch.object_id[row] == str(next(v for v in (get(record, p) for p in alert.object_id) if v))
        assert (batch.ra[row], batch.dec[row]) == (get(record, alert.ra), get(record, alert.dec))
        time = get(record, alert.time.field)
        if alert.time.format == "jd":
            exposure = (
                alert.time.exposure and get(record, alert.time.exposure)
            ) or alert.time.exposure_default
            assert batch.mjd[row] == pytest.approx(time - 2400000.5 + exposure / 2 / 86400, abs=1e-9)
        else:
            assert batch.mjd[row] == pytest.approx(time - 37 / 86400, abs=1e-9)  # TAI - UTC since 2017


def test_candidate_record_as_json_and_features(night):
    profile, batch, records = night
    for row, record in enumerate(records):
        want = get(record, profile.alert.candidate)
        ours = json.loads(batch.candidate_json[row])
        for name, value in ours.items():
            theirs = want[name]
            if isinstance(theirs, float) and not np.isfinite(theirs):
                theirs = None
            assert value == theirs, name
    for name in ("ra", "fwhm", "ndethist", "not_a_field"):
        values = batch.feature(name)
        for row, record in enumerate(records):
            want = get(record, profile.alert.candidate).get(name)
            assert (np.isnan(values[row]) and want is None) or values[row] == want


def test_stamps_and_their_shapes(night):
    profile, batch, records = night
    paths = (profile.alert.stamps.science, profile.alert.stamps.template, profile.alert.stamps.difference)
    for row, record in enumerate(records):
        for channel, path in enumerate(paths):
            image = read_stamp(get(record, path)).astype(np.float32)
            assert tuple(batch.shapes[row, channel]) == image.shape
            np.testing.assert_array_equal(
                batch.stamps[row, channel, : image.shape[0], : image.shape[1]], image
            )
            assert np.isnan(batch.stamps[row, channel, image.shape[0] :]).all()
            assert np.isnan(batch.stamps[row, channel, :, image.shape[1] :]).all()


def test_history_rows(night):
    profile, batch, records = night
    history = batch.history
    for row, record in enumerate(records):
        mine = slice(history.offsets[row], history.offsets[row + 1])
        assert history.flux_err[mine][0] == batch.flux_err[row]
        n_expected = 1
        for entry in profile.alert.history:
            if entry.forced:
                continue
            for past in record.get(entry.array) or []:
                limit = past.get(entry.mag_limit) if entry.mag_limit else None
                value = past.get(entry.mag or entry.flux)
                n_expected += not (limit is not None and limit <= 0) and (
                    value is not None or limit is not None
                )
        assert (~history.forced[mine]).sum() == n_expected


def test_without_history_everything_else_is_the_same(real_data: Path):
    packets = [p for p in iter_packets([real_data / "alerts" / "pgir"]) if isinstance(p, Packet)]
    [(full, _)], _ = decode_packets(packets, history=True, candidate=True)
    [(brief, _)], _ = decode_packets(packets, candidate=True)
    assert brief.history is None
    assert len(full.history) > len(packets)
    assert brief.candidate_json == full.candidate_json
    np.testing.assert_array_equal(brief.alert_id, full.alert_id)
    np.testing.assert_array_equal(brief.flux, full.flux)
    np.testing.assert_array_equal(brief.stamps, full.stamps)


def test_signs_of_differences(real_data: Path):
    packets = [
        p for p in iter_packets([real_data / "alerts" / "ztf_packets.tar.xz"]) if isinstance(p, Packet)
    ]
    [(batch, _)], _ = decode_packets(packets, stamps=False)
    positive = np.array([to_record(p)["candidate"]["isdiffpos"] in ("t", "1") for p in packets])
    assert 0 < positive.sum() < len(packets)
    np.testing.assert_array_equal(batch.flux > 0, positive)


def test_flux_and_magnitude_are_inverse(rng):
    mag, err = rng.uniform(12, 23, 100), rng.uniform(0.01, 0.3, 100)
    flux, flux_err = to_flux(mag, err, np.where(rng.random(100) < 0.5, 1.0, -1.0))
    again, again_err = to_mag(flux, flux_err)
    np.testing.assert_allclose(again, mag)
    np.testing.assert_allclose(again_err, err)
    assert to_flux(np.array([31.4]), np.array([0.0]), np.array([1.0]))[0] == pytest.approx(1.0)  # 1 nJy
    assert np.isnan(to_mag(np.array([0.0]), np.array([1.0]))[0])


def test_a_placeholder_is_no_magnitude():
    flux, flux_err = to_flux(np.array([-999.0, 20.0]), np.array([0.1, 0.1]), np.ones(2))
    assert np.isnan(flux[0])
    assert np.isnan(flux_err[0])
    assert np.isfinite(flux[1])


def test_tai_becomes_utc():
    tai = TimeFields(field="t", format="mjd", scale="tai", reference="mid")
    np.testing.assert_allclose(
        to_utc(np.array([60000.0, np.nan]), tai), [60000.0 - 37 / 86400, np.nan], atol=1e-10
    )
    assert to_utc(np.array([2460000.5]), TimeFields(field="t", format="jd", reference="start"))[0] == 60000.0
