"""What was understood of an image, for people and machines."""

from __future__ import annotations

import datetime
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.images.celestial import sky_of_pixels
from tapetum.images.frame import Bad

if TYPE_CHECKING:
    from tapetum.images.frame import Frame, FrameInfo
    from tapetum.images.psf import PsfModel

MJD_ZERO = datetime.datetime(1858, 11, 17)
# without these an image cannot be searched well; what each is called, and what it is needed for
ESSENTIAL = {
    "gain": ("gain", "photon noise"),
    "saturation": ("saturation level", "knowing which stars can be trusted"),
    "zero_point": ("zero point", "magnitudes"),
    "pixel_scale_arcsec": ("pixel scale", "positions and seeing"),
    "mjd": ("time", "light curves and moving objects"),
    "band": ("band", "magnitudes"),
}


def essential_gaps(info: FrameInfo) -> list[str]:
    """One sentence for each essential value that is guessed or not known."""
    gaps = []
    for name, (called, purpose) in ESSENTIAL.items():
        state, _, why = info.origin.get(name, "unknown: nothing tells it").partition(": ")
        if state == "guessed":
            gaps.append(f"the {called} is guessed: {why}; needed for {purpose}")
        elif state == "unknown":
            gaps.append(f"the {called} is not known: {why}; needed for {purpose}")
    return gaps


def summarise(frame: Frame, psf: PsfModel | None = None) -> dict[str, Any]:
    """Everything that was understood of an image, ready for JSON.

    Parameters
    ----------
    psf
        Measured from the image, if it was.

    Returns
    -------
    dict
        Values by the names of `FrameInfo`, in its units; None where there is none. `origin` says where each comes from,
        `mask` counts pixels by reason, `has_gaps` whether an essential value is guessed or
        unknown, `warnings` is what a user should know, these gaps included.
    """
    info = frame.info
    n_y, n_x = frame.shape
    ra, dec = _centre(frame)
    values: dict[str, Any] = {
        "source": frame.source,
        "name": frame.name,
        "telescope": info.telescope,
        "identity": dict(info.identity),
        "n_x": n_x,
        "n_y": n_y,
        "ra": ra,
        "dec": dec,
        "wcs": info.wcs_kind,
        "pixel_scale_arcsec": info.pixel_scale_arcsec,
        "band": info.band,
        "mjd": info.mjd,
        "exposure_s": info.exposure_s,
        "gain": info.gain,
        "read_noise": info.read_noise,
        "saturation": info.saturation if math.isfinite(info.saturation) else None,
        "zero_point": info.zero_point,
        "mag_limit": info.mag_limit,
        "fwhm_pix": info.fwhm_pix,
        "fwhm_pix_measured": None if psf is None else round(float(psf.quality.fwhm_pix), 4),
        "finite_fraction": 1.0 - float(np.count_nonzero(np.isnan(frame.data))) / frame.data.size,
        "mask": mask_counts(frame),
        "mask_source": info.mask_source,
        "quality": list(info.quality),
        "origin": dict(info.origin),
        "has_gaps": bool(essential_gaps(info)),
        "warnings": [*info.warnings, *essential_gaps(info)],
    }
    return values


def mask_counts(frame: Frame) -> dict[str, int]:
    """Number of pixels that are bad for each reason."""
    counts = np.bincount(frame.mask.ravel(), minlength=256)
    codes = np.arange(256)
    return {str(reason.name).lower(): int(counts[codes & int(reason) != 0].sum()) for reason in Bad}


def _centre(frame: Frame) -> tuple[float | None, float | None]:
    """ICRS position of the middle of the image [deg]."""
    if frame.wcs is None:
        return None, None
    n_y, n_x = frame.shape
    ra, dec = sky_of_pixels(frame.wcs, (n_x - 1) / 2, (n_y - 1) / 2)
    return round(float(ra), 6), round(float(dec), 6)


def utc_text(mjd: float) -> str:
    """A time as ISO text, to 0.1 s."""
    moment = MJD_ZERO + datetime.timedelta(days=mjd) + datetime.timedelta(microseconds=50_000)
    return moment.isoformat(timespec="microseconds")[:21]


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The summary as aligned text: name, value, and where the value comes from."""
    origin = summary["origin"]
    rows = [
        ("telescope", _telescope(summary), ""),
        (
            "size",
            f"{summary['n_x']} x {summary['n_y']} pixels, {_percent(summary['finite_fraction'])} with data",
            "",
        ),
        ("position", _position(summary), summary["wcs"] and f"WCS {summary['wcs']}"),
        (
            "pixel scale",
            _with_unit(summary["pixel_scale_arcsec"], "arcsec", 5),
            origin.get("pixel_scale_arcsec"),
        ),
        ("band", summary["band"], origin.get("band")),
        ("time", summary["mjd"] and f"{utc_text(summary['mjd'])} UTC, mid-exposure", origin.get("mjd")),
        ("exposure", _with_unit(summary["exposure_s"], "s"), origin.get("exposure_s")),
        ("gain", _with_unit(summary["gain"], "electrons per DN"), origin.get("gain")),
        ("read noise", _with_unit(summary["read_noise"], "electrons"), origin.get("read_noise")),
        ("saturation", _with_unit(summary["saturation"], "DN", 8), origin.get("saturation")),
        ("zero point", _with_unit(summary["zero_point"], "mag", 7), origin.get("zero_point")),
        ("depth", _with_unit(summary["mag_limit"], "mag, 5 sigma"), origin.get("mag_limit")),
        ("seeing", _seeing(summary, "fwhm_pix"), origin.get("fwhm_pix")),
        ("mask", _mask(summary), summary["mask_source"] or "no mask image; NaN and saturation only"),
    ]
    if summary["fwhm_pix_measured"] is not None:
        rows.insert(-1, ("", _seeing(summary, "fwhm_pix_measured"), "measured from stars"))
    if summary["quality"]:
        rows.append(("pipeline", "; ".join(summary["quality"]), "the survey's own flags"))
    lines = [str(summary["source"])]
    for name, value, source in rows:
        lines.append(f"  {name:<12} {value if value is not None else '-':<44} {source or ''}".rstrip())
    return lines


def _telescope(summary: dict[str, Any]) -> str:
    name = summary["telescope"]
    where = [
        f"{key} {value}" for key, value in summary["identity"].items() if key in ("field", "ccd", "quadrant")
    ]
    return ", ".join([str(name), *where])


def _position(summary: dict[str, Any]) -> str | None:
    return None if summary["ra"] is None else f"RA {summary['ra']:.4f} Dec {summary['dec']:+.4f} deg"


def _percent(fraction: float) -> str:
    return "all" if fraction == 1.0 else f"{100 * fraction:.2f} %"


def _with_unit(value: float | None, unit: str, digits: int = 6) -> str | None:
    return None if value is None else f"{value:.{digits}g} {unit}"


def _seeing(summary: dict[str, Any], name: str) -> str | None:
    pixels, scale = summary[name], summary["pixel_scale_arcsec"]
    if pixels is None:
        return None
    return f"{pixels:.3g} pixels" + (f" = {pixels * scale:.3g} arcsec" if scale else "")


def _mask(summary: dict[str, Any]) -> str:
    bad = [f"{n} {reason.replace('_', ' ')}" for reason, n in summary["mask"].items() if n]
    return ", ".join(bad) or "no bad pixels"
