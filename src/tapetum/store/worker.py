"""The work on packets that needs no database: decode, score, lay out as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tapetum.store.columns import AlertColumns, ScoreColumns, alert_columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapetum.alerts.batch import AlertBatch
    from tapetum.pipelines.score import PacketBatch


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


def make_work(model: str | None) -> Callable[[PacketBatch], Outcome]:
    """The work with `model` loaded; None does not score.

    Raises
    ------
    TapetumError
        The model cannot be used.
    """
    from tapetum.alerts.decode import decode_packets

    score = _no_scores if model is None else _scorer(model)

    def work(batch: PacketBatch) -> Outcome:
        # stamps are read although nothing may score them: what is stored must not depend on that
        decoded, rejected = decode_packets(batch.packets(), stamps=True, history=True, candidate=True)
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
            found.model,
            found.model_version,
            finder.model.card.identity,
            found.score,
            found.probability,
            found.flags,
            found.error,
        )

    return score
