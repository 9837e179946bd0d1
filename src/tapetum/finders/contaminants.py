"""Which pixels of a frame are contaminated, and by what: one plane per class, or one mask of added codes.

A network gives every pixel a score for each class. Scores are probabilities at the class's frequency in the training
data; they are carried over to the frequency that is expected in the sky, and a pixel belongs to the class where that
probability exceeds the class's threshold. Both steps together are one comparison of the score (`raw_cut`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tapetum.core.errors import InputError, UsageError
from tapetum.finders.config import FinderConfig
from tapetum.images.contaminants import NAMES, Contaminant, code_of
from tapetum.images.normalise import normalise, normalise_original
from tapetum.models.runtime import Model, Runtime
from tapetum.models.tiles import original_tiles, plan_tiles, run_tiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tapetum.images.normalise import Normalised
    from tapetum.models.card import ClassSpec, FrameContract, ModelCard
    from tapetum.models.tiles import Tile

MODEL = "contaminants"
BACKGROUND_BIT = 1 << 13  # within `ContaminantMasks.flagged` only: the background has no code
ORIGINAL_BATCH = 8  # tiles of 400 pixels at a time, which MaxiMask takes by default

Scores = TypeVar("Scores", NDArray[np.float32], NDArray[np.float64])
Tiling = Literal["overlapping", "original"]
Normalisation = Literal["tapetum", "original"]


class Config(FinderConfig):
    """Settings of the finder."""

    classes: tuple[str, ...] | None = Field(
        default=None, description="classes that are wanted; None: all that the network knows"
    )
    priors: dict[str, float] = Field(
        default_factory=dict,
        description="class -> share of the pixels that are expected to have it; else the card's",
    )
    thresholds: dict[str, float] = Field(
        default_factory=dict, description="class -> probability above which a pixel has it; else the card's"
    )
    prior_change: bool = Field(default=True, description="carry scores over to the priors")
    tiling: Tiling = Field(
        default="overlapping", description="large tiles that overlap; original: MaxiMask's of 400 pixels"
    )
    normalisation: Normalisation = Field(default="tapetum", description="original: as MaxiMask does it")
    batch_size: int | None = Field(default=None, ge=1, description="tiles per run of the network")
    runtime: Runtime = "onnxruntime"


@dataclass(frozen=True)
class ClassRule:
    """How one class is told.

    Attributes
    ----------
    name, title
        For instance ``CR`` and ``Cosmic rays``.
    code
        In a mask of added codes; 0 for the background.
    column
        Of the network's output.
    prior
        Share of the pixels expected to have the class; None where scores are taken as they are.
    threshold
        Probability above which a pixel has it.
    odds
        Factor ``f`` of `at_prior`; 1 where scores are taken as they are.
    """

    name: str
    title: str
    code: int
    column: int
    prior: float | None
    threshold: float
    odds: float

    @property
    def cut(self) -> float:
        """Score above which a pixel has the class."""
        return raw_cut(self.threshold, self.odds)

    @property
    def bit(self) -> int:
        """Of `ContaminantMasks.flagged`."""
        return self.code or BACKGROUND_BIT


@dataclass(frozen=True)
class ContaminantMasks:
    """What a frame is contaminated by.

    Attributes
    ----------
    rules
        The classes that were asked for, in their order.
    flagged : ndarray of uint16, shape (n_y, n_x)
        Sum of the codes of a pixel's classes, and of 8192 for the background, where that was asked for.
    missing : ndarray of bool, shape (n_y, n_x)
        Pixels without a value, which have no class.
    probabilities : ndarray of float32, shape (n_classes, n_y, n_x), or None
        Of each class; NaN where a pixel has no value. Only where it was asked for.
    """

    rules: tuple[ClassRule, ...]
    flagged: NDArray[np.uint16]
    missing: NDArray[np.bool_]
    probabilities: NDArray[np.float32] | None = None

    @property
    def codes(self) -> NDArray[np.uint16]:
        """The single mask: sum of the codes of a pixel's classes, shape (n_y, n_x)."""
        return self.flagged & np.uint16(BACKGROUND_BIT - 1)

    def planes(self) -> Iterator[NDArray[np.uint8]]:
        """One plane per class, 1 where a pixel has it, shape (n_y, n_x)."""
        for rule in self.rules:
            yield (self.flagged & np.uint16(rule.bit) != 0).view(np.uint8)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Class -> pixels that have it."""
        return {rule.name: int(np.count_nonzero(self.flagged & np.uint16(rule.bit))) for rule in self.rules}

    @cached_property
    def n_missing(self) -> int:
        """Pixels without a value."""
        return int(np.count_nonzero(self.missing))


class Contaminants:
    """The finder.

    Attributes
    ----------
    model
        The network.
    rules
        The classes that are looked for, in their order.

    Raises
    ------
    InputError
        The network answers another question, or the settings name a class that it does not know.
    """

    def __init__(self, model: Model, config: Config | None = None, *, threads: int = 1) -> None:
        self.model = model
        self.config = config or Config()
        self.threads = threads
        self.contract: FrameContract = checked_contract(model.card)
        self.rules = class_rules(model.card.classes, self.config)

    def find(
        self,
        data: NDArray[Any],
        bad: NDArray[Any] | None = None,
        *,
        probabilities: bool = False,
        saturation: float = np.inf,
    ) -> ContaminantMasks:
        """Classes of every pixel.

        Parameters
        ----------
        data : ndarray, shape (n_y, n_x)
            Image [DN or any linear unit], of any size.
        bad : ndarray, shape (n_y, n_x), optional
            Not 0 = without a value, as NaN and infinity are anyway.
        probabilities
            Keep those as well: four bytes per pixel and class.
        saturation
            Pixels hold no more than this [DN]; a frame with nothing else cannot be judged. Pixels that hold as much
            are saturated, whatever the network says; only an imported one has the last word.

        Raises
        ------
        InputError
            The frame cannot be judged: no values, one value, or saturated.
        ModelError
            The network does not give what its card says.
        """
        image = self._normalised(data, bad, saturation)
        flagged = np.zeros(image.data.shape, np.uint16)
        kept = np.empty((len(self.rules), *flagged.shape), np.float32) if probabilities else None
        cuts = [(rule, np.float32(rule.cut)) for rule in self.rules]

        def consume(place: tuple[slice, slice], maps: NDArray[np.float32]) -> None:
            found = np.zeros(maps.shape[1:], np.uint16)
            for number, (rule, cut) in enumerate(cuts):
                score = maps[rule.column]
                found |= (score > cut) * np.uint16(rule.bit)
                if kept is not None:
                    kept[number, *place] = at_prior(score, rule.odds)
            flagged[place] = found  # a later tile of the original tiling takes the place of an earlier one

        run_tiles(self.model, image.data, self._tiles(flagged.shape), consume, batch=self._batch)
        if np.isfinite(saturation) and not is_imported(self.model.card):
            self._saturated(np.asarray(data) >= saturation, flagged, kept)
        flagged[image.missing] = 0
        if kept is not None:
            kept[:, image.missing] = np.nan
        return ContaminantMasks(self.rules, flagged, image.missing, kept)

    def _saturated(
        self, full: NDArray[np.bool_], flagged: NDArray[np.uint16], kept: NDArray[np.float32] | None
    ) -> None:
        """Give pixels at the saturation level their class, and take the background from them."""
        for number, rule in enumerate(self.rules):
            if rule.name == Contaminant.SAT.name:
                flagged[full] |= np.uint16(rule.bit)
            elif rule.bit == BACKGROUND_BIT:
                flagged[full] &= np.uint16(BACKGROUND_BIT - 1)
            else:
                continue
            if kept is not None:
                kept[number, full] = rule.name == Contaminant.SAT.name

    def _normalised(self, data: NDArray[Any], bad: NDArray[Any] | None, saturation: float) -> Normalised:
        if self.config.normalisation == "original":
            return normalise_original(data, bad, threads=self.threads)
        return normalise(data, bad, saturation=saturation, threads=self.threads)

    def _tiles(self, shape: tuple[int, ...]) -> Sequence[Tile]:
        n_y, n_x = shape
        if self.config.tiling == "original":
            return original_tiles((n_y, n_x))
        contract = self.contract
        return plan_tiles(
            (n_y, n_x), side=contract.largest, margin=contract.margin, multiple=contract.multiple
        )

    @property
    def _batch(self) -> int:
        usual = ORIGINAL_BATCH if self.config.tiling == "original" else 1
        return self.config.batch_size or usual


def load(model: str | None = None, config: Config | None = None, *, threads: int = 1) -> Contaminants:
    """Load the finder.

    Parameters
    ----------
    model
        Name, ``name@version`` or path; None takes the network `contaminants`.
    threads
        Of the network and of the normalisation.

    Raises
    ------
    ModelError
        No such model, or its file, card and golden vectors do not fit together.
    InputError
        It answers another question, or the settings name a class that it does not know.
    """
    config = config or Config()
    network = Model.load(model or MODEL, verify=config.verify, threads=threads, runtime=config.runtime)
    return Contaminants(network, config, threads=threads)


def checked_contract(card: ModelCard) -> FrameContract:
    """How frames go into a network, if it is one for contaminants.

    Raises
    ------
    InputError
        It answers another question.
    """
    contract, known = card.frame, any(spec.name in NAMES for spec in card.classes)
    if contract is None or contract.side is not None or not known:
        raise InputError(f"{card.name}: is no network that gives every pixel of a frame its classes")
    return contract


def is_imported(card: ModelCard) -> bool:
    """Whether a network is another program's, whose own answers are wanted."""
    return card.source.sha256 is not None


