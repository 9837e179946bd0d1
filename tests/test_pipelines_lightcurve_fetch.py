"""From a server to a file: batches, restarts, failures, imputation, formats."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tapetum import __version__
from tapetum.core.errors import InputError, NetworkError, UsageError
from tapetum.core.http import HttpClient, Patience
from tapetum.core.settings import Settings
from tapetum.lightcurves.formats.opening import open_curves
from tapetum.lightcurves.impute import Imputer, Strategy, described_strategies
from tapetum.lightcurves.remote import Quadrant, fetch_curves, quadrants_of
from tapetum.lightcurves.wanted import read_ids
from tapetum.pipelines.lightcurve_fetch import FetchReport, fetch, fetch_once, parts_folder
from tapetum.pipelines.lightcurve_impute import Imputation
from tapetum.pipelines.lightcurve_plans import plan_curves, plan_features, plan_ids, quadrant_path
from tapetum.report.read_tables import read_table, words_of
from tapetum.surveys.kowalski import Kowalski, Login

SOURCES, FEATURES = "ZTF_sources_20230109", "ZTF_source_features_DR16"
PATIENCE = Patience(connect_s=5, read_s=5, attempts=2, pause_s=0.01)
BROKEN = (400, b'{"status": "error", "message": "ExecutionTimeout: operation exceeded time limit"}')


@pytest.fixture
def server(kowalski: Any) -> Iterator[Kowalski]:
    with HttpClient(PATIENCE) as client:
        yield Kowalski(kowalski.url, client, Login(kowalski.user, kowalski.password))


@pytest.fixture(scope="session")
def documents(real_data: Path) -> list[dict[str, Any]]:
    text = (real_data / "catalogs" / "golden_documents_ztf_000245_zr_c10_q1.json").read_text()
    return list(json.loads(text))


def ids_of(documents: list[dict[str, Any]]) -> list[str]:
    return [str(document["_id"]) for document in documents]


def features(number: int, **more: Any) -> dict[str, Any]:
    place = {"ra": 10.0, "dec": 20.0, "field": 301, "ccd": 2, "quad": 3, "n": 50 + number}
    dmdt = np.full((26, 26), number / 26).tolist()
    return {"_id": number, **place, "ad": number / 10, "period_ECE": 1.0 + number, "dmdt": dmdt, **more}


def clock() -> Any:
    times = (datetime(2026, 11, 20, 12, tzinfo=UTC) + timedelta(minutes=k) for k in range(1000))
    return partial(next, times)


def asked_ids(kowalski: Any) -> list[list[int]]:
    return [body["query"]["filter"]["_id"]["$in"] for body in kowalski.asked]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".h5"])
def test_light_curves_arrive_as_they_are(
    server: Kowalski, kowalski: Any, documents: list[dict[str, Any]], tmp_path: Path, suffix: str
) -> None:
    kowalski.catalogues[SOURCES] = documents
    output = str(tmp_path / f"curves{suffix}")
    plan = plan_curves(SOURCES, [*ids_of(documents), "77"], batch=4, programs=(1, 2))
    report = fetch(plan, server, output, threads=2, now=clock())
    assert report == FetchReport(
        n_rows=9,
        n_asked=10,
        n_missing=1,
        counts={batch.name: n for batch, n in zip(plan.batches, (4, 4, 1), strict=True)},
    )
    beside = [f"curves{suffix}-metadata.json"] if suffix == ".csv" else []
    assert sorted(entry.name for entry in tmp_path.glob("curves*")) == [f"curves{suffix}", *beside]
    there = list(open_curves(output).batches(3))
    expected = fetch_curves(server, SOURCES, ids_of(documents), programs=(1, 2))
    assert [lc_id for curves in there for lc_id in curves.ids] == expected.ids
    for name in ("time", "mag", "magerr", "flags"):
        joined = np.concatenate([getattr(curves, name) for curves in there])
        np.testing.assert_array_equal(joined, getattr(expected, name))
    words = words_of(read_table(output))
    assert words["catalogue"] == SOURCES
    assert words["tapetum"] == __version__
    assert words["programs"] == "[1, 2]"
    assert words["fetched_start_utc"] < words["fetched_end_utc"]


def test_a_failed_batch_is_named_and_nothing_else_is_asked_again(
    server: Kowalski, kowalski: Any, documents: list[dict[str, Any]], tmp_path: Path
) -> None:
    kowalski.catalogues[SOURCES] = documents
    ids, output = ids_of(documents), str(tmp_path / "curves.parquet")
    plan = plan_curves(SOURCES, ids, batch=3)
    kowalski.fault_of = lambda body: BROKEN if int(ids[4]) in body["query"]["filter"]["_id"]["$in"] else None
    first = fetch(plan, server, output)
    reason = "the server refuses: ExecutionTimeout: operation exceeded time limit"
    assert first.problems == (f"batch 2 ({ids[3]} to {ids[5]}): {kowalski.url}/api/queries: {reason}",)
    assert (first.n_rows, first.n_asked, first.n_missing) == (6, 6, 0)
    table = pq.read_table(output)
    assert table["lc_id"].to_pylist() == ids[:3] + ids[6:]
    assert json.loads(words_of(table)["not_in_it"]) == [plan.batches[1].name]
    kowalski.fault_of = lambda body: None
    kowalski.asked.clear()
    second = fetch(plan, server, output)
    assert asked_ids(kowalski) == [[int(lc_id) for lc_id in ids[3:6]]]
    assert (second.n_rows, second.n_reused, second.problems) == (9, 2, ())
    table = pq.read_table(output)
    assert table["lc_id"].to_pylist() == ids
    assert "not_in_it" not in words_of(table)
    assert not parts_folder(output).exists()


def test_a_run_that_was_stopped_goes_on(
    server: Kowalski, kowalski: Any, documents: list[dict[str, Any]], tmp_path: Path
) -> None:
    kowalski.catalogues[SOURCES] = documents
    output = str(tmp_path / "curves.parquet")
    plan = plan_curves(SOURCES, ids_of(documents), batch=1)

    def stop(done: int, total: int | None = None) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(plan, server, output, threads=1, progress=stop)
    assert not Path(output).exists()
    before = len(kowalski.asked)
    assert 4 <= before < 9
    report = fetch(plan, server, output, threads=1)
    assert len(kowalski.asked) == 9
    assert report.n_reused == before
    assert pq.read_table(output)["lc_id"].to_pylist() == ids_of(documents)


def test_parts_of_another_plan_are_not_taken(
    server: Kowalski, kowalski: Any, documents: list[dict[str, Any]], tmp_path: Path
) -> None:
    kowalski.catalogues[SOURCES] = documents
    output, ids = str(tmp_path / "curves.parquet"), ids_of(documents)
    kowalski.fault_of = lambda body: BROKEN if int(ids[0]) in body["query"]["filter"]["_id"]["$in"] else None
    assert fetch(plan_curves(SOURCES, ids, batch=3), server, output).problems
    report = fetch(plan_curves(SOURCES, ids[3:], batch=3, programs=(1,)), server, output)
    assert (report.n_reused, report.n_rows) == (0, 6)


def test_finished_work_is_not_done_again(
    server: Kowalski, kowalski: Any, documents: list[dict[str, Any]], tmp_path: Path
) -> None:
    kowalski.catalogues[SOURCES] = documents
    output, plan = str(tmp_path / "curves.parquet"), plan_curves(SOURCES, ids_of(documents), batch=5)
    assert fetch_once(plan, server, output, Settings()).n_rows == 9
    asked = len(kowalski.asked)
    assert fetch_once(plan, server, output, Settings()) == FetchReport(n_rows=9, finished=True)
    assert len(kowalski.asked) == asked
    assert fetch_once(plan, server, output, Settings(), overwrite=True).n_reused == 0
    assert len(kowalski.asked) == 2 * asked
    text = (tmp_path / "curves.parquet.settings.toml").read_text()
    assert SOURCES in text
    assert kowalski.password not in text
    kowalski.fault_of = lambda body: BROKEN
    again = plan_curves(SOURCES, ids_of(documents)[:2])
    assert len(fetch_once(again, server, output, Settings()).problems) == 1
    assert pq.read_metadata(output).num_rows == 9  # what was there stays when nothing comes


def test_nobody_there_is_found_out_soon(server: Kowalski, kowalski: Any, tmp_path: Path) -> None:
    server.login()
    kowalski.fault_of = lambda body: (503, b"busy")
    plan = plan_curves(SOURCES, [str(n) for n in range(200)], batch=1)
    report = fetch(plan, server, str(tmp_path / "c.parquet"), threads=2)
    assert len(report.problems) == 200
    assert report.problems[-1] == "batch 200 (199 to 199): not asked for, since 10 in a row failed"
    assert len(kowalski.asked) < 60
    assert not (tmp_path / "c.parquet").exists()
    with HttpClient(PATIENCE) as client, pytest.raises(InputError, match="check user and password"):
        fetch(plan, Kowalski(kowalski.url, client, Login("vera", "no")), str(tmp_path / "c.parquet"))
    with HttpClient(PATIENCE) as client, pytest.raises(NetworkError):
        fetch(plan, Kowalski("http://127.0.0.1:9", client, Login("u", "p")), str(tmp_path / "c.parquet"))


@pytest.mark.parametrize("suffix", [".parquet", ".h5", ".csv"])
def test_ids_of_a_whole_field_in_one_file(
    server: Kowalski, kowalski: Any, tmp_path: Path, suffix: str
) -> None:
    kowalski.catalogues[FEATURES] = [
        features(100 * q.ccd + 10 * q.quadrant + k, ccd=q.ccd, quad=q.quadrant, n=19 + k)
        for q in quadrants_of(301, (1, 2))
        for k in range(4)
    ]
    output = str(tmp_path / f"field_301{suffix}")
    plan = plan_ids(FEATURES, quadrants_of(301, (1, 3)), min_epochs=20, page=2)
    report = fetch(plan, server, output, now=clock())
    assert (report.n_rows, report.n_asked, len(report.counts)) == (24, 0, 12)
    table = read_table(output)
    assert table.column_names[:2] == ["lc_id", "survey"]
    assert table["lc_id"].to_pylist()[:4] == ["111", "112", "113", "121"]
    assert min(table["n_points"].to_pylist()) == 20
    words = words_of(table)
    assert json.loads(words["counts"])["field 301 CCD 1 quadrant 1"] == 3
    assert (words["catalogue"], words["server"], words["tapetum"]) == (FEATURES, kowalski.url, __version__)
    assert words["min_epochs"] == "20"
    assert words["fetched_start_utc"] == "2026-11-20T12:00:00+00:00"
    assert words["fetched_end_utc"] == "2026-11-20T12:11:00+00:00"
    assert read_ids(output) == table["lc_id"].to_pylist()


def test_ids_of_one_quadrant_with_skip_and_limit(server: Kowalski, kowalski: Any, tmp_path: Path) -> None:
    kowalski.catalogues[FEATURES] = [features(number) for number in range(10)]
    where = Quadrant(301, 2, 3)
    path = quadrant_path(tmp_path, where)
    assert path == tmp_path / "field_301" / "data_ccd_02_quad_3.h5"
    fetch(plan_ids(FEATURES, [where], skip=3, limit=4), server, str(path))
    assert read_ids(path) == ["3", "4", "5", "6"]


def test_ids_go_to_stdout(server: Kowalski, kowalski: Any, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    kowalski.catalogues[FEATURES] = [features(1)]
    fetch(plan_ids(FEATURES, [Quadrant(301, 2, 3)]), server, "-")
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert lines[0] == "lc_id,survey,band,ra,dec,field,ccd,quadrant,n_points"
    assert lines[1] == '"1","ztf",,10,20,301,2,3,51'


@pytest.mark.parametrize("suffix", [".parquet", ".h5", ".csv"])
def test_stored_features_whose_batches_differ(
    server: Kowalski, kowalski: Any, tmp_path: Path, suffix: str
) -> None:
    kowalski.catalogues[FEATURES] = [
        features(1, n_ztf_alerts=2, only_here=7),
        features(2, n_ztf_alerts=None, ad=1),
        features(3, n_ztf_alerts=2.5, name="star"),
        features(4, n_ztf_alerts=math.nan, period_ECE=None),
    ]
    output = str(tmp_path / f"features{suffix}")
    report = fetch(plan_features(FEATURES, ["4", "3", "2", "1", "5"], batch=1), server, output)
    assert (report.n_rows, report.n_missing) == (4, 1)
    assert report.left_out == (("dmdt",) if suffix == ".csv" else ())
    table = read_table(output)
    assert table["lc_id"].to_pylist() == ["4", "3", "2", "1"]
    assert table["ad"].to_pylist() == [0.4, 0.3, 1.0, 0.1]
    assert table["only_here"].to_pylist() == [None, None, None, 7]
    assert table["name"].to_pylist() == [None, "star", None, None]
    assert table["period_ECE"].to_pylist() == [None, 4.0, 3.0, 2.0]
    assert table["n_ztf_alerts"].to_pylist()[1:] == [2.5, None, 2.0]
    if suffix != ".csv":
        assert table["dmdt"].type.list_size == 676
        assert table["dmdt"].to_pylist()[0] == pytest.approx([4 / 26] * 676)
    assert words_of(table)["catalogue"] == FEATURES


def test_features_that_do_not_fit_together_say_so(server: Kowalski, kowalski: Any, tmp_path: Path) -> None:
    kowalski.catalogues[FEATURES] = [features(1, odd="text"), features(2, odd=1.0)]
    with pytest.raises(InputError, match=r"do not fit together: .*odd"):
        fetch(plan_features(FEATURES, ["1", "2"], batch=1), server, str(tmp_path / "f.parquet"))


def test_missing_features_are_replaced_on_the_way(server: Kowalski, kowalski: Any, tmp_path: Path) -> None:
    mags = {f"PS1_DR1__{band}MeanPSFMag": 15.0 for band in "gr"}
    kowalski.catalogues[FEATURES] = [
        features(1, **mags, PS1_DR1__gMeanPSFMagErr=1, n_ztf_alerts=3),
        features(2, **mags, PS1_DR1__gMeanPSFMagErr=4, n_ztf_alerts=None),
        features(3, PS1_DR1__gMeanPSFMag=15.0, PS1_DR1__rMeanPSFMag=None, PS1_DR1__gMeanPSFMagErr=None),
        features(4, **mags, PS1_DR1__gMeanPSFMagErr=5, n_ztf_alerts=1, ad=None, w1sigmpro=0.5),
    ]
    plan = plan_features(FEATURES, ["1", "2", "3", "4"], batch=2)
    output = str(tmp_path / "f.parquet")
    fetch(plan, server, output, imputation=Imputation())
    table = pq.read_table(output)
    assert table["PS1_DR1__gMeanPSFMagErr"].to_pylist() == [1.0, 4.0, 4.0, 5.0]
    assert table["PS1_DR1__rMeanPSFMag"].to_pylist() == [15.0] * 4
    assert table["n_ztf_alerts"].to_pylist() == [3, 0, 0, 1]
    assert table["w1sigmpro"].to_pylist() == [0.5] * 4  # also where a batch knows nothing of it
    assert table["imputed"].to_pylist()[1:] == [
        "n_ztf_alerts w1sigmpro", "PS1_DR1__gMeanPSFMagErr PS1_DR1__rMeanPSFMag n_ztf_alerts w1sigmpro", None,
    ]  # fmt: skip
    assert table["ad"].to_pylist() == [0.1, 0.2, 0.3, None]  # features without a rule stay as they are
    assert json.loads(words_of(table)["imputation"])["n_ztf_alerts"] == "zero"
    dropping = fetch(plan, server, output, imputation=Imputation(otherwise=Strategy.DROP))
    assert (dropping.n_rows, dropping.n_dropped) == (3, 1)
    train = pa.table({"PS1_DR1__gMeanPSFMagErr": [9.0, 9.0]})
    frozen = Imputation(Imputer.fit(train, described_strategies(train.column_names)))
    fetch(plan, server, output, imputation=frozen)
    assert pq.read_table(output)["PS1_DR1__gMeanPSFMagErr"].to_pylist() == [1.0, 4.0, 9.0, 5.0]
    settings = Settings()
    assert not fetch_once(plan, server, output, settings, imputation=frozen).finished
    assert fetch_once(plan, server, output, settings, imputation=frozen).finished
    assert not fetch_once(plan, server, output, settings).finished  # other rules are another output


def test_what_cannot_be_is_refused_before_the_work(server: Kowalski, kowalski: Any, tmp_path: Path) -> None:
    curves, ids = plan_curves(SOURCES, ["1"]), plan_ids(SOURCES, [Quadrant(301, 1, 1)])
    for plan, output in ((curves, "-"), (curves, "c.txt"), (ids, "ids"), (ids, str(tmp_path))):
        with pytest.raises(UsageError):
            fetch(plan, server, output)
    assert kowalski.headers == []
    for bad in (
        partial(plan_ids, SOURCES, []),
        partial(plan_ids, SOURCES, [Quadrant(301, 1, 1)], limit=0),
        partial(plan_ids, SOURCES, [Quadrant(301, 1, 1)], skip=-1),
        partial(plan_curves, SOURCES, [], batch=0),
        partial(plan_features, SOURCES, ["1"], batch=0),
    ):
        with pytest.raises(UsageError):
            bad()
