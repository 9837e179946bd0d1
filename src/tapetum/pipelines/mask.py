"""Contaminant masks of images: which classes are wanted, which files are made, and what is in them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tapetum.core.errors import InputError, UsageError
from tapetum.core.files import whole_file
from tapetum.finders.contaminants import (
    MODEL,
    Config,
    check_original,
    checked_contract,
    class_rules,
    load,
)
from tapetum.images.contaminants import NAMES
from tapetum.images.fits import expand_sources, list_images, path_of, read_frame
from tapetum.images.frame import Bad
from tapetum.images.mask_codes import read_codes
from tapetum.images.mask_files import (
    ImagePart,
    Masked,
    failed_cards,
    is_own_mask,
    mask_name,
    without_masks,
    write_masks,
)
from tapetum.models.card import load_card
from tapetum.models.registry import find_model
from tapetum.pipelines.mask_preview import preview_png
from tapetum.pipelines.outputs import check_folder
from tapetum.pipelines.steps import WARNING, Made, Step, reason, told
from tapetum.surveys.telescopes import SUFFIX, find_telescope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from tapetum.finders.contaminants import ClassRule, ContaminantMasks, Contaminants
    from tapetum.pipelines.steps import Work
    from tapetum.surveys.profile import SurveyProfile

Output = Literal["planes", "codes", "probabilities"]

CLASS_FILES = {"classes": "classes.flags", "priors": "classes.priors", "thresholds": "classes.thresh"}
ALIASES = {"STL": "TRL"}  # MaxiMask's description has both
DTYPES: dict[Output, str] = {"planes": "uint8", "codes": "int16", "probabilities": "float32"}


@dataclass(frozen=True)
class MaskOptions:
    """What decides the masks of an image.

    Attributes
    ----------
    model
        Name, ``name@version`` or path.
    config
        Classes, priors, thresholds, and how the network is run.
    output
        ``planes``: one of uint8 per class; ``codes``: one of int16, in which the codes of a pixel's classes are added;
        ``probabilities``: one of float32 per class.
    telescope
        Profile to read the images with; None recognises it.
    mask
        Mask of the images, whose pixels without data get no class; None takes the one in the file or beside it.
    preview
        Write a picture of each image with its masks on it beside them.
    """

    model: str = MODEL
    config: Config = field(default_factory=Config)
    output: Output = "planes"
    telescope: str | None = None
    mask: str | None = None
    preview: bool = False

    def described(self) -> dict[str, Any]:
        """What decides the masks, as one section of TOML holds it, with the identity of the model.

        Raises
        ------
        ModelError, InputError
            There is no such model, it answers another question, or does not know a class that is asked for.
        UsageError
            Tiling or normalisation are those of another network.
        """
        card = load_card(find_model(self.model).card)
        checked_contract(card)
        check_original(card, self.config)
        rules = class_rules(card.classes, self.config)
        return {
            "model": self.model,
            "model_version": card.version,
            "model_identity": card.identity,
            "output": self.output,
            "classes": [rule.name for rule in rules],
            "priors": [rule.prior for rule in rules] if self.config.prior_change else None,
            "thresholds": None if self.output == "probabilities" else [rule.threshold for rule in rules],
            **self.config.model_dump(include={"tiling", "normalisation", "batch_size", "runtime"}),
            "telescope": self.telescope,
            "mask": self.mask,
        }


def masker(options: MaskOptions, threads: int) -> Work:
    """The function that makes the masks of an image file and writes them; see `run_step`.

    Raises
    ------
    ModelError, InputError
        The model cannot be used, or there is no such telescope.
    """
    profile = None if options.telescope is None else find_telescope(options.telescope)
    finder = load(options.model, options.config, threads=threads)

    def work(step: Step) -> Made:
        return mask_file(step, finder, options, profile)

    return work


def previewer(options: MaskOptions, threads: int) -> Work:
    """The function that makes the pictures of masks which are there; see `run_step`.

    Raises
    ------
    InputError
        There is no such telescope.
    """
    del threads
    profile = None if options.telescope is None else find_telescope(options.telescope)

    def work(step: Step) -> Made:
        return preview_file(step, options, profile)

    return work


def preview_file(step: Step, options: MaskOptions, profile: SurveyProfile | None = None) -> Made:
    """Write the pictures of a file, or of the one image of it that is named, from its masks.

    Raises
    ------
    InputError
        No image has masks that can be read.
    """
    images = list_images(step.source)
    written: list[Path] = []
    for image in images:
        try:
            codes = read_codes(step.output, image)[0]
            data = read_frame(image, profile, mask=options.mask).data
        except InputError as problem:  # has no masks, which was told when they were made
            last = problem
            continue
        path = preview_path(Path(step.output), image, alone=len(images) == 1)
        _write_picture(path, preview_png(data, codes))
        written.append(path)
    if not written:
        raise last
    return Made(summary=f"masks as they were, pictures made: {len(written)}", files=tuple(written))


def preview_path(output: Path, image: str, *, alone: bool) -> Path:
    """Where the picture of an image goes: ``X.masks.png``, or with the numbers of the image and of a cube's plane."""
    numbers = [] if alone else re.findall(r"\[(\d+)\]", image[len(str(path_of(image))) :])
    return output.with_name("_".join([SUFFIX.sub("", output.name), *numbers]) + ".png")


