"""From light curves, or from features of them, to classes: one row per light curve, a part at a time.

What the models take decides which features are made: their sets, periods and catalogues are read off the cards.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.csv import open_csv

from tapetum.core.errors import FormatError, InputError, UsageError
from tapetum.core.files import sha256_of
from tapetum.core.settings import without_password
from tapetum.finders import variable_tree
from tapetum.finders.variable_group import VariableGroup, load_group
from tapetum.finders.variable_join import DESCRIBED
from tapetum.finders.variables import WORD, Config, specs_of
from tapetum.lightcurves.clean import CleaningRules, clean
from tapetum.lightcurves.curves import KEY, LightCurves
from tapetum.lightcurves.features import FEATURES, FeatureSet
from tapetum.lightcurves.formats.assemble import cut
from tapetum.lightcurves.formats.columns import Reading, recognise
from tapetum.lightcurves.formats.hats import is_hats
from tapetum.lightcurves.formats.opening import MATCHFILES
from tapetum.lightcurves.formats.sources import CURVES_AT_A_TIME, Given
from tapetum.lightcurves.periods.periodograms import Algorithm
from tapetum.lightcurves.periods.ranking import RankRules
from tapetum.lightcurves.wanted import NAMES, TEXTS, read_ids
from tapetum.models.registry import find_model
from tapetum.pipelines.lightcurve_features import (
    ABOUT,
    BEST,
    GIVEN,
    ONES,
    FeatureOptions,
    dumped,
    feature_maker,
    feature_recipe,
)
from tapetum.pipelines.lightcurve_parts import APART, Part, Recipe, inputs_of
from tapetum.pipelines.lightcurve_wanted import Matches, chosen_curves, chosen_rows
from tapetum.pipelines.outputs import fingerprint, refuse_twice
from tapetum.report.read_tables import READABLE, read_table, readable_format

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from tapetum.lightcurves.formats.sources import Source
    from tapetum.lightcurves.periods.search import PeriodRules

Kind = Literal["curves", "features", "wanted"]
ROWS_OF_A_PART = 20_000  # of a feature table
ROWS_AT_A_TIME = 5_000  # a row with its histogram has 3 kB
IDS = {KEY: ("_id", "ztf_id", "ztfid"), "object_id": ("obj_id",)}
"""Our name of a key -> what other tables of features call it."""
ENOUGH = 3  # features in a table of features
OF_FINAL = ("period", "period_err", "period_order", "period_power", "period_log10_fap")
OF_PERIODS = ("period", "significance", "log10_fap")
ALERTS = ("n_ztf_alerts", "mean_ztf_alert_braai")
CLASSIFIED = "is a classification already; `tapetum lightcurves combine` joins several"
BETWEEN = "__"  # between the name of a catalogue and that of its column


@dataclass(frozen=True)
class ClassifyOptions:
    """What is made of light curves or their features.

    Attributes
    ----------
    models
        Names, paths or folders of models.
    config, tree
        Of the finders: of models of one class, and of one over a tree of classes.
    features
        How features are made of light curves; not looked at where there are features already.
    tree_cleaning
        Which points and curves are good enough for a tree of classes.
    matches
        File that says which light curves are wanted, and of which sources they are; None: all are.
    keep_features
        Whether features are given back as well, in a file of their own.
    """

    models: tuple[str, ...]
    config: Config = field(default_factory=Config)
    tree: variable_tree.Config = field(default_factory=variable_tree.Config)
    features: FeatureOptions = field(default_factory=FeatureOptions)
    tree_cleaning: CleaningRules = field(
        default_factory=lambda: CleaningRules(min_points=variable_tree.LEAST_POINTS, cadence_minutes=0.0)
    )
    matches: str | None = None
    keep_features: bool = False

    def load(self) -> VariableGroup:
        """The models."""
        return load_group(self.models, self.config, self.tree)


# ---- what the input is ---------------------------------------------------------------------------------------------


def kind_of(path: str, needed: Sequence[str] = (), how: Reading | None = None) -> Kind:
    """Whether a file or folder has light curves, features of them, or says which sources are wanted.

    Parameters
    ----------
    path
        Of a folder that is no HATS catalogue, the first table that can be read decides.
    needed
        Columns that models take.
    how
        Names of columns.

    Raises
    ------
    InputError
        It is not there, or none of the three.
    """
    place = Path(path)
    if "://" in path:  # a store
        return "curves"
    if place.is_dir():
        if is_hats(place):
            return "curves"
        tables = [str(table) for table in tables_of(place)]
        kinds, _, problems = kinds_of(tables, needed, how, enough=1)
        if problems and not kinds:
            raise InputError(problems[0])
        return next(iter(kinds), "curves")
    if place.suffix.lower() in MATCHFILES:
        return "curves"
    try:
        schema = _schema_of(path)
    except FormatError:
        read_ids(path)  # a bare list of ids is no table
        return "wanted"
    if WORD.encode() in (schema.metadata or {}):
        raise InputError(f"{path}: {CLASSIFIED}")
    try:
        recognise(schema, path, how or Reading())
    except FormatError as problem:
        return _kind_of_columns(schema.names, needed, path, problem)
    return "curves"


def kinds_of(
    paths: Sequence[str], needed: Sequence[str] = (), how: Reading | None = None, *, enough: int | None = None
) -> tuple[set[Kind], list[str], list[str]]:
    """What files and folders are, those that can be used, and why others cannot.

    Parameters
    ----------
    paths, needed, how
        As for `kind_of`.
    enough
        Look no further after so many that can be used; None: look at all.
    """
    kinds: set[Kind] = set()
    usable: list[str] = []
    problems: list[str] = []
    for path in paths:
        if len(usable) == enough:
            break
        try:
            kinds.add(kind_of(path, needed, how))
        except (InputError, OSError) as problem:
            problems.append(str(problem))
        else:
            usable.append(path)
    return kinds, usable, problems


def is_classification(path: str) -> bool:
    """Whether a table is a classification, of ours or of the described system.

    Raises
    ------
    InputError
        It cannot be read.
    """
    schema = _schema_of(path)
    ours = WORD.encode() in (schema.metadata or {}) or {"flags", "error", KEY} <= set(schema.names)
    return ours or any(DESCRIBED.fullmatch(name) for name in schema.names)


def _kind_of_columns(names: Sequence[str], needed: Sequence[str], path: str, problem: FormatError) -> Kind:
    known = {feature.name for feature in FEATURES} | set(needed)
    lower = {name.lower() for name in names}
    if len(known & set(names)) >= ENOUGH:
        return "features"
    if {"flags", "error", KEY} <= set(names):
        raise InputError(f"{path}: {CLASSIFIED}")
    if lower & set(NAMES[KEY]) or (lower & set(NAMES["ra"]) and lower & set(NAMES["dec"])):
        return "wanted"
    raise InputError(f"{path}: neither features nor a list of sources, nor light curves: {problem}") from None


def _schema_of(path: str) -> pa.Schema:
    if readable_format(path) == "parquet":
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        try:
            return pq.read_schema(path)
        except (pa.ArrowException, OSError) as problem:
            raise FormatError(f"{path}: not Parquet: {problem}") from None
    if readable_format(path) == "csv" and Path(path).is_file():
        try:  # the first lines say it
            with pa.input_stream(path, compression="detect") as file, open_csv(file) as reader:
                return reader.schema
        except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
            raise FormatError(f"{path}: not CSV: {problem}") from None
    return read_table(path).schema


def tables_of(path: str | Path) -> list[Path]:
    """A table itself; of a folder the tables in it, by name."""
    place = Path(path)
    if not place.is_dir():
        return [place]
    return sorted(file for file in place.iterdir() if file.is_file() and file.suffix.lower() in READABLE)


# ---- what the models take ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needs:
    """What has to be made of light curves so that models can be run.

    Attributes
    ----------
    sets
        Of features.
    suffixes
        Names of periods.
    ranked
        Whether the final period is needed.
    catalogues
        Name of a catalogue -> a model that takes something of it.
    others
        Columns that nobody here makes -> a model that takes each.
    """

    sets: tuple[FeatureSet, ...] = ()
    suffixes: tuple[str, ...] = ()
    ranked: bool = False
    catalogues: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)


def needs_of(columns: Mapping[str, str]) -> Needs:
    """What makes these columns.

    Parameters
    ----------
    columns
        Column of a feature table -> who needs it.
    """
    fixed = {feature.name: feature.of for feature in FEATURES if not feature.periodic}
    sets: dict[FeatureSet, None] = {}
    suffixes: dict[str, None] = {}
    catalogues: dict[str, str] = {}
    others: dict[str, str] = {}
    ranked = False
    for name, model in columns.items():
        base, suffix = _folded(name)
        if name in fixed:
            sets[fixed[name]] = None
        elif name in OF_FINAL:
            ranked = True
        elif base is not None:
            suffixes[suffix] = None
            sets |= {feature.of: None for feature in FEATURES if feature.name == base and feature.periodic}
        elif BETWEEN in name:
            catalogues.setdefault(name.partition(BETWEEN)[0], model)
        else:
            others[name] = model
    return Needs(tuple(sets), tuple(suffixes), ranked or BEST in suffixes, catalogues, others)


def _folded(name: str) -> tuple[str | None, str]:
    """Feature and period of a column such as ``f1_power_LS``."""
    bases = [feature.name for feature in FEATURES if feature.periodic] + list(OF_PERIODS)
    for base in sorted(bases, key=len, reverse=True):
        if name.startswith(f"{base}_"):
            return base, name.removeprefix(f"{base}_")
    return None, ""


def algorithms_of(suffixes: Sequence[str]) -> tuple[Algorithm, ...]:
    """Searches for periods of these names, such as ``LS_CE_AOV``."""
    known: dict[str, Algorithm] = {name: name for name in get_args(Algorithm)}
    parts = [suffix.split("_") for suffix in suffixes]
    return tuple(dict.fromkeys(known[name] for names in parts if set(names) <= set(known) for name in names))


def features_for(
    needs: Needs,
    given: FeatureOptions,
    rules: PeriodRules,
    curve_columns: Sequence[str] = (),
    served: Sequence[str] = (),
    *,
    absent: Literal["error", "missing"] = "error",
) -> FeatureOptions:
    """How features are made, so that models have what they need.

    Parameters
    ----------
    needs
        Of the models.
    given
        What the user says: cleaning, catalogues, columns with periods; sets that are made anyway.
    rules
        How periods are searched for, if any are needed; its algorithms are those that are.
    curve_columns
        What the light curves say of themselves: a needed column among these is taken from there.
    served
        Catalogues and features that a server gives.
    absent
        Whether it is an error that nobody makes a column.

    Raises
    ------
    UsageError
        Something is needed that nobody makes; says which option does.
    """
    there = {
        column.removeprefix("period_") if column.startswith("period_") else GIVEN for column in given.given
    }
    missing = [suffix for suffix in needs.suffixes if suffix not in there]
    wanted = [suffix for suffix in missing if suffix not in (ONES, BEST)]
    algorithms = algorithms_of(wanted)
    sets = {*given.sets, *needs.sets, *(["tapetum"] if needs.ranked else [])}
    periods = None
    if algorithms or needs.ranked:
        search = {
            "algorithms": algorithms or rules.algorithms,
            "ranking": RankRules() if needs.ranked else None,
        }
        periods = rules.model_copy(update=search)
    names = [name for name in (*needs.catalogues, *needs.others) if name not in curve_columns]
    keep = [name for name in curve_columns if _belongs(name, needs) and name not in ABOUT]
    options = replace(
        given, sets=_ordered(sets), periods=periods, keep=tuple(dict.fromkeys([*given.keep, *keep]))
    )
    _check_periods(missing, options)
    if absent == "error":
        _check_tables(needs, options, curve_columns, [name for name in names if name not in served])
    return options


def _belongs(name: str, needs: Needs) -> bool:
    return name in needs.others or name.partition(BETWEEN)[0] in needs.catalogues


def _ordered(sets: Collection[str]) -> tuple[FeatureSet, ...]:
    return tuple(name for name in get_args(FeatureSet) if name in sets) or ("scope",)


def _check_periods(missing: Sequence[str], options: FeatureOptions) -> None:
    made = {*options.suffixes, *([BEST] if BEST in missing else [])}
    lacking = [suffix for suffix in missing if suffix not in made]
    if lacking:
        raise UsageError(
            f"the models need features at the period {lacking[0]}, which is not made in one run with "
            f"{', '.join(sorted(made))}; name a column of the light curves with it (--period-column "
            f"period_{lacking[0]}), or run the models one group after the other"
        )


def _check_tables(
    needs: Needs, options: FeatureOptions, curve_columns: Sequence[str], names: Sequence[str]
) -> None:
    given = {catalogue.name for catalogue in options.catalogues}
    own = {column.partition(BETWEEN)[0] for column in curve_columns if BETWEEN in column}
    remedy = "a --server that has it, or --absent missing, which treats it like a missing value"
    for name, model in needs.catalogues.items():
        if name in names and name not in given | own:
            option = {"Gaia_EDR3": "--gaia", "PS1_DR1": "--ps1", "AllWISE": "--allwise"}.get(
                name, f"--catalogue {name}="
            )
            raise UsageError(f"model {model} needs columns of {name}: give {option} TABLE, {remedy}")
    for name, model in needs.others.items():
        if name in ALERTS and options.alerts is None and name in names:
            raise UsageError(f"model {model} needs {name}: give --alerts TABLE, {remedy}")
        if name not in ALERTS and name in names:
            raise UsageError(
                f"model {model} needs the feature {name}, which is neither made here nor a column of the light "
                "curves: give a table of features, or --absent missing, which treats it like a missing value"
            )


# ---- the work ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TablePart:
    """A unit of work with rows of features.

    Attributes
    ----------
    number
        Its place among all.
    path
        Of the table.
    groups
        Row groups of a Parquet file; None: all of the table.
    n_parts
        Units that the table falls into.
    """

    number: int
    path: str
    groups: tuple[int, ...] | None = None
    n_parts: int = 1

    @property
    def name(self) -> str:
        """For messages."""
        if self.n_parts == 1 or self.groups is None:
            return self.path
        return f"{self.path}, row groups {self.groups[0]} to {self.groups[-1]}"

    def tables(self) -> Iterator[pa.Table]:
        """The rows, some at a time, with their keys under our names.

        Raises
        ------
        InputError
            The table cannot be read, or has no ids.
        """
        if self.groups is None:
            whole = with_keys(read_table(self.path, names=TEXTS), self.path)
            for start in range(0, max(whole.num_rows, 1), ROWS_AT_A_TIME):
                yield whole.slice(start, ROWS_AT_A_TIME)
            return
        empty = True
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(ROWS_AT_A_TIME, row_groups=list(self.groups)):
                empty = False
                yield with_keys(pa.Table.from_batches([batch]), self.path)
            if empty:
                yield with_keys(file.schema_arrow.empty_table(), self.path)


def table_parts(paths: Sequence[str], rejected: Callable[[str], None]) -> list[TablePart]:
    """Units of work of tables of features, and of those in folders.

    Parameters
    ----------
    rejected
        Told why a table cannot be used.

    Raises
    ------
    UsageError
        A table is named twice.
    """
    found: list[TablePart] = []
    for given in paths:
        if "://" in given:
            rejected(f"{without_password(given)}: a store has light curves, no table of features")
    files = [str(file) for given in paths if "://" not in given for file in tables_of(given)]
    refuse_twice(files)
    for path in files:
        try:
            groups = _groups(path)
        except InputError as problem:
            rejected(str(problem))
            continue
        found += [TablePart(len(found) + k, path, part, len(groups)) for k, part in enumerate(groups)]
    return found


def _groups(path: str) -> list[tuple[int, ...] | None]:
    """Row groups that together have about `ROWS_OF_A_PART` rows."""
    if readable_format(path) != "parquet":
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        return [None]
    _schema_of(path)
    metadata = pq.read_metadata(path)
    found: list[list[int]] = [[]]
    rows = 0
    for group in range(metadata.num_row_groups):
        if rows >= ROWS_OF_A_PART:
            found.append([])
            rows = 0
        found[-1].append(group)
        rows += metadata.row_group(group).num_rows
    return [tuple(part) for part in found]


def with_keys(table: pa.Table, name: str) -> pa.Table:
    """A table of features with the ids of light curves and sources under our names, as text.

    Raises
    ------
    FormatError
        It has no ids of light curves.
    """
    for ours, theirs in IDS.items():
        found = next((key for key in (ours, *theirs) if key in table.column_names), None)
        if found is None and ours == KEY:
            raise FormatError(
                f"{name}: no ids of light curves ({', '.join((ours, *theirs))}); "
                f"it has: {' '.join(table.column_names[:30])}"
            )
        ids = pa.nulls(table.num_rows, pa.string()) if found is None else table[found].cast(pa.string())
        if ours in table.column_names:
            table = table.set_column(table.column_names.index(ours), ours, ids)
        else:
            table = table.add_column(0 if ours == KEY else 1, ours, ids)
    return table


def identities(models: Sequence[str]) -> list[str]:
    """What decides the answers of models: the hash of each network and its card, not where they lie."""
    found = [find_model(spec) for spec in specs_of(models)]
    return [f"{model.name} {sha256_of(model.card)} {sha256_of(model.onnx)}" for model in found]


def classify_recipe(
    paths: Sequence[str],
    kind: Kind,
    options: ClassifyOptions,
    finder: VariableGroup,
    features_file: str | None = None,
    sources: Sequence[Source] = (),
) -> Recipe:
    """How `tapetum.pipelines.lightcurve_parts.make_once` classifies.

    Parameters
    ----------
    paths
        Of light curves or features.
    kind
        Which of the two.
    options
        What is made of them.
    finder
        The loaded models.
    features_file
        Where features go, if they are kept.
    sources
        The light curves, opened: the fingerprint of a store is its own.
    """
    about = finder.about()
    described: dict[str, Any] = {"models": list(options.models), **options.config.model_dump(mode="json")}
    if finder.tree is not None:
        described |= {"tree": options.tree.model_dump(mode="json"), "cleaning": dumped(options.tree_cleaning)}
    units, descriptions, files = {"ra": "deg", "dec": "deg"}, {}, []
    if kind == "curves":
        made = feature_recipe(paths, options.features)
        units, descriptions = dict(made.units), dict(made.descriptions)
        described["features"] = options.features.described()
        files = options.features.files
    if options.matches is not None:
        files = [*files, options.matches]
    content = {"verb": "classify", "kind": kind, "cards": identities(options.models), **described}
    maker = curves_maker if kind == "curves" else rows_maker
    return Recipe(
        "lightcurves classify",
        partial(maker, replace(options, keep_features=features_file is not None)),
        described,
        fingerprint([*inputs_of(paths, sources), *files], content),
        units,
        descriptions | finder.columns,
        None,
        features_file,
        {WORD: json.dumps(about)},
    )


def rows_maker(options: ClassifyOptions) -> Callable[[TablePart], Iterator[pa.Table]]:
    """The function of a worker for tables of features."""
    return partial(_of_rows, options.load(), options)


def _of_rows(finder: VariableGroup, options: ClassifyOptions, part: TablePart) -> Iterator[pa.Table]:
    matches = None if options.matches is None else Matches.read(options.matches)
    for table in part.tables():
        yield finder.find(table if matches is None else chosen_rows(table, matches, part.path))


def curves_maker(options: ClassifyOptions) -> Callable[[Part], Iterator[pa.Table]]:
    """The function of a worker for light curves."""
    return partial(_of_curves, options.load(), feature_maker(options.features), options)


def _of_curves(
    finder: VariableGroup,
    make: Callable[[Part], Iterator[pa.Table]],
    options: ClassifyOptions,
    part: Part,
) -> Iterator[pa.Table]:
    matches = None if options.matches is None else Matches.read(options.matches)
    for batch in part.batches(CURVES_AT_A_TIME):
        wanted = batch if matches is None else chosen_curves(batch, matches, part.source.name)
        for curves in cut(wanted, CURVES_AT_A_TIME):
            yield _classified(finder, make, options, curves, part.name)


def _classified(
    finder: VariableGroup,
    make: Callable[[Part], Iterator[pa.Table]],
    options: ClassifyOptions,
    curves: LightCurves,
    name: str,
) -> pa.Table:
    features = None
    if finder.binary is not None or options.keep_features:
        features = pa.concat_tables(list(make(Part(0, Given(name, curves)))))
    found = finder.find(features, curves, clean(curves, options.tree_cleaning) if finder.tree else None)
    if options.keep_features and features is not None:
        for column in features.column_names:
            found = found.append_column(f"{APART}{column}", features[column])
    return found
