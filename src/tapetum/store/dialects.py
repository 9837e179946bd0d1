"""The only file that knows which database it talks to: SQLite (the default) or PostgreSQL (an institute)."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Engine, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)

from tapetum.core.errors import MissingExtraError, StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BACKENDS = ("sqlite", "postgresql")
POSTGRES_DRIVER = (
    "postgresql+psycopg"  # the one of the extra `postgres`; SQLAlchemy itself would take another
)
SECRET = re.compile("pass|pwd|secret|token|key", re.IGNORECASE)  # in the name of a URL's option
BUSY_SECONDS = 60  # how long a statement waits for another process's transaction
ADVISORY_KEY = 0x7461_7065  # "tape": PostgreSQL's name for our writer lock
SQLITE_NEW_FILE = (
    "page_size=8192",  # an alert with its candidate record fits
    "journal_mode=wal",  # readers and the writer do not wait for each other
)
SQLITE_CONNECTION = (
    f"busy_timeout={BUSY_SECONDS * 1000}",
    "synchronous=full",  # a commit returns when it is on disk, and only then is an alert acknowledged
    "cache_size=-131072",  # 128 MiB
    "wal_autocheckpoint=4096",  # 32 MiB of log before pages move into the file: hot pages move once, not often
    "temp_store=memory",
)

# An integer key that SQLite keeps as the row's own address
ROW_KEY = BigInteger().with_variant(sqlite.INTEGER(), "sqlite")
# The rows of a table live in the tree of its primary key: no second copy, neighbours are neighbours on disk
CLUSTERED: dict[str, Any] = {"sqlite_with_rowid": False}


def parse_url(text_url: str) -> URL:
    """The URL of a store, checked, with the driver that we use.

    Raises
    ------
    UsageError
        Not a URL, not one of our databases, or a SQLite database without a file. No message tells a password.
    """
    try:
        url = make_url(text_url)
    except ArgumentError:
        # what cannot be taken apart may hold a secret before any @, or in the words of a driver
        told = re.sub(
            rf"((?:{SECRET.pattern})\w*=)[^&\s]*", r"\1***", text_url.rpartition("@")[2], flags=re.I
        )
        raise UsageError(f"{told}: not the URL of a store; for a file write sqlite:///{told}") from None
    except ValueError:
        raise UsageError("the port of the store's URL is not a number: postgresql://HOST:PORT/NAME") from None
    if "@" in (url.host or ""):  # what is before it belongs to the password
        raise UsageError("an @ in the password of the store's URL must be written as %40")
    if url.get_backend_name() not in BACKENDS:
        raise UsageError(f"{shown(url)}: stores live in sqlite:///FILE or postgresql://HOST/NAME")
    if url.get_backend_name() == "sqlite" and (
        url.database in (None, "", ":memory:") or str(url.database).startswith("file:")
    ):
        raise UsageError(f"{shown(url)}: a store needs a file, for instance sqlite:///night.db")
    return url.set(drivername=POSTGRES_DRIVER) if url.drivername == "postgresql" else url


def shown(url: URL) -> str:
    """The URL as it may be shown or written: no password, nor any option that looks like one."""
    kept = {key: value for key, value in url.query.items() if not SECRET.search(key)}
    return url.set(query=kept).render_as_string(hide_password=True)


def database_file(url: URL) -> Path | None:
    """The file of an SQLite database, None for a server.

    Links are followed: log, lock and segments belong to the file itself, whatever name it is reached by.
    """
    return Path(url.database).resolve() if url.get_backend_name() == "sqlite" and url.database else None


def left_alone_log(file: Path) -> Path | None:
    """The write-ahead log beside a database file that is missing or empty, where there is one.

    SQLite deletes such a log when it opens the file, so this must be asked before.
    """
    log = file.with_name(file.name + "-wal")
    here = log.is_file() and log.stat().st_size
    return log if here and not (file.is_file() and file.stat().st_size) else None


def create_file(path: Path) -> None:
    """Make an empty database file that only its owner may read, because it will hold the store's secret.

    Raises
    ------
    StoreError
        It cannot be made.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return
    except OSError as problem:
        raise StoreError(f"{path}: cannot be created: {problem.strerror}; make its folder first") from None


def open_engine(url: URL) -> Engine:
    """Connect lazily, with our settings on every connection.

    Raises
    ------
    MissingExtraError
        The driver of the database is not installed.
    """
    try:
        if url.get_backend_name() == "sqlite":
            engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        # positional parameters, so that rows can be given as plain tuples
        return create_engine(url, paramstyle="format")
    except (ModuleNotFoundError, NoSuchModuleError):
        raise MissingExtraError("postgres", "a store in PostgreSQL") from None


