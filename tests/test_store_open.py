from __future__ import annotations

import contextlib
import shutil
import sqlite3
import stat
import subprocess
import sys

import pytest
from sqlalchemy import create_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DataError

from tapetum.alerts.batch import Rejection
from tapetum.core.errors import InputError, MissingExtraError, StoreError, UsageError
from tapetum.store import dialects, schema
from tapetum.store.check import check
from tapetum.store.dialects import database_errors, insert_sql, parse_url, shown, snapshot
from tapetum.store.store import open_store


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("night.db", "sqlite:///night.db"),
        ("mysql://host/name", "stores live in"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("sqlite:///file:night.db?uri=true", "needs a file"),
        ("postgresql://host:port/name", "not a number"),
    ],
)
def test_urls_that_are_no_store(url, told):
    with pytest.raises(UsageError, match=told):
        open_store(url)


def test_a_missing_file_is_not_made_by_looking(tmp_path):
    path = tmp_path / "night.db"
    with pytest.raises(InputError, match="tapetum store init"):
        open_store(f"sqlite:///{path}")
    assert not path.exists()
    with pytest.raises(StoreError, match="make its folder"):
        open_store(f"sqlite:///{tmp_path}/no/folder/night.db", create=True)


def test_a_new_store_has_a_secret_of_its_own(tmp_path):
    secrets = set()
    for name in "ab":
        path = tmp_path / f"{name}.db"
        with open_store(f"sqlite:///{path}", create=True) as store:
            secrets.add(store.meta["secret"])
            assert len(store.meta["secret"]) >= 40
            assert store.meta["secret"] not in str(store.info())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with open_store(f"sqlite:///{path}", create=True) as again:
            assert again.meta["secret"] in secrets
    assert len(secrets) == 2


def test_other_files_are_left_alone(tmp_path):
    text, other, empty = tmp_path / "text.db", tmp_path / "other.db", tmp_path / "empty.db"
    text.write_text("this is no database, and long enough to be looked at " * 20)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE meta (key, value)")
    connection.close()
    empty.touch()
    before = {path: path.read_bytes() for path in (text, other, empty)}
    for path in before:
        with pytest.raises(StoreError, match="not a Tapetum store"):
            open_store(f"sqlite:///{path}")
    with pytest.raises(StoreError, match="choose another file"):
        open_store(f"sqlite:///{other}", create=True)
    assert {path: path.read_bytes() for path in before} == before
    open_store(f"sqlite:///{empty}", create=True).close()  # an empty file may become a store


def test_a_link_is_the_file_it_points_to(tmp_path):
    real, link, later = tmp_path / "disk" / "night.db", tmp_path / "link.db", tmp_path / "later.db"
    real.parent.mkdir()
    link.symlink_to(real)
    later.symlink_to(tmp_path / "disk" / "later.db")
    with open_store(f"sqlite:///{link}", create=True) as store, open_store(f"sqlite:///{real}") as same:
        assert store.segments == same.segments == tmp_path / "disk" / "night.db.segments"
        assert store.settings_path == same.settings_path
        with store.writer(2**20), pytest.raises(StoreError, match="another process"), same.writer(2**20):
            pytest.fail("two writers")
    open_store(f"sqlite:///{later}", create=True).close()
    assert stat.S_IMODE((tmp_path / "disk" / "later.db").stat().st_mode) == 0o600


KILLED = """
import os, sys
from tapetum.alerts.batch import Rejection
from tapetum.store.store import open_store

store = open_store(sys.argv[1], create=True)
if len(sys.argv) > 2:
    with store.writer(2**20) as writer:
        (store.segments / "00000001.seg").write_bytes(b"packets")
        writer.reject(Rejection("a", 0, "b"))
        writer.commit()
        os.kill(os.getpid(), 9)
os.kill(os.getpid(), 9)
"""


def killed_store(tmp_path, *, written: bool):
    """A store whose process was killed, after a commit or after making it."""
    path = tmp_path / "night.db"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, f"sqlite:///{path}", *["written"] * written], check=False
    )
    assert done.returncode == -9
    return path


def test_the_file_alone_is_a_store_from_its_birth_on(tmp_path):
    path = killed_store(tmp_path, written=False)
    shutil.copy(path, tmp_path / "copy.db")
    open_store(f"sqlite:///{tmp_path / 'copy.db'}").close()


