from __future__ import annotations

import sqlite3
import stat

import pytest
from sqlalchemy import create_engine
from sqlalchemy.dialects import postgresql

from tapetum.core.errors import InputError, MissingExtraError, StoreError, UsageError
from tapetum.store import dialects, schema
from tapetum.store.dialects import insert_sql, parse_url
from tapetum.store.store import open_store


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("night.db", "sqlite:///night.db"),
        ("mysql://host/name", "stores live in"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
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
        open_store("postgresql+psycopg://host/name")


def test_passwords_are_not_told(monkeypatch):
    # a server that is not there: any error must hide the password
    monkeypatch.setattr(
        dialects, "create_engine", lambda url, **options: create_engine("sqlite:////no/such/file")
    )
    with pytest.raises(StoreError) as caught:
        open_store("postgresql://me:hunter2@localhost/name")
    assert "hunter2" not in str(caught.value)
    assert parse_url("postgresql://me:hunter2@localhost/name").password == "hunter2"
