"""A whole classification: what is fetched for it, the tables of light curves and of sources, and a summary.

Every step is written whole and skipped when it is there, so the same call goes on where a stopped one was.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapetum import __version__
from tapetum.core.errors import InputError
from tapetum.core.files import whole_file
from tapetum.core.progress import Progress, no_progress
from tapetum.finders.variable_group import TREE
from tapetum.finders.variable_sources import (
    RADIUS_ARCSEC,
    Aggregate,
    SourceKey,
    about_of,
    as_made,
    per_source,
    with_source_names,
)
from tapetum.finders.variables import CLASSES
from tapetum.lightcurves.remote import CCDS, PROGRAMS, QUADRANTS, quadrants_of
from tapetum.lightcurves.wanted import read_ids
from tapetum.pipelines.lightcurve_fetch import fetch_once
from tapetum.pipelines.lightcurve_parts import MadeReport, Recipe, Unit, make_once
from tapetum.pipelines.lightcurve_plans import BATCH, Plan, plan_curves, plan_features, plan_ids
from tapetum.pipelines.lightcurve_wanted import Matches, find_once, sources_without, wanted_sources
from tapetum.pipelines.outputs import STDOUT, fingerprint, finished_run, record_settings
from tapetum.report.read_tables import read_table, units_of, words_of
from tapetum.report.tables import write_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tapetum.core.settings import Settings
    from tapetum.surveys.kowalski import Kowalski

By = Literal["source", "curve"]
RUN = "run.json"
STAMP = "%Y%m%d_%H%M%S"  # of a dated folder, UTC
OF_CURVES = "_lightcurves"  # ends the name of the table with a row for each light curve


@dataclass(frozen=True)
class Outputs:
    """Files of a classification.

    Attributes
    ----------
    table
        What was asked for: one row for each source, or for each light curve.
    by
        Which of the two.
    how, key, radius_arcsec, others
        As `tapetum.finders.variable_sources.per_source` takes them.
    csv
        Also write both tables as CSV.
    matched
        Which light curves the wanted sources have.
    fetched
        Light curves, or features, that came from a server.
    features
        What was made of the light curves; None: it is not kept.
    """

    table: str
    by: By = "source"
    how: Aggregate = "mean"
    key: SourceKey = "auto"
    radius_arcsec: float = RADIUS_ARCSEC
    others: bool = True
    csv: bool = False
    matched: str = ""
    fetched: str = ""
    features: str | None = None

    @property
    def curves(self) -> str:
        """The table with a row for each light curve."""
        if self.by == "curve":
            return self.table
        return beside(self.table, OF_CURVES)

    def described(self) -> dict[str, Any]:
        """What decides the rows, as plain values."""
        return {"rows": self.by, **self.rules}

    @property
    def rules(self) -> dict[str, Any]:
        """How sources are made of light curves."""
        return {
            "how": self.how,
            "by": self.key,
            "radius_arcsec": self.radius_arcsec,
            "others": self.others,
        }

    @property
    def summary(self) -> Path:
        """What was found, in numbers."""
        return Path(f"{self.table}.summary.json")


@dataclass(frozen=True)
class ClassifyReport:
    """What became of a classification.

    Attributes
    ----------
    made
        The table of light curves.
    n_sources
        Rows of the table of sources.
    counts
        Class -> how many rows are above its threshold, where thresholds were asked for.
    """

    made: MadeReport
    n_sources: int = 0
    counts: dict[str, int] = field(default_factory=dict)


def beside(path: str, ending: str, suffix: str | None = None) -> str:
    """A file beside another one: the same name with an ending."""
    place = Path(path)
    return str(place.with_name(f"{place.stem}{ending}{place.suffix if suffix is None else suffix}"))


# ---- where it goes -------------------------------------------------------------------------------------------------


def is_folder(output: str) -> bool:
    """Whether an output is a folder for dated folders: it is one, or its name has no suffix."""
    return output != STDOUT and (Path(output).is_dir() or not Path(output).suffix)


def dated_folder(base: str, made_from: str, *, overwrite: bool = False, now: datetime | None = None) -> Path:
    """The dated folder of a run: that of an earlier call for the same, or a new one.

    Parameters
    ----------
    base
        Folder of all runs.
    made_from
        Fingerprint of what decides the results.
    overwrite
        A new one although there is one.
    now
        The time; default: the clock.
    """
    folders = sorted(Path(base).glob("[0-9]*_[0-9]*"), reverse=True)
    for folder in () if overwrite else folders:
        try:
            run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if run.get("fingerprint") == made_from:
            return folder
    start = now or datetime.now(UTC)
    folder = _new_folder(Path(base), start.strftime(STAMP))
    with whole_file(folder / RUN) as part:
        words = {
            "fingerprint": made_from,
            "start_utc": start.isoformat(timespec="seconds"),
            "tapetum": __version__,
        }
        part.write_text(json.dumps(words, indent=1) + "\n", encoding="utf-8")
    return folder


def _new_folder(base: Path, name: str) -> Path:
    """A folder of this name, or with a number after it where that is somebody else's."""
    names = (base / (name if number == 1 else f"{name}_{number}") for number in count(1))
    folder = next(place for place in names if not place.exists())
    folder.mkdir(parents=True)
    return folder


