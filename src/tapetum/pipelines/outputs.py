"""Finished work: the settings beside an output say what made it, so that it need not be made twice."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapetum.core.settings import Settings, write_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def settings_path(output: Path) -> Path:
    """Where the settings of a run lie: beside its output."""
    return output.with_name(output.name + ".settings.toml")


def fingerprint(inputs: Iterable[str | Path], options: Mapping[str, Any]) -> str:
    """Hash of what decides an output: the inputs' names, sizes and times, and the options."""
    seen = []
    for path in map(Path, inputs):
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            status = file.stat() if file.exists() else None
            seen.append(
                (
                    str(file.absolute()),
                    status.st_size if status else None,
                    status.st_mtime_ns if status else None,
                )
            )
    return hashlib.sha256(json.dumps([seen, dict(options)], sort_keys=True, default=str).encode()).hexdigest()


def is_finished(output: Path, made_from: str) -> bool:
    """Whether `output` is there and was made from exactly this."""
    beside = settings_path(output)
    if not output.exists() or not beside.exists():
        return False
    try:
        run = tomllib.loads(beside.read_text()).get("run", {})
    except tomllib.TOMLDecodeError:
        return False
    return bool(run.get("fingerprint") == made_from)


def record_settings(output: Path, settings: Settings, made_from: str, command: Mapping[str, Any]) -> None:
    """Write the settings beside a finished output."""
    write_settings(settings_path(output), settings, {**command, "fingerprint": made_from})
