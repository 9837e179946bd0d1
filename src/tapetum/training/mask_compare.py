"""Models that mask contaminants side by side, on frames of exactly known truth: figures, tables, a page."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from tapetum.core.errors import InputError, ModelError
from tapetum.core.progress import Progress, no_progress
from tapetum.finders.contaminants import Config, Contaminants, load
from tapetum.images.contaminants import NAMES, TITLES
from tapetum.images.normalise import normalise
from tapetum.report.page import Column, Fact, Facts, Page, Rows, Settings, render_page
from tapetum.training.datasets import simulated_ids
from tapetum.training.mask_card import images_named
from tapetum.training.mask_data import bits_of, draw, files_in, tiles_of
from tapetum.training.mask_metrics import Draws, Tally, Truth, as_logits, draws_of, tally
from tapetum.training.mask_recipe import MaskRecipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.training.mask_data import RealTile
    from tapetum.training.recipe import RecipeBase

log = logging.getLogger(__name__)
SIDE = 1024  # of the largest piece of a real frame [pixel]
TILES = 4  # of one image at most
SIMULATED, REAL = "simulated frames", "real frames with contaminants put in"
FIGURES = (
    "auc", "mcc", "mcc_best", "precision", "recall", "ece", "ece_candidates", "trail_recall", "trail_precision",
)  # fmt: skip
SHOWN = FIGURES[:7]
MINUS = " - "  # between the names of a difference
WORDS: Mapping[str, str] = {
    "auc": "area under the ROC curve of the scores",
    "mcc": "Matthews correlation of mask and truth, pixel by pixel",
    "mcc_best": "the same at the best of all cuts of the score, whatever prior and threshold",
    "precision": "share of the masked pixels within a pixel of a true one",
    "recall": "share of the true pixels within a pixel of a masked one",
    "ece": "expected calibration error, carried over to the true share of the class",
    "ece_candidates": "the same, of pixels of at least 1 % probability",
    "trail_recall": "share of the trails of which at least half lies within a pixel of the mask",
    "trail_precision": "share of the mask's pieces (20 pixels or more) of which at least half lies on a trail",
}


@dataclass(frozen=True)
class Subject:
    """A model as it is judged: with the tiling, the priors and the thresholds that its users get."""

    name: str
    finder: Contaminants

    @property
    def priors(self) -> list[float]:
        """At which its probabilities are given, one per class."""
        cards = {entry.name: entry for entry in self.finder.model.card.classes}
        return [rule.prior or cards[rule.name].training_prior for rule in self.finder.rules]


@dataclass(frozen=True)
class FrameWithTruth:
    """A frame with its truth.

    Attributes
    ----------
    set
        Which frames are put together in a table.
    name, group
        As in `Tally`.
    data : ndarray of float32, shape (n_y, n_x)
        [DN]
    """

    set: str
    name: str
    group: str
    data: NDArray[Any]
    truth: Truth


@dataclass(frozen=True)
class MaskComparison:
    """Models side by side.

    Attributes
    ----------
    draws
        Of every model on every set of frames: ``draws[set][model][class][figure]``.
    frames
        Frames of each set.
    seconds
        That each model took for a million pixels.
    learned
        Images that a model has learned from, with the number of frames made of them here, which are too easy for it:
        ``learned[set][model][image]``.
    """

    draws: dict[str, dict[str, dict[str, dict[str, Draws]]]]
    frames: dict[str, int]
    seconds: dict[str, float]
    learned: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    def rows(self) -> Iterator[tuple[str, str, str, str, Draws]]:
        """Set, class, figure, model or difference of the first and another, and the figure."""
        for kind, models in self.draws.items():
            first, *others = models
            for name in models[first]:
                for figure in FIGURES:
                    if figure not in models[first][name]:
                        continue
                    mine = models[first][name][figure]
                    for model in models:
                        yield kind, name, figure, model, models[model][name][figure]
                    for other in others:
                        yield (
                            kind, name, figure, f"{first}{MINUS}{other}", mine.minus(models[other][name][figure]),
                        )  # fmt: skip

    def as_csv(self) -> str:
        """One row per figure; `n_learned` are frames of images that the model, or one of a difference, knows."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["set", "class", "figure", "model", "value", "low", "high", "n", "n_learned"])
        for kind, name, figure, model, drawn in self.rows():
            found = drawn.figure()
            values = [f"{value:.6g}" for value in (found.value, found.low, found.high)]
            writer.writerow([kind, name, figure, model, *values, found.n, self._n_learned(kind, model)])
        return text.getvalue().rstrip("\n")

    def as_json(self) -> str:
        """The same as a list of objects; what is not defined is NaN."""
        rows = [
            {
                "set": kind, "class": name, "figure": figure, "model": model, **asdict(drawn.figure()),
                "n_learned": self._n_learned(kind, model),
            }
            for kind, name, figure, model, drawn in self.rows()
        ]  # fmt: skip
        return json.dumps(rows, indent=1)

    def as_markdown(self) -> str:
        """A table of classes per set, one of trails, and what the figures mean."""
        parts = []
        for kind in self.draws:
            parts.append(f"## {kind}: {self.frames[kind]} frames\n")
            parts += [f"{text}\n" for text in self._warnings(kind)]
            parts.append(_markdown(["class", "n", "model", *SHOWN], self._classes(kind)))
            parts.append("\n" + _markdown(["trails", "model", "recall", "precision"], self._trails(kind)))
        parts += ["", *(f"- {figure}: {words}" for figure, words in WORDS.items())]
        parts += [
            "",
            "Intervals: 95 %, frames resampled. Seconds per million pixels: " + self._speeds() + ".",
        ]
        return "\n".join(parts)

    def page(self, provenance: Sequence[tuple[str, str]]) -> Page:
        """The report as a page."""
        sections: list[Any] = [
            Facts(
                [Fact(name, f"{value:.2f} s", "per million pixels") for name, value in self.seconds.items()]
            )
        ]
        for kind in self.draws:
            title = f"{kind}: {self.frames[kind]} frames"
            columns = [Column("class"), Column("n"), Column("model")]
            columns += [Column(name, "", WORDS[name]) for name in SHOWN]
            rows = [tuple(row) for row in self._classes(kind)]
            text = " ".join([*self._warnings(kind), "95 % intervals, frames resampled."])
            sections.append(Rows(title, columns, rows, text, shown=len(rows)))
            trails = [tuple(row) for row in self._trails(kind)]
            names = [
                Column("trails"),
                Column("model"),
                Column("recall", "", WORDS["trail_recall"]),
                Column("precision", "", WORDS["trail_precision"]),
            ]
            sections.append(Rows(f"{kind}: trails", names, trails))
        sections.append(Settings("How this came about", provenance))
        return Page("Contaminant masks", "Models against exact truth", sections)

    def _warnings(self, kind: str) -> Iterator[str]:
        """Which models know the images of a set."""
        for model, images in self.learned.get(kind, {}).items():
            yield (
                f"{model} has learned from the images of {sum(images.values())} of these {self.frames[kind]} frames,"
                f" so that its figures are too kind: {', '.join(images)}."
            )

    def _n_learned(self, kind: str, model: str) -> int:
        """Frames made of images that a model, or one of a difference, knows."""
        found: dict[str, int] = {}
        for name in model.split(MINUS):
            found |= self.learned.get(kind, {}).get(name, {})
        return sum(found.values())

    def _classes(self, kind: str) -> Iterator[list[str]]:
        models = self.draws[kind]
        first, *others = models
        for name in models[first]:
            n = str(models[first][name]["mcc"].n)
            for model in models:
                yield [TITLES[name], n, model, *(_cell(models[model][name][key]) for key in SHOWN)]
            for other in others:
                pairs = ((models[first][name][key], models[other][name][key]) for key in SHOWN)
                yield [TITLES[name], n, f"{first}{MINUS}{other}", *(_cell(a.minus(b)) for a, b in pairs)]

    def _trails(self, kind: str) -> Iterator[list[str]]:
        for model, classes in self.draws[kind].items():
            if trails := classes.get("TRL"):
                found = [trails["trail_recall"], trails["trail_precision"]]
                yield [str(found[0].n), model, *map(_cell, found)]

    def _speeds(self) -> str:
        return ", ".join(f"{name} {value:.2f}" for name, value in self.seconds.items())


