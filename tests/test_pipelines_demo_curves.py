"""The third part of the demo: light curves, their periods and classes, and what the page says of them."""

from __future__ import annotations

import bz2
import io
import math
import re
import tarfile
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tapetum.cli import demo
from tapetum.core import samples
from tapetum.core.errors import FormatError, InputError
from tapetum.core.progress import no_progress
from tapetum.core.settings import Settings
from tapetum.finders.taxonomy import load_taxonomy
from tapetum.finders.variable_tree import Config, VariableTree, leaf_sums
from tapetum.lightcurves.curves import LightCurves
from tapetum.pipelines import demo_curves
from tapetum.pipelines.demo_curves import (
    CLASSES,
    CURVES,
    PERIODS,
    classify_curves,
    macho_curves,
    simulated_curves,
)
from tapetum.pipelines.demo_curves_page import (
    CurvesReport,
    Known,
    build_curves_page,
    headline,
    relation_of,
    summary,
)
from tapetum.report.page import render_page
from tapetum.report.read_tables import read_table

PERIOD = 0.61
OGLE = """# Date: 2017
# Database: cvs
# Target: all
# Query: all
# Objects: 2
# Columns:
# ID\tField\tStarID\tType\tSubtype\tRA\tDECL\tP_1\tRemarks
OGLE-1\tLMC1\t2\tRRLyr\tRRab\t5.0000200\t-69.0001\t0.61\t-99.99
OGLE-2\tLMC1\t3\tRRLyr\tRRc\t5.1\t-69.0\t0.3\t-99.99
"""


class Tree(VariableTree):
    """A classifier that goes by the period alone, whose shapes are those of a real one."""

    def __init__(self) -> None:
        self.taxonomy, self.config = load_taxonomy("tapetum"), Config()
        self.leaves = ("rrab", "ea", "mir")
        self.codes, self._inside = leaf_sums(self.leaves, self.taxonomy)
        card = SimpleNamespace(
            name="by-period", version="1.2.3", onnx_sha256="f" * 64, algorithm="none",
            thresholds={"conformal_0.95": 0.2}, calibration=SimpleNamespace(method="none"),
        )  # fmt: skip
        self.model: Any = SimpleNamespace(card=card)

    def logits(self, curves: LightCurves, period: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        places = np.log10([0.6, 3.0, 300.0])
        return -5 * np.abs(np.log10(np.nan_to_num(period, nan=1e4))[:, None] - places)


@pytest.fixture
def _tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_curves, "load", lambda _: Tree())


def star(folder: Path, name: str, hours: float, bands: str, count: int, rng: np.random.Generator) -> Path:
    """An archive of a star, a saw tooth of 0.61 d, as the sample has them."""
    path = folder / f"lc_{name}.tar.bz2"
    with tarfile.open(path, "w:bz2") as archive:
        for band in bands:
            t = 49000 + 2.5 * np.arange(count) + rng.uniform(0, 2, count)
            mag = -5 + 0.8 * (t / PERIOD % 1) + rng.normal(0, 0.03, count)
            lines = [f"{a:.6f} {b:.3f} 0.030" for a, b in zip(t, mag, strict=True)]
            head = [
                "#Field Tile ...",
                f"#{name.replace('.', ' ')} {hours} -69.0 {band} -5 -5 0 0",
                "#MJD Mag Err",
            ]
            content = "\n".join([*head, *lines]).encode()
            entry = tarfile.TarInfo(f"lc_{name}.{band}.mjd")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def sample(tmp_path: Path, rng: np.random.Generator) -> list[Path]:
    catalogue = tmp_path / "ogle3.txt.bz2"
    catalogue.write_bytes(bz2.compress(OGLE.encode()))
    stars = [star(tmp_path, "1.2.3", 5.00002, "BR", 120, rng), star(tmp_path, "1.2.4", 6.0, "B", 30, rng)]
    return [*stars, catalogue]


