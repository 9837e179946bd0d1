"""A search that knows what contaminates its image: by a network, by masks beside it, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from typer.testing import CliRunner

from tapetum.cli.app import app
from tapetum.core.errors import InputError, ModelError, UsageError
from tapetum.core.settings import Settings
from tapetum.finders.contaminants import MODEL
from tapetum.finders.transients import CandidateFlag
from tapetum.images.contaminants import Contaminant
from tapetum.images.fits import read_frame, write_frame
from tapetum.images.mask_codes import read_codes
from tapetum.models.registry import imported_dir
from tapetum.pipelines.candidates import VetoLimits
from tapetum.pipelines.cutouts import make_cutouts, read_cutout
from tapetum.pipelines.demo_images import Pair, scene_pair
from tapetum.pipelines.search import SearchOptions, search
from tapetum.pipelines.search_contaminants import ContaminantChoice
from tapetum.pipelines.search_results import read_results, read_truth
from tapetum.simulate.truth import TRUTH_NAME

SIDE = 256
KINDS = ("transient:14",)
N_HITS = 12
CR = int(Contaminant.CR)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, write_network: Callable[..., Path]) -> str:
    return str(write_network(tmp_path_factory.mktemp("models") / "sharp"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two epochs, the second with transients and the tracks of particles in it."""
    folder = tmp_path_factory.mktemp("epochs")
    made = scene_pair(SIDE, folder, Settings(), "for a test", kinds=KINDS)
    frame = read_frame(made.science)
    data, (x, y) = frame.data.copy(), hits_of(folder)
    height = 60 * 7.0  # 60 sigma of the sky
    for column, row, step in zip(x, y, ((0, 1), (1, 0), (1, 1)) * 4, strict=True):
        for number, part in enumerate((0.5, 1.0, 0.7)):
            data[row + step[0] * (number - 1), column + step[1] * (number - 1)] += part * height
    planes = {"MASK": frame.mask}
    write_frame(
        folder / "science.fits", data, wcs=frame.wcs, header=frame.header, planes=planes, product="frame"
    )
    return replace(made, science=folder / "science.fits")


def hits_of(folder: Path) -> np.ndarray:
    """Pixels that particles hit, far from all transients; shape (2, n)."""
    truth = read_truth(folder / TRUTH_NAME)
    places = np.random.default_rng(3).integers(20, SIDE - 20, (2, 400))
    far = np.hypot(*(places[:, :, None] - np.array([truth["x"], truth["y"]])[:, None])).min(axis=1) > 12
    chosen: list[np.ndarray] = []
    for place in places[:, far].T:
        if all(np.hypot(*(place - other)) > 12 for other in chosen):
            chosen.append(place)
    return np.array(chosen[:N_HITS]).T


def run(pair: Pair, out: Path, science: Path | None = None, **options: object):
    asked = {"references": (str(pair.reference),), "keep": "none", **options}
    return search([str(science or pair.science)], out, SearchOptions(**asked), Settings())[0]


def tables(outcome) -> tuple[Table, Table]:
    assert outcome.problem is None
    return tuple(Table.read(outcome.folder / f"{name}.ecsv") for name in ("candidates", "detections"))


def rows_at(table: Table, places) -> list[int]:
    """Rows of a table, each within two pixels of a place."""
    rows = []
    for x, y in zip(*places, strict=True):
        distance = np.hypot(np.asarray(table["x"]) - x, np.asarray(table["y"]) - y)
        if len(distance) and distance.min() < 2:
            rows.append(int(distance.argmin()))
    return rows


@pytest.fixture(scope="module")
def with_network(pair: Pair, network: str, tmp_path_factory: pytest.TempPathFactory):
    # the particles are left to the mask alone
    limits = VetoLimits(cosmic_sigma=1e9)
    return run(pair, tmp_path_factory.mktemp("found"), contaminants=network, limits=limits, cutouts="fits")


def test_particles_are_vetoed_by_the_mask_and_sources_are_not(pair: Pair, with_network) -> None:
    candidates, detections = tables(with_network)
    truth = read_truth(pair.science.parent / TRUTH_NAME)
    new = [truth["x"], truth["y"]]
    hits, sources = (rows_at(detections, places) for places in (hits_of(pair.science.parent), new))
    assert len(hits) >= N_HITS - 2
    assert len(sources) >= 10
    flags, codes = (np.asarray(detections[name]) for name in ("flags", "contaminants"))
    vetoed = (flags & CandidateFlag.CONTAMINATED) != 0
    assert vetoed[hits].mean() >= 0.8
    assert (codes[hits] & CR != 0).mean() >= 0.8
    assert not vetoed[sources].any()
    assert all("contaminated" in detections["reason"][row] for row in np.flatnonzero(vetoed))
    assert (np.asarray(detections["contaminated_fraction"])[vetoed] >= 0.5).all()
    assert len(rows_at(candidates, new)) == sum(not detections["reason"][row] for row in sources)
    assert not (np.asarray(candidates["flags"]) & CandidateFlag.CONTAMINATED).any()
    assert candidates.meta["contaminants"][CR] == "CR"
    assert candidates.meta["contaminants_by"] == "sharp 1.0.0"
    assert "contaminants by sharp 1.0.0: CR " in (with_network.folder / "search.log").read_text()
    assert "contaminated" in (with_network.folder / "report.html").read_text()


