"""Which kind of variable is it? Any number of classifiers over a table of features, and their answers together.

Every classifier answers for one class, from one kind of model; its answers are the column ``<class>_<algorithm>``.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from tapetum.core.errors import InputError, ModelError
from tapetum.finders.config import FinderConfig
from tapetum.finders.taxonomy import load_taxonomy
from tapetum.models.flags import InputFlag
from tapetum.models.registry import CARD_NAME, ONNX_NAME, list_models
from tapetum.models.runtime import Model
from tapetum.models.tables import gather_table, prepare_dmdt, prepare_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from tapetum.finders.taxonomy import Taxonomy

    Values = NDArray[np.float64]

FINDER = "variables"
KEYS = (
    "lc_id", "object_id", "_id", "obj_id", "survey", "band", "Gaia_EDR3___id", "AllWISE___id", "PS1_DR1___id", "ra",
    "dec", "separation_arcsec", "period", "field", "ccd", "quad", "quadrant", "filter",
)  # fmt: skip
"""Columns of the features that a classification keeps."""
WORD = "classification"  # key in the metadata of the table
KEPT, REASON = "kept", "reason"  # columns of features: whether a light curve has any, and why not
CLASSES = "classes"  # column with the classes above their thresholds
RUNS = "seeds"  # folder beside a model with the runs that it was chosen from
NAMES_SHOWN = 8  # features named in an error

Combination = Literal["none", "mean", "max"]


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
    opposites: bool = Field(
        default=True,
        description="a column for the opposite of a class that has no model of its own: nonvar = 1 - vnv",
    )
    threshold: Literal["none", "card"] | float = Field(
        default="none",
        description="a column with the classes whose probability is above this number, or above what their cards say",
    )
    decimals: int | None = Field(default=None, ge=0, le=15, description="round probabilities to so many")
    absent: Literal["error", "missing"] = Field(
        default="error",
        description="a feature that no row has: an error, or a missing value like any other",
    )

    @field_validator("threshold")
    @classmethod
    def _is_probability(cls, value: str | float) -> str | float:
        if not isinstance(value, str) and not 0 <= value < 1:
            raise ValueError("a threshold is a probability")
        return value


@dataclass(frozen=True)
class _Answer:
    """What one model says of the rows of a table."""

    probability: Values
    imputed: NDArray[np.bool_]  # (n, n_included)
    lacking: NDArray[np.bool_]
    no_picture: NDArray[np.bool_]
    asked: NDArray[np.bool_]  # the network was


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
    def opposites(self) -> dict[str, str]:
        """Column of the opposite of a class that has no model of its own -> the column it is made of."""
        if not self.config.opposites:
            return {}
        found: dict[str, str] = {}
        for entry in self.taxonomy.classes:
            if entry.opposite in self.codes and entry.code not in self.codes:
                for column in self.codes[entry.opposite]:
                    found[f"{entry.code}_{self.models[column].card.algorithm}"] = column
                if self.config.combine != "none":
                    found[entry.code] = entry.opposite
        return found

    @property
    def columns(self) -> dict[str, str]:
        """Every column of numbers of a classification -> what it holds, in order."""
        out = {column: self._words(column) for column in self.models}
        if self.config.combine != "none":
            for code, columns in self.codes.items():
                out[code] = f"{self._label(code)}: {self.config.combine} of {', '.join(columns)}"
        return out | {name: f"1 - {of}" for name, of in self.opposites.items()}

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
        table = self._with_all(table)
        there = _there(table)
        answers = {column: self._answer(model, table, there) for column, model in self.models.items()}
        values = self._values(answers)
        columns: dict[str, pa.Array | pa.ChunkedArray] = {
            name: table[name] for name in self._kept(table.column_names)
        }
        fields = [pa.field(name, columns[name].type) for name in columns]
        for name, what in self.columns.items():
            numbers = (
                values[name] if self.config.decimals is None else values[name].round(self.config.decimals)
            )
            columns[name] = pa.array(numbers, pa.float64(), mask=np.isnan(numbers))
            fields.append(pa.field(name, pa.float64(), metadata={"description": what}))
        for name, kind, what in self._more(answers, values, table):
            columns[name] = pa.array(what, kind)
            fields.append(pa.field(name, kind))
        metadata = {**(table.schema.metadata or {}), WORD.encode(): json.dumps(self.about()).encode()}
        return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields, metadata=metadata))

    def _with_all(self, table: pa.Table) -> pa.Table:
        """The table with a column without values for each feature that it lacks, where that is allowed."""
        if self.config.absent == "missing":
            for name in self.needed:
                if name not in table.column_names:
                    table = table.append_column(name, pa.nulls(table.num_rows, pa.float64()))
        return table

    @property
    def needed(self) -> dict[str, str]:
        """Column of a feature table that a model takes numbers from -> name of the first such model."""
        found: dict[str, str] = {}
        for model in self.models.values():
            contract = model.card.table
            assert contract is not None
            for feature in contract.included:
                found.setdefault(contract.column(feature), model.card.name)
        return found

    @property
    def pictures(self) -> dict[str, str]:
        """Column with histograms of pairs that a model takes -> name of the first such model."""
        found: dict[str, str] = {}
        for model in self.models.values():
            if model.card.dmdt is not None:
                found.setdefault(model.card.dmdt.column, model.card.name)
        return found

    def _values(self, answers: Mapping[str, _Answer]) -> dict[str, Values]:
        values = {column: answer.probability for column, answer in answers.items()}
        if self.config.combine != "none":
            values |= {
                code: combined([values[c] for c in columns], self.config.combine)
                for code, columns in self.codes.items()
            }
        if self.config.hierarchy != "none":
            values = self._consistent(values)
        return values | {name: 1.0 - values[of] for name, of in self.opposites.items()}

    def _more(
        self, answers: Mapping[str, _Answer], values: Mapping[str, Values], table: pa.Table
    ) -> Iterator[tuple[str, pa.DataType, Any]]:
        """Columns after the numbers."""
        if self.config.threshold != "none":
            yield CLASSES, pa.string(), given_classes(values, self.about())
        yield "flags", pa.int32(), self._flags(answers, table.num_rows)
        yield "error", pa.string(), self._errors(answers, table)
        if self.config.name_imputed:
            yield "imputed", pa.string(), self._imputed(answers, table.num_rows)

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
            "columns": self.columns,
            "opposites": self.opposites,
            "opposite_of": opposite_of(self.taxonomy),
            "settings": self.config.model_dump(mode="json"),
        }

    def _answer(self, model: Model, table: pa.Table, there: NDArray[np.bool_]) -> _Answer:
        card, n = model.card, table.num_rows
        assert card.table is not None
        raw = gather_table(table, card.table, card.name)
        prepared = prepare_values(raw, card.table)
        inputs = {card.table.name: prepared.values}
        no_picture: NDArray[np.bool_] = np.zeros(n, np.bool_)
        # a model that takes missing values would answer for a row that has nothing else
        usable = prepared.usable & there & ~np.isnan(raw).all(axis=1)
        if card.dmdt is not None:
            inputs[card.dmdt.name] = prepare_dmdt(table, card.dmdt, card.name)
            no_picture |= ~np.isfinite(inputs[card.dmdt.name]).all(axis=(1, 2, 3))
            usable = usable & ~no_picture
        score = np.full(n, np.nan)
        if usable.any():
            score[usable] = model.scores({name: part[usable] for name, part in inputs.items()})[:, 0]
        score[~np.isfinite(score)] = np.nan
        probability = model.probability(score) if self._calibrated(model) else score
        imputed = prepared.imputed & usable[:, np.newaxis]
        return _Answer(probability, imputed, prepared.lacking, no_picture, usable)

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
            flags[~answer.asked] |= InputFlag.MISSING_FEATURE
            flags[answer.imputed.any(axis=1)] |= InputFlag.IMPUTED
            flags[np.isnan(answer.probability) & answer.asked] |= InputFlag.BAD_OUTPUT
        return flags

    def _errors(self, answers: Mapping[str, _Answer], table: pa.Table) -> list[str | None]:
        lacking = self._named(answers, "lacking", table.num_rows)
        errors: list[str | None] = [f"no value of {_some(names)}" if names else None for names in lacking]
        for column, answer in answers.items():
            for row in np.flatnonzero(~answer.asked).tolist():
                errors[row] = errors[row] or f"{column}: no feature has a value"
            for row in np.flatnonzero(np.isnan(answer.probability) & answer.asked).tolist():
                errors[row] = errors[row] or f"{column}: the output of the network is not a finite number"
        for row in np.flatnonzero(~_there(table)).tolist():
            errors[row] = f"no features: {_why(table, row)}"
        return errors

    def _imputed(self, answers: Mapping[str, _Answer], n: int) -> list[str | None]:
        return [" ".join(names) or None for names in self._named(answers, "imputed", n)]

    def _named(
        self, answers: Mapping[str, _Answer], what: Literal["imputed", "lacking"], n: int
    ) -> list[list[str]]:
        """Names of the features that are so in each row, each once, of any model."""
        found: dict[str, NDArray[np.bool_]] = {}
        for column, answer in answers.items():
            card = self.models[column].card
            assert card.table is not None
            names = [card.table.column(feature) for feature in card.table.included]
            so: NDArray[np.bool_] = getattr(answer, what)
            for place in np.flatnonzero(so.any(axis=0)).tolist():
                found[names[place]] = found.get(names[place], False) | so[:, place]
            if what == "lacking" and card.dmdt is not None and answer.no_picture.any():
                found[card.dmdt.column] = found.get(card.dmdt.column, False) | answer.no_picture
        if not found:
            return [[]] * n
        # rows that lack the same are many, what they lack are few
        packed = np.packbits(np.column_stack(list(found.values())), axis=1)
        patterns, row = np.unique(packed, axis=0, return_inverse=True)
        bits = np.unpackbits(patterns, axis=1, count=len(found)).astype(np.bool_)
        texts = [list(compress(found, pattern)) for pattern in bits]
        return [texts[number] for number in row.reshape(-1).tolist()]


def _code(model: Model) -> str:
    return model.card.outputs[0].columns[0]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return " ".join(names[:NAMES_SHOWN]) + more


def _why(table: pa.Table, row: int) -> str:
    """Why a row has no features, as far as the table says it."""
    reason, before, after = (
        table[name][row].as_py() if name in table.column_names else None
        for name in (REASON, "n_before", "n_after")
    )
    return f"{reason or 'too few good points'}" + (
        f", {after} of {before} points left" if before is not None else ""
    )


def _there(table: pa.Table) -> NDArray[np.bool_]:
    """Rows that have features, as far as the table says it."""
    if KEPT not in table.column_names or not pa.types.is_boolean(table.schema.field(KEPT).type):
        return np.ones(table.num_rows, np.bool_)
    return np.asarray(table[KEPT].fill_null(True).to_numpy())


def given_classes(values: Mapping[str, Values], about: Mapping[str, Any]) -> list[str | None]:
    """The classes of each row that are above their thresholds, by their codes.

    Parameters
    ----------
    values
        Column -> probabilities, shape (n,), NaN where there is none.
    about
        As `Variables.about` gives it. A class that has a column of its own, its algorithms being combined, is given
        where that is above the threshold; else where all of its algorithms are that say something. Thresholds of
        cards are combined in the way of the probabilities; a card without one counts as 0.5.

    Returns
    -------
    list of str or None
        Codes between spaces, in the order of the columns; None where there is no number at all.
    """
    rule, combination = about["settings"]["threshold"], about["settings"]["combine"]
    limits = _limits(about, rule)
    codes: dict[str, list[str]] = {}
    for column in about["columns"]:
        codes.setdefault(_class_of(column, about), []).append(column)
    n = len(next(iter(values.values())))
    names = np.full(n, "", object)
    known = np.zeros(n, np.bool_)
    for code, columns in codes.items():
        if code in values:  # combined
            limit = combined([np.array([limits[c]]) for c in columns if c != code], combination)
            columns, limits = [code], {**limits, code: float(limit[0])}
        numbers = np.array([values[column] for column in columns])
        over = numbers > np.array([[limits[column]] for column in columns])
        there = np.isfinite(numbers).any(axis=0)
        above = (over | np.isnan(numbers)).all(axis=0)
        names[above & there] += f"{code} "
        known |= there
    return [text.strip() if one else None for text, one in zip(names, known, strict=True)]


def _class_of(column: str, about: Mapping[str, Any]) -> str:
    """The class that a column of a classification is of."""
    if column in about["models"]:
        return str(about["models"][column]["class"])
    if column not in about["opposites"]:
        return column
    end = about["models"].get(about["opposites"][column], {}).get("algorithm")
    return column.removesuffix(f"_{end}") if end else column


def _limits(about: Mapping[str, Any], rule: str | float) -> dict[str, float]:
    """Threshold of each column of one algorithm."""
    if not isinstance(rule, str):
        return dict.fromkeys(about["columns"], float(rule))
    own = {
        column: 0.5 if entry["threshold"] is None else float(entry["threshold"])
        for column, entry in about["models"].items()
    }
    return own | {name: 1.0 - own[of] for name, of in about["opposites"].items() if of in own}


def opposite_of(taxonomy: Taxonomy) -> dict[str, str]:
    """Class -> that whose probability is one minus its own, where there is one."""
    return {entry.code: entry.opposite for entry in taxonomy.classes if entry.opposite is not None}


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


def members(group: str | Path) -> list[str]:
    """Models of a group: a folder that holds a folder for each, of any depth; sorted.

    What lies below the folder of a model is none, and neither is anything in a folder `RUNS`: one that was killed while
    it was being made may hold a card.

    Raises
    ------
    ModelError
        There is no model in it.
    """
    found = []
    for place, folders, names in os.walk(group):
        if {CARD_NAME, ONNX_NAME} <= set(names):
            found.append(str(Path(place).absolute()))
            folders.clear()
        folders[:] = [name for name in folders if name != RUNS]
    if not found:
        raise ModelError(
            f"{group}: no model in it: a group is a folder of folders with {ONNX_NAME} and {CARD_NAME}"
        )
    return sorted(found)


def specs_of(models: str | Sequence[str]) -> list[str]:
    """Models one by one, of names, paths and folders of models (groups).

    Raises
    ------
    ModelError
        There is no model in a folder.
    """
    known = {model.name for model in list_models()}
    specs: list[str] = []
    for spec in [models] if isinstance(models, str) else models:
        place = Path(spec)
        if spec in known or not place.is_dir():  # a folder of the same name needs ./ before it
            specs.append(spec)
        elif (place / CARD_NAME).is_file():
            specs.append(str(place.absolute()))
        else:
            specs += members(place)
    return specs


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
    specs = specs_of(models)
    return Variables([Model.load(spec, verify=config.verify) for spec in specs], config)
