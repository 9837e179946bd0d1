"""Catalogues of stars: read from a file of any usual kind, or fetched from VizieR; one type for both."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import FormatError, InputError, LimitError, MissingExtraError, NetworkError
from tapetum.sky.match import match_sky

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

MAX_ROWS = 20_000_000  # of one file

RA_NAMES = ("ra", "raj2000", "_raj2000", "ra_icrs", "alpha_j2000", "ramean", "ra_deg", "radeg", "alpha")
DEC_NAMES = (
    "dec",
    "dej2000",
    "_dej2000",
    "decj2000",
    "de_icrs",
    "delta_j2000",
    "decmean",
    "dec_deg",
    "dedeg",
    "delta",
)
SYSTEMS = {
    "ps1": "ps1::{}",
    "sdss": "sdss{}",
    "gaia": "gaia::{}",
}  # name of sncosmo for a letter of the system


@dataclass(frozen=True)
class Catalogue:
    """Positions and magnitudes.

    Attributes
    ----------
    name
        File or catalogue.
    ra, dec : ndarray of float64, shape (n,)
        ICRS [deg].
    mags : dict of str to ndarray of float64, shape (n,)
        Magnitude by band; NaN where there is none. Bands have their sncosmo name where the system is known
        (``ps1::r``, ``sdssr``, ``gaia::g``, ``bessellv``), else the letter alone (``r``).
    mag_errs : dict of str to ndarray of float64, shape (n,)
        Errors of some or all bands [mag].
    extended : ndarray of bool, shape (n,), or None
        Objects that the catalogue calls galaxies; None when it does not say.
    """

    name: str
    ra: Array
    dec: Array
    mags: dict[str, Array] = field(default_factory=dict)
    mag_errs: dict[str, Array] = field(default_factory=dict)
    extended: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.ra)

    def __getitem__(self, index: NDArray[np.bool_] | NDArray[np.integer[Any]]) -> Catalogue:
        return replace(
            self,
            ra=self.ra[index],
            dec=self.dec[index],
            mags={band: mag[index] for band, mag in self.mags.items()},
            mag_errs={band: err[index] for band, err in self.mag_errs.items()},
            extended=None if self.extended is None else self.extended[index],
        )

    def cone(self, ra: float, dec: float, radius_deg: float) -> Catalogue:
        """The part within `radius_deg` of a position [deg]."""
        _, index, _ = match_sky([ra], [dec], self.ra, self.dec, radius_deg * 3600)
        return self[np.sort(index)]

    def match(self, ra: ArrayLike, dec: ArrayLike, radius_arcsec: float) -> tuple[NDArray[np.int64], Array]:
        """Nearest entry for each position.

        Returns
        -------
        index : ndarray of int64
            Row of this catalogue, -1 where there is none within the radius.
        separation_arcsec : ndarray of float64
            NaN where there is none.
        """
        i1, i2, apart = match_sky(ra, dec, self.ra, self.dec, radius_arcsec, keep="nearest")
        index = np.full(np.size(ra), -1, np.int64)
        separation = np.full(np.size(ra), np.nan)
        index[i1], separation[i1] = i2, apart
        return index, separation

    def band_for(self, band: str) -> str | None:
        """The band of this catalogue closest to one of a survey: ``ztfr``, ``sdssr``, ``bessellv``, ``clear``.

        The same band first, then the same letter in PS1, SDSS or an unnamed system, then Gaia's broad G; None when
        there is nothing.
        """
        if band in self.mags:
            return band
        letter = "r" if band.lower() in _UNFILTERED else band.split("::")[-1][-1:]
        near = {"b": "g", "v": "g"}.get(letter, letter) if band.startswith("bessell") else letter
        for wanted in (f"ps1::{near}", f"sdss{near}", near, f"bessell{near}", "gaia::g"):
            if wanted in self.mags:
                return wanted
        return None


_UNFILTERED = {"clear", "c", "nofilter", "l", "white", "none", ""}

# A magnitude column: a pattern, the band it means, and what its error is called. Upper and lower case differ: Gaia's
# Gmag is not gmag. Sources: VizieR's ReadMe of I/355, II/349, V/147, I/284, I/305, II/336; the archives' own schemas.
_MAG_COLUMNS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (r"phot_g_mean_mag|Gmag", "gaia::g", ("phot_g_mean_mag_error", "e_Gmag")),
    (r"phot_bp_mean_mag|BPmag", "gaia::gbp", ("phot_bp_mean_mag_error", "e_BPmag")),
    (r"phot_rp_mean_mag|RPmag", "gaia::grp", ("phot_rp_mean_mag_error", "e_RPmag")),
    (r"([grizy])MeanPSFMag", "ps1::{}", ("{}MeanPSFMagErr",)),
    (r"psfMag_([ugriz])", "sdss{}", ("psfMagErr_{}",)),
    (r"([griz])'mag|([griz])_mag", "sdss{}", ("e_{}'mag", "e_{}_mag")),
    (r"([UBVRI])mag", "bessell{}", ("e_{}mag",)),
    (r"([BR])[12]mag", "bessell{}", ()),
    (r"([UBVRI])", "bessell{}", ("{}err", "{}_err", "e_{}")),
    (r"([ugrizyw])mag", "{}", ("e_{}mag", "{}mag_err", "{}magerr", "{}mag_error")),
    (r"mag_([ugrizyw])", "{}", ("mag_err_{}", "magerr_{}", "mag_{}_err", "e_mag_{}")),
    (r"([ugrizyw])", "{}", ("{}_err", "{}err", "e_{}", "d{}", "sigma_{}")),
)


def read_catalogue(path: str | Path, *, system: str | None = None) -> Catalogue:
    """Read a catalogue table.

    Parameters
    ----------
    path
        ``.csv``, ``.ecsv``, ``.fits`` (``.fit``, with or without ``.gz``), ``.vot`` (``.xml``, ``.votable``) or
        ``.parquet``. Position columns may be called ra/dec, RAJ2000/DEJ2000, _RAJ2000, RA_ICRS, ALPHA_J2000 or
        raMean, in any case; their units are honoured, and text is read as sexagesimal (hours for the right ascension).
    system
        ``ps1`` or ``sdss``: the photometric system of columns whose name does not tell (``gmag``, ``r``).

    Raises
    ------
    InputError
        The file is missing, of unknown kind, too long, not a table, or has no usable positions; the message says which.
    """
    place = Path(path)
    if not place.is_file():
        raise InputError(f"{path}: no such catalogue file")
    name = place.name.lower().removesuffix(".gz")
    reader = next((_READERS[suffix] for suffix in _READERS if name.endswith(suffix)), None)
    if reader is None:
        raise InputError(f"{path}: unknown kind of catalogue; known: {' '.join(_READERS)}")
    return from_table(reader(place), str(path), system=system)


def from_table(table: Any, name: str, *, system: str | None = None) -> Catalogue:
    """A catalogue from an `astropy.table.Table`, by the names and units of its columns (`read_catalogue`)."""
    if system not in (None, *SYSTEMS):
        raise InputError(f"photometric system {system!r} is unknown; known: {' '.join(SYSTEMS)}")
    if len(table) > MAX_ROWS:
        raise LimitError(
            f"{name}: {len(table)} rows, more than {MAX_ROWS}; cut the field out of the catalogue first"
        )
    lower = {column.lower(): column for column in reversed(table.colnames)}
    found = [next((lower[n] for n in names if n in lower), None) for names in (RA_NAMES, DEC_NAMES)]
    if found[0] is None or found[1] is None:
        raise FormatError(f"{name}: no position columns (ra, dec); it has: {' '.join(table.colnames[:30])}")
    ra, dec = _degrees(table[found[0]], name, hours=True), _degrees(table[found[1]], name, hours=False)
    usable = np.isfinite(ra) & (np.abs(dec) <= 90)
    if not usable.any():
        raise FormatError(f"{name}: no row has a usable position in {found[0]}, {found[1]}")
    mags, errs = _magnitudes(table, name, system)
    catalogue = Catalogue(name, ra % 360.0, dec, mags, errs, _extended(table, lower))
    return catalogue if usable.all() else catalogue[usable]


def _magnitudes(table: Any, name: str, system: str | None) -> tuple[dict[str, Array], dict[str, Array]]:
    """Magnitudes and errors by band; where several columns mean one band the first pattern wins."""
    mags: dict[str, Array] = {}
    errs: dict[str, Array] = {}
    for pattern, meaning, error_names in _MAG_COLUMNS:
        for column in table.colnames:
            hit = re.fullmatch(pattern, column)
            if hit is None:
                continue
            letter = next((group for group in hit.groups() if group), "")
            band = meaning.format(letter.lower())
            if system is not None and band in tuple("ugrizy"):
                band = SYSTEMS[system].format(band)
            if band in mags or (values := _numbers(table[column])) is None:
                continue
            mags[band] = np.where((values > -5) & (values < 40), values, np.nan)  # -999 and 99 mean none
            for error_name in (n.format(letter) for n in error_names):
                if error_name in table.colnames and (error := _numbers(table[error_name])) is not None:
                    errs[band] = np.where((error >= 0) & (error < 10), error, np.nan)
                    break
    return mags, errs


def _extended(table: Any, lower: Mapping[str, str]) -> NDArray[np.bool_] | None:
    """What the catalogue says of galaxies: a column extended / is_galaxy, or SDSS's class (3 galaxy, 6 star)."""
    for key in ("extended", "is_galaxy", "galaxy"):
        if key in lower and (values := _numbers(table[lower[key]])) is not None:
            return np.asarray(values == 1)
    key = lower.get("class", "")
    values = _numbers(table[key]) if key else None
    if values is not None and np.isin(values[np.isfinite(values)], (3, 6)).all():
        return np.asarray(values == 3)
    return None


