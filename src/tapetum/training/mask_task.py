"""Masks of frames: one network, the 14 classes of contaminants for every pixel."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tapetum.core.errors import InputError
from tapetum.images.contaminants import NAMES
from tapetum.training.loop import answers_of
from tapetum.training.mask_card import describe
from tapetum.training.mask_data import MaskSource, open_source
from tapetum.training.mask_export import export_masks
from tapetum.training.networks import build_network
from tapetum.training.split import LEARNING, USED_ROLES, require
from tapetum.training.task import Epoch, RecipeTask

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.models.card import ModelCard
    from tapetum.training.mask_data import MaskExample
    from tapetum.training.mask_recipe import Crops, MaskLoss, MaskRecipe
    from tapetum.training.split import Role
    from tapetum.training.task import Batch

FRAMES_AT_ONCE = 4  # that are judged together


class MaskTask(RecipeTask):
    """A `tapetum.training.task.Task`: crops of contaminated frames, cross-entropy of 14 logits a pixel.

    Parameters
    ----------
    recipe
        Network, optimiser, loss, crops, seed.
    source
        Of the examples.
    """

    def __init__(self, recipe: MaskRecipe, source: MaskSource) -> None:
        self.recipe = recipe
        self.source = source
        super().__init__(recipe, [source])

    @classmethod
    def open(cls, recipe: MaskRecipe, paths: Sequence[Path], jobs: int = 1) -> MaskTask:
        """The task with the user's frames; `jobs` processes make examples."""
        return cls(recipe, open_source(recipe, paths, jobs))

    def network(self) -> nn.Module:
        """An untrained network."""
        spec = self.recipe.network
        network: nn.Module = build_network(spec.name, 1, 0, spec.arguments)
        return network

    def epoch(self, epoch: int) -> Epoch:
        """Turned and mirrored crops: images, bits of the classes that hold, bits of those that nobody knows."""
        pool = self.source.pool(epoch, self.optimiser.epochs - 1)
        require((example.name for example in pool), frozenset({"fit"}))
        n_batches = max(len(pool) * self.recipe.crops.per_frame // self.optimiser.batch, 1)
        rng = np.random.default_rng([self.seed, epoch])
        return Epoch(n_batches, crops_of(pool, self.recipe.crops, self.optimiser.batch, rng))

    def loss(self, answers: Tensor, *truth: Tensor) -> Tensor:
        """Of `mask_loss`."""
        return mask_loss(answers, truth[0], truth[1], self.recipe.loss)

    @torch.no_grad()
    def validation_loss(self, network: nn.Module) -> tuple[float, int]:
        """Mean loss of the first whole frames of the validation part."""
        frames = self.source.fixed("validation")[: self.recipe.crops.checked]
        require((example.name for example in frames), LEARNING)
        device = next(network.parameters()).device
        total = 0.0
        for start in range(0, len(frames), FRAMES_AT_ONCE):
            images, *truth = stacked(frames[start : start + FRAMES_AT_ONCE])
            answers = answers_of(network, images, self.optimiser)
            loss = self.loss(answers, *(torch.from_numpy(part).to(device) for part in truth))
            total += float(loss) * len(images)
        return total / len(frames), len(frames)

    def require_examples(self) -> None:
        """Refuse a validation part that lacks a class: it could not be calibrated."""
        seen = np.bitwise_or.reduce(
            [np.bitwise_or.reduce(e.truth, None) for e in self.source.fixed("validation")]
        )
        if missing := [name for bit, name in enumerate(NAMES) if not seen >> bit & 1]:
            raise InputError(
                f"nothing to calibrate on: no pixel of the validation part is of class {', '.join(missing)}; "
                "`validation` must be larger"
            )

    def export(self, network: nn.Module, path: Path) -> None:
        """Fit the calibration of every class, write it with the network, compare with torch."""
        export_masks(network, self.source.fixed("validation"), path, self.recipe.input, self.recipe.opset)

    def describe(self, onnx: Path, today: date) -> ModelCard:
        """The card, with thresholds from validation and figures of the test part."""
        sets: dict[Role, list[MaskExample]] = {role: self.source.fixed(role) for role in USED_ROLES[1:]}
        return describe(self.recipe, onnx, sets, self.keys, today)

    def close(self) -> None:
        """End the processes that make examples."""
        self.source.close()


def stacked(frames: Sequence[MaskExample]) -> Batch:
    """Whole frames as a batch, without a change."""
    return (
        np.stack([example.image for example in frames])[:, None].astype(np.float32),
        np.stack([example.truth for example in frames]).astype(np.int32),
        np.stack([example.unknown for example in frames]).astype(np.int32),
    )


def crops_of(
    pool: Sequence[MaskExample], crops: Crops, batch: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """Batches of random crops, each turned and mirrored in one of the 8 ways (columns become lines, one class).

    Yields
    ------
    images : ndarray of float32, shape (batch, 1, side, side)
    truth, unknown : ndarray of int32, shape (batch, side, side)
    """
    order = rng.permutation(np.tile(np.arange(len(pool)), crops.per_frame))
    for step in range(max(len(order) // batch, 1)):
        parts = [_crop(pool[i], crops, rng) for i in order[step * batch : (step + 1) * batch]]
        images, truth, unknown = (np.stack(planes) for planes in zip(*parts, strict=True))
        yield images[:, None], truth.astype(np.int32), unknown.astype(np.int32)


def _crop(
    example: MaskExample, crops: Crops, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint16], NDArray[np.uint16]]:
    n_y, n_x = example.image.shape
    y, x = (int(rng.integers(n - crops.side + 1)) for n in (n_y, n_x))
    window = np.s_[y : y + crops.side, x : x + crops.side]
    way = int(rng.integers(8))
    image = _turned(example.image[window], way).astype(np.float32)
    scale, offset = np.exp(rng.normal(0, crops.scale)), rng.normal(0, crops.offset)
    # where a pixel has no value it stays exactly 0, as in every normalised frame
    changed = np.where(image == 0, image, image * np.float32(scale) + np.float32(offset))
    return changed, _turned(example.truth[window], way), _turned(example.unknown[window], way)


def _turned(values: NDArray[Any], way: int) -> NDArray[Any]:
    turned = np.rot90(values, way % 4)
    return turned.T if way >= 4 else turned


def mask_loss(logits: Tensor, truth: Tensor, unknown: Tensor, settings: MaskLoss) -> Tensor:
    """Loss of the logits of all classes.

    Parameters
    ----------
    logits : Tensor of float32, shape (n, 14, n_y, n_x)
    truth, unknown : Tensor of int32, shape (n, n_y, n_x)
        Bit i is class i of `NAMES`: it holds; nobody knows whether it holds.
    settings
        Weights.

    Returns
    -------
    Tensor, scalar
        Mean over classes of the weighted mean cross-entropy of their known pixels, plus the soft Dice loss.
    """
    rows = logits.permute(0, 2, 3, 1).reshape(-1, len(NAMES))  # no copy where memory is channels_last
    target, known = _planes(truth), 1 - _planes(unknown)
    weight = _per_class(settings.weights, logits)
    entropy = nn.functional.softplus(rows) - target * rows
    if settings.positive:
        entropy = entropy + target * (_per_class(settings.positive, logits) - 1) * nn.functional.softplus(
            -rows
        )
    each = (entropy * known).sum(0) / known.sum(0).clamp(min=1)
    loss = (weight * each).mean()
    return loss + settings.dice * _soft_dice(rows, target, known) if settings.dice else loss


@cache
def _bit_table(device: torch.device) -> Tensor:
    values = torch.arange(1 << len(NAMES), device=device)[:, None]
    return (values >> torch.arange(len(NAMES), device=device) & 1).float()


def _planes(bits: Tensor) -> Tensor:
    # looked up in a table: several times faster than shifting every pixel once per class
    return nn.functional.embedding(bits.reshape(-1), _bit_table(bits.device))


def _per_class(values: dict[str, float], like: Tensor) -> Tensor:
    return torch.tensor([values.get(name, 1.0) for name in NAMES], device=like.device, dtype=like.dtype)


def _soft_dice(rows: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """One minus twice the overlap over the sum of sizes (Milletari et al. 2016), mean of the classes that are there.

    A share of a class's own pixels, it needs no weight: with one, the rarest classes would drown all others.
    """
    probability, target = torch.sigmoid(rows) * known, target * known
    there = target.sum(0) > 0
    overlap, sizes = (probability * target).sum(0), probability.sum(0) + target.sum(0)
    dice = 1 - (2 * overlap + 1) / (sizes + 1)
    return (there * dice).sum() / there.sum().clamp(min=1e-6)
