"""The nested choice: the best frequencies of Lomb-Scargle and of entropy, and among them the best by variance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from tapetum.lightcurves.periods.grid import Values, Whole
    from tapetum.lightcurves.periods.periodograms import Periodogram
    from tapetum.lightcurves.periods.stream import Digest

Choice = Literal["lowest", "fixed", "shipped"]
"""Which frequencies entropy proposes: those of lowest entropy; those whose entropy is furthest from the mean, in
units of the scatter; or, as shipped for CPUs in the described system, those closest to the mean (a defect)."""


def proposed_by_entropy(
    choice: Choice, count: int, low: Digest, high: Digest | None, values: Values | None, kept: Whole | None
) -> Whole:
    """Numbers of the frequencies that entropy proposes.

    `low` and `high` are digests of the entropies for their smallest and largest values (`high` is for "fixed" only);
    `values` are all entropies, `kept` the numbers that are not masked (for "shipped" only).
    """
    numbers, entropies = low.top()
    if choice == "fixed" and high is not None:
        more, highest = high.top()
        numbers = np.concatenate([numbers, more])
        distance = np.abs(np.concatenate([entropies, highest]) - low.mean)
        _, first = np.unique(numbers, return_index=True)
        order = first[np.argsort(-distance[first], kind="stable")]
        return np.asarray(numbers[order[:count]])
    if choice == "shipped" and values is not None and kept is not None:
        distance = np.abs(values[kept] - low.mean)
        return np.asarray(kept[np.argsort(distance, kind="stable")[:count]])
    return numbers[:count]


def nested_choice(series: Whole, entropy: Whole, variance: Periodogram) -> tuple[int, float]:
    """Number and ratio of the proposed frequency of the largest ratio of variances; (-1, NaN) if there is none."""
    numbers = np.union1d(series, entropy)
    if not numbers.size:
        return -1, np.nan
    ratios = variance.at(numbers)
    best = int(np.argmax(ratios))
    return int(numbers[best]), float(ratios[best])
