"""Catalogues of images: sources the classical way, or by the matched filter with the PSF."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tapetum.core.errors import InputError
from tapetum.images.background import estimate_background
from tapetum.images.celestial import sky_positions
from tapetum.images.detect import Detections, Note, detect_difference
from tapetum.images.extract import Sources, extract_sources
from tapetum.images.fits import read_frame
from tapetum.images.psf import PsfModel
from tapetum.images.psf_plane import read_psf
from tapetum.pipelines.candidates import DECIMALS, magnitudes, signal_to_noise
from tapetum.pipelines.outputs import STDOUT
from tapetum.pipelines.search_steps import compare, nobody, prepare
from tapetum.pipelines.steps import WARNING, Made, Step
from tapetum.report.tables import rounded, table_format, write_table
from tapetum.surveys.telescopes import find_telescope

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from tapetum.images.frame import Frame
    from tapetum.pipelines.steps import Work

Mode = Literal["classical", "psf", "difference"]

THRESHOLDS: dict[Mode, float] = {"classical": 1.5, "psf": 5.0, "difference": 5.0}
ASSUMED_BETA = 3.2  # of a Moffat profile, where only a width is known
UNITS = {
    "x": "pix",
    "y": "pix",
    "ra": "deg",
    "dec": "deg",
    "flux": "adu",
    "flux_err": "adu",
    "flux_iso": "adu",
    "mag": "mag",
    "mag_err": "mag",
    "fwhm": "pix",
    "fwhm_psf": "pix",
    "a": "pix",
    "b": "pix",
    "angle_deg": "deg",
    "length_pix": "pix",
    "x1": "pix",
    "y1": "pix",
    "x2": "pix",
    "y2": "pix",
    "peak": "adu",
}


@dataclass(frozen=True)
class DetectOptions:
    """What decides a catalogue.

    Attributes
    ----------
    mode
        ``classical``: pixels above the sky; ``psf``: matched filter with the measured PSF; ``difference``: the same on
        a difference image, holes included.
    threshold
        [sigma]; None is the usual one of the mode.
    telescope
        Profile to read the images with; None recognises it.
    psf_of
        ``difference``: image whose stars tell the PSF; without it and `fwhm` the one that `images subtract` put into
        the file.
    fwhm
        ``difference``: width of the PSF instead [pixel].
    aperture
        ``classical``: diameter [pixel].
    mask
        Mask of the images; None takes the one in the file or beside it.
    """

    mode: Mode = "classical"
    threshold: float | None = None
    telescope: str | None = None
    psf_of: str | None = None
    fwhm: float | None = None
    aperture: float = 8.0
    mask: str | None = None

    @property
    def sigma(self) -> float:
        """The threshold in force."""
        return THRESHOLDS[self.mode] if self.threshold is None else self.threshold


def detector(options: DetectOptions, threads: int) -> Work:
    """The function that makes the catalogue of an image and writes it; see `run_step`.

    Raises
    ------
    InputError
        The image of `psf_of` cannot be used, or there is no such telescope.
    """
    profile = None if options.telescope is None else find_telescope(options.telescope)
    known = (
        None if options.psf_of is None else prepare(read_frame(options.psf_of, profile), threads=threads).psf
    )
    in_file = options.mode == "difference" and known is None and options.fwhm is None

    def work(step: Step) -> Made:
        frame = read_frame(step.source, profile, mask=options.mask)
        said = [WARNING + text for text in frame.info.warnings]
        psf = read_psf(step.source, frame.shape) if in_file else known
        table, words = catalogue(frame, options, psf, said.append, threads=threads)
        write_table(rounded(table, DECIMALS), step.output, words, UNITS)
        return Made(tuple(said), f"{table.num_rows} sources")

    return work


def is_table_file(out: str, suffix: str) -> bool:
    """Whether ``-o`` names the table to write (``-`` is CSV on stdout), not a folder for tables of a suffix.

    Raises
    ------
    UsageError
        The suffix of the file, or of the tables in a folder, is no table's.
    """
    single = out == STDOUT or (bool(Path(out).suffix) and not Path(out).is_dir())
    table_format(out if single else f"x{suffix}")
    return single


def catalogue(
    frame: Frame,
    options: DetectOptions,
    psf: PsfModel | None = None,
    say: Callable[[str], None] | None = None,
    *,
    threads: int = 1,
) -> tuple[pa.Table, dict[str, str]]:
    """Table of the sources of one image, and words about it.

    Parameters
    ----------
    psf
        ``difference``: its PSF, where it is known.
    say
        Told of what was measured or had to be assumed.

    Raises
    ------
    InputError
        There is no sky, or no way to know the PSF.
    """
    words = {
        "image": frame.source,
        "telescope": frame.info.telescope,
        "mode": options.mode,
        "threshold": f"{options.sigma:g}",
    }
    words |= {"band": frame.info.band} if frame.info.band else {}
    words |= {"mjd": f"{frame.info.mjd:.8f}"} if frame.info.mjd is not None else {}
    if options.mode == "classical":
        found = _classical(frame, options, threads)
        return _table(frame, found.x, found.y, found.flux, found.flux_err, _classical_columns(found)), words
    detections = _matched(frame, options, psf, say or nobody, threads)
    words["flags"] = ", ".join(f"{note.value} {note.name}" for note in Note)
    columns = _matched_columns(detections)
    table = _table(frame, detections.x, detections.y, detections.flux, detections.flux_err, columns)
    return table, words


def _classical(frame: Frame, options: DetectOptions, threads: int) -> Sources:
    sky = estimate_background(frame.data, frame.mask, threads=threads)
    return extract_sources(
        frame.data - sky.level,
        sky.noise,
        frame.mask,
        threshold=options.sigma,
        aperture=options.aperture,
        gain=frame.info.gain,
        threads=threads,
    )


def _matched(
    frame: Frame, options: DetectOptions, psf: PsfModel | None, say: Callable[[str], None], threads: int
) -> Detections:
    if options.mode == "psf":
        searched = compare(prepare(frame, threads=threads, say=say), None)
        return detect_difference(
            searched.data,
            searched.noise,
            searched.mask,
            searched.psf,
            threshold=options.sigma,
            both_signs=False,
            threads=threads,
        )
    return detect_difference(
        frame.data,
        _difference_noise(frame, threads),
        frame.mask,
        _difference_psf(frame, options, psf, say),
        threshold=options.sigma,
        threads=threads,
    )


def _difference_noise(frame: Frame, threads: int) -> Any:
    if frame.variance is not None:
        return np.sqrt(np.maximum(frame.variance, 0))
    return estimate_background(frame.data, frame.mask, threads=threads).noise


def _difference_psf(
    frame: Frame, options: DetectOptions, psf: PsfModel | None, say: Callable[[str], None]
) -> PsfModel:
    """The PSF of another image on this one's grid, else a profile of a known width."""
    if psf is not None:
        if psf.shape != frame.shape:
            raise InputError(
                f"{frame.source}: shape {frame.shape}, but {options.psf_of} has {psf.shape}: not the same grid"
            )
        return psf
    fwhm = options.fwhm or frame.info.fwhm_pix
    if fwhm is None:
        raise InputError(
            f"{frame.source}: a difference has no stars to measure the PSF on; name the image it was made of with"
            " --psf-of, or its seeing with --fwhm"
        )
    if options.fwhm is None:
        say(f"a Moffat profile of the header's seeing is used, {fwhm:.2f} px; --psf-of is better")
    return PsfModel.moffat(fwhm, ASSUMED_BETA, frame.shape)


