"""The page of the demo's second part: what was put into an image, what a search found of it, and what it missed.

Pure: figures and stamps in, a page out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tapetum.pipelines.completeness_report import plots
from tapetum.pipelines.demo_masks import mask_sections
from tapetum.report.page import (
    Card,
    Cards,
    Column,
    Dot,
    Fact,
    Facts,
    Figure,
    Link,
    Page,
    Rows,
    Section,
    Settings,
    Text,
)
from tapetum.report.points import Rings, image_svg
from tapetum.report.stamps import data_uri, stamp_png

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.pipelines.completeness import Completeness
    from tapetum.pipelines.demo_masks import MaskReport

    Image = NDArray[np.float32]

PICTURES = ("science", "template", "difference")
PREVIEW_WIDTH = 620  # of the picture of a whole image [px]
FOUND_SHOWN, MISSED_SHOWN, FALSE_SHOWN = 12, 12, 6
TRAILS_SHOWN = 3  # of the recovered ones, first in the gallery
# on grey pictures, whatever the ground of the page
FOUND, MISSED, FALSE = "#35c6f4", "#ff5b4d", "#ffd23f"
REAL = (
    "The first epoch is real: a quadrant of the Zwicky Transient Facility, from the sample ztf-quadrant. The second "
    "epoch was not observed: it is simulated from the first, and the sources in it are, too."
)
SIMULATED = "Both epochs are simulated, not observed: {}"
LEGEND = "Science is the second epoch, template the first; hatched pixels have no value."
NOISE = (
    "An image contains its noise, and whatever is made from it would repeat it. So where the first epoch shows no "
    "source its pixels are replaced by smooth sky with new noise; where it shows one, the pixels are kept, and the "
    "new noise is made larger by what theirs would hide. The difference of the two is as noisy as that of two "
    "exposures, so depth and completeness are what two such nights would give."
)
TOO_EASY = (
    "What two nights have beyond that is missing: stars that vary, asteroids, another focus, coordinates that "
    "disagree. Expect more false candidates from real nights than from this one."
)
SCENE = (
    "Stars, galaxies, sky and noise of both epochs are drawn independently, with a PSF that varies over the field and "
    "coordinates that disagree a little; no star varies, so that every false candidate is a fault."
)


@dataclass(frozen=True)
class Candidate:
    """A candidate of the search; `sign` is -1 where something became fainter, units as in `candidates.ecsv`."""

    candidate_id: str
    x: float
    y: float
    snr: float
    sign: int
    mag: float | None
    mag_err: float | None
    cause: str = ""
    """The artefact that was put in there; empty where there was none."""

    @property
    def anchor(self) -> str:
        """Name of its picture on the page."""
        return self.candidate_id


@dataclass(frozen=True)
class Injected:
    """A source that was put in, and its fate.

    Attributes
    ----------
    number
        1, 2, ...
    mag
        Of all its light.
    x, y
        [pixel].
    snr
        Of an ideal detection in the second epoch alone.
    length_pix
        Of a trail.
    on_galaxy
        Whether it was put onto a galaxy.
    found
        The candidate that it is; None: missed.
    reason
        Why it was missed; empty where it was not.
    """

    number: int
    kind: str
    mag: float
    x: float
    y: float
    snr: float
    length_pix: float
    on_galaxy: bool
    found: Candidate | None
    reason: str = ""

    @property
    def anchor(self) -> str:
        """Name of its picture on the page."""
        return f"source-{self.number}"


@dataclass(frozen=True)
class ImagesReport:
    """Everything that the page shows.

    Attributes
    ----------
    why_simulated
        Why the first epoch is not an observed one; empty where it is.
    words
        Metadata of the search's tables.
    figures
        Completeness and purity.
    injected, false
        Sources that were put in, and candidates that nobody put in.
    planes
        Science, template and difference, thinned out by `step`.
    stamps
        Anchor -> science, template, difference, shape (3, n_y, n_x).
    seconds
        Step -> wall time [s]; None where nobody noted it.
    files
        What it is, and where it lies.
    commands
        What it does, and how it is typed.
    provenance
        (name, value) pairs.
    masks
        Contaminants of the first epoch where it is an observed one, else of the second; None where no network for them
        is installed.
    """

    why_simulated: str
    words: Mapping[str, str]
    figures: Completeness
    injected: Sequence[Injected]
    false: Sequence[Candidate]
    planes: tuple[Image, ...]
    step: int
    stamps: Mapping[str, Image]
    seconds: Mapping[str, float | None]
    files: Sequence[tuple[str, Path]]
    commands: Sequence[tuple[str, str]]
    provenance: Sequence[tuple[str, str]]
    masks: MaskReport | None = None

    @property
    def real(self) -> bool:
        """Whether the first epoch was observed."""
        return not self.why_simulated

    def counts(self, kind: str) -> tuple[int, int]:
        """How many of a kind were found, and how many there are."""
        own = [source for source in self.injected if source.kind == kind]
        return sum(source.found is not None for source in own), len(own)


@dataclass(frozen=True)
class Choice:
    """Which sources are worth a picture."""

    found: list[Injected]
    missed: list[Injected]

    @property
    def all(self) -> list[Injected]:
        """All of them."""
        return [*self.found, *self.missed]


def choose(injected: Sequence[Injected]) -> Choice:
    """Pick sources for the gallery.

    Of the recovered the brightest that moved, then point sources from bright to faint; of the missed the brightest.
    """
    by_mag = sorted(injected, key=lambda source: source.mag)
    found = [source for source in by_mag if source.found is not None]
    trails = [source for source in found if source.kind != "transient"]
    trails = sorted(trails, key=lambda source: source.kind)[:TRAILS_SHOWN]  # a comet first
    points = [source for source in found if source.kind == "transient"]
    n_points = min(FOUND_SHOWN - len(trails), len(points))
    rows = np.linspace(0, len(points) - 1, n_points).round().astype(int).tolist()
    missed = [source for source in by_mag if source.found is None]
    return Choice([*trails, *(points[row] for row in rows)], missed[:MISSED_SHOWN])


def summary(report: ImagesReport) -> str:
    """What was found, in one line."""
    parts = []
    for kind in dict.fromkeys(source.kind for source in report.injected):
        found, total = report.counts(kind)
        parts.append(f"{found} of {_count(total, kind)}")
    where = "a real ZTF quadrant" if report.real else "a simulated scene"
    counts = {} if report.masks is None else report.masks.counts
    masked = ", ".join(f"{name} {n}" for name, n in counts.items())
    return (
        f"{', '.join(parts)} found in a second epoch of {where}, {_n_missed(report)} missed; "
        f"50 % depth {_depth(report, 50)} mag; {len(report.false)} false candidates"
        + (f"; contaminated pixels: {masked}" if masked else "")
    )


def headline(report: ImagesReport, address: str) -> Facts:
    """The result for the first part's page, with the way to this one."""
    what = (
        "A real ZTF quadrant, and a second epoch that was simulated from it"
        if report.real
        else "A simulated scene"
    )
    text = f"{what}: aligned, subtracted, searched, and compared with what had been put in. "
    way = Link("Open part 2: what was found, and what was missed", address)
    return Facts(_facts(report)[:4], "Part 2: images", (text, way))


