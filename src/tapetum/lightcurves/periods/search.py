"""Periods of many light curves, one by one or one per source."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from tapetum.core.errors import InputError
from tapetum.lightcurves.curves import KEY, LightCurves
from tapetum.lightcurves.periods.grid import Grid, GridRules, Values, Whole
from tapetum.lightcurves.periods.nested import Choice, nested_choice, proposed_by_entropy
from tapetum.lightcurves.periods.noise import NoiseLaw, log_single, noise_laws, series_noise, series_power
from tapetum.lightcurves.periods.periodograms import (
    Algorithm,
    Periodogram,
    StatisticRules,
    periodograms,
    run,
)
from tapetum.lightcurves.periods.points import Points
from tapetum.lightcurves.periods.ranking import Ranked, RankRules, rank
from tapetum.lightcurves.periods.significance import SeriesNoise
from tapetum.lightcurves.periods.stream import Digest

if TYPE_CHECKING:
    from tapetum.lightcurves.periods.array_backend import Backend

LARGEST_LOG = 709.0  # of a float64
SERIES: tuple[Algorithm, ...] = ("LS", "ELS")
ENTROPIES: tuple[Algorithm, ...] = ("CE", "ECE")
VARIANCES: tuple[Algorithm, ...] = ("AOV", "EAOV")


class PeriodRules(BaseModel):
    """What to search, how, and what to tell of it.

    Attributes
    ----------
    algorithms
        LS: weighted Lomb-Scargle with a free mean. CE: conditional entropy. AOV: multi-harmonic analysis of
        variance. ELS, ECE, EAOV: what these names mean on GPUs in the described system: the classical unweighted
        Lomb-Scargle, entropy of magnitudes scaled into the inside of the histogram, variance between phase bins.
        BLS: boxes.
    grid, statistics
        Frequencies, and the shapes of the statistics.
    nested
        Which frequencies entropy proposes to the nested choice, made if a Lomb-Scargle, an entropy and an
        analysis of variance are among the algorithms; None: no nested choice.
    top
        Frequencies that Lomb-Scargle and entropy propose each.
    significance
        Of all but LS: distance of the best value from the mean over the standard deviation, or from the median
        over the median absolute deviation. That of LS is 1 / FAP.
    ranking
        How the final period is found; None: no final period, as the described system has none.
    trials
        Shuffled curves to search for calibrated false-alarm probabilities, each as long as the search itself; 0:
        none.
    seed
        Of the shuffling.
    keep
        Whether to give whole periodograms back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    algorithms: tuple[Algorithm, ...] = Field(default=("LS", "CE", "AOV"), min_length=1)
    grid: GridRules = GridRules()
    statistics: StatisticRules = StatisticRules()
    nested: Choice | None = "lowest"
    top: int = Field(default=50, ge=1, le=10_000)
    significance: Literal["stdmean", "madmedian"] = "stdmean"
    ranking: RankRules | None = RankRules()
    trials: int = Field(default=0, ge=0, le=100_000)
    seed: int = 0
    keep: bool = False

    @property
    def nested_names(self) -> tuple[Algorithm, Algorithm, Algorithm] | None:
        """The algorithms of the nested choice, if it is to be made."""
        found = [
            next((a for a in self.algorithms if a in kind), None) for kind in (SERIES, ENTROPIES, VARIANCES)
        ]
        series, entropy, variance = found
        if self.nested is None or series is None or entropy is None or variance is None:
            return None
        return series, entropy, variance

    @property
    def nested_suffix(self) -> str | None:
        """Name of the nested choice in columns: LS_CE_AOV, ELS_ECE_EAOV, ..."""
        return "_".join(self.nested_names) if self.nested_names else None


@dataclass(frozen=True)
class Found:
    """Periods of curves or sources.

    Attributes
    ----------
    table
        One row per curve (`lc_id`) or source (`object_id`), in order. For each algorithm X ``period_X`` [d],
        ``significance_X`` and ``log10_fap_X`` (null where neither theory nor trials tell it);
        ``period_LS_CE_AOV`` and ``significance_LS_CE_AOV`` of the nested choice (the ratio of variances itself,
        or its significance if the choice is not "lowest"); and of the final period ``period``, ``period_err``
        [d], ``period_order`` (terms of the series), ``period_power``, ``period_log10_fap``, and the lists
        ``top_period``, ``top_period_err``, ``top_information``, ``top_relation``. ``period_note`` says why there
        is no period.
    periodograms
        With `keep`: per row the frequencies and by algorithm the values at them; masked intervals left out.
    """

    table: pa.Table
    periodograms: list[dict[str, Values]] | None = None