def _table(frame: Frame, x: Any, y: Any, flux: Any, flux_err: Any, columns: dict[str, Any]) -> pa.Table:
    """Positions and brightness before the other columns; what is not known is null."""
    import pyarrow as pa

    ra, dec = sky_positions(frame.wcs, x, y)
    mag, mag_err = magnitudes(flux, flux_err, frame.info.zero_point)
    first = {"x": x, "y": y, "ra": ra, "dec": dec, "flux": flux, "flux_err": flux_err}
    everything = {**first, "mag": mag, "mag_err": mag_err, **columns}
    return pa.table({name: _with_nulls(values) for name, values in everything.items()})


def _with_nulls(values: Any) -> pa.Array:
    import pyarrow as pa

    values = np.asarray(values)
    return pa.array(values, mask=~np.isfinite(values) if values.dtype.kind == "f" else None)


def _classical_columns(found: Sources) -> dict[str, Any]:
    names = ("snr", "fwhm", "a", "b", "elongation", "angle_deg", "flux_iso", "peak", "n_pix", "flags")
    return {name: getattr(found, name) for name in names}


def _matched_columns(found: Detections) -> dict[str, Any]:
    columns = found.columns()
    skipped = ("x", "y", "flux", "flux_err")
    renamed = {"fwhm_pix": "fwhm", "fwhm_psf_pix": "fwhm_psf"}
    snr = signal_to_noise(found.flux, found.flux_err)
    rest = {name: values for name, values in columns.items() if name not in (*skipped, "snr")}
    rest = {renamed.get(name, name): values for name, values in rest.items()}
    return {"snr": snr, **rest, "significance": found.snr}
