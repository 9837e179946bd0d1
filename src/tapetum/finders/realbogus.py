"""Is an alert a real change on the sky or an artefact? Runs any network whose card asks for stamps and fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tapetum.alerts.batch import STAMP_NAMES
from tapetum.core.errors import InputError
from tapetum.finders.config import FinderConfig
from tapetum.models.flags import UNSCORED, InputFlag
from tapetum.models.inputs import inspect_images, prepare_images
from tapetum.models.runtime import Model
from tapetum.surveys.profile import load_alert_profile

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from tapetum.alerts.batch import AlertBatch
    from tapetum.models.card import FeatureContract, ImageContract

COLUMNS = (
    "alert_id",
    "object_id",
    "survey",
    "mjd",
    "ra",
    "dec",
    "model",
    "model_version",
    "score",
    "probability",
    "flags",
    "error",
)


class Config(FinderConfig):
    """Settings of the finder."""


@dataclass(frozen=True)
class Scores:
    """What one model says of the alerts of a batch, in their order.

    Attributes
    ----------
    model, model_version
        Name and version from the model's card.
    score : ndarray of float64, shape (n,)
        Raw output of the network; NaN where the alert could not be scored.
    probability : ndarray of float64, shape (n,)
        Calibrated; NaN where there is no score or the card has no calibration.
    flags : ndarray of int32, shape (n,)
        Bits of `tapetum.models.flags.InputFlag`.
    error : list of str or None, length n
        Why there is no score.
    """

    model: str
    model_version: str
    score: NDArray[np.float64]
    probability: NDArray[np.float64]
    flags: NDArray[np.int32]
    error: list[str | None]


class RealBogus:
    """A loaded model that scores batches of alerts."""

    def __init__(self, model: Model) -> None:
        columns = model.card.outputs[0].columns
        if len(columns) != 1:
            raise InputError(
                f"{model.card.name} gives {len(columns)} numbers per alert; a real/bogus network gives one"
            )
        self.model = model

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model.card.name

    @property
    def version(self) -> str:
        """Version of the model."""
        return self.model.card.version

    def find(self, batch: AlertBatch) -> Scores:
        """Score every alert of a batch: one row each, flagged and without score where something it needs is missing.

        Raises
        ------
        ModelError
            The network does not take what its card says.
        """
        n = len(batch)
        images, features = self.model.card.images, self.model.card.features
        flags = np.zeros(n, dtype=np.int32)
        per_stamp = np.zeros((n, 0), dtype=np.int32)
        if images is not None:
            per_stamp = inspect_images(batch.stamps, batch.shapes, images, _full_size(batch))
            flags |= np.bitwise_or.reduce(per_stamp, axis=1)
        values = np.zeros((n, 0))
        if features is not None:
            values = gather_features(batch, features)
            flags |= np.where(np.isfinite(values).all(axis=1), 0, InputFlag.MISSING_FEATURE).astype(np.int32)
        score = np.full(n, np.nan)
        usable = np.flatnonzero((flags & UNSCORED) == 0)
        score[usable] = self._run(batch, values, usable)
        failed = usable[~np.isfinite(score[usable])]
        score[failed] = np.nan
        flags[failed] |= InputFlag.BAD_OUTPUT
        error: list[str | None] = [None] * n
        for row in np.flatnonzero(flags & UNSCORED).tolist():
            error[row] = self._explain(batch, row, int(flags[row]), per_stamp[row], values[row])
        return Scores(self.name, self.version, score, self.model.probability(score), flags, error)

    def _run(
        self, batch: AlertBatch, values: NDArray[np.float64], usable: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """Scores of the rows `usable`; prepared a micro-batch at a time, so that it stays in the cache."""
        card = self.model.card
        scores = np.empty(len(usable))
        for start in range(0, len(usable), card.micro_batch):
            rows = usable[start : start + card.micro_batch]
            whole = int(rows[-1] - rows[0]) + 1 == len(rows)
            pick = slice(int(rows[0]), int(rows[-1]) + 1) if whole else rows
            inputs: dict[str, NDArray[np.float32]] = {}
            if card.images is not None:
                inputs[card.images.name] = prepare_images(batch.stamps[pick], batch.shapes[pick], card.images)
            if card.features is not None:
                inputs[card.features.name] = values[pick].astype(np.float32)
            scores[start : start + len(rows)] = self.model.scores(inputs)[:, 0]
        return scores

    def _explain(
        self,
        batch: AlertBatch,
        row: int,
        flags: int,
        per_stamp: NDArray[np.int32],
        values: NDArray[np.float64],
    ) -> str:
        reasons: list[str] = []
        images, features = self.model.card.images, self.model.card.features
        if images is not None:
            for stamp, bits in zip(images.channels, per_stamp.tolist(), strict=True):
                reasons += _stamp_faults(
                    stamp, bits, batch.shapes[row, STAMP_NAMES.index(stamp)].tolist(), images
                )
        if features is not None and flags & InputFlag.MISSING_FEATURE:
            names = [
                name
                for name, value in zip(features.features, values.tolist(), strict=True)
                if not np.isfinite(value)
            ]
            reasons.append(f"the packet has no {', '.join(names)}")
        if flags & InputFlag.BAD_OUTPUT:
            reasons.append("the output of the network is not a finite number")
        return "; ".join(reasons)


def _stamp_faults(stamp: str, bits: int, shape: list[int], images: ImageContract) -> list[str]:
    faults = []
    if bits & InputFlag.MISSING_STAMP:
        faults.append(f"the {stamp} stamp is missing")
    if bits & InputFlag.DEGENERATE_STAMP:
        faults.append(f"the {stamp} stamp has no value, or one value everywhere")
    if bits & InputFlag.WRONG_SIZE:
        size = images.size
        faults.append(
            f"the {stamp} stamp of {shape[0]} x {shape[1]} pixels is larger than the {size} x {size} allowed"
        )
    return faults


def load(model: str, config: Config | None = None) -> RealBogus:
    """Load a model by name, ``name@version`` or path.

    Raises
    ------
    ModelError
        No such model, or its file, card and golden vectors do not fit together.
    InputError
        It is not a network with one score.
    """
    return RealBogus(Model.load(model, verify=(config or Config()).verify))


def gather_features(batch: AlertBatch, contract: FeatureContract) -> NDArray[np.float64]:
    """The packet fields of a contract, shape (n, n_features); a missing one is taken from its fallback, else NaN."""
    values = np.empty((len(batch), len(contract.features)))
    for column, name in enumerate(contract.features):
        values[:, column] = batch.feature(name)
        other = contract.fallbacks.get(name)
        if other is not None:
            gaps = ~np.isfinite(values[:, column])
            values[gaps, column] = batch.feature(other)[gaps]
    return values


def to_arrow(batch: AlertBatch, scores: Scores) -> pa.Table:
    """The public table of scores: the columns `COLUMNS`, one row per alert, null where there is no number."""
    import pyarrow as pa

    n = len(batch)
    arrays = {
        "alert_id": pa.array(batch.alert_id, pa.int64()),
        "object_id": pa.array(batch.object_id, pa.string()),
        "survey": pa.array([batch.survey] * n, pa.string()),
        "mjd": pa.array(batch.mjd, pa.float64()),
        "ra": pa.array(batch.ra, pa.float64()),
        "dec": pa.array(batch.dec, pa.float64()),
        "model": pa.array([scores.model] * n, pa.string()),
        "model_version": pa.array([scores.model_version] * n, pa.string()),
        "score": pa.array(scores.score, pa.float64(), mask=np.isnan(scores.score)),
        "probability": pa.array(scores.probability, pa.float64(), mask=np.isnan(scores.probability)),
        "flags": pa.array(scores.flags, pa.int32()),
        "error": pa.array(scores.error, pa.string()),
    }
    return pa.table({name: arrays[name] for name in COLUMNS})


def _full_size(batch: AlertBatch) -> int:
    """Side of the survey's full stamp; what the batch shows where its profile came from elsewhere."""
    try:
        return load_alert_profile(batch.survey).alert.stamps.size
    except InputError:
        return int(batch.shapes.max(initial=0))
