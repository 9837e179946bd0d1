"""Catalogues in a search: the zero point and the astrometric check by stars, and what is known already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from tapetum.core.errors import InputError, NetworkError
from tapetum.images.celestial import enclosing_cone
from tapetum.pipelines.candidates import Known
from tapetum.pipelines.search_steps import Calibration, nobody
from tapetum.sky.match import match_sky

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tapetum.images.frame import Frame
    from tapetum.pipelines.search_steps import Prepared, Say
    from tapetum.sky.catalogue import Catalogue


STAR_SIGMA = 5.0  # per pixel
STAR_SNR = 20.0


@dataclass(frozen=True)
class Catalogues:
    """Tables of stars and of known objects; those of an archive are fetched for each image.

    Attributes
    ----------
    stars
        For the zero point and the astrometric check; None without.
    stars_name
        Where they come from.
    known
        (name, table) of known objects.
    remote_stars, remote_known
        Names of catalogues to fetch around each image.
    server
        Where they are fetched from; None: astroquery's own server.
    """

    stars: Catalogue | None = None
    stars_name: str = ""
    known: tuple[tuple[str, Catalogue], ...] = ()
    remote_stars: str | None = None
    remote_known: tuple[str, ...] = ()
    server: str | None = None

    @classmethod
    def read(cls, stars: str | None, known: Sequence[str], server: str | None = None) -> Self:
        """Read the tables that are files; what is not a file is the name of a remote catalogue.

        Raises
        ------
        InputError
            A table cannot be read, or is neither a file nor a known name.
        """
        if stars is None and not known:
            return cls()
        from tapetum.sky.catalogue import is_remote, read_catalogue

        local = [name for name in known if not is_remote(name)]
        found = cls(
            known=tuple((Path(name).stem, read_catalogue(name)) for name in local),
            remote_known=tuple(name for name in known if is_remote(name)),
            server=server,
        )
        if stars is None:
            return found
        if is_remote(stars):
            return replace(found, remote_stars=stars)
        return replace(found, stars=read_catalogue(stars), stars_name=Path(stars).name)

    def around(self, frame: Frame, say: Say = nobody) -> Self:
        """The same with what an archive has around an image.

        Raises
        ------
        InputError
            The image has no WCS, or is too large a part of the sky.
        NetworkError, MissingExtraError
            Known objects cannot be fetched. Stars that cannot be fetched are a warning: the header calibrates.
        """
        if self.remote_stars is None and not self.remote_known:
            return self
        from tapetum.sky.catalogue import fetch_catalogue

        if frame.wcs is None:
            raise InputError(
                f"{frame.source}: has no WCS, so no catalogue can be fetched around it; name a table"
            )
        ra, dec, radius = enclosing_cone(frame.wcs, frame.shape)
        known = tuple(
            (name, fetch_catalogue(name, ra, dec, radius, server=self.server)) for name in self.remote_known
        )
        found = replace(self, known=(*self.known, *known))
        if self.remote_stars is None:
            return found
        try:
            stars = fetch_catalogue(self.remote_stars, ra, dec, radius, server=self.server)
        except NetworkError as problem:
            say(f"warning: {self.remote_stars} cannot be fetched, the header calibrates: {problem}")
            return found
        return replace(found, stars=stars, stars_name=self.remote_stars)


def match_known(
    catalogues: Catalogues, ra: NDArray[np.float64], dec: NDArray[np.float64], radius_arcsec: float
) -> Known:
    """The nearest known object of all tables at each position; none where a position is not known."""
    names, best = [""] * len(ra), np.full(len(ra), np.nan)
    placed = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    for label, table in catalogues.known:
        i, j, apart = match_sky(ra[placed], dec[placed], table.ra, table.dec, radius_arcsec, keep="nearest")
        for row, other, distance in zip(placed[i].tolist(), j.tolist(), apart.tolist(), strict=True):
            if not best[row] <= distance:
                names[row], best[row] = f"{label} {other}", distance
    return Known(names, best)


def calibrate(
    frame: Frame,
    science: Prepared,
    catalogues: Catalogues,
    *,
    refine: bool = False,
    threads: int = 1,
    say: Say = nobody,
) -> tuple[Frame, Calibration]:
    """The zero point: by stars of the catalogue where there is one, else as the header says.

    A catalogue that does not fit the image is no reason to stop: the header then holds, and the diary has a warning.

    Returns
    -------
    frame
        With the corrected WCS, when `refine`.
    calibration
    """
    header = Calibration(frame.info.zero_point)
    if catalogues.stars is None:
        return frame, header
    if frame.wcs is None:
        say(f"warning: {frame.source} has no WCS: {catalogues.stars_name} cannot calibrate it")
        return frame, header
    try:
        return _by_stars(frame, science, catalogues.stars, catalogues.stars_name, refine, threads, say)
    except InputError as problem:
        say(f"warning: {catalogues.stars_name} does not calibrate the image: {problem}; the header does")
        return frame, header


def _by_stars(
    frame: Frame, science: Prepared, stars: Catalogue, name: str, refine: bool, threads: int, say: Say
) -> tuple[Frame, Calibration]:
    from tapetum.images.astrometry import check_astrometry, refine_wcs
    from tapetum.images.extract import extract_sources
    from tapetum.images.photometry import fit_zero_point, forced_photometry

    plane = science.plane
    found = extract_sources(
        plane.data, plane.noise, plane.mask, threshold=STAR_SIGMA, shapes=False, threads=threads
    )
    clean = (found.snr > STAR_SNR) & (found.flags == 0)
    x, y = found.x[clean], found.y[clean]
    if stars.extended is not None:
        stars = stars[~stars.extended]
    fit = check_astrometry(x, y, frame.wcs, stars.ra, stars.dec)
    say(
        f"astrometry: offset {fit.offset_arcsec:.3f} arcsec, rms {fit.rms_arcsec:.3f} arcsec, {fit.n_matched} stars"
    )
    notes = {
        "astrometry": f"offset {fit.offset_arcsec:.3f}, rms {fit.rms_arcsec:.3f} arcsec, {fit.n_matched} stars"
    }
    if refine:
        frame = replace(frame, wcs=refine_wcs(frame.wcs, x, y, stars.ra, stars.dec))
        better = check_astrometry(x, y, frame.wcs, stars.ra, stars.dec)
        say(
            f"astrometry refined: offset {better.offset_arcsec:.3f} arcsec, rms {better.rms_arcsec:.3f} arcsec"
        )
    band = stars.band_for(frame.info.band or "clear")
    if band is None:
        raise InputError(
            f"no band like {frame.info.band} in it; it has {', '.join(stars.mags) or 'no magnitudes'}"
        )
    at_x, at_y = x[fit.i_star], y[fit.i_star]
    light = forced_photometry(
        plane.data, plane.noise, plane.mask, science.psf, at_x, at_y, gain=plane.gain, fit_position=True
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        instrumental = -2.5 * np.log10(light.flux)
        error = 2.5 / np.log(10) * light.flux_err / light.flux
    fitted = fit_zero_point(instrumental, stars.mags[band][fit.i_catalogue], error)
    notes["zero point"] = f"{fitted.n_used} of {fitted.n_given} stars in {band}, rms {fitted.rms:.3f} mag"
    say(f"zero point {fitted.value:.4f} +- {fitted.error:.4f} mag: {notes['zero point']}")
    return frame, Calibration(fitted.value, fitted.error, f"{name}, {band}", notes)
