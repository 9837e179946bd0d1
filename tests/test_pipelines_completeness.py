"""Completeness and purity: known curves come out again, and every number has an honest interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from tapetum.core.errors import InputError
from tapetum.pipelines.completeness import (
    binned,
    fit_depth,
    fractions_table,
    mag_edges,
    measure,
    recover,
    wilson,
)
from tapetum.pipelines.completeness_report import build_page, plots, summary, write_report
from tapetum.pipelines.search_results import (
    SearchResult,
    Unsearched,
    read_results,
    read_unsearched,
    unsearched_words,
)
from tapetum.report.page import render_page
from tapetum.report.points import Points, Rings, image_svg, points_svg

SIDE = 400
ZERO_POINT = 26.0
NOISE = 20.0


def make_folder(folder, rng, *, names=("a", "b"), n=60, n_false=7, bands=("ztfg", "ztfr"), depth=20.5):
    """Results of searches that found point sources down to `depth`, 0.2 px and 0.05 mag off."""
    for name, band in zip(names, bands, strict=True):
        place = folder / name
        place.mkdir(parents=True)
        x, y = rng.uniform(10, SIDE - 10, (2, n))
        mag = rng.uniform(18, 22, n)
        kind = np.array(["transient"] * n, dtype="<U12")
        kind[:3], kind[3:5] = "comet", "cosmic_ray"
        truth = Table({"idx": np.arange(n), "filename": [f"{name}.fits"] * n, "x": x, "y": y, "mag": mag})
        truth["kind"] = kind
        truth.write(place / "simulated_objects.list", format="ascii.ecsv")
        found = (mag < depth) & (kind != "cosmic_ray")
        cx = np.append(x[found] + rng.normal(0, 0.2, found.sum()), rng.uniform(-900, -500, n_false))
        cy = np.append(y[found] + rng.normal(0, 0.2, found.sum()), rng.uniform(-900, -500, n_false))
        cmag = np.append(mag[found] + rng.normal(0.05, 0.01, found.sum()), np.full(n_false, 19.0))
        table = Table(
            {"candidate_id": [f"{name}_{k}" for k in range(len(cx))], "x": cx, "y": cy, "mag": cmag}
        )
        table["mag_err"] = np.full(len(cx), 0.05)
        table["snr"] = 10 ** (-0.4 * (cmag - ZERO_POINT)) / NOISE
        table.meta = {
            "shape": f"{SIDE} {SIDE}",
            "source": f"/night/{name}.fits",
            "pixel_scale_arcsec": "1.0",
            "area_deg2": str((SIDE / 3600) ** 2),
            "zero_point": str(ZERO_POINT),
            "flux_err": str(NOISE),
            "mag_limit": "21.0",
            "band": band,
        }
        table.write(place / "candidates.ecsv")
        near = Table(
            {"kind": ["galaxy", "saturated"], "x": [50.0, 300.0], "y": [50.0, 300.0], "radius": [3.0, 9.0]}
        )
        near.write(place / "surroundings.ecsv")
        (place / "settings.toml").write_text('[run]\nverb = "images search"\n')


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("results"), np.random.default_rng(5)
    make_folder(folder, rng)
    return measure(recover(read_results(folder)), rng)


def test_wilson_agrees_with_its_definition():
    low, high = wilson(np.array([8, 0, 5]), np.array([10, 10, 0]))
    assert (low[0], high[0]) == pytest.approx((0.490162, 0.943318), abs=1e-5)  # solved by hand for 8 of 10
    assert low[1] == pytest.approx(0, abs=1e-12)
    assert 0.2 < high[1] < 0.35
    assert np.isnan(low[2])


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_holds_the_fraction_and_stays_within_0_and_1(n, share):
    hits = round(n * share)
    low, high = wilson(np.array([hits]), np.array([n]))
    assert -1e-12 <= low[0] <= hits / n + 1e-12
    assert hits / n - 1e-12 <= high[0] <= 1 + 1e-12


def test_bins_count_hits_and_leave_nan_out():
    part = binned(
        np.array([1.5, 1.6, 2.5, np.nan, np.inf, 9.0]), np.array([1, 0, 1, 1, 1, 1], bool), (1, 2, 3)
    )
    assert part.total.tolist() == [2, 1]
    assert part.hits.tolist() == [1, 1]
    assert part.fraction.tolist() == [0.5, 1.0]
    assert np.isnan(binned(np.empty(0), np.empty(0, bool), (0, 1)).fraction).all()


def test_a_logistic_curve_comes_out_again(rng):
    mag = rng.uniform(17, 22, 4000)
    share = 0.96 / (1 + np.exp((mag - 20.3) / 0.25))
    depth = fit_depth(mag, rng.random(4000) < share, rng, bootstraps=60)
    assert depth.plateau == pytest.approx(0.96, abs=0.02)
    assert depth.mag50 == pytest.approx(20.3 + 0.25 * math.log(0.96 / 0.5 - 1), abs=0.05)
    assert depth.mag90 == pytest.approx(20.3 + 0.25 * math.log(0.96 / 0.9 - 1), abs=0.15)
    low, high = depth.mag50_interval
    assert low < depth.mag50 < high
    assert high - low < 0.15
    assert depth.curve(np.array([depth.mag50]))[0] == pytest.approx(0.5, abs=1e-6)


def test_what_the_data_do_not_reach_is_not_invented(rng):
    mag = rng.uniform(17, 19, 200)
    assert fit_depth(mag, np.ones(200, bool), rng) is None
    assert fit_depth(mag[:5], np.array([1, 0, 1, 0, 1], bool), rng) is None
    shallow = fit_depth(mag, rng.random(200) < 0.7, rng, bootstraps=20)
    assert math.isnan(shallow.mag90)


def test_few_sources_give_no_interval_instead_of_a_point(rng):
    mag = np.linspace(16, 21, 24)
    apart = fit_depth(mag, mag < 18.57, rng)  # a step: every resampling steps at the same place
    assert apart.mag50 == pytest.approx(18.57, abs=0.2)
    assert np.isnan([*apart.mag50_interval, *apart.mag90_interval]).all()
    found = mag < 18.57
    found[[8, 14]] = found[[14, 8]]
    mixed = fit_depth(mag, found, rng)
    low, high = mixed.mag50_interval
    assert np.isnan(low) or high - low > 0.2


def test_edges_are_round_and_hold_everything():
    assert mag_edges(np.array([18.2, 19.9, np.nan])).tolist() == [18.0, 18.5, 19.0, 19.5, 20.0]
    assert len(mag_edges(np.empty(0))) == 2
    assert len(mag_edges(np.array([18.0]))) == 2


def test_recovery_counts_what_was_found_and_what_was_not(measured):
    images = measured.recovery.images
    assert images["false"].tolist() == [7, 7]
    assert measured.false_per_image == 7
    assert measured.false_per_deg2 == pytest.approx(7 / (SIDE / 3600) ** 2)
    assert "cosmic_ray" not in measured.kinds
    assert measured.kinds["comet"][1] == 6
    injected = measured.recovery.injected
    found = np.asarray(injected["found"], bool)
    assert (found == (np.asarray(injected["mag"]) < 20.5)).mean() > 0.98  # chance neighbours apart
    assert np.nanmedian(injected["mag_found"] - injected["mag"]) == pytest.approx(0.05, abs=0.01)
    assert np.nanstd(np.asarray(injected["dx"])[found]) == pytest.approx(0.2, abs=0.08)


def test_the_depth_is_where_it_was_put(measured):
    depth = measured.depth["point", "all"]
    assert depth.mag50 == pytest.approx(20.5, abs=0.15)
    assert {("point", "ztfg"), ("point", "ztfr")} <= set(measured.depth)


def test_expected_snr_is_that_of_the_noise_or_of_the_simulation(tmp_path, rng):
    make_folder(tmp_path, rng, names=("a",), bands=("ztfr",))
    injected = recover(read_results(tmp_path)).injected
    expected = 10 ** (-0.4 * (np.asarray(injected["mag"]) - ZERO_POINT)) / NOISE
    np.testing.assert_allclose(injected["snr"], expected)
    truth = Table.read(tmp_path / "a" / "simulated_objects.list", format="ascii.ecsv")
    truth["snr"] = np.where(np.arange(len(truth)) == 10, np.nan, 33.0)
    truth.write(tmp_path / "a" / "simulated_objects.list", format="ascii.ecsv", overwrite=True)
    injected = recover(read_results(tmp_path)).injected
    assert sorted(set(np.round(np.asarray(injected["snr"]), 3)))[-2:].count(33.0) >= 1
    assert (np.asarray(injected["snr"]) == 33.0).sum() == len(injected) - 1


def test_distances_to_neighbours(measured):
    injected = measured.recovery.injected
    want = np.hypot(np.asarray(injected["x"]) - 50, np.asarray(injected["y"]) - 50)
    np.testing.assert_allclose(injected["galaxy_distance"], want)
    assert measured.by_saturated.total.sum() > 0


def test_every_number_is_in_the_tables(measured, tmp_path):
    table = fractions_table(measured)
    assert set(table.colnames) >= {"figure", "low", "high", "total", "hits", "fraction", "fraction_low"}
    mag = table[np.asarray(table["figure"]) == "completeness against mag"]
    assert mag["total"].sum() == measured.by_mag.total.sum()
    write_report(tmp_path / "out", measured, [("who", "me")])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"report.html", "fractions.ecsv", "injected.ecsv", "candidates.ecsv", "images.ecsv"}
    assert {f"{name}.svg" for name in plots(measured)} <= names
    assert len(Table.read(tmp_path / "out" / "injected.ecsv")) == len(measured.recovery.injected)


def test_there_is_a_plot_per_band_and_of_everything_promised(measured):
    names = set(plots(measured))
    assert names >= {"completeness_mag", "purity_mag", "completeness_snr", "purity_snr", "distance_galaxy"}
    assert names >= {"distance_saturated", "position_residuals", "flux_residuals", "completeness_bands"}
    assert names >= {"magnitudes_ztfg", "magnitudes_ztfr", "magnitudes_all_bands"}
    page = render_page(build_page(measured, [("who", "me")]))
    assert "50 % depth" in page
    assert "Missed" in page
    assert "50 % at 20." in summary(measured)


def test_truth_may_come_from_elsewhere(tmp_path, rng):
    make_folder(tmp_path / "results", rng, names=("a",), bands=("ztfr",))
    own = tmp_path / "results" / "a" / "simulated_objects.list"
    other = tmp_path / "elsewhere.list"
    own.rename(other)
    results = read_results(tmp_path / "results")
    with pytest.raises(InputError, match="--truth"):
        recover(results)
    assert len(recover(results, [other]).injected) == 58


def test_an_image_without_candidates_counts_as_missed(tmp_path, rng):
    make_folder(tmp_path, rng)
    empty = [SearchResult(result.folder, result.candidates[:0]) for result in read_results(tmp_path)]
    report = measure(recover(empty), rng)
    assert report.by_mag.hits.sum() == 0
    assert report.false_per_image == 0
    assert report.depth == {}
    assert "nothing to show" in plots(report)["purity_mag"][1]
    render_page(build_page(report, []))


def test_points_beyond_the_axes_and_nan_are_left_out():
    nan = np.array([np.nan, 0.5, 5.0])
    svg = points_svg([Points("a", np.array([0.1, 0.2, 0.3]), nan)], x_label="x", y_label="y", y_range=(0, 1))
    assert svg.count("<circle") == 1
    curve = points_svg([Points("", np.arange(3.0), np.arange(3.0), line=True)], x_label="x", y_label="y")
    assert "<polyline" in curve
    assert "nothing to show" in points_svg([], x_label="x", y_label="y")


def test_rings_stand_where_the_pixel_is():
    rings = Rings(np.array([0.0]), np.array([0.0]))  # first pixel: lower left
    svg = image_svg(np.zeros((10, 20), np.float32), [rings], step=2, width=400)
    assert 'cx="5.0" cy="195.0"' in svg
    assert 'href="data:image/png' in svg


def test_its_own_report_is_no_result(tmp_path):
    make_folder(tmp_path, np.random.default_rng(6))
    write_report(
        tmp_path / "completeness", measure(recover(read_results(tmp_path)), np.random.default_rng(6)), []
    )
    assert (tmp_path / "completeness" / "candidates.ecsv").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "candidates.ecsv").write_text("somebody else's")
    (tmp_path / "other" / "settings.toml").write_text('[run]\nverb = "alerts score"\n')
    assert [result.name for result in read_results(tmp_path)] == ["a", "b"]


def test_an_image_that_could_not_be_searched_is_told(tmp_path):
    rng = np.random.default_rng(6)
    make_folder(tmp_path / "results", rng)
    night = tmp_path / "night"
    night.mkdir()
    (tmp_path / "results" / "b" / "simulated_objects.list").rename(night / "simulated_objects.list")
    (tmp_path / "results" / "b" / "candidates.ecsv").unlink()
    words = f'[run]\nverb = "images search"\nproblem = "no stars"\nsource = "{night / "b.fits"}"\n'
    (tmp_path / "results" / "b" / "settings.toml").write_text(words)
    results = read_results(tmp_path / "results")
    failed = read_unsearched(tmp_path / "results")
    assert failed == [Unsearched("b", str(night / "b.fits"), 58)]  # of 60, two are cosmic rays
    told = unsearched_words(failed, len(results))
    assert told == "1 image of 2 could not be searched, its 58 simulated sources are not counted: b"
    figures = measure(recover(results), rng)
    assert told in render_page(build_page(figures, [], told))
    assert "of 58 simulated sources found" in summary(figures)
    assert unsearched_words([], 2) == ""


def test_a_faint_source_is_not_found_through_its_bright_neighbour(tmp_path):
    make_folder(tmp_path, np.random.default_rng(6), names=("a",), bands=("ztfr",), n=30, depth=30)
    table = Table.read(tmp_path / "a" / "simulated_objects.list", format="ascii.ecsv")
    faint = dict(zip(table.colnames, table[10], strict=True)) | {"mag": table["mag"][10] + 2}
    table.add_row(faint | {"x": faint["x"] + 1.2})
    table.write(tmp_path / "a" / "simulated_objects.list", format="ascii.ecsv", overwrite=True)
    found = recover(read_results(tmp_path)).injected["found"]
    assert found[10]
    assert not found[-1]
