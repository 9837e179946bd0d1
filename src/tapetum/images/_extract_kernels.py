"""Compiled loops that find sources: smooth, cut, join, take apart, clean and measure.

After Bertin & Arnouts (1996), A&AS 117, 393, sections 5 and 6. Pixels above the threshold are kept as runs along
rows. A component is a set of runs that touch, corners included; each is taken apart on its own, so that threads can
share them and nothing depends on their number. A plane `noise` or `mask` of one row holds for all rows.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from tapetum.images._detect_kernels import fit_ellipse

# columns of a table of objects
X, Y, XX, XY, YY, FLUX, LIGHT, PEAK, TOP, N_PIX, LEVEL, LEAST, HALF, FLAG, PEAK_X, PEAK_Y = range(16)
COLUMNS = 16
SPLIT, AT_EDGE, CUT_SHORT, HAS_HOLES = 2, 8, 16, 32  # SExtractor's flags
BRANCH_AREA = 3  # fewest pixels of a branch, above the level where it meets others
POINT_VARIANCE = 1 / 12  # of light within one pixel [pixel^2]
REACH = 5.0  # of a branch, in standard deviations; pixels beyond follow their neighbours
MOST_WIDENED = 4.0  # factor on the variance of a branch that is hardly higher than where it splits off
FAINT_WING = 0.01  # wings fainter than this part of the threshold clean nothing away
CELL = 32  # of the grid of neighbours [pixel]
KRON_REACH = 6.0  # the first moment of the light is taken within this many standard deviations


@njit(cache=True, nogil=True)
def _load_row(data, noise, mask, y, half, line, hole):
    """One row with zeros at its ends and where it has no value; says how many such holes it has."""
    line[:] = 0
    hole[:] = 0
    if y < 0 or y >= data.shape[0]:
        return 0
    sigma = noise[min(y, noise.shape[0] - 1)]
    bits = mask[min(y, mask.shape[0] - 1)]
    source = data[y]
    endless = np.float32(np.inf)
    holes = 0
    for x in range(source.size):
        value, s = source[x], sigma[x]
        good = (bits[x] == 0) & (abs(value) < endless) & (s > np.float32(0)) & (s < endless)
        line[x + half] = value if good else np.float32(0)
        hole[x] = 0 if good else 1
        holes += 0 if good else 1
    return holes


@njit(cache=True, nogil=True, fastmath={"contract"})
def _smooth_row(lines, newest, kernel, smooth):
    """Weighted sum of a ring of rows of which `newest` was filled last."""
    tall, wide = kernel.shape
    smooth[:] = 0
    for j in range(tall):
        line = lines[(newest + 1 + j) % tall]
        for i in range(wide):
            weight = kernel[j, i]
            part = line[i:]
            for x in range(smooth.size):
                smooth[x] += weight * part[x]


@njit(cache=True, nogil=True)
def _limit_row(sigma, threshold, hole, n_holes, limit):
    """What a smoothed pixel must exceed; no pixel exceeds it in a hole."""
    for x in range(limit.size):
        limit[x] = threshold * sigma[x]
    if n_holes > 0:
        for x in range(limit.size):
            if hole[x]:
                limit[x] = np.inf


@njit(cache=True, nogil=True)
def _cut_row(smooth, limit, left, right, values):
    """Runs of a row that exceed the limit, and their pixels one after the other; how many of both."""
    n_runs, n_values, inside = 0, 0, False
    for x in range(smooth.size):
        if smooth[x] > limit[x]:
            if not inside:
                left[n_runs] = x
                inside = True
            values[n_values] = smooth[x]
            n_values += 1
        elif inside:
            right[n_runs] = x - 1
            n_runs += 1
            inside = False
    if inside:
        right[n_runs] = smooth.size - 1
        n_runs += 1
    return n_runs, n_values


@njit(cache=True, nogil=True)
def _room(array, n, more):
    """The array, or a longer one that begins with its first `n` values and has room for `more`."""
    if n + more <= array.size:
        return array
    longer = np.empty(2 * (n + more), array.dtype)
    for k in range(n):
        longer[k] = array[k]
    return longer


@njit(cache=True, nogil=True)
def bright_runs(data, noise, mask, kernel, threshold, first, last):
    """Smooth rows `first` to `last` and cut them at `threshold` times the noise.

    Returns
    -------
    row, left, right : ndarray of int32, shape (n_runs,)
        Runs of bright pixels, both ends included.
    values : ndarray of float32
        The smoothed pixels of all runs, one after the other.
    """
    n_x = data.shape[1]
    tall, wide = kernel.shape
    lines, holes = np.zeros((tall, n_x + wide - 1), np.float32), np.zeros((tall, n_x), np.uint8)
    n_holes = np.zeros(tall, np.int64)
    smooth, limit, bright = np.empty(n_x, np.float32), np.empty(n_x, np.float32), np.empty(n_x, np.float32)
    begin, end = np.empty(n_x // 2 + 1, np.int32), np.empty(n_x // 2 + 1, np.int32)
    row, left, right = np.empty(4096, np.int32), np.empty(4096, np.int32), np.empty(4096, np.int32)
    values = np.empty(16384, np.float32)
    n_runs, n_values = 0, 0
    for newest in range(first - tall // 2, last - tall // 2 + tall - 1):
        slot = newest % tall
        n_holes[slot] = _load_row(data, noise, mask, newest, wide // 2, lines[slot], holes[slot])
        y = newest + tall // 2 - tall + 1
        if y < first:
            continue
        _smooth_row(lines, slot, kernel, smooth)
        _limit_row(noise[min(y, noise.shape[0] - 1)], threshold, holes[y % tall], n_holes[y % tall], limit)
        runs, pixels = _cut_row(smooth, limit, begin, end, bright)
        row, left, right = _room(row, n_runs, runs), _room(left, n_runs, runs), _room(right, n_runs, runs)
        values = _room(values, n_values, pixels)
        for k in range(runs):
            row[n_runs + k], left[n_runs + k], right[n_runs + k] = y, begin[k], end[k]
        for k in range(pixels):
            values[n_values + k] = bright[k]
        n_runs += runs
        n_values += pixels
    return row[:n_runs], left[:n_runs], right[:n_runs], values[:n_values]


@njit(cache=True, inline="always")
def _root(parent, k):
    while parent[k] != k:
        parent[k] = parent[parent[k]]
        k = parent[k]
    return k


@njit(cache=True, nogil=True)
def _counted_up(start):
    """Turn counts, shifted by one, into the places where each group begins, in place; a copy to fill them with."""
    for k in range(1, start.size):
        start[k] += start[k - 1]
    return start.copy()


@njit(cache=True, nogil=True)
def join_runs(row, left, right, min_area):
    """Components of runs that touch, those of at least `min_area` pixels, ordered by their first run.

    Returns
    -------
    runs : ndarray of int64
        Numbers of their runs, component by component.
    start : ndarray of int64, shape (n_components + 1,)
        Where each component begins in `runs`.
    """
    n = row.size
    parent = np.arange(n)
    above, end_above, begin = 0, 0, 0
    for k in range(n):
        if k == 0 or row[k] != row[k - 1]:
            touches = k > 0 and row[k - 1] == row[k] - 1
            above, end_above, begin = begin if touches else k, k, k
        while above < end_above and right[above] < left[k] - 1:
            above += 1
        other = above
        while other < end_above and left[other] <= right[k] + 1:
            one, two = _root(parent, k), _root(parent, other)
            parent[max(one, two)] = min(one, two)
            other += 1
    area, count = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for k in range(n):
        parent[k] = _root(parent, k)
        area[parent[k]] += right[k] - left[k] + 1
        count[parent[k]] += 1
    number = np.full(n, -1, np.int64)
    n_kept, total = 0, 0
    for k in range(n):
        if parent[k] == k and area[k] >= min_area:
            number[k] = n_kept
            n_kept += 1
            total += count[k]
    start = np.zeros(n_kept + 1, np.int64)
    for k in range(n):
        if number[parent[k]] >= 0:
            start[number[parent[k]] + 1] += 1
    fill, runs = _counted_up(start), np.empty(total, np.int64)
    for k in range(n):
        c = number[parent[k]]
        if c >= 0:
            runs[fill[c]] = k
            fill[c] += 1
    return runs, start


@njit(cache=True, nogil=True)
def _peaks(value, n, cell, grid, step):
    """Number of pixels that none of their neighbours outshines."""
    count = 0
    for k in range(n):
        highest = True
        for s in step:
            other = grid[cell[k] + s] - 1
            if other >= 0 and (value[other] > value[k] or (value[other] == value[k] and other < k)):
                highest = False
                break
        count += highest
    return count


@njit(cache=True, nogil=True)
def _by_level(value, n, base, levels):
    """Pixels from the highest to the lowest of `levels` spaced evenly in log(value) between `base` and the peak.

    Returns their order, where each level begins in it (highest first), and the lower limit of each level.
    """
    peak = base
    for k in range(n):
        peak = max(peak, value[k])
    scale = levels / math.log(peak / base)
    level = np.empty(n, np.int64)
    start = np.zeros(levels + 1, np.int64)
    for k in range(n):
        level[k] = levels - 1 - min(max(int(scale * math.log(value[k] / base)), 0), levels - 1)
        start[level[k] + 1] += 1
    fill, order = _counted_up(start), np.empty(n, np.int64)
    for k in range(n):
        order[fill[level[k]]] = k
        fill[level[k]] += 1
    limits = np.empty(levels)
    for k in range(levels):
        limits[k] = base * math.exp((levels - 1 - k) / scale)
    return order, start, limits


@njit(cache=True, nogil=True)
def _join_pixel(k, cell, grid, step, parent, following, tail, area, light):
    """Add a pixel to the branches it touches, which become one; the pixels of a branch are a chain from its root."""
    parent[k] = k
    for s in step:
        other = grid[cell[k] + s] - 1
        if other < 0 or parent[other] < 0:
            continue
        one, two = _root(parent, k), _root(parent, other)
        if one == two:
            continue
        if area[one] < area[two]:
            one, two = two, one
        parent[two] = one
        following[tail[one]] = two
        tail[one] = tail[two]
        area[one] += area[two]
        light[one] += light[two]


@njit(cache=True, nogil=True)
def _split_off(
    roots, n_roots, old_area, counts, was_whole, parent, following, whole, votes, label, n_objects
):
    """Make objects of the branches that a junction joins, if two or more of them count."""
    for a in range(n_roots):
        votes[_root(parent, roots[a])] += counts[a]
    for a in range(n_roots):
        joined = _root(parent, roots[a])
        if votes[joined] > 1 and counts[a] and was_whole[a]:
            n_objects += 1
            k = roots[a]
            for _ in range(old_area[a]):
                label[k] = n_objects
                k = following[k]
        if votes[joined] > 1 or not was_whole[a]:
            whole[joined] = False
    for a in range(n_roots):
        votes[_root(parent, roots[a])] = 0
    return n_objects


@njit(cache=True, nogil=True)
def _renew(roots, n_roots, order, first, last, parent):
    """Roots that are still roots, and those among the pixels that were added."""
    n = 0
    for a in range(n_roots):
        if parent[roots[a]] == roots[a]:
            roots[n] = roots[a]
            n += 1
    for a in range(first, last):
        if parent[order[a]] == order[a]:
            roots[n] = order[a]
            n += 1
    return n


@njit(cache=True, nogil=True)
def _branches(value, n, cell, grid, step, base, levels, contrast, label, split_at):
    """Take one component apart: a tree of its levels, from the summits down.

    Where branches meet, those with at least `BRANCH_AREA` pixels whose light above the level of the junction exceeds
    `contrast` times the light of the whole component count; if two or more do, each of them that was not split
    further up becomes an object of its own.

    Returns their number; fills `label` with object + 1, or 0, and `split_at` with the levels where they split off.
    """
    order, start, limits = _by_level(value, n, base, levels)
    parent, following, tail = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    area, light, total = np.ones(n, np.int64), np.empty(n), 0.0
    for k in range(n):
        parent[k], tail[k], light[k], label[k] = -1, k, value[k], 0
        total += value[k]
    whole, votes, roots = np.ones(n, np.uint8), np.zeros(n, np.int64), np.empty(n, np.int64)
    old_area, was_whole, counts = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n, np.int64)
    n_roots, n_objects = 0, 0
    for level in range(levels):
        limit = limits[max(level - 1, 0)]
        for a in range(n_roots):
            r = roots[a]
            old_area[a], was_whole[a] = area[r], whole[r]
            counts[a] = area[r] >= BRANCH_AREA and light[r] - limit * area[r] > contrast * total
        for a in range(start[level], start[level + 1]):
            _join_pixel(order[a], cell, grid, step, parent, following, tail, area, light)
        before = n_objects
        n_objects = _split_off(
            roots, n_roots, old_area, counts, was_whole, parent, following, whole, votes, label, n_objects
        )
        split_at[before:n_objects] = limit
        n_roots = _renew(roots, n_roots, order, start[level], start[level + 1], parent)
    return n_objects


@njit(cache=True, nogil=True)
def _branch_models(px, py, value, n, label, n_objects, split_at, models):
    """A Gaussian for each branch: columns log(peak), x, y and the three terms of its exponent, reach in x and y.

    It has the peak of the branch, the shape of its moments, and the area of the branch where it splits off.
    """
    models[:] = 0
    top, area = np.zeros(n_objects), np.zeros(n_objects)
    for k in range(n):
        s = label[k] - 1
        if s >= 0:
            v, x, y = float(value[k]), float(px[k]), float(py[k])
            models[s, 0] += v
            models[s, 1] += v * x
            models[s, 2] += v * y
            models[s, 3] += v * x * x
            models[s, 4] += v * x * y
            models[s, 5] += v * y * y
            top[s] = max(top[s], v)
            area[s] += 1
    for s in range(n_objects):
        x, y = models[s, 1] / models[s, 0], models[s, 2] / models[s, 0]
        xx = models[s, 3] / models[s, 0] - x * x + POINT_VARIANCE
        xy = models[s, 4] / models[s, 0] - x * y
        yy = models[s, 5] / models[s, 0] - y * y + POINT_VARIANCE
        size = math.sqrt(xx * yy - xy * xy)
        height = math.log(max(top[s] / split_at[s], 1.001))
        factor = min(max(area[s] / (2 * math.pi * size * height), 1.0), MOST_WIDENED)
        inverse = 0.5 / (factor * size * size)
        models[s, 0], models[s, 1], models[s, 2] = math.log(top[s]), x, y
        models[s, 3], models[s, 4], models[s, 5] = yy * inverse, -2 * xy * inverse, xx * inverse
        models[s, 6], models[s, 7] = REACH * math.sqrt(factor * xx), REACH * math.sqrt(factor * yy)


@njit(cache=True, nogil=True)
def _share(n, grid, width, left, top, right, bottom, step, cell, models, label):
    """Give the pixels below the branches to the branch whose model is brightest there, the rest to their neighbours."""
    owner, best = np.empty(n, np.int64), np.empty(n)
    for k in range(n):
        owner[k], best[k] = label[k], -np.inf
    for s in range(models.shape[0]):
        x, y, reach_x, reach_y = models[s, 1], models[s, 2], models[s, 6], models[s, 7]
        for j in range(max(int(y - reach_y), top), min(int(y + reach_y) + 1, bottom) + 1):
            dy = j - y
            for i in range(max(int(x - reach_x), left), min(int(x + reach_x) + 1, right) + 1):
                k = grid[(j - top + 1) * width + i - left + 1] - 1
                if k < 0 or owner[k] > 0:
                    continue
                dx = i - x
                height = models[s, 0] - (
                    models[s, 3] * dx * dx + models[s, 4] * dx * dy + models[s, 5] * dy * dy
                )
                if height > best[k]:
                    best[k] = height
                    label[k] = s + 1
    queue, n_queued = np.empty(n, np.int64), 0
    for k in range(n):
        if label[k] > 0:
            queue[n_queued] = k
            n_queued += 1
    q = 0
    while q < n_queued:
        k = queue[q]
        q += 1
        for s in step:
            other = grid[cell[k] + s] - 1
            if other >= 0 and label[other] == 0:
                label[other] = label[k]
                queue[n_queued] = other
                n_queued += 1


@njit(cache=True, nogil=True)
def _least_of_brightest(value, members, first, last, count, heap):
    """The `count`-th largest of the values of some pixels, kept in a heap whose root is the smallest."""
    for a in range(last - first):
        v = value[members[first + a]]
        if a < count:
            at = a
            while at > 0 and heap[(at - 1) // 2] > v:
                heap[at] = heap[(at - 1) // 2]
                at = (at - 1) // 2
            heap[at] = v
        elif v > heap[0]:
            at = 0
            while 2 * at + 1 < count:
                child = 2 * at + 1
                if child + 1 < count and heap[child + 1] < heap[child]:
                    child += 1
                if heap[child] >= v:
                    break
                heap[at] = heap[child]
                at = child
            heap[at] = v
    return heap[0]


@njit(cache=True, nogil=True)
def _describe(px, py, value, members, begin, end, data, base, heap, out):
    """Moments of the smoothed light, and light, peak and area, of the pixels `members` from `begin` to `end`."""
    x0, y0 = px[members[begin]], py[members[begin]]
    light, sx, sy, sxx, sxy, syy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    flux, peak, top = 0.0, np.float32(-np.inf), np.float32(-np.inf)
    touches = False
    for a in range(begin, end):
        k = members[a]
        x, y = px[k], py[k]
        v, raw = value[k], data[y, x]
        dx, dy = float(x - x0), float(y - y0)
        light += v
        sx += v * dx
        sy += v * dy
        sxx += v * dx * dx
        sxy += v * dx * dy
        syy += v * dy * dy
        flux += raw
        top = max(top, v)
        if raw > peak:
            peak = raw
            out[PEAK_X], out[PEAK_Y] = x, y
        touches = touches or x == 0 or y == 0 or x == data.shape[1] - 1 or y == data.shape[0] - 1
    sx, sy = sx / light, sy / light
    sxx, sxy, syy = sxx / light - sx * sx, sxy / light - sx * sy, syy / light - sy * sy
    if sxx * syy - sxy * sxy < POINT_VARIANCE**2:
        sxx += POINT_VARIANCE
        syy += POINT_VARIANCE
    half = 0.5 * (base + top)
    above = 0
    for a in range(begin, end):
        above += value[members[a]] > half
    out[X], out[Y], out[XX], out[XY], out[YY] = x0 + sx, y0 + sy, sxx, sxy, syy
    out[FLUX], out[LIGHT], out[PEAK], out[TOP], out[N_PIX] = flux, light, peak, top, end - begin
    out[LEVEL], out[HALF] = base, above
    out[LEAST] = _least_of_brightest(value, members, begin, end, min(heap.size, end - begin), heap)
    out[FLAG] = AT_EDGE if touches else 0


@njit(cache=True, nogil=True)
def _largest(first, last, runs, start, left, right, row):
    """Most pixels of one component, and most of the box around one with a margin of one pixel."""
    most, widest = 1, 1
    for c in range(first, last):
        n, low, high = 0, left[runs[start[c]]], 0
        for a in range(start[c], start[c + 1]):
            r = runs[a]
            n += right[r] - left[r] + 1
            low, high = min(low, left[r]), max(high, right[r])
        tall = row[runs[start[c + 1] - 1]] - row[runs[start[c]]] + 3
        most, widest = max(most, n), max(widest, tall * (high - low + 3))
    return most, widest


@njit(cache=True, nogil=True)
def _load(component, row, left, right, at, values, noise, px, py, value):
    """Pixels of a component: their number, and the least noise among them."""
    n, least = 0, np.float32(np.inf)
    for r in component:
        y = row[r]
        sigma = noise[min(y, noise.shape[0] - 1)]
        for x in range(left[r], right[r] + 1):
            px[n], py[n], value[n] = x, y, values[at[r] + x - left[r]]
            least = min(least, sigma[x])
            n += 1
    return n, least


@njit(cache=True, nogil=True)
def _split(px, py, value, n, grid, cell, step, base, levels, contrast, label, split_at):
    """Number of objects in a component; fills `label` with object + 1 if there are more than one."""
    low, high = px[0], px[0]
    for k in range(n):
        low, high = min(low, px[k]), max(high, px[k])
    top, bottom, width = py[0], py[n - 1], high - low + 3
    for k in range(n):
        cell[k] = (py[k] - top + 1) * width + px[k] - low + 1
        grid[cell[k]] = k + 1
    for k in range(4):
        step[k] = k - 1 - width if k < 3 else -1
        step[7 - k] = -step[k]
    n_objects = 1
    if _peaks(value, n, cell, grid, step) > 1:
        n_objects = _branches(value, n, cell, grid, step, base, levels, contrast, label, split_at)
        if n_objects > 1:
            models = np.empty((n_objects, 8))
            _branch_models(px, py, value, n, label, n_objects, split_at, models)
            _share(n, grid, width, low, top, high, bottom, step, cell, models, label)
    for k in range(n):
        grid[cell[k]] = 0
    return max(n_objects, 1)


@njit(cache=True, nogil=True)
def _more_rows(table, n, more):
    """The table, or a longer one that begins with its first `n` rows and has room for `more`."""
    if n + more <= table.shape[0]:
        return table
    longer = np.empty((2 * (n + more), COLUMNS))
    for k in range(n):
        for c in range(COLUMNS):
            longer[k, c] = table[k, c]
    return longer


@njit(cache=True, nogil=True)
def take_apart(
    first, last, runs, start, row, left, right, at, values, data, noise, threshold,
    min_area, levels, contrast, number, owner,
):  # fmt: skip
    """Objects of the components `first` to `last`, a row of the table for each.

    Parameters
    ----------
    runs, start
        As `join_runs` gives them.
    at : ndarray of int64
        Where the pixels of each run begin in `values`.
    number
        Of the first object, for `owner`.
    owner : ndarray of int32, shape of `data`, or empty
        Filled with object + 1 where a source is, unless it is empty.
    """
    most, widest = _largest(first, last, runs, start, left, right, row)
    grid, step = np.zeros(widest, np.int32), np.empty(8, np.int64)
    px, py, value = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.float32)
    cell, label, members = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    heap, split_at = np.empty(min_area, np.float32), np.empty(most // BRANCH_AREA + 1)
    table, n_rows = np.empty((1024, COLUMNS)), 0
    for c in range(first, last):
        n, least = _load(runs[start[c] : start[c + 1]], row, left, right, at, values, noise, px, py, value)
        base = least * threshold
        n_objects = 1
        if n >= 2 * BRANCH_AREA and levels > 1 and contrast < 1:
            n_objects = _split(px, py, value, n, grid, cell, step, base, levels, contrast, label, split_at)
        if n_objects == 1:
            label[:n] = 1
        ends = np.zeros(n_objects + 1, np.int64)
        for k in range(n):
            ends[label[k]] += 1
        fill = _counted_up(ends)
        for k in range(n):
            members[fill[label[k] - 1]] = k
            fill[label[k] - 1] += 1
        table = _more_rows(table, n_rows, n_objects)
        for s in range(n_objects):
            _describe(px, py, value, members, ends[s], ends[s + 1], data, base, heap, table[n_rows + s])
            table[n_rows + s, FLAG] += SPLIT if n_objects > 1 else 0
        if owner.size > 0:
            for k in range(n):
                owner[py[k], px[k]] = number + n_rows + label[k]
        n_rows += n_objects
    return table[:n_rows]


@njit(cache=True, nogil=True)
def clean(table, falling, wing, n_y, n_x):
    """Which objects stay: those that would be there without the wings of their brighter neighbours.

    A neighbour is taken for a Moffat profile of power `wing` with its flux in the core, through its threshold at the
    edge of its area. Its light is subtracted from `LEAST`, the faintest pixel that the object needs for its area.
    """
    n = table.shape[0]
    stays = np.ones(n, np.bool_)
    columns, rows = n_x // CELL + 1, n_y // CELL + 1
    start = np.zeros(columns * rows + 1, np.int64)
    place = np.empty(n, np.int64)
    for k in range(n):
        place[k] = int(table[k, Y]) // CELL * columns + int(table[k, X]) // CELL
        start[place[k] + 1] += 1
    fill, content = _counted_up(start), np.empty(n, np.int64)
    for k in range(n):
        content[fill[place[k]]] = k
        fill[place[k]] += 1
    for k in falling:
        if not stays[k]:
            continue
        xx, xy, yy, level = table[k, XX], table[k, XY], table[k, YY], table[k, LEVEL]
        inverse = 1 / (xx * yy - xy * xy)
        size = math.pi / math.sqrt(inverse)
        shed = table[k, N_PIX] - table[k, HALF]
        core = 2 * size * math.log(0.5 * (level + table[k, TOP]) / level)
        fullness = min(shed / core, 1.0) if shed > 0 and core > 0 else 1.0
        summit = table[k, LIGHT] / (2 * size * fullness)
        if summit <= level:
            continue
        slope = ((summit / level) ** (1 / wing) - 1) * size / table[k, N_PIX]
        far = (summit / (FAINT_WING * level)) ** (1 / wing) / slope
        reach_x, reach_y = math.sqrt(far * xx), math.sqrt(far * yy)
        for j in range(
            int(max(table[k, Y] - reach_y, 0)) // CELL, int(min(table[k, Y] + reach_y, n_y - 1)) // CELL + 1
        ):
            for i in range(
                int(max(table[k, X] - reach_x, 0)) // CELL,
                int(min(table[k, X] + reach_x, n_x - 1)) // CELL + 1,
            ):
                for other in content[start[j * columns + i] : start[j * columns + i + 1]]:
                    if not stays[other] or table[other, LIGHT] >= table[k, LIGHT]:
                        continue
                    dx, dy = table[other, X] - table[k, X], table[other, Y] - table[k, Y]
                    d2 = (yy * dx * dx - 2 * xy * dx * dy + xx * dy * dy) * inverse
                    if d2 > far:
                        continue
                    light = summit * (1 + slope * d2) ** -wing
                    if table[other, LEAST] - light < table[other, LEVEL]:
                        stays[other] = False
    return stays


@njit(cache=True, nogil=True)
def _good(data, noise, mask, y, x):
    """Variance of a pixel, or -1 if it cannot be used."""
    sigma = noise[min(y, noise.shape[0] - 1), x]
    if mask[min(y, mask.shape[0] - 1), x] != 0 or not abs(data[y, x]) < np.inf:
        return -1.0
    if not (sigma > 0 and sigma < np.inf):
        return -1.0
    return float(sigma) * float(sigma)


@njit(cache=True, nogil=True)
def _finished(flux, variance, area, lost, whole, gain):
    """Flux with the mean of the good pixels in the place of the bad ones, error and flag of an aperture."""
    flag = 0 if whole else CUT_SHORT
    if lost > 0:
        flag |= HAS_HOLES
        if not area > lost:
            return np.nan, np.nan, flag
        flux *= area / (area - lost)
        variance *= area / (area - lost)
    if gain > 0 and flux > 0:
        variance += flux / gain
    return flux, math.sqrt(variance), flag


@njit(cache=True, nogil=True)
def _circle_edges(first, n, centre, radius, edge, chord, under_edge, under_chord):
    """Edges of pixels from the centre, the half chords there, and the areas under a quarter circle up to both."""
    for k in range(n):
        t = first - 0.5 + k - centre
        edge[k] = t
        s = min(abs(t), radius)
        c = math.sqrt(radius * radius - s * s)
        angle = math.asin(s / radius)
        chord[k] = c
        under_edge[k] = 0.5 * (s * c + radius * radius * angle)
        under_chord[k] = 0.5 * (s * c + radius * radius * (0.5 * math.pi - angle))


@njit(cache=True, nogil=True)
def _quarter(x, under_x, y, chord_y, under_chord_y, radius):
    """Area of the circle between the axes and the lines at x and y, negative in two of the quadrants.

    With |x| and |y|: all of it where the corner is inside; else the strip of height y up to where the circle comes
    down to it, and what is under the circle from there to x.
    """
    a, b = abs(x), abs(y)
    if a * a + b * b <= radius * radius:
        return x * y
    area = b * chord_y - under_chord_y + under_x if b < radius else under_x
    return area if (x < 0) == (y < 0) else -area


@njit(cache=True, nogil=True)
def circle_sums(data, noise, mask, x, y, radius, gain, first, last, flux, error, flags):
    """Flux of sources `first` to `last` in circles, each pixel by the exact part of it that is inside."""
    side = int(2 * radius) + 4
    ex, cx, ux, vx = np.empty(side), np.empty(side), np.empty(side), np.empty(side)
    ey, cy, uy, vy = np.empty(side), np.empty(side), np.empty(side), np.empty(side)
    lower, upper = np.empty(side), np.empty(side)
    for n in range(first, last):
        left, right = math.floor(x[n] - radius + 0.5), math.floor(x[n] + radius + 0.5)
        top, bottom = math.floor(y[n] - radius + 0.5), math.floor(y[n] + radius + 0.5)
        _circle_edges(left, right - left + 2, x[n], radius, ex, cx, ux, vx)
        _circle_edges(top, bottom - top + 2, y[n], radius, ey, cy, uy, vy)
        total, variance, area, lost, whole = 0.0, 0.0, 0.0, 0.0, True
        for j in range(top, bottom + 2):
            b = j - top
            for a in range(right - left + 2):
                upper[a] = _quarter(ex[a], ux[a], ey[b], cy[b], vy[b], radius)
            for i in range(left, right + 1 if b > 0 else left):
                a = i - left
                part = upper[a + 1] - upper[a] - lower[a + 1] + lower[a]
                if part <= 0:
                    continue
                if not (0 <= j - 1 < data.shape[0] and 0 <= i < data.shape[1]):
                    whole = False
                    continue
                area += part
                v = _good(data, noise, mask, j - 1, i)
                if v < 0:
                    lost += part
                    continue
                total += part * data[j - 1, i]
                variance += part * v
            lower, upper = upper, lower
        flux[n], error[n], flag = _finished(total, variance, area, lost, whole, gain)
        flags[n] |= flag


@njit(cache=True, nogil=True)
def kron_sums(data, noise, mask, table, factor, least, gain, first, last, flux, error, flags):
    """Flux of sources `first` to `last` in ellipses of `factor` times Kron's radius, at least of `least` sigma.

    Kron (1980), ApJS 43, 305: the radius is the first moment of the light, here in units of the axes.
    """
    for n in range(first, last):
        x, y, xx, xy, yy = table[n, X], table[n, Y], table[n, XX], table[n, XY], table[n, YY]
        inverse = 1 / (xx * yy - xy * xy)
        scale, moment, light = KRON_REACH, 0.0, 0.0
        total, variance, area, lost, whole = 0.0, 0.0, 0, 0, True
        for turn in range(2):
            reach_x, reach_y = scale * math.sqrt(xx), scale * math.sqrt(yy)
            left, right = math.ceil(x - reach_x), math.floor(x + reach_x)
            top, bottom = math.ceil(y - reach_y), math.floor(y + reach_y)
            whole = left >= 0 and top >= 0 and right < data.shape[1] and bottom < data.shape[0]
            for j in range(max(top, 0), min(bottom, data.shape[0] - 1) + 1):
                dy = j - y
                for i in range(max(left, 0), min(right, data.shape[1] - 1) + 1):
                    dx = i - x
                    d2 = (yy * dx * dx - 2 * xy * dx * dy + xx * dy * dy) * inverse
                    if d2 > scale * scale:
                        continue
                    v = _good(data, noise, mask, j, i)
                    if turn == 0:
                        if v >= 0:
                            moment += math.sqrt(d2) * data[j, i]
                            light += data[j, i]
                        continue
                    area += 1
                    if v < 0:
                        lost += 1
                    else:
                        total += data[j, i]
                        variance += v
            if turn == 0:
                ratio = moment / light if light > 0 and moment > 0 else 0.0
                scale = max(factor * min(ratio, KRON_REACH), least)
        flux[n], error[n], flag = _finished(total, variance, area, lost, whole, gain)
        flags[n] |= flag


@njit(cache=True, nogil=True)
def core_moments(data, noise, mask, x, y, sigma, radius, first, last, moments):
    """Second moments of the Gaussian that fits the core of sources `first` to `last` best, NaN where none does."""
    longest = 0
    for n in range(first, last):
        longest = max(longest, int(radius[n]))
    weighted = np.empty((2 * longest + 1, 2 * longest + 1), np.float32)
    weight = np.empty((2 * longest + 1, 2 * longest + 1), np.float32)
    for n in range(first, last):
        reach = int(radius[n])
        column, row = math.floor(x[n] + 0.5), math.floor(y[n] + 0.5)
        for j in range(2 * reach + 1):
            for i in range(2 * reach + 1):
                v, u = row - reach + j, column - reach + i
                variance = -1.0
                if 0 <= v < data.shape[0] and 0 <= u < data.shape[1]:
                    variance = _good(data, noise, mask, v, u)
                weight[j, i] = variance > 0
                weighted[j, i] = data[v, u] if variance > 0 else np.float32(0)
        moments[n, 0], moments[n, 1], moments[n, 2] = fit_ellipse(
            weighted, weight, 0, x[n] - column + reach, y[n] - row + reach, 1.0, sigma[n], radius[n]
        )
