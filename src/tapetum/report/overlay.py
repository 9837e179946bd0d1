"""An image with its masks on it: grey pixels, and a colour for each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tapetum.report import svg
from tapetum.report.stamps import GREY_LEVELS, HATCH, data_uri, encode_rgb, stamp_png, to_levels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tapetum.report.stamps import Stretch

FRAME_COLOUR, FRAME_WIDTH, NUMBER_SIZE = "#ffffff", 1.6, 13


@dataclass(frozen=True)
class Layer:
    """How a class is drawn.

    Attributes
    ----------
    name
        For legends.
    code
        Its bit in a mask of added codes.
    colour
        ``#rrggbb``.
    opacity
        0 hides the class, 1 hides the image.
    """

    name: str
    code: int
    colour: str
    opacity: float = 0.6


@dataclass(frozen=True)
class Box:
    """A part of an image, by its first row and column and its side [pixel]."""

    y: int
    x: int
    side: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.y, self.y + self.side), slice(self.x, self.x + self.side)


def thinned_codes(codes: NDArray[np.integer], step: int) -> NDArray[np.uint16]:
    """All codes of `step` x `step` pixels, so that single pixels stay visible; what is left over at the end is cut."""
    n_y, n_x = (side // step * step for side in codes.shape)
    blocks = codes[:n_y, :n_x].reshape(n_y // step, step, n_x // step, step).astype(np.uint16)
    out: NDArray[np.uint16] = np.bitwise_or.reduce(blocks, axis=(1, 3))
    return out


def overlay(
    image: NDArray[np.floating],
    codes: NDArray[np.integer],
    layers: Sequence[Layer],
    *,
    stretch: Stretch = "asinh",
) -> NDArray[np.uint8]:
    """Colour the pixels of an image by their classes.

    Parameters
    ----------
    image : ndarray, shape (n_y, n_x)
        Any unit; what is not finite is hatched.
    codes : ndarray of int, shape (n_y, n_x)
        Sums of the codes of `layers`; other bits are not drawn.
    layers
        From below to above: a pixel shows the last of its classes.
    stretch
        As in `tapetum.report.stamps.to_levels`.

    Returns
    -------
    ndarray of uint8, shape (n_y, n_x, 3)
        Red, green, blue.

    Raises
    ------
    ValueError
        Shapes differ.
    """
    if image.shape != codes.shape:
        raise ValueError(f"image and mask must have one shape, got {image.shape} and {codes.shape}")
    levels = to_levels(image, stretch)
    palette = np.empty((256, 3), np.float32)
    palette[:GREY_LEVELS] = np.linspace(0, 255, GREY_LEVELS)[:, None]
    palette[GREY_LEVELS:] = HATCH
    picture = palette[levels]
    for layer in layers:
        has = (codes & layer.code) != 0
        ground = np.broadcast_to(palette[levels[has]], (int(has.sum()), 3))  # not what a lower class has left
        picture[has] = (1 - layer.opacity) * ground + layer.opacity * np.array(_rgb(layer.colour), np.float32)
    return np.rint(picture).astype(np.uint8)


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def overlay_png(
    image: NDArray[np.floating],
    codes: NDArray[np.integer],
    layers: Sequence[Layer],
    *,
    scale: int = 1,
    stretch: Stretch = "asinh",
) -> bytes:
    """As `overlay`, as PNG, the first row at the bottom; `scale` picture pixels per image pixel."""
    picture = overlay(image, codes, layers, stretch=stretch)[::-1]
    return encode_rgb(np.repeat(np.repeat(picture, scale, 0), scale, 1))


def overlay_svg(
    image: NDArray[np.floating],
    codes: NDArray[np.integer],
    layers: Sequence[Layer],
    boxes: Sequence[Box] = (),
    *,
    step: int = 1,
    title: str = "image with masks",
    width: float = 620.0,
) -> str:
    """An image with its masks on it, and numbered frames around some parts; everything inside one SVG.

    Parameters
    ----------
    image, codes
        As many pixels as shall be seen, see `thinned_codes`.
    boxes
        In pixels of the image before it was thinned out by `step`.
    """
    n_y, n_x = image.shape
    scale = width / n_x
    height = n_y * scale
    address = data_uri(overlay_png(image, codes, layers))
    place = f'x="0" y="0" width="{width:g}" height="{height:.1f}" preserveAspectRatio="none"'
    marks = [f'<image href="{address}" {place} style="image-rendering:pixelated"/>']
    for number, box in enumerate(boxes, 1):
        side = box.side / step * scale
        left, top = box.x / step * scale, height - box.y / step * scale - side
        marks.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{side:.1f}" height="{side:.1f}" '
            f'style="fill:none;stroke:{FRAME_COLOUR};stroke-width:{FRAME_WIDTH:g}"/>'
        )
        beside = top - 5 if top > NUMBER_SIZE + 5 else top + side + NUMBER_SIZE
        marks.append(
            f'<text x="{left + 1:.1f}" y="{beside:.1f}" style="fill:{FRAME_COLOUR};font:bold {NUMBER_SIZE}px '
            f'sans-serif;paint-order:stroke;stroke:#000;stroke-width:3px">{number}</text>'
        )
    return svg.picture(width, height, marks, title)


def beside_svg(
    image: NDArray[np.floating],
    codes: NDArray[np.integer],
    layers: Sequence[Layer],
    *,
    title: str = "image, and with masks",
    width: float = 620.0,
) -> str:
    """An image as it is, and beside it with its masks, pixels as crisp squares."""
    n_y, n_x = image.shape
    gap = 8.0
    side = (width - gap) / 2
    height = n_y * side / n_x
    marks = [
        f'<image href="{data_uri(png)}" x="{left:g}" y="0" width="{side:g}" height="{height:.1f}" '
        'preserveAspectRatio="none" style="image-rendering:pixelated"/>'
        for left, png in ((0.0, stamp_png(image)), (side + gap, overlay_png(image, codes, layers)))
    ]
    return svg.picture(width, height, marks, title)
