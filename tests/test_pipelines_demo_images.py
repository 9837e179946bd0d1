"""The second part of the demo: a second epoch, searched, and what the page says of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tapetum.cli import demo
from tapetum.cli.app import app
from tapetum.core import samples
from tapetum.core.progress import no_progress
from tapetum.core.settings import Settings
from tapetum.images.fits import read_frame, write_frame
from tapetum.images.frame import Bad
from tapetum.pipelines import demo_images
from tapetum.pipelines.demo_curves_page import CurvesReport
from tapetum.pipelines.demo_images import Pair, quadrant_pair, scene_pair, search_pair
from tapetum.pipelines.demo_images_page import (
    Candidate,
    ImagesReport,
    Injected,
    build_images_page,
    choose,
    headline,
    summary,
)
from tapetum.pipelines.simulate import EPOCH_CHANGE
from tapetum.report.page import render_page
from tapetum.simulate.truth import TRUTH_NAME, read_truth

SIDE = 320
KINDS = ("transient:30", "streak:2", "comet:1", "cosmic_ray:4")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def pair(home: Path) -> Pair:
    return scene_pair(SIDE, home / "epochs", Settings(), "for a test", kinds=KINDS)


@pytest.fixture(scope="module")
def network(home: Path, write_network: Callable[..., Path]) -> str:
    return str(write_network(home / "network"))


@pytest.fixture(scope="module")
def report(home: Path, pair: Pair, network: str) -> ImagesReport:
    return search_pair(pair, home, Settings(), no_progress, mask_model=network)


def test_the_report_knows_the_fate_of_every_source(pair: Pair, report: ImagesReport) -> None:
    truth = read_truth(pair.science.parent / TRUTH_NAME)
    assert len(report.injected) == 33 == len(truth) - 4  # particles are no sources
    assert [source.x for source in report.injected] == pytest.approx(list(truth["x"][:33]))
    found, total = report.counts("transient")
    assert total == 30
    assert 15 <= found < 30
    assert report.counts("comet")[1] == 1
    for source in report.injected:
        assert bool(source.reason) == (source.found is None)
        if source.found is not None and source.kind == "transient":
            assert np.hypot(source.found.x - source.x, source.found.y - source.y) < 2.01
    bright = [s for s in report.injected if s.found is not None and s.kind == "transient" and s.snr > 30]
    assert bright
    assert np.median([abs((s.found.mag or 0) - s.mag) for s in bright if s.found]) < 0.1
    n_candidates = len(report.figures.recovery.candidates)
    assert len(report.false) == n_candidates - int(np.sum(report.figures.recovery.candidates["true"]))
    assert (report.seconds["search"] or 0) > 0


def test_stamps_show_the_sources_in_the_middle(report: ImagesReport) -> None:
    best = max((s for s in choose(report.injected).found if s.kind == "transient"), key=lambda s: s.snr)
    science, template, difference = report.stamps[best.anchor]
    middle = slice(science.shape[0] // 2 - 2, science.shape[0] // 2 + 3)
    assert np.nanmax(difference[middle, middle]) == np.nanmax(difference)
    assert np.nanmax(science[middle, middle]) > np.nanmax(template[middle, middle])
    assert set(report.stamps) == {
        *(source.anchor for source in choose(report.injected).all),
        *(candidate.anchor for candidate in report.false[:6]),
    }


def test_the_page_shows_found_and_missed_and_leads_to_the_files(home: Path, report: ImagesReport) -> None:
    html = unescape(render_page(build_images_page(report, home, "report.html")))
    assert "Both epochs are simulated, not observed: for a test" in html
    for title in (
        "Recovered",
        "Missed",
        "False candidates",
        "Completeness against magnitude",
        "All that was put in",
        "The second epoch, masked",  # of a scene; of a real image it is the first
        "Contaminants",
    ):
        assert re.search(rf"<h2>{title}</h2>", html), title
    n_marks = len(report.injected) + len(report.false)
    assert html.count("<circle") >= 2 * n_marks  # on the second epoch and on the difference
    shown = choose(report.injected)
    for source in shown.all:
        assert f'<article id="{source.anchor}">' in html
        assert f'<a href="#{source.anchor}">{source.number}</a>' in html
    assert html.count(">not detected<") >= 1
    assert report.masks is not None
    assert report.masks.network == "sharp 1.0.0"
    assert report.masks.command in html
    assert f"contaminated pixels: CR {report.masks.counts['CR']}" in summary(report)
    addresses = re.findall(r'<a href="([^"#]+)"', html)
    assert "report.html" in addresses
    assert len(addresses) >= 12
    for address in addresses:
        if address != "report.html":  # the first part's page, which is not made here
            assert (home / address).exists(), address


def test_the_first_page_leads_to_the_second(report: ImagesReport) -> None:
    part = headline(report, "images.html")
    assert part.text[-1].path == "images.html"
    found, total = report.counts("transient")
    assert (part.facts[0].value, part.facts[0].note) == (str(found), f"of {total} that were put in")
    assert summary(report).startswith(f"{found} of 30 transients, ")
    assert f"{len(report.false)} false candidates" in summary(report)
    assert "a simulated scene" in summary(report)
    assert "a real ZTF quadrant" in summary(replace(report, why_simulated=""))


def test_finished_work_is_not_made_again(home: Path, pair: Pair, report: ImagesReport, network: str) -> None:
    table = home / "search" / "scene_00000_sci" / "candidates.ecsv"
    before = pair.science.stat().st_mtime_ns, table.stat().st_mtime_ns
    again = scene_pair(SIDE, home / "epochs", Settings(), "for a test", kinds=KINDS)
    second = search_pair(again, home, Settings(), no_progress, mask_model=network)
    assert (pair.science.stat().st_mtime_ns, table.stat().st_mtime_ns) == before
    assert summary(second) == summary(report)
    assert second.seconds == report.seconds
    assert report.masks is not None
    assert second.masks is not None
    assert (report.masks.seconds or 0) > 0
    assert second.masks.seconds is None
    search_pair(again, home, Settings(), no_progress, overwrite=True, mask_model=network)
    assert table.stat().st_mtime_ns > before[1]


def test_a_second_epoch_of_a_real_quadrant(tmp_path: Path, real_data: Path) -> None:
    image = real_data / "ztf_images" / "ztf_20200924431759_000655_zr_c13_o_q3_sciimg.fits.fz"
    if not image.is_file():
        pytest.skip(f"no {image}")
    whole = read_frame(image)
    first = tmp_path / "ztf_20200924431759_000655_zr_c13_o_q3_sciimg.fits"
    part = slice(0, 768)
    write_frame(
        first,
        whole.data[part, part],
        wcs=whole.wcs,
        header=whole.header,
        planes={"MASK": whole.mask[part, part]},
    )
    made = quadrant_pair(first, tmp_path / "epochs", Settings())
    assert (made.reference, made.why_simulated) == (first, "")
    epoch = read_frame(made.science)
    assert (epoch.info.telescope, epoch.info.band) == ("ztf", "ztfr")
    assert epoch.info.zero_point == whole.info.zero_point
    assert "not observed, but simulated" in str(epoch.header["HISTORY"])
    # a star stands where the second pointing has it
    ra_dec = whole.wcs.all_pix2world([[300.0, 400.0]], 0)
    assert epoch.wcs.all_world2pix(ra_dec, 0)[0] == pytest.approx(
        np.array([300.0, 400.0]) + EPOCH_CHANGE.shift, abs=0.01
    )
    assert ((epoch.mask[:, :4] & Bad.NO_DATA) > 0).all()
    truth = read_truth(made.science.parent / TRUTH_NAME)
    kinds = [str(kind) for kind in truth["kind"]]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == demo_images.parse_kinds(demo_images.KINDS, 0)
    stamp = made.science.stat().st_mtime_ns
    assert quadrant_pair(first, tmp_path / "epochs", Settings()) == made
    assert made.science.stat().st_mtime_ns == stamp


# --- the page, without images ---


def source(number: int, mag: float, kind: str = "transient", *, found: bool = True) -> Injected:
    candidate = Candidate(f"c{number}", 1.0, 2.0, 9.0, 1, mag, 0.1) if found else None
    return Injected(number, kind, mag, 1.0, 2.0, 10.0, 0.0, False, candidate, "" if found else "not detected")


def test_the_gallery_goes_from_bright_to_faint_and_shows_trails_first() -> None:
    many = [source(n, 17 + n / 10) for n in range(1, 41)]
    many += [source(n, 18.0, "streak") for n in range(41, 46)] + [source(46, 21.0, "comet")]
    many += [source(n, 20 - n / 100, found=False) for n in range(50, 80)]
    choice = choose(many[::-1])
    assert [one.kind for one in choice.found[:4]] == ["comet", "streak", "streak", "transient"]
    mags = [one.mag for one in choice.found if one.kind == "transient"]
    assert mags == sorted(mags)
    assert (mags[0], mags[-1]) == (17.1, 21.0)
    assert len(choice.found) == len({one.number for one in choice.found}) == 12
    missed = [one.mag for one in choice.missed]
    assert missed == sorted(missed)
    assert missed[0] == min(one.mag for one in many if one.found is None)
    assert choose([]).all == []


# --- the command ---


def test_the_command_searches_a_scene_where_no_real_image_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SCENE_SIDE", SIDE)
    monkeypatch.setattr(demo, "N_SIMULATED", 40)
    nothing = CurvesReport("", "variables", "1.0.0", 0.95, [], [], 0, 0, 0.1, [])
    monkeypatch.setattr(demo, "curves_part", lambda *_, **__: nothing)
    out = tmp_path / "demo"
    first = CliRunner().invoke(app, ["demo", "--offline", "-o", str(out)])
    assert first.exit_code == 0, (first.output, first.exception)
    alerts, images, _, images_page, _, page = first.stdout.splitlines()
    assert alerts.startswith("40 alerts of ")
    assert re.match(
        r"\d+ of 100 transients, \d+ of 6 streaks, \d of 1 comet found in a second epoch of a sim", images
    )
    assert images_page == f"images: {out / 'images.html'}"
    assert page == f"report: {out / 'report.html'}"
    html, second_html = (out / "report.html").read_text(), (out / "images.html").read_text()
    assert 'href="images.html"' in html
    assert 'href="report.html"' in second_html
    assert "Both epochs are simulated, not observed: --offline was given" in second_html
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html + second_html)


def test_the_alerts_keep_their_page_when_the_images_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tapetum.core.errors import InputError, NetworkError

    damaged = tmp_path / "quadrant.fits"
    damaged.write_bytes(b"SIMPLE  =")

    def fetch_sample(name: str, progress: object) -> list[Path]:
        if name == "ztf-alerts":
            raise NetworkError("no index")
        return [damaged]

    monkeypatch.setattr(demo, "N_SIMULATED", 40)
    monkeypatch.setattr(samples, "fetch_sample", fetch_sample)
    result = CliRunner().invoke(app, ["demo", "-o", str(tmp_path / "demo")])
    assert isinstance(result.exception, InputError)
    assert "quadrant.fits" in str(result.exception)
    assert "A night of alerts, vetted" in (tmp_path / "demo" / "report.html").read_text()
    assert not (tmp_path / "demo" / "images.html").exists()
