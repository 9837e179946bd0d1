"""From light curves to a table of periods: one row per light curve, or one per source with all its light curves."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

import numpy as np
import pyarrow as pa

from tapetum.core.errors import InputError
from tapetum.lightcurves.clean import Cleaned, CleaningRules, clean
from tapetum.lightcurves.curves import KEY
from tapetum.lightcurves.formats.assemble import joined
from tapetum.lightcurves.periods.array_backend import backend_of
from tapetum.lightcurves.periods.search import PeriodRules, find_periods
from tapetum.pipelines.lightcurve_features import (
    DESCRIPTIONS,
    UNITS,
    about_cleaning,
    about_curves,
    batches_or_none,
    dumped,
    position_of,
    require_kept,
    spread,
)
from tapetum.pipelines.lightcurve_parts import APART, ORDER, Part, Recipe, inputs_of, parts_of, shares_of
from tapetum.pipelines.outputs import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from tapetum.lightcurves.curves import LightCurves
    from tapetum.lightcurves.formats.sources import Source

By = Literal["curve", "source"]
SOURCE = "object_id"
PIECE = 64  # curves of a unit of work
AT_A_TIME, WHOLE_AT_A_TIME = 64, 4  # curves or sources, without and with their periodograms
NOT_CLEAN = "no light curve has enough good points"
TELLS = {
    "period": "the final period",
    "period_err": "standard deviation at this peak; aliases are not in it",
    "period_order": "terms of the Fourier series",
    "period_power": "part of chi-square that the series explains",
    "period_log10_fap": "log10 of the false-alarm probability",
    "period_note": "why there is no period",
    "top_period": "best periods",
    "top_period_err": "their standard deviations",
    "top_information": "how much worse than the best, 10 is a lot",
    "top_relation": "alias of the best that each is",
    "n_curves": "light curves of the source",
    "n_kept": "those of them that have enough good points",
    "bands": "of the light curves that were used",
}


@dataclass(frozen=True)
class PeriodOptions:
    """How periods are searched for.

    Attributes
    ----------
    rules
        The search.
    by
        One row per light curve, or per source, all light curves of which are searched together.
    cleaning
        Which points and curves are good enough.
    keep
        More columns of the light curves in a table by curve.
    periodograms
        File for whole periodograms, as lists; None: they are not kept.
    device
        Where periodograms are computed (`tapetum.lightcurves.periods.array_backend.backend_of`).
    """

    rules: PeriodRules = field(default_factory=PeriodRules)
    by: By = "curve"
    cleaning: CleaningRules = field(default_factory=CleaningRules)
    keep: tuple[str, ...] = ()
    periodograms: str | None = None
    device: str = "cpu"

    def described(self) -> dict[str, Any]:
        """What is decided, as plain values."""
        device = {} if self.device == "cpu" else {"device": self.device}
        return {
            **device,
            "by": self.by,
            "rules": dumped(self.rules),
            "cleaning": dumped(self.cleaning),
            "keep": list(self.keep),
            "periodograms": self.periodograms,
        }


def period_parts(sources: Sequence[Source], by: By) -> list[Part]:
    """Units of work; by source each has whole sources."""
    return shares_of(sources) if by == "source" else parts_of(sources, PIECE)


def period_recipe(paths: Sequence[str], options: PeriodOptions, sources: Sequence[Source] = ()) -> Recipe:
    """How `tapetum.pipelines.lightcurve_parts.make_once` makes periods.

    Parameters
    ----------
    paths
        Of the light curves.
    options
        What is made of them.
    sources
        The light curves, opened: the fingerprint of a store is its own.
    """
    names = [*options.rules.algorithms, *filter(None, [options.rules.nested_suffix])]
    described = options.described()
    units = UNITS | {f"period_{name}": "d" for name in names} | {"top_period": "d", "top_period_err": "d"}
    told = DESCRIPTIONS | TELLS
    told |= {f"significance_{name}": "of the best value" for name in names}
    told |= {f"log10_fap_{name}": "log10 of the false-alarm probability" for name in names}
    return Recipe(
        "lightcurves periods",
        partial(period_maker, options),
        described,
        fingerprint(inputs_of(paths, sources), {"verb": "periods", **described}),
        units | {"frequency": "1/d"},
        told,
        SOURCE if options.by == "source" else None,
        options.periodograms,
    )


def period_maker(options: PeriodOptions) -> Callable[[Part], Iterator[pa.Table]]:
    """The function of a worker."""
    backend_of(options.device)  # a device that is not there is nobody's light curve's fault
    return partial(_by_source if options.by == "source" else _by_curve, options)


def _rules(options: PeriodOptions) -> tuple[PeriodRules, int]:
    """The search, and how many rows of it are held at a time."""
    keep = options.periodograms is not None
    return options.rules.model_copy(update={"keep": keep}), WHOLE_AT_A_TIME if keep else AT_A_TIME


def _by_curve(options: PeriodOptions, part: Part) -> Iterator[pa.Table]:
    rules, n = _rules(options)
    for curves in batches_or_none(part, n, options.keep):
        cleaned = clean(curves, options.cleaning)
        found = spread(_periods(cleaned.curves, rules, KEY, options.device), cleaned.kept)
        del found[KEY]
        yield pa.table(about_curves(curves, options.keep) | about_cleaning(cleaned) | found)


def _periods(curves: LightCurves, rules: PeriodRules, by: str, device: str) -> pa.Table:
    """Periods, and as lists the periodograms where they are kept."""
    found = find_periods(curves, rules, by, backend_of(device))
    table = found.table
    if found.periodograms is None:
        return table
    for name in ("frequency", *rules.algorithms):
        values = [row.get(name) for row in found.periodograms]
        table = table.append_column(f"{APART}{name}", pa.array(values, pa.large_list(pa.float64())))
    return table


# ---- all light curves of a source together -------------------------------------------------------------------------


def _by_source(options: PeriodOptions, part: Part) -> Iterator[pa.Table]:
    rules, n = _rules(options)
    curves, first = _share(part)
    owner, places = _owners(curves)
    for start in range(0, max(len(places), 1), n):  # one table, without rows, where there is no source
        mine = curves.take(np.flatnonzero((owner >= start) & (owner < start + n)))
        cleaned = clean(mine, options.cleaning)
        columns = _about_sources(mine, cleaned) | _kept(mine, options.keep)
        columns |= _in_order(_periods(cleaned.curves, rules, SOURCE, options.device), columns[SOURCE])
        yield pa.table(columns | {ORDER: pa.array(first[places[start : start + n]], pa.int64())})


def _share(part: Part) -> tuple[LightCurves, NDArray[np.int64]]:
    """Light curves of the sources of this unit, and their numbers among all light curves of the input."""
    taken: list[LightCurves] = []
    numbers: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    before = 0
    for curves in part.source.batches():
        names = _source_names(curves, part.source.name)
        mine = [crc32(name.encode()) % part.n_pieces == part.piece for name in names]
        which = np.flatnonzero(mine)
        table = curves.table.drop_columns(
            [name for name in (SOURCE,) if name in curves.table.column_names]
        ).append_column(SOURCE, pa.array(names, pa.string()))
        taken.append(_with_table(curves, table).take(which))
        numbers.append(which + before)
        before += len(curves)
    return joined(taken), np.concatenate(numbers)


def _with_table(curves: LightCurves, table: pa.Table) -> LightCurves:
    return replace(curves, table=table)


def _source_names(curves: LightCurves, name: str) -> list[str]:
    """`object_id`; a curve without one is a source of its own."""
    if SOURCE not in curves.table.column_names:
        raise InputError(
            f"{name}: no column {SOURCE}, so nobody knows which light curves are of one source; name it with "
            f"--column {SOURCE}=NAME, or search each light curve by itself with --by curve; it has: "
            f"{', '.join(curves.table.column_names)}"
        )
    pairs = zip(curves.table[SOURCE].to_pylist(), curves.ids, strict=True)
    return [str(lc_id) if source is None else str(source) for source, lc_id in pairs]


def _owners(curves: LightCurves) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of each curve's source, in order of appearance, and the first curve of each source."""
    numbers: dict[str, int] = {}
    names = curves.table[SOURCE].to_pylist() if len(curves) else []
    owner = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
    return owner, np.unique(owner, return_index=True)[1]


