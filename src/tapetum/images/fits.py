"""FITS images in and out: any file that astronomers have, understood by the profile of its telescope."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import InputError
from tapetum.core.limits import DEFAULT_LIMITS, Limits
from tapetum.images._fits_parts import Part, find_parts, open_fits
from tapetum.images._fits_pixels import HUGE, Counts, as_counts, read_header, read_plane
from tapetum.images._fits_write import write_frame
from tapetum.images._header import describe, number_of
from tapetum.images._masks import OWN_BITS, OWN_KEY, bad_bits
from tapetum.images._sources import Source, expand_sources, image_name, parse_source, path_of
from tapetum.images._wcs import pixel_scale, read_wcs, wcs_kind
from tapetum.images.frame import Bad, Frame, FrameInfo, MaskPlane
from tapetum.surveys.profile import ImageMask
from tapetum.surveys.telescopes import SUFFIX, any_mask_file_names, mask_file_names, mask_rules, recognise

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.surveys.profile import SurveyProfile

__all__ = [
    "expand_sources",
    "files_of",
    "image_name",
    "iter_planes",
    "list_images",
    "path_of",
    "read_frame",
    "write_frame",
]

# extensions that belong to an image and are none themselves
MASK_NAMES = ("MASK", "BPM")
VARIANCE_NAMES = ("VARIANCE", "VAR")
NOISE_NAMES = ("NOISE",)  # standard deviation, read where there is no variance
COMPANIONS = {
    *MASK_NAMES,
    *VARIANCE_NAMES,
    *NOISE_NAMES,
    "DQ",
    "ERR",
    "ERROR",
    "UNCERT",
    "WEIGHT",
    "WHT",
    "CON",
    "PSF",
}
# what an extension may have of the primary header: all but what describes the primary part itself
NOT_INHERITED = re.compile(
    r"SIMPLE|BITPIX|NAXIS\d*|EXTEND|EXTNAME|EXTVER|EXTLEVEL|INHERIT|BSCALE|BZERO|BLANK|CHECKSUM|DATASUM|NEXTEND|NHDU"
    r"|COMMENT|HISTORY|END|"
)
MASK_SUFFIXES = (".fits", ".fits.fz", ".fits.gz", ".fit", ".fts")


def read_frame(
    source: str | Path,
    profile: SurveyProfile | None = None,
    *,
    mask: str | Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Frame:
    """Read one image, its mask and what is known of it.

    Without an extension the first image of two axes counts that is no mask or variance. A mask is taken from `mask`,
    else from an extension MASK or BPM of the file, else from the file beside it that the profile's rule names. The
    variance is that of an extension VARIANCE or VAR, else the square of an extension NOISE.
    Pixels are marked as saturated from the saturation level on, and as without data where they are NaN.

    Parameters
    ----------
    source
        ``file``, ``file[2]``, ``file[SCI]``, ``file[SCI,2]``, with a second bracket for a plane (0-based) of a cube.
    profile
        Of the telescope; None: recognised from header and file name.
    mask
        Mask image, also with ``[ext]``.
    limits
        Caps on sizes.

    Raises
    ------
    InputError
        No such file or extension, no image in it, nothing but NaN, nothing but one value, or a mask of another size.
    FormatError
        Not FITS, truncated, damaged.
    LimitError
        Larger than the limits allow.
    """
    wanted = parse_source(source)
    with open_fits(wanted.path, limits) as (handle, size):
        parts = find_parts(handle, size, wanted.path, limits)
        part, plane = _choose(parts, wanted)
        notes: list[str] = []
        values, header = read_plane(handle, part, plane, str(source), notes)
        if part.index:
            _inherit(header, read_header(handle, parts[0], str(source), notes))
        companions = _companions(handle, parts, part, str(source))
    counts = _counts(values, str(source), notes)
    known = recognise(header, wanted.path.name) if profile is None else profile
    wcs = read_wcs(header, notes)
    scale = None if wcs is None else pixel_scale(wcs, part.plane_shape)
    info = describe(header, known, wanted.path.name, scale, _largest(header, values.dtype))
    bits, mask_source = _mask(wanted, part, known, mask, companions, limits, notes)
    info = dataclasses.replace(
        info, wcs_kind=wcs_kind(wcs, header), mask_source=mask_source, warnings=(*notes, *info.warnings)
    )
    variance = companions.get("variance")
    name = _name(wanted, parts, part, plane)
    return Frame(name, str(source), counts.data, _marked(counts, bits, info), wcs, header, info, variance)


def list_images(source: str | Path, *, limits: Limits = DEFAULT_LIMITS) -> list[str]:
    """Every image of a file, addressed so that `read_frame` takes it: extensions, and planes of cubes.

    Masks, variances and the like are left out where there are images beside them. A file of one image is returned as
    it was given.

    Raises
    ------
    InputError
        As `read_frame`; pixels are not looked at.
    """
    wanted = parse_source(source)
    with open_fits(wanted.path, limits) as (handle, size):
        parts = find_parts(handle, size, wanted.path, limits)
    if wanted.plane is not None:
        return [str(source)]
    chosen = [_named(parts, wanted)] if wanted.extension is not None else _images(parts, wanted)
    if len(chosen) == 1 and chosen[0].n_planes == 1:
        return [str(source)]
    return [
        f"{wanted.path}[{part.index}]" + (f"[{plane}]" if part.n_planes > 1 else "")
        for part in chosen
        for plane in range(part.n_planes)
    ]


def iter_planes(
    source: str | Path, profile: SurveyProfile | None = None, *, limits: Limits = DEFAULT_LIMITS
) -> Iterator[Frame]:
    """Every two-dimensional image of a file: of each extension, and each plane of a cube.

    Raises
    ------
    InputError
        As `read_frame`, at the first that cannot be used; `list_images` lets each fail on its own.
    """
    for name in list_images(source, limits=limits):
        yield read_frame(name, profile, limits=limits)


def _images(parts: Sequence[Part], wanted: Source) -> list[Part]:
    """Images of a file that are not companions of others, or whatever images there are."""
    images = [part for part in parts if part.is_image]
    if not images:
        kinds = ", ".join(part.describe() for part in parts)
        raise InputError(f"{wanted.path}: holds no image (its parts: {kinds})")
    return [part for part in images if part.name not in COMPANIONS] or images


def _named(parts: Sequence[Part], wanted: Source) -> Part:
    """The part that the source names."""
    extension = wanted.extension
    found = [part for part in parts if extension == part.index]
    if not found:
        found = [part for part in parts if str(extension).upper() == part.name]
    if wanted.version is not None:
        found = [part for part in found if part.version == wanted.version]
    if not found:
        known = ", ".join(part.describe() for part in parts)
        raise InputError(f"{wanted}: no such part; the file has: {known}")
    if not found[0].is_image:
        raise InputError(f"{wanted}: is no image but {found[0].describe()}")
    return found[0]


def _choose(parts: Sequence[Part], wanted: Source) -> tuple[Part, int]:
    """The part and the plane that are meant."""
    if wanted.extension is not None:
        part = _named(parts, wanted)
    else:
        images = _images(parts, wanted)
        part = next((image for image in images if image.n_planes == 1), images[0])
    if 0 in part.shape:
        raise InputError(f"{wanted}: the image has no pixels")
    if wanted.plane is None and part.n_planes > 1:
        raise InputError(
            f"{wanted}: a cube of {part.n_planes} planes; name one, 0 to {part.n_planes - 1}:"
            f" {wanted.path}[{part.index}][0]"
        )
    plane = wanted.plane or 0
    if plane >= part.n_planes:
        raise InputError(f"{wanted}: no such plane; the last one is {part.n_planes - 1}")
    return part, plane


def _inherit(header: Any, primary: Any) -> None:
    """Give an extension what the primary header says of the whole exposure; its own values win."""
    for card in primary.cards:
        if not NOT_INHERITED.fullmatch(card.keyword) and card.keyword not in header:
            header.append(card, end=True)


def _companions(handle: IO[bytes], parts: Sequence[Part], part: Part, place: str) -> dict[str, Any]:
    """Mask and variance of the same file, by name and version of their extension."""
    found: dict[str, Any] = {}
    for kind, names in (("mask", MASK_NAMES), ("variance", VARIANCE_NAMES), ("noise", NOISE_NAMES)):
        if kind == "noise" and "variance" in found:
            break
        for other in parts:
            same = other is not part and other.is_image and other.shape == part.shape[-2:]
            if same and other.name in names and other.version == part.version and part.name not in COMPANIONS:
                values, header = read_plane(handle, other, 0, f"{place}: {other.name}", [])
                found[kind] = values if kind == "mask" else as_counts(values).data
                found[f"{kind} header"], found[f"{kind} name"] = header, other.name
                break
    if "noise" in found:
        found["variance"] = np.square(found["noise"])
    return found


def _counts(values: NDArray[Any], place: str, notes: list[str]) -> Counts:
    """Pixel values as float32, refused where they cannot be an image."""
    counts = as_counts(values)
    if counts.n_absurd:
        notes.append(f"{counts.n_absurd} pixels are infinite or beyond {HUGE:g}; they count as without data")
    if math.isnan(counts.low):
        raise InputError(f"{place}: every pixel is NaN or infinite; there is nothing to work on")
    if counts.low == counts.high:
        raise InputError(f"{place}: every pixel is {counts.low:g}; a blank or unfinished image")
    return counts


def _largest(header: Any, dtype: np.dtype[Any]) -> float | None:
    """The largest value that pixels of the file's type can hold [DN]; None where that is no limit of a detector."""
    bitpix = int(number_of(header.get("BITPIX")) or 0)
    if bitpix not in (8, 16) or number_of(header.get("BSCALE", 1)) != 1:
        return None
    zero = number_of(header.get("BZERO")) or (
        2.0**15 if dtype == np.uint16 else 0.0
    )  # decompressed: BZERO is gone
    return 2.0 ** (8 if bitpix == 8 else 15) - 1 + zero


