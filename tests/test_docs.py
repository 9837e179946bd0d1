"""Documentation that cannot rot: promises name tests that exist, pages exist, commands are the ones that run."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tapetum.models.registry import list_models, template_names

ROOT = Path(__file__).resolve().parents[1]
VERIFICATION = (ROOT / "docs" / "verification.md").read_text()


def test_every_promise_names_something_that_shows_it():
    rows = [
        line
        for line in VERIFICATION.splitlines()
        if line.startswith("| ") and not line.startswith("| promise")
    ]
    assert len(rows) > 60
    for row in rows:
        _, promise, shown_by, _ = re.split(r"(?<!\\)\|", row)
        assert promise.strip()
        assert "`" in shown_by, row


@pytest.mark.parametrize("reference", sorted(set(re.findall(r"`(test_\w+\.py::test_\w+)`", VERIFICATION))))
def test_tests_named_in_the_verification_exist(reference):
    file, name = reference.split("::")
    assert f"def {name}(" in (ROOT / "tests" / file).read_text()


def test_every_test_file_is_part_of_the_verification():
    here = {path.name for path in (ROOT / "tests").glob("test_*.py")} - {Path(__file__).name}
    assert here - set(re.findall(r"test_\w+\.py", VERIFICATION)) == set()


def test_project_files_say_what_they_must():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["license"] == "BSD-3-Clause"
    assert project["build-system"]["build-backend"] == "hatchling.build"
    assert project["tool"]["hatch"]["version"]["source"] == "vcs"
    assert "BSD 3-Clause" in (ROOT / "LICENSE").read_text()
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "README.md"):
        assert len((ROOT / name).read_text()) > 500


def test_every_dependency_has_its_reason():
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    lines = [line for line in block.splitlines() if re.match(r'\s+"', line)]
    assert len(lines) > 20
    assert [line for line in lines if not re.search(r'",\s+# \S', line)] == []


def test_every_model_has_a_page():
    titles = [path.read_text().partition("\n")[0] for path in (ROOT / "docs" / "models").glob("*.md")]
    named = {word for title in titles for word in re.findall(r"[\w-]+", title)}
    shipped = {files.name for files in list_models() if files.origin == "package"}
    assert "realbogus" in shipped
    assert (shipped | set(template_names())) - named == set()


OPTIONAL = {
    "training": "train",
    "_cluster.py": "cluster",
    "lightcurve_lsdb.py": "cluster",
    "catalogue.py": "online",
    "_openvino.py": "openvino",
}  # a room or file, its extra


def test_everything_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def names(lines):
        return {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in lines}

    always = names(project["dependencies"])
    of = packages_distributions()
    for path in (ROOT / "src").rglob("*.py"):
        optional = [extra for place, extra in OPTIONAL.items() if place in path.parts]
        allowed = always.union(*(names(extras[extra]) for extra in optional))
        for module in modules_of(ast.parse(path.read_text())) - sys.stdlib_module_names - {"tapetum"}:
            known = {name.lower().replace("_", "-") for name in of.get(module, [module])}
            assert known & allowed, f"{path} imports {module}, which pyproject.toml does not declare"


def modules_of(tree):
    """Top-level names of all that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_reference_is_generated_from_the_code():
    spec = importlib.util.spec_from_file_location(
        "reference", ROOT / "docs" / "_ext" / "generated_reference.py"
    )
    module = importlib.util.module_from_spec(spec)
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
    spec.loader.exec_module(module)
    page = module.cli_page()
    for command in ("tapetum alerts score", "tapetum store check", "tapetum models import", "tapetum demo"):
        assert f"`{command}`" in page
    rooms = {path.parent.name for path in (ROOT / "src" / "tapetum").glob("*/__init__.py")} - {"cli"}
    assert rooms == set(module.ROOMS)


def test_makefile_has_the_promised_targets():
    text = (ROOT / "Makefile").read_text()
    for target in ("install", "demo", "test", "lint", "docs", "bench"):
        assert re.search(rf"^{target}:", text, re.MULTILINE)
    for target in ("demo", "test"):
        assert re.search(rf"^{target}: install$", text, re.MULTILINE)


def test_ci_calls_nothing_softer_than_the_readme():
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if not line.startswith("#")]
    assert lines[-1] == "make test"
    assert "make lint" in lines
    assert "make docs" in lines
    [torch] = [line for line in lines if "torch==2.13.0" in line]
    assert "-m pip install" in torch
    assert "uv" not in torch
    assert "make test" in (ROOT / "README.md").read_text()
    assert "set -euo pipefail" in lines


def test_the_environment_is_stamped_by_what_decides_it(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("make_venv", ROOT / "tools" / "make_venv.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text("a")
    first = module.fingerprint("dev")
    assert first == module.fingerprint("dev") != module.fingerprint("dev,docs")
    (tmp_path / "pyproject.toml").write_text("b")
    assert first != module.fingerprint("dev")


def test_without_torch_the_suite_says_so(tmp_path):
    code = (
        "import importlib.util, subprocess, sys, types\n"
        f"sys.path.insert(0, {str(ROOT / 'tools')!r})\n"
        "import run_tests\n"
        "importlib.util.find_spec = lambda name: None\n"
        "subprocess.run = lambda *a, **k: types.SimpleNamespace(returncode=3)\n"
        "sys.exit(run_tests.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    [line] = done.stdout.splitlines()
    assert line.startswith("training was skipped: torch is not installed; get it with")


def test_no_host_is_named_in_the_code():
    for path in (ROOT / "src").rglob("*.py"):
        for host in re.findall(r"https?://([\w.-]+)", path.read_text()):
            # names of formats, which nobody asks
            assert host in ("json-schema.org", "www.w3.org"), f"{path}: {host}"


def test_no_room_is_empty():
    for room in (ROOT / "src" / "tapetum").glob("*/__init__.py"):
        modules = [path for path in room.parent.rglob("*.py") if path != room]
        assert modules, room
        assert room.read_text().startswith('"""')


def test_pip_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any(re.match(r"pip\b", entry) for entry in project["dependencies"])


def test_labels_by_eye_are_for_tests_only():
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "src").rglob("*.toml")]:
        assert "visual_labels" not in path.read_text(), path
