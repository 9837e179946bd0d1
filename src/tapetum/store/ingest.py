"""Packets into a store: read here, decoded and scored by workers, written here, acknowledged when on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tapetum.alerts.batch import AlertKey, Rejection
from tapetum.alerts.packets import iter_packets
from tapetum.core.errors import UsageError
from tapetum.core.progress import Progress, no_progress
from tapetum.pipelines.runner import run_over
from tapetum.pipelines.score import PacketBatch, in_batches
from tapetum.store.worker import Outcome, make_work

if TYPE_CHECKING:
    from pathlib import Path

    from tapetum.alerts.schema import AlertSchema
    from tapetum.store.store import Store
    from tapetum.store.writer import Writer

Acknowledge = Callable[[list[AlertKey]], None]


@dataclass
class IngestReport:
    """What an ingest did.

    Attributes
    ----------
    stored
        Alerts that are new in the store.
    known
        Alerts that were there before, or came twice.
    scored
        New scores, of new alerts or of known ones that had none of this model and version.
    rejected
        Packets and sources that cannot be used; they are among the dead letters.
    seconds
        Wall time.
    """

    stored: int = 0
    known: int = 0
    scored: int = 0
    rejected: int = 0
    seconds: float = 0.0


def ingest(
    store: Store,
    sources: Sequence[str | Path],
    *,
    model: str | None,
    schema: AlertSchema | None = None,
    jobs: int = 1,
    batch: int = 128,
    commit_alerts: int = 512,
    segment_bytes: int = 2**30,
    acknowledge: Acknowledge | None = None,
    rejected: Callable[[Rejection], None] | None = None,
    progress: Progress = no_progress,
) -> IngestReport:
    """Store and score every alert of `sources` that the store does not have yet.

    Safe to kill at any moment and to repeat: an alert is acknowledged only after its bytes and its rows are on disk,
    and nothing of an unfinished transaction is visible.

    Parameters
    ----------
    store
        Nobody else may write to it meanwhile.
    sources
        Files, folders and archives, see `tapetum.alerts.packets.iter_packets`.
    model
        What scores the alerts; None does not score.
    schema
        Of bare records (headerless or Confluent-framed); without it they are rejected.
    jobs
        Worker processes; 1 works in this process.
    batch
        Packets handed to a worker at a time.
    commit_alerts
        Alerts per transaction.
    segment_bytes
        A segment is closed beyond this size [bytes].
    acknowledge
        Called with (survey, alert_id) of alerts that are on disk now, new ones and known ones; so one that was
        committed just before an earlier run was killed is acknowledged by the next.
    rejected
        Called with each packet or source that cannot be used.
    progress
        Called with the number of packets done.

    Raises
    ------
    UsageError
        A source is not a file or folder.
    StoreError
        Somebody else writes, or the disk or the database fails.
    TapetumError
        The model cannot be used, or a worker died.
    """
    for source in sources:
        if "://" in str(source):
            raise UsageError(
                f"{source}: only files, folders and archives can be ingested; save the stream to files first"
            )
    start = time.monotonic()
    report = IngestReport()
    batches = in_batches(iter_packets(sources, schema), min(batch, commit_alerts))
    with store.writer(segment_bytes) as writer:
        pending: list[tuple[PacketBatch, Outcome]] = []
        size = 0
        for done in run_over(batches, partial(make_work, model), jobs):
            pending.append(done)
            size += len(done[0])
            if size >= commit_alerts:
                _commit(writer, pending, report, acknowledge, rejected)
                progress(report.stored + report.known + report.rejected, None)
                pending, size = [], 0
        if pending:
            _commit(writer, pending, report, acknowledge, rejected)
    report.seconds = time.monotonic() - start
    return report


def _commit(
    writer: Writer,
    pending: list[tuple[PacketBatch, Outcome]],
    report: IngestReport,
    acknowledge: Acknowledge | None,
    rejected: Callable[[Rejection], None] | None,
) -> None:
    """Write `pending` in one transaction, then say so."""
    safe: list[AlertKey] = []
    dead: list[Rejection] = []
    for batch, outcome in pending:
        packets = batch.packets()
        unusable = list(outcome.rejections)
        for columns in outcome.columns:
            added = writer.add(columns, packets)
            unusable += added.clashes
            report.stored += added.stored
            report.known += added.known
            report.scored += added.scored
            safe += added.safe
        dead += batch.rejections
        for rejection in batch.rejections:
            writer.reject(rejection)
        for index, reason in sorted(unusable):
            packet = packets[index]
            dead.append(Rejection(packet.source, packet.record, reason))
            writer.reject(dead[-1], packet)
    writer.commit()
    report.rejected += len(dead)
    if acknowledge is not None and safe:
        acknowledge(safe)
    if rejected is not None:
        for rejection in dead:
            rejected(rejection)
