"""How other people name the columns of light curves, and how a table is laid out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from tapetum.core.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

POINT_NAMES = {
    "time": ("time", "bjd", "hjd", "hmjd", "mjd", "jd", "midpointmjdtai", "obsmjd", "obshjd", "t"),
    "mag": ("mag", "magnitude", "psfmag", "magpsf", "mag_psf", "m"),
    "magerr": (
        "magerr", "mag_err", "e_mag", "mag_error", "magerror", "psfmagerr", "sigmapsf", "magsigma", "mag_sigma",
        "sigma_mag", "err", "error", "e",
    ),
    "flags": ("flags", "catflags", "flag"),
    "program": ("programid",),
}  # fmt: skip
"""Our name of what a point has -> names it goes by, in lower case, the best first: heliocentric times before others."""

CURVE_NAMES = {
    "lc_id": (
        "lc_id",
        "lcid",
        "_id",
        "ztf_id",
        "ztfid",
        "oid",
        "objectid",
        "matchid",
        "sourceid",
        "source_id",
        "id",
        "star_id",
    ),
    "object_id": ("object_id", "obj_id", "objid", "diaobjectid", "fritz_name", "name"),
    "survey": ("survey",),
    "band": ("band", "filter", "filterid", "fid", "filtercode", "bandname", "passband"),
    "ra": ("ra", "objra", "ra_deg", "radeg", "raj2000", "ra_icrs", "ramean"),
    "dec": ("dec", "objdec", "dec_deg", "dedeg", "decj2000", "dej2000", "de_icrs", "decmean"),
    "field": ("field", "fieldid"),
    "rcid": ("rcid", "rc"),
    "ccd": ("ccd", "ccdid"),
    "quadrant": ("quadrant", "quad", "qid"),
    "time_system": ("time_system",),
}
"""The same for what a curve has. ZTF's public light curves call theirs `objectid`; in a list that names a source."""

KNOWN_OF_CURVES = ("label", "label_source", "scope_class", "period", "period_literature", "duplicate_of")
"""More columns of a long table (one row per point) that say something of the curve."""

OF_CURVES = "curve_columns"
"""Key of the metadata under which a long table of ours names all of them."""

