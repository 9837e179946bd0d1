"""Features of a catalogue that LSDB has opened: from anywhere, cut out of the sky, joined with others, and lazily.

The command line needs no LSDB: it reads and writes HATS catalogues itself, a partition being its unit of work too. LSDB
adds what is done to a catalogue before: archives behind a URL, cones and boxes, cross-matches that lose nothing at the
edges of partitions. Its Dask does the work then, and what was interrupted begins anew.

LSDB itself is not imported here; it comes with the extra `cluster`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pyarrow as pa

from tapetum.lightcurves.formats.columns import Reading
from tapetum.lightcurves.formats.opening import curves_of
from tapetum.lightcurves.formats.sources import Given
from tapetum.pipelines.lightcurve_features import FeatureOptions, feature_maker
from tapetum.pipelines.lightcurve_parts import Part

NAME = "a partition of the catalogue"
INDEX = "__index"  # of the frame, while it is a column


def features_of_catalog(catalog: Any, options: FeatureOptions, how: Reading | None = None) -> Any:
    """Features of the light curves of a catalogue: a catalogue of its partitions, with one row per light curve.

    Parameters
    ----------
    catalog
        An ``lsdb.Catalog`` with a nested column of points, or with a row per point of objects whose points are in one
        partition.
    options
        As for the command line; rows do not depend on how the catalogue is divided.
    how
        Names of columns; None recognises them.

    Returns
    -------
    lsdb.Catalog
        Nothing is computed before its ``compute`` or ``to_hats``.

    Raises
    ------
    InputError
        No light curves can be recognised in the columns of the catalogue.

    Examples
    --------
    ::

        catalog = lsdb.open_catalog(address).cone_search(ra=280, dec=0, radius_arcsec=600)
        features_of_catalog(catalog, FeatureOptions(("scope",))).to_hats("features")
    """
    work = partial(features_of_frame, options=options, how=how or Reading())
    return catalog.map_partitions(work, meta=_columns_of(catalog.meta, options, how or Reading()))


def features_of_frame(frame: Any, options: FeatureOptions, how: Reading) -> Any:
    """Features of the light curves of a partition, as a frame of Arrow columns whose index is that of the partition.

    Raises
    ------
    InputError
        As `features_of_catalog`.
    """
    return _framed(_features(_table_of(frame), options, how), frame.index.name)


def _table_of(frame: Any) -> pa.Table:
    return pa.Table.from_pandas(frame.reset_index(names=INDEX))


def _features(table: pa.Table, options: FeatureOptions, how: Reading) -> pa.Table:
    """Features, and the index of the frame."""
    curves = curves_of(table, NAME, how)
    rows = pa.concat_tables(feature_maker(options)(Part(0, Given(NAME, curves))))
    return rows.append_column(INDEX, curves.table[INDEX])


def _framed(table: pa.Table, index: str | None) -> Any:
    from pandas import ArrowDtype

    return table.to_pandas(types_mapper=ArrowDtype).set_index(INDEX).rename_axis(index)


def _columns_of(frame: Any, options: FeatureOptions, how: Reading) -> Any:
    """A frame without rows that has the columns of every partition's features, found out with an empty curve."""
    schema = _table_of(frame).schema
    row = {column.name: _anything(column.type) for column in schema}
    made = _features(pa.Table.from_pylist([row], schema), options, how)
    return _framed(made.slice(0, 0), frame.index.name)


def _anything(kind: pa.DataType) -> Any:
    """A value of a type; no points where points are."""
    if pa.types.is_struct(kind):
        return {field.name: _anything(field.type) for field in kind}
    if pa.types.is_nested(kind):
        return []
    if pa.types.is_boolean(kind):
        return True
    return "1" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else 1
