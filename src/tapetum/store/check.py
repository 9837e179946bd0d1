"""Proof that a store is whole: every promise its tables make to each other and to the segments."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import Connection, Select, and_, exists, func, or_, select

from tapetum.core.errors import StoreError
from tapetum.core.progress import Progress, no_progress
from tapetum.sky.healpix import hpx29
from tapetum.store import schema as t
from tapetum.store.dialects import database_errors, integrity_problems, snapshot
from tapetum.store.segments import LOCK_NAME, MAGIC

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tapetum.store.store import Store

MAX_EXAMPLES = 5  # rows that a problem names, beside their number
ROWS_AT_A_TIME = 10_000
LETTERS_AT_A_TIME = 4  # each may be as large as a packet
OWN_ROW_DAYS = 0.01


@dataclass
class CheckReport:
    """What `check` found.

    Attributes
    ----------
    checked
        What was looked at, and how many of it.
    problems
        Broken promises; empty for a good store.
    notes
        Facts that are no problem, such as bytes left behind by a process that was killed.
    """

    checked: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(store: Store, *, quick: bool = False, progress: Progress = no_progress) -> CheckReport:
    """Check every invariant of a store.

    Parameters
    ----------
    store
        It may be written to at the same time: the tables are read as they are at one moment.
    quick
        Do not read the segments, only look at their sizes.
    progress
        Called with the number of alerts whose bytes were looked at.

    Returns
    -------
    CheckReport
    """
    report = CheckReport()
    lost = store.lost()
    report.problems += [] if lost is None else [lost]
    with database_errors(store.url), snapshot(store.engine) as connection:
        report.problems += integrity_problems(connection)
        for part in (_check_alerts, _check_objects, _check_detections, _check_scores, _check_dead_letters):
            part(connection, report)
        _check_segments(connection, store, report, quick, progress)
    return report


def _check_alerts(connection: Connection, report: CheckReport) -> None:
    a = t.alert.c
    report.checked["alerts"] = _count(connection, select(func.count()).select_from(t.alert))
    no_object = ~exists().where(and_(t.object_.c.survey == a.survey, t.object_.c.object_id == a.object_id))
    _expect_none(
        connection, report, "alerts without their object", select(a.survey, a.alert_id).where(no_object)
    )
    no_schema = ~exists().where(t.avro_schema.c.schema_id == a.schema_id)
    _expect_none(
        connection, report, "alerts without their Avro schema", select(a.survey, a.alert_id).where(no_schema)
    )
    no_segment = ~exists().where(t.segment.c.segment_id == a.segment)
    _expect_none(
        connection, report, "alerts without their segment", select(a.survey, a.alert_id).where(no_segment)
    )
    own = and_(
        t.detection.c.object_key == t.object_.c.object_key,
        # histories use the survey's nominal exposure time, an alert its own: their middles differ by a little
        t.detection.c.mjd.between(a.mjd - OWN_ROW_DAYS, a.mjd + OWN_ROW_DAYS),
        t.detection.c.band == a.band,
        t.detection.c.forced.is_(False),
    )
    without_own = (
        select(a.survey, a.alert_id)
        .join_from(
            t.alert, t.object_, and_(t.object_.c.survey == a.survey, t.object_.c.object_id == a.object_id)
        )
        .where(~exists().where(own))
    )
    _expect_none(connection, report, "alerts missing from their object's light curve", without_own)
    _check_positions(connection, report, "alerts", select(a.ra, a.dec, a.hpx29, a.survey, a.alert_id))


def _check_objects(connection: Connection, report: CheckReport) -> None:
    o, a = t.object_.c, t.alert.c
    report.checked["objects"] = _count(connection, select(func.count()).select_from(t.object_))
    counted = (
        select(
            a.survey,
            a.object_id,
            func.count().label("n"),
            func.min(a.mjd).label("first"),
            func.max(a.mjd).label("last"),
        )
        .group_by(a.survey, a.object_id)
        .subquery()
    )
    joined = select(o.survey, o.object_id).join_from(
        t.object_,
        counted,
        and_(o.survey == counted.c.survey, o.object_id == counted.c.object_id),
        isouter=True,
    )
    _expect_none(connection, report, "objects without alerts", joined.where(counted.c.n.is_(None)))
    differs = or_(o.n_alerts != counted.c.n, o.first_mjd != counted.c.first, o.last_mjd != counted.c.last)
    _expect_none(connection, report, "objects whose alerts do not add up", joined.where(differs))
    latest = and_(
        a.survey == o.survey, a.alert_id == o.last_alert_id, a.object_id == o.object_id,
        a.mjd == o.last_mjd, a.ra == o.ra, a.dec == o.dec,
    )  # fmt: skip
    misplaced = select(o.survey, o.object_id).where(~exists().where(latest))
    _expect_none(connection, report, "objects that are not where their latest alert is", misplaced)
    _check_positions(connection, report, "objects", select(o.ra, o.dec, o.hpx29, o.survey, o.object_id))


def _check_detections(connection: Connection, report: CheckReport) -> None:
    d = t.detection.c
    report.checked["detections"] = _count(connection, select(func.count()).select_from(t.detection))
    orphans = select(d.object_key, d.mjd).where(~exists().where(t.object_.c.object_key == d.object_key))
    _expect_none(connection, report, "light-curve rows of no object", orphans)


def _check_scores(connection: Connection, report: CheckReport) -> None:
    s = t.score.c
    report.checked["scores"] = _count(connection, select(func.count()).select_from(t.score))
    no_alert = ~exists().where(and_(t.alert.c.survey == s.survey, t.alert.c.alert_id == s.alert_id))
    _expect_none(
        connection, report, "scores of no alert", select(s.survey, s.alert_id, s.model).where(no_alert)
    )
    m = t.model.c
    unknown = ~exists().where(and_(m.model == s.model, m.model_version == s.model_version))
    _expect_none(
        connection, report, "scores of no known model", select(s.survey, s.alert_id, s.model).where(unknown)
    )
    silent = and_(s.score.is_(None), s.error.is_(None))
    _expect_none(
        connection,
        report,
        "null scores that do not say why",
        select(s.survey, s.alert_id, s.model).where(silent),
    )


def _check_dead_letters(connection: Connection, report: CheckReport) -> None:
    d = t.dead_letter.c
    rows = _stream(connection, select(d.sha256, d.packet, d.source), LETTERS_AT_A_TIME)
    number, wrong = 0, _Examples()
    for row in rows:
        number += 1
        if row.packet and hashlib.sha256(row.packet).hexdigest() != row.sha256:
            wrong.add([row.source])
    report.checked["dead_letters"] = number
    wrong.report(report, "dead letters whose packet is not the one they name")


def _check_positions(connection: Connection, report: CheckReport, what: str, query: Select[Any]) -> None:
    wrong = _Examples()
    for part in _stream(connection, query).partitions(ROWS_AT_A_TIME):
        ra, dec, index = (np.array(column) for column in list(zip(*part, strict=True))[:3])
        right = np.zeros(len(part), np.bool_)
        on_sky = np.isfinite(ra) & (np.abs(dec) <= 90)
        right[on_sky] = hpx29(ra[on_sky], dec[on_sky]) == index[on_sky]
        for row in np.flatnonzero(~right):
            wrong.add(part[row][3:])
    wrong.report(report, f"{what} with a wrong hpx29")


def _check_segments(
    connection: Connection, store: Store, report: CheckReport, quick: bool, progress: Progress
) -> None:
    """Every body is where its row says, without gaps between them; unless `quick`, with the right checksum."""
    segments = {row.segment_id: row for row in connection.execute(select(t.segment))}
    sizes = {number: _size(store, row.name) for number, row in segments.items()}
    a = t.alert.c
    query = select(a.segment, a.offset, a.length, a.crc32, a.survey, a.alert_id).order_by(a.segment, a.offset)
    ends = dict.fromkeys(segments, len(MAGIC))
    misplaced, damaged = _Examples(), _Examples()
    for done, row in enumerate(_stream(connection, query), 1):
        if row.segment not in ends:
            continue  # told already
        if row.offset != ends[row.segment]:
            misplaced.add((row.survey, row.alert_id))
        ends[row.segment] = row.offset + row.length
        there = sizes[row.segment] >= ends[row.segment]
        if there and not quick and not _readable(store, segments[row.segment].name, row):
            damaged.add((row.survey, row.alert_id))
        if done % ROWS_AT_A_TIME == 0:
            progress(done, report.checked["alerts"])
    misplaced.report(report, "alerts whose bytes overlap others or leave a gap")
    damaged.report(report, "alerts whose bytes fail their checksum")
    report.checked["segments"] = len(segments)
    report.checked["bodies" if not quick else "bodies (sizes only)"] = report.checked["alerts"]
    for number, row in segments.items():
        _check_size(store.segments / row.name, row.bytes, sizes[number], ends[number], report)
    _note_strangers(store, {row.name for row in segments.values()}, report)


def _check_size(path: Path, named: int, size: int, end: int, report: CheckReport) -> None:
    """Compare what the segment's row says, what is on disk, and where the last body ends [bytes]."""
    if size < 0:
        report.problems.append(f"{path}: missing")
    elif size < named:
        report.problems.append(f"{path}: {size} bytes where rows name {named}")
    elif size > named:
        report.notes.append(f"{path.name}: {size - named} bytes at its end belong to no alert")
    if end != named:
        report.problems.append(f"segment {path.name}: its last body ends at {end}, not at {named}")


