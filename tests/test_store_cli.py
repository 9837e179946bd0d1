from __future__ import annotations

import json
import sqlite3
import sys
import tomllib
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tapetum.cli import main
from tapetum.simulate.alerts import simulate_alerts, write_alerts

if TYPE_CHECKING:
    from pathlib import Path

N = 6
ALERTS = simulate_alerts(N, np.random.default_rng(3))
OBJECT = ALERTS[2].record["objectId"]


@pytest.fixture(scope="module")
def night(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("night") / "night.avro"
    write_alerts(path, ALERTS)
    return path


@pytest.fixture
def tapetum(tmp_path, monkeypatch, capsys):
    """Run the command; exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tapetum", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return status, said.out, said.err

    return run


URL = "sqlite:///night.db"


def test_from_nothing_to_a_light_curve(tapetum, night, tmp_path):
    assert tapetum("store", "init", "--store", URL)[0] == 0
    assert (tmp_path / "night.db.segments").is_dir()
    status, out, err = tapetum("alerts", "ingest", night, "--store", URL, "--no-score", "--acknowledge", "-")
    assert status == 0
    assert f"{N} stored, 0 known, 0 scored, 0 rejected" in err
    lines = out.splitlines()
    assert len(lines) == N
    assert all(line.startswith("ztf 2") for line in lines)
    info = json.loads(tapetum("store", "info", "--store", URL, "--json")[1])
    assert (info["alerts"], info["objects"], info["scores"], info["dead_letters"]) == (N, N, 0, 0)
    status, out, _ = tapetum("alerts", "lightcurve", OBJECT, "--store", URL, "-o", "-")
    assert status == 0
    assert out.splitlines()[0] == "mjd,band,mag,mag_err,mag_limit,flux,flux_err,ra,dec,forced"
    assert len(out.splitlines()) > 5
    assert tapetum("alerts", "lightcurve", OBJECT, "--store", URL, "-o", "curve.parquet")[0] == 0
    status, out, err = tapetum("store", "check", "--store", URL, "--digest")
    assert status == 0
    assert f"{N} alerts" in out
    assert "everything is in order" in err


def test_ingest_makes_a_missing_store_and_leaves_its_settings(tapetum, night, tmp_path):
    (tmp_path / "tapetum.toml").write_text(f'[store]\nurl = "{URL}"\ncommit_alerts = 3\n')
    assert tapetum("alerts", "ingest", night, "--no-score", "--acknowledge", "done.txt")[0] == 0
    written = tomllib.loads((tmp_path / "night.db.settings.toml").read_text())
    assert written["settings"]["store"]["commit_alerts"] == 3
    assert written["run"]["inputs"] == [str(night)]
    assert len((tmp_path / "done.txt").read_text().splitlines()) == N
    again = tapetum("alerts", "ingest", night, "--no-score")
    assert f"0 stored, {N} known" in again[2]


def test_alerts_are_scored_by_the_model_of_the_settings(tapetum, night):
    assert tapetum("alerts", "ingest", night, "--store", URL, "--no-score")[0] == 0
    status, _, err = tapetum("alerts", "ingest", night, "--store", URL, "--jobs", 2)
    assert status == 0
    assert f"0 stored, {N} known, {N} scored" in err
    info = json.loads(tapetum("store", "info", "--store", URL, "--json")[1])
    assert [(entry["model"], entry["scores"]) for entry in info["models"]] == [("realbogus", N)]
    assert f"{N} known, 0 scored" in tapetum("alerts", "ingest", night, "--store", URL)[2]
    assert tapetum("store", "check", "--store", URL)[0] == 0


def test_exit_statuses_of_an_ingest(tapetum, night, tmp_path):
    bad = tmp_path / "bad.avro"
    bad.write_bytes(night.read_bytes()[:-100])
    junk = tmp_path / "junk.avro"
    junk.write_bytes(b"no packet")
    empty = tmp_path / "nothing here"
    empty.mkdir()
    arguments = ("--store", URL, "--no-score")
    status, _, err = tapetum("alerts", "ingest", bad, *arguments)
    assert status == 5
    assert f"rejected: {bad}, record {N - 1}: " in err
    assert f"{N - 1} stored, 0 known, 0 scored, 1 rejected" in err
    status, _, err = tapetum("alerts", "ingest", junk, *arguments)
    assert status == 3
    assert f"rejected: {junk}: not an Avro container" in err
    assert tapetum("alerts", "ingest", empty, *arguments)[0] == 3
    assert tapetum("alerts", "ingest", "kafka://host/topic", *arguments)[0] == 2
    assert tapetum("alerts", "ingest", night, "--no-score", "--model", "braai", "--store", URL)[0] == 2
    assert tapetum("alerts", "ingest", night, "--no-score")[0] == 2
    info = json.loads(tapetum("store", "info", "--store", URL, "--json")[1])
    assert (info["alerts"], info["dead_letters"]) == (N - 1, 2)


def test_check_fails_on_a_broken_store(tapetum, night, tmp_path):
    tapetum("alerts", "ingest", night, "--store", URL, "--no-score")
    with sqlite3.connect(tmp_path / "night.db") as connection:
        connection.execute("UPDATE alert SET crc32 = 1 WHERE rowid = 2")
    connection.close()
    status, _, err = tapetum("store", "check", "--store", URL)
    assert status == 1
    assert "problem: 1 alerts whose bytes fail their checksum" in err
    status, out, _ = tapetum("store", "check", "--store", URL, "--json")
    assert status == 1
    assert len(json.loads(out)["problems"]) == 1
    assert tapetum("store", "check", "--store", URL, "--quick")[0] == 0


@pytest.mark.parametrize("verb", ["info", "check"])
def test_looking_at_no_store(tapetum, verb):
    assert tapetum("store", verb, "--store", URL)[0] == 3
    assert tapetum("store", verb, "--store", "night.db")[0] == 2
    assert tapetum("store", verb)[0] == 2


def test_a_log_left_behind_is_told_by_every_verb(tapetum, night, tmp_path):
    tapetum("alerts", "ingest", night, "--store", URL, "--no-score")
    with sqlite3.connect(tmp_path / "night.db") as connection:  # an older copy
        connection.execute("UPDATE meta SET value = '0' WHERE key = 'commits'")
    connection.close()
    status, out, err = tapetum("store", "info", "--store", URL)
    assert (status, f"alerts           {N}" in out) == (0, True)
    assert "problem: the last 1 of 1 transactions are not in the database" in err
    for verb in (("store", "check"), ("store", "init"), ("alerts", "ingest", night, "--no-score")):
        status, _, err = tapetum(*verb, "--store", URL)
        assert status == 1
        assert "tapetum store init --forget-lost" in err
    assert tapetum("store", "init", "--store", URL, "--forget-lost")[0] == 0
    assert tapetum("store", "check", "--store", URL)[0] == 0


def test_a_store_is_not_made_over_packets_unasked(tapetum, night, tmp_path):
    tapetum("alerts", "ingest", night, "--store", URL, "--no-score")
    (tmp_path / "night.db").unlink()
    status, _, err = tapetum("store", "init", "--store", URL)
    assert status == 1
    assert "night.db.segments beside it" in err
    assert tapetum("alerts", "ingest", night, "--store", URL, "--no-score")[0] == 1
    assert tapetum("store", "init", "--store", URL, "--forget-lost")[0] == 0
    assert f"{N} stored" in tapetum("alerts", "ingest", night, "--store", URL, "--no-score")[2]
    assert tapetum("store", "check", "--store", URL)[0] == 0


def test_a_light_curve_that_cannot_be(tapetum, night):
    tapetum("alerts", "ingest", night, "--store", URL, "--no-score")
    assert tapetum("alerts", "lightcurve", "nothing", "--store", URL, "-o", "-")[0] == 3
    assert tapetum("alerts", "lightcurve", OBJECT, "--store", URL, "-o", "curve.doc")[0] == 2
