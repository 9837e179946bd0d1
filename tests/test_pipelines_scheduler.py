"""The runner on a cluster: a real Dask scheduler with worker processes on this machine, and jobs of SLURM."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tapetum.core.errors import FormatError, MissingExtraError, NetworkError, TapetumError, UsageError
from tapetum.core.settings import ClusterSettings
from tapetum.pipelines.runner import ITEMS_PER_WORKER, ONE_THREAD, run_over

HELPERS = """
import os, signal, time
from pathlib import Path
from tapetum.core.errors import FormatError, MissingExtraError

setups = 0

def doubler():
    global setups
    setups += 1
    return double

def double(x):
    if x == "bad":
        raise FormatError("bad item")
    if x == "extra":
        raise MissingExtraError("train", "this")
    if x == "bug":
        raise ZeroDivisionError("a defect")
    if x == "die":
        os._exit(7)
    if x == "who":
        return os.getpid(), setups, dict(os.environ)
    if isinstance(x, Path):
        return once(x)
    if isinstance(x, float):
        time.sleep(x)
    return x * 2

def once(mark):
    if not mark.exists():
        mark.touch()
        if mark.name == "job":
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return str(mark)

def broken():
    raise FormatError("no such model")
"""
HIDE_TAPETUM = """
import importlib.metadata as m
known = m.version
def version(name):
    if name == "tapetum":
        raise m.PackageNotFoundError(name)
    return known(name)
