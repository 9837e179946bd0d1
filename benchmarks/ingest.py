"""How fast `tapetum alerts ingest` is: 50,000 packets with history, scored, into a store that holds 100,000 objects.

The packets are real ones with new ids, each of a new object. The whole command is timed, its start included.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.replicate import sample_packets, write_replicas
from tapetum.alerts.packets import Packet
from tapetum.sky.healpix import hpx29
from tapetum.store.check import check
from tapetum.store.columns import DETECTION_VALUES, AlertColumns, DetectionColumns, detection_rank
from tapetum.store.store import open_store

PACKETS, OBJECTS, HISTORY = 50_000, 100_000, 25
MUST, AIM = 1_026, 2_500  # alerts/s
MEMORY = 2.0  # GiB


def fill(url: str, n_objects: int, like: Packet) -> None:
    """Give a store `n_objects` objects with one alert and a light curve each."""
    rng = np.random.default_rng(1)
    packet = Packet("filled", 0, like.schema, like.body[:1000])
    size = 1000
    with open_store(url, create=True) as store, store.writer(2**30) as writer:
        for start in range(0, n_objects, size):
            columns = _made_up(start, min(size, n_objects - start), rng)
            writer.add(columns, [packet] * len(columns))
            writer.commit()


def _made_up(start: int, n: int, rng: np.random.Generator) -> AlertColumns:
    rows = n * HISTORY
    mjd = 60_000 + np.sort(rng.uniform(0, 30, (n, HISTORY)), axis=1)
    values = rng.uniform(15, 20, (len(DETECTION_VALUES), rows))
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    detections = DetectionColumns(
        offsets=np.arange(n + 1, dtype=np.int64) * HISTORY,
        mjd=mjd.ravel(),
        band=rng.integers(0, 2, rows).astype(np.int16),
        band_names=["ztfr", "ztfg"],
        forced=np.zeros(rows, np.bool_),
        rank=detection_rank(values),
        values=values,
    )
    last = detections.band[HISTORY - 1 :: HISTORY]
    return AlertColumns(
        survey="ztf",
        index=np.arange(n),
        alert_id=np.arange(start, start + n, dtype=np.int64) + 1,
        object_id=[f"old{number:09d}" for number in range(start, start + n)],
        mjd=mjd[:, -1],
        ra=ra,
        dec=dec,
        hpx29=hpx29(ra, dec),
        band=[detections.band_names[code] for code in last],
        mag=values[0, :n],
        mag_err=values[1, :n],
        flux=values[2, :n],
        flux_err=values[3, :n],
        candidate=["{}"] * n,
        detections=detections,
    )


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(p for child in children for p in _tree(int(child)))]


def _resident(pid: int) -> int:
    """Resident bytes of a process and its children; shared pages count each time."""
    total = 0
    for process in _tree(pid):
        try:
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return total


def timed(command: list[str]) -> dict[str, Any]:
    """Run a command; wall and CPU seconds, peak memory of its whole tree [bytes], what it said."""
    before, start, peak = os.times(), time.monotonic(), 0
    # into a file: a pipe that nobody reads would stop a command that says much
    with tempfile.TemporaryFile("w+", encoding="utf-8") as talk:
        process = subprocess.Popen(command, stderr=talk)
        while process.poll() is None:
            peak = max(peak, _resident(process.pid))
            time.sleep(0.1)
        wall, after = time.monotonic() - start, os.times()
        talk.seek(0)
        said = talk.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}: {said[-2000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall": wall, "cpu": cpu, "peak": peak, "said": said}


def run(
    n_packets: int = PACKETS, n_objects: int = OBJECTS, jobs: int = 2, model: str | None = None
) -> dict[str, Any]:
    """Measure one ingest and print a line; `model` "" does not score, None takes the default."""
    what, packets = sample_packets(HISTORY)
    with tempfile.TemporaryDirectory(prefix="tapetum-bench-") as folder:
        archive, url = Path(folder) / "packets.tar", f"sqlite:///{folder}/night.db"
        write_replicas(packets, n_packets, archive)
        fill(url, n_objects, packets[0])
        scoring = ["--no-score"] if model == "" else ["--model", model] if model else []
        command = [
            sys.executable,
            "-c",
            "from tapetum.cli import main; main()",
            "alerts",
            "ingest",
            str(archive),
        ]
        result = timed([*command, "--store", url, "--jobs", str(jobs), *scoring])
        with open_store(url) as store:
            info, report = store.info(), check(store, quick=True)
    if info["alerts"] != n_packets + n_objects or info["objects"] != n_packets + n_objects or report.problems:
        raise RuntimeError(f"the store is not what it should be: {info} {report.problems}")
    seconds = re.search(r"in ([\d.]+) s", result["said"])
    assert seconds is not None
    measured = {
        "packets": n_packets,
        "source": what,
        "objects_before": n_objects,
        "jobs": jobs,
        "alerts_per_s": n_packets / result["wall"],
        "alerts_per_s_without_start": n_packets / float(seconds[1]),
        "cpu_us_per_alert": result["cpu"] / n_packets * 1e6,
        "peak_gib": result["peak"] / 2**30,
        "scored": info["scores"],
    }
    print(line(measured), flush=True)
    return measured


def line(result: dict[str, Any]) -> str:
    """One line for people."""
    return (
        f"ingest: {result['alerts_per_s']:.0f} alerts/s ({result['alerts_per_s'] / MUST:.2f} x the {MUST} that "
        f"must be, aim {AIM}); {result['packets']} packets (replicas of {result['source']}), {result['scored']} "
        f"scored, into {result['objects_before']} objects, --jobs {result['jobs']}; "
        f"{result['cpu_us_per_alert']:.0f} us CPU per alert, peak memory {result['peak_gib']:.2f} GiB (of {MEMORY:.0f})"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packets", type=int, default=PACKETS)
    parser.add_argument("--objects", type=int, default=OBJECTS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--model", default=None, help="another model than the default; '' does not score")
    arguments = parser.parse_args()
    run(arguments.packets, arguments.objects, arguments.jobs, arguments.model)


if __name__ == "__main__":
    main()
