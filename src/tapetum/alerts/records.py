"""Whole records: a packet as a dictionary, and packets written back into containers."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any

from tapetum.alerts.containers import AVRO_MAGIC, SYNC_BYTES, Packet
from tapetum.core.errors import FormatError
from tapetum.core.files import whole_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from tapetum.alerts.schema import AlertSchema


def to_record(packet: Packet) -> dict[str, Any]:
    """Every field of a packet.

    Raises
    ------
    FormatError
        The body is not a record of its schema.
    """
    import fastavro

    packet.schema.check(packet.body)
    try:
        record: dict[str, Any] = fastavro.schemaless_reader(
            io.BytesIO(packet.body), packet.schema.parsed, None
        )
    except (ValueError, UnicodeDecodeError) as problem:
        raise FormatError(f"{packet.source}, record {packet.record}: {problem}") from None
    return record


def to_body(record: Mapping[str, Any], schema: AlertSchema) -> bytes:
    """The Avro body of a record.

    Raises
    ------
    FormatError
        The record does not fit the schema.
    """
    import fastavro

    out = io.BytesIO()
    try:
        fastavro.schemaless_writer(out, schema.parsed, record, strict_allow_default=True)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as problem:
        raise FormatError(f"a record does not fit its schema: {problem}") from None
    return out.getvalue()


def write_container(path: Path, packets: Iterable[Packet]) -> int:
    """Write packets of one schema as an Avro object container, each body byte for byte; the number written.

    Raises
    ------
    FormatError
        The packets have different schemas, or there are none.
    """
    with whole_file(path) as part, part.open("wb") as handle:
        sync, schema, n_packets = b"", None, 0
        for packet in packets:
            if schema is None:
                schema = packet.schema
                sync = hashlib.sha256(schema.text.encode() + packet.body).digest()[:SYNC_BYTES]
                handle.write(container_header(schema, sync))
            if packet.schema.fingerprint != schema.fingerprint:
                raise FormatError(f"{path}: a container holds one schema, and these packets have several")
            handle.write(encode_long(1) + encode_long(len(packet.body)) + packet.body + sync)
            n_packets += 1
        if schema is None:
            raise FormatError(f"{path}: no packets to write")
    return n_packets


def container_header(schema: AlertSchema, sync: bytes) -> bytes:
    """Magic, metadata and sync marker of a container (Avro specification 1.11, "Object container files")."""
    text = schema.text.encode()
    entries = (b"avro.schema", text), (b"avro.codec", b"null")
    content = b"".join(
        encode_long(len(key)) + key + encode_long(len(value)) + value for key, value in entries
    )
    return AVRO_MAGIC + encode_long(len(entries)) + content + encode_long(0) + sync


def encode_long(value: int) -> bytes:
    """A zigzag variable-length integer of a value that is not negative, as Avro writes lengths and ids."""
    rest, out = value << 1, bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)