def _numbers(column: Any) -> Array | None:
    """A column as float64 with NaN where it is masked or empty; None when it is text."""
    values = np.ma.asarray(getattr(column, "value", column))
    if values.ndim != 1 or values.dtype.kind not in "fiub":
        return None
    return np.asarray(np.ma.filled(values.astype(np.float64), np.nan))


def _degrees(column: Any, name: str, *, hours: bool) -> Array:
    """A coordinate column in degrees."""
    from astropy import units as u
    from astropy.coordinates import Angle

    values = _numbers(column)
    unit = getattr(column, "unit", None)
    if values is None:
        text = [str(value).strip() for value in np.ma.filled(np.ma.asarray(column), "")]
        sexagesimal = any(re.search(r"\d[:\sh]\s*\d", value) for value in text)
        try:
            return np.asarray(
                Angle(text, unit=u.hourangle if hours and sexagesimal else u.deg).deg, np.float64
            )
        except ValueError as problem:
            raise FormatError(
                f"{name}: column {column.name} is neither a number nor an angle: {problem}"
            ) from None
    try:
        in_unit = u.Unit(unit) if unit is not None else u.deg
    except ValueError:
        in_unit = u.hourangle if hours and str(unit).startswith(("h", '"h')) else u.deg
    if in_unit == u.hour:
        in_unit = u.hourangle
    if in_unit == u.dimensionless_unscaled:
        in_unit = u.deg
    try:
        return np.asarray(values * in_unit.to(u.deg), np.float64)
    except u.UnitConversionError:
        raise FormatError(f"{name}: column {column.name} is in {unit}, which is no angle") from None


