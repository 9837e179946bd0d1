"""FITS images out: whole, compressed if wanted, with coordinates, checksums, history and provenance."""

from __future__ import annotations

import gzip
import io
import math
import mmap
import re
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tapetum import __version__
from tapetum.core.errors import UsageError
from tapetum.core.files import whole_file
from tapetum.core.limits import DEFAULT_LIMITS
from tapetum.images._fits_parts import BLOCK, CARD, GZIP_MAGIC, find_parts
from tapetum.images._fits_pixels import listening
from tapetum.images._masks import OWN_BITS, OWN_KEY
from tapetum.images._sources import PRODUCT_KEY
from tapetum.images._wcs import put_wcs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

NO_LIMITS = replace(  # what was read within the limits may become larger: masks have a plane per class
    DEFAULT_LIMITS,
    image_pixels=2**62,
    image_side=2**62,
    image_file_bytes=2**62,
    header_bytes=2**62,
    fits_parts=2**62,
)
GZIP_LEVEL = 6
GZIP_START = GZIP_MAGIC + b"\x08\0"  # deflated, no name; then four bytes of time
QUANTIZE_LEVEL = 16.0  # floats are stored in steps of noise / 16, which adds 0.02 % to the variance
BITPIX = {"uint8": 8, "int16": 16, "int32": 32, "float32": -32}
LARGE = 2**30  # bytes of pixels whose tiles, compressed, 32 bits might not find
TILE_ROWS = 16  # of an image that are compressed together: one by one takes a third longer
# what describes how another file was stored, not what it shows
STORAGE_KEYS = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|GROUPS|BSCALE|BZERO|BLANK|CHECKSUM|DATASUM|INHERIT"
    r"|EXTNAME|EXTVER|EXTLEVEL|NEXTEND|TFIELDS|THEAP|T(?:TYPE|FORM|UNIT|SCAL|ZERO|NULL|DISP|DIM)\d+"
    r"|Z(?:IMAGE|BITPIX|NAXIS\d*|TILE\d+|CMPTYPE|NAME\d+|VAL\d+|QUANTIZ|DITHER0|SCALE|ZERO|BLANK|SIMPLE|EXTEND"
    r"|TENSION|PCOUNT|GCOUNT|HECKSUM|DATASUM|MASKCMP)|FZ(?:QVALUE|QMETHD|ALGOR|TILE|DTHRSD|INT2F|CLOBR)|CREATOR|DATAMAX"
    r"|DATAMIN|END"
)


def write_frame(
    path: Path,
    data: NDArray[Any],
    *,
    wcs: Any = None,
    header: Any = None,
    planes: Mapping[str, NDArray[Any]] = {},
    plane_headers: Mapping[str, Any] = {},
    history: Sequence[str] = (),
    provenance: Mapping[str, str] = {},
    product: str = "derived",
) -> None:
    """Write an image, with further planes as extensions; the same input gives the same bytes.

    ``.fits.fz`` is RICE-compressed: integers without loss, floats in steps of 1/16 of their noise. ``.fits.gz`` is
    gzipped. A plane ``MASK`` of uint8 carries the bits of `Bad`; it and a plane ``VARIANCE`` are read back as such.

    Parameters
    ----------
    path
        Ends in ``.fits``, ``.fits.fz`` or ``.fits.gz``.
    data : ndarray, shape (n_y, n_x)
        Floats are stored as float32, integers as they are, bool as uint8.
    wcs
        `astropy.wcs.WCS`, in place of whatever `header` says of coordinates; None keeps that.
    header
        `astropy.io.fits.Header` to carry along, less what describes its old file.
    planes
        Extension name -> array. Of three axes, it is stored as it is, in a compressed file as well.
    plane_headers
        Extension name -> `astropy.io.fits.Header` of a plane that does not lie on the pixels of the image; the others
        get its coordinates.
    history
        Lines for HISTORY.
    provenance
        Keyword -> what made the image, for instance ``MODEL`` -> ``transients 1.0.0``; also written as HISTORY when
        the keyword is longer than eight characters.
    product
        What the image is. ``frame`` is an input again when found in a folder (simulated images), all else is not.

    Raises
    ------
    UsageError
        The suffix is none of the three.
    OSError
        The file cannot be written.
    """
    from astropy.io import fits

    squeezed = _squeezed(path)
    main = _main_header(header, wcs, history, provenance, product)
    problems: list[str] = []
    with listening(problems):
        if squeezed == ".fz":
            parts = fits.HDUList([fits.PrimaryHDU(), _part(data, main, "SCI", compressed=True)])
        else:
            parts = fits.HDUList([fits.PrimaryHDU(_storable(data), main)])
        for name, plane in planes.items():
            own = plane_headers[name] if name in plane_headers else _plane_header(main, name, plane)
            parts.append(_part(plane, own, name.upper(), compressed=squeezed == ".fz" and plane.ndim == 2))
        content = _serialised(parts)
    with whole_file(path) as part:
        part.write_bytes(gzip.compress(content, GZIP_LEVEL, mtime=0) if squeezed == ".gz" else content)


