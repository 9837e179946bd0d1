"""Which points are good, which curves have enough of them, and why the others are left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from tapetum.lightcurves._clean_kernels import clean as _clean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.lightcurves.curves import LightCurves


class Reason(IntEnum):
    """Why a curve was left out: the rule that left it with too few points."""

    KEPT = 0
    SHORT = 1
    NOT_FINITE = 2
    BAD_ERROR = 3
    FLAGGED = 4
    MAGNITUDE = 5
    LATE = 6
    CADENCE = 7
    BRIGHT_STAR = 8


RULES = ("not_finite", "bad_error", "flagged", "magnitude", "late", "cadence")
"""Rules that drop points, in the order in which they are tried; a point counts for the first that drops it."""

_BECAUSE = {
    Reason.SHORT: "it came with too few points",
    Reason.NOT_FINITE: "too few have a finite time, magnitude and error",
    Reason.BAD_ERROR: "too few have an error above 0",
    Reason.FLAGGED: "too few are free of bad flags",
    Reason.MAGNITUDE: "too few are within the limits of magnitude",
    Reason.LATE: "too few are from before the last time",
    Reason.CADENCE: "too few are far enough apart in time",
}


class CleaningRules(BaseModel):
    """What makes a point and a curve good enough; the defaults are those of SCoPe's feature generation.

    NaN, inf and errors that are not positive would spoil a whole curve's features, so these points go by default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bad_flags: int = Field(
        -1, ge=-(2**31), lt=2**31, description="Bits that make a point bad; -1: any bit, 0: none."
    )
    cadence_minutes: float = Field(
        30.0, ge=0, description="Points closer to the last kept one are dropped [min]; 0 keeps all."
    )
    min_points: int = Field(50, ge=1, description="Points that a curve needs in the end.")
    finite: bool = Field(True, description="Drop points whose time, magnitude or error is not finite.")
    positive_errors: bool = Field(True, description="Drop points whose error is not above 0.")
    brightest: float | None = Field(None, description="Drop brighter points [mag].")
    faintest: float | None = Field(None, description="Drop fainter points [mag].")
    max_time: float | None = Field(None, description="Drop later points [d, on the scale of the curves].")


@dataclass(frozen=True)
class Cleaned:
    """What is left of light curves, and an account of the rest.

    Attributes
    ----------
    curves
        Those that were kept, in their order, each sorted by time.
    kept : ndarray of bool, shape (n_curves,)
        Which of the curves that came these are.
    reason : ndarray of int8, shape (n_curves,)
        A `Reason` for each curve that came.
    dropped : ndarray of int32, shape (n_curves, 6)
        Points dropped by each of `RULES`, of kept and of other curves.
    n_before, n_after : ndarray of int64, shape (n_curves,)
        Points that came, and those that no rule took; what `RULES` dropped is the difference.
    rules
        The rules.
    """

    curves: LightCurves
    kept: NDArray[np.bool_]
    reason: NDArray[np.int8]
    dropped: NDArray[np.int32]
    n_before: NDArray[np.int64]
    n_after: NDArray[np.int64]
    rules: CleaningRules

    def explain(self, curve: int) -> str:
        """In words, why a curve (by its number among those that came) was left out; empty for one that was kept."""
        reason = Reason(int(self.reason[curve]))
        if reason is Reason.KEPT:
            return ""
        if reason is Reason.BRIGHT_STAR:
            return "a bright star is too close"
        lost = ", ".join(
            f"{count} {name}" for name, count in zip(RULES, self.dropped[curve], strict=True) if count
        )
        return (
            f"{self.n_after[curve]} of {self.n_before[curve]} points left, {self.rules.min_points} needed: "
            f"{_BECAUSE[reason]}{f' (dropped: {lost})' if lost else ''}"
        )

    def table(self, ids: pa.ChunkedArray | None = None) -> pa.Table:
        """One row per curve that came: kept, reason, points before and after, points dropped by each rule.

        Parameters
        ----------
        ids
            `lc_id` of the curves that came (`LightCurves.table`), to be the first column.
        """
        names = np.array([reason.name.lower() for reason in Reason])
        columns = {} if ids is None else {"lc_id": ids}
        columns |= {
            "kept": pa.array(self.kept),
            "reason": pa.array(names[self.reason]),
            "n_before": pa.array(self.n_before),
            "n_after": pa.array(self.n_after),
        }
        columns |= {f"n_{name}": pa.array(self.dropped[:, number]) for number, name in enumerate(RULES)}
        return pa.table(columns)

    def summary(self) -> dict[str, int]:
        """Curves by reason and points by rule, without those that are none."""
        curves = np.bincount(self.reason, minlength=len(Reason))
        counts = {f"curves_{reason.name.lower()}": int(curves[reason]) for reason in Reason}
        counts |= {
            f"points_{name}": int(count) for name, count in zip(RULES, self.dropped.sum(0), strict=True)
        }
        return {name: count for name, count in counts.items() if count}


