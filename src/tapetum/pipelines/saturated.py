"""New objects so bright that they saturate: no PSF can be fitted to them, and yet they must not be missed."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.images.detect import Detections, Note
from tapetum.images.frame import Bad
from tapetum.images.significance import PsfField

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.images.subtract import Plane
    from tapetum.pipelines.search_steps import Compared

LEAST_SATURATED = 4  # pixels; fewer are hot pixels or particles
NOTHING_THERE = 0.5  # of the peak that the faintest saturated star would have in the reference
LIT_AROUND = 0.01  # of the saturation level, just outside of the area: a star has wings, a particle has none
LIT_SIGMA = 5.0
KNOWN_BEFORE = 0.8  # part of the area that the reference must have, to say that nothing was there


def large_areas(saturated: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Connected areas of at least `LEAST_SATURATED` pixels: their numbers from 1, 0 elsewhere, and how many."""
    from scipy.ndimage import label

    areas, _ = label(saturated, np.ones((3, 3), int))
    sizes = np.bincount(areas.ravel())
    large = sizes >= LEAST_SATURATED
    large[0] = False
    numbers = np.where(large, np.cumsum(large), 0).astype(np.int32)
    return numbers[areas], int(large.sum())


def new_saturated(compared: Compared) -> Detections:
    """Saturated areas of the science image where the reference shows nothing of that brightness.

    Returns
    -------
    Detections
        At the centroid of each area; `flux` is a lower limit, the light that the clipped pixels show about the area;
        what only a fit can tell is NaN. None without a reference.
    """
    found: list[dict[str, float]] = []
    if compared.reference is not None and compared.template is not None:
        from scipy.ndimage import find_objects

        template = compared.template
        areas, n = large_areas((compared.science.plane.mask & np.uint8(Bad.SATURATED)) != 0)
        reach = max(round(compared.science.psf.quality.fwhm_pix), 2)
        for number, box in zip(range(1, n + 1), find_objects(areas), strict=True):
            window = tuple(slice(max(side.start - reach, 0), side.stop + reach) for side in box)
            row = _looked_at(compared, template, areas[window] == number, window, reach)
            if row is not None:
                found.append(row)
    return _detections(found, compared)


def _looked_at(
    compared: Compared, template: Any, area: NDArray[np.bool_], window: Any, reach: int
) -> dict[str, float] | None:
    """One area: its light and place, or None where the reference had it before or it is no star."""
    from scipy.ndimage import binary_dilation

    assert compared.reference is not None
    plane, before = compared.science.plane, compared.reference.plane
    level = _level(plane, plane.data[window][area])
    if not np.isfinite(level):
        return None
    square = np.ones((3, 3), bool)
    wider = binary_dilation(area, square)
    aperture = binary_dilation(area, square, iterations=reach)
    if not _nothing_before(compared, template[window], before.mask[window], area, wider, level):
        return None
    science = np.where(area, np.fmax(plane.data[window], level), plane.data[window])
    light = science - np.nan_to_num(template[window])
    ring = wider & ~area & (plane.mask[window] == 0) & np.isfinite(light)
    noise = plane.noise[window]
    if not ring.any() or np.median(light[ring]) < max(
        LIT_AROUND * level, LIT_SIGMA * float(np.median(noise[ring]))
    ):
        return None
    counted = aperture & np.isfinite(light)
    variance = noise**2 + np.maximum(np.nan_to_num(science), 0) / np.float32(plane.gain)
    flux, flux_err = float(light[counted].sum()), float(np.sqrt(variance[counted].sum()))
    rows, columns = np.nonzero(area)
    return {
        "x": float(columns.mean() + window[1].start),
        "y": float(rows.mean() + window[0].start),
        "flux": flux,
        "flux_err": flux_err,
        "snr": flux / flux_err,
        "peak": float(light[area].max()),
        "n_pix": float(len(rows)),
    }


def _level(plane: Plane, values: NDArray[np.float32]) -> float:
    """Least light of the clipped pixels: what they show where nothing tells the level of saturation."""
    shown = values[np.isfinite(values)]
    level = float(plane.saturation)
    return min(level, float(np.median(shown))) if shown.size else level


def _nothing_before(
    compared: Compared,
    template: NDArray[np.float32],
    mask: NDArray[np.uint8],
    area: NDArray[np.bool_],
    wider: NDArray[np.bool_],
    level: float,
) -> bool:
    """Whether the reference has usable pixels there, and no star that would saturate the science image."""
    assert compared.reference is not None
    if (mask[wider] & np.uint8(Bad.SATURATED)).any():
        return False
    usable = np.isfinite(template) & (mask == 0)
    if usable[area].mean() < KNOWN_BEFORE:
        return False
    peaks = [psf.centred(*_middle(compared)).max() for psf in (compared.reference.psf, compared.science.psf)]
    sharper = float(peaks[0] / peaks[1])  # worse seeing makes a lower peak of the same star
    return bool(template[wider & usable].max() < NOTHING_THERE * level * sharper)


def _middle(compared: Compared) -> tuple[float, float]:
    n_y, n_x = compared.data.shape
    return n_x / 2, n_y / 2


def _detections(rows: list[dict[str, float]], compared: Compared) -> Detections:
    """Rows as the detections of one image."""
    n = len(rows)
    given = {name: np.array([row[name] for row in rows], np.float64) for name in (rows[0] if rows else ())}
    x, y = (given.get(name, np.empty(0)) for name in "xy")
    n_y, n_x = compared.data.shape
    width = PsfField.of(compared.psf, compared.data.shape).fwhm_at(x, y) if n else np.empty(0)
    values: dict[str, Any] = {column.name: np.full(n, np.nan) for column in fields(Detections)}
    values |= given
    values |= {"x1": x.copy(), "x2": x.copy(), "y1": y.copy(), "y2": y.copy(), "length_pix": np.zeros(n)}
    values |= {
        "sign": np.ones(n, np.int8),
        "fwhm_psf_pix": width,
        "n_pix": given.get("n_pix", np.empty(0)).astype(np.int32),
        "dipole": np.zeros(n),
        "masked_fraction": np.ones(n),
        "negative_fraction": np.zeros(n),
        "edge_distance": np.min([x, y, n_x - 1 - x, n_y - 1 - y], axis=0) + 0.5,
        "scale": np.ones(n, np.int32),
        "flags": np.full(n, int(Note.SATURATED | Note.MASKED | Note.NO_FIT), np.int32),
    }
    return Detections(**values)
