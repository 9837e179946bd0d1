"""`tapetum images simulate` end to end: real frames in, frames and one truth table out."""

from __future__ import annotations

import logging
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from tapetum.cli.images_simulate import simulate
from tapetum.core.errors import TapetumError, UsageError
from tapetum.core.log import configure_logging
from tapetum.core.settings import load_settings
from tapetum.images.background import estimate_background
from tapetum.images.extract import extract_sources
from tapetum.images.fits import expand_sources, read_frame
from tapetum.images.psf import PsfModel
from tapetum.images.remap import align
from tapetum.pipelines.search_steps import compare, prepare
from tapetum.pipelines.simulate import SimulateOptions, simulate_images
from tapetum.simulate.truth import GMADET_COLUMNS

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the verb; exit status and what it said."""
    app = typer.Typer()
    app.command()(simulate)
    configure_logging()

    def call(*arguments: object) -> tuple[int, str]:
        configure_logging()
        status = 0
        try:
            app([str(argument) for argument in arguments], standalone_mode=False)
        except TapetumError as problem:
            status = problem.exit_code
            print(problem, file=sys.stderr)
        said = capsys.readouterr()
        assert not said.out
        return status, said.err

    yield call
    logging.getLogger("tapetum").handlers.clear()


@pytest.fixture(scope="module")
def frames(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two corners of the real quadrant, as a survey would deliver them."""
    whole = read_frame(real_data / "imagepairs" / "ztf_zr_sci.fits.fz")
    folder = tmp_path_factory.mktemp("night")
    made = []
    for name, rows in (("a_sci", slice(0, 420)), ("b_sci", slice(1000, 1420))):
        header = whole.header.copy()
        header["CRPIX2"] -= rows.start
        made.append(folder / f"{name}.fits")
        fits.writeto(made[-1], whole.data[rows, :450].astype(">f4"), header)
    return made


KINDS = (
    "transient:20,streak:2,comet:2,cosmic_ray:5,hot_pixel:3,satellite:1,bad_column:1,ghost:1,bright_star:1"
)