def in_folder(folder: Path, outputs: Outputs) -> Outputs:
    """All files of a classification within a folder."""
    return replace(
        outputs,
        table=str(folder / "classes.parquet"),
        matched=outputs.matched or str(folder / "sources.parquet"),
        fetched=str(folder / "fetched.parquet"),
        features=outputs.features or str(folder / "features.parquet"),
    )


@contextmanager
def on_disk(outputs: Outputs) -> Iterator[Outputs]:
    """Files for what goes to stdout in the end."""
    if outputs.table != STDOUT:
        yield outputs
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        yield replace(
            outputs,
            table=str(place / "classes.parquet"),
            matched=outputs.matched or str(place / "sources.parquet"),
            fetched=outputs.fetched or str(place / "fetched.parquet"),
        )
        write_table(read_table(place / "classes.parquet"), STDOUT)


# ---- what comes from a server --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Remote:
    """What is asked of a server.

    Attributes
    ----------
    catalogue
        Of light curves.
    features
        Catalogue of stored features, which are taken instead of light curves; None: light curves.
    field, ccds, quadrants
        All light curves there, where no sources are named.
    min_epochs
        Points that a light curve needs.
    skip, limit
        Of the light curves of each quadrant, or of those that are found.
    batch
        Light curves of a question.
    programs, latest_hjd
        Points that are taken.
    radius_arcsec
        Around positions.
    """

    catalogue: str
    features: str | None = None
    field: int | None = None
    ccds: tuple[int, int] = CCDS
    quadrants: tuple[int, int] = QUADRANTS
    min_epochs: int = 0
    skip: int = 0
    limit: int | None = None
    batch: int = BATCH
    programs: tuple[int, ...] = PROGRAMS
    latest_hjd: float | None = None
    radius_arcsec: float = 2.0


