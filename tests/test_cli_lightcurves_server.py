"""Features with what a server has around light curves, and with missing values replaced, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tapetum.cli.app import app
from tapetum.core.errors import InputError, NetworkError, UsageError
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.formats.opening import write_curves
from tapetum.report.read_tables import read_table

BROKEN = (400, b'{"status": "error", "message": "ExecutionTimeout"}')


def call(*words: object) -> Any:
    """Run a verb; what went wrong is raised."""
    result = CliRunner().invoke(app, ["lightcurves", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five sources at declination 5 deg: four with enough points, of which the last has no position."""
    rng = np.random.default_rng(8)
    times = [np.sort(rng.uniform(0, 100, n)) for n in (60, 60, 60, 60, 10)]
    about = {
        "lc_id": list("abcde"),
        "object_id": list("ABCDE"),
        "ra": [10.0, 20.0, 30.0, None, 50.0],
        "dec": [5.0, 5.0, 5.0, None, 5.0],
    }
    mags = [18 + rng.normal(0, 0.1, t.size) for t in times]
    path = tmp_path_factory.mktemp("curves") / "curves.parquet"
    write_curves(
        LightCurves.of_lists(times, mags, [np.full(t.size, 0.1) for t in times], pa.table(about)), path
    )
    return path


def entry(number: int, ra: float, arcsec: float = 0.0, **more: Any) -> dict[str, Any]:
    dec = 5.0 + arcsec / 3600
    place = {"radec_geojson": {"type": "Point", "coordinates": [ra - 180.0, dec]}}
    return {"_id": number, "ra": ra, "dec": dec, "coordinates": place, **more}


@pytest.fixture
def server(kowalski: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TAPETUM_KOWALSKI__USER", kowalski.user)
    monkeypatch.setenv("TAPETUM_KOWALSKI__PASSWORD", kowalski.password)
    kowalski.catalogues["Gaia_EDR3"] = [
        entry(11, 10.0, 1.5, parallax=1.0, phot_g_mean_mag=17.0, parallax_error=0.1),
        entry(12, 10.0, 0.5, parallax=2.0, phot_g_mean_mag=17.5, parallax_error=0.3),
        entry(13, 20.0, 20.0, phot_g_mean_mag=9.0, bp_rp=0.5),  # in its glare lies B
        entry(14, 30.0, 100.0, phot_g_mean_mag=12.9, bp_rp=0.5),
    ]
    kowalski.catalogues["PS1_DR1"] = [entry(21, 30.0, gMeanPSFMag=16.0, gMeanPSFMagErr=0.01)]
    kowalski.catalogues["AllWISE"] = [{**entry(0, 10.0, w1mpro=14.0), "_id": "J004000.0+050000"}]
    kowalski.catalogues["ZTF_alerts"] = [
        entry(1, 10.0, 1.0, classifications={"braai": 0.4}),
        entry(2, 10.0, 0.2, classifications={"braai": 0.8, "other": 0.0}),
        entry(3, 10.0, 2.5, classifications={"braai": 0.1}),
    ]
    kowalski.catalogues["Mine"] = [entry(5, 50.0, kind="RR")]
    return kowalski


def test_catalogues_around_light_curves_come_from_a_server(server: Any, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    words = ("features", file, "-o", out, "--server", server.url, "--server-catalogue", "Mine:kind")
    call(*words, "--query-size-limit", 2)
    rows = {row["lc_id"]: row for row in read_table(out).to_pylist()}
    assert [row["reason"] for row in rows.values()] == ["kept", "bright_star", "kept", "kept", "short"]
    a, d = rows["a"], rows["d"]
    assert (a["Gaia_EDR3___id"], a["Gaia_EDR3__parallax"], a["AllWISE__w1mpro"]) == (12, 2.0, 14.0)
    assert a["AllWISE___id"] == "J004000.0+050000"
    assert (a["n_ztf_alerts"], a["mean_ztf_alert_braai"]) == (2, pytest.approx(0.6))
    assert (rows["c"]["n_ztf_alerts"], rows["c"]["mean_ztf_alert_braai"]) == (0, 0.0)
    assert (rows["c"]["PS1_DR1__gMeanPSFMag"], rows["c"]["PS1_DR1__rMeanPSFMag"]) == (16.0, None)
    assert (rows["e"]["Mine__kind"], rows["a"]["Mine__kind"]) == ("RR", None)
    assert (d["Gaia_EDR3___id"], d["n_ztf_alerts"]) == (None, None)  # nobody knows where it is
    sizes = [len(body["query"]["object_coordinates"]["radec"]) for body in server.asked]
    assert max(sizes) == 2
    assert not list(tmp_path.glob("*.around"))
    assert server.password not in (tmp_path / "f.parquet.settings.toml").read_text()
    asked = len(server.asked)
    call(*words)  # finished: how many positions a question has decides nothing
    assert len(server.asked) == asked
    call(*words, "--xmatch-radius-arcsec", 3)
    assert read_table(out)["n_ztf_alerts"].to_pylist()[0] == 3


def test_local_tables_and_none_are_not_asked_for(server: Any, file: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"ra": [10.0], "dec": [5.0], "w1mpro": [12.5]}), tmp_path / "wise.parquet")
    out = tmp_path / "f.parquet"
    call(
        "features", file, "-o", out, "--server", server.url, "--allwise", tmp_path / "wise.parquet",
        "--ps1-catalogue", "none", "--alerts-catalogue", "none", "--no-bright-stars",
    )  # fmt: skip
    table = read_table(out)
    assert table["AllWISE__w1mpro"].to_pylist()[0] == 12.5
    assert table["kept"].to_pylist() == [True, True, True, True, False]
    assert {name for body in server.asked for name in body["query"]["catalogs"]} == {"Gaia_EDR3"}
    assert "n_ztf_alerts" not in table.column_names


