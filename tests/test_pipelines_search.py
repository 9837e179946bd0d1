"""The whole road from two images to ranked candidates, and what it does with bad, repeated and unlucky inputs."""

from __future__ import annotations

import http.server
import shutil
import threading
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from tapetum.core.errors import InputError, UsageError
from tapetum.core.settings import Settings, load_settings
from tapetum.finders.transients import CandidateFlag
from tapetum.images.detect import Note
from tapetum.images.frame import FrameInfo
from tapetum.images.psf import PsfModel
from tapetum.pipelines.candidates import reason_of, repeated, saturated_margin
from tapetum.pipelines.cutouts import crosses_edge
from tapetum.pipelines.references import References
from tapetum.pipelines.search import SearchOptions, plan, search, write_index
from tapetum.pipelines.search_results import read_results
from tapetum.pipelines.search_steps import believable_gain, good_area_deg2
from tapetum.pipelines.steps import planes_of

SHAPE = (300, 320)
NEW = ((60.3, 80.7, 6000.0), (200.2, 150.1, 2500.0), (280.6, 250.4, 1200.0))
GONE = (120.0, 220.0)
FULL = (250.0, 60.0)
KNOWN_ROW = 1
ZERO_POINT = 26.0


def wcs_of(turn_deg=0.0, shift=(0.0, 0.0)):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 20.0]
    wcs.wcs.crpix = [160.0 + shift[0], 150.0 + shift[1]]
    a, scale = np.deg2rad(turn_deg), 1 / 3600
    wcs.wcs.cd = scale * np.array([[-np.cos(a), np.sin(a)], [np.sin(a), np.cos(a)]])
    wcs.wcs.set()
    return wcs


def image(psf, x, y, flux, rng, *, sky, gain):
    """Stars of a PSF on a noisy sky."""
    data = np.full(SHAPE, sky, np.float64)
    for stamp, column, row, light in zip(psf.stamps(x, y), x, y, flux, strict=True):
        j, i = int(np.floor(row + 0.5)) - psf.half, int(np.floor(column + 0.5)) - psf.half
        rows, columns = slice(max(j, 0), j + psf.size), slice(max(i, 0), i + psf.size)
        part = data[rows, columns]
        cut = stamp[max(-j, 0) :, max(-i, 0) :][: part.shape[0], : part.shape[1]]
        part += light * cut
    return (data + rng.normal(0, np.sqrt(data / gain))).astype(np.float32)


