"""The work on packets that needs no database: decode, score, lay out as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tapetum.alerts.packets import Packet
from tapetum.pipelines.score import PacketBatch
from tapetum.store.columns import AlertColumns, ScoreColumns, alert_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tapetum.alerts.batch import AlertBatch, Rejection


@dataclass(frozen=True)
class Batch:
    """Packets on their way to a worker, and what could not be read between them."""

    packed: PacketBatch
    rejections: list[Rejection]

    def __len__(self) -> int:
        return len(self.packed.bodies) + len(self.rejections)


@dataclass(frozen=True)
class Outcome:
    """What became of the packets of a batch.

    Attributes
    ----------
    columns
        One entry per survey.
    rejections
        Index and reason of each packet that cannot be used.
    """

    columns: list[AlertColumns]
    rejections: list[tuple[int, str]]


def make_batches(found: Iterable[Packet | Rejection], size: int) -> Iterator[Batch]:
    """Gather packets into batches of `size`, rejections included."""
    packets: list[Packet] = []
    rejections: list[Rejection] = []
    for item in found:
        if isinstance(item, Packet):
            packets.append(item)
        else:
            rejections.append(item)
        if len(packets) + len(rejections) >= size:
            yield Batch(PacketBatch.of(packets), rejections)
            packets, rejections = [], []
    if packets or rejections:
        yield Batch(PacketBatch.of(packets), rejections)


def make_work(model: str | None) -> Callable[[Batch], Outcome]:
    """The work with `model` loaded; None does not score.

    Raises
    ------
    TapetumError
        The model cannot be used.
    """
    from tapetum.alerts.decode import decode_packets

    score = _no_scores if model is None else _scorer(model)

    def work(batch: Batch) -> Outcome:
        # stamps are read although nothing may score them: what is stored must not depend on that
        decoded, rejected = decode_packets(batch.packed.packets(), stamps=True, history=True, candidate=True)
        rejections = [(index, rejection.reason) for index, rejection in rejected]
        columns = []
        for alerts, index in decoded:
            stripped, unusable = alert_columns(alerts, index, score(alerts))
            columns.append(stripped)
            rejections += unusable
        return Outcome(columns, sorted(rejections))

    return work


def _no_scores(batch: AlertBatch) -> None:
    del batch


def _scorer(model: str) -> Callable[[AlertBatch], ScoreColumns]:
    from tapetum.finders import realbogus

    finder = realbogus.load(model)

    def score(batch: AlertBatch) -> ScoreColumns:
        found = finder.find(batch)
        return ScoreColumns(
            found.model, found.model_version, found.score, found.probability, found.flags, found.error
        )

    return score
