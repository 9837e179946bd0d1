"""An Avro schema as a program for the compiled walk, made once per distinct schema and kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.alerts import _kernels as k
from tapetum.core.errors import FormatError, InputError, LimitError
from tapetum.core.limits import DEFAULT_LIMITS, Limits
from tapetum.surveys.profile import AlertProfile, alert_profiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

INSTRUCTIONS_PER_FIELD = 4  # a field, a branch of its union, the jump behind it, its array
PRIMITIVES = {
    "null": k.NULL,
    "boolean": k.BOOLEAN,
    "int": k.LONG,
    "long": k.LONG,
    "float": k.FLOAT,
    "double": k.DOUBLE,
    "bytes": k.BYTES,
    "string": k.BYTES,
}
# columns of the history rows; the first says which array of the profile a row comes from
HISTORY_COLUMNS = (
    "array", "time", "band", "ra", "dec", "mag", "mag_err", "mag_limit", "flux", "flux_err", "zero_point",
    "positive", "negative", "status", "mag_ref", "mag_ref_err", "field", "quadrant", "image",
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """What `tapetum.alerts._kernels.walk` runs; see there for the arrays."""

    code: NDArray[np.int32]
    jumps: NDArray[np.int32]
    slots: Mapping[str, int]
    candidate: tuple[tuple[str, int], ...]
    """(name within the candidate record, slot) of all its scalar fields, in schema order."""


@dataclass
class AlertSchema:
    """One Avro schema: its text, its survey, its program.

    Attributes
    ----------
    text
        The JSON text as it came.
    fingerprint
        Hex SHA-256 of the text.
    profile
        The survey whose packets look like this; None for an unknown one.
    program
        Fetches what the profile names, history rows included.
    brief
        The same without history; its slots are those of `program`.
    skeleton
        Fetches nothing: it only finds where a record ends.
    """

    text: str
    fingerprint: str
    tree: Any = field(repr=False)
    profile: AlertProfile | None = field(repr=False)
    program: Program = field(repr=False)
    brief: Program = field(repr=False)
    skeleton: Program = field(repr=False)

    @cached_property
    def parsed(self) -> Any:
        """The schema as fastavro wants it, for whole records.

        Raises
        ------
        FormatError
            fastavro is stricter than our walk and does not take it.
        """
        import fastavro
        from fastavro.schema import SchemaParseException, UnknownType

        try:
            return fastavro.parse_schema(json.loads(json.dumps(self.tree)))
        except (SchemaParseException, UnknownType) as problem:
            raise FormatError(f"its Avro schema is not valid: {problem}") from None

    def end_of_record(self, buffer: NDArray[np.uint8], start: int, limits: Limits = DEFAULT_LIMITS) -> int:
        """Position after the record that begins at `start`.

        Raises
        ------
        FormatError
            The bytes are not a record of this schema; the message says what is wrong with them.
        """
        program, none = self.skeleton, _no_slots()
        outcome, end, _ = k.walk(
            buffer, start, buffer.size, program.code, program.jumps, 0, *none, 0, *none, limits.array_items
        )
        if outcome != k.OK:
            raise FormatError(k.REASONS[outcome])
        return int(end)

    def check(self, body: bytes, limits: Limits = DEFAULT_LIMITS) -> None:
        """Raise FormatError unless `body` is exactly one record of this schema."""
        end = self.end_of_record(np.frombuffer(body, np.uint8), 0, limits)
        if end != len(body):
            raise FormatError(f"{len(body) - end} bytes follow the record")

    def split(self, block: bytes, n_records: int, limits: Limits = DEFAULT_LIMITS) -> Iterator[bytes]:
        """Cut a block of `n_records` bodies apart.

        Raises
        ------
        FormatError
            The block does not hold exactly so many records of this schema; what came before the fault is good.
        """
        if n_records == 1:  # as all surveys have it; the decoder will see whether it fills the block
            yield block
            return
        buffer, start = np.frombuffer(block, np.uint8), 0
        for number in range(n_records):
            try:
                end = self.end_of_record(buffer, start, limits)
            except FormatError as problem:
                raise FormatError(f"record {number + 1} of {n_records} in its block: {problem}") from None
            yield block[start:end]
            start = end
        if start != len(block):
            raise FormatError(f"{len(block) - start} bytes follow the {n_records} records of a block")


def _no_slots() -> tuple[NDArray[Any], ...]:
    return tuple(np.empty((1, 1), dtype) for dtype in (np.uint8, np.int64, np.float64, np.int64))


_schemas: dict[bytes, AlertSchema] = {}


def load_schema(raw: bytes, limits: Limits = DEFAULT_LIMITS) -> AlertSchema:
    """The schema of these bytes of JSON; parsed the first time, remembered after.

    Defaults are dropped: they only matter to a reader with another schema, and TURBO's are of the wrong type.

    Raises
    ------
    FormatError
        Not JSON, or not an Avro schema of a record.
    LimitError
        Too large or too deep.
    """
    known = _schemas.get(raw)
    if known is not None:
        return known
    if len(raw) > limits.schema_bytes:
        raise LimitError(f"its Avro schema is {len(raw)} bytes long, more than {limits.schema_bytes}")
    try:
        text = raw.decode("utf-8")
        tree = _without_defaults(json.loads(text), limits.avro_depth * 4)
    except (ValueError, RecursionError) as problem:
        raise FormatError(f"its Avro schema is not JSON: {problem}") from None
    if not isinstance(tree, dict) or tree.get("type") != "record":
        raise FormatError("its Avro schema is not a record")
    skeleton = _Compiler(tree, None, limits).compile()
    paths = _paths(tree, limits)
    matching = [profile for profile in alert_profiles() if paths.issuperset(profile.alert.recognise)]
    profile = max(matching, key=lambda p: len(p.alert.recognise), default=None)
    program, brief = (
        _Compiler(tree, profile, limits, history=wanted).compile() if profile else skeleton
        for wanted in (True, False)
    )
    schema = AlertSchema(text, hashlib.sha256(raw).hexdigest(), tree, profile, program, brief, skeleton)
    _schemas[raw] = schema
    return schema


def load_schema_file(path: Path) -> AlertSchema:
    """The schema in an ``.avsc`` file.

    Raises
    ------
    InputError
        The file cannot be read or is not a schema; the message names it.
    """
    try:
        return load_schema(path.read_bytes())
    except OSError as problem:
        raise InputError(f"{path}: cannot be read: {problem.strerror}") from None
    except InputError as problem:
        raise FormatError(f"{path}: {problem}") from None


def _without_defaults(node: Any, depth: int) -> Any:
    if depth < 0:
        raise LimitError("its Avro schema is nested deeper than the limits allow")
    if isinstance(node, dict):
        return {key: _without_defaults(value, depth - 1) for key, value in node.items() if key != "default"}
    if isinstance(node, list):
        return [_without_defaults(item, depth - 1) for item in node]
    return node


def _paths(tree: Mapping[str, Any], limits: Limits) -> set[str]:
    """Dotted paths of all fields, arrays included by their name."""
    found: set[str] = set()
    names: dict[str, Any] = {}

    def visit(node: Any, prefix: str, left: int) -> None:
        if left < 0:
            raise LimitError("its Avro schema is nested deeper than the limits allow")
        for branch in node if isinstance(node, list) else [node]:
            resolved = names.get(branch, branch) if isinstance(branch, str) else branch
            if isinstance(resolved, dict) and resolved.get("type") == "record":
                _remember(names, resolved)
                for entry in _fields(resolved):
                    found.add(prefix + entry["name"])
                    if len(found) > limits.schema_fields:
                        raise LimitError(f"its Avro schema has more than {limits.schema_fields} fields")
                    visit(entry["type"], f"{prefix}{entry['name']}.", left - 1)
            elif isinstance(resolved, dict) and isinstance(resolved.get("type"), (dict, list)):
                visit(resolved["type"], prefix, left - 1)

    visit(tree, "", limits.avro_depth)
    return found


def _fields(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    fields = record.get("fields")
    if not isinstance(fields, list) or not all(
        isinstance(f, dict) and isinstance(f.get("name"), str) and "type" in f for f in fields
    ):
        raise FormatError(f"its Avro schema has a record {record.get('name')!r} without proper fields")
    return fields


def _remember(names: dict[str, Any], node: Mapping[str, Any]) -> None:
    name = node.get("name")
    if isinstance(name, str):
        names[name.rpartition(".")[2]] = node
        names[name] = node
        if isinstance(node.get("namespace"), str):
            names[f"{node['namespace']}.{name}"] = node


def wanted_paths(profile: AlertProfile) -> list[str]:
    """Every scalar path of the profile, each once."""
    alert, time, bright = profile.alert, profile.alert.time, profile.alert.brightness
    stamps, reference = profile.alert.stamps, profile.alert.reference
    paths = [
        alert.alert_id,
        *alert.object_id,
        alert.ra,
        alert.dec,
        time.field,
        time.exposure,
        alert.band.field,
    ]
    paths += [bright.mag, bright.mag_err, bright.mag_limit, bright.flux, bright.flux_err]
    paths += [bright.positive, bright.negative, stamps.science, stamps.template, stamps.difference]
    if reference:
        paths += [reference.mag, reference.mag_err, reference.field, reference.quadrant, reference.image]
    return list(dict.fromkeys(path for path in paths if path))


class _Compiler:
    """Turns a schema tree into a `Program`; one use each."""

    def __init__(
        self,
        tree: Any,
        profile: AlertProfile | None,
        limits: Limits = DEFAULT_LIMITS,
        *,
        history: bool = True,
    ) -> None:
        self.tree, self.profile, self.limits = tree, profile, limits
        self.code: list[list[int]] = []
        self.jumps: list[int] = []
        self.names: dict[str, Any] = {}
        self.wanted = wanted_paths(profile) if profile else []
        self.slots: dict[str, int] = {path: number for number, path in enumerate(self.wanted)}
        self.candidate: dict[str, int] = {}
        self.arrays: dict[str, int] = {}
        if profile and history:
            self.arrays = {entry.array: number for number, entry in enumerate(profile.alert.history)}

    def compile(self) -> Program:
        self.emit(self.tree, "", None, 0)
        self.add(k.END)
        code = np.array(self.code, np.int32).reshape(-1, 4)
        jumps = np.array(self.jumps or [0], np.int32)
        return Program(code, jumps, self.slots, tuple(self.candidate.items()))

    def add(self, operation: int, slot: int = -1, a: int = 0, b: int = 0) -> int:
        if len(self.code) >= INSTRUCTIONS_PER_FIELD * self.limits.schema_fields:
            raise LimitError(f"its Avro schema has more than {self.limits.schema_fields} fields")
        self.code.append([operation, slot, a, b])
        return len(self.code) - 1

    def slot(self, path: str, history: int | None) -> int:
        if self.profile is None or "[]" in path:
            return -1
        if history is not None:
            entry = self.profile.alert.history[history]
            name = path[len(entry.array) + 1 :]
            columns = [c for c in HISTORY_COLUMNS[1:] if getattr(entry, c) == name]
            return -2 - HISTORY_COLUMNS.index(columns[0]) if columns else -1
        prefix = self.profile.alert.candidate + "."
        if path.startswith(prefix):
            number = self.slots.setdefault(path, len(self.slots))
            self.candidate[path[len(prefix) :]] = number
            return number
        return self.slots.get(path, -1)

    def emit(self, node: Any, path: str, history: int | None, depth: int) -> None:
        if depth > self.limits.avro_depth:
            raise LimitError("its Avro schema is nested deeper than the limits allow, or contains itself")
        if isinstance(node, list):
            self.union(node, path, history, depth)
        elif isinstance(node, str):
            if node in PRIMITIVES:
                self.add(PRIMITIVES[node], self.slot(path, history))
            elif node in self.names:
                self.emit(self.names[node], path, history, depth + 1)
            else:
                raise FormatError(f"its Avro schema uses the unknown type {node!r}")
        elif isinstance(node, dict):
            self.named(node, path, history, depth)
        else:
            raise FormatError(f"its Avro schema has {node!r} where a type is expected")

    def named(self, node: Mapping[str, Any], path: str, history: int | None, depth: int) -> None:
        kind = node.get("type")
        if kind in ("record", "enum", "fixed"):
            _remember(self.names, node)
        if kind == "record":
            for entry in _fields(node):
                self.emit(
                    entry["type"], f"{path}.{entry['name']}" if path else entry["name"], history, depth + 1
                )
        elif kind in ("array", "map"):
            self.repeated(node, path, history, depth)
        elif kind == "enum":
            self.add(k.LONG, self.slot(path, history))
        elif kind == "fixed":
            size = node.get("size")
            if not isinstance(size, int) or not 0 <= size <= self.limits.packet_bytes:
                raise FormatError(f"its Avro schema has a fixed type of {size!r} bytes")
            self.add(k.FIXED, self.slot(path, history), 0, size)
        else:  # {"type": "string", ...}: attributes around a simpler type
            self.emit(kind, path, history, depth + 1)

    def union(self, branches: Sequence[Any], path: str, history: int | None, depth: int) -> None:
        simple = [
            b["type"] if isinstance(b, dict) and isinstance(b.get("type"), str) else b for b in branches
        ]
        if len(branches) == 2 and "null" in simple:
            other = 1 - simple.index("null")
            kind = simple[other]
            if isinstance(kind, str) and kind in PRIMITIVES and kind != "null":
                self.add(k.OPTIONAL + PRIMITIVES[kind], self.slot(path, history), other)
                return
        start = self.add(k.UNION, -1, len(branches), len(self.jumps))
        table = len(self.jumps)
        self.jumps += [0] * len(branches)
        leaves = []
        for number, branch in enumerate(branches):
            self.jumps[table + number] = len(self.code)
            self.emit(branch, path, history, depth + 1)
            leaves.append(self.add(k.JUMP))
        for leaf in leaves:
            self.code[leaf][2] = len(self.code)
        self.code[start][3] = table

    def repeated(self, node: Mapping[str, Any], path: str, history: int | None, depth: int) -> None:
        inner = self.arrays.get(path) if history is None and node["type"] == "array" else None
        # an array within a wanted one, or an unwanted one: stepped over
        mark = -2 if inner is not None else -1
        number = inner if inner is not None else 0
        begin = self.add(k.ARRAY if node["type"] == "array" else k.MAP, mark, 0, number)
        first = len(self.code)
        if node["type"] == "map":
            self.add(k.BYTES)
        content = node.get("items") if node["type"] == "array" else node.get("values")
        self.emit(content, path if inner is not None else f"{path}[]", inner, depth + 1)
        self.add(k.LOOP, mark, first, number)
        self.code[begin][2] = len(self.code)