def test_sources_are_put_into_real_frames(frames: list[Path], tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    status, said = run(*frames, "-o", out, "--kinds", KINDS, "--magrange", 15, 19, "--seed", 7)
    assert status == 0, said
    assert "2 images, 72 sources" in said
    table = Table.read(out / "simulated_objects.list", format="ascii.ecsv")
    assert table.colnames[:8] == list(GMADET_COLUMNS)
    assert len(table) == 72
    assert table["idx"].tolist() == list(range(72))
    assert set(table["filename"]) == {"a_sci.fits", "b_sci.fits"}
    assert set(table["filter"]) == {"ztfr"}
    for path in frames:
        before, after = read_frame(path), read_frame(out / path.name)
        own = table[table["filename"] == path.name]
        strong = own[(own["kind"] == "transient") & (own["snr"] > 100) & (own["inside"] > 0.9)]
        assert len(strong) > 5
        for row in strong:
            y, x = round(row["y"]), round(row["x"])
            added = after.data[y - 1 : y + 2, x - 1 : x + 2] - before.data[y - 1 : y + 2, x - 1 : x + 2]
            assert added.sum() > 0.5 * row["flux"] or row["saturated"]
        mags = own["mag"][own["kind"] == "transient"]
        assert mags.min() > 15
        assert mags.max() < 19
        assert after.info.zero_point == before.info.zero_point
        assert after.info.gain == 6.0
        assert "simulate" in str(after.header["HISTORY"])
        where = before.wcs.all_pix2world(100, 100, 0), after.wcs.all_pix2world(100, 100, 0)
        np.testing.assert_allclose(*where, atol=1e-9)
    # different images, different draws
    first, second = (np.array(table["x"][table["image"] == name]) for name in ("a_sci", "b_sci"))
    assert not np.isin(first, second).any()
    settings = tomllib.loads((out / "a_sci.fits.settings.toml").read_text())
    assert settings["run"]["seed"] == 7
    assert sorted(expand_sources([out])) == sorted(str(out / path.name) for path in frames)


def test_the_zero_point_is_measured_with_a_catalogue(frames: list[Path], tmp_path: Path, run: Run) -> None:
    frame = read_frame(frames[0])
    sky = estimate_background(frame.data, frame.mask)
    found = extract_sources(frame.data - sky.level, sky.noise, frame.mask, threshold=5)
    bright = (found.snr > 50) & (found.flags == 0)
    ra, dec = frame.wcs.all_pix2world(found.x[bright], found.y[bright], 0)
    assert frame.info.zero_point is not None
    mag = frame.info.zero_point + 0.25 - 2.5 * np.log10(found.flux[bright])
    Table({"ra": ra, "dec": dec, "r": mag}).write(tmp_path / "stars.ecsv")
    options = ("--number", 5, "--magrange", 15, 17, "--catalogue", tmp_path / "stars.ecsv")
    status, said = run(frames[0], "-o", tmp_path / "out", *options)
    assert status == 0, said
    assert "zero point" in said
    table = Table.read(tmp_path / "out" / "simulated_objects.list", format="ascii.ecsv")
    put_in = np.asarray(table["mag"] + 2.5 * np.log10(table["flux"]))
    np.testing.assert_allclose(put_in, frame.info.zero_point + 0.25, atol=0.1)
    both = run(frames[0], "-o", tmp_path / "out", *options, "--zero-point", 26)
    assert both[0] == 2
    empty = tmp_path / "elsewhere.ecsv"
    Table({"ra": [10.0], "dec": [-80.0], "r": [15.0]}).write(empty)
    status, said = run(frames[0], "-o", tmp_path / "none", *options[:5], "--catalogue", empty)
    assert status == 3
    assert "cannot be measured" in said


def test_a_second_epoch_has_its_original_as_reference(frames: list[Path], tmp_path: Path, run: Run) -> None:
    options = ("--number", 10, "--magrange", 17, 19, "--on-galaxies", 0, "--seed", 3)
    status, said = run(frames[0], "-o", tmp_path, "--second-epoch", *options)
    assert status == 0, said
    old, new = read_frame(frames[0]), read_frame(next(tmp_path.glob("*.fits*")))
    truth = Table.read(tmp_path / "simulated_objects.list", format="ascii.ecsv")
    assert len(truth) == 10
    sky = [estimate_background(frame.data, frame.mask) for frame in (old, new)]
    assert np.median(sky[1].level) == pytest.approx(1.1 * np.median(sky[0].level), rel=0.02)
    place = np.array([truth["ra" if "ra" in truth.colnames else "RA"][0]])
    assert new.wcs.all_world2pix(place, np.array([truth["Dec"][0]]), 0)[0] == pytest.approx(
        truth["x"][0], abs=0.01
    )
    science, reference = prepare(new), prepare(align(old, new))
    compared = compare(science, reference)  # it passes the gate: the noise is its own
    assert compared.difference.quality.noise_ratio == pytest.approx(1, abs=0.25)
    assert "not observed" in str(new.header["HISTORY"])


def test_the_number_of_workers_changes_nothing(frames: list[Path], tmp_path: Path, run: Run) -> None:
    options = ("--number", 10, "--seed", 3, "--fwhm", 2.0, "--on-galaxies", 0)
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(*frames, "-o", one, *options)[0] == 0
    assert run(*frames[::-1], "-o", two, *options, "--jobs", 2)[0] == 0
    for name in ("a_sci.fits", "b_sci.fits", "simulated_objects.list"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_finished_images_are_not_made_again(frames: list[Path], tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    options = ("-o", out, "--number", 5, "--fwhm", 2.0, "--on-galaxies", 0)
    assert run(frames[0], *options)[0] == 0
    made = (out / "a_sci.fits").stat().st_mtime_ns
    status, said = run(*frames, *options)
    assert status == 0
    assert "1 of them finished before" in said
    assert (out / "a_sci.fits").stat().st_mtime_ns == made
    table = Table.read(out / "simulated_objects.list", format="ascii.ecsv")
    assert table["idx"].tolist() == list(range(10))  # the old and the new image, in one table
    (out / "a_sci.fits.settings.toml").unlink()  # as a killed run leaves it
    assert "finished before" in run(frames[1], *options)[1]
    assert "finished before" not in run(frames[0], *options)[1]
    assert (out / "a_sci.fits").stat().st_mtime_ns > made
    again = (out / "a_sci.fits").stat().st_mtime_ns
    assert run(frames[0], *options, "--overwrite")[0] == 0
    assert (out / "a_sci.fits").stat().st_mtime_ns > again
    assert not list(out.rglob("*.part"))


def test_a_bad_image_stops_no_other(frames: list[Path], tmp_path: Path, run: Run) -> None:
    broken = tmp_path / "broken.fits"
    broken.write_bytes(frames[0].read_bytes()[:30_000])
    poor = tmp_path / "poor.fits"
    noise = np.random.default_rng(0).normal(100, 3, (300, 300)).astype(np.float32)
    fits.writeto(poor, noise, fits.Header([("MAGZP", 25.0), ("GAIN", 1.0)]))
    nameless = tmp_path / "nameless.fits"
    fits.writeto(nameless, noise)
    out = tmp_path / "out"
    options = ("-o", out, "--number", 5, "--on-galaxies", 0)
    status, said = run(broken, poor, nameless, tmp_path / "absent.fits", frames[0], *options)
    assert status == 5
    for words in ("broken.fits", "poor.fits", "--fwhm", "nameless.fits", "--zero-point", "absent.fits"):
        assert words in said
    assert {path.name for path in out.iterdir() if path.suffix == ".fits"} == {"a_sci.fits"}
    assert len(Table.read(out / "simulated_objects.list", format="ascii.ecsv")) == 5
    status, said = run(nameless, "-o", tmp_path / "none", "--number", 5, "--fwhm", 2)
    assert status == 3
    assert not (tmp_path / "none" / "simulated_objects.list").exists()
    # and with what the messages ask for it works
    assert (
        run(
            nameless,
            "-o",
            out,
            "--number",
            5,
            "--fwhm",
            2,
            "--zero-point",
            25,
            "--gain",
            2,
            "--on-galaxies",
            0,
        )[0]
        == 0
    )


ZERO_POINTS, WIDTHS = {"CCD1": 25.0, "CCD2": 27.0}, {"CCD1": 2.2, "CCD2": 3.4}


@pytest.fixture(scope="module")
def exposure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exposures of two detectors in one file, each with its own sky, seeing, gain and zero point; beside it another."""
    folder = tmp_path_factory.mktemp("exposure")
    for name, seed in (("mef", 4), ("earlier", 5)):
        primary = fits.PrimaryHDU(header=fits.Header([("FILTER", "r")]))
        fits.HDUList([primary, *detectors(np.random.default_rng(seed))]).writeto(folder / f"{name}.fits")
    return folder / "mef.fits"


def detectors(noise: np.random.Generator) -> list[fits.ImageHDU]:
    rng = np.random.default_rng(3)  # the sky is always the same
    extensions = []
    for number, (name, zero_point) in enumerate(ZERO_POINTS.items()):
        psf = PsfModel.moffat(WIDTHS[name], 3.2, (300, 320))
        data, gain = np.full((300, 320), 100.0 + 50 * number), 2.0 + number
        x, y = rng.uniform(15, 305, 70), rng.uniform(15, 285, 70)
        for stamp, column, row in zip(psf.stamps(x, y), x, y, strict=True):
            i, j = int(np.floor(column + 0.5)) - psf.half, int(np.floor(row + 0.5)) - psf.half
            part = data[max(j, 0) : j + psf.size, max(i, 0) : i + psf.size]
            cut = stamp[max(-j, 0) :, max(-i, 0) :][: part.shape[0], : part.shape[1]]
            part += 10 ** rng.uniform(3.3, 5) * cut
        data += noise.normal(0, np.sqrt(data / gain))
        wcs = WCS(naxis=2)
        wcs.wcs.ctype, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [160, 150]
        wcs.wcs.crval, wcs.wcs.cdelt = [150.0 + 0.1 * number, 20.0], [-1 / 3600, 1 / 3600]
        header = wcs.to_header()
        header.update({"MAGZP": zero_point, "GAIN": gain, "SATURATE": 6e4})
        extensions.append(fits.ImageHDU(data.astype(np.float32), header, name=name))
    return extensions


def test_every_image_of_a_file_gets_its_own_sources_and_truth(
    exposure: Path, tmp_path: Path, run: Run
) -> None:
    """From a file of two detectors to completeness: what was put into one is looked for in that one."""
    from tapetum.pipelines.completeness import recover
    from tapetum.pipelines.search import SearchOptions, search
    from tapetum.pipelines.search_results import read_results

    out = tmp_path / "simulated"
    options = ("--kinds", "transient:12", "--magrange", 14.5, 16.5, "--on-galaxies", 0, "--seed", 2)
    status, said = run(exposure, "-o", out, *options)
    assert status == 0, said
    assert "2 images, 24 sources" in said
    table = Table.read(out / "simulated_objects.list", format="ascii.ecsv")
    for number, (name, zero_point) in enumerate(ZERO_POINTS.items(), 1):
        own = table[table["filename"] == f"mef_{number}.fits"]
        assert (len(own), set(own["image"]), set(own["zero_point"])) == (12, {f"mef_{number}"}, {zero_point})
        before, after = read_frame(f"{exposure}[{name}]"), read_frame(out / f"mef_{number}.fits")
        assert after.info.zero_point == zero_point
        assert (after.info.gain, after.info.band) == (before.info.gain, before.info.band)
        row = own[np.argmax(own["snr"] * (own["inside"] > 0.99))]
        y, x = np.mgrid[:300, :320]
        near = np.hypot(x - row["x"], y - row["y"]) < 2 * WIDTHS[name]
        added = (after.data - before.data)[near]
        assert added.sum() == pytest.approx(row["flux"], rel=0.12)
        half = (added > added.max() / 2).sum()  # pixels above half of the peak are a disc of its FWHM
        assert 2 * np.sqrt(half / np.pi) == pytest.approx(WIDTHS[name], rel=0.25)
        where = before.wcs.all_pix2world(10, 10, 0), after.wcs.all_pix2world(10, 10, 0)
        np.testing.assert_allclose(*where, atol=1e-9)
    assert "2 of them finished before" in run(exposure, "-o", out, *options)[1]
    # of the images of one reference file each takes the one of its own sky
    asked = SearchOptions(references=(str(exposure.with_name("earlier.fits")),), cutouts="none", keep="none")
    found = search(expand_sources([out]), tmp_path / "results", asked, load_settings(None, {}))
    assert [(one.folder.name, one.problem) for one in found] == [("mef_1", None), ("mef_2", None)]
    recovery = recover(read_results(tmp_path / "results"))
    assert recovery.images["image"].tolist() == ["mef_1", "mef_2"]
    assert recovery.images["injected"].tolist() == [12, 12]
    assert min(recovery.images["found"]) >= 10
    assert max(recovery.images["false"]) <= 2


def test_an_input_is_never_overwritten(frames: list[Path], tmp_path: Path, run: Run) -> None:
    before = frames[0].read_bytes()
    status, said = run(frames[0], "-o", frames[0].parent, "--number", 5)
    assert status == 2
    assert "overwritten" in said
    assert frames[0].read_bytes() == before
    other = tmp_path / "other" / frames[0].name
    other.parent.mkdir()
    other.write_bytes(before)
    status, said = run(frames[0], other, "-o", tmp_path / "out")
    assert status == 2
    assert "same name" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--kinds", "nova"), "nova"),
        (("--magrange", 20, 15), "--magrange"),
        (("--gain", -1), "--gain"),
        (("--scene", 1), "not both"),
    ],
)
def test_options_that_make_no_sense(
    frames: list[Path], tmp_path: Path, run: Run, options: tuple[object, ...], words: str
) -> None:
    status, said = run(frames[0], "-o", tmp_path / "out", *options)
    assert status == 2
    assert words in said
    assert not (tmp_path / "out").exists()


def test_scenes_need_no_input(tmp_path: Path, run: Run) -> None:
    options = (
        "--size",
        200,
        256,
        "--seed",
        5,
        "--magrange",
        17,
        19,
        "--kinds",
        "transient:12,streak:2,cosmic_ray:9",
    )
    out = tmp_path / "scenes"
    status, said = run("--scene", 2, "-o", out, *options)
    assert status == 0, said
    assert "2 images, 46 sources" in said
    names = {f"scene_{n:05d}_{part}.fits.fz" for n in range(2) for part in ("sci", "ref", "labels")}
    assert {path.name for path in out.glob("*.fz")} == names
    frame = read_frame(out / "scene_00001_sci.fits.fz")
    assert frame.shape == (200, 256)
    assert (frame.info.gain, frame.info.read_noise, frame.info.zero_point) == (6.0, 9.0, 26.285)
    assert (frame.info.band, frame.info.exposure_s) == ("ztfr", 30.0)
    assert not frame.info.guessed
    assert 1.3 < frame.info.fwhm_pix < 4
    assert frame.info.pixel_scale_arcsec == pytest.approx(1.012, rel=1e-3)
    table = Table.read(out / "simulated_objects.list", format="ascii.ecsv")
    assert set(table["filename"]) == {"scene_00000_sci.fits.fz", "scene_00001_sci.fits.fz"}
    assert (table["seed"] == 5).all()
    assert len(expand_sources([out])) == 4  # science and reference, no labels
    first, second = (read_frame(out / f"scene_0000{number}_sci.fits.fz").data for number in (0, 1))
    assert np.abs(first - second).max() > 100
    assert "2 of them finished before" in run("--scene", 2, "-o", out, *options)[1]
    status, said = run("--scene", 1, "-o", out, "--telescope", "ztf")
    assert status == 2
    assert "--telescope" in said


def test_nothing_to_do_is_said(tmp_path: Path, run: Run) -> None:
    status, said = run("-o", tmp_path / "out")
    assert status == 2
    assert "--scene" in said
    (tmp_path / "empty").mkdir()
    status, said = run(tmp_path / "empty", "-o", tmp_path / "out")
    assert status == 3


def test_seeds_are_checked() -> None:
    with pytest.raises(UsageError, match="--seed"):
        simulate_images(["x.fits"], Path("out"), SimulateOptions(seed=-1), load_settings(None, {}))
