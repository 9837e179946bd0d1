"""The page and the files of a completeness measurement.

Pure but for `write_report`: figures in, a page and plots out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tapetum.core.files import whole_file
from tapetum.report.curves import band_colour, histogram_svg
from tapetum.report.page import Column, Fact, Facts, Figure, Page, Rows, Section, Settings, write_page
from tapetum.report.points import ACCENT, ACCENT_2, Points, points_svg

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from astropy.table import Table
    from numpy.typing import NDArray

    from tapetum.pipelines.completeness import Completeness, Depth, Fractions

SHARE = (-0.03, 1.03)
SQUARE = (
    560.0,
    340.0,
    490 / 284,
)  # a picture whose two axes have one scale: [px], [px], ratio within the margins
NOT_REACHED = "not reached"


def plots(completeness: Completeness) -> dict[str, tuple[str, str, str]]:
    """Every plot: name of its file -> (title, SVG, explanation)."""
    point = completeness.depth.get(("point", "all"))
    out = {
        "completeness_mag": (
            "Completeness against magnitude",
            _against_mag(completeness.by_mag, point),
            "Injected point sources that were found; bars are 95 % intervals, the line is a logistic curve.",
        ),
        "purity_mag": (
            "Purity against magnitude",
            _share(completeness.purity_by_mag, "mag", "share injected"),
            "Candidates that were injected. Real variable stars count as false here.",
        ),
    }
    out |= _against_snr(completeness)
    out |= _against_neighbours(completeness)
    out |= _residuals(completeness)
    out |= _per_band(completeness)
    return out


def build_page(completeness: Completeness, provenance: Sequence[tuple[str, str]], notice: str = "") -> Page:
    """The report as a page; `notice` stands above all, for instance which images are not in it."""
    figures = [Figure(title, svg, text) for title, svg, text in plots(completeness).values()]
    sections: list[Section] = [
        Facts(_facts(completeness)),
        _depth_rows(completeness),
        *figures,
        _image_rows(completeness.recovery.images),
        _missed_rows(completeness.recovery.injected),
        Settings("How this came about", provenance),
    ]
    n = len(completeness.recovery.images)
    subtitle = f"{len(completeness.recovery.injected)} injected sources in {n} image{'s' if n > 1 else ''}."
    return Page("Completeness", subtitle, sections, notice=notice)


def write_report(
    folder: Path, completeness: Completeness, provenance: Sequence[tuple[str, str]], notice: str = ""
) -> None:
    """Write ``report.html``, one SVG per plot, and the tables ``fractions injected candidates images`` (ECSV)."""
    from tapetum.pipelines.completeness import fractions_table

    write_page(folder / "report.html", build_page(completeness, provenance, notice))
    for name, (_, svg, _) in plots(completeness).items():
        with whole_file(folder / f"{name}.svg") as part:
            part.write_text(svg, encoding="utf-8")
    recovery = completeness.recovery
    tables = {
        "fractions": fractions_table(completeness),
        "injected": recovery.injected,
        "candidates": recovery.candidates,
        "images": recovery.images,
    }
    for name, table in tables.items():
        with whole_file(folder / f"{name}.ecsv") as part:
            table.write(part, format="ascii.ecsv")


def summary(completeness: Completeness) -> str:
    """What was found, in one line."""
    found, total = _counts(completeness)
    points, all_points = _point_counts(completeness)
    depth = completeness.depth.get(("point", "all"))
    reach = "" if depth is None else f"; 50 % at {_mag(depth.mag50)}, 90 % at {_mag(depth.mag90)}"
    return (
        f"{found} of {total} simulated sources found, {points} of {all_points} point sources{reach}; "
        f"{completeness.false_per_image:g} false candidates per image"
    )


def _counts(completeness: Completeness) -> tuple[int, int]:
    kinds = completeness.kinds.values()
    return sum(found for found, _ in kinds), sum(total for _, total in kinds)


def _point_counts(completeness: Completeness) -> tuple[int, int]:
    return int(completeness.by_mag.hits.sum()), int(completeness.by_mag.total.sum())


def _mag(value: float, interval: tuple[float, float] | None = None) -> str:
    if not math.isfinite(value):
        return NOT_REACHED
    if interval is None or not all(map(math.isfinite, interval)):
        return f"{value:.2f}"
    return f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"


def _facts(completeness: Completeness) -> list[Fact]:
    found, total = _point_counts(completeness)
    of_all, all_sources = _counts(completeness)
    facts = [
        Fact("sources found", f"{of_all:,}", f"of {all_sources:,} simulated, trails and comets with them"),
        Fact("point sources found", f"{found:,}", f"of {total:,} injected"),
        Fact("false candidates", f"{completeness.false_per_image:g}", "median per image"),
    ]
    if math.isfinite(completeness.false_per_deg2):
        facts.append(Fact("false per square degree", f"{completeness.false_per_deg2:,.0f}"))
    depth = completeness.depth.get(("point", "all"))
    if depth is not None:
        facts.append(Fact("50 % depth", _mag(depth.mag50), _ends(depth.mag50_interval)))
        facts.append(Fact("90 % depth", _mag(depth.mag90), _ends(depth.mag90_interval)))
    offset, mag_offset = _typical_residuals(completeness.recovery.injected)
    if math.isfinite(offset):
        facts.append(Fact("position", f"{offset:.2f} px", "median distance to the truth"))
    if math.isfinite(mag_offset):
        facts.append(Fact("brightness", f"{mag_offset:+.3f} mag", "median, found minus injected"))
    return facts


def _ends(interval: tuple[float, float]) -> str:
    if not all(map(math.isfinite, interval)):
        return "mag; too few sources around it for an interval"
    return f"mag, 95 % within {interval[0]:.2f} to {interval[1]:.2f}"


def _point(injected: Table) -> NDArray[np.bool_]:
    from tapetum.pipelines.completeness import POINT_KINDS

    return np.isin([str(kind) for kind in injected["kind"]], POINT_KINDS)


def _typical_residuals(injected: Table) -> tuple[float, float]:
    chosen = injected[_point(injected) & np.asarray(injected["found"], bool)]
    if not len(chosen):
        return math.nan, math.nan
    offset = np.asarray(chosen["distance_pix"], np.float64)
    mag = np.asarray(chosen["mag_found"], np.float64) - np.asarray(chosen["mag"], np.float64)
    mag = mag[np.isfinite(mag)]
    return float(np.median(offset)), float(np.median(mag)) if mag.size else math.nan


def _bars(part: Fractions, name: str = "", colour: str = ACCENT) -> Points:
    low, high = part.interval
    return Points(name, part.middles, part.fraction, low, high, colour)


def _against_mag(part: Fractions, depth: Depth | None) -> str:
    series = [_bars(part)]
    if depth is not None:
        mag = np.linspace(part.edges[0], part.edges[-1], 200)
        series.append(Points("", mag, depth.curve(mag), colour=ACCENT_2, line=True))
    ends = (float(part.edges[0]), float(part.edges[-1]))
    return points_svg(series, x_label="mag", y_label="share found", x_range=ends, y_range=SHARE)


def _share(part: Fractions, x_label: str, y_label: str, *, log: bool = False) -> str:
    bars = _bars(part)
    if log:
        bars = Points("", np.log10(np.sqrt(part.edges[1:] * part.edges[:-1])), bars.y, bars.low, bars.high)
    return points_svg([bars], x_label=x_label, y_label=y_label, y_range=SHARE, x_log=log)


def _against_snr(completeness: Completeness) -> dict[str, tuple[str, str, str]]:
    return {
        "completeness_snr": (
            "Completeness against signal-to-noise ratio",
            _share(completeness.by_snr, "expected S/N", "share found", log=True),
            "As the noise of the image lets expect it.",
        ),
        "purity_snr": (
            "Purity against signal-to-noise ratio",
            _share(completeness.purity_by_snr, "S/N", "share injected", log=True),
            "Of the candidates.",
        ),
    }


def _against_neighbours(completeness: Completeness) -> dict[str, tuple[str, str, str]]:
    out = {}
    for name, words, found, pure in (
        ("galaxy", "the nearest galaxy", completeness.by_galaxy, completeness.purity_by_galaxy),
        (
            "saturated",
            "the nearest saturated star",
            completeness.by_saturated,
            completeness.purity_by_saturated,
        ),
    ):
        if not found.total.any() and not pure.total.any():
            continue
        middles = np.log10(found.edges[1:])  # bins double: each stands at its outer edge
        series = [
            Points("found", middles, found.fraction, *found.interval, ACCENT),
            Points("injected", middles, pure.fraction, *pure.interval, ACCENT_2),
        ]
        svg = points_svg(
            series, x_label=f"distance to {words} [pixel]", y_label="share", y_range=SHARE, x_log=True
        )
        text = "Share of the injected point sources that was found, and share of the candidates that was injected."
        out[f"distance_{name}"] = (f"Distance to {words}", svg, text)
    return out


def _residuals(completeness: Completeness) -> dict[str, tuple[str, str, str]]:
    injected = completeness.recovery.injected
    chosen = injected[_point(injected) & np.asarray(injected["found"], bool)]
    column = {name: np.asarray(chosen[name], np.float64) for name in ("mag", "dx", "dy", "mag_found")}
    reach = max(float(np.nanmax(np.abs([column["dx"], column["dy"]]), initial=0.5)), 0.5)
    ends = (-reach * 1.05, reach * 1.05)
    place = points_svg(
        [Points("", column["dx"], column["dy"], radius=1.6)],
        x_label="dx [pixel]",
        y_label="dy [pixel]",
        x_range=(ends[0] * SQUARE[2], ends[1] * SQUARE[2]),
        y_range=ends,
        width=SQUARE[0],
        height=SQUARE[1],
        zero_line=True,
    )
    off = column["mag_found"] - column["mag"]
    good = off[np.isfinite(off)]
    limit = max(0.2, float(np.percentile(np.abs(good), 98))) if good.size else 0.2
    light = points_svg(
        [Points("", column["mag"], off, radius=1.6)],
        x_label="mag injected",
        y_label="found - injected [mag]",
        y_range=(-1.05 * limit, 1.05 * limit),
        zero_line=True,
    )
    return {
        "position_residuals": ("Position residuals", place, "Candidate minus truth."),
        "flux_residuals": ("Brightness residuals", light, "The outermost 2 % are beyond the frame."),
    }


def _per_band(completeness: Completeness) -> dict[str, tuple[str, str, str]]:
    out = {}
    bands = completeness.bands
    if len(bands) > 1:
        series = [_bars(part, band, band_colour(band)) for band, part in bands.items()]
        svg = points_svg(series, x_label="mag", y_label="share found", y_range=SHARE)
        out["completeness_bands"] = ("Detected fraction per band", svg, "Of the injected point sources.")
    for band, part in {"all bands": completeness.by_mag, **bands}.items():
        if band == "all bands" and len(bands) == 1:
            continue
        series_of = [("injected", part.total, ACCENT), ("found", part.hits, ACCENT_2)]
        svg = histogram_svg(part.edges, series_of, x_label="mag", y_label="sources")
        name = "magnitudes_" + "".join(c if c.isalnum() else "_" for c in band)
        title = "Magnitudes" if band == "unknown" else f"Magnitudes, {band}"
        out[name] = (title, svg, "Injected point sources, and those that were found.")
    return out


def _depth_rows(completeness: Completeness) -> Rows:
    columns = [
        Column("kind"),
        Column("band"),
        Column("found", "d"),
        Column("injected", "d"),
        Column("50 %", "", "mag, 95 % interval"),
        Column("90 %", "", "mag, 95 % interval"),
        Column("bright", ".3f", "share found among the bright, as the curve says"),
    ]
    injected = completeness.recovery.injected
    kind = np.array(
        ["point" if point else str(k) for k, point in zip(injected["kind"], _point(injected), strict=True)]
    )
    band = np.array([str(value) for value in injected["band"]])
    found = np.asarray(injected["found"], bool)
    keys = dict.fromkeys([("point", "all"), *((str(k), "all") for k in np.unique(kind))])
    keys |= dict.fromkeys(key for key in completeness.depth)
    rows: list[tuple[str | int | float | None, ...]] = []
    for one, where in keys:
        chosen = (kind == one) & ((band == where) | (where == "all"))
        if not chosen.any():
            continue
        depth = completeness.depth.get((one, where))
        reach = (
            ("", "", None)
            if depth is None
            else (
                _mag(depth.mag50, depth.mag50_interval),
                _mag(depth.mag90, depth.mag90_interval),
                depth.plateau,
            )
        )
        rows.append((one, where, int(found[chosen].sum()), int(chosen.sum()), *reach))
    text = (
        "Depth: the magnitude at which a logistic curve passes 50 % and 90 %; 95 % intervals by bootstrap. Nothing "
        "stands there when all or none was found, or when there are fewer than 12 sources; no interval, where a level "
        "hangs on the few sources around it: where found and missed do not overlap, or drawing again changes nothing."
    )
    return Rows("Depth", columns, rows, text)


def _image_rows(images: Table) -> Rows:
    columns = [
        Column("image"),
        Column("injected", "d"),
        Column("found", "d"),
        Column("candidates", "d"),
        Column("false", "d", "candidates that nobody injected"),
        Column("false / deg²", ".0f"),
        Column("limit", ".2f", "5 sigma of a point source [mag]"),
    ]
    rows = [
        (
            str(row["image"]),
            int(row["injected"]),
            int(row["found"]),
            int(row["candidates"]),
            int(row["false"]),
            float(row["false"]) / float(row["area_deg2"]) if float(row["area_deg2"]) > 0 else None,
            float(row["mag_limit"]),
        )
        for row in images
    ]
    return Rows("Images", columns, rows)


def _missed_rows(injected: Table) -> Rows:
    """The missed ones, the brightest first: where to look for what went wrong."""
    missed = injected[~np.asarray(injected["found"], bool)]
    missed = missed[np.argsort(np.asarray(missed["mag"], np.float64), kind="stable")]
    columns = [
        Column("image"),
        Column("kind"),
        Column("mag", ".2f"),
        Column("x", ".1f"),
        Column("y", ".1f"),
        Column("expected S/N", ".1f"),
        Column("to galaxy", ".1f", "pixel"),
        Column("to saturated", ".1f", "pixel"),
    ]
    names = ("mag", "x", "y", "snr", "galaxy_distance", "saturated_distance")
    rows = [
        (str(row["image"]), str(row["kind"]), *(_finite(float(row[name])) for name in names))
        for row in missed
    ]
    return Rows("Missed", columns, rows, "The brightest first.", nothing="Everything was found.")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
