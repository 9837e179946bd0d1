"""Compiled loop of the cleaning: which points of which curves stay, and why the others do not."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

RUN = 8  # points that are sorted by insertion


@njit(cache=True, nogil=True)
def clean(
    time,
    mag,
    magerr,
    flags,
    offsets,
    switches,
    bad_flags,
    limits,
    cadence,
    least,
    stay,
    ends,
    dropped,
    reason,
):
    """Numbers of the points that stay, in `stay`, by curve and time; returns how many they are.

    `switches`: (only finite, only positive errors); `limits`: (brightest, faintest, latest); `cadence` [d]; `least`:
    the points a curve needs. Filled: `ends` (n_curves,), one past the last of each curve in `stay`; `dropped`
    (n_curves, 6), points by the rule that took them; `reason` (n_curves,), set to that rule + 2, or 1 for curves that
    came short.
    """
    end = 0
    spare = np.empty(np.max(offsets[1:] - offsets[:-1]) if len(offsets) > 1 else 0, np.int64)
    for curve in range(len(offsets) - 1):
        first, last = offsets[curve], offsets[curve + 1]
        taken = dropped[curve]
        size, ordered = _select(
            time, mag, magerr, flags, first, last, switches, bad_flags, limits, stay[end:], taken
        )
        mine = stay[end : end + size]
        if not ordered:
            _sort(time, mine, spare)
        if cadence > 0:
            size = _thin(time, mine, cadence)
            taken[5] += len(mine) - size
        if size >= least:
            end += size
        else:
            reason[curve] = _reason(last - first, taken, least)
        ends[curve] = end
    return end


@njit(cache=True, nogil=True)
def _select(time, mag, magerr, flags, first, last, switches, bad_flags, limits, stay, taken):
    """Put the points that break no rule into `stay`; how many they are, and whether they are in order of time."""
    size = 0
    ordered = True
    for point in range(first, last):
        flag = flags[point] if len(flags) else 0
        rule = _rule_against(time[point], mag[point], magerr[point], flag, switches, bad_flags, limits)
        if rule >= 0:
            taken[rule] += 1
            continue
        if size and time[point] < time[stay[size - 1]]:
            ordered = False
        stay[size] = point
        size += 1
    return size, ordered


@njit(cache=True, nogil=True)
def _rule_against(time, mag, magerr, flag, switches, bad_flags, limits):
    """Number of the first rule that a point breaks, -1 if none."""
    if switches[0] and not (math.isfinite(time) and math.isfinite(mag) and math.isfinite(magerr)):
        return 0
    if switches[1] and not magerr > 0:
        return 1
    if flag & bad_flags:
        return 2
    if mag < limits[0] or mag > limits[1]:
        return 3
    if time > limits[2]:
        return 4
    return -1


@njit(cache=True, nogil=True)
def _sort(time, points, spare):
    """Sort numbers of points by their time, stably: short runs by insertion, then runs merged two by two."""
    n = len(points)
    for first in range(0, n, RUN):
        for i in range(first + 1, min(first + RUN, n)):
            point = points[i]
            at = i
            while at > first and time[points[at - 1]] > time[point]:
                points[at] = points[at - 1]
                at -= 1
            points[at] = point
    width = RUN
    while width < n:
        for first in range(0, n - width, 2 * width):
            middle = first + width
            if time[points[middle - 1]] > time[points[middle]]:
                _merge(time, points, first, middle, min(middle + width, n), spare)
        width *= 2


@njit(cache=True, nogil=True)
def _merge(time, points, first, middle, last, spare):
    """Merge two sorted runs, the left one's points first where times are equal."""
    n_left = middle - first
    for i in range(n_left):
        spare[i] = points[first + i]
    left, right, at = 0, middle, first
    while left < n_left and right < last:
        if time[points[right]] < time[spare[left]]:
            points[at] = points[right]
            right += 1
        else:
            points[at] = spare[left]
            left += 1
        at += 1
    for i in range(left, n_left):
        points[at] = spare[i]
        at += 1


@njit(cache=True, nogil=True)
def _thin(time, points, cadence):
    """Leave out the points that follow the last one left in by less than `cadence`; returns how many stay."""
    size = 0
    for point in points:
        if size == 0 or time[point] - time[points[size - 1]] >= cadence:
            points[size] = point
            size += 1
    return size


@njit(cache=True, nogil=True)
def _reason(size, taken, least):
    """Which rule left less than `least` points: its number + 2; 1 when there never were as many."""
    if size < least:
        return 1
    for rule in range(len(taken)):
        size -= taken[rule]
        if size < least:
            return rule + 2
    return 1
