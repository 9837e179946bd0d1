"""The third part of the demo: light curves of real stars, their periods and classes.

The periods are made by the same road as everybody's (`tapetum lightcurves periods --by source`), and so are resumed.
"""

from __future__ import annotations

import bz2
import math
import tarfile
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from tapetum import __version__
from tapetum.core.errors import FormatError, InputError
from tapetum.finders.variable_tree import DEFAULT_MODEL, load
from tapetum.lightcurves.clean import CleaningRules, clean
from tapetum.lightcurves.curves import KEY, LightCurves
from tapetum.lightcurves.formats.columns import Reading
from tapetum.lightcurves.formats.opening import open_curves, write_curves
from tapetum.lightcurves.periods.grid import GridRules
from tapetum.lightcurves.periods.search import PeriodRules
from tapetum.pipelines.demo_curves_page import CurvesReport, Known, Star
from tapetum.pipelines.lightcurve_parts import make_once
from tapetum.pipelines.lightcurve_periods import PeriodOptions, period_parts, period_recipe
from tapetum.report.read_tables import read_table
from tapetum.report.tables import write_table
from tapetum.simulate.variables import simulate_variables
from tapetum.sky.match import match_sky

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tapetum.core.progress import Progress
    from tapetum.core.settings import Settings
    from tapetum.finders.variable_tree import VariableTree

CURVES, PERIODS, CLASSES = "curves.parquet", "periods.parquet", "classes.parquet"
SEARCH = PeriodRules(algorithms=("LS",), grid=GridRules(maximum=24.0, samples_per_peak=5.0), nested=None)
SEARCH_OPTIONS = (
    f"--by source --algorithms LS --max-frequency {SEARCH.grid.maximum:g} "
    f"--samples-per-peak {SEARCH.grid.samples_per_peak:g}"
)
CLASSES_DIFFER = (
    "with the periods of this page, of all bands of a star together; tapetum lightcurves classify searches each light "
    "curve by itself, so its classes can differ"
)
N_SIMULATED = 24
MATCH_ARCSEC = 2.0
MEMBER_BYTES = 2**20  # of one light curve as text; the largest of the sample has 32 kB
OGLE_ROWS_SKIPPED = 6  # about the query; the next names the columns
BANDS = {"B": "machob", "R": "machor"}
CLASSES_SHOWN = 4
KNOWN = ("known_as", "known_kind", "known_period")  # columns: origin, class there, period [d]
TWO_MINIMA = ("e", "el")
"""Classes whose light has two minima in a cycle, so that half of the orbit is what a search finds."""


def macho_curves(paths: Sequence[Path]) -> LightCurves:
    """The sample ``macho-curves``: archives of light curves, and the OGLE-III catalogue.

    Returns
    -------
    LightCurves
        Also with the columns of `KNOWN`, null where the catalogue has nothing.

    Raises
    ------
    FormatError
        A file is not what it should be.
    """
    curves = read_macho([path for path in paths if path.name.endswith(".tar.bz2")])
    [catalogue] = [path for path in paths if not path.name.endswith(".tar.bz2")]
    return with_known(curves, known_stars(curves, catalogue))


def simulated_curves(seed: int) -> LightCurves:
    """Made-up variables, for where there is no way to real ones."""
    made = simulate_variables(N_SIMULATED, seed)
    names = made.curves.table[KEY]
    table = pa.table({KEY: names, "object_id": names, "band": ["ztfr"] * len(names)})
    known = {
        name: Known("simulation", kind, period if math.isfinite(period) else None)
        for name, kind, period in zip(names.to_pylist(), made.kind, made.period.tolist(), strict=True)
    }
    return with_known(replace(made.curves, table=table), known)


def with_known(curves: LightCurves, known: Mapping[str, Known]) -> LightCurves:
    """Light curves with what is known of their sources, as the columns of `KNOWN`."""
    table = curves.table
    rows = [known.get(name) for name in table["object_id"].to_pylist()]
    columns = [
        pa.array([None if row is None else row.origin for row in rows], pa.string()),
        pa.array([None if row is None else row.kind for row in rows], pa.string()),
        pa.array([None if row is None else row.period for row in rows], pa.float64()),
    ]
    for name, column in zip(KNOWN, columns, strict=True):
        table = table.append_column(name, column)
    return replace(curves, table=table)


# ---- the sample ----------------------------------------------------------------------------------------------------


