"""SIGKILL at random moments of a real process: nothing acknowledged is lost, nothing half-written is left.

A server that has imported everything and loaded the model forks one child per ingest and kills it after a given time,
so that a kill costs tenths of a second. Environment variable KILLS: how many (default 52).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tapetum.core.errors import InputError, StoreError
from tapetum.simulate.alerts import SimulatedAlert, simulate_alerts, write_alerts
from tapetum.store.check import check
from tapetum.store.digest import digest
from tapetum.store.segments import crc32
from tapetum.store.store import Store, open_store

KILLS = int(os.environ.get("KILLS", "52"))
N_ALERTS, N_OBJECTS = 120, 40
BATCH = 6  # also alerts per commit: many commits, many moments between them
CLI = [sys.executable, "-c", "from tapetum.cli import main; main()"]

SERVER = """
import json, os, signal, sys, time
from tapetum.alerts.decode import warm_up
from tapetum.core.errors import TapetumError
from tapetum.store import worker
from tapetum.store.ingest import ingest
from tapetum.store.store import Store, open_store

scorer = worker._scorer("realbogus")
worker._scorer = lambda model: scorer

def child(job):
    with open(job["acknowledge"], "a") as handle, open_store(job["url"], create=True) as store:
        def tell(alerts):
            handle.writelines(f"{survey} {alert_id}\\n" for survey, alert_id in alerts)
            handle.flush()
        ingest(store, job["sources"], model=job["model"], batch=job["batch"], commit_alerts=job["batch"],
               segment_bytes=job["segment_bytes"], acknowledge=tell)

warm_up()
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            child(job)
            os._exit(0)
        except BaseException as problem:
            print(repr(problem), file=sys.stderr, flush=True)
            os._exit(9)
    done, status = 0, 0
    while not done and time.monotonic() - start < job["seconds"]:
        done, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.0005)
    if not done:
        os.kill(pid, 9)
        _, status = os.waitpid(pid, 0)
    print(json.dumps({"status": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - start}), flush=True)
