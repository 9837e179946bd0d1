"""From light curves to one table of periods, by curve and by source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tapetum.core.errors import InputError
from tapetum.core.settings import Settings
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.formats.opening import open_each, write_curves
from tapetum.lightcurves.periods.grid import GridRules
from tapetum.lightcurves.periods.search import PeriodRules
from tapetum.pipelines.lightcurve_parts import MadeReport, make_once, parts_folder
from tapetum.pipelines.lightcurve_periods import By, PeriodOptions, period_parts, period_recipe
from tapetum.report.read_tables import read_table, units_of

RULES = PeriodRules(grid=GridRules(samples_per_peak=3, maximum=4))
PERIOD = (0.7, 0.45, 1.3)


def curves_of(sources: list[int], band: str, rng: np.random.Generator, points: int = 55) -> LightCurves:
    """One sinusoid per source in one band; that of source 2 is too short in g."""
    sizes = [10 if source == 2 and band == "ztfg" else points for source in sources]
    times = [np.sort(rng.uniform(0, 30, n)) for n in sizes]
    mags = [
        18 + 0.3 * np.sin(2 * np.pi * t / PERIOD[s]) + rng.normal(0, 0.02, t.size)
        for s, t in zip(sources, times, strict=True)
    ]
    table = pa.table(
        {
            "lc_id": [f"{band}{source}" for source in sources],
            "object_id": [f"s{source}" for source in sources],
            "band": [band] * len(sources),
            "ra": [10.0 + source for source in sources],
            "dec": [20.0] * len(sources),
        }
    )
    return LightCurves.of_lists(times, mags, [np.full(n, 0.02) for n in sizes], table)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bands of the same sources in two files, in another order."""
    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("curves")
    write_curves(curves_of([0, 1, 2], "ztfg", rng), folder / "g.parquet")
    write_curves(curves_of([2, 0, 1], "ztfr", rng), folder / "r.parquet")
    return folder


def make(folder: Path, output: Path, options: PeriodOptions, jobs: int = 1) -> MadeReport:
    paths = [str(folder)]
    parts = period_parts(open_each(paths), options.by)
    return make_once(parts, period_recipe(paths, options), str(output), Settings(jobs=jobs))


def test_one_row_per_curve(folder: Path, tmp_path: Path) -> None:
    report = make(folder, tmp_path / "p.parquet", PeriodOptions(RULES))
    assert report == MadeReport(n_rows=6, n_parts=2)
    table = read_table(tmp_path / "p.parquet")
    assert table["lc_id"].to_pylist() == ["ztfg0", "ztfg1", "ztfg2", "ztfr2", "ztfr0", "ztfr1"]
    for row in table.to_pylist():
        if row["lc_id"] == "ztfg2":
            assert (row["kept"], row["reason"], row["period"]) == (False, "short", None)
            continue
        truth = PERIOD[int(row["object_id"][1:])]
        assert row["period"] == pytest.approx(truth, rel=5e-3)
        assert row["period_LS"] == pytest.approx(truth, rel=1e-2)
        assert row["top_period"][0] == row["period"]
    assert units_of(table)["period_LS_CE_AOV"] == "d"
    assert not parts_folder(str(tmp_path / "p.parquet")).exists()


def test_one_row_per_source_though_its_curves_are_in_two_files(folder: Path, tmp_path: Path) -> None:
    report = make(folder, tmp_path / "p.parquet", PeriodOptions(RULES, "source"))
    assert report.n_rows == 3
    table = read_table(tmp_path / "p.parquet")
    assert table.column_names[:2] == ["object_id", "ra"]
    assert table["object_id"].to_pylist() == ["s0", "s1", "s2"]
    assert table["n_curves"].to_pylist() == [2, 2, 2]
    assert table["n_kept"].to_pylist() == [2, 2, 1]
    assert table["bands"].to_pylist() == ["ztfg ztfr", "ztfg ztfr", "ztfr"]
    assert table["period"].to_pylist() == pytest.approx(PERIOD, rel=2e-3)
    make(folder, tmp_path / "two.parquet", PeriodOptions(RULES, "source"), jobs=2)
    assert read_table(tmp_path / "two.parquet").equals(table)