@dataclass(frozen=True)
class NewPart:
    """A part of a file, whose pixels are made while it is written, so that they need not all be held.

    Attributes
    ----------
    shape
        Slowest axis first; () for a part without pixels.
    dtype
        ``uint8``, ``int16``, ``int32`` or ``float32``.
    planes
        Arrays of the last two axes, in the order in which they are stored.
    header
        The `astropy.io.fits.Header` but for what describes the pixels. Called before the pixels are made and after,
        when it may say what became of them; with the same number of cards.
    name, version
        EXTNAME and EXTVER.
    """

    header: Callable[[], Any]
    shape: tuple[int, ...] = ()
    dtype: str = "uint8"
    planes: Iterable[NDArray[Any]] = ()
    name: str = ""
    version: int = 1


def write_parts(path: Path, parts: Iterable[NewPart | bytes]) -> None:
    """Write a file part by part; the same input gives the same bytes.

    In a ``.fits.fz`` pixels are compressed without loss, integers by RICE, floats by GZIP; an image that would be the
    primary one follows an empty primary part. ``.fits.gz`` is gzipped.

    Parameters
    ----------
    path
        Ends in ``.fits``, ``.fits.fz`` or ``.fits.gz``.
    parts
        In their order; bytes are a part of another file, header and data in whole blocks, and stay as they are.

    Raises
    ------
    UsageError
        The suffix is none of the three.
    OSError
        The file cannot be written.
    """
    squeezed = _squeezed(path)
    with whole_file(path) as place:
        if squeezed == ".gz":
            with tempfile.TemporaryFile(dir=place.parent) as plain:
                _write_each(plain, parts, compressed=False)
                plain.seek(0)
                with place.open("wb") as end, gzip.GzipFile("", "wb", GZIP_LEVEL, end, mtime=0) as stream:
                    shutil.copyfileobj(plain, stream, 2**20)
        else:
            with place.open("w+b") as stream:
                _write_each(stream, parts, compressed=squeezed == ".fz")


def _squeezed(path: Path) -> str:
    suffix = re.search(r"\.fits(\.fz|\.gz)?$", path.name, re.IGNORECASE)
    if suffix is None:
        raise UsageError(f"{path}: images are written as .fits, .fits.fz or .fits.gz")
    return (suffix.group(1) or "").lower()


def _write_each(stream: IO[bytes], parts: Iterable[NewPart | bytes], *, compressed: bool) -> None:
    from astropy.io import fits

    places: list[tuple[int, int, int]] = []  # of parts whose checksums are still to come
    for part in parts:
        if isinstance(part, bytes):
            stream.write(part)
            continue
        tiled = compressed and part.shape
        if tiled and not stream.tell():
            stream.write(_serialised(fits.HDUList([fits.PrimaryHDU()])))
        places.append((_write_tiled if tiled else _write_plain)(stream, part))
    stream.flush()
    with mmap.mmap(stream.fileno(), 0) as content:
        for place in places:
            _sum_up(content, *place)
        content.flush()


def _write_plain(stream: IO[bytes], part: NewPart) -> tuple[int, int, int]:
    """Write a part; where its header and its data begin, and where it ends [bytes]."""
    start = stream.tell()
    head = _plain_header(part, primary=not start)
    stream.write(head)
    kind = np.dtype(part.dtype).newbyteorder(">")
    for plane in part.planes:
        stream.write(np.ascontiguousarray(plane, kind).data)
    return start, start + len(head), _finish(stream, start, head, _plain_header(part, primary=not start))


def _write_tiled(stream: IO[bytes], part: NewPart) -> tuple[int, int, int]:
    """The same, compressed plane by plane: a table of length and place of each tile, then the tiles."""
    start = stream.tell()
    large = math.prod(part.shape) * np.dtype(part.dtype).itemsize > LARGE
    table = np.zeros((_n_tiles(part.shape), 2), ">i8" if large else ">i4")
    head = _tiled_header(part, table)
    begin = head + table.tobytes()
    stream.write(begin)
    n = 0
    for plane in part.planes:
        lengths, tiles = _tiles_of(np.ascontiguousarray(plane, part.dtype))
        table[n : n + len(lengths), 0] = lengths
        n += len(lengths)
        stream.write(tiles)
    table[1:, 1] = np.cumsum(table[:-1, 0])
    end = _finish(stream, start, begin, _tiled_header(part, table) + table.tobytes())
    return start, start + len(head), end


