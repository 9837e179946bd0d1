"""From a feature table to the inputs of a network: columns found by name, missing values replaced, scaled, float32."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tapetum.core.errors import InputError
from tapetum.lightcurves.impute import Imputer, Strategy, feature_values

if TYPE_CHECKING:
    from tapetum.models.card import DmdtContract, TableContract, TableFeature

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Prepared:
    """Rows as a network takes them.

    Attributes
    ----------
    values : ndarray of float32, shape (n, n_included)
        NaN where a value is missing and stays so.
    imputed : ndarray of bool, shape (n, n_included)
        A missing value was replaced.
    lacking : ndarray of bool, shape (n, n_included)
        A value is missing without which the row is not scored.
    """

    values: NDArray[np.float32]
    imputed: NDArray[np.bool_]
    lacking: NDArray[np.bool_]

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Rows that can be scored, shape (n,)."""
        return np.asarray(~self.lacking.any(axis=1))


def gather_table(table: pa.Table, contract: TableContract, origin: str) -> Values:
    """The included features of a table as they are, NaN where there is no finite number, shape (n, n_included).

    Raises
    ------
    InputError
        The table lacks a feature, or has something else in its place; names model, column and remedy.
    """
    names = [contract.column(feature) for feature in contract.included]
    if absent := [name for name in names if name not in table.column_names]:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise InputError(
            f"model {origin} needs the feature {absent[0]}{more}, which the table lacks; make it with "
            "`tapetum lightcurves features` (its sets, catalogues and period algorithms), take another model, or train "
            "with --period-suffix or --features of what the table has"
        )
    return np.column_stack(
        [_column(table, name, feature) for name, feature in zip(names, contract.included, strict=True)]
    )


def _column(table: pa.Table, name: str, feature: TableFeature) -> Values:
    values = feature_values(table, name)
    if feature.dtype == "float32":
        with np.errstate(over="ignore"):
            values = values.astype(np.float32).astype(np.float64)
        values[~np.isfinite(values)] = np.nan
    known = values[~np.isnan(values)]
    if feature.dtype == "int64" and (known != np.rint(known)).any():
        raise InputError(f"column {name} has fractions; the model was made with whole numbers")
    return values


def imputer_of(contract: TableContract) -> Imputer:
    """The frozen rules for missing values of a contract, features by their columns."""
    features = contract.included
    donors = np.empty((0, 0)) if contract.donors is None else contract.donors.unpack().astype(np.float64)
    return Imputer(
        strategies={contract.column(feature): Strategy(feature.missing) for feature in features},
        medians={contract.column(entry): entry.median for entry in features if entry.median is not None},
        means={contract.column(entry): entry.mean for entry in features if entry.mean is not None},
        donors=donors,
    )


def prepare_values(values: Values, contract: TableContract) -> Prepared:
    """Impute and scale the included features of rows.

    Parameters
    ----------
    values : ndarray of float64, shape (n, n_included)
        As `gather_table` gives them.
    contract
        Of the input.

    Raises
    ------
    InputError
        The array has another number of features.
    """
    features = contract.included
    if values.ndim != 2 or values.shape[1] != len(features):
        raise InputError(f"{len(features)} features are needed, got an array of the shape {values.shape}")
    columns = [contract.column(feature) for feature in features]
    missing = np.isnan(values)
    dropped = np.array([feature.missing == "drop" for feature in features])
    replaced = np.array([feature.missing not in ("drop", "keep") for feature in features])
    imputer = imputer_of(contract)
    # rows that lack something are not scored, but keep their place: nothing may be dropped here
    rules: dict[str, Strategy] = {
        name: rule for name, rule in imputer.strategies.items() if rule is not Strategy.DROP
    }
    kept = replace(imputer, strategies=rules)
    table = pa.table({name: values[:, at] for at, name in enumerate(columns)})
    filled = kept.apply(table).table
    complete = np.column_stack([filled[name].to_numpy() for name in columns])
    return Prepared(_scaled(complete, contract), missing & replaced, missing & dropped)


def _scaled(values: Values, contract: TableContract) -> NDArray[np.float32]:
    centre = np.array([0.0 if entry.centre is None else entry.centre for entry in contract.included])
    width = np.array([1.0 if entry.width is None else entry.width for entry in contract.included])
    # NaN stays NaN
    scaled: Values = np.clip((values - centre) / width, -contract.limit, contract.limit)
    return scaled.astype(np.float32)


def prepare_table(table: pa.Table, contract: TableContract, origin: str) -> Prepared:
    """Rows of a feature table as a network takes them; see `gather_table` and `prepare_values`."""
    return prepare_values(gather_table(table, contract, origin), contract)


def prepare_dmdt(table: pa.Table, contract: DmdtContract, origin: str) -> NDArray[np.float32]:
    """Histograms of a feature table as a network takes them, NaN all over where a row has none.

    Returns
    -------
    ndarray of float32, shape (n, *contract.planes)

    Raises
    ------
    InputError
        The table lacks the column, or its histograms have another shape.
    """
    if contract.column not in table.column_names:
        raise InputError(
            f"model {origin} needs the column {contract.column}, which the table lacks; make it with "
            "`tapetum lightcurves features --set scope`"
        )
    column = pa.concat_arrays([pa.array([], table[contract.column].type), *table[contract.column].chunks])
    out = np.full((len(column), contract.shape[0] * contract.shape[1]), np.nan, np.float32)
    there = column.is_valid().to_numpy(zero_copy_only=False)
    bins = column.drop_null()
    while len(bins) and _is_list(bins.type):
        lengths = pc.unique(pc.list_value_length(bins)).to_pylist()
        if len(lengths) != 1 or None in lengths:
            raise InputError(f"column {contract.column}: the histograms differ in shape")
        bins = bins.flatten()
    if len(bins) != out.shape[1] * there.sum():
        raise InputError(
            f"column {contract.column}: {len(bins) / max(there.sum(), 1):g} bins a row, where the model needs "
            f"{contract.shape[0]} x {contract.shape[1]}"
        )
    if there.any():
        numbers = bins.cast(pa.float32()).to_numpy(zero_copy_only=False)
        out[there] = numbers.reshape(-1, out.shape[1])
    return out.reshape(-1, *contract.planes)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
