"""THE training loop: every network of Tapetum is trained here. Seeded, resumable, on CPU or GPU."""

from __future__ import annotations

import csv
import logging
import math
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tapetum.core.errors import FormatError, TapetumError, UsageError
from tapetum.core.files import whole_file
from tapetum.core.progress import Progress, no_progress
from tapetum.training.recipe import PatientOptimiser

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.training.recipe import Optimiser
    from tapetum.training.task import Batch, Learnable

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint.npz"
LOG = "log.csv"
LOG_COLUMNS = ("epoch", "seconds", "rate", "loss", "validation_loss", "validation_n")
BATCHES_AHEAD = 2  # made while the network works


@dataclass
class _State:
    network: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    epoch: int = 0
    step: int = 0
    history: list[float] = field(default_factory=list)  # validation losses
    best: dict[str, Tensor] = field(
        default_factory=dict
    )  # weights of the best epoch, where the recipe is patient


def fit(task: Learnable, folder: Path, *, device: str = "cpu", progress: Progress = no_progress) -> nn.Module:
    """Train the network of a task, going on from the checkpoint in `folder` if there is one.

    Parameters
    ----------
    task
        Network, batches, loss; see `tapetum.training.task.Learnable`.
    folder
        Gets ``checkpoint.npz`` and ``log.csv`` after every epoch.
    device
        A torch device: cpu, cuda, cuda:1, mps.
    progress
        Told the epochs.

    Returns
    -------
    torch.nn.Module
        The averaged network, on the CPU, in evaluation mode; that of the best epoch where the optimiser is a
        `tapetum.training.recipe.PatientOptimiser`.

    Raises
    ------
    FormatError
        The checkpoint is of another network.
    UsageError
        The task gave an object that may not be learned from, or torch has no such device.
    InputError
        There is no example to learn from.
    TapetumError
        The loss is no number any more.
    """
    require_device(device)
    settings = task.optimiser
    state = _start(task, folder, device)
    for epoch in range(state.epoch, settings.epochs):
        if out_of_patience(state.history, settings):
            break
        started = time.monotonic()
        loss = _one_epoch(state, task, device)
        measured, n = task.validation_loss(state.average)
        row = (
            epoch + 1,
            time.monotonic() - started,
            state.optimiser.param_groups[0]["lr"],
            loss,
            measured,
            n,
        )
        _append(folder / LOG, row)
        _remember(state, measured, settings)
        _save(folder / CHECKPOINT, state)
        log.info("epoch %d: %.0f s, loss %.4f, validation %.4f (%d)", row[0], row[1], loss, measured, n)
        progress(epoch + 1, settings.epochs)
    if state.best:
        state.average.load_state_dict(state.best)
    return state.average.to("cpu", memory_format=torch.contiguous_format).eval()


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


def _start(task: Learnable, folder: Path, device: str) -> _State:
    torch.manual_seed(task.seed)
    settings = task.optimiser
    network, average = (task.network().to(device, memory_format=_layout(settings)) for _ in range(2))
    average.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=settings.rate, weight_decay=settings.weight_decay, **_more(settings)
    )
    state = _State(network, average.eval(), optimiser)
    if (folder / CHECKPOINT).is_file():
        _load(folder / CHECKPOINT, state)
    return state


def _layout(settings: Optimiser) -> torch.memory_format:
    return torch.channels_last if settings.memory == "channels_last" else torch.contiguous_format


def _more(settings: Optimiser) -> dict[str, Any]:
    if isinstance(settings, PatientOptimiser):
        betas = (settings.beta_1, settings.beta_2)
        return {"eps": settings.epsilon, "amsgrad": settings.amsgrad, "betas": betas}
    return {}


def _remember(state: _State, measured: float, settings: Optimiser) -> None:
    if not isinstance(settings, PatientOptimiser):
        return
    if not math.isfinite(measured):
        raise TapetumError(
            f"the validation loss of epoch {state.epoch} is {measured}: nothing to be patient about"
        )
    if measured < min(state.history, default=math.inf):
        state.best = {name: value.detach().clone() for name, value in state.average.state_dict().items()}
    state.history.append(measured)


def out_of_patience(history: Sequence[float], settings: Optimiser) -> bool:
    """Whether the last so many epochs did not beat the best one before them."""
    if not isinstance(settings, PatientOptimiser) or not history:
        return False
    return len(history) - 1 - int(np.argmin(history)) >= settings.patience


