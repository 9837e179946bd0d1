"""Job tables, one row by its number, and the submitter: with a scheduler in memory, fake commands, and a real SLURM."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tapetum.core.errors import FormatError, InputError, NetworkError, TapetumError, UsageError
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.formats.opening import open_curves, write_curves
from tapetum.lightcurves.remote import quadrants_of
from tapetum.pipelines.slurm_client import QueuedJob, Slurm
from tapetum.pipelines.slurm_jobs import (
    Ending,
    Plan,
    Results,
    commands_of,
    load_plan,
    prepare,
    run_all,
    run_process,
    run_row,
    split_steps,
)
from tapetum.pipelines.slurm_scripts import JobOptions, job_script, megabytes, submit_script
from tapetum.pipelines.slurm_submit import (
    JOURNAL,
    PATIENCE,
    REFUSALS,
    Journal,
    Rules,
    State,
    cancel_all,
    overview,
    row_states,
    submit_all,
    summary,
)
from tapetum.pipelines.slurm_tables import (
    command_rows,
    file_rows,
    filled,
    numbered,
    product_rows,
    quadrant_rows,
    rows_from_csv,
    rows_to_csv,
    table_rows,
)

WRITE = ("alerts", "score", "{name}", "-o", "out/{name}.csv")  # any verb: these tests run it themselves
RULES = Rules(max_instances=3, wait_s=300, interval_s=10, attempts=2, stop_after=4, grace_s=60)


# ---- tables --------------------------------------------------------------------------------------------------------


def test_quadrants_of_fields_are_numbered_in_order() -> None:
    rows = quadrant_rows([*quadrants_of(301, (1, 2), (1, 2)), *quadrants_of(302, (16, 16), (4, 4))])
    assert [row.index for row in rows] == [0, 1, 2, 3, 4]
    assert rows[1].values == {"field": "301", "ccd": "1", "quad": "2"}
    assert rows[4].values == {"field": "302", "ccd": "16", "quad": "4"}


def test_files_folders_and_partitions_are_jobs_of_their_own(tmp_path: Path) -> None:
    catalogue = tmp_path / "hats"
    for pixel in (3, 44):
        place = catalogue / "dataset" / "Norder=1" / "Dir=0"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"Npix={pixel}.parquet").touch()
    (catalogue / "hats.properties").touch()
    night = tmp_path / "night"
    night.mkdir()
    for name in ("b.parquet", "a.csv.gz", "notes.txt"):
        (night / name).touch()
    rows = file_rows([catalogue, night, night / "notes.txt"])
    assert [row.values["name"] for row in rows] == ["Npix=3", "Npix=44", "a", "b", "notes.txt"]
    assert all(Path(row.values["part"]).is_absolute() and Path(row.values["part"]).exists() for row in rows)
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.parquet").touch()
    assert [row.values["name"] for row in file_rows([night, other])] == ["0_a", "1_b", "2_b"]
    with pytest.raises(InputError, match="named twice"):
        file_rows([night, night / "b.parquet"])
    with pytest.raises(InputError, match="no such file or folder"):
        file_rows([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no light curves in this folder"):
        file_rows([tmp_path / "empty"])


def test_margins_of_a_collection_are_no_jobs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"lc_id": ["a", "b", "c"], "ra": [10.0, 100.0, 200.0], "dec": [5.0, 5.0, 5.0]})
    times = [np.arange(60.0)] * 3
    curves = LightCurves.of_lists(times, [rng.normal(18, 0.1, 60) for _ in times], times, table)
    write_curves(curves, tmp_path / "main")
    write_curves(curves.take(np.array([0])), tmp_path / "main_10arcs")
    (tmp_path / "collection.properties").write_text("hats_primary_table_url=main\nall_margins=main_10arcs\n")
    parts = [Path(row.values["part"]) for row in file_rows([tmp_path])]
    assert len(parts) == 3
    assert all(part.is_relative_to(tmp_path / "main") for part in parts)
    assert [lc_id for part in parts for lc_id in open_curves(part).read().ids] == open_curves(
        tmp_path
    ).read().ids


def test_the_described_table_and_tables_with_counts_are_read(tmp_path: Path) -> None:
    (tmp_path / "slurm.dat").write_text("5 301 1 2\n7 302 16 4\n")
    rows = table_rows(tmp_path / "slurm.dat")
    assert [(row.index, row.values) for row in rows] == [
        (5, {"field": "301", "ccd": "1", "quad": "2"}),
        (7, {"field": "302", "ccd": "16", "quad": "4"}),
    ]
    assert [row.index for row in table_rows(tmp_path / "slurm.dat", fields=[302])] == [7]
    (tmp_path / "counts.csv").write_text("field,ccd,quadrant,n_curves\n301,1,1,0\n301,1,2,812\n302,1,1,5\n")
    rows = table_rows(tmp_path / "counts.csv")
    assert [(row.index, row.values["quad"], row.values["n_curves"]) for row in rows] == [
        (0, "2", "812"),
        (1, "1", "5"),
    ]
    (tmp_path / "slurm.dat").write_text("5 301 1 2\n5 302 16 4\n")
    with pytest.raises(FormatError, match="job 5: each job has a number of its own"):
        table_rows(tmp_path / "slurm.dat")
    (tmp_path / "slurm.dat").write_text("5 301 1\n")
    with pytest.raises(FormatError, match="4 columns belong here"):
        table_rows(tmp_path / "slurm.dat")
    (tmp_path / "empty.csv").write_text("field,ccd,quadrant,n_curves\n301,1,1,0\n")
    with pytest.raises(InputError, match="no job in this table"):
        table_rows(tmp_path / "empty.csv")
    (tmp_path / "classes.csv").write_text("tag\nvnv\n")
    with pytest.raises(InputError, match="no column field"):
        table_rows(tmp_path / "classes.csv", fields=[1])


def test_combinations_and_lines_of_a_script_are_jobs(tmp_path: Path) -> None:
    rows = product_rows({"tag": ["vnv", "pnp"], "algorithm": ["dnn", "xgb"]})
    assert [tuple(row.values.values()) for row in rows] == [
        ("vnv", "dnn"),
        ("vnv", "xgb"),
        ("pnp", "dnn"),
        ("pnp", "xgb"),
    ]
    script = tmp_path / "train.sh"
    script.write_text(
        "#!/bin/bash\n# all\ntapetum models train a \\\n  -o 'my a'\n\nmodels train b -o b # last\n"
    )
    plan = prepare(tmp_path / "jobs", command_rows(script), (), JobOptions(), workdir=tmp_path)
    assert [plan.steps(row) for row in plan.rows] == [
        [["models", "train", "a", "-o", "my a"]],
        [["models", "train", "b", "-o", "b"]],
    ]
    assert [plan.outputs(row) for row in plan.rows] == [[tmp_path / "my a"], [tmp_path / "b"]]
    script.write_text("models train 'a\n")
    with pytest.raises(FormatError, match="No closing quotation"):
        command_rows(script)


def test_tables_survive_commas_quotes_and_empty_values(tmp_path: Path) -> None:
    rows = numbered([{"part": 'a "b", c', "name": ""}, {"part": "d e", "name": "ü"}])
    (tmp_path / "jobs.csv").write_text(rows_to_csv(rows), encoding="utf-8")
    assert rows_from_csv(tmp_path / "jobs.csv") == rows
    (tmp_path / "jobs.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FormatError, match="not a job table"):
        rows_from_csv(tmp_path / "jobs.csv")


def test_values_are_put_into_commands() -> None:
    row = quadrant_rows(quadrants_of(301, (2, 2), (3, 3)))[0]
    words = ["f_{field}/ccd_{ccd:02d}_{job:03d}.csv", '{"x": 1}', "{ccd:2}"]
    assert filled(words, row) == ["f_301/ccd_02_000.csv", '{"x": 1}', "02"]
    with pytest.raises(UsageError, match="no column ra; it has job field ccd quad"):
        filled(["{ra}"], row)
    with pytest.raises(UsageError, match="is no number"):
        filled(["{tag:02d}"], product_rows({"tag": ["vnv"]})[0])


def test_commands_are_the_given_or_the_usual_ones(tmp_path: Path) -> None:
    quadrants = quadrant_rows(quadrants_of(301, (2, 2), (3, 3)))
    (tmp_path / "a.parquet").touch()
    files = file_rows([tmp_path / "a.parquet"])
    assert split_steps(["tapetum", "a", "b", "then", "c"]) == (("a", "b"), ("c",))
    with pytest.raises(UsageError, match="no command for the jobs"):
        split_steps(["a", "then"])
    (features,) = commands_of(["--set", "scope"], files, tmp_path)
    assert filled(features, files[0]) == [
        "lightcurves", "features", str(tmp_path / "a.parquet"), "--set", "scope", "-o",
        str(tmp_path / "features" / "a.parquet"),
    ]  # fmt: skip
    steps = [filled(step, quadrants[0]) for step in commands_of([], quadrants, tmp_path)]
    assert [step[1] for step in steps] == ["ids", "fetch", "features"]
    assert steps[0][-1] == steps[1][2]
    assert steps[1][-1] == steps[2][2]
    assert steps[2][-1] == str(tmp_path / "features" / "field_301" / "ccd_02_quad_3.parquet")
    assert commands_of(["models", "train"], files, tmp_path) == (("models", "train"),)
    with pytest.raises(
        UsageError, match="give the command of the jobs after --; the table has the columns tag"
    ):
        commands_of([], product_rows({"tag": ["vnv"]}), tmp_path)


# ---- scripts -------------------------------------------------------------------------------------------------------


def test_the_scripts_say_all_that_was_asked_for(tmp_path: Path) -> None:
    options = JobOptions(
        name="ztf_fg", cluster="expanse", partition="gpu-shared", submit_partition="shared", nodes=2, cpus=8, gpus=1,
        memory="180", submit_memory="16GiB", time="48:00:00", mail_user="a@b.org", account="umn131",
        python_env="scope-env", directives=("--constraint=lustre",), prologue=("module load gpu",),
    )  # fmt: skip
    job = job_script(options, "ztf_fg.abc", tmp_path / "my jobs", tmp_path)
    for line in (
        "--job-name=ztf_fg.abc", "--clusters=expanse", "--partition=gpu-shared", "--nodes=2", "--cpus-per-task=8",
        "--gpus=1", f"--mem={180 * 1024}M", "--time=48:00:00", "--mail-user=a@b.org", "--account=umn131",
        "--constraint=lustre", f"--chdir={tmp_path}", f'--output="{tmp_path}/my jobs/logs/%x.%j.out"',
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in job
    assert job.index("module load gpu") < job.index("conda activate scope-env") < job.index("exec python -m")
    submit = submit_script(options, "ztf_fg.abc", tmp_path, tmp_path, ["--max-instances", "9"])
    assert "#SBATCH --partition=shared\n" in submit
    assert f"#SBATCH --mem={16 * 1024}M\n" in submit
    assert "--gpus" not in submit
    assert f"\npython -m tapetum lightcurves slurm submit {tmp_path} --max-instances 9 &\n" in submit
    bare = job_script(JobOptions(memory=None, time=None), "t", tmp_path, tmp_path)
    assert not re.search(r"--(mem|time|gpus|partition|account|mail|clusters)", bare)
    assert f"exec {sys.executable} -m tapetum lightcurves slurm run" in bare
    with_venv = job_script(JobOptions(python_env=str(tmp_path / "env")), "t", tmp_path, tmp_path)
    assert f'export PATH={tmp_path}/env/bin:"$PATH"\n' in with_venv


def test_the_job_script_takes_its_row_from_argument_or_array(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/bash\necho "$@"\n')
    python.chmod(0o755)
    script = tmp_path / "job.sub"
    script.write_text(job_script(JobOptions(python_env=str(tmp_path)), "t", tmp_path / "a b", tmp_path))

    def said(*arguments: str, **environment: str) -> list[str]:
        command = ["bash", str(script), *arguments]
        environment = {**os.environ, **environment}
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout.split()

    assert said("17")[-2:] == ["--index", "17"]
    assert said(SLURM_ARRAY_TASK_ID="4")[-2:] == ["--index", "4"]


@pytest.mark.parametrize("young", [False, True])
def test_the_submitter_goes_on_in_another_job_when_its_time_is_over(tmp_path: Path, young: bool) -> None:
    for name, text in (
        ("python", 'trap "echo ended; exit 0" TERM; echo began; sleep 2 & wait; echo finished'),
        ("sbatch", 'echo sbatch "$@" "${SLURM_JOB_ID-none} ${SBATCH_PARTITION-none} ${SLURM_CONF-none}"'),
    ):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    script = submit_script(JobOptions(python_env=str(tmp_path)), "t", tmp_path / "a b", tmp_path, [])
    assert "#SBATCH --signal=B:USR1@300\n" in script
    file = tmp_path / "script"
    file.write_text(script if young else script.replace('"$SECONDS" -lt 60', '"$SECONDS" -lt 0'))
    about = {"SLURM_JOB_ID": "7", "SBATCH_PARTITION": "main", "SLURM_CONF": "conf"}
    process = subprocess.Popen(
        ["bash", str(file)], stdout=subprocess.PIPE, text=True, env={**os.environ, **about}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "began\n"
    process.send_signal(signal.SIGUSR1)
    rest = process.communicate(timeout=20)[0].splitlines()
    assert process.returncode == 0
    assert rest == (["finished"] if young else ["ended", f"sbatch {tmp_path}/a b/submit.sub none none conf"])


@pytest.mark.parametrize(
    ("text", "size"),
    [("16", 16384), ("4GiB", 4096), ("4GB", 4096), ("500M", 500), ("1.5G", 1536), ("0.5MB", 1)],
)
def test_memory_is_read(text: str, size: int) -> None:
    assert megabytes(text) == size


@pytest.mark.parametrize(
    "wrong",
    [{"name": "a b"}, {"time": "soon"}, {"memory": "much"}, {"memory": "0"}, {"nodes": 0}, {"account": "a\nb"},
     {"prologue": ("a\nb",)}],
)  # fmt: skip
def test_options_that_no_script_can_hold_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        JobOptions(**wrong)  # type: ignore[arg-type]


# ---- the folder and one row ----------------------------------------------------------------------------------------


def planned(
    folder: Path, n: int = 3, commands: Sequence[Sequence[str]] = (WRITE,), **options: object
) -> Plan:
    rows = product_rows({"name": [f"part{i}" for i in range(n)]})
    return prepare(folder / "jobs", rows, commands, JobOptions(**options), workdir=folder)  # type: ignore[arg-type]


@dataclass
class Works:
    """Runs commands: writes their output, unless told how they end."""

    codes: dict[str, list[int]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def __call__(self, words: Sequence[str], workdir: Path) -> Ending:
        name = words[2]
        self.calls.append(name)
        code = self.codes[name].pop(0) if self.codes.get(name) else 0
        if code not in (0, 5):
            return Ending(code, (f"error: {name}: it broke",))
        out = workdir / words[words.index("-o") + 1]
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(name)
        return Ending(code, (f"error: {name}: one was left out",) if code else ())


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    plan = planned(tmp_path, gpus=2, directives=("--x",), memory="3GiB")
    assert load_plan(tmp_path / "jobs") == plan
    with pytest.raises(InputError, match=r"no plan.json in it; write one with"):
        load_plan(tmp_path)
    (tmp_path / "jobs" / "plan.json").write_text('{"options": {}}')
    with pytest.raises(FormatError, match="not a plan of jobs"):
        load_plan(tmp_path / "jobs")


def test_a_row_is_run_by_its_number_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_JOB_NAME", "tapetum.x.1.1")
    plan, works = planned(tmp_path), Works()
    result, before = run_row(plan, 1, launch=works)
    assert (result.job, result.code, result.problem, result.slurm_id, before) == (1, 0, "", "77", False)
    assert (tmp_path / "out" / "part1.csv").read_text() == "part1"
    assert run_row(plan, 1, launch=works) == (result, True)
    assert works.calls == ["part1"]
    (tmp_path / "out" / "part1.csv").unlink()
    assert run_row(plan, 1, launch=works)[1] is False
    with pytest.raises(UsageError, match="has jobs 0 to 2"):
        run_row(plan, 3, launch=works)


def test_another_command_is_another_work(tmp_path: Path) -> None:
    works = Works()
    list(run_all(planned(tmp_path), launch=works))
    again = planned(tmp_path)
    list(run_all(again, launch=works))
    assert works.calls == ["part0", "part1", "part2"]
    other = planned(tmp_path, commands=[[*WRITE, "--overwrite"]])
    assert other.token == again.token
    list(run_all(other, launch=works))
    assert works.calls == ["part0", "part1", "part2"] * 2
    fresh = prepare(
        tmp_path / "jobs", other.rows, other.commands, JobOptions(), workdir=tmp_path, overwrite=True
    )
    assert fresh.token != other.token
    assert Results(fresh).refresh() == {}


def test_steps_run_in_order_until_one_fails(tmp_path: Path) -> None:
    steps = [["v", "w", "{name}a", "-o", "a/{name}"], ["v", "w", "{name}b", "-o", "b/{name}"]]
    plan = planned(tmp_path, commands=steps)
    works = Works({"part0a": [3], "part1a": [5], "part2b": [-9]})
    results = list(run_all(plan, launch=works))
    assert works.calls == ["part0a", "part1a", "part1b", "part2a", "part2b"]
    assert [result.code for result in results] == [3, 5, -9]
    assert results[0].problem == "part0a: it broke"
    assert results[1].problem == "part1a: one was left out"
    assert results[2].problem == "killed by signal 9 - part2b: it broke"
    assert [plan.finished(row, result) for row, result in zip(plan.rows, results, strict=True)] == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("code", "talk", "problem"),
    [
        (3, ("file.fits: truncated", "error: none of 1 parts could be used"),
         "file.fits: truncated; none of 1 parts could be used"),
        (1, ("    return 1 / 0", "ZeroDivisionError: division by zero", ""), "ZeroDivisionError: division by zero"),
        (1, (), "exit status 1"),
        (-9, (), "killed by signal 9"),
    ],
)  # fmt: skip
def test_the_reason_of_a_failure_is_kept(
    tmp_path: Path, code: int, talk: tuple[str, ...], problem: str
) -> None:
    plan = planned(tmp_path, 1)
    assert run_row(plan, 0, launch=lambda *_: Ending(code, talk))[0].problem == problem


def test_two_rows_never_write_the_same_output(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"would both write .*out.csv; put a column into its name"):
        planned(tmp_path, commands=[["a", "b", "--out=out.csv"]])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UsageError, match="holds something else"):
        prepare(tmp_path / "full", numbered([{"a": 1}]), [["b"]], JobOptions(), workdir=tmp_path)
    with pytest.raises(UsageError, match="no command for the jobs"):
        prepare(tmp_path / "jobs", numbered([{"a": 1}]), [], JobOptions(), workdir=tmp_path)


def test_a_command_is_run_and_its_words_are_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ending = run_process(["models", "show", "no-such-model"], tmp_path)
    assert ending.code == 1
    assert "no-such-model" in ending.talk[-1]
    assert "no-such-model" in capfd.readouterr().err
    assert run_process(["--version"], tmp_path) == Ending(0)


# ---- the submitter -------------------------------------------------------------------------------------------------


@dataclass
class Cluster:
    """A scheduler in memory with a clock: jobs run for a while and then do their row, or vanish."""

    plan: Plan
    works: Works = field(default_factory=Works)
    now: float = 1000.0
    job_s: float = 500.0
    jobs: dict[str, tuple[str, int, float]] = field(default_factory=dict)
    vanish: set[str] = field(default_factory=set)  # names of jobs that end without a word
    submitted: list[str] = field(default_factory=list)
    most: int = 0
    refusals: int = 0
    deaf: int = 0
    kill_at: int | None = None  # submission at which the submitter is killed, after sbatch took the job
    others: list[QueuedJob] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    def check(self, script: Path) -> None:
        assert script.is_file()

    def submit(self, script: Path, name: str, arguments: Sequence[str]) -> str:
        if self.refusals:
            self.refusals -= 1
            raise NetworkError("sbatch did not take it: QOSMaxSubmitJobPerUserLimit")
        slurm_id = str(100 + len(self.submitted))
        self.submitted.append(name)
        self.jobs[slurm_id] = name, int(arguments[0]), self.now + self.job_s
        self.most = max(self.most, len(self.jobs))
        if self.kill_at == len(self.submitted):
            self.kill_at = None
            raise KeyboardInterrupt
        return slurm_id

    def queue(self) -> list[QueuedJob]:
        if self.deaf:
            self.deaf -= 1
            raise NetworkError("squeue failed: Unable to contact slurm controller")
        return [QueuedJob(number, "RUNNING", name) for number, (name, *_) in self.jobs.items()] + self.others

    def cancel(self, slurm_ids: Sequence[str]) -> None:
        self.cancelled += slurm_ids

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for slurm_id, (name, row, end) in list(self.jobs.items()):
            if end <= self.now:
                del self.jobs[slurm_id]
                if name not in self.vanish:
                    with pytest.MonkeyPatch.context() as patch:
                        patch.setenv("SLURM_JOB_NAME", name)
                        patch.setenv("SLURM_JOB_ID", slurm_id)
                        run_row(self.plan, row, launch=self.works, clock=self.clock)

    def all(self, rules: Rules = RULES, **more: bool) -> list[str]:
        states = submit_all(self.plan, self, rules, clock=self.clock, sleep=self.sleep, **more)
        return [str(entry.state) for entry in states]


def test_every_row_is_done_with_never_too_many_jobs(tmp_path: Path) -> None:
    cluster = Cluster(planned(tmp_path, 8))
    assert cluster.all() == ["done"] * 8
    assert cluster.most == RULES.max_instances
    assert len(cluster.submitted) == len(set(cluster.submitted)) == 8
    assert cluster.all() == ["done"] * 8
    assert len(cluster.submitted) == 8  # nothing is left to do


def test_failed_rows_are_tried_again_but_not_for_ever(tmp_path: Path) -> None:
    plan = planned(tmp_path, 4)
    cluster = Cluster(plan, Works({"part0": [1], "part1": [1, -9, 1], "part2": [3]}))
    assert cluster.all() == ["done", "failed", "failed", "done"]
    assert cluster.works.calls.count("part0") == 2
    assert cluster.works.calls.count("part1") == 2  # as many as are allowed
    assert cluster.works.calls.count("part2") == 1  # a bad input stays one
    states, _ = overview(plan, cluster, RULES, now=cluster.now)
    assert [entry.n_failed for entry in states] == [1, 2, 1, 0]
    assert states[1].problem == "killed by signal 9 - part1: it broke"
    assert summary(states)["problems"] == {"killed by signal 9 - part1: it broke": 1, "part2: it broke": 1}
    assert cluster.all(retry_failed=True) == ["done"] * 4


def test_a_job_that_ends_without_a_word_is_lost_only_after_a_while(tmp_path: Path) -> None:
    plan = planned(tmp_path, 1)
    cluster = Cluster(plan, vanish={f"{plan.name}.0.1"}, job_s=200)
    once = replace(RULES, once=True)
    assert cluster.all(once) == ["running"]
    cluster.sleep(300)
    assert cluster.all(once) == ["submitted"]  # its result may still be on its way
    cluster.sleep(30)
    assert cluster.all(once) == ["submitted"]
    assert len(cluster.submitted) == 1
    cluster.sleep(40)
    assert cluster.all(once) == ["running"]
    assert cluster.submitted == [f"{plan.name}.0.1", f"{plan.name}.0.2"]
    cluster.sleep(300)
    assert cluster.all(once) == ["done"]


def test_a_lost_job_says_where_to_look(tmp_path: Path) -> None:
    plan = planned(tmp_path, 1)
    cluster = Cluster(plan, vanish={f"{plan.name}.0.{k}" for k in (1, 2)})
    assert cluster.all() == ["failed"]
    (state,), _ = overview(plan, cluster, RULES, now=cluster.now)
    assert state.problem == (
        f"SLURM job 101 ended without a word (time, memory or its node); see {plan.folder}/logs/{plan.name}.0.2.101.out"
    )


@pytest.mark.parametrize("killed_at", [1, 2, 5])
def test_a_killed_submitter_goes_on_without_doubling_a_job(tmp_path: Path, killed_at: int) -> None:
    """Killed in the worst place: SLURM has the job, and its number was not written down."""
    cluster = Cluster(planned(tmp_path, 6), kill_at=killed_at)
    with pytest.raises(KeyboardInterrupt):
        cluster.all()
    journal = cluster.plan.folder / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'\n{"name": "half a li')
    assert cluster.all() == ["done"] * 6
    assert len(cluster.submitted) == 6
    assert cluster.most <= RULES.max_instances


def test_an_intent_that_never_reached_slurm_is_no_attempt(tmp_path: Path) -> None:
    plan = planned(tmp_path, 1)
    cluster = Cluster(plan, refusals=2)
    assert cluster.all(replace(RULES, attempts=1)) == ["done"]
    assert cluster.submitted == [f"{plan.name}.0.3"]


def test_a_site_that_takes_no_job_is_an_error(tmp_path: Path) -> None:
    cluster = Cluster(planned(tmp_path, 2), refusals=100)
    with pytest.raises(NetworkError, match="QOSMaxSubmitJobPerUserLimit"):
        cluster.all()
    assert 100 - cluster.refusals == REFUSALS


def test_a_deaf_scheduler_is_waited_for_and_nothing_is_concluded(tmp_path: Path) -> None:
    cluster = Cluster(planned(tmp_path, 2))
    cluster.all(replace(RULES, once=True))
    cluster.deaf = 10
    assert cluster.all() == ["done"] * 2
    assert len(cluster.submitted) == 2
    cluster.deaf = PATIENCE
    with pytest.raises(NetworkError, match="Unable to contact"):
        cluster.all()
    cluster.deaf = 1
    with pytest.raises(NetworkError, match="Unable to contact"):
        cluster.all(replace(RULES, once=True))
    cluster.deaf = 1
    states, unknown = overview(cluster.plan, cluster, RULES, now=cluster.now)
    assert [entry.state for entry in states] == [State.DONE] * 2
    assert "Unable to contact" in unknown


def test_a_broken_site_does_not_eat_the_whole_table(tmp_path: Path) -> None:
    cluster = Cluster(planned(tmp_path, 50), Works({f"part{k}": [1, 1, 1] for k in range(50)}))
    with pytest.raises(TapetumError, match=r"[4-6] jobs in a row failed.*it broke.*--retry-failed"):
        cluster.all()
    assert len(cluster.submitted) <= 9
    cluster.works.codes = {}
    assert cluster.all(retry_failed=True) == ["done"] * 50


def test_a_mended_command_forgets_the_failures_of_the_old_one(tmp_path: Path) -> None:
    cluster = Cluster(planned(tmp_path, 2), Works({f"part{k}": [2] for k in range(2)}))
    assert cluster.all() == ["failed"] * 2
    cluster.plan = planned(tmp_path, 2, commands=[[*WRITE, "--mended"]])
    assert cluster.all() == ["done"] * 2


def test_what_is_deleted_is_made_again(tmp_path: Path) -> None:
    cluster = Cluster(planned(tmp_path, 3))
    rules = replace(RULES, attempts=1)
    cluster.all(rules)
    (tmp_path / "out" / "part1.csv").unlink()
    assert cluster.all(rules) == ["done"] * 3
    assert cluster.works.calls == ["part0", "part1", "part2", "part1"]


def test_arrays_by_hand_and_jobs_of_others_are_told_apart(tmp_path: Path) -> None:
    plan = planned(tmp_path, 3)
    cluster = Cluster(plan)
    cluster.others = [
        QueuedJob("7", "PENDING", plan.name, array_index=1),
        QueuedJob("8", "PENDING", "somebody.else.0.1"),
        QueuedJob("9", "PENDING", f"{plan.name}.submit"),
    ]
    assert cluster.all(replace(RULES, once=True)) == ["running", "queued", "running"]
    assert len(cluster.submitted) == 2
    assert cancel_all(plan, cluster) == 4
    assert cluster.cancelled == ["9", "100", "101", "7"]


def test_two_submitters_do_not_meet(tmp_path: Path) -> None:
    plan = planned(tmp_path, 1)
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(plan.folder / "submit.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        with pytest.raises(UsageError, match="another submitter works on it"):
            Cluster(plan).all()
        other.communicate(b"")
    assert Cluster(plan).all() == ["done"]


def test_times_and_counts_are_summed_up(tmp_path: Path) -> None:
    plan = planned(tmp_path, 4)
    ticks = iter([0.0, 2.0, 2.0, 10.0, 14.0, 14.0, 20.0, 21.0, 21.0])
    works = Works({"part1": [5], "part2": [3]})
    for index in range(3):
        run_row(plan, index, launch=works, clock=lambda: next(ticks))
    figures = summary(row_states(plan, Results(plan).refresh(), Journal.of(plan), None, RULES, 100.0))
    assert figures["jobs"] == 4
    assert (figures["done"], figures["failed"], figures["waiting"], figures["incomplete"]) == (2, 1, 1, 1)
    assert (figures["seconds_median"], figures["seconds_longest"], figures["seconds_total"]) == (
        3.0,
        4.0,
        6.0,
    )


@pytest.mark.parametrize(
    "wrong", [{"max_instances": 0}, {"attempts": 0}, {"stop_after": 0}, {"wait_s": -1}, {"interval_s": -1}]
)
def test_rules_that_cannot_be_kept_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="instances"):
        Rules(**wrong)  # type: ignore[arg-type]


# ---- SLURM's commands ----------------------------------------------------------------------------------------------

# as SLURM's commands do, with a process in place of a job
SBATCH = """#!/bin/bash
while [[ "$1" == --* ]]; do
  case "$1" in
    --test-only) [ -e "$JOBS/refuse" ] && { echo "allocation failure: $(cat "$JOBS/refuse")" >&2; exit 1; }; exit 0;;
    --job-name=*) name="${1#*=}";;
  esac
  shift
