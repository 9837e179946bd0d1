"""`tapetum images mask`: every kind of file in, the same structure with masks out, and what failed by name."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from typer.testing import CliRunner

from tapetum import __version__
from tapetum.cli.app import app
from tapetum.core.errors import InputError, ModelError, PartialFailureError, UsageError
from tapetum.images.contaminants import NAMES
from tapetum.images.fits import expand_sources
from tapetum.images.mask_codes import masks_of, read_codes
from tapetum.images.mask_files import failed_cards, failed_planes, without_masks
from tapetum.models.registry import ONNX_NAME

CR, TRL, OV = 1, 64, 2048
# logit = weight * pixel [sigma] + bias: CR above 20 sigma, TRL above 60, OV below -20; BG always
LOGITS = {"CR": (5, -100), "TRL": (5, -300), "OV": (-5, -100), "BG": (0, 9)}
SHAPE = (70, 96)


@pytest.fixture(scope="module")
def model(tmp_path_factory, write_network):
    """Path of a network of one pixel, with maps of 14 classes."""
    weight, bias = np.array([LOGITS.get(name, (0, -30)) for name in NAMES], np.float32).T
    convolution = (weight.reshape(14, 1, 1, 1).copy(), bias.copy())
    folder = tmp_path_factory.mktemp("net")
    write_network(folder, "onepixel", version="1.2.3", convolution=convolution, prior=0.03, threshold=0.35)
    return str(folder)


def frame(rng, *places, shape=SHAPE):
    """Sky of 1000 +- 10 with particle hits (+300, 30 sigma) at some pixels."""
    image = rng.normal(1000, 10, shape)
    for y, x in places:
        image[..., y, x] = 1300
    return image


def wcs_header():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = (150.0, 2.2), (35, 48), (-2.8e-4, 2.8e-4)
    return wcs.to_header()


def run(*arguments):
    """What the verb says on stderr; raises what it ends with."""
    result = CliRunner().invoke(app, ["images", "mask", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def check(path):
    """The parts of a FITS file that is whole: checksums and standard."""
    with fits.open(path, checksum=True) as parts:
        parts.verify("exception")
        return [
            (part.name, part.header.copy(), None if part.data is None else np.array(part.data))
            for part in parts
        ]


def test_an_image_becomes_planes_beside_it(rng, tmp_path, model):
    header = wcs_header()
    header["EXPTIME"], header["SP"], header["BUNIT"], header["OBJECT"] = 30.0, "theirs", "adu", "M 51"
    image = frame(rng, (3, 4), (50, 90))
    image[3, 5] = 2000
    fits.writeto(tmp_path / "x.fits", image.astype(np.float32), header)
    run(tmp_path / "x.fits", "--model", model)
    [(_, header, masks)] = check(tmp_path / "x.masks.fits")
    assert masks.shape == (14, *SHAPE)
    assert masks.dtype == np.uint8
    found = {
        name: sorted(zip(*map(list, plane.nonzero()), strict=True))
        for name, plane in zip(NAMES, masks, strict=True)
    }
    assert found["CR"] == [(3, 4), (3, 5), (50, 90)]
    assert found["TRL"] == [(3, 5)]
    assert masks[-1].all()
    assert masks.sum() == 4 + masks[-1].size
    # who made it and how
    assert (header["CREATOR"], header["TAPPROD"]) == (f"tapetum {__version__}", "contaminants")
    assert header.comments["CREATOR"] == "what wrote it"  # not cut by a long version
    assert (header["MODEL"], header["MODELVER"]) == ("onepixel", "1.2.3")
    assert (
        header["MODELSHA"] == hashlib.sha256((tmp_path.parent / model / ONNX_NAME).read_bytes()).hexdigest()
    )
    assert (header["TILING"], header["NORMALIS"], header["RUNTIME"]) == (
        "overlapping",
        "tapetum",
        "onnxruntime",
    )
    assert (header["PRIORS"], header["THRESH"], header["SMASK"]) == ("Yes", "Yes", "No")
    assert (header["CR"], header["CR_DIM"]) == ("CR: Cosmic rays", "0")
    assert (header["BG_DIM"], header["BG_PR"], header["BG_TH"]) == ("13", 0.03, 0.35)
    assert (header["CR_N"], header["TRL_N"], header["NMISSING"]) == (3, 1, 0)
    assert header["SP"] == "SP: Diffraction spikes"
    # where it is
    assert WCS(header, naxis=2).wcs.crval.tolist() == [150, 2.2]
    assert (header["EXPTIME"], header["OBJECT"]) == (30.0, "M 51")
    assert "BUNIT" not in header


def test_the_single_mask_adds_codes(rng, tmp_path, model):
    image = frame(rng, (3, 4))
    image[3, 5], image[9, 9], image[60, 7] = 2000, 0, np.nan
    fits.writeto(tmp_path / "x.fits", image)
    said = run(tmp_path / "x.fits", "--model", model, "--single-mask").stderr
    assert "1 pixels have no value" in said
    assert "CR 2, TRL 1, OV 1" in said
    [(_, header, codes)] = check(tmp_path / "x.masks.fits")
    assert codes.shape == SHAPE
    assert header["BITPIX"] == 16
    assert {(y, x): int(codes[y, x]) for y, x in zip(*codes.nonzero(), strict=True)} == {
        (3, 4): CR, (3, 5): CR + TRL, (9, 9): OV
    }  # fmt: skip
    assert (header["SMASK"], header["TRL_SM"], header["BG_SM"], header["NMISSING"]) == ("Yes", 64, 0, 1)
    assert "CR_DIM" not in header


def test_probabilities_with_and_without_priors(rng, tmp_path, model):
    fits.writeto(tmp_path / "x.fits", frame(rng, (3, 4)))
    arguments = [tmp_path / "x.fits", "--model", model, "--no-proba-thresh", "--classes", "bg,CR"]
    run(*arguments, "-o", tmp_path / "a")
    run(*arguments, "-o", tmp_path / "b", "--no-prior-modif")
    [(_, header, asked)] = check(tmp_path / "a/x.masks.fits")
    [(_, plain, raw)] = check(tmp_path / "b/x.masks.fits")
    assert asked.dtype == np.dtype(">f4")
    assert asked.shape == raw.shape == (2, *SHAPE)
    score = 1 / (1 + np.exp(-9))
    odds = 0.1 / 0.9 * 0.97 / 0.03
    np.testing.assert_allclose(raw[1], score, rtol=1e-6)
    np.testing.assert_allclose(asked[1], score / (score + odds * (1 - score)), rtol=1e-6)
    assert raw[0, 3, 4] > 0.99 > 0.01 > raw[0, 30, 30]
    assert (header["PRIORS"], header["THRESH"], header["CR_PR"]) == ("Yes", "No", 0.03)
    assert plain["PRIORS"] == "No"
    assert not {"CR_TH", "CR_N"} & set(header)
    assert "CR_PR" not in plain


@pytest.fixture
def mosaic(rng, tmp_path):
    """A file of many parts: two images, a table, a mask that belongs to an image, a cube."""
    parts = fits.HDUList([fits.PrimaryHDU()])
    parts[0].header["TELESCOP"], parts[0].header["EXPTIME"] = "Nowhere", 60.0
    parts.append(fits.ImageHDU(frame(rng, (1, 2)).astype(np.int16), wcs_header(), name="Amp1"))
    columns = [fits.Column("flux", "E", array=np.arange(5.0)), fits.Column("name", "3A", array=["a"] * 5)]
    parts.append(fits.BinTableHDU.from_columns(columns, name="CAT"))
    parts.append(fits.ImageHDU(frame(rng, (5, 6), (7, 8)).astype(np.float32), name="AMP2"))
    parts.append(fits.ImageHDU(np.ones(SHAPE, np.uint8), name="MASK", ver=7))
    parts.append(fits.ImageHDU(frame(rng, (9, 10), shape=(3, 40, 50)), name="CUBE"))
    parts[1].header["CCDNUM"] = 11
    parts.writeto(tmp_path / "m.fits", checksum=True)
    return tmp_path / "m.fits"


def test_all_parts_of_a_file_keep_their_places(mosaic, model):
    run(mosaic, "--model", model, "--single-mask")
    found = check(mosaic.with_name("m.masks.fits"))
    assert [name for name, _, _ in found] == ["PRIMARY", "AMP1", "CAT", "AMP2", "MASK", "CUBE"]
    with fits.open(mosaic) as parts:
        before, table = parts[1].header["EXTNAME"], parts["CAT"].data.copy()
        raw = mosaic.read_bytes()[parts[2].fileinfo()["hdrLoc"] : parts[2].fileinfo()["datLoc"]]
    first, amp1, cat, amp2, mask, cube = found
    assert first[2] is None
    assert (first[1]["TELESCOP"], first[1]["TAPPROD"], first[1]["MODEL"]) == (
        "Nowhere",
        "contaminants",
        "onepixel",
    )
    assert amp1[1]["EXTNAME"] == before
    assert amp1[1]["CCDNUM"] == 11
    assert "TELESCOP" not in amp1[1]  # the primary header says it
    assert WCS(amp1[1]).has_celestial
    assert [tuple(map(int, place)) for place in np.argwhere(amp1[2])] == [(1, 2)]
    assert (cat[2] == table).all()
    assert raw in mosaic.with_name("m.masks.fits").read_bytes()
    assert amp2[2].sum() == 2
    assert (mask[2] == 1).all()  # copied
    assert cube[2].shape == (3, 40, 50)
    assert np.argwhere(cube[2]).tolist() == [[plane, 9, 10] for plane in range(3)]
    assert (cube[1]["CR_N"], cube[1]["NFAILED"]) == (3, 0)


def test_planes_of_a_cube_have_classes_before_rows(mosaic, model):
    run(f"{mosaic}[CUBE]", "--model", model, "--classes", "CR,TRL")
    [(_, _, masks)] = check(mosaic.with_name("m.masks5.fits"))
    assert masks.shape == (3, 2, 40, 50)
    assert np.argwhere(masks).tolist() == [[plane, 0, 9, 10] for plane in range(3)]


@pytest.mark.parametrize(
    ("place", "name", "n"),
    [("[1]", "m.masks1.fits", 1), ("[AMP2]", "m.masks3.fits", 2), ("[5][2]", "m.masks5_2.fits", 1)],
)
def test_one_image_becomes_the_primary_one(mosaic, model, place, name, n):
    run(f"{mosaic}{place}", "--model", model, "--single-mask")
    [(_, header, codes)] = check(mosaic.with_name(name))
    assert codes.sum() == n
    assert codes.ndim == 2
    assert header["TELESCOP"] == "Nowhere"
    assert header["EXTNAME"].upper() in ("AMP1", "AMP2", "CUBE")


@pytest.mark.parametrize(
    ("kind", "zero"),
    [
        ("u1", 0),
        ("i2", 0),
        ("u2", 0),
        ("i4", 0),
        ("u4", 0),
        ("i8", 0),
        ("u8", 0),
        ("f4", 0),
        ("f8", 0),
        ("i2", -900),
    ],
)
def test_any_type_of_number(rng, tmp_path, model, kind, zero):
    image = frame(rng, (3, 4)) / (10 if kind == "u1" else 1) + zero
    fits.writeto(tmp_path / "x.fits", image.astype(kind))
    run(tmp_path / "x.fits", "--model", model, "--single-mask")
    [(_, _, codes)] = check(tmp_path / "x.masks.fits")
    assert np.argwhere(codes).tolist() == [[3, 4]]


def test_scaled_and_blank_pixels(rng, tmp_path, model):
    part = fits.PrimaryHDU(frame(rng, (3, 4)).astype(np.int16))
    part.data[8, 9] = -1
    part.header["BLANK"] = -1
    part.writeto(tmp_path / "x.fits")
    with fits.open(tmp_path / "x.fits", mode="update", do_not_scale_image_data=True) as parts:
        parts[0].header["BSCALE"], parts[0].header["BZERO"] = 0.5, 12.0
    run(tmp_path / "x.fits", "--model", model, "--single-mask")
    [(_, header, codes)] = check(tmp_path / "x.masks.fits")
    assert np.argwhere(codes).tolist() == [[3, 4]]
    assert header["NMISSING"] == 1


def test_compressed_files_in_and_out(rng, tmp_path, model):
    image = frame(rng, (3, 4)).astype(np.int16)
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(image, wcs_header(), name="SCI")]).writeto(
        tmp_path / "a.fits.fz"
    )
    plain = fits.PrimaryHDU(image, wcs_header())
    plain.writeto(tmp_path / "plain.fits")
    (tmp_path / "b.fits.gz").write_bytes(gzip.compress((tmp_path / "plain.fits").read_bytes()))
    run(tmp_path, "--model", model, "--single-mask")
    for name, number in (("a", 1), ("b", 0), ("plain", 0)):
        found = check(tmp_path / f"{name}.masks.fits")
        assert len(found) == number + 1
        assert np.argwhere(found[number][2]).tolist() == [[3, 4]]
        assert WCS(found[number][1]).has_celestial
    run(tmp_path / "plain.fits", "--model", model, "--compress", "fz", "-o", tmp_path / "out")
    run(
        tmp_path / "plain.fits",
        "--model",
        model,
        "--compress",
        "fz",
        "--no-proba-thresh",
        "-o",
        tmp_path / "p",
    )
    run(tmp_path / "plain.fits", "--model", model, "--compress", "gz", "-o", tmp_path / "out")
    run(tmp_path / "plain.fits", "--model", model, "--no-proba-thresh", "-o", tmp_path / "out")
    [(_, _, zipped)] = check(tmp_path / "out/plain.masks.fits.gz")
    _, (_, header, squeezed) = check(tmp_path / "out/plain.masks.fits.fz")
    assert (zipped == squeezed).all()
    assert squeezed.dtype == np.uint8
    assert header["CR_N"] == 1
    _, (_, _, probabilities) = check(tmp_path / "p/plain.masks.fits.fz")
    np.testing.assert_array_equal(
        probabilities, check(tmp_path / "out/plain.masks.fits")[0][2]
    )  # without loss
    assert (tmp_path / "out/plain.masks.fits.fz").stat().st_size < squeezed.nbytes / 2


def test_the_same_input_gives_the_same_bytes(mosaic, model, tmp_path):
    for compress in ("none", "fz", "gz"):
        for place in "ab":
            run(mosaic, "--model", model, "--compress", compress, "-o", tmp_path / place)
    names = {path.name for path in (tmp_path / "a").glob("*.fits*") if path.suffix != ".toml"}
    assert names == {"m.masks.fits", "m.masks.fits.fz", "m.masks.fits.gz"}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_folders_and_lists_leave_masks_out(rng, tmp_path, model):
    night = tmp_path / "night"
    night.mkdir()
    for name in "ab":
        fits.writeto(night / f"{name}.fits", frame(rng, (3, 4)))
    fits.writeto(night / "a.mask.fits", frame(rng))  # as MaxiMask calls it
    (tmp_path / "some.list").write_text(f"# two\nnight/b.fits\n{night / 'a.fits'}\n")
    run(night, "--model", model)
    masks = sorted(path.name for path in night.glob("*.fits"))
    assert masks == ["a.fits", "a.mask.fits", "a.masks.fits", "b.fits", "b.masks.fits"]
    again = run(*sorted(night.glob("*.fits")), "--model", model)  # as a shell writes it
    assert again.stderr.count("is a mask already") == 2
    assert again.stderr.count("a.mask.fits: is called a mask of the image beside it, and left out") == 1
    assert again.stderr.count("finished already") == 2
    assert sorted(path.name for path in night.glob("*.fits")) == masks
    listed = run(tmp_path / "some.list", "--model", model, "-o", tmp_path / "out")
    assert listed.stderr.index("b.fits") < listed.stderr.index("a.fits")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.fits")) == ["a.masks.fits", "b.masks.fits"]
    shutil.move(night / "a.masks.fits", night / "renamed.fits")
    named = [str(night / name) for name in ("renamed.fits", "a.fits[0]", "a.mask.fits", "nowhere.fits")]
    said = []
    assert without_masks(named, said.append) == [named[1], named[3]]
    assert said == [
        f"{named[0]}: is a mask already, and left out",
        f"{named[2]}: is called a mask of the image beside it, and left out",
    ]
    assert str(night / "renamed.fits") not in expand_sources([night])


def test_finished_work_is_not_repeated(rng, tmp_path, model):
    fits.writeto(tmp_path / "x.fits", frame(rng, (3, 4)))
    arguments = (tmp_path / "x.fits", "--model", model)
    run(*arguments)
    out = tmp_path / "x.masks.fits"
    before = out.stat().st_mtime_ns
    assert "finished already" in run(*arguments).stderr
    assert out.stat().st_mtime_ns == before
    assert "finished already" not in run(*arguments, "--thresholds", "CR=0.9").stderr  # other masks
    assert check(out)[0][1]["CR_TH"] == 0.9
    assert "finished already" not in run(*arguments, "--overwrite").stderr


def test_a_damaged_output_is_not_finished(rng, tmp_path, model):
    fits.writeto(tmp_path / "x.fits", frame(rng, (3, 4)))
    arguments = (tmp_path / "x.fits", "--model", model, "--preview")
    run(*arguments)
    out, picture = tmp_path / "x.masks.fits", tmp_path / "x.masks.png"
    whole, seen = out.read_bytes(), picture.read_bytes()
    for broken in (whole[:3000], b"", whole):  # the last has another time
        out.write_bytes(broken)
        assert "finished already" not in run(*arguments).stderr
        assert out.read_bytes() == whole
        assert "finished already" in run(*arguments).stderr
    before = out.stat().st_mtime_ns
    for spoil in (picture.unlink, lambda: picture.write_bytes(b"spoilt")):
        spoil()
        said = run(*arguments).stderr
        assert "masks as they were, pictures made: 1" in said
        assert out.stat().st_mtime_ns == before  # made from the masks
        assert picture.read_bytes() == seen
        assert "finished already" in run(*arguments).stderr
    picture.unlink()
    assert "finished already" in run(*arguments[:-1]).stderr  # it was not asked for
    assert not picture.exists()


@pytest.mark.parametrize("output", ["--single-mask", "--no-proba-thresh"])
def test_pictures_do_not_decide_what_the_masks_are(mosaic, model, output):
    arguments = (mosaic, "--model", model, output)
    run(*arguments)
    out = mosaic.with_name("m.masks.fits")
    before = out.stat().st_mtime_ns
    run(*arguments, "--preview")
    assert (out.stat().st_mtime_ns == before) is (output == "--single-mask")
    pictures = {path.name: path.read_bytes() for path in mosaic.parent.glob("*.png")}
    assert sorted(pictures) == [f"m.masks_{place}.png" for place in ("1", "3", "5_0", "5_1", "5_2")]
    assert "finished already" in run(*arguments).stderr
    run(*arguments, "--preview", "--overwrite")  # with the masks, not from them
    assert pictures == {path.name: path.read_bytes() for path in mosaic.parent.glob("*.png")}


def test_files_of_other_programs_are_not_replaced(rng, tmp_path, model):
    for name in "ab":
        fits.writeto(tmp_path / f"{name}.fits", frame(rng, (3, 4)))
    fits.writeto(tmp_path / "a.masks.fits", np.ones(SHAPE, np.uint8))
    theirs = (tmp_path / "a.masks.fits").read_bytes()
    arguments = ["images", "mask", str(tmp_path), "--model", model]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, PartialFailureError)
    told = (
        f"a.fits: {tmp_path / 'a.masks.fits'} is there, and not written by tapetum; --overwrite replaces it"
    )
    assert told in result.stderr
    assert (tmp_path / "a.masks.fits").read_bytes() == theirs
    assert check(tmp_path / "b.masks.fits")[0][2][0].sum() == 1
    run(tmp_path, "--model", model, "--single-mask", "-o", tmp_path / "out")
    run(tmp_path, "--model", model, "--overwrite")
    assert check(tmp_path / "a.masks.fits")[0][1]["TAPPROD"] == "contaminants"
    for compress in ("gz", "fz"):
        for more in ((), ("--single-mask",)):  # our own may be replaced
            run(tmp_path / "a.fits", "--model", model, "--compress", compress, *more)


def test_images_of_one_name_stop_no_others(rng, tmp_path, model):
    for folder in ("n1", "n2"):
        (tmp_path / folder).mkdir()
        fits.writeto(tmp_path / folder / "x.fits", frame(rng, (3, 4)))
    fits.writeto(tmp_path / "n2/y.fits", frame(rng, (3, 4)))
    (tmp_path / "n2/y.fits.gz").write_bytes(gzip.compress((tmp_path / "n2/y.fits").read_bytes()))
    again = f"{tmp_path}/n2/../n1/x.fits"  # the same file is no other
    arguments = ["images", "mask", *(str(tmp_path / name) for name in ("n1", "n2")), again, "--model", model]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "out")])
    assert isinstance(result.exception, PartialFailureError)
    assert "2 of 4" in str(result.exception)
    assert "n2/x.fits: its masks would be" in result.stderr
    assert "n1/x.fits; mask each folder on its own, with another -o" in result.stderr
    assert "n2/y.fits; mask it on its own, with another -o" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.fits")) == ["x.masks.fits", "y.masks.fits"]


def test_masks_of_a_survey_and_settings_are_no_images(rng, tmp_path, model):
    fits.writeto(tmp_path / "ztf_q3_sciimg.fits", frame(rng, (3, 4)))
    fits.writeto(tmp_path / "ztf_q3_mskimg.fits", np.zeros(SHAPE, np.int16))
    run(tmp_path, "--model", model)
    (tmp_path / "ztf_q3_sciimg.masks.fits.0123abcd.part").write_bytes(b"SIMPLE")  # of a run that was killed
    said = run(*sorted(tmp_path.glob("*.fits*")), "--model", model).stderr
    assert "ztf_q3_mskimg.fits: is called a mask of the image beside it, and left out" in said
    assert not [word for word in ("settings.toml", ".part") if word in said]
    assert len(list(tmp_path.glob("*.masks.fits"))) == 1


def test_a_folder_that_cannot_be_written_is_named(rng, tmp_path, model):
    fits.writeto(tmp_path / "x.fits", frame(rng, (3, 4)))
    (tmp_path / "x.masks.fits").mkdir()
    with pytest.raises(InputError):
        run(tmp_path / "x.fits", "--model", model)
    result = CliRunner().invoke(app, ["images", "mask", str(tmp_path / "x.fits"), "--model", model])
    assert f"{tmp_path / 'x.masks.fits'}: cannot be written: Is a directory" in result.stderr
    assert "cannot be read" not in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(rng, tmp_path, model):
    fits.writeto(tmp_path / "x.fits", frame(rng, (3, 4)))
    (tmp_path / "out").mkdir(mode=0o500)
    arguments = ["images", "mask", str(tmp_path / "x.fits"), "--model", model, "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert "out/x.masks.fits: cannot be written: Permission denied" in result.stderr


def test_what_cannot_be_judged_stops_nothing_else(rng, tmp_path, model):
    fits.writeto(tmp_path / "good.fits", frame(rng, (3, 4)))
    fits.writeto(tmp_path / "flat.fits", np.full(SHAPE, 7.0))
    fits.writeto(tmp_path / "nan.fits", np.full(SHAPE, np.nan))
    full = np.full(SHAPE, 65535, np.uint16)
    full[0] = 1000
    fits.writeto(tmp_path / "full.fits", full)
    fits.BinTableHDU.from_columns([fits.Column("a", "E", array=[1.0])]).writeto(tmp_path / "table.fits")
    (tmp_path / "broken.fits").write_bytes((tmp_path / "good.fits").read_bytes()[:3000])
    names = ["flat", "nan", "full", "table", "broken", "missing"]
    result = CliRunner().invoke(
        app,
        [
            "images",
            "mask",
            "--model",
            model,
            "--jobs",
            "1",
            *(str(tmp_path / f"{n}.fits") for n in ("good", *names)),
        ],
    )
    assert isinstance(result.exception, PartialFailureError)
    assert "6 of 7" in str(result.exception)
    for name in names:
        assert f"{name}.fits" in result.stderr
        assert not (tmp_path / f"{name}.masks.fits").exists()
    for reason in ("every pixel is 7", "NaN", "saturated", "no image", "truncated", "no such file"):
        assert reason in result.stderr
    assert check(tmp_path / "good.masks.fits")[0][2][0].sum() == 1
    with pytest.raises(InputError, match="none of 1 images could be masked"):
        run(tmp_path / "flat.fits", "--model", model)


def test_an_image_of_a_file_that_cannot_be_judged_is_empty_and_told(rng, tmp_path, model):
    parts = fits.HDUList([fits.PrimaryHDU()])
    parts.append(fits.ImageHDU(np.full(SHAPE, 7.0), name="DEAD"))
    parts.append(fits.ImageHDU(frame(rng, (3, 4)), name="LIVE"))
    cube = frame(rng, (5, 6), shape=(2, 40, 50))
    cube[1] = 0
    parts.append(fits.ImageHDU(cube, name="CUBE"))
    parts.writeto(tmp_path / "x.fits")
    arguments = ["images", "mask", str(tmp_path / "x.fits"), "--model", model, "--single-mask"]
    for again in (False, True):
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, PartialFailureError)
        assert result.stderr.count("finished already") == again  # it would fail again, and is only told
        assert "x.fits[1]: every pixel is 7" in result.stderr
        assert "x.fits[3][1]: every pixel is 0" in result.stderr
    _, dead, live, cube = check(tmp_path / "x.masks.fits")
    assert (dead[0], dead[2], dead[1]["NFAILED"]) == ("DEAD", None, 1)
    assert live[2].sum() == 1
    assert (cube[1]["NFAILED"], cube[1]["FAILED1"]) == (1, "1")
    assert [plane.sum() for plane in cube[2]] == [1, 0]
    masks = tmp_path / "x.masks.fits"
    for place in ("[1]", "[DEAD]", "[3][1]"):
        with pytest.raises(InputError, match="could not be judged"):
            read_codes(masks, f"{tmp_path / 'x.fits'}{place}")
    for place in ("[2]", "[3][0]"):
        assert read_codes(masks, f"{tmp_path / 'x.fits'}{place}")[0].any()


@pytest.mark.parametrize("more", [(), ("--compress", "fz"), ("--single-mask",)])
def test_all_planes_that_cannot_be_judged_are_named(rng, tmp_path, model, more):
    cube = np.ones((25, 40, 50), np.float32)
    cube[[0, 17]] = frame(rng, (5, 6), shape=(2, 40, 50))
    fits.writeto(tmp_path / "x.fits", cube)
    arguments = ["images", "mask", str(tmp_path / "x.fits"), "--model", model, "--classes", "CR,OV", *more]
    assert isinstance(CliRunner().invoke(app, arguments).exception, PartialFailureError)
    masks = masks_of(tmp_path / "x.fits")
    header = check(masks)[-1][1]
    failed = [plane for plane in range(25) if plane not in (0, 17)]
    assert header["NFAILED"] == 23
    assert f"{header['FAILED1']} {header['FAILED2']}".split() == list(map(str, failed))
    assert failed_planes(header) == set(failed)
    for plane in range(25):
        source = f"{tmp_path / 'x.fits'}[0][{plane}]"
        if plane in failed:
            with pytest.raises(InputError, match=f"plane {plane} could not be judged"):
                read_codes(masks, source)
        else:
            assert np.argwhere(read_codes(masks, source)[0]).tolist() == [[5, 6]]


def test_cards_of_planes_are_as_many_before_the_work_as_after():
    for n in (2, 300, 3000):
        before, after = failed_cards([], n), failed_cards(range(n), n)
        assert [card[0] for card in before] == [card[0] for card in after]
        header = fits.Header(after)
        assert failed_planes(header) == set(range(n))
        assert len(header) == len(after) == len({card[0] for card in after})
    with pytest.raises(InputError, match="name no planes"):
        failed_planes(fits.Header({"FAILED1": "1 two"}))


@pytest.mark.parametrize("more", [(), ("--single-mask",)])
@pytest.mark.parametrize("compress", ["none", "fz"])
def test_the_part_of_an_image_that_failed_is_not_taken_from_another(rng, tmp_path, model, more, compress):
    good, other = frame(rng, (5, 6)).astype(np.float32), frame(rng, (7, 8)).astype(np.float32)
    parts = [fits.PrimaryHDU(good), fits.ImageHDU(np.ones(SHAPE, np.float32)), fits.ImageHDU(other)]
    fits.HDUList(parts).writeto(tmp_path / "x.fits")
    arguments = ["images", "mask", str(tmp_path / "x.fits"), "--model", model, "--classes", "CR,TRL", *more]
    arguments += ["--compress", compress] if compress != "none" else []
    assert isinstance(CliRunner().invoke(app, arguments).exception, PartialFailureError)
    masks = masks_of(tmp_path / "x.fits")
    for place, pixel in ((0, [5, 6]), (2, [7, 8])):
        assert np.argwhere(read_codes(masks, f"{tmp_path / 'x.fits'}[{place}]")[0]).tolist() == [pixel]
    with pytest.raises(InputError, match="could not be judged"):
        read_codes(masks, f"{tmp_path / 'x.fits'}[1]")


def cube_header(naxis):
    """Sky, and of three axes frequency, also under another name."""
    wcs = WCS(naxis=naxis)
    wcs.wcs.ctype = ("RA---TAN", "DEC--TAN", "FREQ")[:naxis]
    wcs.wcs.crval, wcs.wcs.crpix = (150.0, 2.2, 1.4e9)[:naxis], (25, 20, 1)[:naxis]
    wcs.wcs.cdelt = (-2.8e-4, 2.8e-4, 1e6)[:naxis]
    wcs.wcs.pc = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0.1], [0, 0, 1]])[:naxis, :naxis]
    header = wcs.to_header()
    header.update(wcs.to_header(key="A"))
    return header


def test_the_axis_of_classes_has_no_coordinates_of_another(rng, tmp_path, model):
    cube = frame(rng, shape=(2, 40, 50)).astype(np.float32)
    fits.writeto(tmp_path / "x.fits", cube, cube_header(3))
    run(tmp_path / "x.fits", "--model", model)
    [(_, header, masks)] = check(tmp_path / "x.masks.fits")
    assert masks.shape == (2, 14, 40, 50)
    for key in (" ", "A"):
        wcs = WCS(header, key=key)
        assert [name for name in wcs.wcs.ctype if name] == ["RA---TAN", "DEC--TAN"]
        plain = WCS(cube_header(2), key=key).pixel_to_world_values(12, 30)
        np.testing.assert_allclose(wcs.celestial.pixel_to_world_values(12, 30), plain)
    assert not [key for key in header if key.startswith(("CTYPE3", "CRVAL3", "CDELT3", "PC2_3", "PC3_3"))]
    run(tmp_path / "x.fits", "--model", model, "--single-mask", "--overwrite")
    [(_, header, masks)] = check(tmp_path / "x.masks.fits")
    assert masks.shape == (2, 40, 50)  # the axes of the image
    assert header["CTYPE3"] == "FREQ"
    run(f"{tmp_path / 'x.fits'}[0][1]", "--model", model, "--single-mask")
    assert WCS(check(tmp_path / "x.masks0_1.fits")[0][1]).naxis == 2


def write_folder(folder, **files):
    """A folder of class files; values by name, else 1 for flags, 0.5 for the rest."""
    folder.mkdir(exist_ok=True)
    for suffix, values in files.items():
        rows = [f"{name}  {values.get(name, 1 if suffix == 'flags' else 0.5)}" for name in NAMES]
        (folder / f"classes.{suffix}").write_text("\n".join(rows) + "\n")
    return folder


def test_files_of_classes_priors_and_thresholds(rng, tmp_path, model):
    fits.writeto(tmp_path / "x.fits", frame(rng, (3, 4)))
    folder = write_folder(
        tmp_path / "config",
        flags={"TRL": 0, "BG": 0},
        priors={"CR": 0.0005},
        thresh={"CR": 0.123456789012},
    )
    run(tmp_path / "x.fits", "--model", model, "--config-dir", folder)
    [(_, header, masks)] = check(tmp_path / "x.masks.fits")
    assert masks.shape[0] == 12
    assert "TRL_DIM" not in header
    assert (header["FR_DIM"], header["CR_PR"], header["CR_TH"]) == ("6", 0.0005, 0.123456789012)
    # what the command line says goes before; a missing file leaves the model's values
    (folder / "classes.priors").unlink()
    said = run(
        tmp_path / "x.fits", "--model", model, "--config-dir", folder, "--thresholds", f"{folder / 'classes.thresh'}",
        "--priors", "stl=0.25,CR=1e-7", "--classes", "CR,TRL",
    ).stderr  # fmt: skip
    assert "classes.priors: not there" in said
    [(_, header, masks)] = check(tmp_path / "x.masks.fits")
    assert (header["TRL_PR"], header["CR_PR"], header["TRL_TH"]) == (0.25, 1e-7, 0.5)


def test_names_in_the_files_are_only_for_people(rng, tmp_path, model):
    fits.writeto(tmp_path / "x.fits", frame(rng, (3, 4)))
    folder = write_folder(tmp_path / "config", flags=dict.fromkeys(NAMES, 0) | {"CR": 1})
    path = folder / "classes.flags"
    path.write_text(path.read_text().replace("CR", "TMP").replace("TRL", "STL") + "\n# made by hand\n\n")
    run(tmp_path / "x.fits", "--model", model, "--config-dir", folder)
    assert check(tmp_path / "x.masks.fits")[0][1]["CR_N"] == 1
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[1], rows[0], *rows[2:]]))  # HCL stands first
    said = run(tmp_path / "x.fits", "--model", model, "--config-dir", folder).stderr
    assert "HCL is taken for CR: the order decides" in said
    assert check(tmp_path / "x.masks.fits")[0][1]["HCL_N"] == 0


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("flags", "CR 1\n" * 13, "13 rows; one is needed for each of CR"),
        ("flags", "CR 0\n" * 14, "wants no class"),
        ("flags", "CR 2\n" * 14, "CR: '2' is not 0 or 1"),
        ("flags", "CR 0.5\n" * 14, "'0.5' is not 0 or 1"),
        ("priors", "CR 1.5\n" * 14, "'1.5' is not a number from 0 to 1"),
        ("thresh", "CR high\n" * 14, "'high' is not a number"),
        ("thresh", "CR nan\n" * 14, "'nan' is not a number"),
        ("thresh", "CR 0.1 0.2\n" * 14, "a row is a name and a value"),
        ("thresh", b"\xff\xfe" * 9, "it is not text"),
        ("other", "", "has none of classes.flags"),
    ],
    ids=range(10),
)
def test_files_that_cannot_be_used(tmp_path, model, name, text, reason):
    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / f"classes.{name}").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        run("x.fits", "--model", model, "--config-dir", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        (["--single-mask", "--no-proba-thresh"], UsageError, "--single-mask needs thresholds"),
        (["--classes", "CR,XX"], UsageError, "--classes: no class 'XX'"),
        (["--classes", ","], UsageError, "no class is wanted"),
        (["--priors", "CR=2"], UsageError, "--priors: CR=2: '2' is not a number from 0 to 1"),
        (["--thresholds", "nowhere.txt"], InputError, "nowhere.txt: cannot be read"),
        (["--model", "nonesuch"], ModelError, "nonesuch"),
        (
            ["--no-prior-modif", "--priors", "CR=0.1"],
            UsageError,
            "--priors are not used with --no-prior-modif",
        ),
        (["--no-proba-thresh", "--thresholds", "CR=0.1"], UsageError, "--thresholds are not used"),
        (["--tiling", "original"], UsageError, "--tiling original: is that of maximask"),
        (["--normalisation", "original"], UsageError, "--normalisation original: is that of maximask"),
        (["--model", "tracking"], InputError, "tracking: is no network that gives every pixel of a frame"),
        (["-o", "-"], UsageError, "-o -: name a folder"),
        (["-o", "mask.fits"], UsageError, "mask.fits: name a folder"),
    ],
    ids=range(13),
)
def test_what_cannot_be_asked_for(rng, tmp_path, monkeypatch, model, arguments, error, reason):
    monkeypatch.chdir(tmp_path)
    fits.writeto("x.fits", frame(rng))
    with pytest.raises(error, match=reason):
        run("x.fits", "--model", model, *arguments)


def test_a_mask_of_the_image_says_where_no_data_are(rng, tmp_path, model):
    fits.writeto(tmp_path / "x.fits", frame(rng, (3, 4), (40, 50)))
    hidden = np.zeros(SHAPE, np.uint8)
    hidden[40:45] = 1
    part = fits.PrimaryHDU(hidden)
    part.header["BADBITS"] = "NO_DATA DEFECT SATURATED COSMIC ARTEFACT"
    part.writeto(tmp_path / "hidden.fits")
    run(tmp_path / "x.fits", "--model", model, "--mask", tmp_path / "hidden.fits", "--single-mask")
    [(_, header, codes)] = check(tmp_path / "x.masks.fits")
    assert np.argwhere(codes).tolist() == [[3, 4]]
    assert header["NMISSING"] == 5 * SHAPE[1]


def test_several_at_a_time(rng, tmp_path, model):
    for name in "abc":
        fits.writeto(tmp_path / f"{name}.fits", frame(rng, (3, 4)))
    run(tmp_path, "--model", model, "--jobs", "2")
    run(tmp_path, "--model", model, "-o", tmp_path / "one")
    for name in "abc":
        assert (tmp_path / f"{name}.masks.fits").read_bytes() == (
            tmp_path / f"one/{name}.masks.fits"
        ).read_bytes()