def _write_picture(path: Path, png: bytes) -> None:
    with whole_file(path) as part:
        part.write_bytes(png)


def mask_file(
    step: Step, finder: Contaminants, options: MaskOptions, profile: SurveyProfile | None = None
) -> Made:
    """Write the masks of a file, or of the one image of it that is named.

    Raises
    ------
    InputError
        The file cannot be read, or none of its images can be judged.
    """
    judge = _Judge(step.source, finder, options, profile)
    write_masks(Path(step.output), step.source, judge, provenance(finder, options), judge.check)
    pictures = dict(judge.previews(Path(step.output)))
    for path, png in pictures.items():
        _write_picture(path, png)
    return judge.made(tuple(pictures))


@dataclass
class _Tally:
    """What was found in one image or cube."""

    counts: dict[str, int] = field(default_factory=dict)
    n_missing: int = 0
    failed: list[int] = field(default_factory=list)  # places among the planes

    def add(self, masks: ContaminantMasks) -> None:
        self.n_missing += masks.n_missing
        for name, n in masks.counts.items():
            self.counts[name] = self.counts.get(name, 0) + n


class _Judge:
    """Makes the masks of each image of a file, and remembers what became of them."""

    def __init__(
        self, source: str, finder: Contaminants, options: MaskOptions, profile: SurveyProfile | None
    ) -> None:
        self.source, self.finder, self.options, self.profile = source, finder, options, profile
        self.said: dict[str, None] = {}
        self.failed: list[str] = []
        self.total = _Tally()
        self.n_done = 0
        self.n_tried = 0
        self.pictures: dict[str, bytes] = {}

    def __call__(self, image: ImagePart) -> Masked:
        """What takes the place of an image."""
        tally = _Tally()
        cube: tuple[int, ...]
        depth = () if self.options.output == "codes" else (len(self.finder.rules),)
        if len(image.sources) == 1:
            found = self._attempt(image, 0, tally)
            if found is None:
                return Masked((), "uint8", iter(()), lambda: _failure_cards(tally, 1), _header_of(image))
            masks, header = found
            cube, planes = (), layers(masks, self.options.output)
        else:
            header = _header_of(image)
            cube, planes = image.part.shape[:-2], self._each(image, tally)
        shape = (*cube, *depth, *image.part.plane_shape)
        return Masked(
            shape, DTYPES[self.options.output], planes, lambda: self._cards(tally, len(image.sources)), header
        )

    def _each(self, image: ImagePart, tally: _Tally) -> Iterator[NDArray[Any]]:
        for number in range(len(image.sources)):
            found = self._attempt(image, number, tally)
            if found is not None:
                yield from layers(found[0], self.options.output)
                continue
            nothing = np.nan if self.options.output == "probabilities" else 0
            for _ in self.finder.rules if self.options.output != "codes" else (None,):
                yield np.full(image.part.plane_shape, nothing, DTYPES[self.options.output])

    def _attempt(self, image: ImagePart, number: int, tally: _Tally) -> tuple[ContaminantMasks, Any] | None:
        """Masks and header of one of the planes; None where it cannot be judged."""
        source = image.sources[number]
        self.n_tried += 1
        try:
            frame = read_frame(source, self.profile, mask=self.options.mask)
            self.said |= {told(source, text): None for text in frame.info.warnings}
            masks = self.finder.find(
                frame.data,
                frame.mask & np.uint8(Bad.NO_DATA),
                probabilities=self.options.output == "probabilities",
                saturation=frame.info.saturation,
            )
        except InputError as problem:
            self.failed.append(reason(source, problem))
            tally.failed.append(number)
            return None
        self.n_done += 1
        if self.options.preview:
            self.pictures[source] = preview_png(frame.data, masks.codes)
        tally.add(masks)
        self.total.add(masks)
        return masks, frame.header

    def _cards(self, tally: _Tally, n_planes: int) -> list[tuple[str, Any, str]]:
        cards: list[tuple[str, Any, str]] = []
        for number, rule in enumerate(self.finder.rules):
            cards += class_cards(rule, number, self.options.output, tally.counts.get(rule.name, 0))
        cards.append(("NMISSING", tally.n_missing, "pixels without a value, without a class"))
        return cards + (_failure_cards(tally, n_planes) if n_planes > 1 else [])

    def check(self) -> None:
        """Raise InputError where no image could be judged."""
        if not self.n_done:
            more = f" (and {len(self.failed) - 1} more images)" if len(self.failed) > 1 else ""
            raise InputError(self.failed[0] + more)

    def previews(self, output: Path) -> Iterator[tuple[Path, bytes]]:
        """Where the pictures go, and the pictures."""
        for source, png in self.pictures.items():
            yield preview_path(output, source, alone=self.n_tried == 1), png

    def made(self, files: tuple[Path, ...] = ()) -> Made:
        """What is to be told."""
        said = [WARNING + text for text in self.said]
        if self.total.n_missing:
            said.append(f"{self.total.n_missing} pixels have no value, and get no class")
        found = {name: n for name, n in self.total.counts.items() if n and name in NAMES[:-1]}
        summary = ", ".join(f"{name} {n}" for name, n in found.items()) or "nothing"
        if self.options.output == "probabilities":
            summary = f"probabilities of {len(self.finder.rules)} classes"
        else:
            summary = f"{summary} [pixels]"
        return Made(tuple(said), summary, tuple(self.failed), files)


