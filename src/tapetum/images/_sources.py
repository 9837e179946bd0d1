"""Which images are meant: files with extensions and planes, folders, lists."""

from __future__ import annotations

import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tapetum.core.errors import FormatError, InputError, LimitError
from tapetum.core.files import PART_SUFFIX, SETTINGS_SUFFIX
from tapetum.core.limits import DEFAULT_LIMITS, Limits
from tapetum.images._fits_parts import GZIP_MAGIC
from tapetum.surveys.telescopes import SUFFIX, masks_among

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

PRODUCT_KEY = "TAPPROD"  # written by us; only a product of this name is taken from a folder as input
FRAME_PRODUCT = "frame"
LIST_SUFFIX = ".list"
HEAD_BYTES = 16 * 2880  # of a file, searched for PRODUCT_KEY
MASK_NAME = re.compile(r"\.masks?(\d+(_\d+)?)?$", re.IGNORECASE)  # of a file without its suffixes
BRACKET = re.compile(r"\[([^\[\]]+)\]$")


@dataclass(frozen=True)
class Source:
    """A file and what is meant of it.

    Attributes
    ----------
    path
        The file.
    extension
        Number or name, as given; None: the first image.
    version
        EXTVER that goes with a name.
    plane
        0-based plane of a cube.
    """

    path: Path
    extension: int | str | None = None
    version: int | None = None
    plane: int | None = None

    def __str__(self) -> str:
        version = "" if self.version is None else f",{self.version}"
        extension = "" if self.extension is None else f"[{self.extension}{version}]"
        return f"{self.path}{extension}" + ("" if self.plane is None else f"[{self.plane}]")


def parse_source(source: str | Path) -> Source:
    """Take ``file``, ``file[2]``, ``file[SCI]``, ``file[SCI,2]`` apart; a second bracket is a plane of a cube.

    Raises
    ------
    InputError
        A bracket makes no sense.
    """
    path, found = _apart(source)
    if not found:
        return Source(path)
    name, _, version = (part.strip() for part in found[0].partition(","))
    try:
        return Source(
            path,
            int(name) if name.isdecimal() else name,
            int(version) if version else None,
            int(found[1]) if len(found) == 2 else None,
        )
    except ValueError:
        raise InputError(
            f"{source}: what is in brackets is a number, a name, or name,version; a second bracket is a plane"
        ) from None


def _apart(source: str | Path) -> tuple[Path, list[str]]:
    """The file, and what is in the brackets behind its name."""
    text = os.fspath(source)
    found: list[str] = []
    while len(found) < 2 and (match := BRACKET.search(text)) and not Path(text).exists():
        found.insert(0, match.group(1).strip())
        text = text[: match.start()]
    return Path(text), found


def path_of(source: str | Path) -> Path:
    """The file of an image that may be named with extension and plane, whether they make sense or not.

    >>> path_of("night/a.fits[2][0]").name
    'a.fits'
    """
    return _apart(source)[0]


def image_name(source: str | Path) -> str:
    """What the outputs of an image are called after: its file without folder and suffixes, extension, plane.

    >>> image_name("night/a.fits.fz[SCI,2][0]")
    'a_SCI_2_0'
    """
    path, places = _apart(source)
    return "_".join([SUFFIX.sub("", path.name), *(re.sub(r"\W+", "_", place) for place in places)])


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts ``a2`` before ``a10``."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts)


