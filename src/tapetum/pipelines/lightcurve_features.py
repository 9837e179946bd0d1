"""From light curves to a table of features: clean, periods, features, catalogues; one row per light curve."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tapetum.core.errors import InputError, UsageError
from tapetum.lightcurves.bright_stars import CONE_ARCSEC
from tapetum.lightcurves.clean import Cleaned, CleaningRules, clean
from tapetum.lightcurves.curves import KEY, LightCurves
from tapetum.lightcurves.features import SETS, FeatureSet, feature_table, features_of
from tapetum.lightcurves.formats.sources import CURVES_AT_A_TIME
from tapetum.lightcurves.periods.array_backend import backend_of
from tapetum.lightcurves.periods.search import PeriodRules, find_periods
from tapetum.pipelines.lightcurve_catalogues import (
    RADIUS_ARCSEC,
    Alerts,
    BrightStars,
    CatalogueFile,
    LocalCatalogue,
    check_files,
    nearest_entries,
    read_local,
)
from tapetum.pipelines.lightcurve_impute import IMPUTED, Imputation, impute_parts
from tapetum.pipelines.lightcurve_parts import Part, Recipe, inputs_of
from tapetum.pipelines.outputs import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from pydantic import BaseModel

    from tapetum.lightcurves.formats.sources import Source

ABOUT = ("object_id", "survey", "band", "ra", "dec", "field", "rcid", "ccd", "quadrant")
"""What is said of a curve beside its `lc_id`, where its source knows it; `object_id` always."""
UNITS = {"ra": "deg", "dec": "deg", "period": "d", "period_err": "d"}
DESCRIPTIONS = {
    KEY: "light curve: one id of a survey in one band",
    "object_id": "source: one position on the sky",
    "kept": "whether enough good points are left for features",
    "reason": "the rule that left it with too few",
    "n_before": "points that came",
    "n_after": "points that are left",
    "n_ztf_alerts": "alerts around the position",
    "mean_ztf_alert_braai": "their mean score, 0 where there is none",
    IMPUTED: "features that were missing and have been replaced",
}
ONES = "Ones"  # name of the period of one day, where none is searched for
BEST = "best"  # of the final period
GIVEN = "given"
PIECE, SEARCHED_PIECE = 20_000, 64  # curves of a unit of work, without and with a search for periods


@dataclass(frozen=True)
class FeatureOptions:
    """What is made of light curves.

    Attributes
    ----------
    sets
        Of features.
    periods
        How periods are searched for; None: not at all, and periodic features of `scope` are those at one day.
    given
        Columns of the light curves that hold periods [d]: ``period_X`` is called X, any other name ``given``.
    cleaning
        Which points and curves are good enough.
    catalogues
        Joined by position.
    gaia
        Table with Gaia's bright stars; sources in their glare get no features. None: none is looked for.
    alerts
        Table of alerts, of which those at the position are counted.
    radius_arcsec
        Farthest entry of a catalogue that counts.
    star_radius_arcsec
        Farthest bright star that counts.
    imputation
        How missing features are replaced; None: they stay missing.
    elsewhere
        What is asked of a server (`tapetum.pipelines.lightcurve_around`), as plain values.
    keep
        More columns of the light curves, for instance a label.
    device
        Where periodograms are computed (`tapetum.lightcurves.periods.array_backend.backend_of`).
    """

    sets: tuple[FeatureSet, ...] = ("scope",)
    periods: PeriodRules | None = None
    given: tuple[str, ...] = ()
    cleaning: CleaningRules = field(default_factory=CleaningRules)
    catalogues: tuple[CatalogueFile, ...] = ()
    gaia: str | None = None
    alerts: str | None = None
    radius_arcsec: float = RADIUS_ARCSEC
    star_radius_arcsec: float = CONE_ARCSEC
    imputation: Imputation | None = None
    elsewhere: Mapping[str, Any] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    device: str = "cpu"

    @property
    def files(self) -> list[str]:
        """Tables that are read beside the light curves."""
        others = [path for path in (self.gaia, self.alerts) if path is not None]
        fitted = [] if self.imputation is None else self.imputation.files
        return [*(catalogue.path for catalogue in self.catalogues), *others, *fitted]

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Names of the periods that features of the set `scope` are made at."""
        found = [_suffix(column) for column in self.given]
        if self.periods is not None:
            found += [*self.periods.algorithms, *filter(None, [self.periods.nested_suffix])]
        return tuple(found) or (ONES,)

    def described(self) -> dict[str, Any]:
        """What is decided, as plain values."""
        plain: dict[str, Any] = {
            name: value for name, value in vars(self).items() if value not in (None, (), {})
        }
        if self.device == "cpu":
            del plain["device"]
        plain["periods"] = None if self.periods is None else dumped(self.periods)
        plain["cleaning"] = dumped(self.cleaning)
        plain["catalogues"] = [[each.name, each.path, *each.columns] for each in self.catalogues]
        if self.imputation is not None:
            plain["imputation"] = self.imputation.described()
        return plain