def _header_of(image: ImagePart) -> Any:
    from astropy.io import fits

    try:
        return image.header()
    except InputError:  # then its pixels cannot be read either, which is told
        return fits.Header()


def _failure_cards(tally: _Tally, n_planes: int) -> list[tuple[str, Any, str]]:
    cards: list[tuple[str, Any, str]] = [("NFAILED", len(tally.failed), "images that could not be judged")]
    return cards + (failed_cards(tally.failed, n_planes) if n_planes > 1 else [])


def layers(masks: ContaminantMasks, output: Output) -> Iterator[NDArray[Any]]:
    """The planes of an output, in the order in which they are stored."""
    if output == "codes":
        yield masks.codes.view(np.int16)
    elif output == "planes":
        yield from masks.planes()
    elif masks.probabilities is not None:
        yield from masks.probabilities


def provenance(finder: Contaminants, options: MaskOptions) -> list[tuple[str, Any, str]]:
    """Header cards that say who made the masks and how."""
    card, config = finder.model.card, options.config
    thresholded = options.output != "probabilities"
    return [
        ("MODEL", card.name, "network"),
        ("MODELVER", card.version, "its version"),
        ("MODELSHA", card.onnx_sha256, ""),
        ("RUNTIME", config.runtime, "what ran it"),
        ("TILING", config.tiling, "how the image was cut for it"),
        ("NORMALIS", config.normalisation, "how the sky was taken off"),
        ("PRIORS", "Yes" if config.prior_change else "No", "probabilities at priors xx_PR"),
        ("THRESH", "Yes" if thresholded else "No", "1 where they exceed xx_TH"),
        ("SMASK", "Yes" if options.output == "codes" else "No", "sum of the codes xx_SM"),
    ]


