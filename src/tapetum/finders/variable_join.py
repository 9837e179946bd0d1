"""Classifications that were made one after the other, as one: by other models, or of other light curves."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapetum.core.columns import floats_of
from tapetum.core.errors import InputError
from tapetum.finders.taxonomy import load_taxonomy
from tapetum.finders.variable_group import LAST, TREE
from tapetum.finders.variable_sources import as_made
from tapetum.finders.variables import CLASSES, WORD, combined, given_classes, opposite_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Values = NDArray[np.float64]
    Whole = NDArray[np.int64]

KEY, OBJECT = "lc_id", "object_id"
DESCRIBED = re.compile(r"([a-z][a-z0-9]*)_(dnn|xgb)")
"""Columns of the described system, whose tables say nothing else of their models."""


def read_about(table: pa.Table, name: str) -> dict[str, Any]:
    """What a classification says of its models, or what the names of its columns say.

    Parameters
    ----------
    name
        Of its file, for errors.

    Raises
    ------
    InputError
        The table is no classification.
    """
    words = (table.schema.metadata or {}).get(WORD.encode())
    if words is not None:
        about: dict[str, Any] = json.loads(words)
        return about
    found = {column: match for column in table.column_names if (match := DESCRIBED.fullmatch(column))}
    if not found:
        raise InputError(f"{name}: no classification: no columns such as vnv_dnn or ea_xgb")
    models = {
        column: {
            "model": column,
            "version": "",
            "sha256": "",
            "class": match[1],
            "algorithm": match[2],
            "threshold": None,
        }
        for column, match in found.items()
    }
    return {
        "taxonomy": "scope",
        "models": models,
        "columns": dict.fromkeys(found, ""),
        "opposites": {},
        "opposite_of": opposite_of(load_taxonomy()),
        "settings": {},
    }


def join(
    tables: Sequence[pa.Table],
    names: Sequence[str],
    combine: Literal["none", "mean", "max"] = "none",
    threshold: str | float = "none",
    decimals: int | None = None,
) -> pa.Table:
    """Classifications of light curves as one.

    Parameters
    ----------
    tables
        With `lc_id`; by source they cannot be joined.
    names
        Of their files, for errors.
    combine, threshold, decimals
        As in `tapetum.finders.variables.Config`; what was combined before is made anew.

    Returns
    -------
    pyarrow.Table
        One row for each light curve, in the order in which they come first, as `Variables.find` gives it: of each
        column the first value there is, and the flags of all. Where a table has a light curve
        twice, for two sources, `object_id` tells them apart.

    Raises
    ------
    InputError
        A table is no classification of light curves.
    """
    abouts = [read_about(table, name) for table, name in zip(tables, names, strict=True)]
    about = _joint_about(abouts, combine, threshold, decimals)
    for table, name in zip(tables, names, strict=True):
        if KEY not in table.column_names or "n_light_curves" in table.column_names:
            raise InputError(
                f"{name}: is by source; join the tables by light curve, and make sources of the result"
            )
    numbers = [name for one in abouts for name in one["columns"]]
    made = {*about["opposites"], *(entry["class"] for entry in about["models"].values()), CLASSES}
    tables = [as_made(table).replace_schema_metadata(None) for table in tables]
    stacked = pa.concat_tables(tables, promote_options="permissive")
    first, where = _rows(tables, stacked)
    columns = {
        name: _first_values(stacked[name], where, len(first))
        for name in _order(stacked.column_names, numbers)
        if name not in made and name not in LAST
    }
    columns |= _answers(columns, about, combine, threshold, decimals)
    return _described(columns | _last(stacked, where, len(first)), about)


def _answers(
    columns: dict[str, Any],
    about: dict[str, Any],
    combine: Literal["none", "mean", "max"],
    threshold: str | float,
    decimals: int | None,
) -> dict[str, pa.Array]:
    """Columns of all models, of what is made of them, and the classes above the thresholds."""
    values = {name: floats_of(columns[name]) for name in about["models"]}
    values |= _combined(values, about, combine)
    values |= {name: 1.0 - values[of] for name, of in about["opposites"].items()}
    about["columns"] = {name: about["columns"].get(name, "") for name in values}
    found: dict[str, pa.Array] = {}
    for name, array in values.items():
        rounded = array if decimals is None else array.round(decimals)
        found[name] = pa.array(rounded, mask=np.isnan(rounded))
    if threshold != "none" and values:
        found[CLASSES] = pa.array(given_classes(values, about), pa.string())
    return found


def _described(columns: dict[str, Any], about: dict[str, Any]) -> pa.Table:
    fields = [
        pa.field(
            name,
            column.type,
            metadata={"description": about["columns"][name]} if about["columns"].get(name) else None,
        )
        for name, column in columns.items()
    ]
    return pa.Table.from_arrays(
        list(columns.values()), schema=pa.schema(fields, metadata={WORD: json.dumps(about)})
    )


def _joint_about(
    abouts: Sequence[dict[str, Any]], combine: str, threshold: str | float, decimals: int | None
) -> dict[str, Any]:
    models: dict[str, Any] = {}
    words: dict[str, str] = {}
    for about in abouts:
        models |= about["models"]
        words |= about["columns"]
    trees = [about[TREE] for about in abouts if TREE in about]
    settings = next((dict(about["settings"]) for about in abouts if about["settings"]), {})
    settings |= {"combine": combine, "threshold": threshold, "decimals": decimals}
    taxonomy = next((about["taxonomy"] for about in abouts if about["taxonomy"]), "scope")
    pairs = {code: of for about in reversed(abouts) for code, of in about.get("opposite_of", {}).items()}
    codes = {entry["class"] for entry in models.values()}
    opposites: dict[str, str] = {}
    for code, opposite in pairs.items():
        if opposite in codes and code not in codes:
            of_it = [(name, model) for name, model in models.items() if model["class"] == opposite]
            opposites |= {f"{code}_{model['algorithm']}": name for name, model in of_it}
            if combine != "none":
                opposites[code] = opposite
    if combine != "none":
        for code in codes:
            parts = [name for name, model in models.items() if model["class"] == code]
            words[code] = f"{combine} of {', '.join(parts)}"
    words |= {name: f"1 - {of}" for name, of in opposites.items()}
    joint = {
        "taxonomy": taxonomy,
        "models": models,
        "columns": words,
        "opposites": opposites,
        "opposite_of": pairs,
        "settings": settings,
    }
    return joint | ({TREE: trees[0]} if trees else {})


def _rows(tables: Sequence[pa.Table], stacked: pa.Table) -> tuple[Whole, Whole]:
    """First row of each light curve among all rows, and the light curve of each row."""
    keys = stacked[KEY].cast(pa.string())
    if OBJECT in stacked.column_names and any(
        len(pc.unique(table[KEY])) < table.num_rows for table in tables
    ):
        keys = pc.binary_join_element_wise(keys, pc.fill_null(stacked[OBJECT].cast(pa.string()), ""), "\x1f")
    code = keys.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    first = np.unique(code, return_index=True)[1]  # numbers of a dictionary rise as values appear
    return first.astype(np.int64), code


def _order(names: Sequence[str], numbers: Sequence[str]) -> list[str]:
    """What is known of light curves before what is said of them."""
    return [name for name in names if name not in numbers] + [name for name in numbers if name in names]


def _first_values(column: pa.ChunkedArray, where: Whole, n: int) -> pa.Array:
    """The first value of each light curve."""
    there = np.flatnonzero(column.is_valid().to_numpy())
    rows = np.full(n, -1, np.int64)
    owner, first = np.unique(where[there], return_index=True)
    rows[owner] = there[first]
    return column.take(pa.array(rows, mask=rows < 0)).combine_chunks()


def _combined(
    values: dict[str, Values], about: dict[str, Any], combine: Literal["none", "mean", "max"]
) -> dict[str, Values]:
    if combine == "none":
        return {}
    codes: dict[str, list[str]] = {}
    for name, model in about["models"].items():
        codes.setdefault(model["class"], []).append(name)
    return {code: combined([values[name] for name in columns], combine) for code, columns in codes.items()}


def _last(stacked: pa.Table, where: Whole, n: int) -> dict[str, Any]:
    """Flags of all rows of a light curve, and what is said first of errors and imputed features."""
    flags = np.zeros(n, np.int32)
    if "flags" in stacked.column_names:
        np.bitwise_or.at(flags, where, stacked["flags"].fill_null(0).to_numpy().astype(np.int32))
    found: dict[str, Any] = {"flags": pa.array(flags)}
    for name in LAST[1:]:
        if name in stacked.column_names:
            found[name] = _first_values(stacked[name], where, n)
    return found
