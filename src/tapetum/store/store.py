"""A store: one database and the segments that belong to it."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, Row, Select, func, inspect, select

from tapetum.alerts.batch import AlertKey, Rejection
from tapetum.alerts.packets import Packet
from tapetum.alerts.schema import AlertSchema, load_schema
from tapetum.core.errors import InputError, StoreError, UsageError
from tapetum.store import schema as t
from tapetum.store.dialects import (
    checkpoint,
    create_file,
    database_errors,
    database_file,
    left_alone_log,
    open_engine,
    parse_url,
    prepare_empty,
    shown,
    snapshot,
)
from tapetum.store.segments import SegmentReader, SegmentWriter, read_mark, segments_folder
from tapetum.store.writer import Writer, committed, lost_commits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    from sqlalchemy.engine import URL

LIGHTCURVE_COLUMNS = (
    "mjd", "band", "mag", "mag_err", "mag_limit", "flux", "flux_err", "ra", "dec", "forced",
)  # fmt: skip
LIGHTCURVE_UNITS = {
    "mjd": "d", "mag": "mag", "mag_err": "mag", "mag_limit": "mag", "flux": "nJy", "flux_err": "nJy",
    "ra": "deg", "dec": "deg",
}  # fmt: skip


@dataclass(frozen=True)
class RankedAlert:
    """An alert and one of its scores; the fields are those of the tables `alert` and `score`."""

    survey: str
    alert_id: int
    object_id: str
    mjd: float
    ra: float
    dec: float
    band: str
    mag: float | None
    mag_err: float | None
    model: str
    model_version: str
    score: float | None
    probability: float | None
    flags: int
    error: str | None


class Store:
    """An open store; make it with `open_store`.

    Attributes
    ----------
    url
        Of the database.
    engine
        Its SQLAlchemy engine.
    meta
        What the store says about itself; holds the secret, so never print it whole.
    segments
        Folder of the segments.
    """

    def __init__(self, url: URL, engine: Engine, meta: dict[str, str], segments: Path) -> None:
        self.url, self.engine, self.meta, self.segments = url, engine, meta, segments
        self.reader = SegmentReader(segments)
        self._schemas: dict[int, AlertSchema] = {}

    @property
    def name(self) -> str:
        """The URL without its password."""
        return shown(self.url)

    @property
    def settings_path(self) -> Path:
        """Where a run leaves the settings it used."""
        file = database_file(self.url)
        return (
            self.segments / "settings.toml" if file is None else file.with_name(file.name + ".settings.toml")
        )

    def close(self) -> None:
        """Close connections and files."""
        self.reader.close()
        self.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    @contextmanager
    def writer(self, segment_bytes: int) -> Iterator[Writer]:
        """Become the only writer.

        Parameters
        ----------
        segment_bytes
            A segment that is larger is closed [bytes].

        Raises
        ------
        StoreError
            Another process writes, disk or database fail, or the database lacks what was committed to it.
        """
        with database_errors(self.url), SegmentWriter(self.segments, segment_bytes) as segments:
            with Writer(self.engine, segments) as writer:
                yield writer
            checkpoint(self.engine)

    def lost(self) -> str | None:
        """What is wrong, and the remedy, when the database lacks what was committed to it; else None."""
        marked = read_mark(self.segments)  # before the database: a writer may be at work
        with database_errors(self.url), self.engine.connect() as connection:
            return lost_commits(marked, committed(connection))

    def forget_lost(self) -> None:
        """Accept that the database lacks what was committed to it: the next writer cuts off bytes without rows.

        Raises
        ------
        StoreError
            Another process writes.
        """
        with (
            database_errors(self.url),
            SegmentWriter(self.segments, 0) as segments,
            self.engine.connect() as connection,
        ):
            segments.mark(committed(connection))

    # --- reading --------------------------------------------------------------------------------------------------

    def info(self) -> dict[str, int | str]:
        """What is in the store: counts, bytes of the segments, version of the schema."""
        counted = {
            "alerts": t.alert,
            "objects": t.object_,
            "detections": t.detection,
            "scores": t.score,
            "dead_letters": t.dead_letter,
            "segments": t.segment,
        }
        queries = {name: select(func.count()).select_from(table) for name, table in counted.items()}
        queries["segment_bytes"] = select(func.coalesce(func.sum(t.segment.c.bytes), 0))
        with database_errors(self.url), snapshot(self.engine) as connection:
            found = {name: int(connection.execute(query).scalar_one()) for name, query in queries.items()}
        return {
            "store": self.name,
            **found,
            "segments_folder": str(self.segments),
            "schema_version": int(self.meta["schema_version"]),
            "store_id": self.meta["store_id"],
        }

    def models(self) -> list[tuple[str, str, int]]:
        """(model, version, number of scores), sorted."""
        columns = t.score.c.model, t.score.c.model_version
        return [
            tuple(row)
            for row in self._all(select(*columns, func.count()).group_by(*columns).order_by(*columns))
        ]

    def dead_letters(self, *, payloads: bool = False) -> list[Rejection]:
        """What could not be used, and why, sorted by source and record.

        Parameters
        ----------
        payloads
            With the bytes of each, all in memory.
        """
        d = t.dead_letter.c
        query = select(d.source, d.record, d.reason).order_by(d.source, d.record, d.sha256)
        if payloads:
            query = query.add_columns(d.packet)
        return [Rejection(*row) for row in map(tuple, self._all(query))]

    def lightcurve(self, object_id: str, survey: str | None = None) -> pa.Table:
        """The merged light curve of an object: its alerts and what their histories told, in the order of time.

        Parameters
        ----------
        object_id
            Name of the object.
        survey
            Needed only when two surveys use the same name.

        Returns
        -------
        pyarrow.Table
            `LIGHTCURVE_COLUMNS`, in the units of `LIGHTCURVE_UNITS`.

        Raises
        ------
        InputError
            No such object.
        UsageError
            Several surveys have an object of this name.
        """
        import pyarrow as pa

        query = select(t.object_.c.object_key, t.object_.c.survey).where(t.object_.c.object_id == object_id)
        if survey is not None:
            query = query.where(t.object_.c.survey == survey)
        found = self._all(query.order_by(t.object_.c.survey))
        if not found:
            raise InputError(f"{object_id}: no such object in {self.name}")
        if len(found) > 1:
            surveys = ", ".join(row.survey for row in found)
            raise UsageError(f"{object_id}: an object of {surveys}; say which with --survey")
        c = t.detection.c
        rows = self._all(
            select(*(c[name] for name in LIGHTCURVE_COLUMNS))
            .where(c.object_key == found[0].object_key)
            .order_by(c.mjd, c.band, c.forced)
        )
        types = dict.fromkeys(LIGHTCURVE_COLUMNS, pa.float64()) | {"band": pa.string(), "forced": pa.bool_()}
        columns = zip(*rows, strict=True) if rows else ([] for _ in LIGHTCURVE_COLUMNS)
        arrays = [
            pa.array(column, types[name]) for name, column in zip(LIGHTCURVE_COLUMNS, columns, strict=True)
        ]
        return pa.table(
            arrays,
            names=list(LIGHTCURVE_COLUMNS),
            metadata={"object_id": object_id, "survey": found[0].survey},
        )

    def ranked(
        self, model: str, *, limit: int | None = None, version: str | None = None
    ) -> list[RankedAlert]:
        """Alerts by their score, the highest first; alerts that could not be scored come last.

        Parameters
        ----------
        model
            Name of the model.
        limit
            At most so many.
        version
            Of the model; None takes all.
        """
        a, s = t.alert.c, t.score.c
        query = (
            select(a.survey, a.alert_id, a.object_id, a.mjd, a.ra, a.dec, a.band, a.mag, a.mag_err)
            .add_columns(s.model, s.model_version, s.score, s.probability, s.flags, s.error)
            .join_from(t.score, t.alert, (a.survey == s.survey) & (a.alert_id == s.alert_id))
            .where(s.model == model)
            .order_by(s.score.is_(None), s.score.desc(), s.survey, s.alert_id)
            .limit(limit)
        )
        if version is not None:
            query = query.where(s.model_version == version)
        return [RankedAlert(*row) for row in map(tuple, self._all(query))]

    def packets(self, keys: Sequence[AlertKey]) -> list[Packet]:
        """The packets of alerts as they came, in the order of `keys`.

        Decode them like any others, or look into one with `tapetum.alerts.records.to_record`.

        Raises
        ------
        InputError
            No such alert.
        StoreError
            The bytes are not there or fail their checksum.
        """
        a = t.alert.c
        query = select(a.schema_id, a.offset, a.length, a.crc32, t.segment.c.name).join_from(
            t.alert, t.segment, a.segment == t.segment.c.segment_id
        )
        packets = []
        with database_errors(self.url), self.engine.connect() as connection:
            for survey, alert_id in keys:
                row = connection.execute(query.where(a.survey == survey, a.alert_id == alert_id)).first()
                if row is None:
                    raise InputError(f"{survey} {alert_id}: no such alert in {self.name}")
                body = self.reader.read(row.name, row.offset, row.length, row.crc32)
                packets.append(
                    Packet(f"{self.name}:{survey}/{alert_id}", 0, self.avro_schema(row.schema_id), body)
                )
        return packets

    def avro_schema(self, schema_id: int) -> AlertSchema:
        """One of the store's Avro schemas.

        Raises
        ------
        StoreError
            There is none of this number.
        """
        if schema_id not in self._schemas:
            rows = self._all(select(t.avro_schema.c.text).where(t.avro_schema.c.schema_id == schema_id))
            if not rows:
                raise StoreError(
                    f"{self.name}: Avro schema {schema_id} is missing; restore the database from a backup"
                )
            self._schemas[schema_id] = load_schema(rows[0][0].encode())
        return self._schemas[schema_id]

    def _all(self, query: Select[Any]) -> Sequence[Row[Any]]:
        with database_errors(self.url), self.engine.connect() as connection:
            return connection.execute(query).all()


def open_store(
    text_url: str, *, create: bool = False, segments_url: str | None = None, forget_lost: bool = False
) -> Store:
    """Open a store.

    Parameters
    ----------
    text_url
        ``sqlite:///FILE`` or ``postgresql://HOST/NAME``.
    create
        Make the file and the tables, and draw the store's secret, if they are not there yet.
    segments_url
        Where a new store keeps its segments, in a folder of its own; by default ``FILE.segments/`` beside the database.
        For a store that exists: where to look for them first.
    forget_lost
        Make a store also where packets or a log lie whose database is gone, and see `Store.forget_lost`.

    Raises
    ------
    UsageError
        Not a URL of ours, or no place for the segments.
    InputError
        No such file.
    StoreError
        Not a Tapetum store, or one of another version; the database cannot be reached, or lacks its write-ahead log.
    MissingExtraError
        The driver of the database is not installed.
    """
    url = parse_url(text_url)
    file = database_file(url)
    orphans = None if file is None or forget_lost else _orphans(file)
    if file is not None and not (file.exists() and file.stat().st_size):
        if orphans:
            raise StoreError(orphans)
        if not create and not file.exists():
            raise InputError(f"{file}: no such store; make it with  tapetum store init --store {shown(url)}")
        if create:
            create_file(file)
    engine = open_engine(url)
    try:
        with database_errors(url):
            if create:
                _create_tables(engine, url, segments_url, orphans)
            meta = _read_meta(engine, url, orphans)
        store = Store(url, engine, meta, _locate_segments(url, meta, segments_url))
        if forget_lost:
            store.forget_lost()
        return store
    except BaseException:
        engine.dispose()
        raise


def _orphans(file: Path) -> str | None:
    """What to say when `file` has no tables although packets or a log lie beside it; None when nothing does."""
    log, segments = left_alone_log(file), _segments_beside(file)
    if log is None and not any(segments.glob("*.seg")):
        return None
    return (
        f"{file}: the database is missing or empty, but {(log or segments).name} beside it belongs to one. Copy that "
        f"database here, with its write-ahead log {file.name}-wal if it has one, before anything else is done; if it "
        "is gone, make a store without those alerts with  tapetum store init --forget-lost"
    )


def _segments_beside(file: Path) -> Path:
    return file.with_name(file.name + ".segments")


def _create_tables(engine: Engine, url: URL, segments_url: str | None, orphans: str | None) -> None:
    """All tables and the store's identity in one transaction, unless there are tables already."""
    if inspect(engine).get_table_names():
        return
    if orphans:
        raise StoreError(orphans)
    if segments_url is None and database_file(url) is None:
        raise UsageError("a store on a server needs a folder for its segments: set store.segments_url")
    prepare_empty(engine)
    with engine.connect().execution_options(writing=True) as connection:
        if inspect(connection).get_table_names():
            return  # another process was faster
        place = "" if segments_url is None else str(segments_folder(segments_url).absolute())
        identity = {
            "application": t.MARK,
            "schema_version": str(t.SCHEMA_VERSION),
            "store_id": secrets.token_hex(8),
            "secret": secrets.token_urlsafe(32),
            "segments": place,
            t.COMMITS: "0",
        }
        t.metadata.create_all(connection)
        connection.execute(t.meta.insert(), [{"key": key, "value": value} for key, value in identity.items()])
        connection.commit()
    checkpoint(engine)  # whoever copies the file alone has a store, not an empty file