def test_the_file_alone_holds_all_after_a_run(tmp_path):
    path = tmp_path / "night.db"
    with open_store(f"sqlite:///{path}", create=True) as store, open_store(f"sqlite:///{path}") as reader:
        assert (
            reader.info()["dead_letters"] == 0
        )  # keeps a connection: closing the store is not the last close
        with store.writer(2**20) as writer:
            writer.reject(Rejection("a", 0, "b"))
            writer.commit()
        shutil.copy(path, tmp_path / "copy.db")
    with open_store(f"sqlite:///{tmp_path / 'copy.db'}") as copy:
        assert copy.info()["dead_letters"] == 1


def test_looking_at_a_killed_store_moves_its_log_into_the_file(tmp_path):
    path = killed_store(tmp_path, written=True)
    log = tmp_path / "night.db-wal"
    assert log.stat().st_size
    with open_store(f"sqlite:///{path}") as store:
        assert store.info()["dead_letters"] == 1
    assert not log.exists()


def test_a_log_left_behind_is_noticed_before_anything_is_lost(tmp_path):
    path = killed_store(tmp_path, written=True)
    segment = tmp_path / "night.db.segments" / "00000001.seg"
    log = (tmp_path / "night.db-wal").rename(tmp_path / "left behind")
    (tmp_path / "night.db-shm").unlink()
    url = f"sqlite:///{path}"
    with open_store(url) as store:
        assert store.info()["dead_letters"] == 0
        assert "the last 1 of 1 transactions" in check(store).problems[0]
        with pytest.raises(StoreError, match="was left behind"), store.writer(2**20):
            pytest.fail("a writer would cut off the packets")
    assert segment.read_bytes() == b"packets"
    log.rename(tmp_path / "night.db-wal")
    with open_store(url) as store:
        assert store.info()["dead_letters"] == 1
        assert store.lost() is None


def test_what_is_lost_can_be_given_up(tmp_path):
    path = killed_store(tmp_path, written=True)
    (tmp_path / "night.db-wal").unlink()
    with open_store(f"sqlite:///{path}", create=True, forget_lost=True) as store:
        assert store.lost() is None
        with store.writer(2**20) as writer:
            writer.reject(Rejection("a", 0, "b"))
            writer.commit()
        assert store.lost() is None
        assert store.info()["dead_letters"] == 1


@pytest.mark.parametrize("file", [None, b""])
@pytest.mark.parametrize("left", ["log", "segments"])
def test_no_store_is_made_over_what_another_left(tmp_path, file, left):
    path = killed_store(tmp_path, written=True)
    path.unlink()
    if file is not None:
        path.write_bytes(file)
    log, segments = tmp_path / "night.db-wal", tmp_path / "night.db.segments"
    if left == "log":
        shutil.rmtree(segments)
    else:
        log.unlink()
    before = {entry: entry.read_bytes() for entry in tmp_path.rglob("*.*") if entry.is_file()}
    for create in (False, True):
        with pytest.raises(StoreError, match=f"{(log if left == 'log' else segments).name} .*--forget-lost"):
            open_store(f"sqlite:///{path}", create=create)
    assert {entry: entry.read_bytes() for entry in tmp_path.rglob("*.*") if entry.is_file()} == before
    with open_store(f"sqlite:///{path}", create=True, forget_lost=True) as store:
        assert store.lost() is None
        assert store.info()["alerts"] == 0


def test_an_empty_database_is_not_filled_over_the_packets_of_another(tmp_path):
    path = killed_store(tmp_path, written=True)
    for old in (path, tmp_path / "night.db-wal", tmp_path / "night.db-shm"):
        old.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1")  # a file, without tables
    connection.close()
    for create in (False, True):
        with pytest.raises(StoreError, match="--forget-lost"):
            open_store(f"sqlite:///{path}", create=create)


def test_a_value_too_large_is_not_called_a_damaged_store():
    problem = DataError("INSERT", (), sqlite3.DataError("string or blob too big"))
    with (
        pytest.raises(StoreError, match="too big; a packet") as caught,
        database_errors(parse_url("sqlite:///n")),
    ):
        raise problem
    assert "not a Tapetum store" not in str(caught.value)


def test_another_schema_version_is_said(tmp_path):
    url = f"sqlite:///{tmp_path / 'night.db'}"
    open_store(url, create=True).close()
    with sqlite3.connect(tmp_path / "night.db") as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    connection.close()
    with pytest.raises(StoreError, match="schema version 99"):
        open_store(url)


def test_segments_elsewhere_are_found_again(tmp_path):
    url, place = f"sqlite:///{tmp_path / 'night.db'}", tmp_path / "big disk"
    with open_store(url, create=True, segments_url=f"file://{tmp_path}/big%20disk") as store:
        folder = store.segments
        assert folder == place / store.meta["store_id"]
        folder.mkdir(parents=True)
    with open_store(url) as store:
        assert store.segments == folder
    place.rename(tmp_path / "moved")
    with open_store(url, segments_url=str(tmp_path / "moved")) as store:
        assert store.segments == tmp_path / "moved" / folder.name
    with open_store(url, segments_url=str(tmp_path / "of other stores")) as store:
        assert store.segments == folder


