"""The road of an alert: packets in, decoded and scored in batches, one row per alert and model out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from tapetum.alerts.packets import Packet, iter_packets
from tapetum.alerts.schema import AlertSchema, load_schema
from tapetum.core.progress import Progress, no_progress
from tapetum.pipelines.runner import run_over

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from tapetum.alerts.batch import Rejection


@dataclass(frozen=True)
class PacketBatch:
    """Packets on their way to a worker: schema texts once, bodies one after the other."""

    sources: list[str]
    records: list[int]
    schemas: list[bytes]
    schema_of: list[int]
    bodies: list[bytes]

    @classmethod
    def of(cls, packets: Sequence[Packet]) -> PacketBatch:
        """Pack packets."""
        texts = list(dict.fromkeys(packet.schema.text for packet in packets))
        number = {text: index for index, text in enumerate(texts)}
        return cls(
            [packet.source for packet in packets],
            [packet.record for packet in packets],
            [text.encode() for text in texts],
            [number[packet.schema.text] for packet in packets],
            [packet.body for packet in packets],
        )

    def packets(self) -> list[Packet]:
        """Unpack packets; schemas are compiled once per process."""
        schemas: list[AlertSchema] = [load_schema(text) for text in self.schemas]
        return [
            Packet(source, record, schemas[which], body)
            for source, record, which, body in zip(
                self.sources, self.records, self.schema_of, self.bodies, strict=True
            )
        ]


def in_batches(
    found: Iterable[Packet | Rejection], size: int, on_rejection: Callable[[Rejection], None]
) -> Iterator[PacketBatch]:
    """Group packets; rejections go to `on_rejection` as they come."""

    def good() -> Iterator[Packet]:
        for entry in found:
            if isinstance(entry, Packet):
                yield entry
            else:
                on_rejection(entry)

    packets = good()
    while chunk := list(islice(packets, size)):
        yield PacketBatch.of(chunk)


@dataclass(frozen=True)
class ScoreReport:
    """What happened to the inputs of `score_alerts`."""

    table: pa.Table | None
    n_alerts: int
    rejections: list[Rejection]


def score_alerts(
    paths: Iterable[str | Path],
    models: Sequence[str],
    *,
    jobs: int = 1,
    batch: int = 128,
    schema: AlertSchema | None = None,
    progress: Progress = no_progress,
) -> ScoreReport:
    """Score every alert of `paths` with every model.

    Parameters
    ----------
    models
        Names, ``name@version`` or paths; see `tapetum.models.registry`.
    schema
        Of bare records, see `tapetum.alerts.packets.iter_packets`.

    Returns
    -------
    ScoreReport
        The table has one row per alert and model, in the order of the inputs; None when there are no alerts.

    Raises
    ------
    ModelError
        A model cannot be found or loaded.
    """
    import pyarrow as pa

    rejections: list[Rejection] = []
    tables: list[pa.Table] = []
    n_alerts = 0
    batches = in_batches(iter_packets(paths, schema), batch, rejections.append)
    for _, (scored, faults) in run_over(batches, partial(_scorer, tuple(models)), jobs):
        rejections += faults
        if scored is not None:
            tables.append(scored)
            n_alerts += scored.num_rows // len(models)
        progress(n_alerts, None)
    return ScoreReport(pa.concat_tables(tables) if tables else None, n_alerts, rejections)


def _scorer(models: tuple[str, ...]) -> Callable[[PacketBatch], tuple[pa.Table | None, list[Rejection]]]:
    import numpy as np
    import pyarrow as pa

    from tapetum.alerts.decode import decode_packets
    from tapetum.finders import realbogus

    finders = [realbogus.load(name) for name in models]

    def score(packed: PacketBatch) -> tuple[pa.Table | None, list[Rejection]]:
        batches, faults = decode_packets(packed.packets())
        tables, order = [], []
        for batch, indices in batches:
            for finder in finders:
                tables.append(realbogus.to_arrow(batch, finder.find(batch)))
                order += indices
        if not tables:
            return None, [fault for _, fault in faults]
        in_order = np.argsort(order, kind="stable")
        return pa.concat_tables(tables).take(in_order), [fault for _, fault in faults]

    return score
