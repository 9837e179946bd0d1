"""Pan-STARRS 1: which skycells cover a field, their stacked images and masks, and linear fluxes out of them."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import FormatError, InputError
from tapetum.core.files import whole_file
from tapetum.surveys.archive_files import Wanted, fetch_files
from tapetum.surveys.archives import archive_facts, check_circle, reference_band

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.core.http import HttpClient

BANDS = "grizy"
STEP_DEG = 0.05  # between positions that are asked about; a skycell is eight times as wide
POSITIONS = 500  # in one question
POGSON = 2.5 / np.log(10.0)
FILE = re.compile(
    r"rings\.v3\.skycell/(\d{4})/(\d{3})/(rings\.v3\.skycell\.\1\.\2\.stk\.[grizy]\.unconv(\.mask)?\.fits)"
)
OLD_MATRIX = {f"PC00{i}00{j}": f"PC{i}_{j}" for i in (1, 2) for j in (1, 2)}
KEPT = ("CTYPE1", "CTYPE2", "CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CDELT1", "CDELT2", "CUNIT1", "CUNIT2")
ROWS = 512  # made linear at a time
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PanStarrs:
    """Stacked skycells, a `tapetum.surveys.archives.ReferenceArchive`.

    Attributes
    ----------
    client
        Asks the archive.
    url
        Its address.
    cache
        Where the original files are kept.
    downloads
        Files fetched at the same time.
    """

    client: HttpClient
    url: str
    cache: Path
    downloads: int = 4

    def fetch(self, ra: float, dec: float, radius_deg: float, band: str, folder: Path) -> list[Path]:
        """Skycells that cover a circle; see `tapetum.surveys.archives.ReferenceArchive.fetch`.

        The images have counts per second, so that ``MAGZP`` holds for all of them.

        Raises
        ------
        InputError, NetworkError, FormatError
            As the protocol says.
        """
        check_circle(ra, dec, radius_deg)
        letter = reference_band(band, BANDS)
        if dec + radius_deg < archive_facts("ps1")["south"]:
            raise InputError(f"dec {dec}: Pan-STARRS saw nothing so far south; name another reference")
        cells = self.cells(ra, dec, radius_deg, letter)
        if not cells:
            raise InputError(f"Pan-STARRS has no {letter} image at ra {ra:.5f}, dec {dec:.5f}")
        wanted = [
            Wanted(f"{self.url.rstrip('/')}/{path}", self.cache / path.rpartition("/")[2])
            for cell in cells
            for path in cell
        ]
        kept = iter(fetch_files(self.client, wanted, self.downloads))
        return [write_linear([next(kept) for _ in cell], letter, folder) for cell in cells]

    def cells(self, ra: float, dec: float, radius_deg: float, letter: str) -> list[list[str]]:
        """Paths of image and mask of every skycell that covers a part of a circle.

        Raises
        ------
        NetworkError, FormatError
            The service cannot be reached, or answers something else than its table.
        """
        # a cell that holds a point of the circle's rim, in a corner, holds a whole disc of positions within this reach
        reach = radius_deg + STEP_DEG * (1 + np.sqrt(0.5))
        positions = disc_positions(ra, dec, reach, STEP_DEG)
        found: dict[tuple[str, str], dict[str, str]] = {}
        for start in range(0, len(positions), POSITIONS):
            for cell, kind, path in self._ask(positions[start : start + POSITIONS], letter):
                found.setdefault(cell, {})[kind] = path
        whole = []
        for cell, paths in sorted(found.items()):
            if "image" not in paths:
                _log.warning("skycell %s has a mask and no image", ".".join(cell))
                continue
            if "mask" not in paths:
                _log.warning("skycell %s has no mask", ".".join(cell))
            whole.append([paths[kind] for kind in ("image", "mask") if kind in paths])
        return whole

    def _ask(self, positions: NDArray[np.float64], letter: str) -> list[tuple[tuple[str, str], str, str]]:
        address = f"{self.url.rstrip('/')}/{archive_facts('ps1')['names']}"
        text = "\n".join(f"{ra:.6f} {dec:.6f}" for ra, dec in positions)
        answer = self.client.request(
            "POST",
            address,
            data={"filters": letter, "type": "stack,stack.mask"},
            files={"file": ("positions.txt", text)},
            harmless=True,
        )
        return parse_names(answer.text, address)


def parse_names(text: str, address: str) -> list[tuple[tuple[str, str], str, str]]:
    """Rows of the table of file names: (projection cell, skycell), ``image`` or ``mask``, path below the server.

    Raises
    ------
    FormatError
        Not such a table, or a path that is no stacked skycell.
    """
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines or not {"filename", "type"} <= set(lines[0]):
        raise FormatError(f"{address}: no table of file names but {text[:80]!r}")
    rows = []
    for words in lines[1:]:
        row = dict(zip(lines[0], words, strict=False))
        match = FILE.fullmatch(row.get("filename", "").lstrip("/"))
        if len(words) != len(lines[0]) or match is None:
            raise FormatError(f"{address}: a row that names no stacked skycell: {' '.join(words)[:120]!r}")
        if row.get("badflag", "0") != "0":
            _log.warning("skycell image %s is flagged bad by the archive, left out", match[3])
            continue
        rows.append(((match[1], match[2]), "mask" if match[4] else "image", match[0]))
    return rows


def disc_positions(ra: float, dec: float, radius_deg: float, step_deg: float) -> NDArray[np.float64]:
    """Positions that fill a disc, none farther than `step_deg` from its neighbours.

    Returns
    -------
    ndarray of float64, shape (n, 2)
        ra, dec [deg].
    """
    rings = [np.array([[ra, dec]])]
    n_rings = int(np.ceil(radius_deg / step_deg))
    for distance in np.linspace(0, radius_deg, n_rings + 1)[1:]:
        n = max(6, int(np.ceil(2 * np.pi * distance / step_deg)))
        rings.append(_around(ra, dec, distance, 2 * np.pi * np.arange(n) / n))
    return np.concatenate(rings)


def _around(ra: float, dec: float, distance: float, angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions at a distance [deg] from one, in the directions `angle` [rad, E of N]; spherical trigonometry."""
    d, d0 = np.radians(distance), np.radians(dec)
    sin_dec = np.sin(d0) * np.cos(d) + np.cos(d0) * np.sin(d) * np.cos(angle)
    north = np.cos(d) * np.cos(d0) - np.sin(d) * np.sin(d0) * np.cos(angle)
    delta = np.arctan2(np.sin(d) * np.sin(angle), north)  # holds at the pole as well
    return np.stack([(ra + np.degrees(delta)) % 360, np.degrees(np.arcsin(np.clip(sin_dec, -1, 1)))], axis=1)


