"""The road of a simulation: images in, images with sources and ONE truth table out; or whole scenes out of nothing."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import InputError, UsageError
from tapetum.core.progress import Progress, no_progress
from tapetum.images.background import estimate_background
from tapetum.images.edges import without_bad_edges
from tapetum.images.fits import files_of, image_name, path_of, read_frame, write_frame
from tapetum.images.psf import PsfModel, measure_psf
from tapetum.pipelines.outputs import fingerprint, finished_run, record_settings, settings_path
from tapetum.pipelines.runner import run_over
from tapetum.pipelines.search_calibration import Catalogues, calibrate
from tapetum.pipelines.search_steps import prepare
from tapetum.pipelines.steps import TROUBLE, name_outputs, planes_of, profile_files, reason
from tapetum.simulate.inject import inject
from tapetum.simulate.scene import EpochChange, SceneSettings, second_epoch, simulate_scene
from tapetum.simulate.sources import Conditions, Hosts, draw_sources, find_hosts, parse_kinds
from tapetum.simulate.truth import TRUTH_NAME, name_file, read_truth, stack_truth, write_truth
from tapetum.sky.catalogue import is_remote
from tapetum.surveys.telescopes import find_telescope

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from tapetum.core.settings import Settings
    from tapetum.images.background import Background
    from tapetum.images.frame import Frame

TRUTH_FOLDER = "truth"  # one table per image, from which the one table of the folder is made
ASSUMED_BETA = 3.2  # of the Moffat profile where the user gives the seeing instead of a measurement
SCENE_SUFFIX = ".fits.fz"
LEAST_SIDE = 128  # of a scene [pixel]
# a night with slightly worse seeing and more moonlight; the transparency is the same, so that the zero point of the
# header stays true
EPOCH_CHANGE = EpochChange(shift=(4.4, 2.7), fwhm_ratio=1.15, sky_factor=1.1)


@dataclass(frozen=True)
class SimulateOptions:
    """What is put into each image.

    Attributes
    ----------
    number
        Sources per image, shared evenly by the kinds without a number of their own.
    mag_range
        Brightest and faintest magnitude; drawn evenly.
    kinds
        As `tapetum.simulate.sources.parse_kinds` takes them.
    zero_point, gain, saturation
        Instead of what image and profile say.
    catalogue
        Table or remote catalogue of stars by which the zero point of each image is measured; None: the header's.
    telescope
        Name or path of a profile; None: recognised from the header.
    mask
        Mask image for every frame; None: the one beside the frame, if there is one.
    fwhm_pix
        Seeing of an assumed Moffat PSF; None: the PSF is measured.
    on_galaxies
        Share of the transients that lie on a galaxy of the image, where it has any.
    seed
        With the name of an image it decides everything that is drawn for it.
    another_epoch
        Put the sources not into the image, but into another exposure of its field that is simulated from it.
    """

    number: int = 100
    mag_range: tuple[float, float] = (14.0, 23.0)
    kinds: tuple[str, ...] = ("transient",)
    zero_point: float | None = None
    gain: float | None = None
    saturation: float | None = None
    catalogue: str | None = None
    telescope: str | None = None
    mask: str | None = None
    fwhm_pix: float | None = None
    on_galaxies: float = 0.5
    seed: int = 0
    another_epoch: bool = False

    def check(self) -> dict[str, int]:
        """Sources of each kind.

        Raises
        ------
        UsageError
            A value that makes no sense.
        """
        low, high = self.mag_range
        if not low < high:
            raise UsageError(f"--magrange {low} {high}: the brighter limit comes first")
        if self.catalogue is not None and self.zero_point is not None:
            raise UsageError("--zero-point and --catalogue exclude each other")
        if self.number < 0 or self.seed < 0:
            raise UsageError(f"--number {self.number} --seed {self.seed}: must not be negative")
        if not 0 <= self.on_galaxies <= 1:
            raise UsageError(f"--on-galaxies {self.on_galaxies}: a share, 0 to 1")
        if (self.gain is not None and not self.gain > 0) or (
            self.fwhm_pix is not None and not self.fwhm_pix > 0
        ):
            raise UsageError("--gain and --fwhm must be positive")
        return parse_kinds(self.kinds, self.number)


@dataclass(frozen=True)
class Simulated:
    """What became of one input.

    Attributes
    ----------
    source
        The input, or the name of the scene.
    n_sources
        Rows in its truth table.
    skipped
        It was there already.
    output
        The new image; None: it failed.
    made_from
        Fingerprint of what decided it.
    problem
        Why it failed; None: it did not.
    notes
        What the user should know.
    """

    source: str
    n_sources: int = 0
    skipped: bool = False
    output: Path | None = None
    made_from: str = ""
    problem: str | None = None
    notes: tuple[str, ...] = ()


def rng_of(seed: int, name: str) -> np.random.Generator:
    """The generator of one image: other names and other seeds give other draws, the order of work does not matter."""
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])])


def simulate_images(
    sources: Sequence[str],
    folder: Path,
    options: SimulateOptions,
    settings: Settings,
    *,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> list[Simulated]:
    """Put sources into images.

    Parameters
    ----------
    sources
        Images, see `tapetum.images.fits.expand_sources`.
    folder
        Where the new images and ``simulated_objects.list`` go. Every image of a file gets a file of its own:
        extension 2 of ``X.fits`` becomes ``X_2.fits``.
    options
        What is put in.
    settings
        Written beside each image; its ``jobs`` and ``scheduler`` say who works, which changes no result.
    overwrite
        Make again what is finished.

    Returns
    -------
    list of Simulated
        One per image. An image that fails leaves nothing and stops no other.

    Raises
    ------
    UsageError
        Options that make no sense, two images of one name, or an output that is an input.
    """
    options.check()
    images = planes_of(sources)
    name_outputs(images, folder, _suffix)
    setup = partial(_image_worker, folder, options, settings.archives.vizier_url, overwrite)
    return _run(images, setup, folder, settings, asdict(options), progress)


def simulate_scenes(
    number: int,
    folder: Path,
    scene: SceneSettings,
    settings: Settings,
    *,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> list[Simulated]:
    """Make whole scenes: ``scene_00000_{sci,ref,labels}.fits.fz``, and their truth in ``simulated_objects.list``.

    Parameters
    ----------
    number
        How many.
    folder
        Where they go.
    scene
        What is drawn.
    settings
        As in `simulate_images`; its ``seed`` and the number of a scene decide everything in it.
    overwrite, progress
        As in `simulate_images`.
    """
    setup = partial(_scene_worker, folder, scene, settings.seed, overwrite)
    names = [f"scene_{index:05d}" for index in range(number)]
    return _run(names, setup, folder, settings, {**asdict(scene), "seed": settings.seed}, progress)


def scene_settings(options: SimulateOptions, given: Collection[str], shape: tuple[int, int]) -> SceneSettings:
    """Scenes with those options that were given; the others stay as scenes have them.

    Raises
    ------
    UsageError
        A value that makes no sense, or an option that only images have.
    """
    counts = options.check()
    if unfit := sorted({"telescope", "mask", "catalogue", "another_epoch"} & set(given)):
        option = {"another_epoch": "second-epoch"}.get(unfit[0], unfit[0])
        raise UsageError(f"--{option} is of images; scenes have none")
    if min(shape) < LEAST_SIDE:
        raise UsageError(
            f"--size {shape[0]} {shape[1]}: a scene is at least {LEAST_SIDE} pixels wide and high"
        )
    same = ("mag_range", "zero_point", "gain", "saturation")
    changes: dict[str, Any] = {name: getattr(options, name) for name in same if name in given}
    if "kinds" in given:
        changes["counts"] = {kind: (number, number) for kind, number in counts.items()}
    if options.fwhm_pix is not None:
        changes["fwhm"] = (options.fwhm_pix, options.fwhm_pix)
    return replace(SceneSettings(shape=shape, on_galaxies=options.on_galaxies), **changes)


def _run(
    items: Sequence[str],
    setup: Callable[[], Callable[[str], Simulated]],
    folder: Path,
    settings: Settings,
    options: Mapping[str, Any],
    progress: Progress,
) -> list[Simulated]:
    done = []
    work = run_over(items, setup, settings.jobs, scheduler=settings.scheduler, cluster=settings.cluster)
    for _, result in work:
        if result.output is not None and not result.skipped:  # its settings say that it is finished
            command = {"verb": "images simulate", "inputs": [result.source], **_plain(options)}
            record_settings(result.output, settings, command, result.made_from, n_done=result.n_sources)
        done.append(result)
        progress(len(done), len(items))
    if any(result.problem is None for result in done):
        write_truth(folder / TRUTH_NAME, collect_truth(folder))
    return done


def collect_truth(folder: Path) -> Any:
    """One table of all images of a folder whose simulation is finished.

    Raises
    ------
    InputError
        There is none.
    """
    tables = []
    for path in sorted((folder / TRUTH_FOLDER).glob("*.ecsv"), key=_natural):
        table = read_truth(path)
        if len(table) and not (folder / str(table["filename"][0])).is_file():
            continue  # somebody removed the image
        tables.append(table)
    if not tables:
        raise InputError(f"{folder}: no simulated image with a truth table")
    return stack_truth(tables)


def _natural(path: Path) -> list[tuple[int, str]]:
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name) if part
    ]


def _suffix(source: str) -> str:
    """Of the new image: compressed as its source is."""
    return ".fits.fz" if path_of(source).name.lower().endswith(".fz") else ".fits"


def _image_worker(
    folder: Path, options: SimulateOptions, server: str | None, overwrite: bool
) -> Callable[[str], Simulated]:
    stars = Catalogues.read(options.catalogue, (), server)
    return partial(_simulate_image, folder=folder, options=options, stars=stars, overwrite=overwrite)


def _scene_worker(
    folder: Path, scene: SceneSettings, seed: int, overwrite: bool
) -> Callable[[str], Simulated]:
    return partial(_simulate_scene, folder=folder, scene=scene, seed=seed, overwrite=overwrite)


def _simulate_image(
    source: str, *, folder: Path, options: SimulateOptions, stars: Catalogues, overwrite: bool
) -> Simulated:
    try:
        images = [source] if options.mask is None else [source, options.mask]
        files = [*files_of(images), *profile_files(options.telescope)]
        if options.catalogue is not None and not is_remote(options.catalogue):
            files.append(Path(options.catalogue))
        made_from = fingerprint(files, {"source": source, **asdict(options)})
        output = folder / (image_name(source) + _suffix(source))
        if not overwrite and (before := _finished(source, output, made_from)):
            return before
        profile = find_telescope(options.telescope) if options.telescope else None
        frame = _with_overrides(read_frame(source, profile, mask=options.mask), options)
        frame = replace(frame, name=image_name(source))
        frame, measured = _calibrated(frame, stars) if options.catalogue is not None else (frame, [])
        rng = rng_of(options.seed, frame.name)
        if options.another_epoch:
            done, truth, notes = another_epoch(frame, options, rng, frame.name)
        else:
            done, truth, notes = put_in(frame, options, rng)
        name_file(truth, output.name)
        settings_path(output).unlink(
            missing_ok=True
        )  # from here on the old one is not finished work any more
        history = [
            f"tapetum images simulate: {len(truth)} sources, seed {options.seed}, truth in {TRUTH_NAME}"
        ]
        if options.another_epoch:
            history += [f"not observed, but another exposure simulated from {Path(source).name};"]
            history += ["time and other cards are those of that image"]
        write_frame(
            output,
            done.data,
            wcs=done.wcs,
            header=done.header,
            planes=done.planes,
            history=history,
            product="frame",
        )
        write_truth(_truth_path(output), truth)
        return Simulated(
            source, len(truth), False, output, made_from, notes=(*frame.info.warnings, *measured, *notes)
        )
    except TROUBLE as problem:
        return Simulated(source, problem=reason(source, problem))


def _calibrated(frame: Frame, stars: Catalogues) -> tuple[Frame, list[str]]:
    """The frame with the zero point that the stars of a catalogue give, and how that went.

    Raises
    ------
    InputError
        They do not fit the image: a truth with a wrong zero point is none.
    """
    notes: list[str] = []
    found = calibrate(frame, prepare(frame), stars.around(frame, notes.append), say=notes.append)[1]
    if found.origin == "header":
        raise InputError(f"{frame.source}: its zero point cannot be measured: {notes[-1]}")
    origin = {**frame.info.origin, "zero_point": f"measured: {found.origin}"}
    return replace(frame, info=replace(frame.info, zero_point=found.zero_point, origin=origin)), notes


def put_in(frame: Frame, options: SimulateOptions, rng: np.random.Generator) -> tuple[Frame, Any, list[str]]:
    """Measure an image, draw sources for it and put them in.

    Returns
    -------
    Frame
        The image with the sources.
    astropy.table.Table
        Their truth.
    list of str
        What the user should know.

    Raises
    ------
    InputError
        The image cannot be measured, or lacks something that is needed; the message says what to give.
    """
    counts = options.check()
    if frame.info.zero_point is None:
        raise InputError(f"{frame.source}: no zero point in the header or profile; give --zero-point")
    background = estimate_background(frame.data, frame.mask)
    psf = _psf(frame, background, options)
    n_y, n_x = frame.shape
    fwhm = psf.fwhm_at(n_x / 2, n_y / 2)
    notes = [
        f"{name} is guessed, and simulated noise follows it"
        for name in ("gain",)
        if name in frame.info.guessed
    ]
    hosts = None
    if counts.get("transient") and options.on_galaxies > 0:
        hosts = _hosts(frame, background, fwhm)
        if (n := len(hosts)) < (wanted := round(options.on_galaxies * counts["transient"])):
            notes.append(
                f"about {wanted} transients were to lie on galaxies, but the image shows {n or 'none'};"
                " each gets one at most, the other transients lie anywhere"
            )
    conditions = Conditions(
        frame.shape,
        frame.info.zero_point,
        options.mag_range,
        fwhm,
        background.typical_noise,
        frame.info.gain,
        frame.info.saturation - float(np.median(background.level[::8, ::8])),
        usable=np.isfinite(frame.data),
        hosts=hosts,
        on_galaxies=options.on_galaxies,
    )
    draws, noise = rng.spawn(2)
    sources = draw_sources(counts, conditions, draws)
    done, truth = inject(frame, psf, sources, noise, background=background, seed=options.seed)
    return done, truth, notes


def another_epoch(
    frame: Frame, options: SimulateOptions, rng: np.random.Generator, name: str
) -> tuple[Frame, Any, list[str]]:
    """Another exposure of the field of a real image with sources in it; the real image then is the reference.

    Parameters
    ----------
    frame
        The real image.
    name
        Of the other exposure.

    Returns
    -------
    Frame
        A little worse in seeing and sky, see `EPOCH_CHANGE` and `tapetum.simulate.scene.second_epoch`.
    astropy.table.Table
        The truth of its sources.
    list of str
        What the user should know.

    Raises
    ------
    InputError
        As `put_in`.
    """
    noise, draws = rng.spawn(2)
    frame, _ = without_bad_edges(frame)  # else they would be bright and dim sky of the other exposure
    background = estimate_background(frame.data, frame.mask)
    fwhm = _psf(frame, background, options).quality.fwhm_pix
    empty = second_epoch(frame, background, fwhm, EPOCH_CHANGE, noise, name=name)
    if options.fwhm_pix is not None:
        options = replace(options, fwhm_pix=options.fwhm_pix * EPOCH_CHANGE.fwhm_ratio)
    return put_in(empty, options, draws)


def _psf(frame: Frame, background: Background, options: SimulateOptions) -> PsfModel:
    if options.fwhm_pix is not None:
        return PsfModel.moffat(options.fwhm_pix, ASSUMED_BETA, frame.shape)
    try:
        return measure_psf(frame.data, background, frame.mask, frame.info)
    except InputError as problem:
        raise InputError(f"{frame.source}: {problem}; or give the seeing with --fwhm") from None


def _hosts(frame: Frame, background: Background, fwhm: float) -> Hosts:
    light = np.where(np.isfinite(frame.data), frame.data - background.level, 0).astype(np.float32)
    return find_hosts(light, background.noise, frame.mask, fwhm, frame.info.saturation)


def _with_overrides(frame: Frame, options: SimulateOptions) -> Frame:
    """The user's values in place of the header's, and in the header as well."""
    given = {"zero_point": options.zero_point, "gain": options.gain, "saturation": options.saturation}
    given = {name: value for name, value in given.items() if value is not None}
    origin = {**frame.info.origin, **dict.fromkeys(given, "command line")}
    changes: dict[str, Any] = {**given, "origin": origin}
    return replace(frame, info=replace(frame.info, **changes))


def _simulate_scene(
    name: str, *, folder: Path, scene: SceneSettings, seed: int, overwrite: bool
) -> Simulated:
    try:
        made_from = fingerprint([], {"scene": name, "seed": seed, **asdict(scene)})
        output = folder / f"{name}_sci{SCENE_SUFFIX}"
        if not overwrite and (before := _finished(name, output, made_from)):
            return before
        pair = simulate_scene(scene, rng_of(seed, name), name)
        name_file(pair.truth, output.name)
        pair.truth["seed"] = seed
        settings_path(output).unlink(missing_ok=True)
        history = [f"tapetum images simulate: scene {name}, seed {seed}"]
        for frame in (pair.reference, pair.science):
            write_frame(
                folder / f"{frame.name}{SCENE_SUFFIX}", frame.data, wcs=frame.wcs, header=frame.header,
                planes={"MASK": frame.mask}, history=history, product="frame",
            )  # fmt: skip
        write_frame(
            folder / f"{name}_labels{SCENE_SUFFIX}", pair.labels, wcs=pair.science.wcs, history=history,
            product="labels",
        )  # fmt: skip
        write_truth(_truth_path(output), pair.truth)
        return Simulated(name, len(pair.truth), False, output, made_from)
    except TROUBLE as problem:
        return Simulated(name, problem=reason(name, problem))


def _finished(source: str, output: Path, made_from: str) -> Simulated | None:
    """The image that was made from exactly this, with its truth; None when there is none."""
    run = finished_run(str(output), made_from)
    if run is None or not _truth_path(output).is_file():
        return None
    return Simulated(source, run.n_done, True, output, made_from)


def _truth_path(output: Path) -> Path:
    return output.parent / TRUTH_FOLDER / f"{image_name(output)}.ecsv"


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """What one section of TOML can hold: a mapping inside becomes keys of its own."""
    plain: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            plain |= {f"{name}_{key}": part for key, part in _plain(value).items()}
        else:
            plain[name] = value
    return plain
