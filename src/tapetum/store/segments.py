"""Segments: append-only files that keep the Avro bodies of alerts.

A segment is 8 bytes of magic, then bodies without anything between them; where each begins and ends, and its CRC-32,
is in the alert's row. Bytes behind the last body that a row names were written by a process that died before its
commit: the next writer cuts them off. One process writes at a time; the lock is the kernel's and ends with the process.

The file that is locked also says how many transactions the database had committed. A database that knows of fewer came
without its log, or is an older copy: then bytes without rows are not leftovers, and nobody may cut them off.
"""

from __future__ import annotations

import fcntl
import os
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import isal.isal_zlib

from tapetum.core.errors import StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

MAGIC = b"TAPSEG1\n"
LOCK_NAME = "writer.lock"
IOV_MAX = 512  # buffers in one system call; Linux takes 1024


def segments_folder(place: str) -> Path:
    """The local folder that `place` (a path or ``file://`` URL) names.

    Raises
    ------
    UsageError
        Another scheme.
    """
    if "://" not in place:
        return Path(place)
    parts = urlsplit(place)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise UsageError(f"{place}: segments are kept in a local folder; give a path or file:///PATH")
    return Path(unquote(parts.path))


def segment_name(number: int) -> str:
    """File name of segment `number`."""
    return f"{number:08d}.seg"


def crc32(body: bytes) -> int:
    """CRC-32 (ISO 3309, as in gzip) of a body."""
    return int(isal.isal_zlib.crc32(body))


def read_mark(folder: Path) -> int:
    """How many transactions had been committed when the last writer of `folder` said so; 0 when none did."""
    try:
        text = (folder / LOCK_NAME).read_bytes()
    except OSError:
        return 0
    return int(text) if text.strip().isdigit() else 0


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SegmentReader:
    """Reads bodies back; keeps the last few files open.

    Parameters
    ----------
    folder
        Where the segments are.
    """

    MAX_OPEN = 16

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, int] = {}

    def read(self, name: str, offset: int, length: int, checksum: int) -> bytes:
        """The body at `offset` of segment `name`.

        Raises
        ------
        StoreError
            The file is missing or short, or the bytes are not the ones written.
        """
        body = os.pread(self._descriptor(name), length, offset)
        if len(body) < length:
            raise StoreError(
                f"{self.folder / name}: ends before byte {offset + length}; restore it from a backup"
            )
        if crc32(body) != checksum:
            raise StoreError(
                f"{self.folder / name}: bytes {offset}...{offset + length} fail their checksum; restore it"
            )
        return body

    def _descriptor(self, name: str) -> int:
        if name not in self._open:
            if len(self._open) >= self.MAX_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            try:
                self._open[name] = os.open(self.folder / name, os.O_RDONLY)
            except OSError as problem:
                raise StoreError(
                    f"{self.folder / name}: {problem.strerror}; segments must move along with their database"
                ) from None
        return self._open[name]

    def close(self) -> None:
        """Close the files."""
        while self._open:
            os.close(self._open.popitem()[1])


class SegmentWriter:
    """Appends bodies; the only writer of its folder while it is open.

    Parameters
    ----------
    folder
        Made if missing.
    segment_bytes
        A segment that is larger is closed and the next one begun.

    Raises
    ------
    StoreError
        Another process writes, or the folder cannot be written.
    """

    def __init__(self, folder: Path, segment_bytes: int) -> None:
        self.folder, self.segment_bytes = folder, segment_bytes
        self.number, self.end = 0, 0
        self._file = -1
        self._synced, self._unsynced = 0, False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as problem:
            raise StoreError(f"{folder}: cannot be written: {problem.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise StoreError(
                f"{folder}: another process is writing to this store; wait for it to end"
            ) from None

    def mark(self, commits: int) -> None:
        """Say that so many transactions are committed; not on disk at once, but after any death of this process.

        Raises
        ------
        StoreError
            The disk is full or fails.
        """
        try:
            os.pwrite(self._lock, b"%020d\n" % commits, 0)
        except OSError as problem:
            raise StoreError(
                f"{self.folder / LOCK_NAME}: {problem.strerror}; all is stored, but not yet acknowledged"
            ) from None

    def resume(self, number: int, end: int) -> None:
        """Go on in segment `number` after byte `end`, the last one that a row names; what follows is cut off.

        Raises
        ------
        StoreError
            The segment is missing or shorter than that.
        """
        path = self.folder / segment_name(number)
        try:
            self._file = os.open(path, os.O_RDWR)
        except OSError as problem:
            raise StoreError(
                f"{path}: {problem.strerror}; segments must move along with their database"
            ) from None
        size = os.fstat(self._file).st_size
        if size < end:
            raise StoreError(f"{path}: has {size} bytes where rows name {end}; restore it from a backup")
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)
        self.number, self.end, self._synced = number, end, end

    def append(self, bodies: Sequence[bytes]) -> tuple[int, list[int]]:
        """Write `bodies` one after the other; they are safe after `sync`.

        Returns
        -------
        (int, list of int)
            Number of the segment, and the offset of each body.

        Raises
        ------
        StoreError
            The disk is full or fails.
        """
        try:
            if self._file < 0 or self.end >= self.segment_bytes:
                self._begin(self.number + 1)
            ends = list(accumulate(map(len, bodies), initial=self.end))
            for first in range(0, len(bodies), IOV_MAX):
                self._write(bodies[first : first + IOV_MAX])
        except OSError as problem:
            raise StoreError(f"{self.folder}: {problem.strerror}; nothing of this batch was stored") from None
        return self.number, ends[:-1]

    def sync(self) -> None:
        """Return when everything appended is on disk.

        Raises
        ------
        StoreError
            The disk is full or fails.
        """
        if not self._unsynced:
            return
        try:
            os.fdatasync(self._file)
        except OSError as problem:
            raise StoreError(f"{self.folder}: {problem.strerror}; nothing of this batch was stored") from None
        # bodies are seldom read soon: the next ones may take their memory, and the database keeps its own
        os.posix_fadvise(self._file, self._synced, self.end - self._synced, os.POSIX_FADV_DONTNEED)
        self._synced, self._unsynced = self.end, False

    def _begin(self, number: int) -> None:
        self.sync()
        if self._file >= 0:
            os.close(self._file)
        path = self.folder / segment_name(number)
        # a file of this name is a leftover of a process that died before its commit: no row names it
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self.number, self.end, self._synced = number, 0, 0
        self._write([MAGIC])
        for folder in (self.folder, self.folder.parent):
            _sync_folder(folder)  # the names of file and folder must be on disk as well

    def _write(self, parts: Sequence[bytes]) -> None:
        size = sum(map(len, parts))
        done = os.writev(self._file, parts)  # one call for many bodies: half the cost of a call each
        if done < size:  # a signal, or the disk is full and the next call says so
            rest = memoryview(b"".join(parts))[done:]
            while rest:
                rest = rest[os.write(self._file, rest) :]
        self.end += size
        self._unsynced = True

    def close(self) -> None:
        """Close the segment and let another process write."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
