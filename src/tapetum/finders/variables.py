"""Which kind of variable is it? Any number of classifiers over a table of features, and their answers together.

Every classifier answers for one class, from one kind of model; its answers are the column ``<class>_<algorithm>``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from tapetum.core.errors import InputError, ModelError
from tapetum.finders.config import FinderConfig
from tapetum.finders.taxonomy import load_taxonomy
from tapetum.models.flags import InputFlag
from tapetum.models.registry import CARD_NAME, ONNX_NAME
from tapetum.models.runtime import Model
from tapetum.models.tables import prepare_dmdt, prepare_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tapetum.finders.taxonomy import Taxonomy

    Values = NDArray[np.float64]

FINDER = "variables"
KEYS = (
    "lc_id", "object_id", "_id", "obj_id", "survey", "band", "Gaia_EDR3___id", "AllWISE___id", "PS1_DR1___id", "ra",
    "dec", "period", "field", "ccd", "quad", "quadrant", "filter",
)  # fmt: skip
"""Columns of the features that a classification keeps."""
SOURCE_KEYS = ("object_id", "obj_id", "Gaia_EDR3___id", "AllWISE___id", "PS1_DR1___id")
"""What tells that light curves are of one source: the first that a row has."""
WORD = "classification"  # key in the metadata of the table

Combination = Literal["none", "mean", "max"]
Aggregate = Literal["mean", "median", "max"]


class Config(FinderConfig):
    """Settings of the finder."""

    taxonomy: str = Field(default="scope", description="name or TOML file of the classes and their hierarchy")
    calibrated: bool = Field(
        default=True, description="probabilities where a model has a calibration; false: raw scores"
    )
    combine: Combination = Field(
        default="none", description="one more column for each class: mean or largest of its algorithms"
    )
    hierarchy: Literal["none", "down", "up"] = Field(
        default="none",
        description="down: no class is more probable than one that holds it; up: none is less so than those in it",
    )
    name_imputed: bool = Field(
        default=False, description="a column with the names of the features that were missing and replaced"
    )


@dataclass(frozen=True)
class _Answer:
    """What one model says of the rows of a table."""

    probability: Values
    imputed: NDArray[np.bool_]  # (n, n_included)
    lacking: NDArray[np.bool_]
    no_picture: NDArray[np.bool_]


class Variables:
    """Loaded classifiers.

    Attributes
    ----------
    models : dict of str to Model
        Column of the classification -> the model it comes from, in the order of the taxonomy.
    taxonomy : Taxonomy
    """

    def __init__(self, models: Sequence[Model], config: Config) -> None:
        if not models:
            raise InputError("no classifier of light curves was given")
        self.config = config
        self.taxonomy: Taxonomy = load_taxonomy(config.taxonomy)
        columns: dict[str, Model] = {}
        for model in models:
            name = column_of(model)
            if name in columns:
                raise InputError(
                    f"{model.origin} and {columns[name].origin} both give the column {name}; name one of them"
                )
            columns[name] = model
        order = {code: place for place, code in enumerate(self.taxonomy.by_code)}
        self.models = dict(
            sorted(columns.items(), key=lambda item: (order.get(_code(item[1]), len(order)), item[0]))
        )

    @property
    def codes(self) -> dict[str, list[str]]:
        """Class -> its columns."""
        found: dict[str, list[str]] = {}
        for column, model in self.models.items():
            found.setdefault(_code(model), []).append(column)
        return found

    @property
    def columns(self) -> dict[str, str]:
        """Every column of numbers of a classification -> what it holds, in order."""
        out = {column: self._words(column) for column in self.models}
        if self.config.combine != "none":
            for code, columns in self.codes.items():
                out[code] = f"{self._label(code)}: {self.config.combine} of {', '.join(columns)}"
        return out

    def _label(self, code: str) -> str:
        return self.taxonomy.by_code[code].label if code in self.taxonomy.by_code else code

    def _words(self, column: str) -> str:
        card = self.models[column].card
        what = "probability" if self._calibrated(self.models[column]) else "score"
        return f"{self._label(card.outputs[0].columns[0])}: {what} by {card.name} {card.version}"

    def _calibrated(self, model: Model) -> bool:
        return self.config.calibrated and model.card.calibration.method != "none"

    def find(self, table: pa.Table) -> pa.Table:
        """Classify every row of a feature table.

        Parameters
        ----------
        table
            As `tapetum.lightcurves.features.feature_table` makes it, with whatever columns of catalogues and periods
            the models list.

        Returns
        -------
        pyarrow.Table
            One row for each row, in order: the columns `KEYS` that the table has, one column for each class and
            algorithm and, where asked for, one for each class; ``flags`` (bits of
            `tapetum.models.flags.InputFlag`: of any of the models), ``error`` (why a row has no answer of some
            model), and where asked for ``imputed``. Null where there is no answer. What each column is, and models
            with version and hash, are in the metadata.

        Raises
        ------
        InputError
            The table lacks a feature that a model lists; names both.
        ModelError
            A network does not take what its card says.
        """
        answers = {column: self._answer(model, table) for column, model in self.models.items()}
        values = {column: answer.probability for column, answer in answers.items()}
        if self.config.combine != "none":
            values |= {
                code: combined([values[c] for c in columns], self.config.combine)
                for code, columns in self.codes.items()
            }
        if self.config.hierarchy != "none":
            values = self._consistent(values)
        columns: dict[str, pa.Array | pa.ChunkedArray] = {
            name: table[name] for name in self._kept(table.column_names)
        }
        fields = [table.schema.field(name) for name in columns]
        for name, what in self.columns.items():
            columns[name] = pa.array(values[name], pa.float64(), mask=np.isnan(values[name]))
            fields.append(pa.field(name, pa.float64(), metadata={"description": what}))
        columns["flags"] = pa.array(self._flags(answers, table.num_rows), pa.int32())
        columns["error"] = pa.array(self._errors(answers, table.num_rows), pa.string())
        fields += [pa.field("flags", pa.int32()), pa.field("error", pa.string())]
        if self.config.name_imputed:
            columns["imputed"] = pa.array(self._imputed(answers, table.num_rows), pa.string())
            fields.append(pa.field("imputed", pa.string()))
        metadata = {**(table.schema.metadata or {}), WORD.encode(): json.dumps(self.about()).encode()}
        return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields, metadata=metadata))

    def _kept(self, names: Sequence[str]) -> list[str]:
        suffixes = {m.card.table.period_suffix for m in self.models.values() if m.card.table is not None}
        periods = [f"period_{suffix}" for suffix in sorted(suffixes) if suffix]
        return [name for name in (*KEYS, *periods) if name in names]

    def about(self) -> dict[str, Any]:
        """Models and settings of a classification, as its metadata keep them."""
        models = {
            column: {
                "model": model.card.name,
                "version": model.card.version,
                "sha256": model.card.onnx_sha256,
                "class": _code(model),
                "label": self._label(_code(model)),
                "algorithm": model.card.algorithm,
                "threshold": model.card.classes[0].threshold if model.card.classes else None,
                "period_suffix": model.card.table.period_suffix if model.card.table else "",
            }
            for column, model in self.models.items()
        }
        return {
            "taxonomy": self.taxonomy.name,
            "models": models,
            "settings": self.config.model_dump(mode="json"),
        }

    def _answer(self, model: Model, table: pa.Table) -> _Answer:
        card, n = model.card, table.num_rows
        assert card.table is not None
        prepared = prepare_table(table, card.table, card.name)
        inputs = {card.table.name: prepared.values}
        no_picture: NDArray[np.bool_] = np.zeros(n, np.bool_)
        usable = prepared.usable
        if card.dmdt is not None:
            inputs[card.dmdt.name] = prepare_dmdt(table, card.dmdt, card.name)
            no_picture |= ~np.isfinite(inputs[card.dmdt.name]).all(axis=(1, 2, 3))
            usable = usable & ~no_picture
        score = np.full(n, np.nan)
        if usable.any():
            score[usable] = model.scores({name: part[usable] for name, part in inputs.items()})[:, 0]
        score[~np.isfinite(score)] = np.nan
        probability = model.probability(score) if self._calibrated(model) else score
        return _Answer(probability, prepared.imputed, prepared.lacking, no_picture)

    def _consistent(self, values: Mapping[str, Values]) -> dict[str, Values]:
        """Probabilities that agree with the hierarchy, within each algorithm and within what was combined."""
        out = dict(values)
        groups: dict[str, dict[str, str]] = {}
        for column, model in self.models.items():
            groups.setdefault(model.card.algorithm, {})[_code(model)] = column
        if self.config.combine != "none":
            groups["combined"] = {code: code for code in self.codes}
        for columns in groups.values():
            part = {code: values[column] for code, column in columns.items()}
            made = consistent(part, self.taxonomy, upwards=self.config.hierarchy == "up")
            out |= {columns[code]: array for code, array in made.items()}
        return out

    def _flags(self, answers: Mapping[str, _Answer], n: int) -> NDArray[np.int32]:
        flags = np.zeros(n, np.int32)
        for answer in answers.values():
            lacking = answer.lacking.any(axis=1) | answer.no_picture
            flags[lacking] |= InputFlag.MISSING_FEATURE
            flags[answer.imputed.any(axis=1)] |= InputFlag.IMPUTED
            flags[np.isnan(answer.probability) & ~lacking] |= InputFlag.BAD_OUTPUT
        return flags

    def _errors(self, answers: Mapping[str, _Answer], n: int) -> list[str | None]:
        lacking = self._named(answers, "lacking", n)
        errors: list[str | None] = [f"no value of {' '.join(names)}" if names else None for names in lacking]
        for column, answer in answers.items():
            bad = np.isnan(answer.probability) & ~answer.lacking.any(axis=1) & ~answer.no_picture
            for row in np.flatnonzero(bad).tolist():
                errors[row] = errors[row] or f"{column}: the output of the network is not a finite number"
        return errors

    def _imputed(self, answers: Mapping[str, _Answer], n: int) -> list[str | None]:
        return [" ".join(names) or None for names in self._named(answers, "imputed", n)]

    def _named(
        self, answers: Mapping[str, _Answer], what: Literal["imputed", "lacking"], n: int
    ) -> list[list[str]]:
        """Names of the features that are so in each row, each once, of any model."""
        found: dict[int, dict[str, None]] = {}
        for column, answer in answers.items():
            card = self.models[column].card
            assert card.table is not None
            names = [card.table.column(feature) for feature in card.table.included]
            rows, places = np.nonzero(getattr(answer, what))
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                found.setdefault(row, {})[names[place]] = None
            if what == "lacking" and card.dmdt is not None:
                for row in np.flatnonzero(answer.no_picture).tolist():
                    found.setdefault(row, {})[card.dmdt.column] = None
        return [list(found.get(row, {})) for row in range(n)]


def _code(model: Model) -> str:
    return model.card.outputs[0].columns[0]


def column_of(model: Model) -> str:
    """The column of a classification that a model fills: ``<class>_<algorithm>``.

    Raises
    ------
    InputError
        The model is no classifier of light curves.
    """
    card = model.card
    if card.table is None or len(card.outputs[0].columns) != 1 or not card.algorithm:
        raise InputError(
            f"{model.origin}: {card.name} is no classifier of light curves (one class, a list of features, and the "
            "algorithm it is made by)"
        )
    return f"{_code(model)}_{card.algorithm}"


def combined(values: Sequence[Values], how: Literal["mean", "max"]) -> Values:
    """Mean or largest of what several models say, of those that say something; NaN where none does."""
    stacked = np.stack(values)
    there = np.isfinite(stacked)
    if how == "max":
        best = np.where(there, stacked, -np.inf).max(axis=0)
    else:
        best = np.where(there, stacked, 0.0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    return np.where(there.any(axis=0), best, np.nan)


def consistent(values: Mapping[str, Values], taxonomy: Taxonomy, *, upwards: bool) -> dict[str, Values]:
    """Probabilities of classes that agree with their hierarchy.

    Parameters
    ----------
    values
        Class -> probabilities, shape (n,); classes that are not in the taxonomy stay as they are.
    taxonomy
        Of the classes.
    upwards
        Raise a class to the most probable one within it, else lower a class to the one that holds it. Classes without
        a model are passed over: the nearest ancestor that has one counts.
    """
    out = {code: array.copy() for code, array in values.items()}
    known = [code for code in taxonomy.by_code if code in out]  # a parent stands before its children
    for code in reversed(known) if upwards else known:
        above = next((parent for parent in taxonomy.ancestors(code) if parent in out), None)
        if above is None:
            continue
        if upwards:
            out[above] = np.where(np.isnan(out[above]), np.nan, np.fmax(out[above], out[code]))
        else:
            out[code] = np.where(np.isnan(out[code]), np.nan, np.fmin(out[above], out[code]))
    return out


def per_source(table: pa.Table, how: Aggregate = "mean") -> pa.Table:
    """One row for each source of a classification of light curves.

    Parameters
    ----------
    table
        As `Variables.find` gives it.
    how
        What becomes of the numbers of its light curves, of those that have one.

    Returns
    -------
    pyarrow.Table
        Sources in the order of their first light curves: the keys of a source and its position, ``n_light_curves``,
        the numbers, and the flags of all its light curves. A source is what has the same `SOURCE_KEYS`: the first of
        them that a row has; a row without any is a source of its own.

    Raises
    ------
    InputError
        The table is no classification.
    """
    about = json.loads((table.schema.metadata or {}).get(WORD.encode(), b"null"))
    if about is None:
        raise InputError("the table is no classification: it says nothing of its models")
    codes = {entry["class"] for entry in about["models"].values()}
    numbers = [name for name in table.column_names if name in about["models"] or name in codes]
    first, where = _sources(table)
    n = len(first)
    kept = [name for name in (*SOURCE_KEYS, "survey", "ra", "dec", "field") if name in table.column_names]
    columns: list[Any] = [table[name].take(pa.array(first)) for name in kept]
    fields = [table.schema.field(name) for name in kept]
    columns.append(pa.array(np.bincount(where, minlength=n), pa.int64()))
    fields.append(pa.field("n_light_curves", pa.int64()))
    for name in numbers:
        values = _grouped(table[name].cast(pa.float64()).to_numpy(), where, n, how)
        columns.append(pa.array(values, pa.float64(), mask=np.isnan(values)))
        fields.append(table.schema.field(name))
    flags = np.zeros(n, np.int32)
    np.bitwise_or.at(flags, where, table["flags"].to_numpy())
    columns.append(pa.array(flags, pa.int32()))
    fields.append(pa.field("flags", pa.int32()))
    metadata = {**table.schema.metadata, WORD.encode(): json.dumps({**about, "aggregate": how}).encode()}
    return pa.Table.from_arrays(columns, schema=pa.schema(fields, metadata=metadata))


def _sources(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First row of each source, and the source of each row."""
    keys: list[tuple[str, Any] | None] = [None] * table.num_rows
    for name in SOURCE_KEYS:
        if name not in table.column_names:
            continue
        for row, value in enumerate(table[name].to_pylist()):
            # the described tables have 0 where a catalogue has no counterpart
            if keys[row] is None and value not in (None, "", 0):
                keys[row] = (name, value)
    places: dict[tuple[str, Any], int] = {}
    first: list[int] = []
    where: list[int] = []
    for row, key in enumerate(keys):
        own = key or ("row", row)
        if own not in places:
            places[own] = len(first)
            first.append(row)
        where.append(places[own])
    return np.array(first, np.int64), np.array(where, np.int64)


