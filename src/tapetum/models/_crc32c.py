"""The checksum of TensorFlow's files: CRC-32 with the Castagnoli polynomial, hidden by a rotation and a constant."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Tables = NDArray[np.int64]

POLYNOMIAL = 0x82F63B78  # Castagnoli, lowest bit first
LANES = 8  # bytes per step; one table for each
HIDING = 0xA282EAD8


@cache
def _tables() -> Tables:
    """What each byte does to the checksum when 0 to 7 more bytes follow it, shape (8, 256)."""
    row = np.arange(256, dtype=np.int64)
    for _ in range(8):
        row = np.where(row & 1, (row >> 1) ^ POLYNOMIAL, row >> 1)
    rows = [row]
    for _ in range(LANES - 1):
        rows.append((rows[-1] >> 8) ^ row[rows[-1] & 0xFF])
    return np.stack(rows)


@njit(cache=True)
def _run(data: Bytes, tables: Tables, state: int) -> int:
    whole = data.size - data.size % LANES
    for i in range(0, whole, LANES):
        state = (
            tables[7, (state ^ data[i]) & 0xFF]
            ^ tables[6, ((state >> 8) ^ data[i + 1]) & 0xFF]
            ^ tables[5, ((state >> 16) ^ data[i + 2]) & 0xFF]
            ^ tables[4, ((state >> 24) ^ data[i + 3]) & 0xFF]
            ^ tables[3, data[i + 4]]
            ^ tables[2, data[i + 5]]
            ^ tables[1, data[i + 6]]
            ^ tables[0, data[i + 7]]
        )
    for i in range(whole, data.size):
        state = (state >> 8) ^ tables[0, (state ^ data[i]) & 0xFF]
    return state


def crc32c(data: bytes, start: int = 0) -> int:
    """CRC-32C of some bytes, or of more bytes after those with the checksum `start`."""
    values = np.frombuffer(data, dtype=np.uint8)
    return int(_run(values, _tables(), start ^ 0xFFFFFFFF)) ^ 0xFFFFFFFF


def masked_crc32c(data: bytes, start: int = 0) -> int:
    """The checksum as it is stored, so that a checksum over checksums stays one."""
    plain = crc32c(data, start)
    return (((plain >> 15) | (plain << 17)) + HIDING) & 0xFFFFFFFF