def falls_of_rate(history: Sequence[float], settings: PatientOptimiser) -> int:
    """How often the rate fell: each time after so many epochs without an improvement that counts."""
    best, waited, falls = math.inf, 0, 0
    for loss in history:
        if loss < best - settings.least_gain:
            best, waited = loss, 0
        else:
            waited += 1
        if waited >= settings.rate_patience:
            waited, falls = 0, falls + 1
    return falls


def learning_rate(done: float, settings: Optimiser) -> float:
    """Rate when the share `done` of the run is over: a straight rise, then half a cosine down."""
    if done < settings.warm_up:
        return settings.rate * max(done / settings.warm_up, 0.04)
    falling = (done - settings.warm_up) / (1 - settings.warm_up)
    return settings.rate * max(0.5 * (1 + math.cos(math.pi * falling)), 1e-4)


def _rate(state: _State, of_epoch: float, settings: Optimiser) -> float:
    if isinstance(settings, PatientOptimiser):
        falls = settings.rate_factor ** falls_of_rate(state.history, settings)
        return settings.rate * falls / (1 + settings.decay * state.step)
    return learning_rate((state.epoch + of_epoch) / settings.epochs, settings)


def _one_epoch(state: _State, task: Learnable, device: str) -> float:
    settings = task.optimiser
    torch.manual_seed(task.seed + 1 + state.epoch)  # dropout
    shown = task.epoch(state.epoch)
    total, count = 0.0, 0
    state.network.train()
    with closing(made_ahead(shown.batches)) as batches:
        for number, (inputs, *truth) in enumerate(batches):
            rate = _rate(state, number / shown.n_batches, settings)
            for group in state.optimiser.param_groups:
                group["lr"] = rate
            state.optimiser.zero_grad(set_to_none=True)
            answers = _answers(state.network, _moved(inputs, device, settings), settings)
            loss = task.loss(answers, *(torch.from_numpy(part).to(device) for part in truth))
            loss.backward()
            if settings.clip is not None:
                nn.utils.clip_grad_norm_(state.network.parameters(), settings.clip)
            state.optimiser.step()
            state.step += 1
            _follow(state.average, state.network, settings.average, state.step)
            total, count = total + float(loss.detach()) * len(inputs), count + len(inputs)
    mean = total / max(count, 1)
    if not math.isfinite(mean):
        raise TapetumError(
            f"the loss of epoch {state.epoch + 1} is {mean}: training diverged; a lower `rate`, or `clip`, helps"
        )
    state.epoch += 1
    return mean


def _moved(inputs: NDArray[np.float32], device: str | torch.device, settings: Optimiser) -> Tensor:
    tensor = torch.from_numpy(inputs).to(device)
    return tensor.contiguous(memory_format=_layout(settings)) if tensor.ndim == 4 else tensor


def _answers(network: nn.Module, inputs: Tensor, settings: Optimiser) -> Any:
    with _precision(inputs.device.type, settings):
        answers = network(inputs)
    return tuple(part.float() for part in answers) if isinstance(answers, tuple) else answers.float()


def _precision(kind: str, settings: Optimiser) -> AbstractContextManager[Any]:
    context: AbstractContextManager[Any] = torch.autocast(
        kind, dtype=torch.bfloat16, enabled=settings.precision == "bf16"
    )
    return context


@torch.no_grad()
def answers_of(network: nn.Module, inputs: NDArray[np.float32], settings: Optimiser) -> Any:
    """What a network answers to inputs, in evaluation mode, on its device, in float32 as `Learnable.loss` gets it.

    The precision is that of the recipe, as in training; `tapetum.training.export` is what a model is judged by.
    """
    device = next(network.parameters()).device
    network.eval()
    return _answers(network, _moved(inputs, device, settings), settings)


def made_ahead(batches: Iterator[Batch]) -> Generator[Batch]:
    """The same batches in the same order, made by a thread while they are used."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as maker:
        waiting = deque(maker.submit(next, batches, None) for _ in range(BATCHES_AHEAD))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(maker.submit(next, batches, None))
            yield batch


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    decay = min(decay, step / (step + 10))  # the first steps are not worth remembering
    for mean, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.dtype.is_floating_point:
            mean.mul_(decay).add_(value, alpha=1 - decay)
        else:
            mean.copy_(value)


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
    if state.best:
        tree |= {"best": state.best, "history": torch.tensor(state.history, dtype=torch.float64)}
    arrays = {
        name: np.asarray(torch.as_tensor(value).cpu().contiguous()) for name, value in _flat(dict(tree))
    }
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
    if "history" in kept:
        state.history, state.best = kept["history"].tolist(), _branch(kept, "best")
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