def _grouped(values: Values, where: NDArray[np.int64], n: int, how: Aggregate) -> Values:
    there = np.isfinite(values)
    groups, numbers = where[there], values[there]
    count = np.bincount(groups, minlength=n)
    out = np.full(n, np.nan)
    if how == "mean":
        out[count > 0] = (np.bincount(groups, numbers, minlength=n) / np.maximum(count, 1))[count > 0]
        return out
    order = np.lexsort((numbers, groups))
    ordered, ends = numbers[order], np.cumsum(count)
    some = np.flatnonzero(count)
    last = ends[some] - 1
    if how == "max":
        out[some] = ordered[last]
    else:
        begin = ends[some] - count[some]
        out[some] = (ordered[begin + (count[some] - 1) // 2] + ordered[begin + count[some] // 2]) / 2
    return out


def members(group: str | Path) -> list[str]:
    """Models of a group: a folder that holds a folder for each, of any depth; sorted.

    Raises
    ------
    ModelError
        There is no model in it.
    """
    folder = Path(group)
    found = sorted(
        str(path.parent.absolute()) for path in folder.rglob(CARD_NAME) if (path.parent / ONNX_NAME).is_file()
    )
    if not found:
        raise ModelError(
            f"{group}: no model in it: a group is a folder of folders with {ONNX_NAME} and {CARD_NAME}"
        )
    return found


def load(models: str | Sequence[str], config: Config | None = None) -> Variables:
    """Load classifiers.

    Parameters
    ----------
    models
        Names, ``name@version``, paths of models, or folders of models (groups); one of these or several.
    config
        Settings.

    Raises
    ------
    ModelError
        No such model, or its file, card and golden vectors do not fit together.
    InputError
        One of them is no classifier of light curves, or two give the same column.
    """
    config = config or Config()
    named = [models] if isinstance(models, str) else list(models)
    specs: list[str] = []
    for spec in named:
        whole = Path(spec).is_dir() and not (Path(spec) / CARD_NAME).is_file()
        specs += members(spec) if whole else [spec]
    return Variables([Model.load(spec, verify=config.verify) for spec in specs], config)
