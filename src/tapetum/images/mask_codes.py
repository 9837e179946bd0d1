"""Contaminant masks read back: which file has those of an image, and the codes in it."""

from __future__ import annotations

import dataclasses
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import InputError
from tapetum.core.limits import DEFAULT_LIMITS, Limits
from tapetum.images._fits_parts import Part, find_parts, open_fits
from tapetum.images._fits_pixels import read_header, read_plane
from tapetum.images._sources import Source, parse_source
from tapetum.images.contaminants import NAMES, Contaminant
from tapetum.images.fits import _choose, _mask_part
from tapetum.images.mask_files import failed_planes, mask_name
from tapetum.surveys.telescopes import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MASK_SUFFIXES = (".fits", ".fits.fz", ".fits.gz")


def masks_of(source: str | Path, folder: Path | None = None) -> Path | None:
    """The file with the contaminant masks of an image, as `tapetum images mask` calls it; None where there is none.

    Parameters
    ----------
    source
        As `tapetum.images.fits.read_frame` takes it. Masks of its own go before those of the whole file.
    folder
        Where to look; None: beside the image.
    """
    wanted = parse_source(source)
    names = [f"{SUFFIX.sub('', wanted.path.name)}.masks"]
    if wanted.extension is not None:
        try:
            image = Source(wanted.path, wanted.extension, wanted.version)
            names = list(dict.fromkeys([mask_name(str(wanted)), mask_name(str(image)), *names]))
        except (InputError, OSError):  # reading the image will say why
            return None
    place = wanted.path.parent if folder is None else folder
    files = (place / f"{name}{suffix}" for name in names for suffix in MASK_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def read_codes(
    masks: str | Path, source: str | Path, *, limits: Limits = DEFAULT_LIMITS
) -> tuple[NDArray[np.uint16], str]:
    """The single mask of an image, from a file of planes or of added codes.

    Parameters
    ----------
    masks
        File that `tapetum images mask` or MaxiMask has made, also with ``[ext]``.
    source
        The image that they belong to, as `tapetum.images.fits.read_frame` takes it.

    Returns
    -------
    codes : ndarray of uint16, shape (n_y, n_x)
        Sums of `tapetum.images.contaminants.Contaminant`.
    origin
        Network and version, as far as the file says them.

    Raises
    ------
    InputError
        No such file, no masks of contaminants in it, of another size, or the image could not be judged.
    FormatError, LimitError
        As `tapetum.images.fits.read_frame`.
    """
    wanted, other = parse_source(source), parse_source(masks)
    with open_fits(wanted.path, limits) as (handle, size):
        images = find_parts(handle, size, wanted.path, limits)
        part, plane = _choose(images, wanted)
    # an image within the limits has masks beyond them
    deeper = dataclasses.replace(limits, image_file_bytes=limits.image_file_bytes * len(NAMES))
    with open_fits(other.path, limits) as (handle, size):
        parts = find_parts(handle, size, other.path, deeper)
        if parts[0].kind == "empty" and images[0].is_image and len(parts) == len(images) + 1:
            part = dataclasses.replace(
                part, index=part.index + 1
            )  # compressed images have an empty part before them
        _check_judged(handle, parts, part, other, source)
        found = _mask_part(parts, other, part)
        first, header = read_plane(handle, found, 0, str(masks), [])
        if found.plane_shape != part.plane_shape:
            sizes = " and ".join(f"{n_x} x {n_y}" for n_y, n_x in (found.plane_shape, part.plane_shape))
            raise InputError(f"{masks}: the masks do not fit {source}: {sizes} pixels")
        layers = _layers(header, first.dtype, str(masks))
        depth = 1 + max(layers)
        start = plane * depth if found.n_planes > depth else 0
        if start + depth > found.n_planes:
            raise InputError(f"{masks}: {found.n_planes} planes; {start + depth} are needed for {source}")
        if depth < found.n_planes and start // depth in _failed(header, str(masks)):
            raise InputError(f"{masks}: plane {start // depth} could not be judged: no masks for {source}")
        codes = np.zeros(found.plane_shape, np.uint16)
        for layer, code in layers.items():
            values = read_plane(handle, found, start + layer, str(masks), [])[0]
            codes |= values.astype(np.uint16) if code is None else (values != 0) * np.uint16(code)
    return codes, " ".join(str(header[key]) for key in ("MODEL", "MODELVER") if key in header)


def _check_judged(
    handle: IO[bytes], parts: Sequence[Part], part: Part, masks: Source, source: str | Path
) -> None:
    """Raise InputError where the masks of a part were left empty, so that no others are taken in their place."""
    if masks.extension is not None:
        return
    same_name = [other for other in parts if part.name and other.name == part.name]
    same_place = [other for other in parts if other.index == part.index]
    left = next(iter(same_name or same_place), None)
    if left is None or left.kind != "empty":
        return
    if read_header(handle, left, str(masks), []).get("NFAILED"):
        raise InputError(f"{masks}: {source} could not be judged when its masks were made")


def _failed(header: Any, place: str) -> set[int]:
    try:
        return failed_planes(header)
    except InputError as problem:
        raise InputError(f"{place}: {problem}") from None


def class_counts(codes: NDArray[np.uint16]) -> dict[str, int]:
    """Class -> pixels that have it, in the fixed order; classes that no pixel has are left out."""
    counts = {str(code.name): int(np.count_nonzero(codes & np.uint16(code))) for code in Contaminant}
    return {name: n for name, n in counts.items() if n}


def class_words(codes: NDArray[np.uint16]) -> str:
    """What a single mask has, in one line."""
    return (
        ", ".join(f"{name} {n}" for name, n in class_counts(codes).items()) + " [pixels]"
        if codes.any()
        else "none"
    )


def _layers(header: Any, dtype: np.dtype[Any], place: str) -> Mapping[int, int | None]:
    """Plane -> code of its class; None where the plane has codes already.

    Raises
    ------
    InputError
        The header is none of masks.
    """
    if dtype.kind not in "iu" or header.get("THRESH") == "No":
        raise InputError(f"{place}: no masks but probabilities, or another image")
    if header.get("SMASK") == "Yes":
        return {0: None}
    try:
        planes = {
            int(header[f"{code.name}_DIM"]): int(code) for code in Contaminant if f"{code.name}_DIM" in header
        }
    except (TypeError, ValueError):
        planes = {}
    if not planes or min(planes) < 0:
        raise InputError(f"{place}: its header names no classes of contaminants")
    background = int(header["BG_DIM"]) if str(header.get("BG_DIM", "")).isdecimal() else 0
    return {**planes, **({} if background <= max(planes) else {background: 0})}