def write(path, data, wcs, *, gain, band="ztfr", **cards):
    header = wcs.to_header()
    header.update({"GAIN": gain, "MAGZP": ZERO_POINT, "SATURATE": 30000.0, "FILTER": band, **cards})
    fits.PrimaryHDU(data, header).writeto(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A science image and references of one field: one on another grid, and two that each have a part of it."""
    rng = np.random.default_rng(7)
    place = tmp_path_factory.mktemp("pair")
    n = 90
    x, y = rng.uniform(-5, 325, n), rng.uniform(-5, 305, n)
    near = (np.hypot(x[:, None] - [p[0] for p in NEW], y[:, None] - [p[1] for p in NEW]) < 15).any(axis=1)
    near |= np.hypot(x - GONE[0], y - GONE[1]) < 15
    near |= np.hypot(x - FULL[0], y - FULL[1]) < 25
    x, y = x[~near], y[~near]
    flux = 10 ** rng.uniform(3.2, 5.0, len(x))
    x, y, flux = np.append(x, FULL[0]), np.append(y, FULL[1]), np.append(flux, 8e5)
    sharp, soft = PsfModel.moffat(2.4, 3.2, SHAPE), PsfModel.moffat(2.9, 3.0, SHAPE)
    sx, sy = (np.append(v, [p[k] for p in NEW]) for k, v in enumerate((x, y)))
    science = image(soft, sx, sy, np.append(flux, [p[2] for p in NEW]), rng, sky=120.0, gain=2.0)
    science[200:203, 40:42] += 900.0  # a particle
    science[:, 300] = np.nan
    write(place / "science.fits", np.minimum(science, 32000.0), wcs_of(), gain=2.0)
    turned = wcs_of(0.2, (1.3, -0.8))
    ra, dec = wcs_of().all_pix2world(np.append(x, GONE[0]), np.append(y, GONE[1]), 0)
    rx, ry = turned.all_world2pix(ra, dec, 0)
    reference = image(sharp, rx, ry, np.append(flux, 4000.0), rng, sky=100.0, gain=20.0)
    (place / "references").mkdir()
    write(place / "references" / "whole.fits", np.minimum(reference, 32000.0), turned, gain=20.0)
    write(place / "references" / "other_band.fits", reference, turned, gain=20.0, band="ztfg")
    (place / "cells").mkdir()
    for name, columns in (("left", slice(0, 180)), ("right", slice(150, 320))):
        part = turned.deepcopy()
        part.wcs.crpix = part.wcs.crpix - [columns.start, 0]
        write(place / "cells" / f"{name}.fits", np.minimum(reference[:, columns], 32000.0), part, gain=20.0)
    truth = Table(rows=[(k, "science.fits", a + 1, b + 1, 22.0) for k, (a, b, _) in enumerate(NEW)])
    for old, new in zip(truth.colnames, ("idx", "filename", "Xpos", "Ypos", "mag"), strict=True):
        truth.rename_column(old, new)
    truth.write(place / "simulated_objects.list", format="ascii.commented_header")
    known = Table({"ra": [wcs_of().all_pix2world(*NEW[KNOWN_ROW][:2], 0)[0]], "dec": [0.0]})
    known["dec"] = [float(wcs_of().all_pix2world(*NEW[KNOWN_ROW][:2], 0)[1])]
    known.write(place / "variables.ecsv")
    stars = Table({"ra": ra[:-1], "dec": dec[:-1], "r": ZERO_POINT + 0.3 - 2.5 * np.log10(flux)})
    stars.write(place / "stars.ecsv")
    return place


def run(folder, out, *, reference="references", **options):
    named = (str(folder / reference),) if reference else ()
    return search(
        planes_of([str(folder / "science.fits")]), out, SearchOptions(references=named, **options), Settings()
    )


@pytest.fixture(scope="module")
def result(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    outcomes = run(folder, out, known=(str(folder / "variables.ecsv"),), keep="all")
    assert [outcome.problem for outcome in outcomes] == [None]
    return read_results(out)[0]


def nearest(table, x, y):
    distance = np.hypot(np.asarray(table["x"], float) - x, np.asarray(table["y"], float) - y)
    return distance, int(distance.argmin())


def test_what_is_new_and_what_is_gone_is_found(result):
    table = result.candidates
    for x, y, flux in NEW:
        distance, row = nearest(table, x, y)
        assert distance[row] < 0.5
        assert table["sign"][row] == 1
        assert table["flux"][row] == pytest.approx(flux, rel=0.1)
        assert table["mag"][row] == pytest.approx(ZERO_POINT - 2.5 * np.log10(flux), abs=0.12)
        assert table["fwhm"][row] / table["fwhm_psf"][row] == pytest.approx(1, abs=0.25)
    distance, row = nearest(table, *GONE)
    assert distance[row] < 0.5
    assert table["sign"][row] == -1
    assert len(table) <= len(NEW) + 2  # the rest of an image without artefacts is noise


def test_candidates_are_ranked_and_unscored(result):
    table = result.candidates
    assert (np.diff(np.asarray(table["snr"], float)) <= 0).all()
    assert all(table["score"].mask)
    assert all(table["probability"].mask)
    assert ((np.asarray(table["flags"]) & CandidateFlag.UNSCORED) != 0).all()
    assert table["flags"].dtype == np.int32
    assert (np.asarray(table["band"]) == "ztfr").all()


def test_the_particle_is_seen_and_ruled_out(result):
    detections = Table.read(result.folder / "detections.ecsv")
    distance, row = nearest(detections, 40.5, 201)
    assert distance[row] < 3
    assert "cosmic" in detections["reason"][row]
    assert nearest(result.candidates, 40.5, 201)[0].min() > 10


def test_the_surroundings_of_a_saturated_star_are_ruled_out(result):
    assert nearest(result.candidates, *FULL)[0].min() > 5
    near = Table.read(result.folder / "surroundings.ecsv")
    saturated = near[np.asarray(near["kind"]) == "saturated"]
    assert np.hypot(saturated["x"] - FULL[0], saturated["y"] - FULL[1]).min() < 1.5


def test_known_objects_are_named_and_kept_where_there_is_a_reference(result):
    _, row = nearest(result.candidates, *NEW[KNOWN_ROW][:2])
    assert result.candidates["match"][row] == "variables 0"
    assert result.candidates["match_distance"][row] < 0.5
    assert result.candidates["flags"][row] & CandidateFlag.KNOWN


def test_a_result_folder_is_complete(result):
    names = {path.name for path in result.folder.iterdir()}
    assert names >= {
        "candidates.ecsv",
        "detections.ecsv",
        "settings.toml",
        "search.log",
        "report.html",
        "cutouts",
    }
    assert names >= {"difference.fits.fz", "science.fits.fz", "template.fits.fz", "surroundings.ecsv"}
    page = (result.folder / "report.html").read_text()
    assert "Best candidates" in page
    assert 'src="http' not in page  # all in one file
    assert 'href="http' not in page
    run_ = tomllib.loads((result.folder / "settings.toml").read_text())["run"]
    assert run_["n_candidates"] == len(result.candidates)
    assert run_["method"] == "kernel"
    last = (result.folder / "search.log").read_text().splitlines()[-1]
    assert "report" in last
    assert run_["seconds"] >= float(last.split()[0]) - 0.01  # with everything that was written


def test_the_signal_to_noise_ratio_is_that_of_the_magnitude(result):
    table = result.candidates
    snr = np.asarray(table["snr"], float)
    assert snr == pytest.approx(np.abs(table["flux"]) / table["flux_err"], rel=1e-5)
    assert snr == pytest.approx(2.5 / np.log(10) / np.asarray(table["mag_err"], float), rel=1e-5)
    assert np.asarray(table["significance"]).min() >= 5
    assert (np.diff(snr) <= 0).all()


def test_no_result_takes_the_place_of_what_other_verbs_write(tmp_path):
    names = [str(tmp_path / "night" / f"{name}.fits") for name in ("completeness", "candidates", "a")]
    folders = [task.folder.name for task in plan(names, tmp_path / "out", SearchOptions())]
    assert folders == ["night_completeness", "night_candidates", "a"]


def test_cutouts_have_gmadets_keywords_and_a_wcs(result):
    row = nearest(result.candidates, *NEW[0][:2])[1]
    name = result.candidates["candidate_id"][row]
    with fits.open(result.folder / "cutouts" / f"{name}.fits") as hdus:
        header, shapes = hdus[0].header, [hdu.data.shape for hdu in hdus]
        assert shapes == [(63, 63)] * 3
        assert hdus["SCIENCE"].data[31, 31] > 5 * np.nanstd(hdus["TEMPLATE"].data[25:38, 25:38])
        assert WCS(header).all_world2pix(header["RA"], header["DEC"], 0) == pytest.approx([31, 31], abs=0.8)
    assert set(header) >= {
        "MAG",
        "MAGERR",
        "FWHM",
        "FWHMPSF",
        "FILTER",
        "RA",
        "DEC",
        "XPOS",
        "YPOS",
        "FILE",
        "EDGE",
    }
    assert header["XPOS"] == pytest.approx(NEW[0][0] + 1, abs=0.5)
    assert header["CANDID"] == name
    assert header["EDGE"] == "False"


def test_the_truth_is_carried_along_under_the_new_name(result):
    truth = Table.read(result.folder / "simulated_objects.list", format="ascii.ecsv")
    assert list(truth["filename"]) == ["science"] * 3
    assert list(truth["original"]) == ["science.fits"] * 3
    assert np.asarray(truth["x"]) == pytest.approx([p[0] for p in NEW])


def test_finished_images_are_skipped_until_something_changes(folder, tmp_path):
    first = run(folder, tmp_path, cutouts="none", keep="none")[0]
    stamp = (first.folder / "candidates.ecsv").stat().st_mtime_ns
    again = run(folder, tmp_path, cutouts="none", keep="none")[0]
    assert again.skipped
    assert (again.n_candidates, again.n_detections) == (first.n_candidates, first.n_detections)
    assert (first.folder / "candidates.ecsv").stat().st_mtime_ns == stamp
    other = run(folder, tmp_path, cutouts="none", keep="none", threshold=8.0)[0]
    assert not other.skipped
    assert other.n_detections < first.n_detections


def test_cells_are_joined_either_way(folder, tmp_path):
    for cells in ("mosaic", "individual"):
        outcome = run(folder, tmp_path / cells, reference="cells", cells=cells, cutouts="none")[0]
        assert outcome.problem is None
        table = Table.read(outcome.folder / "candidates.ecsv")
        for x, y, _ in NEW:
            assert (nearest(table, x, y)[0] < 1).sum() == 1
        with fits.open(outcome.folder / "difference.fits.fz") as hdus:
            assert np.isfinite(hdus[1].data[20:-20, 20:290]).mean() > 0.99


def test_without_a_reference_the_image_itself_is_searched(folder, tmp_path):
    outcome = run(
        folder, tmp_path, reference=None, known=(str(folder / "stars.ecsv"),), match_radius_arcsec=1.5
    )[0]
    assert outcome.problem is None
    table = Table.read(outcome.folder / "candidates.ecsv")
    assert all(nearest(table, x, y)[0].min() < 1 for x, y, _ in NEW)
    assert (np.asarray(table["sign"]) == 1).all()
    detections = Table.read(outcome.folder / "detections.ecsv")
    named = (np.asarray(detections["flags"]) & CandidateFlag.KNOWN) != 0
    assert named.sum() > 40  # the stars of the catalogue are detections and no candidates
    assert len(table) < 0.5 * len(detections)


def test_tables_say_what_they_hold_in_as_many_digits_as_it_is_worth(result):
    table = Table.read(result.folder / "candidates.ecsv")
    meta = table.meta
    assert isinstance(meta["zero_point"], float)
    assert list(meta["shape"]) == list(SHAPE)
    assert meta["flags"][int(CandidateFlag.UNSCORED)] == "unscored"
    assert "reference" in table["flux_template"].description
    for name, digits in (("x", 3), ("ra", 7), ("mag", 4)):
        values = np.asarray(table[name], float)
        assert (values == np.round(values, digits)).all()
        assert (values != np.round(values, digits - 1)).any()


def test_what_is_guessed_and_not_believed_is_warned_of(folder, tmp_path):
    image = tmp_path / "image.fits"
    with fits.open(next(folder.glob("science*.fits"))) as hdus:
        hdus[0].header["GAIN"] = 0.001
        del hdus[0].header["MAGZP"]
        hdus.writeto(image)
    options = SearchOptions(threshold=30.0, cutouts="none", keep="none")
    plain = search([str(image)], tmp_path / "a", options, Settings())[0]
    told = " ".join(plain.warnings)
    assert "gain of 0.001 does not go with its noise" in told
    assert "the zero point is not known" in told
    stars = replace(options, catalogue=str(folder / "stars.ecsv"))
    assert "zero point" not in " ".join(search([str(image)], tmp_path / "b", stars, Settings())[0].warnings)


def test_a_catalogue_gives_the_zero_point(folder, tmp_path):
    outcome = run(
        folder, tmp_path, catalogue=str(folder / "stars.ecsv"), refine_wcs=True, cutouts="none", keep="none"
    )[0]
    meta = Table.read(outcome.folder / "candidates.ecsv").meta
    assert float(meta["zero_point"]) == pytest.approx(ZERO_POINT + 0.3, abs=0.02)
    assert float(meta["zero_point_error"]) < 0.02
    assert "stars.ecsv" in meta["zero_point_origin"]
    assert "astrometry refined" in (outcome.folder / "search.log").read_text()


def galactic_latitude_first(wcs):
    """The same tangent plane in galactic coordinates, turned by the angle between the two norths."""
    place = SkyCoord(*wcs.wcs.crval, unit="deg")
    l_deg, b_deg = place.galactic.l.deg, place.galactic.b.deg
    pole = SkyCoord(0, 90, unit="deg", frame="galactic").icrs
    a = place.position_angle(pole).rad
    turned = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) @ wcs.wcs.cd
    new = WCS(naxis=2)
    new.wcs.ctype, new.wcs.crval, new.wcs.crpix = ["GLAT-TAN", "GLON-TAN"], [b_deg, l_deg], wcs.wcs.crpix
    new.wcs.cd = turned[::-1]
    new.wcs.set()
    return new


def test_an_image_in_galactic_coordinates_is_searched_on_the_same_sky(folder, tmp_path):
    data, header = fits.getdata(folder / "science.fits", header=True)
    write(tmp_path / "science.fits", data, galactic_latitude_first(wcs_of()), gain=header["GAIN"])
    options = SearchOptions(
        references=(str(folder / "references"),),
        catalogue=str(folder / "stars.ecsv"),
        refine_wcs=True,
        known=(str(folder / "variables.ecsv"),),
        cutouts="none",
        keep="none",
    )
    [outcome] = search([str(tmp_path / "science.fits")], tmp_path / "out", options, Settings())
    assert outcome.problem is None
    meta = Table.read(outcome.folder / "candidates.ecsv").meta
    assert float(meta["zero_point"]) == pytest.approx(ZERO_POINT + 0.3, abs=0.02)
    assert "astrometry refined" in (outcome.folder / "search.log").read_text()
    found = Table.read(outcome.folder / "detections.ecsv")
    there = SkyCoord(*wcs_of().all_pix2world(*np.array(NEW)[:, :2].T, 0), unit="deg")
    _, apart, _ = there.match_to_catalog_sky(SkyCoord(found["ra"], found["dec"], unit="deg"))
    assert apart.arcsec.max() < 0.5
    assert sum(str(name).startswith("variables ") for name in found["match"]) == 1


def test_catalogues_are_fetched_around_each_image(folder, tmp_path, vizier, monkeypatch):
    stars = Table.read(folder / "stars.ecsv")
    sent = Table({"_RAJ2000": stars["ra"], "_DEJ2000": stars["dec"], "rmag": stars["r"]})
    vizier.answer = vizier.votable(sent)
    monkeypatch.setenv("TAPETUM_ARCHIVES__VIZIER_URL", vizier.url)
    options = SearchOptions(catalogue="ps1", known=("ps1",), cutouts="none", keep="none")
    [outcome] = search([str(folder / "science.fits")], tmp_path / "out", options, load_settings(None, {}))
    assert outcome.problem is None
    meta = Table.read(outcome.folder / "candidates.ecsv").meta
    assert float(meta["zero_point"]) == pytest.approx(ZERO_POINT + 0.3, abs=0.02)
    matched = Table.read(outcome.folder / "detections.ecsv")["match"]
    assert sum(str(name).startswith("ps1 ") for name in matched) > 50
    assert len(vizier.questions) == 2


def test_stars_that_cannot_be_fetched_are_a_warning_and_known_objects_an_error(folder, tmp_path, vizier):
    settings = load_settings(None, {"archives.vizier_url": vizier.url})
    vizier.status = 500
    source = str(folder / "science.fits")
    plain = SearchOptions(catalogue="ps1", cutouts="none", keep="none")
    [outcome] = search([source], tmp_path / "stars", plain, settings)
    assert outcome.problem is None
    assert "the header calibrates" in (outcome.folder / "search.log").read_text()
    [outcome] = search([source], tmp_path / "known", replace(plain, catalogue=None, known=("ps1",)), settings)
    assert "VizieR" in outcome.problem


def test_zogy_finds_them_too(folder, tmp_path):
    outcome = run(folder, tmp_path, method="zogy", cutouts="none", keep="none")[0]
    assert outcome.problem is None
    table = Table.read(outcome.folder / "candidates.ecsv")
    assert all(nearest(table, x, y)[0].min() < 1 for x, y, _ in NEW)


def test_a_bad_image_stops_nobody_and_leaves_its_reason(folder, tmp_path):
    bad = tmp_path / "broken.fits"
    bad.write_bytes((folder / "science.fits").read_bytes()[:20000])
    out = tmp_path / "out"
    options = SearchOptions(references=(str(folder / "references"),), cutouts="none", keep="none")
    outcomes = search([str(bad), str(folder / "science.fits")], out, options, Settings())
    assert "broken.fits" in outcomes[0].problem
    assert outcomes[1].problem is None
    assert "failed" in (out / "broken" / "search.log").read_text()
    assert not (out / "broken" / "candidates.ecsv").exists()
    assert len(read_results(out)) == 1
    again = search([str(bad), str(folder / "science.fits")], out, options, Settings())
    assert [o.skipped for o in again] == [False, True]  # what failed is tried again
    write_index(out)
    assert "broken" in (out / "report.html").read_text()


def test_workers_give_the_same_result(folder, tmp_path):
    other = tmp_path / "again" / "science.fits"
    other.parent.mkdir()
    other.write_bytes((folder / "science.fits").read_bytes())
    options = SearchOptions(references=(str(folder / "references"),), cutouts="none", keep="none")
    sources = [str(folder / "science.fits"), str(other)]
    outcomes = search(sources, tmp_path / "out", options, load_settings(None, {}), jobs=2)
    assert [outcome.folder.name for outcome in outcomes] == ["science", "again_science"]
    first, second = (Table.read(outcome.folder / "candidates.ecsv") for outcome in outcomes)
    assert np.array_equal(first["x"], second["x"])


def test_images_of_one_name_get_folders_of_their_own(tmp_path):
    names = [str(tmp_path / a / b / "x.fits") for a in "pq" for b in ("night", "day")]
    folders = [task.folder.name for task in plan(names, tmp_path / "out", SearchOptions())]
    assert len(set(folders)) == 4
    assert folders[0] == "x"
    assert folders[1] == "day_x"


def test_extensions_are_images_of_their_own(tmp_path, rng):
    planes = [
        fits.ImageHDU(rng.normal(100, 5, (40, 50)).astype(np.float32), name=name) for name in ("A", "B")
    ]
    fits.HDUList([fits.PrimaryHDU(), *planes]).writeto(tmp_path / "two.fits")
    sources = planes_of([str(tmp_path / "two.fits"), str(tmp_path / "missing.fits")])
    assert sources == [*(f"{tmp_path / 'two.fits'}[{k}]" for k in (1, 2)), str(tmp_path / "missing.fits")]
    tasks = plan(sources, tmp_path / "out", SearchOptions())
    assert [task.folder.name for task in tasks] == ["two_1", "two_2", "missing"]


def test_a_strange_folder_is_not_replaced(folder, tmp_path):
    (tmp_path / "science").mkdir()
    (tmp_path / "science" / "thesis.txt").write_text("mine")
    outcome = run(folder, tmp_path, cutouts="none", keep="none")[0]
    assert outcome.folder.name != "science"
    assert (tmp_path / "science" / "thesis.txt").read_text() == "mine"


def test_references_are_chosen_by_sky_and_band(folder, tmp_path, rng):
    from tapetum.images.fits import read_frame

    frame = read_frame(folder / "science.fits")
    assert [cell.name for cell in References.open([str(folder / "references")]).frames_for(frame)] == [
        "whole"
    ]
    assert len(list(References.open([str(folder / "cells")]).frames_for(frame))) == 2
    far = wcs_of()
    far.wcs.crval = [10.0, -40.0]
    (tmp_path / "far").mkdir()
    write(tmp_path / "far" / "far.fits", rng.normal(100, 5, SHAPE).astype(np.float32), far, gain=1.0)
    with pytest.raises(InputError, match="overlaps"):
        next(References.open([str(tmp_path / "far")]).frames_for(frame))
    with pytest.raises(InputError, match="no such"):
        References.open([str(tmp_path / "nothing.fits")])


def test_a_named_reference_of_another_band_is_a_warning_in_log_and_report(folder, tmp_path):
    [outcome] = run(folder, tmp_path, reference="references/other_band.fits", cutouts="none", keep="none")
    assert outcome.problem is None
    for name in ("search.log", "report.html"):
        assert "is of band ztfg, the image of ztfr" in (outcome.folder / name).read_text()


class Answers(http.server.BaseHTTPRequestHandler):
    """An archive that gives one image, whatever it is asked for."""

    content = b""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *words):
        pass


def test_a_reference_comes_from_an_archive_where_no_file_covers_the_image(folder, tmp_path):
    archive = type("Archive", (Answers,), {"content": (folder / "references" / "whole.fits").read_bytes()})
    with http.server.HTTPServer(("127.0.0.1", 0), archive) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = Settings(archives={"hips_url": f"http://127.0.0.1:{server.server_port}/"})
        options = SearchOptions(references=("hips:CDS/P/Test",), cutouts="none", keep="none")
        outcome = search([str(folder / "science.fits")], tmp_path, options, settings)[0]
        server.shutdown()
    assert outcome.problem is None
    table = Table.read(outcome.folder / "candidates.ecsv")
    assert all(nearest(table, x, y)[0].min() < 1 for x, y, _ in NEW)
    assert "fetching hips:CDS/P/Test" in (outcome.folder / "search.log").read_text()


def test_distance_to_saturated_areas_counts_their_size():
    saturated = np.zeros((60, 60), bool)
    saturated[20:31, 20:31] = True  # radius sqrt(121 / pi) = 6.2
    margin = saturated_margin(saturated, np.array([40.0, 25.0]), np.array([25.0, 25.0]))
    assert margin == pytest.approx([10 - 0.7 * 6.206, -0.7 * 6.206], abs=0.01)
    assert np.isinf(saturated_margin(np.zeros((5, 5), bool), np.array([1.0]), np.array([1.0]))).all()


def test_only_the_worse_of_two_cells_is_a_repetition():
    x, y = np.array([10.0, 10.4, 30.0]), np.array([10.0, 10.0, 30.0])
    worse = repeated(x, y, np.array([7.0, 9.0, 5.0]), np.array([0, 1, 1]), np.full(3, 2.0))
    assert worse.tolist() == [True, False, False]
    same_cell = repeated(x, y, np.array([7.0, 9.0, 5.0]), np.array([1, 1, 1]), np.full(3, 2.0))
    assert not same_cell.any()


def test_reasons_are_vetoes_only():
    assert reason_of(int(CandidateFlag.UNSCORED | CandidateFlag.KNOWN)) == ""
    assert reason_of(int(CandidateFlag.DIPOLE | CandidateFlag.FWHM)) == "dipole, fwhm"
    assert Note.SHARP.name == "SHARP"


@pytest.mark.parametrize(
    ("gain", "guessed", "sky", "expected"),
    [
        (2.0, False, 100.0, 2.0),  # sqrt(100 / 2) = 7.1 of a noise of 8: possible
        (0.1, False, 100.0, 100 / 64),  # it would be 32
        (1.0, True, 100.0, 100 / 64),
        (1.0, True, 0.5, np.inf),  # the sky is gone, and with it every hint
        (1.0, False, -3.0, 1.0),
    ],
)
def test_an_impossible_gain_is_not_believed(gain, guessed, sky, expected):
    info = FrameInfo(gain=gain, origin={"gain": "guessed: 1" if guessed else "header GAIN"})
    assert believable_gain(info, sky, 8.0) == pytest.approx(expected)


def test_the_searched_area_leaves_bad_pixels_out():
    mask = np.zeros((100, 200), np.uint8)
    mask[:, :20] = 1
    data = np.zeros((100, 200), np.float32)
    data[:10, 100:] = np.nan
    area = good_area_deg2(mask, data, 2.0)
    assert area == pytest.approx((100 * 180 - 1000) * (2 / 3600) ** 2)
    assert np.isnan(good_area_deg2(mask, data, None))


def test_where_every_name_is_taken_by_strangers_nothing_is_overwritten(tmp_path):
    source = str(tmp_path / "a" / "x.fits")
    for _ in range(3):  # x, a_x and the name with a hash
        plan([source], tmp_path, SearchOptions())[0].folder.mkdir()
    with pytest.raises(UsageError, match="not the result of a search"):
        search([source], tmp_path, SearchOptions(), Settings())


NOVA = (90.3, 130.6)
LONE = (203, 150)  # a pixel beside NEW[1]
HIT = (103, 281)  # of a particle


def test_a_new_object_that_saturates_is_a_candidate(folder, tmp_path, result):
    with fits.open(folder / "science.fits") as hdus:
        data, header = hdus[0].data, hdus[0].header
    psf, star = PsfModel.moffat(2.9, 3.0, SHAPE), np.array([[NOVA[0]], [NOVA[1]], [1e6]])
    light = image(psf, *star, np.random.default_rng(5), sky=0.0, gain=2.0)
    data = np.minimum(data + light, 32000.0).astype(np.float32)
    data[LONE[1], LONE[0]] = 31000.0
    data[HIT[1] - 1 : HIT[1] + 2, HIT[0] : HIT[0] + 2] = 31500.0
    fits.PrimaryHDU(data, header).writeto(tmp_path / "nova.fits")
    options = SearchOptions((str(folder / "references"),), cutouts="none", keep="none")
    [outcome] = search([str(tmp_path / "nova.fits")], tmp_path / "out", options, Settings())
    assert outcome.problem is None
    table = Table.read(outcome.folder / "candidates.ecsv")
    distance, row = nearest(table, *NOVA)
    assert distance[row] < 0.7
    assert (table["flags"][row] & CandidateFlag.SATURATED, table["sign"][row]) == (CandidateFlag.SATURATED, 1)
    assert 2e5 < table["flux"][row] < 1e6  # a lower limit
    assert "saturated" in table.meta["flags"].values()
    assert nearest(table, *NEW[1][:2])[0].min() < 0.5  # one pixel that is hot rules nothing out
    assert nearest(table, *FULL)[0].min() > 5  # the reference has this one
    all_of_them = Table.read(outcome.folder / "detections.ecsv")
    assert (
        (np.asarray(all_of_them["flags"]) & CandidateFlag.SATURATED) != 0
    ).sum() == 1  # the particle is none
    assert not (np.asarray(result.candidates["flags"]) & CandidateFlag.SATURATED).any()


def test_the_flag_edge_means_that_the_cutout_crosses_it(result):
    table = Table.read(result.folder / "detections.ecsv")
    x, y = (np.asarray(table[name], float) for name in "xy")
    raised = (np.asarray(table["flags"]) & CandidateFlag.EDGE) != 0
    assert raised.tolist() == crosses_edge(x, y, 63, SHAPE).tolist()
    assert raised.any()


@pytest.fixture(scope="module")
def bad_cells(folder, tmp_path_factory):
    """The left half of a reference, and a right half without stars."""
    place = tmp_path_factory.mktemp("cells")
    (place / "left.fits").write_bytes((folder / "cells" / "left.fits").read_bytes())
    with fits.open(folder / "cells" / "right.fits") as hdus:
        noise = np.random.default_rng(4).normal(100, 3, hdus[0].data.shape).astype(np.float32)
        fits.PrimaryHDU(noise, hdus[0].header).writeto(place / "right.fits")
    return place


def test_a_file_that_is_not_there_leaves_no_folder(tmp_path):
    [outcome] = search([str(tmp_path / "missing.fits")], tmp_path / "out", SearchOptions(), Settings())
    assert "missing.fits" in outcome.problem
    assert not outcome.folder.exists()


def test_a_folder_with_nothing_but_the_image_itself_is_no_reference(folder, tmp_path):
    shutil.copy(folder / "science.fits", tmp_path)
    options = SearchOptions((str(tmp_path),))
    [outcome] = search([str(tmp_path / "science.fits")], tmp_path / "out", options, Settings())
    assert "is the science image itself" in outcome.problem


def test_one_bad_cell_does_not_fail_the_image(folder, bad_cells, tmp_path):
    outcome = run(folder, tmp_path, reference=bad_cells, cells="individual", cutouts="none", keep="none")[0]
    assert outcome.problem is None
    assert "right.fits: left out" in (outcome.folder / "search.log").read_text()
    table = Table.read(outcome.folder / "candidates.ecsv")
    assert nearest(table, *NEW[0][:2])[0].min() < 0.5
    assert np.isfinite(table["flux_template"]).all()


def test_cells_that_are_all_bad_fail_it(folder, bad_cells, tmp_path):
    outcome = run(folder, tmp_path, reference=bad_cells / "right.fits", cells="individual")[0]
    assert "right.fits" in outcome.problem


def test_the_light_of_the_reference_comes_from_the_cell_of_each_detection(folder, tmp_path):
    outcome = run(folder, tmp_path, reference="cells", cells="individual", cutouts="none", keep="none")[0]
    table = Table.read(outcome.folder / "candidates.ecsv")
    rows = [nearest(table, x, y)[1] for x, y, _ in NEW]
    assert np.abs(np.asarray(table["flux_template"], float)[rows]).max() < 100
    assert table["flux_template"][nearest(table, *GONE)[1]] == pytest.approx(4000, rel=0.1)


def test_a_search_that_fails_leaves_the_earlier_result(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = run(folder, out, cutouts="none", keep="none")[0]
    before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    trouble = {"_road": InputError("no such luck"), "_write": OSError("disk full")}
    for name, reason in trouble.items():
        with monkeypatch.context() as patch:
            patch.setattr(f"tapetum.pipelines.search.{name}", raises(reason))
            failed = run(folder, out, cutouts="none", keep="none", threshold=7.0)[0]
        assert failed.problem == str(reason)
        assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == before
        assert str(reason) in (out / "science.failed.log").read_text()
    assert not run(folder, out, cutouts="none", keep="none", threshold=7.0)[0].skipped
    assert sorted(path.name for path in out.iterdir()) == ["science"]


def raises(reason):
    def work(*words, **named):
        raise reason

    return work


def test_what_killed_runs_left_is_cleaned_and_recovered(folder, tmp_path):
    out = tmp_path / "out"
    first = run(folder, out, cutouts="none", keep="none")[0]
    first.folder.rename(out / "science.00c0ffee.old")
    (out / "science.deadbeef.part").mkdir()
    assert run(folder, out, cutouts="none", keep="none")[0].skipped
    assert sorted(path.name for path in out.iterdir()) == ["science"]


def test_a_width_that_is_given_serves_where_no_star_shows_it(tmp_path, rng):
    write(tmp_path / "empty.fits", rng.normal(100, 5, SHAPE).astype(np.float32), wcs_of(), gain=4.0)
    source = str(tmp_path / "empty.fits")
    [without] = search([source], tmp_path / "out", SearchOptions(), Settings())
    assert "--fwhm" in without.problem
    [given] = search([source], tmp_path / "out", SearchOptions(fwhm_pix=2.5), Settings())
    assert given.problem is None
    assert "2.50 px" in (given.folder / "search.log").read_text()


def test_what_no_image_could_do_without_is_checked_once(tmp_path):
    with pytest.raises(InputError, match="nope"):
        search(["x.fits", "y.fits"], tmp_path / "out", SearchOptions(telescope="nope"), Settings())
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match=r"-o .*file"):
            search(["x.fits"], out, SearchOptions(), Settings())
    assert not (tmp_path / "out").exists()
