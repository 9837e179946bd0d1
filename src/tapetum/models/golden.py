"""Golden vectors: inputs that can be made again exactly, and the check that a network still answers to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import InputError, ModelError
from tapetum.models.card import StoredStamps, SyntheticStamps
from tapetum.models.inputs import prepare_images

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from tapetum.models.card import CardBody, PointsContract, SyntheticDmdt, SyntheticFrames, SyntheticPoints

SCENES = 6  # kinds of synthetic stamps, in turn
PROJECTION_SEED = 20265  # of the weights of `golden_projections`
FRAME_STARS = 12  # in one synthetic frame


def uniforms(seed: int, stream: int, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) from integer arithmetic alone, the same with every version of every library.

    The mixing steps of SplitMix64 (Steele, Lea & Flood 2014) over a counter.
    """
    with np.errstate(over="ignore"):
        state = np.arange(1, count + 1, dtype=np.uint64) + np.uint64((seed << 40) + (stream << 24))
        state *= np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) / 2.0**53


def _noise(seed: int, stream: int, size: int) -> NDArray[np.float64]:
    """Nearly normal noise: twelve uniform numbers minus six."""
    return np.asarray(uniforms(seed, stream, 12 * size * size).reshape(12, size, size).sum(axis=0) - 6.0)


def _star(size: int, dy: float, dx: float, width: float) -> NDArray[np.float64]:
    """A Moffat profile of peak 1: sums, products and quotients only, which are the same on every machine."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    square = ((y - dy) ** 2 + (x - dx) ** 2) / width**2
    return np.asarray(1.0 / ((1.0 + square) * (1.0 + square) * (1.0 + square)))


def synthetic_stamps(recipe: SyntheticStamps) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """Make the stamps of a recipe: transient, variable, dipole, cut by an edge, missing pixels, hot pixel, in turn.

    Returns
    -------
    stamps : ndarray of float32, shape (count, 3, size, size)
        Science, template, difference [counts]; NaN where there is no value.
    shapes : ndarray of int16, shape (count, 3, 2)
    """
    size, seed = recipe.size, recipe.seed
    stamps = np.empty((recipe.count, 3, size, size), dtype=np.float32)
    shapes = np.full((recipe.count, 3, 2), size, dtype=np.int16)
    for i in range(recipe.count):
        scene, brightness = i % SCENES, 40.0 * (1 + i)
        reference = 0.0 if scene in (0, 5) else 3.0 * brightness
        template = 120.0 + 2.0 * _noise(seed, 8 * i, size) + reference * _star(size, 0.0, 0.0, 3.0)
        science = 150.0 + 8.0 * _noise(seed, 8 * i + 1, size) + reference * _star(size, 0.0, 0.0, 3.2)
        if scene == 2:
            science += brightness * (_star(size, 0.0, 1.0, 3.0) - _star(size, 0.0, -1.0, 3.0))
        elif scene == 5:
            science[size // 2, size // 2] += 10.0 * brightness
        else:
            science += brightness * _star(size, 0.3, -0.2, 3.0)
        stamps[i] = science, template, science - template - 30.0
        if scene == 3:
            shapes[i] = size - size // 6, size - size // 3
            stamps[i, :, shapes[i, 0, 0] :] = np.nan
            stamps[i, :, :, shapes[i, 0, 1] :] = np.nan
        if scene == 4:
            stamps[i, 1:, : size // 4, size // 2 :] = np.nan
    return stamps, shapes


def synthetic_frames(recipe: SyntheticFrames) -> NDArray[np.float32]:
    """Make the frames of a recipe: sky noise, stars, and in turn all that spoils a frame.

    Every frame has stars of many fluxes; then cosmic rays and hot pixels (even frames), a satellite trail and a
    hot and a dead column (odd frames), and a block without values in the lower right corner.

    Returns
    -------
    ndarray of float32, shape (count, 1, size, size)
        Sky-subtracted, in units of the sky's noise; 0 where there is no value.
    """
    size, seed = recipe.size, recipe.seed
    frames = np.empty((recipe.count, 1, size, size), dtype=np.float32)
    for i in range(recipe.count):
        frame = _noise(seed, 8 * i, size)
        for v, u, brightness, width in uniforms(seed, 8 * i + 1, 4 * FRAME_STARS).reshape(-1, 4):
            dy, dx = (size - 1) * (v - 0.5), (size - 1) * (u - 0.5)
            # peaks from 3 to 3000 times the noise, most of them faint
            frame += 3.0 / (0.001 + brightness * brightness) * _star(size, dy, dx, 2.0 + width)
        places = (size * uniforms(seed, 8 * i + 2, 12)).astype(np.int64)
        if i % 2 == 0:
            for y, x in places.reshape(-1, 2):
                frame[y, x : x + 1 + (x + y) % 5] += 60.0 + x
            frame[places[:4], places[4:8]] += 400.0
        else:
            frame += 12.0 * _ribbon(size, places[0] - size / 2, 0.2 + places[1] / size, 1.5)
            frame[:, places[2]] += 25.0
            frame[size // 3 :, places[3]] = -15.0
        frame[size - size // 8 :, size - size // 5 :] = 0.0
        frames[i, 0] = frame
    return frames


def _ribbon(size: int, offset: float, slope: float, width: float) -> NDArray[np.float64]:
    """A straight trail of peak 1 through the frame, with the wings of `_star`."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    square = (y - offset - slope * x) ** 2 / ((1.0 + slope * slope) * width**2)
    return np.asarray(1.0 / ((1.0 + square) * (1.0 + square) * (1.0 + square)))


