"""The command as a user meets it: instant help, examples everywhere, exit codes, output whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer.main
from typer.testing import CliRunner

from tapetum.cli.app import app
from tapetum.core.errors import InputError

COLUMNS = (
    "alert_id", "object_id", "survey", "mjd", "ra", "dec", "model", "model_version", "score", "probability", "flags",
    "error",
)  # fmt: skip
HEAVY = {
    "numpy",
    "astropy",
    "pyarrow",
    "numba",
    "onnxruntime",
    "sqlalchemy",
    "matplotlib",
    "rich",
    "torch",
    "pandas",
}


def leaves(command=None, path=()):
    """(words, command) of every verb."""
    command = command or typer.main.get_command(app)
    inner = getattr(command, "commands", None)
    if not inner:
        yield path, command
    for name, child in (inner or {}).items():
        yield from leaves(child, (*path, name))


def run(*arguments, environment=None):
    """The installed command itself, as a user calls it."""
    command = [Path(sys.executable).with_name("tapetum"), *map(str, arguments)]
    environment = {**os.environ, **(environment or {})}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    "arguments", [[], ["alerts"], ["models"], ["store"], ["samples"], ["alerts", "score"]]
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom tapetum.cli import main\n"
        f"sys.argv = ['tapetum', *{arguments!r}, '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage" in out.stdout
    assert out.stdout.strip().endswith("HEAVY []")


def test_the_nouns_of_this_release():
    names = {path[0] for path, _ in leaves()}
    assert names == {"alerts", "images", "lightcurves", "models", "store", "samples", "demo", "doctor"}


@pytest.mark.parametrize("words", [path for path, _ in leaves()], ids=" ".join)
def test_every_verb_has_an_example_of_itself(words):
    command = next(command for path, command in leaves() if path == words)
    assert f"Example: tapetum {' '.join(words)}" in command.help


IMAGE_VERBS = ("info", "simulate", "align", "subtract", "detect", "search", "mask", "tracking")
RESULT_VERBS = ("cutouts", "completeness")  # these read what a search has written, not images


def options_of(*words):
    """Option names of a verb, the long ones."""
    command = next(command for path, command in leaves() if path == words)
    return {name for option in command.params for name in option.opts if name.startswith("-")}


def test_every_verb_on_images_takes_a_telescope():
    verbs = [path[1] for path, _ in leaves() if path[0] == "images" and path[1] != "telescopes"]
    assert sorted(verbs) == sorted((*IMAGE_VERBS, *RESULT_VERBS))
    for verb in IMAGE_VERBS:
        assert "--telescope" in options_of("images", verb), verb
        if verb != "info":  # it only shows
            assert {"-o", "--out", "--jobs", "--scheduler"} <= options_of("images", verb), verb
        if verb not in ("info", "tracking"):  # the one shows, the other adds a line at every run
            assert {"--mask", "--overwrite"} <= options_of("images", verb), verb
        arguments = ["images", verb, "x.fits", "--telescope", "nonesuch", *NEEDED.get(verb, ("-o", "out"))]
        problem = CliRunner().invoke(app, arguments).exception
        assert isinstance(problem, InputError), verb
        assert "nonesuch" in str(problem)


NEEDED = {
    "info": (),
    "align": ("-o", "out", "--onto", "y.fits"),
    "subtract": ("-o", "out", "--reference", "y.fits"),
}


def test_version_and_completion():
    version = run("--version")
    assert version.returncode == 0
    assert re.fullmatch(r"tapetum \d+\.\d+\S*\n", version.stdout)
    # which shell is running is not asked, since a test may run under none
    shown = run(
        "--show-completion", "bash", environment={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    )
    assert shown.returncode == 0
    assert re.search(r"^complete .*-F (\w+) tapetum$", shown.stdout, re.MULTILINE)
    asked = {"_TAPETUM_COMPLETE": "complete_bash", "COMP_WORDS": "tapetum alerts ", "COMP_CWORD": "2"}
    assert set(run(environment=asked).stdout.split()) == {"score", "ingest", "lightcurve"}


def test_errors_are_one_line_with_their_exit_code(tmp_path: Path):
    missing = run("alerts", "score", tmp_path / "nothing.avro", "-o", tmp_path / "s.csv")
    assert missing.returncode == 3
    assert "nothing.avro: no such file" in missing.stderr
    assert "Traceback" not in missing.stderr
    assert not list(tmp_path.glob("s.csv*"))
    model = run("alerts", "score", tmp_path, "-o", tmp_path / "s.csv", "--model", "nonesuch")
    assert model.returncode == 1
    assert "there is no model 'nonesuch'" in model.stderr
    assert "Traceback" not in model.stderr
    assert run("alerts", "score", "--nonsense").returncode == 2
    config = run("--config", tmp_path / "none.toml", "alerts", "score", tmp_path, "-o", "-")
    assert config.returncode == 3
    assert "none.toml: no such settings file" in config.stderr


@pytest.fixture(scope="module")
def packets(real_data: Path) -> Path:
    return real_data / "alerts" / "pgir"


def test_score_writes_the_columns_of_the_contract(packets: Path, tmp_path: Path):
    out = tmp_path / "scores.parquet"
    done = run("alerts", "score", packets, "-o", out)
    assert (done.returncode, done.stdout) == (0, "")
    table = pq.read_table(out)
    assert tuple(table.column_names) == COLUMNS
    assert table.num_rows == len(list(packets.glob("*.avro")))
    assert set(table["model"].to_pylist()) == {"realbogus"}
    for score, error in zip(table["score"].to_pylist(), table["error"].to_pylist(), strict=True):
        assert (score is None) == (error is not None)
        assert score is None or 0 <= score <= 1
    settings = (tmp_path / "scores.parquet.settings.toml").read_text()
    assert "[settings.alerts]" in settings
    again = run("alerts", "score", packets, "-o", out)
    assert "finished already" in again.stderr
    other = run("alerts", "score", next(packets.glob("*.avro")), "-o", out)
    assert "1 alerts scored" in other.stderr
    overwritten = run("alerts", "score", packets, "-o", out, "--overwrite")
    assert f"{table.num_rows} alerts scored" in overwritten.stderr
    assert pq.read_table(out).equals(table)


def test_stdout_is_data_and_workers_change_nothing(packets: Path):
    one = run("alerts", "score", packets, "-o", "-")
    two = run("alerts", "score", packets, "-o", "-", "--jobs", "2")
    assert one.stdout.splitlines()[0].replace('"', "") == ",".join(COLUMNS)
    assert one.stdout == two.stdout
    assert "scored" not in one.stderr


def test_some_rejected_is_exit_five_all_rejected_is_three(packets: Path, tmp_path: Path):
    malformed = packets.parent / "malformed"
    some = run("alerts", "score", packets, malformed, "-o", tmp_path / "s.csv")
    assert some.returncode == 5
    assert some.stderr.count("rejected: ") == len(list(malformed.glob("*.avro")))
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 1 + len(list(packets.glob("*.avro")))
    none = run("alerts", "score", malformed, "-o", tmp_path / "n.csv")
    assert none.returncode == 3
    assert not (tmp_path / "n.csv").exists()


def test_several_models_are_several_rows(packets: Path, tmp_path: Path):
    from tapetum.models.registry import find_model

    copy = str(find_model("realbogus").onnx.parent)
    out = tmp_path / "s.parquet"
    assert run("alerts", "score", packets, "-o", out, "--model", "realbogus", "--model", copy).returncode == 0
    table = pq.read_table(out).to_pylist()
    n = len(list(packets.glob("*.avro")))
    assert len(table) == 2 * n
    by_alert = {}
    for row in table:
        by_alert.setdefault(row["alert_id"], []).append(row["score"])
    assert all(len(scores) == 2 and scores[0] == scores[1] for scores in by_alert.values())


def test_a_run_that_rejected_something_says_so_again_when_it_is_repeated(packets: Path, tmp_path: Path):
    malformed = packets.parent / "malformed"
    first = run("alerts", "score", packets, malformed, "-o", tmp_path / "s.csv")
    again = run("alerts", "score", packets, malformed, "-o", tmp_path / "s.csv")
    assert (first.returncode, again.returncode) == (5, 5)
    assert "finished already" in again.stderr
    assert first.stderr.splitlines()[-1] == again.stderr.splitlines()[-1]  # the same counts
    named = [line for line in first.stderr.splitlines() if line.startswith("rejected: ")]
    assert [line for line in again.stderr.splitlines() if line.startswith("rejected: ")] == named


def test_another_model_or_a_changed_input_is_another_run(packets: Path, tmp_path: Path):
    from tapetum.models.registry import find_model

    weights = tmp_path / "mine"
    shutil.copytree(find_model("realbogus").onnx.parent, weights)
    folder = tmp_path / "in"
    folder.mkdir()
    files = sorted(packets.glob("*.avro"))
    shutil.copy(files[0], folder)
    arguments = ("alerts", "score", folder, "-o", folder / "s.csv", "--model", weights)
    assert "1 alerts scored" in run(*arguments).stderr
    assert "finished already" in run(*arguments).stderr
    card = weights / "card.json"
    card.write_text(card.read_text().replace('"version": "', '"version": "9', 1))
    assert "1 alerts scored" in run(*arguments).stderr
    shutil.copy(files[1], folder)
    assert "2 alerts scored" in run(*arguments).stderr
    assert run(*arguments).returncode == 0  # its own output in the folder is not its input


def test_batches_of_nothing_but_repeats(packets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAPETUM_ALERTS__BATCH", "2")
    for number, path in enumerate(sorted(packets.glob("*.avro"))[:2] * 3):
        shutil.copy(path, tmp_path / f"{number}.avro")
    done = run("alerts", "score", tmp_path, "-o", tmp_path / "out" / "s.csv")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out" / "s.csv").read_text().splitlines()) == 3


def test_an_alert_that_comes_twice_has_one_row(packets: Path, tmp_path: Path):
    one = next(packets.glob("*.avro"))
    done = run("alerts", "score", one, one, one, "-o", "-", "--model", "realbogus", "--model", "realbogus")
    assert len(done.stdout.splitlines()) == 2
    assert "2 packets repeat an alert" in done.stderr


@pytest.mark.parametrize("out", ["scores.xyz", "folder", "folder.csv", "."])
def test_an_output_that_cannot_be_is_said_before_the_work(packets: Path, tmp_path: Path, out):
    for name in ("folder", "folder.csv"):
        (tmp_path / name).mkdir()
    done = run("alerts", "score", packets, "-o", tmp_path / out, "-v")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "scored" not in done.stderr


def test_what_the_system_refuses_is_one_line(packets: Path, tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    for arguments in (
        ("alerts", "score", packets, "-o", blocked / "s.csv"),
        (
            "alerts",
            "ingest",
            packets,
            "--store",
            f"sqlite:///{tmp_path}/n.db",
            "--acknowledge",
            blocked / "x",
        ),
        ("demo", "--offline", "-o", blocked),
    ):
        done = run(*arguments)
        assert done.returncode in (1, 2), arguments
        assert "Traceback" not in done.stderr
        assert "file" in done.stderr
    full = subprocess.run(
        f"{Path(sys.executable).with_name('tapetum')} alerts score {packets} -o - > /dev/full",
        shell=True, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert full.returncode == 1
    assert "No space left" in full.stderr
    assert "Traceback" not in full.stderr
    long = run("alerts", "score", "x" * 5000, "-o", tmp_path / "s.csv")
    assert long.returncode == 3
    assert "Traceback" not in long.stderr


def test_quiet_talkative_and_json(packets: Path, tmp_path: Path):
    quiet = run("-q", "alerts", "score", packets, "-o", tmp_path / "a.csv")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    lines = run("--json-log", "alerts", "score", packets, "-o", tmp_path / "b.csv").stderr.splitlines()
    assert "alerts scored" in json.loads(lines[-1])["message"]
    talk = run("-v", "alerts", "score", packets, "-o", tmp_path / "c.csv").stderr
    assert "models.runtime: realbogus" in talk
    failed = run("-q", "alerts", "score", tmp_path / "none", "-o", tmp_path / "d.csv")
    assert "no such file" in failed.stderr


def test_a_demo_of_simulated_alerts_says_so_on_the_console_too(tmp_path: Path):
    done = run("demo", "--offline", "-o", tmp_path)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: These alerts are simulated, not observed: --offline was given")
    assert "report: " in done.stdout


def test_packets_from_stdin(packets: Path):
    one = next(packets.glob("*.avro"))
    command = [Path(sys.executable).with_name("tapetum"), "alerts", "score", "-", "-o", "-"]
    done = subprocess.run(command, input=one.read_bytes(), capture_output=True, check=True)
    assert len(done.stdout.splitlines()) == 2


def test_what_came_through_stdin_is_never_taken_for_finished(packets: Path, tmp_path: Path):
    out = tmp_path / "s.csv"
    seen = []
    for path in sorted(packets.glob("*.avro"))[:2]:
        command = [Path(sys.executable).with_name("tapetum"), "alerts", "score", "-", "-o", out]
        subprocess.run(command, input=path.read_bytes(), capture_output=True, check=True)
        seen.append(out.read_text())
    assert seen[0] != seen[1]
