"""Pinned files from whatever package index pip is configured for.

pip itself is asked where a file lies (``pip index versions -vv`` prints every file's link, obeys pip's
configuration and builds nothing). The file is then fetched as plain bytes, compared with the SHA-256 that is
pinned here, and single members are unpacked from it. Nothing in it is ever executed or installed.
"""

from __future__ import annotations

import ast
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from contextlib import closing
from dataclasses import dataclass
from gzip import BadGzipFile, GzipFile
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from tapetum.core.errors import FormatError, LimitError, NetworkError, TapetumError
from tapetum.core.files import sha256_of, whole_file
from tapetum.core.http import HttpClient
from tapetum.core.progress import Progress, no_progress

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

PIP_SECONDS = (
    180  # pip itself gives up after `PIP_TRIES`; this is for an index that neither answers nor refuses
)
PIP_TRIES = "1"
CHUNK_BYTES = 2**18


@dataclass(frozen=True)
class PinnedFile:
    """One file of a package index.

    Attributes
    ----------
    project
        Name of the project in the index.
    filename
        Exact name of a source archive (``.tar.gz``) or wheel.
    sha256
        What its bytes must hash to.
    n_bytes
        Its size [bytes]; nothing larger is downloaded.
    """

    project: str
    filename: str
    sha256: str
    n_bytes: int


@dataclass(frozen=True)
class PinnedMember:
    """One file within a `PinnedFile`.

    Attributes
    ----------
    path
        Path within the archive.
    sha256
        What its bytes must hash to.
    n_bytes
        Its size [bytes]; nothing larger is unpacked.
    """

    path: str
    sha256: str
    n_bytes: int

    @property
    def name(self) -> str:
        """Name of the unpacked file."""
        return PurePosixPath(self.path).name


def fetch_members(
    pinned: PinnedFile, members: Sequence[PinnedMember], folder: Path, progress: Progress = no_progress
) -> list[Path]:
    """Unpacked members of a pinned file, downloaded when `folder` does not have them yet.

    Parameters
    ----------
    pinned
        The archive.
    members
        What is wanted of it.
    folder
        Where the members are kept; one that is there with the right hash is used without any network.

    Returns
    -------
    list of Path
        One file per member, in their order.

    Raises
    ------
    NetworkError
        No index can be reached, or none has the file.
    FormatError
        A hash differs from the pinned one, the archive is broken, or a member is missing or not a plain file.
    LimitError
        Archive or member are larger than pinned.
    """
    missing = [member for member in members if not is_cached(member, folder)]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
            archive = Path(scratch) / pinned.filename
            fetch_file(pinned, archive, progress)
            unpack(archive, missing, folder)
    return [folder / member.name for member in members]


def is_cached(member: PinnedMember, folder: Path) -> bool:
    """Whether `folder` holds the member, unharmed."""
    path = folder / member.name
    return path.is_file() and path.stat().st_size == member.n_bytes and sha256_of(path) == member.sha256


def fetch_file(pinned: PinnedFile, path: Path, progress: Progress = no_progress) -> None:
    """Fetch a pinned file into `path`; every link that pip knows for it is tried.

    Raises
    ------
    NetworkError, FormatError, LimitError
        As `fetch_members`.
    """
    links = find_links(pinned)
    problems: list[TapetumError] = []
    options = pip_options()
    with HttpClient(ca_file=options.get("cert"), proxy=options.get("proxy")) as client:
        for link in links:
            try:
                if urlsplit(link).scheme == "file":
                    _copy(link, path, pinned)
                else:
                    client.download(
                        link, path, sha256=pinned.sha256, max_bytes=pinned.n_bytes, progress=progress
                    )
            except TapetumError as problem:
                problems.append(problem)
            else:
                return
    raise problems[-1]


def find_links(pinned: PinnedFile) -> list[str]:
    """Links to a pinned file in the order of pip's indexes, without their fragments; never empty.

    Raises
    ------
    NetworkError
        pip finds no such file in any index it is configured for.
    FormatError
        The indexes have a file of this name, of other content.
    """
    said = _pip("index", "versions", "-vv", "--retries", PIP_TRIES, pinned.project)
    links: list[str] = []
    other: list[str] = []
    for link in re.findall(r"link:? .*?(\S+://\S+?),?(?=\s|$)", said):
        address, _, fragment = link.partition("#")
        if unquote(urlsplit(address).path.rsplit("/", 1)[-1]) != pinned.filename:
            continue
        advertised = re.search(r"sha256=([0-9a-f]{64})", fragment)
        (other if advertised and advertised[1] != pinned.sha256 else links).append(address)
    if links:
        return list(dict.fromkeys(links))
    if other:
        raise FormatError(f"{other[0]}: the index announces other content than the pinned {pinned.sha256}")
    raise NetworkError(
        f"{pinned.filename}: no package index that pip is configured for can be reached and has it; check "
        f"the network and `pip config list`, or try  python -m pip index versions {pinned.project}"
    )