def _mask(
    wanted: Source, part: Part, profile: SurveyProfile, named: str | Path | None,
    companions: dict[str, Any], limits: Limits, notes: list[str],
) -> tuple[MaskPlane | None, str | None]:  # fmt: skip
    """Our bits of the mask, if there is one, and where it comes from."""
    if named is None and "mask" in companions:
        bits = _bits(companions["mask"], companions["mask header"], ImageMask())  # not the survey's own file
        return bits, f"extension {companions['mask name']}"
    source = parse_source(named) if named is not None else _mask_beside(wanted, profile)
    if source is None:
        return None, None
    with open_fits(source.path, limits) as (handle, size):
        parts = find_parts(handle, size, source.path, limits)
        other = _mask_part(parts, source, part)
        values, header = read_plane(handle, other, source.plane or 0, str(source), notes)
    if values.shape != part.plane_shape:
        sizes = " and ".join(f"{n_x} x {n_y}" for n_y, n_x in (values.shape, part.plane_shape))
        raise InputError(f"{source}: the mask does not fit {wanted}: {sizes} pixels")
    return _bits(values, header, mask_rules(profile)), source.path.name


def _bits(values: NDArray[Any], header: Any, rules: ImageMask) -> MaskPlane:
    return values.astype(np.uint8) if header.get(OWN_KEY) == OWN_BITS else bad_bits(values, rules)


