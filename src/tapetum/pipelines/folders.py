"""Folders that appear whole: an old one goes only when the new one is there, and a killed run loses nothing."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from contextlib import contextmanager
from secrets import token_hex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PART, OLD = ".part", ".old"  # of folders that are being written or replaced
LEFT = re.compile(r"(?P<name>.+)\.[0-9a-f]{8}(?P<kind>\.part|\.old)")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `target` when the block ends well, and an old `target` is then gone.

    Raises
    ------
    OSError
        It cannot be made or moved; the old `target` stays.
    """
    part = target.with_name(f"{target.name}.{token_hex(4)}{PART}")
    part.mkdir(parents=True)
    try:
        with _held(part):
            yield part
            _moved(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _moved(part: Path, target: Path) -> None:
    if not target.exists():
        part.rename(target)
        return
    old = target.with_name(f"{target.name}.{token_hex(4)}{OLD}")
    target.rename(old)
    try:
        part.rename(target)
    except OSError:
        if not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)  # what is left of it goes with the next run


def recover_folders(parent: Path) -> None:
    """Clean up after runs that were killed: half-written folders go, and a folder that was moved aside comes back.

    Folders that a living process writes are left alone.

    Raises
    ------
    OSError
        An old folder cannot be moved back.
    """
    for path in sorted(parent.iterdir()) if parent.is_dir() else []:
        left = LEFT.fullmatch(path.name)
        if left is None or path.is_symlink() or not path.is_dir():
            continue
        target = path.with_name(left["name"])
        if left["kind"] == OLD and not target.exists():
            path.rename(target)
        elif left["kind"] == OLD or not _is_held(path):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """A lock on a folder, for as long as this process lives."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle)
        yield
    finally:
        os.close(handle)


def _is_held(folder: Path) -> bool:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return True
    try:
        return not _lock(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Whether the lock could be had; not where another process has it, nor on file systems without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
