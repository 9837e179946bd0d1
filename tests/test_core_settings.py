"""Settings: their order of precedence, typos refused, and the copy beside an output."""

from __future__ import annotations

import pickle
import tomllib
from pathlib import Path

import pytest

from tapetum.core.errors import InputError
from tapetum.core.settings import load_settings, write_settings


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_command_line_beats_environment_beats_file_beats_default(monkeypatch):
    assert load_settings().jobs == 1
    Path("tapetum.toml").write_text("jobs = 2\n[store]\ncommit_alerts = 7\nurl = 'sqlite:///file.db'\n")
    assert load_settings().jobs == 2
    monkeypatch.setenv("TAPETUM_JOBS", "3")
    monkeypatch.setenv("TAPETUM_STORE__URL", "sqlite:///environment.db")
    assert load_settings().jobs == 3
    settings = load_settings(None, {"jobs": 4, "alerts.model": None})
    assert settings.jobs == 4
    assert (settings.store.url, settings.store.commit_alerts) == ("sqlite:///environment.db", 7)
    assert settings.alerts.model == "realbogus"


def test_a_named_file_and_the_users_file(tmp_path, monkeypatch):
    config = tmp_path / "config" / "tapetum"
    config.mkdir()
    (config / "tapetum.toml").write_text("jobs = 5\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert load_settings().jobs == 5
    (tmp_path / "mine.toml").write_text("jobs = 6\n")
    assert load_settings(tmp_path / "mine.toml").jobs == 6
    with pytest.raises(InputError, match="no such settings file"):
        load_settings(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jbos = 2", "jbos"),
        ("[store]\nurk = 1", r"store\.urk"),
        ("jobs = 0", "jobs"),
        ("jobs = ", "not valid TOML"),
    ],
)
def test_mistakes_in_the_file_are_named(text, message):
    Path("tapetum.toml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_settings()
    assert "tapetum.toml" in str(caught.value)


def test_mistakes_in_the_environment_are_named(monkeypatch):
    monkeypatch.setenv("TAPETUM_JBOS", "2")
    with pytest.raises(InputError, match="TAPETUM_JBOS"):
        load_settings()


def test_the_copy_beside_an_output_is_toml_and_complete(tmp_path):
    settings = load_settings(None, {"jobs": 2, "store.url": 'a "quoted" url'})
    write_settings(
        tmp_path / "out.toml", settings, {"verb": "x", "inputs": ["a", "b"], "path": Path("p"), "none": None}
    )
    content = tomllib.loads((tmp_path / "out.toml").read_text())
    assert content["run"]["inputs"] == ["a", "b"]
    assert content["settings"]["jobs"] == 2
    assert content["settings"]["store"]["url"] == 'a "quoted" url'
    assert "none" not in content["run"]


def test_passwords_are_never_written(tmp_path):
    url = "postgresql://reader:secret@host/night"
    write_settings(tmp_path / "out.toml", load_settings(None, {"store.url": url}), {"inputs": [url]})
    text = (tmp_path / "out.toml").read_text()
    assert "secret" not in text
    assert text.count("reader:***@host") == 2


def test_settings_travel_to_other_processes():
    settings = load_settings(None, {"jobs": 3, "store.url": "sqlite:///night.db"})
    assert pickle.loads(pickle.dumps(settings)) == settings