# ---- files ---------------------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> Any:
    import pyarrow as pa
    from astropy.table import Table
    from pyarrow import csv

    try:
        arrow = csv.read_csv(path, convert_options=csv.ConvertOptions(strings_can_be_null=True))
    except (pa.ArrowInvalid, UnicodeDecodeError) as problem:
        raise FormatError(f"{path}: not a CSV table: {problem}") from None
    return Table(_columns(arrow))


def _read_parquet(path: Path) -> Any:
    import pyarrow as pa
    from astropy.table import Table
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            if file.metadata.num_rows > MAX_ROWS:
                raise LimitError(f"{path}: {file.metadata.num_rows} rows, more than {MAX_ROWS}")
            return Table(_columns(file.read()))
    except pa.ArrowInvalid as problem:
        raise FormatError(f"{path}: not a Parquet table: {problem}") from None


def _columns(arrow: Any) -> dict[str, NDArray[Any]]:
    """Arrow's flat columns; nulls of numbers are NaN."""
    import pyarrow as pa

    out = {}
    for name, column in zip(arrow.column_names, arrow.columns, strict=True):
        kind = column.type
        if (
            pa.types.is_floating(kind)
            or pa.types.is_integer(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_decimal(kind)
        ):
            out[name] = (
                column.cast(pa.float64())
                if not pa.types.is_boolean(kind)
                else column.cast(pa.int8()).cast(pa.float64())
            )
            out[name] = out[name].to_numpy()
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            out[name] = np.array([value or "" for value in column.to_pylist()], str)
    return out


def _through_astropy(**options: Any) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        import warnings

        from astropy.io.registry import IORegistryError
        from astropy.table import Table

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd units and old VOTable versions are no reason to stop
                return Table.read(path, **options)
        except (OSError, ValueError, IndexError, KeyError, TypeError, IORegistryError) as problem:
            raise FormatError(f"{path}: cannot be read as {options['format']}: {problem}") from None

    return read


_READERS: dict[str, Callable[[Path], Any]] = {
    ".ecsv": _through_astropy(format="ascii.ecsv"),
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".fits": _through_astropy(format="fits"),
    ".fit": _through_astropy(format="fits"),
    ".vot": _through_astropy(format="votable"),
    ".votable": _through_astropy(format="votable"),
    ".xml": _through_astropy(format="votable"),
}


# ---- VizieR --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Remote:
    """A catalogue of VizieR: its table, columns wanted, photometric system of plain letters."""

    table: str
    columns: tuple[str, ...]
    system: str | None = None


_J2000 = ("_RAJ2000", "_DEJ2000")
REMOTE: dict[str, _Remote] = {
    "gaia-dr3": _Remote("I/355/gaiadr3", (*_J2000, "Gmag", "BPmag", "RPmag", "e_Gmag", "e_BPmag", "e_RPmag")),
    "ps1": _Remote(
        "II/349/ps1", (*_J2000, *(f"{b}mag" for b in "grizy"), *(f"e_{b}mag" for b in "grizy")), system="ps1"
    ),
    "sdss12": _Remote(
        "V/147/sdss12",
        (*_J2000, "class", *(f"{b}mag" for b in "ugriz"), *(f"e_{b}mag" for b in "ugriz")),
        system="sdss",
    ),
    "usno-b1": _Remote("I/284/out", (*_J2000, "B1mag", "R1mag", "B2mag", "R2mag", "Imag")),
    "gsc23": _Remote("I/305/out", (*_J2000, "Vmag", "Bmag", "jmag", "Fmag", "Nmag")),
}


def is_remote(name: str) -> bool:
    """Whether a catalogue of this name can be fetched (and no file is meant)."""
    return name in REMOTE


def fetch_catalogue(
    name: str,
    ra: float,
    dec: float,
    radius_deg: float,
    *,
    server: str | None = None,
    max_rows: int = 200_000,
    timeout_s: float = 120.0,
) -> Catalogue:
    """Fetch the part of a catalogue around a position from VizieR, through astroquery.

    Parameters
    ----------
    name
        ``gaia-dr3``, ``ps1``, ``sdss12``, ``usno-b1`` or ``gsc23``.
    ra, dec
        Centre, ICRS [deg].
    radius_deg
        Radius of the field [deg], at most 5.
    server
        A mirror: a host name, or a URL with its scheme; None: astroquery's own.
    max_rows
        Most rows to accept; one more is an error, never a silent cut.
    timeout_s
        Longest wait [s].

    Returns
    -------
    Catalogue
        Empty when the catalogue does not cover the field.

    Raises
    ------
    UsageError, InputError
        Unknown name, impossible position or radius.
    LimitError
        More rows than `max_rows`.
    MissingExtraError
        astroquery is not installed.
    NetworkError
        The server could not be reached or answered nonsense.
    """
    if name not in REMOTE:
        raise InputError(f"unknown catalogue {name!r}; known: {' '.join(REMOTE)}")
    if not (np.isfinite(ra) and -90 <= dec <= 90 and 0 < radius_deg <= 5):
        raise InputError(f"no such field: ra {ra}, dec {dec}, radius {radius_deg} deg (at most 5)")
    remote = REMOTE[name]
    table = _ask_vizier(remote, (ra, dec), radius_deg, server, max_rows + 1, timeout_s)
    if table is None:
        return Catalogue(name, np.zeros(0), np.zeros(0))
    if len(table) > max_rows:
        raise LimitError(
            f"{name}: more than {max_rows} objects within {radius_deg} deg; take a smaller field"
        )
    return from_table(table, name, system=remote.system)


def _ask_vizier(
    remote: _Remote,
    centre: tuple[float, float],
    radius_deg: float,
    server: str | None,
    rows: int,
    timeout_s: float,
) -> Any:
    """The table that VizieR answers, or None when it is empty."""
    try:
        from astroquery.exceptions import TableParseError
        from astroquery.vizier import VizierClass
    except ImportError:
        raise MissingExtraError("online", "a catalogue from VizieR") from None
    from astropy import units as u
    from astropy.coordinates import SkyCoord

    class Client(VizierClass):  # type: ignore[misc]
        """astroquery's client, which may be pointed at a URL with any scheme."""

        def _server_to_url(self, return_type: str = "votable") -> str:
            if server is None or "://" not in server:
                return str(super()._server_to_url(return_type=return_type))
            return f"{server.rstrip('/')}/viz-bin/{return_type}"

    mirror = {} if server is None or "://" in server else {"vizier_server": server}
    client = Client(columns=list(remote.columns), row_limit=rows, timeout=timeout_s, **mirror)
    position = SkyCoord(centre[0] % 360, centre[1], unit="deg", frame="icrs")
    try:
        answer = client.query_region(
            position, radius=radius_deg * u.deg, catalog=remote.table, cache=False, frame="icrs"
        )
    except (OSError, TableParseError, ValueError) as problem:  # requests' errors are OSErrors
        raise NetworkError(f"VizieR ({remote.table}): {problem}") from None
    if not hasattr(answer, "values"):
        raise NetworkError(f"VizieR ({remote.table}): the answer is not a VOTable")
    return next(iter(answer.values()), None)
