"""The compiled walk over an Avro body.

A schema becomes a flat program (`tapetum.alerts.schema`); the walk follows it through the bytes of one record
and stores only the fields that have a slot. Everything else is stepped over without making a Python object,
which is where the time of a general decoder goes. Encoding: Apache Avro specification 1.11, section "Binary
encoding".
"""

from __future__ import annotations

import numpy as np
from numba import njit

# operations; OPTIONAL added to a primitive one means: a union of it with null, `a` is the index of the branch
# that is not null
NULL, BOOLEAN, LONG, FLOAT, DOUBLE, BYTES, FIXED, UNION, JUMP, ARRAY, MAP, LOOP, END = range(13)
OPTIONAL = 16

# kinds of a stored value
MISSING, IS_INT, IS_FLOAT, IS_BYTES, IS_BOOL = range(5)

# outcomes
OK, TRUNCATED, BAD_UNION, BAD_LENGTH, TOO_LONG, ROWS_FULL, TOO_DEEP, BAD_LONG = range(8)
REASONS = {
    TRUNCATED: "the record ends before its schema does",
    BAD_UNION: "a union names a branch that its schema does not have",
    BAD_LENGTH: "a length is negative or reaches beyond the record",
    TOO_LONG: "its arrays have more items than the limits allow",
    TOO_DEEP: "arrays are nested deeper than the limits allow",
    BAD_LONG: "an integer is longer than 64 bits",
}
MAX_NESTED_ARRAYS = 8


@njit(cache=True, inline="always")
def _long(buffer, position, end):
    """Zigzag variable-length integer: (value, next position), or next position -1 truncated, -2 too long."""
    value = np.uint64(0)
    shift = np.uint64(0)
    while position < end:
        byte = np.uint64(buffer[position])
        position += 1
        value |= (byte & np.uint64(0x7F)) << shift
        if byte < 128:
            return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1)), position
        shift += np.uint64(7)
        if shift > 63:
            return np.int64(0), -2
    return np.int64(0), -1


@njit(cache=True, inline="always")
def _store_missing(slot, row, kinds, h_row, h_kinds):
    """Note that the field of `slot` is null."""
    if slot >= 0:
        kinds[row, slot] = MISSING
    else:
        h_kinds[h_row, -slot - 2] = MISSING


@njit(cache=True, inline="always")
def _begin_row(h_row, column, array, h_kinds, h_ints):
    """Begin a history row, which says in `column` from which array it comes; False when there is no room for it."""
    if h_row >= h_kinds.shape[0]:
        return False
    h_kinds[h_row, :] = MISSING
    h_ints[h_row, column] = array
    h_kinds[h_row, column] = IS_INT
    return True