def synthetic_dmdt(recipe: SyntheticDmdt, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Make the histograms of a recipe: a few bins hold most pairs, norm 1, shape ``(count, *shape)``."""
    n_bins = shape[0] * shape[1]
    values = uniforms(recipe.seed, 0, recipe.count * n_bins).reshape(recipe.count, n_bins)
    values = values * values * values * values
    values /= np.sqrt((values * values).sum(axis=1, keepdims=True))
    return values.reshape(recipe.count, *shape).astype(np.float32)


def synthetic_points(recipe: SyntheticPoints, contract: PointsContract) -> NDArray[np.float32]:
    """Make the points of a recipe: numbers between -1 and 1, and curves of different lengths."""
    length, channels = contract.length, contract.channels
    values = 2.0 * uniforms(recipe.seed, 1, recipe.count * length * channels) - 1.0
    values = values.reshape(recipe.count, length, channels)
    there = np.arange(length) < (np.arange(1, recipe.count + 1) * length // recipe.count)[:, None]
    values[..., -1] = 1.0
    return np.asarray(values * there[..., None], np.float32)


def golden_inputs(card: CardBody) -> dict[str, NDArray[np.float32]]:
    """The card's golden vectors, prepared as its contract says, by name of the ONNX input.

    Raises
    ------
    ModelError
        The card has no golden vectors, or they cannot be read.
    """
    golden = card.golden
    if golden is None:
        raise ModelError(f"{card.name} {card.version}: the card has no golden vectors")
    prepared: dict[str, NDArray[np.float32]] = {}
    if card.images is not None and golden.stamps is not None:
        if isinstance(golden.stamps, StoredStamps):
            stamps, shapes = golden.stamps.stamps.unpack(), np.array(golden.stamps.shapes, dtype=np.int16)
        else:
            stamps, shapes = synthetic_stamps(golden.stamps)
        try:
            prepared[card.images.name] = prepare_images(stamps, shapes, card.images)
        except ValueError as problem:
            raise ModelError(f"{card.name} {card.version}: golden stamps: {problem}") from None
    if card.frame is not None and golden.frames is not None:
        prepared[card.frame.name] = synthetic_frames(golden.frames)
    if card.features is not None and golden.features is not None:
        prepared[card.features.name] = np.array(golden.features, dtype=np.float32)
    if card.table is not None and golden.table is not None:
        from tapetum.models.tables import prepare_values  # needs numba, which no other kind of network does

        values = np.array(golden.table, dtype=np.float64)  # None becomes NaN
        try:
            prepared[card.table.name] = prepare_values(values, card.table).values
        except InputError as problem:
            raise ModelError(f"{card.name} {card.version}: golden table: {problem}") from None
    if card.dmdt is not None and golden.dmdt is not None:
        images = synthetic_dmdt(golden.dmdt, card.dmdt.shape)
        prepared[card.dmdt.name] = images.reshape(-1, *card.dmdt.planes)
    if card.points is not None and golden.points is not None:
        prepared[card.points.name] = synthetic_points(golden.points, card.points)
    return prepared


def golden_rows(answers: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """One row per golden vector: the columns themselves, or the mean over the pixels of each plane.

    Parameters
    ----------
    answers : ndarray, shape (n, n_columns) or (n, n_columns, n_y, n_x)
        Of the network, raw.
    """
    values = np.asarray(answers, dtype=np.float64)
    return values if values.ndim == 2 else np.asarray(values.mean(axis=(2, 3)))


def golden_projections(answers: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Of each plane the sum over its pixels with weights of mean 0 and variance 1, over its side.

    Errors of the pixels that do not depend on each other, and those that all pixels share, come out as large as they
    are; a plane that was moved or turned gives another number.

    Parameters
    ----------
    answers : ndarray, shape (n, n_columns, n_y, n_x)
        Of the network, raw.
    """
    n_y, n_x = answers.shape[2:]
    weights = np.sqrt(12.0) * (uniforms(PROJECTION_SEED, 0, n_y * n_x).reshape(n_y, n_x) - 0.5)
    weights -= weights.mean()
    sums = (np.asarray(answers, dtype=np.float64) * weights).sum(axis=(2, 3))
    return np.asarray(sums / np.sqrt(n_y * n_x))


def check_golden(
    card: CardBody, run: Callable[[Mapping[str, NDArray[np.float32]]], NDArray[np.floating[Any]]]
) -> float:
    """Run the golden vectors through `run`; the largest absolute difference to what the card says.

    `run` takes prepared inputs by name and gives one row, or one plane per column, for each of them.

    Raises
    ------
    ModelError
        It is larger than the tolerance, or not a number; names model and vector.
    """
    inputs = golden_inputs(card)
    if card.golden is None:
        return 0.0
    expected = np.array(card.golden.outputs, dtype=np.float64)
    answers = run(inputs)
    difference = np.abs(golden_rows(answers) - expected).max(axis=1)
    if card.golden.projections is not None:
        projections = golden_projections(answers) - np.array(card.golden.projections)
        difference = np.maximum(difference, np.abs(projections).max(axis=1))
    if not (difference <= card.golden.tolerance).all():
        worst = int(np.nanargmax(np.where(np.isnan(difference), np.inf, difference)))
        raise ModelError(
            f"{card.name} {card.version}: golden vector {worst} differs by {difference[worst]:.2g}, more than "
            f"{card.golden.tolerance:g}: the network, its card or the runtime is not the one that was published"
        )
    return float(difference.max())
