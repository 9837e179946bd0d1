"""Missing features: replaced by what a training set says, by rules that are frozen with it.

The rules are fitted once, on the training part alone, and travel with a model as JSON: what replaces a missing value of
one source never depends on which other sources are looked at together with it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tapetum.core.columns import floats_of, holds_numbers
from tapetum.core.errors import FormatError, InputError
from tapetum.lightcurves._impute_kernels import fill_from_neighbours

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Array = NDArray[np.float64]
NEIGHBOURS = 5
DONORS = 5000  # rows of the training set that neighbours are chosen from

ZEROS = ("n_ztf_alerts", "mean_ztf_alert_braai")
REGRESSED = (
    "w1mpro", "w2mpro", "w3mpro", "w4mpro", "phot_bp_mean_mag", "phot_g_mean_mag", "phot_rp_mean_mag", "parallax",
    "gMeanPSFMag", "rMeanPSFMag", "iMeanPSFMag", "zMeanPSFMag", "yMeanPSFMag",
)  # fmt: skip
MEDIAN_ENDINGS = ("sigmpro", "MeanPSFMagErr", "parallax_error", "phot_bp_rp_excess_factor")


class Strategy(StrEnum):
    """What becomes of a missing value."""

    MEDIAN = "median"
    """The training set's median of the feature."""
    MEAN = "mean"
    """Its mean."""
    ZERO = "zero"
    REGRESS = "regress"
    """The mean of the five training rows that are nearest in all regressed features."""
    DROP = "drop"
    """The row is left out."""
    KEEP = "keep"
    """It stays missing, for models that take missing values."""


FITTED = (Strategy.MEDIAN, Strategy.MEAN, Strategy.REGRESS)  # need something of the training set


@dataclass(frozen=True)
class Imputed:
    """A table without the missing values that there were rules for.

    Attributes
    ----------
    table
        The rows that are left, with all columns.
    kept : ndarray of bool, shape (n_rows,)
        Which rows of the original are left.
    filled : dict of str to ndarray of bool, shape (n_left,)
        Feature -> which rows that are left have a replaced value; features without any are not in it.
    """

    table: pa.Table
    kept: NDArray[np.bool_]
    filled: dict[str, NDArray[np.bool_]]


def described_strategies(names: Iterable[str], otherwise: Strategy = Strategy.DROP) -> dict[str, Strategy]:
    """The rules of SCoPe for features by name, with or without a catalogue in front (``Gaia_EDR3__parallax``).

    Numbers and scores of alerts become 0; errors of magnitudes and parallaxes and Gaia's excess factor their median;
    magnitudes of AllWISE, Gaia and PS1 and the parallax are regressed on each other.

    Parameters
    ----------
    names
        Features.
    otherwise
        Rule for all others; SCoPe drops the row.
    """

    def rule(name: str) -> Strategy:
        bare = name.rpartition("__")[2]
        if bare in ZEROS:
            return Strategy.ZERO
        if bare in REGRESSED:
            return Strategy.REGRESS
        return Strategy.MEDIAN if bare.endswith(MEDIAN_ENDINGS) else otherwise

    return {name: rule(name) for name in names}


