"""Stamps as small PNG pictures: robust stretch, crisp pixels, missing pixels plain to see."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from typing import TYPE_CHECKING, Literal

import numpy as np

from tapetum.core.robust import MAD_TO_SIGMA

if TYPE_CHECKING:
    from numpy.typing import NDArray

Stretch = Literal["asinh", "linear"]

GREY_LEVELS = 254  # palette entries 0..253; the last two are the hatch of missing pixels
HATCH = ((112, 72, 132), (72, 44, 88))
HATCH_PERIOD = 4  # pixel
LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.7
LEAST_SPAN = 8.0  # noise sigmas between sky and white, so that empty sky does not look like a discovery
SOFTENING = 3.0  # noise sigmas: linear below, logarithmic above


def display_limits(image: NDArray[np.floating]) -> tuple[float, float, float, float]:
    """Sky, noise, black and white of an image.

    Parameters
    ----------
    image : ndarray, shape (n_y, n_x)
        Any unit; non-finite pixels do not count.

    Returns
    -------
    sky, sigma : float
        Median and 1.4826 MAD; `sigma` falls back to the standard deviation, then to 1, where the MAD is 0.
    black, white : float
        1st percentile; 99.7th percentile, but at least 8 `sigma` above the sky.
    """
    values = image[np.isfinite(image)].astype(np.float64)
    if values.size == 0:
        return 0.0, 1.0, -1.0, LEAST_SPAN
    sky = float(np.median(values))
    sigma = MAD_TO_SIGMA * float(np.median(np.abs(values - sky))) or float(values.std()) or 1.0
    black, white = np.percentile(values, [LOW_PERCENTILE, HIGH_PERCENTILE])
    return sky, sigma, min(float(black), sky - sigma), max(float(white), sky + LEAST_SPAN * sigma)


def to_levels(image: NDArray[np.floating], stretch: Stretch = "asinh") -> NDArray[np.uint8]:
    """Palette indices of an image: 0 black ... 253 white, 254 and 255 the hatch of non-finite pixels.

    Parameters
    ----------
    image : ndarray, shape (n_y, n_x)
    stretch
        ``asinh`` is linear near the sky and logarithmic far above it (Lupton et al. 2004, PASP 116, 133).

    Returns
    -------
    ndarray of uint8, shape (n_y, n_x)
    """
    sky, sigma, black, white = display_limits(image)
    bad = ~np.isfinite(image)
    values = np.where(bad, sky, image).astype(np.float64)
    if stretch == "asinh":
        soft = SOFTENING * sigma
        values = np.arcsinh((values - sky) / soft)
        black, white = math.asinh((black - sky) / soft), math.asinh((white - sky) / soft)
    scaled = np.clip((values - black) / (white - black), 0, 1)
    levels = np.rint(scaled * (GREY_LEVELS - 1)).astype(np.uint8)
    row, column = np.indices(image.shape)
    stripe = ((row + column) % HATCH_PERIOD >= HATCH_PERIOD // 2).astype(np.uint8)
    return np.where(bad, GREY_LEVELS + stripe, levels).astype(np.uint8)


def thinned(image: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Means of `step` x `step` pixels; NaN only where none of them has a value. What is left over at the end is cut."""
    n_y, n_x = (side // step * step for side in image.shape)
    blocks = image[:n_y, :n_x].reshape(n_y // step, step, n_x // step, step)
    good = np.isfinite(blocks)
    n = good.sum(axis=(1, 3))
    total = np.where(good, blocks, 0).sum(axis=(1, 3), dtype=np.float64)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan).astype(np.float32)


def stamp_png(image: NDArray[np.floating], *, scale: int = 1, stretch: Stretch = "asinh") -> bytes:
    """A stamp as PNG, its first row at the bottom as FITS viewers show it.

    Parameters
    ----------
    image : ndarray, shape (n_y, n_x)
    scale
        Picture pixels per image pixel; pixels stay crisp squares. A page enlarges with CSS instead.

    Returns
    -------
    bytes
    """
    levels = to_levels(image, stretch)[::-1]
    return encode_png(np.repeat(np.repeat(levels, scale, 0), scale, 1))


def encode_png(levels: NDArray[np.uint8]) -> bytes:
    """PNG with a palette of greys and the two colours of missing pixels.

    Layout: PNG specification, third edition (W3C 2025), sections 5 and 11.

    Parameters
    ----------
    levels : ndarray of uint8, shape (n_y, n_x)
        Palette indices; the first row is the top of the picture.
    """
    greys = [(round(255 * level / (GREY_LEVELS - 1)),) * 3 for level in range(GREY_LEVELS)]
    palette = bytes(value for colour in (*greys, *HATCH) for value in colour)
    return _png(levels, 3, palette)


def encode_rgb(picture: NDArray[np.uint8]) -> bytes:
    """PNG in colours.

    Parameters
    ----------
    picture : ndarray of uint8, shape (n_y, n_x, 3)
        Red, green, blue; the first row is the top of the picture.
    """
    return _png(picture, 2)


def _png(pixels: NDArray[np.uint8], colour_type: int, palette: bytes = b"") -> bytes:
    n_y, n_x = pixels.shape[:2]
    rows = pixels.reshape(n_y, -1)
    lines = np.concatenate([np.zeros((n_y, 1), np.uint8), rows], axis=1)  # filter 0 before each line
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", n_x, n_y, 8, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    ]
    if palette:
        chunks.insert(1, (b"PLTE", palette))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def data_uri(png: bytes) -> str:
    """A PNG as the address of an ``<img>``, so that the page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