m.version = version
"""
N_WORKERS = 2


@pytest.fixture(scope="module")
def helpers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("helpers")
    (folder / "cluster_helpers.py").write_text(HELPERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "DASK_CONFIG", str(folder / "dask")
        )  # Dask copies its settings into the home folder otherwise
        pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
        pytest.importorskip("dask_jobqueue", reason="the extra `cluster` is not installed")
        patch.setenv("PYTHONPATH", str(folder))
        patch.syspath_prepend(str(folder))
        import cluster_helpers

        yield cluster_helpers
        del sys.modules["cluster_helpers"]


@pytest.fixture(scope="module")
def scheduler(helpers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Dask scheduler with two worker processes."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=N_WORKERS,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        local_directory=str(tmp_path_factory.mktemp("dask")),
        scheduler_kwargs={"allowed_failures": 1},
        silence_logs="CRITICAL",
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "scheduler" in request.fixturenames:
        from tapetum.pipelines import _cluster

        monkeypatch.setattr(_cluster, "LOOK_SECONDS", 0.2)


def test_results_come_in_order_and_equal_the_local_ones(helpers: ModuleType, scheduler: str) -> None:
    items = [0.1, *range(30), 0.05, "a"]  # the first takes longest
    far = list(run_over(items, helpers.doubler, scheduler=scheduler))
    assert far == list(run_over(items, helpers.doubler))
    assert list(run_over([], helpers.doubler, scheduler=scheduler)) == []


def test_items_are_taken_only_as_needed(helpers: ModuleType, scheduler: str) -> None:
    taken = []

    def source() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    results = run_over(source(), helpers.doubler, scheduler=scheduler)
    assert next(results) == (0, 0)
    assert len(taken) <= N_WORKERS * ITEMS_PER_WORKER
    results.close()


def test_a_worker_sets_itself_up_once_and_computes_with_one_thread(
    helpers: ModuleType, scheduler: str
) -> None:
    setup = partial(helpers.doubler)
    said = [result for _, result in run_over(["who", 0.1] * 8, setup, scheduler=scheduler)]
    workers = [entry for entry in said if isinstance(entry, tuple)]
    by_process: dict[int, set[int]] = {}
    for process, setups, environment in workers:
        by_process.setdefault(process, set()).add(setups)
        assert environment.items() >= ONE_THREAD.items()
    assert os.getpid() not in by_process
    assert 1 <= len(by_process) <= N_WORKERS
    assert all(len(counts) == 1 for counts in by_process.values())


def test_errors_come_back_as_they_are(helpers: ModuleType, scheduler: str) -> None:
    with pytest.raises(FormatError, match="bad item"):
        list(run_over([1, "bad", 2], helpers.doubler, scheduler=scheduler))
    with pytest.raises(FormatError, match="no such model"):
        list(run_over(range(20), helpers.broken, scheduler=scheduler))
    with pytest.raises(MissingExtraError, match="extra `train`"):
        list(run_over(["extra"], helpers.doubler, scheduler=scheduler))
    with pytest.raises(ZeroDivisionError, match="a defect"):
        list(run_over(["bug"], helpers.doubler, scheduler=scheduler))


def test_a_killed_worker_costs_no_result(helpers: ModuleType, scheduler: str, tmp_path: Path) -> None:
    mark = tmp_path / "killed"
    items: list[Any] = [1, mark, *range(10)]
    assert list(run_over(items, helpers.doubler, scheduler=scheduler)) == [
        (1, 2),
        (mark, str(mark)),
        *((i, 2 * i) for i in range(10)),
    ]
    assert mark.exists()


def test_an_item_that_kills_every_worker_is_an_error(helpers: ModuleType, scheduler: str) -> None:
    with pytest.raises(
        TapetumError, match=r"lost with every worker that took it.*run the same command again"
    ):
        list(run_over([1, "die", 2], helpers.doubler, scheduler=scheduler))
    assert list(run_over([4], helpers.doubler, scheduler=scheduler)) == [(4, 8)]  # others took their place


def test_workers_of_another_version_are_refused(
    helpers: ModuleType, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tapetum.pipelines import _cluster

    monkeypatch.setattr(_cluster, "__version__", "0.0.0")
    with pytest.raises(TapetumError, match=r"the run is of 0.0.0; install the same version there"):
        list(run_over([1], helpers.doubler, scheduler=scheduler))


def test_workers_without_tapetum_are_named(
    helpers: ModuleType, lonely: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    with (
        _worker(lonely[0], tmp_path, HIDE_TAPETUM),
        pytest.raises(TapetumError, match=r"a worker has no tapetum; install Tapetum"),
    ):
        list(run_over([1], helpers.doubler, scheduler=lonely[0]))


@contextmanager
def _worker(address: str, folder: Path, before: str = "") -> Iterator[None]:
    code = f"{before}from distributed.cli.dask_worker import main; main()"
    command = [sys.executable, "-c", code, address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    command += ["--local-directory", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def lonely(tmp_path: Path, helpers: ModuleType) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A scheduler without workers in a process of its own: its address and the process."""
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    command += ["--no-dashboard", "--scheduler-file", "where.json"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield _address_in(tmp_path / "where.json"), process
    finally:
        process.kill()
        process.wait()


def _address_in(file: Path) -> str:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if file.exists() and file.read_text().rstrip().endswith("}"):
            return str(json.loads(file.read_text())["address"])
        time.sleep(0.05)
    raise AssertionError("the scheduler did not start")


def test_a_scheduler_without_workers_is_an_error(
    helpers: ModuleType, lonely: tuple[str, subprocess.Popen[bytes]]
) -> None:
    settings = ClusterSettings(wait_s=0.3)
    with pytest.raises(NetworkError, match=r"no worker for 0.3 s.*dask worker tcp://"):
        list(run_over([1], helpers.doubler, scheduler=lonely[0], cluster=settings))


def test_a_lost_scheduler_is_an_error(
    helpers: ModuleType, lonely: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    import dask

    address, process = lonely
    with _worker(address, tmp_path), dask.config.set({"distributed.comm.timeouts.connect": "0.5s"}):
        results = run_over([1, 60.0], helpers.doubler, scheduler=address)
        assert next(results) == (1, 2)
        process.kill()
        with pytest.raises(NetworkError, match="the scheduler was lost; what is finished is safe"):
            next(results)


def test_an_address_where_nobody_listens_is_named_within_seconds(helpers: ModuleType) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{bound.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(NetworkError, match=f"{address}: no scheduler can be reached"):
            list(run_over([1], helpers.doubler, scheduler=address))
        assert time.monotonic() - start < 4  # connection refused, not waited for


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"\0"])
def test_an_address_where_something_else_listens_is_named(
    helpers: ModuleType, monkeypatch: pytest.MonkeyPatch, greeting: bytes
) -> None:
    from tapetum.pipelines import _cluster

    monkeypatch.setattr(_cluster, "REACH_SECONDS", 0.2)

    def greet() -> None:
        visitor, _ = server.accept()
        with visitor, suppress(ConnectionError):
            visitor.sendall(greeting)
            visitor.recv(1)  # nothing comes: this waits until the visitor leaves

    with socket.create_server(("127.0.0.1", 0)) as server:
        greeter = threading.Thread(target=greet)
        greeter.start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(NetworkError, match=f"{address}: what listens there is no Dask scheduler"):
            list(run_over([1], helpers.doubler, scheduler=address))
        greeter.join()


@pytest.mark.parametrize(
    "name", ["dask", "tcp://", "tcp://host", "tcp://host:port", "http://host:80", "tls://h:1"]
)
def test_other_schedulers_are_a_usage_error(helpers: ModuleType, name: str) -> None:
    with pytest.raises(UsageError, match=r"it is local, tcp://host:port or slurm"):
        list(run_over([1], helpers.doubler, scheduler=name))


def test_without_the_extra_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tapetum.pipelines._cluster", raising=False)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tapetum\[cluster\]'"):
        list(run_over([1], partial(partial, pow, 2), scheduler="slurm"))


