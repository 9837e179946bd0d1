"""The road of an image: science frame and reference in, ranked candidates out, one folder per image.

The steps are in `search_steps` and `candidates`, both pure; this file reads and writes, and lets no bad image stop the
others.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tapetum import __version__
from tapetum.core.errors import InputError, UsageError
from tapetum.core.files import whole_file
from tapetum.core.progress import Progress, no_progress
from tapetum.core.settings import Settings, settings_text, write_settings
from tapetum.finders.transients import STAMP_SIZE, CandidateBatch, CandidateFlag, Transients, load, misfit
from tapetum.images.celestial import sky_positions
from tapetum.images.cutouts import centre_pixel
from tapetum.images.detect import Detections
from tapetum.images.fits import files_of, image_name, path_of, read_frame, write_frame
from tapetum.images.frame import Bad
from tapetum.images.mask_codes import class_words
from tapetum.images.photometry import forced_photometry
from tapetum.images.subtract import SubtractionError
from tapetum.images.summary import essential_gaps
from tapetum.models.card import load_card
from tapetum.models.registry import find_model
from tapetum.pipelines.candidates import (
    DECIMALS,
    DESCRIPTIONS,
    UNITS,
    VETOES,
    Judged,
    Photometry,
    VetoLimits,
    candidate_table,
    magnitudes,
    signal_to_noise,
    typed,
)
from tapetum.pipelines.cutouts import candidate_cards, crosses_edge, cut_planes, write_cutout
from tapetum.pipelines.folders import recover_folders, whole_folder
from tapetum.pipelines.outputs import check_folder, fingerprint
from tapetum.pipelines.references import References
from tapetum.pipelines.runner import run_over
from tapetum.pipelines.search_calibration import Catalogues, calibrate, match_known
from tapetum.pipelines.search_contaminants import ContaminantChoice, ContaminantLookup
from tapetum.pipelines.search_report import (
    Exhibit,
    QualityReport,
    index_page,
    preview_step,
    write_quality_page,
)
from tapetum.pipelines.search_results import (
    CANDIDATES,
    CUTOUTS,
    DETECTIONS,
    LOG,
    OWN_FOLDERS,
    PLANES,
    REPORT,
    SETTINGS,
    SURROUNDINGS,
    VERB,
    carried_truth,
    failed_log,
    result_folders,
    run_of,
)
from tapetum.pipelines.search_steps import (
    PSF_STARS,
    WIDTH_STARS,
    Calibration,
    Compared,
    Prepared,
    compare,
    find,
    good_area_deg2,
    point_noise,
    prepare,
    spread,
    surroundings_of,
    together,
)
from tapetum.pipelines.steps import TROUBLE, WARNING, profile_files
from tapetum.report.page import write_page
from tapetum.report.stamps import thinned
from tapetum.report.tables import rounded, write_table
from tapetum.simulate.truth import TRUTH_NAME, write_truth
from tapetum.sky.catalogue import is_remote
from tapetum.surveys.telescopes import find_telescope

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from tapetum.core.settings import ClusterSettings
    from tapetum.finders.realbogus import Scores
    from tapetum.images.frame import Frame, FrameInfo

    Codes = NDArray[np.uint16]

Keep = Literal["difference", "all", "none"]
Cutouts = Literal["fits", "none"]
Cells = Literal["mosaic", "individual"]
SHOWN = 24  # candidates pictured in the report
FEATURES = (
    *(column.name for column in fields(Detections)),
    "snr",
    "significance",
    "mag",
    "mag_err",
    "flux_template",
)  # fmt: skip
"""That a network may ask for."""


@dataclass(frozen=True)
class SearchOptions:
    """Everything that decides the result of a search beside the images.

    Attributes
    ----------
    references
        Files, folders, ``ps1``, ``ztf`` or ``hips:ID``; empty searches the science image itself.
    cells
        What several reference images of one field become: one mosaic, or a difference each.
    method, convolve
        Of the subtraction.
    threshold
        Least significance of a detection [sigma].
    limits
        What a detection must not exceed.
    telescope
        Profile; None recognises it from the header.
    mask
        Mask of the science images; None takes the one in the file or beside it.
    catalogue
        Table, or remote catalogue, of stars for the zero point and the astrometric check.
    refine_wcs
        Correct the WCS by that catalogue.
    known
        Tables, or remote catalogues, of known objects.
    match_radius_arcsec
        A candidate this near to a known object is that object.
    drop_known
        Leave known objects out; None: only where there is no reference.
    model
        Network that scores; None takes `transients` when there is one.
    contaminants
        What contaminates the science images: a network, a file or folder of masks, ``none``; None takes the masks
        beside an image, else the network `contaminants` when there is one.
    cutouts, cutout_size
        Whether to write cutouts, and their side [pixel]; None writes them where there is a reference: without one every
        star is a candidate.
    keep
        Images to keep.
    fwhm_pix
        Width of a star where an image has none that shows it [pixel]; None takes the header's.
    """

    references: tuple[str, ...] = ()
    cells: Cells = "mosaic"
    method: Literal["kernel", "zogy"] = "kernel"
    convolve: Literal["auto", "reference", "science"] = "auto"
    threshold: float = 5.0
    limits: VetoLimits = field(default_factory=VetoLimits)
    telescope: str | None = None
    mask: str | None = None
    catalogue: str | None = None
    refine_wcs: bool = False
    known: tuple[str, ...] = ()
    match_radius_arcsec: float = 2.0
    drop_known: bool | None = None
    model: str | None = None
    contaminants: str | None = None
    cutouts: Cutouts | None = None
    cutout_size: int = STAMP_SIZE
    keep: Keep = "difference"
    fwhm_pix: float | None = None


@dataclass(frozen=True)
class Task:
    """One image to search.

    Attributes
    ----------
    source
        As `tapetum.images.fits.read_frame` takes it.
    folder
        Where its results go.
    made_from
        What decides its result, as a hash.
    """

    source: str
    folder: Path
    made_from: str


@dataclass(frozen=True)
class Outcome:
    """What became of one image.

    Attributes
    ----------
    problem
        Why there is no result; None when there is one.
    skipped
        It was finished before.
    warnings
        What the user should know of it.
    """

    source: str
    folder: Path
    n_candidates: int = 0
    n_detections: int = 0
    seconds: float = 0.0
    problem: str | None = None
    skipped: bool = False
    warnings: tuple[str, ...] = ()


class Diary:
    """Lines with times for ``search.log``; warnings that the report shows as well."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self.lines: list[str] = []
        self.steps: list[tuple[str, float]] = []

    def say(self, message: str) -> None:
        """Note something."""
        self.lines.append(f"{self.seconds:8.2f} s  {message}")

    def step(self, name: str) -> None:
        """Note that a step is done, and how long it took."""
        took = self.seconds - sum(seconds for _, seconds in self.steps)
        self.steps.append((name, took))
        self.say(f"{name}: {took:.2f} s")

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return self._clock() - self._start

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was said with ``warning:`` before it, each once."""
        found = [line.partition(WARNING)[2] for line in self.lines if WARNING in line]
        return tuple(dict.fromkeys(found))

    def text(self) -> str:
        """All lines."""
        return "".join(f"{line}\n" for line in self.lines)


def plan(sources: Sequence[str], out: Path, options: SearchOptions) -> list[Task]:
    """A task with a folder of its own for each image; images of one name in different folders do not collide."""
    others = [Path(name) for name in (*options.known, options.catalogue) if name and not is_remote(name)]
    others += files_of([] if options.mask is None else [options.mask])
    others += files_of(name for name in options.references if path_of(name).exists())
    others += profile_files(options.telescope)
    asked = ContaminantChoice.parse(options.contaminants)
    shared = fingerprint(others, {"options": asdict(options), "contaminants": asked.identity}, skip=[out])
    taken: dict[str, str] = {}
    tasks = []
    for source in dict.fromkeys(sources):
        name = _name_for(source, out, taken)
        taken[name] = source
        masks = asked.masks_for(source)
        files = files_of([source]) + ([] if masks is None else [path_of(masks)])
        made_from = fingerprint(files, {"source": source, "shared": shared})
        tasks.append(Task(source, out / name, made_from))
    return tasks


def _name_for(source: str, out: Path, taken: dict[str, str]) -> str:
    """The first of stem, folder_stem, stem-hash that is free or is this image's own already."""
    place = str(Path(source).absolute())
    stem = image_name(place)
    names = (
        stem,
        f"{path_of(place).parent.name}_{stem}",
        f"{stem}-{hashlib.sha256(place.encode()).hexdigest()[:12]}",
    )
    for name in names:
        owner = _owner(out / name)
        if name not in (*taken, *OWN_FOLDERS) and owner in (None, place):
            return name
    return names[-1]


