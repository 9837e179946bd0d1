"""What the transformer over points learns: first to tell hidden points from the others, then the class of the star."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tapetum.core.errors import UsageError
from tapetum.models.points import CHANNELS, ERROR, MAGNITUDE, THERE, prepare_points
from tapetum.training.loop import answers_of
from tapetum.training.networks import build_network
from tapetum.training.networks.sequences import hide
from tapetum.training.split import LEARNING, require
from tapetum.training.task import Epoch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from tapetum.lightcurves.curves import LightCurves
    from tapetum.training.recipe import Optimiser
    from tapetum.training.task import Batch
    from tapetum.training.variable_tree_data import Examples
    from tapetum.training.variable_tree_recipe import VariableTreeRecipe

    Values = NDArray[np.float64]

AT_ONCE = 256
FLOOR = 1e-6  # of a probability in a logarithm


class Pretraining:
    """A `tapetum.training.task.Learnable` without labels: hidden points of real and made-up curves.

    Parameters
    ----------
    recipe
        Network, shares, optimiser.
    curves, periods
        Sets of curves that may be learned from and a period for each of them [d].
    validation, validation_period
        Curves that say how well it goes.
    """

    def __init__(
        self,
        recipe: VariableTreeRecipe,
        curves: Sequence[LightCurves],
        periods: Sequence[Values],
        validation: LightCurves,
        validation_period: Values,
    ) -> None:
        self.recipe = recipe
        self.curves, self.periods = list(curves), list(periods)
        self.validation, self.validation_period = validation, validation_period

    @property
    def seed(self) -> int:
        """Of the recipe."""
        return self.recipe.seed

    @property
    def optimiser(self) -> Optimiser:
        """Of the recipe's first part."""
        return self.recipe.pretraining

    def network(self) -> nn.Module:
        """An untrained network that tells points."""
        spec = self.recipe.network
        network: nn.Module = build_network(spec.name, CHANNELS, self.recipe.length, spec.arguments)
        return network

    def epoch(self, epoch: int) -> Epoch:
        """Every curve once, other points of it hidden each time."""
        size = self.optimiser.batch
        rng = np.random.default_rng([self.seed, 7, epoch])
        count = sum(len(part) for part in self.curves)
        return Epoch(max(count // size, 1), self._batches(rng, count, size))

    def _batches(self, rng: np.random.Generator, count: int, size: int) -> Iterator[Batch]:
        owner = np.repeat(np.arange(len(self.curves)), [len(part) for part in self.curves])
        place = np.concatenate([np.arange(len(part)) for part in self.curves])
        order = rng.permutation(count)
        for step in range(max(count // size, 1)):
            chosen = order[step * size : (step + 1) * size]
            points = []
            for number, part in enumerate(self.curves):
                mine = place[chosen[owner[chosen] == number]]
                period = misled(self.periods[number][mine], self.recipe.misled, rng)
                points.append(prepare_points(part.take(mine), period, self.recipe.length, rng))
            yield hidden_batch(np.concatenate(points), self.recipe.hidden, rng)

    def loss(self, answers: Tensor, *truth: Tensor) -> Tensor:
        """Minus the logarithm of the likelihood of what is hidden."""
        target, error, hidden = truth
        variance = torch.exp(answers[..., 1]) + error**2
        each = 0.5 * ((target - answers[..., 0]) ** 2 / variance + torch.log(variance))
        return (each * hidden).sum() / hidden.sum().clamp(min=1)

    def validation_loss(self, network: nn.Module) -> tuple[float, int]:
        """The same, of the validation part; the same points are hidden each time."""
        rng = np.random.default_rng([self.seed, 8])
        total, count = 0.0, 0
        for start in range(0, len(self.validation), AT_ONCE):
            part = np.arange(start, min(start + AT_ONCE, len(self.validation)))
            points = prepare_points(
                self.validation.take(part), self.validation_period[part], self.recipe.length
            )
            both, *truth = hidden_batch(points, self.recipe.hidden, rng)
            answers = answers_of(network, both, self.optimiser)
            loss = self.loss(answers.cpu(), *(torch.from_numpy(each) for each in truth))
            total, count = total + float(loss) * len(part), count + len(part)
        return total / max(count, 1), count


def hidden_batch(points: NDArray[np.float32], share: float, rng: np.random.Generator) -> Batch:
    """Points with a share of them hidden, flat; their magnitudes and errors; and which are hidden."""
    hidden = ((rng.random(points.shape[:2]) < share) * points[..., THERE]).astype(np.float32)
    target = points[..., MAGNITUDE].copy()
    error = (10.0 ** points[..., ERROR]).astype(np.float32)
    seen = hide(torch.from_numpy(points), torch.from_numpy(hidden)).numpy()
    return seen.reshape(len(points), -1), target, error, hidden


def misled(period: Values, share: float, rng: np.random.Generator) -> Values:
    """Periods, a share of which are half or twice the true one, or an alias of a day."""
    out = period.copy()
    wrong = rng.random(len(period)) < share
    factor = rng.choice([0.5, 2.0, 1.0], len(period))
    out[wrong] *= factor[wrong]
    alias = wrong & (factor == 1.0)
    frequency = np.abs(1 / out + rng.choice([-1.0, 1.0], len(out)))
    out[alias] = 1 / np.maximum(frequency[alias], 1e-3)
    return out


class Tuning:
    """A `tapetum.training.task.Learnable`: the class of the star, from points and features.

    Parameters
    ----------
    recipe
        Network and optimiser.
    fit
        Examples to learn from: as they are, then worse copies in the same order.
    validation
        Examples of other stars, that say how well it goes.
    start
        Weights of the pre-trained network.
    seed
        Of this member of the committee.
    """

    def __init__(
        self,
        recipe: VariableTreeRecipe,
        fit: Sequence[Examples],
        validation: Examples,
        start: Mapping[str, Tensor],
        seed: int,
    ) -> None:
        for part in fit:
            require(part.object_id, LEARNING)
        require(validation.object_id, LEARNING)
        if shared := set(fit[0].object_id) & set(validation.object_id):
            raise UsageError(f"{sorted(shared)[0]} is among the stars to learn from and those that judge")
        self.recipe, self.parts, self.validation, self.start = recipe, list(fit), validation, start
        self.own_seed = seed

    @property
    def seed(self) -> int:
        """Of this member."""
        return self.own_seed

    @property
    def optimiser(self) -> Optimiser:
        """Of the recipe's second part."""
        return self.recipe.optimiser

    @cached_property
    def scaling(self) -> tuple[Values, Values]:
        """Median and half the range of the middle 80 % of each feature."""
        rows = self.parts[0].rows.astype(np.float64)
        centre, width = np.zeros(rows.shape[1]), np.ones(rows.shape[1])
        for place, column in enumerate(rows.T):
            known = column[np.isfinite(column)]
            if known.size:
                low, centre[place], high = np.quantile(known, (0.1, 0.5, 0.9))
                width[place] = (high - low) / 2 if high > low else 1.0
        return centre, width

    def network(self) -> nn.Module:
        """The network with the pre-trained embedding."""
        spec = self.recipe.network
        arguments = {
            **spec.arguments,
            "n_features": self.parts[0].rows.shape[1],
            "n_leaves": self.parts[0].inside.shape[1],
        }
        network: Any = build_network(spec.name, CHANNELS, self.recipe.length, arguments)
        own = {name: value for name, value in self.start.items() if name.startswith("encoder.")}
        network.load_state_dict(own, strict=False)
        centre, width = self.scaling
        network.centre.copy_(torch.from_numpy(centre))
        network.spread.copy_(torch.from_numpy(width))
        made: nn.Module = network
        return made

    def epoch(self, epoch: int) -> Epoch:
        """Every curve once, as it is or as one of its worse copies, other points of it each time."""
        rng = np.random.default_rng([self.seed, 9, epoch])
        count, size = len(self.parts[0]), self.optimiser.batch
        worse = rng.integers(1, len(self.parts), count) if len(self.parts) > 1 else np.zeros(count, np.int64)
        part = np.where(rng.random(count) < self.recipe.labelled.share, worse, 0)
        return Epoch(max(count // size, 1), self._batches(part, rng.permutation(count), size, rng))

    def _batches(
        self, part: NDArray[np.int64], order: NDArray[np.int64], size: int, rng: np.random.Generator
    ) -> Iterator[Batch]:
        for step in range(max(len(order) // size, 1)):
            chosen = order[step * size : (step + 1) * size]
            found = []
            for number in range(len(self.parts)):
                some = self.parts[number].take(chosen[part[chosen] == number])
                if len(some):
                    weight = self.parts[0].weight[chosen[part[chosen] == number]]
                    found.append((together(some, self.recipe.length, rng), some.inside, weight))
            both, inside, weights = (np.concatenate(column) for column in zip(*found, strict=True))
            yield both, inside, weights

    def loss(self, answers: Tensor, *truth: Tensor) -> Tensor:
        """Minus the logarithm of the probability of all leaves that the star may be in."""
        inside, weight = truth
        each = -torch.log((torch.softmax(answers, 1) * inside).sum(1).clamp(min=FLOOR))
        return (each * weight).sum() / weight.sum()

    def validation_loss(self, network: nn.Module) -> tuple[float, int]:
        """The same, of the validation part."""
        total = 0.0
        for start in range(0, len(self.validation), AT_ONCE):
            some = self.validation.take(np.arange(start, min(start + AT_ONCE, len(self.validation))))
            answers = answers_of(network, together(some, self.recipe.length), self.optimiser).cpu()
            total += float(self.loss(answers, torch.from_numpy(some.inside), torch.ones(len(some)))) * len(
                some
            )
        return total / max(len(self.validation), 1), len(self.validation)


def together(examples: Examples, length: int, rng: np.random.Generator | None = None) -> NDArray[np.float32]:
    """Points and features of each example one after the other."""
    points = prepare_points(examples.curves, examples.period, length, rng)
    return np.concatenate([points.reshape(len(points), -1), examples.rows], axis=1)
