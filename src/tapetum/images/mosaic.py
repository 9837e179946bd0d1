"""Several reference images on the grid of one science image: one reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from tapetum.core.errors import InputError
from tapetum.core.robust import MAD_TO_SIGMA
from tapetum.images.frame import Bad, Frame, FrameInfo, Image, MaskPlane
from tapetum.images.pixelmap import covered
from tapetum.images.remap import remap, resized_info

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

SAMPLE_STEP = 4  # every fourth pixel along each axis is enough to compare backgrounds
LEAST_SHARED = 100  # of them in an overlap that is to say how two backgrounds differ
BAND_ROWS = 256  # of the median at a time, to keep the stack small
NO_DATA = np.uint8(Bad.NO_DATA)


@dataclass(frozen=True)
class _Cell:
    """One image on its part of the output grid, in DN of the common zero point."""

    source: str
    box: tuple[slice, slice]
    data: Image
    mask: MaskPlane
    variance: Image | None
    info: FrameInfo
    weight: float

    def good(self) -> NDArray[np.bool_]:
        good: NDArray[np.bool_] = (self.mask == 0) & np.isfinite(self.data)
        return good


def mosaic(
    frames: Iterable[Frame],
    onto: Frame,
    *,
    combine: Literal["mean", "median"] = "mean",
    match_background: bool = True,
    threads: int = 1,
) -> Frame:
    """Combine the frames that overlap another one into a single frame on its pixel grid.

    Frames are scaled to the zero point of the first that overlaps, brought to one background level by the median
    differences in their overlaps (all of them at once, by least squares; frames without an overlap by their medians),
    and combined where they overlap: a mean weighted by the inverse variance of each frame's sky, or a median. Flagged
    pixels are used only where no frame has a good one.

    Parameters
    ----------
    frames
        Any number; they are taken one at a time, so they may be read while they are needed. Those beside `onto` are
        passed over.
    onto
        The frame whose grid is filled.
    combine
        ``mean`` has the smaller noise, ``median`` ignores what only one of three or more frames shows.
    match_background
        False leaves the levels as they are: for frames that have none.
    threads
        Threads to use; the result does not depend on it.

    Returns
    -------
    Frame
        Mask 0 where at least one frame has a good pixel. Variance when all frames that are used have one; that of a
        median of three or more is pi / 2 times that of their mean. The gain is the smallest of the frames' gains, so
        that the photon noise is never underestimated, and the saturation level the lowest.

    Raises
    ------
    InputError
        No frame overlaps `onto`, or a frame has no celestial WCS.
    """
    cells: list[_Cell] = []
    warnings: list[str] = []
    names: list[str] = []
    passed_over: list[str] = []
    zero_point: float | None = None
    for frame in frames:
        cell, warning = _placed(frame, onto, zero_point if cells else frame.info.zero_point, threads)
        if cell is None:
            passed_over.append(frame.source)
            continue
        if not cells:
            zero_point = frame.info.zero_point
        cells.append(cell)
        names.append(frame.name)
        warnings += [warning] if warning else []
    if not cells:
        raise InputError(
            f"none of {len(passed_over)} images overlaps {onto.source} on the sky; give references of its field"
        )
    levels = _levels(cells, onto.shape) if match_background else np.zeros(len(cells))
    for cell, level in zip(cells, levels, strict=True):
        np.subtract(cell.data, np.float32(level), out=cell.data)
    data, mask, variance = _combined(cells, onto.shape, combine)
    return Frame(
        name=names[0] if len(cells) == 1 else f"{names[0]}_mosaic",
        source=", ".join(cell.source for cell in cells),
        data=data,
        mask=mask,
        wcs=onto.wcs,
        header=onto.header,
        info=_common_info(cells, zero_point, warnings),
        variance=variance,
    )


def _placed(
    frame: Frame, onto: Frame, zero_point: float | None, threads: int
) -> tuple[_Cell | None, str | None]:
    """A frame on its part of the grid of `onto`, scaled to a zero point; None when it lies beside it."""
    try:
        fraction, box = covered(frame.wcs, onto.wcs, frame.shape, onto.shape)
    except InputError as problem:
        raise InputError(f"{frame.source} onto {onto.source}: {problem}") from problem
    if box is None or not (np.isfinite(frame.data).any()):
        return None, None
    rows, columns = box
    shape = rows.stop - rows.start, columns.stop - columns.start
    origin = columns.start, rows.start
    try:
        moved = remap(
            frame.data, frame.mask, frame.variance, frame.wcs, onto.wcs, shape, origin=origin, threads=threads
        )
    except InputError:
        if fraction > 0.0:
            raise
        return None, None  # its border only seemed to reach in
    scale, warning = np.float32(1.0), None
    if zero_point is None or frame.info.zero_point is None:
        warning = f"{frame.source}: combined as it is, because not all images have a zero point"
    else:
        scale = np.float32(10.0 ** (0.4 * (zero_point - frame.info.zero_point)))
    data = moved.data * scale
    variance = None if moved.variance is None else moved.variance * scale**2
    info = resized_info(frame.info, moved.area)
    info = replace(
        info,
        gain=info.gain / float(scale),
        saturation=info.saturation * float(scale),
        wcs_kind=onto.info.wcs_kind,
    )
    weight = _weight(data, moved.mask, variance)
    return _Cell(frame.source, box, data, moved.mask, variance, info, weight), warning


def _weight(data: Image, mask: MaskPlane, variance: Image | None) -> float:
    """Inverse variance of the sky; one number per frame, so that no star is weighted by its own light."""
    sample = (slice(None, None, SAMPLE_STEP),) * 2
    good = (mask[sample] == 0) & np.isfinite(data[sample])
    if not good.any():
        return 1.0
    if variance is not None:
        noise = float(np.median(variance[sample][good]))
    else:
        values = data[sample][good]
        noise = float((MAD_TO_SIGMA * np.median(np.abs(values - np.median(values)))) ** 2)
    return 1.0 / noise if noise > 0.0 and np.isfinite(noise) else 1.0


def _levels(cells: Sequence[_Cell], shape: tuple[int, int]) -> NDArray[np.float64]:
    """What to subtract from each cell so that all have the background of the one with the most pixels."""
    samples = []
    for cell in cells:
        sample = np.full((-(-shape[0] // SAMPLE_STEP), -(-shape[1] // SAMPLE_STEP)), np.nan, np.float32)
        start = [-part.start % SAMPLE_STEP for part in cell.box]
        thin = slice(start[0], None, SAMPLE_STEP), slice(start[1], None, SAMPLE_STEP)
        values = np.where(cell.good()[thin], cell.data[thin], np.nan)
        first = [(part.start + offset) // SAMPLE_STEP for part, offset in zip(cell.box, start, strict=True)]
        sample[first[0] : first[0] + values.shape[0], first[1] : first[1] + values.shape[1]] = values
        samples.append(sample)
    n = len(cells)
    known = [np.isfinite(sample) for sample in samples]
    rows, differences, group = [], [], np.arange(n)
    for i in range(n):
        for j in range(i + 1, n):
            both = known[i] & known[j]
            shared = int(both.sum())
            if shared < LEAST_SHARED:
                continue
            row = np.zeros(n)
            row[i], row[j] = shared**0.5, -(shared**0.5)
            rows.append(row)
            differences.append(shared**0.5 * float(np.median(samples[i][both] - samples[j][both])))
            group[group == group[j]] = group[i]
    levels = np.linalg.lstsq(np.array(rows), np.array(differences), rcond=None)[0] if rows else np.zeros(n)
    return _anchored(levels, group, samples)


def _anchored(
    levels: NDArray[np.float64], group: NDArray[np.int_], samples: Sequence[Image]
) -> NDArray[np.float64]:
    """Levels relative to the largest cell; groups of cells that share no overlap get the same median."""
    sizes = [int(np.isfinite(sample).sum()) for sample in samples]
    main = int(np.argmax(sizes))

    def middle(label: int) -> float:
        members = [
            sample[np.isfinite(sample)] - np.float32(level)
            for sample, level, its in zip(samples, levels, group, strict=True)
            if its == label
        ]
        values = np.concatenate(members)
        return float(np.median(values)) if values.size else 0.0

    wanted = middle(group[main])
    anchored: NDArray[np.float64] = levels - levels[main]
    for label in np.unique(group):
        if label != group[main]:
            anchored[group == label] += middle(label) - wanted
    return anchored


def _combined(
    cells: Sequence[_Cell], shape: tuple[int, int], combine: str
) -> tuple[Image, MaskPlane, Image | None]:
    """First what is good, then, where nothing is, what has a value at all."""
    data, variance = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    mask = np.zeros(shape, np.uint8)
    anything_good = np.zeros(shape, bool)
    for cell in cells:
        mask[cell.box] |= cell.mask
        anything_good[cell.box] |= cell.good()
    mask[anything_good] = 0
    average = _median if combine == "median" else _mean
    for top in range(0, shape[0], BAND_ROWS):
        band = slice(top, min(top + BAND_ROWS, shape[0]))
        average(cells, band, anything_good[band], data[band], variance[band])
    mask[~np.isfinite(data)] |= NO_DATA
    with_variance = all(cell.variance is not None for cell in cells)
    return data, mask, variance if with_variance else None


def _parts(
    cells: Sequence[_Cell], band: slice, good_only: NDArray[np.bool_]
) -> list[tuple[_Cell, tuple[slice, slice], tuple[slice, slice], NDArray[np.bool_]]]:
    """Per cell in a band of rows: its part of the band, its own rows, and which of its pixels to use."""
    parts = []
    for cell in cells:
        rows, columns = cell.box
        first, last = max(rows.start, band.start), min(rows.stop, band.stop)
        if first >= last:
            continue
        target = slice(first - band.start, last - band.start), columns
        own = slice(first - rows.start, last - rows.start), slice(None)
        use = np.isfinite(cell.data[own]) & ((cell.mask[own] == 0) | ~good_only[target])
        parts.append((cell, target, own, use))
    return parts


def _mean(
    cells: Sequence[_Cell], band: slice, good_only: NDArray[np.bool_], data: Image, variance: Image
) -> None:
    total, noise, weights = (np.zeros(data.shape, np.float32) for _ in range(3))
    largest = max(cell.weight for cell in cells)
    for cell, target, own, use in _parts(cells, band, good_only):
        weight = np.float32(cell.weight / largest)
        total[target] += np.where(use, weight * cell.data[own], np.float32(0.0))
        weights[target] += np.where(use, weight, np.float32(0.0))
        if cell.variance is not None:
            noise[target] += np.where(use, weight**2 * cell.variance[own], np.float32(0.0))
    there = weights > 0.0
    np.divide(total, weights, out=data, where=there)
    np.divide(noise, weights**2, out=variance, where=there)


def _median(
    cells: Sequence[_Cell], band: slice, good_only: NDArray[np.bool_], data: Image, variance: Image
) -> None:
    parts = _parts(cells, band, good_only)
    stack = np.full((len(parts), *data.shape), np.nan, np.float32)
    noise, count = np.zeros(data.shape, np.float32), np.zeros(data.shape, np.float32)
    for layer, (cell, target, own, use) in zip(stack, parts, strict=True):
        layer[target] = np.where(use, cell.data[own], np.nan)
        count[target] += use
        if cell.variance is not None:
            noise[target] += np.where(use, cell.variance[own], np.float32(0.0))
    there = count > 0.0
    if not there.any():
        return
    stack.sort(axis=0)  # NaN last
    last = np.maximum(count.astype(np.intp) - 1, 0)
    low = np.take_along_axis(stack, (last // 2)[None], axis=0)[0]
    high = np.take_along_axis(stack, ((last + 1) // 2)[None], axis=0)[0]
    np.copyto(data, (low + high) / np.float32(2.0), where=there)
    price = np.where(count > 2.0, np.float32(np.pi / 2.0), np.float32(1.0))
    np.divide(price * noise, count**2, out=variance, where=there)


def _common_info(cells: Sequence[_Cell], zero_point: float | None, warnings: Sequence[str]) -> FrameInfo:
    largest = max(cells, key=lambda cell: int(cell.good().sum()))
    widths = [cell.info.fwhm_pix for cell in cells if cell.info.fwhm_pix is not None]
    said = [text for cell in cells for text in cell.info.warnings]
    return replace(
        largest.info,
        gain=min(cell.info.gain for cell in cells),
        saturation=min(cell.info.saturation for cell in cells),
        fwhm_pix=float(np.median(widths)) if widths else None,
        zero_point=zero_point,
        warnings=tuple(dict.fromkeys([*said, *warnings])),
    )