def build_images_page(report: ImagesReport, home: Path, back: str) -> Page:
    """The page.

    Parameters
    ----------
    home
        The folder of the page: files below it are linked.
    back
        Address of the first part.
    """
    choice = choose(report.injected)
    title, svg, text = plots(report.figures)["completeness_mag"]
    sections: list[Section] = [
        Facts(_facts(report)),
        _picture(report, 0, "The second epoch", "Means of {0} x {0} pixels. "),
        _gallery(
            report,
            "Recovered",
            choice.found,
            "Trails first, then transients from bright to faint. " + LEGEND,
        ),
        _gallery(
            report,
            "Missed",
            choice.missed,
            "The brightest first, with the reason as far as the search knows it.",
        ),
        _false(report),
        Figure(title, svg, text),
        _picture(
            report, 2, "The difference", "What is left of the same field once the first epoch is subtracted. "
        ),
        _table(report, choice),
        *([] if report.masks is None else mask_sections(report.masks, _masked_title(report))),
        _making(report),
        _files(report, home),
        Settings("How this came about", [*report.provenance, *_words(report)]),
    ]
    subtitle = ("Part 2 of the demo. ", Link("Back to part 1: alerts", back))
    notice = REAL if report.real else SIMULATED.format(report.why_simulated)
    return Page("A second night, searched", subtitle, sections, notice=notice)