@dataclass(frozen=True)
class Imputer:
    """Rules, and what they need of the training set.

    Attributes
    ----------
    strategies
        Rule of each feature.
    medians
        Median of each feature with the rule `median`.
    means
        Mean of each feature with the rule `mean`, and of the regressed ones, for rows that have none of them.
    donors : ndarray, shape (n_donors, n_regressed)
        Training rows that neighbours come from: regressed features in the order of `strategies`, NaN where missing.
    """

    strategies: dict[str, Strategy]
    medians: dict[str, float]
    means: dict[str, float]
    donors: Array

    @classmethod
    def fit(
        cls,
        table: pa.Table,
        strategies: Mapping[str, Strategy | str],
        rng: np.random.Generator | None = None,
        max_donors: int = DONORS,
    ) -> Imputer:
        """Freeze the rules.

        Parameters
        ----------
        table
            The training part, and nothing else.
        strategies
            Rule of each feature; columns without one are not looked at.
        rng
            Chooses the donors where there are more than `max_donors`; None takes rows at equal steps.
        max_donors
            Most donors.

        Raises
        ------
        InputError
            A feature is not in the table, is no number, or needs a value that no row has; or a rule is unknown.
        """
        rules = {name: _strategy(name, rule) for name, rule in strategies.items()}
        medians: dict[str, float] = {}
        means: dict[str, float] = {}
        regressed = []
        for name, rule in rules.items():
            if rule not in FITTED:
                continue
            values = feature_values(table, name)
            known = values[~np.isnan(values)]
            if not known.size:
                raise InputError(
                    f"feature {name}: no row of the training part has it; leave it out or drop the rule"
                )
            if rule is Strategy.MEDIAN:
                medians[name] = float(np.median(known))
            else:
                means[name] = float(np.mean(known))
            if rule is Strategy.REGRESS:
                regressed.append(values)
        pool = np.column_stack(regressed) if regressed else np.empty((0, 0))
        return cls(rules, medians, means, _donors(pool, rng, max_donors))

    @property
    def regressed(self) -> list[str]:
        """Features whose missing values come from neighbours."""
        return [name for name, rule in self.strategies.items() if rule is Strategy.REGRESS]

    def apply(self, table: pa.Table) -> Imputed:
        """Replace what is missing: null, NaN or infinite. Integer columns stay integer where they can.

        Raises
        ------
        InputError
            A feature with a rule is not in the table or is no number.
        """
        kept = np.ones(table.num_rows, np.bool_)
        for name, rule in self.strategies.items():
            if rule is Strategy.DROP:
                kept &= ~np.isnan(feature_values(table, name))
        table = table.filter(pa.array(kept))
        filled: dict[str, NDArray[np.bool_]] = {}
        for name, new in self._replaced(table).items():
            missing = np.isnan(feature_values(table, name))
            if missing.any():
                filled[name] = missing
                table = _with_numbers(table, name, new)
        return Imputed(table, kept, filled)

    def _replaced(self, table: pa.Table) -> dict[str, Array]:
        new = {}
        for name, rule in self.strategies.items():
            instead = self._instead(name, rule)
            if instead is not None:
                values = feature_values(table, name)
                new[name] = np.where(np.isnan(values), instead, values)
        if self.regressed:
            rows = np.column_stack([feature_values(table, name) for name in self.regressed])
            fallback = np.array([self.means[name] for name in self.regressed])
            fill_from_neighbours(rows, self.donors, NEIGHBOURS, fallback)
            new |= dict(zip(self.regressed, rows.T, strict=True))
        return new

    def _instead(self, name: str, rule: Strategy) -> float | None:
        """The one number that every missing value of a feature becomes, if there is one."""
        if rule is Strategy.ZERO:
            return 0.0
        return {Strategy.MEDIAN: self.medians, Strategy.MEAN: self.means}.get(rule, {}).get(name)

    def to_json(self) -> str:
        """The rules as text that `from_json` reads; numbers keep all their digits."""
        donors = [[None if np.isnan(value) else value for value in row] for row in self.donors.tolist()]
        return json.dumps(
            {"strategies": self.strategies, "medians": self.medians, "means": self.means, "donors": donors}
        )

    @classmethod
    def from_json(cls, text: str) -> Imputer:
        """Read what `to_json` wrote.

        Raises
        ------
        FormatError
            It is something else.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            rules = {str(name): Strategy(rule) for name, rule in content["strategies"].items()}
            medians, means = (
                {str(name): float(value) for name, value in content[which].items()}
                for which in ("medians", "means")
            )
            width = sum(rule is Strategy.REGRESS for rule in rules.values())
            rows = [[np.nan if value is None else float(value) for value in row] for row in content["donors"]]
            donors = np.array(rows, np.float64).reshape(len(rows), width)
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            raise FormatError(
                f"not rules for missing features: {type(problem).__name__}: {problem}"
            ) from None
        known = {Strategy.MEDIAN: medians, Strategy.MEAN: means, Strategy.REGRESS: means}
        lacking = [name for name, rule in rules.items() if rule in known and name not in known[rule]]
        if lacking:
            raise FormatError(
                f"rules for missing features without medians or means of {', '.join(sorted(lacking))}"
            )
        return cls(rules, medians, means, donors)


def _strategy(name: str, rule: Strategy | str) -> Strategy:
    try:
        return Strategy(rule)
    except ValueError:
        raise InputError(f"feature {name}: unknown rule {rule!r}; known: {' '.join(Strategy)}") from None


def feature_values(table: pa.Table, name: str) -> Array:
    """A feature as float64, NaN for everything that is no finite number, shape (n,).

    Raises
    ------
    InputError
        It is not in the table, or is no number.
    """
    if name not in table.column_names:
        raise InputError(f"no column {name}, which a rule for missing values is about")
    column = table[name]
    if not holds_numbers(column.type):
        raise InputError(f"column {name} is {column.type}, not a feature")
    values = floats_of(column)
    values[~np.isfinite(values)] = np.nan
    return values


def _with_numbers(table: pa.Table, name: str, values: Array) -> pa.Table:
    field = table.schema.field(name)
    whole = pa.types.is_integer(field.type) and bool((values == np.rint(values)).all())
    kind = field.type if whole or pa.types.is_floating(field.type) else pa.float64()
    return table.set_column(
        table.column_names.index(name), field.with_type(kind), pa.array(values).cast(kind)
    )


def _donors(pool: Array, rng: np.random.Generator | None, most: int) -> Array:
    pool = pool[~np.isnan(pool).all(axis=1)] if pool.size else pool
    if len(pool) <= most:
        return pool
    if rng is None:
        return pool[np.linspace(0, len(pool) - 1, most).round().astype(np.int64)]
    return pool[np.sort(rng.choice(len(pool), most, replace=False))]