def read_macho(paths: Sequence[Path]) -> LightCurves:
    """Light curves of MACHO as text, in archives of one star each: ``lc_<field>.<tile>.<number>.<B|R>.mjd``.

    Magnitudes are instrumental, times MJD.

    Raises
    ------
    FormatError
        An archive is damaged, or a line is not one of a light curve.
    """
    rows = [row for path in paths for row in _stars_of(path)]
    if not rows:
        raise FormatError("no light curves of MACHO in the sample")
    times, mags, errors = ([points[:, column] for _, points in rows] for column in range(3))
    return LightCurves.of_lists(times, mags, errors, pa.Table.from_pylist([about for about, _ in rows]))


def _stars_of(path: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    try:
        with tarfile.open(path, "r:bz2") as archive:
            for member in archive:
                if member.isreg() and member.name.endswith(".mjd"):
                    content = archive.extractfile(member)
                    assert content is not None
                    yield _star(content.read(MEMBER_BYTES).decode("ascii"))
    except (tarfile.TarError, EOFError, OSError, ValueError) as problem:
        raise FormatError(f"{path.name}: no light curves of MACHO: {problem}") from None


def _star(text: str) -> tuple[dict[str, Any], Any]:
    """What the second line says of a star, and its points (time, magnitude, error)."""
    _, about, *lines = text.splitlines()
    field, tile, number, hours, dec, band, *_ = about.lstrip("#").split()
    name = f"{field}.{tile}.{number}"
    points = np.array([line.split() for line in lines if not line.startswith("#")], np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"{name}: lines should have a time, a magnitude and an error")
    known = {KEY: f"{name}.{band}", "object_id": name, "survey": "macho", "band": BANDS[band]}
    return {**known, "ra": 15 * float(hours), "dec": float(dec)}, points


def known_stars(curves: LightCurves, catalogue: Path) -> dict[str, Known]:
    """What the OGLE-III catalogue (bzip2 text) says of the sources of light curves.

    Raises
    ------
    FormatError
        It is not that catalogue.
    """
    names = {"# ID": "id", "Type": "type", "Subtype": "subtype", "RA": "ra", "DECL": "dec", "P_1": "period"}
    try:
        with bz2.open(catalogue) as stream:
            table = pa.csv.read_csv(
                stream,
                read_options=pa.csv.ReadOptions(skip_rows=OGLE_ROWS_SKIPPED),
                parse_options=pa.csv.ParseOptions(delimiter="\t"),
                convert_options=pa.csv.ConvertOptions(include_columns=list(names)),
            ).rename_columns(list(names.values()))
    except (OSError, EOFError, pa.ArrowException, KeyError) as problem:
        raise FormatError(f"{catalogue.name}: not the OGLE-III catalogue: {problem}") from None
    ours, theirs, apart = match_sky(
        curves.table["ra"].to_numpy(),
        curves.table["dec"].to_numpy(),
        15 * table["ra"].to_numpy(),
        table["dec"].to_numpy(),
        MATCH_ARCSEC,
        keep="nearest",
    )
    sources = curves.table["object_id"].to_pylist()
    rows = table.take(pa.array(theirs)).to_pylist()
    return {
        sources[place]: Known(
            f"{row['id']}, {distance:.1f}″ away",
            f"{row['type']} {row['subtype']}",
            row["period"] if row["period"] > 0 else None,
        )
        for place, row, distance in zip(ours.tolist(), rows, apart.tolist(), strict=True)
    }


# ---- the part ------------------------------------------------------------------------------------------------------


def classify_curves(
    make: Callable[[], LightCurves],
    folder: Path,
    settings: Settings,
    progress: Progress,
    *,
    why_simulated: str = "",
    overwrite: bool = False,
    model: str = DEFAULT_MODEL,
) -> CurvesReport:
    """Periods and classes of light curves; the tables lie in `folder`.

    Parameters
    ----------
    make
        Gives the light curves, with the columns of `KNOWN`; asked if they do not lie in `folder` already.
    why_simulated
        Why they are not observed; empty where they are.
    model
        Name or path.

    Raises
    ------
    TapetumError
        The model cannot be used, or a file cannot be written.
    InputError
        No light curve has enough good points.
    """
    start = time.perf_counter()
    tree = load(model)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CURVES
    if overwrite or not path.exists():
        write_curves(make(), path)
    curves = open_curves(path, Reading(keep=KNOWN)).read()
    periods, finished = _periods(path, folder, settings, progress, overwrite=overwrite)
    cleaned = clean(curves, CleaningRules())
    if not len(cleaned.curves):
        raise InputError(f"{path}: no light curve has enough good points")
    found = tree.find(cleaned.curves, _of_curves(periods, cleaned.curves))
    sources = tree.sources(found)
    write_table(sources, str(folder / CLASSES))
    rejected = [(curves.ids[row], cleaned.explain(row)) for row in np.flatnonzero(~cleaned.kept).tolist()]
    card = tree.model.card
    return CurvesReport(
        why_simulated=why_simulated,
        model=card.name,
        version=card.version,
        coverage=float(tree.config.coverage),
        stars=_stars(tree, cleaned.curves, sources, periods),
        rejected=rejected,
        n_curves=len(curves),
        n_points=int(curves.offsets[-1]),
        seconds=None if finished else time.perf_counter() - start,
        provenance=[
            ("made by", f"tapetum {__version__}"),
            ("network", f"{card.name} {card.version}, sha256 {card.onnx_sha256}"),
            ("light curves", path.name),
            ("periods", f"tapetum lightcurves periods {CURVES} {SEARCH_OPTIONS} -o {PERIODS}"),
            ("classes", CLASSES_DIFFER),
        ],
        files=[folder / name for name in (CURVES, PERIODS, CLASSES)],
    )


def _periods(
    path: Path, folder: Path, settings: Settings, progress: Progress, *, overwrite: bool
) -> tuple[pa.Table, bool]:
    """One row per source, and whether they were there already."""
    recipe = period_recipe([str(path)], PeriodOptions(SEARCH, "source"))
    output = folder / PERIODS
    report = make_once(
        period_parts([open_curves(path)], "source"),
        recipe,
        str(output),
        settings,
        overwrite=overwrite,
        progress=progress,
    )
    if report.problems:
        raise InputError(report.problems[0])
    return read_table(output), report.finished


def _of_curves(periods: pa.Table, curves: LightCurves) -> pa.Table:
    """The period of its source, for each curve."""
    rows = pc.index_in(curves.table["object_id"], value_set=periods["object_id"])
    return pa.table({"period": periods["period"].take(rows)})


def _stars(tree: VariableTree, curves: LightCurves, sources: pa.Table, periods: pa.Table) -> list[Star]:
    owner = np.array(curves.table["object_id"].to_pylist())
    bands = np.repeat(np.array(curves.table["band"].to_pylist()), curves.n_points)
    points = np.repeat(owner, curves.n_points)
    searched = {row["object_id"]: row for row in periods.to_pylist()}
    known = {row["object_id"]: _known(row) for row in curves.table.to_pylist()}
    stars = []
    for row in sources.to_pylist():
        name = row["object_id"]
        mine = np.flatnonzero(points == name)
        mine = mine[np.argsort(curves.time[mine], kind="stable")]
        said = searched[name]
        top = sorted(tree.leaves, key=lambda leaf: -row[leaf])[:CLASSES_SHOWN]
        stars.append(
            Star(
                object_id=name,
                ra=row.get("ra"),
                dec=row.get("dec"),
                time=curves.time[mine],
                band=bands[mine].tolist(),
                mag=curves.mag[mine],
                mag_err=curves.magerr[mine],
                period=said["period"],
                period_err=said["period_err"],
                log10_fap=said["period_log10_fap"],
                aliases=_aliases(said),
                classes=[(tree.taxonomy.of(leaf).label, row[leaf]) for leaf in top],
                class_set=[tree.taxonomy.of(leaf).label for leaf in row["class_set"]],
                two_minima=any(
                    code in TWO_MINIMA for code in (row["class"], *tree.taxonomy.ancestors(row["class"]))
                ),
                known=known[name],
            )
        )
    return sorted(stars, key=lambda star: -star.classes[0][1])


def _known(row: Mapping[str, Any]) -> Known | None:
    origin, kind, period = (row[name] for name in KNOWN)
    return None if origin is None else Known(origin, kind, period)


def _aliases(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(relation, period [d]) of the other peaks that are aliases of the best."""
    pairs = zip(row["top_relation"] or [], row["top_period"] or [], strict=True)
    return [(relation, period) for relation, period in pairs if relation and relation != "f"]
