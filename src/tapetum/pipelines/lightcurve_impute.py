"""Missing features of a table that lies in parts: replaced part by part, by rules that are the same for all of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tapetum.core.errors import InputError
from tapetum.core.files import whole_file
from tapetum.lightcurves.curves import KEY
from tapetum.lightcurves.impute import Imputer, Strategy, described_strategies, feature_values
from tapetum.pipelines.lightcurve_parts import common_schema, conform
from tapetum.report.read_tables import read_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

KEPT = "kept"  # column that says which rows have features
IMPUTED = "imputed"
NOT_FEATURES = frozenset(
    (
        KEY, "object_id", "obj_id", "ra", "dec", "field", "ccd", "quad", "quadrant", "rcid", "filter", "n_before",
        "n_after", "n_points", KEPT,
    )
)  # fmt: skip
"""Columns of numbers that no rule is about, unless it is named; ids of catalogues are neither."""


@dataclass(frozen=True)
class Imputation:
    """How missing features are replaced.

    Attributes
    ----------
    imputer
        Fitted on a training set; None fits one to the table itself: the described way, in which what a source gets
        depends on which others are in the same table.
    rules
        Of features by name, instead of the described ones.
    otherwise
        Rule of features that have none; the described system drops the row.
    fit_on
        A table to fit to, instead of the one whose values are replaced.
    save
        File for the fitted rules, as JSON; `imputer` takes them again.
    """

    imputer: Imputer | None = None
    rules: Mapping[str, Strategy] = field(default_factory=dict)
    otherwise: Strategy = Strategy.KEEP
    fit_on: str | None = None
    save: str | None = None

    def described(self) -> dict[str, Any]:
        """What is decided, as plain values: for settings, metadata and fingerprints."""
        if self.imputer is not None:
            text = self.imputer.to_json()
            return {"sha256": hashlib.sha256(text.encode()).hexdigest()}
        rules = {name: str(rule) for name, rule in self.rules.items()}
        return {"rules": rules, "otherwise": str(self.otherwise), "fit_on": self.fit_on or "the table itself"}

    @property
    def files(self) -> list[str]:
        """Tables that are read."""
        return [] if self.fit_on is None or self.imputer is not None else [self.fit_on]


@dataclass(frozen=True)
class ImputedParts:
    """Parts without the missing values that there were rules for.

    Attributes
    ----------
    paths
        Of the new parts, in order.
    n_dropped
        Rows left out because a value was missing that nothing replaces.
    strategies
        Rule of each feature.
    """

    paths: tuple[Path, ...]
    n_dropped: int
    strategies: Mapping[str, Strategy]


def impute_parts(paths: Sequence[Path], imputation: Imputation) -> ImputedParts:
    """Replace missing features in Parquet files that together are one table; the new files lie beside the old.

    Rows without features (`kept` is false) stay as they are, and nothing is learned from them. A column `imputed` names
    what was replaced in each row.

    Raises
    ------
    InputError
        A feature with a rule is not there or is no number, a rule needs values that no row has, or the table to fit to
        cannot be read.
    """
    imputer = imputation.imputer or _fitted(paths, imputation)
    if imputation.save is not None:
        with whole_file(Path(imputation.save)) as part:
            part.write_text(imputer.to_json() + "\n", encoding="utf-8")
    made, n_dropped = [], 0
    schema = common_schema(paths)
    for path in paths:
        table = pq.read_table(path)
        new = _imputed(conform(table, schema), imputer)
        n_dropped += table.num_rows - new.num_rows
        made.append(path.with_name(f"imputed-{path.name}"))
        with whole_file(made[-1]) as part:
            pq.write_table(new.replace_schema_metadata(table.schema.metadata), part)
    return ImputedParts(tuple(made), n_dropped, imputer.strategies)


def _fitted(paths: Sequence[Path], imputation: Imputation) -> Imputer:
    """Rules fitted to a table, of which only what they are about is read."""
    names = list(dict.fromkeys(name for path in paths for name in _numbers(pq.read_schema(path))))
    absent = [name for name in imputation.rules if name not in names]
    if absent:
        raise InputError(
            f"no column {', '.join(absent)} of numbers, for which there is a rule for missing values; there is: "
            f"{' '.join(names[:30])}"
        )
    rules = {**described_strategies(names, imputation.otherwise), **imputation.rules}
    wanted = [name for name, rule in rules.items() if rule is not Strategy.KEEP]
    if imputation.fit_on is not None:
        table = _some(_rows_with_features(read_table(imputation.fit_on)), wanted)
    else:
        parts = [_some(_rows_with_features(_read(path, wanted)), wanted) for path in paths]
        table = pa.concat_tables(parts, promote_options="permissive")
    # a feature that nobody has stays as it is; what has a rule by name must have something to fit it to
    known = [name for name in table.column_names if np.isfinite(feature_values(table, name)).any()]
    return Imputer.fit(table, {name: rules[name] for name in dict.fromkeys((*known, *imputation.rules))})


def _read(path: Path, names: Sequence[str]) -> pa.Table:
    there = pq.read_schema(path).names
    return pq.read_table(path, columns=[name for name in (*names, KEPT) if name in there])


def _some(table: pa.Table, names: Sequence[str]) -> pa.Table:
    return table.select([name for name in names if name in table.column_names])


def _numbers(schema: pa.Schema) -> list[str]:
    """Columns of numbers that may be features, also those that nobody has a value of."""
    kinds = pa.types
    return [
        column.name
        for column in schema
        if column.name not in NOT_FEATURES
        and not column.name.endswith("___id")
        and (kinds.is_floating(column.type) or kinds.is_integer(column.type) or kinds.is_null(column.type))
    ]


def _rows_with_features(table: pa.Table) -> pa.Table:
    return table.filter(pc.fill_null(table[KEPT], False)) if KEPT in table.column_names else table


def _imputed(table: pa.Table, imputer: Imputer) -> pa.Table:
    """The table with replaced values; rows without features as they were, in their places."""
    place = "__place"
    numbered = table.append_column(place, pa.array(range(table.num_rows), pa.int64()))
    with_features = _rows_with_features(numbered)
    done = imputer.apply(with_features)
    names: list[list[str]] = [[] for _ in range(done.table.num_rows)]
    for name, where in done.filled.items():
        for row in where.nonzero()[0].tolist():
            names[row].append(name)
    words = pa.array([" ".join(sorted(each)) or None for each in names], pa.string())
    new = done.table.append_column(IMPUTED, words)
    if with_features.num_rows < numbered.num_rows:
        others = numbered.filter(pc.invert(pc.fill_null(numbered[KEPT], False)))
        new = pa.concat_tables([new, others], promote_options="permissive").sort_by(place)
    return new.drop_columns([place])


def rules_of(pairs: Iterable[tuple[str, str]]) -> dict[str, Strategy]:
    """Rules by the names of features.

    Raises
    ------
    InputError
        A rule is unknown.
    """
    try:
        return {name: Strategy(rule) for name, rule in pairs}
    except ValueError as problem:
        raise InputError(f"{problem}; known rules: {' '.join(Strategy)}") from None
