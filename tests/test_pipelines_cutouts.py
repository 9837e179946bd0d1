"""Cutouts for training: true is what was injected into the same image, and nothing sorted by eye is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from tapetum.core.errors import FormatError, InputError, UsageError
from tapetum.images.fits import expand_sources, path_of, write_frame
from tapetum.pipelines.completeness import recover
from tapetum.pipelines.cutouts import (
    crosses_edge,
    cut_planes,
    make_cutouts,
    read_cutout,
    write_crossmatch,
    write_cutout,
)
from tapetum.pipelines.folders import recover_folders, whole_folder
from tapetum.pipelines.search_results import (
    image_stem,
    match_truth,
    read_results,
    read_truth,
    truth_files,
    truth_for,
)

SIDE = 200
FOUND = {"one": [(50.0, 60.0), (120.0, 30.0)], "two": [(50.2, 60.1), (5.0, 150.0)]}
TRUTH = {
    "one": [(50.1, 60.0), (170.0, 170.0)],
    "two": [(120.1, 30.2)],
}  # its neighbour in the other image is no match


def wcs_header():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [10.0, 5.0]
    wcs.wcs.crpix, wcs.wcs.cdelt = [100.0, 100.0], [-1 / 3600, 1 / 3600]
    return wcs.to_header()


def make_result(folder, name, *, size=31, planes=False):
    """A result folder as the search writes it."""
    place = folder / name
    (place / "cutouts").mkdir(parents=True)
    rng = np.random.default_rng(len(name))
    images = rng.normal(0, 1, (3, SIDE, SIDE)).astype(np.float32)
    x, y = np.array(FOUND[name]).T
    images[2, y.astype(int), x.astype(int)] += 50
    ids = [f"{name}_{number:05d}" for number in range(1, len(x) + 1)]
    n = len(x)
    table = Table({"candidate_id": ids, "x": x, "y": y, "ra": np.full(n, 10.0), "dec": np.full(n, 5.0)})
    for column, value in (("mag", 19.0), ("mag_err", 0.1), ("fwhm", 2.0), ("fwhm_psf", 2.1), ("snr", 12.0)):
        table[column] = np.full(n, value)
    table["band"], table["sign"], table["probability"] = ["ztfr"] * n, np.ones(n, np.int8), np.full(n, 0.5)
    table.meta = {"shape": f"{SIDE} {SIDE}", "source": f"/data/{name}.fits", "pixel_scale_arcsec": "1.0"}
    table.meta |= {"cutout_size": str(size)}
    table.write(place / "candidates.ecsv")
    table.write(place / "detections.ecsv")
    (place / "settings.toml").write_text('[run]\nverb = "images search"\n')
    for name_of, stamp, cx, cy in zip(ids, cut_planes(images, x, y, size), x, y, strict=True):
        corner = (int(cx) - size // 2, int(cy) - size // 2)
        write_cutout(
            place / "cutouts" / f"{name_of}.fits", stamp, {"MAG": 19.0, "SNR": np.nan}, wcs_header(), corner
        )
    rows = [(k, f"{name}", a, b, 19.0, "point") for k, (a, b) in enumerate(TRUTH[name])]
    Table(rows=rows, names=("idx", "filename", "x", "y", "mag", "kind")).write(
        place / "simulated_objects.list", format="ascii.ecsv"
    )
    if planes:
        for plane, data in zip(("science", "template", "difference"), images, strict=True):
            write_frame(place / f"{plane}.fits.fz", data, wcs=WCS(wcs_header()), product=plane)
    return images


@pytest.fixture
def results(tmp_path):
    for name in FOUND:
        make_result(tmp_path, name)
    return tmp_path


def test_a_cutout_is_standard_fits(tmp_path):
    """The parts are laid out by hand: astropy must read back what was meant, without a word."""
    stamps = np.random.default_rng(2).normal(size=(3, 7, 9)).astype(np.float32)
    cards = {
        "MAG": 19.123456789012345, "FLUX": -1e22, "TINY": 1e-300, "FILE": "it's " + "x" * 62, "QUOTES": "'" * 67,
        "NAME": "é", "SIGN": -1, "EDGE": True, "PROB": np.nan, "N": np.int32(4),
    }  # fmt: skip
    write_cutout(tmp_path / "a.fits", stamps, cards, wcs_header(), (20, 30))
    write_cutout(tmp_path / "b.fits", stamps, cards)
    with fits.open(tmp_path / "a.fits") as hdus, fits.open(tmp_path / "b.fits") as plain:
        hdus.verify("exception")
        plain.verify("exception")
        assert [hdu.name for hdu in hdus] == ["DIFFERENCE", "SCIENCE", "TEMPLATE"]
        for hdu, stamp in zip(hdus, stamps[[2, 0, 1]], strict=True):
            np.testing.assert_array_equal(hdu.data, stamp)
            ours = WCS(hdu.header).all_pix2world(1, 2, 0)
            np.testing.assert_allclose(ours, WCS(wcs_header()).all_pix2world(21, 32, 0), rtol=1e-12)
        for head in (hdus[0].header, plain[0].header):
            assert {key: head[key] for key in cards if key not in ("NAME", "PROB")} == {
                key: value for key, value in cards.items() if key not in ("NAME", "PROB")
            }
            assert (head["NAME"], head["TAPPROD"]) == ("?", "cutout")
            assert "PROB" not in head
        assert "CRPIX1" not in plain[0].header
    assert (tmp_path / "a.fits").stat().st_size % 2880 == 0


def names_in(folder):
    return sorted(path.name for path in folder.glob("*.fits"))


def test_images_of_one_field_do_not_mix(results):
    report = make_cutouts(results, read_results(results), training=True)
    assert (report.n_written, report.n_true, report.n_undecided) == (4, 1, 3)
    assert (report.n_sources, report.n_found) == (3, 1)
    training = results / "candidates_training"
    assert names_in(training / "true") == ["candidate_1.fits"]
    assert names_in(training) == ["candidate_2.fits", "candidate_3.fits", "candidate_4.fits"]
    assert not (training / "false").exists()


def test_artefacts_that_were_put_in_are_no_sources(results):
    path = results / "one" / "simulated_objects.list"
    table = Table.read(path, format="ascii.ecsv")
    table["kind"] = ["point", "cosmic_ray"]
    table.write(path, format="ascii.ecsv", overwrite=True)
    report = make_cutouts(results, read_results(results), training=True)
    assert (report.n_sources, report.n_found) == (2, 1)


def test_the_rest_is_false_on_request(results):
    report = make_cutouts(results, read_results(results), training=True, rest_is_false=True)
    assert (report.n_true, report.n_false, report.n_undecided) == (1, 3, 0)
    assert len(names_in(results / "candidates_training" / "false")) == 3


def test_the_crossmatch_says_what_was_found(results):
    make_cutouts(results, read_results(results), training=True)
    table = Table.read(results / "crossmatch.dat", format="ascii.ecsv")
    assert table["Nmatches"].tolist() == [1, 0, 0]
    assert table["closest_candID"][0] == "one_00001"
    assert table["filename2"].tolist()[0] == "one"
    assert (
        not any(table["closest_candID"][1:] != "") if not hasattr(table["closest_candID"], "mask") else True
    )
    before = (results / "crossmatch.dat").read_text()
    (results / "crossmatch.dat").unlink()
    write_crossmatch(results, read_results(results), [], 2.0)
    assert (results / "crossmatch.dat").read_text() == before


def test_decisions_by_eye_survive_a_second_call(results):
    make_cutouts(results, read_results(results), training=True)
    mine = results / "candidates_training" / "candidate_2.fits"
    mine.rename(results / "candidates_training" / "true" / "candidate_2.fits")
    with pytest.raises(UsageError, match="sorted by eye"):
        make_cutouts(results, read_results(results), training=True)
    assert len(names_in(results / "candidates_training" / "true")) == 2
    make_cutouts(results, read_results(results), training=True, overwrite=True)
    assert len(names_in(results / "candidates_training" / "true")) == 1


def test_all_candidates_lie_in_one_folder_with_a_list(results):
    report = make_cutouts(results, read_results(results))
    assert report.n_written == 4
    folder = results / "candidates"
    table = Table.read(folder / "candidates_list.dat", format="ascii.ecsv")
    assert table.colnames[:2] == ["ID", "file"]
    assert {"RA", "Dec", "Xpos", "Ypos", "edge", "Band", "mag", "FWHM", "filename", "OriginalIma"} <= set(
        table.colnames
    )
    assert table["Xpos"][0] == 51.0
    stamps, header = read_cutout(folder / table["file"][0])
    assert stamps.shape == (3, 31, 31)
    assert stamps[2, 15, 15] > 40
    assert header["CANDID"] == "one_00001"
    assert WCS(header).all_world2pix(*WCS(wcs_header()).all_pix2world(50.0, 60.0, 0), 0) == pytest.approx(
        [15, 15]
    )
    assert "SNR" in header


def test_a_cutout_is_no_input_of_a_search(results):
    (results / "x").mkdir()
    fits.PrimaryHDU(np.ones((5, 5), np.float32)).writeto(results / "x" / "image.fits")
    assert [path.rpartition("/")[2] for path in expand_sources([str(results)])] == ["image.fits"]


def test_smaller_cutouts_keep_their_centre(results):
    make_cutouts(results, read_results(results), size=12)
    stamps, header = read_cutout(results / "candidates" / "candidate_1.fits")
    assert stamps.shape == (3, 12, 12)
    assert np.unravel_index(stamps[2].argmax(), (12, 12)) == (6, 6)
    assert WCS(header).all_world2pix(*WCS(wcs_header()).all_pix2world(50.0, 60.0, 0), 0) == pytest.approx(
        [6, 6]
    )


def test_larger_cutouts_come_from_the_kept_images(tmp_path):
    images = make_result(tmp_path, "one", planes=True)
    make_cutouts(tmp_path, read_results(tmp_path), size=41)
    stamps, _ = read_cutout(tmp_path / "candidates" / "candidate_1.fits")
    np.testing.assert_allclose(stamps[0], images[0, 40:81, 30:71], atol=0.2)


def test_without_images_larger_cutouts_name_the_remedy(results):
    with pytest.raises(InputError, match="--keep all"):
        make_cutouts(results, read_results(results), size=63)
    assert not (results / "candidates").exists()


def test_one_image_that_cannot_be_cut_does_not_stop_the_others(results):
    for path in (results / "one" / "cutouts").iterdir():
        path.unlink()
    report = make_cutouts(results, read_results(results))
    assert report.n_written == 2
    assert len(report.complaints) == 1
    assert "one" in report.complaints[0]


def test_training_without_truth_is_refused(results):
    for name in FOUND:
        (results / name / "simulated_objects.list").unlink()
    with pytest.raises(InputError, match="--truth"):
        make_cutouts(results, read_results(results), training=True)


def test_an_edge_is_marked():
    x, y = np.array([15.0, 14.4, 184.0, 185.0]), np.full(4, 100.0)
    assert crosses_edge(x, y, 31, (SIDE, SIDE)).tolist() == [False, True, False, True]


def test_trails_match_all_along_and_artefacts_never():
    truth = Table(
        {
            "x": [50.0, 100.0, 20.0, 20.0],
            "y": [50.0, 100.0, 20.0, 80.0],
            "mag": [19.0] * 4,
            "kind": ["streak", "comet", "cosmic_ray", "transient"],
            "length_pix": [40.0, 0.0, 0.0, 0.0],
            "angle_deg": [90.0, 0.0, 0.0, 0.0],
        }
    )
    x, y = (
        np.array([50.5, 54.0, 50.0, 104.0, 20.0, 21.0, 20.1]),
        np.array([69.0, 50.0, 76.0, 100.0, 20.0, 80.0, 80.0]),
    )
    match = match_truth(truth, x, y, 2.0)
    assert match.closest.tolist() == [0, 3, -1, 6]
    assert match.owner.tolist() == [0, -1, -1, 1, -1, 3, 3]
    assert match.all_rows[3].tolist() == [6, 5]
    assert match.distance[0] == pytest.approx(0.5)


def test_matches_are_one_to_one_and_the_bright_choose_first():
    truth = Table(
        {
            "x": [50.0, 51.0, 50.0, 90.0, 90.0],
            "y": [50.0, 50.0, 51.5, 90.0, 90.0],
            "mag": [21.0, 17.0, 20.0, 16.0, 19.0],
            "kind": ["transient", "transient", "transient", "streak", "transient"],
            "length_pix": [0.0, 0.0, 0.0, 30.0, 0.0],
            "angle_deg": [0.0] * 5,
        }
    )
    x, y = np.array([50.4, 50.0, 90.1, 80.0, 100.0]), np.array([50.0, 51.0, 90.0, 90.5, 90.2])
    match = match_truth(truth, x, y, 2.0)
    # the bright one takes what lies a little nearer to the faint one, which has nothing left; a trail takes what
    # the source on its line leaves
    assert match.closest.tolist() == [-1, 0, 1, 4, 2]
    assert match.owner.tolist() == [1, 2, 4, 3, 3]
    assert [rows.tolist() for rows in match.all_rows] == [[], [0], [1], [4, 3], [2]]
    empty = match_truth(truth[:0], x, y, 2.0)
    assert (empty.closest.tolist(), empty.owner.tolist()) == ([], [-1] * 5)


def test_truth_is_read_in_three_dialects(tmp_path):
    (tmp_path / "a_truth.json").write_text(
        '[{"kind": "streak", "x": 3, "y": 4, "mag": 18, "length": 9, "angle": 45}, {"kind": "satellite"}]'
    )
    table = read_truth(tmp_path / "a_truth.json")
    assert (len(table), table["length_pix"][0], table["kind"][0]) == (1, 9.0, "streak")
    old = tmp_path / "simulated_objects.list"
    old.write_text("# idx filename Xpos Ypos RA Dec mag filter\n0 b.fits 11.5 21.0 1.0 2.0 19.5 r\n")
    table = read_truth(old)
    assert (table["x"][0], table["y"][0], table["kind"][0]) == (10.5, 20.0, "point")
    assert truth_files([tmp_path]) == [tmp_path / "a_truth.json", old]


@pytest.mark.parametrize(
    "text",
    ["", "# idx filename mag\n0 b.fits 19\n", "[1, 2]", "# x y mag\n0 1 bright\n", "# x y\n0 1\n", "{}"],
)
def test_strange_truth_is_an_error_that_names_the_file(tmp_path, text):
    path = tmp_path / ("t.json" if text[:1] in "[{" and text else "simulated_objects.list")
    path.write_text(text)
    if text == "{}":
        assert len(read_truth(path)) == 0
        return
    with pytest.raises(FormatError, match=path.name):
        read_truth(path)


def test_truth_without_file_names_belongs_to_images_that_begin_alike(tmp_path):
    table = Table({"x": [1.0], "y": [1.0], "mag": [19.0], "filename": [""]})
    tables = [(tmp_path / "sim_1_truth.json", table)]
    assert truth_for("night/sim_1_sci.fits.fz", tables) is not None
    assert truth_for("night/sim_1.fits", tables) is not None
    assert truth_for("night/sim_11_sci.fits", tables) is None


def names_of(*names):
    n = len(names)
    return Table({"x": np.ones(n), "y": np.ones(n), "mag": np.full(n, 19.0), "filename": list(names)})


def test_truth_of_one_name_goes_to_the_folder_that_agrees(tmp_path):
    one, two = (str(tmp_path / night / "a.fits") for night in ("one", "two"))
    full = [(tmp_path / "all.list", names_of("/elsewhere/one/a.fits", two))]
    assert list(truth_for(one, full, [two])["filename"]) == ["/elsewhere/one/a.fits"]
    assert list(truth_for(two, full, [one])["filename"]) == [two]
    beside = [(tmp_path / "one" / "simulated_objects.list", names_of("a.fits"))]
    assert truth_for(one, beside, [two]) is not None
    assert truth_for(two, beside, [one]) is None
    bare = [(tmp_path / "all.list", names_of("a.fits"))]
    with pytest.raises(InputError, match=r"may be of .*one.* or of .*two"):
        truth_for(one, bare, [two])
    unnamed = [(tmp_path / "a_truth.json", names_of(""))]
    with pytest.raises(InputError, match="may be of"):
        truth_for(one, unnamed, [two])
    assert truth_for(one, bare) is not None


def test_truth_of_another_file_or_extension_is_not_taken(tmp_path):
    for night in ("one", "two"):
        (tmp_path / night).mkdir()
        (tmp_path / night / "a.fits").touch()
    elsewhere = [(tmp_path / "all.list", names_of(str(tmp_path / "one" / "a.fits")))]
    assert (
        truth_for(str(tmp_path / "two" / "a.fits"), elsewhere) is None
    )  # the search of the other may have failed
    second = [(tmp_path / "all.list", names_of("a.fits[2]"))]
    assert truth_for("a.fits[1]", second) is None
    assert truth_for("a.fits[2]", second, ["a.fits[1]"]) is not None


def test_truth_that_may_be_of_several_results_is_refused(results, tmp_path_factory):
    for name in ("one", "two"):
        (results / name / "simulated_objects.list").unlink()
        table = Table.read(results / name / "candidates.ecsv")
        table.meta["source"] = f"/{name}/a.fits"
        table.write(results / name / "candidates.ecsv", overwrite=True)
    truth = tmp_path_factory.mktemp("truth") / "simulated_objects.list"
    names_of("a.fits").write(truth, format="ascii.ecsv")
    for work in (
        lambda found: make_cutouts(results, found, training=True, truth=[truth]),
        lambda found: write_crossmatch(results, found, [truth], 2.0),
        lambda found: recover(found, [truth]),
    ):
        with pytest.raises(InputError, match="may be of"):
            work(read_results(results))


def test_names_without_suffix_and_extension():
    assert image_stem("a/b.c.fits.fz[SCI,2][0]") == "b.c"
    assert str(path_of("a/b.fits[2]")) == "a/b.fits"


def fill(target, text):
    with whole_folder(target) as part:
        (part / "file").write_text(text or "")
        if text is None:
            raise RuntimeError("the machine burns")


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "results" / "x"
    with pytest.raises(RuntimeError):
        fill(target, None)
    assert list(target.parent.iterdir()) == []
    fill(target, "old")
    fill(target, "new")
    assert (target / "file").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_an_old_folder_stays_when_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    target = tmp_path / "out" / "x"
    fill(target, "old")
    rename = Path.rename

    def fails_for_parts(path, to):
        if path.suffix == ".part":
            raise OSError("read-only")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fails_for_parts)
    with pytest.raises(OSError, match="read-only"):
        fill(target, "new")
    assert (target / "file").read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_folders_of_killed_runs_are_recovered_and_those_of_living_ones_left(tmp_path):
    out = tmp_path / "out"
    for name in ("a.01234567.old", "b", "b.01234567.old", "c.01234567.part", "mine.part", "d.old"):
        (out / name).mkdir(parents=True)
    with whole_folder(out / "alive") as part:
        recover_folders(out)
        assert part.is_dir()
    names = sorted(path.name for path in out.iterdir())
    assert names == ["a", "alive", "b", "d.old", "mine.part"]


def test_what_a_killed_run_left_behind_is_no_result(results):
    (results / "one").rename(results / "one.0a1b2c3d.part")
    assert [result.name for result in read_results(results)] == ["two"]


def test_a_damaged_cutout_names_itself(tmp_path):
    (tmp_path / "c.fits").write_bytes(b"SIMPLE")
    with pytest.raises(FormatError, match=r"c\.fits"):
        read_cutout(tmp_path / "c.fits")


def test_a_folder_without_results_says_what_is_wanted(tmp_path):
    with pytest.raises(InputError, match="images search"):
        read_results(tmp_path)
