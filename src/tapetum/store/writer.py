"""The one writer of a store: bodies into segments, columns into tables, both in one transaction."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import Column, ColumnElement, Connection, Engine, func, select

from tapetum.core.errors import StoreError
from tapetum.core.limits import DEFAULT_LIMITS
from tapetum.store import schema as t
from tapetum.store.dialects import insert_sql, null_columns, try_writer_lock
from tapetum.store.segments import SegmentWriter, crc32, read_mark, segment_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from tapetum.alerts.batch import AlertKey, Rejection
    from tapetum.alerts.packets import Packet
    from tapetum.alerts.schema import AlertSchema
    from tapetum.store.columns import AlertColumns, DetectionColumns, ScoreColumns

MAX_IN = 500  # values in one IN (...)
OBJECT_COLUMNS = [column.name for column in t.object_.columns]
DETECTION_COLUMNS = [column.name for column in t.detection.columns]

SAME_TIME = 0.01  # d; copies of a packet may lack the exposure time, which moves the middle of the exposure
SAME_PLACE = 5.0  # arcsec


@dataclass(frozen=True)
class Added:
    """What `Writer.add` did.

    Attributes
    ----------
    stored, known
        Number of alerts that are new, and that were there before (or came twice).
    scored
        Number of new scores.
    safe
        The alerts, new or known, that are on disk after `Writer.commit`.
    clashes
        (index of the packet, reason) of each alert that has the id of another one.
    """

    stored: int
    known: int
    scored: int
    safe: list[AlertKey]
    clashes: list[tuple[int, str]]


class Writer:
    """Adds alerts to a store. Nothing is in the store, and nothing may be acknowledged, before `commit`.

    Parameters
    ----------
    engine
        The database.
    segments
        Its lock says that nobody else writes.

    Raises
    ------
    StoreError
        Another process writes, or the database lacks what was committed to it.
    """

    def __init__(self, engine: Engine, segments: SegmentWriter) -> None:
        self._connection = engine.connect().execution_options(writing=True)
        self._segments = segments
        if not try_writer_lock(self._connection):
            self._connection.close()
            raise StoreError("another process is writing to this store; wait for it to end")
        c = self._connection
        changing = [name for name in DETECTION_COLUMNS if name not in t.detection.primary_key.columns]
        self._sql = {
            "alert": insert_sql(c, t.alert),
            "segment": insert_sql(c, t.segment, update=["bytes"]),
            "object": insert_sql(c, t.object_, update=[n for n in OBJECT_COLUMNS if n != "object_key"]),
            "detection": insert_sql(
                c, t.detection, update=changing, where=lambda table, new: new["rank"] > table.c.rank
            ),
            "score": insert_sql(c, t.score, ignore=True),
            "dead_letter": insert_sql(c, t.dead_letter, ignore=True),
            "meta": insert_sql(c, t.meta, update=["value"]),
        }
        self._commits, self._changed = committed(c), False
        lost = lost_commits(read_mark(segments.folder), self._commits)
        if lost is not None:
            self._connection.close()
            raise StoreError(f"{segments.folder}: {lost}")
        self._schema_ids: dict[str, int] = dict(
            self._rows(select(t.avro_schema.c.fingerprint, t.avro_schema.c.schema_id))
        )
        self._next_object = self._scalar(func.max(t.object_.c.object_key)) + 1
        last = c.execute(select(t.segment).order_by(t.segment.c.segment_id.desc()).limit(1)).first()
        if last:
            segments.resume(int(last.segment_id), int(last.bytes))
        c.rollback()

    def add(self, columns: AlertColumns, packets: Sequence[Packet]) -> Added:
        """Add what the store does not have yet.

        Parameters
        ----------
        columns
            Alerts of one survey.
        packets
            Where `columns.index` points.
        """
        usable = np.flatnonzero(columns.index >= 0)
        known = self._standing(columns.survey, columns.alert_id[usable].tolist())
        other = _is_another(columns, usable, known)
        rows = _first_of_each(columns, usable[~other])
        ids = columns.alert_id[rows].tolist()
        is_new = np.fromiter((number not in known for number in ids), np.bool_, len(ids))
        new = rows[is_new]
        if new.size:
            keys = self._add_objects(columns, new)
            self._add_alerts(columns, new, packets)
            self._add_detections(columns.detections, new, keys)
        n_scores = 0
        if columns.scores is not None:
            n_scores = self._add_scores(columns, columns.scores, new, rows[~is_new])
        safe = [(columns.survey, number) for number in ids]
        clashes = [(int(columns.index[row]), _clash(columns, row)) for row in usable[other]]
        return Added(int(new.size), int((~other).sum()) - new.size, n_scores, safe, clashes)

    def reject(self, rejection: Rejection, packet: Packet | None = None) -> None:
        """Keep what cannot be used: the `packet` when its body could be cut out, else the bytes of `rejection`."""
        whole = rejection.payload if packet is None else packet.body
        # readers cut as well; but one packet beyond what a database takes would end a run of millions
        payload, reason = whole[: DEFAULT_LIMITS.packet_bytes], rejection.reason
        if len(payload) < len(whole):
            reason += f" (kept are the first {len(payload)} of its {len(whole)} bytes)"
        schema_id = None if packet is None else self._schema_id(packet.schema)
        told = _storable(rejection.source), rejection.record, _storable(reason)
        self._insert("dead_letter", [(dead_letter_id(payload, *told), *told, schema_id, payload)])

    def commit(self) -> None:
        """Return when everything added is on disk: first the bodies, then the rows that name them."""
        self._segments.sync()
        if self._changed:
            self._commits += 1
            self._insert("meta", [(t.COMMITS, str(self._commits))])
        self._connection.commit()
        if self._changed:
            self._segments.mark(self._commits)
            self._changed = False

    def close(self) -> None:
        """Forget what was not committed."""
        self._connection.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- tables ---------------------------------------------------------------------------------------------------

    def _add_objects(self, columns: AlertColumns, rows: NDArray[np.int64]) -> list[int]:
        """Merge the alerts of `rows` into their objects; the object key of each."""
        names = [columns.object_id[row] for row in rows]
        objects = self._objects(columns.survey, list(dict.fromkeys(names)))
        mjd, ra, dec = (column[rows].tolist() for column in (columns.mjd, columns.ra, columns.dec))
        positions, ids = columns.hpx29[rows].tolist(), columns.alert_id[rows].tolist()
        keys = []
        for name, *alert in zip(names, mjd, ids, ra, dec, positions, strict=True):
            merged = objects.get(name)
            if merged is None:
                merged = objects[name] = _new_object(self._next_object, columns.survey, name)
                self._next_object += 1
            _merge_alert(merged, *alert)
            keys.append(merged["object_key"])
        self._insert("object", [tuple(merged.values()) for merged in objects.values()])
        return keys

    def _objects(self, survey: str, names: list[str]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for part in _parts(names):
            query = select(t.object_).where(t.object_.c.survey == survey, t.object_.c.object_id.in_(part))
            for row in self._rows(query):
                found[row[2]] = dict(zip(OBJECT_COLUMNS, row, strict=True))
        return found

    def _add_alerts(self, columns: AlertColumns, rows: NDArray[np.int64], packets: Sequence[Packet]) -> None:
        chosen = [packets[number] for number in columns.index[rows]]
        bodies = [packet.body for packet in chosen]
        number, offsets = self._segments.append(bodies)
        self._insert("segment", [(number, segment_name(number), self._segments.end)])
        measured = [getattr(columns, name)[rows].tolist() for name in ("mag", "mag_err", "flux", "flux_err")]
        table = [
            [columns.survey] * rows.size,
            columns.alert_id[rows].tolist(),
            [columns.object_id[row] for row in rows],
            *(getattr(columns, name)[rows].tolist() for name in ("mjd", "ra", "dec", "hpx29")),
            [columns.band[row] for row in rows],
            *null_columns(self._connection, measured),
            [columns.candidate[row] for row in rows],
            [self._schema_id(packet.schema) for packet in chosen],
            [number] * rows.size,
            offsets,
            [len(body) for body in bodies],
            [crc32(body) for body in bodies],
        ]
        self._insert("alert", list(zip(*table, strict=True)))

    def _add_detections(self, detections: DetectionColumns, rows: NDArray[np.int64], keys: list[int]) -> None:
        starts, counts = detections.offsets[rows], np.diff(detections.offsets)[rows]
        object_key = np.repeat(np.asarray(keys, np.int64), counts)
        # the rows of every alert, one after the other
        flat = np.arange(object_key.size) + np.repeat(starts - np.cumsum(counts) + counts, counts)
        timed = np.isfinite(detections.mjd[flat])
        flat, object_key = flat[timed], object_key[timed]
        # in the order of the primary key: neighbouring rows go to the same page
        order = np.lexsort((detections.mjd[flat], object_key))
        flat, object_key = flat[order], object_key[order]
        bands = np.array(detections.band_names, object)[detections.band[flat]]
        table = [
            object_key.tolist(),
            detections.mjd[flat].tolist(),
            bands.tolist(),
            detections.forced[flat].tolist(),
            detections.rank[flat].tolist(),
            *null_columns(self._connection, detections.values[:, flat].tolist()),
        ]
        self._insert("detection", list(zip(*table, strict=True)))

    def _add_scores(
        self, columns: AlertColumns, scores: ScoreColumns, new: NDArray[np.int64], known: NDArray[np.int64]
    ) -> int:
        """Scores of new alerts, and of known ones that have none of this model and version; how many."""
        self._check_model(scores)
        same = (t.score.c.survey == columns.survey) & (t.score.c.model == scores.model)
        same &= t.score.c.model_version == scores.version
        scored = self._known(t.score.c.alert_id, columns.alert_id[known].tolist(), same)
        lacking = [row for row in known.tolist() if int(columns.alert_id[row]) not in scored]
        rows = np.concatenate([new, np.array(lacking, np.int64)])
        values = [scores.score[rows].tolist(), scores.probability[rows].tolist()]
        table = [
            [columns.survey] * rows.size,
            columns.alert_id[rows].tolist(),
            [scores.model] * rows.size,
            [scores.version] * rows.size,
            *null_columns(self._connection, values),
            scores.flags[rows].tolist(),
            [scores.error[row] for row in rows],
        ]
        self._insert("score", list(zip(*table, strict=True)))
        return int(rows.size)

    def _check_model(self, scores: ScoreColumns) -> None:
        """One name and version stands for one network: else its scores could not be told from another's."""
        m = t.model.c
        query = select(m.identity).where(m.model == scores.model, m.model_version == scores.version)
        known = self._connection.execute(query).scalar()
        if known is None:
            values = {"model": scores.model, "model_version": scores.version, "identity": scores.identity}
            self._connection.execute(t.model.insert(), [values])
        elif known != scores.identity:
            raise StoreError(
                f"this store has scores of another network that is called {scores.model} {scores.version} as well; "
                "give yours a name or version of its own (tapetum models train --name --version), "
                "or use another store"
            )

    def _schema_id(self, schema: AlertSchema) -> int:
        known = self._schema_ids.get(schema.fingerprint)
        if known is None:
            known = self._schema_ids[schema.fingerprint] = max(self._schema_ids.values(), default=0) + 1
            values = {"schema_id": known, "fingerprint": schema.fingerprint, "text": schema.text}
            self._connection.execute(t.avro_schema.insert(), [values])
            self._changed = True
        return known

    # --- database -------------------------------------------------------------------------------------------------

    def _insert(self, name: str, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            self._connection.exec_driver_sql(self._sql[name], rows)
            self._changed = True

    def _rows(self, query: Any) -> list[Any]:
        return [tuple(row) for row in self._connection.execute(query)]

    def _scalar(self, expression: ColumnElement[Any]) -> int:
        return int(self._connection.execute(select(expression)).scalar_one() or 0)

    def _standing(self, survey: str, ids: list[int]) -> dict[int, tuple[float, float, float]]:
        """Time and position of those of the alerts that are in the store."""
        a, found = t.alert.c, {}
        for part in _parts(dict.fromkeys(ids)):
            query = select(a.alert_id, a.mjd, a.ra, a.dec).where(a.survey == survey, a.alert_id.in_(part))
            found.update({row[0]: (row[1], row[2], row[3]) for row in self._connection.execute(query)})
        return found

    def _known(self, column: Column[Any], values: list[Any], where: ColumnElement[bool]) -> set[Any]:
        found: set[Any] = set()
        for part in _parts(values):
            found.update(self._connection.execute(select(column).where(where, column.in_(part))).scalars())
        return found


def committed(connection: Connection) -> int:
    """How many transactions of writers the database knows."""
    value = connection.execute(select(t.meta.c.value).where(t.meta.c.key == t.COMMITS)).scalar()
    return int(value or 0)


def lost_commits(marked: int, known: int) -> str | None:
    """What is wrong, and the remedy, when a database knows of fewer transactions than its segments; else None.

    Parameters
    ----------
    marked
        `read_mark` of the segments, read before `known`.
    known
        `committed` of the database.
    """
    if marked <= known:
        return None
    return (
        f"the last {marked - known} of {marked} transactions are not in the database: its write-ahead log (the file "
        "ending in -wal) was left behind, or it is an older copy. Put the right files together while no command runs; "
        "if they are gone, run  tapetum store init --forget-lost  and ingest the sources again"
    )


def dead_letter_id(payload: bytes, source: str, record: int, reason: str) -> str:
    """Hex SHA-256 of the packet; of source and reason where there is none."""
    return hashlib.sha256(payload or f"{source}\n{record}\n{reason}".encode()).hexdigest()


def _storable(text: str) -> str:
    """A text that every database takes: file names may hold bytes that are no characters."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _first_of_each(columns: AlertColumns, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of `rows` that can be stored, an alert that comes twice only once."""
    _, first = np.unique(columns.alert_id[rows], return_index=True)
    return np.asarray(rows[np.sort(first)], np.int64)


def _is_another(
    columns: AlertColumns, rows: NDArray[np.int64], known: Mapping[int, tuple[float, float, float]]
) -> NDArray[np.bool_]:
    """Which of `rows` are not the alert that has their id: the stored one, else the first of these.

    Copies of a packet may differ in what a broker added, and an object may be renamed, but not in time and place.
    """
    here = np.stack([columns.mjd[rows], columns.ra[rows], columns.dec[rows]], axis=1)
    ids = columns.alert_id[rows].tolist()
    first = dict(zip(reversed(ids), reversed(here.tolist()), strict=True))
    there = np.array([known.get(number, first[number]) for number in ids]).reshape(-1, 3)
    d_mjd, d_ra, d_dec = np.abs(here - there).T
    d_ra = np.minimum(d_ra, 360 - d_ra) * np.cos(np.radians(here[:, 2]))
    return np.asarray((d_mjd > SAME_TIME) | (np.hypot(d_ra, d_dec) * 3600 > SAME_PLACE), np.bool_)


def _clash(columns: AlertColumns, row: int) -> str:
    number = int(columns.alert_id[row])
    return f"its id {number} belongs to another alert of {columns.survey}, of another time or place: ids must be unique"


def _new_object(key: int, survey: str, name: str) -> dict[str, Any]:
    none: dict[str, Any] = dict.fromkeys(OBJECT_COLUMNS)
    return none | {"object_key": key, "survey": survey, "object_id": name, "n_alerts": 0}


def _merge_alert(
    merged: dict[str, Any], mjd: float, alert_id: int, ra: float, dec: float, position: int
) -> None:
    """Count an alert into its object; in whatever order alerts come, the latest one gives the position."""
    if not merged["n_alerts"]:
        merged["first_mjd"] = mjd
    if not merged["n_alerts"] or (mjd, alert_id) > (merged["last_mjd"], merged["last_alert_id"]):
        merged.update(ra=ra, dec=dec, hpx29=position, last_mjd=mjd, last_alert_id=alert_id)
    merged["first_mjd"] = min(merged["first_mjd"], mjd)
    merged["n_alerts"] += 1


def _parts(values: Iterable[Any]) -> list[list[Any]]:
    everything = list(values)
    return [everything[start : start + MAX_IN] for start in range(0, len(everything), MAX_IN)]
