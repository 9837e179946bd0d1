"""From stamps to network input, as the model card says: the one function for training and for scoring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.alerts.batch import STAMP_NAMES
from tapetum.models import _kernels
from tapetum.models.flags import InputFlag

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.models.card import ImageContract

SUSPICIOUS = 1e30  # no flux of the sky in any unit; pipelines write -3.4e38 where a subtraction failed
_L2 = {"row_l2": _kernels.ROW, "stamp_l2": _kernels.STAMP, "stamp_l2_mean": _kernels.STAMP_MEAN}


def prepare_images(
    stamps: NDArray[np.float32], shapes: NDArray[np.integer[Any]], contract: ImageContract
) -> NDArray[np.float32]:
    """Turn stamps into the image input of a network.

    Stamps larger than the input are cut about their centre, whatever the contract says about scoring them.
    A missing stamp (shape 0, 0) gives a plane of the padding value.

    Parameters
    ----------
    stamps : ndarray of float32, shape (n, 3, n_y, n_x)
        Science, template, difference, each at the array origin; NaN where there is no value.
    shapes : ndarray of int, shape (n, 3, 2)
        (n_y, n_x) of each stamp.
    contract
        Size, channel order, normalisation, padding, masks and layout.

    Returns
    -------
    ndarray of float32
        (n, n_planes, size, size), or (n, size, size, n_planes) for the layout nhwc; finite everywhere.

    Raises
    ------
    ValueError
        The arrays do not have these shapes, or a stamp is said to be larger than its array.
    """
    pixels = np.ascontiguousarray(stamps, dtype=np.float32)
    extents = np.ascontiguousarray(shapes, dtype=np.int64)
    _check(pixels, extents)
    planes = np.array([STAMP_NAMES.index(name) for name in contract.channels], dtype=np.int64)
    centre = contract.padding.side == "centre"
    pad, limit = np.float32(contract.padding.value), np.float32(contract.limit)
    out = np.empty((len(pixels), contract.n_planes, contract.size, contract.size), dtype=np.float32)
    method = contract.normalisation.method
    if method == "background_noise":
        softening = contract.normalisation.softening
        _kernels.background_noise_planes(pixels, extents, planes, limit, softening, pad, centre, out)
    else:
        before = contract.padding.when == "before"
        _kernels.l2_planes(pixels, extents, planes, limit, _L2[method], pad, centre, before, out)
    if contract.masks != "none":
        _kernels.validity_planes(pixels, extents, planes, limit, centre, out)
    return out if contract.layout == "nchw" else np.ascontiguousarray(out.transpose(0, 2, 3, 1))


def _check(stamps: NDArray[np.float32], shapes: NDArray[np.int64]) -> None:
    if stamps.ndim != 4 or stamps.shape[1] != len(STAMP_NAMES):
        raise ValueError(f"stamps must have the shape (n, 3, n_y, n_x), not {stamps.shape}")
    if shapes.shape != (len(stamps), len(STAMP_NAMES), 2):
        raise ValueError(f"shapes must have the shape ({len(stamps)}, 3, 2), not {shapes.shape}")
    if shapes.size and (shapes.min() < 0 or (shapes.max(axis=(0, 1)) > stamps.shape[2:]).any()):
        raise ValueError(
            f"a stamp is said to be larger than its array of {stamps.shape[2]} x {stamps.shape[3]} pixels"
        )


def inspect_images(
    stamps: NDArray[np.float32], shapes: NDArray[np.integer[Any]], contract: ImageContract, full_size: int
) -> NDArray[np.int32]:
    """What is wrong or worth knowing about each stamp that a network looks at.

    Parameters
    ----------
    stamps, shapes
        As for `prepare_images`.
    contract
        Names the stamps, and the largest size where larger ones are refused.
    full_size
        Side of the survey's full stamp [pixel].

    Returns
    -------
    ndarray of int32, shape (n, n_channels)
        Bits of `InputFlag`, in the order of ``contract.channels``.

    Raises
    ------
    ValueError
        As for `prepare_images`.
    """
    pixels = np.ascontiguousarray(stamps, dtype=np.float32)
    extents = np.ascontiguousarray(shapes, dtype=np.int64)
    _check(pixels, extents)
    planes = np.array([STAMP_NAMES.index(name) for name in contract.channels], dtype=np.int64)
    good = np.zeros((len(pixels), len(planes)), dtype=np.int64)
    varied = np.zeros_like(good)
    # values like -3.4e38 are worth a flag even where the contract takes them for numbers
    limit = np.float32(min(contract.limit, SUSPICIOUS))
    _kernels.count_pixels(pixels, extents, planes, limit, good, varied)
    sides = extents[:, planes]
    area = sides.prod(axis=2)
    missing = area == 0
    flags = np.where(missing, InputFlag.MISSING_STAMP, 0)
    flags |= np.where(~missing & (varied == 0), InputFlag.DEGENERATE_STAMP, 0)
    flags |= np.where(~missing & (good < area), InputFlag.BAD_PIXELS, 0)
    flags |= np.where(~missing & (sides.min(axis=2) < full_size), InputFlag.TRUNCATED_STAMP, 0)
    if contract.larger == "reject":
        flags |= np.where(sides.max(axis=2) > contract.size, InputFlag.WRONG_SIZE, 0)
    return flags.astype(np.int32)
