"""The report of a night of alerts: ranked, pictured, and with what was rejected.

Pure: rows and stamps in, a page out.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from tapetum.alerts.batch import STAMP_NAMES, AlertKey, History, Rejection
from tapetum.alerts.photometry import light_curve
from tapetum.report.curves import histogram_svg, light_curve_svg
from tapetum.report.page import Card, Cards, Column, Fact, Facts, Figure, Page, Rows, Section, Settings
from tapetum.report.stamps import data_uri, stamp_png

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

MJD_EPOCH = datetime(1858, 11, 17)
EVEN = 0.5  # more likely real than not
KEPT_SHARE = 0.97  # of the real alerts, at the working point that is taken from a model's card
BINS = 25
BEST, DOUBTFUL, WORST = 12, 6, 6
LEGEND = (
    "Light curves: dots are brighter and rings fainter than the reference, triangles are upper limits, the line "
    "marks the alert pictured. Hatched pixels have no value."
)


@dataclass(frozen=True)
class Threshold:
    """Level at and above which an alert is called real, and why there."""

    level: float
    reason: str


def threshold_from(thresholds: Mapping[str, float], domain: str) -> Threshold:
    """The working point that a model's card names for alerts of a domain, else even odds.

    Parameters
    ----------
    thresholds
        As in `tapetum.models.card.ModelCard`.
    domain
        ``packets`` for what a survey sent, ``simulated`` for what a simulation made.
    """
    name = f"{domain}_tpr_{KEPT_SHARE:.2f}"
    if name in thresholds:
        return Threshold(
            thresholds[name], f"keeps {100 * KEPT_SHARE:.0f} % of the real ones ({name} of the model's card)"
        )
    return Threshold(EVEN, "more likely real than not; the model's card names no threshold for such alerts")


@dataclass(frozen=True)
class ReportAlert:
    """One alert and its score, as the report needs it; units as in `tapetum.alerts.batch.AlertBatch`.

    Attributes
    ----------
    reliability
        The packet's own real-bogus score, None where it has none.
    flags
        Names of the raised flags.
    """

    survey: str
    alert_id: int
    object_id: str
    mjd: float
    ra: float
    dec: float
    band: str
    mag: float | None
    mag_err: float | None
    score: float | None
    probability: float | None
    flags: tuple[str, ...]
    error: str | None
    reliability: float | None

    @property
    def key(self) -> AlertKey:
        """What tells it from every other alert."""
        return self.survey, self.alert_id

    @property
    def level(self) -> float | None:
        """The probability, or the raw score where the model has no calibration."""
        return self.score if self.probability is None else self.probability


@dataclass(frozen=True)
class Exhibit:
    """An alert with its pictures and the light curve of its object.

    Attributes
    ----------
    stamps : ndarray of float32, shape (3, n_y, n_x)
        Science, template, difference, NaN where there is no value.
    shapes : ndarray of int16, shape (3, 2)
        (n_y, n_x) of each as it came; (0, 0) when it is missing.
    light_curve
        Columns mjd band mag mag_err mag_limit flux flux_err ra dec forced.
    """

    alert: ReportAlert
    stamps: NDArray[np.float32]
    shapes: NDArray[np.int16]
    light_curve: pa.Table


@dataclass(frozen=True)
class NightReport:
    """Everything that the page shows.

    Attributes
    ----------
    source
        What the alerts are, in one sentence.
    notice
        What the reader must know first; empty when there is nothing.
    model, version
        What scored them.
    calibrated
        Whether the model gives probabilities.
    threshold
        What is called real.
    alerts
        The best first; those without a score last.
    exhibits
        By `ReportAlert.key`; those that `choose` asked for.
    rejections
        Packets that could not be used.
    n_detections
        Rows of all light curves in the store.
    n_new, seconds
        Alerts that this run read, scored and stored, and the wall time of it [s].
    provenance
        (name, value) pairs.
    settings_toml
        The settings of the run, as text.
    """

    source: str
    notice: str
    model: str
    version: str
    calibrated: bool
    threshold: Threshold
    alerts: Sequence[ReportAlert]
    exhibits: dict[AlertKey, Exhibit]
    rejections: Sequence[Rejection]
    n_detections: int
    n_new: int
    seconds: float
    provenance: Sequence[tuple[str, str]]
    settings_toml: str = ""

    @property
    def rule(self) -> str:
        """What is called real, in signs."""
        return f"{self.word} >= {self.threshold.level:.3g}"

    def is_real(self, alert: ReportAlert) -> bool:
        """Whether an alert reaches the threshold."""
        return alert.level is not None and alert.level >= self.threshold.level

    @property
    def word(self) -> str:
        """What the model's number is called."""
        return "probability" if self.calibrated else "score"

    @property
    def scored(self) -> list[ReportAlert]:
        """Alerts that have a score."""
        return [alert for alert in self.alerts if alert.level is not None]