done
[ -e "$JOBS/busy" ] && { echo "sbatch: error: busy" >&2; exit 1; }
[ -e "$JOBS/slow" ] && sleep 5
id=$(( 1000 + $(wc -l < "$JOBS/table") ))
[ -n "$SLURM_JOB_ID" ] && echo "leaked $SLURM_JOB_ID" >> "$JOBS/leaks"
SLURM_JOB_ID=$id SLURM_JOB_NAME=$name setsid bash "$@" > "$JOBS/$id.out" 2>&1 &
echo "$! $id $name" >> "$JOBS/table"
echo "Welcome to the cluster"
echo "$id;night"
"""
SQUEUE = """#!/bin/bash
[ -e "$JOBS/down" ] && { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
[ -e "$JOBS/odd" ] && { echo "             JOBID PARTITION     NAME"; exit 0; }
echo "CLUSTER: night"
echo "55|PENDING|3|array|job"
while read -r pid id name; do
  [ -r "/proc/$pid/stat" ] && [ "$(cut -d' ' -f3 "/proc/$pid/stat")" != Z ] && echo "$id|RUNNING|N/A|$name"
done < "$JOBS/table"
exit 0
"""
SCANCEL = """#!/bin/bash
while read -r pid id name; do
  [[ " $* " == *" $id "* ]] && kill -- "-$pid" && echo "$id" >> "$JOBS/cancelled"
done < "$JOBS/table"
exit 0
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with SLURM's commands on the PATH, which look at files in it."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "table").touch()
    for name, script in {"sbatch": SBATCH, "squeue": SQUEUE, "scancel": SCANCEL}.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("JOBS", str(folder))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    yield folder
    for line in (folder / "table").read_text().splitlines():
        subprocess.run(["kill", "--", f"-{line.split()[0]}"], check=False, stderr=subprocess.DEVNULL)


def test_the_commands_are_understood(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")  # we are a job ourselves
    script = tmp_path / "job.sub"
    script.write_text("sleep 60\n")
    slurm = Slurm(clusters="night")
    slurm.check(script)
    slurm_id = slurm.submit(script, "a|b.0.1", ["0"])
    assert slurm_id == "1000"
    assert not (site / "leaks").exists()
    assert slurm.queue() == [
        QueuedJob("55", "PENDING", "array|job", array_index=3),
        QueuedJob("1000", "RUNNING", "a|b.0.1"),
    ]
    slurm.cancel([])
    slurm.cancel([slurm_id])
    assert (site / "cancelled").read_text() == "1000\n"
    wait_until(lambda: len(slurm.queue()) == 1)


def wait_until(ready: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_what_the_commands_complain_of_is_told(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "job.sub"
    script.write_text("true\n")
    for name, text in {"refuse": "Invalid partition name specified", "busy": "", "down": ""}.items():
        (site / name).write_text(text)
    with pytest.raises(TapetumError, match=r"job.sub: SLURM refuses such a job: .*Invalid partition name"):
        Slurm().check(script)
    with pytest.raises(NetworkError, match="did not take job a: sbatch: error: busy"):
        Slurm().submit(script, "a", ["0"])
    with pytest.raises(NetworkError, match="Unable to contact slurm controller"):
        Slurm().queue()
    (site / "down").unlink()
    (site / "odd").touch()
    with pytest.raises(NetworkError, match=r"squeue --format=.* printed 'JOBID"):
        Slurm().queue()
    (site / "busy").unlink()
    (site / "slow").touch()
    with pytest.raises(NetworkError, match=r"no answer of sbatch within 0\.2 s"):
        Slurm(timeout_s=0.2).submit(script, "a", ["0"])
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    for ask in (Slurm().queue, lambda: Slurm().check(script)):
        with pytest.raises(UsageError, match=r"there is no s\w+ on the PATH"):
            ask()


def test_jobs_of_a_table_run_through_the_commands(site: Path, tmp_path: Path) -> None:
    """The scripts themselves, run as SLURM would, with the real command: one good row and one bad input."""
    rows = product_rows({"name": ["realbogus", "no-such-model"]})
    plan = prepare(tmp_path / "jobs", rows, [["models", "show", "{name}"]], JobOptions(), workdir=tmp_path)
    rules = Rules(max_instances=2, wait_s=0.3, interval_s=0, attempts=1, grace_s=5)
    states = submit_all(plan, Slurm(), rules)
    assert [entry.state for entry in states] == [State.DONE, State.FAILED]
    assert "no-such-model" in states[1].problem
    assert states[0].slurm_id == "1000"
    assert states[0].seconds > 0


def test_a_real_slurm_runs_a_job_table(tmp_path: Path) -> None:
    """Against SLURM itself where one answers; `python -m benchmarks.slurm --tests` starts one for this."""
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        pytest.skip("no SLURM here: there is no sbatch on the PATH")
    found = subprocess.run(["sinfo", "-h"], capture_output=True, text=True, check=False, timeout=60)
    if found.returncode or not found.stdout.strip():
        pytest.skip(f"no SLURM here: {(found.stderr or 'sinfo names no partition').splitlines()[0]}")
    rows = product_rows({"name": ["realbogus", "no-such-model", "tracking"]})
    options = JobOptions(name="tapetum-test", memory="1GiB", time="5", submit_memory="100M")
    plan = prepare(tmp_path / "jobs", rows, [["models", "show", "{name}"]], options, workdir=tmp_path)
    rules = Rules(max_instances=2, wait_s=1, interval_s=0, attempts=2, grace_s=5)
    states = submit_all(plan, Slurm(), rules)
    assert [entry.state for entry in states] == [State.DONE, State.FAILED, State.DONE]
    assert [entry.n_failed for entry in states] == [0, 2, 0]
    assert "no-such-model" in states[1].problem
    assert list((plan.folder / "logs").glob("tapetum-test.*.out"))
    assert json.loads(plan.result_path(0).read_text())["slurm_id"] == states[0].slurm_id
