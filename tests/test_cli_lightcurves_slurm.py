"""`tapetum lightcurves slurm` as a user meets it, without any SLURM."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.csv as pacsv
import pytest
from typer.testing import CliRunner

from tapetum.cli.lightcurves_slurm import app
from tapetum.core.errors import PartialFailureError, TapetumError, UsageError
from tapetum.pipelines.slurm_jobs import load_plan


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no SLURM


def call(*arguments: str) -> str:
    """What a call prints; raises what it raises."""
    return CliRunner().invoke(app, arguments, catch_exceptions=False).stdout


def test_the_described_options_reach_the_scripts(tmp_path: Path) -> None:
    (tmp_path / "tapetum.toml").write_text(
        '[cluster]\nqueue = "night"\naccount = "survey"\nmemory = "3GiB"\nwalltime = "02:00:00"\n'
        'directives = ["--exclusive"]\nprologue = ["module load python"]\n'
    )
    call(
        "prepare", "-o", "jobs", "--field-list", "301", "--field", "302", "--ccd", "2-3", "--quad", "4", "--job-name",
        "ztf_fg", "--cluster-name", "expanse", "--submit-partition-type", "shared", "--nodes", "1", "--gpus", "1",
        "--submit-memory-GB", "4", "--mail-user", "a@b.org", "--python-env-name", "scope-env", "--max-instances", "7",
        "--wait-time-minutes", "2", "--submit-interval-minutes", "0.5", "--user", "me", "--", "--set", "scope",
    )  # fmt: skip
    job, submit = ((tmp_path / "jobs" / name).read_text() for name in ("job.sub", "submit.sub"))
    for line in (
        "--partition=night", "--account=survey", "--mem=3072M", "--time=02:00:00", "--gpus=1", "--clusters=expanse",
        "--exclusive", "--mail-user=a@b.org",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in job
    assert "module load python\n" in job
    assert "conda activate scope-env\n" in job
    assert "#SBATCH --partition=shared\n" in submit
    assert "#SBATCH --mem=4096M\n" in submit
    for words in (
        "--max-instances 7", "--wait-time-minutes 2", "--submit-interval-minutes 0.5", "--attempts 3", "--user me",
    ):  # fmt: skip
        assert words in submit
    plan = load_plan(tmp_path / "jobs")
    assert [tuple(row.values.values()) for row in plan.rows] == [
        ("301", "2", "4"),
        ("301", "3", "4"),
        ("302", "2", "4"),
        ("302", "3", "4"),
    ]
    assert plan.steps(plan.rows[2])[-1][3:5] == ["--set", "scope"]
    assert (tmp_path / "jobs" / "jobs.csv").read_text().splitlines()[0] == "job,field,ccd,quad"


def test_rows_run_here_and_status_tells_of_them(tmp_path: Path) -> None:
    call("prepare", "-o", "jobs", "--each", "name=realbogus,no-such-model", "--", "models", "show", "{name}")
    with pytest.raises(PartialFailureError, match="1 of 2 jobs failed"):
        call("run", "jobs")
    with pytest.raises(TapetumError, match=r"job 1 .name no-such-model.: .*no-such-model"):
        call("run", "jobs", "--index", "1")
    assert call("run", "jobs", "--index", "0") == ""
    figures = json.loads(call("status", "jobs", "--json", "-o", "states.csv"))
    assert (figures["jobs"], figures["done"]) == (2, 1)
    assert figures["done"] + figures["waiting"] + figures["failed"] == 2
    states = pacsv.read_csv(tmp_path / "states.csv").to_pydict()
    assert states["name"] == ["realbogus", "no-such-model"]
    assert states["state"][0] == "done"
    assert "no-such-model" in states["problem"][1]
    assert "done" in call("status", "jobs")
    for verb in ("submit", "cancel"):
        with pytest.raises(UsageError, match="run on a machine that submits SLURM jobs"):
            call(verb, "jobs")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "give one of --files, --table, --field, --each and --script"),
        (["--field", "301", "--each", "a=1"], "give one of"),
        (["--each", "tag=vnv"], "give the command of the jobs after --"),
        (["--each", "tag=vnv", "--", "models", "train", "{class}"], "no column class; it has job tag"),
        (["--field", "301", "--ccd", "0-3"], "ZTF has 1 to 16"),
        (["--field", "301", "--ccd", "a-b"], "--ccd a-b: a number, or a range"),
    ],
)
def test_what_cannot_be_is_said_at_once(arguments: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        call("prepare", "-o", "jobs", *arguments)
    assert not (tmp_path / "jobs").exists()


def test_an_option_of_another_form_is_named() -> None:
    result = CliRunner().invoke(app, ["prepare", "-o", "jobs", "--each", "no value"])
    assert result.exit_code == 2
    assert "--each" in result.output
