"""Detection against SExtractor on one real frame, in one run.

Both make the same catalogue (threshold 1.5 sigma, 5 pixels, kernel 1-2-1, 32 levels at 0.005, background mesh 64, an
aperture of 8 pixels): first with widths only, then with Kron fluxes as well. SExtractor's time is that of its whole
run, reading the image and writing the table included; ours likewise, without the start of Python, with one thread and
with two (SExtractor is built without threads). Then the matched filter on a difference-like image of the size of a
whole quadrant.

SExtractor is no part of Tapetum; on Debian:  apt-get install source-extractor

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m benchmarks.detection [--repeats 5]

Without the two variables the idle threads of BLAS (the spline of the background) spin and take the cores away.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import data_folder, machine
from tapetum.images.background import estimate_background
from tapetum.images.detect import detect_difference
from tapetum.images.extract import Sources, extract_sources
from tapetum.images.psf import PsfModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

PLAIN = (
    "X_IMAGE", "Y_IMAGE", "FLUX_ISO", "FLUX_APER", "FLUXERR_APER", "FLUX_MAX", "ISOAREA_IMAGE", "A_IMAGE",
    "B_IMAGE", "THETA_IMAGE", "ELONGATION", "FWHM_IMAGE", "FLAGS",
)  # fmt: skip
KRON = ("FLUX_AUTO", "FLUXERR_AUTO")
SETTINGS = {
    "CATALOG_TYPE": "FITS_1.0", "DETECT_THRESH": "1.5", "ANALYSIS_THRESH": "1.5", "DETECT_MINAREA": "5",
    "DEBLEND_NTHRESH": "32", "DEBLEND_MINCONT": "0.005", "BACK_SIZE": "64", "BACK_FILTERSIZE": "3",
    "PHOT_APERTURES": "8", "GAIN": "6.2", "VERBOSE_TYPE": "QUIET", "CHECKIMAGE_TYPE": "NONE",
}  # fmt: skip
GAIN = 6.2
QUADRANT = (3080, 3072)


def frame() -> tuple[NDArray[np.float32], str]:
    """The real ZTF frame of the test data, else the sample of the package index."""
    from tapetum.images.fits import read_frame

    folder = data_folder()
    if folder is not None and (folder / "imagepairs" / "ztf_zr_sci.fits.fz").exists():
        path = folder / "imagepairs" / "ztf_zr_sci.fits.fz"
        return np.nan_to_num(read_frame(path).data), f"the test data ({path.name})"
    from tapetum.core.samples import fetch_sample

    found = [path for path in fetch_sample("ztf-quadrant") if "sciimg" in path.name]
    if not found:
        raise SystemExit("no image: point TAPETUM_TEST_DATA at a folder with imagepairs/ztf_zr_sci.fits.fz")
    return np.nan_to_num(read_frame(found[0]).data), f"the sample ztf-quadrant ({found[0].name})"


def sextractor() -> str | None:
    """The rival's command, if it is installed."""
    return shutil.which("source-extractor") or shutil.which("sex")


def their_run(command: str, folder: Path, columns: tuple[str, ...]) -> Path:
    """One whole run of SExtractor on ``frame.fits``."""
    (folder / "columns.param").write_text("\n".join(columns) + "\n")
    (folder / "smooth.conv").write_text("CONV NORM\n1 2 1\n2 4 2\n1 2 1\n")
    out = folder / "sextractor.fits"
    options = {
        **SETTINGS, "CATALOG_NAME": str(out), "PARAMETERS_NAME": str(folder / "columns.param"),
        "FILTER_NAME": str(folder / "smooth.conv"),
    }  # fmt: skip
    flags = [word for key, value in options.items() for word in (f"-{key}", value)]
    subprocess.run([command, str(folder / "frame.fits"), "-c", os.devnull, *flags], check=True)
    return out


def our_run(folder: Path, *, auto: bool, threads: int) -> Sources:
    """The same: read the image, find its sky and sources, write the table."""
    import pyarrow as pa
    from astropy.io import fits

    from tapetum.report.tables import write_table

    with fits.open(folder / "frame.fits") as hdus:
        data = hdus[0].data.astype(np.float32)
    sky = estimate_background(data)
    data -= sky.level
    found = extract_sources(data, sky.typical_noise, gain=GAIN, auto=auto, threads=threads)
    write_table(pa.table(found.columns()), str(folder / "ours.parquet"))
    return found


def clocked(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall time and CPU time, children included."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    start = time.perf_counter()
    work()
    wall = time.perf_counter() - start
    now = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(used, now, strict=True))
    return wall, cpu


