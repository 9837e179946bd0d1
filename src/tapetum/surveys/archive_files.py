"""Files of archives: fetched several at a time, kept only when they are whole, never fetched twice."""

from __future__ import annotations

import logging
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tapetum.core.errors import FormatError, TapetumError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tapetum.core.http import HttpClient

MAX_BYTES = 2 * 2**30  # a whole stack of the largest camera is a tenth of it
TRIES = 2  # for an answer that is no whole FITS file: a proxy's page, or a server that broke off without saying so
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """One file of an archive.

    Attributes
    ----------
    url
        Where it is.
    path
        Where it is kept.
    params
        Query of the URL.
    """

    url: str
    path: Path
    params: Mapping[str, str] | None = None


def fetch_files(client: HttpClient, wanted: Sequence[Wanted], downloads: int = 4) -> list[Path]:
    """The files, in their order; those that are there and whole are not fetched again.

    Parameters
    ----------
    client
        Used from several threads.
    wanted
        What is needed.
    downloads
        Files fetched at the same time.

    Raises
    ------
    NetworkError
        An archive cannot be reached or does not have a file.
    FormatError
        What came is no whole FITS file.
    LimitError
        A file is larger than any image.
    """
    missing = [entry for entry in wanted if not (entry.path.is_file() and fits_fault(entry.path) is None)]
    problems: list[TapetumError] = []

    def fetch(entry: Wanted) -> None:
        try:
            _fetch(client, entry)
        except TapetumError as problem:
            problems.append(problem)

    with ThreadPoolExecutor(downloads) as pool:
        list(pool.map(fetch, missing))
    if problems:  # after the others have come: they need not be fetched another time
        raise problems[0]
    return [entry.path for entry in wanted]


def _fetch(client: HttpClient, entry: Wanted) -> None:
    def check(path: Path) -> None:
        fault = fits_fault(path)
        if fault is not None:
            raise FormatError(f"{entry.url}: {fault}; the file was not kept")

    for attempt in range(1, TRIES + 1):
        try:
            client.download(entry.url, entry.path, max_bytes=MAX_BYTES, check=check, params=entry.params)
        except FormatError:
            if attempt == TRIES:
                raise
        else:
            _log.info("fetched %s", entry.path.name)
            return


def fits_fault(path: Path) -> str | None:
    """What keeps a file from being a whole FITS file; None when it is one."""
    from astropy.io import fits

    with path.open("rb") as handle:
        start = handle.read(9)
    if start != b"SIMPLE  =":
        return f"not a FITS file, it begins with {start!r}"
    size = path.stat().st_size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd cards do not matter here, and what matters is found below
            with fits.open(path, disable_image_compression=True) as hdus:
                places = [hdu.fileinfo() for hdu in hdus]
    except (OSError, ValueError, TypeError, KeyError) as problem:
        return f"a damaged FITS file: {problem}"
    needed = max(place["datLoc"] + place["datSpan"] for place in places)
    if needed > size:
        return f"a FITS file cut off at {size} of {needed} bytes"
    with path.open("rb") as handle:
        handle.seek(needed)
        return "a FITS file cut off within a header" if handle.read(8) == b"XTENSION" else None
