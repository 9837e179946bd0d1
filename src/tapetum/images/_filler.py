"""Which value of an image only fills the places where there is no image: outside a rotated frame, for instance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tapetum.images._mesh import box_edges

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARE = 0.1  # of the pixels with a value: a filler has no less of them
FEWEST = 100  # pixels of one value that are more than chance
SAMPLE = 1 << 16  # pixels that are looked at to find candidates
MISJUDGED = 0.7  # a sample may hold this part of a candidate's true share
QUIET = 8.0  # times more frequent than both neighbours: clipping at 3 sigma leaves nothing else
PLATEAU = 1.5, 0.5  # the same where those neighbours fall no faster than by the second to the next ones
CUT = 0.05, 0.02  # part of the rest within one deviation on one side, and of that at most on the other
LOWEST = 4.0, 10.0  # deviations from an end to 95 % of the rest; what is beyond the second are sentinels
TOGETHER = 0.8  # part of the pixels of one area whose right neighbour belongs to it
ALSO_SKY = 0.01  # neighbouring levels are no rarer than this part of a value's pixels: some of these are sky
CELL = 100  # side of the cells that the others must fill somewhere [pixel], or a quarter of the image


class Values(NamedTuple):
    """Different values of some pixels, rising, and how many pixels have each."""

    value: NDArray[Any]
    pixels: NDArray[np.int64]

    def without(self, k: Any) -> Values:
        """All but one of them, or some."""
        return Values(np.delete(self.value, k), np.delete(self.pixels, k))

    def at(self, share: float) -> Any:
        """Value below which this share of the pixels is."""
        total = np.cumsum(self.pixels)
        return self.value[np.searchsorted(total, share * total[-1])]

    @property
    def spread(self) -> float:
        """Half of the range of two thirds of the pixels: one standard deviation of normal noise."""
        return (float(self.at(0.84)) - float(self.at(0.16))) / 2


def find_filler(
    data: NDArray[Any], missing: NDArray[np.bool_], full: float
) -> tuple[NDArray[np.bool_] | None, float]:
    """Pixels that only fill, and a typical value of the others.

    A value is a filler where a tenth of the pixels or more have exactly this one, and

    - it stands alone. The levels of an integer image repeat as well, but neighbouring ones about as often; one that is
      eight times more frequent than its neighbours together would be the whole sky, after clipping at 3 sigma;
    - the image is not cut off there, with many pixels close to it on one side and none on the other; nor is it its
      lowest or highest level, as 0 is where photons are counted, unless its pixels lie together;
    - the others are at least half of the pixels with a value in some cell of 100 pixels, and not all the same;
    - it is below the saturation level.

    Where the sky of an integer image has this level too, only what lies together is filled.

    Parameters
    ----------
    data : ndarray, shape (n_y, n_x)
        Image [DN], of any number type.
    missing : ndarray of bool, shape (n_y, n_x)
        Pixels without a value; not all.
    full
        Saturation level [DN].

    Returns
    -------
    filler : ndarray of bool, shape (n_y, n_x), or None
        None where there is none.
    typical
        Median of a sample of the other pixels [DN].
    """
    values = Values(*np.unique(_sample(data, missing), return_counts=True))
    least = max(FEWEST, MISJUDGED * SHARE * float(values.pixels.sum()))
    often = [k for k in np.argsort(-values.pixels, kind="stable") if values.pixels[k] >= least]
    candidates = [k for k in often if _is_a_peak(*_among_levels(values, k, often))]
    plain = values.without(candidates)  # one filler must not widen the range beside which another is judged
    filler: NDArray[np.bool_] | None = None
    for value in values.value[candidates]:
        k = int(np.searchsorted(values.value, value))
        rest = plain if plain.pixels.sum() >= SHARE * values.pixels.sum() else values.without(k)
        if value >= full or _is_a_cut(float(value), rest):
            continue
        same = _filled(data, missing, values, k, rest)
        n_values = missing.size - int(np.count_nonzero(missing))
        if np.count_nonzero(same) < SHARE * n_values or not _leaves_a_cell(same, missing):
            continue
        filler = same if filler is None else filler | same
        values = values.without(k)
    return filler, float(values.at(0.5))


def _sample(data: NDArray[Any], missing: NDArray[np.bool_]) -> NDArray[Any]:
    """Values of some pixels, the same ones in every image of that size."""
    if data.size > SAMPLE:
        places = np.random.default_rng(0).integers(0, data.size, SAMPLE)
        rows, columns = np.divmod(places, data.shape[1])
        found = data[rows, columns][~missing[rows, columns]]
        if len(found) > SAMPLE // 8:
            return found
    return data[~missing]


def _among_levels(values: Values, k: int, often: list[np.intp]) -> tuple[Values, int]:
    """The values, and where value k is among them, without other frequent ones that are far from it and no sky.

    Where nothing lies between two fillers they are neighbours, but not as the levels of an integer image are.
    """
    rest = values.without(often)
    if len(rest.value) < 2:
        return values, k
    level = float(np.diff(values.value.astype(np.float64)).min())
    far = LOWEST[1] * max(rest.spread, level)
    here = float(values.value[k])
    others = [j for j in often if abs(float(values.value[j]) - here) > far]
    near = values.without(others)
    return near, int(np.searchsorted(near.value, values.value[k]))


def _is_a_peak(values: Values, k: int) -> bool:
    """Whether a value is too frequent, beside its neighbours, to be a level of an integer sky."""
    padded = np.pad(values.pixels, 2)
    next_to, beyond = padded[k + 1] + padded[k + 3], padded[k] + padded[k + 4]
    count, (more, falls) = values.pixels[k], PLATEAU
    return bool(count > QUIET * next_to or (count > more * next_to and beyond > falls * next_to))


def _is_a_cut(value: float, rest: Values) -> bool:
    """Whether the rest of the image ends at a value, or is but one value."""
    if len(rest.value) < 2:
        return True
    away = rest.value.astype(np.float64) - value
    deviation = rest.spread
    sides = sorted(
        float(rest.pixels[(away * sign > 0) & (away * sign <= deviation)].sum()) for sign in (-1, 1)
    )
    return bool(sides[1] >= CUT[0] * rest.pixels.sum() and sides[0] < CUT[1] * sides[1])


def _filled(
    data: NDArray[Any], missing: NDArray[np.bool_], values: Values, k: int, rest: Values
) -> NDArray[np.bool_]:
    """Pixels that have a value which stands alone, less those that may be sky."""
    from scipy.ndimage import binary_dilation, binary_opening

    same: NDArray[np.bool_] = (data == values.value[k]) & ~missing
    around = values.pixels[max(k - 1, 0) : k + 2]
    if around.sum() - values.pixels[k] > ALSO_SKY * values.pixels[k]:
        square = np.ones((3, 3), bool)  # corners of an area do not hold it, but are next to where it fits
        same &= binary_dilation(binary_opening(same, square), square, iterations=2)
    elif _is_an_end(float(values.value[k]), rest):
        together = np.count_nonzero(same[:, 1:] & same[:, :-1]) >= TOGETHER * np.count_nonzero(same)
        return same if together else np.zeros_like(same)
    return same


def _is_an_end(value: float, rest: Values) -> bool:
    """Whether a value may be the lowest or highest level that the rest of the image has."""
    spread = rest.spread
    away = rest.value.astype(np.float64) - value
    lower, upper = (bool(((away * sign > 0) & (away * sign < LOWEST[1] * spread)).any()) for sign in (-1, 1))
    nearest = min(abs(float(rest.at(share)) - value) for share in (0.05, 0.95))
    return not (lower and upper) and nearest < LOWEST[0] * spread


def _leaves_a_cell(same: NDArray[np.bool_], missing: NDArray[np.bool_]) -> bool:
    """Whether other pixels are at least half of those with a value in some cell that is not much emptier than all."""
    rows, columns = (box_edges(n, min(CELL, max(8, n // 4))) for n in same.shape)
    parts = [
        np.s_[rows[j] : rows[j + 1], columns[i] : columns[i + 1]]
        for j in range(len(rows) - 1)
        for i in range(len(columns) - 1)
    ]
    known = np.array([np.count_nonzero(~missing[part]) for part in parts])
    rest = known - [np.count_nonzero(same[part]) for part in parts]
    return bool(((rest >= known / 2) & (known >= known.max() / 2)).any())