def _owner(folder: Path) -> str | None:
    """Which image a folder belongs to; None for a folder that is not there, empty for one that is not ours."""
    if not folder.exists():
        return None
    return str(run_of(folder).get("source", ""))


def search(
    sources: Sequence[str],
    out: Path,
    options: SearchOptions,
    settings: Settings,
    *,
    jobs: int = 1,
    scheduler: str = "local",
    cluster: ClusterSettings | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> list[Outcome]:
    """Search every image; each gets a folder ``out/<image>/``.

    Finished images are skipped unless `overwrite`; an image that cannot be searched is named with its reason.

    Raises
    ------
    UsageError
        `out` is a file, a folder of an image's name is there and is not the result of a search, the model cannot
        score candidates, or the one for contaminants answers another question.
    InputError
        A reference, catalogue or telescope cannot be used.
    ModelError
        There is no such model.
    """
    _check_model(options)
    ContaminantChoice.parse(options.contaminants).check()
    check_folder(out)
    if options.telescope:
        find_telescope(options.telescope)  # once for all: no image could be read without it
    recover_folders(out)
    tasks = plan(sources, out, options)
    for task in tasks:
        if _owner(task.folder) == "":
            raise UsageError(f"{task.folder}: is there, and is not the result of a search; choose another -o")
    references = (
        References.open(options.references, options.telescope, settings.archives)
        if options.references
        else None
    )
    finished = [task for task in tasks if not overwrite and _finished(task)]
    outcomes = {task.source: _old(task) for task in finished}
    todo = [task for task in tasks if task.source not in outcomes]
    threads = 2 if jobs == 1 and scheduler == "local" else 1
    setup = partial(_searcher, options, settings, references, threads)
    done = len(finished)
    progress(done, len(tasks))
    for task, outcome in run_over(todo, setup, jobs, scheduler=scheduler, cluster=cluster):
        outcomes[task.source] = outcome
        done += 1
        progress(done, len(tasks))
    return [outcomes[task.source] for task in tasks]


def _check_model(options: SearchOptions) -> None:
    """Raise UsageError when the model that was asked for would leave every candidate without a score."""
    if options.model is None:
        return
    problem = misfit(load_card(find_model(options.model).card), _stamps(options), FEATURES)
    if problem:
        remedy = "" if options.references else "; a search with --reference has all three"
        raise UsageError(f"--model {options.model} does not fit: {problem}{remedy}")


def _stamps(options: SearchOptions) -> tuple[str, ...]:
    return PLANES if options.references else PLANES[:1]


def write_index(out: Path) -> None:
    """Write ``out/report.html``: every image that was searched into this folder, and what became of it."""
    write_page(out / REPORT, index_page({place.name: run_of(place) for place in result_folders(out)}))


def _finished(task: Task) -> bool:
    run = run_of(task.folder)
    return run.get("fingerprint") == task.made_from and "problem" not in run


def _old(task: Task) -> Outcome:
    run = run_of(task.folder)
    return Outcome(
        task.source, task.folder, run.get("n_candidates", 0), run.get("n_detections", 0), skipped=True
    )


def _searcher(
    options: SearchOptions, settings: Settings, references: References | None, threads: int
) -> Callable[[Task], Outcome]:
    """The function that a worker runs: everything that all images share is read here, once."""
    finder = load(options.model)
    lookup = ContaminantLookup(ContaminantChoice.parse(options.contaminants), threads=threads)
    catalogues = Catalogues.read(options.catalogue, options.known, settings.archives.vizier_url)

    def one(task: Task) -> Outcome:
        return search_image(task, options, settings, references, finder, catalogues, lookup, threads=threads)

    return one


def search_image(
    task: Task,
    options: SearchOptions,
    settings: Settings,
    references: References | None,
    finder: Transients,
    catalogues: Catalogues,
    lookup: ContaminantLookup,
    *,
    threads: int = 1,
) -> Outcome:
    """Search one image and write its folder, whole; a problem with it is part of the outcome.

    An earlier result goes only when the new one is whole: where the search fails it stays, and the reason is written
    beside it, into ``<image>.failed.log``.
    """
    diary = Diary()
    diary.say(f"tapetum {__version__}: {task.source}")
    unfit = "" if finder.model is None else misfit(finder.model.card, _stamps(options), FEATURES)
    if unfit:  # nobody asked for this network: it is no reason to stop
        diary.say(f"warning: {finder.name} scores nothing: {unfit}")
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            found = _road(task, options, references, finder, catalogues, lookup, diary, threads)
            for warning in dict.fromkeys(str(entry.message) for entry in heard):
                diary.say(f"warning: {warning}")
        command = _command(task, options)
        command |= {"n_candidates": found.n_candidates, "n_detections": len(found.table)}
        with whole_folder(task.folder) as part:
            _write(part, task, options, found, diary, settings_text(settings, command), threads)
            _write_record(part, settings, command, diary)
        failed_log(task.folder).unlink(missing_ok=True)
    except TROUBLE as reason:
        problem = str(reason) or type(reason).__name__
        diary.say(f"failed: {problem}")
        try:
            _leave_reason(task, options, settings, problem, diary)
        except OSError as trouble:  # a full or read-only disk: the caller is told all the same
            problem = f"{problem}; nor could this be written down: {trouble}"
        return Outcome(
            task.source, task.folder, seconds=diary.seconds, problem=problem, warnings=diary.warnings
        )
    n = (found.n_candidates, len(found.table))
    return Outcome(task.source, task.folder, *n, diary.seconds, warnings=diary.warnings)


def _command(task: Task, options: SearchOptions) -> dict[str, Any]:
    """What the settings of a result say of the run."""
    source = str(Path(task.source).absolute())
    return {"verb": VERB, "source": source, **_flat(options), "fingerprint": task.made_from}


def _write_record(part: Path, settings: Settings, command: dict[str, Any], diary: Diary) -> None:
    """The log and the settings, with the time that everything took; the report could not know it yet."""
    with whole_file(part / LOG) as log:
        log.write_text(diary.text(), encoding="utf-8")
    write_settings(part / SETTINGS, settings, {**command, "seconds": round(diary.seconds, 3)})


def _leave_reason(task: Task, options: SearchOptions, settings: Settings, problem: str, diary: Diary) -> None:
    """Write down why there is no result: beside an earlier one, or in its place where there is none."""
    if not path_of(task.source).exists():
        return  # a name that was mistyped is no image, and needs no folder
    earlier = run_of(task.folder)
    if earlier and "problem" not in earlier:
        with whole_file(failed_log(task.folder)) as log:
            log.write_text(diary.text(), encoding="utf-8")
        return
    with whole_folder(task.folder) as part:
        _write_record(part, settings, {**_command(task, options), "problem": problem}, diary)


def _flat(options: SearchOptions) -> dict[str, Any]:
    """Options as one level of plain values, as `write_settings` takes them."""
    values = asdict(options)
    values |= {f"limit_{key}": value for key, value in values.pop("limits").items()}
    values["known"] = list(options.known)
    return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class Field:
    """What all reference cells of one image gave together.

    Attributes
    ----------
    compared
        Of the cell that has the most of the image, for quality figures.
    difference, template, mask
        On the whole science grid: each pixel from the first cell that has it; `template` is None without a reference.
    judged
        Detections of all cells.
    flux_template : ndarray, shape (n,)
        What the reference cell of each detection shows there, see `_template_flux`.
    """

    compared: Compared
    difference: NDArray[np.float32]
    template: NDArray[np.float32] | None
    mask: NDArray[np.uint8]
    judged: Judged
    flux_template: NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """The result of one image before it is written.

    Attributes
    ----------
    frame
        The science image; its WCS is the refined one.
    table
        All detections, the best first, as `candidate_table` makes it.
    keep : ndarray of bool
        Which of them are candidates.
    words
        Metadata of the tables.
    """

    frame: Frame
    field: Field
    calibration: Calibration
    table: pa.Table
    keep: NDArray[np.bool_]
    words: dict[str, str]

    @property
    def n_candidates(self) -> int:
        """How many survive."""
        return int(self.keep.sum())

    @property
    def planes(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.float32] | None]:
        """Science, template, difference; the last two are None without a reference."""
        difference = None if self.field.template is None else self.field.difference
        return self.field.compared.science.plane.data, self.field.template, difference


