"""Light curves from packets against the goldens of the system that Tapetum replaces."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tapetum.alerts.decode import decode_packets
from tapetum.alerts.packets import Packet, iter_packets
from tapetum.alerts.photometry import add_reference_flux, apparent_magnitudes, are_stars, light_curve
from tapetum.surveys.conventions import SECONDS_PER_DAY

HALF_EXPOSURE = 15.0 / SECONDS_PER_DAY  # the goldens keep the survey's start of exposure
UJY = 1e3


@pytest.fixture(scope="module")
def curves(real_data: Path):
    golden = json.loads((real_data / "catalogs" / "golden_alert_photometry_ztf.json").read_text())
    packets = [
        p for p in iter_packets([real_data / "alerts" / "ztf_packets.tar.xz"]) if isinstance(p, Packet)
    ]
    wanted = [p for p in packets if Path(p.source.split(":")[-1]).stem in golden]
    assert len(wanted) >= 20
    [(batch, _)], rejections = decode_packets(wanted, stamps=False, history=True, reference=True)
    assert not rejections
    return batch, [golden[str(alert_id)] for alert_id in batch.alert_id]


def as_float(values):
    return np.array([np.nan if v is None else v for v in values], float)


def test_difference_photometry(curves):
    batch, golden = curves
    for row, want in enumerate(golden):
        curve, rows = light_curve(batch.history, row, forced=False), want["difference"]
        assert len(curve) == len(rows)
        np.testing.assert_allclose(curve.mjd - HALF_EXPOSURE, [r["mjd"] for r in rows], atol=1e-8)
        assert list(curve.band) == [r["filter"] for r in rows]
        np.testing.assert_allclose(curve.flux / UJY, as_float(r["flux"] for r in rows), rtol=1e-5)
        np.testing.assert_allclose(curve.flux_err / UJY, as_float(r["fluxerr"] for r in rows), rtol=1e-5)


def test_forced_photometry(curves):
    batch, golden = curves
    seen = 0
    for row, want in enumerate(golden):
        curve = light_curve(batch.history, row)
        rows = [r for r in want["difference_with_forced"] if r["origin"] == "alert_fp"]
        seen += len(rows)
        mine = np.flatnonzero(curve.forced)
        by_time = {(round(curve.mjd[i] - HALF_EXPOSURE, 6), curve.band[i]): i for i in mine}
        assert len(mine) == len(rows)
        for r in rows:
            i = by_time[round(r["mjd"], 6), r["filter"]]
            scale = 10 ** (-0.4 * (r["zp"] - 31.4))
            np.testing.assert_allclose(curve.flux_err[i], r["fluxerr"] * scale, rtol=1e-5)
            assert np.isnan(curve.flux[i]) == (r["flux"] is None)
            if r["flux"] is not None:
                np.testing.assert_allclose(curve.flux[i], r["flux"] * scale, rtol=1e-5)
    assert seen > 0


def test_reference_corrected_stars(curves):
    batch, golden = curves
    is_star = are_stars(batch)
    stars = 0
    for row, want in enumerate(golden):
        assert is_star[row] == want["is_star"]
        if not want["is_star"]:
            continue
        stars += 1
        curve = light_curve(batch.history, row, forced=False)
        corrected, rows = add_reference_flux(curve), want["reference_corrected"]
        np.testing.assert_allclose(corrected.flux / UJY, as_float(r["flux"] for r in rows), rtol=1e-5)
        np.testing.assert_allclose(corrected.flux_err / UJY, as_float(r["fluxerr"] for r in rows), rtol=1e-5)
    assert stars >= 5


def test_apparent_magnitudes_of_stars(curves):
    batch, golden = curves
    for row, want in enumerate(golden):
        if want["dc"] is None:
            continue
        curve = light_curve(batch.history, row, forced=False)
        ours, rows = apparent_magnitudes(curve), want["dc"]
        # where one exposure gave two detections this golden keeps only the first: match by time and magnitude
        key = {
            (round(m, 6), None if np.isnan(v) else round(v, 6)): i
            for i, (m, v) in enumerate(zip(curve.mjd, curve.mag, strict=True))
        }
        at = [
            key[round(r["mjd"] + HALF_EXPOSURE, 6), None if r["magpsf"] is None else round(r["magpsf"], 6)]
            for r in rows
        ]
        assert len(curve) - len(rows) <= 1
        np.testing.assert_allclose(ours.mag[at], as_float(r["dc_mag"] for r in rows), atol=1e-5)
        np.testing.assert_allclose(ours.mag_err[at], as_float(r["dc_sigmag"] for r in rows), rtol=1e-4)
        limits = np.isnan(ours.mag[at])
        np.testing.assert_allclose(
            ours.brightest[at][limits], as_float(r["dc_mag_ulim"] for r in rows)[limits], atol=1e-5
        )
        np.testing.assert_allclose(
            ours.faintest[at][limits], as_float(r["dc_mag_llim"] for r in rows)[limits], atol=1e-5
        )


def test_without_reference_photometry_says_so(curves):
    batch, _ = curves
    bare = light_curve(batch.history, 0)
    from dataclasses import replace

    with pytest.raises(ValueError, match="reference=True"):
        add_reference_flux(replace(bare, reference=None))
