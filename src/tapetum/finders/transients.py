"""Is a detection on a difference image a real change? Runs the network `transients` where there is one.

Until a network of that name is installed or imported nothing is scored: candidates keep the order of their
signal-to-noise ratio and the flag `UNSCORED`. Whoever calls `load` and `find` need not know which of the two it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING

import numpy as np

from tapetum.core.errors import InputError
from tapetum.finders.config import FinderConfig
from tapetum.finders.realbogus import Scores
from tapetum.models import flags as input_flags
from tapetum.models.flags import InputFlag
from tapetum.models.inputs import inspect_images, prepare_images
from tapetum.models.registry import list_models
from tapetum.models.runtime import Model

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from tapetum.models.card import CardBody, FeatureContract, ImageContract

MODEL = "transients"
STAMP_SIZE = 63  # pixel; of the stamps that people look at when no network asks for another size


class CandidateFlag(IntFlag):
    """What was noticed about a detection; the lower bits are those of `tapetum.models.flags.InputFlag`."""

    UNSCORED = 1 << 8  # no network has judged it
    EDGE = 1 << 9  # its cutout crosses the edge of the image
    MASKED = 1 << 10  # too many pixels under it are bad
    NEAR_SATURATED = 1 << 11  # beside a saturated star
    COSMIC = 1 << 12  # sharper than a star can be
    DIPOLE = 1 << 13  # as much light is missing beside it as is there
    FWHM = 1 << 14  # narrower or wider than the range that was asked for
    KNOWN = 1 << 15  # at the place of a known object
    RESIDUAL = 1 << 16  # no more than a bright star leaves behind
    REPEATED = 1 << 17  # found a second time where two reference cells overlap
    SATURATED = 1 << 18  # itself saturated, and new: its flux is a lower limit
    CONTAMINATED = 1 << 19  # a particle, a defect, a trail, by the mask of contaminants and by its own light


def flag_names() -> dict[int, str]:
    """Bit of the column `flags` -> name."""
    ours = {flag.value: flag.name.lower() for flag in CandidateFlag if flag.name}
    return {**input_flags.flag_names(), **ours}


class Config(FinderConfig):
    """Settings of the finder."""


@dataclass(frozen=True)
class CandidateBatch:
    """Candidates as a network sees them.

    Attributes
    ----------
    stamps : ndarray of float32, shape (n, 3, size, size)
        Science, template and difference about each candidate [DN, background subtracted]; NaN where there is no
        value, everywhere in a stamp that does not exist.
    features
        Columns of the candidate table, each of shape (n,).
    """

    stamps: NDArray[np.float32]
    features: Mapping[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.stamps)


class Transients:
    """The finder: with a model it scores, without one it says that it did not.

    Raises
    ------
    InputError
        The model does not give one number per candidate.
    """

    def __init__(self, model: Model | None = None) -> None:
        if model is not None and len(model.card.outputs[0].columns) != 1:
            columns = ", ".join(model.card.outputs[0].columns)
            raise InputError(
                f"{model.card.name} gives {columns} per candidate; a network for transients gives one number"
            )
        self.model = model

    @property
    def name(self) -> str:
        """Name of the model; empty where there is none."""
        return "" if self.model is None else self.model.card.name

    @property
    def version(self) -> str:
        """Version of the model; empty where there is none."""
        return "" if self.model is None else self.model.card.version

    @property
    def stamp_size(self) -> int:
        """Side of the stamps that the network wants [pixel]."""
        images = None if self.model is None else self.model.card.images
        return STAMP_SIZE if images is None else images.size

    def find(self, batch: CandidateBatch) -> Scores:
        """Score candidates: one row each; what lacks something the network needs is flagged and has no score.

        Raises
        ------
        ModelError
            The network does not take what its card says.
        """
        n = len(batch)
        if self.model is None:
            none = np.full(n, np.nan)
            flags = np.full(n, CandidateFlag.UNSCORED, np.int32)
            return Scores("", "", none, none.copy(), flags, ["no network for transients is installed"] * n)
        images, features = self.model.card.images, self.model.card.features
        flags = np.zeros(n, np.int32)
        inputs: dict[str, NDArray[np.float32]] = {}
        if images is not None:
            inputs[images.name], seen = _images(batch, images)
            flags |= seen
        if features is not None:
            inputs[features.name] = _features(batch, features)
            missing = ~np.isfinite(inputs[features.name]).all(axis=1)
            flags |= np.where(missing, InputFlag.MISSING_FEATURE, 0).astype(np.int32)
        score = np.full(n, np.nan)
        usable = np.flatnonzero((flags & input_flags.UNSCORED) == 0)
        if usable.size:
            picked = {name: values[usable] for name, values in inputs.items()}
            score[usable] = self.model.scores(picked)[:, 0]
        failed = usable[~np.isfinite(score[usable])]
        score[failed] = np.nan
        flags[failed] |= InputFlag.BAD_OUTPUT
        silent = np.isnan(score)
        flags[silent] |= CandidateFlag.UNSCORED
        error = ["the network lacks something, see flags" if s else None for s in silent.tolist()]
        return Scores(self.name, self.version, score, self.model.probability(score), flags, error)


def load(model: str | None = None, config: Config | None = None) -> Transients:
    """Load the finder.

    Parameters
    ----------
    model
        Name, ``name@version`` or path; None takes the model named `transients` if there is one, and else scores
        nothing.

    Raises
    ------
    ModelError
        No such model, or its file, card and golden vectors do not fit together.
    InputError
        It is not a network with one score.
    """
    if model is None:
        if all(files.name != MODEL for files in list_models()):
            return Transients()
        model = MODEL
    return Transients(Model.load(model, verify=(config or Config()).verify))


def misfit(card: CardBody, stamps: Collection[str], columns: Collection[str]) -> str:
    """Why a network cannot score candidates; empty where it can.

    Parameters
    ----------
    card
        Of the network.
    stamps
        Which of science, template and difference there are.
    columns
        Features that candidates have.
    """
    images, features = card.images, card.features
    lacking = [] if images is None else [name for name in images.channels if name not in stamps]
    if lacking:
        return f"it needs {', '.join(lacking)} stamps, and there are only {', '.join(stamps)} stamps"
    wanted = () if features is None else features.features
    fallbacks = {} if features is None else features.fallbacks
    unknown = [name for name in wanted if name not in columns and fallbacks.get(name) not in columns]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        return f"it needs {', '.join(unknown[:5])}{more}, which candidates of a search do not have"
    return ""


def _images(batch: CandidateBatch, contract: ImageContract) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    size = batch.stamps.shape[-1]
    there = np.isfinite(batch.stamps).any(axis=(2, 3))
    shapes = np.where(there, size, 0)[:, :, None].repeat(2, axis=2)
    seen = inspect_images(batch.stamps, shapes, contract, size)
    return prepare_images(batch.stamps, shapes, contract), np.bitwise_or.reduce(seen, axis=1)


def _features(batch: CandidateBatch, contract: FeatureContract) -> NDArray[np.float32]:
    """Columns of a contract, shape (n, n_features); a missing one is taken from its fallback, else NaN."""
    values = np.full((len(batch), len(contract.features)), np.nan, np.float32)
    for column, name in enumerate(contract.features):
        for source in (name, contract.fallbacks.get(name, "")):
            if source in batch.features:
                gaps = ~np.isfinite(values[:, column])
                values[gaps, column] = np.asarray(batch.features[source], np.float32)[gaps]
    return values