def test_the_sample_is_read_with_what_the_catalogue_says(sample: list[Path]) -> None:
    curves = macho_curves(sample)
    assert curves.ids == ["1.2.3.B", "1.2.3.R", "1.2.4.B"]
    assert curves.n_points.tolist() == [120, 120, 30]
    row = curves.table.to_pylist()[1]
    assert (row["object_id"], row["survey"], row["band"]) == ("1.2.3", "macho", "machor")
    assert (row["ra"], row["dec"]) == pytest.approx((75.0003, -69.0))
    assert (row["known_as"], row["known_kind"], row["known_period"]) == (
        "OGLE-1, 0.4″ away",
        "RRLyr RRab",
        0.61,
    )
    assert curves.table.to_pylist()[2]["known_as"] is None


def test_what_is_damaged_is_named(sample: list[Path], tmp_path: Path, rng: np.random.Generator) -> None:
    archive, _, catalogue = sample
    archive.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(FormatError, match=r"lc_1\.2\.3\.tar\.bz2: no light curves of MACHO"):
        macho_curves(sample)
    good = star(tmp_path, "1.2.3", 5.0, "B", 60, rng)
    catalogue.write_bytes(bz2.compress(b"# nothing\n" * 8))
    with pytest.raises(FormatError, match=r"ogle3\.txt\.bz2: not the OGLE-III catalogue"):
        macho_curves([good, catalogue])
    with pytest.raises(FormatError, match="no light curves of MACHO in the sample"):
        macho_curves([catalogue])