def _readable(store: Store, name: str, row: Any) -> bool:
    try:
        store.reader.read(name, row.offset, row.length, row.crc32)
    except StoreError:
        return False
    return True


def _note_strangers(store: Store, names: set[str], report: CheckReport) -> None:
    if not store.segments.is_dir():
        return
    for path in sorted(store.segments.glob("*.seg")):
        if path.name not in names and path.name != LOCK_NAME:
            report.notes.append(f"{path.name}: {path.stat().st_size} bytes belong to no alert")


def _size(store: Store, name: str) -> int:
    try:
        return (store.segments / name).stat().st_size
    except OSError:
        return -1


def _count(connection: Connection, query: Select[Any]) -> int:
    return int(connection.execute(query).scalar_one())


def _stream(connection: Connection, query: Select[Any], at_a_time: int = ROWS_AT_A_TIME) -> Any:
    return connection.execute(query.execution_options(yield_per=at_a_time))


def _expect_none(connection: Connection, report: CheckReport, what: str, query: Select[Any]) -> None:
    found = _Examples()
    for row in connection.execute(query.limit(MAX_EXAMPLES)):
        found.add(row)
    if found.number:
        found.number = _count(connection, select(func.count()).select_from(query.subquery()))
        found.report(report, what)


class _Examples:
    """Counts rows that break a promise and remembers the first few."""

    def __init__(self) -> None:
        self.number = 0
        self.first: list[str] = []

    def add(self, row: Iterable[Any]) -> None:
        self.number += 1
        if len(self.first) < MAX_EXAMPLES:
            self.first.append(" ".join(map(str, row)))

    def report(self, report: CheckReport, what: str) -> None:
        if self.number:
            more = " ..." if self.number > len(self.first) else ""
            report.problems.append(f"{self.number} {what}: {'; '.join(self.first)}{more}")
