"""`tapetum doctor`: says what is there, fails with a remedy when something is not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from tapetum.cli import doctor
from tapetum.cli.app import app
from tapetum.core.errors import TapetumError
from tapetum.core.settings import Settings
from tapetum.pipelines import selftest

if TYPE_CHECKING:
    from pathlib import Path


def call(*arguments: str, status: int = 0) -> Any:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    assert result.exit_code == status, result.output
    return result


def test_report_for_machines_is_complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    seen = json.loads(call("--json").stdout)
    assert seen["ok"]
    assert seen["problems"] == []
    assert {"tapetum", "python", "numpy", "astropy", "pip", "onnxruntime"} <= set(seen["versions"])
    assert "CPUExecutionProvider" in seen["devices"]["onnxruntime_providers"]
    assert seen["devices"]["cores"] >= 1
    assert seen["devices"]["memory_bytes"] > 2**28
    assert all(kernel["ok"] for kernel in seen["kernels"])
    assert "realbogus" in {model["name"] for model in seen["models"]}
    assert seen["store"] == {"url": None}
    assert seen["places"]["cache"] == str(tmp_path / "cache" / "tapetum")
    assert {"train", "dev", "docs"} <= set(seen["extras"])


def test_quiet_says_nothing_when_all_is_well() -> None:
    result = call("--quiet")
    assert result.stdout == ""


def test_people_read_sections() -> None:
    text = call().stdout
    for section in ("versions", "devices", "compiled parts", "models", "places", "extras", "all is well"):
        assert f"\n{section}" in f"\n{text}"


def test_a_broken_kernel_is_named_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise TapetumError("walk gives 3 where 4 is right")

    monkeypatch.setattr(selftest, "SELF_TESTS", {"alerts.decode": fails})
    result = call("--quiet", status=1)
    assert "alerts.decode: walk gives 3 where 4 is right; remedy: python -m pip install" in result.stderr


def test_a_missing_package_is_named_and_nothing_that_needs_it_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: None if name == "numba" else real(name))
    monkeypatch.setattr(doctor, "check_kernels", lambda seen: pytest.fail("tried without numba"))
    result = call("--quiet", status=1)
    assert "numba is not installed; remedy: python -m pip install" in result.stderr


def test_unknown_model_and_absent_store_are_problems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TAPETUM_ALERTS__MODEL", "no-such-model")
    monkeypatch.setenv("TAPETUM_STORE__URL", f"sqlite:///{tmp_path / 'absent.db'}")
    result = call("--json", status=1)
    problems = [entry["what"] for entry in json.loads(result.stdout)["problems"]]
    assert any("no-such-model" in problem for problem in problems)
    assert any("absent.db" in problem for problem in problems)
    assert not (tmp_path / "absent.db").exists()


def test_self_tests_notice_wrong_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    from tapetum.alerts import decode
    from tapetum.models import inputs

    for check in selftest.SELF_TESTS.values():
        check()
    right = inputs.prepare_images
    monkeypatch.setattr(inputs, "prepare_images", lambda *given: right(*given) * 1.01)
    with pytest.raises(TapetumError, match="row_l2 comes out wrong"):
        selftest.check_network_input()
    decoded = decode.decode_packets

    def slightly_off(*given: Any, **options: Any) -> Any:
        batches, rejections = decoded(*given, **options)
        batches[0][0].ra[:] += 0.01
        return batches, rejections

    monkeypatch.setattr(decode, "decode_packets", slightly_off)
    with pytest.raises(TapetumError, match="ra comes out wrong"):
        selftest.check_decoding()


def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPETUM_STORE__URL", "postgresql://me:s3cret@127.0.0.1:1/alerts")
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert "s3cret" not in result.output
    assert "me:***@127.0.0.1" in result.output
    assert "s3cret" not in call("--settings").output


def test_store_of_the_settings_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tapetum.store.store import open_store

    url = f"sqlite:///{tmp_path / 'night.db'}"
    open_store(url, create=True).close()
    monkeypatch.setenv("TAPETUM_STORE__URL", url)
    store = json.loads(call("--json").stdout)["store"]
    assert store["alerts"] == 0
    assert store["dead_letters"] == 0


def test_settings_lists_every_key_with_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPETUM_JOBS", "7")
    rows = {row["key"]: row for row in json.loads(call("--settings", "--json").stdout)}
    assert (rows["jobs"]["value"], rows["jobs"]["default"]) == (7, 1)
    sections = {
        name for name, info in Settings.model_fields.items() if hasattr(info.annotation, "model_fields")
    }
    assert {key.split(".")[0] for key in rows if "." in key} == sections
    assert all(row["description"] for row in rows.values())
    assert "store.url = None  (default None)" in call("--settings").stdout


def test_the_self_test_of_images_fails_when_a_flux_or_a_source_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dataclasses import replace

    from tapetum.pipelines import search_steps

    found = search_steps.detect_difference

    def too_bright(*arguments: Any, **options: Any) -> Any:
        seen = found(*arguments, **options)
        return replace(seen, flux=1.3 * seen.flux)

    def blind(*arguments: Any, **options: Any) -> Any:
        return found(*arguments, **options)[:0]

    selftest.check_images()
    monkeypatch.setattr(search_steps, "detect_difference", too_bright)
    with pytest.raises(TapetumError, match=r"1\.\d\d of its flux"):
        selftest.check_images()
    monkeypatch.setattr(search_steps, "detect_difference", blind)
    with pytest.raises(TapetumError, match="is not found"):
        selftest.check_images()