def check_original(card: ModelCard, config: Config) -> None:
    """Raise UsageError when an imported network's tiles or normalisation are asked for with one of our own.

    It would not take tiles of 400 pixels, and calls much of the sky a contaminant behind the other normalisation.
    """
    for name in ("tiling", "normalisation"):
        if getattr(config, name) == "original" and not is_imported(card):
            raise UsageError(
                f"--{name} original: is that of maximask, and {card.name} was not made for it; leave it out, or"
                " take --model maximask"
            )


def class_rules(classes: Sequence[ClassSpec], config: Config) -> tuple[ClassRule, ...]:
    """The rules of the classes that are wanted, in the order of the network.

    Raises
    ------
    InputError
        A class is not known, none is wanted, a prior or threshold is no share, or a class has a code of its own.
    """
    known = [spec.name for spec in classes]
    for what, names in (
        ("classes", config.classes or ()),
        ("priors", config.priors),
        ("thresholds", config.thresholds),
    ):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InputError(f"{what}: no class {', '.join(unknown)}; there are {' '.join(known)}")
    wanted = known if config.classes is None else config.classes
    rules = tuple(_rule(spec, column, config) for column, spec in enumerate(classes) if spec.name in wanted)
    if not rules:
        raise InputError(f"no class is wanted; name at least one of {' '.join(known)}")
    return rules


