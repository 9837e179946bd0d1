"""Classifications in files as one: those of several algorithms, or of several fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tapetum.core.errors import InputError, UsageError
from tapetum.core.files import whole_file
from tapetum.finders.variable_join import join
from tapetum.pipelines.lightcurve_classify import is_classification, tables_of, with_keys
from tapetum.pipelines.lightcurve_classify_run import ClassifyReport, Outputs, gather, on_disk
from tapetum.pipelines.lightcurve_parts import MadeReport
from tapetum.pipelines.outputs import (
    check_folder,
    check_output,
    fingerprint,
    finished_run,
    record_settings,
    refuse_twice,
)
from tapetum.report.read_tables import read_table
from tapetum.report.tables import table_format, write_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapetum.core.settings import Settings

VERB = "lightcurves combine"
FIELDS = "fields.json"


def combine_once(
    paths: Sequence[str],
    outputs: Outputs,
    settings: Settings,
    *,
    combine: Literal["none", "mean", "max"] = "mean",
    threshold: str | float = "none",
    decimals: int | None = None,
    overwrite: bool = False,
) -> ClassifyReport:
    """Join classifications of light curves, unless it has been done before; see `tapetum.finders.variable_join.join`.

    Parameters
    ----------
    paths
        Tables by light curve, of ours or of the described system.
    outputs
        Where tables go.
    settings
        Of the run.
    combine, threshold, decimals
        As for `join`.
    overwrite
        Do it again.

    Raises
    ------
    InputError
        A table is not there, or no classification of light curves.
    UsageError
        The output cannot be written, or a table is named twice.
    """
    check_output(outputs.table)
    table_format(outputs.table)
    refuse_twice(paths)
    options = {"combine": combine, "threshold": threshold, "decimals": decimals}
    made_from = fingerprint(paths, {"verb": VERB, **options})
    with on_disk(outputs) as files:
        before = None if overwrite else finished_run(files.curves, made_from)
        if before is not None:
            made = MadeReport(n_rows=before.n_done, finished=True)
            return gather(VERB, made_from, files, made, settings)
        found = join(
            [with_keys(read_table(path), path) for path in paths], paths, combine, threshold, decimals
        )
        write_table(
            found, files.curves, {"options": json.dumps(options)}, {"ra": "deg", "dec": "deg"}, sidecar=True
        )
        command: dict[str, Any] = {"verb": VERB, "inputs": list(paths), **options}
        record_settings(Path(files.curves), settings, command, made_from, n_done=found.num_rows)
        made = MadeReport(n_rows=found.num_rows, n_parts=len(paths))
        return gather(VERB, made_from, files, made, settings, overwrite=overwrite)


def by_name(folders: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Name of a table -> the classifications of this name in folders, such as those of one field by several algorithms.

    Tables by source are passed over where there is one by light curve beside them.

    Returns
    -------
    tables
        By name.
    others
        Tables that are no classifications; a dated folder has its features, for instance.

    Raises
    ------
    InputError
        There are no classifications, or a table cannot be read.
    UsageError
        Some of these are no folders.
    """
    if files := [folder for folder in folders if not Path(folder).is_dir()]:
        raise UsageError(f"{files[0]}: is no folder; join files into a file, or folders into a folder")
    found: dict[str, list[str]] = {}
    others: list[str] = []
    for folder in folders:
        tables = []
        for path in tables_of(folder):
            if is_classification(str(path)):
                tables.append(path)
            else:
                others.append(str(path))
        by_curve = {
            path.with_name(path.name.replace("_lightcurves", ""))
            for path in tables
            if "_lightcurves" in path.name
        }
        for path in tables:
            if path not in by_curve:
                found.setdefault(path.name.replace("_lightcurves", ""), []).append(str(path))
    if not found:
        raise InputError(f"no classifications in {', '.join(folders)}")
    return found, others


def write_fields(folder: str, rows: dict[str, int]) -> None:
    """A list of the tables of a folder, and how many light curves each has."""
    check_folder(Path(folder))
    with whole_file(Path(folder) / FIELDS) as part:
        part.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
