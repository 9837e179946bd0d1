"""Options and helpers that several nouns share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapetum.alerts.batch import Rejection
    from tapetum.core.progress import Progress
    from tapetum.core.settings import Settings

JobsOption = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Worker processes.")]
StoreOption = Annotated[str | None, typer.Option("--store", help="Store, for instance sqlite:///night.db.")]
OutOption = Annotated[
    str, typer.Option("--out", "-o", help="Output file; its suffix decides the format; - is stdout.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Make the output again although it is there.")
]
SchemaOption = Annotated[
    Path | None,
    typer.Option("--schema", help="Avro schema of bare records (headerless or Confluent-framed)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]


def settings_of(context: typer.Context, **overrides: Any) -> Settings:
    """The layered settings of this call; pass command-line values by dotted name with ``__`` for the dot."""
    from tapetum.core.settings import load_settings

    config: Path | None = context.find_root().obj
    return load_settings(config, {key.replace("__", "."): value for key, value in overrides.items()})


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A progress bar on a terminal; silence elsewhere."""
    from tapetum.core.progress import open_progress

    with open_progress(title, enabled=sys.stderr.isatty()) as progress:
        yield progress


def report_rejections(rejections: Sequence[Rejection], n_done: int) -> None:
    """Name every rejected packet on stderr, then end with the exit status for some or for all.

    Raises
    ------
    PartialFailureError
        Some inputs failed.
    InputError
        All inputs failed, or there was none.
    """
    from tapetum.core.errors import InputError, PartialFailureError

    for rejection in rejections:
        place = rejection.source if rejection.record < 0 else f"{rejection.source}, record {rejection.record}"
        typer.echo(f"rejected: {place}: {rejection.reason}", err=True)
    if rejections and n_done:
        raise PartialFailureError(
            f"{len(rejections)} of {len(rejections) + n_done} packets rejected, the rest is done"
        )
    if rejections:
        raise InputError(f"none of {len(rejections)} packets could be read")
    if not n_done:
        raise InputError(
            "no alert packets found; give files, folders, tar archives or Parquet files of packets"
        )
