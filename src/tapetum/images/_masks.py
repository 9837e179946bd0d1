"""Masks of others turned into our bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.images.frame import Bad, MaskPlane

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.surveys.profile import ImageMask

OWN_KEY = "BADBITS"
OWN_BITS = " ".join(reason.name or "" for reason in Bad)  # of a mask that we wrote


def bad_bits(values: NDArray[Any], rules: ImageMask) -> MaskPlane:
    """Our bits for the values of a survey's mask.

    Parameters
    ----------
    values : ndarray, shape (n_y, n_x)
        As stored; floats are rounded, NaN counts as no data.
    rules
        Which bits or codes are bad for which reason; with neither, every value but 0 is a defect.

    Returns
    -------
    ndarray of uint8, shape (n_y, n_x)
        Bits of `Bad`.
    """
    if values.dtype.kind == "f":
        missing = ~np.isfinite(values)
        whole = bad_bits(
            np.where(missing, 0, np.rint(np.clip(values, -(2.0**62), 2.0**62))).astype(np.int64), rules
        )
        whole[missing] |= np.uint8(Bad.NO_DATA)
        return whole
    if values.dtype.kind == "b" or not (rules.bits or rules.codes):
        defects: MaskPlane = (values != 0).view(np.uint8) * np.uint8(Bad.DEFECT)
        return defects
    whole_words = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    unsigned = whole_words.view(f"u{values.dtype.itemsize}")
    telling = sum({1 << bit for bits in rules.bits.values() for bit in bits}) & int(
        np.iinfo(unsigned.dtype).max
    )
    # most pixels are good, and seen to be so in one pass
    suspects = np.flatnonzero((unsigned & unsigned.dtype.type(telling) if rules.bits else unsigned) != 0)
    found = np.zeros(values.shape, np.uint8)
    found.ravel()[suspects] = _by_rule(unsigned.ravel()[suspects], rules)
    return found


def _by_rule(values: NDArray[Any], rules: ImageMask) -> MaskPlane:
    found = np.zeros(values.shape, np.uint8)
    wide = values.astype(np.int64)
    for reason, bits in rules.bits.items():
        found[wide & sum(1 << bit for bit in bits) != 0] |= np.uint8(Bad[reason.upper()])
    for reason, codes in rules.codes.items():
        found[np.isin(wide, codes)] |= np.uint8(Bad[reason.upper()])
    return found
