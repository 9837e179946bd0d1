"""`tapetum lightcurves` as a user calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tapetum.cli.app import app
from tapetum.core.errors import InputError, PartialFailureError, UsageError
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.formats.opening import open_curves, write_curves
from tapetum.lightcurves.periods.array_backend import Backend
from tapetum.lightcurves.wanted import read_ids
from tapetum.report.read_tables import read_table

SOURCES = "ZTF_sources_20230109"
GRID = ("--samples-per-peak", "3", "--max-frequency", "4")


def call(*words: object) -> Any:
    """Run a verb; what went wrong is raised."""
    result = CliRunner().invoke(app, ["lightcurves", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bands of a source with a period of 0.7 d, and a curve that is too short."""
    rng = np.random.default_rng(8)
    times = [np.sort(rng.uniform(0, 30, n)) for n in (60, 60, 10)]
    mags = [18 + 0.3 * np.sin(2 * np.pi * t / 0.7) + rng.normal(0, 0.02, t.size) for t in times]
    about = {
        "lc_id": ["a", "b", "c"],
        "object_id": ["s", "s", "t"],
        "band": ["ztfg", "ztfr", "ztfg"],
        "ra": [10.0, 10.0, 20.0],
        "dec": [5.0, 5.0, 5.0],
        "label": ["rr", "rr", "?"],
    }
    path = tmp_path_factory.mktemp("curves") / "curves.parquet"
    write_curves(
        LightCurves.of_lists(times, mags, [np.full(t.size, 0.02) for t in times], pa.table(about)), path
    )
    return path


def test_features_with_every_option(file: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"ra": [10.0], "dec": [5.0], "w1mpro": [12.5]}), tmp_path / "wise.parquet")
    out = tmp_path / "f.parquet"
    call(
        "features", file, "-o", out, "--set", "scope", "--set", "tapetum", "--algorithms", "LS,CE,AOV", *GRID,
        "--nested", "fixed", "--remove-terrestrial", "--allwise", tmp_path / "wise.parquet", "--keep", "label",
        "--min-points", 40, "--catalogue", f"Mine={tmp_path / 'wise.parquet'}:w1mpro",
    )  # fmt: skip
    rows = read_table(out).to_pylist()
    assert [row["kept"] for row in rows] == [True, True, False]
    assert rows[0]["period_LS_CE_AOV"] == pytest.approx(0.7, rel=5e-3)
    assert rows[0]["fourier_power_best"] > 0.9
    assert (rows[0]["AllWISE__w1mpro"], rows[2]["AllWISE__w1mpro"]) == (12.5, None)
    assert (rows[1]["Mine__w1mpro"], rows[1]["label"]) == (12.5, "rr")
    before = out.stat().st_mtime_ns
    call("features", file, "-o", out, "--min-points", 5)  # other options: made again
    assert out.stat().st_mtime_ns > before
    assert read_table(out)["kept"].to_pylist() == [True] * 3
    before = out.stat().st_mtime_ns
    call("features", file, "-o", out, "--min-points", 5)
    assert out.stat().st_mtime_ns == before


def test_a_bad_file_stops_no_other(file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"nothing")
    out = tmp_path / "f.parquet"
    with pytest.raises(PartialFailureError, match="1 of 2 parts rejected"):
        call("features", file, bad, "-o", out)
    assert read_table(out).num_rows == 3
    with pytest.raises(InputError, match="none of 1 parts could be used"):
        call("features", bad, "-o", tmp_path / "g.parquet")
    assert not (tmp_path / "g.parquet").exists()


@pytest.mark.parametrize("verb", ["periods", "features"])
def test_a_device_is_chosen_by_an_option(
    verb: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Any] = []
    put = Backend.put
    monkeypatch.setattr(Backend, "put", lambda self, values: used.append(self.xp) or put(self, values))
    words = (verb, file, "--algorithms", "LS,CE", *GRID)
    for device in ("cpu", "numpy"):
        call(*words, "--device", device, "-o", tmp_path / f"{device}.parquet")
        assert set(used) == ({np} if device == "numpy" else set())
    loops, arrays = (read_table(tmp_path / f"{device}.parquet") for device in ("cpu", "numpy"))
    for name in ("period_LS", "period_CE"):
        ours, theirs = ([value for value in table[name].to_pylist() if value] for table in (loops, arrays))
        assert theirs == pytest.approx(ours, rel=1e-9)
        assert len(ours) == 2
    for device in ("cuda:99", "tpu", "cuda:x"):
        with pytest.raises(UsageError, match=f"device .?{device}"):
            call(*words, "--device", device, "-o", tmp_path / "none.parquet")