def feature_sets(names: Iterable[str]) -> tuple[FeatureSet, ...]:
    """Sets by their names, each once.

    Raises
    ------
    UsageError
        There is no such set.
    """
    wanted = tuple(names)
    features_of(wanted)
    return tuple(name for name in SETS if name in wanted)


def dumped(rules: BaseModel) -> dict[str, Any]:
    """Rules as plain values."""
    return rules.model_dump(mode="json")


def _suffix(column: str) -> str:
    return column.removeprefix("period_") if column.startswith("period_") else GIVEN


def feature_recipe(paths: Sequence[str], options: FeatureOptions, sources: Sequence[Source] = ()) -> Recipe:
    """How `tapetum.pipelines.lightcurve_parts.make_once` makes features.

    Parameters
    ----------
    paths
        Of the light curves.
    options
        What is made of them.
    sources
        The light curves, opened: the fingerprint of a store is its own.

    Raises
    ------
    UsageError
        An unknown set of features, or a period that is called twice the same.
    InputError
        A catalogue is not there.
    """
    features = features_of(options.sets)
    check_files(options.files)
    names = [*options.suffixes, *([BEST] if _has_best(options) else [])]
    if len(set(names)) < len(names):
        raise UsageError(f"periods need different names, got {', '.join(names)}")
    units, descriptions = dict(UNITS), dict(DESCRIPTIONS)
    for feature in features:
        ends = [f"_{name}" for name in names] if feature.periodic else [""]
        units |= {f"{feature.name}{end}": feature.unit for end in ends if feature.unit}
        descriptions |= {f"{feature.name}{end}": feature.formula for end in ends}
    units |= {f"period_{name}": "d" for name in names}
    described = options.described()
    return Recipe(
        "lightcurves features",
        partial(feature_maker, options),
        described,
        fingerprint([*inputs_of(paths, sources), *options.files], {"verb": "features", **described}),
        units,
        descriptions,
        finish=None if options.imputation is None else partial(_imputed, options.imputation),
    )


def _imputed(imputation: Imputation, paths: Sequence[Path]) -> Sequence[Path]:
    return impute_parts(paths, imputation).paths


def feature_maker(options: FeatureOptions) -> Callable[[Part], Iterator[pa.Table]]:
    """The function of a worker, which has read the catalogues."""
    backend_of(options.device)  # a device that is not there is nobody's light curve's fault
    catalogues = [read_local(file) for file in options.catalogues]
    stars = None if options.gaia is None else BrightStars(options.gaia, options.star_radius_arcsec)
    alerts = None if options.alerts is None else Alerts(options.alerts)
    return partial(_features_of_part, options, catalogues, stars, alerts)


def _features_of_part(
    options: FeatureOptions,
    catalogues: Sequence[LocalCatalogue],
    stars: BrightStars | None,
    alerts: Alerts | None,
    part: Part,
) -> Iterator[pa.Table]:
    for curves in batches_or_none(part, CURVES_AT_A_TIME, (*options.keep, *options.given)):
        yield _features_of_curves(options, catalogues, stars, alerts, curves)


def batches_or_none(part: Part, n: int, names: Iterable[str] = ()) -> Iterator[LightCurves]:
    """Light curves of a part; if it has none, a batch without any: so that its table has columns, and no row.

    Parameters
    ----------
    names
        Columns beside the light curves that will be asked for.
    """
    empty = True
    for curves in part.batches(n):
        empty = False
        yield curves
    if empty:
        kinds: dict[str, pa.DataType] = {KEY: pa.string(), "ra": pa.float64(), "dec": pa.float64()}
        kinds |= {name: pa.float64() if name.startswith("period") else pa.null() for name in names}
        none = pa.table({name: pa.array([], kind) for name, kind in kinds.items()})
        yield LightCurves.of_lists([], [], [], none)


def _features_of_curves(
    options: FeatureOptions,
    catalogues: Sequence[LocalCatalogue],
    stars: BrightStars | None,
    alerts: Alerts | None,
    curves: LightCurves,
) -> pa.Table:
    ra, dec = position_of(curves)
    cleaned = clean(curves, options.cleaning, None if stars is None else stars.spoil(ra, dec))
    columns = about_curves(curves, options.keep) | about_cleaning(cleaned)
    columns |= spread(_features(cleaned.curves, options), cleaned.kept)
    for catalogue in catalogues:
        columns |= _by_name(nearest_entries(catalogue, ra, dec, options.radius_arcsec))
    if alerts is not None:
        columns |= _by_name(alerts.around(ra, dec, options.radius_arcsec))
    return pa.table(columns)


