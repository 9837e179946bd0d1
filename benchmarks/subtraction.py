"""Subtraction on real pairs: ours, a plain ZOGY and sfft, judged on stars that none of them was shown.

The stars of a pair are dealt into five parts. Each method is fitted on four of them and judged on the fifth, five
times, so that every star is judged once. z is the standard deviation of the 9 x 9 pixels around a star over that of
the same box on empty sky (median): 1 is as quiet as if no star had been there. A method that adds noise has a small z,
so both parts of it stand in the table as well, in units of the noise of both images together. sfft comes with
``pip install -e '.[rivals]'``; without it the table says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.common import data_folder
from tapetum.core.errors import TapetumError
from tapetum.core.robust import MAD_TO_SIGMA
from tapetum.images.background import estimate_background
from tapetum.images.difference import Plane, filled, stars_of_both
from tapetum.images.extract import extract_sources
from tapetum.images.fits import read_frame
from tapetum.images.frame import Bad, Frame
from tapetum.images.psf import measure_psf
from tapetum.images.stars import select_stars
from tapetum.images.subtract import subtract
from tapetum.pipelines.candidates import VETOES, VetoLimits
from tapetum.pipelines.search_steps import Prepared, compare, find
from tapetum.simulate.stamping import MoffatField, TabulatedPsf

Image = NDArray[np.float32]
Method = Callable[[Plane, Plane], Image]

PAIRS = {
    "EABA": ("eaba_eso085_4.fits.fz", "eaba_eso085_5.fits.fz"),
    "DECam a": ("decam_obs04a.fits", "decam_obs18a.fits"),
    "DECam b": ("decam_obs04b.fits", "decam_obs18b.fits"),
    "NIRCam": ("nircam_sci.fits.fz", "nircam_ref.fits.fz"),
}
QUADRANT = "ztf_images/ztf_20200924431759_000655_zr_c13_o_q3_sciimg.fits.fz"
N_NEW = 400  # sources put into the large pair
MAG_RANGE = (17.0, 20.25)  # so faint that without matching as many are found as in the quoted row
HOTPANTS = """quoted from 2026, on a pair of the same kind:
scaled                                       +2492 -4029, recovered 0.75, false 2342
HOTPANTS       9.90 s = 4.81 x SWarp's remap   +275 -94, recovered 0.79, false 117"""
SATURATED_REACH = 10  # around saturated pixels that nobody looks at [pixel]
CORE = 4  # half side of the box in which a star is judged [pixel]
BOX = 9  # half side of the box around a star that a method may or may not see [pixel]
PARTS = 5  # into which the stars are dealt; each method is fitted on the others
SFFT_HALF = 6  # half width of sfft's kernel, as in the earlier measurements [pixel]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    pair: str
    method: str
    seconds: float
    median: float
    p90: float
    residual: float
    quiet: float
    n_stars: int
    note: str = ""

    def __str__(self) -> str:
        if self.note:
            return f"{self.pair:9s} {self.method:12s} {self.note}"
        return (
            f"{self.pair:9s} {self.method:12s} {self.seconds:7.3f} s  {self.n_stars:4d} stars not used:  "
            f"z median {self.median:5.2f}  90 % {self.p90:6.2f}   core {self.residual:5.2f}  sky {self.quiet:5.2f}"
        )


@dataclass(frozen=True)
class Loaded:
    """An image of a pair, ready to be subtracted, and where its stars are."""

    frame: Frame
    plane: Plane
    x: NDArray[np.int64]
    y: NDArray[np.int64]

    def without(self, hidden: NDArray[np.bool_]) -> Plane:
        """The plane with its PSF measured on pixels that are not hidden, and the others marked."""
        mask = self.plane.mask.copy()
        mask[hidden] |= np.uint8(Bad.SATURATED)  # the one reason for which pixels keep their value
        sky = estimate_background(self.frame.data, self.frame.mask)
        psf = measure_psf(self.frame.data, sky, mask, self.frame.info)
        return replace(self.plane, mask=mask, psf=psf)


def load_image(path: Path) -> Loaded:
    """Read, take the sky away, measure PSF and stars."""
    return _loaded(read_frame(path))


def _loaded(frame: Frame) -> Loaded:
    sky = estimate_background(frame.data, frame.mask)
    top = frame.info.saturation
    if not np.isfinite(top):  # nothing says it: what is near the brightest pixel is not trusted
        top = 0.9 * float(np.nanmax(frame.data))
        frame.mask[frame.data >= top] |= np.uint8(Bad.SATURATED)
    psf = measure_psf(frame.data, sky, frame.mask, frame.info)
    stars = select_stars(frame.data, sky, frame.mask, replace(frame.info, saturation=top))
    level = float(np.median(sky.level))
    gain = np.inf if "gain" in frame.info.guessed else frame.info.gain
    plane = Plane(frame.data - sky.level, sky.noise, frame.mask, gain, top - level, psf)
    return Loaded(frame, plane, np.round(stars.x).astype(np.int64), np.round(stars.y).astype(np.int64))