def test_periods_by_source(file: Path, tmp_path: Path) -> None:
    out, grams = tmp_path / "p.parquet", tmp_path / "grams.parquet"
    call("periods", file, "-o", out, "--by", "source", "--algorithms", "LS", *GRID, "--periodograms", grams)
    rows = read_table(out).to_pylist()
    assert [(row["object_id"], row["n_curves"], row["n_kept"]) for row in rows] == [("s", 2, 2), ("t", 1, 0)]
    assert rows[0]["period"] == pytest.approx(0.7, rel=2e-3)
    assert read_table(grams).column_names == ["object_id", "frequency", "LS"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("features", "--set", "nonsense"), "no set of features is called nonsense"),
        (("features", "--algorithms", "LS,XX"), "--algorithms: algorithms.1"),
        (("features", "--catalogue", "x"), "--catalogue x: write NAME=FILE"),
        (("features", "--column", "time"), "write OURS=THEIRS"),
        (("features", "--programs", "a"), "--programs a"),
        (("periods", "--algorithms", ""), "--algorithms"),
        (("periods", "--max-frequency", "-1"), "frequencies: maximum"),
        (("periods", "--periodograms", "x.csv"), "only .parquet and .h5"),
    ],
)
def test_wrong_words_are_refused_before_the_work(file: Path, tmp_path: Path, words: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        call(words[0], file, "-o", tmp_path / "f.parquet", *words[1:])
    assert said in str(caught.value)
    with pytest.raises(UsageError, match="unknown table suffix"):
        call(words[0], file, "-o", tmp_path / "f.txt")
    assert list(tmp_path.glob("f.*")) == []


# ---- from a server -------------------------------------------------------------------------------------------------


@pytest.fixture
def server(kowalski: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TAPETUM_KOWALSKI__URL", kowalski.url)
    monkeypatch.setenv("TAPETUM_KOWALSKI__USER", kowalski.user)
    monkeypatch.setenv("TAPETUM_KOWALSKI__PASSWORD", kowalski.password)
    kowalski.catalogues[SOURCES] = [document(number) for number in range(1, 7)]
    return kowalski


def document(number: int) -> dict[str, Any]:
    points = [
        {"hjd": 2458000.5 + k, "mag": 18.0, "magerr": 0.1, "catflags": 0, "programid": 1}
        for k in range(number * 10)
    ]
    return {
        "_id": number, "filter": 1, "field": 301, "ccd": 1 + number % 2, "quad": 3, "nobs": len(points),
        "ra": 10.0 + number, "dec": 20.0, "data": points,
        "coordinates": {"radec_geojson": {"type": "Point", "coordinates": [10.0 + number - 180.0, 20.0]}},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["curves", "features"])
@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_a_quadrant_without_light_curves_has_empty_tables(
    server: Any, tmp_path: Path, kind: str, suffix: str
) -> None:
    ids, out = tmp_path / f"ids{suffix}", tmp_path / "out.parquet"
    call("ids", "--field", 999, "--ccd", 1, "--quadrant", 1, "-o", ids)
    assert call("fetch", ids, "--kind", kind, "-o", out).exit_code == 0
    assert read_table(out).num_rows == 0
    if kind == "curves":
        features = tmp_path / "features.parquet"
        assert call("features", out, "-o", features).exit_code == 0
        assert read_table(features).num_rows == 0
        assert {"lc_id", "kept", "median"} <= set(read_table(features).column_names)


def test_a_counted_quadrant_has_ids(server: Any, tmp_path: Path) -> None:
    server.catalogues[SOURCES].append({**document(1), "_id": 9, "ccd": 9})  # 10 points only
    counts = tmp_path / "quadrants.csv"
    call("ids", "--count", "--field", 301, "-o", counts)
    n_curves = {row["ccd"]: row["n_curves"] for row in read_table(counts).to_pylist() if row["n_curves"]}
    assert n_curves == {1: 3, 2: 2}


def test_ids_then_light_curves(server: Any, tmp_path: Path) -> None:
    out = tmp_path / "ids.h5"
    call("ids", "--field", 301, "--ccd", "1-2", "--quadrant", 3, "-o", out)
    assert sorted(read_ids(out)) == ["2", "3", "4", "5", "6"]  # with 20 points and more
    curves = tmp_path / "curves.parquet"
    call("fetch", out, "-o", curves, "--batch", 2, "--limit", 3)
    assert open_curves(curves).read().ids == read_ids(out)[:3]
    settings = (tmp_path / "curves.parquet.settings.toml").read_text()
    assert server.password not in settings
    call("ids", "--field", 301, "--ccd", 1, "--quadrant", 3, "-o", tmp_path / "apart", "--separate")
    assert (tmp_path / "apart" / "field_301" / "data_ccd_01_quad_3.h5").is_file()


def test_light_curves_around_positions(server: Any, tmp_path: Path) -> None:
    (tmp_path / "wanted.csv").write_text("name,ra,dec\nx,13.0,20.0\ny,50,50\n")
    matches = tmp_path / "matches.csv"
    call("fetch", tmp_path / "wanted.csv", "-o", tmp_path / "c.parquet", "--matches", matches)
    assert open_curves(tmp_path / "c.parquet").read().ids == ["3"]
    assert read_table(matches)["object_id"].to_pylist() == ["x"]


def test_stored_features_are_fetched_and_imputed(server: Any, tmp_path: Path) -> None:
    rows = [{"_id": k, "ra": 1.0, "dec": 2.0, "n": 50, "Gaia_EDR3__parallax_error": 0.1 * k} for k in (1, 2)]
    server.catalogues["ZTF_source_features_DR16"] = [*rows, {"_id": 3, "ra": 1.0, "dec": 2.0, "n": 50}]
    (tmp_path / "ids.csv").write_text("ztf_id\n1\n2\n3\n")
    call("fetch", tmp_path / "ids.csv", "--kind", "features", "--impute", "-o", tmp_path / "f.parquet")
    table = read_table(tmp_path / "f.parquet")
    assert table["Gaia_EDR3__parallax_error"].to_pylist() == pytest.approx([0.1, 0.2, 0.15])


def test_a_server_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Kowalski server"):
        call("ids", "--field", 301, "-o", tmp_path / "ids.h5")
    with pytest.raises(UsageError, match="--ccd a: a number"):
        call("ids", "--field", 301, "--ccd", "a", "--server", "http://127.0.0.1:9", "-o", tmp_path / "ids.h5")


def test_the_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tapetum.cli.app import app\n"
        "try:\n    app(['lightcurves', 'features', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'numpy', 'astropy', 'pyarrow', 'numba'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]
    assert "--remove-terrestrial" in done.stdout
