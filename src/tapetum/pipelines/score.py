"""The road of an alert: packets in, decoded and scored in batches, one row per alert and model out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tapetum.alerts.packets import Packet, iter_packets
from tapetum.alerts.schema import AlertSchema, load_schema
from tapetum.core.progress import Progress, no_progress
from tapetum.pipelines.runner import run_over

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from tapetum.alerts.batch import Rejection


SCORE_UNITS = {"mjd": "d", "ra": "deg", "dec": "deg"}


@dataclass(frozen=True)
class PacketBatch:
    """Packets on their way to a worker: schema texts once, bodies one after the other.

    `rejections` are what could not be read between them; they stay in the process that read them.
    """

    sources: list[str]
    records: list[int]
    schemas: list[bytes]
    schema_of: list[int]
    bodies: list[bytes]
    rejections: list[Rejection] = field(default_factory=list)

    @classmethod
    def of(cls, packets: Sequence[Packet], rejections: Iterable[Rejection] = ()) -> PacketBatch:
        """Pack packets."""
        texts = list(dict.fromkeys(packet.schema.text for packet in packets))
        number = {text: index for index, text in enumerate(texts)}
        return cls(
            [packet.source for packet in packets],
            [packet.record for packet in packets],
            [text.encode() for text in texts],
            [number[packet.schema.text] for packet in packets],
            [packet.body for packet in packets],
            list(rejections),
        )

    def __len__(self) -> int:
        return len(self.bodies) + len(self.rejections)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "rejections": []}

    def packets(self) -> list[Packet]:
        """Unpack packets; schemas are compiled once per process."""
        schemas: list[AlertSchema] = [load_schema(text) for text in self.schemas]
        return [
            Packet(source, record, schemas[which], body)
            for source, record, which, body in zip(
                self.sources, self.records, self.schema_of, self.bodies, strict=True
            )
        ]


def in_batches(found: Iterable[Packet | Rejection], size: int) -> Iterator[PacketBatch]:
    """Gather what was found into batches of `size`, rejections included."""
    packets: list[Packet] = []
    rejections: list[Rejection] = []
    for entry in found:
        if isinstance(entry, Packet):
            packets.append(entry)
        else:
            rejections.append(entry)
        if len(packets) + len(rejections) >= size:
            yield PacketBatch.of(packets, rejections)
            packets, rejections = [], []
    if packets or rejections:
        yield PacketBatch.of(packets, rejections)


@dataclass(frozen=True)
class ScoreReport:
    """What happened to the inputs of `score_alerts`.

    Attributes
    ----------
    table
        One row per alert and model, in the order of the inputs; None when there are no alerts.
    n_alerts
        Number of different alerts.
    n_repeated
        Number of packets that repeat an alert that came before.
    rejections
        What cannot be used, without its bytes.
    """

    table: pa.Table | None
    n_alerts: int
    n_repeated: int
    rejections: list[Rejection]


def score_alerts(
    paths: Iterable[str | Path],
    models: Sequence[str],
    *,
    jobs: int = 1,
    batch: int = 128,
    schema: AlertSchema | None = None,
    skip: Iterable[Path] = (),
    progress: Progress = no_progress,
) -> ScoreReport:
    """Score every alert of `paths` with every model.

    Parameters
    ----------
    models
        Names, ``name@version`` or paths; see `tapetum.models.registry`.
    schema
        Of bare records, see `tapetum.alerts.packets.iter_packets`.
    skip
        Files that are not input although they lie in a folder that is.

    Raises
    ------
    ModelError
        A model cannot be found or loaded.
    """
    import pyarrow as pa

    rejections: list[Rejection] = []
    tables: list[pa.Table] = []
    n_packets = 0
    seen: set[tuple[str, int, str]] = set()
    batches = in_batches(iter_packets(paths, schema, skip=skip), batch)
    for packed, (scored, faults) in run_over(batches, partial(_scorer, tuple(models)), jobs):
        rejections += [replace(fault, payload=b"") for fault in packed.rejections + faults]
        if scored is not None:
            n_packets += scored.num_rows // len(models)
            tables.append(_first_time(scored, len(models), seen))
        progress(n_packets, None)
    table = pa.concat_tables(tables) if tables else None
    return ScoreReport(table, len(seen), n_packets - len(seen), rejections)


def _first_time(scored: pa.Table, n_models: int, seen: set[tuple[str, int, str]]) -> pa.Table:
    """The rows of alerts that are not in `seen` yet; each alert has `n_models` rows, one after the other."""
    import pyarrow as pa

    names = [scored[name].to_pylist()[::n_models] for name in ("survey", "alert_id", "object_id")]
    rows: list[int] = []
    for number, alert in enumerate(zip(*names, strict=True)):
        if alert not in seen:
            seen.add(alert)
            rows += range(number * n_models, (number + 1) * n_models)
    return scored if len(rows) == scored.num_rows else scored.take(pa.array(rows, pa.int64()))


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