def _road(
    task: Task,
    options: SearchOptions,
    references: References | None,
    finder: Transients,
    catalogues: Catalogues,
    lookup: ContaminantLookup,
    diary: Diary,
    threads: int,
) -> Found:
    profile = find_telescope(options.telescope) if options.telescope else None
    frame = read_frame(task.source, profile, mask=options.mask)
    for warning in frame.info.warnings:
        diary.say(f"warning: {warning}")
    diary.step("read")
    science = prepare(frame, fwhm_pix=options.fwhm_pix, threads=threads, say=diary.say)
    diary.step("background and PSF")
    catalogues = catalogues.around(frame, diary.say)
    frame, calibration = calibrate(
        frame, science, catalogues, refine=options.refine_wcs, threads=threads, say=diary.say
    )
    science = replace(science, wcs=frame.wcs)
    if references is None and not options.known:
        diary.say("warning: without a reference every star is a candidate; --known takes known stars away")
    for gap in _gaps(frame.info, calibration):
        diary.say(f"warning: {gap}")
    codes, by = lookup.codes(frame, diary.say)
    if codes is not None:
        diary.say(f"contaminants by {by}: {class_words(codes)}")
        diary.step("contaminants")
    field = _searched(frame, science, references, codes, options, diary, threads)
    return _gather(task.folder.name, frame, field, calibration, by, options, finder, catalogues, diary)