def matched(found: Sources, path: Path) -> tuple[float, float, int]:
    """Part of clean SExtractor sources of S/N > 10 within 1 pixel of ours, the reverse, and how many it has."""
    from astropy.io import fits
    from scipy.spatial import cKDTree

    with fits.open(path) as hdus:
        table = hdus[1].data
        theirs = np.stack([table["X_IMAGE"] - 1.0, table["Y_IMAGE"] - 1.0], axis=1)
        clean = (table["FLAGS"] == 0) & (table["FLUX_APER"] > 10 * table["FLUXERR_APER"])
    ours = np.stack([found.x, found.y], axis=1)
    wanted = (found.flags == 0) & (found.snr > 10)
    there = (cKDTree(ours).query(theirs[clean])[0] < 1).mean()
    back = (cKDTree(theirs).query(ours[wanted])[0] < 1).mean()
    return float(there), float(back), len(theirs)


def quadrant() -> tuple[NDArray[np.float32], NDArray[np.float32], PsfModel]:
    """Noise and 1,000 points of both signs on a whole quadrant."""
    rng = np.random.default_rng(3)
    psf = PsfModel.moffat(2.1, 3.2, QUADRANT)
    data = rng.normal(0, 8, QUADRANT).astype(np.float32)
    x, y = rng.uniform(20, QUADRANT[1] - 20, 1000), rng.uniform(20, QUADRANT[0] - 20, 1000)
    flux = 10 ** rng.uniform(2.3, 4, 1000) * rng.choice([-1, 1], 1000)
    for stamp, column, row, f in zip(psf.stamps(x, y), x + 0.5, y + 0.5, flux, strict=True):
        top, left = int(row) - psf.half, int(column) - psf.half
        data[top : top + psf.size, left : left + psf.size] += f * stamp
    return data, np.full(QUADRANT, 8, np.float32), psf


def compare(
    command: str, folder: Path, columns: tuple[str, ...], *, auto: bool, repeats: int
) -> dict[str, float]:
    """All in turn, so that a drifting machine meets them alike; ratios of medians."""
    works: dict[int, Callable[[], Any]] = {
        0: partial(their_run, command, folder, columns),
        **{threads: partial(our_run, folder, auto=auto, threads=threads) for threads in (1, 2)},
    }
    path, _, found = (works[key]() for key in (0, 1, 2))
    times: dict[int, list[tuple[float, float]]] = {key: [] for key in works}
    for _ in range(repeats):
        for key, work in works.items():
            times[key].append(clocked(work))
    median = {key: np.median(values, axis=0) for key, values in times.items()}
    there, back, n = matched(found, path)
    print(
        f"detection {'with' if auto else 'without'} Kron fluxes: SExtractor {median[0][0]:.3f} s ({n} sources), ours"
        f" {len(found)} sources; clean S/N > 10 within 1 px: {there:.2%} of theirs, {back:.2%} of ours"
    )
    result = {"matched": there, "matched_back": back}
    for threads in (1, 2):
        wall, cpu = median[0] / median[threads]
        print(
            f"    {threads} thread(s): {median[threads][0]:.3f} s, {wall:.2f} x faster in wall,"
            f" {cpu:.2f} x in CPU time (goal 1)"
        )
        result |= {f"wall_{threads}": float(wall), f"cpu_{threads}": float(cpu)}
    return result


def run(repeats: int = 5) -> dict[str, float]:
    """Measure and print; the ratios of both comparisons and the time of the matched filter."""
    from astropy.io import fits

    result: dict[str, float] = {}
    data, origin = frame()
    print(f"detection: {data.shape[1]}x{data.shape[0]} pixels of {origin}")
    command = sextractor()
    if command is None:
        print(
            "           SExtractor is not installed (Debian: apt-get install source-extractor): no comparison"
        )
    else:
        with tempfile.TemporaryDirectory(prefix="tapetum-bench-") as name:
            folder = Path(name)
            fits.writeto(folder / "frame.fits", data)
            for auto, columns in ((False, PLAIN), (True, PLAIN + KRON)):
                figures = compare(command, folder, columns, auto=auto, repeats=repeats)
                result |= {f"{key}{'_kron' if auto else ''}": value for key, value in figures.items()}
    difference, noise, psf = quadrant()
    for threads in (1, 2):
        detect_difference(difference, noise, None, psf, threads=threads)
        wall = statistics.median(
            clocked(lambda: detect_difference(difference, noise, None, psf, threads=threads))[0]  # noqa: B023 - called at once
            for _ in range(repeats)
        )
        result[f"matched_filter_{threads}"] = wall
        print(
            f"matched filter, three widths, both signs, trails: {wall:.2f} s for {QUADRANT[1]}x{QUADRANT[0]} pixels"
            f" with 1,000 points, {threads} thread(s) (goal 2 s)"
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
