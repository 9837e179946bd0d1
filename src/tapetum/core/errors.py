"""The one exception tree.

::

    TapetumError            1   something went wrong and we know what
    ├── UsageError          2   the command was asked for something impossible
    ├── InputError          3   a file or value from outside cannot be used
    │   ├── FormatError         ... it is not what it should be (truncated, wrong suffix, bad checksum)
    │   └── LimitError          ... it is larger or deeper than the limits allow
    ├── MissingExtraError   4   an optional part of Tapetum is not installed
    ├── PartialFailureError 5   some inputs failed, the others are done
    ├── NetworkError        1   nothing outside could be reached
    ├── ModelError          1   a model, its card or its golden vectors do not fit together
    └── StoreError          1   a store is damaged, locked or of another version

Every message names the file or value and the remedy. The number is the exit status that the shell sees.
"""

from __future__ import annotations


class TapetumError(Exception):
    """Root of every error raised on purpose."""

    exit_code = 1


class UsageError(TapetumError):
    """The command or call asks for something that cannot be."""

    exit_code = 2


class InputError(TapetumError):
    """A file or value from outside cannot be used."""

    exit_code = 3


class FormatError(InputError):
    """Input that is not what it should be: truncated, of another format, with a wrong checksum."""


class LimitError(InputError):
    """Input beyond the limits of `tapetum.core.limits`: too large, too deep, too many."""


class MissingExtraError(TapetumError):
    """An optional part of Tapetum is needed and not installed."""

    exit_code = 4

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the extra `{extra}`; install it with  pip install 'tapetum[{extra}]'"
        )
        self.extra = extra


class PartialFailureError(TapetumError):
    """Some inputs failed; the rest is done and was written."""

    exit_code = 5


class NetworkError(TapetumError):
    """Something outside this machine could not be reached or answered nonsense."""


class ModelError(TapetumError):
    """A model, its card or its golden vectors do not fit together."""


class StoreError(TapetumError):
    """A store is damaged, busy or of another schema version."""