def clean(
    curves: LightCurves,
    rules: CleaningRules | None = None,
    near_bright_star: NDArray[np.bool_] | None = None,
) -> Cleaned:
    """Drop bad points, sort by time, thin out rapid sequences, and leave out curves that became too short.

    In this order: points that are not finite, have an error of 0 or less, a bad flag, a magnitude beyond the limits or
    a time too late are dropped; the rest is sorted by time, stably, so that points of one time keep the order they came
    in and the result does not depend on the machine; then a point is dropped that follows the last kept one by less
    than the cadence, of which points of one time are the extreme case (the first stays); then a curve is left out that
    has fewer points than it needs.

    Parameters
    ----------
    curves
        In any order of time.
    rules
        None: the defaults.
    near_bright_star : ndarray of bool, shape (n_curves,), optional
        Curves to be left out whatever their points (`tapetum.lightcurves.bright_stars`).

    Raises
    ------
    ValueError
        `near_bright_star` has another shape.
    """
    rules = rules or CleaningRules()
    n_curves = len(curves)
    if near_bright_star is not None and near_bright_star.shape != (n_curves,):
        raise ValueError(f"near_bright_star must be of shape ({n_curves},), got {near_bright_star.shape}")
    stay = np.empty(len(curves.time), np.int64)
    ends = np.zeros(n_curves, np.int64)
    dropped = np.zeros((n_curves, len(RULES)), np.int32)
    reason = np.zeros(n_curves, np.int8)
    size = _clean(
        curves.time, curves.mag, curves.magerr,
        np.zeros(0, np.int32) if curves.flags is None else curves.flags,
        curves.offsets, np.array([rules.finite, rules.positive_errors]), np.int32(rules.bad_flags), _limits(rules),
        rules.cadence_minutes * 60 / 86400, rules.min_points, stay, ends, dropped, reason,
    )  # fmt: skip
    points = stay[:size]
    kept = reason == Reason.KEPT
    left = replace(
        curves,
        time=curves.time[points],
        mag=curves.mag[points],
        magerr=curves.magerr[points],
        flags=None if curves.flags is None else curves.flags[points],
        offsets=np.concatenate([[0], ends[kept]]).astype(np.int64),
        table=curves.table if kept.all() else curves.table.filter(pa.array(kept)),
    )
    if near_bright_star is not None and near_bright_star.any():
        left = left.take(~near_bright_star[kept])
        reason[near_bright_star] = Reason.BRIGHT_STAR
        kept &= ~near_bright_star
    before = curves.n_points
    return Cleaned(left, kept, reason, dropped, before, before - dropped.sum(1), rules)


def _limits(rules: CleaningRules) -> NDArray[np.float64]:
    given = (rules.brightest, rules.faintest, rules.max_time)
    return np.array(
        [
            bare if limit is None else limit
            for limit, bare in zip(given, (-np.inf, np.inf, np.inf), strict=True)
        ]
    )
