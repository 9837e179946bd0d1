"""Cutouts out of packets: inflate, read the FITS bytes, and nothing else.

Survey stamps are tiny FITS files with the same few header cards, so a strict parser reads them some fifty times
faster than a general one. Whatever it does not know for certain (scaling, extensions, other types) goes to
astropy.
"""

from __future__ import annotations

import io
import warnings
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import isal.isal_zlib
import numpy as np

from tapetum.core.errors import FormatError, LimitError
from tapetum.core.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from numpy.typing import NDArray

GZIP_MAGIC = b"\x1f\x8b"
GZIP_WINDOW = 31  # zlib's number for "gzip with header and checksum"
BLOCK = 2880
CARD = 80
TYPES: dict[int, np.dtype[Any]] = {
    -32: np.dtype(">f4"),
    -64: np.dtype(">f8"),
    16: np.dtype(">i2"),
    32: np.dtype(">i4"),
    8: np.dtype("u1"),
}
# cards that change what the numbers mean; a stamp that has one is read by astropy
NOT_PLAIN = (b"BSCALE", b"BZERO", b"BLANK", b"XTENSION", b"GROUPS", b"ZIMAGE")
MAX_HEADER_BLOCKS = 16


def read_stamp(data: bytes, limits: Limits = DEFAULT_LIMITS) -> NDArray[Any]:
    """The image of one cutout, shape (n_y, n_x), in its own type (native byte order where astropy had to help).

    Parameters
    ----------
    data
        FITS file, gzip-compressed or not; of several HDUs the first with an image counts.

    Raises
    ------
    FormatError
        Not gzip or FITS, a wrong checksum, truncated, or not a two-dimensional image.
    LimitError
        Larger than the limits allow.
    """
    raw = inflate(data, limits) if data[:2] == GZIP_MAGIC else data
    plan = _plain_layout(raw[:BLOCK], limits.stamp_pixels) if len(raw) >= BLOCK else None
    if plan is None:
        return _read_with_astropy(raw, limits)
    dtype, n_y, n_x = plan
    if len(raw) < BLOCK + n_y * n_x * dtype.itemsize:
        raise FormatError("the cutout is truncated: its FITS header promises more pixels than there are")
    return np.frombuffer(raw, dtype, n_y * n_x, BLOCK).reshape(n_y, n_x)


def inflate(data: bytes, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Decompress one gzip member, its checksum verified.

    Raises
    ------
    FormatError
        Damaged or truncated.
    LimitError
        More than ``limits.stamp_bytes`` come out.
    """
    stream = isal.isal_zlib.decompressobj(wbits=GZIP_WINDOW)
    try:
        raw: bytes = stream.decompress(data, max_length=limits.stamp_bytes)
    except isal.isal_zlib.error as problem:
        raise FormatError(f"the gzip data of a cutout is damaged: {problem}") from None
    if not stream.eof:
        if len(raw) >= limits.stamp_bytes:
            raise LimitError(f"a cutout is larger than {limits.stamp_bytes} bytes after decompression")
        raise FormatError("the gzip data of a cutout is truncated")
    return raw


def compress(raw: bytes) -> bytes:
    """Gzip `raw` as surveys do; the counterpart of `inflate`."""
    stream = zlib.compressobj(6, zlib.DEFLATED, GZIP_WINDOW)
    return stream.compress(raw) + stream.flush()


def write_stamp(image: NDArray[Any]) -> bytes:
    """A gzip-compressed FITS file of `image`, shape (n_y, n_x), as float32."""
    n_y, n_x = image.shape
    cards = [
        "SIMPLE  =                    T",
        "BITPIX  =                  -32",
        "NAXIS   =                    2",
    ]
    cards += [f"NAXIS1  = {n_x:>20d}", f"NAXIS2  = {n_y:>20d}", "END"]
    header = "".join(card.ljust(CARD) for card in cards).ljust(BLOCK).encode()
    pixels = np.ascontiguousarray(image, ">f4").tobytes()
    return compress(header + pixels + b"\0" * (-len(pixels) % BLOCK))


@lru_cache(maxsize=1024)
def _plain_layout(header: bytes, largest: int) -> tuple[np.dtype[Any], int, int] | None:
    """(type, n_y, n_x) of a primary HDU with a one-block header and two axes, or None when in any doubt."""
    values: dict[bytes, bytes] = {}
    for start in range(0, BLOCK, CARD):
        keyword = header[start : start + 8].rstrip()
        if keyword == b"END":
            break
        if keyword in NOT_PLAIN:
            return None
        if header[start + 8 : start + 10] == b"= " and keyword not in values:
            values[keyword] = header[start + 10 : start + CARD].split(b"/", 1)[0].strip()
    else:
        return None  # the header goes on in the next block
    try:
        dtype = TYPES.get(int(values[b"BITPIX"]))
        n_axes, n_x, n_y = (int(values[key]) for key in (b"NAXIS", b"NAXIS1", b"NAXIS2"))
    except (KeyError, ValueError):
        return None
    # some early packets begin without the SIMPLE card
    if values.get(b"SIMPLE") != b"T" and not header.startswith(b"BITPIX"):
        return None
    if dtype is None or n_axes != 2:
        return None
    return (dtype, n_y, n_x) if 0 < n_x <= largest and 0 < n_y <= largest else None


def _read_with_astropy(raw: bytes, limits: Limits) -> NDArray[Any]:
    from astropy.io import fits

    if not raw.startswith((b"SIMPLE", b"BITPIX", b"NAXIS")) and not raw[:CARD].startswith(b"XTENSION"):
        raise FormatError(f"the cutout is not a FITS file ({_what_is(raw)})")
    _check_axes(raw, limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with fits.open(io.BytesIO(raw), ignore_missing_simple=True, memmap=False) as hdus:
                image = next((hdu.data for hdu in hdus if hdu.data is not None and hdu.data.ndim == 2), None)
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as problem:
        raise FormatError(
            f"the cutout is not a readable FITS file: {' '.join(str(problem).split())}"
        ) from None
    if image is None or image.dtype.names is not None:
        raise FormatError("the cutout has no two-dimensional image")
    if max(image.shape) > limits.stamp_pixels:
        raise LimitError(
            f"the cutout is {image.shape[1]}x{image.shape[0]} pixels, more than {limits.stamp_pixels}"
        )
    native: NDArray[Any] = np.ascontiguousarray(image)
    return native


def _check_axes(raw: bytes, limits: Limits) -> None:
    """Refuse a header that promises an absurd size before anything is allocated for it."""
    head = raw[: BLOCK * MAX_HEADER_BLOCKS]
    for start in range(0, len(head), CARD):
        card = head[start : start + CARD]
        if card.startswith(b"END "):
            return
        if card.startswith(b"NAXIS") and card[5:6].isdigit():
            text = card[10:].split(b"/", 1)[0].strip()
            if not text.isdigit() or int(text) > limits.stamp_pixels:
                raise LimitError(
                    f"the cutout claims an axis of {text.decode('ascii', 'replace')[:20]} pixels"
                )


def _what_is(raw: bytes) -> str:
    if raw.startswith(b"\xff\xd8\xff"):
        return "it is a JPEG picture"
    if raw.startswith(b"\x89PNG"):
        return "it is a PNG picture"
    return "it is empty" if not raw else f"it begins with {raw[:8]!r}"
