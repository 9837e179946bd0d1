"""A foreign network in, its file read by a process of its own.

The C library behind HDF5 files can be crashed by a damaged or hostile file. The crash then takes a worker, and the
user gets one sentence about the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tapetum.core.errors import FormatError, InputError, TapetumError
from tapetum.models.importer import Contract, import_keras
from tapetum.models.maximask import import_copy
from tapetum.models.registry import PUBLISHED
from tapetum.pipelines.runner import run_over

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable
    from pathlib import Path

    from tapetum.models.installing import Imported
    from tapetum.models.keras_h5 import KerasNet

    Reader = Callable[[Path], KerasNet]


def import_model(
    path: Path, name: str, contract: Contract | None, models: Path, today: datetime.date
) -> Imported:
    """Import a user's file: MaxiMask and MaxiTrack from SavedModel or wheel, everything else from a Keras file.

    A Keras file is imported as `tapetum.models.importer.import_keras` does, safe from files that crash their reader.

    Raises
    ------
    InputError, ModelError
        As `import_keras` and `tapetum.models.maximask.import_copy`; `FormatError` also when the file crashes the
        process that reads it.
    """
    if name not in PUBLISHED:
        return import_keras(path, name, contract, models, today, read=read_apart)
    if contract is not None:
        raise InputError(f"{name} is a known network with its own input contract; leave the options away")
    return import_copy(path, name, models)


def keras_reader() -> Reader:
    """What the worker runs; HDF5 is loaded there."""
    from tapetum.models.keras_h5 import read_keras_h5

    return read_keras_h5


def read_apart(path: Path, setup: Callable[[], Reader] = keras_reader) -> KerasNet:
    """Read a file in a worker process.

    Parameters
    ----------
    path
        The file.
    setup
        Gives the function that reads, in the worker; a function of a module.

    Raises
    ------
    InputError
        What the function raised; `FormatError` when it took the worker with it.
    """
    try:
        [(_, net)] = run_over([path], setup, jobs=1, apart=True)
    except InputError:
        raise
    except TapetumError as problem:
        how = str(problem).partition(";")[0]  # what follows is about runs over many inputs
        raise FormatError(
            f"{path}: nobody can read it ({how}); the file is damaged, or memory was short: get it again"
        ) from None
    return net
