"""Files that appear whole, and their hashes."""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SETTINGS_SUFFIX = ".settings.toml"  # of the file beside an output that says what made it
PART_SUFFIX = ".part"  # of a file that is not whole


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a ``.part`` path to write; it becomes `path` when the block ends well, and is removed when it does not.

    Two processes that write the same file do not meet: each has a part of its own, and the last one stays.

    Raises
    ------
    OSError
        The folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PART_SUFFIX}")
    try:
        yield part
        with part.open("rb") as handle:
            os.fsync(handle.fileno())  # else a crash could leave the name with nothing behind it
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
