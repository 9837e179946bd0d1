"""The quality page of one searched image: what was done, how well, and the best candidates.

Pure but for `write_quality_page`: results in, a page out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.finders.transients import CandidateFlag
from tapetum.images.contaminants import Contaminant
from tapetum.pipelines.candidates import VETOES
from tapetum.report.curves import histogram_svg
from tapetum.report.page import (
    Card,
    Cards,
    Column,
    Fact,
    Facts,
    Figure,
    Page,
    Rows,
    Section,
    Settings,
    write_page,
)
from tapetum.report.points import ACCENT, ACCENT_2, Points, Rings, image_svg, points_svg
from tapetum.report.stamps import data_uri, stamp_png

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from tapetum.images.subtract import Difference
    from tapetum.pipelines.search_steps import Prepared

    Image = NDArray[np.float32]

PREVIEW_PIXELS = 620  # of the longer side of a picture of a whole image
MOST_ROWS = 500  # of the ranking on the page
MOST_RINGS = 300  # on a picture; more hide what they mark
PICTURES = ("science", "template", "difference")
GONE = "var(--band-r, #cc3333)"


@dataclass(frozen=True)
class Exhibit:
    """A candidate with its stamps: science, template, difference, shape (3, size, size)."""

    row: dict[str, Any]
    stamps: Image


@dataclass(frozen=True)
class QualityReport:
    """Everything that the page shows.

    Attributes
    ----------
    words
        Metadata of the tables.
    planes
        (science, template, difference), thinned out; None where there is none.
    step
        Pixels of the image per pixel of `planes`.
    science, reference
        For PSF and sky; `reference` may be None.
    difference
        For the figures of the subtraction; may be None.
    candidates, detections
        Tables of `tapetum.pipelines.candidates`.
    steps
        (name, seconds) of everything that was done.
    """

    words: dict[str, str]
    planes: tuple[Image | None, ...]
    step: int
    science: Prepared
    reference: Prepared | None
    difference: Difference | None
    candidates: pa.Table
    detections: pa.Table
    exhibits: Sequence[Exhibit]
    steps: Sequence[tuple[str, float]]
    lines: Sequence[str]
    toml: str


def preview_step(shape: tuple[int, int]) -> int:
    """Pixels per pixel of the preview of an image."""
    return max(1, math.ceil(max(shape) / PREVIEW_PIXELS))


def build_quality_page(report: QualityReport) -> Page:
    """The report as a page."""
    words = report.words
    sections: list[Section] = [
        Facts(_facts(report)),
        _gallery(report),
        *_pictures(report),
        _ranking(report),
        *_figures(report),
        *_kernel_figures(report),
        _vetoed(report),
        Settings("How this came about", _provenance(report), report.toml),
    ]
    against = f" against {words['reference']}" if words.get("reference") else ", without a reference"
    return Page(
        f"Search of {words['image']}", f"{words['source']}{against}.", sections, notice=_notice(report)
    )


def write_quality_page(path: Path, report: QualityReport) -> None:
    """Write the page; it appears whole."""
    write_page(path, build_quality_page(report))


def index_page(runs: Mapping[str, Mapping[str, Any]]) -> Page:
    """All searches of one folder.

    Parameters
    ----------
    runs
        Name of the image -> what its settings say of the run.
    """
    failed = sum("problem" in run for run in runs.values())
    facts = [
        Fact("images", f"{len(runs):,}"),
        Fact("candidates", f"{sum(int(run.get('n_candidates', 0)) for run in runs.values()):,}"),
        Fact("failed", f"{failed:,}", "the reason is in the table" if failed else ""),
    ]
    columns = [
        Column("image"),
        Column("candidates", "d"),
        Column("detections", "d"),
        Column("seconds", ".1f"),
        Column("page"),
        Column("problem"),
    ]
    rows = [
        (
            name,
            run.get("n_candidates"),
            run.get("n_detections"),
            run.get("seconds"),
            f"{name}/report.html" if "problem" not in run else f"{name}/search.log",
            run.get("problem", ""),
        )
        for name, run in runs.items()
    ]
    text = "Each image has a page of its own in the folder of its name."
    return Page("Searches", text, [Facts(facts), Rows("Images", columns, rows, shown=200)])


def _notice(report: QualityReport) -> str:
    heard = [line.partition("warning: ")[2] for line in report.lines if "warning: " in line]
    return "; ".join(dict.fromkeys(heard))


def _number(words: dict[str, str], key: str, spec: str, nothing: str = "unknown") -> str:
    try:
        value = float(words.get(key, "nan"))
    except ValueError:
        value = math.nan
    return format(value, spec) if math.isfinite(value) else nothing


def _facts(report: QualityReport) -> list[Fact]:
    words, n, all_of = report.words, len(report.candidates), len(report.detections)
    sky = report.science
    facts = [
        Fact("candidates", f"{n:,}", f"of {all_of:,} detections, {all_of - n:,} ruled out"),
        Fact("depth", _number(words, "mag_limit", ".2f"), "mag, 5 sigma of a point source"),
        Fact("zero point", _number(words, "zero_point", ".3f"), f"mag, {words.get('zero_point_origin', '')}"),
        Fact("seeing", f"{sky.psf.quality.fwhm_pix:.2f} px", _seeing_note(sky)),
        Fact("sky", f"{sky.sky:.4g} DN", f"noise {float(np.median(sky.plane.noise[::8, ::8])):.3g} DN"),
    ]
    if report.reference is not None:
        q = report.reference.psf.quality
        facts.append(Fact("seeing of the reference", f"{q.fwhm_pix:.2f} px", f"{q.n_stars} stars"))
    if report.difference is not None:
        q2 = report.difference.quality
        note = f"{report.difference.method}, {report.difference.convolved} convolved"
        facts.append(
            Fact("stars subtracted to", f"{100 * q2.core_residual:.1f} %", "rms in the core over the peak")
        )
        facts.append(Fact("chi2", f"{q2.chi2:.2f}", f"{q2.n_stars} stars, {note}"))
        facts.append(Fact("noise", f"{q2.noise_ratio:.2f}", "measured over expected, difference image"))
    seconds = sum(seconds for _, seconds in report.steps)
    facts.append(Fact("time", f"{seconds:.1f} s", "up to this page"))
    return facts


def _seeing_note(image: Prepared) -> str:
    said = image.info.fwhm_pix
    header = "" if said is None else f"; the header says {said:.2f}"
    return f"FWHM of the PSF of {image.psf.quality.n_stars} stars{header}"


def _gallery(report: QualityReport) -> Cards:
    cards = [_card(exhibit) for exhibit in report.exhibits]
    text = (
        "The best candidates: by probability where a network has judged them, by signal-to-noise ratio where none has. "
        "North is where the image has it. Hatched pixels have no value."
    )
    return Cards("Best candidates", cards, text, nothing="No candidate survives the vetoes.")


def _card(exhibit: Exhibit) -> Card:
    row = exhibit.row
    stamps = [
        (name, data_uri(stamp_png(plane)))
        for name, plane in zip(PICTURES, exhibit.stamps, strict=True)
        if np.isfinite(plane).any()
    ]
    level = row["probability"] if row["probability"] is not None else row["score"]
    values = [
        (row["band"] or "mag", _brightness(row["mag"], row["mag_err"])),
        ("S/N", f"{row['snr']:.1f}"),
        ("x, y", f"{row['x']:.1f}, {row['y']:.1f}"),
        ("change", "brighter" if row["sign"] > 0 else "fainter"),
    ]
    if row["ra"] is not None:
        values += [("ra", f"{row['ra']:.5f}°"), ("dec", f"{row['dec']:+.5f}°")]
    if row["fwhm"] is not None:
        values.append(("FWHM", f"{row['fwhm']:.1f} px, a star {row['fwhm_psf']:.1f}"))
    if row["length_pix"]:
        values.append(("trail", f"{row['length_pix']:.1f} px at {row['angle_deg']:.0f}°"))
    if row["match"]:
        values.append(("known", row["match"]))
    if row["contaminants"]:
        values.append(("contaminated", contaminant_words(row["contaminants"])))
    score = f"S/N {row['snr']:.0f}" if level is None else f"{level:.3f}"
    return Card(row["candidate_id"], row["candidate_id"], score, level, stamps, values=values)


def _brightness(mag: float | None, error: float | None) -> str:
    """A magnitude with as many digits as its error needs; words where nothing tells the zero point.

    >>> _brightness(13.1625, 0.0018), _brightness(20.4, 0.21), _brightness(None, None)
    ('13.1625 ± 0.0018', '20.40 ± 0.21', 'no zero point')
    """
    if mag is None or error is None:
        return "no zero point"
    digits = 2 if error >= 0.0995 else 3 if error >= 0.00995 else 4
    return f"{mag:.{digits}f} ± {error:.{digits}f}"


def _pictures(report: QualityReport) -> list[Figure]:
    """Previews with the candidates marked on the science and the difference image."""
    marked = report.candidates.slice(0, MOST_RINGS)
    x, y, sign = (marked[name].to_numpy() for name in ("x", "y", "sign"))
    of = len(report.candidates)
    which = "candidates" if of <= MOST_RINGS else f"the best {MOST_RINGS} of {of:,} candidates"
    rings = [Rings(x[sign > 0], y[sign > 0], ACCENT_2), Rings(x[sign < 0], y[sign < 0], GONE)]
    out = []
    for name, plane in zip(PICTURES, report.planes, strict=True):
        if plane is None:
            continue
        marks = [] if name == "template" else rings
        text = (f"Means of {report.step} x {report.step} pixels. " if report.step > 1 else "") + (
            f"Rings are {which}: ochre is brighter than before, red is fainter." if marks else ""
        )
        svg = image_svg(plane, marks, step=report.step, title=f"{name} image", width=PREVIEW_PIXELS)
        out.append(Figure(f"{name.capitalize()} image", svg, text))
    return out


def _ranking(report: QualityReport) -> Rows:
    columns = [
        Column("rank", "d"),
        Column("id"),
        Column("probability", ".3f"),
        Column("S/N", ".1f"),
        Column("mag", ".3f"),
        Column("error", ".4f", "mag"),
        Column("x", ".1f"),
        Column("y", ".1f"),
        Column("ra", ".5f", "deg"),
        Column("dec", "+.5f", "deg"),
        Column("FWHM", ".2f", "pixel, by adaptive moments, as fwhm_psf in the table"),
        Column("change"),
        Column("known"),
        Column("contaminants", "", "of the science image there"),
        Column("flags"),
    ]
    shown = {exhibit.row["candidate_id"] for exhibit in report.exhibits}
    rows, targets = [], []
    for rank, row in enumerate(report.candidates.slice(0, MOST_ROWS).to_pylist(), 1):
        numbers = [
            row[name] for name in ("probability", "snr", "mag", "mag_err", "x", "y", "ra", "dec", "fwhm")
        ]
        change = "brighter" if row["sign"] > 0 else "fainter"
        below = contaminant_words(row["contaminants"] or 0)
        words = (change, row["match"], below, _flag_words(row["flags"]))
        rows.append((rank, row["candidate_id"], *numbers, *words))
        targets.append(row["candidate_id"] if row["candidate_id"] in shown else None)
    text = f"The best {MOST_ROWS}; all are in candidates.ecsv." if len(report.candidates) > MOST_ROWS else ""
    return Rows("Ranking", columns, rows, text, nothing="No candidate survives.", targets=targets)


def contaminant_words(codes: int) -> str:
    """Names of the classes in a code; empty for none.

    >>> contaminant_words(65)
    'CR, TRL'
    """
    return ", ".join(str(code.name) for code in Contaminant if codes & code)


def _flag_words(flags: int) -> str:
    return ", ".join(flag.name.lower() for flag in CandidateFlag if flag.name and flags & flag)


def _figures(report: QualityReport) -> list[Figure]:
    kept, everything = (
        np.log10(np.maximum(t["snr"].to_numpy(), 1e-3)) for t in (report.candidates, report.detections)
    )
    if not len(everything):
        return []
    edges = np.linspace(float(everything.min()) - 0.05, float(everything.max()) + 0.05, 31)
    series = [
        ("detections", np.histogram(everything, edges)[0], ACCENT_2),
        ("candidates", np.histogram(kept, edges)[0], ACCENT),
    ]
    svg = histogram_svg(edges, series, x_label="S/N", y_label="number", x_log=True)
    return [Figure("Signal-to-noise ratios", svg, "Detections, and those that nothing rules out.")]


def _kernel_figures(report: QualityReport) -> list[Figure]:
    """The PSFs as radial profiles, and the kernel over the field."""
    series = [_profile("science", report.science, ACCENT)]
    if report.reference is not None:
        series.append(_profile("reference", report.reference, ACCENT_2))
    svg = points_svg(series, x_label="distance from the centre [pixel]", y_label="PSF / peak", zero_line=True)
    out = [Figure("PSF", svg, "In the middle of the field.")]
    kernel = None if report.difference is None else report.difference.kernel
    if kernel is not None:
        n_y, n_x = report.science.plane.data.shape
        nodes = [(u * n_x, v * n_y) for v in (0.9, 0.5, 0.1) for u in (0.1, 0.5, 0.9)]
        stamps = kernel.at(np.array([x for x, _ in nodes]), np.array([y for _, y in nodes]))
        tiles = np.pad(stamps, ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
        rows = [np.concatenate(list(tiles[start : start + 3]), axis=1) for start in (6, 3, 0)]
        picture = image_svg(
            np.concatenate(rows, axis=0), title="matching kernel", stretch="linear", width=300
        )
        text = "Nine places of the field. A kernel that differs much from one to the next follows noise."
        out.append(Figure("Matching kernel", picture, text))
    return out


def _profile(name: str, image: Prepared, colour: str) -> Points:
    n_y, n_x = image.psf.shape
    fine = image.psf.fine(n_x / 2, n_y / 2, 4)
    middle = fine.shape[0] // 2
    line = fine[middle, middle:] / fine.max()
    reach = min(len(line), 4 * 12)
    return Points(name, np.arange(reach) / 4, line[:reach].astype(np.float64), colour=colour, line=True)


def _vetoed(report: QualityReport) -> Rows:
    flags = report.detections["flags"].to_numpy()
    vetoes = [flag for flag in CandidateFlag if flag.name and flag & VETOES]
    rows = [(str(flag.name).lower(), int(((flags & int(flag)) != 0).sum())) for flag in vetoes]
    text = (
        "Why detections are no candidates; a detection may have several reasons. All are in detections.ecsv."
    )
    return Rows("Ruled out", [Column("reason"), Column("detections", "d")], rows, text)


def _provenance(report: QualityReport) -> list[tuple[str, str]]:
    words = {key: value for key, value in report.words.items() if value}
    took = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in report.steps if seconds >= 0.005)
    return [*words.items(), ("time", took)]
