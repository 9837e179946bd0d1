"""The verbs search, cutouts and completeness as a user calls them, from a simulated pair to the report."""

from __future__ import annotations

import numpy as np
import pytest
import typer
from astropy.table import Table
from typer.testing import CliRunner

from tapetum.cli.images_search import completeness, cutouts, search
from tapetum.core.errors import InputError, PartialFailureError, UsageError
from tapetum.images.fits import write_frame
from tapetum.simulate.scene import SceneSettings, simulate_scene
from tapetum.simulate.truth import TRUTH_NAME, name_file, write_truth

FOUND = 0.7  # of the injected sources brighter than the depth of the image, at least

app = typer.Typer()
for verb in (search, cutouts, completeness):
    app.command()(verb)


def call(*words):
    """Run a verb; what went wrong is raised."""
    result = CliRunner().invoke(app, list(map(str, words)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """One simulated pair with its truth beside the science image."""
    folder = tmp_path_factory.mktemp("night")
    settings = SceneSettings(shape=(320, 340), stars=(20000, 20000), counts={"transient": (14, 14)})
    pair = simulate_scene(settings, np.random.default_rng(3), "field")
    for frame, name in ((pair.science, "field_sci.fits"), (pair.reference, "ref/field_ref.fits")):
        write_frame(
            folder / name,
            frame.data,
            wcs=frame.wcs,
            header=frame.header,
            planes={"MASK": frame.mask},
            product="frame",
        )
    name_file(pair.truth, str(folder / "field_sci.fits"))
    write_truth(folder / TRUTH_NAME, pair.truth)
    return folder


@pytest.fixture(scope="module")
def searched(night, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "results"
    call("search", night / "field_sci.fits", "--reference", night / "ref", "-o", out)
    return out


def test_from_images_to_ranked_candidates(searched, night):
    table = Table.read(searched / "field_sci" / "candidates.ecsv")
    names = "x y ra dec band mag mag_err snr fwhm fwhm_psf score probability flags candidate_id sign length_pix match"
    assert set(names.split()) <= set(table.colnames)
    truth = Table.read(night / TRUTH_NAME, format="ascii.ecsv")
    bright = truth[(truth["kind"] == "transient") & (truth["snr"] > 15)]
    x, y = (np.asarray(table[name], float) for name in "xy")
    hit = [np.hypot(x - row["x"], y - row["y"]).min() < 2 for row in bright]
    assert len(bright) >= 5
    assert np.mean(hit) >= FOUND
    assert (searched / "report.html").is_file()


def test_a_second_call_skips_and_overwrite_does_not(searched, night):
    page = searched / "field_sci" / "report.html"
    before = page.stat().st_mtime_ns
    call("search", night / "field_sci.fits", "--reference", night / "ref", "-o", searched)
    assert page.stat().st_mtime_ns == before
    call("search", night / "field_sci.fits", "--reference", night / "ref", "-o", searched, "--overwrite")
    assert page.stat().st_mtime_ns > before


def test_the_whole_training_road(searched):
    call("cutouts", searched, "--training", "--false", "--size", 32)
    true = list((searched / "candidates_training" / "true").glob("*.fits"))
    false = list((searched / "candidates_training" / "false").glob("*.fits"))
    assert len(true) >= 5
    assert len(true) + len(false) == len(Table.read(searched / "field_sci" / "candidates.ecsv"))
    crossed = Table.read(searched / "crossmatch.dat", format="ascii.ecsv")
    assert (np.asarray(crossed["Nmatches"]) > 0).sum() >= 5
    call("cutouts", searched)
    assert (searched / "candidates" / "candidates_list.dat").is_file()
    call("completeness", searched)
    assert (searched / "completeness" / "report.html").is_file()
    injected = Table.read(searched / "completeness" / "injected.ecsv")
    bright = np.asarray(injected["snr"]) > 15
    assert np.asarray(injected["found"], bool)[bright].mean() >= FOUND


def test_a_bad_image_is_named_and_the_rest_is_done(night, tmp_path):
    bad = tmp_path / "empty.fits"
    bad.write_bytes(b"")
    images = (bad, night / "field_sci.fits")
    with pytest.raises(PartialFailureError, match="1 of 2"):
        call(
            "search",
            *images,
            "--reference",
            night / "ref",
            "-o",
            tmp_path / "out",
            "--cutouts",
            "none",
            "--keep",
            "none",
        )
    assert (tmp_path / "out" / "field_sci" / "candidates.ecsv").is_file()
    assert not (tmp_path / "out" / "field_sci" / "cutouts").exists()
    with pytest.raises(InputError, match="none of 1"):
        call("search", bad, "-o", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "problem", "text"),
    [
        (("search", "x.fits", "-o", "{}", "--fwhm-ratio", "5", "0.5"), UsageError, "fwhm-ratio"),
        (("search", "{}/none.list", "-o", "{}/out"), InputError, "none.list|none of 1"),
        (("search", "x.fits", "--reference", "{}/no.fits", "-o", "{}/out"), InputError, "no such reference"),
        (("search", "x.fits", "-o", "{}", "--refine-wcs"), UsageError, "--catalogue"),
        (("search", "x.fits", "-o", "{}", "--drop-known"), UsageError, "--known"),
        (
            ("search", "x.fits", "-o", "{}", "--model", "realbogus"),
            UsageError,
            "template, difference.*--reference",
        ),
        (("search", "x.fits", "y.fits", "-o", "{}/out", "--telescope", "nope"), InputError, "'nope'"),
        (("search", "x.fits", "-o", __file__), UsageError, f"-o {__file__}"),
        (("completeness", "{}", "-o", __file__), UsageError, f"-o {__file__}"),
        (("cutouts", "{}"), InputError, "images search"),
        (("cutouts", "{}", "--false"), UsageError, "--training"),
        (("completeness", "{}"), InputError, "images search"),
    ],
)
def test_what_cannot_be_says_why(tmp_path, words, problem, text):
    with pytest.raises(problem, match=text):
        call(*(word.format(tmp_path) for word in words))