def linear_flux(value: NDArray[np.floating], offset: float, softening: float) -> NDArray[np.float64]:
    r"""Flux behind the asinh magnitudes that stacked images store.

    .. math:: f = o + 2 s \sinh(v \ln 10 / 2.5)

    Parameters
    ----------
    value : ndarray
        Pixels as stored.
    offset, softening
        ``BOFFSET`` and ``BSOFTEN`` of the header.

    Returns
    -------
    ndarray of float64, same shape
        Counts over the whole exposure.

    Notes
    -----
    The inverse of Pan-STARRS' compression (Waters et al. 2020, ApJS 251, 4), which follows the asinh magnitudes of
    Lupton, Gunn and Szalay (1999).
    """
    flux: NDArray[np.float64] = offset + 2.0 * softening * np.sinh(value.astype(np.float64) / POGSON)
    return flux


def write_linear(paths: Sequence[Path], letter: str, folder: Path) -> Path:
    """An image and its mask as they come from the archive, written with linear fluxes for one second.

    Parameters
    ----------
    paths
        The image, and its mask if there is one.
    letter
        Its band.
    folder
        Where ``<name>.fits`` and ``<name>_mask.fits`` appear, unless they are there.

    Returns
    -------
    Path
        The image.

    Raises
    ------
    FormatError
        No image in the file, or no exposure time in its header.
    """
    from astropy.io import fits

    image = folder / f"{paths[0].name.removesuffix('.fits')}.linear.fits"
    mask = image.with_name(image.name.replace(".linear.fits", ".linear_mask.fits"))
    if len(paths) > 1 and not mask.is_file():
        values, old = _read(paths[1])
        header = _wcs_cards(old)
        header["HISTORY"] = f"mask of {paths[0].name}, bits as Pan-STARRS defines them"
        with whole_file(mask) as part:
            hdu = fits.CompImageHDU(values.astype(np.int32), header, compression_type="RICE_1")
            hdu.writeto(part, checksum=True)
    if not image.is_file():
        values, old = _read(paths[0])
        exposure = old.get("EXPTIME")
        if not isinstance(exposure, int | float) or not exposure > 0:
            raise FormatError(f"{paths[0]}: EXPTIME is {exposure!r}, so its fluxes have no scale")
        with whole_file(image) as part:
            data = _linear_rows(values, old, float(exposure))
            fits.PrimaryHDU(data, _image_cards(old, letter, float(exposure), paths[0].name)).writeto(
                part, checksum=True
            )
    return image