def ours(science: Plane, reference: Plane) -> Image:
    """Our kernel method."""
    return subtract(science, reference).data


def our_zogy(science: Plane, reference: Plane) -> Image:
    """Our ZOGY, with the PSFs of each part of the field."""
    return subtract(science, reference, method="zogy").data


def plain_zogy(science: Plane, reference: Plane) -> Image:
    """Equation 13 of Zackay et al. (2016) over the whole image, with one empirical PSF per image."""
    from scipy import fft

    new, ref = filled(science), filled(reference)
    x, y = stars_of_both(reference, science, 16)
    p_n, p_r = _stacked_psf(new, x, y), _stacked_psf(ref, x, y)
    ratio = np.median([_box(new, a, b).sum() / _box(ref, a, b).sum() for a, b in zip(x, y, strict=True)])
    f_n, f_r = 1.0, 1 / ratio
    s_n, s_r = np.median(science.noise), np.median(reference.noise)
    root = np.sqrt(s_n**2 * f_r**2 * np.abs(p_r) ** 2 + s_r**2 * f_n**2 * np.abs(p_n) ** 2 + 1e-20)
    f_d = f_r * f_n / np.sqrt(s_n**2 * f_r**2 + s_r**2 * f_n**2)
    spectrum = (f_r * p_r * fft.rfft2(new, workers=2) - f_n * p_n * fft.rfft2(ref, workers=2)) / root / f_d
    return np.asarray(fft.irfft2(spectrum, new.shape, workers=2), np.float32)


def _box(image: Image, x: int, y: int, half: int = 12) -> Image:
    return image[y - half : y + half + 1, x - half : x + half + 1]


def _stacked_psf(
    image: Image, x: NDArray[np.int64], y: NDArray[np.int64], half: int = 12
) -> NDArray[np.complex64]:
    from scipy import fft, ndimage

    cuts = []
    for a, b in zip(x[:200], y[:200], strict=True):
        cut = np.maximum(_box(image, a, b, half), 0)
        cy, cx = ndimage.center_of_mass(np.where(np.hypot(*np.indices(cut.shape) - half) < 4, cut, 0))
        cuts.append(ndimage.shift(cut, (half - cy, half - cx), order=3) / cut.sum())
    psf = np.median(cuts, axis=0)
    grid = np.zeros(image.shape, np.float32)
    grid[: 2 * half + 1, : 2 * half + 1] = psf / psf.sum()
    return np.asarray(fft.rfft2(np.roll(grid, (-half, -half), (0, 1)), workers=2))


def sfft(science: Plane, reference: Plane) -> Image:
    """The rival sfft with its processor backend: boxes around stars are its mask, as it asks for."""
    from astropy.io import fits
    from sfft.CustomizedPacket import Customized_Packet

    new, ref = filled(science), filled(reference)
    x, y = stars_of_both(reference, science, 16)
    seen = np.zeros(new.shape, bool)
    for a, b in zip(x, y, strict=True):
        seen[max(b - BOX, 0) : b + BOX + 1, max(a - BOX, 0) : a + BOX + 1] = True
    seen &= ((science.mask | reference.mask) & Bad.SATURATED) == 0
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{name}.fits") for name in ("ref", "sci", "mref", "msci")]
        for path, image in zip(paths, (ref, new, ref * seen, new * seen), strict=True):
            fits.writeto(path, image.astype(np.float32))
        side = "REF" if reference.seeing <= science.seeing else "SCI"
        options = {
            "KerPolyOrder": 2,
            "BGPolyOrder": 1,
            "BACKEND_4SUBTRACT": "Numpy",
            "NUM_CPU_THREADS_4SUBTRACT": 2,
        }
        with contextlib.redirect_stdout(io.StringIO()):
            _, difference = Customized_Packet.CP(
                *paths, ForceConv=side, GKerHW=SFFT_HALF, VERBOSE_LEVEL=0, **options
            )
    return np.asarray(difference.T, np.float32)


METHODS: dict[str, Method] = {
    "ours": ours,
    "our ZOGY": our_zogy,
    "plain ZOGY": plain_zogy,
    "sfft 1.7.3": sfft,
}