@dataclass(frozen=True)
class Choice:
    """Which alerts are worth a picture: the best of each object, the doubtful, the worst."""

    best: list[ReportAlert]
    doubtful: list[ReportAlert]
    worst: list[ReportAlert]

    @property
    def all(self) -> list[ReportAlert]:
        """All of them, each once."""
        return list({alert.key: alert for alert in (*self.best, *self.doubtful, *self.worst)}.values())


def choose(alerts: Sequence[ReportAlert], threshold: float) -> Choice:
    """Pick alerts for the gallery, at most one per object and part of it.

    Parameters
    ----------
    alerts
        The best first; those without a score last.
    threshold
        Level at and above which an alert is called real; the doubtful are the nearest to it.
    """
    scored = [alert for alert in alerts if alert.level is not None]
    best = _one_per_object(scored)[:BEST]
    taken = {alert.key for alert in best}
    rest = [alert for alert in scored if alert.key not in taken]
    worst = _one_per_object(rest[::-1])[:WORST]
    taken |= {alert.key for alert in worst}
    rest = [alert for alert in rest if alert.key not in taken]
    doubtful = sorted(rest, key=lambda alert: abs((alert.level or 0.0) - threshold))
    return Choice(best, _one_per_object(doubtful)[:DOUBTFUL], worst)


def build_page(report: NightReport, other_parts: Sequence[Facts] = ()) -> Page:
    """The report as a page.

    Parameters
    ----------
    other_parts
        The result of each of the demo's other parts, and the way to its page.
    """
    choice = choose(report.alerts, report.threshold.level)
    galleries = (
        ("Most likely real", choice.best, f"The best alert of each object, the most certain first. {LEGEND}"),
        (
            "Closest calls",
            choice.doubtful,
            f"Nearest to the threshold of {report.threshold.level:.3g}: look here first.",
        ),
        ("Most likely bogus", choice.worst, "The least likely to be real, the worst first."),
    )
    sections: list[Section] = [
        Facts(_facts(report), "Part 1: alerts" if other_parts else ""),
        *other_parts,
        *(_gallery(report, title, alerts, text) for title, alerts, text in galleries),
        _ranking(report),
        _distribution(report),
        _rejected(report),
        _origin(report),
    ]
    subtitle = f"{report.source} Scored by {report.model} {report.version}."
    return Page("A night of alerts, vetted", subtitle, sections, notice=report.notice)


def summary(report: NightReport) -> str:
    """What was found, in one line."""
    real = sum(map(report.is_real, report.alerts))
    n, n_scored = len(report.alerts), len(report.scored)
    objects = len({(alert.survey, alert.object_id) for alert in report.alerts})
    return (
        f"{n} alerts of {objects} objects: {real} look real ({report.rule}), "
        f"{n_scored - real} bogus; {n - n_scored} could not be scored, {len(report.rejections)} packets "
        "rejected"
    )


def _facts(report: NightReport) -> list[Fact]:
    scored = report.scored
    real = sum(map(report.is_real, scored))
    objects = len({(alert.survey, alert.object_id) for alert in report.alerts})
    facts = [
        Fact("alerts", f"{len(report.alerts):,}", f"of {objects:,} objects"),
        Fact("look real", f"{real:,}", f"{report.word} ≥ {report.threshold.level:.3g}"),
        Fact("look bogus", f"{len(scored) - real:,}"),
        Fact("not scored", f"{len(report.alerts) - len(scored):,}", "the reason is in the table below"),
        Fact("rejected", f"{len(report.rejections):,}", "packets that could not be read"),
        Fact("photometry", f"{report.n_detections:,}", "points in the light curves of the store"),
    ]
    if report.seconds > 0 and report.n_new:
        rate = report.n_new / report.seconds
        facts.append(Fact("read, scored, stored", f"{report.seconds:.1f} s", f"{rate:,.0f} alerts/s"))
    both = [alert for alert in scored if alert.reliability is not None]
    if both:
        same = sum(report.is_real(a) == ((a.reliability or 0.0) >= EVEN) for a in both)
        share = f"{100 * same / len(both):.1f} %"
        note = f"own score ≥ {EVEN:g}, of {len(both):,} packets"
        facts.append(Fact("agrees with the survey", share, note))
    return facts


def _gallery(report: NightReport, title: str, alerts: Sequence[ReportAlert], text: str) -> Cards:
    counts = Counter((alert.survey, alert.object_id) for alert in report.alerts)
    cards = [
        _card(report.exhibits[alert.key], counts[alert.survey, alert.object_id], report.word)
        for alert in alerts
        if alert.key in report.exhibits
    ]
    return Cards(title, cards, text, nothing="No alert belongs here.")