def _rule(spec: ClassSpec, column: int, config: Config) -> ClassRule:
    if spec.name not in NAMES or spec.code != code_of(spec.name):
        raise InputError(
            f"class {spec.name} with code {spec.code} of the network is none of {' '.join(NAMES)}"
        )
    prior = config.priors.get(spec.name, spec.prior)
    threshold = config.thresholds.get(spec.name, spec.threshold)
    for what, value in (("prior", prior), ("threshold", threshold)):
        if not 0 <= value <= 1:
            raise InputError(f"{what} of {spec.name}: {value:g} is not between 0 and 1")
    odds = prior_odds(spec.training_prior, prior) if config.prior_change else 1.0
    return ClassRule(
        spec.name, spec.title, spec.code, column, prior if config.prior_change else None, threshold, odds
    )


def prior_odds(training_prior: float, prior: float) -> float:
    """Factor ``f = t / (1 - t) * (1 - q) / q`` of a class that had the share t in training and has q in the sky.

    Saerens, Latinne & Decaestecker (2002), Neural Computation 14, 21, for two classes; infinite for q = 0.
    """
    if prior == 0:
        return np.inf
    return training_prior / (1 - training_prior) * (1 - prior) / prior


def at_prior(score: Scores, odds: float) -> Scores:
    """Probability at the new prior: ``p / (p + f (1 - p))``; NaN stays NaN."""
    if odds == 1:
        return score
    kind = score.dtype.type
    if odds > float(np.finfo(kind).max):  # infinite among them
        return score * kind(0)
    with np.errstate(invalid="ignore"):
        return np.where(score <= 0, kind(0), score / (score + kind(odds) * (1 - score)))


def raw_cut(threshold: float, odds: float) -> float:
    """Score p at which ``p / (p + f (1 - p))`` is the threshold; 1, which none exceeds, where no probability does."""
    if np.isinf(odds) or threshold >= 1:
        return 1.0
    return threshold * odds / (1 - threshold + threshold * odds) if threshold * odds else 0.0
