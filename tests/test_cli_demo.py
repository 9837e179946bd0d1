"""The alerts of `tapetum demo`, and `tapetum samples`, through the command, without any network.

The other parts are in test_pipelines_demo_images.py and test_pipelines_demo_curves.py; here results stand for them.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from html import unescape
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from tapetum.alerts.batch import Rejection
from tapetum.cli import demo
from tapetum.cli.app import app
from tapetum.core import samples
from tapetum.core.progress import no_progress
from tapetum.core.settings import Settings
from tapetum.pipelines.demo import (
    Exhibit,
    NightReport,
    ReportAlert,
    Threshold,
    build_page,
    choose,
    summary,
    threshold_from,
)
from tapetum.pipelines.demo_curves_page import CurvesReport, Star
from tapetum.pipelines.demo_images import scene_pair, search_pair
from tapetum.report.page import render_page

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tapetum.pipelines.demo_images_page import ImagesReport


def call(*arguments: str, status: int = 0) -> Any:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=True)
    assert result.exit_code == status, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImagesReport:
    folder = tmp_path_factory.mktemp("images")
    pair = scene_pair(256, folder / "epochs", Settings(), "for a test", kinds=("transient:20", "comet:1"))
    return search_pair(pair, folder, Settings(), no_progress)


def curves() -> CurvesReport:
    """One star."""
    t = np.arange(60.0)
    star = Star(
        "star",
        10.0,
        -5.0,
        t,
        ["ztfr"] * 60,
        t % 1,
        t * 0 + 0.1,
        0.6,
        1e-5,
        -99.0,
        [],
        [("RRab", 0.9)],
        ["RRab"],
    )
    return CurvesReport("", "variables", "1.0.0", 0.95, [star], [], 1, 60, 1.5, [("made by", "a test")])


@pytest.fixture(autouse=True)
def _same_parts(images: ImagesReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "images_part", lambda *_, **__: images)
    monkeypatch.setattr(demo, "curves_part", lambda *_, **__: curves())


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(demo, "N_SIMULATED", 40)
    return 40


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)


def test_offline_demo_makes_a_page_and_says_that_it_is_simulated(tmp_path: Path, few: int) -> None:
    out = tmp_path / "demo"
    first = call("demo", "--offline", "-o", str(out)).stdout
    assert first.startswith(f"{few} alerts of {few} objects: ")
    assert first.rstrip().endswith(f"report: {out / 'report.html'}")
    assert f"curves: {out / 'curves.html'}" in first
    assert "1 real light curves, 1 stars classified" in first
    assert 'href="report.html"' in (out / "curves.html").read_text()
    html = (out / "report.html").read_text()
    assert 'href="curves.html"' in html
    assert "simulated, not observed: --offline was given" in html
    assert html.count("data:image/png;base64,") >= 3
    assert set(re.findall(r"https?://[^\"' <]+", html)) <= {"http://www.w3.org/2000/svg"}
    assert "Nothing: every packet could be read" in html
    run = tomllib.loads((out / "settings.toml").read_text())
    assert run["run"]["verb"] == "demo"
    assert run["settings"]["seed"] == 20260
    second = call("demo", "--offline", "-o", str(out)).stdout
    assert second == first  # nothing is stored or counted twice


def test_another_seed_is_another_night(tmp_path: Path, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    for seed in ("1", "2"):
        monkeypatch.setenv("TAPETUM_SEED", seed)
        said = call("demo", "--offline", "-o", str(tmp_path)).stdout
        assert said.startswith(f"{few} alerts of {few} objects: ")
        assert "0 packets rejected" in said
        shown.append(set(re.findall(r"SIM[0-9a-f]{12}", (tmp_path / "report.html").read_text())))
    assert len(shown[0]) == len(shown[1]) == few
    assert shown[0].isdisjoint(shown[1])


def test_the_page_shows_this_run_and_not_what_else_the_store_holds(
    tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = real_data / "alerts" / "pgir"
    first, second, *_ = sorted(folder.glob("*.avro"))
    bad = tmp_path / "bad.avro"
    bad.write_bytes(b"Obj\x01nothing")
    for packets, n_rejected in (([first, bad], 1), ([second], 0), ([first, bad], 1)):
        monkeypatch.setattr(samples, "fetch_sample", lambda name, progress, packets=packets: packets)
        said = call("demo", "-o", str(tmp_path / "demo")).stdout
        assert said.startswith("1 alerts of 1 objects: ")
        assert f"{n_rejected} packets rejected" in said
        assert ("bad.avro" in (tmp_path / "demo" / "report.html").read_text()) == bool(n_rejected)


def test_without_an_index_the_demo_falls_back_and_says_why(tmp_path: Path, few: int, no_index: None) -> None:
    call("demo", "-o", str(tmp_path))
    html = (tmp_path / "report.html").read_text()
    assert "simulated, not observed: real sample alerts could not be fetched" in html
    assert "pip config list" in html
    assert not (tmp_path / "night.db").exists()


def test_real_alerts_are_shown_as_real(
    tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packets = [real_data / "alerts" / "pgir", real_data / "alerts" / "malformed"]
    monkeypatch.setattr(samples, "fetch_sample", lambda name, progress: packets)
    said = call("demo", "-o", str(tmp_path)).stdout
    html = (tmp_path / "report.html").read_text()
    assert "not observed" not in html
    n_rejected = int(re.search(r"(\d+) packets rejected", said)[1])  # type: ignore[index]
    assert n_rejected >= 5
    assert html.count("<td>packet</td>") == n_rejected
    for name in ("jpeg_cutouts", "516401801315010009.avro"):
        assert name in html


def test_the_page_has_all_that_was_promised(
    tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packets = [real_data / "alerts" / "pgir", real_data / "alerts" / "malformed"]
    monkeypatch.setattr(samples, "fetch_sample", lambda name, progress: packets)
    call("demo", "-o", str(tmp_path))
    html = (tmp_path / "report.html").read_text()
    for heading in (
        "Part 1: alerts",
        "Part 2: images",
        "Part 3: light curves",
        "Most likely real",
        "Ranking",
        "Score distribution",
        "Rejected, and why",
    ):
        assert re.search(rf"<h2[^>]*>\s*{heading}", html), heading
    n_alerts = len(list((real_data / "alerts" / "pgir").glob("*.avro")))
    ranking = html[html.index("Ranking</h2>") :]
    rows = re.findall(r"<tr>.*?</tr>", ranking[: ranking.index("</table>")], re.DOTALL)
    assert len(rows) == 1 + n_alerts
    levels = [float(value) for value in re.findall(r">(0\.\d{3}|1\.000)<", "".join(rows[1:]))]
    assert len(levels) >= n_alerts
    assert html.count("data:image/png;base64,") >= 3 * 5  # triplets
    assert html.count("<svg") >= 5 + 1  # light curves and the distribution


def test_samples_are_listed(tmp_path: Path) -> None:
    rows = json.loads(call("samples", "list", "--json").stdout)
    assert [row["name"] for row in rows] == ["ztf-alerts", "ztf-quadrant", "ztf-comet", "macho-curves"]
    assert not any(row["cached"] for row in rows)
    assert all(row["licence"] and row["bytes"] > 0 for row in rows)
    text = call("samples", "list").stdout
    assert len(text.splitlines()) == 4
    assert "not here yet" in text


def test_cached_sample_needs_no_network(
    tmp_path: Path, no_index: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tapetum.core.files import sha256_of
    from tapetum.core.package_index import PinnedFile, PinnedMember
    from tapetum.core.samples import Sample

    body = tmp_path / "x.bin"
    body.write_bytes(b"light")
    member = PinnedMember("p-1/x.bin", sha256_of(body), 5)
    sample = Sample("tiny", "a test", "BSD", PinnedFile("p", "p-1.tar.gz", "0" * 64, 10), (member,))
    monkeypatch.setitem(samples.SAMPLES, "tiny", sample)
    sample.folder.mkdir(parents=True)
    (sample.folder / "x.bin").write_bytes(b"light")
    assert call("samples", "fetch", "tiny").stdout == f"{sample.folder / 'x.bin'}\n"
    (sample.folder / "x.bin").write_bytes(b"dark!")
    result = CliRunner().invoke(app, ["samples", "fetch", "tiny"])
    assert "pip config list" in str(result.exception)


# --- the page, without store and model ---


def alert(number: int, level: float | None, **changes: Any) -> ReportAlert:
    values: dict[str, Any] = {
        "survey": "ztf", "alert_id": number, "object_id": f"ZTF{number // 2}", "mjd": 60000.25, "ra": 10.0, "dec": -5.0,
        "band": "ztfr", "mag": 19.5, "mag_err": 0.1, "score": level, "probability": level, "flags": (), "error": None,
        "reliability": None,
    }  # fmt: skip
    return ReportAlert(**{**values, **changes})


def exhibit(shown: ReportAlert) -> Exhibit:
    stamps = np.random.default_rng(shown.alert_id).normal(size=(3, 63, 63)).astype(np.float32)
    shapes = np.array([[63, 63], [40, 63], [0, 0]], np.int16)
    columns = ("mjd", "mag", "mag_err", "mag_limit", "flux", "flux_err", "ra", "dec")
    curve = pa.table(
        {
            **{name: pa.array([60000.0, None], pa.float64()) for name in columns},
            "band": ["ztfr", "ztfg"],
            "forced": [False, True],
        }
    )
    return Exhibit(shown, stamps, shapes, curve)


def night(alerts: Sequence[ReportAlert], rejections: Sequence[Rejection] = ()) -> NightReport:
    exhibits = {shown.key: exhibit(shown) for shown in choose(alerts, 0.5).all}
    return NightReport(
        "Test.",
        "",
        "realbogus",
        "1.0.0",
        True,
        Threshold(0.5, "test"),
        alerts,
        exhibits,
        rejections,
        7,
        len(alerts),
        2.0,
        [("made by", "a test")],
    )


def test_choice_shows_each_object_once_and_the_right_ends() -> None:
    alerts = [alert(number, level) for number, level in enumerate(np.linspace(1, 0, 200))]
    choice = choose([*alerts, alert(999, None, error="no stamp")], 0.5)
    for part in (choice.best, choice.doubtful, choice.worst):
        names = [shown.object_id for shown in part]
        assert len(names) == len(set(names))
    assert choice.best[0].alert_id == 0
    assert choice.worst[0].alert_id == 199
    assert all(abs((shown.level or 0) - 0.5) < 0.05 for shown in choice.doubtful)
    assert len(choice.all) == len({shown.key for shown in choice.all})
    assert 999 not in {shown.alert_id for shown in choice.all}


def test_page_counts_and_names_what_failed() -> None:
    alerts = [
        alert(1, 0.9, reliability=0.8),
        alert(4, 0.2, reliability=0.7),
        alert(6, None, error="no science stamp"),
    ]
    report = night(alerts, [Rejection("bad.avro", 3, "the gzip checksum is wrong", b"")])
    assert summary(report) == (
        "3 alerts of 3 objects: 1 look real (probability >= 0.5), 1 bogus; 1 could not be scored, 1 packets rejected"
    )
    html = render_page(build_page(report))
    for words in (
        "the gzip checksum is wrong",
        "no science stamp",
        "bad.avro",
        "50.0 %",
        "2 alerts/s",
        "none",
    ):
        assert words in html
    assert html.count("<img ") == 2 * 2  # two scored alerts, whose difference stamp is missing


def test_the_threshold_is_the_cards_own_where_it_names_one() -> None:
    points = {"packets_tpr_0.97": 0.4, "packets_tpr_0.90": 0.7}
    found = threshold_from(points, "packets")
    assert found.level == 0.4
    assert "packets_tpr_0.97" in found.reason
    even = threshold_from(points, "simulated")
    assert even.level == 0.5
    assert "names no threshold" in even.reason
    alerts = [alert(2, 0.45), alert(4, 0.35)]
    html = render_page(build_page(replace(night(alerts), threshold=found)))
    assert "probability ≥ 0.4<" in html
    assert found.reason in unescape(html)
    assert "1 look real (probability >= 0.4)" in summary(replace(night(alerts), threshold=found))


def test_weak_forced_photometry_is_a_limit() -> None:
    shown = alert(2, 0.9)
    columns = {
        "mjd": [60000.0, 60001.0, 60002.0],
        "mag": [19.0, 22.0, 19.2],
        "mag_err": [0.05, 0.4, 0.05],
        "mag_limit": [20.5, 20.5, 20.5],
        "flux": [1e5, 3.0, 9e4],
        "flux_err": [5e3, 1.0, 5e3],
        "ra": [10.0, None, None],
        "dec": [-5.0, None, None],
        "band": ["ztfr"] * 3,
        "forced": [False, True, True],
    }
    picture = replace(exhibit(shown), light_curve=pa.table(columns))
    html = render_page(build_page(replace(night([shown]), exhibits={shown.key: picture})))
    assert "light curve: 2 detections, 1 upper limits" in html  # 3 sigma exactly is not above 3 sigma


def test_page_of_nothing_is_a_page() -> None:
    html = render_page(build_page(night([])))
    assert "No alert belongs here." in html
    assert "There is no alert." in html