def fetch_input(
    server: Kowalski,
    remote: Remote,
    wanted: str | None,
    outputs: Outputs,
    settings: Settings,
    *,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> list[str]:
    """Fetch light curves or features of wanted sources or of a field into ``outputs.fetched``.

    What sources have which light curves is written to ``outputs.matched``; of a field its light curves.

    Returns
    -------
    list of str
        Batches that failed, and why; the same call asks for these again.

    Raises
    ------
    InputError
        There is no light curve.
    NetworkError
        The server cannot be reached.
    """
    fetched = partial(
        fetch_once, server=server, settings=settings, overwrite=overwrite, progress=progress,
        threads=settings.kowalski.threads,
    )  # fmt: skip
    problems: list[str] = []
    if wanted is None:
        problems += fetched(_ids_plan(remote), output=outputs.matched).problems
        ids = read_ids(outputs.matched)
    else:
        server.login()
        find_once(
            server, remote.catalogue, wanted, outputs.matched, settings, radius_arcsec=remote.radius_arcsec,
            min_epochs=remote.min_epochs, overwrite=overwrite,
        )  # fmt: skip
        last = None if remote.limit is None else remote.skip + remote.limit
        ids = Matches.read(outputs.matched).ids[remote.skip : last]
    if not ids:
        raise InputError(f"{server.url}: no light curve of {remote.catalogue} is {_where(remote, wanted)}")
    problems += fetched(_plan(remote, ids), output=outputs.fetched).problems
    return problems


def _where(remote: Remote, wanted: str | None) -> str:
    return f"around the sources of {wanted}" if wanted else f"in field {remote.field}, as far as asked for"


def _ids_plan(remote: Remote) -> Plan:
    wheres = quadrants_of(remote.field or 0, remote.ccds, remote.quadrants)
    return plan_ids(
        remote.catalogue, wheres, min_epochs=remote.min_epochs, skip=remote.skip, limit=remote.limit
    )


def _plan(remote: Remote, ids: Sequence[str]) -> Plan:
    if remote.features is not None:
        return plan_features(remote.features, ids, batch=remote.batch)
    return plan_curves(
        remote.catalogue, ids, batch=remote.batch, programs=remote.programs, latest_hjd=remote.latest_hjd
    )


def matches_told(matched: str, wanted: str) -> tuple[int, int]:
    """How many light curves were found, and how many wanted sources have none."""
    table = read_table(matched)
    return table.num_rows, sources_without(wanted_sources(wanted), table)


# ---- the tables ----------------------------------------------------------------------------------------------------


def classify_once(
    units: Sequence[Unit],
    recipe: Recipe,
    outputs: Outputs,
    settings: Settings,
    *,
    overwrite: bool = False,
    rejected: Sequence[str] = (),
    progress: Progress = no_progress,
) -> ClassifyReport:
    """Classify light curves or features, and gather sources, unless it has been done before.

    Parameters
    ----------
    units, recipe
        As `tapetum.pipelines.lightcurve_classify` gives them.
    outputs
        Where the tables go.
    settings, overwrite, rejected, progress
        As for `tapetum.pipelines.lightcurve_parts.make_once`.

    Raises
    ------
    InputError
        There is nothing to classify; or as `make_once`.
    """
    made = make_once(
        units, recipe, outputs.curves, settings, overwrite=overwrite, rejected=rejected, progress=progress
    )
    if not made.n_parts and not made.finished:
        return ClassifyReport(made)
    return gather(recipe.verb, recipe.made_from, outputs, made, settings, overwrite=overwrite)


def gather(
    verb: str,
    made_from: str,
    outputs: Outputs,
    made: MadeReport,
    settings: Settings,
    *,
    overwrite: bool = False,
) -> ClassifyReport:
    """What follows from the table of light curves: that of sources, both as CSV, and the summary.

    Parameters
    ----------
    verb, made_from
        Of the table of light curves.
    outputs, settings, overwrite
        As for `classify_once`.
    made
        What became of the table of light curves.

    Raises
    ------
    InputError
        It has no rows.
    """
    if not made.n_rows:
        raise InputError("there are no light curves to classify")
    n_sources = _write_sources(verb, made_from, outputs, made, settings, overwrite=overwrite)
    if outputs.csv:
        for path in {outputs.curves, outputs.table}:
            if Path(path).suffix.lower() != ".csv":
                table = read_table(path)
                write_table(table, beside(path, "", ".csv"), units=units_of(table), sidecar=True)
    return ClassifyReport(made, n_sources, _write_summary(outputs, made))


def _write_sources(
    verb: str,
    of: str,
    outputs: Outputs,
    made: MadeReport,
    settings: Settings,
    *,
    overwrite: bool,
) -> int:
    """One row for each source; how many there are."""
    if outputs.by == "curve":
        return 0
    rules = outputs.rules
    made_from = fingerprint([], {"verb": "sources", "of": of, **rules})
    before = None if overwrite else finished_run(outputs.table, made_from)
    if before is not None and not before.n_rejected and made.finished:
        return before.n_done
    table = _with_names(outputs)
    found = per_source(table, outputs.how, outputs.key, outputs.radius_arcsec, others=outputs.others)
    words = {"sources": json.dumps(rules)}
    write_table(found, outputs.table, words, units_of(found), sidecar=True)
    command = {"verb": verb, "light_curves": outputs.curves, **rules}
    record_settings(Path(outputs.table), settings, command, made_from, made.problems, found.num_rows)
    return int(found.num_rows)


def _with_names(outputs: Outputs) -> pa.Table:
    """The table of light curves as it was made; on disk, each is given a source."""
    table = read_table(outputs.curves)
    made = as_made(table)
    named = with_source_names(made, outputs.key, outputs.radius_arcsec)
    if named.column_names != table.column_names or not named["object_id"].equals(table["object_id"]):
        write_table(named, outputs.curves, units=units_of(table), sidecar=True)
    return made


def _write_summary(outputs: Outputs, made: MadeReport) -> dict[str, int]:
    """Numbers of a classification, beside it; how many rows are above the threshold of each class."""
    table = read_table(outputs.table)
    words, about = words_of(table), about_of(table)
    names = {
        entry["model"]
        for entry in (*about["models"].values(), *about.get(TREE, {}).get("models", {}).values())
    }
    counts = _counted(table[CLASSES], split=True) if CLASSES in table.column_names else {}
    summary: dict[str, Any] = {
        "rows": table.num_rows,
        "light_curves": made.n_rows,
        "fields": sorted(_counted(table["field"])) if "field" in table.column_names else [],
        "models": sorted(names),
        "above_threshold": counts,
        "most_probable": _counted(table["class"]) if "class" in table.column_names else {},
        "made_start_utc": words.get("made_start_utc"),
        "made_end_utc": words.get("made_end_utc"),
        "tapetum": __version__,
    }
    with whole_file(outputs.summary) as part:
        part.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return counts


def _counted(column: pa.ChunkedArray, *, split: bool = False) -> dict[str, int]:
    """How often each value is there; of text with several words, each word."""
    text = column.drop_null().cast(pa.string())
    if split:
        text = pc.list_flatten(pc.split_pattern(text, " "))
    names, counts = np.unique(np.array(text.to_pylist(), dtype=str), return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True) if name}