def _gaps(info: FrameInfo, calibration: Calibration) -> list[str]:
    """What is guessed or not known of an image; a zero point by stars is known."""
    by_stars = {} if calibration.origin == "header" else {"zero_point": calibration.origin}
    return essential_gaps(replace(info, origin={**info.origin, **by_stars}))


def _searched(
    frame: Frame,
    science: Prepared,
    references: References | None,
    codes: Codes | None,
    options: SearchOptions,
    diary: Diary,
    threads: int,
) -> Field:
    """Search the image with each reference cell in turn; a cell that cannot be used is left out and told.

    Raises
    ------
    InputError, SubtractionError
        No cell can be used.
    """
    if references is None:
        return _joined(None, *_search_one(science, None, codes, options, diary, threads))
    field: Field | None = None
    problems: list[InputError | SubtractionError] = []
    for aligned in references.aligned(frame, cells=options.cells, say=diary.say, threads=threads):
        try:
            reference = _prepared(aligned, options, diary, threads)
            field = _joined(field, *_search_one(science, reference, codes, options, diary, threads))
        except (InputError, SubtractionError) as problem:
            problems.append(problem)
            diary.say(f"warning: {aligned.source}: left out: {problem}")
    if field is not None:
        return field
    if len(problems) == 1:
        raise problems[0]
    reasons = "; ".join(dict.fromkeys(map(str, problems)))
    raise SubtractionError(f"{frame.source}: none of {len(problems)} reference cells can be used: {reasons}")