def _about_sources(curves: LightCurves, cleaned: Cleaned) -> dict[str, Any]:
    """What is known of each source: its place, its light curves, and which of them are good enough."""
    owner, first = _owners(curves)
    ra, dec = position_of(curves)
    names = curves.table[SOURCE].to_pylist() if len(curves) else []
    bands = curves.table["band"].to_pylist() if "band" in curves.table.column_names else [None] * len(curves)
    used: list[set[str]] = [set() for _ in first]
    for number, band, kept in zip(owner.tolist(), bands, cleaned.kept.tolist(), strict=True):
        if kept and band is not None:
            used[number].add(str(band))
    kept_curves = np.bincount(owner[cleaned.kept], minlength=first.size)
    return {
        SOURCE: pa.array([names[k] for k in first.tolist()], pa.string()),
        "ra": pa.array(ra[first], from_pandas=True),
        "dec": pa.array(dec[first], from_pandas=True),
        "n_curves": pa.array(np.bincount(owner, minlength=first.size), pa.int64()),
        "n_kept": pa.array(kept_curves, pa.int64()),
        "bands": pa.array([" ".join(sorted(names)) for names in used], pa.string()),
        "kept": pa.array(kept_curves > 0),
    }


def _kept(curves: LightCurves, keep: Sequence[str]) -> dict[str, Any]:
    """Columns that are kept: what the first light curve of each source has."""
    if not len(curves):  # the columns of what is not there are unknown
        return {}
    require_kept(curves, keep)
    first = _owners(curves)[1]
    return {name: curves.table[name].take(pa.array(first)) for name in keep}


def _in_order(found: pa.Table, names: Iterable[Any]) -> dict[str, Any]:
    """Rows of sources in this order; null where a source was not searched, which is said."""
    row = {name: number for number, name in enumerate(found[SOURCE].to_pylist())}
    wanted = [row.get(name.as_py()) for name in names]
    table = found.drop_columns([SOURCE]).take(pa.array(wanted, pa.int64()))
    notes = [
        NOT_CLEAN if number is None else note
        for number, note in zip(wanted, table["period_note"].to_pylist(), strict=True)
    ]
    columns = dict(zip(table.column_names, table.columns, strict=True))
    return columns | {"period_note": pa.array(notes, pa.string())}
