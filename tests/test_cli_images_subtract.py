"""`tapetum images subtract` as a user calls it, and how `detect --difference` goes on from what it wrote."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import typer
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from typer.testing import CliRunner

from tapetum.cli.images_detect import detect
from tapetum.cli.images_subtract import subtract
from tapetum.core.errors import FormatError, InputError, PartialFailureError, UsageError
from tapetum.core.log import TALK
from tapetum.images.fits import expand_sources, list_images, read_frame
from tapetum.images.frame import Bad
from tapetum.images.psf import PsfModel
from tapetum.images.psf_plane import psf_plane, read_psf

SHAPE = (300, 320)
NOISE = 5.0
NEW = (160.3, 140.6, 6000.0)  # x, y, flux of what only the science images have
GONE = (70.0, 220.0, 6000.0)  # of what only the reference has

app = typer.Typer()
for verb in (subtract, detect):
    app.command()(verb)


def call(*words):
    """Run a verb; what went wrong is raised."""
    result = CliRunner().invoke(app, list(map(str, words)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def placed(crpix_x):
    """A header with coordinates and what images must say of themselves."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.0, 20.0], [crpix_x, 150]
    wcs.wcs.cdelt = [-2.8e-4, 2.8e-4]
    header = wcs.to_header()
    header.update({"GAIN": 4.0, "MAGZP": 26.0, "SATURATE": 60000.0, "EXPTIME": 30.0})
    return header


