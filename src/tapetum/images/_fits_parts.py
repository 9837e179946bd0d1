"""What a FITS file is made of, found without believing a word of it: every size is checked before anything is read."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import tempfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from tapetum.core.errors import FormatError, InputError, LimitError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tapetum.core.limits import Limits

BLOCK = 2880
CARD = 80
END = b"END" + b" " * 77
GZIP_MAGIC = b"\x1f\x8b"
IN_MEMORY = 64 * 2**20  # a decompressed file beyond this waits on disk
PIXEL_BYTES = {8: 1, 16: 2, 32: 4, 64: 8, -32: 4, -64: 8}
COMPRESSIONS = {"RICE_1", "RICE_ONE", "GZIP_1", "GZIP_2", "PLIO_1", "HCOMPRESS_1", "NOCOMPRESS"}

# whatever astropy, numpy and the decompressors raise over bytes that are not what they promise to be
READ_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
    TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One header-and-data unit of a FITS file.

    Attributes
    ----------
    index
        0 for the primary one.
    name, version
        Its EXTNAME in capitals ("" if none) and EXTVER.
    kind
        ``image``, ``compressed`` image, ``table``, or ``empty``.
    bitpix, shape
        Type and size of the image, slowest axis first; of what a compressed image becomes.
    start, data_start, end
        Offsets in the file [bytes]; `end` is without the padding.
    """

    index: int
    name: str
    version: int
    kind: str
    bitpix: int
    shape: tuple[int, ...]
    start: int
    data_start: int
    end: int

    @property
    def is_image(self) -> bool:
        """Whether it holds pixels in at least two dimensions."""
        return self.kind in ("image", "compressed") and len(self.shape) >= 2

    @property
    def plane_shape(self) -> tuple[int, int]:
        """(n_y, n_x) of one plane."""
        return self.shape[-2], self.shape[-1]

    @property
    def n_planes(self) -> int:
        """How many planes the cube has; 1 for an image."""
        return math.prod(self.shape[:-2])

    def describe(self) -> str:
        """For messages: ``1 SCI 3072 x 3080``."""
        size = " x ".join(map(str, reversed(self.shape)))
        what = size if self.is_image else "array of one axis" if self.kind == "image" else self.kind
        return " ".join(filter(None, (str(self.index), self.name, what)))