def _prepared(aligned: Frame, options: SearchOptions, diary: Diary, threads: int) -> Prepared:
    """An aligned reference with its PSF."""
    for warning in aligned.info.warnings:
        diary.say(f"warning: {aligned.source}: {warning}")
    diary.step("reference aligned")
    n_stars = PSF_STARS if options.method == "zogy" else WIDTH_STARS
    reference = prepare(aligned, n_stars=n_stars, fwhm_pix=options.fwhm_pix, threads=threads, say=diary.say)
    diary.step("background and PSF of the reference")
    return reference


def _search_one(
    science: Prepared,
    reference: Prepared | None,
    codes: Codes | None,
    options: SearchOptions,
    diary: Diary,
    threads: int,
) -> tuple[Compared, Judged]:
    compared = compare(
        science, reference, method=options.method, convolve=options.convolve, threads=threads, say=diary.say
    )
    if reference is not None:
        diary.step("subtraction")
    judged = find(compared, options.limits, threshold=options.threshold, codes=codes, threads=threads)
    diary.step("detection and vetoes")
    return compared, judged


def _joined(before: Field | None, compared: Compared, judged: Judged) -> Field:
    """A further reference cell: it fills what the earlier ones do not have, and what it finds again is flagged."""
    flux = _template_flux(compared, judged)
    if before is None:
        return Field(compared, compared.data, compared.template, compared.mask, judged, flux)
    new = np.isnan(before.difference) & np.isfinite(compared.data)
    template = compared.template
    if template is not None and before.template is not None:
        template = np.where(new, template, before.template)
    mask = np.where(new, compared.mask, before.mask)
    larger = np.isfinite(compared.data).sum() > np.isfinite(before.compared.data).sum()
    chosen = compared if larger else before.compared
    difference = np.where(new, compared.data, before.difference)
    flux = np.concatenate([before.flux_template, flux])
    return Field(chosen, difference, template, mask, together(before.judged, judged), flux)