def _read_meta(engine: Engine, url: URL, orphans: str | None) -> dict[str, str]:
    name = shown(url)
    with engine.connect() as connection:
        tables = inspect(connection).get_table_names()
        meta: dict[str, str] = {}
        if {"meta", "alert"}.issubset(tables):
            meta = {row.key: row.value for row in connection.execute(select(t.meta))}
    if orphans and not tables:
        raise StoreError(orphans)
    if meta.get("application") != t.MARK:
        remedy = (
            "make one there with  tapetum store init" if not tables else "choose another file or database"
        )
        raise StoreError(f"{name}: not a Tapetum store; {remedy}")
    if meta.get("schema_version") != str(t.SCHEMA_VERSION):
        raise StoreError(
            f"{name}: a store of schema version {meta.get('schema_version')}, this Tapetum knows {t.SCHEMA_VERSION}; "
            "use the Tapetum that wrote it, or ingest the packets into a new store"
        )
    return meta


def _locate_segments(url: URL, meta: dict[str, str], segments_url: str | None) -> Path:
    """Beside the database, or in the folder of this store at the place given now or at its birth."""
    file = database_file(url)
    if not meta["segments"] and file is not None:
        return _segments_beside(file)
    if segments_url is not None and (here := segments_folder(segments_url) / meta["store_id"]).is_dir():
        return here
    return Path(meta["segments"]) / meta["store_id"]