def test_the_codes_travel_with_the_candidates(with_network) -> None:
    [result] = read_results(with_network.folder.parent)
    row = result.candidates[0]
    header = read_cutout(result.folder / "cutouts" / f"{row['candidate_id']}.fits")[1]
    assert header["CONTAM"] == row["contaminants"]
    made = make_cutouts(result.folder.parent, [result])
    listed = Table.read(made.folder / "candidates_list.dat", format="ascii.ecsv")
    assert list(listed["contaminants"]) == list(result.candidates["contaminants"])


def test_nobody_is_asked_where_nothing_is_installed_or_nothing_is_wanted(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_network: Callable[..., Path]
) -> None:
    monkeypatch.setattr("tapetum.pipelines.search_contaminants.list_models", list)
    outcome = run(pair, tmp_path / "auto", cutouts="none")
    write_network(imported_dir() / MODEL / "1.0.0", MODEL)
    monkeypatch.undo()
    for done in (outcome, run(pair, tmp_path / "none", contaminants="none", cutouts="none")):
        candidates, detections = tables(done)
        assert candidates["contaminants"].mask.all()
        assert detections["contaminated_fraction"].mask.all()
        assert "contaminants_by" not in candidates.meta
        assert done.warnings == tuple(text for text in done.warnings if "contaminants" not in text)


def copied(pair: Pair, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return Path(shutil.copy(pair.science, folder))


def test_masks_beside_the_image_go_before_our_own_network(
    pair: Pair, network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapetum.pipelines.search_contaminants.list_models", list)
    science, out = copied(pair, tmp_path / "night"), tmp_path / "out"
    before = run(pair, out, science, cutouts="none")
    mask = ["images", "mask", str(science), "--model", network, "--single-mask", "--preview"]
    assert CliRunner().invoke(app, mask).exit_code == 0
    beside = science.with_name(f"{before.folder.name}.masks.fits")
    assert beside.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    after = run(pair, out, science, cutouts="none")
    assert not after.skipped
    assert str(beside) in tables(after)[0].meta["contaminants_by"]
    assert run(pair, out, science, cutouts="none").skipped
    codes = read_codes(beside, science)[0]
    row = tables(after)[1]
    at = codes[np.rint(row["y"]).astype(int), np.rint(row["x"]).astype(int)]
    assert ((np.asarray(row["contaminants"]) & at) == at).all()
    os.utime(science)  # the image is made anew, and its old masks are beside it still
    again = run(pair, out, science, cutouts="none")
    assert any("older than its image" in text for text in again.warnings)
    named = run(pair, out, science, contaminants=str(beside), cutouts="none")
    assert tables(named)[0].meta["contaminants_by"] == f"{beside} (sharp 1.0.0)"
    folder = run(pair, out, science, contaminants=str(science.parent), cutouts="none")
    assert tables(folder)[0].meta["contaminants_by"] == f"{beside} (sharp 1.0.0)"


def test_our_own_network_is_used_unasked(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_network: Callable[..., Path]
) -> None:
    monkeypatch.setattr("tapetum.models.registry._packaged", list)  # whatever comes with the package
    write_network(imported_dir() / MODEL / "1.0.0", MODEL)
    outcome = run(pair, tmp_path / "out", cutouts="none")
    assert tables(outcome)[0].meta["contaminants_by"] == "contaminants 1.0.0"


def test_masks_that_cannot_be_used_fail_the_image_only_where_they_were_named(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapetum.pipelines.search_contaminants.list_models", list)
    science = copied(pair, tmp_path / "night")
    name = run(pair, tmp_path / "first", science, cutouts="none").folder.name
    wrong = science.with_name(f"{name}.masks.fits")
    fits.PrimaryHDU(np.zeros((5, 5), np.int16), fits.Header({"SMASK": "Yes"})).writeto(wrong)
    outcome = run(pair, tmp_path / "out", science, cutouts="none")
    assert any("contaminants are not known" in text and "do not fit" in text for text in outcome.warnings)
    assert tables(outcome)[0]["contaminants"].mask.all()
    assert "do not fit" in run(pair, tmp_path / "named", science, contaminants=str(wrong)).problem
    empty = tmp_path / "empty"
    empty.mkdir()
    elsewhere = run(pair, tmp_path / "elsewhere", science, contaminants=str(empty), cutouts="none")
    assert any(f"no contaminant masks of it in {empty}" in text for text in elsewhere.warnings)


def test_what_no_image_could_be_masked_with_is_refused_at_once(pair: Pair, tmp_path: Path) -> None:
    for asked, error, reason in (
        ("nonesuch", ModelError, "no model 'nonesuch'"),
        ("realbogus", UsageError, "realbogus: is no network that gives every pixel"),
        (str(tmp_path / "x.masks.fits"), InputError, "no such file of contaminant masks"),
    ):
        with pytest.raises(error, match=reason):
            run(pair, tmp_path / "out", contaminants=asked)
    assert not (tmp_path / "out").exists()
    assert ContaminantChoice.parse("NONE").kind == "none"
    assert ContaminantChoice.parse("none").masks_for(str(pair.science)) is None
