"""Packets found in files: Avro containers, tar archives, folders, bare records with a given schema, brokers' Parquet.

Whatever the source, what comes out is the Avro body of one record and its schema. A source or record that
cannot be read comes out as a `Rejection`, and the rest goes on.
"""

from __future__ import annotations

import bz2
import lzma
import os
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import isal.igzip
import isal.isal_zlib

from tapetum.alerts.batch import Rejection
from tapetum.alerts.schema import AlertSchema, load_schema
from tapetum.core.errors import FormatError, InputError, LimitError
from tapetum.core.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

AVRO_MAGIC = b"Obj\x01"
PARQUET_MAGIC = b"PAR1"
TAR_MAGIC = b"ustar"
TAR_MAGIC_AT = 257
HEAD_BYTES = 512
TAR_BUFFER = 2**17  # larger ones are slower
SYNC_BYTES = 16
CONFLUENT_PREFIX = 5  # a zero byte and the schema's number in its registry
OUR_SUFFIXES = (".avro", ".parquet", ".tar", ".tgz", ".gz", ".xz", ".bz2", ".txz")
OPENERS: dict[bytes, Callable[[Path], IO[bytes]]] = {
    b"\x1f\x8b": lambda path: isal.igzip.open(path, "rb"),
    b"\xfd7zXZ": lambda path: lzma.open(path, "rb"),  # noqa: SIM115 - the caller closes it
    b"BZh": lambda path: bz2.open(path, "rb"),  # noqa: SIM115
}
READ_ERRORS = (OSError, EOFError, zlib.error, isal.isal_zlib.error, lzma.LZMAError, tarfile.TarError)


@dataclass(frozen=True, slots=True)
class Packet:
    """The Avro body of one alert.

    Attributes
    ----------
    source
        File, or ``archive:member``.
    record
        0-based record within the source.
    schema
        Shared by all packets of the same schema text.
    body
        The record, without container header or framing.
    """

    source: str
    record: int
    schema: AlertSchema
    body: bytes


def iter_packets(
    paths: Iterable[str | Path], schema: AlertSchema | None = None, limits: Limits = DEFAULT_LIMITS
) -> Iterator[Packet | Rejection]:
    """Every packet of `paths`, in order; folders are walked in the order of their names.

    Parameters
    ----------
    paths
        Files or folders. What a file is, is decided by its content, not by its suffix.
    schema
        Schema of bare records (headerless or Confluent-framed); without it such files are rejected.

    Yields
    ------
    Packet or Rejection
        A rejection for each source or record that cannot be read, with its bytes where they could be cut out.
    """
    for path in paths:
        name = os.fspath(path)
        for file in _files_in(name) if os.path.isdir(name) else (name,):  # noqa: PTH112 - once per packet
            yield from _read_file(file, schema, limits)


def read_container(data: bytes, source: str, limits: Limits = DEFAULT_LIMITS) -> Iterator[Packet | Rejection]:
    """The records of one Avro object container file.

    Every block's sync marker is checked: a block without it is not trusted. A damaged block ends the container, since
    nothing after it can be located.

    Source of the layout: Apache Avro specification 1.11, "Object container files".
    """
    record = 0
    try:
        schema, codec, sync, position = _read_header(data, limits)
        while position < len(data):
            count, size, position = _read_block_head(data, position, limits)
            payload, marker = (
                data[position : position + size],
                data[position + size : position + size + SYNC_BYTES],
            )
            if len(payload) < size or len(marker) < SYNC_BYTES:
                raise FormatError("the file is truncated")
            if marker != sync:
                raise FormatError("the sync marker after a block is wrong: the file is damaged")
            for body in schema.split(_decompress(payload, codec, limits), count, limits):
                yield Packet(source, record, schema, body)
                record += 1
            position += size + SYNC_BYTES
        if record == 0:
            raise FormatError("the file holds no record")
    except InputError as problem:
        yield Rejection(source, record, str(problem), data)