def image(psf, stars, rng, shift=0.0):
    """Sky, noise, and stars [x, y, flux] moved by a shift along x."""
    data = rng.normal(200.0, NOISE, SHAPE).astype(np.float32)
    half = psf.half
    for x, y, flux in stars:
        x += shift
        column, row = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        if half < column < SHAPE[1] - half - 1 and half < row < SHAPE[0] - half - 1:
            window = np.s_[row - half : row + half + 1, column - half : column + half + 1]
            light = flux * psf.stamp(x, y)
            data[window] += rng.poisson(np.maximum(light, 0) * 4.0) / 4.0
    return data


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Two science images, a sharper reference three pixels aside, one of another field, one that is no image."""
    rng = np.random.default_rng(11)
    folder = tmp_path_factory.mktemp("night")
    (folder / "ref").mkdir()
    sharp, blurred = (PsfModel.moffat(fwhm, 3.5, SHAPE) for fwhm in (2.6, 3.2))
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(25, 300, 25.0), np.arange(25, 280, 25.0)))
    x, y = x + rng.uniform(-4, 4, x.size), y + rng.uniform(-4, 4, x.size)
    stars = np.stack([x, y, 10 ** rng.uniform(3.5, 5, x.size)], axis=1)
    other = np.stack([rng.permutation(x), rng.permutation(y), stars[:, 2]], axis=1)
    fits.writeto(folder / "ref" / "ref.fits", image(sharp, [*stars, GONE], rng, 3.0), placed(163))
    for name in ("a", "b"):
        fits.writeto(folder / f"{name}.fits", image(blurred, [*stars, NEW], rng), placed(160))
    bad = np.zeros(SHAPE, np.uint8)
    bad[100:103, 200:240] = 1
    fits.writeto(folder / "a_mask.fits", bad)
    fits.writeto(folder / "elsewhere.fits", image(blurred, other, rng), placed(160))
    (folder / "broken.fits").write_bytes(b"SIMPLE = nothing of the kind")
    return folder


@pytest.fixture(scope="module")
def differences(night, tmp_path_factory):
    """Both differences, by two workers."""
    out = tmp_path_factory.mktemp("out") / "differences"
    call("subtract", night / "a.fits", night / "b.fits", "--reference", night / "ref", "-o", out, "--jobs", 2)
    return out


def test_stars_go_and_what_is_new_stays(differences, night):
    path = differences / "a.difference.fits.fz"
    with fits.open(path) as parts:
        assert [part.name for part in parts[1:]] == ["SCI", "NOISE", "MASK", "PSF"]
        header = parts["SCI"].header.copy()
        assert parts["PSF"].data.shape[0] == 9
    assert (header["SUBMETH"], header["SUBCONV"], header["TAPPROD"]) == ("kernel", "reference", "difference")
    assert header["SUBSCALE"] == pytest.approx(1, rel=0.02)
    assert header["SUBNSTAR"] > 20
    assert header["SUBCORE"] < 0.05
    assert header["SUBNOISE"] == pytest.approx(1, rel=0.1)
    history = "".join(header["HISTORY"])
    assert str(night / "ref" / "ref.fits") in history
    assert str(night / "a.fits") in history
    assert header["MAGZP"] == 26.0
    frame, science = read_frame(path), read_frame(night / "a.fits")
    assert list_images(path) == [str(path)]
    np.testing.assert_allclose(
        frame.wcs.all_pix2world(9, 9, 0), science.wcs.all_pix2world(9, 9, 0), atol=1e-9
    )
    assert (frame.mask[100:103, 200:240] & Bad.DEFECT).all()
    used = frame.mask == 0
    assert used.mean() > 0.9
    spread = np.std((frame.data / np.sqrt(frame.variance))[used & (np.hypot(*_away(NEW)) > 10)])
    assert spread == pytest.approx(1, abs=0.2)
    x, y, flux = NEW
    psf = read_psf(path, frame.shape)
    stamp, half = psf.stamp(x, y), psf.half
    row, column = round(y), round(x)
    box = frame.data[row - half : row + half + 1, column - half : column + half + 1]
    assert (box * stamp).sum() / (stamp**2).sum() == pytest.approx(flux, rel=0.05)


def _away(place):
    rows, columns = np.indices(SHAPE)
    return rows - place[1], columns - place[0]


def test_detect_goes_on_with_the_noise_mask_and_psf_of_the_file(differences, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger=TALK):
        call("detect", differences / "b.difference.fits.fz", "--difference", "-o", tmp_path / "found.ecsv")
    assert "Moffat" not in caplog.text
    found = Table.read(tmp_path / "found.ecsv")
    found = found[found["snr"] > 10]
    for (x, y, flux), sign in ((NEW, 1), (GONE, -1)):
        near = np.hypot(found["x"] - x, found["y"] - y) < 1
        assert near.sum() == 1
        assert found["sign"][near] == sign
        assert abs(found["flux"][near][0]) == pytest.approx(flux, rel=0.06)
    assert len(found) <= 4


def test_detect_takes_the_differences_of_a_folder(differences, tmp_path):
    call("detect", differences, "--difference", "-o", tmp_path / "found")
    names = sorted(path.name for path in (tmp_path / "found").glob("*.ecsv"))
    made = sorted(path.name for path in differences.glob("*.fits.fz"))
    assert names == [name.replace(".fits.fz", ".sources.ecsv") for name in made]
    with pytest.raises(InputError):
        call("detect", differences, "-o", tmp_path / "other")


def test_workers_change_nothing_and_finished_ones_are_skipped(differences, night, tmp_path, caplog):
    words = ("subtract", night / "a.fits", "--reference", night / "ref")
    call(*words, "-o", tmp_path / "one.fits.fz")
    made = differences / "a.difference.fits.fz"
    pair = [read_frame(path) for path in (made, tmp_path / "one.fits.fz")]
    # steps of stored values are noise / 16; here, unlike in the command, numpy may use several threads
    np.testing.assert_allclose(pair[0].data, pair[1].data, atol=NOISE / 7)
    np.testing.assert_array_equal(pair[0].mask, pair[1].mask)
    before = made.stat().st_mtime_ns
    with caplog.at_level(logging.INFO, logger=TALK):
        call(*words, "-o", differences)
    assert "finished already" in caplog.text
    assert made.stat().st_mtime_ns == before
    mask = fits.getdata(night / "a_mask.fits")
    try:  # another mask, another difference
        fits.writeto(night / "a_mask.fits", np.zeros_like(mask), overwrite=True)
        call(*words, "-o", differences)
    finally:
        fits.writeto(night / "a_mask.fits", mask, overwrite=True)
    assert made.stat().st_mtime_ns > before
    assert not (read_frame(made).mask[100:103, 200:240] & Bad.DEFECT).any()


def test_what_is_refused_says_why_and_leaves_nothing(night, tmp_path, caplog):
    out = tmp_path / "out"
    options = ("--reference", night / "ref" / "ref.fits", "-o", out)
    with pytest.raises(PartialFailureError, match="2 of 3"):
        call("subtract", night / "elsewhere.fits", night / "broken.fits", night / "a.fits", *options)
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(told) == 2
    assert any("elsewhere.fits: convolving the reference" in text for text in told)
    assert any("broken.fits" in text for text in told)
    assert {path.name.split(".")[0] for path in out.iterdir()} == {"a"}
    with pytest.raises(InputError, match="no such reference"):
        call("subtract", night / "a.fits", "--reference", tmp_path / "none.fits", "-o", out)
    with pytest.raises(InputError, match="none of 1 images could be subtracted"):
        call("subtract", out, *options)  # a folder of differences is no input
    assert "only taken when named" in caplog.text


def test_no_input_is_overwritten(night, tmp_path):
    reference = night / "ref" / "ref.fits"
    before = reference.read_bytes()
    for target in (reference, night / "a.fits"):
        with pytest.raises(UsageError, match="would be overwritten"):
            call("subtract", night / "a.fits", "--reference", reference, "-o", target, "--overwrite")
    assert reference.read_bytes() == before


def test_zogy_and_a_mask_by_name(night, tmp_path):
    target = tmp_path / "zogy.fits"
    words = (
        "--reference",
        night / "ref" / "ref.fits",
        "--subtraction",
        "zogy",
        "--mask",
        night / "a_mask.fits",
    )
    call("subtract", night / "b.fits", *words, "-o", target)
    frame = read_frame(target)
    assert frame.header["SUBMETH"] == "zogy"
    assert "SUBCHI2" not in frame.header  # there is no fit to judge
    assert (frame.mask[100:103, 200:240] & Bad.DEFECT).all()
    assert expand_sources([target]) == [str(target)]


@pytest.mark.parametrize("fwhm", [1.7, 4.0])
def test_a_psf_survives_its_file(fwhm, tmp_path):
    shape = (200, 300)
    narrow, wide = (PsfModel.moffat(width, 3.0, shape, half=12) for width in (fwhm, fwhm * 1.3))
    over = narrow.over
    x, y = (axis.ravel() for axis in np.meshgrid([0.0, 150.0, 299.0], [0.0, 100.0, 199.0]))
    stamps = [(narrow if i % 3 else wide).fine(x[i], y[i], over) for i in range(9)]
    psf = PsfModel.from_stamps(x, y, stamps, shape, over=over)
    cube, header = psf_plane(psf)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(cube, header, name="PSF")]).writeto(tmp_path / "x.fits")
    again = read_psf(tmp_path / "x.fits", shape)
    for place in ((10.3, 20.6), (250.0, 150.5)):
        np.testing.assert_allclose(
            again.stamp(*place), psf.stamp(*place), atol=1e-5 * psf.stamp(*place).max()
        )
    del header["PSFX3"]
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(cube, header, name="PSF")]).writeto(tmp_path / "y.fits")
    with pytest.raises(FormatError, match=r"y\.fits: PSF: is damaged.*PSFX3"):
        read_psf(tmp_path / "y.fits", shape)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(cube, name="PSF")]).writeto(tmp_path / "z.fits")
    assert read_psf(tmp_path / "z.fits", shape) is None  # another program's