"""


class Server:
    """Runs ingests in children and kills them."""

    def __init__(self, night: Path, folder: Path) -> None:
        self.night, self.folder, self.number = night, folder, 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.fresh()

    def fresh(self) -> None:
        """Begin with a new store."""
        self.number += 1
        for old in self.folder.glob(f"{self.number - 1}.*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        self.url = f"sqlite:///{self.folder / f'{self.number}.db'}"
        self.acknowledged = {
            scored: self.folder / f"{self.number}.{'scored' if scored else 'stored'}"
            for scored in (True, False)
        }

    def run(self, seconds: float, *, scored: bool) -> dict[str, float]:
        """Ingest, but not longer than this; exit status (-9 when killed) and time it took."""
        job = {
            "url": self.url, "acknowledge": str(self.acknowledged[scored]), "sources": [str(self.night)],
            "model": "realbogus" if scored else None,
            "batch": BATCH, "segment_bytes": 2**20, "seconds": seconds,
        }  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer: dict[str, float] = json.loads(self.process.stdout.readline())
        assert answer["status"] in (0, -signal.SIGKILL)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


def make_night(path: Path, n: int) -> None:
    """Simulated alerts with new ids, several per object; the last packet is cut short."""
    seeds = simulate_alerts(6, np.random.default_rng(11))
    alerts = []
    for number in range(n):
        seed = seeds[number % len(seeds)]
        candid = 10**18 + number
        own = {
            **seed.record["candidate"],
            "candid": candid,
            "jd": seed.record["candidate"]["jd"] + number / 100,
        }
        record = {
            **seed.record,
            "candid": candid,
            "objectId": f"SIM{number % N_OBJECTS:09d}",
            "candidate": own,
        }
        alerts.append(SimulatedAlert(record, seed.truth, seed.target))
    write_alerts(path, alerts)
    with path.open("r+b") as handle:
        handle.truncate(path.stat().st_size - 100)


def acknowledged_alerts(path: Path) -> list[tuple[str, int]]:
    """The lines of an acknowledgement file; a last one without its end was not yet said."""
    text = path.read_text() if path.exists() else ""
    pairs = [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]
    return [(survey, int(alert_id)) for survey, alert_id in dict.fromkeys(map(tuple, pairs))]


def open_if_made(url: str) -> Store | None:
    """None when the process was killed before it had made the file or its tables."""
    try:
        return open_store(url)
    except (InputError, StoreError) as problem:
        if "tapetum store init" not in str(problem):
            raise
        return None


def assert_nothing_lost(
    url: str, acknowledged: Path, scored: Path | None = None, bodies: dict[int, bytes] | None = None
) -> None:
    """Every acknowledged alert has its bytes, those of a scoring run their score; the store keeps all its promises."""
    with_score = [] if scored is None else acknowledged_alerts(scored)
    keys = list(dict.fromkeys(acknowledged_alerts(acknowledged) + with_score))
    store = open_if_made(url)
    if store is None:
        assert keys == []
        return
    with store:
        for (_, alert_id), packet in zip(keys, store.packets(keys), strict=True):
            assert bodies is None or crc32(packet.body) == crc32(bodies[alert_id])
        there = {(entry.survey, entry.alert_id): entry.score for entry in store.ranked("realbogus")}
        assert all(there.get(key) is not None for key in with_score)
        report = check(store)
        assert report.problems == []


@pytest.fixture(scope="module")
def night(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("night") / "night.avro"
    make_night(path, N_ALERTS)
    return path


def test_sigkill_at_any_moment_loses_nothing(night, tmp_path):
    server = Server(night, tmp_path)
    try:
        assert server.run(60, scored=True)["status"] == 0
        whole = {}  # the first one warmed up
        for scored in (False, True):
            server.fresh()
            whole[scored] = server.run(60, scored=scored)["seconds"]
        with open_store(server.url) as store:
            undisturbed = digest(store)
            stored = store.info()["alerts"]
            keys = acknowledged_alerts(server.acknowledged[True])
            bodies = {key[1]: packet.body for key, packet in zip(keys, store.packets(keys), strict=True)}
        assert stored == len(bodies) == N_ALERTS - 1
        kill_often(server, whole, bodies)
        assert server.run(60, scored=True)["status"] == 0
        assert_nothing_lost(server.url, server.acknowledged[False], server.acknowledged[True], bodies)
        assert len(acknowledged_alerts(server.acknowledged[True])) == stored
        with open_store(server.url) as store:
            assert digest(store) == undisturbed
    finally:
        server.close()


def kill_often(server: Server, whole: dict[bool, float], bodies: dict[int, bytes]) -> None:
    """KILLS kills, spread over the time that an ingest takes; every other one goes on where a kill had left it.

    Two in three ingests score, in any order: scores of new alerts and of those that were stored without.
    """
    chance, killed, tries = random.Random(20260), 0, 0
    moments: list[float] = []
    while killed < KILLS:
        tries += 1
        assert tries < 3 * KILLS + 20, f"only {killed} of {tries} ingests could be killed"
        if not moments:  # one from each tenth of the time, in any order
            moments = [(tenth + chance.random()) / 10 for tenth in range(10)]
            chance.shuffle(moments)
        if tries % 2 == 0:
            server.fresh()
        scored = chance.random() < 2 / 3
        killed += server.run(moments.pop() * whole[scored], scored=scored)["status"] != 0
        assert_nothing_lost(server.url, server.acknowledged[False], server.acknowledged[True], bodies)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("number", range(2))
def test_the_command_and_its_workers_die_together(night, tmp_path, number):
    url, told = f"sqlite:///{tmp_path / 'night.db'}", tmp_path / "acknowledged"
    small = {"TAPETUM_ALERTS__BATCH": "4", "TAPETUM_STORE__COMMIT_ALERTS": "8", "OMP_NUM_THREADS": "1"}
    command = [*CLI, "alerts", "ingest", str(night), "--store", url, "--no-score", "--jobs", "2"]
    with subprocess.Popen(
        [*command, "--acknowledge", str(told)], env={**os.environ, **small}, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not (told.exists() and told.stat().st_size):
            time.sleep(0.005)
        workers = children_of(process.pid)
        time.sleep(random.Random(number).uniform(0, 0.1))
        process.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "workers outlive the command"
        time.sleep(0.02)
    assert acknowledged_alerts(told)
    assert_nothing_lost(url, told)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_worker_that_dies_ends_the_command_with_a_message(night, tmp_path):
    url, told = f"sqlite:///{tmp_path / 'night.db'}", tmp_path / "acknowledged"
    small = {"TAPETUM_ALERTS__BATCH": "4", "TAPETUM_STORE__COMMIT_ALERTS": "8", "OMP_NUM_THREADS": "1"}
    command = [*CLI, "alerts", "ingest", str(night), "--store", url, "--no-score", "--jobs", "2"]
    with subprocess.Popen(
        [*command, "--acknowledge", str(told)], env={**os.environ, **small}, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not (told.exists() and told.stat().st_size):
            time.sleep(0.005)
        os.kill(children_of(process.pid)[0], signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a worker process ended by signal 9" in said
    assert "Traceback" not in said
    assert_nothing_lost(url, told)
