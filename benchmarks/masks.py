"""Contaminant masks of a 4096 x 4096 image: our commands against MaxiMask itself, in the same run.

The image is made here: float32, sky of 1000 with noise of 30, 4,000 stars, cosmic rays and a trail; what the networks
cost does not depend on it. Ours are `tapetum images mask` with the original network (onnxruntime in float32, and
OpenVINO in bfloat16 where it is installed) and with our own network where it ships. The rival is MaxiMask 1.4.1 with
TensorFlow 2.18.1, in an environment of its own, which is made when none is named. Each command runs in a process of its
own, with its Python's start, reading and writing; in turn, as often as asked. Wall time is what a user waits for;
processor time is what can be compared where other work shares the machine. Memory is the peak of the process.

    python -m benchmarks.masks [--rival FOLDER] [--repeats 1] [--side 4096]

FOLDER is a virtual environment with MaxiMask 1.4.1.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from astropy.io import fits

from benchmarks.common import data_folder, machine
from tapetum.core.places import cache_dir
from tapetum.images.normalise import normalise

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 4096
SKY, NOISE, N_STARS, N_RAYS = 1000.0, 30.0, 4000, 3000
REQUIREMENTS = ("MaxiMask==1.4.1", "tensorflow-cpu==2.18.1")
TAPETUM = Path(sys.executable).with_name("tapetum")
GOALS = {"maximask, onnxruntime float32": 4.0, "maximask, openvino bfloat16": 6.0, "contaminants": 10.0}
MEMORY_GOAL = 0.5  # of the rival's


@dataclass(frozen=True)
class Cost:
    """Of one run of a command: wall and processor time [s], peak memory [GB]."""

    wall: float
    processor: float
    memory: float


def scene(side: int = SIDE) -> NDArray[np.float32]:
    """An image of `side` x `side` pixels, the same at every call."""
    rng = np.random.default_rng(4)
    image = rng.normal(SKY, NOISE, (side, side)).astype(np.float32)
    y, x = np.mgrid[-12:13, -12:13]
    star = (1 + (y**2 + x**2) / 3.0**2) ** -2.5
    share = (side / SIDE) ** 2
    for _ in range(int(N_STARS * share)):
        row, column = rng.integers(12, side - 12, 2)
        image[row - 12 : row + 13, column - 12 : column + 13] += 60 * rng.pareto(0.8) * star
    for _ in range(int(N_RAYS * share)):
        row, column, length = *rng.integers(0, side - 20, 2), rng.integers(1, 20)
        image[row, column : column + length] += rng.exponential(800)
    at = np.arange(side)
    for width in range(-2, 3):
        image[np.clip(at // 3 + side // 5 + width, 0, side - 1), at] += 120
    return np.minimum(image, 65535)


def rival_environment(named: Path | None) -> Path | None:
    """The virtual environment with the rival: the one that is named, or one that is made now and kept.

    Returns
    -------
    Path or None
        Its folder; None when it cannot be made, which is printed.
    """
    folder = named or cache_dir() / "benchmarks" / "maximask-1.4.1"
    if (folder / "bin" / "maximask").is_file():
        return folder
    if named is not None:
        raise SystemExit(f"{named}: no virtual environment with MaxiMask: bin/maximask is missing")
    print(f"masks: making {folder}: python -m venv, pip install {' '.join(REQUIREMENTS)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *REQUIREMENTS]
    if subprocess.run(pip, check=False).returncode:
        print("masks: the rival cannot be installed (TensorFlow 2.18 needs Python 3.12 or older); ours alone")
        return None
    return folder


def measure(command: list[str], folder: Path) -> Cost:
    """Run a command in `folder`.

    Raises
    ------
    SystemExit
        It failed.
    """
    start = time.perf_counter()
    with (folder / "words").open("w+") as words:
        process = subprocess.Popen(command, cwd=folder, stdout=words, stderr=words)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        if process.returncode:
            words.seek(0)
            raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}: {words.read()[-2000:]}")
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9)


def original_weights(models: Path) -> Path | None:
    """The original network, imported from the test data into `models`, else from the package index."""
    from tapetum.models.maximask import import_arrays, import_published

    data = data_folder()
    arrays = None if data is None else data / "maximask" / "maximask_weights.npz"
    if arrays is None or not arrays.is_file():
        return import_published("maximask", models, cache_dir() / "downloads").folder
    return import_arrays(dict(np.load(arrays)), "maximask", {"file": arrays.name}, models, arrays).folder


def commands(image: Path, models: Path, rival: Path | None) -> dict[str, list[str]]:
    """Command lines by name; the rival's is first."""
    found = {}
    if rival is not None:
        found["MaxiMask 1.4.1"] = [str(rival / "bin" / "maximask"), str(image)]
    ours = [str(TAPETUM), "-q", "images", "mask", str(image), "--overwrite", "--jobs", str(os.cpu_count())]
    network = ["--model", str(original_weights(models))]
    found["maximask, onnxruntime float32"] = [*ours, *network]
    if importlib.util.find_spec("openvino") is not None:
        found["maximask, openvino bfloat16"] = [*ours, *network, "--runtime", "openvino"]
    else:
        print("masks: openvino is not installed: pip install 'tapetum[openvino]'")
    from tapetum.models.registry import packaged_names

    if "contaminants" in packaged_names():
        found["contaminants"] = ours
    return found


