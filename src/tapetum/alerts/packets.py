"""Packets found in files: Avro containers, tar archives, folders, bare records with a given schema, brokers' Parquet.

Whatever the source, what comes out is the Avro body of one record and its schema. A source or record that
cannot be read comes out as a `Rejection`, and the rest goes on.
"""

from __future__ import annotations

import bz2
import logging
import lzma
import os
import stat
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import isal.igzip
import isal.isal_zlib

from tapetum.alerts.batch import Rejection
from tapetum.alerts.containers import AVRO_MAGIC, Packet, Window, read_bare, read_container
from tapetum.core.errors import InputError
from tapetum.core.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from tapetum.alerts.schema import AlertSchema

log = logging.getLogger(__name__)
STDIN = "-"
PARQUET_MAGIC = b"PAR1"
TAR_MAGIC = b"ustar"
TAR_MAGIC_AT = 257
HEAD_BYTES = 512
TAR_BUFFER = 2**17  # larger ones are slower
SMALL = 2**20  # read at once
MOST_LAYERS = 3  # a container in a tar archive in a compressed file
OUR_SUFFIXES = (".avro", ".parquet", ".tar", ".tgz", ".gz", ".xz", ".bz2", ".txz")
OPENERS: dict[bytes, Callable[[IO[bytes]], IO[bytes]]] = {
    b"\x1f\x8b": lambda stream: isal.igzip.open(stream, "rb"),
    b"\xfd7zXZ": lambda stream: lzma.open(stream, "rb"),  # noqa: SIM115 - the caller closes it
    b"BZh": lambda stream: bz2.open(stream, "rb"),  # noqa: SIM115
}
READ_ERRORS = (OSError, EOFError, zlib.error, isal.isal_zlib.error, lzma.LZMAError, tarfile.TarError)
NOT_OURS = (
    "not an Avro container, tar archive or Parquet file; a bare record needs its schema (--schema FILE.avsc)"
)

Found = Iterator[Packet | Rejection]
__all__ = ["Packet", "iter_packets", "read_container"]


def iter_packets(
    paths: Iterable[str | Path],
    schema: AlertSchema | None = None,
    limits: Limits = DEFAULT_LIMITS,
    *,
    skip: Iterable[Path] = (),
) -> Found:
    """Every packet of `paths`, in order; folders are walked in the order of their names.

    Parameters
    ----------
    paths
        Files or folders; ``-`` is stdin. What a file is, is decided by its content, not by its suffix.
    schema
        Schema of bare records (headerless or Confluent-framed); without it such files are rejected.
    skip
        Files that are not input although they lie in a folder that is: one's own output.

    Yields
    ------
    Packet or Rejection
        A rejection for each source or record that cannot be read, with its bytes where they could be cut out.
    """
    unwanted = {identity for path in skip if (identity := _identity(path)) is not None}
    for path in paths:
        name = os.fspath(path)
        if name == STDIN:
            yield from _read_stream(Window(sys.stdin.buffer), name, schema, limits)
        elif os.path.isdir(name):  # noqa: PTH112 - once per packet
            for entry in _files_in(name, unwanted, set()):
                if isinstance(entry, Rejection):
                    yield entry
                else:
                    yield from _read_file(entry, schema, limits)
        else:
            yield from _read_file(name, schema, limits)


def _files_in(
    folder: str, unwanted: set[tuple[int, int]], seen: set[tuple[int, int]]
) -> Iterator[str | Rejection]:
    """What a folder holds that may be packets, by name; its own files before those of its subfolders."""
    folders = []
    try:
        status = os.stat(folder)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:
            return  # a link back up
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as listing:
            entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as problem:
        yield Rejection(folder, -1, _explain(problem))
        return
    for entry in entries:
        if entry.is_dir():
            folders.append(entry.path)
        elif not entry.is_file():
            if entry.name.lower().endswith(OUR_SUFFIXES):
                yield Rejection(entry.path, -1, "not a file: a broken link, a pipe or a device")
        elif unwanted and _identity(entry) in unwanted:
            continue
        elif entry.name.lower().endswith(OUR_SUFFIXES) or _looks_familiar(entry.path):
            yield entry.path
    for path in folders:
        yield from _files_in(path, unwanted, seen)


