"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real survey data: $TAPETUM_TEST_DATA, else ../shared/data beside the project."""
    named = os.environ.get("TAPETUM_TEST_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "alerts").is_dir():
        pytest.skip(f"no real data: {folder} has no alerts/; point TAPETUM_TEST_DATA at a copy")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that fails again when it failed once."""
    return np.random.default_rng(20260)


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's settings, models or downloads."""
    for name in ("cache", "config"):
        (tmp_path / name).mkdir()  # astropy warns when a named folder is not there
        monkeypatch.setenv(f"XDG_{name.upper()}_HOME", str(tmp_path / name))
