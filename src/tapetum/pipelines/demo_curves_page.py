"""The page of the demo's third part: folded light curves, their periods and classes.

Pure: figures and points in, a page out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tapetum.report.curves import folded_svg, light_curve_svg
from tapetum.report.page import Card, Cards, Column, Fact, Facts, Link, Page, Rows, Section, Settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Values = NDArray[np.float64]

REAL = (
    "Real light curves of the MACHO survey, blue and red, from the sample macho-curves; magnitudes are instrumental. "
    "None of them was used to train the network."
)
SIMULATED = "These light curves are simulated, not observed: {}"
SAME_PERIOD = (
    0.01  # relative difference below which two periods are the same, or one a simple multiple of the other
)
LONG = 100.0  # d: above, the light curve is shown as it is, since few cycles were seen
DAILY = 0.003  # relative distance from a day, half or a third of it; a sidereal day is this near
MOST_SHOWN = 400  # points of a light curve that is not folded
SURE = -2.0  # log10 of the false-alarm probability below which a period is a period
HARD_SPACE = "\u00a0"  # a number does not part from its unit
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Known:
    """What is known of a star: where from, its class there, its period [d]."""

    origin: str
    kind: str
    period: float | None


@dataclass(frozen=True)
class Star:
    """One source with all its light curves.

    Attributes
    ----------
    ra, dec
        [deg]; None where not known.
    time, mag, mag_err : ndarray, shape (n,)
        All good points [d, mag, mag], sorted by time.
    band : list of str, length n
    period, period_err, log10_fap
        The final period [d], its error, and log10 of its false-alarm probability; None where there is none.
    aliases
        (relation, period [d]) of other peaks.
    classes
        (name, probability), the most probable first.
    class_set
        Names of the classes of the conformal set.
    two_minima
        Whether the class is one whose cycle has two minima.
    known
        What a catalogue says.
    """

    object_id: str
    ra: float | None
    dec: float | None
    time: Values
    band: list[str]
    mag: Values
    mag_err: Values
    period: float | None
    period_err: float | None
    log10_fap: float | None
    aliases: Sequence[tuple[str, float]]
    classes: Sequence[tuple[str, float]]
    class_set: Sequence[str]
    two_minima: bool = False
    known: Known | None = None

    @property
    def anchor(self) -> str:
        """Name of its picture on the page."""
        return f"star-{self.object_id}"

    @property
    def is_daily(self) -> bool:
        """Whether the period is a day, half or a third of it, as the rhythm of the observations makes them."""
        return self.period is not None and any(abs(self.period * times - 1) < DAILY for times in (1, 2, 3))

    @property
    def is_sure(self) -> bool:
        """Whether neither chance nor the rhythm of the observations would make the period."""
        sure = self.log10_fap is None or self.log10_fap < SURE
        return self.period is not None and sure and not self.is_daily

    @property
    def is_periodic(self) -> bool:
        """Whether the period is one, and short enough that cycles can be laid over each other."""
        return self.is_sure and self.period is not None and self.period < LONG

    @property
    def relation(self) -> str:
        """How the period is related to the known one; empty where there is none of either."""
        if self.known is None or not self.known.period or not self.period:
            return ""
        return relation_of(self.period, self.known.period)

    @property
    def folding_period(self) -> float | None:
        """The period, or twice it where that is a peak of its own and a cycle has two minima."""
        if self.two_minima and any(relation == "f/2" for relation, _ in self.aliases):
            return None if self.period is None else 2 * self.period
        return self.period


@dataclass(frozen=True)
class CurvesReport:
    """Everything that the page shows.

    Attributes
    ----------
    why_simulated
        Why the light curves are not observed; empty where they are.
    model, version
        What classified them.
    coverage
        Share of the stars whose true class the conformal sets are made to hold.
    stars
        The most certain class first.
    rejected
        (`lc_id`, why) of light curves that were not used.
    n_curves, n_points
        That were read.
    seconds
        Wall time of all of it [s]; None where it was finished before.
    provenance
        (name, value) pairs.
    files
        What was written.
    """

    why_simulated: str
    model: str
    version: str
    coverage: float
    stars: Sequence[Star]
    rejected: Sequence[tuple[str, str]]
    n_curves: int
    n_points: int
    seconds: float | None
    provenance: Sequence[tuple[str, str]]
    files: Sequence[Path] = ()


def relation_of(ours: float, theirs: float) -> str:
    """How a period is related to the one that is known: ``the same``, ``half``, ``twice``, or empty."""
    for factor, word in ((1.0, "the same"), (0.5, "half of it"), (2.0, "twice it")):
        if abs(ours / (factor * theirs) - 1) < SAME_PERIOD:
            return word
    return ""


def summary(report: CurvesReport) -> str:
    """What was found, in one line."""
    n_periodic = sum(star.is_periodic for star in report.stars)
    classes = Counter(star.classes[0][0] for star in report.stars)
    words = ", ".join(f"{n} {name}" for name, n in classes.most_common())
    what = "simulated" if report.why_simulated else "real"
    n = len(report.stars)
    return (
        f"{report.n_curves} {what} light curves, {n} stars classified: {n_periodic} with a period below {LONG:g} d; "
        f"{words}"
    )


def headline(report: CurvesReport, address: str) -> Facts:
    """The result for the first part's page, with the way to this one."""
    what = "Simulated light curves" if report.why_simulated else "Real light curves of the MACHO survey"
    way = Link("Open part 3: folded light curves", address)
    return Facts(_facts(report), "Part 3: light curves", (f"{what}: periods and classes. ", way))