def class_cards(rule: ClassRule, plane: int, output: Output, n: int) -> list[tuple[str, Any, str]]:
    """Header cards of one class: name, plane, prior, threshold, code, and how many pixels have it."""
    name = rule.name
    cards: list[tuple[str, Any, str]] = [(name, f"{name}: {rule.title}", "")]
    if output != "codes":
        cards.append((f"{name}_DIM", str(plane), "plane, from 0"))
    if rule.prior is not None:
        cards.append((f"{name}_PR", rule.prior, "prior"))
    if output != "probabilities":
        cards.append((f"{name}_TH", rule.threshold, "threshold"))
        cards.append((f"{name}_N", n, "pixels that have it"))
    if output == "codes":
        cards.append((f"{name}_SM", rule.code, "code"))
    return cards


def plan_masks(
    images: Sequence[str],
    out: str | None,
    compress: str,
    rejected: Callable[[str], None],
    say: Callable[[str], None],
    *,
    overwrite: bool = False,
) -> list[Step]:
    """A step for each image file, and for each image that is named by its extension.

    Parameters
    ----------
    images
        As `tapetum.images.fits.expand_sources` takes them; masks among them are left out (`without_masks`).
    out
        Folder of the masks; None: beside each image.
    compress
        Further suffix of the masks: ``fz``, ``gz`` or nothing.
    rejected
        Told of what cannot be read, whose masks would take the place of another image's, or of a file of another
        program.
    say
        Told of what is left out.
    overwrite
        Such files may be replaced.

    Raises
    ------
    UsageError
        `out` is no folder.
    """
    if out is not None:
        if re.fullmatch(r"-|.*\.fits(\.fz|\.gz)?", out, re.IGNORECASE) and not Path(out).is_dir():
            raise UsageError(f"-o {out}: name a folder; masks are called after their images")
        check_folder(Path(out))
    planned: dict[str, str] = {}
    for source in without_masks(expand_sources(images, rejected=rejected), say):
        path = path_of(source)
        try:
            name = mask_name(source)
        except (InputError, OSError) as problem:
            rejected(reason(source, problem))
            continue
        folder = path.parent if out is None else Path(out)
        output = str(folder / f"{name}.fits{f'.{compress}' if compress else ''}")
        other = path_of(planned.setdefault(output, source))
        if other.resolve() != path.resolve():
            help_ = "mask it on its own" if other.parent == path.parent else "mask each folder on its own"
            rejected(f"{source}: its masks would be {output}, as those of {other}; {help_}, with another -o")
        elif not overwrite and _is_of_others(Path(output)):
            del planned[output]
            rejected(
                f"{source}: {output} is there, and not written by tapetum; --overwrite replaces it, -o DIR writes"
                " elsewhere"
            )
    return [Step(source, output) for output, source in planned.items()]


def _is_of_others(output: Path) -> bool:
    """Whether there is a file that is no contaminant mask of ours; an empty one is nobody's."""
    return output.is_file() and output.stat().st_size > 0 and not is_own_mask(output)


