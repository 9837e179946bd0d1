"""Rows of a broker's Parquet file as Avro bodies, so that one decoder serves all sources."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tapetum.alerts.records import to_body
from tapetum.alerts.schema import AlertSchema, load_schema
from tapetum.core.errors import FormatError
from tapetum.core.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROWS_AT_A_TIME = 64


def iter_bodies(path: Path, limits: Limits = DEFAULT_LIMITS) -> Iterator[tuple[AlertSchema, bytes | str]]:
    """Each row of a Parquet file as (schema, Avro body), or (schema, reason) where a row cannot be one.

    Raises
    ------
    FormatError
        The columns are not those of alerts, have a type without counterpart in Avro, or a name that Avro does
        not allow.
    pyarrow.ArrowException
        The file is damaged.
    """
    with pq.ParquetFile(path) as file:
        schema = load_schema(json.dumps(avro_schema(file.schema_arrow)).encode(), limits)
        if schema.profile is None:
            raise FormatError(
                "no survey profile knows its columns; is it a table of alert packets with stamps?"
            )
        for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME):
            for row in _plain(batch).to_pylist():
                try:
                    yield schema, to_body(row, schema)
                except FormatError as problem:
                    yield schema, str(problem)


def avro_schema(schema: pa.Schema) -> dict[str, Any]:
    """The Avro record that holds a row of an Arrow table; every field may be null."""
    return {"type": "record", "name": "row", "fields": [_field(entry, "row") for entry in schema]}


def _field(entry: pa.Field, parent: str) -> dict[str, Any]:
    if not (entry.name.isidentifier() and entry.name.isascii()):
        raise FormatError(
            f"column {entry.name!r} cannot be an Avro field: rename it to letters, digits and underscores"
        )
    return {"name": entry.name, "type": _nullable(_type(entry.type, f"{parent}_{entry.name}"))}


def _nullable(kind: Any) -> Any:
    return kind if kind == "null" else ["null", kind]


def _type(kind: pa.DataType, name: str) -> Any:
    tests: tuple[tuple[Any, str], ...] = (
        (pa.types.is_boolean, "boolean"),
        (pa.types.is_integer, "long"),
        (pa.types.is_timestamp, "long"),
        (pa.types.is_float32, "float"),
        (pa.types.is_floating, "double"),
        (pa.types.is_string, "string"),
        (pa.types.is_large_string, "string"),
        (pa.types.is_binary, "bytes"),
        (pa.types.is_large_binary, "bytes"),
        (pa.types.is_null, "null"),
    )
    for test, avro in tests:
        if test(kind):
            return avro
    if pa.types.is_struct(kind):
        fields = [_field(kind.field(i), name) for i in range(kind.num_fields)]
        return {"type": "record", "name": name, "fields": fields}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return {"type": "array", "items": _nullable(_type(kind.value_type, f"{name}_item"))}
    raise FormatError(f"column {name!r} has the type {kind}, which an alert cannot have")


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Timestamps, at any depth, as the integers that their Avro field holds."""
    columns = [column.cast(_untimed(column.type)) for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _untimed(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.int64()
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return pa.struct([pa.field(entry.name, _untimed(entry.type)) for entry in fields])
    if pa.types.is_list(kind):
        return pa.list_(_untimed(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_untimed(kind.value_type))
    return kind