def _masked_title(report: ImagesReport) -> str:
    return f"The {'first' if report.real else 'second'} epoch, masked"


def _n_missed(report: ImagesReport) -> int:
    return sum(source.found is None for source in report.injected)


def _depth(report: ImagesReport, percent: int) -> str:
    depth = report.figures.depth.get(("point", "all"))
    mag = math.nan if depth is None else {50: depth.mag50, 90: depth.mag90}[percent]
    return f"{mag:.2f}" if math.isfinite(mag) else "not reached"


def _facts(report: ImagesReport) -> list[Fact]:
    found, total = report.counts("transient")
    moving = [(kind, *report.counts(kind)) for kind in ("streak", "comet")]
    words = ", ".join(f"{own} of {_count(n, kind)}" for kind, own, n in moving if n)
    n_y, n_x = report.words.get("shape", "0 0").split()
    facts = [
        Fact("transients found", f"{found}", f"of {total} that were put in"),
        Fact("50 % depth", _depth(report, 50), f"mag; 90 %: {_depth(report, 90)}"),
        Fact("false candidates", f"{len(report.false)}", f"of {len(report.figures.recovery.candidates)}"),
        Fact("search", _took(report, "search"), f"{n_x} x {n_y} pixels, from files to its page"),
        Fact("moving sources found", f"{sum(own for _, own, _ in moving)}", words),
    ]
    limit = _limit(report)
    if limit is not None:
        facts.append(Fact("5 sigma limit", f"{limit:.2f}", "mag, of the noise, for a point source"))
    if report.seconds.get("second epoch") is not None:
        facts.append(Fact("second epoch made in", _took(report, "second epoch"), "sky, noise, PSF, sources"))
    return facts


def _count(n: int, kind: str) -> str:
    return f"{n} {kind}{'s' if n != 1 else ''}"


def _took(report: ImagesReport, step: str) -> str:
    seconds = report.seconds.get(step)
    return "unknown" if seconds is None else f"{seconds:.1f} s"


def _limit(report: ImagesReport) -> float | None:
    try:
        return float(report.words.get("mag_limit", ""))
    except ValueError:
        return None


def _picture(report: ImagesReport, which: int, title: str, text: str) -> Figure:
    found = [source for source in report.injected if source.found is not None]
    missed = [source for source in report.injected if source.found is None]
    rings: list[Rings] = []
    legend: list[str | Link | Dot] = []
    for places, colour, word in (
        (found, FOUND, "recovered"),
        (missed, MISSED, "missed"),
        (report.false, FALSE, "false"),
    ):
        x, y = np.array([one.x for one in places]), np.array([one.y for one in places])
        rings.append(Rings(x, y, colour, name=word))
        legend += [Dot(colour), f" {len(places)} {word}. "]
    svg = image_svg(report.planes[which], rings, step=report.step, title=title, width=PREVIEW_WIDTH)
    return Figure(title, svg, [text.format(report.step), *legend])


def _gallery(report: ImagesReport, title: str, sources: Sequence[Injected], text: str) -> Cards:
    nothing = "Everything was found." if title == "Missed" else "Nothing was found."
    return Cards(
        title, [_card(source, report.stamps[source.anchor]) for source in sources], text, nothing=nothing
    )


def _card(source: Injected, stamps: Image) -> Card:
    values = [("put in", f"{source.mag:.2f} mag")]
    if source.found is not None:
        values.append(("measured", _measured(source.found)))
    values += [("expected S/N", f"{source.snr:.1f}"), ("x, y", f"{source.x:.1f}, {source.y:.1f}")]
    if source.length_pix:
        values.append(("trail", f"{source.length_pix:.0f} px"))
    if source.on_galaxy:
        values.append(("lies on", "a galaxy"))
    score = source.reason if source.found is None else f"S/N {source.found.snr:.0f}"
    return Card(
        source.anchor, f"{source.kind} {source.number}", score, None, _pictures(stamps), values=values
    )


