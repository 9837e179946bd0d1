"""Catalogues in a search: the zero point and the astrometric check by stars, and what is known already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from tapetum.core.errors import InputError
from tapetum.pipelines.candidates import Known
from tapetum.pipelines.search_steps import Calibration, nobody
from tapetum.sky.match import match_sky

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.images.frame import Frame
    from tapetum.pipelines.search_steps import Prepared, Say
    from tapetum.sky.catalogue import Catalogue


STAR_SIGMA = 5.0  # per pixel
STAR_SNR = 20.0


@dataclass(frozen=True)
class Catalogues:
    """Tables that all images of a search share.

    Attributes
    ----------
    stars
        For the zero point and the astrometric check; None without.
    stars_name
        Where they come from.
    known
        (name, table) of known objects.
    """

    stars: Catalogue | None = None
    stars_name: str = ""
    known: tuple[tuple[str, Catalogue], ...] = ()

    @classmethod
    def read(cls, stars: Path | None, known: Sequence[Path]) -> Self:
        """Read the tables.

        Raises
        ------
        InputError
            A table cannot be read.
        """
        if stars is None and not known:
            return cls()
        from tapetum.sky.catalogue import read_catalogue

        table = None if stars is None else read_catalogue(stars)
        return cls(
            table, "" if stars is None else stars.name, tuple((p.stem, read_catalogue(p)) for p in known)
        )


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
    frame: Frame, science: Prepared, catalogues: Catalogues, *, refine: bool = False, say: Say = nobody
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
        return _by_stars(frame, science, catalogues.stars, catalogues.stars_name, refine, say)
    except InputError as problem:
        say(f"warning: {catalogues.stars_name} does not calibrate the image: {problem}; the header does")
        return frame, header


def _by_stars(
    frame: Frame, science: Prepared, stars: Catalogue, name: str, refine: bool, say: Say
) -> tuple[Frame, Calibration]:
    from tapetum.images.astrometry import check_astrometry, refine_wcs
    from tapetum.images.extract import extract_sources
    from tapetum.images.photometry import fit_zero_point, forced_photometry

    plane = science.plane
    found = extract_sources(plane.data, plane.noise, plane.mask, threshold=STAR_SIGMA, shapes=False)
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