@njit(cache=True)
def walk(  # noqa: C901 - one dispatch over operations; split, each step would cost a call
    buffer,
    start,
    end,
    code,
    jumps,
    row,
    kinds,
    ints,
    floats,
    lengths,
    h_row,
    h_kinds,
    h_ints,
    h_floats,
    h_lengths,
    max_items,
):
    """Follow `code` through ``buffer[start:end]`` and fill row `row` of the slot arrays.

    Parameters
    ----------
    buffer : ndarray of uint8
    code : ndarray of int32, shape (n_instructions, 4)
        (operation, slot, a, b). Slot >= 0: column of the slot arrays; <= -2: column ``-slot - 2`` of the
        history arrays; -1: not wanted.
    jumps : ndarray of int32
        Targets of the branches of unions.
    kinds, ints, floats, lengths : ndarray, shape (n_rows, n_slots)
        Bytes and strings store their offset in `ints` and their length in `lengths`.
    h_row
        First free row of the history arrays, which have the same meaning as the slot arrays.

    Returns
    -------
    tuple of int
        (outcome, position after the record or of the fault, first free history row)
    """
    remaining = np.zeros(MAX_NESTED_ARRAYS, np.int64)
    depth = 0
    total = np.int64(0)  # items of all arrays so far: blocks and nesting must not multiply the limit
    pc = 0
    position = start
    while True:
        operation = code[pc, 0]
        slot = code[pc, 1]
        if operation >= OPTIONAL:
            if position < end and (buffer[position] & 0xFD) == 0:  # nearly always: branch 0 or 1, in one byte
                branch = np.int64(buffer[position] >> 1)
                position += 1
            else:
                branch, after = _long(buffer, position, end)
                if after < 0:
                    return TRUNCATED if after == -1 else BAD_LONG, position, h_row
                if branch != 0 and branch != 1:
                    return BAD_UNION, position, h_row
                position = after
            if branch != code[pc, 2]:
                if slot != -1:
                    _store_missing(slot, row, kinds, h_row, h_kinds)
                pc += 1
                continue
            operation -= OPTIONAL
        kind = MISSING
        integer = np.int64(0)
        real = 0.0
        length = np.int64(0)
        if operation == FLOAT:
            if position + 4 > end:
                return TRUNCATED, position, h_row
            if slot != -1:
                real = float(buffer[position : position + 4].view(np.float32)[0])
            kind = IS_FLOAT
            position += 4
        elif operation == LONG:
            integer, after = _long(buffer, position, end)
            if after < 0:
                return TRUNCATED if after == -1 else BAD_LONG, position, h_row
            real = float(integer)
            kind = IS_INT
            position = after
        elif operation == DOUBLE:
            if position + 8 > end:
                return TRUNCATED, position, h_row
            if slot != -1:
                real = buffer[position : position + 8].view(np.float64)[0]
            kind = IS_FLOAT
            position += 8
        elif operation in (BYTES, FIXED):
            if operation == BYTES:
                length, after = _long(buffer, position, end)
                if after < 0:
                    return TRUNCATED if after == -1 else BAD_LONG, position, h_row
            else:
                length, after = np.int64(code[pc, 3]), position
            if length < 0 or length > end - after:
                return BAD_LENGTH, position, h_row
            integer = after
            kind = IS_BYTES
            position = after + length
        elif operation == BOOLEAN:
            if position >= end:
                return TRUNCATED, position, h_row
            integer = np.int64(buffer[position] != 0)
            real = float(integer)
            kind = IS_BOOL
            position += 1
        elif operation == UNION:
            branch, after = _long(buffer, position, end)
            if after < 0:
                return TRUNCATED if after == -1 else BAD_LONG, position, h_row
            if branch < 0 or branch >= code[pc, 2]:
                return BAD_UNION, position, h_row
            position = after
            pc = jumps[code[pc, 3] + branch]
            continue
        elif operation == JUMP:
            pc = code[pc, 2]
            continue
        elif operation in (ARRAY, MAP):
            if depth >= MAX_NESTED_ARRAYS:
                return TOO_DEEP, position, h_row
            count, position = _block(buffer, position, end)
            if position < 0:
                return -position, start, h_row
            total += count
            if count > max_items or total > max_items:
                return TOO_LONG, position, h_row
            if count == 0:
                pc = code[pc, 2]
                continue
            remaining[depth] = count
            depth += 1
            if slot <= -2 and not _begin_row(h_row, -slot - 2, code[pc, 3], h_kinds, h_ints):
                return ROWS_FULL, position, h_row
            pc += 1
            continue
        elif operation == LOOP:
            if slot <= -2:
                h_row += 1
            remaining[depth - 1] -= 1
            if remaining[depth - 1] == 0:
                count, position = _block(buffer, position, end)
                if position < 0:
                    return -position, start, h_row
                total += count
                if count > max_items or total > max_items:
                    return TOO_LONG, position, h_row
                remaining[depth - 1] = count
            if remaining[depth - 1] == 0:
                depth -= 1
                pc += 1
                continue
            if slot <= -2 and not _begin_row(h_row, -slot - 2, code[pc, 3], h_kinds, h_ints):
                return ROWS_FULL, position, h_row
            pc = code[pc, 2]
            continue
        elif operation == END:
            return OK, position, h_row
        if slot >= 0:
            kinds[row, slot] = kind
            ints[row, slot] = integer
            floats[row, slot] = real
            lengths[row, slot] = length
        elif slot <= -2:
            column = -slot - 2
            h_kinds[h_row, column] = kind
            h_ints[h_row, column] = integer
            h_floats[h_row, column] = real
            h_lengths[h_row, column] = length
        pc += 1


@njit(cache=True)
def _block(buffer, position, end):
    """Item count of the next block of an array or map: (count, next position), or a negative outcome as position."""
    count, after = _long(buffer, position, end)
    if after < 0:
        return np.int64(0), -TRUNCATED if after == -1 else -BAD_LONG
    if count < 0:  # the block's size in bytes follows; we walk the items anyway
        count = -count
        _, after = _long(buffer, after, end)
        if after < 0:
            return np.int64(0), -TRUNCATED if after == -1 else -BAD_LONG
        if count < 0:
            return np.int64(0), -BAD_LENGTH
    return count, after
