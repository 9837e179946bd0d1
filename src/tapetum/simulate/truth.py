"""The truth about injected sources: one table with exact positions, in the columns that gmadet's users know and ours.

``Xpos, Ypos`` are 1-based as in FITS and gmadet; ``x, y`` 0-based as everywhere else here. ``idx`` counts through
the whole table, so that it names one source however many images there are; ``id`` names it for ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import FormatError
from tapetum.core.files import whole_file
from tapetum.images.celestial import sky_positions
from tapetum.simulate.sources import Source

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tapetum.images.frame import Frame

TRUTH_NAME = "simulated_objects.list"
TRUTH_FORMAT = "ascii.ecsv"
GMADET_COLUMNS = ("idx", "filename", "Xpos", "Ypos", "RA", "Dec", "mag", "filter")
UNITS = {
    "Xpos": "pix", "Ypos": "pix", "RA": "deg", "Dec": "deg", "mag": "mag", "x": "pix", "y": "pix", "x1": "pix",
    "y1": "pix", "x2": "pix", "y2": "pix", "length_pix": "pix", "angle_deg": "deg", "width_pix": "pix",
    "period_pix": "pix", "phase": "rad", "coma_radius_pix": "pix", "tail_length_pix": "pix", "tail_angle_deg": "deg",
    "tail_curvature": "1 / pix", "tail_width_pix": "pix", "host_x": "pix", "host_y": "pix", "host_distance": "pix",
    "flux": "adu", "host_flux": "adu", "zero_point": "mag", "gain": "electron / adu",
}  # fmt: skip
NUMBERS = tuple(field.name for field in fields(Source) if field.name not in ("kind", "x", "y", "flux"))


@dataclass(frozen=True)
class Fate:
    """What became of a source in the image.

    Attributes
    ----------
    snr
        Signal-to-noise of an ideal matched filter: root of the sum of light^2 / (sky variance + photon variance).
    inside
        Which part of its light falls on the frame.
    saturated
        A pixel overflows because of it.
    """

    snr: float = 0.0
    inside: float = 0.0
    saturated: bool = False


def truth_table(
    frame: Frame, sources: Sequence[Source], fates: Sequence[Fate], seed: int | None = None
) -> Any:
    """Truth of one image.

    Parameters
    ----------
    frame
        The image before the sources: its name, WCS, zero point, gain, band and mask.
    sources, fates
        What was put in, and what became of it.
    seed
        That the sources were drawn with.

    Returns
    -------
    astropy.table.Table
        One row per source; NaN where a number means nothing for its kind. RA, Dec are NaN without a WCS.
    """
    from astropy.table import Table

    info, n = frame.info, len(sources)
    x, y, flux = (np.array([getattr(s, name) for s in sources], np.float64) for name in ("x", "y", "flux"))
    ra, dec = sky_positions(frame.wcs, x, y)
    zero_point = math.nan if info.zero_point is None else info.zero_point
    with np.errstate(invalid="ignore", divide="ignore"):
        mag = np.where(flux > 0, zero_point - 2.5 * np.log10(flux), np.nan)
    ends = np.array([s.ends() for s in sources], np.float64).reshape(n, 4)
    columns: dict[str, Any] = {
        "idx": np.arange(n),
        "filename": np.full(n, frame.name),
        "Xpos": x + 1,
        "Ypos": y + 1,
        "RA": ra,
        "Dec": dec,
        "mag": mag,
        "filter": np.full(n, info.band or "unknown"),
        "id": [f"{frame.name}:{number}" for number in range(n)],
        "image": np.full(n, frame.name),
        "kind": [s.kind for s in sources],
        "x": x,
        "y": y,
        "flux": flux,
        "snr": [fate.snr for fate in fates],
        "inside": [fate.inside for fate in fates],
        "saturated": [fate.saturated for fate in fates],
        "mask": _mask_at(frame, x, y),
        **dict(zip(("x1", "y1", "x2", "y2"), ends.T, strict=True)),
        **{name: np.array([getattr(s, name) for s in sources], np.float64) for name in NUMBERS},
        "host_distance": np.array([math.hypot(s.x - s.host_x, s.y - s.host_y) for s in sources], np.float64),
        "zero_point": np.full(n, zero_point),
        "gain": np.full(n, info.gain),
        "seed": np.full(n, -1 if seed is None else seed, np.int64),
    }
    return Table(_typed(columns), units={name: unit for name, unit in UNITS.items() if name in columns})


def _typed(columns: dict[str, Any]) -> dict[str, Any]:
    """The same types with no rows as with many, so that tables of all images go together."""
    kinds: dict[str, Any] = {
        "id": str,
        "image": str,
        "filename": str,
        "kind": str,
        "filter": str,
        "saturated": bool,
    }
    kinds |= {"snr": np.float64, "inside": np.float64}
    return {name: np.asarray(values, kinds.get(name)) for name, values in columns.items()}


def _mask_at(frame: Frame, x: Any, y: Any) -> Any:
    """Mask bits of the image at the source's pixel, before anything was put in."""
    n_y, n_x = frame.shape
    column = np.clip(np.floor(x + 0.5), 0, n_x - 1).astype(int)
    row = np.clip(np.floor(y + 0.5), 0, n_y - 1).astype(int)
    return frame.mask[row, column].astype(np.int64)


def stack_truth(tables: Sequence[Any]) -> Any:
    """One table of many images; `idx` counts through it."""
    from astropy.table import vstack

    whole = vstack(list(tables), metadata_conflicts="silent")
    whole["idx"] = np.arange(len(whole))
    return whole


def name_file(table: Any, filename: str) -> None:
    """Say in which file the sources of a table are, in place."""
    table["filename"] = np.full(len(table), filename)  # a new column: the old one holds no longer names


def write_truth(path: Path, table: Any) -> None:
    """Write a truth table as ECSV, whatever its name ends with; it appears whole."""
    with whole_file(path) as part:
        table.write(part, format=TRUTH_FORMAT)


def read_list(path: Path) -> Any:
    """Read a list of sources as it is: in ECSV as we write it, or with gmadet's commented header.

    Returns
    -------
    astropy.table.Table
        With whatever columns it has.

    Raises
    ------
    FormatError
        The file is no such table.
    OSError
        It cannot be read.
    """
    from astropy.table import Table

    text = path.read_text(encoding="utf-8", errors="replace")
    kind = TRUTH_FORMAT if text.lstrip().startswith("# %ECSV") else "ascii.commented_header"
    try:
        return Table.read(text.splitlines(), format=kind)
    except (ValueError, KeyError, IndexError, TypeError) as problem:
        raise FormatError(f"{path}: is not a readable truth table: {problem}") from None


def read_truth(path: Path) -> Any:
    """Read a truth table of ours.

    Raises
    ------
    FormatError
        The file is no truth table of ours; the message says what is missing.
    OSError
        It cannot be read.
    """
    table = read_list(path)
    missing = [name for name in (*GMADET_COLUMNS, "x", "y", "kind", "flux") if name not in table.colnames]
    if missing:
        raise FormatError(f"{path}: is not a truth table: it has no column {', '.join(missing)}")
    return table