@contextmanager
def open_fits(path: Path, limits: Limits) -> Iterator[tuple[IO[bytes], int]]:
    """The bytes of a FITS file and their number; what is gzipped is unpacked first, up to the limit.

    Raises
    ------
    InputError
        No such file, or it cannot be read.
    FormatError
        Empty, or not FITS.
    LimitError
        Larger after decompression than the limits allow.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "no such file"
        raise InputError(f"{path}: {problem}")
    try:
        with path.open("rb") as handle:
            head = handle.read(BLOCK)
            if not head:
                raise FormatError(f"{path}: the file is empty; fetch it again")
            if head.startswith(GZIP_MAGIC):
                with _unpacked(path, handle, limits) as (unpacked, size):
                    yield unpacked, size
            else:
                _check_signature(path, head)
                yield handle, os.fstat(handle.fileno()).st_size
    except PermissionError as problem:
        if problem.filename != str(path):  # of another file, within the block
            raise
        raise InputError(f"{path}: cannot be read: {problem.strerror}") from None


@contextmanager
def _unpacked(path: Path, handle: IO[bytes], limits: Limits) -> Iterator[tuple[IO[bytes], int]]:
    handle.seek(0)
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as unpacked:
        size = 0
        try:
            with gzip.GzipFile(fileobj=handle) as stream:
                while chunk := stream.read(BLOCK if not size else 2**20):
                    if not size:
                        _check_signature(path, chunk)
                    size += len(chunk)
                    if size > limits.image_file_bytes:
                        raise LimitError(
                            f"{path}: larger than {limits.image_file_bytes} bytes after decompression,"
                            " which no image should be"
                        )
                    unpacked.write(chunk)
        except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
            raise FormatError(
                f"{path}: its gzip compression is damaged ({problem}); fetch it again"
            ) from None
        unpacked.seek(0)
        yield unpacked, size


def _check_signature(path: Path, head: bytes) -> None:
    if not head.startswith(b"SIMPLE  ="):
        raise FormatError(f"{path}: not a FITS file: it begins with {head[:12]!r} instead of SIMPLE")


def find_parts(handle: IO[bytes], size: int, path: Path, limits: Limits) -> list[Part]:
    """Every part of a FITS file, with all sizes checked against the file's and the limits.

    Parameters
    ----------
    handle
        Open for reading and seeking.
    size
        Of the whole file [bytes].
    path
        For messages.

    Raises
    ------
    FormatError
        Truncated, or its headers contradict the standard.
    LimitError
        An image, a header or the number of parts is beyond the limits.
    """
    parts: list[Part] = []
    start = 0
    while start < size:
        handle.seek(start)
        if parts and handle.read(8) != b"XTENSION":
            break  # the standard allows anything after the last part
        if len(parts) >= limits.fits_parts:
            raise LimitError(f"{path}: more than {limits.fits_parts} parts, which no image file has")
        handle.seek(start)
        cards, n_bytes = _read_header(handle, f"{path}: part {len(parts)}", limits)
        part = _understand(cards, len(parts), start, start + n_bytes, path, limits)
        if part.end > size:
            raise FormatError(
                f"{path}: truncated: part {part.index} ends at byte {part.end}, the file at {size}; fetch it again"
            )
        parts.append(part)
        start = part.data_start + -(-(part.end - part.data_start) // BLOCK) * BLOCK
    return parts


def _read_header(handle: IO[bytes], place: str, limits: Limits) -> tuple[dict[str, str], int]:
    """The values of the cards that say how large things are, as text, and the length of the header [bytes]."""
    cards: dict[str, str] = {}
    n_bytes = 0
    while True:
        block = handle.read(BLOCK)
        n_bytes += BLOCK
        if len(block) < BLOCK:
            raise FormatError(f"{place}: truncated within its header; fetch the file again")
        if n_bytes > limits.header_bytes:
            raise LimitError(f"{place}: its header is longer than {limits.header_bytes} bytes")
        for at in range(0, BLOCK, CARD):
            card = block[at : at + CARD]
            if card == END:
                return cards, n_bytes
            if card[8:10] == b"= ":
                cards.setdefault(
                    card[:8].decode("ascii", "replace").rstrip(), card[10:].decode("ascii", "replace")
                )


def _integer(cards: Mapping[str, str], key: str, place: str, default: int | None = None) -> int:
    text = cards.get(key, "").partition("/")[0].strip()
    if not text and default is not None:
        return default
    try:
        value = int(text)
    except ValueError:
        raise FormatError(f"{place}: its {key} is {text[:20]!r}, not a whole number") from None
    if abs(value) >= 2**62:
        raise LimitError(f"{place}: its {key} is {value}, which is absurd")
    return value


def _text(cards: Mapping[str, str], key: str) -> str:
    value = cards.get(key, "").strip()
    if not value.startswith("'"):
        return value.partition("/")[0].strip()
    return value[1:].replace("''", "\0").partition("'")[0].replace("\0", "'").rstrip()


def _axes(cards: Mapping[str, str], prefix: str, place: str) -> tuple[int, ...]:
    n_axes = _integer(cards, f"{prefix}NAXIS", place, 0)
    if not 0 <= n_axes <= 999:
        raise FormatError(f"{place}: {n_axes} axes")
    axes = tuple(_integer(cards, f"{prefix}NAXIS{axis}", place) for axis in range(n_axes, 0, -1))
    if min(axes, default=0) < 0:
        raise FormatError(f"{place}: an axis of {min(axes)} pixels")
    return axes


def _understand(
    cards: Mapping[str, str], index: int, start: int, data_start: int, path: Path, limits: Limits
) -> Part:
    place = f"{path}: part {index}"
    bitpix = _integer(cards, "BITPIX", place)
    if bitpix not in PIXEL_BYTES:
        raise FormatError(f"{place}: its BITPIX is {bitpix}, which the FITS standard does not know")
    table: tuple[int, ...] = ()
    shape = _axes(cards, "", place)
    n_values = math.prod(shape) if shape else 0
    if _text(cards, "GROUPS") == "T" and shape[-1:] == (0,):
        raise FormatError(f"{place}: random groups are not images")
    gcount, pcount = _integer(cards, "GCOUNT", place, 1), _integer(cards, "PCOUNT", place, 0)
    if gcount < 0 or pcount < 0:
        raise FormatError(f"{place}: a negative PCOUNT or GCOUNT")
    end = data_start + PIXEL_BYTES[bitpix] * gcount * (n_values + pcount if shape else 0)
    extension = _text(cards, "XTENSION")
    kind = "image" if extension in ("", "IMAGE", "IUEIMAGE") else "table"
    if kind == "table" and _text(cards, "ZIMAGE") == "T":
        kind, bitpix = "compressed", _integer(cards, "ZBITPIX", place)
        table, shape = shape, _axes(cards, "Z", place)
    if kind == "image" and not shape:
        kind = "empty"
    shape = _without_idle_axes(shape)
    part = Part(index, _text(cards, "EXTNAME").upper(), _integer(cards, "EXTVER", place, 1), kind, bitpix, shape,
                start, data_start, end)  # fmt: skip
    if part.is_image:
        _check_size(part, place, limits)
    if kind == "compressed":
        _check_tiles(cards, table, place, limits)
    return part


def _without_idle_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _check_tiles(cards: Mapping[str, str], table: tuple[int, ...], place: str, limits: Limits) -> None:
    """The tiles of a compressed image must be as many as the rows of the table that holds them."""
    if _integer(cards, "ZBITPIX", place) not in PIXEL_BYTES:
        raise FormatError(f"{place}: its ZBITPIX is not one that the FITS standard knows")
    method = _text(cards, "ZCMPTYPE")
    if method not in COMPRESSIONS:
        raise FormatError(f"{place}: its compression {method!r} is not known")
    shape = _axes(cards, "Z", place)
    last = len(shape)
    tile = [
        _integer(cards, f"ZTILE{axis}", place, shape[-1] if axis == 1 else 1) for axis in range(last, 0, -1)
    ]
    if min(tile, default=1) < 1 or math.prod(tile) > limits.image_pixels:
        raise LimitError(
            f"{place}: compressed in tiles of {' x '.join(map(str, tile))} pixels, which is absurd"
        )
    n_tiles = math.prod(-(-side // step) for side, step in zip(shape, tile, strict=True))
    if len(table) != 2 or table[0] != n_tiles:
        raise FormatError(
            f"{place}: {n_tiles} compressed tiles expected, the table has {table[0] if table else 0}"
        )


def _check_size(part: Part, place: str, limits: Limits) -> None:
    n_y, n_x = part.plane_shape
    size = f"{n_x} x {n_y} pixels"
    if max(n_y, n_x) > limits.image_side:
        raise LimitError(f"{place}: {size}; no side may be longer than {limits.image_side}")
    if n_y * n_x > limits.image_pixels:
        raise LimitError(
            f"{place}: {size}; at most {limits.image_pixels} are read: cut it into smaller images"
        )
    if part.n_planes * n_y * n_x > limits.image_file_bytes:
        raise LimitError(f"{place}: {part.n_planes} planes of {size}; cut it into smaller cubes")


def part_bytes(handle: IO[bytes], part: Part) -> bytes:
    """Header and data of a part, padded to whole blocks."""
    handle.seek(part.start)
    raw = handle.read(part.end - part.start)
    return raw + b"\0" * (-len(raw) % BLOCK)


def header_bytes(handle: IO[bytes], part: Part) -> bytes:
    """The header of a part; leaves the handle at its data."""
    handle.seek(part.start)
    return handle.read(part.data_start - part.start)


def on_its_own(content: bytes) -> io.BytesIO:
    """A FITS file of one extension, whose bytes are given, behind an empty primary part."""
    cards = (b"SIMPLE  =                    T", b"BITPIX  =                    8", b"NAXIS   =                    0",
             b"EXTEND  =                    T", b"END")  # fmt: skip
    head = b"".join(card.ljust(CARD) for card in cards)
    return io.BytesIO(head.ljust(BLOCK) + content)
