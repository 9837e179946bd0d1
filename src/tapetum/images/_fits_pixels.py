"""Pixels and headers of one part of a FITS file."""

from __future__ import annotations

import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import FormatError
from tapetum.images._fits_parts import (
    CARD,
    PIXEL_BYTES,
    READ_ERRORS,
    Part,
    header_bytes,
    on_its_own,
    part_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tapetum.images.frame import Image

PRINTABLE = bytes(code if 32 <= code < 127 else ord("?") for code in range(256))
PLAIN_CARD = re.compile(
    rb"(?=[A-Z0-9_-]+ *=)[A-Z0-9_ -]{8}= *(?:[TF]|[+-]?(?:\d+\.?\d*|\.\d+)(?:[ED][+-]?\d+)?|'(?:[^']|'')*')? *(?:/.*)?"
    rb"|(?:COMMENT|HISTORY|       ) .*|CONTINUE  '(?:[^']|'')*' *(?:/.*)?|END *"
)
HUGE = 1e30  # no counts reach this; float32's largest values stand for "nothing here" in many programs


@contextmanager
def listening(notes: list[str]) -> Iterator[None]:
    """Collect what astropy warns of instead of printing it; repairs that it makes to WCS keys are no news."""
    from astropy.wcs import FITSFixedWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        text = " ".join(str(warning.message).split())
        if not issubclass(warning.category, FITSFixedWarning) and text not in notes:
            notes.append(text)


def read_header(handle: IO[bytes], part: Part, place: str, notes: list[str]) -> Any:
    """The header of a part that is not compressed, without the cards that cannot be read.

    Raises
    ------
    FormatError
        It cannot be read at all.
    """
    from astropy.io import fits

    try:
        with listening(notes):
            return fits.Header.fromstring(without_broken_cards(header_bytes(handle, part), notes))
    except (fits.VerifyError, *READ_ERRORS) as problem:
        raise FormatError(f"{place}: its header cannot be read: {problem}") from None


def without_broken_cards(head: bytes, notes: list[str]) -> bytes:
    """The same header with cards mended where possible, else blank and named in `notes`.

    astropy parses a card only when it is asked for; a plain one is known to parse by its form, which is much faster
    than parsing all of them.
    """
    head = head.translate(PRINTABLE)
    cards = [head[at : at + CARD] for at in range(0, len(head), CARD)]
    for number, card in enumerate(cards):
        if not PLAIN_CARD.fullmatch(card):
            cards[number] = _mended(card) or b" " * CARD
            if not cards[number].strip():
                notes.append(f"header card {card[:40].decode().strip()!r} cannot be read and is left out")
    return b"".join(cards)


def _mended(card: bytes) -> bytes | None:
    """The card in a form that parses, for instance with a capital exponent; None where there is no telling."""
    from astropy.io import fits

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            parsed = fits.Card.fromstring(card)
            parsed.verify("silentfix")
            usable = parsed.value is None or isinstance(parsed.value, (str, bool, int, float, complex))
            text = str(parsed).encode("ascii")
    except (Warning, fits.VerifyError, *READ_ERRORS):
        return None
    return text if usable and len(text) == CARD else None


def _codec_errors() -> tuple[type[Exception], ...]:
    """What astropy's compiled decompressors raise; no public module names it."""
    try:
        from astropy.io.fits.hdu.compressed._compression import CfitsioException
    except ImportError:
        return ()
    return (CfitsioException,)


def read_plane(
    handle: IO[bytes], part: Part, plane: int, place: str, notes: list[str]
) -> tuple[NDArray[Any], Any]:
    """Raw values of one plane, scaled only where that keeps them whole, and the header.

    Integers stay integers; where BSCALE, BZERO or BLANK make them anything else, they become floats with NaN.

    Parameters
    ----------
    plane
        0-based; 0 for an image of two axes.
    notes
        Takes what should be known of the file.

    Raises
    ------
    FormatError
        The pixels cannot be decoded.
    """
    from astropy.io import fits

    try:
        if part.kind == "compressed":
            return _compressed(handle, part, plane, notes)
        header = read_header(handle, part, place, notes)
        return _scaled(_raw(handle, part, plane), header), header
    except (fits.VerifyError, *_codec_errors(), *READ_ERRORS) as problem:
        reason = f"{type(problem).__name__}: {problem}" if str(problem) else type(problem).__name__
        raise FormatError(f"{place}: its pixels cannot be decoded ({reason}); the file is damaged") from None


def _raw(handle: IO[bytes], part: Part, plane: int) -> NDArray[Any]:
    n_y, n_x = part.plane_shape
    width = PIXEL_BYTES[part.bitpix]
    n_bytes = n_y * n_x * width
    handle.seek(part.data_start + plane * n_bytes)
    kind = "u1" if part.bitpix == 8 else f">{'f' if part.bitpix < 0 else 'i'}{width}"
    return np.frombuffer(handle.read(n_bytes), kind).reshape(n_y, n_x)


def _scaled(raw: NDArray[Any], header: Any) -> NDArray[Any]:
    scale, zero = _number(header, "BSCALE", 1.0), _number(header, "BZERO", 0.0)
    blank = header.get("BLANK") if raw.dtype.kind in "iu" else None
    if scale == 1.0 and zero == 0.0 and blank is None:
        return raw
    if scale == 1.0 and zero.is_integer() and blank is None and raw.dtype.kind in "iu" and abs(zero) < 2**62:
        return raw.astype(np.int32 if raw.itemsize <= 2 and abs(zero) < 2**30 else np.int64) + int(zero)
    if scale == 1.0 and zero == 2.0**63 and blank is None and raw.dtype.kind == "i" and raw.itemsize == 8:
        return raw.astype(np.int64).view(np.uint64) ^ np.uint64(2**63)  # float64 would lose the last digits
    values: NDArray[Any] = raw.astype(np.float32 if raw.itemsize <= 2 else np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        values *= scale
        values += zero
    if isinstance(blank, int):
        values[raw == blank] = np.nan
    return np.asarray(values)


def _number(header: Any, key: str, default: float) -> float:
    try:
        value = float(header.get(key, default))
    except (TypeError, ValueError):
        return default
    return value if np.isfinite(value) else default


def _compressed(handle: IO[bytes], part: Part, plane: int, notes: list[str]) -> tuple[NDArray[Any], Any]:
    from astropy.io import fits

    content = part_bytes(handle, part)
    n_head = part.data_start - part.start
    content = without_broken_cards(content[:n_head], notes) + content[n_head:]
    with listening(notes), fits.open(on_its_own(content), memmap=False) as parts:
        values = parts[1].data if part.n_planes == 1 else parts[1].section[_place_in_cube(part, plane)]
        header = parts[1].header
    return np.asarray(values).reshape(part.plane_shape), header


def _place_in_cube(part: Part, plane: int) -> tuple[int, ...]:
    return tuple(int(step) for step in np.unravel_index(plane, part.shape[:-2]))


@dataclass(frozen=True)
class Counts:
    """Pixel values and what their range is.

    Attributes
    ----------
    data : ndarray of float32, shape (n_y, n_x)
        NaN for what is no count.
    low, high
        Least and largest value; NaN when there is none.
    has_nan
        Whether any pixel is NaN.
    n_absurd
        Pixels that were infinite or absurdly large.
    """

    data: Image
    low: float
    high: float
    has_nan: bool
    n_absurd: int


def as_counts(values: NDArray[Any]) -> Counts:
    """Values as float32; the array is made anew only where it must be."""
    with np.errstate(over="ignore", invalid="ignore"):
        counts = np.require(values, np.float32, ["C", "W"])
        low, high = float(counts.min()), float(counts.max())  # NaN wins in both
        if max(-low, high) < HUGE:
            return Counts(counts, low, high, False, 0)
        absurd = np.abs(counts) >= HUGE
    counts[absurd] = np.nan
    low, high = float(np.fmin.reduce(counts, axis=None)), float(np.fmax.reduce(counts, axis=None))
    return Counts(counts, low, high, True, int(np.count_nonzero(absurd)))
