"""Times functions of scope-ml 0.9.5 in an environment of their own; `benchmarks.lightcurves` runs this file.

It is a script for that environment's Python, so nothing of Tapetum is imported. Curves and grids come in an .npz file,
and results with the CPU time of every call [s] go into another. Only the two modules with the functions are imported
from scope-ml; importing the rest would take TensorFlow and a database.

    python lightcurves_rival.py features|periods IN.npz OUT.npz
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from tools.featureGeneration import lcstats, periodsearch

if TYPE_CHECKING:
    from collections.abc import Callable

BINS = (20, 10)  # of phase and magnitude, as its feature generation sets them
N_COMPARED = 200  # frequencies whose values are given back


def clock(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of a call [s], and what it gives; None where a fit does not converge."""
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.process_time()
        try:
            result = work()
        except RuntimeError:
            result = None
        return time.process_time() - start, result


def curves_of(data: Any) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Time, magnitude and error of each curve."""
    return list(
        zip(*(np.split(data[name], data["offsets"][1:-1]) for name in ("time", "mag", "magerr")), strict=True)
    )


def features(data: Any) -> dict[str, np.ndarray]:
    """Statistics, Fourier series and dmdt of each curve; `cpu` has these three columns."""
    edges = {"dtints": data["dt_edges"], "dmints": data["dm_edges"]}
    calls: tuple[Callable[..., Any], ...] = (
        lambda tme, _: lcstats.calc_basic_stats(0, tme)[0],
        lambda tme, period: lcstats.calc_fourier_stats(0, tme, period)[0],
        lambda tme, _: lcstats.compute_dmdt(0, tme, edges)[0],
    )
    curves = curves_of(data)
    absent = (np.full(22, np.nan), np.full(14, np.nan), np.full((26, 26), np.nan))
    cpu = np.zeros((len(curves), len(calls)))
    found: list[list[np.ndarray]] = [[], [], []]
    for call in calls:
        call(curves[0], data["period"][0])  # compiles
    for i, curve in enumerate(curves):
        for k, call in enumerate(calls):
            cpu[i, k], result = clock(lambda: call(curve, data["period"][i]))  # noqa: B023 - called at once
            found[k].append(absent[k] if result is None else result)
    return {
        "cpu": cpu, "statistics": np.array(found[0]), "fourier": np.array(found[1]), "dmdt": np.array(found[2])
    }  # fmt: skip


def search(name: str, curve: np.ndarray, frequencies: np.ndarray) -> tuple[float, float]:
    """CPU time [s] and best period [d] of its whole period search by one algorithm, values of all frequencies kept."""
    cpu, result = clock(
        lambda: periodsearch.find_periods(
            f"{name}_periodogram", [curve], frequencies, doCPU=True, phase_bins=BINS[0], mag_bins=BINS[1], Ncore=1
        )
    )  # fmt: skip
    return cpu, float(result[0][0]["period"])


def values(curve: np.ndarray, entropy_at: np.ndarray, ratio_at: np.ndarray, aov: bool) -> list[np.ndarray]:
    """Entropy and ratio of variances themselves, of magnitudes scaled as its search scales them; not timed."""
    level = (curve[1] - curve[1].min()) / np.ptp(curve[1])
    scaled = np.array([curve[0], level]).T
    entropy = [periodsearch.CE(1 / frequency, scaled, *BINS) for frequency in entropy_at]
    ratio = np.full(ratio_at.size, np.nan)
    if aov:
        step = ratio_at[1] - ratio_at[0]
        theta, _, _ = periodsearch.amhw(
            curve[0], level, curve[2], fstop=ratio_at[-1] + step, fstep=step, fr0=ratio_at[0]
        )
        ratio = theta[: ratio_at.size]
    return [np.array(entropy), ratio]


def has_fortran() -> bool:
    """Whether the Fortran part was built."""
    try:
        import aov  # noqa: F401
    except ImportError:
        return False
    return True


def periods(data: Any) -> dict[str, np.ndarray]:
    """Seconds per whole grid of each curve; `cpu` has the columns CE, AOV, LS, LS on an irregular grid.

    LS on the regular grid is run whole. The others do the same work at every frequency, so they are timed at some
    of them and scaled by the number of frequencies: CE at `n_entropy` spread over the grid, AOV and irregular LS at
    `n_block` in one piece.
    """
    cpu, best, entropies, ratios = [], [], [], []
    fortran = has_fortran()
    for name in (
        ("CE", "AOV", "LS") if fortran else ("CE", "LS")
    ):  # it imports what it needs when it first runs
        search(name, np.array(curves_of(data)[0]), np.linspace(0.1, 1, N_COMPARED))
    for curve, (first, step, count, peak) in zip(
        [np.array(each) for each in curves_of(data)], data["grid"], strict=True
    ):
        grid = first + step * np.arange(int(count))
        spread = grid[:: max(int(count // data["n_entropy"]), 1)]
        begin = int(np.clip(peak - data["n_block"] // 2, 0, max(count - data["n_block"], 0)))
        block = grid[begin : begin + int(data["n_block"])]
        gap = np.delete(
            block, block.size // 3
        )  # what leaving out intervals does: astropy takes its direct way
        row = [
            search("CE", curve, spread)[0] * grid.size / spread.size,
            search("AOV", curve, block)[0] * grid.size / block.size if fortran else np.nan,
            0.0,
            search("LS", curve, gap)[0] * grid.size / gap.size,
        ]
        row[2], period = search("LS", curve, grid)
        cpu.append(row)
        best.append(period)
        near = int(np.clip(peak - N_COMPARED // 2, 0, count - N_COMPARED))
        some = values(curve, spread[:N_COMPARED], grid[near : near + N_COMPARED], fortran)
        entropies.append(some[0])
        ratios.append(some[1])
    return {
        "cpu": np.array(cpu), "period": np.array(best), "entropy": np.array(entropies), "ratio": np.array(ratios)
    }  # fmt: skip


def main() -> None:
    """Command line."""
    warnings.simplefilter("ignore")
    what, source, target = sys.argv[1:]
    with np.load(source) as data:
        given = dict(data)
    np.savez(target, **(features if what == "features" else periods)(given))


if __name__ == "__main__":
    main()
