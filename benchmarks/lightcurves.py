"""Light curves: features and the nested period search against scope-ml's own functions, CPU time of one thread.

Features: 22 statistics, Fourier series at a given period and dmdt of the same curves of about 100, 200, 500 and 700
points. scope-ml's functions take one curve, ours a batch; its Fourier features are fitted twice in a call, which is how
it ships. Results are compared in the same run.

Periods: LS + CE + AOV and the choice among them on the default grid of each curve (from 2 cycles per baseline to 48/d,
10 frequencies per peak), 100 and 450 points. Ours run whole. Of scope-ml Lomb-Scargle runs whole, as astropy's FFT on
a regular grid is not linear; CE and the Fortran AOV do the same work at every frequency, so they are timed through its
search at some (`N_ENTROPY`, `N_BLOCK`) and scaled by the number of frequencies. Its top 50 and choice are not counted.
With --doRemoveTerrestrial its Lomb-Scargle loses the FFT: a second line, its direct sum timed at some frequencies.
Its AOV needs gfortran when the environment is made; without it a direct Lomb-Scargle, the same statistic at about half
the cost per frequency, stands in, which is printed. Our AOV of one harmonic shares the transform of our Lomb-Scargle,
of which it is a function. EAOV, the AOV between phase bins that scope-ml has for GPUs only, is a line of its own.

Scale: curves per second and core, and core-hours for 2.5e9 curves of the mix `MIX`, whose grid is that of 1750 d.

The rival lives in an environment of its own with the numpy that it wants, which needs Python 3.11, and is made when
none is named. Curves are real ones from the developer data, or simulated. Rival and ours in turn; of several repeats
the least CPU time of each counts.

    OMP_NUM_THREADS=1 python -m benchmarks.lightcurves [--rival FOLDER] [--repeats 3] [--curves 24] [--searched 6]

FOLDER is a virtual environment with scope-ml 0.9.5.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import data_folder, machine
from tapetum.core.places import cache_dir
from tapetum.lightcurves.clean import clean
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.dmdt import DM_EDGES, DT_EDGES, dmdt
from tapetum.lightcurves.formats.opening import open_curves
from tapetum.lightcurves.fourier import fourier
from tapetum.lightcurves.periods.grid import GridRules
from tapetum.lightcurves.periods.search import PeriodRules, find_periods
from tapetum.lightcurves.statistics import STATISTICS, statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Values = NDArray[np.float64]

SCOPE = "scope-ml==0.9.5"
REQUIREMENTS = (
    "numpy==1.23.5", "scipy==1.11.4", "numba==0.58.1", "astropy==6.0.1", "fast-histogram==0.14", "joblib==1.3.2",
    "setuptools==65.5.0",
)  # fmt: skip
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
WORKER = Path(__file__).with_name("lightcurves_rival.py")
FEATURE_POINTS, FEATURE_GOAL = (100, 200, 500, 700), 50.0
SEARCH_POINTS, SEARCH_GOAL = (100, 450), 100.0
KINDS = ("statistics", "Fourier", "dmdt")
N_BATCH = 480  # curves in a batch of ours, the same ones again and again
N_ENTROPY, N_BLOCK = 300, 20_000  # frequencies that scope-ml is timed at
MIX = {100: 0.4, 200: 0.3, 500: 0.2, 700: 0.1}
"""Points -> share of all curves: 270 points on average, made up."""
MIX_BASELINE = 1750.0  # of ZTF DR16 [d]
ALL_CURVES = 2.5e9
SEED = 20265
SEARCHES: dict[str, PeriodRules] = {
    "LS + CE + AOV": PeriodRules(ranking=None),
    "LS + CE + AOV, terrestrial removed": PeriodRules(ranking=None, grid=GridRules(remove_terrestrial=True)),
    "LS + CE + EAOV": PeriodRules(ranking=None, algorithms=("LS", "CE", "EAOV")),
    "LS + CE + AOV and our final period": PeriodRules(),
}


def spent(work: Callable[[], Any]) -> float:
    """CPU time of a call [s], all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def real_curves() -> LightCurves | None:
    """Cleaned labelled curves of the developer data."""
    folder = data_folder()
    path = None if folder is None else folder / "lightcurves" / "labelled" / "labelled_lightcurves.parquet"
    return clean(open_curves(path).read()).curves if path is not None and path.is_file() else None


