"""`tapetum images search`, `cutouts` and `completeness`: from images to ranked candidates, and what they are worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tapetum.cli.common import (
    CatalogueOption,
    ConvolveOption,
    ImagesArgument,
    JobsOption,
    MaskOption,
    OverwriteOption,
    SchedulerOption,
    SubtractionOption,
    TelescopeOption,
    progress_bar,
    say,
    settings_of,
    telescope_of,
    warn,
)
from tapetum.cli.images_common import end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapetum.pipelines.search import Outcome

ResultsArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder that `tapetum images search -o` wrote.")
]
RadiusOption = Annotated[
    float, typer.Option("--radius", min=0, help="A candidate this near to a simulated source is it [arcsec].")
]
TruthOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--truth",
        exists=True,
        help="Truth table (simulated_objects.list, *_truth.json) or folder of them, for images that carry none; "
        "may be repeated.",
    ),
]


def search(
    context: typer.Context,
    images: ImagesArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results, one folder per image.")],
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|DIR|ps1|ztf|hips:ID",
            help="Reference: a file, a folder to choose from by sky and band, or an archive; may be repeated. "
            "Without it the science image itself is searched.",
        ),
    ] = None,
    cells: Annotated[
        Literal["mosaic", "individual"],
        typer.Option(help="Several reference images of one field: one mosaic, or a difference each."),
    ] = "mosaic",
    subtraction: SubtractionOption = "kernel",
    convolve: ConvolveOption = "auto",
    threshold: Annotated[float, typer.Option(min=1, help="Least significance of a detection [sigma].")] = 5.0,
    fwhm_ratio: Annotated[
        tuple[float, float], typer.Option(metavar="LO HI", help="Width of a candidate over a star's.")
    ] = (0.5, 5.0),
    known: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|NAME", help="Known objects: a table, or a name as for --catalogue; may be repeated."
        ),
    ] = None,
    match_radius: Annotated[
        float, typer.Option(min=0, help="A candidate this near to a known object is it [arcsec].")
    ] = 2.0,
    drop_known: Annotated[
        bool | None,
        typer.Option(
            "--drop-known/--keep-known",
            help="Leave known objects out; without either: only when there is no reference.",
        ),
    ] = None,
    catalogue: CatalogueOption = None,
    refine_wcs: Annotated[
        bool, typer.Option("--refine-wcs", help="Correct the WCS by the catalogue.")
    ] = False,
    telescope: TelescopeOption = None,
    mask: MaskOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Network that scores; without it `transients`, or none where that is not installed."
        ),
    ] = None,
    contaminants: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|FILE|DIR|none",
            help="Who says what contaminates the images: a network, masks of `images mask`, or nobody. Without it "
            "X.masks.fits beside X.fits, else the network `contaminants` where that is installed.",
        ),
    ] = None,
    fwhm: Annotated[
        float | None,
        typer.Option(
            "--fwhm",
            min=0.5,
            max=200,
            help="Width of a star where an image has none that shows it [pixel]; without it what the header says.",
        ),
    ] = None,
    cutouts: Annotated[
        Literal["fits", "none"] | None,
        typer.Option(help="A FITS file per candidate, or none; without it only when there is a reference."),
    ] = None,
    cutout_size: Annotated[int, typer.Option(min=5, max=1001, help="Side of a cutout [pixel].")] = 63,
    keep: Annotated[
        Literal["difference", "all", "none"],
        typer.Option(help="Images to keep: the difference, science and template too, or none."),
    ] = "difference",
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Search images for what is new, gone or changed: align, subtract, detect, veto, match, rank.

    Each image gets a folder with candidates.ecsv, detections.ecsv (all, with the reason of each veto), report.html,
    cutouts/, the difference image, settings.toml and search.log. Finished images are skipped.

    Example: tapetum images search night/*.fits.fz --reference references/ -o results --jobs 2
    """
    from tapetum.images.fits import expand_sources
    from tapetum.pipelines.candidates import VetoLimits
    from tapetum.pipelines.search import SearchOptions, write_index
    from tapetum.pipelines.search import search as search_images
    from tapetum.pipelines.steps import planes_of

    settings = settings_of(context, jobs=jobs, scheduler=scheduler)
    telescope_of(telescope)
    _check_ratio(fwhm_ratio)
    _check_pairs(catalogue, known, refine_wcs=refine_wcs, drop_known=bool(drop_known))
    options = SearchOptions(
        references=tuple(reference or ()),
        cells=cells,
        method=subtraction,
        convolve=convolve,
        threshold=threshold,
        limits=VetoLimits(fwhm_ratio=fwhm_ratio),
        telescope=telescope,
        mask=None if mask is None else str(mask),
        catalogue=catalogue,
        refine_wcs=refine_wcs,
        known=tuple(known or ()),
        match_radius_arcsec=match_radius,
        drop_known=drop_known,
        model=model,
        contaminants=contaminants,
        cutouts=cutouts,
        cutout_size=cutout_size,
        keep=keep,
        fwhm_pix=fwhm,
    )
    problems: list[str] = []
    sources = planes_of(expand_sources(images, rejected=problems.append))
    with progress_bar("searching images") as progress:
        outcomes = search_images(
            sources,
            out,
            options,
            settings,
            jobs=settings.jobs,
            scheduler=settings.scheduler,
            cluster=settings.cluster,
            overwrite=overwrite,
            progress=progress,
        )
    if outcomes:
        write_index(out)
    _tell(outcomes, problems)


