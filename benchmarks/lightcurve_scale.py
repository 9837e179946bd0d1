"""Features of 100,000 light curves, from a HATS catalogue, whose run loses its workers and is resumed.

Statistics, Fourier series at given periods and dmdt (`tapetum lightcurves features --set scope --period-column period`)
of simulated light curves, two bands per source, a partition of the catalogue being the unit of work. The command is
run

* undisturbed, on the processes of this machine: the table that the others must give;
* on the processes of this machine, of which one is killed (SIGKILL) half-way: the command ends with an error, and the
  same command goes on from there;
* on a Dask scheduler with workers in processes of their own. Each is killed while it is writing a part: the first
  one's part is given to the second, with whose death the command ends; new workers are started, and the same command
  goes on from there.

All three tables must be the same, value for value, and have one row per light curve, for each source exactly its two.

    OMP_NUM_THREADS=1 python -m benchmarks.lightcurve_scale [--curves 100000] [--workers 2] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.common import machine
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.formats.hats import write_hats
from tapetum.lightcurves.formats.sources import CURVES_AT_A_TIME, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEED = 20260
N_CURVES, N_PARTITIONS = 100_000, 40
BANDS = ("ztfg", "ztfr")
POINTS = 60, 240  # of a light curve, least and most
BASELINE = 1750.0  # d
FIELD = 200.0, 30.0, 20.0  # ra, dec of the centre and side [deg]
WAIT_SECONDS = 120.0
PROGRAM = ("-m", "tapetum")
NO_WORKER_SECONDS = 3  # that the command waits for a worker before it gives up
# A worker that ends itself, with SIGKILL, when it has written the first rows of its part number DIES_AT.
DEADLY = """
import os, signal
from tapetum.pipelines import lightcurve_parts

begun = 0

def dask_setup(worker):
    make = lightcurve_parts._make

    def dying(work, folder, part):
        global begun
        begun += 1
        return make(cut_off(work) if begun == int(os.environ["DIES_AT"]) else work, folder, part)

    lightcurve_parts._make = dying

def cut_off(work):
    def rows(part):
        yield next(iter(work(part)))
        os.kill(os.getpid(), signal.SIGKILL)
    return rows