def simulated_curves(count: int) -> LightCurves:
    """`count` sine curves of each length, seen at night, for 220 days of a year, over seven years."""
    rng = np.random.default_rng(SEED)
    time_, mag, magerr = [], [], []
    days = np.array([day for day in range(2700) if day % 365 < 220])
    for n in sorted({*FEATURE_POINTS, *SEARCH_POINTS}):
        for _ in range(count):
            t = np.sort(rng.choice(days, n, replace=False) + rng.uniform(-0.15, 0.15, n))
            error = rng.uniform(0.02, 0.05, n)
            time_.append(t)
            mag.append(16 + 0.3 * np.sin(2 * np.pi * t / rng.uniform(0.3, 30)) + error * rng.normal(size=n))
            magerr.append(error)
    return LightCurves.of_lists(time_, mag, magerr)


def curves_near(pool: LightCurves, n: int, count: int) -> LightCurves:
    """The `count` curves closest to `n` points, none below 0.9 n; of those above 1.1 n the first n points."""
    size = pool.n_points
    chosen = np.argsort(np.where(size < 0.9 * n, np.inf, np.abs(size / n - 1)), kind="stable")[:count]
    if (size[chosen] < 0.9 * n).any():
        raise SystemExit(f"lightcurves: fewer than {count} curves of {n} points in the data: lower --curves")
    curves = pool.take(chosen)
    number = np.arange(len(curves.time)) - np.repeat(curves.offsets[:-1], curves.n_points)
    long = np.repeat(curves.n_points > 1.1 * n, curves.n_points)
    return curves.where(~long | (number < n))


def given_periods(curves: LightCurves) -> Values:
    """Periods to fit Fourier series at [d]: the highest peak of a short search."""
    rules = PeriodRules(
        algorithms=("LS",), ranking=None, grid=GridRules(samples_per_peak=3, maximum=10), nested=None
    )
    return np.asarray(find_periods(curves, rules).table["period_LS"].to_numpy(), np.float64)


# --- the rival -------------------------------------------------------------------------------------------------------


def has_fortran(python: Path) -> bool:
    """Whether the environment has the Fortran part of scope-ml."""
    return (
        subprocess.run([python, "-I", "-c", "import aov"], capture_output=True, check=False).returncode == 0
    )


