"""`tapetum images search` as a user calls it: time and memory of a ZTF-size pair, and what is found on simulated pairs.

The large pair is a real ZTF quadrant and a second epoch that is simulated from it, as in `tapetum demo`. The command
runs in a process of its own; memory is what it and all its children have together. The small pairs are those of
``imagepairs`` with their truth files; beside them stands a row that HOTPANTS and sep had on the same pairs, quoted
from an earlier measurement: HOTPANTS cannot be installed here. There anything within 3 pixels (5 of a comet, 3 of a
streak's half) counted, and variable stars as false. `tapetum images completeness` makes plots and tables of the small
pairs, in a folder that is printed.

    python -m benchmarks.search [--repeats 3]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.common import data_folder, machine
from tapetum.core.settings import Settings
from tapetum.pipelines.completeness import Recovery, recover
from tapetum.pipelines.demo_images import Pair, quadrant_pair
from tapetum.pipelines.search_results import read_results, run_of, truth_files

if TYPE_CHECKING:
    from collections.abc import Sequence

SECONDS, GIB = 30.0, 3.0  # goals for the large pair on 2 cores
TAPETUM = Path(sys.executable).with_name("tapetum")
MOST_FALSE = 40  # goal per 768 x 768 image
MAGS = (17, 18, 19, 20, 21)
PLOTS = Path("build/benchmarks/completeness")  # of the small pairs
QUOTED = (
    "HOTPANTS + sep, quoted from 2026:  points  .98 1.00  .96  .49   comets  .88   streaks  .94   false 37"
)


class MemoryWatch(threading.Thread):
    """Looks at the resident memory of a process and its descendants until told to stop; `peak` in bytes."""

    def __init__(self, pid: int, every: float = 0.02) -> None:
        super().__init__(daemon=True)
        self._pid, self._every, self._done = pid, every, threading.Event()
        self.peak = 0

    def run(self) -> None:
        """Until `stop`."""
        while not self._done.wait(self._every):
            self.peak = max(self.peak, sum(_resident(pid) for pid in _family(self._pid)))

    def stop(self) -> int:
        """End, and return the peak."""
        self._done.set()
        self.join()
        return self.peak


def _family(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:  # it has just ended
            continue
    return found


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def search(out: Path, *arguments: str | Path) -> tuple[float, int]:
    """Run the command; its wall time [s] and its largest memory [byte].

    Raises
    ------
    SystemExit
        It failed.
    """
    command = [TAPETUM, "images", "search", *arguments, "-o", out]
    start = time.perf_counter()
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
        watch = MemoryWatch(process.pid)
        watch.start()
        words = process.communicate()[1]
        peak = watch.stop()
    if process.returncode:
        raise SystemExit(f"images search: exit status {process.returncode}: {words}")
    return time.perf_counter() - start, peak


def large_pair(folder: Path) -> Pair:
    """A real quadrant and its simulated second epoch in `folder`; of the test data, else the package index."""
    data = data_folder()
    found = sorted((data / "ztf_images").glob("*_zr_*_sciimg.fits.fz")) if data is not None else []
    if not found:
        from tapetum.core.samples import fetch_sample

        found = fetch_sample("ztf-quadrant")
    return quadrant_pair(found[0], folder, Settings())


def time_large_pair(folder: Path, repeats: int) -> None:
    """Print time, memory and results for the large pair."""
    pair = large_pair(folder / "epochs")
    runs = [
        search(folder / f"large{number}", pair.science, "--reference", pair.reference)
        for number in range(repeats + 1)
    ][1:]  # the first one may compile
    seconds = statistics.median(run[0] for run in runs)
    peak = max(run[1] for run in runs) / 2**30
    [result] = read_results(folder / "large1")
    recovery = recover([result])
    kinds = " ".join(f"{kind}s {_share(recovery, kind)}" for kind in ("transient", "streak", "comet"))
    inside = float(run_of(result.folder)["seconds"])
    print(
        f"search: {result.shape[1]} x {result.shape[0]} pair, files to candidates, cutouts and report: {seconds:.1f} s"
        f" (goal {SECONDS:.0f}; {inside:.1f} s without starting Python), peak {peak:.2f} GiB (goal {GIB:.0f})"
    )
    print(f"        found: {kinds}; false {int(recovery.images['false'][0])} of {len(recovery.candidates)}")


def _share(recovery: Recovery, kind: str) -> str:
    chosen = np.asarray(recovery.injected["kind"]) == kind
    found = np.asarray(recovery.injected["found"], bool)[chosen]
    return f"{int(found.sum())}/{len(found)}"


def completeness_row(recovery: Recovery, kind: str, mags: Sequence[float] | None = None) -> list[float]:
    """Part found of a kind, in all or per interval of magnitude."""
    chosen = np.asarray(recovery.injected["kind"]) == kind
    found = np.asarray(recovery.injected["found"], bool)[chosen]
    mag = np.asarray(recovery.injected["mag"], np.float64)[chosen]
    if mags is None:
        return [float(found.mean())]
    inside = [(mag >= low) & (mag < high) for low, high in pairwise(mags)]
    return [float(found[part].mean()) if part.any() else float("nan") for part in inside]


def judge_small_pairs(folder: Path, pairs: Path) -> None:
    """Print what is found on the simulated pairs, beside the quoted row."""
    out = folder / "small"
    for science in sorted(pairs.glob("sim_dev?_sci.fits.fz")):
        reference = science.with_name(science.name.replace("_sci", "_ref"))
        search(out, science, "--reference", reference, "--cutouts", "none", "--keep", "none")
    recovery = recover(read_results(out), truth_files([pairs]))
    parts = [completeness_row(recovery, "point", MAGS)]
    parts += [completeness_row(recovery, kind) for kind in ("comet", "streak")]
    points, comets, streaks = (" ".join(f"{value:4.2f}" for value in part) for part in parts)
    false = np.asarray(recovery.images["false"], np.float64)
    print(f"search: {len(false)} simulated pairs of 768 x 768 pixels, points of magnitude 17 18 19 20 to 21")
    print(
        f"        tapetum:                           points {points}   comets {comets}   streaks {streaks}   "
        f"false {false.mean():.1f} per image, most {false.max():.0f} (goal {MOST_FALSE})"
    )
    print(f"        {QUOTED}")
    plot_completeness(out, pairs)


def plot_completeness(results: Path, truth: Path) -> None:
    """Plots and tables of what was found against magnitude, S/N and surroundings, where they can be looked at."""
    command = [TAPETUM, "-q", "images", "completeness", results, "--truth", truth, "-o", PLOTS]
    subprocess.run([str(word) for word in command], check=True)
    print(f"        completeness and purity, plots and tables: {PLOTS / 'report.html'}")


def run(repeats: int = 3) -> None:
    """Measure and print."""
    data = data_folder()
    with tempfile.TemporaryDirectory(prefix="tapetum-bench-") as folder:
        time_large_pair(Path(folder), repeats)
        if data is None or not (data / "imagepairs").is_dir():
            print("search: no simulated pairs; point TAPETUM_TEST_DATA at them")
            return
        judge_small_pairs(Path(folder), data / "imagepairs")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(machine())
    run(args.repeats)


if __name__ == "__main__":
    main()