def _mask_beside(wanted: Source, profile: SurveyProfile) -> Source | None:
    return next(map(Source, _files_beside(wanted.path, mask_file_names(profile, wanted.path.name))), None)


def _files_beside(path: Path, names: Iterable[str]) -> Iterator[Path]:
    places = (path.with_name(name + suffix) for name in names for suffix in MASK_SUFFIXES)
    return (place for place in places if place.is_file())


def files_of(sources: Iterable[str | Path]) -> list[Path]:
    """The files that decide what `read_frame` gives: of each image its own, and those beside it that may be its mask.

    What may be a mask is said by the rules of all telescopes; an image need not exist.
    """
    paths = [path_of(source) for source in sources]
    masks = any_mask_file_names([path.name for path in paths])
    return [
        file
        for path, names in zip(paths, masks, strict=True)
        for file in (path, *_files_beside(path, sorted(names)))
    ]


def _mask_part(parts: Sequence[Part], source: Source, part: Part) -> Part:
    """The part of a mask file that belongs to a part of an image file: of the same name, place, or the first image."""
    if source.extension is not None:
        return _named(parts, source)
    images = [other for other in parts if other.is_image]
    same_name = [other for other in images if part.name and other.name == part.name]
    same_place = [other for other in images if other.index == part.index]
    chosen = next(iter([*same_name, *same_place, *images]), None)
    if chosen is None:
        raise InputError(f"{source}: holds no image, so it is no mask")
    return chosen


def _marked(counts: Counts, bits: MaskPlane | None, info: FrameInfo) -> MaskPlane:
    """The mask with missing and saturated pixels added."""
    data = counts.data
    mask = np.zeros(data.shape, np.uint8) if bits is None else np.ascontiguousarray(bits)
    if counts.has_nan:
        mask |= np.isnan(data).view(np.uint8) * np.uint8(Bad.NO_DATA)
    if counts.high >= info.saturation:
        mask |= (data >= info.saturation).view(np.uint8) * np.uint8(Bad.SATURATED)
    return mask


def _name(wanted: Source, parts: Sequence[Part], part: Part, plane: int) -> str:
    """What outputs are called after."""
    stem = SUFFIX.sub("", wanted.path.name)
    first = _images(parts, wanted)[0]
    name = stem if part is first else f"{stem}_{part.name or part.index}"
    if part is not first and part.version != 1 and part.name:
        name += f"_{part.version}"
    return f"{name}_{plane}" if part.n_planes > 1 else name
