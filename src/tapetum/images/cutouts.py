"""Stamps cut from an image, many at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tapetum.images.frame import Image


def centre_pixel(position: ArrayLike) -> NDArray[np.int64]:
    """Index of the pixel that holds a 0-based position: ``floor(position + 0.5)``, as in `PsfModel.stamp`."""
    return np.floor(np.asarray(position, np.float64) + 0.5).astype(np.int64)


def distances(x: NDArray[np.float64], y: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Distance of every pixel of the stamps that `cut` makes from their positions [pixel], shape (n, size, size)."""
    offset = np.arange(size) - size // 2
    dx = centre_pixel(x)[:, None] + offset - x[:, None]
    dy = centre_pixel(y)[:, None] + offset - y[:, None]
    return np.hypot(dx[:, None, :], dy[:, :, None])


def cut(data: NDArray[Any], x: ArrayLike, y: ArrayLike, size: int) -> Image:
    """Cut a square stamp around each position.

    Parameters
    ----------
    data : ndarray, shape (n_y, n_x)
        Image of any real dtype and byte order.
    x, y : array_like, shape (n,)
        0-based positions [pixel], finite; they may lie outside the image.
    size
        Side of a stamp [pixel]. The middle pixel ``size // 2`` of the stamp is the one that holds the position.

    Returns
    -------
    ndarray of float32, shape (n, size, size)
        NaN where the image has no pixel.

    Raises
    ------
    ValueError
        `data` is not two-dimensional, `x` and `y` differ in length or are not finite, or `size` is not positive.

    Examples
    --------
    >>> cut(np.arange(6, dtype=np.int16).reshape(2, 3), [0.4], [0.0], 3)[0].tolist()
    [[nan, nan, nan], [nan, 0.0, 1.0], [nan, 3.0, 4.0]]
    """
    x, y = np.atleast_1d(np.asarray(x, np.float64)), np.atleast_1d(np.asarray(y, np.float64))
    if data.ndim != 2 or x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"need an image and two equal lists, got shapes {data.shape}, {x.shape}, {y.shape}")
    if size < 1 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"need a positive size and finite positions, got size {size}")
    n_y, n_x = data.shape
    offsets = np.arange(size) - size // 2
    # positions far outside would overflow the arithmetic; beyond the image all are alike
    rows = np.clip(centre_pixel(np.clip(y, -1e9, 1e9)), -size - 1, n_y + size)[:, None] + offsets
    columns = np.clip(centre_pixel(np.clip(x, -1e9, 1e9)), -size - 1, n_x + size)[:, None] + offsets
    outside = ((rows < 0) | (rows >= n_y))[:, :, None] | ((columns < 0) | (columns >= n_x))[:, None, :]
    if not data.size:
        return np.full((len(x), size, size), np.nan, np.float32)
    taken = data[np.clip(rows, 0, n_y - 1)[:, :, None], np.clip(columns, 0, n_x - 1)[:, None, :]]
    stamps: Image = taken.astype(np.float32)
    stamps[outside] = np.nan
    return stamps