"""


@dataclass(frozen=True)
class Simulated(Source):
    """Sinusoids of known period with noise, two light curves per source; the same ones at every reading."""

    name: str
    n_curves: int

    def batches(self, n: int = CURVES_AT_A_TIME) -> Iterator[LightCurves]:
        """As `Source.batches`; `n` is even."""
        for first in range(0, self.n_curves, n):
            yield simulate(first, min(n, self.n_curves - first))


def simulate(first: int, count: int) -> LightCurves:
    """Light curves number `first` and the following, each decided by its number alone."""
    rng = np.random.default_rng([SEED, first])
    sources = (first + np.arange(count)) // len(BANDS)
    ra0, dec0, side = FIELD
    # a sequence of low discrepancy, so that partitions have about the same size (golden ratio and plastic number)
    ra = ra0 + side * ((sources * 0.7548776662466927) % 1 - 0.5)
    dec = dec0 + side * ((sources * 0.5698402909980532) % 1 - 0.5)
    period = 10 ** (-1 + 2.5 * ((sources * 0.6180339887498949) % 1))
    counts = rng.integers(*POINTS, count, endpoint=True)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    owner = np.repeat(np.arange(count), counts)
    t = rng.uniform(0, BASELINE, offsets[-1])
    t = t[np.lexsort((t, owner))]
    magerr = rng.uniform(0.01, 0.05, t.size)
    amplitude = rng.uniform(0, 0.5, count)[owner]
    mag = 17 + amplitude * np.sin(2 * np.pi * t / period[owner]) + magerr * rng.normal(size=t.size)
    table = pa.table(
        {
            "lc_id": [f"c{first + k}" for k in range(count)],
            "object_id": [f"s{number}" for number in sources.tolist()],
            "band": [BANDS[(first + k) % len(BANDS)] for k in range(count)],
            "ra": ra,
            "dec": dec,
            "period": period,
        }
    )
    return LightCurves(t, mag, magerr, offsets, table, np.zeros(t.size, np.int32))


# ---- the command, and what is done to it ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One output of the command."""

    catalogue: Path
    output: Path

    def command(self, *options: str) -> list[str]:
        """The command line, run by this Python."""
        words = [
            "lightcurves",
            "features",
            str(self.catalogue),
            "--set",
            "scope",
            "--period-column",
            "period",
        ]
        return [sys.executable, *PROGRAM, *words, "-o", str(self.output), *options]

    def start(self, *options: str) -> subprocess.Popen[str]:
        """The command, running."""
        environment = {**os.environ, "TAPETUM_CLUSTER__WAIT_S": str(NO_WORKER_SECONDS)}
        return subprocess.Popen(
            self.command(*options),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )

    def finish(self, *options: str) -> str:
        """What the command said; it must succeed."""
        process = self.start(*options)
        said, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the command failed:\n{said}")
        return said

    def fail(self, process: subprocess.Popen[str]) -> int:
        """Parts that are finished when the command has failed, as it must; no output may be there."""
        said, _ = process.communicate()
        if not process.returncode or self.output.exists():
            raise RuntimeError(f"the command should have failed:\n{said}")
        if "what is finished is safe" not in said:
            raise RuntimeError(f"the command failed for another reason:\n{said}")
        return self.n_parts

    @property
    def n_parts(self) -> int:
        """Parts that are finished."""
        return len(list(Path(f"{self.output}.parts").glob("*/*.parquet")))

    @cached_property
    def table(self) -> pa.Table:
        """The output."""
        return pq.read_table(self.output)

    @property
    def options(self) -> Any:
        """What the output says of how it was made, but for when."""
        words = {key.decode(): value.decode() for key, value in self.table.schema.metadata.items()}
        return {key: words[key] for key in ("tapetum", "made_by", "options")}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait while a process runs; RuntimeError when it ends before, or nothing happens."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if process.poll() is not None:
            raise RuntimeError(f"ended too early with status {process.returncode}")
        if time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"nothing happened for {WAIT_SECONDS:g} s")
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    """Processes that a process has started (Linux)."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def lose_a_process(run: Run, n_parts: int, workers: int) -> int:
    """Run with so many processes, kill one half-way, resume; the number of parts that were not made again."""
    process = run.start("--jobs", str(workers))
    wait_for(lambda: run.n_parts >= n_parts // 2, process)
    os.kill(children_of(process.pid)[0], SIGKILL)
    n_finished = run.fail(process)
    _check_reused(run.finish("--jobs", str(workers)), n_finished, n_parts)
    return n_finished


def lose_all_workers(run: Run, n_parts: int, deaths: tuple[int, ...], folder: Path) -> int:
    """Run on Dask with workers that die at these parts of theirs, resume with as many good ones; as above."""
    with ExitStack() as stack:
        address = stack.enter_context(scheduler(folder))
        workers = [stack.enter_context(worker(address, folder, dies_at=death)) for death in deaths]
        n_finished = run.fail(run.start("--scheduler", address))
        statuses = [process.wait(WAIT_SECONDS) for process in workers]
        if set(statuses) != {-SIGKILL}:
            raise RuntimeError(f"the workers should have been killed, but ended with {statuses}")
        for _ in deaths:
            stack.enter_context(worker(address, folder))
        _check_reused(run.finish("--scheduler", address), n_finished, n_parts)
    return n_finished


def _check_reused(said: str, n_finished: int, n_parts: int) -> None:
    if not 0 < n_finished < n_parts:
        raise RuntimeError(f"{n_finished} of {n_parts} parts were finished: nothing was interrupted")
    if f"{n_finished} of {n_parts} parts were there from an earlier run" not in said:
        raise RuntimeError(f"{n_finished} parts were finished, but the command said:\n{said}")


@contextmanager
def scheduler(folder: Path) -> Iterator[str]:
    """Address of a Dask scheduler of its own process."""
    file = folder / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    with dask("scheduler", options, folder) as process:
        wait_for(lambda: file.exists() and bool(file.read_text().strip()), process)
        yield str(json.loads(file.read_text())["address"])


@contextmanager
def worker(address: str, folder: Path, *, dies_at: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """A worker of a process of its own, without a nanny that would start it again."""
    options = [address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(folder)]
    if dies_at is not None:
        (folder / "deadly.py").write_text(DEADLY)
        options += ["--preload", str(folder / "deadly.py")]
    with dask("worker", options, folder, DIES_AT=str(dies_at)) as process:
        yield process


@contextmanager
def dask(verb: str, options: list[str], folder: Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A process of Dask while the block runs."""
    # Dask copies its settings into the home folder otherwise
    environment = {**os.environ, "DASK_CONFIG": str(folder / "dask"), **more}
    with (folder / f"{verb}.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", verb, *options], stdout=log, stderr=log, env=environment, text=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# ---- the whole -----------------------------------------------------------------------------------------------------


