"""The objects of a store as light curves: every point once, in pieces, through the command line."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from tapetum.cli.app import app
from tapetum.core.errors import InputError, TapetumError
from tapetum.core.settings import Settings
from tapetum.pipelines import lightcurve_wanted
from tapetum.pipelines.outputs import settings_path
from tapetum.report.read_tables import read_table, words_of
from tapetum.simulate.alerts import SimulatedAlert, simulate_alerts, write_alerts
from tapetum.store import curves as store_curves
from tapetum.store.curves import FADED, is_store, open_store_curves
from tapetum.store.ingest import ingest
from tapetum.store.store import open_store

_spec = importlib.util.spec_from_file_location("models_", Path(__file__).with_name("variable_models.py"))
models_ = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(models_)

N_OBJECTS, N_VISITS = 7, 60
SHARED = (
    "jd",
    "fid",
    "pid",
    "programid",
    "diffmaglim",
    "candid",
    "isdiffpos",
    "ra",
    "dec",
    "magpsf",
    "sigmapsf",
)


def last_packets(n_visits: int) -> list[SimulatedAlert]:
    """One alert for each object, which tells of many visits before it, in two bands; every tenth was a fading."""
    alerts = []
    rng = np.random.default_rng(7)
    for number, first in enumerate(simulate_alerts(N_OBJECTS, rng, at_edge=0, with_missing=0)):
        past: list[dict[str, Any]] = []
        for visit in range(n_visits):
            own = {name: first.record["candidate"][name] for name in SHARED}
            mag = 18.0 + 0.3 * np.sin(2 * np.pi * visit / 7) + rng.normal(0, 0.02)
            own |= {
                "magpsf": float(np.float32(mag)),
                "sigmapsf": 0.05,
                "fid": 1 + visit % 2,
                "jd": own["jd"] + 2.3 * visit,
            }
            own |= {"candid": 1000 * number + visit + 1, "isdiffpos": "f" if visit % 10 == 9 else "t"}
            past.append(own)
        now = {**first.record["candidate"], **past.pop(), "candid": 1000 * number + n_visits}
        record = {
            **first.record, "objectId": f"SIM{number:09d}", "candid": now["candid"], "candidate": now,
            "prv_candidates": past,
        }  # fmt: skip
        alerts.append(SimulatedAlert(record, first.truth, first.target))
    return alerts


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("store")
    write_alerts(folder / "night.avro", last_packets(N_VISITS))
    name = f"sqlite:///{folder / 'night.db'}"
    with open_store(name, create=True) as store:
        ingest(store, [folder / "night.avro"], model=None)
    return name


def call(*words: object) -> None:
    result = CliRunner().invoke(app, ["lightcurves", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output


def test_every_point_is_there_once(url: str) -> None:
    curves = open_store_curves(url).read()
    assert len(curves) == 2 * N_OBJECTS
    assert curves.ids[:2] == ["ztf/SIM000000000/ztfg", "ztf/SIM000000000/ztfr"]
    assert set(curves.n_points.tolist()) == {N_VISITS // 2}
    assert curves.flags is not None
    with open_store(url) as store:
        for number, (time, mag, magerr) in enumerate(curves):
            row = curves.table.slice(number, 1).to_pylist()[0]
            told = [
                point
                for point in store.lightcurve(row["object_id"]).to_pylist()
                if point["band"] == row["band"] and point["mag"] is not None
            ]
            assert time.tolist() == [point["mjd"] for point in told]
            assert mag.tolist() == [point["mag"] for point in told]
            assert magerr.tolist() == [point["mag_err"] for point in told]
            flags = curves.flags[curves.offsets[number] : curves.offsets[number + 1]]
            assert flags.tolist() == [FADED if point["flux"] < 0 else 0 for point in told]
    assert int((curves.flags == FADED).sum()) == N_OBJECTS * N_VISITS // 10
    assert set(curves.table["time_system"].to_pylist()) == {"mjd"}


def test_pieces_are_the_whole_and_travel_to_workers(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_curves, "OBJECTS_OF_A_PART", 3)
    monkeypatch.setattr(store_curves, "OBJECTS_AT_A_TIME", 2)
    source = open_store_curves(url)
    parts = [pickle.loads(pickle.dumps(part)) for part in source.parts()]
    assert [(part.first, part.last) for part in parts] == [(1, 3), (4, 6), (7, 7)]
    ids = [lc_id for part in parts for batch in part.batches(3) for lc_id in batch.ids]
    assert ids == source.read().ids
    assert all(len(batch) <= 3 for batch in source.batches(3))


def test_features_of_a_store(url: str, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    words = ("features", url, "-o", out, "--min-points", 20)
    call(*words)
    table = read_table(out)
    assert table.num_rows == 2 * N_OBJECTS
    assert set(table["n_before"].to_pylist()) == {N_VISITS // 2}
    assert set(table["kept"].to_pylist()) == {True}
    assert set(table["n_after"].to_pylist()) == {N_VISITS // 2, N_VISITS // 2 - N_VISITS // 10}
    assert np.isfinite(table["median"].to_numpy()).all()
    before = out.stat().st_mtime_ns
    call(*words)
    assert out.stat().st_mtime_ns == before  # nothing new in the store
    more = tmp_path / "more.avro"
    write_alerts(more, last_packets(N_VISITS + 4)[:1])
    with open_store(url) as store:
        ingest(store, [more], model=None)
    call(*words)
    assert max(read_table(out)["n_before"].to_pylist()) == N_VISITS // 2 + 2


def test_new_alerts_in_a_store_are_classified(tmp_path: Path) -> None:
    """By the table of light curves, by a table of what is wanted of them, and in dated folders."""
    own = f"sqlite:///{tmp_path / 'own.db'}"
    write_alerts(tmp_path / "night.avro", last_packets(N_VISITS)[:2])
    with open_store(own, create=True) as store:
        ingest(store, [tmp_path / "night.avro"], model=None)
    models_.write(models_.classifier("vnv", features=({"name": "n"},)), tmp_path / "models" / "vnv")
    wanted = tmp_path / "wanted.csv"
    wanted.write_text("lc_id\nztf/SIM000000000/ztfg\n")
    more, runs = ("--models", tmp_path / "models", "--min-points", 20), tmp_path / "runs"
    every = ("classify", own, *more, "-o", tmp_path / "all.parquet")
    some = ("classify", wanted, "--from", own, *more, "-o", tmp_path / "some.parquet")
    dated = ("classify", own, *more, "-o", runs)
    files = [tmp_path / f"{name}_lightcurves.parquet" for name in ("all", "some")]

    def times() -> list[int]:
        call(*every)
        call(*some)
        call(*dated)
        return [file.stat().st_mtime_ns for file in files]

    before = times()
    assert times() == before  # nothing new in the store
    assert len(list(runs.iterdir())) == 1
    write_alerts(tmp_path / "more.avro", last_packets(N_VISITS + 4)[:1])
    with open_store(own) as store:
        ingest(store, [tmp_path / "more.avro"], model=None)
    after = times()
    assert all(new > old for new, old in zip(after, before, strict=True))
    assert len(list(runs.iterdir())) == 2


def test_no_message_tells_the_password_of_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models_.write(models_.classifier("vnv", features=({"name": "n"},)), tmp_path / "models" / "vnv")
    (tmp_path / "wanted.csv").write_text("lc_id\na\n")
    url = "postgresql://vera:sekret@127.0.0.1:1/night"
    classify = ("--models", tmp_path / "models", "-o", tmp_path / "o.parquet")
    for words in (
        ("features", url, "-o", tmp_path / "f.parquet"),
        ("features", url, url, "-o", tmp_path / "f.parquet"),
        ("classify", url, *classify),
        ("classify", url, url, *classify),
        ("classify", url, "--input", "features", *classify),
        ("classify", url, "--from", tmp_path / "wanted.csv", *classify),
        ("classify", tmp_path / "wanted.csv", "--from", url, *classify),
    ):
        with pytest.raises(TapetumError) as problem:
            call(*words)
        assert "sekret" not in str(problem.value) + capsys.readouterr().err


def test_no_file_tells_the_password_of_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Server:
        url = "https://vera:sekret@kowalski.example.org"

    monkeypatch.setattr(lightcurve_wanted, "find_curves", lambda *_, **__: pa.table({"lc_id": ["1"]}))
    (tmp_path / "w.csv").write_text("lc_id\n1\n")
    out = tmp_path / "s.parquet"
    lightcurve_wanted.find_once(
        Server(), "ZTF", str(tmp_path / "w.csv"), str(out), Settings(), radius_arcsec=2
    )
    assert "kowalski.example.org" in words_of(read_table(out))["server"]
    for file in (out, settings_path(out)):
        assert b"sekret" not in file.read_bytes()


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    assert is_store("sqlite:///a.db")
    assert is_store("postgresql://host/name")
    assert not is_store("curves.parquet")
    with pytest.raises(InputError, match="none of 1 parts could be used"):
        call("features", f"sqlite:///{tmp_path / 'no.db'}", "-o", tmp_path / "f.parquet")
    assert not (tmp_path / "no.db").exists()
    assert not (tmp_path / "f.parquet").exists()
    empty = f"sqlite:///{tmp_path / 'empty.db'}"
    open_store(empty, create=True).close()
    assert len(open_store_curves(empty).parts()) == 1
    call("features", empty, "-o", tmp_path / "f.csv")
    assert read_table(tmp_path / "f.csv").num_rows == 0


def test_a_password_is_not_shown() -> None:
    source = store_curves.StoreCurves("postgresql://u:***@h/n", "postgresql://u:secret@h/n")
    assert "secret" not in repr(source)
