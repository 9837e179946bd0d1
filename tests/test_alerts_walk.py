"""The compiled walk against fastavro, which decodes everything slowly: same values, same ends, no crash on damage."""

from __future__ import annotations

import io
import itertools
import json
import math

import fastavro
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapetum.alerts import _kernels as k
from tapetum.alerts.records import encode_long
from tapetum.alerts.rows import Rows
from tapetum.alerts.schema import _Compiler, load_schema
from tapetum.core.errors import FormatError, LimitError
from tapetum.core.limits import Limits
from tapetum.surveys.profile import AlertProfile

PRIMITIVES = {
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False),
    "string": st.text(max_size=12),
    "bytes": st.binary(max_size=12),
}


NUMBERS = itertools.count()


@st.composite
def typed_values(draw, depth: int = 0):
    """(Avro type, value) of anything a packet may hold."""
    kinds = [*PRIMITIVES, "optional"] + (
        ["record", "array", "map", "union", "enum", "fixed"] if depth < 3 else []
    )
    kind = draw(st.sampled_from(kinds))
    if kind in PRIMITIVES:
        return kind, draw(PRIMITIVES[kind])
    name = f"n{next(NUMBERS)}"  # Avro wants each name once
    if kind == "optional":
        inner = draw(st.sampled_from(sorted(PRIMITIVES)))
        order = draw(st.permutations(["null", inner]))
        return list(order), draw(st.none() | PRIMITIVES[inner])
    if kind == "enum":
        return {"type": "enum", "name": name, "symbols": ["A", "B", "C"]}, draw(st.sampled_from("ABC"))
    if kind == "fixed":
        return {"type": "fixed", "name": name, "size": 3}, draw(st.binary(min_size=3, max_size=3))
    if kind == "union":
        return ["null", "long", {"type": "array", "items": "string"}], draw(
            st.none() | st.integers(-5, 5) | st.lists(st.text(max_size=3), max_size=3)
        )
    if kind == "array":
        item, _ = draw(typed_values(depth=3))
        return {"type": "array", "items": item}, draw(st.lists(values_of(item), max_size=4))
    if kind == "map":
        return {"type": "map", "values": "double"}, draw(
            st.dictionaries(st.text(max_size=3), PRIMITIVES["double"], max_size=3)
        )
    fields = [draw(typed_values(depth=depth + 1)) for _ in range(draw(st.integers(1, 4)))]
    return (
        {
            "type": "record",
            "name": name,
            "fields": [{"name": f"f{i}", "type": t} for i, (t, _) in enumerate(fields)],
        },
        {f"f{i}": value for i, (_, value) in enumerate(fields)},
    )


def values_of(kind):
    if isinstance(kind, list):
        return st.none() | PRIMITIVES[next(branch for branch in kind if branch != "null")]
    return PRIMITIVES[kind]


def survey(candidate: str = "c") -> AlertProfile:
    """A profile that wants every scalar of the record `candidate`."""
    return AlertProfile.model_validate(
        {
            "name": "test",
            "title": "test",
            "alert": {
                "recognise": ["never.there"], "alert_id": "id", "object_id": ["id"], "ra": "ra", "dec": "dec",
                "candidate": candidate, "time": {"field": "t", "format": "mjd", "reference": "mid"}, "band": {},
                "brightness": {}, "stamps": {"science": "s", "template": "r", "difference": "d", "size": 3},
            },
        }
    )  # fmt: skip


def walk(body: bytes, tree, rows_of_history: int = 8):
    program = _Compiler(tree, survey()).compile()
    rows, past = Rows.empty(1, max(len(program.slots), 1)), Rows.empty(rows_of_history, 32)
    outcome, end, _ = k.walk(
        np.frombuffer(body, np.uint8),
        0,
        len(body),
        program.code,
        program.jumps,
        0,
        *rows.arrays(),
        0,
        *past.arrays(),
        1000,
    )
    return outcome, end, rows, program


def scalars(value, prefix=""):
    """Dotted scalars of a record, arrays and maps left out."""
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from scalars(inner, f"{prefix}{name}.")
        elif not isinstance(inner, list):
            yield f"{prefix}{name}", inner


def encode(tree, record) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(json.loads(json.dumps(tree))), record)
    return out.getvalue()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(typed=st.lists(typed_values(), min_size=1, max_size=5))
def test_every_scalar_as_fastavro_reads_it(typed):
    inner = {
        "type": "record",
        "name": "inner",
        "fields": [{"name": f"g{i}", "type": t} for i, (t, _) in enumerate(typed)],
    }
    tree = {"type": "record", "name": "top", "fields": [{"name": "c", "type": inner}]}
    record = {"c": {f"g{i}": v for i, (_, v) in enumerate(typed)}}
    body = encode(tree, record)
    outcome, end, rows, program = walk(body, tree)
    assert (outcome, end) == (k.OK, len(body))
    symbols = {"A": 0, "B": 1, "C": 2}
    slots = dict(program.candidate)
    for name, value in scalars(record["c"]):
        if name not in slots:
            continue  # within a map
        slot = slots[name]
        kind = rows.kinds[0, slot]
        if value is None:
            assert kind == k.MISSING
        elif isinstance(value, (bytes, str)) and kind == k.IS_BYTES:
            start = rows.ints[0, slot]
            raw = body[start : start + rows.lengths[0, slot]]
            assert raw == (value.encode() if isinstance(value, str) else value)
        elif isinstance(value, str):
            assert rows.ints[0, slot] == symbols[value]
        elif isinstance(value, float):
            assert kind == k.IS_FLOAT
            assert math.isclose(rows.floats[0, slot], value, rel_tol=1e-6) or rows.floats[0, slot] == value
        else:
            assert rows.ints[0, slot] == int(value)