def _card(exhibit: Exhibit, n_alerts: int, word: str) -> Card:
    alert = exhibit.alert
    stamps = [
        (name, data_uri(stamp_png(plane[:n_y, :n_x])))
        for name, plane, (n_y, n_x) in zip(STAMP_NAMES, exhibit.stamps, exhibit.shapes.tolist(), strict=True)
        if n_y and n_x
    ]
    values = [
        (alert.band, _magnitude(alert.mag, alert.mag_err)),
        ("UTC", _date(alert.mjd)),
        ("ra", f"{alert.ra:.5f}°"),
        ("dec", f"{alert.dec:+.5f}°"),
        ("alerts", str(n_alerts)),
        ("survey's score", "none" if alert.reliability is None else f"{alert.reliability:.3f}"),
        ("id", str(alert.alert_id)),
    ]
    if alert.flags:
        values.append(("flags", ", ".join(alert.flags)))
    return Card(
        anchor=_anchor(alert),
        title=alert.object_id,
        score=f"{word} {alert.level or 0.0:.3f}",
        level=alert.level,
        stamps=stamps,
        curve=_curve(exhibit.light_curve, alert.mjd),
        values=values,
    )


def _curve(table: pa.Table, mark_mjd: float) -> str:
    columns = {
        name: table[name].to_numpy().astype(np.float64)
        for name in ("mjd", "mag", "mag_err", "mag_limit", "flux", "flux_err", "ra", "dec")
    }
    forced = table["forced"].to_numpy().astype(bool)
    ends = np.array([0, len(table)], np.int64)
    curve = light_curve(History(offsets=ends, band=table["band"].to_pylist(), forced=forced, **columns), 0)
    return light_curve_svg(
        curve.mjd,
        curve.band.tolist(),
        np.where(curve.forced & np.isnan(curve.flux), np.nan, curve.mag),  # too weak: only its limit counts
        curve.mag_err,
        curve.mag_limit,
        positive=~(curve.flux < 0),
        mark_mjd=mark_mjd,
    )


def _ranking(report: NightReport) -> Rows:
    columns = [
        Column("rank", "d"),
        Column("object"),
        Column("alert", "d"),
        Column(report.word, ".4f"),
        Column("survey's own", ".3f", "the packet's own real-bogus score"),
        Column("band"),
        Column("mag", ".2f"),
        Column("mjd", ".4f", "UTC, mid-exposure"),
        Column("ra", ".5f", "deg"),
        Column("dec", "+.5f", "deg"),
        Column("flags"),
    ]
    rows = [
        (
            rank,
            a.object_id,
            a.alert_id,
            a.level,
            a.reliability,
            a.band,
            a.mag,
            a.mjd,
            a.ra,
            a.dec,
            ", ".join(a.flags),
        )
        for rank, a in enumerate(report.alerts, 1)
    ]
    targets = [_anchor(a) if a.key in report.exhibits else None for a in report.alerts]
    text = "Every alert, the most likely real first. A heading sorts; a linked rank has a picture above."
    return Rows("Ranking", columns, rows, text, nothing="There is no alert.", targets=targets)


def _distribution(report: NightReport) -> Figure:
    edges = np.linspace(0, 1, BINS + 1)
    ours = np.histogram([alert.level for alert in report.alerts if alert.level is not None], edges)[0]
    series = [(f"{report.model} {report.word}", ours, "var(--accent, #1d6f8c)")]
    own = [alert.reliability for alert in report.alerts if alert.reliability is not None]
    if own:
        series.append(("survey's own score", np.histogram(own, edges)[0], "var(--accent-2, #d08a2e)"))
    text = f"How the {len(report.scored):,} scored alerts are spread; the axis of counts is logarithmic."
    return Figure("Score distribution", histogram_svg(edges, series, x_label=report.word), text)


def _rejected(report: NightReport) -> Rows:
    rows: list[tuple[str, str, int | None, str]] = [
        ("packet", entry.source, entry.record if entry.record >= 0 else None, entry.reason)
        for entry in report.rejections
    ]
    rows += [
        ("score", f"{alert.survey} {alert.alert_id}", None, alert.error or "no score")
        for alert in report.alerts
        if alert.level is None
    ]
    columns = [Column("what"), Column("where"), Column("record", "d"), Column("why")]
    nothing = "Nothing: every packet could be read, and every alert could be scored."
    return Rows("Rejected, and why", columns, rows, nothing=nothing)


def _origin(report: NightReport) -> Settings:
    called_real = ("called real", f"{report.rule}: {report.threshold.reason}")
    return Settings("How this came about", (*report.provenance, called_real), report.settings_toml)


def _one_per_object(alerts: Sequence[ReportAlert]) -> list[ReportAlert]:
    first: dict[tuple[str, str], ReportAlert] = {}
    for alert in alerts:
        first.setdefault((alert.survey, alert.object_id), alert)
    return list(first.values())


def _anchor(alert: ReportAlert) -> str:
    return f"{alert.survey}-{alert.alert_id}"


def _magnitude(mag: float | None, mag_err: float | None) -> str:
    if mag is None or not math.isfinite(mag):
        return "no magnitude"
    return f"{mag:.2f}" if mag_err is None or not math.isfinite(mag_err) else f"{mag:.2f} ± {mag_err:.2f}"


def _date(mjd: float) -> str:
    return f"{MJD_EPOCH + timedelta(days=mjd):%Y-%m-%d %H:%M}"