def _check_ratio(ratio: tuple[float, float]) -> None:
    from tapetum.core.errors import UsageError

    if not 0 <= ratio[0] < ratio[1]:
        raise UsageError(f"--fwhm-ratio {ratio[0]:g} {ratio[1]:g}: give the lower end first")


def _check_pairs(
    catalogue: str | None, known: Sequence[str] | None, *, refine_wcs: bool, drop_known: bool
) -> None:
    """Options that do nothing without another."""
    from tapetum.core.errors import UsageError

    if refine_wcs and catalogue is None:
        raise UsageError("--refine-wcs needs --catalogue: by whose stars shall the WCS be corrected?")
    if drop_known and not known:
        raise UsageError("--drop-known needs --known: which objects are known?")


def _tell(outcomes: Sequence[Outcome], problems: Sequence[str]) -> None:
    """Say what became of each image, and end with the exit status for some or for all."""
    from tapetum.pipelines.steps import told

    reasons = list(problems)
    for outcome in outcomes:
        if outcome.warnings:
            _warn_of(_warnings(outcome))
        if outcome.problem is not None:
            reasons.append(told(outcome.source, outcome.problem))
        elif outcome.skipped:
            say(f"{outcome.folder}: finished already; --overwrite makes it again")
        else:
            say(
                f"{outcome.source}: {outcome.n_candidates} candidates of {outcome.n_detections} detections"
                f" in {outcome.seconds:.1f} s -> {outcome.folder}"
            )
    n_done = sum(outcome.problem is None for outcome in outcomes)
    end(reasons, n_done, "searched")


def _warnings(outcome: Outcome) -> str:
    """All warnings of an image in one line; what the problem says is not said twice."""
    own = [text.removeprefix(f"{outcome.source}: ") for text in dict.fromkeys(outcome.warnings)]
    problem = (outcome.problem or "").removeprefix(f"{outcome.source}: ")
    new = [text for text in own if not problem or problem not in text]
    return f"{outcome.source}: {'; '.join(new)}" if new else ""


def _warn_of(*notes: str) -> None:
    for note in filter(None, notes):
        warn(note)


def cutouts(
    folder: ResultsArgument,
    training: Annotated[
        bool, typer.Option("--training", help="Sort into true/ and false/ by the truth tables.")
    ] = False,
    false: Annotated[
        bool, typer.Option("--false", help="With --training: what no truth explains is false.")
    ] = False,
    size: Annotated[
        int | None, typer.Option(min=5, max=1001, help="Side [pixel]; without it as the search cut them.")
    ] = None,
    radius: RadiusOption = 2.0,
    truth: TruthOption = None,
    every_detection: Annotated[
        bool, typer.Option("--all", help="Cut what was vetoed as well; the search must have kept its images.")
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Write the cutouts of all candidates into one folder: DIR/candidates/, or sorted into DIR/candidates_training/.

    With --training a candidate at the place of a simulated source of the same image goes to true/, the others wait
    beside true/ and false/ for a decision by eye, unless --false is given; crossmatch.dat says what was found.

    Example: tapetum images cutouts results --training --false
    """
    from tapetum.core.errors import UsageError
    from tapetum.pipelines.cutouts import make_cutouts
    from tapetum.pipelines.search_results import read_results, read_unsearched, truth_files, unsearched_words

    if (false or truth) and not training:
        raise UsageError("--false and --truth make sense only with --training")
    results = read_results(folder)
    files = truth_files(truth or [])
    with progress_bar("cutting") as progress:
        report = make_cutouts(
            folder,
            results,
            training=training,
            rest_is_false=false,
            every_detection=every_detection,
            size=size,
            radius_arcsec=radius,
            truth=files,
            overwrite=overwrite,
            progress=progress,
        )
    if training:
        _warn_of(unsearched_words(read_unsearched(folder, files), len(results)))
        say(
            f"{report.n_true} true, {report.n_false} false, {report.n_undecided} undecided; "
            f"{report.n_found} of {report.n_sources} simulated sources found"
        )
    say(f"{report.n_written} cutouts -> {report.folder}")
    end(report.complaints, len(results) - len(report.complaints), "cut")


def completeness(
    context: typer.Context,
    folder: ResultsArgument,
    truth: TruthOption = None,
    radius: RadiusOption = 2.0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the report; default: DIR/completeness.")
    ] = None,
) -> None:
    """Compare candidates with truth: completeness, purity, depth, residuals; tables, plots and a page.

    Example: tapetum images completeness results --truth truth/
    """
    import numpy as np

    from tapetum.pipelines.completeness import measure, recover
    from tapetum.pipelines.completeness_report import summary, write_report
    from tapetum.pipelines.cutouts import write_crossmatch
    from tapetum.pipelines.outputs import check_folder
    from tapetum.pipelines.search_results import read_results, read_unsearched, truth_files, unsearched_words

    settings = settings_of(context)
    target = out or folder / "completeness"
    check_folder(target)
    results = read_results(folder)
    files = truth_files(truth or [])
    recovery = recover(results, files, radius)
    left_out = len(results) - len(recovery.images)
    notes = [unsearched_words(read_unsearched(folder, files), len(results))]
    if left_out:
        notes.append(f"{left_out} of {len(results)} images have no truth table, and are left out")
    _warn_of(*notes)
    report = measure(recovery, np.random.default_rng(settings.seed))
    provenance: list[tuple[str, Any]] = [
        ("results", str(folder)),
        ("match radius", f"{radius:g} arcsec"),
        ("seed", str(settings.seed)),
    ]
    write_report(target, report, provenance, "; ".join(filter(None, notes)))
    write_crossmatch(folder, results, files, radius)
    say(f"{summary(report)} -> {target / 'report.html'}")
