"""The second part of the demo: a piece of sky, a second epoch simulated from it, searched end to end.

Each step is the one that everybody's images take: the sources of `pipelines.simulate`, the search of
`pipelines.search`, the figures of `pipelines.completeness`. What is finished is not made again.
"""

from __future__ import annotations

import time
import tomllib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum import __version__
from tapetum.core.errors import InputError
from tapetum.finders.contaminants import MODEL
from tapetum.images.cutouts import cut
from tapetum.images.fits import read_frame, write_frame
from tapetum.images.frame import Bad
from tapetum.pipelines.completeness import measure, recover
from tapetum.pipelines.completeness_report import write_report
from tapetum.pipelines.cutouts import cut_planes
from tapetum.pipelines.demo_images_page import (
    FALSE_SHOWN,
    Candidate,
    ImagesReport,
    Injected,
    choose,
)
from tapetum.pipelines.demo_masks import mask_image
from tapetum.pipelines.outputs import fingerprint, finished_run, record_settings, settings_path
from tapetum.pipelines.search import SearchOptions, search
from tapetum.pipelines.search_report import preview_step
from tapetum.pipelines.search_results import (
    CANDIDATES,
    CUTOUTS,
    DETECTIONS,
    LOG,
    PLANES,
    REAL_KINDS,
    REPORT,
    match_truth,
    read_ecsv,
    read_results,
    read_truth,
)
from tapetum.pipelines.simulate import EPOCH_CHANGE, SimulateOptions, another_epoch, rng_of, simulate_scenes
from tapetum.report.stamps import thinned
from tapetum.simulate.scene import SceneSettings
from tapetum.simulate.sources import parse_kinds
from tapetum.simulate.truth import TRUTH_NAME, name_file, write_truth

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from astropy.table import Table
    from numpy.typing import NDArray

    from tapetum.core.progress import Progress
    from tapetum.core.settings import Settings
    from tapetum.pipelines.completeness import Recovery
    from tapetum.pipelines.demo_masks import MaskReport
    from tapetum.pipelines.search_results import SearchResult

    Image = NDArray[np.float32]

EPOCH = "second_epoch"
MAG_RANGE = (17.0, 21.5)
KINDS = ("transient:160", "streak:12", "comet:3", "cosmic_ray:60")
ON_GALAXIES = 0.3  # of the transients; the quadrant has few galaxies, and two on one are hard to tell apart
SCENE_KINDS = ("transient:100", "streak:6", "comet:1", "cosmic_ray:20")
RADIUS_ARCSEC = 2.0
BLEND_FWHM = 2.5  # sources nearer to each other are found as one
ARTEFACT_PIX = 3.0  # a candidate this near to an artefact that was put in shows it
POINT_STAMP, TRAIL_STAMP = 41, 81  # sides [pixel]


@dataclass(frozen=True)
class Pair:
    """Two epochs of one piece of sky as files, with the truth table of the second beside it.

    Attributes
    ----------
    science, reference
        The second epoch and the first.
    why_simulated
        Why the first epoch is not an observed one; empty where it is.
    seconds
        That making the second epoch took, now or in an earlier run; None where nobody noted it.
    """

    science: Path
    reference: Path
    why_simulated: str
    seconds: float | None