def test_sqlite_settings_that_durability_rests_on(tmp_path):
    with (
        open_store(f"sqlite:///{tmp_path / 'night.db'}", create=True) as store,
        store.engine.connect() as connection,
    ):
        values = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "page_size")
        }
    assert values == {"journal_mode": "wal", "synchronous": 2, "page_size": 8192}


def test_statements_for_postgresql():
    class Connection:
        dialect = postgresql.dialect(paramstyle="format")

    detection = insert_sql(
        Connection, schema.detection, update=["rank"], where=lambda old, new: new["rank"] > old.c.rank
    )
    assert "ON CONFLICT (object_key, mjd, band, forced) DO UPDATE SET rank = excluded.rank" in detection
    assert detection.count("%s") == len(schema.detection.columns)
    assert "WHERE excluded.rank > detection.rank" in detection
    assert "DO NOTHING" in insert_sql(Connection, schema.score, ignore=True)
    assert "ON CONFLICT" not in insert_sql(Connection, schema.alert)
    assert dialects.null_columns(Connection, [[1.0, float("nan")]]) == [[1.0, None]]


def test_a_missing_driver_names_the_extra(monkeypatch):
    def missing(*arguments, **options):
        raise ModuleNotFoundError("No module named 'psycopg'")

    monkeypatch.setattr(dialects, "create_engine", missing)
    with pytest.raises(MissingExtraError, match="postgres"):
        open_store("postgresql://host/name")


def test_servers_are_reached_by_the_driver_of_the_extra():
    assert parse_url("postgresql://host/name").drivername == "postgresql+psycopg"
    assert parse_url("postgresql+asyncpg://host/name").drivername == "postgresql+asyncpg"


def test_a_server_is_read_as_it_is_at_one_moment():
    asked = {}

    class Connection:
        def execution_options(self, **options):
            asked.update(options)
            return self

    class Engine:
        dialect = postgresql.dialect()

        def connect(self):
            return contextlib.nullcontext(Connection())

    with snapshot(Engine()):
        assert asked == {"isolation_level": "REPEATABLE READ"}


def test_a_snapshot_does_not_see_what_is_committed_meanwhile(tmp_path):
    with open_store(f"sqlite:///{tmp_path / 'night.db'}", create=True) as store:
        with snapshot(store.engine) as connection:
            count = "SELECT count(*) FROM dead_letter"
            assert connection.exec_driver_sql(count).scalar() == 0
            with store.writer(2**20) as writer:
                writer.reject(Rejection("a", 0, "b"))
                writer.commit()
            assert connection.exec_driver_sql(count).scalar() == 0
        assert store.info()["dead_letters"] == 1


@pytest.mark.parametrize(
    "url",
    [
        "postgres://me:hunter2@localhost/name",
        "mysql://me:hunter2@localhost/name",
        "mysql://localhost/name?user=me&password=hunter2",
        "postgresql://me:hunter2@localhost:port/name",
        "postgresql://me:p@hunter2@localhost/name",
        "sqlite://me:hunter2@/",
        "me:hunter2@localhost/name",
        "host=localhost user=me Password=hunter2 dbname=name",
        "sqlite:///:memory:?password=hunter2",
        "sqlite:////no/such/file?password=hunter2",
    ],
)
def test_passwords_in_urls_that_are_no_store_are_not_told(url):
    with pytest.raises((UsageError, InputError)) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_options_of_an_url_are_told_without_secrets():
    url = parse_url("postgresql://me:hunter2@host/name?sslmode=require&password=hunter2&sslPassword=hunter2")
    assert shown(url) == "postgresql+psycopg://me:***@host/name?sslmode=require"
    assert url.query["password"] == "hunter2"


def test_passwords_are_not_told(monkeypatch):
    # a server that is not there: any error must hide the password
    monkeypatch.setattr(
        dialects, "create_engine", lambda url, **options: create_engine("sqlite:////no/such/file")
    )
    for url in (
        "postgresql://me:hunter2@localhost/name",
        "postgresql://localhost/name?user=me&password=hunter2",
    ):
        with pytest.raises(StoreError) as caught:
            open_store(url)
        assert "hunter2" not in str(caught.value)
    assert parse_url("postgresql://me:hunter2@localhost/name").password == "hunter2"
