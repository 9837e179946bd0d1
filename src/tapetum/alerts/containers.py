"""Avro containers and bare records, read from a stream a block at a time.

Layout: Apache Avro specification 1.11, "Object container files". Nothing is trusted: every length is compared
with the limits before it is obeyed, and every block's sync marker is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import isal.isal_zlib

from tapetum.alerts.batch import Rejection
from tapetum.alerts.schema import AlertSchema, load_schema
from tapetum.core.errors import FormatError, InputError, LimitError
from tapetum.core.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

AVRO_MAGIC = b"Obj\x01"
SYNC_BYTES = 16
CONFLUENT_PREFIX = 5  # a zero byte and the schema's number in its registry
LONGEST_VARINT = 10
MOST_METADATA = 1000
CHUNK = 2**18  # most packets come with one read


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


class Window:
    """A stream seen through a window that holds what is needed and no more; it reads like a file that cannot seek.

    What lies behind `mark` is let go when more is read.
    """

    def __init__(self, stream: IO[bytes] | None, data: bytes = b"") -> None:
        self.stream, self.data, self.at, self.mark = stream, data, 0, 0

    def has(self, n_bytes: int) -> bool:
        """Whether so many bytes are left; reads them if need be."""
        while len(self.data) - self.at < n_bytes:
            more = self.stream.read(max(CHUNK, n_bytes - (len(self.data) - self.at))) if self.stream else b""
            if not more:
                return False
            self.data = self.data[self.mark :] + more if self.data else more
            self.at -= self.mark
            self.mark = 0
        return True

    def peek(self, n_bytes: int) -> bytes:
        """The next bytes, without going on."""
        self.has(n_bytes)
        return self.data[self.at : self.at + n_bytes]

    def take(self, n_bytes: int) -> bytes:
        """The next bytes.

        Raises
        ------
        FormatError
            The stream ends before.
        """
        if not self.has(n_bytes):
            raise FormatError("the file is truncated")
        self.at += n_bytes
        return self.data[self.at - n_bytes : self.at]

    def read(self, size: int = -1) -> bytes:
        """The next bytes, as a file gives them."""
        if size < 0:
            while self.has(len(self.data) - self.at + 1):
                pass
            size = len(self.data) - self.at
        part = self.peek(size)
        self.at += len(part)
        self.mark = self.at
        return part

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as there is something left, as a file does; the number of bytes."""
        part = self.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)

    def varint(self) -> int:
        """The next integer, zigzag and of variable length.

        Raises
        ------
        FormatError
            The stream ends before it does, or it is longer than 64 bits.
        """
        self.has(LONGEST_VARINT)
        value = shift = 0
        for position in range(self.at, min(self.at + LONGEST_VARINT, len(self.data))):
            byte = self.data[position]
            value |= (byte & 0x7F) << shift
            if byte < 128:
                self.at = position + 1
                return (value >> 1) ^ -(value & 1)
            shift += 7
        raise FormatError("the file is truncated")

    def held(self, n_bytes: int) -> bytes:
        """What the window still holds from `mark` on, `n_bytes` at most."""
        return self.data[self.mark : self.mark + n_bytes]


def read_container(
    content: Window | bytes, source: str, limits: Limits = DEFAULT_LIMITS
) -> Iterator[Packet | Rejection]:
    """The records of one Avro object container file.

    A block without its sync marker is not trusted, and ends the container, since nothing after it can be located. A
    damaged record costs the rest of its block.

    Parameters
    ----------
    content
        The file: a stream, or all of its bytes.
    source
        Its name.
    """
    window = Window(None, content) if isinstance(content, bytes) else content
    record = 0
    try:
        schema, codec, sync = _read_header(window, limits)
        while window.has(1):
            count, block = _read_block(window, codec, sync, limits)
            at = 0
            try:
                for body in schema.split(block, count, limits):
                    yield Packet(source, record, schema, body)
                    record += 1
                    at += len(body)
            except InputError as problem:
                yield Rejection(source, record, str(problem), block[at : at + limits.packet_bytes])
                record += 1
            window.mark = window.at
        if record == 0:
            raise FormatError("the file holds no record")
    except InputError as problem:
        yield Rejection(source, record, str(problem), window.held(limits.packet_bytes))


def read_bare(
    data: bytes, source: str, schema: AlertSchema, limits: Limits = DEFAULT_LIMITS
) -> Packet | Rejection:
    """One record without container, with or without the Confluent prefix, in a schema known from elsewhere."""
    if len(data) > limits.packet_bytes:
        reason = f"the packet is longer than {limits.packet_bytes} bytes"
        return Rejection(source, 0, reason, data[: limits.packet_bytes])
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


def _read_header(window: Window, limits: Limits) -> tuple[AlertSchema, str, bytes]:
    if window.take(len(AVRO_MAGIC)) != AVRO_MAGIC:
        raise FormatError("not an Avro container")
    entries: dict[bytes, bytes] = {}
    while count := window.varint():
        if count < 0:
            window.varint()  # the size of this part of the metadata, which is read anyway
        if len(entries) + abs(count) > MOST_METADATA:
            raise FormatError("the Avro header is damaged")
        for _ in range(abs(count)):
            key = _read_bytes(window, limits)
            entries[key] = _read_bytes(window, limits)
    sync = window.take(SYNC_BYTES)
    if b"avro.schema" not in entries:
        raise FormatError("the Avro header has no schema")
    codec = entries.get(b"avro.codec", b"null").decode("ascii", "replace")
    return load_schema(entries[b"avro.schema"], limits), codec, sync


def _read_bytes(window: Window, limits: Limits) -> bytes:
    size = window.varint()
    if not 0 <= size <= limits.schema_bytes:
        raise FormatError("the Avro header is damaged, or its schema is longer than the limits allow")
    return window.take(size)


def _read_block(window: Window, codec: str, sync: bytes, limits: Limits) -> tuple[int, bytes]:
    """Number of records and content of the next block."""
    count, size = window.varint(), window.varint()
    if not 0 <= size <= limits.block_bytes:
        raise LimitError(f"a block claims {size} bytes, more than {limits.block_bytes}: is the file damaged?")
    payload, marker = window.take(size), window.take(SYNC_BYTES)
    if marker != sync:
        raise FormatError("the sync marker after a block is wrong: the file is damaged")
    block = _decompress(payload, codec, limits)
    if not 0 <= count <= len(block):
        raise FormatError(f"a block claims {count} records in {len(block)} bytes: the file is damaged")
    return count, block


def _decompress(payload: bytes, codec: str, limits: Limits) -> bytes:
    if codec == "null":
        return payload
    if codec != "deflate":
        raise FormatError(f"Avro codec {codec!r} is not supported (null and deflate are)")
    stream = isal.isal_zlib.decompressobj(wbits=-15)
    try:
        data: bytes = stream.decompress(payload, max_length=limits.block_bytes)
    except isal.isal_zlib.error as problem:
        raise FormatError(f"a compressed block is damaged: {problem}") from None
    if not stream.eof:
        raise LimitError(f"a compressed block is truncated, or larger than {limits.block_bytes} bytes")
    return data