def time_normalisation(image: NDArray[np.float32], repeats: int) -> None:
    """Print what the normalisation alone takes."""
    small = image[:500, :500]
    normalise(small, threads=1)  # compiles
    for threads in (1, 2):
        times = []
        for _ in range(max(repeats, 3)):
            start = time.perf_counter()
            normalise(image, threads=threads)
            times.append(time.perf_counter() - start)
        speed = image.size / min(times) / 1e6
        print(
            f"masks: normalisation, {threads} thread(s): {min(times):.2f} s = {speed:.1f} Mpix/s", flush=True
        )


def report(costs: dict[str, list[Cost]], n_pixels: int) -> None:
    """Print medians, and ratios to the first command."""
    rival = next(iter(costs)) if len(costs) > 1 and next(iter(costs)) not in GOALS else None
    for name, runs in costs.items():
        wall, processor = (
            statistics.median(getattr(run, key) for run in runs) for key in ("wall", "processor")
        )
        memory = max(run.memory for run in runs)
        line = f"masks: {name:30s} {wall:6.1f} s, {processor:6.1f} s of processors, {n_pixels / wall / 1e6:5.2f} Mpix/s"
        line += f", peak {memory:.2f} GB"
        if rival is not None and name != rival:
            old = costs[rival]
            faster, lighter = (
                statistics.median(getattr(run, key) for run in old) / value
                for key, value in (("wall", wall), ("processor", processor))
            )
            share = memory / max(run.memory for run in old)
            line += f"; {faster:.1f} x faster (goal {GOALS[name]:.0f}), {lighter:.1f} x in processor time"
            line += f", {share:.2f} of the memory (goal {MEMORY_GOAL})"
        print(line, flush=True)


def run(rival: Path | None = None, repeats: int = 1, side: int = SIDE) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="tapetum-bench-") as name:
        folder = Path(name)
        image = scene(side)
        fits.writeto(folder / "image.fits", image)
        print(f"masks: {side} x {side} float32 image, one process each, {repeats} run(s) in turn", flush=True)
        time_normalisation(image, repeats)
        table = commands(folder / "image.fits", folder / "models", rival_environment(rival))
        costs: dict[str, list[Cost]] = {key: [] for key in table}
        for _ in range(repeats):
            for key, command in table.items():
                costs[key].append(measure(command, folder))
        report(costs, image.size)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rival", type=Path, help="virtual environment with MaxiMask 1.4.1")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--side", type=int, default=SIDE)
    args = parser.parse_args()
    print(machine())
    run(args.rival, args.repeats, args.side)


if __name__ == "__main__":
    main()