@pytest.mark.usefixtures("_tree")
def test_a_star_is_found_folded_and_classified(sample: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "out"

    def make() -> LightCurves:
        return macho_curves(sample)

    report = classify_curves(make, folder, Settings(), no_progress)
    [found] = report.stars
    assert found.period == pytest.approx(PERIOD, rel=1e-3)
    assert found.time.size == 240
    assert found.classes[0][0] == "RR Lyr ab"
    assert found.known == Known("OGLE-1, 0.4″ away", "RRLyr RRab", 0.61)
    assert report.rejected[0][0] == "1.2.4.B"
    assert "30 of 30 points left, 50 needed" in report.rejected[0][1]
    assert (
        summary(report) == "3 real light curves, 1 stars classified: 1 with a period below 100 d; 1 RR Lyr ab"
    )
    assert read_table(folder / CLASSES)["class"].to_pylist() == ["rrab"]
    assert read_table(folder / PERIODS)["object_id"].to_pylist() == ["1.2.3", "1.2.4"]
    html = unescape(render_page(build_curves_page(report, "report.html")))
    assert re.search(r"240 of 240 points, folded with 0\.6[01]", html)
    assert html.count("<circle") == 2 * 240
    for words in (
        "RRLyr RRab, 0.61 d (OGLE-1, 0.4″ away)", "the same", "by-period 1.2.3", "None of them was used to train",
        "1.2.4.B", "95\u00a0% set", 'href="report.html"',
    ):  # fmt: skip
        assert words in html, words

    def never() -> LightCurves:
        raise AssertionError("the light curves are there already")

    again = classify_curves(never, folder, Settings(), no_progress)
    assert again.stars[0].classes == found.classes
    assert (again.seconds, report.seconds is not None) == (None, True)
    assert "periods and classes in" in html
    assert "periods and classes in" not in render_page(build_curves_page(again, "report.html"))
    assert (folder / CURVES).exists()


@pytest.mark.usefixtures("_tree")
def test_simulated_stars_are_told_as_such(tmp_path: Path) -> None:
    curves = simulated_curves(7)
    assert simulated_curves(7).mag.tolist() == curves.mag.tolist()
    report = classify_curves(
        lambda: curves.take(np.arange(12)), tmp_path, Settings(), no_progress, why_simulated="for a test"
    )
    assert len(report.stars) + len(report.rejected) == 12
    assert all(star.known is not None and star.known.origin == "simulation" for star in report.stars)
    html = render_page(build_curves_page(report, "report.html"))
    assert "These light curves are simulated, not observed: for a test" in html
    part = headline(report, "curves.html")
    assert part.text[-1].path == "curves.html"  # type: ignore[union-attr]
    assert int(found_of(report)[0]) >= 0.6 * sum(
        star.is_periodic and star.known is not None and star.known.period is not None for star in report.stars
    )


def found_of(report: CurvesReport) -> list[str]:
    """How many known periods were found, and of how many, as the summary has it."""
    facts = headline(report, "curves.html").facts
    return next(fact.value for fact in facts if fact.label == "known periods found").split(" of ")


@pytest.mark.usefixtures("_tree")
def test_without_any_usable_curve_it_says_so(tmp_path: Path, rng: np.random.Generator) -> None:
    path = star(tmp_path, "1.2.4", 6.0, "B", 30, rng)
    with pytest.raises(InputError, match="no light curve has enough good points"):
        classify_curves(
            lambda: demo_curves.with_known(demo_curves.read_macho([path]), {}),
            tmp_path / "out",
            Settings(),
            no_progress,
        )


@pytest.mark.usefixtures("_tree")
def test_eclipses_are_folded_with_the_whole_orbit(sample: list[Path], tmp_path: Path) -> None:
    report = classify_curves(lambda: macho_curves(sample), tmp_path / "out", Settings(), no_progress)
    [found] = report.stars
    double = replace(found, period=1.5, two_minima=True, aliases=[("f/2", 3.0)])
    assert double.folding_period == 3.0
    assert replace(double, aliases=[("2f", 0.75)]).folding_period == 1.5
    assert replace(double, two_minima=False).folding_period == 1.5
    html = unescape(render_page(build_curves_page(replace(report, stars=[double]), "report.html")))
    assert "folded with 3 d" in html
    assert "own rhythm" not in html
    assert ">10⁻" in html
    slow = replace(found, period=321.0)
    chance = replace(found, log10_fap=-1.0)
    for other in (slow, chance, replace(found, period=None, log10_fap=None)):
        assert not other.is_periodic
        page = build_curves_page(replace(report, stars=[other]), "report.html")
        assert "points, folded with" not in render_page(page)


@pytest.mark.usefixtures("_tree")
def test_the_rhythm_of_the_nights_is_no_period_and_no_known_period_is_left_out(
    sample: list[Path], tmp_path: Path
) -> None:
    report = classify_curves(lambda: macho_curves(sample), tmp_path / "out", Settings(), no_progress)
    [found] = report.stars
    days = [replace(found, period=period) for period in (1.0002, 0.4998)]
    slow = replace(found, period=508.9, known=Known("OGLE-3", "Cepheid", 117.22))
    mixed = replace(report, stars=[found, *days, slow, replace(slow, period=117.2)])
    assert [star.is_periodic for star in mixed.stars] == [True, False, False, False, False]
    assert "5 stars classified: 1 with a period below 100 d" in summary(mixed)
    assert found_of(mixed) == ["2", "5"]
    html = render_page(build_curves_page(replace(report, stars=days), "report.html"))
    assert html.count("own rhythm") == 2
    assert "points, folded with" not in html


def test_periods_are_related_to_known_ones() -> None:
    assert relation_of(0.6101, 0.61) == "the same"
    assert relation_of(0.305, 0.61) == "half of it"
    assert relation_of(1.22, 0.61) == "twice it"
    assert relation_of(0.7, 0.61) == ""


def test_the_page_of_no_star_is_a_page() -> None:
    report = CurvesReport("", "m", "1", 0.95, [], [], 0, 0, math.nan, [])
    assert "Variable stars" in render_page(build_curves_page(report, "report.html"))


# --- the part of the command, with the network that is shipped ---


def test_without_a_network_the_part_simulates_and_the_shipped_classifier_answers(tmp_path: Path) -> None:
    report = demo.curves_part(Settings(), tmp_path, offline=True, overwrite=False)
    assert report.why_simulated == "--offline was given"
    assert report.model == "variables"
    assert len(report.stars) > 10
    assert all(0 < star.classes[0][1] <= 1 for star in report.stars)
    assert all(star.classes[0][0] in star.class_set for star in report.stars)
    [folder] = (tmp_path / "curves").iterdir()
    assert folder.name.startswith("simulated-")


def test_real_stars_of_the_part_come_from_the_sample(
    sample: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "fetch_sample", lambda name, progress: sample)
    report = demo.curves_part(Settings(), tmp_path / "demo", offline=False, overwrite=False)
    assert report.why_simulated == ""
    assert [star.object_id for star in report.stars] == ["1.2.3"]
    assert (tmp_path / "demo" / "curves" / "macho" / CLASSES).exists()
