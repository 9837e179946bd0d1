"""Compiled loops that turn stamps into network input; called through `tapetum.models.inputs` only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from tapetum.core.robust import MAD_TO_SIGMA

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.float32]
    Keys = NDArray[np.int32]
    Integers = NDArray[np.int64]
    Number = Any  # a float32 or an int32, as the compiled code needs it

# reassoc and contract let sums and products run in vector registers; NaN and infinity keep their meaning
VECTOR = {"reassoc", "contract", "nsz", "arcp"}
LARGEST = np.float32(np.finfo(np.float32).max)
ROW, STAMP, STAMP_MEAN = 0, 1, 2
MISSING_KEY = np.int32(0x7FFFFFFF)
LOWEST_KEY = np.int32(-0x80000000)
FEW = 16  # candidates left when finding their neighbours pays
SMALLEST = 5e-38  # its inverse is a finite float32
ARCSINH_LIMIT = np.float32(1e15)  # its square is a finite float32


@njit(cache=True)
def _window(n: int, size: int, centre: bool) -> tuple[int, int, int]:
    """Start in the stamp, start in the plane, and length of what both share along one axis."""
    if n >= size:
        return (n - size) // 2, 0, size
    return 0, (size - n + 1) // 2 if centre else 0, n


@njit(cache=True, fastmath=VECTOR, error_model="numpy")
def _copy_valid(
    stamp: Pixels, plane: Pixels, sy: int, sx: int, dy: int, dx: int, height: int, width: int, limit: Number
) -> None:
    """Copy the window; pixels without a value become 0."""
    for y in range(height):
        source = stamp[sy + y, sx : sx + width]
        target = plane[dy + y, dx : dx + width]
        for x in range(width):
            value = source[x]
            target[x] = value if abs(value) <= limit else np.float32(0)


@njit(cache=True, error_model="numpy")
def _inverse_norm(square: float) -> float:
    """1 / norm; 1 for a norm of zero, and 0 where the float32 norm of the original code overflows."""
    if square > LARGEST:
        return 0.0
    return 1.0 / np.sqrt(square) if square > 0 else 1.0


# rows are sliced one by one: a two-dimensional slice loses its unit stride, with it the vector registers
@njit(cache=True, fastmath=VECTOR, error_model="numpy")
def _divide_rows(plane: Pixels, dy: int, dx: int, height: int, width: int) -> None:
    for y in range(height):
        row = plane[dy + y, dx : dx + width]
        square = 0.0
        for x in range(width):
            square += np.float64(row[x]) * np.float64(row[x])
        factor = np.float32(_inverse_norm(square))
        for x in range(width):
            row[x] *= factor


@njit(cache=True, fastmath=VECTOR, error_model="numpy")
def _divide_stamp(plane: Pixels, dy: int, dx: int, height: int, width: int, minus_mean: bool) -> None:
    square = 0.0
    total = 0.0
    for y in range(height):
        row = plane[dy + y, dx : dx + width]
        for x in range(width):
            square += np.float64(row[x]) * np.float64(row[x])
            total += np.float64(row[x])
    factor = _inverse_norm(square)
    shift = np.float32(total * factor / max(height * width, 1)) if minus_mean else np.float32(0)
    for y in range(height):
        row = plane[dy + y, dx : dx + width]
        for x in range(width):
            row[x] = row[x] * np.float32(factor) - shift


@njit(cache=True)
def l2_planes(
    stamps: Pixels,
    shapes: Integers,
    channels: Integers,
    limit: Number,
    method: int,
    pad: Number,
    centre: bool,
    before: bool,
    out: Pixels,
) -> None:
    """Fill the first planes of ``out[n, plane, size, size]`` with L2-normalised stamps."""
    size = out.shape[2]
    for i in range(stamps.shape[0]):
        for p in range(channels.size):
            c = channels[p]
            plane = out[i, p]
            sy, dy, height = _window(shapes[i, c, 0], size, centre)
            sx, dx, width = _window(shapes[i, c, 1], size, centre)
            if height < size or width < size:
                plane[:] = pad
            _copy_valid(stamps[i, c], plane, sy, sx, dy, dx, height, width, limit)
            if before:
                dy, dx, height, width = 0, 0, size, size
            if method == ROW:
                _divide_rows(plane, dy, dx, height, width)
            else:
                _divide_stamp(plane, dy, dx, height, width, method == STAMP_MEAN)


# Order statistics work on keys: the bits of a float32 as an int32 that sorts like the float. Integer counts,
# minima and maxima run in vector registers: a pass over a whole stamp costs less than moving a tenth of it.
@njit(cache=True, inline="always")
def _key(value: Number) -> Number:
    bits = np.float32(value).view(np.int32)
    return np.int32(bits ^ ((bits >> np.int32(31)) & MISSING_KEY))


@njit(cache=True, inline="always")
def _value(key: Number) -> Number:
    return np.int32(key ^ ((key >> np.int32(31)) & MISSING_KEY)).view(np.float32)


@njit(cache=True, fastmath=VECTOR, error_model="numpy")
def _gather(values: Pixels, limit: Number, keys: Keys) -> tuple[int, float, float]:
    """Keys of the values, missing ones on top; number, mean and standard deviation of the others."""
    count = 0
    total = 0.0
    square = 0.0
    for j in range(values.size):
        value = values[j]
        good = abs(value) <= limit
        keys[j] = _key(value) if good else MISSING_KEY
        kept = np.float64(value) if good else 0.0
        count += 1 if good else 0
        total += kept
        square += kept * kept
    if count == 0:
        return 0, 0.0, 0.0
    mean = total / count
    return count, mean, np.sqrt(max(square / count - mean * mean, 0.0))


@njit(cache=True)
def _count(keys: Keys, pivot: Number) -> Number:
    """How many keys are below `pivot`."""
    below = np.int32(0)
    for j in range(keys.size):
        below += np.int32(1) if keys[j] < pivot else np.int32(0)
    return below


@njit(cache=True)
def _split(keys: Keys, pivot: Number) -> tuple[Number, Number, Number]:
    """How many keys are below `pivot`, the largest of them, and the smallest of the others."""
    below = np.int32(0)
    largest = LOWEST_KEY
    smallest = MISSING_KEY
    for j in range(keys.size):
        key = keys[j]
        under = key < pivot
        below += np.int32(1) if under else np.int32(0)
        low = key if under else LOWEST_KEY
        high = MISSING_KEY if under else key
        largest = low if low > largest else largest
        smallest = high if high < smallest else smallest
    return below, largest, smallest


@njit(cache=True)
def order_statistic(keys: Keys, rank: int, low: Number, high: Number) -> Number:
    """The key of 0-based `rank` among `keys`, known to lie in [low, high].

    Bisection, at every other step with the pivot guessed from the counts; among the last few candidates the
    bounds move to keys that occur, which ends it.
    """
    low_rank = 0
    high_rank = keys.size
    guess = True
    while low < high:
        if guess and high_rank > low_rank:
            # as if the values between were spread evenly
            share = (rank + 0.5 - low_rank) / (high_rank - low_rank)
            bottom, top = np.float64(_value(low)), np.float64(_value(high))
            pivot = _key(bottom + (top - bottom) * share)
        else:
            pivot = np.int32(low + (np.int64(high) - np.int64(low)) // 2)
        guess = not guess
        pivot = min(max(pivot, np.int32(low + 1)), high)
        if high_rank - low_rank > FEW:
            below = _count(keys, pivot)
            largest, smallest = np.int32(pivot - 1), pivot
        else:
            below, largest, smallest = _split(keys, pivot)
        if below > rank:
            high, high_rank = largest, below
        else:
            low, low_rank = smallest, below
    return low


@njit(cache=True, fastmath=VECTOR, error_model="numpy")
def _to_distances(keys: Keys, centre: Number) -> float:
    """Replace keys by those of the distance from `centre`; the sum of the distances."""
    total = 0.0
    for j in range(keys.size):
        key = keys[j]
        distance = abs(_value(key) - centre)
        good = key != MISSING_KEY
        # the bits of numbers that are not negative sort as they are
        keys[j] = np.float32(distance).view(np.int32) if good else MISSING_KEY
        total += np.float64(distance) if good else 0.0
    return total


@njit(cache=True, error_model="numpy")
def _background_and_noise(values: Pixels, limit: Number, keys: Keys) -> tuple[Number, float]:
    count, mean, deviation = _gather(values, limit, keys)
    if count == 0:
        return np.float32(0), 1.0
    rank = (count - 1) // 2
    # the median lies within one standard deviation of the mean; a hair more covers rounding
    margin = deviation * 1.0001 + abs(mean) * 1e-6
    low, high = max(mean - margin, -np.float64(LARGEST)), min(mean + margin, np.float64(LARGEST))
    background = _value(order_statistic(keys, rank, _key(low), _key(high)))
    total = _to_distances(keys, background)
    # at most half of the distances can be above twice their mean (Markov)
    high = min(total / count * 2.0001, np.float64(LARGEST))
    mad = np.float64(_value(order_statistic(keys, rank, np.int32(0), _key(high))))
    if mad > SMALLEST:
        return background, mad * MAD_TO_SIGMA
    # more than half of the pixels are equal: what scatter there is must do
    return background, deviation if deviation > SMALLEST else 1.0


@njit(cache=True, fastmath=VECTOR, error_model="numpy")
def stretch(values: Pixels, limit: Number, background: Number, factor: Number) -> None:
    """Replace `values` by ``arcsinh((values - background) * factor)``, 0 where there is no value.

    arcsinh u = log(u + sqrt(u^2 + 1)) for u >= 0; log(2^e m) = e log 2 + 2 artanh((m - 1) / (m + 1)), whose
    series is below 1e-7 after five terms for m within [sqrt 1/2, sqrt 2]. Written out for vector registers.
    """
    for x in range(values.size):
        value = values[x]
        scaled = (value - background) * factor if abs(value) <= limit else np.float32(0)
        size = min(abs(scaled), ARCSINH_LIMIT)
        grown = size + np.sqrt(size * size + np.float32(1))
        bits = np.float32(grown).view(np.int32)
        exponent = (bits - np.int32(0x3F3504F3)) >> np.int32(23)  # 0x3F3504F3 is sqrt(1/2)
        mantissa = np.int32(bits - (exponent << np.int32(23))).view(np.float32)
        ratio = (mantissa - np.float32(1)) / (mantissa + np.float32(1))
        square = ratio * ratio
        series = np.float32(1 / 7) + square * np.float32(1 / 9)
        series = np.float32(1) + square * (np.float32(1 / 3) + square * (np.float32(1 / 5) + square * series))
        result = np.float32(exponent) * np.float32(0.6931471805599453) + np.float32(2) * ratio * series
        values[x] = -result if scaled < 0 else result


@njit(cache=True, error_model="numpy")
def background_noise_planes(
    stamps: Pixels,
    shapes: Integers,
    channels: Integers,
    limit: Number,
    softening: float,
    pad: Number,
    centre: bool,
    out: Pixels,
) -> None:
    """Fill the first planes of ``out[n, plane, size, size]`` with softened stamps in units of their noise."""
    size = out.shape[2]
    all_values = np.empty(size * size, np.float32)
    all_keys = np.empty(size * size, np.int32)
    for i in range(stamps.shape[0]):
        for p in range(channels.size):
            c = channels[p]
            sy, dy, height = _window(shapes[i, c, 0], size, centre)
            sx, dx, width = _window(shapes[i, c, 1], size, centre)
            plane = out[i, p]
            if height < size or width < size:
                plane[:] = pad
            # the loops below want one long run of pixels: rows of 63 would leave vector registers half empty
            values, keys = all_values[: height * width], all_keys[: height * width]
            for y in range(height):
                source = stamps[i, c, sy + y, sx : sx + width]
                target = values[y * width : (y + 1) * width]
                for x in range(width):
                    target[x] = source[x]
            background, noise = _background_and_noise(values, limit, keys)
            factor = min(1.0 / (noise * softening), np.float64(LARGEST))
            stretch(values, limit, background, np.float32(factor))
            for y in range(height):
                source = values[y * width : (y + 1) * width]
                target = plane[dy + y, dx : dx + width]
                for x in range(width):
                    target[x] = source[x]


@njit(cache=True, fastmath=VECTOR, error_model="numpy")
def validity_planes(
    stamps: Pixels, shapes: Integers, channels: Integers, limit: Number, centre: bool, out: Pixels
) -> None:
    """Fill the last planes of `out`, one per channel or one for all: 1 where a pixel has a value, else 0."""
    size = out.shape[2]
    last = out.shape[1] - 1
    for i in range(stamps.shape[0]):
        out[i, channels.size :] = 1
        for p in range(channels.size):
            c = channels[p]
            sy, dy, height = _window(shapes[i, c, 0], size, centre)
            sx, dx, width = _window(shapes[i, c, 1], size, centre)
            plane = out[i, min(channels.size + p, last)]
            plane[:dy] = 0
            plane[dy + height :] = 0
            for y in range(height):
                source = stamps[i, c, sy + y, sx : sx + width]
                row = plane[dy + y]
                row[:dx] = 0
                row[dx + width :] = 0
                kept = row[dx : dx + width]
                for x in range(width):
                    kept[x] = kept[x] if abs(source[x]) <= limit else np.float32(0)


@njit(cache=True)
def _first_value(stamp: Pixels, height: int, width: int, limit: Number) -> Number:
    for y in range(height):
        for x in range(width):
            if abs(stamp[y, x]) <= limit:
                return stamp[y, x]
    return np.float32(0)


@njit(cache=True, error_model="numpy")
def _count_run(values: Pixels, first: Number, limit: Number) -> tuple[Number, Number]:
    good = np.int32(0)
    varied = np.int32(0)
    for j in range(values.size):
        value = values[j]
        one = np.int32(1) if abs(value) <= limit else np.int32(0)
        good += one
        varied += one if value != first else np.int32(0)
    return good, varied


@njit(cache=True, error_model="numpy")
def count_pixels(
    stamps: Pixels, shapes: Integers, channels: Integers, limit: Number, good: Integers, varied: Integers
) -> None:
    """Count, per alert and channel, the pixels with a value, and those whose value is not that of the first one."""
    for i in range(stamps.shape[0]):
        for p in range(channels.size):
            c = channels[p]
            stamp = stamps[i, c]
            height, width = shapes[i, c, 0], shapes[i, c, 1]
            first = _first_value(stamp, height, width, limit)
            n_rows, length = (1, height * width) if width == stamp.shape[1] else (height, width)
            flat = stamp.reshape(-1)
            good[i, p] = 0
            varied[i, p] = 0
            for y in range(n_rows):
                start = y * stamp.shape[1]
                n_good, n_varied = _count_run(flat[start : start + length], first, limit)
                good[i, p] += n_good
                varied[i, p] += n_varied