@dataclass
class _Row:
    """What is found for one row; what stays out of `values` is null."""

    values: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Values] = field(default_factory=dict)


def find_periods(
    curves: LightCurves, rules: PeriodRules, by: str = KEY, backend: Backend | None = None
) -> Found:
    """Search each light curve, or with ``by="object_id"`` all light curves of a source together.

    Together means: one frequency, everything else of each band for itself (`Pooled`). Points that are not finite
    or have no error are left out. A row without a period (fewer than 5 points, all at one time or of one
    magnitude, too long a grid) has nulls and says why in ``period_note``.

    Raises
    ------
    InputError
        The table of the curves has no column `by`.
    """
    if by not in curves.table.column_names:
        raise InputError(
            f"light curves have no column {by}: they have {', '.join(curves.table.column_names)}"
        )
    keys, members = _groups(curves, by)
    rows = [_row(_bands(curves, which), rules, backend) for which in members]
    columns: dict[str, pa.Array] = {by: pa.array(keys)}
    for name, kind in _schema(rules).items():
        columns[name] = pa.array([_plain(row.values.get(name)) for row in rows], kind)
    return Found(pa.table(columns), [row.kept for row in rows] if rules.keep else None)


def _groups(curves: LightCurves, by: str) -> tuple[list[Any], list[Whole]]:
    names = curves.table[by].to_pylist()
    if by == KEY:
        return names, [np.array([i]) for i in range(len(names))]
    members: dict[Any, list[int]] = {}
    for i, name in enumerate(names):
        members.setdefault(name, []).append(i)
    return list(members), [np.array(which) for which in members.values()]


def _bands(curves: LightCurves, which: Whole) -> list[Points]:
    """Usable bands of a source; light curves of one band are bands of their own, as zero points may differ."""
    bands = []
    for i in which.tolist():
        part = slice(curves.offsets[i], curves.offsets[i + 1])
        points = Points.of(curves.time[part], curves.mag[part], curves.magerr[part])
        if points.usable:
            bands.append(points)
    epoch = min((points.epoch for points in bands), default=0.0)
    return [points.since(epoch) for points in bands]


def _row(bands: list[Points], rules: PeriodRules, backend: Backend | None) -> _Row:
    row = _Row()
    if not bands:
        row.values["period_note"] = "fewer than 5 usable points, or all at one time or of one magnitude"
        return row
    try:
        grid = rules.grid.grid(max(float(points.time[-1]) for points in bands))
    except InputError as error:
        row.values["period_note"] = str(error)
        return row
    _search(bands, grid, rules, row, backend)
    return row


def _search(bands: list[Points], grid: Grid, rules: PeriodRules, row: _Row, backend: Backend | None) -> None:
    grams = periodograms(rules.algorithms, bands, grid, rules.statistics, backend)
    peaks = rules.ranking.candidates if rules.ranking else 1
    digests = {name: Digest(grid, gram.largest, rules.top, peaks) for name, gram in grams.items()}
    nested = rules.nested_names
    high = Digest(grid, True, rules.top, 1) if nested and rules.nested == "fixed" else None
    whole = _kept_names(rules)
    kept = {name: np.empty(grid.count) for name in whole}
    for start, values in run(grams, grid):
        for name, digest in digests.items():
            digest.absorb(start, values[name])
        if nested and high:
            high.absorb(start, values[nested[1]])
        for name in whole:
            kept[name][start : start + values[name].size] = values[name]
    there = np.flatnonzero(grid.kept()) if whole else None
    laws = _laws(bands, grid, rules)
    for name, digest in digests.items():
        scale = _scale(digest, kept.get(name), there, rules.significance)
        _tell(row, name, digest, grid, bands, rules, laws.get(name), scale)
    if nested:
        numbers = proposed_by_entropy(
            rules.nested or "lowest", rules.top, digests[nested[1]], high, kept.get(nested[1]), there
        )
        _tell_nested(
            row, grams[nested[2]], digests[nested[0]].top()[0], numbers, digests[nested[2]], grid, rules
        )
    if rules.keep and there is not None:
        row.kept["frequency"] = grid.at(there)
        row.kept.update({name: values[there] for name, values in kept.items()})
    if rules.ranking:
        candidates = np.concatenate([grid.at(digest.peaks()[0]) for digest in digests.values()])
        _tell_ranked(row, bands, rank(bands, candidates, grid, rules.ranking), grid)


def _kept_names(rules: PeriodRules) -> tuple[Algorithm, ...]:
    if rules.keep or rules.significance == "madmedian":
        return rules.algorithms
    return (rules.nested_names[1],) if rules.nested_names and rules.nested == "shipped" else ()