def _gather(
    name: str,
    frame: Frame,
    field: Field,
    calibration: Calibration,
    by: str,
    options: SearchOptions,
    finder: Transients,
    catalogues: Catalogues,
    diary: Diary,
) -> Found:
    """Photometry, matches, scores and the table."""
    found, flags = field.judged.found, field.judged.flags.copy()
    flags[crosses_edge(found.x, found.y, options.cutout_size, frame.shape)] |= int(CandidateFlag.EDGE)
    ra, dec = sky_positions(frame.wcs, found.x, found.y)
    mag, mag_err = magnitudes(found.flux, found.flux_err, calibration.zero_point)
    light = Photometry(ra, dec, found.flux, found.flux_err, mag, mag_err, field.flux_template)
    known = match_known(catalogues, ra, dec, options.match_radius_arcsec)
    flags[[bool(label) for label in known.name]] |= int(CandidateFlag.KNOWN)
    drop = not options.references if options.drop_known is None else options.drop_known
    survives = (flags & (int(VETOES) | (int(CandidateFlag.KNOWN) if drop else 0))) == 0
    words = _words(name, frame, field, calibration, options, finder) | ({"contaminants_by": by} if by else {})
    result = Found(frame, field, calibration, None, survives, words)
    scores = _scored(finder, result, light)
    table, order = candidate_table(
        name, frame.info.band, field.judged, light, known, scores, flags, survives, words
    )
    diary.step("photometry, matches, table")
    diary.say(f"{len(table)} detections, {int(survives.sum())} candidates")
    return replace(result, table=table, keep=survives[order])


