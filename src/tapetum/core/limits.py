"""Caps that every parser obeys, so that no input can exhaust the machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Upper bounds on what is read from outside.

    Attributes
    ----------
    packet_bytes
        One alert packet, as stored in its container [bytes].
    block_bytes
        One block of an Avro container, which may hold many packets [bytes].
    stamp_bytes
        One stamp after decompression [bytes].
    stamp_pixels
        Longest side of a stamp [pixel].
    avro_depth
        Nesting of records, arrays and unions in a schema.
    array_items
        Items of all Avro arrays of a packet together, for instance the history of an alert.
    schema_bytes
        One Avro schema as JSON text [bytes].
    schema_fields
        Fields of one schema, a type counted each time it is used.
    archive_members
        Members of one tar archive.
    archive_bytes
        Sum of the members of one archive after decompression [bytes]; they are never held together.
    """

    packet_bytes: int = 16 * 2**20
    block_bytes: int = 256 * 2**20
    stamp_bytes: int = 8 * 2**20
    stamp_pixels: int = 1024
    avro_depth: int = 32
    array_items: int = 100_000
    schema_bytes: int = 4 * 2**20
    schema_fields: int = 20_000
    archive_members: int = 5_000_000
    archive_bytes: int = 2**40


DEFAULT_LIMITS = Limits()