def _identity(path: Path | os.DirEntry[str]) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _looks_familiar(path: str) -> bool:
    try:
        with open(path, "rb", buffering=0) as handle:  # noqa: PTH123
            head = handle.read(HEAD_BYTES)
    except OSError:
        return True  # reading it will say why
    return head.startswith((AVRO_MAGIC, PARQUET_MAGIC, *OPENERS)) or head[TAR_MAGIC_AT:].startswith(TAR_MAGIC)


def _read_file(source: str, schema: AlertSchema | None, limits: Limits) -> Found:
    log.debug("reading %s", source)
    try:
        with open(source, "rb", buffering=0) as handle:  # noqa: PTH123 - half the time of Path.open
            status = os.fstat(handle.fileno())
            small = stat.S_ISREG(status.st_mode) and status.st_size <= SMALL
            window = Window(None, handle.read()) if small else Window(handle)
            if window.peek(HEAD_BYTES).startswith(PARQUET_MAGIC):
                yield from _read_parquet(Path(source), limits)
            else:
                yield from _read_stream(window, source, schema, limits)
    except READ_ERRORS as problem:
        yield Rejection(source, -1, _explain(problem))


def _read_stream(
    window: Window, source: str, schema: AlertSchema | None, limits: Limits, layers: int = MOST_LAYERS
) -> Found:
    """Packets of anything that can be read from front to back."""
    head = window.peek(HEAD_BYTES)
    opener = next((opener for start, opener in OPENERS.items() if head.startswith(start)), None)
    if not head:
        yield Rejection(source, -1, "the file is empty")
    elif head.startswith(AVRO_MAGIC):
        yield from read_container(window, source, limits)
    elif (opener or head[TAR_MAGIC_AT:].startswith(TAR_MAGIC)) and not layers:
        yield Rejection(source, -1, "archives within archives within archives are not unpacked")
    elif opener is not None:
        yield from _read_compressed(window, opener, source, schema, limits, layers - 1)
    elif head[TAR_MAGIC_AT:].startswith(TAR_MAGIC):
        yield from _read_tar(window, source, schema, limits, layers - 1)
    elif schema is not None:
        yield read_bare(window.peek(limits.packet_bytes + 1), source, schema, limits)
    elif head.startswith(PARQUET_MAGIC):
        yield Rejection(source, -1, "Parquet is read from files only, not from streams or archives")
    else:
        yield Rejection(source, -1, NOT_OURS, head)


def _read_compressed(
    window: Window,
    opener: Callable[[IO[bytes]], IO[bytes]],
    source: str,
    schema: AlertSchema | None,
    limits: Limits,
    layers: int,
) -> Found:
    try:
        with opener(window) as stream:  # type: ignore[arg-type] # it reads like a file
            yield from _read_stream(Window(stream), source, schema, limits, layers)
    except READ_ERRORS as problem:
        yield Rejection(source, -1, _explain(problem))


def _read_tar(window: Window, source: str, schema: AlertSchema | None, limits: Limits, layers: int) -> Found:
    total = 0
    with tarfile.open(fileobj=window, mode="r|", bufsize=TAR_BUFFER) as archive:  # type: ignore[call-overload]
        for number, member in enumerate(archive):
            total += member.size
            if number >= limits.archive_members or total > limits.archive_bytes:
                yield Rejection(source, -1, "the archive has more members or bytes than the limits allow")
                return
            if not member.isfile() or member.name.rpartition("/")[2].startswith("."):
                continue
            content = archive.extractfile(member)
            if content is None:
                continue
            inner = Window(None, content.read()) if member.size <= limits.packet_bytes else Window(content)
            yield from _read_stream(inner, f"{source}:{member.name}", schema, limits, layers)


def _read_parquet(path: Path, limits: Limits) -> Found:
    import pyarrow as pa

    from tapetum.alerts.parquet import iter_bodies

    try:
        for record, (schema, body) in enumerate(iter_bodies(path, limits)):
            if isinstance(body, str):
                yield Rejection(str(path), record, body)
            else:
                yield Packet(str(path), record, schema, body)
    except (pa.ArrowException, InputError) as problem:
        yield Rejection(str(path), -1, _explain(problem))


def _explain(problem: BaseException) -> str:
    if isinstance(problem, FileNotFoundError):
        return "no such file or folder"
    if isinstance(problem, InputError):
        return str(problem)
    text = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
    return f"cannot be read: {' '.join(text.split()) or type(problem).__name__}"
