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
    image_pixels
        Pixels of one image or of one plane of a cube; 2**28 are 1 GiB in memory.
    image_side
        Longest side of an image [pixel].
    image_file_bytes
        A gzipped FITS file after decompression [bytes].
    header_bytes
        The header of one part of a FITS file [bytes].
    fits_parts
        Header-and-data units of one FITS file.
    list_entries
        Lines of one ``.list`` file of images.
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
    image_pixels: int = 2**28
    image_side: int = 2**17
    image_file_bytes: int = 4 * 2**30
    header_bytes: int = 16 * 2**20
    fits_parts: int = 4096
    list_entries: int = 1_000_000


DEFAULT_LIMITS = Limits()
