"""Files of contaminant masks: the same parts as the file of the images, each image replaced by its masks."""

from __future__ import annotations

import errno
import os
import re
import textwrap
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from tapetum import __version__
from tapetum.core.errors import InputError
from tapetum.core.limits import DEFAULT_LIMITS, Limits
from tapetum.images._fits_parts import Part, find_parts, open_fits, part_bytes
from tapetum.images._fits_pixels import read_header, read_plane
from tapetum.images._fits_write import STORAGE_KEYS, NewPart, write_parts
from tapetum.images._sources import (
    PRODUCT_KEY,
    Source,
    _made_as,
    contaminant_masks_among,
    parse_source,
    path_of,
)
from tapetum.images.fits import _images, _named
from tapetum.surveys.telescopes import SUFFIX, masks_among

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Cards = Sequence[tuple[str, Any, str]]  # keyword, value, comment

PRODUCT = "contaminants"
N_AXES = re.compile(r"WCSAXES[A-Z]?|WCSDIM")
FURTHER_AXES = re.compile(  # of the coordinates, also of alternate ones
    r"(C(TYPE|RPIX|RVAL|DELT|UNIT|ROTA|RDER|SYER|NAME)0*([3-9]|\d\d)|(PC|CD)0*([3-9]_\d+|\d_0*[3-9])|P[VS][3-9]_\d+)[A-Z]?"
    r"|LTM([3-9]_\d|\d_[3-9])|LTV[3-9]|WAT[3-9]_\d{3}|TR[3-9]_\d+"
)
FAILED = re.compile(r"FAILED\d{1,2}|FAIL\d{3,4}")
OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
TEXT = 40  # characters of its value, and a comment fits beside them
NOT_OF_A_MASK = re.compile(r"BUNIT|DATAMIN|DATAMAX|SATURATE|GAIN|RDNOISE|CREATOR|TAPPROD")


@dataclass(frozen=True)
class ImagePart:
    """An image of a file.

    Attributes
    ----------
    part
        Where and what it is.
    sources
        Its planes, one for an image of two axes, as `tapetum.images.fits.read_frame` takes them.
    header
        Reads its `astropy.io.fits.Header`; raises InputError.
    """

    part: Part
    sources: tuple[str, ...]
    header: Callable[[], Any]


@dataclass(frozen=True)
class Masked:
    """What takes the place of an image.

    Attributes
    ----------
    shape
        Of the masks, slowest axis first; () where the image could not be judged.
    dtype
        As `NewPart` takes it.
    planes
        The masks, in the order in which they are stored.
    cards
        What the header says of them; asked before and after they are made, with the same keywords.
    header
        Of the image, for coordinates and the like.
    """

    shape: tuple[int, ...]
    dtype: str
    planes: Iterator[NDArray[Any]]
    cards: Callable[[], Cards]
    header: Any


def mask_name(source: str | Path, *, limits: Limits = DEFAULT_LIMITS) -> str:
    """What the masks of a file or of one image of it are called, without suffix.

    ``X.fits.fz`` becomes ``X.masks``, ``X.fits[2]`` and ``X.fits[SCI]`` become ``X.masks2`` where SCI is number 2, and
    a plane of a cube ``X.masks2_0``.

    Raises
    ------
    InputError
        A part is named, and the file cannot be read or has no such part.
    """
    wanted = parse_source(source)
    name = f"{SUFFIX.sub('', wanted.path.name)}.masks"
    if wanted.extension is None:
        return name
    with open_fits(wanted.path, limits) as (handle, size):
        number = _named(find_parts(handle, size, wanted.path, limits), wanted).index
    return f"{name}{number}" + ("" if wanted.plane is None else f"_{wanted.plane}")


