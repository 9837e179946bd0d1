"""Options that the verbs of light curves share, and what they say in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tapetum.cli.common import report_rejections, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapetum.core.settings import Settings
    from tapetum.lightcurves.clean import CleaningRules
    from tapetum.lightcurves.formats.columns import Reading
    from tapetum.lightcurves.formats.sources import Source
    from tapetum.lightcurves.periods.grid import GridRules
    from tapetum.pipelines.lightcurve_catalogues import CatalogueFile
    from tapetum.pipelines.lightcurve_parts import MadeReport

CurvesArgument = Annotated[
    list[str],
    typer.Argument(
        help="Light curves: Parquet, CSV, ECSV, FITS, VOTable, HDF5, matchfiles, HATS catalogues, folders of these; or "
        "a store, sqlite:///night.db."
    ),
]
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="OURS=THEIRS", help="Name of a column, e.g. time=mjd; may be repeated."),
]
ProgramsOption = Annotated[
    str | None, typer.Option("--programs", metavar="1,2,...", help="Only points of these programmes of ZTF.")
]
KeepOption = Annotated[
    list[str] | None, typer.Option("--keep", help="Copy this column of the light curves; may be repeated.")
]

CadenceOption = Annotated[
    float,
    typer.Option(
        "--min-cadence-minutes", min=0, help="Drop points closer to the last kept one [min]; 0 keeps all."
    ),
]
PointsOption = Annotated[
    int, typer.Option("--min-points", "--min-n-lc-points", min=1, help="Good points that a curve needs.")
]
BadFlagsOption = Annotated[
    int, typer.Option("--bad-flags", help="Bits that make a point bad; -1: any bit, 0: none.")
]
FiniteOption = Annotated[bool, typer.Option("--finite/--no-finite", help="Drop points that are not finite.")]
ErrorsOption = Annotated[
    bool, typer.Option("--positive-errors/--no-positive-errors", help="Drop points without an error above 0.")
]
BrightestOption = Annotated[float | None, typer.Option("--brightest", help="Drop brighter points [mag].")]
FaintestOption = Annotated[float | None, typer.Option("--faintest", help="Drop fainter points [mag].")]
LatestOption = Annotated[
    float | None,
    typer.Option("--max-time", help="Drop later points [d, as the light curves count]."),
]

SamplesOption = Annotated[
    float, typer.Option("--samples-per-peak", min=1, max=100, help="Trial frequencies per width of a peak.")
]
MaximumOption = Annotated[
    float,
    typer.Option("--max-frequency", "--max-freq", max=10_000, help="Highest trial frequency [1/d]."),
]
CyclesOption = Annotated[
    float, typer.Option("--min-cycles", help="The lowest trial frequency is that of so many cycles.")
]
ScaleOption = Annotated[
    bool,
    typer.Option(
        "--scale-minimum-period", help="Stop at the Nyquist frequency of a 30-minute cadence, 24/d."
    ),
]
TerrestrialOption = Annotated[
    bool,
    typer.Option(
        "--remove-terrestrial", help="Leave out frequencies of day, month and year, and what is made of them."
    ),
]
NestedOption = Annotated[
    Literal["lowest", "fixed", "shipped", "none"],
    typer.Option(
        "--nested",
        help="Entropy proposes its lowest values; those farthest from their mean; or, as the described system, those "
        "nearest to it.",
    ),
]
HarmonicsOption = Annotated[
    int, typer.Option("--harmonics", min=1, max=20, help="Terms of the Lomb-Scargle series.")
]
TopOption = Annotated[
    int,
    typer.Option(
        "--top", "--top-n-periods", min=1, max=10_000, help="Frequencies proposed to the nested choice."
    ),
]
TrialsOption = Annotated[
    int,
    typer.Option("--trials", min=0, help="Shuffled curves for calibrated false-alarm probabilities; slow."),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="cpu|cuda[:N]|LIBRARY",
        help="Where periodograms are computed: compiled loops, a GPU by torch, or arrays of torch, cupy or numpy.",
    ),
]
PeriodColumnOption = Annotated[
    list[str] | None,
    typer.Option("--period-column", help="Column of the light curves with periods [d]; may be repeated."),
]
GaiaTableOption = Annotated[
    str | None, typer.Option("--gaia", help="Table of Gaia EDR3: columns, and stars too bright.")
]
Ps1TableOption = Annotated[str | None, typer.Option("--ps1", help="Table of PS1 DR1.")]
AllwiseTableOption = Annotated[str | None, typer.Option("--allwise", help="Table of AllWISE.")]
OtherTablesOption = Annotated[
    list[str] | None,
    typer.Option("--catalogue", metavar="NAME=FILE[:COLUMN,...]", help="Any other; may be repeated."),
]
AlertsTableOption = Annotated[
    str | None, typer.Option("--alerts", help="Table of alerts with ra, dec and a score.")
]
MatchRadiusOption = Annotated[
    float, typer.Option("--xmatch-radius-arcsec", min=0, help="Farthest entry that counts [arcsec].")
]
BrightStarsOption = Annotated[
    bool,
    typer.Option(
        "--bright-stars/--no-bright-stars", help="Leave out sources in the glare of a star of --gaia."
    ),
]
ALGORITHMS = "LS,CE,AOV,ELS,ECE,EAOV,BLS"
NO_CURVES = "no light curves found; give files, HATS catalogues or folders of them"


def comma_list(text: str | None) -> tuple[str, ...]:
    """Words between commas."""
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def checked(model: type[Any], option: str, **values: Any) -> Any:
    """Rules out of options.

    Raises
    ------
    UsageError
        A value does not fit.
    """
    from pydantic import ValidationError

    from tapetum.core.errors import UsageError

    try:
        return model(**values)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(map(str, first["loc"])) or option
        raise UsageError(f"{option}: {place}: {first['msg']} (got {first['input']!r})") from None


def reading_of(columns: Sequence[str] | None, programs: str | None, keep: Sequence[str] | None) -> Reading:
    """How files are read.

    Raises
    ------
    UsageError
        An option is not what it should be.
    """
    from tapetum.core.errors import UsageError
    from tapetum.lightcurves.formats.columns import Reading

    pairs = dict(text.partition("=")[::2] for text in columns or ())
    if not all(pairs.values()):
        raise UsageError(f"--column {' '.join(columns or ())}: write OURS=THEIRS, for instance time=mjd")
    try:
        numbers = tuple(int(word) for word in comma_list(programs))
    except ValueError:
        raise UsageError(f"--programs {programs}: whole numbers between commas") from None
    return Reading(columns=pairs, keep=tuple(keep or ()), programs=numbers)


def cleaning_of(**values: Any) -> CleaningRules:
    """Rules of cleaning.

    Raises
    ------
    UsageError
        A value does not fit.
    """
    from tapetum.lightcurves.clean import CleaningRules

    rules: CleaningRules = checked(CleaningRules, "cleaning", **values)
    return rules


def grid_of(**values: Any) -> GridRules:
    """Trial frequencies.

    Raises
    ------
    UsageError
        A value does not fit.
    """
    from tapetum.lightcurves.periods.grid import GridRules

    rules: GridRules = checked(GridRules, "frequencies", **values)
    return rules


def catalogues_of(
    gaia: str | None, ps1: str | None, allwise: str | None, others: list[str]
) -> tuple[CatalogueFile, ...]:
    """Tables by the names of their catalogues.

    Raises
    ------
    UsageError
        A text is not what it should be, or a catalogue is named twice.
    """
    from tapetum.core.errors import UsageError
    from tapetum.pipelines.lightcurve_catalogues import ALLWISE, GAIA, PS1, CatalogueFile

    known = ((GAIA, gaia), (PS1, ps1), (ALLWISE, allwise))
    found = [CatalogueFile(name, path) for name, path in known if path is not None]
    for text in others:
        name, equals, rest = text.partition("=")
        path, _, columns = rest.partition(":")
        if not (name and equals and path):
            raise UsageError(f"--catalogue {text}: write NAME=FILE or NAME=FILE:COLUMN,COLUMN")
        found.append(CatalogueFile(name, path, comma_list(columns)))
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise UsageError(f"a catalogue is named twice: {', '.join(names)}")
    return tuple(found)


def opened(paths: Sequence[str], how: Reading) -> tuple[list[Source], list[str]]:
    """The light curves of a command line, files and stores, and why some cannot be opened.

    Raises
    ------
    UsageError
        One is named twice.
    """
    from tapetum.core.errors import InputError, StoreError
    from tapetum.lightcurves.formats.opening import open_each
    from tapetum.pipelines.outputs import refuse_twice
    from tapetum.store.curves import is_store, open_store_curves

    rejected: list[str] = []
    found: list[Source] = []
    for path in paths:
        if not is_store(path):
            found += open_each([path], how, rejected.append)
            continue
        try:
            found.append(open_store_curves(path))
        except (InputError, StoreError) as problem:
            rejected.append(str(problem))
    refuse_twice(source.name for source in found)
    return found, rejected


def check_device(device: str, settings: Settings) -> None:
    """Refuse a device that is not here; what workers elsewhere have, they find out themselves.

    Raises
    ------
    UsageError
        There is no such device.
    """
    from tapetum.lightcurves.periods.array_backend import backend_of

    if settings.scheduler == "local":
        backend_of(device)


def tell_made(report: MadeReport, output: str, *, rows: str) -> None:
    """Say what was made, and end with the exit status for some or for all.

    Raises
    ------
    PartialFailureError, InputError
        Some parts failed, or all.
    """
    if report.finished:
        say(f"{output}: finished already; --overwrite makes it again")
        return
    if report.left_out:
        say(f"{output}: its format has no place for {', '.join(report.left_out)}; Parquet and HDF5 have")
    if report.n_reused:
        say(f"{report.n_reused} of {report.n_parts} parts were there from an earlier run")
    if report.n_parts:
        say(f"{report.n_rows} {rows} -> {output}")
    report_rejections(
        report.problems, len(report.problems), report.n_parts, things="parts", nothing=NO_CURVES, done="used"
    )


def number_range(option: str, text: str) -> tuple[int, int]:
    """First and last of a range such as 1-4, or of one number.

    Raises
    ------
    UsageError
        It is none.
    """
    from tapetum.core.errors import UsageError

    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise UsageError(f"{option} {text}: a number, or a range as 1-16")
    return int(first), int(last or first)
