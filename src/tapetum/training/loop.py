"""THE training loop: every network of Tapetum is trained here. Seeded, resumable, on CPU or GPU."""

from __future__ import annotations

import csv
import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from tapetum.core.errors import FormatError, InputError, UsageError
from tapetum.core.files import whole_file
from tapetum.core.progress import Progress, no_progress
from tapetum.models.inputs import prepare_images
from tapetum.training.augment import augment
from tapetum.training.networks import build_network
from tapetum.training.scoring import known
from tapetum.training.split import LEARNING, require

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.training.datasets import Examples, Source
    from tapetum.training.recipe import Optimiser, Recipe

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.npz"
LOG = "log.csv"
LOG_COLUMNS = ("epoch", "seconds", "rate", "loss", "validation_loss", "validation_n")
PREPARE_AT_ONCE = 512


@dataclass
class _State:
    network: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    epoch: int = 0
    step: int = 0


def fit(
    recipe: Recipe,
    sources: Sequence[tuple[Source, int]],
    folder: Path,
    *,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> nn.Module:
    """Train the network of a recipe, going on from the checkpoint in `folder` if there is one.

    Parameters
    ----------
    recipe
        Network, optimiser, augmentation, seed.
    sources
        Sources and how often their examples are shown in an epoch.
    folder
        Gets ``checkpoint.npz`` and ``log.csv`` after every epoch.
    device
        A torch device: cpu, cuda, cuda:1, mps.
    progress
        Told the epochs.

    Returns
    -------
    torch.nn.Module
        The averaged network, on the CPU, in evaluation mode.

    Raises
    ------
    FormatError
        The checkpoint is of another network.
    UsageError
        A source gave an object that may not be learned from, or torch has no such device.
    InputError
        There is no example to learn from.
    """
    require_device(device)
    validation = [known(source.examples("validation")) for source, _ in sources]
    for examples in validation:
        require(examples.object_id, LEARNING)
    state = _start(recipe, folder, device)
    for epoch in range(state.epoch, recipe.optimiser.epochs):
        started = time.monotonic()
        shown = [(known(source.examples("fit", epoch)), repeat) for source, repeat in sources]
        loss = _one_epoch(state, shown, recipe, device)
        measured, n = _loss(state.average, validation, recipe)
        row = (
            epoch + 1,
            time.monotonic() - started,
            state.optimiser.param_groups[0]["lr"],
            loss,
            measured,
            n,
        )
        _append(folder / LOG, row)
        _save(folder / CHECKPOINT, state)
        log.info("epoch %d: %.0f s, loss %.4f, validation %.4f (%d)", row[0], row[1], loss, measured, n)
        progress(epoch + 1, recipe.optimiser.epochs)
    return state.average.to("cpu").eval()


def require_device(device: str) -> None:
    """Refuse a device that torch cannot compute on.

    Raises
    ------
    UsageError
        Names it.
    """
    try:
        torch.zeros(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        reason = str(problem).partition("\n")[0]
        raise UsageError(
            f"--device {device}: torch cannot compute there ({reason}); cpu always works"
        ) from None


def _start(recipe: Recipe, folder: Path, device: str) -> _State:
    torch.manual_seed(recipe.seed)
    spec = recipe.network
    network, average = (
        build_network(spec.name, recipe.input.n_planes, recipe.input.size, spec.arguments).to(device)
        for _ in range(2)
    )
    average.load_state_dict(network.state_dict())
    settings = recipe.optimiser
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.rate, weight_decay=settings.weight_decay)
    state = _State(network, average.eval(), optimiser)
    if (folder / CHECKPOINT).is_file():
        _load(folder / CHECKPOINT, state)
    return state


def learning_rate(done: float, settings: Optimiser) -> float:
    """Rate when the share `done` of the run is over: a straight rise, then half a cosine down."""
    if done < settings.warm_up:
        return settings.rate * max(done / settings.warm_up, 0.04)
    falling = (done - settings.warm_up) / (1 - settings.warm_up)
    return settings.rate * max(0.5 * (1 + math.cos(math.pi * falling)), 1e-4)


def _batches(
    shown: Sequence[tuple[Examples, int]], recipe: Recipe, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Shuffled, augmented, prepared batches of one epoch: images and targets."""
    where = [
        (s, i)
        for s, (examples, repeat) in enumerate(shown)
        for i in np.tile(np.arange(len(examples)), repeat)
    ]
    order = rng.permutation(len(where))
    size = recipe.optimiser.batch
    for step in range(max(len(where) // size, 1)):
        rows = [where[j] for j in order[step * size : (step + 1) * size]]
        changed = [
            augment(
                shown[s][0].stamps[i],
                shown[s][0].shapes[i],
                shown[s][0].origin[i] != "simulated",
                recipe.augment,
                rng,
            )
            for s, i in rows
        ]
        stamps, shapes = np.stack([stamp for stamp, _ in changed]), np.stack([shape for _, shape in changed])
        target = np.array([shown[s][0].target[i] for s, i in rows], np.float32)
        yield prepare_images(stamps, shapes, recipe.input), target


def _one_epoch(state: _State, shown: Sequence[tuple[Examples, int]], recipe: Recipe, device: str) -> float:
    for examples, _ in shown:
        require(examples.object_id, frozenset({"fit"}))
    n_shown = sum(len(examples) * repeat for examples, repeat in shown)
    if not n_shown:
        raise InputError(
            "no example to learn from: the sources have none of known truth in the training part"
        )
    torch.manual_seed(recipe.seed + 1 + state.epoch)  # dropout
    rng = np.random.default_rng([recipe.seed, state.epoch])
    lossy = nn.BCEWithLogitsLoss()
    n_batches = max(n_shown // recipe.optimiser.batch, 1)
    total, count = 0.0, 0
    state.network.train()
    for number, (images, target) in enumerate(_batches(shown, recipe, rng)):
        rate = learning_rate((state.epoch + number / n_batches) / recipe.optimiser.epochs, recipe.optimiser)
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        state.optimiser.zero_grad(set_to_none=True)
        logits = state.network(torch.from_numpy(images).to(device))[:, 0]
        loss = lossy(logits, torch.from_numpy(target).to(device))
        loss.backward()
        state.optimiser.step()
        state.step += 1
        _follow(state.average, state.network, recipe.optimiser.average, state.step)
        total, count = total + float(loss.detach()) * len(target), count + len(target)
    state.epoch += 1
    return total / max(count, 1)


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    decay = min(decay, step / (step + 10))  # the first steps are not worth remembering
    for mean, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.dtype.is_floating_point:
            mean.mul_(decay).add_(value, alpha=1 - decay)
        else:
            mean.copy_(value)


@torch.no_grad()
def logits_of(network: nn.Module, examples: Examples, recipe: Recipe) -> NDArray[np.float64]:
    """Logits of a network for examples as they are, shape (n,)."""
    device = next(network.parameters()).device
    network.eval()
    parts = []
    for start in range(0, len(examples), PREPARE_AT_ONCE):
        rows = slice(start, start + PREPARE_AT_ONCE)
        images = prepare_images(examples.stamps[rows], examples.shapes[rows], recipe.input)
        parts.append(network(torch.from_numpy(images).to(device))[:, 0].cpu().double().numpy())
    return np.concatenate(parts) if parts else np.zeros(0)


def _loss(network: nn.Module, validation: Sequence[Examples], recipe: Recipe) -> tuple[float, int]:
    logits = np.concatenate([logits_of(network, examples, recipe) for examples in validation])
    target = np.concatenate([examples.target for examples in validation])
    if not len(target):
        return float("nan"), 0
    return float(np.mean(np.logaddexp(0, logits) - target * logits)), len(target)


# what is kept between runs


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}/{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _save(path: Path, state: _State) -> None:
    # plain arrays only: a checkpoint can be read without running any code
    moments = {str(number): entry for number, entry in state.optimiser.state_dict()["state"].items()}
    tree = {"network": state.network.state_dict(), "average": state.average.state_dict(), "moments": moments}
    arrays = {name: np.asarray(torch.as_tensor(value).cpu()) for name, value in _flat(dict(tree))}
    with whole_file(path) as part, part.open("wb") as handle:
        np.savez(handle, allow_pickle=False, epoch=np.array(state.epoch), step=np.array(state.step), **arrays)


def _load(path: Path, state: _State) -> None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            kept = {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
        for name, module in (("network", state.network), ("average", state.average)):
            module.load_state_dict(_branch(kept, name))
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        raise FormatError(
            f"{path}: not a checkpoint of this network ({problem}); delete it to start again"
        ) from None
    state.epoch, state.step = int(kept["epoch"]), int(kept["step"])
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in _branch(kept, "moments").items():
        number, _, key = name.partition("/")
        moments.setdefault(int(number), {})[key] = value
    state.optimiser.load_state_dict({**state.optimiser.state_dict(), "state": moments})


def _branch(kept: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(name + "/"): value for key, value in kept.items() if key.startswith(name + "/")}


def _append(path: Path, row: Sequence[float]) -> None:
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as handle:
        writer = csv.writer(handle)
        if new:
            writer.writerow(LOG_COLUMNS)
        writer.writerow([row[0], *(f"{value:.6g}" for value in row[1:])])
