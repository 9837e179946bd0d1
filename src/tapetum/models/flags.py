"""Bits of the column `flags`: what was noticed about the input of a score."""

from __future__ import annotations

from enum import IntFlag


class InputFlag(IntFlag):
    """One bit each; the model card repeats their names."""

    MISSING_STAMP = 1  # a stamp is not there: not scored
    MISSING_FEATURE = 2  # a field the network needs is not there: not scored
    TRUNCATED_STAMP = 4  # a stamp is smaller than the survey's full stamp, cut by a detector edge: scored
    BAD_PIXELS = 8  # a stamp has pixels without a value inside: scored
    DEGENERATE_STAMP = 16  # a stamp has no value at all, or one value everywhere: not scored
    WRONG_SIZE = 32  # a stamp is larger than the network takes: not scored
    BAD_OUTPUT = 64  # the network gave something that is not a finite number: not scored
    IMPUTED = 128  # a missing feature was replaced by what the training data say: scored


UNSCORED = (
    InputFlag.MISSING_STAMP
    | InputFlag.MISSING_FEATURE
    | InputFlag.DEGENERATE_STAMP
    | InputFlag.WRONG_SIZE
    | InputFlag.BAD_OUTPUT
)


def flag_names() -> dict[int, str]:
    """Bit -> name, as a model card lists them."""
    return {flag.value: flag.name.lower() for flag in InputFlag if flag.name}