def read_bare(
    data: bytes, source: str, schema: AlertSchema, limits: Limits = DEFAULT_LIMITS
) -> Packet | Rejection:
    """One record without container, with or without the Confluent prefix, in a schema known from elsewhere."""
    if not data:
        return Rejection(source, 0, "the file is empty", data)
    if len(data) > limits.packet_bytes:
        return Rejection(
            source, 0, f"the packet is {len(data)} bytes long, more than {limits.packet_bytes}", b""
        )
    starts = [CONFLUENT_PREFIX, 0] if data[:1] == b"\x00" else [0]
    reason = ""
    for start in starts:
        body = data[start:]
        try:
            schema.check(body, limits)
        except InputError as problem:
            reason = str(problem)
        else:
            return Packet(source, 0, schema, body)
    return Rejection(source, 0, f"not a record of the schema given: {reason}", data)


def _files_in(folder: str) -> Iterator[str]:
    """What a folder holds that may be packets, by name; a folder's own files before those of its subfolders."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = f"{root}{os.sep}{name}"
            if not name.startswith(".") and (name.lower().endswith(OUR_SUFFIXES) or _looks_familiar(path)):
                yield path


def _read_file(source: str, schema: AlertSchema | None, limits: Limits) -> Iterator[Packet | Rejection]:
    try:
        with open(source, "rb", buffering=0) as handle:  # noqa: PTH123 - half the time of Path.open
            head = handle.read(HEAD_BYTES)
            size = os.fstat(handle.fileno()).st_size
            opener = next((opener for start, opener in OPENERS.items() if head.startswith(start)), None)
            if not head:
                yield Rejection(source, -1, "the file is empty")
            elif head.startswith(PARQUET_MAGIC):
                yield from _read_parquet(Path(source), limits)
            elif opener is not None:
                yield from _read_compressed(Path(source), opener, schema, limits)
            elif head[TAR_MAGIC_AT:].startswith(TAR_MAGIC):
                with Path(source).open("rb") as archive:
                    yield from _read_tar(archive, source, schema, limits)
            elif size > limits.archive_bytes:
                yield Rejection(source, -1, f"the file is larger than {limits.archive_bytes} bytes")
            else:
                handle.seek(0)
                yield from _read_bytes(handle.read(), source, schema, limits)
    except READ_ERRORS as problem:
        yield Rejection(source, -1, _explain(problem))


def _read_bytes(
    data: bytes, source: str, schema: AlertSchema | None, limits: Limits
) -> Iterator[Packet | Rejection]:
    if data.startswith(AVRO_MAGIC):
        yield from read_container(data, source, limits)
    elif schema is not None:
        yield read_bare(data, source, schema, limits)
    elif not data:
        yield Rejection(source, -1, "the file is empty")
    else:
        reason = "not an Avro container, tar archive or Parquet file; "
        reason += "a bare record needs its schema (--schema FILE.avsc)"
        yield Rejection(source, -1, reason, data[: limits.packet_bytes])


def _read_compressed(
    path: Path, opener: Callable[[Path], IO[bytes]], schema: AlertSchema | None, limits: Limits
) -> Iterator[Packet | Rejection]:
    with opener(path) as handle:
        head = handle.read(HEAD_BYTES)
        handle.seek(0)
        if head[TAR_MAGIC_AT:].startswith(TAR_MAGIC):
            yield from _read_tar(handle, str(path), schema, limits)
            return
        data = handle.read(limits.packet_bytes + 1)
    if len(data) > limits.packet_bytes:
        yield Rejection(str(path), -1, f"more than {limits.packet_bytes} bytes after decompression")
    else:
        yield from _read_bytes(data, str(path), schema, limits)


def _read_tar(
    handle: IO[bytes], source: str, schema: AlertSchema | None, limits: Limits
) -> Iterator[Packet | Rejection]:
    total = 0
    with tarfile.open(fileobj=handle, mode="r|", bufsize=TAR_BUFFER) as archive:
        for number, member in enumerate(archive):
            name = f"{source}:{member.name}"
            if number >= limits.archive_members:
                yield Rejection(source, -1, f"more than {limits.archive_members} members")
                return
            if not member.isfile() or Path(member.name).name.startswith("."):
                continue
            total += member.size
            if total > limits.archive_bytes:
                yield Rejection(source, -1, f"more than {limits.archive_bytes} bytes after decompression")
                return
            if member.size > limits.packet_bytes:
                yield Rejection(
                    name, -1, f"the member is {member.size} bytes long, more than {limits.packet_bytes}"
                )
                continue
            content = archive.extractfile(member)
            yield from _read_bytes(content.read() if content else b"", name, schema, limits)


def _read_parquet(path: Path, limits: Limits) -> Iterator[Packet | Rejection]:
    import pyarrow as pa

    from tapetum.alerts.parquet import iter_bodies

    try:
        for record, (schema, body) in enumerate(iter_bodies(path, limits)):
            yield Packet(str(path), record, schema, body)
    except (pa.ArrowException, InputError) as problem:
        yield Rejection(str(path), -1, _explain(problem))


def _read_header(data: bytes, limits: Limits) -> tuple[AlertSchema, str, bytes, int]:
    if not data.startswith(AVRO_MAGIC):
        raise FormatError("not an Avro container")
    entries: dict[bytes, bytes] = {}
    count, position = _varint(data, len(AVRO_MAGIC))
    while count:
        if count < 0:
            _, position = _varint(data, position)
        for _ in range(min(abs(count), 1000)):
            key, position = _bytes(data, position, limits)
            entries[key], position = _bytes(data, position, limits)
        count, position = _varint(data, position)
    sync = data[position : position + SYNC_BYTES]
    if len(sync) < SYNC_BYTES or b"avro.schema" not in entries:
        raise FormatError("the Avro header is truncated or has no schema")
    codec = entries.get(b"avro.codec", b"null").decode("ascii", "replace")
    return load_schema(entries[b"avro.schema"], limits), codec, sync, position + SYNC_BYTES


def _read_block_head(data: bytes, position: int, limits: Limits) -> tuple[int, int, int]:
    count, position = _varint(data, position)
    size, position = _varint(data, position)
    if count < 0 or size < 0 or count > limits.array_items:
        raise FormatError(f"a block claims {count} records in {size} bytes: the file is damaged")
    return count, size, position


def _decompress(payload: bytes, codec: str, limits: Limits) -> bytes:
    if codec == "null":
        return payload
    if codec != "deflate":
        raise FormatError(f"Avro codec {codec!r} is not supported (null and deflate are)")
    try:
        data: bytes = isal.isal_zlib.decompressobj(wbits=-15).decompress(
            payload, max_length=limits.packet_bytes + 1
        )
    except isal.isal_zlib.error as problem:
        raise FormatError(f"a compressed block is damaged: {problem}") from None
    if len(data) > limits.packet_bytes:
        raise LimitError(f"a block is larger than {limits.packet_bytes} bytes after decompression")
    return data


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 128:
            return (value >> 1) ^ -(value & 1), position
        shift += 7
    raise FormatError("the file is truncated")


def _bytes(data: bytes, position: int, limits: Limits) -> tuple[bytes, int]:
    size, position = _varint(data, position)
    if size < 0 or size > limits.schema_bytes or position + size > len(data):
        raise FormatError("the Avro header is truncated or damaged")
    return data[position : position + size], position + size


def _looks_familiar(path: str) -> bool:
    try:
        with Path(path).open("rb") as handle:
            head = handle.read(HEAD_BYTES)
    except OSError:
        return True  # reading it will say why
    return head.startswith((AVRO_MAGIC, PARQUET_MAGIC, *OPENERS)) or head[TAR_MAGIC_AT:].startswith(TAR_MAGIC)


def _explain(problem: BaseException) -> str:
    if isinstance(problem, FileNotFoundError):
        return "no such file or folder"
    if isinstance(problem, InputError):
        return str(problem)
    text = " ".join(str(problem).split())
    return f"cannot be read: {text or type(problem).__name__}"