def pip_options() -> dict[str, str]:
    """The global options of pip's configuration, for instance ``cert``; the environment wins over files."""
    said = _pip("config", "list")
    options = {}
    for where in ("global", ":env:"):
        for key, value in re.findall(rf"^{where}\.(\S+?)=('.*'|\".*\")$", said, re.MULTILINE):
            options[key] = str(ast.literal_eval(value))
    return options


def _pip(*arguments: str) -> str:
    """Everything that pip says; its exit status is not asked, because the words tell more."""
    # -P keeps a folder named pip in the working folder from being taken for pip
    command = [sys.executable, "-P", "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments]
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PIP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NetworkError(
            f"pip {arguments[0]}: no answer within {PIP_SECONDS} s; check the network"
        ) from None
    if "No module named pip" in done.stdout:
        raise NetworkError(
            f"pip is not installed for {sys.executable}; get it with  {sys.executable} -m ensurepip"
        )
    return done.stdout


def _copy(link: str, path: Path, pinned: PinnedFile) -> None:
    source = Path(url2pathname(urlsplit(link).path))
    if not source.is_file():
        raise NetworkError(f"{link}: no such file")
    if source.stat().st_size > pinned.n_bytes:
        raise LimitError(f"{link}: larger than the pinned {pinned.n_bytes} bytes")
    with whole_file(path) as part:
        shutil.copyfile(source, part)
        found = sha256_of(part)
        if found != pinned.sha256:
            raise FormatError(
                f"{link}: SHA-256 is {found}, not the pinned {pinned.sha256}; the file was not kept"
            )


def unpack(archive: Path, members: Sequence[PinnedMember], folder: Path) -> list[Path]:
    """Write the wanted members of a ``.tar.gz`` or wheel into `folder`, each under its last name.

    Names in the archive are only compared, never used as paths, and only plain files count.

    Raises
    ------
    FormatError
        Not an archive, a member is missing or not a plain file, or its hash differs.
    LimitError
        A member is larger than pinned.
    """
    wanted = {member.path: member for member in members}
    done: dict[str, Path] = {}
    try:
        with closing(_plain_members(archive, set(wanted))) as found:
            for path, content in found:
                done[path] = _write_member(archive, wanted[path], content, folder)
                if len(done) == len(wanted):
                    break
    except (tarfile.TarError, zipfile.BadZipFile, BadGzipFile, EOFError, zlib.error) as problem:
        raise FormatError(f"{archive.name}: not a readable archive: {problem}") from None
    for path in wanted:
        if path not in done:
            raise FormatError(f"{archive.name}: has no plain file {path}")
    return [done[member.path] for member in members]


def _plain_members(archive: Path, wanted: set[str]) -> Generator[tuple[str, IO[bytes]], None, None]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as container:
            for entry in container.infolist():
                if entry.filename in wanted and not entry.is_dir():
                    with container.open(entry) as content:
                        yield entry.filename, content
        return
    with GzipFile(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as container:
        for member in container:
            if member.name in wanted and member.isreg():
                plain = container.extractfile(member)
                if plain is not None:
                    yield member.name, plain


def _write_member(archive: Path, member: PinnedMember, content: IO[bytes], folder: Path) -> Path:
    target = folder / member.name
    digest, n_bytes = hashlib.sha256(), 0
    with whole_file(target) as part:
        with part.open("wb") as handle:
            while chunk := content.read(CHUNK_BYTES):
                n_bytes += len(chunk)
                if n_bytes > member.n_bytes:
                    raise LimitError(f"{archive.name}: {member.path} is larger than {member.n_bytes} bytes")
                digest.update(chunk)
                handle.write(chunk)
        if digest.hexdigest() != member.sha256:
            raise FormatError(
                f"{archive.name}: {member.path} has SHA-256 {digest.hexdigest()}, not {member.sha256}"
            )
    return target