def _finish(stream: IO[bytes], start: int, begin: bytes, known: bytes) -> int:
    """Fill the last block of a part, and begin it with what is known now; where it ends [bytes]."""
    if len(known) != len(begin):
        raise ValueError("the header of a part changed its length while it was written")
    stream.write(bytes(-stream.tell() % BLOCK))
    stream.seek(start)
    stream.write(known)
    return stream.seek(0, io.SEEK_END)


def _n_tiles(shape: tuple[int, ...]) -> int:
    return math.prod(shape[:-2]) * -(-shape[-2] // TILE_ROWS)


def _tiles_of(plane: NDArray[Any]) -> tuple[NDArray[Any], memoryview]:
    """Length of each tile [bytes], and the tiles."""
    content, _, data_start, end = _compressed(plane, None, "")
    kind = ">i8" if plane.nbytes > 2**32 else ">i4"  # astropy's rule
    table = np.frombuffer(content, kind, 2 * _n_tiles(plane.shape), data_start)
    return table[::2], memoryview(content)[data_start + table.nbytes : end]


def _tiled_header(part: NewPart, table: NDArray[Any]) -> bytes:
    """Header of a part as astropy makes it for the first tile, with the sizes of the whole."""
    with listening([]):  # to what it thinks of cards that come from another file
        header = part.header()
        _name(header, part)
        tile = np.zeros(_tile_shape(part.shape), part.dtype)
        content, start, data_start, _ = _compressed(tile, header, part.name)
    head = bytes(content[start:data_start])
    sizes = {"NAXIS1": table.strides[0], "NAXIS2": len(table), "PCOUNT": table[:, 0].sum()}
    sizes |= {f"ZNAXIS{axis}": side for axis, side in enumerate(reversed(part.shape), 1)}
    values = {key: f"{size:>20}" for key, size in sizes.items()}
    pointer = f"1{'Q' if table.itemsize == 8 else 'P'}B({table[:, 0].max()})"
    values["TFORM1"] = f"'{pointer:<8}'".ljust(20)
    for key, value in values.items():
        head = re.sub(rb"%-8s= .{20}" % key.encode(), f"{key:<8}= {value}".encode(), head, count=1)
    return head


def _compressed(values: NDArray[Any], header: Any, name: str) -> tuple[bytearray, int, int, int]:
    """A file with one image; where header and data of this begin, and where it ends [bytes]."""
    from astropy.io import fits

    image = _part(values, header, name, compressed=True, lossless=True)
    content = _serialised(fits.HDUList([fits.PrimaryHDU(), image]))
    part = find_parts(io.BytesIO(content), len(content), Path("new file"), NO_LIMITS)[1]
    return content, part.start, part.data_start, part.end


def _plain_header(part: NewPart, *, primary: bool) -> bytes:
    """Header of a part, with places for its checksums."""
    from astropy.io import fits

    first: list[tuple[str, Any]] = [("SIMPLE", True)] if primary else [("XTENSION", "IMAGE   ")]
    first += [("BITPIX", BITPIX[part.dtype]), ("NAXIS", len(part.shape))]
    first += [(f"NAXIS{axis}", side) for axis, side in enumerate(reversed(part.shape), 1)]
    first += [("EXTEND", True)] if primary else [("PCOUNT", 0), ("GCOUNT", 1)]
    header = fits.Header(first)
    _name(header, part)
    with listening([]):  # to what it thinks of cards that come from another file
        header.extend(part.header(), strip=False)
        header["DATASUM"], header["CHECKSUM"] = "0", "0" * 16
        return header.tostring().encode("ascii")  # type: ignore[no-any-return]


def _name(header: Any, part: NewPart) -> None:
    if part.name:
        header["EXTNAME"] = part.name
    if part.version != 1:
        header["EXTVER"] = part.version


def _serialised(parts: Any) -> bytearray:
    """The bytes of a file, with checksums, and without a trace of when it was written."""
    stream = io.BytesIO()
    before = int(time.time())
    parts.writeto(stream, checksum=True)
    content = bytearray(stream.getbuffer())
    for second in range(
        before, int(time.time()) + 1
    ):  # tiles that RICE cannot take are gzipped, with the time
        stamped = GZIP_START + second.to_bytes(4, "little")
        content = content.replace(stamped, GZIP_START + bytes(4))
    for part in find_parts(stream, len(content), Path("new file"), NO_LIMITS):
        end = part.data_start + -(-(part.end - part.data_start) // BLOCK) * BLOCK
        _sum_up(content, part.start, part.data_start, end)
    return content


def _sum_up(content: bytearray | mmap.mmap, start: int, data_start: int, end: int) -> None:
    """Put the checksums of a part in place, with comments that do not tell the time."""
    data_sum = _word_sum(memoryview(content)[data_start:end])
    head = bytes(content[start:data_start])
    for key, value, comment in (
        ("DATASUM", str(data_sum), "of the data"),
        ("CHECKSUM", "0" * 16, "of this part"),
    ):
        quoted = f"'{value:<8}'"
        card = f"{key:<8}= {quoted:<20} / {comment}".ljust(CARD).encode()  # as astropy lays cards out
        head = re.sub(rb"%-8s= .{70}" % key.encode(), card, head, count=1)
    content[start:data_start] = head
    place = start + head.index(b"CHECKSUM= '") + 11
    content[place : place + 16] = encoded_checksum(_word_sum(memoryview(content)[start:end]))


def _word_sum(content: memoryview | bytes) -> int:
    """Sum of 32-bit words in ones' complement; the length is a multiple of 4."""
    total = int(np.frombuffer(content, ">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def encoded_checksum(total: int) -> bytes:
    """The value of CHECKSUM that brings the sum of a part to all ones (FITS standard 4.0, appendix J).

    Parameters
    ----------
    total
        Sum of the part with sixteen zeros in place of the value.
    """
    text = bytearray(16)
    for column, byte in enumerate((total ^ 0xFFFFFFFF).to_bytes(4, "big")):
        quarter, rest = divmod(byte, 4)
        letters = [48 + quarter + rest, 48 + quarter, 48 + quarter, 48 + quarter]
        while any(0x3A <= letter <= 0x40 or 0x5B <= letter <= 0x60 for letter in letters):
            for pair in (0, 2):  # only letters and digits; the sum of a pair stays
                if any(
                    0x3A <= letter <= 0x40 or 0x5B <= letter <= 0x60 for letter in letters[pair : pair + 2]
                ):
                    letters[pair] += 1
                    letters[pair + 1] -= 1
        text[column::4] = bytes(letters)
    return bytes(text[-1:] + text[:-1])


def _storable(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind == "f":
        return np.ascontiguousarray(values, np.float32)
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    return np.ascontiguousarray(values, values.dtype.newbyteorder("="))


def _tile_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*(1,) * (len(shape) - 2), min(TILE_ROWS, shape[-2]), shape[-1])


def _part(values: NDArray[Any], header: Any, name: str, *, compressed: bool, lossless: bool = False) -> Any:
    from astropy.io import fits

    values = _storable(values)
    if not compressed:
        return fits.ImageHDU(values, header, name=name)
    tile = _tile_shape(values.shape)
    if values.dtype.kind != "f":
        return fits.CompImageHDU(values, header, name=name, compression_type="RICE_1", tile_shape=tile)
    if lossless:
        return fits.CompImageHDU(
            values, header, name=name, compression_type="GZIP_2", tile_shape=tile, quantize_level=0
        )
    return fits.CompImageHDU(
        values, header, name=name, compression_type="RICE_1", tile_shape=tile, quantize_level=QUANTIZE_LEVEL,
        quantize_method=2, dither_seed=1,  # dithered, zeros kept; the seed makes the bytes the same each time
    )  # fmt: skip


def _main_header(
    header: Any, wcs: Any, history: Sequence[str], provenance: Mapping[str, str], product: str
) -> Any:
    from astropy.io import fits

    main = fits.Header()
    if header is not None:
        main.extend((card for card in header.cards if not STORAGE_KEYS.fullmatch(card.keyword)), strip=False)
    if wcs is not None:
        put_wcs(main, wcs)
    main["CREATOR"] = (f"tapetum {__version__}", "what wrote it")
    main[PRODUCT_KEY] = (product, "what this is")
    for key, value in provenance.items():
        keyword = re.sub(r"[^A-Z0-9_-]", "_", key.upper())
        if len(keyword) <= 8:
            main[keyword] = _ascii(value)
        else:
            main.add_history(_ascii(f"{key}: {value}"))
    for line in history:
        main.add_history(_ascii(line))
    return main


def _plane_header(main: Any, name: str, values: NDArray[Any]) -> Any:
    """A plane lies on the same pixels, so it has the coordinates of the image, and nothing else."""
    from astropy.io import fits

    from tapetum.images._wcs import WCS_KEYS

    header = fits.Header([card for card in main.cards if WCS_KEYS.fullmatch(card.keyword)])
    if name.upper() == "MASK" and values.dtype == np.uint8:
        header[OWN_KEY] = (OWN_BITS, "bit 0, 1, ...")
    return header


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode().replace("\n", " ")