def about_curves(curves: LightCurves, keep: Sequence[str] = ()) -> dict[str, Any]:
    """`lc_id`, `object_id` and what else is known of each curve.

    Raises
    ------
    InputError
        A column that was asked for is not there.
    """
    require_kept(curves, keep)
    names = [name for name in ABOUT if name in curves.table.column_names]
    found = {KEY: curves.table[KEY], "object_id": pa.nulls(len(curves), pa.string())}
    found |= {name: curves.table[name] for name in (*names, *keep)}
    ra, dec = position_of(curves)
    places = {"ra": pa.array(ra, from_pandas=True), "dec": pa.array(dec, from_pandas=True)}
    return found | {name: place for name, place in places.items() if name in names}


def require_kept(curves: LightCurves, keep: Sequence[str]) -> None:
    """Refuse light curves without the columns that are to be kept.

    Raises
    ------
    InputError
        A column that was asked for is not there.
    """
    if absent := [name for name in keep if name not in curves.table.column_names]:
        raise InputError(
            f"no column {', '.join(absent)} beside the light curves: they have "
            f"{', '.join(curves.table.column_names)}"
        )


def about_cleaning(cleaned: Cleaned) -> dict[str, Any]:
    """What became of each curve in cleaning."""
    return _by_name(cleaned.table().select(["kept", "reason", "n_before", "n_after"]))


def position_of(curves: LightCurves) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Right ascension and declination of each curve [deg]; NaN where not known."""
    nowhere = np.full(len(curves), np.nan)
    ra, dec = (
        curves.table[name].cast(pa.float64()).to_numpy() if name in curves.table.column_names else nowhere
        for name in ("ra", "dec")
    )
    return ra, dec


def spread(table: pa.Table, kept: NDArray[np.bool_]) -> dict[str, Any]:
    """Rows of the curves that were kept as rows of all curves, null where a curve was not."""
    row = np.cumsum(kept) - 1
    return _by_name(table.take(pa.array(row, mask=~kept)))


def _by_name(table: pa.Table) -> dict[str, Any]:
    return dict(zip(table.column_names, table.columns, strict=True))


def _features(curves: LightCurves, options: FeatureOptions) -> pa.Table:
    """Periods and features of clean curves, without their ids."""
    columns: dict[str, Any] = {}
    periods: dict[str, NDArray[np.float64]] = {_suffix(name): _given(curves, name) for name in options.given}
    best: dict[str, NDArray[np.float64]] = {}
    if options.periods is not None:
        columns = _by_name(find_periods(curves, options.periods, backend=backend_of(options.device)).table)
        found = [*options.periods.algorithms, *filter(None, [options.periods.nested_suffix])]
        periods |= {name: _values(columns[f"period_{name}"]) for name in found}
        if _has_best(options):
            best = {BEST: _values(columns["period"])}
    scope = [name for name in options.sets if name != "tapetum"]
    if scope:
        columns |= _new(feature_table(curves, scope, periods or _ones(curves)), columns)
    if "tapetum" in options.sets:
        given = {_suffix(name): periods[_suffix(name)] for name in options.given}
        columns |= _new(feature_table(curves, ["tapetum"], best | given), columns)
    return pa.table({name: column for name, column in columns.items() if name not in (KEY, f"period_{BEST}")})


def _new(table: pa.Table, there: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of a table that are not there yet."""
    return {name: column for name, column in _by_name(table).items() if name not in there}


def _has_best(options: FeatureOptions) -> bool:
    return "tapetum" in options.sets and options.periods is not None and options.periods.ranking is not None


def _ones(curves: LightCurves) -> dict[str, NDArray[np.float64]]:
    return {ONES: np.ones(len(curves))}


def _given(curves: LightCurves, column: str) -> NDArray[np.float64]:
    if column not in curves.table.column_names:
        raise InputError(
            f"no column {column} of periods: light curves have {', '.join(curves.table.column_names)}"
        )
    return _values(curves.table[column])


def _values(column: Any) -> NDArray[np.float64]:
    """Numbers, NaN where there is none; a period is above 0."""
    try:
        values = np.array(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
    except pa.ArrowException:
        raise InputError("a column of periods does not hold numbers [d]") from None
    values[~(values > 0)] = np.nan
    return values
