"""A ZTF quadrant moved onto another grid: our remapper against SWarp, in the same run.

3072 x 3080 pixels with the TPV distortion of a real ZTF quadrant, onto the same WCS turned by 0.15 degrees and shifted
by 30 and -22 pixels; 1,500 Gaussian stars of 2.0 pixels FWHM, whose truth on either grid is a formula. SWarp runs as a
reference pipeline calls it (LANCZOS3, no background, no weights) and, apart, without its combination. Both sides
read a FITS file and write one; what our remapping alone takes is printed beside it.

    python -m benchmarks.remap [--repeats 5]

SWarp is needed in the path: `apt-get install swarp` on Debian or Ubuntu.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning

from benchmarks.common import data_folder, machine
from tapetum.images.pixelmap import pixel_to_pixel
from tapetum.images.remap import remap

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

QUADRANT = "ztf_images/ztf_20200924431759_000655_zr_c13_o_q3_sciimg.fits.fz"
SHAPE = (3080, 3072)
N_STARS, FWHM_PIX, RADIUS_PIX = 1500, 2.0, 8.0
TURN_DEG, SHIFT_PIX = 0.15, (30.0, -22.0)
GOAL, AIM = 3.0, 5.0


def quadrant_wcs() -> tuple[WCS, WCS]:
    """The WCS of a real quadrant, and the same turned and shifted.

    Raises
    ------
    SystemExit
        There are no test data.
    """
    folder = data_folder()
    if folder is None:
        raise SystemExit(f"point TAPETUM_TEST_DATA at a folder with {QUADRANT}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        wcs = WCS(fits.getheader(folder / QUADRANT, 1))
    turned = wcs.deepcopy()
    angle = np.deg2rad(TURN_DEG)
    turned.wcs.cd = wcs.wcs.cd @ [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turned.wcs.crpix = wcs.wcs.crpix + SHIFT_PIX
    turned.wcs.set()
    return wcs, turned


def draw(x: NDArray[Any], y: NDArray[Any], flux: NDArray[Any]) -> NDArray[np.float32]:
    """Gaussian stars by their formula."""
    image = np.zeros(SHAPE)
    sigma = FWHM_PIX / np.sqrt(8 * np.log(2))
    reach = np.arange(-12, 13)
    for one_x, one_y, one_flux in zip(x, y, flux, strict=True):
        columns, rows = round(one_x) + reach, round(one_y) + reach
        columns, rows = columns[(columns >= 0) & (columns < SHAPE[1])], rows[(rows >= 0) & (rows < SHAPE[0])]
        along = np.exp(-((columns - one_x) ** 2) / (2 * sigma**2))
        down = np.exp(-((rows - one_y) ** 2) / (2 * sigma**2))
        image[np.ix_(rows, columns)] += one_flux / (2 * np.pi * sigma**2) * down[:, None] * along
    return image.astype(np.float32)


def figures(image: NDArray[Any], truth: NDArray[Any], x: NDArray[Any], y: NDArray[Any]) -> dict[str, float]:
    """How stars came through: flux within 8 pixels, windowed position, peak, and what is left after the truth."""
    sigma = FWHM_PIX / np.sqrt(8 * np.log(2))
    reach = np.arange(-10, 11)
    ratios, misses, peaks = [], [], []
    for one_x, one_y in zip(x, y, strict=True):
        columns, rows = round(one_x) + reach, round(one_y) + reach
        if columns[0] < 0 or rows[0] < 0 or columns[-1] >= SHAPE[1] or rows[-1] >= SHAPE[0]:
            continue
        found, wanted = image[np.ix_(rows, columns)], truth[np.ix_(rows, columns)]
        if not np.isfinite(found).all() or (found == 0.0).any():  # SWarp fills with 0
            continue
        across, down = columns - one_x, (rows - one_y)[:, None]
        inside = np.hypot(across, down) <= RADIUS_PIX
        window = found * np.exp(-(across**2 + down**2) / (2 * sigma**2))
        ratios.append(found[inside].sum() / wanted[inside].sum())
        misses.append(2 * np.hypot((window * across).sum(), (window * down).sum()) / window.sum())
        peaks.append(found.max() / wanted.max())
    middle = (slice(100, -100),) * 2
    return {
        "flux": float(np.median(ratios)),
        "flux_rms": float(np.std(ratios)),
        "position": float(np.median(misses)),
        "peak": float(np.median(peaks)),
        "residual": float(np.nanstd(image[middle] - truth[middle]) / np.std(truth[middle])),
        "n_stars": len(ratios),
    }


def timed(work: Callable[[], Any], who: int) -> tuple[float, float]:
    """(wall, CPU) seconds of one run, of this process or of its children."""
    before, start = resource.getrusage(who), time.perf_counter()
    work()
    wall, after = time.perf_counter() - start, resource.getrusage(who)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def swarp_command(binary: str, folder: Path, *, combine: bool) -> list[str]:
    """One image, resampled as a reference pipeline does it."""
    options = {
        "IMAGEOUT_NAME": folder / "swarp.fits", "WEIGHTOUT_NAME": folder / "swarp.weight.fits",
        "RESAMPLE_DIR": folder, "RESAMPLING_TYPE": "LANCZOS3", "OVERSAMPLING": 0, "COMBINE_TYPE": "CLIPPED",
        "COMBINE": "Y" if combine else "N", "SUBTRACT_BACK": "N", "WEIGHT_TYPE": "NONE",
        "FSCALASTRO_TYPE": "FIXED", "PROJECTION_ERR": 0.001, "MEM_MAX": 1024, "VMEM_MAX": 4096,
        "NTHREADS": 1, "WRITE_XML": "N", "VERBOSE_TYPE": "QUIET",
    }  # fmt: skip
    return [binary, str(folder / "image.fits"), "-c", "/dev/null"] + [
        word for key, value in options.items() for word in (f"-{key}", str(value))
    ]


def run(repeats: int = 5) -> dict[str, float]:
    """Measure and print; seconds of each way and the ratios."""
    binary = shutil.which("SWarp") or shutil.which("swarp")
    wcs, turned = quadrant_wcs()
    rng = np.random.default_rng(20260)
    x, y = rng.uniform(0, SHAPE[1], N_STARS), rng.uniform(0, SHAPE[0], N_STARS)
    apart = [k for k in range(N_STARS) if np.sum(np.hypot(x - x[k], y - y[k]) < 40) == 1]
    flux = 10 ** rng.uniform(3.5, 5, N_STARS)
    image = draw(*pixel_to_pixel(wcs, turned)(x, y), flux)
    truth = draw(x, y, flux)
    with tempfile.TemporaryDirectory(prefix="tapetum-bench-") as name:
        folder = Path(name)
        fits.writeto(folder / "image.fits", image, wcs.to_header(relax=True))
        grid = fits.Header([("NAXIS", 2), ("NAXIS1", SHAPE[1]), ("NAXIS2", SHAPE[0])])
        grid.extend(turned.to_header(relax=True))
        (folder / "swarp.head").write_text(repr(grid) + "\nEND     \n")

        def alone() -> NDArray[np.float32]:
            return remap(image, None, None, wcs, turned, SHAPE).data

        def with_files() -> None:
            with fits.open(folder / "image.fits", memmap=False) as hdus:
                data = hdus[0].data.astype(np.float32)
            moved = remap(data, None, None, wcs, turned, SHAPE)
            fits.writeto(folder / "ours.fits", moved.data, turned.to_header(relax=True), overwrite=True)

        ways: dict[str, tuple[Callable[[], Any], int]] = {
            "tapetum": (with_files, resource.RUSAGE_SELF),
            "tapetum, remapping alone": (alone, resource.RUSAGE_SELF),
        }
        if binary is None:
            print(
                "remap: SWarp is not in the path (Debian, Ubuntu: apt-get install swarp); only our own figures"
            )
        else:
            for label, combine in (("SWarp", True), ("SWarp, resampling alone", False)):
                command = swarp_command(binary, folder, combine=combine)
                ways[label] = (
                    lambda command=command: subprocess.run(
                        command, check=True, cwd=folder, stderr=subprocess.DEVNULL
                    ),
                    resource.RUSAGE_CHILDREN,
                )
        with_files()  # compiles
        times: dict[str, list[tuple[float, float]]] = {key: [] for key in ways}
        for _ in range(repeats):
            for key, (work, who) in ways.items():  # in turn, so that a drifting machine meets all alike
                times[key].append(timed(work, who))
        results = {"tapetum": alone()}
        if binary is not None:
            results["SWarp"] = fits.getdata(folder / "swarp.fits")
    best = {key: tuple(min(column) for column in zip(*values, strict=True)) for key, values in times.items()}
    print(f"remap: {SHAPE[1]} x {SHAPE[0]} pixels TPV onto TPV, one thread, best of {repeats}:")
    for key, (wall, cpu) in best.items():
        print(f"       {key}: {wall:.2f} s wall, {cpu:.2f} s CPU")
    for key, found in results.items():
        values = figures(found, truth, x[apart], y[apart])
        print(
            f"       {key}: {values['n_stars']:.0f} stars: flux {values['flux']:.5f} rms {values['flux_rms']:.0e}, "
            f"position {values['position']:.4f} px, peak {values['peak']:.4f}, residual {values['residual']:.4f}"
        )
    result = {f"{key} CPU": cpu for key, (_, cpu) in best.items()}
    result |= {f"{key} wall": wall for key, (wall, _) in best.items()}
    if binary is not None:
        result["speedup"] = best["SWarp"][1] / best["tapetum"][1]
        result["speedup_wall"] = best["SWarp"][0] / best["tapetum"][0]
        result["speedup_resampling"] = best["SWarp, resampling alone"][1] / best["tapetum"][1]
        print(
            f"       ratio to SWarp {result['speedup']:.1f} by CPU, {result['speedup_wall']:.1f} by wall "
            f"(goal {GOAL:.0f}, aim {AIM:.0f}); to its resampling alone {result['speedup_resampling']:.1f}"
        )
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(machine())
    run(args.repeats)


if __name__ == "__main__":
    main()
