"""Which frequencies a true one can be mistaken for, and what two frequencies have to do with each other."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tapetum.lightcurves.periods.grid import Values

SOLAR, SIDEREAL = 1.0, 1.0 / 0.99726957  # turns of the Earth [1/d]
YEAR, MONTH = 1 / 365.25, 1 / 29.530589  # [1/d]
MULTIPLES = (
    (1.0, "f"),
    (0.5, "f/2"),
    (2.0, "2f"),
    (1 / 3, "f/3"),
    (3.0, "3f"),
    (1.5, "3f/2"),
    (2 / 3, "2f/3"),
)
SHIFTS = (
    (0.0, ""),
    (YEAR, "1/yr"),
    (2 * YEAR, "2/yr"),
    (MONTH, "1/month"),
    (SOLAR, "1/d"),
    (SIDEREAL, "1/sidereal d"),
    (2 * SOLAR, "2/d"),
    (2 * SIDEREAL, "2/sidereal d"),
    (3 * SOLAR, "3/d"),
    (3 * SIDEREAL, "3/sidereal d"),
)
FAMILY_MULTIPLES = (1.0, 0.5, 2.0)
FAMILY_SHIFTS = (0.0, SOLAR, SIDEREAL, 2 * SOLAR, 2 * SIDEREAL, YEAR)


def family(frequencies: Values, lowest: float, highest: float, spacing: float) -> Values:
    """The frequencies themselves, their halves and doubles, and all daily and yearly aliases of these.

    Those closer than half of `spacing` count once; none is outside of `lowest` to `highest` [1/d].
    """
    shifts = np.array([sign * shift for shift in FAMILY_SHIFTS for sign in ((1, -1) if shift else (1,))])
    base = np.multiply.outer(np.asarray(frequencies, np.float64), FAMILY_MULTIPLES)
    wide = np.abs(np.add.outer(base, shifts)).ravel()
    wide = wide[(wide >= lowest) & (wide <= highest)]
    _, first = np.unique(np.rint(wide / (0.5 * spacing)), return_index=True)
    return np.asarray(wide[np.sort(first)])


def relation(frequency: float, other: float, tolerance: float) -> str:
    """How the other frequency is made of this one: "f", "2f", "f+1/d", "-f/2+1/sidereal d", ...; "" if not at all.

    The simplest that holds to within `tolerance` [1/d] is given; fractions have the tolerance of the numbers
    that they are made of.
    """
    for (shift, by), (factor, name) in sorted(product(SHIFTS, MULTIPLES), key=_complexity):
        for sign, mark in ((1, "+"), (-1, "-")):
            if abs(factor * frequency + sign * shift - other) <= tolerance:
                return name + (mark + by if by else "")
        if by and abs(shift - factor * frequency - other) <= tolerance:
            return f"-{name}+{by}"
    return ""


def _complexity(pair: tuple[tuple[float, str], tuple[float, str]]) -> int:
    return SHIFTS.index(pair[0]) + 2 * MULTIPLES.index(pair[1])
