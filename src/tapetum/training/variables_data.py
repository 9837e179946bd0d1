"""Labelled feature tables: truth of a class, parts of the split, and what is frozen of the training part."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tapetum.core.columns import floats_of
from tapetum.core.errors import InputError
from tapetum.finders.taxonomy import load_taxonomy
from tapetum.lightcurves.impute import Imputer, described_strategies
from tapetum.models.card import DmdtContract, StoredArray, TableContract, TableFeature
from tapetum.models.tables import gather_table, prepare_dmdt, prepare_values
from tapetum.report.read_tables import read_table
from tapetum.training.datasets import Key
from tapetum.training.split import USED_ROLES, role_of
from tapetum.training.variables_recipe import DMDT, FEATURES
from tapetum.training.variables_warm import contracts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tapetum.finders.taxonomy import Taxonomy
    from tapetum.training.split import Role
    from tapetum.training.variables_recipe import (
        ClassifierRecipe,
        FeatureRules,
        FeatureStatistics,
        LabelledTable,
        Missing,
    )

log = logging.getLogger(__name__)
Values = NDArray[np.float64]
OBJECT_KEYS = ("object_id", "obj_id", "lc_id", "_id")  # what tells sources apart: the first that a row has
ROW_KEYS = ("lc_id", "_id", "object_id", "obj_id")


@dataclass(frozen=True)
class Rows:
    """Prepared examples.

    Attributes
    ----------
    object_id
        Source of each.
    values : ndarray of float32, shape (n, n_features)
    pictures : ndarray of float32, shape (n, 1, 26, 26), or None
    target : ndarray of float64, shape (n,)
        1 of the class, 0 not.
    """

    object_id: list[str]
    values: NDArray[np.float32]
    pictures: NDArray[np.float32] | None
    target: Values

    def __len__(self) -> int:
        return len(self.object_id)

    def take(self, where: NDArray[np.intp]) -> Rows:
        """Some of them."""
        pictures = None if self.pictures is None else self.pictures[where]
        return Rows([self.object_id[i] for i in where], self.values[where], pictures, self.target[where])

    @property
    def inputs(self) -> dict[str, NDArray[np.float32]]:
        """As `tapetum.models.runtime.Model.scores` takes them."""
        return {FEATURES: self.values} | ({} if self.pictures is None else {DMDT: self.pictures})


def truth_of(table: pa.Table, code: str, taxonomy: Taxonomy, rules: LabelledTable) -> Values:
    """Whether each row is of a class: 1, 0, or NaN where nothing is known; shape (n,).

    A table with a column of the class's code or label has the confidence of that label for every row: above the
    threshold it counts as true, else as false; for a class with an opposite (variable), only a row whose opposite is
    above the threshold counts as false. Else a column of text names the one class of each row: it and all that hold
    it are true, a class that holds the one asked for leaves it open, others are false.

    Raises
    ------
    InputError
        The table has neither.
    """
    entry = taxonomy.of(code)
    confidence = _confidence(table, (entry.code, entry.label))
    if confidence is not None:
        sure = confidence > rules.threshold
        opposites = [c for c in taxonomy.classes if c.opposite == code]
        against = _confidence(table, (opposites[0].code, opposites[0].label)) if opposites else None
        wrong = ~sure & np.isfinite(confidence) if against is None else against > rules.threshold
        return np.where(sure, 1.0, np.where(wrong, 0.0, np.nan))
    if rules.column not in table.column_names:
        raise InputError(
            f"the table says nothing of the class {code}: it has no column {entry.code}, {entry.label!r} or "
            f"{rules.column}"
        )
    names = table[rules.column].to_pylist()
    known = {name: _truth_by_name(name, code, taxonomy, rules) for name in set(names)}
    return np.array([known[name] for name in names], np.float64)


def _confidence(table: pa.Table, names: Sequence[str]) -> Values | None:
    for name in names:
        if name in table.column_names and not pa.types.is_string(table.schema.field(name).type):
            return floats_of(table[name])
    return None


def says_of(schema: pa.Schema, code: str, taxonomy: Taxonomy, rules: LabelledTable) -> bool:
    """Whether a table has a column that `truth_of` reads for a class."""
    entry = taxonomy.of(code)
    return rules.column in schema.names or any(
        name in schema.names and not pa.types.is_string(schema.field(name).type)
        for name in (entry.code, entry.label)
    )


def _truth_by_name(name: str | None, code: str, taxonomy: Taxonomy, rules: LabelledTable) -> float:
    if not name or name not in taxonomy.by_code:
        return float("nan")
    if code == name or code in taxonomy.ancestors(name):
        return 1.0
    if name in taxonomy.ancestors(code):
        return float("nan")
    same_view = taxonomy.of(name).view == taxonomy.of(code).view
    return 0.0 if same_view or rules.other_view == "negative" else float("nan")


class TableSource:
    """Examples of labelled tables, by role; sources are kept together.

    Parameters
    ----------
    recipe
        Class, features, rules of truth.
    paths
        Feature tables.

    Raises
    ------
    InputError
        There is no table, one cannot be read, they have no column that tells sources apart, or the model that training
        goes on from takes other features than the recipe lists.
    """

    def __init__(self, recipe: ClassifierRecipe, paths: Sequence[Path]) -> None:
        if not paths:
            raise InputError("no labelled feature table: name one with --table")
        self.recipe = recipe
        taxonomy = load_taxonomy(recipe.taxonomy)
        self._warm = None if recipe.warm_start is None else contracts(recipe)
        tables = [
            known_rows(read_once(path), path.stem, recipe.of, taxonomy, recipe.data[0]) for path in paths
        ]
        self.table: pa.Table = pa.concat_tables(tables, promote_options="permissive")
        self.role = np.array([role_of(name) for name in self.table["__object"].to_pylist()], dtype=object)

    @property
    def dmdt(self) -> DmdtContract | None:
        """Contract of the histograms, if the recipe takes them."""
        if self._warm is not None:
            return self._warm[1]
        return DmdtContract(name=DMDT) if self.recipe.features.dmdt else None

    def part(self, role: Role) -> pa.Table:
        """The labelled rows of a role, in the order of the tables."""
        return self.table.filter(pa.array(self.role == role))

    @cached_property
    def contract(self) -> TableContract:
        """The features, frozen on the part to learn from alone, or with the model that training goes on from."""
        if self._warm is not None:
            return self._warm[0]
        part = self.part("fit")
        if not part.num_rows:
            raise InputError(
                f"no example to learn from: no row of the training part says whether it is {self.recipe.of}"
            )
        return frozen(part, self.recipe.features, self.recipe.name)

    def rows(self, role: Role) -> Rows:
        """The prepared examples of a role; those that lack a feature which may not be missing are left out."""
        part = self.part(role)
        prepared = prepare_values(gather_table(part, self.contract, self.recipe.name), self.contract)
        usable = prepared.usable
        pictures = None
        if self.dmdt is not None:
            pictures = prepare_dmdt(part, self.dmdt, self.recipe.name)
            usable = usable & np.isfinite(pictures).all(axis=(1, 2, 3))
        rows = Rows(part["__object"].to_pylist(), prepared.values, pictures, part["__truth"].to_numpy())
        rows = rows.take(np.flatnonzero(usable))
        return rows if role != "fit" or self.recipe.balance is None else balanced(rows, self.recipe)

    def keys(self, role: Role, epochs: int) -> list[Key]:
        """Every example of a role; the same in all epochs.

        Its number tells the light curve, the truth and all that the model reads of it: a table whose features were made
        anew has other examples.
        """
        del epochs
        if role not in USED_ROLES:
            return []
        part = self.part(role)
        columns = (part[name].to_pylist() for name in ("__origin", "__row", "__object", "__truth"))
        return [
            Key(origin, _number(f"{row}:{truth}:".encode() + read), name)
            for origin, row, name, truth, read in zip(*columns, self._read(part), strict=True)
        ]

    def _read(self, part: pa.Table) -> Iterator[bytes]:
        """What the model reads of each row, as bytes that are the same on every machine."""
        values = gather_table(part, self.contract, self.recipe.name).astype("<f8", copy=False)
        if self.dmdt is None:
            yield from (row.tobytes() for row in values)
            return
        pictures = prepare_dmdt(part, self.dmdt, self.recipe.name).astype("<f4", copy=False)
        for row, picture in zip(values, pictures, strict=True):
            yield row.tobytes() + picture.tobytes()


@lru_cache(maxsize=4)
def _read(path: Path, state: tuple[int, int]) -> pa.Table:
    del state
    return read_table(path)


def read_once(path: Path) -> pa.Table:
    """A labelled table; while the file stays as it is, it is read once for all classes and seeds.

    Raises
    ------
    InputError
        It cannot be read.
    """
    return _read(path, _state(path))


@lru_cache(maxsize=256)
def _schema(path: Path, state: tuple[int, int]) -> pa.Schema:
    return _read(path, state).schema


def schema_once(path: Path) -> pa.Schema:
    """Columns of a labelled table; see `read_once`."""
    return _schema(path, _state(path))


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as problem:
        raise InputError(f"{path}: cannot be read: {problem.strerror or problem}") from None
    return status.st_mtime_ns, status.st_size


def objects_of(table: pa.Table, origin: str) -> pa.ChunkedArray:
    """The source of each row, as text: the first of `OBJECT_KEYS` that says something there; null where none does.

    Raises
    ------
    InputError
        No column tells sources apart.
    """
    names = _first_of(table, OBJECT_KEYS)
    if names is None or (len(names) and names.null_count == len(names)):
        raise InputError(
            f"{origin}: no column tells sources apart; one of {', '.join(OBJECT_KEYS)} is needed, with values"
        )
    return names


def _first_of(table: pa.Table, keys: Sequence[str]) -> pa.ChunkedArray | None:
    """The first of these columns that says something, row by row; None where the table has none of them."""
    columns = [_text(table[key]) for key in keys if key in table.column_names]
    return pc.coalesce(*columns) if columns else None


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Identifiers as text, null where there is none."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    # numbers as text: an identifier must give the same part of the split whatever type it was written as
    text = column.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), None, text)


def known_rows(table: pa.Table, origin: str, code: str, taxonomy: Taxonomy, rules: LabelledTable) -> pa.Table:
    """The rows whose truth about a class is known, with truth, source and origin beside their columns.

    Raises
    ------
    InputError
        No column tells sources apart, or the table says nothing of the class.
    """
    objects = objects_of(table, origin)
    truth = truth_of(table, code, taxonomy, rules)
    added = {
        "__truth": pa.array(truth),
        "__object": objects,
        "__row": _first_of(table, ROW_KEYS),
        "__origin": pa.array([origin] * table.num_rows, pa.string()),
    }
    for name, values in added.items():
        table = table.append_column(name, values)
    named = np.array(objects.is_valid().to_numpy(), np.bool_)
    known = np.isfinite(truth)
    if (known & ~named).any():
        log.warning(
            "%s: %d of %d rows are left out: no %s says which source they are of",
            origin, (known & ~named).sum(), known.sum(), ", ".join(OBJECT_KEYS),
        )  # fmt: skip
    return table.filter(pa.array(known & named))


def _number(content: bytes) -> int:
    return int(hashlib.sha1(content, usedforsecurity=False).hexdigest()[:15], 16)


def balanced(rows: Rows, recipe: ClassifierRecipe) -> Rows:
    """No more of the larger class than so many for each of the smaller; those that stay are drawn by the seed."""
    assert recipe.balance is not None
    of, against = np.flatnonzero(rows.target > 0.5), np.flatnonzero(rows.target <= 0.5)
    smaller, larger = sorted((of, against), key=len)
    most = max(int(recipe.balance * len(smaller)), 1)
    if len(larger) > most:
        larger = np.random.default_rng([recipe.seed, 1]).choice(larger, most, replace=False)
    return rows.take(np.sort(np.concatenate([smaller, larger])))


def weights(target: Values, *, weighted: bool) -> Values:
    """Weight of each example: 1, or so that both classes weigh the same and the larger one has 1 or less."""
    if not weighted or not 0 < target.mean() < 1:
        return np.ones(len(target))
    share = float(target.mean())
    of = np.where(target > 0.5, 1 / share, 1 / (1 - share))
    return np.asarray(of / of.max())


def frozen(part: pa.Table, rules: FeatureRules, origin: str) -> TableContract:
    """A feature list with scaling and replacements of missing values from the rows to learn from.

    Parameters
    ----------
    part
        The training part, and nothing else.
    rules
        Which features, and how.
    origin
        For messages.

    Raises
    ------
    InputError
        The table lacks a feature, or no row has it.
    """
    listed = [
        TableFeature(missing="keep", **column.model_dump(exclude={"missing"})) for column in rules.columns
    ]
    bare = TableContract(name=FEATURES, features=tuple(listed), period_suffix=rules.period_suffix)
    values = gather_table(part, bare, origin)
    columns = {bare.column(entry): values[:, at] for at, entry in enumerate(bare.included)}
    how = dict(zip(columns, _rules_for_missing(rules), strict=True))
    imputer = Imputer.fit(pa.table(columns), how)
    features = []
    for entry in listed:
        if entry.include:
            name = bare.column(entry)
            given = rules.statistics.get(name, rules.statistics.get(entry.name))
            centre, width = _statistics(columns[name], rules.scaling, given)
            known = {"median": imputer.medians.get(name), "mean": imputer.means.get(name)}
            found = {"missing": how[name], "centre": centre, "width": width, **known}
            entry = TableFeature.model_validate(entry.model_dump() | found)
        features.append(entry)
    return TableContract(
        name=FEATURES,
        features=tuple(features),
        period_suffix=rules.period_suffix,
        scaling=rules.scaling,
        limit=rules.limit,
        donors=StoredArray.pack(imputer.donors) if imputer.regressed else None,
    )


def _rules_for_missing(rules: FeatureRules) -> list[Missing]:
    """The rule of each included feature: its own, else the described one of its name, else that of all others."""
    described = described_strategies([column.name for column in rules.columns])
    found: list[Missing] = []
    for column in rules.columns:
        own: Missing = described[column.name].value
        if rules.otherwise == "keep" or own == "drop":
            own = rules.otherwise
        if column.include:
            found.append(column.missing or own)
    return found


def _statistics(
    values: Values, scaling: str, given: FeatureStatistics | None
) -> tuple[float | None, float | None]:
    """Centre and width of a feature: those that the recipe has, else those of the values."""
    known = values[np.isfinite(values)]
    if scaling == "none" or not (known.size or given):
        return None, None
    if given is not None:
        ends = (given.min, given.max) if scaling == "min_max" else (given.median, given.std)
    elif scaling == "min_max":
        ends = (known.min(), known.max())
    else:
        with np.errstate(over="ignore"):  # a feature of such numbers is not scaled
            ends = (np.median(known), known.std())
    first, second = ends
    if first is None or second is None:
        wanted = "min and max" if scaling == "min_max" else "median and std"
        raise InputError(f"statistics of a feature: {wanted} are needed for the scaling {scaling}")
    centre, width = float(first), float(second - first if scaling == "min_max" else second)
    return (centre, width) if 0 < width < np.inf else (None, None)