def _measured(candidate: Candidate) -> str:
    if candidate.mag is None:
        return "no magnitude"
    return f"{candidate.mag:.2f}" + ("" if candidate.mag_err is None else f" ± {candidate.mag_err:.2f}")


def _pictures(stamps: Image) -> list[tuple[str, str]]:
    return [
        (name, data_uri(stamp_png(plane)))
        for name, plane in zip(PICTURES, stamps, strict=True)
        if np.isfinite(plane).any()
    ]


def _false(report: ImagesReport) -> Cards:
    particles = sum(candidate.cause == "cosmic ray" for candidate in report.false)
    cards = [
        Card(
            candidate.anchor,
            candidate.candidate_id,
            f"S/N {candidate.snr:.1f}",
            None,
            _pictures(report.stamps[candidate.anchor]),
            values=[
                ("measured", _measured(candidate)),
                ("x, y", f"{candidate.x:.1f}, {candidate.y:.1f}"),
                ("change", "brighter" if candidate.sign > 0 else "fainter"),
                ("shows", candidate.cause or "nothing known"),
            ],
        )
        for candidate in report.false[:FALSE_SHOWN]
    ]
    text = (
        f"{len(report.false)} candidates that are no source that was put in, the most significant first; {particles} "
        "of them are hits of cosmic particles, which were put in as well. The search ranks by signal-to-noise ratio, "
        "so they come late; a network will judge them as that of part 1 judges alerts."
    )
    return Cards("False candidates", cards, text, nothing="There is none.")


def _table(report: ImagesReport, choice: Choice) -> Rows:
    columns = [
        Column("number", "d"),
        Column("kind"),
        Column("mag", ".2f", "put in"),
        Column("became"),
        Column("measured", ".2f", "mag"),
        Column("S/N", ".1f", "of the candidate"),
        Column("expected S/N", ".1f", "of an ideal detection in the second epoch alone"),
        Column("x", ".1f"),
        Column("y", ".1f"),
        Column("on a galaxy"),
    ]
    shown = {source.anchor for source in choice.all}
    rows = [
        (
            s.number,
            s.kind,
            s.mag,
            "recovered" if s.found is not None else s.reason,
            None if s.found is None else s.found.mag,
            None if s.found is None else s.found.snr,
            s.snr,
            s.x,
            s.y,
            "yes" if s.on_galaxy else "",
        )
        for s in report.injected
    ]
    targets = [s.anchor if s.anchor in shown else None for s in report.injected]
    text = "Every source. A heading sorts; a linked number has a picture above."
    return Rows("All that was put in", columns, rows, text, targets=targets)


def _making(report: ImagesReport) -> Facts:
    mags = [source.mag for source in report.injected]
    on = sum(source.on_galaxy for source in report.injected)
    facts = [
        Fact(
            f"{kind}s",
            f"{report.counts(kind)[1]}",
            f"{on} on galaxies, by their light" if kind == "transient" else "",
        )
        for kind in dict.fromkeys(source.kind for source in report.injected)
    ]
    facts.append(Fact("magnitudes", f"{min(mags):.1f} to {max(mags):.1f}", "drawn evenly"))
    text = f"{NOISE} {TOO_EASY}" if report.real else SCENE
    more = " Hits of cosmic particles were put in as well: to report one is a fault."
    return Facts(facts, "What the second epoch is, and is not", text + more)


def _files(report: ImagesReport, home: Path) -> Settings:
    values: list[tuple[str, Text]] = []
    for words, path in report.files:
        inside = path.is_relative_to(home)
        there = [Link(path.name, path.relative_to(home).as_posix())] if inside else str(path)
        values.append((words, there))
    values += [(f"{words}, by hand", command) for words, command in report.commands]
    return Settings("Files, and how to do it yourself", values)


def _words(report: ImagesReport) -> list[tuple[str, str]]:
    """What the search says of the image, for people."""
    machine = ("flags", "notes", "tapetum", "image")
    return [
        (key.replace("_", " "), value) for key, value in report.words.items() if value and key not in machine
    ]
