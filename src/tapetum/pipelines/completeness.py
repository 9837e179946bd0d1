"""How much of what is there was found, and how much of what was found is there.

Pure: results of a search and their truth in, figures out. Sources that were injected are the only truth, so that a
real variable star counts as a false detection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import InputError
from tapetum.pipelines.search_results import (
    SURROUNDINGS,
    SearchResult,
    is_source,
    match_truth,
    read_ecsv,
    read_truth,
    truths_of,
)
from tapetum.simulate.truth import TRUTH_NAME as TRUTH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from astropy.table import Table
    from numpy.typing import NDArray

Z95 = 1.959963984540054  # half width of the central 95 % of a normal distribution [sigma]
POINT_KINDS = ("point", "transient", "star")
LEAST_FOR_A_FIT = 12
BOOTSTRAPS = 200
MAG_STEP = 0.5
SNR_EDGES = (3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0, 300.0, 1000.0)
DISTANCE_EDGES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


def wilson(hits: NDArray[Any], total: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % interval of a fraction; NaN where nothing was tried.

    Notes
    -----
    Wilson (1927), JASA 22, 209; it stays within 0 and 1 and is honest for a handful of trials.
    """
    n = np.asarray(total, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.asarray(hits, np.float64) / n
        middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 * np.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return np.where(n > 0, middle - half, np.nan), np.where(n > 0, middle + half, np.nan)


@dataclass(frozen=True)
class Fractions:
    """A fraction per bin.

    Attributes
    ----------
    edges : ndarray, shape (n_bins + 1,)
    total, hits : ndarray of int, shape (n_bins,)
    """

    edges: NDArray[np.float64]
    total: NDArray[np.int64]
    hits: NDArray[np.int64]

    @property
    def fraction(self) -> NDArray[np.float64]:
        """Hits per trial; NaN where nothing was tried."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.total > 0, self.hits / self.total, np.nan)

    @property
    def interval(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Its 95 % interval, see `wilson`."""
        return wilson(self.hits, self.total)

    @property
    def middles(self) -> NDArray[np.float64]:
        """Middles of the bins."""
        return (self.edges[1:] + self.edges[:-1]) / 2


def binned(
    values: NDArray[np.float64], hit: NDArray[np.bool_], edges: Sequence[float] | NDArray[np.float64]
) -> Fractions:
    """Count hits in bins; values outside `edges` and those that are not finite do not count."""
    limits = np.asarray(edges, np.float64)
    good = np.isfinite(values)
    total = np.histogram(values[good], limits)[0]
    return Fractions(limits, total, np.histogram(values[good & hit], limits)[0])


@dataclass(frozen=True)
class Depth:
    """Magnitudes at which a share of the sources is found, by a logistic curve; NaN where the data do not reach.

    Attributes
    ----------
    plateau
        Share found among the bright.
    mag, width
        Magnitude at half the plateau, and e-folding length of the fall [mag].
    mag50, mag90
        Where 50 % and 90 % are found.
    mag50_interval, mag90_interval
        95 % by bootstrap over the sources; NaN where too few of them decide.
    n
        Sources.
    """

    plateau: float
    mag: float
    width: float
    mag50: float
    mag50_interval: tuple[float, float]
    mag90: float
    mag90_interval: tuple[float, float]
    n: int

    def curve(self, mag: NDArray[np.float64]) -> NDArray[np.float64]:
        """The share found at magnitudes."""
        return np.asarray(self.plateau / (1 + np.exp(np.clip((mag - self.mag) / self.width, -50, 50))))


def fit_depth(
    mag: NDArray[np.float64], found: NDArray[np.bool_], rng: np.random.Generator, bootstraps: int = BOOTSTRAPS
) -> Depth | None:
    """Fit a logistic curve with a plateau to what was found, by maximum likelihood.

    Returns
    -------
    Depth or None
        None where there are fewer than 12 sources, or all or none of them were found.
    """
    good = np.isfinite(mag)
    mag, found = mag[good], found[good]
    if len(mag) < LEAST_FOR_A_FIT or found.all() or not found.any():
        return None
    first = _fit(mag, found, (0.95, float(np.median(mag)), 0.3))
    levels = []
    for _ in range(bootstraps):
        rows = rng.integers(0, len(mag), len(mag))
        fitted = first if found[rows].all() or not found[rows].any() else _fit(mag[rows], found[rows], first)
        levels.append([_reached(fitted, share, mag) for share in (0.5, 0.9)])
    mag50, mag90 = (_reached(first, share, mag) for share in (0.5, 0.9))
    apart = mag[found].max() < mag[~found].min()  # a step between two sources, wherever one draws
    ends = [
        (math.nan, math.nan) if apart else _interval(np.array(levels)[:, column], level, mag)
        for column, level in enumerate((mag50, mag90))
    ]
    return Depth(*first, mag50, ends[0], mag90, ends[1], len(mag))


def _fit(
    mag: NDArray[np.float64], found: NDArray[np.bool_], start: tuple[float, float, float]
) -> tuple[float, float, float]:
    from scipy.optimize import minimize

    def cost(values: NDArray[np.float64]) -> float:
        plateau, middle, width = values
        share = plateau / (1 + np.exp(np.clip((mag - middle) / width, -50, 50)))
        share = np.clip(share, 1e-9, 1 - 1e-9)
        return -float(np.log(np.where(found, share, 1 - share)).sum())

    low, high = float(mag.min()), float(mag.max())
    bounds = [(0.02, 1.0), (low - 1.0, high + 1.0), (0.02, 3.0)]
    best = minimize(cost, start, method="L-BFGS-B", bounds=bounds)
    plateau, middle, width = map(float, best.x)
    return plateau, middle, width


def _reached(fitted: tuple[float, float, float], share: float, mag: NDArray[np.float64]) -> float:
    """Magnitude at which the curve passes `share`; NaN where it never does, or beyond all sources."""
    plateau, middle, width = fitted
    if plateau <= share:
        return math.nan
    level = middle + width * math.log(plateau / share - 1)
    return level if mag.min() <= level <= mag.max() else math.nan


def _interval(values: NDArray[np.float64], level: float, mag: NDArray[np.float64]) -> tuple[float, float]:
    """Central 95 % of the levels of resamplings; NaN where the data do not bound it.

    That is where some resamplings do not reach the level, and where the interval would be narrower than the gap
    between the two sources about it: then the resamplings only repeat each other.
    """
    if not np.isfinite(values).all() or not math.isfinite(level):
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    ordered = np.sort(mag)
    above = int(np.clip(np.searchsorted(ordered, level), 1, len(ordered) - 1))
    if high - low <= ordered[above] - ordered[above - 1]:
        return math.nan, math.nan
    return float(low), float(high)


@dataclass(frozen=True)
class Recovery:
    """Injected sources and candidates of all images, each with what became of it.

    Attributes
    ----------
    injected : Table
        ``image kind band mag x y snr found candidate_id distance_pix dx dy mag_found mag_err galaxy_distance
        saturated_distance``; distances to neighbours in pixels, `snr` as the noise of the image lets expect it.
    candidates : Table
        ``image candidate_id band mag snr true galaxy_distance saturated_distance``.
    images : Table
        ``image injected found candidates false area_deg2 mag_limit``.
    """

    injected: Table
    candidates: Table
    images: Table


def recover(
    results: Sequence[SearchResult], truth: Sequence[Path] = (), radius_arcsec: float = 2.0
) -> Recovery:
    """Match candidates and truth, image by image.

    Parameters
    ----------
    truth
        Truth tables for images that carry none of their own.
    radius_arcsec
        A candidate this near to an injected source is that source.

    Raises
    ------
    InputError
        No image has a truth table.
    FormatError
        A table cannot be read.
    """
    from astropy.table import Table, vstack

    tables = [(path, read_truth(path)) for path in truth]
    injected, candidates, images = [], [], []
    for result, known in zip(results, truths_of(results, tables), strict=True):
        if known is None:
            continue
        real = known[is_source(known)]
        ours, theirs = _one_image(result, real, radius_arcsec)
        injected.append(ours)
        candidates.append(theirs)
        false = int((~np.asarray(theirs["true"], bool)).sum())
        images.append(
            (
                result.name,
                len(ours),
                int(np.asarray(ours["found"], bool).sum()),
                len(theirs),
                false,
                result.number("area_deg2"),
                result.number("mag_limit"),
            )
        )
    if not images:
        raise InputError(
            f"no image has a truth table; put {TRUTH} beside the images, or name one with --truth"
        )
    names = ("image", "injected", "found", "candidates", "false", "area_deg2", "mag_limit")
    return Recovery(vstack(injected), vstack(candidates), Table(rows=images, names=names))


def _one_image(result: SearchResult, truth: Table, radius_arcsec: float) -> tuple[Table, Table]:
    from astropy.table import Table

    table = result.candidates
    x, y, mag, mag_err, snr = (_plain(table[name]) for name in ("x", "y", "mag", "mag_err", "snr"))
    match = match_truth(truth, x, y, result.pixels(radius_arcsec))
    found = match.closest >= 0
    tx, ty, tmag = (np.asarray(truth[name], np.float64) for name in ("x", "y", "mag"))
    band = str(result.candidates.meta.get("band") or "") or "unknown"
    names = np.array([str(name) for name in table["candidate_id"]] or [""], dtype=str)
    noise, zero_point = result.number("flux_err"), result.number("zero_point")
    neighbours = read_ecsv(result.folder / SURROUNDINGS)
    ours = Table(
        {
            "image": [result.name] * len(truth),
            "kind": [str(kind) for kind in truth["kind"]],
            "band": [band] * len(truth),
            "mag": tmag,
            "x": tx,
            "y": ty,
            "snr": _expected_snr(truth, tmag, zero_point, noise),
            "found": found,
            "candidate_id": np.where(found, names[match.closest], ""),
            "distance_pix": match.distance,
            **{
                name: _at(match.closest, values)
                for name, values in (("mag_found", mag), ("mag_err", mag_err))
            },
            "dx": _at(match.closest, x) - tx,
            "dy": _at(match.closest, y) - ty,
            **_distances(neighbours, tx, ty),
        }
    )
    theirs = Table(
        {
            "image": [result.name] * len(table),
            "candidate_id": [str(name) for name in table["candidate_id"]],
            "band": [band] * len(table),
            "mag": mag,
            "snr": snr,
            "true": match.owner >= 0,
            **_distances(neighbours, x, y),
        }
    )
    return ours, theirs


def _expected_snr(
    truth: Table, mag: NDArray[np.float64], zero_point: float, noise: float
) -> NDArray[np.float64]:
    """As the simulation computed it, else from the magnitude and the noise of a faint point source."""
    by_mag = 10 ** (-0.4 * (mag - zero_point)) / noise
    if "snr" not in truth.colnames:
        return by_mag
    told = _plain(truth["snr"])
    return np.where(np.isfinite(told), told, by_mag)


def _plain(column: Any) -> NDArray[np.float64]:
    return np.asarray(column.filled(np.nan) if hasattr(column, "filled") else column, np.float64)


def _at(rows: NDArray[np.intp], values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(rows >= 0, np.append(values, np.nan)[rows], np.nan)


def _distances(
    neighbours: Table, x: NDArray[np.float64], y: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Distance to the nearest galaxy and the nearest saturated star [pixel]; inf where there is none."""
    from scipy.spatial import cKDTree

    kinds = np.array([str(kind) for kind in neighbours["kind"]])
    out = {}
    for kind in ("galaxy", "saturated"):
        chosen = neighbours[kinds == kind] if len(neighbours) else neighbours
        distance = np.full(len(x), np.inf)
        if len(chosen) and len(x):
            tree = cKDTree(np.column_stack([np.asarray(chosen["x"]), np.asarray(chosen["y"])]))
            distance = np.asarray(tree.query(np.column_stack([x, y]))[0], np.float64)
        out[f"{kind}_distance"] = distance
    return out


def mag_edges(mag: NDArray[np.float64], step: float = MAG_STEP) -> NDArray[np.float64]:
    """Bins of `step` that hold all finite magnitudes, at round values."""
    good = mag[np.isfinite(mag)]
    if not good.size:
        return np.array([0.0, step])
    low, high = math.floor(good.min() / step), math.ceil(good.max() / step)
    return np.arange(low, max(high, low + 1) + 1) * step


@dataclass(frozen=True)
class Completeness:
    """All figures of merit.

    Attributes
    ----------
    recovery
        What they were computed from.
    by_mag, by_snr, by_galaxy, by_saturated
        Share of the injected point sources that was found.
    purity_by_mag, purity_by_snr, purity_by_galaxy, purity_by_saturated
        Share of the candidates that was injected.
    depth
        (kind, band) -> depth; point sources of all bands under ``("point", "all")``.
    bands
        band -> share found per magnitude bin.
    kinds
        kind -> (found, injected).
    """

    recovery: Recovery
    by_mag: Fractions
    by_snr: Fractions
    by_galaxy: Fractions
    by_saturated: Fractions
    purity_by_mag: Fractions
    purity_by_snr: Fractions
    purity_by_galaxy: Fractions
    purity_by_saturated: Fractions
    depth: dict[tuple[str, str], Depth]
    bands: dict[str, Fractions]
    kinds: dict[str, tuple[int, int]]

    @property
    def false_per_image(self) -> float:
        """Median number of candidates that nobody injected."""
        return float(np.median(np.asarray(self.recovery.images["false"], np.float64)))

    @property
    def false_per_deg2(self) -> float:
        """Candidates that nobody injected per square degree; NaN where an image has no area."""
        images = self.recovery.images
        area = float(np.sum(np.asarray(images["area_deg2"], np.float64)))
        return float(np.sum(images["false"])) / area if area > 0 else math.nan


def measure(recovery: Recovery, rng: np.random.Generator) -> Completeness:
    """Compute every figure of merit."""
    injected, candidates = recovery.injected, recovery.candidates
    found = np.asarray(injected["found"], bool)
    kind = np.array([str(value) for value in injected["kind"]])
    band = np.array([str(value) for value in injected["band"]])
    point = np.isin(kind, POINT_KINDS)
    mag = np.asarray(injected["mag"], np.float64)
    true = np.asarray(candidates["true"], bool)
    edges = mag_edges(mag[point])

    def share(column: str, limits: Any) -> Fractions:
        return binned(np.asarray(injected[column], np.float64)[point], found[point], limits)

    def purity(column: str, limits: Any) -> Fractions:
        return binned(np.asarray(candidates[column], np.float64), true, limits)

    names = sorted(set(band.tolist()))
    chosen = {("point", "all"): point}
    chosen |= {(one, "all"): kind == one for one in sorted(set(kind[~point].tolist()))}
    chosen |= {("point", name): point & (band == name) for name in names if len(names) > 1}
    depths = {key: fit_depth(mag[rows], found[rows], rng) for key, rows in chosen.items()}
    return Completeness(
        recovery,
        share("mag", edges),
        share("snr", SNR_EDGES),
        share("galaxy_distance", DISTANCE_EDGES),
        share("saturated_distance", DISTANCE_EDGES),
        purity("mag", mag_edges(np.asarray(candidates["mag"], np.float64))),
        purity("snr", SNR_EDGES),
        purity("galaxy_distance", DISTANCE_EDGES),
        purity("saturated_distance", DISTANCE_EDGES),
        {key: depth for key, depth in depths.items() if depth is not None},
        {name: binned(mag[point & (band == name)], found[point & (band == name)], edges) for name in names},
        {
            one: (int(found[kind == one].sum()), int((kind == one).sum()))
            for one in sorted(set(kind.tolist()))
        },
    )


def fractions_table(completeness: Completeness) -> Table:
    """Every fraction with its interval: ``figure low high total hits fraction fraction_low fraction_high``."""
    from astropy.table import Table

    figures = {
        "completeness against mag": completeness.by_mag,
        "completeness against snr": completeness.by_snr,
        "completeness against galaxy_distance": completeness.by_galaxy,
        "completeness against saturated_distance": completeness.by_saturated,
        "purity against mag": completeness.purity_by_mag,
        "purity against snr": completeness.purity_by_snr,
        "purity against galaxy_distance": completeness.purity_by_galaxy,
        "purity against saturated_distance": completeness.purity_by_saturated,
    }
    figures |= {f"completeness in {band}": values for band, values in completeness.bands.items()}
    rows = [
        (name, *values)
        for name, part in figures.items()
        for values in zip(
            part.edges[:-1], part.edges[1:], part.total, part.hits, part.fraction, *part.interval, strict=True
        )
    ]
    names = ("figure", "low", "high", "total", "hits", "fraction", "fraction_low", "fraction_high")
    return Table(rows=rows, names=names)