NEEDED = ("time", "mag", "magerr")
TIME_SYSTEMS = {"bjd", "hjd", "hmjd", "mjd", "jd"}
_SHOWN = 40  # columns named in an error


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes
    ----------
    columns
        Our name -> name in the file (of a field, where points are in a struct), for files whose names are not known or
        are understood in the wrong way: ``{"time": "mjd", "lc_id": "star"}``.
    keep
        More columns of a long table that say something of the curve, whose first point's value is taken.
    programs
        Only points of these programmes (``programid``: 1 is ZTF's public one); empty takes all.
    memory_rows
        A long table with more rows than this is not held in memory at once.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    programs: tuple[int, ...] = ()
    memory_rows: int = 20_000_000


@dataclass(frozen=True)
class Layout:
    """Where a table keeps what.

    Attributes
    ----------
    nested
        One row per curve, with lists of points; else one row per point.
    inside
        The column (a struct of lists, or a list of structs) that holds the points; None where they are columns.
    points
        Our name -> column or field, of what a point has; ``band`` among it where it is of the point.
    about
        Our name -> column, of what a curve has.
    rest
        Other columns that are of the curve; they keep their names.
    time_system
        What the name of the time column says: bjd, hjd, hmjd, mjd, jd.
    """

    nested: bool
    inside: str | None
    points: Mapping[str, str]
    about: Mapping[str, str]
    rest: tuple[str, ...] = ()
    time_system: str | None = None

    @property
    def columns(self) -> list[str]:
        """Every column that has to be read."""
        points = [self.inside] if self.inside else list(self.points.values())
        return list(dict.fromkeys([*self.about.values(), *self.rest, *points]))

    @property
    def key(self) -> str | None:
        """The column whose values tell sources or curves apart."""
        return self.about.get("lc_id", self.about.get("object_id"))


def recognise(schema: pa.Schema, name: str, how: Reading) -> Layout:
    """How a table with these columns is laid out.

    Parameters
    ----------
    name
        Of the file, for errors.

    Raises
    ------
    FormatError
        No time, magnitude or error is found, or a column that was named is not there.
    """
    flat = [entry.name for entry in schema if not pa.types.is_nested(entry.type)]
    lists = [
        entry.name
        for entry in schema
        if _is_list(entry.type) and not pa.types.is_nested(entry.type.value_type)
    ]
    groups: list[tuple[str | None, list[str]]] = [(None, lists)]
    groups += [(entry.name, fields) for entry in schema if (fields := _fields(entry.type))]
    _refuse_absent(schema, groups, name, how)
    for inside, names in groups:
        points = _find(names, {**POINT_NAMES, "band": CURVE_NAMES["band"]}, how.columns)
        if all(need in points for need in NEEDED):
            about = _find(flat, CURVE_NAMES, how.columns)
            if "band" in about:
                points.pop("band", None)
            rest = tuple(column for column in flat if column not in about.values())
            return Layout(True, inside, _wanted(points, name, how), about, rest, _system(points["time"]))
    points = _find(flat, POINT_NAMES, how.columns)
    if all(need in points for need in NEEDED):
        about = _find([column for column in flat if column not in points.values()], CURVE_NAMES, how.columns)
        known = {*KNOWN_OF_CURVES, *how.keep, *_declared(schema)} - {*about.values(), *points.values()}
        rest = tuple(column for column in flat if column in known)
        return Layout(False, None, _wanted(points, name, how), about, rest, _system(points["time"]))
    best = max(
        [flat, *(names for _, names in groups)], key=lambda names: len(_find(names, POINT_NAMES, how.columns))
    )
    missing = [need for need in NEEDED if need not in _find(best, POINT_NAMES, how.columns)]
    raise FormatError(
        f"{name}: not light curves: no column of {', '.join(missing)} (known names: "
        f"{'; '.join(' '.join(POINT_NAMES[need]) for need in missing)}). It has: {_listed(schema, groups)}. "
        f"If one of these is meant, name it: --column {missing[0]}=NAME"
    )


def _refuse_absent(
    schema: pa.Schema, groups: list[tuple[str | None, list[str]]], name: str, how: Reading
) -> None:
    there = {*schema.names, *(entry for _, names in groups for entry in names)}
    absent = [column for column in (*how.columns.values(), *how.keep) if column not in there]
    if absent:
        raise FormatError(f"{name}: no column {', '.join(absent)}; it has: {_listed(schema, groups)}")


def _listed(schema: pa.Schema, groups: list[tuple[str | None, list[str]]]) -> str:
    names = [
        *schema.names,
        *(f"{inside}.{entry}" for inside, entries in groups if inside for entry in entries),
    ]
    return " ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _find(
    names: Iterable[str], known: Mapping[str, tuple[str, ...]], given: Mapping[str, str]
) -> dict[str, str]:
    """Our name -> the first of `names` that is known for it, or the one that was given."""
    lower = {name.lower(): name for name in reversed(list(names))}
    taken = set(given.values())
    found = {}
    for ours, synonyms in known.items():
        if ours in given:
            if given[ours] in lower.values():
                found[ours] = given[ours]
            continue
        hit = next((lower[name] for name in synonyms if name in lower and lower[name] not in taken), None)
        if hit is not None:
            found[ours] = hit
    return found


def _wanted(points: dict[str, str], name: str, how: Reading) -> dict[str, str]:
    """Without the programme of a point, unless it decides."""
    if how.programs and "program" not in points:
        raise FormatError(f"{name}: no column programid, so points cannot be chosen by their programme")
    return points if how.programs else {ours: theirs for ours, theirs in points.items() if ours != "program"}


def _declared(schema: pa.Schema) -> list[str]:
    words = (schema.metadata or {}).get(OF_CURVES.encode(), b"")
    return [str(name) for name in words.decode().split()]


def _system(column: str) -> str | None:
    name = column.lower().removeprefix("obs")
    return name if name in TIME_SYSTEMS else None


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _fields(kind: pa.DataType) -> list[str]:
    """Fields that every point has: of a struct of lists, or of a list of structs."""
    if _is_list(kind) and pa.types.is_struct(kind.value_type):
        return [entry.name for entry in kind.value_type if not pa.types.is_nested(entry.type)]
    if pa.types.is_struct(kind):
        return [
            entry.name
            for entry in kind
            if _is_list(entry.type) and not pa.types.is_nested(entry.type.value_type)
        ]
    return []
