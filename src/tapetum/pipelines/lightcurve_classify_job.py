"""The whole road from what a user names to classes: find out what it is, fetch or match what is wanted, classify."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tapetum.core.errors import InputError, UsageError
from tapetum.core.settings import without_password
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.formats.columns import Reading
from tapetum.lightcurves.formats.sources import Given
from tapetum.pipelines.lightcurve_around import AroundOptions, with_server
from tapetum.pipelines.lightcurve_classify import (
    ALERTS,
    BETWEEN,
    ClassifyOptions,
    Kind,
    Needs,
    classify_recipe,
    curves_maker,
    features_for,
    identities,
    kinds_of,
    needs_of,
    table_parts,
)
from tapetum.pipelines.lightcurve_classify_run import (
    ClassifyReport,
    Outputs,
    Remote,
    beside,
    classify_once,
    dated_folder,
    fetch_input,
    in_folder,
    is_folder,
    matches_told,
    on_disk,
)
from tapetum.pipelines.lightcurve_features import PIECE, SEARCHED_PIECE, feature_recipe
from tapetum.pipelines.lightcurve_parts import Part, inputs_of, make_once, parts_of
from tapetum.pipelines.lightcurve_wanted import SEPARATION, Matches, match_recipe, only_wanted
from tapetum.pipelines.outputs import STDOUT, check_output, fingerprint
from tapetum.pipelines.steps import TROUBLE
from tapetum.report.tables import table_format

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    import pyarrow as pa

    from tapetum.core.progress import Progress
    from tapetum.core.settings import Settings
    from tapetum.finders.variable_group import VariableGroup
    from tapetum.lightcurves.formats.sources import Source
    from tapetum.lightcurves.periods.search import PeriodRules
    from tapetum.pipelines.lightcurve_classify import TablePart
    from tapetum.pipelines.lightcurve_features import FeatureOptions
    from tapetum.surveys.kowalski import Kowalski


@dataclass(frozen=True)
class Doors:
    """What this road takes from outside.

    Attributes
    ----------
    curves
        Opens light curves; gives sources, and why some inputs cannot be opened.
    server
        Opens the server.
    progress
        A progress bar with a title.
    say
        Tells the user something.
    """

    curves: Callable[[Sequence[str]], tuple[list[Source], list[str]]]
    server: Callable[[], AbstractContextManager[Kowalski]]
    progress: Callable[[str], AbstractContextManager[Progress]]
    say: Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """A classification as somebody asks for it.

    Attributes
    ----------
    inputs
        Light curves, features, or one table of what is wanted; none where all of a field is.
    kind
        Which of these; None: the columns say it.
    among
        Light curves or features of what is wanted; none: the server has them.
    how
        Names of the columns of light curves.
    options
        Models; its features are what the user says of them, and are completed by what the models need.
    rules
        How periods are searched for, where models need them.
    outputs
        Files.
    remote
        What is asked of a server.
    radius_arcsec
        Around wanted positions.
    ask
        Whether the server may be asked for catalogues and alerts around light curves that are not from it.
    alerts
        Collection of alerts on the server; None: none is asked for.
    settings
        Of the run.
    overwrite
        Make everything again.
    """

    inputs: tuple[str, ...]
    options: ClassifyOptions
    rules: PeriodRules
    outputs: Outputs
    remote: Remote
    settings: Settings
    kind: Kind | None = None
    among: tuple[str, ...] = ()
    how: Reading = field(default_factory=Reading)
    radius_arcsec: float = 2.0
    ask: bool = False
    alerts: str | None = "ZTF_alerts"
    overwrite: bool = False

    def described(self) -> dict[str, Any]:
        """What decides the results, as plain values, for the name of a dated folder."""
        return {
            "models": identities(self.options.models),
            "config": self.options.config.model_dump(mode="json"),
            "tree": self.options.tree.model_dump(mode="json"),
            "features": self.options.features.described(),
            "periods": self.rules.model_dump(mode="json"),
            "remote": vars(self.remote),
            "server": self.settings.kowalski.url,
            "radius_arcsec": self.radius_arcsec,
            "reading": vars(self.how),
            "around": [self.ask, self.alerts],
            "sources": self.outputs.described(),
        }


@dataclass(frozen=True)
class _Data:
    """What is classified."""

    kind: Literal["curves", "features"]
    paths: tuple[str, ...]
    matches: str | None = None
    problems: tuple[str, ...] = field(default=())
    fetched: bool = False  # from a server


def run(job: Job, doors: Doors) -> tuple[ClassifyReport, Outputs]:
    """Carry a classification out, unless it is done already; how it went, and where the files are.

    Raises
    ------
    UsageError
        The request does not make sense; said before the work.
    TapetumError
        As of the steps: `fetch_input`, `tapetum.pipelines.lightcurve_parts.make_once`.
    """
    _check(job)
    group = job.options.load()
    kind, usable, problems = _kind(job, group)
    outputs = _files(job, doors)
    with on_disk(outputs) as files:
        job = replace(job, inputs=usable, outputs=files)
        data = _data(job, kind, group, doors)
        report = _classify(job, replace(data, problems=(*problems, *data.problems)), group, doors)
    return report, outputs


def _check(job: Job) -> None:
    if not is_folder(job.outputs.table):
        check_output(job.outputs.table)
        table_format(job.outputs.table)
    for path in (job.outputs.matched, job.outputs.features):
        if path:
            check_output(path)
            table_format(path)
    if job.inputs and job.remote.field is not None:
        raise UsageError("name files, or --field for what a server has, not both")
    if not job.inputs and job.remote.field is None:
        raise UsageError(
            "name light curves, features or a table of what is wanted; or --field N and a server"
        )


def _kind(job: Job, group: VariableGroup) -> tuple[Kind | None, tuple[str, ...], list[str]]:
    """What the inputs are (None: a field), those of them that can be used, and why others cannot."""
    if job.outputs.features and group.binary is None:
        raise UsageError(
            "--save-features: no model takes features; `tapetum lightcurves features` makes some"
        )
    if not job.inputs:
        _refuse_tree(group, stored=job.remote.features is not None)
        return None, (), []
    kinds, usable, problems = _kinds(job, job.inputs, group)
    if len(kinds) > 1:
        raise UsageError(f"some inputs are {', others '.join(sorted(kinds))}: classify one kind at a time")
    (kind,) = kinds
    if kind == "wanted" and len(usable) > 1:
        raise UsageError("name one table of what is wanted")
    if kind != "wanted" and job.among:
        raise UsageError(
            f"--from is for a table of what is wanted; {_named(job.inputs[:1])} has {kind} itself"
        )
    stored = job.remote.features is not None and not job.among and kind == "wanted"
    _refuse_tree(group, stored=kind == "features" or stored)
    return kind, tuple(usable), problems


def _kinds(job: Job, paths: Sequence[str], group: VariableGroup) -> tuple[set[Kind], list[str], list[str]]:
    """What inputs are, those that can be used, and why others cannot; none at all is an error."""
    if job.kind is not None and paths == job.inputs:
        return {job.kind}, list(paths), []
    kinds, usable, problems = kinds_of(paths, list(group.needed), job.how)
    if not usable:
        more = f"; and {len(problems) - 1} more cannot be used" if len(problems) > 1 else ""
        raise InputError(f"{problems[0]}{more}")
    return kinds, usable, problems


def _refuse_tree(group: VariableGroup, *, stored: bool) -> None:
    """A tree of classes cannot be asked where there are features only."""
    if group.tree is not None and stored:
        raise UsageError(str(group.no_curves()))


def _files(job: Job, doors: Doors) -> Outputs:
    """All files by name."""
    outputs = job.outputs
    if is_folder(outputs.table):
        paths = [*job.inputs, *job.among]
        made_from = fingerprint(inputs_of(paths, _stores(paths, doors)), job.described())
        return in_folder(dated_folder(outputs.table, made_from, overwrite=job.overwrite), outputs)
    if outputs.table == STDOUT:
        return outputs
    return replace(
        outputs,
        matched=outputs.matched or beside(outputs.table, "_sources", ".parquet"),
        fetched=outputs.fetched or beside(outputs.table, "_fetched", ".parquet"),
    )


def _named(paths: Sequence[str]) -> str:
    """Inputs for a message."""
    return ", ".join(map(without_password, paths))


def _stores(paths: Sequence[str], doors: Doors) -> list[Source]:
    """Those light curves that are no files: only they themselves know whether they have changed."""
    urls = [path for path in paths if "://" in path]
    return doors.curves(urls)[0] if urls else []


def _data(job: Job, kind: Kind | None, group: VariableGroup, doors: Doors) -> _Data:
    """What is classified, after it was fetched or matched."""
    if kind in ("curves", "features"):
        return _Data(kind, job.inputs)
    wanted = job.inputs[0] if job.inputs else None
    if job.among and wanted is not None:
        return _matched(job, wanted, group, doors)
    with doors.server() as server, doors.progress("fetching") as progress:
        problems = fetch_input(
            server, job.remote, wanted, job.outputs, job.settings, overwrite=job.overwrite, progress=progress
        )
    matches = None
    if wanted is not None:
        matches = job.outputs.matched
        _tell_matches(matches, wanted, doors)
    stored = job.remote.features is not None
    return _Data(
        "features" if stored else "curves", (job.outputs.fetched,), matches, tuple(problems), fetched=True
    )


def _matched(job: Job, wanted: str, group: VariableGroup, doors: Doors) -> _Data:
    kinds, usable, problems = _kinds(job, job.among, group)
    if len(kinds) > 1 or "wanted" in kinds:
        raise UsageError("--from needs light curves, or features, of one kind")
    kind: Literal["curves", "features"] = "features" if "features" in kinds else "curves"
    _refuse_tree(group, stored=kind == "features")
    units, rejected = _units(kind, usable, doors)
    recipe = match_recipe(wanted, job.radius_arcsec, usable, _stores(usable, doors))
    with doors.progress("looking for sources") as progress:
        report = make_once(
            units, recipe, job.outputs.matched, job.settings, overwrite=job.overwrite,
            rejected=[*problems, *rejected], progress=progress,
        )  # fmt: skip
    if not report.n_rows:
        raise InputError(f"{wanted}: none of its sources has a light curve in {_named(job.among)}")
    _tell_matches(job.outputs.matched, wanted, doors)
    return _Data(kind, tuple(usable), job.outputs.matched, report.problems)


def _tell_matches(matches: str, wanted: str, doors: Doors) -> None:
    n_curves, n_without = matches_told(matches, wanted)
    without = f"; {n_without} of what is wanted has none" if n_without else ""
    doors.say(f"{wanted}: {n_curves} light curves{without}")


def _units(
    kind: Literal["curves", "features"], paths: Sequence[str], doors: Doors, size: int = 0
) -> tuple[list[Part] | list[TablePart], list[str]]:
    if kind == "curves":
        sources, rejected = doors.curves(paths)
        return parts_of(sources, size), rejected
    problems: list[str] = []
    return table_parts(paths, problems.append), problems


def _classify(job: Job, data: _Data, group: VariableGroup, doors: Doors) -> ClassifyReport:
    options = replace(job.options, matches=data.matches)
    size, asked = 0, None
    if data.kind == "curves":
        features, asked = _features(job, data, group, doors)
        options = replace(options, features=features)
        size = PIECE if features.periods is None and group.tree is None else SEARCHED_PIECE
    units, rejected = _units(data.kind, data.paths, doors, size)
    if data.matches is not None and job.among:
        units = _only_wanted(units, Matches.read(data.matches))
    kept = job.outputs.features if data.kind == "curves" and group.binary is not None else None
    paths = [*data.paths, *([data.matches] if data.matches else [])]
    recipe = classify_recipe(paths, data.kind, options, group, kept, _stores(paths, doors))
    problems = list(dict.fromkeys([*rejected, *data.problems]))
    with ExitStack() as open_things:
        if asked is not None:
            answered = open_things.enter_context(
                _answered(job, data, options.features, asked, recipe.made_from, doors)
            )
            setup = partial(curves_maker, replace(options, features=answered, keep_features=kept is not None))
            recipe = replace(recipe, setup=setup)
        progress = open_things.enter_context(doors.progress("classifying"))
        return classify_once(
            units, recipe, job.outputs, job.settings, overwrite=job.overwrite, rejected=problems,
            progress=progress,
        )  # fmt: skip


@contextmanager
def _answered(
    job: Job, data: _Data, options: FeatureOptions, asked: AroundOptions, made_from: str, doors: Doors
) -> Iterator[FeatureOptions]:
    """How features are made with what the server has around the light curves."""
    sources, _ = doors.curves(data.paths)
    if data.matches is not None:
        sources = [_places(Matches.read(data.matches).table)]
    recipe = replace(feature_recipe(data.paths, options), made_from=made_from)
    with (
        doors.server() as server,
        doors.progress("asking the server") as progress,
        with_server(
            recipe, options, asked, server, sources, job.outputs.curves, overwrite=job.overwrite,
            threads=job.settings.kowalski.threads, progress=progress,
        ) as made,
    ):  # fmt: skip
        yield made.setup.args[0] if isinstance(made.setup, partial) else options


def _places(table: pa.Table) -> Source:
    """Light curves without points, at the positions of a table."""
    nothing = np.empty(0)
    offsets = np.zeros(table.num_rows + 1, np.int64)
    return Given("wanted", LightCurves(nothing, nothing, nothing, offsets, table))


def _only_wanted(units: list[Part] | list[TablePart], matches: Matches) -> list[Part] | list[TablePart]:
    curves = [unit for unit in units if isinstance(unit, Part)]
    tables = [unit for unit in units if not isinstance(unit, Part) and unit.path in matches.files]
    if curves:
        return only_wanted(curves, matches)
    return [replace(unit, number=number) for number, unit in enumerate(tables)]


def _features(
    job: Job, data: _Data, group: VariableGroup, doors: Doors
) -> tuple[FeatureOptions, AroundOptions | None]:
    """How features are made: what the models need, less what light curves have; and what a server is asked for."""
    sources, _ = doors.curves(data.paths)
    first = next((curves for source in sources for curves in _first(source)), None)
    names = [] if first is None else first.table.column_names
    needs, given = needs_of(group.needed), job.options.features
    if data.matches is not None:
        given = replace(given, keep=(*given.keep, SEPARATION))
    there = job.settings.kowalski.url is not None and (job.ask or data.fetched)
    asked = _asked(job, needs, group, names) if there else None
    served = (
        [] if asked is None else [*(name for name, _ in asked.matches), *(ALERTS if asked.alerts else ())]
    )
    made = features_for(needs, given, job.rules, names, served, absent=job.options.config.absent)
    if asked is None:
        return made, None
    return replace(made, elsewhere=asked.described(str(job.settings.kowalski.url))), asked


def _asked(job: Job, needs: Needs, group: VariableGroup, names: Sequence[str]) -> AroundOptions | None:
    """What models need of catalogues that nobody else gives."""
    given = job.options.features
    there = {catalogue.name for catalogue in given.catalogues} | {
        name.partition(BETWEEN)[0] for name in names
    }
    matches = tuple(
        (
            name,
            tuple(
                column.partition(BETWEEN)[2]
                for column in group.needed
                if column.partition(BETWEEN)[0] == name
            ),
        )
        for name in needs.catalogues
        if name not in there
    )
    alerts = (
        job.alerts
        if given.alerts is None and any(name in needs.others and name not in names for name in ALERTS)
        else None
    )
    if not matches and alerts is None:
        return None
    # what models list, and nothing else: sources beside bright stars stay
    return AroundOptions(matches, None, alerts, given.radius_arcsec, given.star_radius_arcsec)


def _first(source: Source) -> list[LightCurves]:
    """The first light curve of a source; of one that cannot be read there is none here."""
    try:
        return list(islice(source.batches(1), 1))
    except TROUBLE:
        return []