def _empty_places(*planes: Plane) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places at which no image shows anything within a box, the same for every method."""
    n_y, n_x = planes[0].data.shape
    rng = np.random.default_rng(1)
    found = []
    for x, y in zip(rng.integers(BOX, n_x - BOX, 4000), rng.integers(BOX, n_y - BOX, 4000), strict=True):
        boxes = [(_box(p.data, x, y, BOX), _box(p.noise, x, y, BOX), _box(p.mask, x, y, BOX)) for p in planes]
        if all((data < 4 * noise).all() and not mask.any() for data, noise, mask in boxes):
            found.append((x, y))
    places = np.array(found[:500])
    return places[:, 0], places[:, 1]


def judge(pair: str, name: str, science: Loaded, reference: Loaded) -> Row:
    """One method on one pair: fitted on four fifths of the stars, judged on the rest."""
    n_y, n_x = science.plane.data.shape
    x, y = reference.x, reference.y
    inside = (x > BOX) & (x < n_x - BOX - 1) & (y > BOX) & (y < n_y - BOX - 1)
    x, y = x[inside], y[inside]
    empty = _empty_places(science.plane, reference.plane)
    dealt = np.argsort(np.argsort(x + 7919 * y)) % PARTS
    values, cores, skies, seconds = [], [], [], []
    for part in range(PARTS):
        hidden = np.zeros((n_y, n_x), bool)
        judged = np.flatnonzero(dealt == part)
        for k in judged:
            hidden[y[k] - BOX : y[k] + BOX + 1, x[k] - BOX : x[k] + BOX + 1] = True
        planes = science.without(hidden), reference.without(hidden)
        start = time.perf_counter()
        try:
            difference = METHODS[name](*planes)
        except TapetumError as problem:
            return Row(pair, name, 0, 0, 0, 0, 0, 0, f"refused: {problem}")
        seconds.append(time.perf_counter() - start)
        quiet = np.median([_box(difference, a, b, CORE).std() for a, b in zip(*empty, strict=True)])
        core = [float(_box(difference, x[k], y[k], CORE).std()) for k in judged]
        values += [value / quiet for value in core]
        cores += core
        skies.append(quiet)
    unit = float(np.median(np.hypot(science.plane.noise, reference.plane.noise)))
    figures = np.median(values), np.percentile(values, 90), np.median(cores) / unit, np.median(skies) / unit
    return Row(pair, name, min(seconds), *map(float, figures), len(values))


@dataclass(frozen=True)
class LargePair:
    """Science and reference, what was put into science, (n, 3) of x, y, flux, and what a perfect subtraction leaves."""

    science: Loaded
    reference: Loaded
    new: NDArray[np.float64]
    perfect: Image


def quadrant_pair(folder: Path) -> LargePair:
    """A pair of the size of a ZTF quadrant at the places and fluxes of real sources, and what was put in (x, y, flux).

    Both PSFs vary over the field (FWHM 2.4 and 1.85 pixels in the middle, the pixel included), the reference is shifted
    by a tenth of a pixel and 15 times deeper: as in the earlier measurement of HOTPANTS, whose pair is not kept. How
    alike the two are shows in the row without any matching.
    """
    frame = read_frame(folder / QUADRANT)
    sky = estimate_background(frame.data, frame.mask)
    sources = extract_sources(frame.data - sky.level, sky.noise, frame.mask)
    rng = np.random.default_rng(20)
    shape = frame.shape
    flux = np.maximum(sources.flux, 30.0)
    x, y = rng.uniform(30, shape[1] - 30, N_NEW), rng.uniform(30, shape[0] - 30, N_NEW)
    new = 10 ** (-0.4 * (rng.uniform(*MAG_RANGE, N_NEW) - 26.285))
    grown = MoffatField(2.2, 3.2, e1=(0.02, 0.03, 0.0), growth=(0.08, 0.05, 0.02, 0.0, 0.02), coma=0.05)
    images, left = [], []
    for field, gain, level, dx in (
        (grown, 6.0, 150.0, 0.0),
        (MoffatField(1.6, 3.2, growth=(0.03, -0.03, 0.0, 0.0, 0.02)), 90.0, 157.0, 0.1),
    ):
        image = np.zeros(shape, np.float32)
        psf = TabulatedPsf.of_field(field, shape)
        psf.add(image, sources.x + dx, sources.y - dx, flux)
        old = image + np.float32(level)
        if gain == 6.0:
            psf.add(image, x, y, new)
        electrons = (image + level) * gain
        noisy = (rng.poisson(electrons) + rng.normal(0, 9, shape)) / gain
        noisy = np.minimum(noisy, 58647).astype(np.float32)
        mask = np.where(noisy >= 58000, np.uint8(Bad.SATURATED), np.uint8(0))
        info = replace(frame.info, gain=gain, saturation=58000.0)
        images.append(_loaded(replace(frame, data=noisy, mask=mask, info=info)))
        left.append(noisy - old)
    return LargePair(images[0], images[1], np.stack([x, y, new], 1), left[0])


def scaled(science: Plane, reference: Plane) -> Image:
    """No matching at all: the reference times the flux ratio."""
    x, y = stars_of_both(reference, science, 16)
    ratio = np.median(
        [_box(science.data, a, b).sum() / _box(reference.data, a, b).sum() for a, b in zip(x, y, strict=True)]
    )
    return science.data - np.float32(ratio) * reference.data


def search_quadrant(folder: Path) -> None:
    """Time, detections and recovered sources of each method on a pair of the size of a quadrant."""
    from benchmarks import remap

    swarp = remap.run(3).get("SWarp wall")
    pair = quadrant_pair(folder)
    science, reference, truth = pair.science, pair.reference, pair.new
    size = science.plane.data.shape
    print(f"# a pair of {size} pixels, {len(truth)} sources put in; detections by sep, 5 sigma, 3 pixels")
    full = (science.plane.mask | reference.plane.mask) != 0
    unseen = ndimage.binary_dilation(full, iterations=SATURATED_REACH)
    for name, method in {"scaled": scaled, **METHODS}.items():
        if name.startswith("sfft"):
            continue  # a minute and 13 GB at this size
        times = []
        for _ in range(3):
            start = time.perf_counter()
            difference = method(science.plane, reference.plane)
            times.append(time.perf_counter() - start)
        told = "" if swarp is None else f" = {min(times) / swarp:4.2f} x SWarp's remap"
        figures = _detected(difference / _spread(difference), unseen, truth)
        print(f"{name:14s} {min(times):5.2f} s{told}   {figures}", flush=True)
    made = subtract(science.plane, reference.plane)
    print(
        f"ours, over its own noise map                   {_detected(made.data / made.noise, unseen, truth)}"
    )
    print(f"ours, by `images search`, vetoes and no network {_searched(pair)}")
    perfect = _detected(pair.perfect / _spread(pair.perfect), unseen, truth)
    print(f"a perfect subtraction: photon noise only       {perfect}")
    print(HOTPANTS)


def _searched(pair: LargePair) -> str:
    """What a search makes of the pair: candidates that are positive and pass its vetoes."""
    science, reference = (
        Prepared(image.frame.name, image.frame.source, image.plane, image.frame.info, image.frame.wcs, 0.0)
        for image in (pair.science, pair.reference)
    )
    judged = find(compare(science, reference), VetoLimits())
    found = judged.found[(judged.found.sign > 0) & ((judged.flags & VETOES) == 0)]
    apart = np.hypot(found.x[:, None] - pair.new[:, 0], found.y[:, None] - pair.new[:, 1])
    recovered, false = (apart.min(0) < 3).mean(), (apart.min(1) > 3).sum()
    return f"+{len(found)}, recovered {recovered:.2f}, false {false}"


def _spread(difference: Image) -> float:
    return MAD_TO_SIGMA * float(np.nanmedian(np.abs(difference)))


def _detected(z: Image, unseen: NDArray[np.bool_], truth: NDArray[np.float64]) -> str:
    """Detections of either sign, part of the new sources among them, and positive ones that are none of these."""
    import sep

    counts, recovered, false = [], 0.0, 0
    for sign in (1, -1):
        found = sep.extract(
            np.ascontiguousarray(sign * np.nan_to_num(z), np.float32), 5, mask=unseen, minarea=3
        )
        counts.append(len(found))
        if sign == 1:
            apart = np.hypot(found["x"][:, None] - truth[:, 0], found["y"][:, None] - truth[:, 1])
            recovered, false = float((apart.min(0) < 3).mean()), int((apart.min(1) > 3).sum())
    return f"+{counts[0]} -{counts[1]}, recovered {recovered:.2f}, false {false}"


def run() -> None:
    """Print the tables."""
    folder = data_folder()
    if folder is None or not (folder / "imagepairs").is_dir():
        print("# subtraction: no image pairs; point TAPETUM_TEST_DATA at them")
        return
    print("# subtraction: stars held out of the fit; HOTPANTS cannot be installed, see the table in the docs")
    for pair, (science, reference) in PAIRS.items():
        images = load_image(folder / "imagepairs" / science), load_image(folder / "imagepairs" / reference)
        for name in METHODS:
            if name.startswith("sfft") and importlib.util.find_spec("sfft") is None:
                print(f"{pair:9s} {name:12s} not installed: pip install -e '.[rivals]'")
                continue
            judge(pair, name, *images)  # compiles
            print(judge(pair, name, *images), flush=True)
    search_quadrant(folder)


if __name__ == "__main__":
    run()