def _template_flux(compared: Compared, judged: Judged) -> NDArray[np.float64]:
    """Forced PSF photometry of the reference at its detections [science DN]; NaN without a reference."""
    reference, made = compared.reference, compared.difference
    x, y = judged.found.x, judged.found.y
    if reference is None or made is None or not len(x):
        return np.full(len(x), np.nan)
    plane = reference.plane
    flux = forced_photometry(plane.data, plane.noise, plane.mask, reference.psf, x, y).flux
    return np.asarray(flux, np.float64) * made.scale


def _scored(finder: Transients, found: Found, light: Photometry) -> Scores:
    """Scores of all detections; only survivors are shown to the network, the others have none."""
    rows = np.flatnonzero(found.keep)
    seen = found.field.judged.found
    size = finder.stamp_size if finder.model is not None else 1
    stamps = cut_planes(found.planes, seen.x[rows], seen.y[rows], size)
    columns = {
        **seen.columns(),
        "snr": signal_to_noise(seen.flux, seen.flux_err),
        "significance": seen.snr,
        "mag": light.mag,
        "mag_err": light.mag_err,
        "flux_template": light.flux_template,
    }
    features = {key: np.asarray(value, np.float64)[rows] for key, value in columns.items()}
    return spread(finder.find(CandidateBatch(stamps, features)), rows, len(found.keep))


def _words(
    name: str,
    frame: Frame,
    field: Field,
    calibration: Calibration,
    options: SearchOptions,
    finder: Transients,
) -> dict[str, str]:
    """Metadata of the tables: everything that later steps need of the image."""
    compared = field.compared
    noise, zero_point = point_noise(compared), calibration.zero_point
    limit = float("nan") if zero_point is None else zero_point - 2.5 * float(np.log10(5 * noise))
    info, reference = frame.info, compared.reference
    values: dict[str, Any] = {
        "tapetum": __version__,
        "image": name,
        "source": str(Path(frame.source).absolute()),
        "reference": "" if reference is None else reference.source,
        "telescope": info.telescope,
        "band": info.band or "",
        "mjd": info.mjd,
        "exposure_s": info.exposure_s,
        "shape": f"{frame.shape[0]} {frame.shape[1]}",
        "pixel_scale_arcsec": info.pixel_scale_arcsec,
        "area_deg2": good_area_deg2(field.mask, field.difference, info.pixel_scale_arcsec),
        "zero_point": zero_point,
        "zero_point_error": calibration.error,
        "zero_point_origin": calibration.origin,
        "flux_err": noise,
        "mag_limit": limit,
        "fwhm_pix": compared.psf.quality.fwhm_pix,
        "threshold": options.threshold,
        "method": "" if compared.difference is None else compared.difference.method,
        "convolved": "" if compared.difference is None else compared.difference.convolved,
        "cutout_size": options.cutout_size,
        "model": finder.name,
        "model_version": finder.version,
    }
    return {key: str(value) for key, value in values.items() if value is not None and value == value}


# ---- files ---------------------------------------------------------------------------------------------------------


