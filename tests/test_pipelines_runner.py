"""The runner: order, bounds, errors and death, with and without workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tapetum.core.errors import FormatError, TapetumError
from tapetum.pipelines.runner import ITEMS_PER_WORKER, ONE_THREAD, run_over

# workers import what they run by name, so these tests use functions of the standard library and of small
# modules on the path
HELPERS = """
import os, time
from tapetum.core.errors import FormatError

def doubler():
    return double

def double(x):
    if x == "bad":
        raise FormatError("bad item")
    if x == "die":
        os._exit(7)
    if x == "who":
        return dict(os.environ)
    if x == "slow":
        time.sleep(60)
    return x * 2

def broken():
    raise FormatError("no such model")
"""


@pytest.fixture
def helpers(tmp_path, monkeypatch):
    (tmp_path / "runner_helpers.py").write_text(HELPERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sys.modules.pop("runner_helpers", None)
    import runner_helpers

    return runner_helpers


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_item_once_and_in_order(helpers, jobs):
    assert list(run_over(range(50), helpers.doubler, jobs)) == [(i, 2 * i) for i in range(50)]
    assert list(run_over([], helpers.doubler, jobs)) == []


def test_large_items_and_results_do_not_block_each_other(helpers):
    big = b"x" * 4_000_000
    assert [len(result) for _, result in run_over([big] * 12, helpers.doubler, 2)] == [8_000_000] * 12


def test_items_are_taken_only_as_needed(helpers):
    taken = []

    def source():
        for i in range(100):
            taken.append(i)
            yield i

    results = run_over(source(), helpers.doubler, 2)
    next(results)
    assert len(taken) <= 2 * ITEMS_PER_WORKER + 2
    results.close()


@pytest.mark.parametrize("jobs", [1, 2])
def test_errors_come_back_as_they_are(helpers, jobs):
    with pytest.raises(FormatError, match="bad item"):
        list(run_over([1, "bad", 2], helpers.doubler, jobs))
    with pytest.raises(FormatError, match="no such model"):
        list(run_over(range(20), helpers.broken, jobs))


def test_a_worker_computes_with_one_thread(helpers):
    [(_, environment)] = run_over(["who"], helpers.doubler, apart=True)
    assert environment.items() >= ONE_THREAD.items()


def test_a_dying_worker_is_an_error_with_its_status(helpers):
    with pytest.raises(TapetumError, match="ended with status 7"):
        list(run_over([1, "die", 2, 3], helpers.doubler, 2))


def test_workers_leave_when_the_parent_is_killed(helpers, tmp_path):
    script = (
        "import runner_helpers, os\n"
        "from tapetum.pipelines import runner\n"
        "results = runner.run_over(['a'] * 5 + ['slow'], runner_helpers.doubler, 2)\n"
        "next(results); print('ready', flush=True)\n"
        "list(results)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout as out:
        assert out.readline() == "ready\n"
        children = _children(parent.pid)
        assert len(children) == 2
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in children)  # not even the one in the middle of a minute's work


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_setup_may_be_a_partial():
    assert list(run_over([3], partial(partial, pow, 2), 2)) == [(3, 8)]