# --- SLURM ---

# as SLURM's commands do, with a process in place of a job
SBATCH = """#!/bin/bash
[ "$1" = --test-only ] && { cat > "$JOBS/judged.sh"; exit 0; }
cp "$1" "$JOBS/submitted.sh"
setsid bash "$JOBS/submitted.sh" > "$JOBS/job.out" 2>&1 &
echo $! >> "$JOBS/started"
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/bash
kill -- -"$1" && echo "$1" >> "$JOBS/cancelled"
"""
REFUSAL = """#!/bin/bash
echo "allocation failure: Invalid partition name specified" >&2
exit 1
"""


def _commands(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    for name, script in scripts.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("JOBS", str(folder))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_slurm_jobs_are_submitted_used_replaced_and_ended(
    helpers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask

    from tapetum.pipelines import _cluster

    monkeypatch.setattr(_cluster, "LOOK_SECONDS", 0.2)
    _commands(tmp_path, monkeypatch, sbatch=SBATCH, scancel=SCANCEL)
    monkeypatch.chdir(tmp_path)
    settings = ClusterSettings(
        queue="main", account="night", interface="lo", memory="1GiB", directives=["--exclusive"], wait_s=30
    )
    worker, job = tmp_path / "worker", tmp_path / "job"  # what is killed
    items: list[Any] = [*range(10), worker, job, "who"]
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "0.1s"}):
        results = dict(run_over(items, helpers.doubler, 1, scheduler="slurm", cluster=settings))
    assert [results[i] for i in range(10)] == [2 * i for i in range(10)]
    assert (results[worker], results[job]) == (str(worker), str(job))
    assert results["who"][2].items() >= ONE_THREAD.items()
    script = (tmp_path / "submitted.sh").read_text()
    for line in ("-p main", "-A night", "-t 01:00:00", "--mem=1G", "--cpus-per-task=1", "--exclusive"):
        assert f"#SBATCH {line}\n" in script
    assert "export OMP_NUM_THREADS=1\n" in script
    started = (tmp_path / "started").read_text().split()
    assert len(started) >= 2
    assert started[-1] in (tmp_path / "cancelled").read_text().split()
    deadline = time.monotonic() + 10
    while any(_alive(job) for job in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(job) for job in started)


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_slurm_says_why_it_refuses(
    helpers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _commands(tmp_path, monkeypatch, sbatch=REFUSAL)
    settings = ClusterSettings(interface="lo")
    with pytest.raises(TapetumError, match=r"SLURM refuses the job: .*Invalid partition name.*\[cluster\]"):
        list(run_over([1], helpers.doubler, scheduler="slurm", cluster=settings))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="no sbatch on the PATH"):
        list(run_over([1], helpers.doubler, scheduler="slurm", cluster=settings))


def test_a_real_slurm_gives_the_same_results(
    helpers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against SLURM itself where one answers; `python -m benchmarks.slurm` starts one for this."""
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        pytest.skip("no SLURM here: there is no sbatch on the PATH")
    found = subprocess.run(["sinfo", "-h"], capture_output=True, text=True, check=False, timeout=60)
    if found.returncode or not found.stdout.strip():
        pytest.skip(f"no SLURM here: {(found.stderr or 'sinfo names no partition').splitlines()[0]}")
    monkeypatch.chdir(tmp_path)
    settings = ClusterSettings(memory="1GiB", interface=os.environ.get("TAPETUM_CLUSTER__INTERFACE"))
    items = list(range(40))
    assert list(run_over(items, helpers.doubler, 2, scheduler="slurm", cluster=settings)) == [
        (i, 2 * i) for i in items
    ]