def _markdown(heads: Sequence[str], rows: Iterator[list[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _cell(drawn: Draws) -> str:
    figure = drawn.figure()
    if not math.isfinite(figure.value):
        return "-"
    interval = f" ({figure.low:.3f} to {figure.high:.3f})" if math.isfinite(figure.low) else ""
    return f"{figure.value:.3f}{interval}"


def subjects_of(models: Sequence[str], against: Sequence[str] = (), *, threads: int = 1) -> list[Subject]:
    """Open models.

    Parameters
    ----------
    models
        Names, ``name@version`` or paths: run as `tapetum images mask` runs them.
    against
        The same, but run as the original program runs its own: its tiling and its normalisation.
    threads
        Of each.

    Raises
    ------
    ModelError
        A model is not there, named twice, or lacks one of the 14 classes.
    InputError
        A model answers another question.
    """
    original = Config(tiling="original", normalisation="original")
    wanted = [*((name, Config()) for name in models), *((name, original) for name in against)]
    subjects = [_subject(name, config, threads) for name, config in wanted]
    if len({subject.name for subject in subjects}) != len(subjects):
        raise ModelError("a model is named twice")
    for subject in subjects:
        if tuple(rule.name for rule in subject.finder.rules) != NAMES:
            raise ModelError(f"{subject.name}: has other classes than {' '.join(NAMES)}")
    return subjects


def _subject(spec: str, config: Config, threads: int) -> Subject:
    finder = load(spec, config, threads=threads)
    return Subject(f"{finder.model.card.name} {finder.model.card.version}", finder)


def frames_of(
    recipe: MaskRecipe, paths: Sequence[Path | str], per_tile: int, simulated: int
) -> Iterator[FrameWithTruth]:
    """Frames of exactly known truth, under names of the test part of the split.

    Parameters
    ----------
    recipe
        Its simulation is used.
    paths
        Real frames that contaminants are put into; of each image at most four pieces.
    per_tile
        Frames made of each piece.
    simulated
        Frames that are simulated wholly.

    Raises
    ------
    InputError
        A file is no FITS image, or the recipe has no simulation.
    """
    if recipe.simulation is None:
        raise InputError(f"the recipe {recipe.name} has no simulation, which makes the contaminants")
    settings = recipe.simulation.simulated()
    names = simulated_ids(recipe.simulation.seed, "test")

    def frame_of(kind: str, name: str, base: RealTile | None) -> FrameWithTruth:
        made = draw(name, base, settings)
        truth = Truth(*bits_of(made, normalise(made.data).missing), made.trails)
        frame = name if base is None else f"{base.name} {name}"
        return FrameWithTruth(kind, frame, name if base is None else base.image, made.data, truth)

    for name in islice(names, simulated):
        yield frame_of(SIMULATED, name, None)
    for tile in tiles_of(paths, TILES, side=SIDE):
        for name in islice(names, per_tile):
            yield frame_of(REAL, name, tile)


def _images_of(subject: Subject) -> set[str]:
    sets = [
        entry
        for entry in subject.finder.model.card.training.data
        if entry.name == "frames" and entry.role != "test"
    ]
    return {image for entry in sets for image in images_named(entry)}


def compare_masks(
    subjects: Sequence[Subject],
    frames: Iterator[FrameWithTruth],
    *,
    n_bootstrap: int = 400,
    seed: int = 0,
    progress: Progress = no_progress,
) -> MaskComparison:
    """Judge models on the same frames; a frame that one of them refuses counts for none.

    Parameters
    ----------
    subjects
        Of `subjects_of`.
    frames
        Of `frames_of`.
    n_bootstrap, seed
        Of the intervals.
    progress
        Told the frames.

    Raises
    ------
    InputError
        There is no frame to judge on.
    """
    tallies: dict[str, dict[str, list[Tally]]] = {}
    spent = dict.fromkeys((subject.name for subject in subjects), 0.0)
    pixels = 0
    known = {subject.name: _images_of(subject) for subject in subjects}
    for number, frame in enumerate(frames):
        found = {}
        for subject in subjects:
            started = time.perf_counter()
            try:
                masks = subject.finder.find(frame.data, probabilities=True)
            except InputError as problem:
                log.warning("%s is left out: %s: %s", frame.name, subject.name, problem)
                break
            spent[subject.name] += time.perf_counter() - started
            if masks.probabilities is None:
                raise ModelError(f"{subject.name}: gave no probabilities")
            logits = as_logits(masks.probabilities)
            found[subject.name] = tally(frame.name, frame.group, logits, masks.flagged, frame.truth)
        else:
            pixels += frame.data.size
            for name, one in found.items():
                tallies.setdefault(frame.set, {}).setdefault(name, []).append(one)
        progress(number + 1, None)
    if not tallies:
        raise InputError("no frame to judge on: name real ones with --frames, or give --simulated")
    draws = {
        kind: {
            subject.name: draws_of(models[subject.name], subject.priors, n_bootstrap=n_bootstrap, seed=seed)
            for subject in subjects
        }
        for kind, models in tallies.items()
    }
    frames_in = {kind: len(next(iter(models.values()))) for kind, models in tallies.items()}
    result = MaskComparison(
        draws,
        frames_in,
        {name: 1e6 * value / pixels for name, value in spent.items()},
        _learned(tallies, known),
    )
    for kind in result.learned:
        for text in result._warnings(kind):
            log.warning("%s: %s", kind, text)
    return result


def _learned(
    tallies: Mapping[str, Mapping[str, Sequence[Tally]]], known: Mapping[str, set[str]]
) -> dict[str, dict[str, dict[str, int]]]:
    """As `MaskComparison.learned`, without what is empty."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for kind, models in tallies.items():
        for model, judged in models.items():
            images = Counter(one.group for one in judged if one.group in known[model])
            if images:
                found.setdefault(kind, {})[model] = dict(sorted(images.items()))
    return found


def report_of(
    recipe: RecipeBase,
    models: Sequence[str],
    against: Sequence[str],
    paths: Sequence[Path],
    *,
    each: int,
    simulated: bool,
    form: str,
    threads: int = 1,
    progress: Progress = no_progress,
) -> str:
    """Judge models and say how they did.

    Parameters
    ----------
    recipe
        Of masks.
    models, against, threads
        As for `subjects_of`.
    paths, each
        Real frames, and how many contaminated ones are made of each piece.
    simulated
        Also the recipe's simulated frames of the test part.
    form
        ``.html``, ``.csv`` or ``.json``; anything else: Markdown.
    progress
        Told the frames.

    Raises
    ------
    InputError
        The recipe is of another task, or as `compare_masks`.
    ModelError
        As `subjects_of`.
    """
    if not isinstance(recipe, MaskRecipe):
        raise InputError(
            f"the recipe {recipe.name} is of the task {recipe.task!r}; here one for masks is needed"
        )
    subjects = subjects_of(models, against, threads=threads)
    count = recipe.simulation.test if simulated and recipe.simulation is not None else 0
    files = files_in(paths)
    result = compare_masks(subjects, frames_of(recipe, files, each, count), progress=progress)
    if form == ".html":
        provenance = [
            *((f"model {entry.name}", _identity(entry)) for entry in subjects),
            ("real frames", ", ".join(map(str, files)) or "none"),
            ("contaminants", f"recipe {recipe.name}, {each} of each piece"),
        ]
        return render_page(result.page(provenance))
    return (
        result.as_csv() if form == ".csv" else result.as_json() if form == ".json" else result.as_markdown()
    )


def _identity(subject: Subject) -> str:
    card, config = subject.finder.model.card, subject.finder.config
    return f"{card.name} {card.version}, sha256 {card.onnx_sha256[:12]}; tiling {config.tiling}"
