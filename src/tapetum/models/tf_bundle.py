"""Read the variables of a TensorFlow 2 SavedModel or checkpoint without TensorFlow.

``variables.index`` is a sorted table (LevelDB's format): an entry says type, shape, place and checksum of each
variable, whose bytes lie in ``variables.data-*``. One more entry holds the graph of the Python objects that owned the
variables; from it the arrays get their names. Only data are read: the network's graph, ``saved_model.pb``, is never
opened, and nothing is executed.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tapetum.core.errors import FormatError, InputError, LimitError
from tapetum.models._crc32c import crc32c, masked_crc32c

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

INDEX_NAME = "variables.index"
INDEX_BYTES = 16 * 2**20
WEIGHT_BYTES = 2 * 2**30
GRAPH_BYTES = 8 * 2**20
MAX_ENTRIES = 100_000
MAX_SHARDS = 1000
MAX_DIMENSIONS = 16
MAX_NAME = 1000  # characters; both formats store what names share only once

MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
TRAILER_BYTES = 5  # compression, checksum
FLOAT, STRING = 1, 7  # DataType of TensorFlow
GRAPH_KEY = b"_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE = b"VARIABLE_VALUE"
# what Keras hangs beside the layers; variables are reached through these too, under numbers
BOOKKEEPING = {
    b"variables",
    b"trainable_variables",
    b"non_trainable_variables",
    b"regularization_losses",
    b"layers",
    b"metrics",
    b"keras_api",
    b"signatures",
}
SHORT = {"activation/alpha": "prelu"}  # a layer's own activation layer

Message = dict[int, list[int | bytes]]


class _BrokenError(ValueError):
    """The bytes are not what the format says."""


@dataclass(frozen=True)
class _Entry:
    """Where a variable lies."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    n_bytes: int
    crc32c: int


def find_bundle(path: Path) -> Path | None:
    """Folder with the ``variables.index`` of a SavedModel or of its ``variables`` folder; None if there is none."""
    return next((folder for folder in (path, path / "variables") if (folder / INDEX_NAME).is_file()), None)


def read_bundle(folder: Path) -> dict[str, NDArray[np.float32]]:
    """The float32 variables of a SavedModel.

    Parameters
    ----------
    folder
        With ``variables.index`` and ``variables.data-*``; every checksum is checked.

    Returns
    -------
    dict of str to ndarray of float32
        ``<layer>/<kind>`` -> array in TensorFlow's axis order, sorted by name; the kinds are ``kernel``, ``bias``,
        ``prelu`` (slopes of an activation that belongs to the layer) and whatever else the objects were called.

    Raises
    ------
    InputError
        A file is missing or cannot be read.
    FormatError
        Not such files, damaged, compressed, big-endian or partitioned.
    LimitError
        Larger than any network should be.
    """
    index = folder / INDEX_NAME
    try:
        if index.stat().st_size > INDEX_BYTES:
            raise LimitError(f"{index}: larger than the {INDEX_BYTES} bytes allowed")
        n_shards, entries = _read_index(index.read_bytes())
        graph = entries.get(GRAPH_KEY)
        if graph is None:
            raise _BrokenError("has no object graph; only what TensorFlow 2 wrote can be read")
        names = _variable_names(_string(folder, n_shards, graph))
        if sum(entries[key].n_bytes for key in names if key in entries) > WEIGHT_BYTES:
            raise LimitError(f"{index}: more than the {WEIGHT_BYTES} bytes of weights allowed")
        found = {name: _array(folder, n_shards, key, entries) for key, name in names.items()}
    except _BrokenError as problem:
        raise FormatError(f"{index}: {problem}") from None
    except OSError as problem:
        raise InputError(f"{folder}: {problem.strerror or problem}") from None
    return {name: values for name, values in sorted(found.items()) if values is not None}


def arrays_sha256(arrays: Mapping[str, NDArray[np.float32]]) -> str:
    """Identity of named arrays, whatever files they come from: names, shapes and values, by name."""
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values, dtype="<f4").tobytes())
    return digest.hexdigest()


# --- protocol buffers ---


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = 0
    for i in range(10):
        if at + i >= len(data):
            break
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at + i + 1
    raise _BrokenError("a number does not end")