def without_masks(sources: Iterable[str], say: Callable[[str], None]) -> list[str]:
    """Those of some images that are no masks, however they were named.

    Masks are contaminant masks of our own, wherever they lie, and files that are called masks of an image beside them,
    by us, by MaxiMask or by a survey.

    Parameters
    ----------
    sources
        As `tapetum.images.fits.expand_sources` gives them.
    say
        Told of each mask, with one line.
    """
    kept, named = [], {}
    for source in sources:
        path = path_of(source)
        if path.parent not in named:
            named[path.parent] = _named_as_masks(path.parent)
        if is_own_mask(path):
            say(f"{source}: is a mask already, and left out")
        elif path.name in named[path.parent]:
            say(f"{source}: is called a mask of the image beside it, and left out")
        else:
            kept.append(source)
    return kept


def _named_as_masks(folder: Path) -> set[str]:
    try:
        names = [name for name in os.listdir(folder) if SUFFIX.search(name)]  # noqa: PTH208
    except OSError:  # reading the images will say why
        return set()
    return masks_among(names) | contaminant_masks_among(names)


def is_own_mask(path: Path) -> bool:
    """Whether Tapetum made a file as contaminant masks."""
    return _made_as(path) == PRODUCT


def failed_cards(failed: Sequence[int], n_planes: int) -> list[tuple[str, Any, str]]:
    """Which planes of a cube have no masks, as cards `FAILED1`, `FAILED2`, ...: numbers from 0, with blanks between.

    There are as many cards as all planes would need, so that they are the same before the work and after it.

    >>> failed_cards([1, 12], 15)
    [('FAILED1', '1 12', 'planes without masks, from 0')]
    """
    texts, needed = (textwrap.wrap(" ".join(map(str, some)), TEXT) for some in (failed, range(n_planes)))
    texts += [""] * (len(needed) - len(texts))
    return [
        (f"{'FAILED' if number < 100 else 'FAIL'}{number}", text, "planes without masks, from 0")
        for number, text in enumerate(texts, 1)
    ]


def failed_planes(header: Any) -> set[int]:
    """The planes of a cube that `failed_cards` names in a header.

    Raises
    ------
    InputError
        The header says something else than numbers there.
    """
    words = " ".join(str(card.value) for card in header.cards if FAILED.fullmatch(card.keyword)).split()
    if not all(word.isdecimal() for word in words):
        raise InputError(f"its cards {FAILED.pattern} name no planes: {' '.join(words)[:60]!r}")
    return set(map(int, words))


def write_masks(
    path: Path,
    source: str | Path,
    judge: Callable[[ImagePart], Masked],
    cards: Cards,
    check: Callable[[], None],
    *,
    limits: Limits = DEFAULT_LIMITS,
) -> None:
    """Write the masks of every image of a file, or of the one that `source` names, which then are the primary image.

    Tables, and images that only belong to others, such as masks and variances, are copied as they are.

    Parameters
    ----------
    path
        Of the masks; its suffix says whether they are compressed.
    source
        File, or ``file[ext]``.
    judge
        Gives what takes the place of an image; the pixels are made while they are written.
    cards
        What all headers say: who made the masks and how.
    check
        Called when all masks are made.

    Raises
    ------
    InputError
        There is no image, or the file cannot be read, or the masks not written; and whatever `judge` and `check` raise.
        Nothing is written then.
    """
    wanted = parse_source(source)
    with open_fits(wanted.path, limits) as (handle, size):
        parts = find_parts(handle, size, wanted.path, limits)
        try:
            write_parts(path, _each(handle, parts, wanted, judge, cards, check))
        except OSError as problem:
            if problem.filename is None and problem.errno not in OF_WRITING:
                raise  # of the image
            raise InputError(f"{path}: cannot be written: {problem.strerror}") from None