def test_a_server_that_fails_is_asked_again_for_the_rest(server: Any, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    words = ("features", file, "-o", out, "--server", server.url)

    def busy(body: Any) -> tuple[int, bytes] | None:
        return BROKEN if "PS1_DR1" in body["query"]["catalogs"] else None

    server.fault_of = busy
    with pytest.raises(NetworkError, match=r"PS1_DR1: 1 of 1 questions failed.*ExecutionTimeout"):
        call(*words)
    assert not out.exists()
    server.fault_of = lambda body: None
    server.asked.clear()
    call(*words)
    asked = [
        (name, bool(selection["filter"]))
        for body in server.asked
        for name, selection in body["query"]["catalogs"].items()
    ]
    assert ("PS1_DR1", False) in asked
    assert ("Gaia_EDR3", False) not in asked  # answered before; what has a filter are bright stars
    assert read_table(out).num_rows == 5


def test_missing_features_are_replaced_by_described_rules(file: Path, tmp_path: Path) -> None:
    gaia = {
        "ra": [10.0, 20.0], "dec": [5.0, 5.0], "parallax": [1.0, 3.0], "parallax_error": [0.2, 0.4],
        "phot_g_mean_mag": [17.0, 18.0], "bp_rp": [1.0, 1.0],
    }  # fmt: skip
    pq.write_table(pa.table(gaia), tmp_path / "gaia.parquet")
    out, rules = tmp_path / "f.parquet", tmp_path / "rules.json"
    words = ("features", file, "--gaia", tmp_path / "gaia.parquet", "-o")
    call(*words, out, "--impute", "--save-imputer", rules)
    rows = {row["lc_id"]: row for row in read_table(out).to_pylist()}
    assert rows["c"]["Gaia_EDR3__parallax_error"] == pytest.approx(0.3)  # median
    assert rows["c"]["Gaia_EDR3__parallax"] == pytest.approx(2.0)  # nobody is near: the median
    assert rows["c"]["imputed"].split() == [
        "Gaia_EDR3__parallax", "Gaia_EDR3__parallax_error", "Gaia_EDR3__phot_g_mean_mag",
    ]  # fmt: skip
    assert (rows["a"]["imputed"], rows["e"]["Gaia_EDR3__parallax"], rows["e"]["ad"]) == (None, None, None)
    assert json.loads(rules.read_text())["strategies"]["Gaia_EDR3__parallax"] == "regress"
    one = tmp_path / "one.parquet"  # the rules do not depend on who else is there
    pq.write_table(pq.read_table(file).slice(2, 1), tmp_path / "c.parquet")
    call("features", tmp_path / "c.parquet", *words[2:], one, "--imputer", rules)
    assert read_table(one)["Gaia_EDR3__parallax"].to_pylist() == [rows["c"]["Gaia_EDR3__parallax"]]
    call(*words, tmp_path / "again.parquet", "--impute-from", out)
    again = {row["lc_id"]: row for row in read_table(tmp_path / "again.parquet").to_pylist()}
    assert again["d"]["Gaia_EDR3__parallax_error"] == pytest.approx(0.3)


def test_rules_by_name_and_for_the_rest(file: Path, tmp_path: Path) -> None:
    gaia = {"ra": [10.0, 20.0], "dec": [5.0, 5.0], "parallax": [1.0, 3.0], "phot_g_mean_mag": [17.0, 18.0]}
    pq.write_table(pa.table(gaia), tmp_path / "gaia.parquet")
    out = tmp_path / "f.parquet"
    words = (
        "features",
        file,
        "--gaia",
        tmp_path / "gaia.parquet",
        "--no-bright-stars",
        "-o",
        out,
        "--impute",
    )
    call(*words, "--impute-rule", "Gaia_EDR3__parallax=zero")
    assert read_table(out)["Gaia_EDR3__parallax"].to_pylist() == [1.0, 3.0, 0.0, 0.0, None]
    call(*words, "--impute-rule", "Gaia_EDR3__parallax=drop")
    table = read_table(out)
    assert table["lc_id"].to_pylist() == ["a", "b", "e"]  # what has no features keeps its row and reason
    assert table["reason"].to_pylist() == ["kept", "kept", "short"]


@pytest.mark.parametrize(
    ("words", "problem", "said"),
    [
        (("--imputer", "absent.json"), InputError, "absent.json: no such file"),
        (("--imputer", "x", "--impute-rule", "a=zero"), UsageError, "--imputer has its own rules"),
        (("--impute-rule", "ad=zero"), UsageError, "are for --impute"),
        (("--impute", "--impute-rule", "ad"), UsageError, "write FEATURE=RULE"),
        (("--impute", "--impute-rule", "ad=best"), InputError, "known rules: median mean zero regress"),
        (("--impute", "--impute-rule", "nonsense=zero"), InputError, "no column nonsense"),
        (("--server", "settings"), UsageError, "no Kowalski server"),
        (("--server", "http://127.0.0.1:9", "--server-catalogue", "X"), UsageError, "write NAME:COLUMN"),
        (("--server", "http://127.0.0.1:9", "--ps1-catalogue", "AllWISE"), UsageError, "named twice"),
    ],
)
def test_wrong_words_say_what_is_wrong(
    file: Path, tmp_path: Path, words: Any, problem: type[Exception], said: str
) -> None:
    with pytest.raises(problem) as caught:
        call("features", file, "-o", tmp_path / "f.parquet", *words)
    assert said in str(caught.value)
    assert not (tmp_path / "f.parquet").exists()


def curve(number: int, field: int, ccd: int, n_points: int) -> dict[str, Any]:
    return {
        "_id": number,
        "field": field,
        "ccd": ccd,
        "quad": 1,
        "nobs": n_points,
        "filter": 1,
        "ra": 1.0,
        "dec": 2.0,
    }


def test_quadrants_are_counted(server: Any, tmp_path: Path) -> None:
    server.catalogues["ZTF_sources_20230109"] = [
        curve(1, 301, 2, 50), curve(2, 301, 2, 10), curve(3, 301, 3, 60), curve(4, 305, 1, 70),
    ]  # fmt: skip
    out = tmp_path / "quadrants.csv"
    words = (
        "ids",
        "--count",
        "--field",
        "301-303,305",
        "--ccd",
        "1-3",
        "--quadrant",
        1,
        "--server",
        server.url,
    )
    call(*words, "--min-epochs", 20, "-o", out)
    rows = read_table(out).to_pylist()
    assert [(row["field"], row["ccd"]) for row in rows] == [
        (f, c) for f in (301, 302, 303, 305) for c in (1, 2, 3)
    ]
    assert [row["n_curves"] for row in rows] == [0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0]
    assert len(server.asked) == 4 + 2 * 3  # empty fields are asked for once
    call(*words, "--min-epochs", 0, "-o", out)
    assert sum(read_table(out)["n_curves"].to_pylist()) == 4
    with pytest.raises(UsageError, match="--count counts all of a quadrant"):
        call(*words, "--limit", 3, "-o", out)


@pytest.mark.parametrize("suffix", [".csv", ".h5", ".parquet"])
def test_tables_keep_their_words_and_rows_in_every_format(
    server: Any, file: Path, tmp_path: Path, suffix: str
) -> None:
    """What was fetched and what was made: catalogues, code version, dates, options; the same values everywhere."""
    from tapetum import __version__
    from tapetum.report.read_tables import units_of, words_of

    out = tmp_path / f"f{suffix}"
    call("features", file, "-o", out, "--server", server.url, "--gaia-catalogue", "none")
    table, words = read_table(out), words_of(read_table(out))
    assert words["tapetum"] == __version__
    assert words["made_start_utc"] <= words["made_end_utc"]
    options = json.loads(words["options"])
    assert options["elsewhere"]["alerts"] == "ZTF_alerts"
    assert options["elsewhere"]["server"] == server.url
    assert options["cleaning"]["min_points"] == 50
    assert units_of(table)["ra"] == "deg"
    plain = tmp_path / "plain.parquet"
    call("features", file, "-o", plain, "--server", server.url, "--gaia-catalogue", "none")
    expected = read_table(plain)
    shared = [name for name in expected.column_names if suffix != ".csv" or name != "dmdt"]
    assert table.column_names == shared
    for name in shared:
        assert table[name].to_pylist() == expected[name].to_pylist(), name