def _slice(data: bytes, at: int, n: int) -> bytes:
    if n > len(data) - at:
        raise _BrokenError("cut off")
    return data[at : at + n]


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message, in order."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        value: int | bytes
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 2:
            n, at = _varint(data, at)
            value = _slice(data, at, n)
            at += n
        elif kind in (1, 5):
            n = 8 if kind == 1 else 4
            value = int.from_bytes(_slice(data, at, n), "little")
            at += n
        else:
            raise _BrokenError(f"a field of the unknown kind {kind}")
        yield tag >> 3, value


def _message(data: bytes) -> Message:
    fields: Message = {}
    for number, value in _fields(data):
        fields.setdefault(number, []).append(value)
    return fields


def _number(fields: Message, number: int) -> int:
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int):
        raise _BrokenError(f"field {number} is not a number")
    return value


def _texts(fields: Message, number: int) -> list[bytes]:
    return [value for value in fields.get(number, []) if isinstance(value, bytes)]


def _text(fields: Message, number: int) -> bytes:
    return (_texts(fields, number) or [b""])[-1]


# --- the sorted table ---


def _block(table: bytes, handle: bytes, at: int = 0) -> tuple[bytes, int]:
    """The block that a handle points at, and where the handle ends."""
    offset, at = _varint(handle, at)
    n, at = _varint(handle, at)
    stored = _slice(table, offset, n + TRAILER_BYTES)
    compression, checksum = struct.unpack("<BI", stored[n:])
    if masked_crc32c(stored[: n + 1]) != checksum:
        raise _BrokenError(f"the checksum of the block at byte {offset} is wrong: damaged, get it again")
    if compression:
        raise _BrokenError(f"compressed (kind {compression}), which no SavedModel is")
    return stored[:n], at


