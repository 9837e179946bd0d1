"""Matchfiles of ZTF and PTF: PyTables files of the sources of a quadrant and of all their measurements.

ZTF's have one group ``/matches``, PTF's a group per filter, field and chip; in each the tables `sources`, `sourcedata`
and `exposures`.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pyarrow as pa

from tapetum.core.errors import FormatError, InputError, UsageError
from tapetum.core.files import whole_file
from tapetum.lightcurves.curves import KEY
from tapetum.lightcurves.formats.assemble import ztf_bands
from tapetum.lightcurves.formats.columns import Layout, Reading
from tapetum.lightcurves.formats.sources import LongSource, Several, Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.lightcurves.curves import LightCurves

ROWS_AT_A_TIME = 2**18
PTF_BANDS = {1: "ptfg", 2: "ptfr"}  # Mould R and SDSS g, numbered as in the file names (f01 is g, f02 is R)
_ZTF_NAME = re.compile(r"ztf_(\d{6})_z([gri])_c(\d\d)_q([1-4])_match")
_DETECTED = 0b10  # PTF's flags: bit 1 only says that there is an object (Laher et al. 2014, PASP 126, 674)
_MILLI, _PTF_ERROR = 1e-3, 1e-4  # PTF keeps magnitudes and their errors as scaled integers [mag]


def is_matchfile(path: Path) -> bool:
    """Whether an HDF5 file has sources and their measurements.

    Raises
    ------
    FormatError
        It is no HDF5 file.
    """
    with _opened(path) as file:
        return bool(_groups(file))


def open_matchfile(path: Path, how: Reading) -> Source:
    """The light curves of a matchfile; sources that were never measured have none.

    Of a ZTF file: times are heliocentric (hjd), flags are `catflags`, and `lc_id` is the number that Kowalski's
    collections give it, 1e13 + field 1e9 + channel 1e7 + filter 1e6 + matchid. Of a PTF file: ids are made alike, with
    the chip for the channel, times are mjd, flags are `ipacFlags` without the bit that only marks an object, and where
    there is no relative photometry (an infinite error) the aperture magnitude with the zero point of the exposure is
    taken.

    Raises
    ------
    FormatError
        There are no such tables, or columns are missing.
    InputError
        The file is compressed with a filter that is not installed.
    """
    with _opened(path) as file:
        names = _groups(file)
        if not names:
            raise FormatError(f"{path}: not a matchfile: no group with the tables sources and sourcedata")
        members = [_open_group(path, file, name, how) for name in names]
    return members[0] if len(members) == 1 else Several(str(path), tuple(members))


def _open_group(path: Path, file: h5py.File, group: str, how: Reading) -> Source:
    data = file[group]["sourcedata"]
    _check_filters(path, data)
    there = set(data.dtype.names or ())
    ptf = "matchedSourceID" in there
    needed = _PTF_COLUMNS if ptf else _ZTF_COLUMNS
    missing = [name for name in needed if name not in there]
    if missing:
        raise FormatError(
            f"{path}: {group}/sourcedata has no column {', '.join(missing)}; it has: {' '.join(there)}"
        )
    time = how.columns.get("time", "mjd" if ptf else "hjd")
    if time not in there:
        raise FormatError(
            f"{path}: {group}/sourcedata has no column {time}; it has: {' '.join(sorted(there))}"
        )
    points = {"time": time, "mag": "mag", "magerr": "magerr", "flags": "flags"}
    if how.programs:
        if "programid" not in there:
            raise FormatError(f"{path}: no column programid, so points cannot be chosen by their programme")
        points["program"] = "programid"
    layout = Layout(False, None, points, {KEY: "id"}, (), "hjd" if time == "hjd" else "mjd")
    rows = MatchRows(path, group, len(data), ptf)
    quadrant = _quadrant(path, file[group], ptf)
    name = str(path) if group == "matches" else f"{path}#{group}"
    return LongSource(name, rows, layout, how, partial(_add_sources, rows, quadrant))


_ZTF_COLUMNS = ("matchid", "mag", "magerr", "catflags")
_PTF_COLUMNS = ("matchedSourceID", "mag", "magErr", "mag_auto", "magerr_auto", "absphotzp", "ipacFlags")


@dataclass(frozen=True)
class MatchRows:
    """The measurements of one group."""

    path: Path
    group: str
    n_rows: int
    ptf: bool

    @property
    def name(self) -> str:
        """The file."""
        return str(self.path)

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """As `Rows.read`; `columns` are ids, times, mag, magerr, flags, programid."""
        with _opened(self.path) as file:
            data = file[self.group]["sourcedata"]
            _check_filters(self.path, data)
            names = list(dict.fromkeys(name for wanted in columns for name in self._needed(wanted)))
            for first in range(0, self.n_rows, ROWS_AT_A_TIME):
                block = data.fields(names)[first : first + ROWS_AT_A_TIME]
                yield pa.table({wanted: pa.array(self._values(block, wanted)) for wanted in columns})

    def _needed(self, wanted: str) -> tuple[str, ...]:
        if not self.ptf:
            return ({"id": "matchid", "flags": "catflags"}.get(wanted, wanted),)
        return {
            "id": ("matchedSourceID",),
            "flags": ("ipacFlags",),
            "mag": ("mag", "magErr", "mag_auto", "absphotzp"),
            "magerr": ("magErr", "magerr_auto"),
        }.get(wanted, (wanted,))

    def _values(self, block: Any, wanted: str) -> Any:
        names = self._needed(wanted)
        if not self.ptf:
            return np.ascontiguousarray(block[names[0]]).astype(
                np.int32 if wanted == "flags" else block[names[0]].dtype
            )
        if wanted == "flags":
            return block["ipacFlags"].astype(np.int32) & ~_DETECTED
        if wanted == "mag":
            aperture = _MILLI * (block["mag_auto"].astype(np.float64) + block["absphotzp"])
            return np.where(np.isfinite(block["magErr"]), block["mag"], aperture)
        if wanted == "magerr":
            return np.where(np.isfinite(block["magErr"]), block["magErr"], _PTF_ERROR * block["magerr_auto"])
        return np.ascontiguousarray(block[names[0]])


def _quadrant(path: Path, group: h5py.Group, ptf: bool) -> dict[str, Any]:
    """Survey, band, place on the camera and first id, from the attributes of the group or the name of file or group."""
    if ptf:
        found = re.search(r"filter(\d+)/field(\d+)/chip(\d+)", group.name)
        if found is None:
            return {"survey": "ptf"}
        band, field, ccd = map(int, found.groups())
        place = {"survey": "ptf", "band": PTF_BANDS.get(band, str(band)), "field": field, "ccd": ccd}
        return {**place, "first_id": first_id(field, ccd, band)}
    named = _ZTF_NAME.search(path.name)
    if all(key in group.attrs for key in ("fieldID", "rcID", "filterID")):
        field, channel, band = (int(group.attrs[key]) for key in ("fieldID", "rcID", "filterID"))
    elif named is not None:
        field, channel = int(named[1]), 4 * (int(named[3]) - 1) + int(named[4]) - 1
        band = "gri".index(named[2]) + 1
    else:
        return {"survey": "ztf"}
    return {
        "survey": "ztf",
        "band": ztf_bands().get(str(band), str(band)),
        "field": field,
        "rcid": channel,
        "ccd": channel // 4 + 1,
        "quadrant": channel % 4 + 1,
        "first_id": first_id(field, channel, band),
    }


def first_id(field: int, channel: int, band: int) -> int:
    """`lc_id` of the source 0 of a ZTF channel (of PTF: chip) in one filter."""
    return 10**13 + field * 10**9 + channel * 10**7 + band * 10**6


def _add_sources(rows: MatchRows, quadrant: dict[str, Any], curves: LightCurves) -> LightCurves:
    """Number the curves as Kowalski does, and add place and reference photometry of their sources."""
    numbers = np.array(curves.ids, np.int64)
    with _opened(rows.path) as file:
        sources = file[rows.group]["sources"]
        names = [name for name in sources.dtype.names or () if sources.dtype[name].shape == ()]
        values = sources.fields(names)[:]
    ids = values["matchedSourceID" if rows.ptf else "matchid"].astype(np.int64)
    order = np.argsort(ids, kind="stable")
    place = np.minimum(np.searchsorted(ids, numbers, sorter=order), max(len(ids) - 1, 0))
    row = order[place] if len(ids) else np.zeros(len(numbers), np.int64)
    absent = ids[row] != numbers if len(ids) else np.ones(len(numbers), bool)
    columns: dict[str, Any] = {
        KEY: [str(quadrant.get("first_id", 0) + number) for number in numbers.tolist()]
    }
    fixed = {name: value for name, value in quadrant.items() if name != "first_id"}
    columns |= {name: pa.array([value] * len(numbers)) for name, value in fixed.items()}
    if len(ids):
        picked = pa.array(np.where(absent, 0, row), mask=absent)
        columns |= {name: pa.array(np.ascontiguousarray(values[name])).take(picked) for name in names}
    columns["time_system"] = curves.table["time_system"]
    return replace(curves, table=pa.table(columns).replace_schema_metadata(curves.table.schema.metadata))


def _names(numbers: NDArray[np.int64], quadrant: dict[str, Any], path: Path) -> list[str]:
    """`lc_id` of sources; where the file does not say which quadrant it is of, its name keeps them apart."""
    if "first_id" in quadrant:
        return [str(quadrant["first_id"] + number) for number in numbers.tolist()]
    return [f"{path.name.split('.')[0]}:{number}" for number in numbers.tolist()]


# ---- HDF5 ----------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path) as file:
            yield file
    except (OSError, KeyError, RuntimeError, ValueError) as problem:
        if isinstance(problem, FileNotFoundError | PermissionError):
            raise
        raise FormatError(f"{path}: not a readable HDF5 file: {problem}") from None


def _groups(file: h5py.File) -> list[str]:
    """Groups with sources and their measurements."""
    found: list[str] = []

    def look(name: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and "sources" in item and "sourcedata" in item:
            found.append(name)

    file.visititems(look)
    return found


def _check_filters(path: Path, data: h5py.Dataset) -> None:
    """That the compression of a table can be undone; PyTables offers Blosc and others, which HDF5 alone has not."""
    pipeline = data.id.get_create_plist()
    for number in range(pipeline.get_nfilters()):
        code, _, _, label = pipeline.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            try:
                __import__("hdf5plugin")  # makes its filters known
            except ModuleNotFoundError:
                raise InputError(
                    f"{path}: compressed with {label.decode(errors='replace') or code}; install the package "
                    f"hdf5plugin, or repack the file:  ptrepack --complib=zlib --complevel=5 IN OUT"
                ) from None


def write_matchfile(curves: LightCurves, path: Path) -> None:
    """Write the light curves of one ZTF quadrant and filter as a matchfile that PyTables reads.

    `sources` gets matchid, ra, dec, nobs and meanmag, `sourcedata` matchid, hjd, mag, magerr and catflags.

    Parameters
    ----------
    curves
        With the columns field, rcid, band, ra and dec, times in hjd, and ids as `open_matchfile` makes them.

    Raises
    ------
    UsageError
        A column is missing, there is more than one quadrant or filter, times are not hjd, or ids are others.
    """
    table = curves.table
    needed = ("field", "rcid", "band", "ra", "dec", "time_system")
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise UsageError(f"{path}: a matchfile needs the column {', '.join(missing)}")
    kinds = {
        tuple(row.values()) for row in table.select(["field", "rcid", "band", "time_system"]).to_pylist()
    }
    if len(kinds) != 1:
        raise UsageError(
            f"{path}: a matchfile holds one quadrant in one filter, these light curves are of {len(kinds)}"
        )
    field, channel, band, system = kinds.pop()
    number = next((int(code) for code, name in ztf_bands().items() if name == band), 0)
    if system != "hjd" or not number:
        raise UsageError(f"{path}: a matchfile has times in hjd and a band of ZTF, not {system} and {band}")
    whole = [int(name) if name.isdecimal() else -1 for name in curves.ids]
    ids = np.array(whole, np.int64) - first_id(field, channel, number)
    if ((ids < 0) | (ids >= 10**6)).any():
        raise UsageError(f"{path}: lc_id is not 1e13 + field 1e9 + channel 1e7 + filter 1e6 + matchid")
    with whole_file(path) as part, h5py.File(part, "w") as file:
        _attributes(file, "GROUP", "")
        file.attrs["PYTABLES_FORMAT_VERSION"] = np.bytes_("2.1")
        group = file.create_group("matches")
        _attributes(group, "GROUP", "Matched Sources")
        group.attrs.update({"fieldID": field, "rcID": channel, "filterID": number})
        group.attrs.update({"ccdID": channel // 4 + 1, "quadrantID": channel % 4 + 1})
        _write_rows(group, "sources", _source_rows(curves, ids))
        _write_rows(group, "sourcedata", _data_rows(curves, ids))


def _source_rows(curves: LightCurves, ids: Any) -> Any:
    kinds = [("matchid", "<i4"), ("ra", "<f8"), ("dec", "<f8"), ("nobs", "<u2"), ("meanmag", "<f4")]
    rows = np.zeros(len(curves), kinds)
    rows["matchid"], rows["nobs"] = ids, curves.n_points
    rows["ra"], rows["dec"] = curves.table["ra"].to_numpy(), curves.table["dec"].to_numpy()
    owner = np.repeat(np.arange(len(curves)), curves.n_points)
    sums = np.bincount(owner, curves.mag, len(curves))
    rows["meanmag"] = sums / np.maximum(curves.n_points, 1)
    return rows


def _data_rows(curves: LightCurves, ids: Any) -> Any:
    kinds = [("matchid", "<u4"), ("hjd", "<f8"), ("mag", "<f4"), ("magerr", "<f4"), ("catflags", "<u2")]
    rows = np.zeros(len(curves.time), kinds)
    rows["matchid"] = np.repeat(ids, curves.n_points)
    rows["hjd"], rows["mag"], rows["magerr"] = curves.time, curves.mag, curves.magerr
    if curves.flags is not None:
        rows["catflags"] = curves.flags
    return rows


def _write_rows(group: h5py.Group, name: str, rows: Any) -> None:
    """A table as PyTables knows it: a chunked dataset, with its columns named in attributes."""
    data = group.create_dataset(
        name, data=rows, maxshape=(None,), chunks=(4096,), compression="gzip", shuffle=True
    )
    _attributes(data, "TABLE", name, "2.7")
    for number, column in enumerate(rows.dtype.names):
        data.attrs[f"FIELD_{number}_NAME"] = np.bytes_(column)
        data.attrs[f"FIELD_{number}_FILL"] = np.zeros((), rows.dtype[column])
    data.attrs["NROWS"] = np.int64(len(rows))


def _attributes(item: Any, kind: str, title: str, version: str = "1.0") -> None:
    item.attrs["CLASS"] = np.bytes_(kind)
    item.attrs["TITLE"] = np.bytes_(title) if title else h5py.Empty("S1")
    item.attrs["VERSION"] = np.bytes_(version)