def test_columns_that_are_kept_by_source_are_those_of_its_first_curve(tmp_path: Path) -> None:
    curves = curves_of([0, 1], "ztfg", np.random.default_rng(1))
    table = curves.table.append_column("label", pa.array(["one", "two"]))
    table = table.set_column(table.column_names.index("ra"), "ra", pa.array([np.nan, 12.0]))
    write_curves(replace(curves, table=table), tmp_path / "c.parquet")
    make(tmp_path / "c.parquet", tmp_path / "p.parquet", PeriodOptions(RULES, "source", keep=("label",)))
    found = read_table(tmp_path / "p.parquet")
    assert found["label"].to_pylist() == ["one", "two"]
    make(tmp_path / "c.parquet", tmp_path / "q.parquet", PeriodOptions(RULES, keep=("label",)))
    assert read_table(tmp_path / "q.parquet")["ra"].to_pylist() == [None, 12.0]
    report = make(
        tmp_path / "c.parquet", tmp_path / "r.parquet", PeriodOptions(RULES, "source", keep=("other",))
    )
    assert "no column other" in str(report.problems)


def test_the_partitions_of_a_catalogue_have_whole_sources(folder: Path, tmp_path: Path) -> None:
    every = open_each([folder / "g.parquet"])[0].read()
    write_curves(every, tmp_path / "hats")
    report = make(tmp_path / "hats", tmp_path / "p.parquet", PeriodOptions(RULES, "source"))
    assert report.n_parts == len(list((tmp_path / "hats").rglob("Npix=*.parquet")))
    table = read_table(tmp_path / "p.parquet")
    assert sorted(table["object_id"].to_pylist()) == ["s0", "s1", "s2"]
    notes = dict(zip(table["object_id"].to_pylist(), table["period_note"].to_pylist(), strict=True))
    assert notes == {"s0": None, "s1": None, "s2": "no light curve has enough good points"}


def test_sources_without_a_name_are_their_curves(tmp_path: Path, rng: np.random.Generator) -> None:
    curves = curves_of([0, 1], "ztfg", rng)
    names = pa.array(["s0", None], pa.string())
    table = curves.table.set_column(1, "object_id", names)
    write_curves(
        LightCurves(curves.time, curves.mag, curves.magerr, curves.offsets, table), tmp_path / "a.parquet"
    )
    make(tmp_path / "a.parquet", tmp_path / "p.parquet", PeriodOptions(RULES, "source"))
    assert read_table(tmp_path / "p.parquet")["object_id"].to_pylist() == ["s0", "ztfg1"]
    bare = curves.table.drop_columns(["object_id"])
    write_curves(
        LightCurves(curves.time, curves.mag, curves.magerr, curves.offsets, bare), tmp_path / "b.parquet"
    )
    report = make(tmp_path / "b.parquet", tmp_path / "q.parquet", PeriodOptions(RULES, "source"))
    assert report.n_parts == 0
    assert "no column object_id" in report.problems[0]


def test_a_source_in_two_partitions_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    curves = curves_of([0, 1], "ztfg", rng)
    table = curves.table.set_column(1, "object_id", pa.array(["s", "s"]))
    table = table.set_column(3, "ra", pa.array([10.0, 200.0]))
    write_curves(
        LightCurves(curves.time, curves.mag, curves.magerr, curves.offsets, table), tmp_path / "hats"
    )
    with pytest.raises(InputError, match="object_id s and 0 more are in several parts"):
        make(tmp_path / "hats", tmp_path / "p.parquet", PeriodOptions(RULES, "source"))


@pytest.mark.parametrize(("by", "key"), [("curve", "lc_id"), ("source", "object_id")])
def test_periodograms_go_into_a_file_of_their_own(folder: Path, tmp_path: Path, by: By, key: str) -> None:
    target = tmp_path / "grams.parquet"
    options = PeriodOptions(RULES, by, periodograms=str(target))
    make(folder, tmp_path / "p.parquet", options)
    table, grams = read_table(tmp_path / "p.parquet"), read_table(target)
    assert [name for name in grams.column_names if name not in ("lc_id", "object_id")] == [
        "frequency",
        "LS",
        "CE",
        "AOV",
    ]
    assert sorted(grams[key].to_pylist()) == sorted(table[key].to_pylist())
    of_row = {gram[key]: gram for gram in grams.to_pylist()}  # shares of sources come in any order
    assert "frequency" not in table.column_names
    for row in table.to_pylist():
        gram = of_row[row[key]]
        if row["kept"]:
            best = gram["frequency"][int(np.argmax(gram["LS"]))]
            assert 1 / best == pytest.approx(row["period_LS"])
            assert len(gram["CE"]) == len(gram["frequency"])
        else:
            assert gram["LS"] is None
    target.unlink()
    assert not make(folder, tmp_path / "p.parquet", options).finished  # it is made again with its file
    assert target.exists()