def _rows(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of each row of a block; a key is stored as what differs from the one before."""
    n_restarts = int.from_bytes(_slice(block, max(len(block) - 4, 0), 4), "little")
    end = len(block) - 4 - 4 * n_restarts
    if end < 0:
        raise _BrokenError("a block without rows")
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        n_new, at = _varint(block, at)
        n_value, at = _varint(block, at)
        if shared > len(key) or at + n_new + n_value > end:
            raise _BrokenError("a row goes beyond its block")
        if shared + n_new > MAX_NAME:
            raise _BrokenError(f"a name of more than {MAX_NAME} characters")
        key = key[:shared] + block[at : at + n_new]
        at += n_new
        yield key, block[at : at + n_value]
        at += n_value


def _read_index(table: bytes) -> tuple[int, dict[bytes, _Entry]]:
    """Number of data files, and entries by key."""
    footer = table[-FOOTER_BYTES:]
    if len(footer) < FOOTER_BYTES or int.from_bytes(footer[-8:], "little") != MAGIC:
        raise _BrokenError("not the index of TensorFlow variables")
    at = 0
    for _ in range(2):  # the first handle is of a block about the table, which these tables leave empty
        _, at = _varint(footer, at)
    top, _ = _block(table, footer, at)
    rows: dict[bytes, bytes] = {}
    left = len(table)
    for _, handle in _rows(top):
        block, _ = _block(table, handle)
        left -= len(block)
        if left < 0:
            raise _BrokenError("its blocks lie on each other")
        for key, value in _rows(block):
            if key in rows:
                raise _BrokenError(f"{key!r} is there twice")
            rows[key] = value
            if len(rows) > MAX_ENTRIES:
                raise _BrokenError(f"more than {MAX_ENTRIES} entries")
    n_shards = _n_shards(rows.pop(b"", None))
    return n_shards, {key: _entry(key, value) for key, value in rows.items()}


def _n_shards(header: bytes | None) -> int:
    if header is None:
        raise _BrokenError("has no header")
    fields = _message(header)
    if _number(fields, 2) != 0:
        raise _BrokenError("written by a big-endian machine")
    if _number(_message(_text(fields, 3)), 2) > 1:
        raise _BrokenError("of a later version of the format")
    n_shards = _number(fields, 1)
    if not 1 <= n_shards <= MAX_SHARDS:
        raise _BrokenError(f"says it has {n_shards} data files")
    return n_shards


def _entry(key: bytes, value: bytes) -> _Entry:
    fields = _message(value)
    if 7 in fields:
        raise _BrokenError(f"{key!r} is partitioned")
    dims = _texts(_message(_text(fields, 2)), 2)
    if len(dims) > MAX_DIMENSIONS:
        raise _BrokenError(f"{key!r} has {len(dims)} dimensions")
    shape = tuple(_number(_message(dim), 1) for dim in dims)
    return _Entry(
        _number(fields, 1),
        shape,
        _number(fields, 3),
        _number(fields, 4),
        _number(fields, 5),
        _number(fields, 6),
    )


# --- the data files ---


def _data(folder: Path, n_shards: int, entry: _Entry) -> bytes:
    if entry.shard >= n_shards:
        raise _BrokenError(f"an entry lies in data file {entry.shard} of {n_shards}")
    path = folder / f"variables.data-{entry.shard:05d}-of-{n_shards:05d}"
    with path.open("rb") as handle:
        if entry.offset + entry.n_bytes > path.stat().st_size:
            raise _BrokenError(f"{path.name} is cut off")
        handle.seek(entry.offset)
        return handle.read(entry.n_bytes)


def _array(
    folder: Path, n_shards: int, key: bytes, entries: Mapping[bytes, _Entry]
) -> NDArray[np.float32] | None:
    """A variable; None when it is not float32."""
    entry = entries.get(key)
    if entry is None:
        raise _BrokenError(f"{key!r} is in the object graph and not in the index")
    if entry.dtype != FLOAT:
        return None
    if 4 * math.prod(entry.shape) != entry.n_bytes:
        raise _BrokenError(f"{key!r} has the shape {entry.shape} and {entry.n_bytes} bytes")
    data = _data(folder, n_shards, entry)
    if masked_crc32c(data) != entry.crc32c:
        raise _BrokenError(f"the checksum of {key!r} is wrong: damaged, get it again")
    return np.frombuffer(data, dtype="<f4").reshape(entry.shape).astype(np.float32)


def _string(folder: Path, n_shards: int, entry: _Entry) -> bytes:
    """A single text: its length, the checksum of the length, the text."""
    if entry.dtype != STRING or entry.shape:
        raise _BrokenError("the object graph is not a text")
    if entry.n_bytes > GRAPH_BYTES:
        raise LimitError(f"{folder / INDEX_NAME}: an object graph of more than {GRAPH_BYTES} bytes")
    data = _data(folder, n_shards, entry)
    n, at = _varint(data, 0)
    text = _slice(data, at + 4, n)
    # the checksum is over the length as a fixed number, then over its own stored form, then over the text
    lengths = crc32c(struct.pack("<I" if n < 2**32 else "<Q", n))
    if masked_crc32c(data[at:], lengths) != entry.crc32c or len(data) != at + 4 + n:
        raise _BrokenError("the checksum of the object graph is wrong: damaged, get it again")
    return text


# --- the object graph ---


def _variable_names(graph: bytes) -> dict[bytes, str]:
    """Key in the index -> name, the shortest path of Python attributes to the variable, bookkeeping left out."""
    nodes = _texts(_message(graph), 1)
    names: dict[bytes, str] = {}
    paths = {0: ""}
    queue = deque([0] if nodes else [])
    while queue:
        node = queue.popleft()
        owner = _message(nodes[node])
        for attribute in _texts(owner, 2):
            fields = _message(attribute)
            if _text(fields, 1) == VALUE:
                names[_text(fields, 3)] = _short(paths[node])
        for child in _texts(owner, 1):
            fields = _message(child)
            local, number = _text(fields, 2), _number(fields, 1)
            if number >= len(nodes):
                raise _BrokenError("the object graph names an object that it does not have")
            if number not in paths and local not in BOOKKEEPING:
                paths[number] = f"{paths[node]}/{local.decode('utf-8', 'replace')}".lstrip("/")
                if len(paths[number]) > MAX_NAME:
                    raise _BrokenError(f"a name of more than {MAX_NAME} characters")
                queue.append(number)
    if len(set(names.values())) != len(names):
        raise _BrokenError("two variables have the same name")
    return names


def _short(path: str) -> str:
    layer, _, kind = path.partition("/")
    return f"{layer}/{SHORT.get(kind, kind)}" if kind else layer