def build_curves_page(report: CurvesReport, back: str) -> Page:
    """The page.

    Parameters
    ----------
    back
        Address of the first part.
    """
    periodic = [star for star in report.stars if star.is_periodic]
    rest = [star for star in report.stars if not star.is_periodic]
    folded = (
        "Two cycles, the most certain class first; all bands are searched together. Eclipsing stars are folded with "
        "twice the period where both fit, since their cycle has two minima."
    )
    sections: list[Section] = [
        Facts(_facts(report)),
        Cards("Periodic", [_card(star, report) for star in periodic], folded, nothing="None is."),
        Cards(
            "Irregular, or slower",
            [_card(star, report) for star in rest],
            f"No period below {LONG:g} d that neither chance nor the rhythm of the nights would make: against time.",
            nothing="None is.",
        ),
        _table(report),
        Rows(
            "Left out, and why",
            [Column("light curve"), Column("why")],
            report.rejected,
            nothing="Nothing: every light curve had enough good points.",
        ),
        Settings("How this came about", report.provenance),
    ]
    subtitle = ("Part 3 of the demo. ", Link("Back to part 1: alerts", back))
    notice = SIMULATED.format(report.why_simulated) if report.why_simulated else REAL
    return Page("Variable stars, folded and classified", subtitle, sections, notice=notice)


def _facts(report: CurvesReport) -> list[Fact]:
    n_periodic = sum(star.is_periodic for star in report.stars)
    sizes = [len(star.class_set) for star in report.stars]
    facts = [
        Fact(
            "light curves",
            f"{report.n_curves}",
            f"{len(report.stars)} stars classified, {report.n_points:,} points",
        ),
        Fact("periodic", f"{n_periodic}", f"below {LONG:g} d"),
        Fact(
            "classes left open",
            f"{np.mean(sizes):.1f}" if sizes else "none",
            f"per star, in sets made to hold the true one for {_percent(report.coverage)}",
        ),
    ]
    if report.seconds is not None:
        facts.append(
            Fact("periods and classes in", f"{report.seconds:.1f} s", f"{report.model} {report.version}")
        )
    known = [star for star in report.stars if star.known is not None and star.known.period]
    if known:
        n_found = sum(star.is_sure and bool(star.relation) for star in known)
        note = "the same, half or twice, of all periods that are known, however long"
        facts.append(Fact("known periods found", f"{n_found} of {len(known)}", note))
    return facts


def _percent(share: float) -> str:
    return f"{100 * share:.0f}{HARD_SPACE}%"


def _card(star: Star, report: CurvesReport) -> Card:
    name, probability = star.classes[0]
    values = [(label, _percent(value)) for label, value in star.classes[1:] if value >= 0.005]
    values.append((f"{_percent(report.coverage)} set", ", ".join(star.class_set)))
    if star.is_periodic or star.is_daily:
        values += _about_period(star)
    if star.known is not None:
        period = "" if star.known.period is None else f", {star.known.period:.7g} d"
        values.append(("known", f"{star.known.kind}{period} ({star.known.origin})"))
    if star.ra is not None and star.dec is not None:
        values += [("ra", f"{star.ra:.4f}°"), ("dec", f"{star.dec:+.4f}°")]
    values.append(("points", str(star.time.size)))
    return Card(
        anchor=star.anchor,
        title=star.object_id,
        score=f"{name} {_percent(probability)}",
        level=probability,
        stamps=(),
        curve=_curve(star),
        values=values,
    )


def _about_period(star: Star) -> list[tuple[str, str]]:
    assert star.period is not None
    values = [("period", f"{star.period:.7g} d")]
    if star.period_err is not None:
        values.append(("error", f"{star.period_err:.1g} d"))
    if star.log10_fap is not None:
        values.append(("by chance", "10" + f"{round(star.log10_fap)}".translate(SUPERSCRIPT)))
    if star.is_periodic and star.folding_period != star.period:
        values.append(("folded with", f"{star.folding_period:.7g} d"))
    if star.is_daily:
        values.append(("beware", "a fraction of a day may be the survey's own rhythm"))
    return values


def _curve(star: Star) -> str:
    period = star.folding_period
    if star.is_periodic and period is not None:
        return folded_svg(star.time, period, star.band, star.mag, star.mag_err)
    n = star.time.size
    rows = np.linspace(0, n - 1, min(n, MOST_SHOWN)).round().astype(int)
    none = np.full(rows.size, np.nan)
    bands = [star.band[row] for row in rows.tolist()]
    return light_curve_svg(star.time[rows], bands, star.mag[rows], star.mag_err[rows], none)


def _table(report: CurvesReport) -> Rows:
    columns = [
        Column("star"),
        Column("class"),
        Column("probability", ".2f"),
        Column("set", "", "classes that are not excluded"),
        Column("period", ".7g", "d"),
        Column("log10 FAP", ".0f", "that noise makes such a peak"),
        Column("points", "d"),
        Column("known as"),
        Column("known period", ".7g", "d"),
        Column("ours is"),
    ]
    rows = []
    for star in report.stars:
        known = star.known
        rows.append(
            (
                star.object_id,
                *star.classes[0],
                ", ".join(star.class_set),
                star.period,
                star.log10_fap,
                star.time.size,
                None if known is None else known.kind,
                None if known is None else known.period,
                star.relation,
            )
        )
    targets = [star.anchor for star in report.stars]
    return Rows("All stars", columns, rows, "A heading sorts; a star leads to its picture.", targets=targets)