def _read(path: Path) -> tuple[NDArray[Any], Any]:
    """Pixels and header of the only image of a file."""
    from astropy.io import fits

    with fits.open(path, memmap=False) as hdus:
        for hdu in hdus:
            if hdu.is_image and hdu.data is not None and hdu.data.ndim == 2:
                return hdu.data, hdu.header
    raise FormatError(f"{path}: holds no image")


def _linear_rows(values: NDArray[Any], header: Any, exposure: float) -> NDArray[np.float32]:
    """Counts per second; a few rows at a time, because float64 of a whole skycell would be 300 MB."""
    out = np.empty(values.shape, np.float32)
    packed = "BOFFSET" in header and "BSOFTEN" in header
    for top in range(0, values.shape[0], ROWS):
        rows = values[top : top + ROWS].astype(np.float64)
        if packed:
            rows = linear_flux(rows, float(header["BOFFSET"]), float(header["BSOFTEN"]))
        out[top : top + ROWS] = rows / exposure
    return out


def _wcs_cards(old: Any) -> Any:
    """The WCS with today's keys: the skycells have the matrix of 1993, and forget to name their frame."""
    from astropy.io import fits

    header = fits.Header()
    for key in KEPT:
        if key in old:
            header[key] = old[key]
    for old_key, new_key in OLD_MATRIX.items():
        if old_key in old or new_key in old:
            header[new_key] = old[old_key if old_key in old else new_key]
    header["RADESYS"] = old.get("RADESYS", "FK5")
    header["EQUINOX"] = old.get("EQUINOX", 2000.0)
    return header


def _image_cards(old: Any, letter: str, exposure: float, name: str) -> Any:
    facts = archive_facts("ps1")
    header = _wcs_cards(old)
    header["TELESCOP"], header["INSTRUME"] = "PS1", "GPC1"
    header["FILTER"] = letter
    header["BUNIT"] = "count/s"
    header["EXPTIME"] = (1.0, "[s] fluxes are for one second")
    header["STKTIME"] = (exposure, "[s] sum of the exposures of the stack")
    header["MAGZP"] = (facts["zero_point"], "[mag] of 1 count per second")
    for key, ours, factor in (("gain", "GAIN", exposure), ("saturation", "SATURATE", 1.0 / exposure)):
        value = old.get(facts[key].removeprefix("HIERARCH "))
        if isinstance(value, int | float) and value > 0:
            header[ours] = value * factor
    header["HISTORY"] = f"{name} made linear (BOFFSET, BSOFTEN) and divided by {exposure:g} s"
    return header