def _laws(bands: list[Points], grid: Grid, rules: PeriodRules) -> dict[Algorithm, NoiseLaw]:
    if not rules.trials:
        return {}
    rng = np.random.default_rng(rules.seed)
    return noise_laws(rules.algorithms, bands, grid, rules.statistics, rules.trials, rng)


def _scale(
    digest: Digest, values: Values | None, there: Whole | None, kind: Literal["stdmean", "madmedian"]
) -> tuple[float, float]:
    """Centre and scatter that a best value is compared with."""
    if kind == "stdmean" or values is None or there is None:
        return digest.mean, digest.scatter
    middle = float(np.nanmedian(values[there]))
    return middle, float(np.nanmedian(np.abs(values[there] - middle)))


def _tell(
    row: _Row,
    name: Algorithm,
    digest: Digest,
    grid: Grid,
    bands: list[Points],
    rules: PeriodRules,
    law: NoiseLaw | None,
    scale: tuple[float, float],
) -> None:
    numbers, values = digest.top()
    if not numbers.size:
        return
    value = values[:1]
    bound = np.nan
    if name in ("LS", "ELS", "AOV"):
        noise = series_noise(name, bands, rules.statistics)
        power = series_power(name, value, bands, rules.statistics)
        bound = float(noise.log_fap(power, _highest(grid))[0]) if noise.freedom > 0 else np.nan
    log_fap = bound
    if law is not None:
        log_fap = law.log_fap(float(value[0]), float(log_single(name, value, bands, rules.statistics)[0]))
    row.values[f"period_{name}"] = 1 / float(grid.at(numbers[:1])[0])
    row.values[f"log10_fap_{name}"] = log_fap / math.log(10)
    if name == "LS":
        row.values["significance_LS"] = math.exp(min(-bound, LARGEST_LOG))
    elif scale[1] > 0:
        row.values[f"significance_{name}"] = abs(float(value[0]) - scale[0]) / scale[1]


def _tell_nested(
    row: _Row,
    variance: Periodogram,
    series: Whole,
    entropy: Whole,
    digest: Digest,
    grid: Grid,
    rules: PeriodRules,
) -> None:
    number, ratio = nested_choice(series, entropy, variance)
    if number < 0:
        return
    row.values[f"period_{rules.nested_suffix}"] = 1 / float(grid.at(np.array([number]))[0])
    if rules.nested != "lowest" and digest.scatter > 0:
        ratio = abs(ratio - digest.mean) / digest.scatter
    row.values[f"significance_{rules.nested_suffix}"] = ratio


def _tell_ranked(row: _Row, bands: list[Points], ranked: Ranked, grid: Grid) -> None:
    if not ranked.frequency.size:
        return
    period = 1 / ranked.frequency
    error = ranked.error * period**2
    order = int(ranked.order[0])
    noise = SeriesNoise.of(bands, order)
    row.values |= {
        "period": float(period[0]),
        "period_err": float(error[0]),
        "period_order": order,
        "period_power": float(ranked.power[0]),
        "top_period": period.tolist(),
        "top_period_err": error.tolist(),
        "top_information": ranked.information.tolist(),
        "top_relation": list(ranked.relation),
    }
    if noise.freedom > 0:
        row.values["period_log10_fap"] = float(
            noise.log_fap(float(ranked.power[0]), _highest(grid))
        ) / math.log(10)


def _highest(grid: Grid) -> float:
    """The highest frequency that is not masked."""
    number = grid.count - 1
    for begin, end in grid.gaps()[::-1]:
        if begin <= number < end:
            number = int(begin) - 1
    return float(grid.at(np.array(max(number, 0))))


def _schema(rules: PeriodRules) -> dict[str, pa.DataType]:
    names: dict[str, pa.DataType] = {}
    for name in rules.algorithms:
        names |= {f"{kind}_{name}": pa.float64() for kind in ("period", "significance", "log10_fap")}
    if rules.nested_suffix:
        names |= {f"{kind}_{rules.nested_suffix}": pa.float64() for kind in ("period", "significance")}
    if rules.ranking:
        names |= {
            "period": pa.float64(),
            "period_err": pa.float64(),
            "period_order": pa.int32(),
            "period_power": pa.float64(),
            "period_log10_fap": pa.float64(),
            "top_period": pa.list_(pa.float64()),
            "top_period_err": pa.list_(pa.float64()),
            "top_information": pa.list_(pa.float64()),
            "top_relation": pa.list_(pa.string()),
        }
    return names | {"period_note": pa.string()}


def _plain(value: Any) -> Any:
    """NaN and infinity are null in a table."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