def _write(
    part: Path, task: Task, options: SearchOptions, found: Found, diary: Diary, toml: str, threads: int
) -> None:
    """Everything into a folder that is not the final one yet."""
    candidates = found.table.filter(found.keep)
    for name, table in ((CANDIDATES, candidates), (DETECTIONS, found.table)):
        words = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        write_table(rounded(table, DECIMALS), str(part / name), typed(words), UNITS, DESCRIPTIONS)
    _write_surroundings(part / SURROUNDINGS, found, threads)
    truth = carried_truth(task.source, task.folder.name)
    if truth is not None:
        write_truth(part / TRUTH_NAME, truth)
        diary.say(f"{len(truth)} injected sources carried along")
    diary.step("tables")
    if options.cutouts == "fits" or (options.cutouts is None and options.references):
        _write_cutouts(part / CUTOUTS, found, candidates, options.cutout_size)
        diary.step("cutouts")
    _write_images(part, options, found)
    diary.step("images")
    write_quality_page(part / REPORT, _report(found, candidates, diary, toml))
    diary.step("report")


def _report(found: Found, candidates: pa.Table, diary: Diary, toml: str) -> QualityReport:
    step = preview_step(found.frame.shape)
    planes = tuple(None if plane is None else thinned(plane, step) for plane in found.planes)
    best = candidates.slice(0, SHOWN)
    x, y = (best[name].to_numpy().astype(np.float64) for name in "xy")
    compared = found.field.compared
    stamps = cut_planes(found.planes, x, y, STAMP_SIZE)
    worthless = (compared.science.plane.mask & np.uint8(Bad.NO_DATA | Bad.DEFECT)).astype(np.float32)
    stamps[:, 0][cut_planes([worthless], x, y, STAMP_SIZE)[:, 0] > 0] = (
        np.nan
    )  # a dead column spoils the stretch
    return QualityReport(
        found.words,
        planes,
        step,
        compared.science,
        compared.reference,
        compared.difference,
        candidates,
        found.table,
        [Exhibit(row, stamp) for row, stamp in zip(best.to_pylist(), stamps, strict=True)],
        diary.steps,
        diary.lines,
        toml,
    )


def _write_surroundings(path: Path, found: Found, threads: int) -> None:
    import pyarrow as pa

    near = surroundings_of(found.field.compared, threads=threads)
    columns = {"kind": pa.array(near.kind, pa.string()), "x": near.x, "y": near.y, "radius": near.radius}
    write_table(pa.table(columns), str(path), {"image": found.words["image"]}, dict.fromkeys("xy", "pix"))


def _write_cutouts(folder: Path, found: Found, candidates: pa.Table, size: int) -> None:
    folder.mkdir()
    rows = candidates.to_pylist()
    x, y = (candidates[name].to_numpy().astype(np.float64) for name in "xy")
    wcs = None if found.frame.wcs is None else found.frame.wcs.to_header(relax=True)
    edge = crosses_edge(x, y, size, found.frame.shape)
    corners = np.column_stack([centre_pixel(x), centre_pixel(y)]) - size // 2
    for start in range(0, len(rows), 256):  # a crowded field has thousands
        chosen = slice(start, start + 256)
        stamps = cut_planes(found.planes, x[chosen], y[chosen], size)
        for row, stamp, on_edge, corner in zip(
            rows[chosen], stamps, edge[chosen], corners[chosen], strict=True
        ):
            cards = candidate_cards(row, found.words["image"], edge=bool(on_edge))
            at = (int(corner[0]), int(corner[1]))
            write_cutout(folder / f"{row['candidate_id']}.fits", stamp, cards, wcs, at)


def _write_images(part: Path, options: SearchOptions, found: Found) -> None:
    if options.keep == "none":
        return
    history = [f"tapetum {__version__} images search {found.words['source']}"]
    for name, plane in zip(PLANES, found.planes, strict=True):
        if plane is None or (options.keep == "difference" and name != "difference"):
            continue
        masked = {"MASK": found.field.mask} if name == "difference" else {}
        write_frame(
            part / f"{name}.fits.fz",
            plane,
            wcs=found.frame.wcs,
            header=found.frame.header,
            planes=masked,
            history=[*history, f"{name} image, background subtracted, in DN of the science image"],
            product=name,
        )
