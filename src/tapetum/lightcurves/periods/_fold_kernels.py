"""Compiled folding: points to phase bins at many neighbouring frequencies, phases held as 32-bit fractions of a turn.

A phase is an unsigned 32-bit number, 2^32 of them to the turn, so that it wraps by itself and its bin is the high
half of one product. At the first of every `RUN` frequencies phases are taken from float64 times anew; inside a run
they move by the 32-bit step of each point, whose rounding is at most 2^-33: within a run no phase is off by more
than RUN / 2^33 = 4e-9 turns.

Arrays are padded to a multiple of `PAD` points, because compiled loops over vectors are slow at ragged ends; what
is counted are the first points only. `LANES` frequencies are counted side by side into tables of their own: two
updates of one cell are then at least `LANES` updates apart, and no load has to wait for the store before it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

LANES = 4  # frequencies counted at a time
PAD = 64  # points
RUN = 32  # frequencies from one anchoring to the next
TURN = 4294967296.0  # 2^32
HALF_WORD = np.uint64(32)


@njit(cache=True, nogil=True)
def padded(values):
    """The same values, zeros after them."""
    wide = np.zeros((values.size + PAD - 1) // PAD * PAD, values.dtype)
    wide[: values.size] = values
    return wide


@njit(cache=True, nogil=True)
def turns(time, frequency, phase):
    """Phases at one frequency as fractions of 2^32."""
    for i in range(time.size):
        cycles = time[i] * frequency
        phase[i] = np.uint32(np.int64((cycles - math.floor(cycles)) * TURN))


@njit(cache=True, nogil=True)
def steps(time, step, phase):
    """The rounded move of each phase from one frequency to the next."""
    for i in range(time.size):
        cycles = time[i] * step
        phase[i] = np.uint32(np.int64((cycles - math.floor(cycles)) * TURN + 0.5))


@njit(cache=True, nogil=True)
def fold(phase, step, ahead, bins, base, cells):
    """Cell of each point `ahead` frequencies after the anchor: its phase bin + `base`."""
    many = np.uint32(ahead)
    count = np.uint64(bins)
    for i in range(phase.size):
        here = np.uint32(phase[i] + many * step[i])
        cells[i] = np.uint16((np.uint64(here) * count >> HALF_WORD) + np.uint64(base[i]))