def prepare_empty(engine: Engine) -> None:
    """Settings that a database file takes only before its first table, and keeps."""
    if engine.dialect.name == "sqlite":
        with closing(engine.raw_connection()) as connection:
            for pragma in SQLITE_NEW_FILE:
                connection.cursor().execute(f"PRAGMA {pragma}")


def checkpoint(engine: Engine) -> None:
    """Move what was committed from SQLite's log into the file, so that the file alone holds it.

    When somebody reads an older state, or the disk fails, it stays in the log, where it is as safe.
    """
    if engine.dialect.name != "sqlite":
        return
    with closing(engine.raw_connection()) as connection, suppress(sqlite3.Error):
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout=0")
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        cursor.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A connection that reads one state of the database, whatever is committed meanwhile."""
    with engine.connect() as connection:
        if engine.dialect.name != "sqlite":  # there every transaction reads one state
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


def _prepare_sqlite(connection: sqlite3.Connection, record: object) -> None:
    del record
    connection.isolation_level = None  # we say BEGIN ourselves
    for pragma in SQLITE_CONNECTION:
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # a writer takes the lock at once: a reader that turns into a writer later would fail instead of waiting
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


@contextmanager
def database_errors(url: URL) -> Iterator[None]:
    """Turn the database's errors into ours, with the store's name and a remedy.

    Raises
    ------
    StoreError
        Anything the database refuses.
    """
    name = shown(url)
    try:
        yield
    except OperationalError as problem:
        raise StoreError(
            f"{name}: {_first_line(problem)}; is it reachable and writable, has the disk room?"
        ) from None
    except DataError as problem:
        raise StoreError(
            f"{name}: {_first_line(problem)}; a packet has a value that no table takes: find it by ingesting fewer "
            "packets at a time"
        ) from None
    except DBAPIError as problem:
        raise StoreError(f"{name}: {_first_line(problem)}; not a Tapetum store, or a damaged one") from None
    except SQLAlchemyError as problem:
        raise StoreError(f"{name}: {_first_line(problem)}") from None


def _first_line(problem: SQLAlchemyError) -> str:
    cause = problem.orig if isinstance(problem, DBAPIError) else problem
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__


def try_writer_lock(connection: Connection) -> bool:
    """Become the only writer of the database until `connection` closes; False when another process is it.

    SQLite has one file on one machine: there the lock beside the segments says it all.
    """
    if connection.dialect.name == "sqlite":
        return True
    connection.detach()  # else it goes back to the pool when it is closed, and keeps the lock
    got = connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": ADVISORY_KEY}).scalar_one()
    connection.commit()  # the lock belongs to the session, not to this transaction
    return bool(got)


def insert_sql(
    connection: Connection,
    table: Table,
    *,
    ignore: bool = False,
    update: Sequence[str] = (),
    where: Callable[[Table, Any], ColumnElement[bool]] | None = None,
) -> str:
    """SQL text that inserts one row given as a tuple in the order of the table's columns.

    SQLAlchemy writes it once; the driver then runs it on many tuples, which is an order of magnitude faster than
    handing SQLAlchemy a dictionary per row.

    Parameters
    ----------
    connection
        Decides the dialect.
    table
        Its primary key is what a conflict is about.
    ignore
        Leave a row that is there as it is.
    update
        Columns that replace those of the row that is there.
    where
        From (table, new values) to the condition of the replacement.
    """
    maker = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = maker(table)
    keys = [column.name for column in table.primary_key.columns]
    if ignore:
        statement = statement.on_conflict_do_nothing(index_elements=keys)
    elif update:
        condition = where(table, statement.excluded) if where else None
        values = {name: statement.excluded[name] for name in update}
        statement = statement.on_conflict_do_update(index_elements=keys, set_=values, where=condition)
    compiled = statement.compile(
        dialect=connection.dialect, column_keys=[column.name for column in table.columns]
    )
    return str(compiled)


def null_columns(connection: Connection, columns: Sequence[list[Any]]) -> Sequence[list[Any]]:
    """Make NaN the database's NULL. SQLite does so by itself when a value is bound."""
    if connection.dialect.name == "sqlite":
        return columns
    return [[None if value != value else value for value in column] for column in columns]


def integrity_problems(connection: Connection) -> list[str]:
    """What the database itself finds wrong with its file; PostgreSQL looks after its own."""
    if connection.dialect.name != "sqlite":
        return []
    rows = connection.exec_driver_sql("PRAGMA quick_check(20)").scalars().all()
    return [] if rows == ["ok"] else [f"SQLite: {row}" for row in rows]
