"""Options and helpers that several nouns share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapetum.alerts.batch import Rejection
    from tapetum.core.progress import Progress
    from tapetum.core.settings import Settings
    from tapetum.surveys.profile import SurveyProfile

JobsOption = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Worker processes.")]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="local|tcp://HOST:PORT|slurm",
        help="Where to work: processes of this machine, the workers of a Dask scheduler, or SLURM jobs.",
    ),
]
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
ImagesArgument = Annotated[
    list[str],
    typer.Argument(
        help="Images: .fits, .fits.fz, .fits.gz, file[ext], folders, .list files with one image per line."
    ),
]
TelescopeOption = Annotated[
    str | None,
    typer.Option(
        "--telescope",
        metavar="NAME|profile.toml",
        help="Where the images come from; `tapetum images telescopes` lists the names. Default: what the header says.",
    ),
]
CatalogueOption = Annotated[
    str | None,
    typer.Option(
        "--catalogue",
        metavar="FILE|NAME",
        help="Stars that tell zero point and astrometry: a table, or gaia-dr3, ps1, sdss12, usno-b1, gsc23 from VizieR "
        "(extra online).",
    ),
]
MaskOption = Annotated[
    Path | None,
    typer.Option("--mask", help="Mask of the image, when it does not lie beside it under the usual name."),
]
SubtractionOption = Annotated[
    Literal["kernel", "zogy"],
    typer.Option(help="Fit a kernel that varies over the field, or proper image subtraction."),
]
ConvolveOption = Annotated[
    Literal["auto", "reference", "science"], typer.Option(help="Which image the kernel blurs.")
]
NO_PACKETS = "no alert packets found; give files, folders, tar archives or Parquet files of packets"
NO_IMAGES = "no images found; give FITS files, folders or .list files of images"


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


def say(message: str) -> None:
    """Tell the user something on stderr, unless the user asked for quiet."""
    import logging

    from tapetum.core.log import TALK

    logging.getLogger(TALK).info("%s", message)


def warn(message: str) -> None:
    """Tell the user on stderr that something is not what it should be, unless the user asked for quiet."""
    import logging

    from tapetum.core.log import TALK

    logging.getLogger(TALK).warning("%s", message)


def complaint(rejection: Rejection) -> str:
    """What is said of a packet or source that cannot be used: where it is, and why."""
    place = rejection.source if rejection.record < 0 else f"{rejection.source}, record {rejection.record}"
    return f"rejected: {place}: {rejection.reason}"


def telescope_of(name: str | None) -> SurveyProfile | None:
    """The profile that ``--telescope`` names; None: each image says itself where it comes from.

    Raises
    ------
    InputError
        There is no such telescope.
    """
    from tapetum.surveys.telescopes import find_telescope

    return None if name is None else find_telescope(name)


def report_rejections(
    complaints: Sequence[str],
    n_rejected: int,
    n_done: int,
    *,
    things: str = "packets",
    nothing: str = NO_PACKETS,
    done: str = "read",
) -> None:
    """Name what was rejected on stderr, then end with the exit status for some or for all.

    Parameters
    ----------
    complaints
        One line for each that was rejected.
    n_rejected, n_done
        How many could not be used, and how many could.
    things
        What the inputs are called.
    nothing
        What is said when there was none.
    done
        What could not be done with any.

    Raises
    ------
    PartialFailureError
        Some inputs failed.
    InputError
        All inputs failed, or there was none.
    """
    import logging

    from tapetum.core.errors import InputError, PartialFailureError
    from tapetum.core.log import TALK

    for text in complaints:
        logging.getLogger(TALK).error("%s", text)
    if n_rejected and n_done:
        raise PartialFailureError(
            f"{n_rejected} of {n_rejected + n_done} {things} rejected, the rest is done"
        )
    if n_rejected:
        raise InputError(f"none of {n_rejected} {things} could be {done}")
    if not n_done:
        raise InputError(nothing)
