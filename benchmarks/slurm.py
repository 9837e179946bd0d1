"""The runner on a real SLURM: a controller and one node are started in a temporary folder, used, and ended.

SLURM itself comes from the distribution; on Debian: ``apt-get install slurmctld slurmd slurm-client munge``. Started as
root, because SLURM and munge insist on users of their own.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import machine
from tapetum.core.settings import ClusterSettings
from tapetum.pipelines.runner import run_over

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NEEDED = ("slurmctld", "slurmd", "sbatch", "scancel", "sinfo", "munged", "mungekey")
PARTITION = "main"
START_SECONDS = 30
CONFIGURATION = """\
ClusterName=tapetum
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmctldPort={port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory_mib} State=UNKNOWN
PartitionName={partition} Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Which of SLURM's programs are not here."""
    return [name for name in NEEDED if shutil.which(name) is None]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def started(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs while the block runs."""
    with log.open("ab") as handle:
        process = subprocess.Popen(command, stdout=handle, stderr=handle, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start_munge(stack: ExitStack, folder: Path) -> None:
    """munge, which vouches for users; its folder must be its own."""
    home = folder / "munge"
    home.mkdir(mode=0o755)
    user = pwd.getpwnam("munge") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    subprocess.run(["mungekey", "--create", f"--keyfile={home}/key"], check=True)
    for path in (home, home / "key"):
        os.chown(path, user.pw_uid, user.pw_gid)
    (home / "key").chmod(0o600)
    files = [f"--{kind}-file={home}/{kind}" for kind in ("key", "log", "pid", "seed")]
    command = ["munged", "--foreground", f"--socket={home}/socket", *files]
    options = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    stack.enter_context(started(command, folder / "munged.log", **options))
    wait_for(lambda: (home / "socket").exists(), folder / "munged.log")


def wait_for(ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit(f"{log.name}: {log.read_text()[-2000:]}")
        time.sleep(0.1)


@contextmanager
def one_node(folder: Path) -> Iterator[None]:
    """SLURM with one node and one partition, this process's environment pointing at it."""
    host = socket.gethostname().partition(".")[0]
    memory_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 * 9 // 10
    text = CONFIGURATION.format(
        host=host,
        folder=folder,
        port=free_port(),
        node_port=free_port(),
        cores=os.cpu_count(),
        memory_mib=memory_mib,
        partition=PARTITION,
    )
    (folder / "slurm.conf").write_text(text)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        with ExitStack() as stack:
            start_munge(stack, folder)
            stack.enter_context(started(["slurmctld", "-D"], folder / "slurmctld.out"))
            stack.enter_context(started(["slurmd", "-D", "-N", host], folder / "slurmd.out"))
            wait_for(node_is_idle, folder / "slurmctld.log")
            yield
    finally:
        del os.environ["SLURM_CONF"]
        if before is not None:
            os.environ["SLURM_CONF"] = before


def node_is_idle() -> bool:
    said = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True, check=False)
    return said.stdout.strip() == "idle"


def measure(folder: Path, n_items: int) -> dict[str, Any]:
    """Seconds until the first result and until the last, of two workers."""
    settings = ClusterSettings(queue=PARTITION, memory="1GiB", interface="lo", logs=str(folder))
    items = range(1, n_items + 1)
    start = time.perf_counter()
    results = run_over(items, partial(partial, divmod, 1000), 2, scheduler="slurm", cluster=settings)
    found = [next(results)]
    first = time.perf_counter() - start
    found += results
    whole = time.perf_counter() - start
    if found != [(i, divmod(1000, i)) for i in items]:
        raise RuntimeError("SLURM gave other results than this process")
    return {"first_result_s": first, "items_per_s": n_items / (whole - first), "whole_s": whole}


def run(n_items: int = 2000, *, with_tests: bool = False) -> dict[str, Any] | None:
    """Print the figures; where SLURM is not installed, say so."""
    absent = missing()
    if absent:
        print(f"slurm: not measured, there is no {absent[0]}; on Debian: slurmctld slurmd slurm-client munge")
        return None
    with tempfile.TemporaryDirectory(prefix="tapetum-slurm-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with one_node(folder):
            if with_tests:
                run_tests()
            figures = measure(folder, n_items)
    print(
        f"slurm: 2 workers, first result after {figures['first_result_s']:.1f} s, then "
        f"{figures['items_per_s']:.0f} items/s of nearly no work; {n_items} results in order, equal to local ones",
        flush=True,
    )
    return figures


def run_tests() -> None:
    """Tests of the suite that wait for a SLURM like this: the runner, tables of jobs, features of light curves."""
    root = Path(__file__).resolve().parents[1]
    names = ("scheduler", "slurm", "lightcurve_scale")
    tests = [str(root / "tests" / f"test_pipelines_{name}.py") for name in names]
    environment = {**os.environ, "TAPETUM_CLUSTER__INTERFACE": "lo"}
    command = [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", "-p", "no:xdist"]
    subprocess.run([*command, "-k", "real_slurm", *tests], check=True, cwd=root, env=environment)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--tests", action="store_true", help="Run the test that needs a SLURM as well.")
    arguments = parser.parse_args()
    print(machine(), flush=True)
    run(arguments.items, with_tests=arguments.tests)


if __name__ == "__main__":
    main()