@settings(max_examples=150, deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True), noise=st.binary(max_size=8), at=st.floats(0, 1))
def test_damage_is_an_outcome_never_a_crash(cut, noise, at):
    tree = {
        "type": "record", "name": "top", "fields": [
            {"name": "c", "type": {"type": "record", "name": "inner", "fields": [
                {"name": "a", "type": ["null", "double"]}, {"name": "b", "type": {"type": "array", "items":
                ["float", "null"]}}, {"name": "s", "type": "string"}, {"name": "u", "type": ["null", "long",
                {"type": "map", "values": "bytes"}]},
            ]}}],
    }  # fmt: skip
    record = {"c": {"a": 1.5, "b": [1.0, None, 2.0], "s": "text", "u": {"k": b"v"}}}
    body = bytearray(encode(tree, record))
    whole = len(body)
    place = int(at * whole)
    body[place : place + len(noise)] = noise
    body = body[: int(cut * len(body))]
    outcome, end, _, _ = walk(bytes(body), tree)
    assert outcome in (k.OK, *k.REASONS)
    assert 0 <= end <= max(len(body), 0)
    if not noise and len(body) < whole:
        assert outcome != k.OK


def test_arrays_beyond_the_limit_are_refused():
    tree = {
        "type": "record",
        "name": "t",
        "fields": [{"name": "a", "type": {"type": "array", "items": "null"}}],
    }
    body = b"\xfe\xff\xff\xff\x0f\x00"  # an array that claims two thousand million nulls, which take no bytes
    schema = load_schema(json.dumps(tree).encode())
    with pytest.raises(FormatError, match="more items than the limits"):
        schema.check(body)


def test_blocks_and_nesting_do_not_multiply_the_limit():
    inner = {"type": "array", "items": "null"}
    tree = {
        "type": "record",
        "name": "m",
        "fields": [{"name": "a", "type": {"type": "array", "items": inner}}],
    }
    schema = load_schema(json.dumps(tree).encode())
    limits = Limits(array_items=1000)
    block = encode_long(900)
    schema.check(encode_long(1) + block + b"\x00\x00", limits)
    with pytest.raises(FormatError, match="more items than the limits"):
        schema.check(encode_long(1) + block + block + b"\x00\x00", limits)  # one array, two blocks
    with pytest.raises(FormatError, match="more items than the limits"):
        schema.check(encode_long(2) + (block + b"\x00") * 2 + b"\x00", limits)  # two arrays


def test_a_schema_that_grows_by_reference_is_refused_at_once():
    fields = [{"name": f"f{i}", "type": "long"} for i in range(8)]
    levels = [{"type": "record", "name": "l0", "fields": fields}]
    for level in range(1, 13):
        inner = [{"name": "x0", "type": levels[-1]}]
        inner += [{"name": f"x{i}", "type": f"l{level - 1}"} for i in range(1, 8)]
        levels.append({"type": "record", "name": f"l{level}", "fields": inner})
    with pytest.raises(LimitError, match="more than 20000 fields"):
        load_schema(json.dumps(levels[-1]).encode())


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"not json", "not JSON"),
        (b'"string"', "not a record"),
        (b'{"type": "record", "name": "x", "fields": 3}', "without proper fields"),
        (
            b'{"type": "record", "name": "x", "fields": [{"name": "y", "type": "colour"}]}',
            "unknown type 'colour'",
        ),
    ],
)
def test_unusable_schemas_are_named(text, error):
    with pytest.raises(FormatError, match=error):
        load_schema(text)


def test_recursive_and_deep_schemas_are_refused():
    recursive = b'{"type": "record", "name": "x", "fields": [{"name": "y", "type": ["null", "x"]}]}'
    with pytest.raises(LimitError):
        load_schema(recursive)
    deep = '"long"'
    for level in range(200):
        deep = f'{{"type": "record", "name": "r{level}", "fields": [{{"name": "f", "type": {deep}}}]}}'
    with pytest.raises(LimitError):
        load_schema(deep.encode())
    with pytest.raises(LimitError, match="bytes long"):
        load_schema(b" " * 100, Limits(schema_bytes=10))


def test_a_schema_is_compiled_once():
    text = b'{"type": "record", "name": "once", "fields": [{"name": "a", "type": "long"}]}'
    assert load_schema(text) is load_schema(bytes(text))
    assert load_schema(text).program is load_schema(text).program