def quadrant_pair(
    source: Path,
    folder: Path,
    settings: Settings,
    *,
    overwrite: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Pair:
    """Simulate a second epoch of a real image, with sources in it: ``second_epoch.fits`` and its truth table.

    Parameters
    ----------
    source
        The first epoch, its mask beside it.
    folder
        Where the second goes.
    settings
        Its seed decides everything that is drawn.
    overwrite
        Make it again although it is there.

    Raises
    ------
    InputError
        The image cannot be read or measured.
    """
    options = SimulateOptions(mag_range=MAG_RANGE, kinds=KINDS, on_galaxies=ON_GALAXIES, seed=settings.seed)
    made_from = fingerprint([source], {"change": asdict(EPOCH_CHANGE), **asdict(options)})
    output = folder / f"{EPOCH}.fits"
    done = finished_run(str(output), made_from) is not None and (folder / TRUTH_NAME).is_file()
    if overwrite or not done:
        start = clock()
        epoch, truth, _ = another_epoch(read_frame(source), options, rng_of(options.seed, EPOCH), EPOCH)
        settings_path(output).unlink(missing_ok=True)  # from here on an old one is not finished work any more
        history = [
            f"tapetum demo: not observed, but simulated from {source.name}, seed {settings.seed};",
            "time and other cards are those of that image",
        ]
        planes = {"MASK": epoch.mask}
        write_frame(
            output,
            epoch.data,
            wcs=epoch.wcs,
            header=epoch.header,
            planes=planes,
            history=history,
            product="frame",
        )
        name_file(truth, output.name)
        write_truth(folder / TRUTH_NAME, truth)
        words = {"verb": "demo", "inputs": [str(source)], "seconds": round(clock() - start, 3)}
        record_settings(output, settings, words, made_from, n_done=len(truth))
    return Pair(output, source, "", _seconds(settings_path(output)))


def scene_pair(
    side: int,
    folder: Path,
    settings: Settings,
    why: str,
    *,
    overwrite: bool = False,
    kinds: Sequence[str] = SCENE_KINDS,
) -> Pair:
    """Simulate two epochs of a piece of sky that nobody observed, the second with sources in it.

    Parameters
    ----------
    side
        Of the images [pixel].
    folder, settings, overwrite
        As in `quadrant_pair`.
    why
        Why there is no real image.
    kinds
        What is put in, as `tapetum.simulate.sources.parse_kinds` takes it.

    Raises
    ------
    InputError
        It cannot be written.
    """
    counts = {kind: (number, number) for kind, number in parse_kinds(kinds, 0).items()}
    scene = SceneSettings(shape=(side, side), counts=counts, mag_range=MAG_RANGE, variable=0.0)
    made = simulate_scenes(1, folder, scene, settings, overwrite=overwrite)[0]
    if made.output is None:
        raise InputError(made.problem or f"{folder}: no scene was made")
    reference = made.output.with_name(made.output.name.replace("_sci", "_ref"))
    return Pair(made.output, reference, why, None)


def search_pair(
    pair: Pair,
    folder: Path,
    settings: Settings,
    progress: Progress,
    *,
    overwrite: bool = False,
    mask_model: str = MODEL,
) -> ImagesReport:
    """Search the second epoch against the first, and compare what is found with what was put in.

    Parameters
    ----------
    pair
        From `quadrant_pair` or `scene_pair`.
    folder
        Where ``search/`` and ``completeness/`` go.
    progress
        Of the search.
    mask_model
        Network for contaminants; the first epoch is masked where it is an observed one, else the second.

    Returns
    -------
    ImagesReport
        Everything that the page shows.

    Raises
    ------
    InputError
        The search failed; the message says why.
    """
    options = SearchOptions(references=(str(pair.reference),), keep="all")
    place = folder / "search"
    outcome = search([str(pair.science)], place, options, settings, overwrite=overwrite, progress=progress)[0]
    if outcome.problem is not None:
        raise InputError(f"{pair.science}: {outcome.problem}")
    result = next(found for found in read_results(place) if found.folder == outcome.folder)
    recovery = recover([result], radius_arcsec=RADIUS_ARCSEC)
    figures = measure(recovery, np.random.default_rng(settings.seed))
    words = [
        ("results", str(place)),
        ("match radius", f"{RADIUS_ARCSEC:g} arcsec"),
        ("seed", str(settings.seed)),
    ]
    write_report(folder / "completeness", figures, words)
    planes, worthless = _planes(result)
    injected, false = _what_became(result, recovery, worthless)
    step = preview_step(result.shape)
    masked = pair.science if pair.why_simulated else pair.reference
    masks = mask_image(masked, folder / "masks", settings, model=mask_model, overwrite=overwrite)
    return ImagesReport(
        why_simulated=pair.why_simulated,
        words={key: str(value) for key, value in result.candidates.meta.items()}
        | {"shape": f"{result.shape[0]} {result.shape[1]}"},
        figures=figures,
        injected=injected,
        false=false,
        planes=tuple(thinned(plane, step) for plane in planes),
        step=step,
        stamps=_stamps(planes, worthless, [*choose(injected).all, *false[:FALSE_SHOWN]]),
        seconds={"second epoch": pair.seconds, "search": _searched_in(result.folder / LOG)},
        files=[*_files(pair, result, folder), *_mask_files(masks)],
        commands=[*_commands(pair, place), *([] if masks is None else [("masks", masks.command)])],
        provenance=[("made by", f"tapetum {__version__}"), ("seed", str(settings.seed))],
        masks=masks,
    )


def _mask_files(masks: MaskReport | None) -> list[tuple[str, Path]]:
    return [] if masks is None else [("contaminant masks", masks.file), ("a picture of them", masks.preview)]


def _seconds(path: Path) -> float | None:
    """How long a run took, as its settings tell; None where they do not."""
    took = tomllib.loads(path.read_text(encoding="utf-8")).get("run", {}).get("seconds")
    return None if took is None else float(took)


def _searched_in(log: Path) -> float | None:
    """Wall time of a search from the first byte that was read to the last that was written, as its log has it [s]."""
    lines = log.read_text(encoding="utf-8").splitlines()
    return float(lines[-1].split()[0]) if lines else None


def _planes(result: SearchResult) -> tuple[list[Image], NDArray[np.bool_]]:
    """Science, template and difference on one grid, and where pixels are worthless in either epoch."""
    frames = [read_frame(result.folder / f"{name}.fits.fz") for name in PLANES]
    return [frame.data for frame in frames], (frames[-1].mask & (Bad.NO_DATA | Bad.DEFECT)) > 0


def _what_became(
    result: SearchResult, recovery: Recovery, worthless: NDArray[np.bool_]
) -> tuple[list[Injected], list[Candidate]]:
    """Every injected source with its fate, and the candidates that are none of them, the most significant first."""
    everything = read_truth(result.folder / TRUTH_NAME)
    real = np.array([str(kind) in REAL_KINDS for kind in everything["kind"]], bool)
    truth, artefacts = everything[real], everything[~real]
    rows = {str(row["candidate_id"]): row for row in result.candidates}
    reasons = _reasons(result, truth, worthless)
    injected = [
        Injected(
            number=number,
            kind=str(row["kind"]),
            mag=float(row["mag"]),
            x=float(row["x"]),
            y=float(row["y"]),
            snr=float(row["snr"]),
            length_pix=_number(told["length_pix"]) or 0.0,
            on_galaxy=_number(told["host_x"]) is not None,
            found=_candidate(rows[str(row["candidate_id"])], artefacts) if row["found"] else None,
            reason="" if row["found"] else reason,
        )
        for number, (told, row, reason) in enumerate(zip(truth, recovery.injected, reasons, strict=True), 1)
    ]
    wrong = recovery.candidates["candidate_id"][~np.asarray(recovery.candidates["true"], bool)]
    false = [_candidate(rows[str(name)], artefacts) for name in wrong]
    return injected, sorted(false, key=lambda candidate: -candidate.snr)


def _reasons(result: SearchResult, truth: Table, worthless: NDArray[np.bool_]) -> list[str]:
    """What speaks against finding each source, in a few words."""
    detections = read_ecsv(result.folder / DETECTIONS)
    x, y = (np.asarray(detections[name], np.float64) for name in "xy")
    seen = match_truth(truth, x, y, result.pixels(RADIUS_ARCSEC)).closest
    near = BLEND_FWHM * result.number("fwhm_pix")
    own = np.column_stack([np.asarray(truth[name], np.float64) for name in "xy"])
    distance = np.hypot(*(own[:, None] - own[None]).transpose(2, 0, 1))
    np.fill_diagonal(distance, np.inf)
    spoilt = cut(worthless.astype(np.float32), own[:, 0], own[:, 1], 5)
    out = []
    for number, row in enumerate(seen.tolist()):
        against = str(detections["reason"][row] or "") if row >= 0 else ""
        if against:
            out.append(f"ruled out: {against.replace('_', ' ')}")
        elif int(truth["mask"][number]) or np.isnan(spoilt[number]).any() or spoilt[number].mean() > 0.2:
            out.append("on bad pixels")
        elif distance[number].min() < near:
            out.append(f"too near to {int(distance[number].argmin()) + 1}")
        else:
            out.append("not detected")
    return out


def _candidate(row: Any, artefacts: Table) -> Candidate:
    """A candidate; where an artefact was put in, that is what it shows."""
    x, y = float(row["x"]), float(row["y"])
    distance = np.hypot(
        np.asarray(artefacts["x"], np.float64) - x, np.asarray(artefacts["y"], np.float64) - y
    )
    nearest = int(distance.argmin()) if distance.size else -1
    cause = str(artefacts["kind"][nearest]) if nearest >= 0 and distance[nearest] < ARTEFACT_PIX else ""
    mag, mag_err = _number(row["mag"]), _number(row["mag_err"])
    name = str(row["candidate_id"])
    return Candidate(name, x, y, float(row["snr"]), int(row["sign"]), mag, mag_err, cause.replace("_", " "))


def _number(value: Any) -> float | None:
    """A cell of a table; None where it is masked or not a number."""
    number = float(np.ma.filled(value, np.nan))
    return number if np.isfinite(number) else None


def _stamps(
    planes: Sequence[Image], worthless: NDArray[np.bool_], shown: Sequence[Injected | Candidate]
) -> dict[str, Image]:
    """Science, template and difference around what is pictured, by its anchor; worthless pixels are NaN."""
    stamps = {}
    spoilt = worthless.astype(np.float32)
    for one in shown:
        side = TRAIL_STAMP if isinstance(one, Injected) and one.kind != "transient" else POINT_STAMP
        x, y = np.array([one.x]), np.array([one.y])
        stamp = cut_planes(planes, x, y, side)[0]
        stamp[:, cut(spoilt, x, y, side)[0] > 0] = np.nan  # a dead column spoils the stretch
        stamps[one.anchor] = stamp
    return stamps


def _files(pair: Pair, result: SearchResult, folder: Path) -> list[tuple[str, Path]]:
    """Everything that was written, as (what it is, where)."""
    return [
        ("the search's own page", result.folder / REPORT),
        ("the page of the completeness", folder / "completeness" / "report.html"),
        ("candidates", result.folder / CANDIDATES),
        ("all detections, with reasons", result.folder / DETECTIONS),
        ("cutouts of the candidates", result.folder / CUTOUTS),
        *((f"{name} image, sky subtracted", result.folder / f"{name}.fits.fz") for name in PLANES[:2]),
        ("difference image", result.folder / f"{PLANES[2]}.fits.fz"),
        ("the second epoch", pair.science),
        ("the first epoch", pair.reference),
        ("what was put in", pair.science.parent / TRUTH_NAME),
    ]


def _commands(pair: Pair, place: Path) -> list[tuple[str, str]]:
    """How the same is done by hand."""
    return [
        (
            "search",
            f"tapetum images search {pair.science} --reference {pair.reference} -o {place} --keep all",
        ),
        ("completeness", f"tapetum images completeness {place}"),
        (
            "other sources",
            f"tapetum images simulate {pair.reference} -o simulated --kinds transient,streak",
        ),
    ]