def rival_environment(named: Path | None) -> Path | None:
    """Python of the environment with scope-ml: of the one that is named, or of one that is made now and kept.

    Returns
    -------
    Path or None
        None when it cannot be made, which is printed.
    """
    folder = named or cache_dir() / "benchmarks" / "scope-ml-0.9.5"
    python = folder / "bin" / "python"
    there = [str(python), "-I", "-c", "from tools.featureGeneration import lcstats, periodsearch"]
    if python.is_file() and subprocess.run(there, capture_output=True, check=False).returncode == 0:
        return python
    if named is not None:
        raise SystemExit(f"{named}: no virtual environment with scope-ml: tools.featureGeneration is missing")
    base = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    if base is None:
        print("lightcurves: scope-ml needs Python 3.11, which is not here as python3.11; ours alone")
        return None
    print(f"lightcurves: making {folder}: pip install {' '.join(REQUIREMENTS)} and {SCOPE} alone", flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    steps = (
        [base, "-m", "venv", "--clear", str(folder)], [*pip, *REQUIREMENTS], [*pip, "--no-deps", SCOPE]
    )  # fmt: skip
    if any(subprocess.run(step, check=False).returncode for step in steps):
        print("lightcurves: scope-ml cannot be installed; ours alone")
        return None
    build_fortran(python)
    return python


def build_fortran(python: Path) -> None:
    """Build the AOV of scope-ml into its environment, as its own build script does."""
    if shutil.which("gfortran") is None:
        print("lightcurves: no gfortran, so scope-ml's AOV is not built")
        return
    site = Path(
        subprocess.check_output(
            [python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
    )
    source = site / "tools" / "featureGeneration" / "pyaov"
    names = [str(source / name) for name in ("aovconst.f90", "aovsub.f90", "aov.f90")]
    with tempfile.TemporaryDirectory(prefix="tapetum-bench-") as folder:
        done = subprocess.run(
            [python, "-m", "numpy.f2py", "-m", "aov", "-c", *names],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        built = list(Path(folder).glob("aov*.so"))
        if done.returncode or not built:
            print(f"lightcurves: scope-ml's AOV cannot be built: {(done.stdout + done.stderr)[-600:]}")
            return
        shutil.copy(built[0], site)


def ask(python: Path, what: str, curves: LightCurves, **more: Any) -> dict[str, Any]:
    """Let scope-ml work on curves in a process of its own.

    Raises
    ------
    SystemExit
        It failed.
    """
    with tempfile.TemporaryDirectory(prefix="tapetum-bench-") as name:
        source, target = Path(name) / "in.npz", Path(name) / "out.npz"
        np.savez(
            source, time=curves.time, mag=curves.mag, magerr=curves.magerr, offsets=curves.offsets, **more
        )
        done = subprocess.run(
            [python, "-I", WORKER, what, source, target],
            env=os.environ | ONE_THREAD,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"lightcurves: scope-ml failed: {done.stderr[-2000:]}")
        with np.load(target) as found:
            return dict(found)


# --- features --------------------------------------------------------------------------------------------------------


@dataclass
class Features:
    """Curves of one length with periods, and CPU time per curve [s] of `KINDS`: of ours, and of scope-ml."""

    curves: LightCurves
    period: Values
    ours: Values
    theirs: Values | None = None
    found: dict[str, Any] | None = None


def our_features(sample: Features) -> Values:
    """CPU time per curve of a batch of `N_BATCH` curves [s]."""
    again = np.arange(N_BATCH) % len(sample.curves)
    batch, period = sample.curves.take(again), sample.period[again]
    return np.array(
        [spent(lambda: statistics(batch)), spent(lambda: fourier(batch, period)), spent(lambda: dmdt(batch))]
    ) / len(batch)


def measure_features(pool: LightCurves, python: Path | None, repeats: int, count: int) -> dict[int, Features]:
    """Ours and scope-ml's by number of points."""
    samples = {}
    for n in FEATURE_POINTS:
        curves = curves_near(pool, n, count)
        samples[n] = Features(curves, given_periods(curves), np.full(3, np.inf))
        our_features(samples[n])  # compiles
    for _ in range(repeats):
        for sample in samples.values():
            if python is not None:
                sample.found = ask(
                    python, "features", sample.curves, period=sample.period, dt_edges=DT_EDGES, dm_edges=DM_EDGES
                )  # fmt: skip
                cpu = sample.found["cpu"]
                sample.theirs = cpu if sample.theirs is None else np.minimum(sample.theirs, cpu)
            sample.ours = np.minimum(sample.ours, our_features(sample))
    return samples


def report_features(samples: dict[int, Features]) -> None:
    """Print times, ratios and agreement."""
    for n, sample in samples.items():
        size = sample.curves.n_points
        own = sample.ours
        line = f"lightcurves: features, {n} points ({len(size)} curves of {size.min()} to {size.max()}): "
        line += f"ours {1e6 * own.sum():.1f} us per curve = {1 / own.sum():.0f} curves/s"
        if sample.theirs is not None:
            other = sample.theirs.mean(0)
            line += f"; scope-ml {1e6 * other.sum():.0f} us = {1 / other.sum():.0f} curves/s: "
            line += f"{other.sum() / own.sum():.0f} x faster (goal {FEATURE_GOAL:.0f})"
        print(line)
        for k, kind in enumerate(KINDS):
            line = f"    {kind:10s} ours {1e6 * own[k]:8.1f} us"
            if sample.theirs is not None:
                other = sample.theirs.mean(0)
                line += f", scope-ml {1e6 * other[k]:8.0f} us, {other[k] / own[k]:5.0f} x"
            print(line)
        if sample.found is not None:
            print(f"    {features_agree(sample)}", flush=True)


def features_agree(sample: Features) -> str:
    """How far the two sets of results are apart, in words."""
    theirs = sample.found or {}
    relative = np.abs(statistics(sample.curves) / theirs["statistics"] - 1)
    column = int(np.nanargmax(np.nanmax(relative, 0)))
    ours, fit = fourier(sample.curves, sample.period), theirs["fourier"]
    done = np.isfinite(fit[:, 0])
    same = ((ours[:, 4:] != 0).sum(1) == (fit[:, 4:] != 0).sum(1))[done]
    apart = np.abs(ours - fit)[done][same]
    pictures = np.abs(dmdt(sample.curves) - theirs["dmdt"]).max()
    return (
        f"agreement: statistics within {np.nanmax(relative):.1e} relative ({STATISTICS[column]}); same order of "
        f"series in {same.sum()} of {done.sum()} (scope-ml's fit failed for {(~done).sum()}), f1_power within "
        f"{apart[:, 0].max(initial=0):.1e}, f1_BIC within "
        f"{(apart[:, 1] / np.abs(fit[done][same, 1])).max(initial=0):.1e} relative; dmdt within {pictures:.1e}"
    )


# --- periods ---------------------------------------------------------------------------------------------------------


@dataclass
class Search:
    """Curves of one length, their grids, and CPU time per curve [s]: of `SEARCHES`, and of scope-ml's algorithms.

    Attributes
    ----------
    grid : ndarray, shape (n_curves, 4)
        First frequency, step [1/d], count, and number of our highest Lomb-Scargle peak.
    theirs : ndarray, shape (n_curves, 4), optional
        CE, AOV, LS, LS on an irregular grid.
    """

    curves: LightCurves
    grid: Values
    ours: dict[str, Values]
    theirs: Values | None = None
    found: dict[str, Any] | None = None


def our_search(curves: LightCurves, rules: PeriodRules) -> Values:
    """CPU time of each curve [s]."""
    each = [curves.take(np.array([i])) for i in range(len(curves))]
    return np.array([spent(lambda: find_periods(one, rules)) for one in each])  # noqa: B023 - called at once


def grids(curves: LightCurves) -> Values:
    """For `Search`."""
    period = find_periods(curves, PeriodRules(algorithms=("LS",), ranking=None, nested=None)).table[
        "period_LS"
    ]
    rows = []
    for (t, _, _), best in zip(curves, period.to_pylist(), strict=True):
        grid = GridRules().grid(float(t[-1] - t[0]))
        rows.append((grid.first, grid.step, grid.count, round((1 / best - grid.first) / grid.step)))
    return np.array(rows, np.float64)


def measure_searches(pool: LightCurves, python: Path | None, repeats: int, count: int) -> dict[int, Search]:
    """Ours and scope-ml's by number of points."""
    samples = {}
    for n in SEARCH_POINTS:
        curves = curves_near(pool, n, count)
        samples[n] = Search(curves, grids(curves), {})
        for rules in SEARCHES.values():
            our_search(curves.take(np.array([0])), rules)  # compiles
    for _ in range(repeats):
        for sample in samples.values():
            if python is not None:
                sample.found = ask(
                    python, "periods", sample.curves, grid=sample.grid, n_entropy=N_ENTROPY, n_block=N_BLOCK
                )
                cpu = sample.found["cpu"]
                sample.theirs = cpu if sample.theirs is None else np.minimum(sample.theirs, cpu)
            for name, rules in SEARCHES.items():
                cpu = our_search(sample.curves, rules)
                sample.ours[name] = np.minimum(sample.ours.get(name, cpu), cpu)
    return samples


def their_total(cpu: Values, removed: bool) -> tuple[float, str]:
    """Seconds per curve of scope-ml's three algorithms, and how they come about."""
    entropy, variance, regular, direct = cpu.mean(0)
    series = direct if removed else regular
    words = f"CE {entropy:.1f} + AOV {variance:.1f} + LS {series:.2f}"
    if not np.isfinite(variance):
        variance = direct
        words = f"CE {entropy:.1f} + a direct LS in place of AOV (no Fortran) {direct:.1f} + LS {series:.2f}"
    return float(entropy + variance + series), words


def report_searches(samples: dict[int, Search]) -> None:
    """Print times, ratios and agreement."""
    for n, sample in samples.items():
        size, number = sample.curves.n_points, sample.grid[:, 2]
        print(
            f"lightcurves: periods, {n} points ({len(size)} curves of {size.min()} to {size.max()}, "
            f"{number.mean():.2e} frequencies on average), s per curve and core"
        )
        totals = {}
        if sample.theirs is not None:
            for removed in (False, True):
                totals[removed], words = their_total(sample.theirs, removed)
                how = ", terrestrial removed" if removed else ""
                print(f"    scope-ml LS + CE + AOV{how}: {totals[removed]:.1f} s ({words})")
        for name, cpu in sample.ours.items():
            each = 1e9 * (cpu / size / number).mean()
            line = f"    ours {name}: {cpu.mean():.3f} s, {each:.2f} ns per point and frequency"
            if totals:
                line += f"; {totals['removed' in name] / cpu.mean():.0f} x faster (goal {SEARCH_GOAL:.0f})"
            print(line)
        if sample.found is not None:
            print(f"    {searches_agree(sample)}", flush=True)


def searches_agree(sample: Search) -> str:
    """How far the values of the two are apart, in words."""
    theirs = sample.found or {}
    entropy, ratio, same = [], [], 0
    for i in range(len(sample.curves)):
        rules = PeriodRules(ranking=None, nested=None, keep=True)
        found = find_periods(sample.curves.take(np.array([i])), rules)
        kept = (found.periodograms or [{}])[0]
        count, peak = int(sample.grid[i, 2]), int(sample.grid[i, 3])
        some = theirs["ratio"].shape[1]
        spread = kept["CE"][:: max(count // N_ENTROPY, 1)][:some]
        near = int(np.clip(peak - some // 2, 0, count - some))
        mag = sample.curves.mag[sample.curves.offsets[i] : sample.curves.offsets[i + 1]]
        counted = np.mean(mag < mag.max())  # the faintest is outside of the histogram, and not in our sum
        entropy.append(np.abs(counted * spread - theirs["entropy"][i]))
        ratio.append(np.abs(kept["AOV"][near : near + some] / theirs["ratio"][i] - 1))
        period = found.table["period_LS"][0].as_py()
        same += abs(1 / period - 1 / theirs["period"][i]) < 0.5 * sample.grid[i, 1]
    words = f"agreement: LS has its highest peak at the same frequency in {same} of {len(sample.curves)} whole grids"
    words += f"; CE within {np.max(entropy):.1e} nat at {np.size(entropy)} frequencies"
    words += f" ({np.mean(np.array(entropy) < 1e-9):.1%} of them to 1e-9)"
    if np.isfinite(ratio).all():
        words += f"; AOV within {np.max(ratio):.1e} relative at {np.size(ratio)} around the peaks"
    return words


# --- scale -----------------------------------------------------------------------------------------------------------


def report_scale(pool: LightCurves, features: dict[int, Features], count: int) -> None:
    """Print what our features and searches of all curves would take."""
    parts = ", ".join(f"{share:.0%} of {n} points" for n, share in MIX.items())
    grid = GridRules(baseline=MIX_BASELINE)
    number = grid.grid(MIX_BASELINE).count
    print(
        f"lightcurves: scale, curves: {parts}; periods on the grid of {MIX_BASELINE:.0f} d ({number:.2e} frequencies)"
    )
    feature = sum(share * features[n].ours.sum() for n, share in MIX.items())
    print(f"    {in_words('statistics + Fourier + dmdt', feature)}")
    for name, rules in SEARCHES.items():
        if rules.grid.remove_terrestrial:
            continue
        per = {
            n: our_search(curves_near(pool, n, count), rules.model_copy(update={"grid": grid})) for n in MIX
        }
        cost = sum(share * per[n].mean() for n, share in MIX.items())
        print(f"    {in_words(f'features and {name}', feature + cost)}", flush=True)


def in_words(what: str, cost: float) -> str:
    """Rate and total for `ALL_CURVES`, of seconds per curve."""
    hours = cost * ALL_CURVES / 3600
    return f"{what}: {1 / cost:.4g} curves/s/core, {hours:.3g} core-hours for {ALL_CURVES:.2g} curves"


def run(rival: Path | None = None, repeats: int = 3, count: int = 24, searched: int = 6) -> None:
    """Measure and print."""
    python = rival_environment(rival)
    pool = real_curves()
    origin = "real curves of the developer data" if pool is not None else "simulated curves"
    pool = pool if pool is not None else simulated_curves(max(count, searched))
    fortran = "" if python is None or has_fortran(python) else "; scope-ml without its Fortran"
    print(f"lightcurves: {origin}; CPU time of one thread, least of {repeats}{fortran}", flush=True)
    features = measure_features(pool, python, repeats, count)
    report_features(features)
    report_searches(measure_searches(pool, python, repeats, searched))
    report_scale(pool, features, max(searched // 3, 1))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rival", type=Path, help="virtual environment with scope-ml 0.9.5")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--curves", type=int, default=24, help="curves per length for features")
    parser.add_argument("--searched", type=int, default=6, help="curves per length for periods")
    args = parser.parse_args()
    print(machine())
    run(args.rival, args.repeats, args.curves, args.searched)


if __name__ == "__main__":
    main()
