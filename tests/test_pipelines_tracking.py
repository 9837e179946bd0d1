"""`tapetum images tracking` as a user calls it: which files, which lines, which exit."""

from __future__ import annotations

import logging
import math
import multiprocessing
import subprocess
import sys
from datetime import date

import numpy as np
import onnx
import pytest
import typer
from astropy.io import fits
from astropy.table import Table
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from tapetum.cli.images_tracking import tracking
from tapetum.core.errors import InputError, PartialFailureError, UsageError
from tapetum.core.files import sha256_of
from tapetum.core.log import TALK
from tapetum.models.card import ClassSpec, FrameContract, ModelCard, Output, Source, Training, write_card
from tapetum.pipelines.tracking import append_lines, exposures_of, n_chosen

app = typer.Typer()
app.command()(tracking)


def call(*words):
    """Run the verb; what went wrong is raised."""
    result = CliRunner().invoke(app, list(map(str, words)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def network():
    """A score that grows with the mean of a tile, and a trail of (3, 4)."""
    axes = numpy_helper.from_array(np.array([1, 2, 3]), "axes")
    zero = numpy_helper.from_array(np.zeros((1, 2), np.float32), "zero")
    trail = numpy_helper.from_array(np.array([[3, 4]], np.float32), "vector")
    shape = numpy_helper.from_array(np.array([-1, 1]), "shape")
    nodes = [
        helper.make_node("ReduceMean", ["frame", "axes"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "shape"], ["column"]),
        helper.make_node("Sigmoid", ["column"], ["score"]),
        helper.make_node("Mul", ["column", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "vector"], ["trail"]),
    ]
    graph = helper.make_graph(
        nodes, "tracking",
        [helper.make_tensor_value_info("frame", TensorProto.FLOAT, ["n", 1, "y", "x"])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1]),
            helper.make_tensor_value_info("trail", TensorProto.FLOAT, ["n", 2]),
        ],
        [axes, zero, trail, shape],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mean")
    path = folder / "model.onnx"
    path.write_bytes(network().SerializeToString())
    onnx.checker.check_model(str(path))
    spec = ClassSpec(name="tracking_error", title="t", training_prior=0.5, prior=0.05, threshold=0.5)
    write_card(
        folder / "card.json",
        ModelCard(
            name="mean", version="1.0.0", title="mean", licence="MIT", authors=("test",),
            source=Source(description="test"), created=date(2026, 11, 20).isoformat(), onnx_sha256=sha256_of(path),
            inputs=(FrameContract(name="frame", multiple=16),),
            outputs=(
                Output(name="score", columns=("tracking_error",)),
                Output(name="trail", columns=("a", "b"), activation="none"),
            ),
            classes=(spec,), training=Training(description="none"),
        ),
    )  # fmt: skip
    return path


def stars(seed=0, shape=(90, 110), n_stars=12):
    rng = np.random.default_rng(seed)
    image = rng.normal(300, 4, shape).astype(np.float32)
    rows, columns = np.mgrid[-6:7, -6:7]
    for _ in range(n_stars):
        y, x = int(rng.integers(6, shape[0] - 7)), int(rng.integers(6, shape[1] - 7))
        image[y - 6 : y + 7, x - 6 : x + 7] += 300 * np.exp(-(rows**2 + columns**2) / 5)
    return image


def hdus(*images, table=False):
    units = [fits.PrimaryHDU(), *(fits.ImageHDU(image) for image in images)]
    if table:
        units.insert(2, fits.BinTableHDU(Table({"a": [1, 2]})))
    return fits.HDUList(units)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(model, here):
    """Run the verb with the model, in the working directory of the test."""
    return lambda *words: call(*words, "--model", model, "--prior", 0.5)


def lines(path):
    return path.read_text().splitlines()


def test_every_run_adds_a_line_with_name_and_four_decimals(run, here):
    fits.writeto(here / "a.fits", stars(1))
    (here / "sub").mkdir()
    fits.writeto(here / "sub" / "b.fits.gz", stars(2))
    fits.HDUList(
        [fits.PrimaryHDU(), fits.CompImageHDU(stars(3), quantize_level=0, compression_type="GZIP_2")]
    ).writeto(here / "c.fits.fz")
    (here / "night.list").write_text("a.fits\nc.fits.fz\n")
    run("a.fits", "sub")
    run("night.list")
    found = [line.split(" ") for line in lines(here / "maxitrack.out")]
    assert [name for name, _ in found] == ["a.fits", "b.fits.gz", "a.fits", "c.fits.fz"]
    assert all(len(number) == 6 and 0.5 < float(number) < 1 for _, number in found)
    assert found[0] == found[2]


def test_masks_are_no_exposures(run, here):
    for name in ("a", "ztf_b_sciimg"):
        fits.writeto(here / f"{name}.fits", stars(1))
    for name in ("a.masks", "a.mask", "ztf_b_mskimg"):
        fits.writeto(here / f"{name}.fits", np.eye(90, 110, dtype=np.uint8))
    fits.writeto(here / "other.fits", np.eye(90, dtype=np.uint8), fits.Header({"TAPPROD": "contaminants"}))
    (here / "a.masks.fits.settings.toml").write_text("[run]")
    run(*sorted(here.glob("*.fits*")))
    assert [line.split()[0] for line in lines(here / "maxitrack.out")] == ["a.fits", "ztf_b_sciimg.fits"]


def test_hdus_are_averaged_and_tables_are_none(run, here):
    bright, faint = stars(1, n_stars=40), stars(2, n_stars=4)
    hdus(bright, faint, table=True).writeto(here / "mef.fits")
    for name, image in (("one", bright), ("two", faint)):
        fits.writeto(here / f"{name}.fits", image)
    run("mef.fits", "one.fits", "two.fits")
    mean, one, two = (float(line.split()[1]) for line in lines(here / "maxitrack.out"))
    assert mean == pytest.approx((one + two) / 2, abs=1e-4)
    assert one - two > 0.01
    run("mef.fits[1]", "-o", "one.out")
    assert lines(here / "one.out") == [f"mef.fits[1] {one:.4f}"]


def test_every_plane_of_a_cube_is_an_exposure(run, here):
    fits.writeto(here / "cube.fits", np.stack([stars(1), stars(2, n_stars=40)]))
    run("cube.fits")
    found = [line.split() for line in lines(here / "maxitrack.out")]
    assert [name for name, _ in found] == ["cube.fits[0][0]", "cube.fits[0][1]"]
    assert found[0][1] != found[1][1]


def test_fraction_is_a_share_below_one_and_a_number_from_one_on(run, here):
    hdus(*(stars(seed) for seed in range(8))).writeto(here / "many.fits")
    everything = exposures_of("many.fits")[0].images
    assert len(everything) == 8
    for frac, n in ((0.25, 2), (0.01, 1), (0.99, 8), (1, 1), (3, 3), (50, 8)):
        chosen = exposures_of("many.fits", frac)[0].images
        assert len(chosen) == n_chosen(8, frac) == n
        assert list(chosen) == sorted(set(chosen)) == [image for image in everything if image in chosen]
    draws = {exposures_of("many.fits", 3, seed)[0].images for seed in range(20)}
    assert len(draws) > 5
    assert exposures_of("many.fits", 3, 7) == exposures_of("many.fits", 3, 7)
    run("many.fits", "--frac", 2, "--tiles", "tiles.ecsv")
    assert len(set(Table.read("tiles.ecsv")["hdu"])) == 2


@pytest.mark.parametrize("frac", [0, -1, 1.5, math.inf, math.nan])
def test_impossible_fractions_are_refused_before_anything_is_read(run, here, frac):
    with pytest.raises(UsageError, match="--frac"):
        run("missing.fits", "--frac", frac)


@pytest.mark.parametrize("prior", [0, 1])
def test_certain_priors_are_refused_before_anything_is_read(here, prior):
    with pytest.raises(UsageError, match="between 0 and 1"):
        call("missing.fits", "--prior", prior)


def test_prior_is_the_expected_share(model, here):
    fits.writeto(here / "a.fits", stars(1))
    call("a.fits", "--model", model, "--prior", 0.5)
    call("a.fits", "--model", model)
    even, rare = (float(line.split()[1]) for line in lines(here / "maxitrack.out"))
    assert rare == pytest.approx(even / (even + 19 * (1 - even)), abs=1e-3)


def test_one_bad_file_stops_no_other(run, here, caplog):
    fits.writeto(here / "good.fits", stars(1))
    (here / "broken.fits").write_bytes((here / "good.fits").read_bytes()[:5000])
    fits.writeto(here / "flat.fits", np.full((50, 50), 3.0))
    with caplog.at_level(logging.ERROR, TALK), pytest.raises(PartialFailureError, match="2 of 3"):
        run("broken.fits", "flat.fits", "good.fits")
    assert lines(here / "maxitrack.out")[0].startswith("good.fits ")
    assert len(lines(here / "maxitrack.out")) == 1
    assert "broken.fits" in caplog.text
    assert "flat.fits: every pixel is 3" in caplog.text
    with pytest.raises(InputError, match="none of 1"):
        run("flat.fits")


def test_a_bad_hdu_is_left_out_and_named(run, here, caplog):
    hdus(stars(1), np.zeros((40, 40), np.float32)).writeto(here / "mef.fits")
    fits.writeto(here / "one.fits", stars(1))
    with caplog.at_level(logging.WARNING, TALK):
        run("mef.fits", "one.fits")
    mef, one = (line.split()[1] for line in lines(here / "maxitrack.out"))
    assert mef == one
    assert "mef.fits[2]" in caplog.text
    assert "left out" in caplog.text


def test_frames_without_stars_are_nan_and_no_failure(run, here, caplog):
    fits.writeto(here / "dark.fits", stars(1, n_stars=0))
    with caplog.at_level(logging.WARNING, TALK):
        assert run("dark.fits").exit_code == 0
    assert lines(here / "maxitrack.out") == ["dark.fits nan"]
    assert "no tile has enough stars" in caplog.text


def test_table_of_tiles(run, here):
    hdus(stars(1, (600, 700), 80), stars(2)).writeto(here / "mef.fits")
    run("mef.fits", "--tiles", "tiles.ecsv")
    table = Table.read("tiles.ecsv")
    assert table["image"].tolist() == ["mef.fits[1]"] * 4 + ["mef.fits[2]"]
    assert table["x"].tolist() == [0, 348, 0, 348, 0]
    assert table["n_x"].tolist() == [352] * 4 + [112]
    judged = table[table["n_stars"] >= 3]
    np.testing.assert_allclose(judged["network_trail_length_pix"], 5, rtol=1e-5)
    np.testing.assert_allclose(
        judged["network_trail_angle_deg"], math.degrees(math.atan2(4, 3)) / 2, rtol=1e-5
    )
    assert (judged["trail_length_pix"] < 2).all()
    assert str(table["trail_length_pix"].unit) == "pix"
    assert table.meta["model"]
    with pytest.raises(UsageError, match="suffix"):
        run("missing.fits", "--tiles", "tiles.what")


def test_standard_output_has_the_lines_alone(run, here):
    fits.writeto(here / "a.fits", stars(1))
    assert run("a.fits", "-o", "-").stdout.startswith("a.fits 0.")
    assert not (here / "maxitrack.out").exists()


def test_jobs_give_the_same_lines_in_the_same_order(run, here):
    names = [f"{number}.fits" for number in range(5)]
    for number, name in enumerate(names):
        fits.writeto(here / name, stars(number))
    run(*names, "-o", "one.out")
    run(*names, "-o", "two.out", "--jobs", 2)
    assert lines(here / "one.out") == lines(here / "two.out")
    assert len(lines(here / "one.out")) == 5


def write_many(path, word):
    for number in range(200):
        append_lines(path, f"{word * 50} {number:04d}\n")


def test_lines_of_several_processes_do_not_mix(tmp_path):
    path = tmp_path / "new" / "all.out"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(path, word)) for word in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found = lines(path)
    assert len(found) == 600
    assert {(line[0] * 50, len(line)) for line in found} == {(line[:50], 55) for line in found}
    for word in "abc":
        assert [line[-4:] for line in found if line[0] == word] == [f"{n:04d}" for n in range(200)]


def test_a_line_without_an_end_is_ended_first(tmp_path):
    path = tmp_path / "maxitrack.out"
    path.write_text("half 0.1")
    append_lines(path, "whole 0.2000\n")
    assert lines(path) == ["half 0.1", "whole 0.2000"]
    with pytest.raises(InputError, match="cannot be written"):
        append_lines(tmp_path, "x\n")


def test_help_imports_nothing_heavy():
    code = "import sys, tapetum.cli.images_tracking; print({'numpy', 'astropy', 'onnxruntime'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
