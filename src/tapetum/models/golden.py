"""Golden vectors: inputs that can be made again exactly, and the check that a network still answers to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tapetum.core.errors import ModelError
from tapetum.models.card import StoredStamps, SyntheticStamps
from tapetum.models.inputs import prepare_images

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from tapetum.models.card import CardBody

SCENES = 6  # kinds of synthetic stamps, in turn


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
    if card.features is not None and golden.features is not None:
        prepared[card.features.name] = np.array(golden.features, dtype=np.float32)
    return prepared


def check_golden(
    card: CardBody, run: Callable[[Mapping[str, NDArray[np.float32]]], NDArray[np.float64]]
) -> float:
    """Run the golden vectors through `run`; the largest absolute difference to what the card says.

    Raises
    ------
    ModelError
        It is larger than the tolerance, or not a number; names model and vector.
    """
    inputs = golden_inputs(card)
    if card.golden is None:
        return 0.0
    expected = np.array(card.golden.outputs, dtype=np.float64)
    difference = np.abs(run(inputs) - expected).max(axis=1)
    if not (difference <= card.golden.tolerance).all():
        worst = int(np.nanargmax(np.where(np.isnan(difference), np.inf, difference)))
        raise ModelError(
            f"{card.name} {card.version}: golden vector {worst} differs by {difference[worst]:.2g}, more than "
            f"{card.golden.tolerance:g}: the network, its card or the runtime is not the one that was published"
        )
    return float(difference.max())