def check_rows(table: pa.Table, n_curves: int) -> None:
    """One row per light curve, and every source with its two bands."""
    if pc.count_distinct(table["lc_id"]).as_py() != table.num_rows or table.num_rows != n_curves:
        raise RuntimeError(f"{table.num_rows} rows of {n_curves} light curves, or some of them twice")
    bands = table.group_by("object_id").aggregate([("band", "count_distinct"), ("band", "count")])
    counts = {(row["band_count_distinct"], row["band_count"]) for row in bands.to_pylist()}
    if counts != {(len(BANDS), len(BANDS))}:
        raise RuntimeError("a source has not one row per light curve")


def check_same(run: Run, first: Run) -> None:
    """The tables of two runs are the same, value for value, in the same order, and made by the same."""
    if not run.table.equals(first.table) or run.options != first.options:
        raise RuntimeError(f"{run.output.name} and {first.output.name} differ")


def measure(
    folder: Path,
    n_curves: int = N_CURVES,
    n_partitions: int = N_PARTITIONS,
    *,
    workers: int = 2,
    local: bool = True,
    deaths: tuple[int, ...] = (3, 8),
) -> dict[str, Any]:
    """Make the catalogue, run it three times (twice, without `local`), compare; figures.

    Raises
    ------
    RuntimeError
        Something is not as it should be.
    """
    catalogue = folder / "curves"
    write_hats(Simulated("simulated", n_curves), catalogue, most_rows=-(-3 * n_curves // (2 * n_partitions)))
    n_parts = len(list(catalogue.glob("dataset/Norder=*/Dir=*/*.parquet")))
    start = time.perf_counter()
    first = Run(catalogue, folder / "first.parquet")
    first.finish("--jobs", str(workers))
    seconds = time.perf_counter() - start
    check_rows(first.table, n_curves)
    reused = {}
    if local:
        second = Run(catalogue, folder / "second.parquet")
        reused["local"] = lose_a_process(second, n_parts, workers)
        check_same(second, first)
    third = Run(catalogue, folder / "third.parquet")
    reused["tcp"] = lose_all_workers(third, n_parts, deaths, folder)
    check_same(third, first)
    return {
        "curves": n_curves,
        "points": pc.sum(first.table["n_before"]).as_py(),
        "parts": n_parts,
        "columns": len(first.table.column_names),
        "seconds": seconds,
        "curves_per_s": n_curves / seconds,
        "reused": reused,
    }


def run(n_curves: int = N_CURVES, workers: int = 2, folder: Path | None = None) -> dict[str, Any]:
    """Print the figures."""
    with tempfile.TemporaryDirectory(prefix="tapetum-scale-", dir=folder) as name:
        figures = measure(Path(name), n_curves, workers=workers)
    reused = figures["reused"]
    print(
        f"scale: {figures['curves']} light curves, {figures['points']} points, {figures['parts']} HATS partitions, "
        f"{figures['columns']} columns: {figures['seconds']:.0f} s with {workers} processes, "
        f"{figures['curves_per_s']:.0f} curves/s, start and output included",
        flush=True,
    )
    print(
        f"scale: a process killed, resumed from {reused['local']} of {figures['parts']} parts; on Dask both workers "
        f"killed while writing, resumed from {reused['tcp']}; the tables are identical, one row per light curve",
        flush=True,
    )
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--curves", type=int, default=N_CURVES, help="Even.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="For temporary files; default: the system's.")
    arguments = parser.parse_args()
    print(machine(), flush=True)
    run(arguments.curves, arguments.workers, arguments.folder)


if __name__ == "__main__":
    main()
