"""From light curves to one table of features: golden values, catalogues, failures, restarts, lost workers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tapetum import __version__
from tapetum.core.errors import FormatError, InputError, TapetumError, UsageError
from tapetum.core.settings import Settings
from tapetum.lightcurves.clean import CleaningRules
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.features import features_of
from tapetum.lightcurves.formats.opening import open_each, write_curves
from tapetum.lightcurves.periods.grid import GridRules
from tapetum.lightcurves.periods.search import PeriodRules
from tapetum.pipelines.lightcurve_catalogues import GAIA, CatalogueFile, read_local
from tapetum.pipelines.lightcurve_features import (
    FeatureOptions,
    feature_maker,
    feature_recipe,
    feature_sets,
)
from tapetum.pipelines.lightcurve_parts import (
    MadeReport,
    Part,
    Recipe,
    make_once,
    parts_folder,
    parts_of,
)
from tapetum.report.read_tables import read_table, words_of

QUICK = GridRules(samples_per_peak=3, maximum=4)
GOLDEN = GridRules(samples_per_peak=3, maximum=10, remove_terrestrial=True)
HELPERS = """
import os, signal
from functools import partial

def deadly(mark, setup):
    return partial(_once, mark, setup())

def _once(mark, work, part):
    if part.number == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return work(part)