def _each(
    handle: IO[bytes],
    parts: Sequence[Part],
    wanted: Source,
    judge: Callable[[ImagePart], Masked],
    cards: Cards,
    check: Callable[[], None],
) -> Iterator[NewPart | bytes]:
    first = read_header(handle, parts[0], str(wanted.path), [])
    chosen = {
        part.index: _image_part(handle, part, planes, wanted) for part, planes in _chosen(parts, wanted)
    }
    alone = wanted.extension is not None
    for part in [image.part for image in chosen.values()] if alone else parts:
        if part.index in chosen:
            shared = {} if alone or not part.index else first
            yield _new_part(judge(chosen[part.index]), part, cards, shared)
        elif part.kind == "empty" and not part.index:
            yield NewPart(lambda: _header(cards, (), first, {}), name=part.name)
        else:
            yield part_bytes(handle, part)
    check()


def _image_part(handle: IO[bytes], part: Part, planes: Sequence[int], wanted: Source) -> ImagePart:
    sources = tuple(
        f"{wanted.path}[{part.index}]" + (f"[{plane}]" if part.n_planes > 1 else "") for plane in planes
    )

    def header() -> Any:
        if part.kind == "compressed":
            return read_plane(handle, part, 0, sources[0], [])[1]
        return read_header(handle, part, sources[0], [])

    return ImagePart(part, sources, header)


def _chosen(parts: Sequence[Part], wanted: Source) -> list[tuple[Part, Sequence[int]]]:
    """Images to mask, and which of their planes."""
    if wanted.extension is None:
        images = [part for part in _images(parts, wanted) if 0 not in part.shape]
        if not images:
            raise InputError(f"{wanted}: its images have no pixels")
        return [(part, range(part.n_planes)) for part in images]
    part = _named(parts, wanted)
    if 0 in part.shape:
        raise InputError(f"{wanted}: the image has no pixels")
    if wanted.plane is None:
        return [(part, range(part.n_planes))]
    if wanted.plane >= part.n_planes:
        raise InputError(f"{wanted}: no such plane; the last one is {part.n_planes - 1}")
    return [(part, [wanted.plane])]


def _new_part(masked: Masked, part: Part, cards: Cards, shared: Mapping[str, Any]) -> NewPart:
    same_axes = len(part.shape) > 2 and masked.shape == part.shape

    def header() -> Any:
        return _header(cards, masked.cards(), masked.header, shared, same_axes=same_axes)

    name = str(masked.header.get("EXTNAME", ""))  # as it is spelt
    return NewPart(
        header,
        masked.shape,
        masked.dtype,
        masked.planes,
        name if name.upper() == part.name else part.name,
        part.version,
    )


def _header(
    cards: Cards, more: Cards, source: Any, shared: Mapping[str, Any], *, same_axes: bool = True
) -> Any:
    """Who made it and what it is, then what the image's header says that holds for its masks too.

    Parameters
    ----------
    shared
        Primary header, whose values an extension need not repeat.
    same_axes
        The masks have the axes of the image; else only what it says of its rows and columns holds.
    """
    from astropy.io import fits

    from tapetum.images._wcs import WCS_KEYS

    header = fits.Header()
    header["CREATOR"] = (f"tapetum {__version__}", "what wrote it")
    header[PRODUCT_KEY] = (PRODUCT, "what this is")
    for keyword, value, comment in (*cards, *more):
        header[keyword] = (value, comment)
    ours = set(header)
    for card in source.cards if same_axes else filter(None, map(_of_two_axes, source.cards)):
        skipped = STORAGE_KEYS.fullmatch(card.keyword) or NOT_OF_A_MASK.fullmatch(card.keyword)
        said = card.keyword in ours or (card.keyword and shared.get(card.keyword) == card.value)
        if WCS_KEYS.fullmatch(card.keyword) or not (skipped or said):
            header.append(card, end=True)
    return header


def _of_two_axes(card: Any) -> Any:
    """A card without what it says of further axes; None where it says nothing else."""
    from astropy.io import fits

    if N_AXES.fullmatch(card.keyword):
        return fits.Card(card.keyword, min(card.value, 2) if isinstance(card.value, int) else 2, card.comment)
    return None if FURTHER_AXES.fullmatch(card.keyword) else card