def expand_sources(
    sources: Sequence[str | Path],
    *,
    product: str = FRAME_PRODUCT,
    rejected: Callable[[str], None] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> list[str]:
    """Every image that is meant, each once, in the order given; within a folder in natural order.

    Folders are searched with their subfolders for names that end in ``.fits``, ``.fit``, ``.fts``, also with
    ``.fz`` or ``.gz``; hidden files, unfinished ones (``.part``), what Tapetum made itself except what is asked for
    (`product`), and masks that lie beside their image are left out. A ``.list`` file has one image per line; ``#``
    begins a comment; relative names are looked for beside the list first, then where the program runs. Names need not
    exist; settings beside an output and unfinished files, which ``*.fits*`` names as well, are passed over.

    Parameters
    ----------
    sources
        Files, ``file[ext]``, folders, lists.
    product
        Which of the images that Tapetum made itself are taken from folders: ``frame`` (simulated ones) or
        ``difference``.
    rejected
        Called with what is wrong with a list or folder, which is then passed over; None raises instead.

    Raises
    ------
    InputError
        A list cannot be read, or a folder holds no image; only where `rejected` is None.
    """
    found: dict[str, None] = {}
    for source in sources:
        try:
            for name in _expand(os.fspath(source), product, limits):
                if not name.endswith((SETTINGS_SUFFIX, PART_SUFFIX)):
                    found[name] = None
        except InputError as problem:
            if rejected is None:
                raise
            rejected(str(problem))
    return list(found)


def _expand(source: str, product: str, limits: Limits) -> list[str]:
    if source.lower().endswith(LIST_SUFFIX):
        return _from_list(Path(source), product, limits)
    return _from_folder(Path(source), product) if os.path.isdir(source) else [source]  # noqa: PTH112


def _from_list(path: Path, product: str, limits: Limits) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise FormatError(f"{path}: not a list: it is not text") from None
    except OSError as problem:
        raise InputError(f"{path}: cannot be read as a list of images: {problem.strerror}") from None
    if len(lines) > limits.list_entries:
        raise LimitError(f"{path}: {len(lines)} lines, more than {limits.list_entries}")
    entries = [entry for line in lines if (entry := re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip())]
    if not entries:
        raise InputError(f"{path}: names no image; write one per line")
    found: list[str] = []
    for entry in entries:
        if entry.lower().endswith(LIST_SUFFIX):
            raise InputError(f"{path}: {entry}: a list within a list; name it on its own")
        beside = path.parent / entry
        name = os.fspath(beside if parse_source(beside).path.exists() else entry)
        found += _from_folder(Path(name), product) if os.path.isdir(name) else [name]  # noqa: PTH112
    return found


def _from_folder(folder: Path, product: str) -> list[str]:
    by_folder: dict[Path, list[Path]] = {}
    for path in _images_below(folder, set()):
        by_folder.setdefault(path.parent, []).append(path)
    kept = []
    for paths in by_folder.values():
        names = [path.name for path in paths]
        masks = masks_among(names) | contaminant_masks_among(names)
        kept += [path for path in paths if path.name not in masks]
    wanted = [path for path in kept if _made_as(path) in ("", product)]
    if not wanted:
        ours = f"; {len(kept)} that Tapetum made itself are only taken when named" if kept else ""
        raise InputError(f"{folder}: no FITS image in this folder{ours}")
    return [os.fspath(path) for path in wanted]


def contaminant_masks_among(filenames: Iterable[str]) -> set[str]:
    """Those of the files in a folder that are called contaminant masks of others, by MaxiMask or by us.

    >>> sorted(contaminant_masks_among(["a.fits", "a.mask.fits", "a.masks2_0.fits.fz", "b.masks.fits"]))
    ['a.mask.fits', 'a.masks2_0.fits.fz']
    """
    stems = {filename: SUFFIX.sub("", filename) for filename in filenames}
    images = set(stems.values())
    return {
        filename
        for filename, stem in stems.items()
        if MASK_NAME.search(stem) and MASK_NAME.sub("", stem) in images
    }


def _images_below(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    try:
        status = folder.stat()
        entries = sorted(
            (e for e in folder.iterdir() if not e.name.startswith(".")), key=lambda e: natural_key(e.name)
        )
    except OSError as problem:
        raise InputError(f"{folder}: cannot be read: {problem.strerror}") from None
    if (status.st_dev, status.st_ino) in seen:
        return  # a link back up
    seen.add((status.st_dev, status.st_ino))
    yield from (entry for entry in entries if SUFFIX.search(entry.name) and not entry.is_dir())
    for entry in entries:
        if entry.is_dir():
            yield from _images_below(entry, seen)


def _made_as(path: Path) -> str:
    """As which product Tapetum made the file; empty for a file of somebody else."""
    try:
        with path.open("rb") as handle:
            head = handle.read(HEAD_BYTES)
        if head.startswith(GZIP_MAGIC):
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, HEAD_BYTES)
    except (OSError, zlib.error):
        return ""  # reading it will say why
    found = re.search(rb"%-8s= '([^']*)'" % PRODUCT_KEY.encode(), head)
    return "" if found is None else found.group(1).strip().decode("ascii", "replace")
