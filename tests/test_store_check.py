from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from tapetum.core.errors import StoreError
from tapetum.simulate.alerts import simulate_alerts, write_alerts
from tapetum.store import worker
from tapetum.store.check import check
from tapetum.store.columns import ScoreColumns
from tapetum.store.digest import digest
from tapetum.store.ingest import ingest
from tapetum.store.segments import MAGIC, segment_name
from tapetum.store.store import open_store

N = 8


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Folder of a small scored store, one dead letter included."""
    folder = tmp_path_factory.mktemp("whole")
    path, bad = folder / "night.avro", folder / "bad.avro"
    write_alerts(path, simulate_alerts(N, np.random.default_rng(7)))
    bad.write_bytes(path.read_bytes()[:-100])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_scorer", constant_scorer)
        with open_store(f"sqlite:///{folder / 'night.db'}", create=True) as store:
            ingest(store, [path, bad], model="constant")
    return folder


def constant_scorer(model):
    def score(batch):
        n = len(batch)
        return ScoreColumns(
            model, "1.0.0", "identity", np.full(n, 0.5), np.full(n, np.nan), np.zeros(n, np.int32), [None] * n
        )

    return score


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    return copy


def problems(folder: Path, *, quick: bool = False) -> list[str]:
    with open_store(f"sqlite:///{folder / 'night.db'}") as store:
        return check(store, quick=quick).problems


def test_a_whole_store_passes(folder):
    with open_store(f"sqlite:///{folder / 'night.db'}") as store:
        report = check(store)
    assert report.problems == report.notes == []
    assert report.checked["alerts"] == report.checked["objects"] == report.checked["bodies"] == N
    assert report.checked["scores"] == N
    assert report.checked["dead_letters"] == 1
    assert report.checked["detections"] > N


DAMAGE = [
    ("DELETE FROM object WHERE object_key = 1", "alerts without their object"),
    ("DELETE FROM object WHERE object_key = 1", "light-curve rows of no object"),
    ("UPDATE object SET n_alerts = 2 WHERE object_key = 1", "do not add up"),
    ("UPDATE object SET first_mjd = first_mjd - 1 WHERE object_key = 1", "do not add up"),
    ("UPDATE object SET ra = ra + 1e-9 WHERE object_key = 1", "not where their latest alert is"),
    ("UPDATE object SET hpx29 = hpx29 + 1 WHERE object_key = 1", "objects with a wrong hpx29"),
    ("DELETE FROM alert WHERE rowid = 1", "objects without alerts"),
    ("DELETE FROM alert WHERE rowid = 1", "scores of no alert"),
    ("DELETE FROM alert WHERE rowid = 1", "overlap others or leave a gap"),
    ("UPDATE alert SET dec = dec - 1 WHERE rowid = 2", "alerts with a wrong hpx29"),
    ("UPDATE alert SET ra = 9e999 WHERE rowid = 2", "alerts with a wrong hpx29"),
    ("UPDATE alert SET schema_id = 77", "8 alerts without their Avro schema"),
    ("UPDATE alert SET segment = 77 WHERE rowid = 3", "alerts without their segment"),
    ("UPDATE alert SET offset = offset + 1 WHERE rowid = 3", "overlap others or leave a gap"),
    ("UPDATE alert SET crc32 = crc32 + 1 WHERE rowid = 3", "1 alerts whose bytes fail their checksum"),
    ("UPDATE segment SET bytes = bytes - 1", "its last body ends at"),
    ("UPDATE segment SET bytes = bytes + 1", "bytes where rows name"),
    ("DELETE FROM detection WHERE object_key = 1 AND mjd > 60030", "missing from their object's light curve"),
    ("UPDATE score SET score = NULL WHERE alert_id % 2 = 0", "null scores that do not say why"),
    ("UPDATE dead_letter SET packet = x'00'", "dead letters whose packet"),
]


@pytest.mark.parametrize(("statement", "told"), DAMAGE)
def test_every_broken_promise_is_found(folder, statement, told):
    with sqlite3.connect(folder / "night.db") as connection:
        assert connection.execute(statement).rowcount > 0
    connection.close()
    assert any(told in problem for problem in problems(folder)), problems(folder)


def segment(folder: Path) -> Path:
    return folder / "night.db.segments" / segment_name(1)


def test_a_flipped_bit_is_found_where_bytes_are_read(folder):
    content = bytearray(segment(folder).read_bytes())
    content[len(MAGIC) + 5000] ^= 4
    segment(folder).write_bytes(content)
    assert len(problems(folder)) == 1
    assert problems(folder, quick=True) == []


def test_a_short_or_missing_segment_is_found_at_once(folder):
    size = segment(folder).stat().st_size
    with segment(folder).open("r+b") as handle:
        handle.truncate(size - 10)
    assert any(
        f"{size - 10} bytes where rows name {size}" in problem for problem in problems(folder, quick=True)
    )
    segment(folder).unlink()
    assert any("missing" in problem for problem in problems(folder, quick=True))


def test_bytes_of_a_killed_process_are_only_a_note(folder):
    with segment(folder).open("ab") as handle:
        handle.write(b"half an aler")
    (folder / "night.db.segments" / segment_name(2)).write_bytes(b"tapseg")
    with open_store(f"sqlite:///{folder / 'night.db'}") as store:
        report = check(store)
        assert report.problems == []
        assert [note.split(":")[0] for note in report.notes] == [segment_name(1), segment_name(2)]
        before = digest(store)
        ingest(store, [folder / "night.avro"], model=None)
        assert digest(store) == before
        assert check(store).notes[1:] == []  # the tail was cut off; the other file waits for its turn


def test_a_damaged_database_is_found(folder):
    path = folder / "night.db"
    content = bytearray(path.read_bytes())
    for start in range(8192 * 4, len(content), 8192 * 2):
        content[start : start + 200] = bytes(200)
    path.write_bytes(content)
    try:
        found = problems(folder)
    except StoreError as problem:
        found = [str(problem)]
    assert found


def test_digest_tells_contents_apart(folder):
    with open_store(f"sqlite:///{folder / 'night.db'}") as store:
        before = digest(store)
    tables = {"alert": "mag = 1", "object": "ra = 1", "detection": "flux = 1", "score": "score = 1"}
    for table, change in tables.items():
        with sqlite3.connect(folder / "night.db") as connection:
            connection.execute(f"UPDATE {table} SET {change}")
        connection.close()
        with open_store(f"sqlite:///{folder / 'night.db'}") as store:
            after = digest(store)
        assert [name for name in after if after[name] != before[name]] == [table]
        before = after