"""


def some_curves(count: int, rng: np.random.Generator, points: int = 60) -> LightCurves:
    """Sinusoids of 0.7 d; every fifth curve has too few points; two curves per source, one degree apart."""
    sizes = [20 if k % 5 == 4 else points for k in range(count)]
    times = [np.sort(rng.uniform(0, 30, n)) for n in sizes]
    mags = [18 + 0.3 * np.sin(2 * np.pi * t / 0.7) + rng.normal(0, 0.02, t.size) for t in times]
    table = pa.table(
        {
            "lc_id": [f"c{k}" for k in range(count)],
            "object_id": [f"s{k // 2}" for k in range(count)],
            "band": ["ztfg" if k % 2 else "ztfr" for k in range(count)],
            "ra": [10.0 + k // 2 for k in range(count)],
            "dec": [20.0] * count,
            "label": ["rr"] * count,
            "period_rough": [0.7] * count,
        }
    )
    return LightCurves.of_lists(times, mags, [np.full(n, 0.02) for n in sizes], table)


def in_groups(curves: LightCurves, path: Path, size: int) -> str:
    """A file of which every so many curves are a row group."""
    write_curves(curves, path)
    pq.write_table(pq.read_table(path), path, row_group_size=size, compression="zstd")
    return str(path)


def make(
    path: str, output: Path, options: FeatureOptions, settings: Settings | None = None, **more: Any
) -> MadeReport:
    recipe = feature_recipe([path], options)
    return make_once(parts_of(open_each([path])), recipe, str(output), settings or Settings(), **more)


@pytest.fixture(scope="module")
def curves() -> LightCurves:
    return some_curves(20, np.random.default_rng(5))


@pytest.fixture
def file(curves: LightCurves, tmp_path: Path) -> str:
    return in_groups(curves, tmp_path / "curves.parquet", 4)


def test_the_golden_columns_and_values_are_there(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "lightcurves"
    golden = pq.read_table(folder / "golden_features.parquet").slice(0, 24)
    raw = pq.read_table(folder / "lightcurves.parquet")
    rows = [raw["lc_id"].to_pylist().index(lc_id) for lc_id in golden["lc_id"].to_pylist()]
    keep = [row for row, kept in zip(rows, golden["kept"].to_pylist(), strict=True) if kept][:4]
    keep += [row for row, kept in zip(rows, golden["kept"].to_pylist(), strict=True) if not kept][:2]
    path, output = str(tmp_path / "some.parquet"), tmp_path / "features.parquet"
    pq.write_table(raw.take(keep), path)
    rules = PeriodRules(algorithms=("LS", "AOV"), grid=GOLDEN, ranking=None)
    assert make(path, output, FeatureOptions(("scope", "cesium"), rules)).n_rows == len(keep)
    ours = read_table(output)
    known = {
        name for name in golden.column_names if not name.endswith(("_CE", "_Ones", "_fixed", "_LS_CE_AOV"))
    }
    assert known - set(ours.column_names) <= {"baseline", "nfreq", "tied_times"}
    expected = {row["lc_id"]: row for row in golden.to_pylist()}
    for row in ours.to_pylist():
        want = expected[row["lc_id"]]
        assert row["kept"] == want["kept"]
        for name in ("median", "stetson_j", "sw", "period_LS", "period_AOV", "cesium_std"):
            assert row[name] == (None if want[name] is None else pytest.approx(want[name], rel=5e-6))
        if row["kept"]:
            assert row["f1_BIC_LS"] == pytest.approx(want["f1_BIC_LS"], rel=1e-6)
            np.testing.assert_allclose(row["dmdt"], want["dmdt"], atol=1e-6)


def test_every_curve_has_one_row_and_those_without_features_say_why(file: str, tmp_path: Path) -> None:
    output = tmp_path / "f.parquet"
    report = make(file, output, FeatureOptions(("scope", "tapetum"), keep=("label",)))
    assert report == MadeReport(n_rows=20, n_parts=5)
    table = read_table(output)
    assert table["lc_id"].to_pylist() == [f"c{k}" for k in range(20)]
    assert table["object_id"].to_pylist() == [f"s{k // 2}" for k in range(20)]
    assert set(table["label"].to_pylist()) == {"rr"}
    names = {f.name for f in features_of(["scope", "tapetum"]) if not f.periodic} | {"f1_power_Ones"}
    for row in table.to_pylist():
        good = int(row["lc_id"][1:]) % 5 != 4
        assert (row["kept"], row["reason"]) == ((True, "kept") if good else (False, "short"))
        if not good:
            assert all(row[name] is None for name in names)
            assert row["n_before"] == 20
        else:
            assert row["n"] == row["n_points"] == row["n_after"] > 50
            assert row["period_Ones"] == 1.0
    words = words_of(table)
    assert words["tapetum"] == __version__
    assert json.loads(words["options"])["cleaning"]["min_points"] == 50
    assert table.schema.field("wstd").metadata[b"unit"] == b"mag"
    assert not parts_folder(str(output)).exists()
    assert (tmp_path / "f.parquet.settings.toml").read_text().count("lightcurves features") == 1


def test_periods_are_searched_for_and_the_final_one_is_used(curves: LightCurves, tmp_path: Path) -> None:
    path, output = str(tmp_path / "c.parquet"), tmp_path / "f.parquet"
    write_curves(curves.take(np.arange(5)), path)
    rules = PeriodRules(grid=QUICK)
    make(path, output, FeatureOptions(("scope", "tapetum"), rules, given=("period_rough",)))
    table = read_table(output)
    for row in table.to_pylist()[:4]:
        for name in ("period_LS", "period_AOV", "period_LS_CE_AOV", "period", "period_rough"):
            assert row[name] == pytest.approx(0.7, rel=5e-3)
        assert row["fourier_power_best"] > 0.9
        assert row["f1_power_rough"] > 0.9
    last = table.to_pylist()[4]
    assert last["kept"] is False
    assert last["period"] is last["f1_power_LS_CE_AOV"] is last["fourier_power_best"] is None
    assert last["top_period"] is None
    assert len(set(table.column_names)) == len(table.column_names)


def test_catalogues_are_joined_by_position(file: str, tmp_path: Path) -> None:
    near, far = 1.5 / 3600, 2.5 / 3600
    gaia = pa.table(
        {
            "source_id": [11, 12, 13, 14],
            "ra": [10.0, 10.0, 11.0, 371.0 - 360.0],
            "dec": [20 + near, 20 + near / 3, 20 + far, None],
            "parallax": [1.0, 2.0, 3.0, 4.0],
            "phot_g_mean_mag": [17.0] * 4,
            "bp_rp": [1.0] * 4,
            "other": [0.0] * 4,
        }
    )
    pq.write_table(gaia, tmp_path / "gaia.parquet")
    other = tmp_path / "other.csv"
    other.write_text("RAJ2000,DEJ2000,kind\n12,20,star\n")
    pq.write_table(
        pa.table({"ra": [10.0, 10.0], "dec": [20.0] * 2, "drb": [0.5, 1.0]}), tmp_path / "a.parquet"
    )
    options = FeatureOptions(
        catalogues=(CatalogueFile(GAIA, str(tmp_path / "gaia.parquet")), CatalogueFile("Mine", str(other))),
        gaia=str(tmp_path / "gaia.parquet"),
        alerts=str(tmp_path / "a.parquet"),
    )
    make(file, tmp_path / "f.parquet", options)
    table = read_table(tmp_path / "f.parquet")
    rows = table.to_pylist()
    assert [rows[k]["Gaia_EDR3___id"] for k in (0, 1, 2, 19)] == [12, 12, None, None]
    assert rows[0]["Gaia_EDR3__parallax"] == 2.0
    assert "Gaia_EDR3__other" not in table.column_names
    assert rows[4]["kept"] is False
    assert rows[4]["Mine__kind"] == rows[5]["Mine__kind"] == "star"
    assert [rows[k]["n_ztf_alerts"] for k in (0, 2)] == [2, 0]
    assert [rows[k]["mean_ztf_alert_braai"] for k in (0, 2)] == [0.75, 0.0]


def test_sources_in_the_glare_of_a_star_get_no_features(file: str, tmp_path: Path) -> None:
    stars = {"ra": [10.0], "dec": [20 + 20 / 3600], "phot_g_mean_mag": [9.0], "bp_rp": [0.8]}
    pq.write_table(pa.table(stars), tmp_path / "gaia.parquet")
    make(file, tmp_path / "f.parquet", FeatureOptions(gaia=str(tmp_path / "gaia.parquet")))
    rows = read_table(tmp_path / "f.parquet").to_pylist()
    assert [row["reason"] for row in rows[:4]] == ["bright_star", "bright_star", "kept", "kept"]
    assert rows[0]["median"] is None


def test_a_catalogue_that_cannot_be_used_says_so(file: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("a,b\n1,2\n")
    with pytest.raises(FormatError, match=r"bad.csv: no position columns .* a b"):
        read_local(CatalogueFile("X", str(bad)))
    bad.write_text("ra,dec,b\n1,2,3\n")
    with pytest.raises(FormatError, match=r"bad.csv: no column c;"):
        read_local(CatalogueFile("X", str(bad), ("c",)))
    with pytest.raises(InputError, match="no such table"):
        feature_recipe([file], FeatureOptions(alerts=str(tmp_path / "none.csv")))
    with pytest.raises(UsageError, match="periods need different names"):
        feature_recipe([file], FeatureOptions(given=("period_LS",), periods=PeriodRules()))
    with pytest.raises(UsageError, match="no set of features is called nonsense"):
        feature_sets(["nonsense"])


def test_a_bad_part_is_named_and_the_rest_goes_on(file: str, tmp_path: Path) -> None:
    output = tmp_path / "f.parquet"
    whole = make(file, tmp_path / "whole.parquet", FeatureOptions())
    content = Path(file).read_bytes()
    where = pq.read_metadata(file).row_group(1)
    spoilt = bytearray(content)
    for number in range(where.num_columns):
        chunk = where.column(number)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        spoilt[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    status = Path(file).stat()
    Path(file).write_bytes(spoilt)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # so that the run is taken for the same
    first = make(file, output, FeatureOptions(), rejected=("x.csv: no such file",))
    assert (first.n_rows, first.n_parts) == (16, 4)
    assert first.problems[0] == "x.csv: no such file"
    assert first.problems[1].startswith(file)
    assert "not a readable Parquet file" in first.problems[1]
    assert len(json.loads(words_of(read_table(output))["not_in_it"])) == 2
    Path(file).write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = make(file, output, FeatureOptions())
    assert second == MadeReport(n_rows=whole.n_rows, n_parts=5, n_reused=4)
    assert read_table(output).equals(read_table(tmp_path / "whole.parquet"))
    assert make(file, output, FeatureOptions()) == MadeReport(n_rows=20, finished=True)
    again = make(file, output, FeatureOptions(), overwrite=True)
    assert again.n_reused == 0
    other = make(file, output, FeatureOptions(cleaning=CleaningRules(min_points=10)))
    assert other.n_reused == 0
    assert all(read_table(output)["kept"].to_pylist())


def test_columns_that_do_not_exist_are_named(file: str, tmp_path: Path) -> None:
    for options in (FeatureOptions(keep=("colour",)), FeatureOptions(given=("colour",))):
        report = make(file, tmp_path / "f.parquet", options)
        assert report.n_parts == 0
        assert "no column colour" in report.problems[0]
    assert not (tmp_path / "f.parquet").exists()


def test_flat_formats_have_no_lists(file: str, tmp_path: Path) -> None:
    report = make(file, tmp_path / "f.csv", FeatureOptions())
    assert report.left_out == ("dmdt",)
    table = read_table(tmp_path / "f.csv")
    assert table.num_rows == 20
    assert "dmdt" not in table.column_names
    make(file, tmp_path / "f.h5", FeatureOptions())
    assert "dmdt" in read_table(tmp_path / "f.h5").column_names


def test_pieces_of_a_part_are_the_part(curves: LightCurves, tmp_path: Path) -> None:
    path = in_groups(curves, tmp_path / "c.parquet", 11)
    parts = parts_of(open_each([path]), 3)
    assert [part.number for part in parts] == list(range(7))
    ids = [lc_id for part in parts for batch in part.batches(2) for lc_id in batch.ids]
    assert ids == curves.ids
    assert parts[1].name == f"{path}#0, part 2 of 4"


def test_an_empty_file_makes_an_empty_table(curves: LightCurves, tmp_path: Path) -> None:
    path = str(tmp_path / "c.parquet")
    write_curves(curves.take(np.arange(0)), path)
    assert make(path, tmp_path / "f.parquet", FeatureOptions()).n_rows == 0


# ---- lost workers --------------------------------------------------------------------------------------------------


@pytest.fixture
def helpers(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("helpers")
    (folder / "deadly_helpers.py").write_text(HELPERS)
    monkeypatch.setenv("DASK_CONFIG", str(folder / "dask"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(folder))
    import deadly_helpers

    yield deadly_helpers
    del sys.modules["deadly_helpers"]


def deadly(helpers: ModuleType, file: str, mark: Path) -> tuple[list[Part], Recipe]:
    """Parts, and a recipe whose worker dies once, at the third."""
    options = FeatureOptions(("scope", "tapetum"))
    recipe = feature_recipe([file], options)
    setup = partial(helpers.deadly, mark, partial(feature_maker, options))
    return parts_of(open_each([file])), Recipe(**{**vars(recipe), "setup": setup})


def test_after_a_killed_worker_the_same_table_is_made(helpers: ModuleType, file: str, tmp_path: Path) -> None:
    output = tmp_path / "f.parquet"
    make(file, tmp_path / "whole.parquet", FeatureOptions(("scope", "tapetum")))
    parts, recipe = deadly(helpers, file, tmp_path / "mark")
    with pytest.raises(TapetumError, match="by signal 9; what is finished is safe"):
        make_once(parts, recipe, str(output), Settings(jobs=2))
    assert not output.exists()
    assert parts_folder(str(output)).is_dir()
    report = make_once(parts, recipe, str(output), Settings(jobs=2))
    assert report.n_rows == 20
    assert 1 <= report.n_reused < 5
    assert read_table(output).equals(read_table(tmp_path / "whole.parquet"))
    assert not parts_folder(str(output)).exists()


def test_a_cluster_that_loses_a_worker_makes_the_same_table(
    helpers: ModuleType, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    pytest.importorskip("dask_jobqueue", reason="the extra `cluster` is not installed")
    from tapetum.pipelines import _cluster

    monkeypatch.setattr(_cluster, "LOOK_SECONDS", 0.2)
    make(file, tmp_path / "whole.parquet", FeatureOptions(("scope", "tapetum")))
    parts, recipe = deadly(helpers, file, tmp_path / "mark")
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        local_directory=str(tmp_path / "dask"),
        scheduler_kwargs={"allowed_failures": 2},
        silence_logs="CRITICAL",
    ) as cluster:
        settings = Settings(scheduler=cluster.scheduler_address)
        report = make_once(parts, recipe, str(tmp_path / "f.parquet"), settings)
    assert (tmp_path / "mark").exists()
    assert report == MadeReport(n_rows=20, n_parts=5)
    assert read_table(tmp_path / "f.parquet").equals(read_table(tmp_path / "whole.parquet"))
