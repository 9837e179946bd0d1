"""HiPS maps: images cut out of them by a service that speaks as hips2fits does."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import FormatError, InputError
from tapetum.core.files import whole_file
from tapetum.surveys.archive_files import Wanted, fetch_files
from tapetum.surveys.archives import archive_facts, check_circle, reference_band

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tapetum.core.http import HttpClient

BANDS = "ugrizy"
OVERLAP = 64  # of neighbouring cutouts [pixel]


@dataclass(frozen=True)
class Hips:
    """Cutouts of one map, a `tapetum.surveys.archives.ReferenceArchive`.

    Attributes
    ----------
    client
        Asks the service.
    url
        Its address.
    survey
        Identifier of the map; ``{band}`` in it stands for the band's letter.
    cache
        Where answers are kept as they came.
    downloads
        Cutouts fetched at the same time.
    scale_arcsec
        Pixel of the cutouts [arcsec]; None takes the archive's default.
    """

    client: HttpClient
    url: str
    survey: str
    cache: Path
    downloads: int = 4
    scale_arcsec: float | None = None

    def fetch(self, ra: float, dec: float, radius_deg: float, band: str, folder: Path) -> list[Path]:
        """Cutouts that cover a circle; see `tapetum.surveys.archives.ReferenceArchive.fetch`.

        Raises
        ------
        InputError, NetworkError, FormatError
            As the protocol says.
        """
        check_circle(ra, dec, radius_deg)
        scale = self.scale_arcsec or archive_facts("hips")["scale_arcsec"]
        n = int(np.ceil(2 * radius_deg * 3600 / scale))
        return self.fetch_onto(_gnomonic(ra, dec, scale, n), (n, n), folder, band)

    def fetch_onto(self, wcs: Any, shape: tuple[int, int], folder: Path, band: str = "") -> list[Path]:
        """The map on a pixel grid, in one image or, where that is too large for one answer, in several.

        Parameters
        ----------
        wcs
            An `astropy.wcs.WCS` of two celestial axes.
        shape
            (n_y, n_x) of the grid [pixel].
        folder
            Where the images appear.
        band
            Band of the science image; needed when the map's name has ``{band}``.

        Raises
        ------
        InputError
            The map has nothing there, or no band fits.
        NetworkError, FormatError
            As the protocol says.
        """
        survey = self.survey
        if "{band}" in survey:
            survey = survey.replace("{band}", reference_band(band, BANDS))
        wanted = [Wanted(self.url, path, params) for path, params in _tiles(survey, wcs, shape, self.cache)]
        kept = fetch_files(self.client, wanted, self.downloads)
        images = [path for path in (_finish(path, survey, folder) for path in kept) if path is not None]
        if not images:
            raise InputError(f"{survey}: this map has no pixels here; name another reference")
        return images


def _gnomonic(ra: float, dec: float, scale_arcsec: float, n: int) -> Any:
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [(n + 1) / 2, (n + 1) / 2]
    wcs.wcs.cdelt = [-scale_arcsec / 3600, scale_arcsec / 3600]
    wcs.wcs.radesys = "ICRS"
    return wcs


def _tiles(
    survey: str, wcs: Any, shape: tuple[int, int], folder: Path
) -> Iterator[tuple[Path, dict[str, str]]]:
    """File and question of every cutout."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", survey).strip("_")
    for top, n_y in _spans(shape[0]):
        for left, n_x in _spans(shape[1]):
            header = wcs[top : top + n_y, left : left + n_x].to_header(relax=True)
            params = {
                "hips": survey,
                "width": str(n_x),
                "height": str(n_y),
                "format": "fits",
                # the service reads plain JSON numbers and strings, and the size from the WCS as well
                "wcs": json.dumps({**dict(header), "NAXIS": 2, "NAXIS1": n_x, "NAXIS2": n_y}),
            }
            digest = hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:12]
            yield folder / f"{name}_{digest}.fits", params


def _spans(n: int) -> list[tuple[int, int]]:
    """Start and length of pieces that cover `n` pixels and overlap a little."""
    side = archive_facts("hips")["side"]
    if n <= side:
        return [(0, n)]
    count = int(np.ceil((n - OVERLAP) / (side - OVERLAP)))
    starts = [round(k * (n - side) / (count - 1)) for k in range(count)]
    return [(start, side) for start in starts]


def _finish(path: Path, survey: str, folder: Path) -> Path | None:
    """The cutout with linear fluxes and our keys; None where the map is empty."""
    from astropy.io import fits

    done = folder / path.name
    if done.is_file():
        return done
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the service's headers have cards that are not to the letter
        with fits.open(path, memmap=False) as hdus:
            data, header = hdus[0].data, hdus[0].header
    if data is None or data.ndim != 2:
        raise FormatError(f"{path}: the cutout of {survey} is no image of one plane")
    data = data.astype(np.float32)
    if not (np.isfinite(data) & (data != 0)).any():
        return None
    data[data == 0] = np.nan  # outside the map
    facts = archive_facts("hips")
    if any(name in survey for name in facts["asinh"]):
        data = (2.0 * np.sinh(data.astype(np.float64) * np.log(10.0) / 2.5)).astype(np.float32)
        header["HISTORY"] = (
            "asinh magnitudes made linear; the softening is not known, so the scale is arbitrary"
        )
    header["HISTORY"] = f"cut out of the HiPS map {survey}"
    for key in ("BZERO", "BSCALE", "BLANK", "CHECKSUM", "DATASUM"):
        header.remove(key, ignore_missing=True)
    with whole_file(done) as part:
        fits.PrimaryHDU(data, header).writeto(part, checksum=True, output_verify="silentfix")
    return done
