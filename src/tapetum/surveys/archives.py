"""Archives that reference images come from, behind one interface."""

from __future__ import annotations

import re
import tomllib
import weakref
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol

from tapetum.core.errors import InputError
from tapetum.core.http import HttpClient, Patience
from tapetum.core.places import cache_dir

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tapetum.core.settings import ArchiveSettings

MAX_RADIUS_DEG = 3.0
READ_SECONDS = 180.0  # a large cutout is made while we wait


class ReferenceArchive(Protocol):
    """Where reference images of a place on the sky come from."""

    def fetch(self, ra: float, dec: float, radius_deg: float, band: str, folder: Path) -> list[Path]:
        """Images that together cover a circle.

        Parameters
        ----------
        ra, dec
            Centre of the circle [deg, ICRS].
        radius_deg
            Its radius [deg].
        band
            Band of the science image, by any usual name; the nearest one of the archive is taken.
        folder
            Where the images appear, with ``<stem>_mask.fits`` beside those that have a mask. What is there already is
            not made again.

        Returns
        -------
        list of Path
            FITS images with linear fluxes and a WCS.

        Raises
        ------
        InputError
            The archive has nothing of this place and band.
        NetworkError
            It cannot be reached.
        FormatError
            It answers nonsense.
        """
        ...


def find_reference_archive(
    name: str, settings: ArchiveSettings, client: HttpClient | None = None, cache_folder: Path | None = None
) -> ReferenceArchive:
    """An archive by its name.

    Parameters
    ----------
    name
        ``ps1``; or ``hips:ID`` of a HiPS map, as ``hips:CDS/P/PanSTARRS/DR1/{band}``, where ``{band}`` stands for
        the band's letter.
    settings
        Addresses and how many files are fetched at a time.
    client
        Asks the archive; None makes one that waits as long as large images take, and ends with the archive.
    cache_folder
        Where downloads are kept; None is ``archives/`` in the cache.

    Raises
    ------
    InputError
        There is no such archive.
    """
    from tapetum.surveys.archive_hips import Hips
    from tapetum.surveys.archive_ps1 import PanStarrs

    kind, _, survey = name.partition(":")
    if kind not in ("ps1", "hips") or (kind == "hips") != bool(survey):
        raise InputError(f"{name!r} is not an archive of references; known: ps1, hips:ID of a HiPS map")
    asks = client or HttpClient(Patience(read_s=READ_SECONDS))
    folder = (cache_folder or cache_dir() / "archives") / kind
    archive: PanStarrs | Hips
    if kind == "ps1":
        url = settings.ps1_url or archive_facts("ps1")["url"]
        archive = PanStarrs(asks, url, folder, settings.downloads)
    else:
        url = settings.hips_url or archive_facts("hips")["url"]
        archive = Hips(asks, url, survey, folder, settings.downloads)
    if client is None:
        weakref.finalize(archive, asks.close)
    return archive


@cache
def _facts() -> dict[str, Any]:
    return tomllib.loads((files(__package__) / "archives.toml").read_text())


def archive_facts(name: str) -> dict[str, Any]:
    """What is known of an archive: its addresses and conventions."""
    facts: dict[str, Any] = _facts()[name]
    return facts


def reference_band(band: str, available: Sequence[str]) -> str:
    """The band of a reference for an image: B and V take g, R takes r, I takes i, g+r takes r.

    Parameters
    ----------
    band
        Band of the image: a letter, or an sncosmo name such as ``ztfr``, ``bessellv``, ``ps1::g``.
    available
        Letters of the archive's bands.

    Raises
    ------
    InputError
        The archive has nothing near it.
    """
    known: dict[str, str] = _facts()["bands"]
    found = known.get(band, band)
    letter = re.fullmatch(r"(?:[a-z0-9]+:{0,2})?([ugrizy])(?:'|p)?", found)
    if letter and letter[1] in available:
        return letter[1]
    raise InputError(
        f"band {band!r}: the archive has {', '.join(available)}, and nothing near it is known; name a reference file"
    )


def check_circle(ra: float, dec: float, radius_deg: float) -> None:
    """Refuse a circle that is none, or that nobody can want.

    Raises
    ------
    InputError
        A value is not finite or out of its range.
    """
    if not (0 <= ra < 360 and -90 <= dec <= 90):
        raise InputError(f"ra {ra}, dec {dec}: not a position on the sky [deg]")
    if not 0 < radius_deg <= MAX_RADIUS_DEG:
        raise InputError(f"radius {radius_deg} deg: between 0 and {MAX_RADIUS_DEG} deg can be fetched")