def chosen_classes(text: str) -> tuple[str, ...]:
    """Names of classes, separated by commas; capital letters or not.

    Raises
    ------
    UsageError
        A name is none of the 14, or there is none.
    """
    names = tuple(dict.fromkeys(_class(name, "--classes") for name in text.split(",") if name.strip()))
    if not names:
        raise UsageError(f"--classes {text}: no class is wanted; name at least one of {' '.join(NAMES)}")
    return names


def chosen_values(text: str, option: str) -> dict[str, float]:
    """Values by class: ``CR=1e-3,TRL=0.01``, or the path of a file of 14 rows.

    Raises
    ------
    UsageError
        A name is no class, or a value no number from 0 to 1.
    InputError
        The file cannot be used.
    """
    if "=" not in text:
        return read_class_file(Path(text), float)[0]
    found: dict[str, float] = {}
    for pair in filter(None, text.split(",")):
        name, _, value = pair.partition("=")
        try:
            found[_class(name, option)] = _value(value.strip(), float, f"{option}: {pair.strip()}")
        except InputError as problem:  # of a file it would be one
            raise UsageError(str(problem)) from None
    return found


def _class(name: str, place: str) -> str:
    upper = name.strip().upper()
    known = ALIASES.get(upper, upper)
    if known not in NAMES:
        raise UsageError(f"{place}: no class {name.strip()!r}; there are {' '.join(NAMES)}")
    return known


def _value(text: str, kind: type[float], place: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = np.nan
    if not 0 <= value <= 1:
        what = "0 or 1" if kind is int else "a number from 0 to 1"
        raise InputError(f"{place}: {text!r} is not {what}")
    return value


def read_class_folder(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What the files ``classes.flags``, ``classes.priors`` and ``classes.thresh`` of a folder say, and notes on them.

    Returns
    -------
    settings, notes
        Fields of `tapetum.finders.contaminants.Config`: ``classes``, ``priors``, ``thresholds`` of the files that are
        there; and what the user should know.

    Raises
    ------
    InputError
        None of the files is there, or one cannot be used.
    """
    there = {key: folder / name for key, name in CLASS_FILES.items() if (folder / name).is_file()}
    if not there:
        raise InputError(f"{folder}: has none of {', '.join(CLASS_FILES.values())}")
    settings: dict[str, Any] = {}
    notes = [
        f"{folder / name}: not there; the {key} of the model are used"
        for key, name in CLASS_FILES.items()
        if key not in there
    ]
    for key, path in there.items():
        values, remarks = read_class_file(path, int if key == "classes" else float)
        notes += remarks
        if key == "classes":
            settings[key] = tuple(name for name, wanted in values.items() if wanted)
            if not settings[key]:
                raise InputError(f"{path}: wants no class; set at least one row to 1")
        else:
            settings[key] = values
    return settings, notes


def read_class_file(path: Path, kind: type[float]) -> tuple[dict[str, float], list[str]]:
    """Values of a file of 14 rows ``name value`` in the order of the classes, and notes on it.

    As with MaxiMask, the order decides which class is meant; a known name in the place of another is noted. Empty rows
    and what follows ``#`` are left out.

    Raises
    ------
    InputError
        It cannot be read, has another number of rows, or a value is no number from 0 to 1.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        text = problem.strerror if isinstance(problem, OSError) else "it is not text"
        raise InputError(f"{path}: cannot be read: {text}") from None
    rows = [row for row in (line.partition("#")[0].split() for line in lines) if row]
    if len(rows) != len(NAMES):
        raise InputError(f"{path}: {len(rows)} rows; one is needed for each of {' '.join(NAMES)}")
    values, notes = {}, []
    for name, row in zip(NAMES, rows, strict=True):
        if len(row) != 2:
            raise InputError(f"{path}: {' '.join(row)!r}: a row is a name and a value")
        values[name] = _value(row[1], kind, f"{path}: {row[0]}")
        if ALIASES.get(row[0], row[0]) in set(NAMES) - {name}:
            notes.append(f"{path}: the row called {row[0]} is taken for {name}: the order decides")
    return values, notes
